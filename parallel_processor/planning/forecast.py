"""How long a job takes under its limits: it is walked through in virtual time.

The arithmetic is that of the run: :class:`SharedLimits` of the same settings admit the job's requests in
its order, with its windows, bursts and ceilings. The reader is as far ahead as the run's, ``max_workers``
are in flight, and each answer takes ``latency_s``.

**Long jobs.** A load of the trace stands for several requests, which must not be admitted as one large
request would be. So the job is thinned, and time with it: with ``thinned`` 10, a tenth of each load is
charged, and what that takes is taken ten times.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from parallel_processor.models import Upstream, WaitCause
from parallel_processor.options import Options
from parallel_processor.planning.job.bounds import first_lane, without_auto
from parallel_processor.planning.job.trace import Load
from parallel_processor.ratelimit.quota import KINDS, MINUTE_S, ConfiguredQuota, Costs
from parallel_processor.ratelimit.registry import TokenBuckets, upstreams_of
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import BucketState, Reservation

_LOOK_AHEAD, _LOOK_AHEAD_BYTES = 4096, 16 * 1024 * 1024  # the run's, while all queues wait
_READ_AHEAD = 256  # the run's, while workers are missing
_LONG_S = 600.0  # longer jobs are thinned
_SHARE_OF_WORKERS = 0.1  # that a load may take at once
_INSTANT_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """How much of a limit a job uses.

    Attributes:
        name: what it counts: ``requests``, ``tokens``, ``input_tokens``, ``output_tokens``.
        pattern: whose it is; ``None``: that of all models.
        per_minute: the limit.
        used_share: what the job uses of it, of 1.
    """

    name: str
    pattern: str | None
    per_minute: float
    used_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How long a job takes.

    Attributes:
        seconds: until its last answer.
        binding: what it waits for most of the time; ``WaitCause.NOTHING`` if for nothing.
        waits: the shares of the time that it waits, by cause.
        requests_per_minute: the mean rate.
        in_flight: the most requests in flight at once, which is the number of threads.
        limits: the limits that hold.
    """

    seconds: float
    binding: WaitCause = WaitCause.NOTHING
    waits: dict[WaitCause, float] = field(default_factory=dict)
    requests_per_minute: float = 0.0
    in_flight: int = 0
    limits: tuple[LimitUse, ...] = ()


class _Lane:
    """The requests that share limits: in their order of arrival, whatever their model."""

    def __init__(self, limits: SharedLimits) -> None:
        self.limits = limits
        self.state = BucketState(limits.limits, limits.charged, now=0.0)
        self.queue: deque[Load] = deque()
        self.reservation: Reservation | None = None
        self.totals: Costs = (0.0, 0.0, 0.0, 0.0)

    def join(self, thinned: float, now: float) -> None:
        """Give the head of the queue a place."""
        costs = _costs(self.queue[0], thinned)
        made = self.reservation = Reservation(costs[1], output_tokens=costs[3])
        made.costs, made.ticket = costs, next(self.limits.tickets)
        self.limits.join(self.state, made, now)

    def take_admitted(self) -> Load | None:
        """The head of the queue if it is admitted; it leaves the queue."""
        if self.reservation is None or self.reservation.admitted_at is None:
            return None
        self.reservation = None
        return self.queue.popleft()


def _costs(load: Load, thinned: float) -> Costs:
    _, requests, inputs, outputs = load
    return requests / thinned, (inputs + outputs) / thinned, inputs / thinned, outputs / thinned


class _Walk:
    """One way through a job, in virtual time."""

    def __init__(self, lanes: Sequence[_Lane], full: float, latency_s: float) -> None:
        """``lanes`` are by group, and may be the same for several; ``full`` is the most in flight."""
        self._by_group, self._lanes = lanes, list(dict.fromkeys(lanes))
        roots = {id(lane.limits.waiting): lane.limits for lane in self._lanes}
        self._roots = list(roots.values())
        self._full, self._latency_s = full, latency_s
        self._ends: deque[tuple[float, float]] = deque()  # when how many are answered
        self._in_flight = self._queued = self._now = 0.0
        self.last_admission_s = self.peak = 0.0
        self.waited_s: dict[WaitCause, float] = {}

    def run(self, loads: Sequence[Load], thinned: float, look_ahead: float) -> None:
        """Go through ``loads``."""
        at = 0
        while True:
            most = look_ahead if self._in_flight < self._full else _READ_AHEAD
            while at < len(loads) and (self._queued < most or not self._queued):
                load = loads[at]
                self._by_group[load.group].queue.append(load)
                self._queued += load.requests
                at += 1
            if self._admit(thinned):
                continue
            if at == len(loads) and not any(lane.queue for lane in self._lanes):
                return
            self._pass_time()

    def _admit(self, thinned: float) -> bool:
        """Admit what may be; true if that is something."""
        if self._in_flight >= self._full:
            return False
        for lane in self._lanes:
            if lane.queue and lane.reservation is None:
                lane.join(thinned, self._now)
        has_admitted = False
        for lane in self._lanes:
            if (load := lane.take_admitted()) is not None:
                self._begin(load, thinned)
                has_admitted = True
        return has_admitted

    def _begin(self, load: Load, thinned: float) -> None:
        requests = load.requests / thinned
        self._queued -= load.requests
        self._in_flight += requests
        self.peak = max(self.peak, self._in_flight)
        self._ends.append((self._now + self._latency_s, requests))
        self.last_admission_s = self._now

    def _pass_time(self) -> None:
        """Go to the moment when something may be admitted."""
        if self._in_flight >= self._full:
            until, causes = self._ends[0][0], {WaitCause.MAX_WORKERS}
        else:
            waiting = [state for root in self._roots for state in root.waiting]
            first = min(waiting, key=lambda state: state.delay)
            until = self._now + max(first.delay, _INSTANT_S)
            causes = {state.wait_cause for state in waiting}
        for cause in causes:
            waited = self.waited_s.get(cause, 0.0)
            self.waited_s[cause] = waited + (until - self._now) / len(causes)
        self._now = until
        while self._ends and self._ends[0][0] <= until:
            self._in_flight -= self._ends.popleft()[1]
        if self._in_flight < self._full:
            for root in self._roots:
                if root.waiting:
                    root.admit(until)


