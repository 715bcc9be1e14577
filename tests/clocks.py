"""Time that only tests move, and the count that the token bucket is held against."""

from __future__ import annotations

import itertools
import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MINUTE_S = 60.0
_REAL_TIMEOUT_S = 10.0  # after which a test that hangs fails


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class SlidingCount:
    """What was sent when, as a plain list that is added up anew for every question."""

    def __init__(self) -> None:
        self.entries: list[list[float]] = []  # [time, amount], oldest first

    def add(self, now_s: float, amount: float) -> list[float]:
        """Note ``amount`` at ``now_s``; what is returned may be corrected later."""
        self.entries.append([now_s, amount])
        return self.entries[-1]

    def total(self, first_s: float, last_s: float) -> float:
        """The sum from ``first_s`` to ``last_s``, both included."""
        return self.totals([(first_s, last_s)])[0]

    def totals(self, windows: Iterable[tuple[float, float]]) -> list[float]:
        """The sum of each of many windows, from its first to its last second, both included."""
        times = [when for when, _ in self.entries]
        sums = [0.0, *itertools.accumulate(amount for _, amount in self.entries)]
        return [sums[bisect_right(times, b)] - sums[bisect_left(times, a)] for a, b in windows]

    def busiest(self, length_s: float = MINUTE_S) -> float:
        """The largest sum of any ``length_s``, both ends included.

        No window holds more than one that starts with an entry.
        """
        return max(self.totals((when, when + length_s) for when, _ in self.entries), default=0.0)


class ThreadedClock(FakeClock):
    """A clock that moves on when every thread waits, to where the first of them wants to be woken.

    Threads really wait, on their events; no time passes in it.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        super().__init__(now_s)
        self._changed = threading.Condition()  # guards what follows
        self._running = 0
        self._waiting: dict[threading.Event, float] = {}  # until when
        self._pool = ThreadPoolExecutor(100)

    def wait(self, event: threading.Event, seconds: float | None) -> None:
        """Wait for ``event``, which the clock sets when ``seconds`` have passed in its time."""
        with self._changed:
            self._waiting[event] = self.now_s + (math.inf if seconds is None else seconds)
            self._changed.notify()
        try:
            assert event.wait(_REAL_TIMEOUT_S), "nobody wakes this thread"
        finally:
            with self._changed:
                del self._waiting[event]

    def start(self, target: Callable[[], T]) -> Callable[[], T]:
        """Run ``target`` in a thread; what is returned gives its result or raises its error."""

        def run() -> T:
            try:
                return target()
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify()

        with self._changed:
            self._running += 1
        future = self._pool.submit(run)
        return lambda: future.result(_REAL_TIMEOUT_S)

    def settle(self) -> int:
        """Return when every thread waits or has ended, with the number of those that wait."""
        with self._changed:
            assert self._changed.wait_for(self._is_quiet, _REAL_TIMEOUT_S)
            return self._running

    def run(self, until_s: float = math.inf) -> None:
        """Let time pass up to ``until_s``, or until every thread has ended."""
        while self.settle():
            with self._changed:
                event, when_s = min(self._waiting.items(), key=lambda item: item[1])
                if when_s > until_s or when_s == math.inf:
                    assert until_s < math.inf, "every thread waits for another"
                    self.now_s = until_s
                    return
                self.now_s = max(self.now_s, when_s)
                event.set()

    def gather(self, targets: Sequence[Callable[[], T]]) -> list[T]:
        """Run each target in a thread, with as much time as they need; their results."""
        results = [self.start(target) for target in targets]
        self.run()
        return [result() for result in results]

    def _is_quiet(self) -> bool:
        asleep = sum(not event.is_set() for event in self._waiting)
        return asleep == self._running

    def close(self) -> None:
        """End the threads, which must have nothing left to wait for."""
        self._pool.shutdown()
