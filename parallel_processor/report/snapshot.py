"""What a processor has done until one moment, in a form that can be added up over several processors."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from parallel_processor.models import WaitCause
from parallel_processor.planning.costs import Costs
from parallel_processor.ratelimit.reports import BucketReport, LimitReport, Usage
from parallel_processor.report.counters import Counts
from parallel_processor.report.histogram import percentiles_s
from parallel_processor.report.samples import Sample
from parallel_processor.report.summary import Stats, counters_of

_Join = Callable[[float, float], float]
_Key = TypeVar("_Key", bound=Hashable)


def added(one: Mapping[_Key, float], other: Mapping[_Key, float]) -> dict[_Key, float]:
    """The numbers of both, those of one key together."""
    found = dict(one)
    for key, number in other.items():
        found[key] = found.get(key, 0.0) + number
    return found


def scaled(numbers: Mapping[_Key, float], share: float) -> dict[_Key, float]:
    """The numbers times ``share``."""
    return {key: number * share for key, number in numbers.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where all runs of a processor stand together, since it was made."""

    counts: Counts = field(default_factory=Counts)
    in_flight: int = 0  # requests that were sent and have no answer yet
    waited_s: Mapping[WaitCause, float] = field(default_factory=dict)  # the sum of its runs' waits
    usage: Usage = field(
        default_factory=lambda: Usage(admitted={}, limits={}, waiting_for=WaitCause.NOTHING)
    )
    buckets: tuple[BucketReport, ...] = ()  # a report of the limits of each model
    costs: Costs | None = None  # what was spent; None if money is not counted

    def plus(self, other: Snapshot, *, shares_limits: bool = False) -> Snapshot:
        """Both together. ``shares_limits`` says that their limits are the same ones, not two parts."""
        join = max if shares_limits else operator.add
        return Snapshot(
            counts=self.counts + other.counts,
            in_flight=self.in_flight + other.in_flight,
            waited_s=added(self.waited_s, other.waited_s),
            usage=_usage(self.usage, other.usage, min if shares_limits else join),
            buckets=_buckets(self.buckets, other.buckets, join),
            costs=self.costs.plus(other.costs) if self.costs and other.costs else None,
        )

    def stats(self, runs: int) -> Stats:
        """The same as figures for a program, with ``runs`` under way."""
        counts, usage = self.counts, self.usage
        a_minute = 60.0 / max(usage.span_s, 1.0)
        latencies = percentiles_s(counts.latencies)
        return Stats(
            runs=runs,
            in_flight=self.in_flight,
            requests_per_minute=usage.admitted.get("requests", 0.0) * a_minute,
            tokens_per_minute=usage.admitted.get("tokens", 0.0) * a_minute,
            limits=usage.limits,
            waiting_for=usage.waiting_for,
            latency_s={each: s for each, s in latencies.items() if s is not None},
            read=counts.read,
            errors=counts.errors,
            buckets=self.buckets,
            cost=None if self.costs is None else self.costs.total,
            costs=() if self.costs is None else self.costs.models,
            **counters_of(counts),
        )

    def sample(self, at_s: float) -> Sample:
        """The same as a sample of a report, ``at_s`` seconds after its start."""
        return Sample(
            at_s=at_s,
            in_flight=self.in_flight,
            errors=self.counts.errors,
            waited_s=self.waited_s,
            latencies=self.counts.latencies,
            limits=self.usage.limits,
            **counters_of(self.counts),
        )


def _usage(one: Usage, other: Usage, join: _Join) -> Usage:
    """Both together, as rates over the longer of their times."""
    span_s = max(one.span_s, other.span_s) if one.admitted and other.admitted else 0.0
    if not span_s:
        return one if one.admitted else other
    admitted: dict[str, float] = {}
    for usage in (one, other):
        scaled = {name: n * span_s / usage.span_s for name, n in usage.admitted.items()}
        admitted = added(admitted, scaled if usage.span_s else usage.admitted)
    waiting_for = one.waiting_for or other.waiting_for
    names = dict.fromkeys((*one.limits, *other.limits))
    limits = {
        name: _both(join, one.limits.get(name), other.limits.get(name)) or 0.0 for name in names
    }
    return Usage(admitted=admitted, limits=limits, waiting_for=waiting_for, span_s=span_s)


_SUMS = (
    *("admitted", "rejections", "pauses", "answered", "reserved_tokens", "used_tokens"),
    *("moved_on", "downgraded"),
)


def _buckets(
    one: tuple[BucketReport, ...], other: tuple[BucketReport, ...], join: _Join
) -> tuple[BucketReport, ...]:
    """The reports of both, those of one model and endpoint together."""
    found = {(each.url, each.model, each.key, each.tier): each for each in one}
    for each in other:
        key = (each.url, each.model, each.key, each.tier)
        found[key] = _bucket(found[key], each, join) if key in found else each
    return tuple(found.values())


def _bucket(one: BucketReport, other: BucketReport, join: _Join) -> BucketReport:
    sums = {name: getattr(one, name) + getattr(other, name) for name in _SUMS}
    theirs = {_key(limit): limit for limit in other.limits}
    limits = tuple(
        _limit(limit, theirs.pop(_key(limit)), join) if _key(limit) in theirs else limit
        for limit in one.limits
    )
    limits += tuple(theirs.values())
    return dataclasses.replace(
        one,
        waited_s=added(one.waited_s, other.waited_s),
        in_flight_limit=_both(operator.add, one.in_flight_limit, other.in_flight_limit),
        peak_in_flight=one.peak_in_flight + other.peak_in_flight,
        limits=limits,
        **sums,
    )


def _key(limit: LimitReport) -> tuple[str, float, bool]:
    """What the reports of one limit share."""
    return limit.name, limit.window_s, limit.configured is None


def _limit(one: LimitReport, other: LimitReport, join: _Join) -> LimitReport:
    join_shares = _mean if join is operator.add else operator.add
    return dataclasses.replace(
        one,
        used=one.used + other.used,
        configured=_both(join, one.configured, other.configured),
        in_force=_both(min, one.in_force, other.in_force),
        tried_per_minute=_both(join, one.tried_per_minute, other.tried_per_minute),
        used_share=_both(join_shares, one.used_share, other.used_share),
    )


def _mean(one: float, other: float) -> float:
    return (one + other) / 2


def _both(join: _Join, one: float | None, other: float | None) -> float | None:
    """Both joined; the one that is there, if the other is ``None``."""
    if one is None or other is None:
        return other if one is None else one
    return join(one, other)
