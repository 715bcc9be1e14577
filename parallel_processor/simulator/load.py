"""How a server slows down under load: beyond its best, more at once means less in all.

With n requests in flight an answer takes `latency_s * max(1, n / best_in_flight) ** exponent`, so
with an exponent above 1 the throughput, n over that, is highest at `best_in_flight`.

A server with `slots` answers so many at once, and queues all others for ever, in the order in which
they came. It works on a request whose client has left as on any other.
"""

from __future__ import annotations

import heapq

from parallel_processor.runtime.locks import InterruptSafeLock


class Load:
    """Counts the requests that are being answered. Safe to call from any thread."""

    def __init__(
        self, *, best: int | None, exponent: float, most: int | None, slots: int | None = None
    ) -> None:
        self._best = best
        self._exponent = exponent
        self._most = most
        self._counts = best is not None or most is not None
        self._lock = InterruptSafeLock()  # guards _in_flight and _free_s
        self._free_s = [0.0] * (slots or 0)  # when each slot is free, a heap
        self._in_flight = 0

    def enter(self) -> int:
        """Count a request in and return how many that makes; 0 if it is one too many.

        Where load makes no difference nothing is counted, and each is the only one.
        """
        if not self._counts:
            return 1
        with self._lock:
            if self._most is not None and self._in_flight >= self._most:
                return 0
            self._in_flight += 1
            return self._in_flight

    def leave(self) -> None:
        """Count a request out that was counted in."""
        if not self._counts:
            return
        with self._lock:
            self._in_flight -= 1

    def slowdown(self, in_flight: int) -> float:
        """Return by what an answer's time is multiplied."""
        if self._best is None or in_flight <= self._best:
            return 1.0
        return float((in_flight / self._best) ** self._exponent)

    def time_s(self, now_s: float, work_s: float) -> float:
        """Return how long an answer takes that is `work_s` of work, the time in the queue included."""
        if not self._free_s:
            return work_s
        with self._lock:
            end_s = max(now_s, self._free_s[0]) + work_s
            heapq.heapreplace(self._free_s, end_s)
            return end_s - now_s
