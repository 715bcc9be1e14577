"""Time that only tests move, and the count that a token bucket is compared with."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from parallel_processor.ratelimit.token_bucket import TokenBucket

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


def admitted_by(bucket: TokenBucket) -> dict[str, float]:
    """What the configured limits of ``bucket`` count of the last minute, by name."""
    with bucket.shared_limits.lock:
        return bucket.shared_limits.levels(bucket._clock())[0]


def in_threads(targets: Sequence[Callable[[], T]]) -> list[T]:
    """Run each target in a thread of its own, all of them at once; their results."""
    start = threading.Barrier(len(targets))

    def run(target: Callable[[], T]) -> T:
        start.wait(_REAL_TIMEOUT_S)
        return target()

    with ThreadPoolExecutor(len(targets)) as pool:
        return [each.result(_REAL_TIMEOUT_S) for each in [pool.submit(run, t) for t in targets]]
