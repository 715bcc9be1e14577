"""One limit: how much of it is left, and how it comes back.

A bucket is refilled continuously; what a window holds comes back all at once at its end. What costs
more than either holds is admitted when it is full, and leaves a debt that is paid off first. Times
are seconds since the first request arrived. Nothing here is thread-safe: `RateLimits` holds its
lock around every call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

_PART_IN_A_BILLION = 1e-9  # what float refills and times may fall short by
_DAY_S = 86_400.0


class Charge(NamedTuple):
    """What a request takes: itself, the tokens that are read and those that are written."""

    requests: int
    read: int
    written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a limit counts: the charge's parts, each so many times, in so many seconds."""

    name: str
    requests: int = 0
    read: int = 0
    written: int = 0
    period_s: float = 60.0


METRICS = {
    "requests_per_minute": Metric(name="requests", requests=1),
    "tokens_per_minute": Metric(name="tokens", read=1, written=1),
    "input_tokens_per_minute": Metric(name="input-tokens", read=1),
    "output_tokens_per_minute": Metric(name="output-tokens", written=1),
    "requests_per_day": Metric(name="requests-per-day", requests=1, period_s=_DAY_S),
}
"""What each limit of `SimulatorOptions` counts, by the name of its field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaLevel:
    """A limit as the headers show it; `level` is below 0 in debt, `reset_s` until it is full."""

    name: str
    limit: float
    level: float
    reset_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was refused; `wait_s` is None when no wait will help."""

    name: str
    limit: float
    used: float
    requested: int
    wait_s: float | None


class Quota(ABC):
    """What buckets and windows have in common: a level between its capacity and any debt."""

    __slots__ = ("capacity", "level", "limit", "metric", "now_s")

    def __init__(self, metric: Metric, limit: float, now_s: float) -> None:
        self.metric = metric
        self.now_s = now_s
        self.limit = limit
        self.capacity = self.level = self._capacity(limit)

    def cost(self, charge: Charge) -> int:
        """Return how much of this limit a charge is."""
        metric = self.metric
        return (
            metric.requests * charge.requests
            + metric.read * charge.read
            + metric.written * charge.written
        )

    def change(self, limit: float) -> None:
        """Set another limit from now on; the level is cut down to it, and never raised."""
        self.limit = limit
        self.capacity = self._capacity(limit)
        self.level = min(self.level, self.capacity)

    def wait_s(self, cost: float) -> float:
        """Seconds until `cost` fits; what is above the capacity fits when that is full."""
        missing = min(cost, self.capacity) - self.level
        return self._until_s(missing) if missing > self.capacity * _PART_IN_A_BILLION else 0.0

    def show(self) -> QuotaLevel:
        """Return what the headers tell."""
        return QuotaLevel(
            name=self.metric.name, limit=self.limit, level=self.level, reset_s=self._reset_s()
        )

    @abstractmethod
    def advance(self, now_s: float) -> None:
        """Bring the level up to a time, which is not before that of the last call."""

    @abstractmethod
    def _capacity(self, limit: float) -> float:
        """What a quota of `limit` holds when it is full."""

    @abstractmethod
    def _until_s(self, missing: float) -> float:
        """Seconds until the level is higher by `missing`."""

    @abstractmethod
    def _reset_s(self) -> float:
        """Seconds until it is full."""


class Bucket(Quota):
    """A limit that comes back continuously, up to `burst_s` seconds' worth of it."""

    __slots__ = ("_burst_s",)

    def __init__(self, metric: Metric, limit: float, now_s: float, *, burst_s: float) -> None:
        self._burst_s = burst_s
        super().__init__(metric, limit, now_s)

    def advance(self, now_s: float) -> None:
        """Add what has come since the last call, up to the capacity."""
        if now_s > self.now_s:
            added = (now_s - self.now_s) * self.limit / self.metric.period_s
            self.level = min(self.capacity, self.level + added)
            self.now_s = now_s

    def _capacity(self, limit: float) -> float:
        return limit * self._burst_s / self.metric.period_s

    def _until_s(self, missing: float) -> float:
        return missing * self.metric.period_s / self.limit

    def _reset_s(self) -> float:
        return self._until_s(self.capacity - self.level)


class Window(Quota):
    """A limit that comes back at the end of each window of `window_s`, counted from time 0.

    A window holds its part of the limit, and at least 1; a debt goes over into the next.
    """

    __slots__ = ("_number", "_window_s")

    def __init__(self, metric: Metric, limit: float, now_s: float, *, window_s: float) -> None:
        self._window_s = window_s
        self._number = self._number_at(now_s)
        super().__init__(metric, limit, now_s)

    def advance(self, now_s: float) -> None:
        """Go on to the window that the time is in."""
        self.now_s = now_s
        number = self._number_at(now_s)
        if number > self._number:
            allowed = (number - self._number) * self.capacity
            self.level = min(self.capacity, min(self.level, 0.0) + allowed)
            self._number = number

    def _number_at(self, now_s: float) -> int:
        return int(now_s / self._window_s + _PART_IN_A_BILLION)

    def _capacity(self, limit: float) -> float:
        return max(1.0, limit * self._window_s / self.metric.period_s)

    def _until_s(self, missing: float) -> float:
        needed = missing + max(self.level, 0.0)  # what is left of a window is lost at its end
        windows = math.ceil(needed / self.capacity - _PART_IN_A_BILLION)
        return self._end_s(max(1, windows))

    def _reset_s(self) -> float:
        return self._end_s(1)

    def _end_s(self, windows: int) -> float:
        return (self._number + windows) * self._window_s - self.now_s
