"""What a run says at its end: the same rows as text and as a table."""

from __future__ import annotations

from typing import Any

import pytest
from html_tables import table

from parallel_processor.exceptions import (
    InputFileError,
    ResultsFileError,
    RunStoppedError,
    StopCause,
    StopRequested,
    WorkerProcessError,
    stop_cause_of,
)
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import BucketReport, LimitReport
from parallel_processor.report.summary import Summary, summary_text
from parallel_processor.report.wording import cause_text


def rows(summary: Summary) -> list[str]:
    """The lines that ``print`` shows, which a notebook's table has as well."""
    found = table(summary._repr_html_())
    assert found.title == "Summary"
    lines = str(summary).splitlines()
    assert [f"{name}: {value}" for name, value in found.rows.items()] == lines
    return lines


def test_the_summary_names_everything() -> None:
    """Counts, time, rates, tokens, retries, rejections, errors by kind, and why the run ended."""
    summary = Summary(
        already_answered=1_000,
        already_failed=5,
        answered=2_000,
        failed=3,
        unanswered=4,
        deduplicated=6,
        attempts=3_000,
        retries=990,
        rate_limited=7,
        pauses=2,
        used_tokens=50_000,
        reserved_tokens=60_000,
        elapsed_s=120.0,
        errors_by_kind={"HTTP 500 <b>": 2, "timeout": 1},
        stop_reason="stopped by the caller",
    )
    assert rows(summary) == [
        "requests: 2,000 answered, 3 failed, 1,000 answered before, 5 failed before, "
        "6 not sent because an equal one was, 4 given up, the rest not sent in 120.0 s",
        "attempts: 3,000 (1,500 a minute), 990 of them retries, 7 rejected (429 or 503); pauses: 2",
        "tokens: 60,000 reserved (30,000 a minute), 50,000 used by the answers",
        "failed with HTTP 500 <b>: 2",
        "failed with timeout: 1",
        "stopped: stopped by the caller",
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"left": 99_980}, "1 answered, 0 failed, about 100,000 left in 2.0 s"),
        ({"left": 7, "left_is_exact": True}, "1 answered, 0 failed, 7 left in 2.0 s"),
        ({}, "1 answered, 0 failed, the rest not sent in 2.0 s"),
    ],
)
def test_a_stopped_run_says_how_many_are_left(more: dict[str, Any], text: str) -> None:
    """A number that is estimated has two digits that count."""
    summary = Summary(answered=1, elapsed_s=2.0, stop_reason="no money", **more)
    assert rows(summary)[0] == f"requests: {text}"


def test_a_model_on_several_endpoints_is_told_apart() -> None:
    """Its rows have the path behind its name; a model on one has its name alone."""
    urls = ("http://h/v1/chat/completions", "http://h/v1/responses")
    models = [BucketReport(url=url, model="m", admitted=1) for url in urls]
    models.append(BucketReport(url=urls[0], model="n", admitted=1))
    names = [row.partition(":")[0] for row in rows(Summary(buckets=tuple(models)))]
    assert names[-3:] == ["m (/v1/chat/completions)", "m (/v1/responses)", "n"]


