"""What held a run back, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.models import WaitCause
from parallel_processor.report.wait_times import WaitTimes

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails


class Played(WaitTimes):
    """A ledger with a clock of its own."""

    now_s = 0.0

    def note(self, seconds: float, cause: str, buckets: Sequence[tuple[Hashable, str]]) -> None:
        """Wait so long."""
        self.begin(self.now_s, cause, buckets)
        self.now_s += seconds
        self.end(self.now_s)


def test_a_new_ledger_is_empty() -> None:
    """Nobody has waited, and to ask for a bucket doesn't make one."""
    ledger = WaitTimes()
    assert dict(ledger.overall()) == dict(ledger.of_bucket("a")) == {}


def test_seconds_add_up_by_cause() -> None:
    """The run and each bucket have their own sums."""
    ledger = Played()
    ledger.note(2.0, "requests", [("a", "requests"), ("b", "tokens")])
    ledger.note(3.0, "tokens", [("b", "tokens")])
    ledger.note(0.5, "requests", [("a", "pause")])
    ledger.note(4.0, "input", [])
    assert ledger.overall() == {"input": 4.0, "tokens": 3.0, "requests": 2.5}
    assert ledger.of_bucket("a") == {"requests": 2.0, "pause": 0.5}
    assert ledger.of_bucket("b") == {"tokens": 5.0}
    assert ledger.of_bucket("c") == {}
    assert all(isinstance(cause, WaitCause) for cause in ledger.overall())


def test_the_longest_wait_comes_first() -> None:
    """The order is that in which the causes matter, not in which they came."""
    ledger = Played()
    for seconds, cause in [(1.0, "pause"), (3.0, "disk"), (2.0, "input")]:
        ledger.note(seconds, cause, [("a", cause)])
    assert list(ledger.overall()) == list(ledger.of_bucket("a")) == ["disk", "input", "pause"]


def test_what_was_told_stays_as_it_was() -> None:
    """A summary that was made doesn't change with what comes behind it."""
    ledger = Played()
    ledger.note(1.0, "input", [("a", "input")])
    overall, own = ledger.overall(), ledger.of_bucket("a")
    ledger.note(1.0, "disk", [("a", "disk")])
    assert overall == own == {"input": 1.0}


def test_a_wait_under_way_counts_if_asked_for() -> None:
    """A summary has what is over, the progress line what goes on as well."""
    ledger = WaitTimes()
    ledger.begin(10.0, "input", [("a", "input")])
    assert ledger.overall() == {}
    assert ledger.overall(12.0) == {"input": 2.0}
    ledger.begin(13.0, "tokens")  # ends the one before
    assert ledger.overall() == {"input": 3.0}
    assert ledger.overall(14.0) == {"input": 3.0, "tokens": 1.0}
    ledger.end(15.0)
    ledger.end(16.0)
    assert ledger.overall(20.0) == {"input": 3.0, "tokens": 2.0}
    assert ledger.of_bucket("a") == {"input": 3.0}


def test_threads_lose_no_second() -> None:
    """Sums add up while other threads read them."""
    ledger, causes = Played(), list(WaitCause)

    def read() -> None:
        while not over.is_set():
            assert set(ledger.overall(1e9)) <= set(causes)
            ledger.of_bucket(-1)

    over = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for number in range(4000):
            ledger.note(1.0, causes[number % len(causes)], [(number % 8, "tokens"), (-1, "tokens")])
        over.set()
        for reader in readers:
            reader.result(REAL_TIMEOUT_S)
    assert sum(ledger.overall().values()) == pytest.approx(4000)
    assert [ledger.of_bucket(bucket)["tokens"] for bucket in (0, 7, -1)] == [500, 500, 4000]
