"""The stop signal: told once, heard by everyone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.stop import StopSignal

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails


def test_nothing_is_set_at_first() -> None:
    """A new signal has no cause, and a wait for it ends when its time is over."""
    stop = StopSignal()
    assert not stop.is_set()
    assert stop.cause is None
    assert not stop.wait(0.0)


def test_the_first_cause_stays() -> None:
    """Who comes second neither changes the cause nor wakes anybody again."""
    stop, event = StopSignal(), threading.Event()
    first = KeyboardInterrupt()
    with stop.waking(event):
        stop.set(first)
        assert event.is_set()
        event.clear()
        stop.set(ValueError("second"))
        assert not event.is_set()
    assert stop.cause is first
    assert stop.is_set()


def test_of_many_causes_at_once_one_is_kept() -> None:
    """Threads that stop the run together agree on the cause."""
    stop, start = StopSignal(), threading.Barrier(16)
    causes = [ValueError(number) for number in range(16)]

    def set_and_see(cause: ValueError) -> BaseException | None:
        start.wait(REAL_TIMEOUT_S)
        stop.set(cause)
        return stop.cause

    with ThreadPoolExecutor(16) as pool:
        seen = set(pool.map(set_and_see, causes))
    assert seen == {stop.cause}
    assert stop.cause in causes


def test_every_subscriber_is_woken() -> None:
    """All events of all blocks that are open are set."""
    stop, events = StopSignal(), [threading.Event() for _ in range(3)]
    with stop.waking(events[0]), stop.waking(events[1]), stop.waking(events[2]):
        stop.set(KeyboardInterrupt())
        assert all(event.is_set() for event in events)


def test_who_subscribes_too_late_is_woken_at_once() -> None:
    """A stop that came before the block isn't missed."""
    stop, event = StopSignal(), threading.Event()
    stop.set(KeyboardInterrupt())
    with stop.waking(event):
        assert event.is_set()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_after_the_block_nobody_is_woken(error: type[BaseException] | None) -> None:
    """A subscription ends with its block, however that ends."""
    stop, event = StopSignal(), threading.Event()

    def subscribe() -> None:
        with stop.waking(event):
            if error is not None:
                raise error

    if error is None:
        subscribe()
    else:
        with pytest.raises(error):
            subscribe()
    stop.set(KeyboardInterrupt())
    assert not event.is_set()


def test_a_wait_in_a_thread_ends_with_the_stop() -> None:
    """A thread that waits for a long time returns as soon as the run stops."""
    stop = StopSignal()
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(stop.wait, REAL_TIMEOUT_S) for _ in range(4)]
        stop.set(KeyboardInterrupt())
        assert all(wait.result(REAL_TIMEOUT_S) for wait in waits)
