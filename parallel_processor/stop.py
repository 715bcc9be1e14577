"""The end of a run, told once and heard by everyone who waits."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from parallel_processor.exceptions import ResultsFileError, RunStoppedError
from parallel_processor.options import Options

_TRIES = 5
# Python may miss a signal that comes just before a wait in C, until that wait is over; on Windows no wait
# ends with Ctrl-C. So no wait is longer.
_LONGEST_S = 0.5


class Settable(Protocol):
    """What a stop can wake: an event, or a :class:`Bell`."""

    def set(self) -> None:
        """Wake who waits."""


class Bell:
    """Wakes the one thread that waits for it, like an event, wherever a KeyboardInterrupt hits that.

    An event's wait passes a lock from hand to hand in several steps; an interrupt between two of them
    leaves it taken. The queue beneath this one waits in a single call of C. Any thread may ring.
    """

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Ring: the wait that is under way, or else the next one, ends."""
        if self._rings.empty():
            self._rings.put(None)

    def clear(self) -> None:
        """Forget that it rang."""
        with suppress(queue.Empty):
            while True:
                self._rings.get_nowait()

    def wait(self, seconds: float | None) -> None:
        """Wait until it rings; at most ``seconds``, and at most half a second."""
        longest_s = _LONGEST_S if seconds is None else min(seconds, _LONGEST_S)
        with suppress(queue.Empty):
            self._rings.get(timeout=longest_s)


class StopSignal:
    """Set at most once per run, with its cause; wakes every event that subscribed.

    Any thread may call any method. A signal handler may not call :meth:`set`, since the thread that
    it interrupts may hold the lock; it tells another thread to do so (see ``cli.py``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _cause and _subscribers
        self._cause: BaseException | None = None
        self._subscribers: set[Settable] = set()
        self._event = threading.Event()

    @property
    def cause(self) -> BaseException | None:
        """Why the run stops; the first cause stays. ``None`` while it doesn't."""
        return self._cause

    def is_set(self) -> bool:
        """True once the run is to stop."""
        return self._cause is not None

    def set(self, cause: BaseException) -> None:
        """Stop the run: nothing more is admitted and every wait ends now."""
        with self._lock:
            if self._cause is not None:
                return
            self._cause = cause
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
            stopped = self._cause is not None
        if stopped:
            event.set()
        try:
            yield
        finally:
            with self._lock:
                self._subscribers.discard(event)


def do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step to its end, whatever interrupts one: once more Ctrl-C, say.

    Raises the last interruption, behind the last step.
    """
    interruption: BaseException | None = None
    for step in steps:
        for _ in range(_TRIES):
            try:
                step()
                break
            except BaseException as error:
                interruption = error
    if interruption is not None:
        raise interruption


def drain_s(cause: BaseException | None, options: Options) -> float:
    """How long exchanges under way may take after a stop: to their end if it's the server's.

    A failing disk has its own time; what is cut is not tried again.
    """
    if isinstance(cause, RunStoppedError):
        return math.inf
    if isinstance(cause, ResultsFileError):
        return max(options.drain_s, options.write_retry_s)
    return options.drain_s
