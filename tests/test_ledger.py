"""What held a run back, and for how long."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.ledger import Ledger

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails


def test_a_new_ledger_is_empty() -> None:
    """Nobody has waited, and to ask for a bucket doesn't make one."""
    ledger = Ledger()
    assert dict(ledger.overall()) == dict(ledger.of_bucket("a")) == {}


def test_seconds_add_up_by_cause() -> None:
    """The run and each bucket have their own sums."""
    ledger = Ledger()
    ledger.note(2.0, "requests", [("a", "requests"), ("b", "tokens")])
    ledger.note(3.0, "tokens", [("b", "tokens")])
    ledger.note(0.5, "requests", [("a", "pause")])
    ledger.note(4.0, "input", [])
    assert ledger.overall() == {"input": 4.0, "tokens": 3.0, "requests": 2.5}
    assert ledger.of_bucket("a") == {"requests": 2.0, "pause": 0.5}
    assert ledger.of_bucket("b") == {"tokens": 5.0}
    assert ledger.of_bucket("c") == {}


def test_the_longest_wait_comes_first() -> None:
    """The order is that in which the causes matter, not in which they came."""
    ledger = Ledger()
    for seconds, cause in [(1.0, "pause"), (3.0, "disk"), (2.0, "input")]:
        ledger.note(seconds, cause, [("a", cause)])
    assert list(ledger.overall()) == list(ledger.of_bucket("a")) == ["disk", "input", "pause"]


def test_what_was_told_stays_as_it_was() -> None:
    """A summary that was made doesn't change with what comes behind it."""
    ledger = Ledger()
    ledger.note(1.0, "input", [("a", "input")])
    overall, own = ledger.overall(), ledger.of_bucket("a")
    ledger.note(1.0, "disk", [("a", "disk")])
    assert overall == own == {"input": 1.0}


def test_threads_lose_no_second() -> None:
    """Sums from many threads add up while others read them."""
    ledger = Ledger()

    def note(bucket: int) -> None:
        for number in range(1000):
            ledger.note(1.0, f"cause {number % 50}", [(bucket, "tokens"), (-1, "tokens")])
            ledger.of_bucket(-1)
            ledger.overall()

    with ThreadPoolExecutor(8) as pool:
        for noted in [pool.submit(note, bucket) for bucket in range(8)]:
            noted.result(REAL_TIMEOUT_S)
    assert sum(ledger.overall().values()) == pytest.approx(8000)
    assert [ledger.of_bucket(bucket)["tokens"] for bucket in (0, 7, -1)] == [1000, 1000, 8000]
