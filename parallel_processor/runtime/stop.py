"""The stop of a run, which ends every wait of its threads."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from parallel_processor.runtime.locks import InterruptSafeLock

_TRIES = 5
# Python may miss a signal that arrives just before a wait in C, until that wait is over. So no single
# wait of the main thread, which alone handles signals, is longer than this.
_MAX_MAIN_THREAD_WAIT_S = 0.5


class Settable(Protocol):
    """What a stop can wake: an event."""

    def set(self) -> None:
        """Wake the thread that waits."""


class WakeEvent:
    """A ``threading.Event`` that a KeyboardInterrupt can't break.

    An interrupt in ``Event.wait`` or ``Event.set`` may leave the event's lock held. This one waits in a
    single call of C, for an entry of a queue. Up to ``max_waiters`` threads may wait at the same time.
    """

    def __init__(self, max_waiters: int = 1) -> None:
        self._max_waiters = max_waiters
        self._is_set = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def is_set(self) -> bool:
        """True from :meth:`set` to :meth:`clear`."""
        return self._is_set

    def set(self) -> None:
        """End the waits that are under way, and those to come until :meth:`clear`."""
        self._is_set = True
        while self._wakes.qsize() < self._max_waiters:
            self._wakes.put(None)

    def clear(self) -> None:
        """Let the next wait last until the event is set again."""
        self._is_set = False
        while not self._wakes.empty():
            with suppress(queue.Empty):  # a thread that waits may take it first
                self._wakes.get_nowait()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, at most so long; false if it isn't."""
        is_main = threading.current_thread() is threading.main_thread()
        most_s = _MAX_MAIN_THREAD_WAIT_S if is_main else threading.TIMEOUT_MAX
        left_s = math.inf if seconds is None else seconds
        while not self._is_set and left_s > 0:
            with suppress(queue.Empty):
                self._wakes.get(timeout=min(left_s, most_s))
                break
            left_s -= most_s
        return self._is_set


class StopSignal:
    """Is set at most once per run, with its cause, and sets every event that has subscribed.

    Any thread may call any method, but a signal handler may not: the thread that it interrupts may hold
    the lock.

    Attributes:
        cause: why the run stops; the first cause stays. ``None`` while it doesn't.
    """

    def __init__(self) -> None:
        self._lock = InterruptSafeLock()  # guards every change of cause, and _subscribers
        self.cause: BaseException | None = None
        self._subscribers: set[Settable] = set()
        self._event = WakeEvent(max_waiters=8)

    def is_set(self) -> bool:
        """True once the run is to stop."""
        return self.cause is not None

    def set(self, cause: BaseException) -> None:
        """Stop the run: nothing more is sent, and every wait ends now."""
        with self._lock:
            if self.cause is not None:
                return
            self.cause = cause
            subscribers = tuple(self._subscribers)
        do_all(event.set for event in (self._event, *subscribers))

    def wait(self, seconds: float) -> bool:
        """Wait for ``seconds``, less if the run stops; true if it does."""
        return self._event.wait(seconds)

    @contextmanager
    def waking(self, event: Settable) -> Iterator[None]:
        """While the block runs, a stop sets ``event`` too; at once if it has come already."""
        with self._lock:
            self._subscribers.add(event)
        if self.cause is not None:
            event.set()
        try:
            yield
        finally:
            with self._lock:
                self._subscribers.discard(event)


def do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, even if one fails; then raise the last exception.

    A step that is interrupted, by one more Ctrl-C for example, is taken again. One that fails is not.
    """
    left, tries = deque(steps), 0
    raised: BaseException | None = None
    while left:
        try:
            while left:  # within the try: an interrupt may come between two steps, too
                left[0]()
                left.popleft()
                tries = 0
        except Exception as error:
            raised, tries = error, 0
            left.popleft()
        except BaseException as error:
            raised, tries = error, tries + 1
            if left and tries >= _TRIES:
                left.popleft()
                tries = 0
    if raised is not None:
        raise raised
