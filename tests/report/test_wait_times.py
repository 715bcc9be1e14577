"""What a run waited for, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.models import WaitCause
from parallel_processor.report.wait_times import WaitTimes

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails
REQUESTS, TOKENS, PAUSE = WaitCause.REQUESTS, WaitCause.TOKENS, WaitCause.PAUSE
DISK, INPUT = WaitCause.DISK, WaitCause.INPUT


class Played(WaitTimes):
    """Wait times with a clock of their own."""

    now_s = 0.0

    def note(
        self, seconds: float, cause: WaitCause, buckets: Sequence[tuple[Hashable, WaitCause]]
    ) -> None:
        """Wait so long."""
        self.begin(self.now_s, cause, buckets)
        self.now_s += seconds
        self.end(self.now_s)


def test_new_wait_times_are_empty() -> None:
    """Nothing was waited for, neither by the run nor by a bucket."""
    wait_times = WaitTimes()
    assert dict(wait_times.overall()) == dict(wait_times.of_bucket("a")) == {}


def test_seconds_add_up_by_cause() -> None:
    """The run and each bucket have their own sums."""
    wait_times = Played()
    wait_times.note(2.0, REQUESTS, [("a", REQUESTS), ("b", TOKENS)])
    wait_times.note(3.0, TOKENS, [("b", TOKENS)])
    wait_times.note(0.5, REQUESTS, [("a", PAUSE)])
    wait_times.note(4.0, INPUT, [])
    assert wait_times.overall() == {INPUT: 4.0, TOKENS: 3.0, REQUESTS: 2.5}
    assert wait_times.of_bucket("a") == {REQUESTS: 2.0, PAUSE: 0.5}
    assert wait_times.of_bucket("b") == {TOKENS: 5.0}
    assert wait_times.of_bucket("c") == {}


def test_the_longest_wait_comes_first() -> None:
    """The order is that in which the causes matter, not in which they came."""
    wait_times = Played()
    for seconds, cause in [(1.0, PAUSE), (3.0, DISK), (2.0, INPUT)]:
        wait_times.note(seconds, cause, [("a", cause)])
    assert list(wait_times.overall()) == list(wait_times.of_bucket("a")) == [DISK, INPUT, PAUSE]


def test_what_was_told_stays_as_it_was() -> None:
    """A summary that was made doesn't change with what comes behind it."""
    wait_times = Played()
    wait_times.note(1.0, INPUT, [("a", INPUT)])
    overall, own = wait_times.overall(), wait_times.of_bucket("a")
    wait_times.note(1.0, DISK, [("a", DISK)])
    assert overall == own == {INPUT: 1.0}


def test_a_wait_under_way_counts_if_asked_for() -> None:
    """A summary has what is over, the progress line what goes on as well."""
    wait_times = WaitTimes()
    wait_times.begin(10.0, INPUT, [("a", INPUT)])
    assert wait_times.overall() == {}
    assert wait_times.overall(12.0) == {INPUT: 2.0}
    wait_times.begin(13.0, TOKENS)  # ends the one before
    assert wait_times.overall() == {INPUT: 3.0}
    assert wait_times.overall(14.0) == {INPUT: 3.0, TOKENS: 1.0}
    wait_times.end(15.0)
    wait_times.end(16.0)
    assert wait_times.overall(20.0) == {INPUT: 3.0, TOKENS: 2.0}
    assert wait_times.of_bucket("a") == {INPUT: 3.0}


def test_threads_lose_no_second() -> None:
    """Sums add up while other threads read them."""
    wait_times, causes = Played(), list(WaitCause)

    def read() -> None:
        while not over.is_set():
            assert set(wait_times.overall(1e9)) <= set(causes)
            wait_times.of_bucket(-1)

    over = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for number in range(4000):
            wait_times.note(1.0, causes[number % len(causes)], [(number % 8, TOKENS), (-1, TOKENS)])
        over.set()
        for reader in readers:
            reader.result(REAL_TIMEOUT_S)
    assert sum(wait_times.overall().values()) == pytest.approx(4000)
    assert [wait_times.of_bucket(bucket)[TOKENS] for bucket in (0, 7, -1)] == [500, 500, 4000]
