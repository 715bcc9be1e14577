"""Worker threads that share one core, while the interpreter's lock is what bounds them.

Only one thread at a time runs Python. Where many are ready to run, the lock is handed from core to core,
and each hand-over may cost as much as a short request does. On one core there is nothing to hand over. But
what needs no lock (encrypting, parsing or counting long texts) would lose the other cores. The requests
don't tell which is more. So it is tried: busy workers move to one core for a moment, and stay there if more
requests end than before. From time to time, and when the rate falls, the other way is tried again.

Linux lets a thread choose its cores. Elsewhere, on a single core, and where there is no such lock, nothing
is done. Only the package's threads move, and the one that waits in ``process_file``, until that returns.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Cores = frozenset[int]

_WINDOW_S = 0.3  # the rate is measured over this time
_SETTLING_S = 0.05  # after a move, before it is measured
_BUSY = (
    0.7  # the cores that a process uses, at least, whose threads wait for the interpreter's lock
)
_GAIN = 1.05  # how much more must end after a move
_FALL = 0.7  # of the best rate, below which the other way is tried soon
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0  # from one trial to the next
_LOOK_EVERY = 50  # requests


class WorkerCores:
    """Decides on which cores the threads of a run work. Any thread may call any method.

    A thread calls :meth:`follow` whenever ``wanted`` isn't what it has. A worker calls :meth:`ended` for
    each request.

    Attributes:
        all: the cores that threads have; empty if they have no choice.
        wanted: those on which they should be.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        cores: Cores | None = None,
    ) -> None:
        """Choose among ``cores``, by default those of the calling thread.

        ``cpu_clock`` returns the seconds that all threads of this process have used together.
        """
        self.all = _own_cores() if cores is None else cores
        # Several processes of one machine should not choose the same one.
        self._one = Cores(sorted(self.all)[os.getpid() % max(len(self.all), 1) :][:1])
        self.wanted = self.all
        self._clock, self._cpu_clock = clock, cpu_clock
        # Workers count without the lock, and may lose some: what matters is only how fast it grows.
        self._count = 0
        self._look_at: float = _LOOK_EVERY if len(self.all) > 1 else sys.maxsize
        self._lock = threading.Lock()  # held by the worker that decides; guards the fields below
        self._before: float | None = None  # the rate before the trial that is under way
        self._best = 0.0  # since the last trial
        self._settles = (
            True  # what ends before a new window was sent before a move, or as the run began
        )
        self._pause_s, self._tried_at = _SHORTEST_PAUSE_S, -sys.float_info.max
        self._begin(clock())

    def follow(self) -> Cores:
        """Move the calling thread to the cores that are ``wanted``, and return them."""
        wanted = self.wanted
        if wanted:
            try:
                os.sched_setaffinity(0, wanted)
            except OSError:  # a container's cores have changed: leave it at that
                self.all = self._one = self.wanted = Cores()
        return wanted

    def leave(self) -> None:
        """Move the calling thread back to all cores."""
        if self.all:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.all)

    def ended(self) -> None:
        """A request of the calling worker has ended."""
        self._count += 1
        if self._count >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look_at = self._count + _LOOK_EVERY
                self._look(self._clock())
            finally:
                self._lock.release()

    # Caller holds ``_lock``.

    def _begin(self, now: float) -> None:
        """Begin to measure."""
        self._since, self._cpu_since, self._count_since = now, self._cpu_clock(), self._count
        self._until = now + (_SETTLING_S if self._settles else _WINDOW_S)

    def _look(self, now: float) -> None:
        """At the end of a window, decide how to go on."""
        if now < self._until:
            return
        seconds = now - self._since
        rate = (self._count - self._count_since) / seconds
        if self._settles:
            self._settles = False
        elif self._before is not None:
            self._end_trial(rate, now)
        elif (self._cpu_clock() - self._cpu_since) / seconds < _BUSY:
            self._go(self.all)
            self._pause_s = _SHORTEST_PAUSE_S
        else:
            self._best = max(self._best, rate)
            waited_s = now - self._tried_at
            has_fallen = rate < _FALL * self._best and waited_s >= _SHORTEST_PAUSE_S
            if has_fallen or waited_s >= self._pause_s:
                self._before = rate
                self._go(self.all if self.wanted is self._one else self._one)
        self._begin(now)

    def _end_trial(self, rate: float, now: float) -> None:
        """Go back unless it was worth it."""
        if rate >= _GAIN * (self._before or 0.0):
            self._pause_s = 2 * _SHORTEST_PAUSE_S
        else:
            self._go(self.all if self.wanted is self._one else self._one)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._before, self._best, self._tried_at = None, 0.0, now

    def _go(self, cores: Cores) -> None:
        if cores is not self.wanted:
            self.wanted, self._settles = cores, True


def _own_cores() -> Cores:
    """The cores of the calling thread; empty if it can't choose among them, or has no reason to."""
    has_lock: Any = getattr(sys, "_is_gil_enabled", lambda: True)
    if not hasattr(os, "sched_setaffinity") or not has_lock():
        return Cores()
    try:
        return Cores(os.sched_getaffinity(0))
    except OSError:
        return Cores()
