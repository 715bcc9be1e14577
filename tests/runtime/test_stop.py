"""The stop signal: told once, heard by everyone; and the event that wakes one thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_processor.runtime.stop import StopSignal, WakeEvent, do_all

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


def test_an_event_that_was_set_ends_the_next_wait() -> None:
    """What comes before a wait isn't missed, however often it came, and holds until it is cleared."""
    event = WakeEvent()
    for _ in range(1000):
        event.set()
    assert event.wait(REAL_TIMEOUT_S)
    assert event.wait()
    event.clear()
    assert not event.wait(0.0)


def test_an_event_that_was_cleared_can_be_set_again() -> None:
    """What was heard of otherwise is forgotten."""
    event = WakeEvent()
    event.clear()
    event.set()
    event.clear()
    assert not event.wait(0.0)
    event.set()
    assert event.wait(REAL_TIMEOUT_S)


def test_a_wait_for_an_event_that_is_not_set_ends_in_time() -> None:
    """A wait for no time at all is one."""
    assert not WakeEvent().wait(0.0)
    assert not WakeEvent().wait(0.001)


def test_as_many_may_wait_as_the_event_is_made_for() -> None:
    """Each of them is woken."""
    event = WakeEvent(8)
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(event.wait, REAL_TIMEOUT_S) for _ in range(8)]
        event.set()
        assert all(wait.result(REAL_TIMEOUT_S) for wait in waits)


def test_an_event_ends_a_wait_that_is_under_way() -> None:
    """A thread waits as long as it takes, and any thread may set it."""
    event = WakeEvent()
    with ThreadPoolExecutor(1) as pool:
        for seconds in (None, 3600.0):
            event.clear()
            wait = pool.submit(event.wait, seconds)
            event.set()
            wait.result(REAL_TIMEOUT_S)


def test_no_wake_is_lost_between_a_look_and_a_wait() -> None:
    """Who clears the event, looks, and waits hears of whatever was done behind the look."""
    event, done = WakeEvent(), 0

    def wait_for_all() -> None:
        while True:
            event.clear()
            if done == 5000:
                return
            event.wait(None)

    waiter = threading.Thread(target=wait_for_all, daemon=True)
    waiter.start()
    for _ in range(5000):
        done += 1
        event.set()
    waiter.join(REAL_TIMEOUT_S)
    assert not waiter.is_alive(), "it waits in vain"


def test_a_stop_sets_an_event_without_a_lock() -> None:
    """It may subscribe as a ``threading.Event`` does."""
    stop, event = StopSignal(), WakeEvent()
    with stop.waking(event):
        assert not event.wait(0.0)
        stop.set(KeyboardInterrupt())
        assert event.wait(REAL_TIMEOUT_S)
        event.clear()
    with stop.waking(event):  # too late
        assert event.wait(REAL_TIMEOUT_S)


def test_every_step_is_taken_and_an_interrupted_one_again() -> None:
    """A step that fails is taken once, one that is interrupted again; the last exception is raised."""
    taken: list[str] = []

    def fail() -> None:
        taken.append("fail")
        raise OSError("broken")

    def be_interrupted() -> None:
        taken.append("interrupted")
        if taken.count("interrupted") < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_all([fail, be_interrupted, lambda: taken.append("last")])
    assert taken == ["fail", *["interrupted"] * 3, "last"]
