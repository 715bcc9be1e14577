"""The stop signal, which is set once and ends every wait; and the event that wakes threads."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from parallel_processor.runtime.stop import StopSignal, WakeEvent, do_all

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails


def test_the_first_cause_stays() -> None:
    """A second cause neither replaces it nor sets an event again; before it, a wait ends in time."""
    stop, event = StopSignal(), threading.Event()
    first = KeyboardInterrupt()
    assert (stop.is_set(), stop.cause, stop.wait(0.0)) == (False, None, False)
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


@pytest.mark.parametrize("make", [threading.Event, WakeEvent])
def test_every_subscriber_is_woken(make: Callable[[], Any]) -> None:
    """All events of all blocks that are open are set, and at once in a block that comes too late."""
    stop, events = StopSignal(), [make() for _ in range(3)]
    with stop.waking(events[0]), stop.waking(events[1]):
        assert not events[0].wait(0.0)
        stop.set(KeyboardInterrupt())
        with stop.waking(events[2]):
            assert all(event.wait(REAL_TIMEOUT_S) for event in events)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_after_the_block_nobody_is_woken(error: type[BaseException] | None) -> None:
    """A subscription ends with its block, however that ends."""
    stop, event = StopSignal(), threading.Event()

    with suppress(KeyboardInterrupt, ValueError), stop.waking(event):
        if error is not None:
            raise error
    stop.set(KeyboardInterrupt())
    assert not event.is_set()


def test_a_wait_in_a_thread_ends_with_the_stop() -> None:
    """A thread that waits for a long time returns as soon as the run stops."""
    stop = StopSignal()
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(stop.wait, REAL_TIMEOUT_S) for _ in range(4)]
        stop.set(KeyboardInterrupt())
        assert all(wait.result(REAL_TIMEOUT_S) for wait in waits)


def test_an_event_that_was_set_ends_waits_until_it_is_cleared() -> None:
    """What comes before a wait isn't missed, however often it came; an event may be set again."""
    event = WakeEvent()
    event.clear()
    for _ in range(2):
        assert not event.wait(0.0)
        assert not event.wait(0.001)
        for _ in range(1000):
            event.set()
        assert event.wait(REAL_TIMEOUT_S)
        assert event.wait()
        event.clear()


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


@pytest.mark.parametrize("moment", range(8))
def test_an_interrupt_at_any_moment_skips_no_step(moment: int) -> None:
    """It may also come when one step is done, and the next has not begun."""
    taken: list[int] = []
    lines = 0

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        """Raise it at a line of ``do_all`` behind the first step. Python calls this before each line."""
        nonlocal lines
        if frame.f_code is not do_all.__code__:
            return None
        if event == "line" and taken:
            lines += 1
            if lines > moment:
                raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            do_all([functools.partial(taken.append, number) for number in range(3)])
    finally:
        sys.settrace(before)
    assert set(taken) == {0, 1, 2}