def forecast(
    loads: Sequence[Load],
    groups: Sequence[tuple[str, str]],
    options: Options,
    *,
    latency_s: float,
    size_bytes: float = 0.0,
) -> Forecast:
    """How long the requests ``loads`` take, whose groups have these URLs and models.

    An answer takes ``latency_s``. ``size_bytes`` is that of a request in the mean. A limit that is to be
    found counts as none.
    """
    requests = sum(load.requests for load in loads)
    if not requests:
        return Forecast(seconds=0.0)
    # What is typed holds for each account by itself, which then has a share of the job.
    accounts = 1 if options.account is not None else len(upstreams_of(options))
    lanes = _lanes(groups, options)
    loads = [Load(each.group, *(value / accounts for value in each[1:])) for each in loads]
    workers = max(options.max_workers / accounts, 1.0)
    totals = _totals(loads, lanes)
    thinned = _thinning(loads, totals, workers, latency_s)
    each = requests / accounts / len(loads) / thinned
    walk = _Walk(lanes, workers - each / 2, latency_s)  # rounded
    look_ahead = min(_LOOK_AHEAD, _LOOK_AHEAD_BYTES / max(size_bytes, 1.0)) / accounts
    walk.run(loads, thinned, look_ahead)
    seconds = walk.last_admission_s * thinned + latency_s
    return Forecast(
        seconds=seconds,
        binding=max(walk.waited_s, key=walk.waited_s.__getitem__, default=WaitCause.NOTHING),
        waits={cause: s * thinned / seconds for cause, s in walk.waited_s.items()},
        requests_per_minute=requests / seconds * MINUTE_S,
        in_flight=min(math.ceil(walk.peak * accounts), options.max_workers),
        limits=_uses(totals, lanes, seconds),
    )


def _lanes(groups: Sequence[tuple[str, str]], options: Options) -> list[_Lane]:
    """What each group waits for."""
    buckets, like = TokenBuckets(without_auto(options), lambda: 0.0), first_lane(options)
    made: dict[SharedLimits, _Lane] = {}
    found = []
    for url, model in groups:
        limits = buckets.bucket(url, model, Upstream(tier=like.tier)).shared_limits
        found.append(made.setdefault(limits, _Lane(limits)))
    return found


def _totals(loads: Sequence[Load], lanes: Sequence[_Lane]) -> dict[ConfiguredQuota, float]:
    """What ``loads`` take of each limit."""
    totals: dict[ConfiguredQuota, float] = {}
    by_group = [[0.0] * len(KINDS) for _ in lanes]
    for load in loads:
        for kind, cost in enumerate(_costs(load, 1.0)):
            by_group[load.group][kind] += cost
    for lane, costs in zip(lanes, by_group, strict=True):
        for quota in lane.limits.charged:
            totals[quota] = totals.get(quota, 0.0) + costs[quota.kind]
    return totals


def _thinning(
    loads: Sequence[Load], totals: dict[ConfiguredQuota, float], workers: float, latency_s: float
) -> float:
    """By how much to thin the job: at most to one request a load."""
    requests = sum(load.requests for load in loads)
    rough_s = max([total / quota.refill for quota, total in totals.items()], default=0.0)
    rough_s = max(rough_s, requests * latency_s / workers)
    each = requests / len(loads)
    wanted = max(rough_s / _LONG_S, each / (workers * _SHARE_OF_WORKERS))
    thinned = max(1.0, min(wanted, each))
    loads_in_flight = math.ceil(workers / (each / thinned))  # so that whole ones make ``workers``
    return max(thinned, min(each * loads_in_flight / workers, each))


def _finite(lane: _Lane) -> list[ConfiguredQuota]:
    return [quota for quota in lane.limits.quotas if quota.limit < math.inf]


def _uses(
    totals: dict[ConfiguredQuota, float], lanes: Sequence[_Lane], seconds: float
) -> tuple[LimitUse, ...]:
    patterns = {
        quota: report.pattern
        for lane in lanes
        for quota, report in zip(_finite(lane), lane.limits.report(seconds, 0.0), strict=True)
    }
    return tuple(
        LimitUse(
            name=quota.name,
            pattern=patterns[quota],
            per_minute=quota.limit,
            used_share=total / (quota.limit * seconds / MINUTE_S),
        )
        for quota, total in totals.items()
        if quota in patterns
    )
