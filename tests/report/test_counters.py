"""What a run counts."""

from __future__ import annotations

import threading

import pytest

from parallel_processor.files.formats import made_request
from parallel_processor.models import Outcome
from parallel_processor.report.counters import Counters, Counts
from parallel_processor.report.samples import Sample
from parallel_processor.report.summary import COUNTER_TEXTS, Stats, Summary, counters_of

REQUEST = made_request({}, 1)


def outcome(ok: bool, kind: str = "", used: int | None = None, unanswered: bool = False) -> Outcome:
    """An outcome as a worker would give it."""
    return Outcome(request=REQUEST, ok=ok, error_kind=kind, used_tokens=used, unanswered=unanswered)


def test_the_summary_says_what_was_counted() -> None:
    """Each event is counted where it belongs."""
    counters = Counters()
    counters.skipped()
    for _ in range(6):
        counters.started()
    counters.sent(100, first=True)
    counters.sent(100, first=False)
    counters.refused()
    counters.paused()
    counters.finished([outcome(True, used=7), outcome(True), outcome(False, "timeout")])
    counters.finished([outcome(False, "HTTP 500"), outcome(False, "timeout")])
    counters.finished([outcome(False, unanswered=True)])
    assert counters.summary(2.5, stop_reason="enough") == Summary(
        already_answered=1,
        answered=2,
        failed=3,
        unanswered=1,
        attempts=2,
        retries=1,
        rate_limited=1,
        pauses=1,
        used_tokens=7,
        reserved_tokens=200,
        elapsed_s=2.5,
        errors_by_kind={"timeout": 2, "HTTP 500": 1},
        stop_reason="enough",
    )


@pytest.mark.parametrize(
    ("fraction", "left", "is_exact"), [(1.0, 4, True), (0.5, 14, False), (None, None, False)]
)
def test_what_is_left_has_no_record(
    fraction: float | None, left: int | None, is_exact: bool
) -> None:
    """What was read and has no outcome, and what the unread part of the input should hold."""
    counters = Counters()
    for _ in range(7):
        counters.read()
    counters.skipped()
    counters.skipped(failed=True)
    counters.skipped()
    counters.finished([outcome(True) for _ in range(3)])
    summary = counters.summary(1.0, fraction=fraction)
    assert (summary.left, summary.left_is_exact) == (left, is_exact)


def test_errors_are_listed_most_frequent_first() -> None:
    """The kinds of a summary are in the order in which they matter."""
    counters = Counters()
    counters.finished([outcome(False, kind) for kind in ("a", "b", "b", "c", "b", "c")])
    assert list(counters.summary(1.0).errors_by_kind) == ["b", "c", "a"]


def test_in_flight_is_what_has_no_outcome_yet() -> None:
    """Whatever a started request came to, it is in flight until then."""
    counters = Counters()
    counters.skipped()
    for _ in range(5):
        counters.started()
    assert counters.counts().in_flight == 5
    counters.finished([outcome(True), outcome(False, "x"), outcome(False, unanswered=True)])
    assert counters.counts().in_flight == 2


def test_what_could_not_be_recorded_is_unanswered() -> None:
    """An answer that the disk didn't take is none: the next run sends its request again."""
    counters = Counters()
    counters.started()
    counters.finished([outcome(True, used=5)], recorded=False)
    summary = counters.summary(1.0)
    assert (summary.answered, summary.unanswered, summary.used_tokens) == (0, 1, 0)


def test_threads_lose_no_count() -> None:
    """Counts from many threads add up."""
    counters = Counters()

    def count() -> None:
        for _ in range(1000):
            counters.sent(3, first=True)
            counters.finished([outcome(True, used=2)])

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    summary = counters.summary(1.0)
    assert (summary.answered, summary.attempts) == (8000, 8000)
    assert (summary.used_tokens, summary.reserved_tokens) == (16_000, 24_000)
    assert counters.counts().in_flight == 0


def test_one_list_of_counters_serves_all() -> None:
    """Each counter is a field of the counts, of both summaries and of a sample, and has a text."""
    counts = Counts(**{name: number for number, name in enumerate(COUNTER_TEXTS, start=1)})
    numbers = counters_of(counts)
    assert list(numbers.values()) == list(range(1, len(COUNTER_TEXTS) + 1))
    for made in (Summary(**numbers), Stats(**numbers), Sample(at_s=0.0, **numbers)):
        assert counters_of(made) == numbers
    assert all(COUNTER_TEXTS.values())
    assert counters_of(counts + counts) == {name: 2 * n for name, n in numbers.items()}
