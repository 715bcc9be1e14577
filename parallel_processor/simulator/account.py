"""The limits that requests to one model share, and what is taken from them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from parallel_processor.simulator.options import LimitChange, SimulatorOptions
from parallel_processor.simulator.quotas import (
    METRICS,
    Bucket,
    Charge,
    Quota,
    QuotaLevel,
    Refusal,
    Window,
)
from parallel_processor.simulator.schedule import NEVER, schedule


class Account:
    """A set of quotas, all charged or none, that begins full at time 0.

    Not thread-safe: `RateLimits` holds its lock around every call. Each call sees the levels of the
    last `advance`.
    """

    __slots__ = ("_event", "_events", "_options", "_quotas", "rival_admitted", "rival_refused")

    def __init__(self, options: SimulatorOptions, model: str) -> None:
        self._options = options
        self._quotas: dict[str, Quota] = {}  # by the limit's field
        self.rival_admitted = self.rival_refused = 0
        for field, limit in _limits(options, model):
            self._set(field, limit, 0.0)
        self._events = schedule(options, model)
        self._event = next(self._events, NEVER)

    def advance(self, now_s: float) -> None:
        """Bring the levels up to a time; what has befallen the account happens at its own time."""
        while self._event[0] <= now_s:
            at_s, change = self._event
            self._refill(at_s)
            if change is None:
                self._rival()
            else:
                self._change(change)
            self._event = next(self._events, NEVER)
        self._refill(now_s)

    def charge(self, charge: Charge) -> None:
        """Take from every quota, whether it has as much or not."""
        for quota in self._quotas.values():
            quota.level -= quota.cost(charge)

    def refusal(self, charge: Charge) -> Refusal | None:
        """Find the quota with the longest wait, if there is one."""
        worst: Refusal | None = None
        for quota in self._quotas.values():
            cost = quota.cost(charge)
            oversize = cost > quota.limit and not quota.metric.requests
            too_large = oversize and self._options.reject_oversize
            wait_s = None if too_large else quota.wait_s(cost)
            if wait_s == 0.0:
                continue
            if worst is None or wait_s is None or wait_s > (worst.wait_s or 0.0):
                worst = Refusal(
                    name=quota.metric.name,
                    limit=quota.limit,
                    used=quota.limit - quota.level,
                    requested=cost,
                    wait_s=wait_s,
                )
        return worst

    def levels(self) -> tuple[QuotaLevel, ...]:
        """Return what the headers tell."""
        return tuple([quota.show() for quota in self._quotas.values()])

    def _refill(self, now_s: float) -> None:
        for quota in self._quotas.values():
            quota.advance(now_s)

    def _rival(self) -> None:
        charge = Charge(1, self._options.rival_tokens_per_request, 0)
        if self.refusal(charge) is None:
            self.charge(charge)
            self.rival_admitted += 1
        else:
            self.rival_refused += 1

    def _change(self, change: LimitChange) -> None:
        for field in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(change, field)
            if limit is not None:
                self._set(field, limit, change.at_s)

    def _set(self, field: str, limit: float, now_s: float) -> None:
        """Change a quota, or begin one that is full."""
        if field in self._quotas:
            self._quotas[field].change(limit)
            return
        metric, options = METRICS[field], self._options
        if metric.period_s > 60:
            self._quotas[field] = Bucket(metric, limit, now_s, burst_s=metric.period_s)
        elif options.enforcement == "window":
            self._quotas[field] = Window(metric, limit, now_s, window_s=options.window_s)
        else:
            self._quotas[field] = Bucket(metric, limit, now_s, burst_s=options.burst_s)


def _limits(options: SimulatorOptions, model: str) -> Iterator[tuple[str, float]]:
    """Yield the limits that a model begins with: those of the first pattern that it matches."""
    matching = (own for name, own in options.limits_by_model.items() if fnmatchcase(model, name))
    own = next(matching, options)
    for field in METRICS:
        limit = getattr(own if hasattr(own, field) else options, field)
        if limit is not None:
            yield field, limit