def test_a_summary_tells_what_became_of_each_limit() -> None:
    """For each model: what it waited for, and the limits that were in force, found or configured."""
    typed = LimitReport(name="requests", configured=600.0, used=100.0, used_share=0.2)
    found = LimitReport(
        name="requests",
        found=300.0,
        used=100.0,
        used_share=0.951,
        changes=((1.0, 600.0), (9.0, 300.0)),
    )
    day = LimitReport(name="requests", window_s=86_400.0, found=1000.0, used=100.0, used_share=0.1)
    tried = LimitReport(name="requests", tried_per_minute=480.0)
    cut = LimitReport(name="tokens", found=900.0, tried_per_minute=480.0)
    url = "http://h/v1/x"
    summary = Summary(
        elapsed_s=100.0,
        buckets=(
            BucketReport(
                url=url,
                model="small",
                waited_s={WaitCause.REQUESTS: 80.0, WaitCause.DISK: 10.0, WaitCause.INPUT: 0.5},
                admitted=100,
                limits=(typed, found, day),
            ),
            BucketReport(
                url=url, model="", admitted=200, answered=9, rejections=1, limits=(tried, cut)
            ),
            BucketReport(
                url=url,
                model="sun",
                admitted=6,
                answered=6,
                in_flight_limit=61.6,
                peak_in_flight=62,
            ),
            BucketReport(  # neither the workers nor the search were stopped by the server
                url=url, model="few", admitted=5, answered=5, limits=(tried,), in_flight_limit=32.0
            ),
            BucketReport(url=url, model="open", admitted=4, limits=(LimitReport(name="tokens"),)),
            BucketReport(url=url, model="unused"),
        ),
    )
    assert rows(summary)[3:] == [
        "/v1/x: 200 sent, 9 answered, 191 failed; waited for nothing; 480 requests/min found by trying; "
        "900 tokens/min found, reduced to 480 after rejections (429)",
        "small: 100 sent, 0 answered, 100 failed; waited for 80 % the request limit, 10 % the disk; "
        "300 requests/min found (95 % used, changed 1 time); 1,000 requests/day found (10 % used)",
        "sun: 6 sent, 6 answered, 0 failed; waited for nothing; limited to 62 requests in flight",
        "few: 5 sent, 5 answered, 0 failed; waited for nothing; no limit of requests met up to 480/min",
        "open: 4 sent, 0 answered, 4 failed; waited for nothing; no limit of tokens",
    ]


def test_each_bucket_says_once_what_it_did() -> None:
    """Tiers on two servers, with a fallback on a third: attempts, requests that went on, and tokens."""
    one, two, three = (f"http://h{number}/v1/chat/completions" for number in (1, 2, 3))
    flex: Any = {"model": "m", "tier": "flex"}
    buckets = (
        BucketReport(
            url=one, **flex, admitted=200, answered=178, moved_on=22, downgraded=3, used_tokens=1780
        ),
        BucketReport(url=two, **flex, admitted=22, answered=21, moved_on=1, used_tokens=210),
        BucketReport(url=three, model="big", admitted=23, answered=23),
    )
    shown = [row.partition("; waited")[0] for row in rows(Summary(buckets=buckets))]
    assert shown[-3:] == [
        "m@flex at h1: 200 sent (90 %), 178 answered, 22 failed; 22 requests moved on; "
        "3 answered by another tier; 1,780 tokens",
        "big at h3: 23 sent, 23 answered, 0 failed",
        "m@flex at h2: 22 sent (10 %), 21 answered, 1 failed; 1 request moved on; 210 tokens",
    ]


def test_a_single_bucket_needs_no_counts() -> None:
    """The rows above it have them, as those of one that sent nothing do."""
    one = BucketReport(url="http://h/v1/x", model="m", admitted=5, answered=5)
    unused = BucketReport(url="http://h/v1/x", model="n")
    assert rows(Summary(buckets=(one, unused)))[-1] == "m: waited for nothing"


def test_a_run_that_did_nothing_has_a_summary() -> None:
    """No time and no requests divide by nothing, and a short run has no rate."""
    assert rows(Summary())[0] == "requests: 0 answered, 0 failed in 0.0 s"
    assert rows(Summary(attempts=50, elapsed_s=59.0))[1].startswith("attempts: 50, 0 of them")


def test_every_cause_has_its_own_words() -> None:
    """Whatever a run waits for, there is a text that tells it from all others."""
    assert len({cause_text(cause) for cause in WaitCause}) == len(WaitCause)


def test_the_reason_for_a_stop_can_be_left_out() -> None:
    """The command has logged it by then."""
    summary = Summary(stop_reason="no key")
    assert rows(summary)[-1] == "stopped: no key"
    assert "no key" not in summary_text(summary, with_stop=False)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, StopCause.NOTHING),
        (KeyboardInterrupt(), StopCause.CALLER),
        (StopRequested("enough"), StopCause.CALLER),
        (RunStoppedError("HTTP 401", StopCause.KEY), StopCause.KEY),
        (ResultsFileError("can't write"), StopCause.DISK),
        (WorkerProcessError("no memory"), StopCause.PROCESSES),
        (InputFileError("can't read"), StopCause.PROGRAM),
        (ZeroDivisionError(), StopCause.PROGRAM),
    ],
)
def test_what_ended_a_run_has_a_cause(error: BaseException | None, cause: StopCause) -> None:
    """Each kind of end can be told from the others by a value."""
    assert stop_cause_of(error) is cause
