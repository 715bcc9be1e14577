"""Threads that share one core, while the interpreter's lock is what bounds them.

Only one thread at a time runs Python. Where many are ready to run, the lock is handed from core to core,
and each hand-over may cost as much as a short request does. On one core there is nothing to hand over. But
what needs no lock (encrypting, parsing or counting long texts) would lose the other cores. The requests
don't tell which is more. So it is tried: busy threads move to one core for a moment, and stay there if more
requests end than before. From time to time, and when the rate falls, the other way is tried again. Threads
whose requests take less than a millisecond of a core go to one at once: that is nearly always better. While
too few have ended to know that, it is supposed of a server that answers at once.

Linux lets the cores of a thread be chosen. Elsewhere, on a single core, and where there is no such lock,
nothing is done. Only the package's threads move, and the one that waits in ``process_file``, until that
returns.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cores = frozenset[int]

_WINDOW_S = 0.3  # the rate is measured over this time
_SETTLING_S = 0.05  # after a move, before it is measured
_FIRST_WINDOW_S = 0.05  # for a first impression
_BUSY = (
    0.7  # the cores that a process uses, at least, whose threads wait for the interpreter's lock
)
_AT_ONCE_S = 0.05  # from the last thread's start to the first answer, if the server answers at once
_SHORT_S = 0.001  # the time of a core for a request, below which one core is tried first
_GAIN = 1.05  # how much more must end after a move
_FALL = 0.7  # of the best rate, below which the other way is tried soon
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0  # from one trial to the next
_LOOK_EVERY, _LOOK_FIRST = 50, 10  # requests
_FIELD_OF_CORE = 36  # behind the name of a thread, man 5 proc


class _Joined(threading.local):
    """What the calling thread has joined."""

    core: SharedCore | None = None


_joined = _Joined()


def joined() -> SharedCore | None:
    """What the calling thread has joined; the threads that it starts should join that, too."""
    return _joined.core


class SharedCore:
    """Decides on which cores its threads run, and moves them. Any thread may call any method.

    Attributes:
        all: the cores that threads have; empty if there is no choice.
        wanted: those on which the threads are.
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
        self.wanted = self.all
        self._threads: dict[int, None] = {}  # the system's ids
        self._clock, self._cpu_clock = clock, cpu_clock
        # Workers count without the lock, and may lose some: what matters is only how fast it grows.
        self._count = 0
        self._look_at = 1 if len(self.all) > 1 else sys.maxsize
        self._lock = threading.Lock()  # held by the worker that decides; guards the fields below
        self._before: float | None = None  # the rate before the trial that is under way
        self._best = 0.0  # since the last trial
        self._settles = True  # until requests end that were sent after the last move
        self._is_first = True  # until a first window has been measured
        self._pause_s, self._tried_at = _SHORTEST_PAUSE_S, -math.inf
        self._joined_at = clock()  # the last one that did
        self._begin(self._joined_at, 0.0)

    def join(self) -> None:
        """Have the calling thread be on the ``wanted`` cores from now on."""
        _joined.core = self
        if self.all:
            self._joined_at = self._clock()
            self._threads[threading.get_native_id()] = None  # first: _go() may move it meanwhile
            self._move(0)

    def leave(self) -> None:
        """Have the calling thread be on all cores again."""
        _joined.core = None
        if (thread_id := threading.get_native_id()) in self._threads:
            del self._threads[thread_id]
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.all)

    def ended(self) -> None:
        """A request of the calling worker has ended."""
        self._count += 1
        if self._count >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look_at = self._count + (_LOOK_FIRST if self._is_first else _LOOK_EVERY)
                self._look(self._clock())
            finally:
                self._lock.release()

    def _move(self, thread_id: int) -> None:
        try:
            os.sched_setaffinity(thread_id, self.wanted)
        except ProcessLookupError:  # it has just ended
            pass
        except OSError:  # a container's cores have changed: leave it at that
            self.all = self.wanted = Cores()
            self._look_at = sys.maxsize

    # Caller holds ``_lock``.

    def _begin(self, now: float, seconds: float) -> None:
        """Begin to measure for so long."""
        self._since, self._cpu_since, self._count_since = now, self._cpu_clock(), self._count
        self._until = now + seconds

    def _look(self, now: float) -> None:
        """At the end of a window, decide how to go on."""
        if now < self._until:
            return
        seconds, count = now - self._since, self._count - self._count_since
        cpu_s = self._cpu_clock() - self._cpu_since
        if self._settles:
            self._settles = False
            if self._is_first and now - self._joined_at < _AT_ONCE_S:
                self._share()
            self._begin(now, _FIRST_WINDOW_S if self._is_first else _WINDOW_S)
            return
        if self._before is not None:
            self._end_trial(count / seconds, now)
        elif cpu_s < _BUSY * seconds:
            self._go(self.all)
            self._pause_s = _SHORTEST_PAUSE_S
        elif self._is_first:
            self._tried_at = now
            if cpu_s < _SHORT_S * count:
                self._share()
            else:
                self._go(self.all)
        else:
            self._compare(count / seconds, now)
        self._is_first = False
        self._begin(now, _SETTLING_S if self._settles else _WINDOW_S)

    def _compare(self, rate: float, now: float) -> None:
        """Begin a trial if it is time."""
        self._best = max(self._best, rate)
        waited_s = now - self._tried_at
        has_fallen = rate < _FALL * self._best and waited_s >= _SHORTEST_PAUSE_S
        if has_fallen or waited_s >= self._pause_s:
            self._before = rate
            self._change(now)

    def _end_trial(self, rate: float, now: float) -> None:
        """Go back unless it was worth it."""
        if rate >= _GAIN * (self._before or 0.0):
            self._pause_s = 2 * _SHORTEST_PAUSE_S
        else:
            self._change(now)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._before, self._best = None, 0.0

    def _change(self, now: float) -> None:
        """Try the other way."""
        self._tried_at = now
        if self.wanted is self.all:
            self._share()
        else:
            self._go(self.all)

    def _share(self) -> None:
        """Move all threads to the core of the calling one, unless they are on one."""
        if self.wanted is self.all:
            self._go(_one_of(self.all))

    def _go(self, cores: Cores) -> None:
        """Move all threads."""
        if cores is not self.wanted:
            self.wanted, self._settles = cores, True
            for thread_id in tuple(self._threads):
                self._move(thread_id)


def _one_of(cores: Cores) -> Cores:
    """The one on which the calling thread runs: busy processes of one machine run on different ones."""
    try:
        stat = Path("/proc/thread-self/stat").read_text()
        core = int(stat.rpartition(")")[2].split()[_FIELD_OF_CORE])
    except (OSError, ValueError, IndexError):
        core = min(cores)
    return Cores({core}) if core in cores else Cores({min(cores)})


def _own_cores() -> Cores:
    """The cores of the calling thread; empty if it can't choose among them, or has no reason to."""
    has_lock: Any = getattr(sys, "_is_gil_enabled", lambda: True)
    if not hasattr(os, "sched_setaffinity") or not has_lock():
        return Cores()
    try:
        return Cores(os.sched_getaffinity(0))
    except OSError:
        return Cores()
