"""What the simulator saw: the counters behind GET /stats.

Each admitted request leaves sixteen bytes, its arrival and its charge, so the busiest minute of a
run of millions of requests can be worked out exactly when somebody asks.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from typing import Any

from parallel_processor.runtime.locks import InterruptSafeLock

WINDOW_S = 60.0


class Stats:
    """Counts requests and connections. Safe to call from any thread; times are in seconds."""

    def __init__(self, *, started_s: float) -> None:
        self._started_s = started_s
        self._lock = InterruptSafeLock()  # guards everything below
        self._counts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._in_flight = self._peak_in_flight = 0
        self._connections = self._peak_connections = 0
        self._arrivals_s = array("d")  # of admitted requests, ascending
        self._charges = array("q")  # their tokens
        self._settled_s = array("d")  # when tokens were charged later, ascending
        self._settled = array("q")  # these tokens
        self._answered: set[int] = set()  # digests of the bodies that got an answer

    def connected(self) -> None:
        """Count a connection."""
        with self._lock:
            self._counts["connections_opened"] += 1
            self._connections += 1
            self._peak_connections = max(self._peak_connections, self._connections)

    def disconnected(self) -> None:
        """Count a connection out."""
        with self._lock:
            self._connections -= 1

    def arrived(self) -> int:
        """Count a request in flight, and return its number from 1."""
        with self._lock:
            self._counts["requests_received"] += 1
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
            return self._counts["requests_received"]

    def left(self) -> None:
        """Count a request out of flight."""
        with self._lock:
            self._in_flight -= 1

    def admitted(self, arrived_s: float, tokens: int) -> None:
        """Keep what the limits let pass; threads may report slightly out of order."""
        with self._lock:
            _insert(self._arrivals_s, self._charges, arrived_s, tokens)

    def settled(self, now_s: float, tokens: int) -> None:
        """Keep tokens that were charged after their request's admission."""
        with self._lock:
            _insert(self._settled_s, self._settled, now_s, tokens)

    def wrote(self, read: int, written: int) -> None:
        """Count the tokens of an answer, which are paid for, whoever gets it."""
        with self._lock:
            self._counts["input_tokens_answered"] += read
            self._counts["output_tokens_answered"] += written

    def count(self, name: str) -> None:
        """Count a request that ended as `name`: refused, unauthorised, bad_requests, …"""
        with self._lock:
            self._counts[name] += 1

    def faulted(self, kind: str) -> None:
        """Count an injected fault."""
        with self._lock:
            self._faults[kind] += 1

    def answered(self, digest: int, at_most: int | None) -> bool:
        """Count a good answer to the body that `digest` names; False if `at_most` were counted."""
        with self._lock:
            if at_most is not None and self._counts["answered"] >= at_most:
                return False
            self._counts["answered"] += 1
            self._answered.add(digest)
            return True

    def answers(self) -> int:
        """Return how many good answers were counted."""
        with self._lock:
            return self._counts["answered"]

    def summary(self) -> dict[str, Any]:
        """Return every figure; the sliding windows are half-open, [t, t + 60)."""
        with self._lock:
            counts, faults = Counter(self._counts), dict(sorted(self._faults.items()))
            arrivals_s, charges = self._arrivals_s[:], self._charges[:]
            settled_s, settled = self._settled_s[:], self._settled[:]
            peak_in_flight, distinct = self._peak_in_flight, len(self._answered)
            connections, peak_connections = self._connections, self._peak_connections
        most_requests, most_tokens = busiest_window(arrivals_s, charges)
        first = first_settled = 0
        if arrivals_s:
            first = bisect_left(arrivals_s, arrivals_s[0] + WINDOW_S)
            first_settled = bisect_left(settled_s, arrivals_s[0] + WINDOW_S)
        if settled:
            _, most_tokens = busiest_window(*_merged(arrivals_s, charges, settled_s, settled))
        return {
            "requests_received": counts["requests_received"],
            "answered": counts["answered"],
            "duplicates": counts["answered"] - distinct,
            "refused": counts["refused"],
            "unauthorised": counts["unauthorised"],
            "out_of_quota": counts["out_of_quota"],
            "bad_requests": counts["bad_requests"],
            "overloaded": counts["overloaded"],
            "tier_full": counts["tier_full"],
            "abandoned": counts["abandoned"],
            "faults": faults,
            "tokens_received": sum(charges) + sum(settled),
            "input_tokens_answered": counts["input_tokens_answered"],
            "output_tokens_answered": counts["output_tokens_answered"],
            "connections_opened": counts["connections_opened"],
            "connections_now": connections,
            "connections_peak": peak_connections,
            "peak_in_flight": peak_in_flight,
            "max_requests_in_60_s": most_requests,
            "max_tokens_in_60_s": most_tokens,
            "requests_in_first_60_s": first,
            "tokens_in_first_60_s": sum(charges[:first]) + sum(settled[:first_settled]),
            "first_arrival_s": arrivals_s[0] - self._started_s if arrivals_s else None,
            "last_arrival_s": arrivals_s[-1] - self._started_s if arrivals_s else None,
        }


def busiest_window(arrivals_s: array[float], charges: array[int]) -> tuple[int, int]:
    """Return the most requests and the most tokens in any 60 seconds; arrivals ascend."""
    most_requests = most_tokens = tokens = start = 0
    for end, arrived_s in enumerate(arrivals_s):
        tokens += charges[end]
        while arrivals_s[start] <= arrived_s - WINDOW_S:
            tokens -= charges[start]
            start += 1
        most_requests = max(most_requests, end + 1 - start)
        most_tokens = max(most_tokens, tokens)
    return most_requests, most_tokens


def _insert(times_s: array[float], values: array[int], at_s: float, value: int) -> None:
    """Put a time and its value where they belong, mostly at the end."""
    place = len(times_s)
    if place and at_s < times_s[-1]:
        place = bisect_right(times_s, at_s)
    times_s.insert(place, at_s)
    values.insert(place, value)


def _merged(
    first_s: array[float], first: array[int], second_s: array[float], second: array[int]
) -> tuple[array[float], array[int]]:
    """Merge two series by their times."""
    pairs = sorted([*zip(first_s, first, strict=True), *zip(second_s, second, strict=True)])
    return array("d", [time_s for time_s, _ in pairs]), array("q", [value for _, value in pairs])
