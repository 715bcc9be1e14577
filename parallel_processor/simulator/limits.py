"""The server's side of the rate limits, after the one OpenAI's headers give away.

Each limit is a bucket that holds a whole minute's worth and is refilled continuously, a sixtieth of
it a second; a request takes from both or from neither. So a client that starts with a burst may get
twice the limit through in its first minute, as it may at the real API. Written without a look at
the client's own limiter: the one is there to test the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_PART_IN_A_BILLION = 1e-9  # what float refills may fall short by


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaLevel:
    """A bucket as the headers show it; `reset_s` is the time until it is full again."""

    name: str
    limit: float
    remaining: float
    reset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was refused; `wait_s` is None when no wait will help."""

    name: str
    limit: float
    used: float
    requested: int
    wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the limits say to one request, and their levels after it."""

    refusal: Refusal | None
    levels: tuple[QuotaLevel, ...]


class _Bucket:
    """One limit. Not thread-safe: `RateLimits` holds its lock around every call."""

    __slots__ = ("level", "limit", "name", "updated_s")

    def __init__(self, name: str, limit: float, now_s: float) -> None:
        self.name = name
        self.limit = limit
        self.level = limit
        self.updated_s = now_s

    def refill(self, now_s: float) -> None:
        """Add what has come since the last call, up to a whole minute's limit."""
        if now_s > self.updated_s:
            added = (now_s - self.updated_s) * self.limit / 60
            self.level = min(self.limit, self.level + added)
            self.updated_s = now_s

    def wait_s(self, cost: float) -> float:
        """Seconds until `cost` fits; what is above the limit fits when the bucket is full."""
        missing = min(cost, self.limit) - self.level
        return missing * 60 / self.limit if missing > self.limit * _PART_IN_A_BILLION else 0.0

    def snapshot(self) -> QuotaLevel:
        """What the headers tell; a debt is shown as nothing remaining."""
        return QuotaLevel(
            name=self.name,
            limit=self.limit,
            remaining=max(0.0, self.level),
            reset_s=(self.limit - self.level) * 60 / self.limit,
        )


class RateLimits:
    """Requests and tokens per minute; None is no limit. Safe to call from any thread."""

    def __init__(
        self,
        *,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        reject_oversize: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._reject_oversize = reject_oversize
        now_s = clock()
        named = (("requests", requests_per_minute), ("tokens", tokens_per_minute))
        self._lock = threading.Lock()  # guards the buckets' levels
        self._buckets = [_Bucket(name, limit, now_s) for name, limit in named if limit is not None]

    def admit(self, tokens: int) -> Verdict:
        """Charge one request of so many tokens, or refuse it and charge nothing.

        A request above the whole token limit is refused for good under `reject_oversize`; otherwise
        it waits for a full bucket and leaves it in debt.
        """
        with self._lock:
            self._refill()
            refusal = self._refusal(tokens)
            if refusal is None:
                for bucket in self._buckets:
                    bucket.level -= _cost(bucket, tokens)
            return Verdict(refusal=refusal, levels=tuple(b.snapshot() for b in self._buckets))

    def levels(self) -> tuple[QuotaLevel, ...]:
        """Return the levels now, charging nothing."""
        with self._lock:
            self._refill()
            return tuple(bucket.snapshot() for bucket in self._buckets)

    def _refill(self) -> None:
        """Bring the levels up to now; caller holds `_lock`."""
        now_s = self._clock()
        for bucket in self._buckets:
            bucket.refill(now_s)

    def _refusal(self, tokens: int) -> Refusal | None:
        """Find the limit with the longest wait, if there is one; caller holds `_lock`."""
        worst: Refusal | None = None
        for bucket in self._buckets:
            cost = _cost(bucket, tokens)
            too_large = self._reject_oversize and cost > bucket.limit and bucket.name == "tokens"
            wait_s = None if too_large else bucket.wait_s(cost)
            if wait_s == 0.0:
                continue
            if worst is None or wait_s is None or wait_s > (worst.wait_s or 0.0):
                used = bucket.limit - bucket.level
                worst = Refusal(
                    name=bucket.name, limit=bucket.limit, used=used, requested=cost, wait_s=wait_s
                )
        return worst


def _cost(bucket: _Bucket, tokens: int) -> int:
    return tokens if bucket.name == "tokens" else 1
