"""The stop signal: told once, heard by everyone; and the bell that wakes one thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.stop import Bell, StopSignal

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


def test_a_bell_that_rang_ends_the_next_wait() -> None:
    """What rings before somebody waits isn't missed, and is heard once."""
    bell = Bell()
    bell.set()
    bell.wait(REAL_TIMEOUT_S)
    assert hears_nothing(bell)


def test_a_bell_that_rings_often_is_heard_once() -> None:
    """Rings that nobody heard don't pile up."""
    bell = Bell()
    for _ in range(1000):
        bell.set()
    bell.wait(REAL_TIMEOUT_S)
    assert hears_nothing(bell)


def test_a_bell_that_is_cleared_has_not_rung() -> None:
    """What was heard of otherwise is forgotten, and the bell rings again."""
    bell = Bell()
    bell.clear()
    bell.set()
    bell.clear()
    assert hears_nothing(bell)
    bell.set()
    bell.wait(REAL_TIMEOUT_S)


def test_a_bell_that_does_not_ring_ends_the_wait_in_time() -> None:
    """A wait for no time at all is one."""
    Bell().wait(0.0)
    Bell().wait(0.001)


def test_a_ring_ends_a_wait_that_is_under_way() -> None:
    """A thread waits as long as it takes, and any thread may ring."""
    bell = Bell()
    with ThreadPoolExecutor(1) as pool:
        for seconds in (None, 3600.0):
            wait = pool.submit(bell.wait, seconds)
            bell.set()
            wait.result(REAL_TIMEOUT_S)


def test_no_ring_is_lost_between_a_look_and_a_wait() -> None:
    """Who clears the bell, looks, and waits hears of whatever was done behind the look."""
    bell, done = Bell(), 0

    def wait_for_all() -> None:
        while True:
            bell.clear()
            if done == 5000:
                return
            bell.wait(None)

    waiter = threading.Thread(target=wait_for_all, daemon=True)
    waiter.start()
    for _ in range(5000):
        done += 1
        bell.set()
    waiter.join(REAL_TIMEOUT_S)
    assert not waiter.is_alive(), "it waits in vain"


def test_a_stop_rings_a_bell() -> None:
    """A bell may subscribe as an event does."""
    stop, bell = StopSignal(), Bell()
    with stop.waking(bell):
        assert hears_nothing(bell)
        stop.set(KeyboardInterrupt())
        bell.wait(REAL_TIMEOUT_S)
        assert hears_nothing(bell)
    with stop.waking(bell):  # too late
        bell.wait(REAL_TIMEOUT_S)


def hears_nothing(bell: Bell) -> bool:
    """True if a wait for the bell would last."""
    return bell._rings.empty()
