"""One limit of the server: read from its headers, or found by trying where they say nothing.

Such a quota stands beside the configured ones in a bucket, and can only make the bucket slower. Three
things bound its rate:

* **The limit** that the headers name, less the headroom, spread evenly over its window. The limit of a
  day isn't spread: it may be used up in an hour.
* **What remains** (``remaining.py``). Below ten seconds' worth of the limit, the rate is proportional to
  what remains. If other clients take a share r, the level settles at 10 * (1 - r) seconds' worth, and
  exactly the rest of the limit is used. It never settles at the bottom, where each error means a
  rejection. What remains of a fixed window is spread over the time that is left.
* **A probe** (``rate_probe.py``), if the headers say nothing, or a request was rejected in spite of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.models import LimitReading, Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.quota import KINDS, MINUTE_S
from parallel_processor.ratelimit.rate_probe import GENTLE_PER_S, RateProbe
from parallel_processor.ratelimit.remaining import LONGEST_PACED_S, Remaining
from parallel_processor.ratelimit.reports import LimitReport

PACE = 1.0 - 0.5 / 60.0  # of the limit, as configured quotas have it
_BLIND_BURST_S = 0.1  # how much may go out at once while nobody says what bursts the server accepts
_AGAIN_S = 10.0  # the headers of a fixed window explain one rejection in this time
_LEAST_GAP_S = 5.0  # the probed rate stays above one request in this time, or in a longer pause
_LONGEST_GAP_S = 60.0  # one request goes out in this time anyway: only a rejection may ask for more
_RECHECK_S = 0.25  # a wait that other clients may shorten is computed again after this
_LONGEST_USE_S = 4.0  # the rate wasn't used during a pause, so a longer gap doesn't count as use
_EPSILON = 1e-6  # a shortage below this is rounding
_MAX_CHANGES = 100  # kept for the report


class Sent(NamedTuple):
    """What was sent for one bucket, by kind.

    Attributes:
        per_s: how much was sent per second lately.
        totals: how much was sent in all.
    """

    per_s: Sequence[float]
    totals: Sequence[float]


class Span(NamedTuple):
    """The time from the admission of a request to its answer, and what was charged until either.

    Attributes:
        sent_at: when it was admitted.
        totals: what had been charged by ``sent_at``, by kind, that request included.
        now: when the answer came.
        totals_now: what had been charged by ``now``, by kind.
    """

    sent_at: float
    totals: Sequence[float]
    now: float
    totals_now: Sequence[float]


class ServerQuota:
    """One limit of the server. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        name: what the limit counts, one of ``KINDS``.
        kind: the index of ``name`` in ``KINDS``.
        window_s: the length of its window in seconds.
        limit: what is allowed in ``window_s``; infinite until it is known.
        probe: the rate that is being tried, if any.
        remaining: what is left of the limit.
        changes: when the limit was found or changed, and its value then.
        allowance: what the limit has allowed since it was known.
        charged: what was sent since it was known.
        level: what may go out at once now.
    """

    def __init__(
        self,
        name: str,
        window_s: float,
        limits: Limits,
        *,
        now: float,
        is_sought: bool,
        pace: float = PACE,
    ) -> None:
        self.name = name
        self.kind = KINDS.index(name)
        self.window_s = window_s
        self.limit = math.inf
        self.probe = RateProbe(GENTLE_PER_S if is_sought else math.inf)
        self.remaining = Remaining(window_s, limits.headroom)
        self.changes: list[tuple[float, float]] = []
        self.allowance = self.charged = 0.0
        self._asked = False  # a request had to wait for this rate since the last advance
        self._stamp, self._pace = now, pace
        self._burst_s = limits.burst_seconds
        self._charged_at = -math.inf
        self._explained_at = -math.inf  # the last burst of rejections
        self.level = self.capacity(GENTLE_PER_S) if is_sought else math.inf

    def follow_limits(self, limits: Limits) -> None:
        """Leave the headroom of ``limits``, and let out their burst."""
        self.remaining.headroom, self._burst_s = limits.headroom, limits.burst_seconds

    # As every quota of a bucket.

    def advance(self, now: float) -> None:
        """Refill for the time since the last call."""
        seconds = now - self._stamp
        if seconds <= 0:
            return
        self._stamp = now
        if self._asked:
            self.probe.advance(min(seconds, _LONGEST_USE_S))
            self._asked = False
        if self.limit < math.inf:
            self.allowance += self.limit / self.window_s * seconds
            self.remaining.advance(seconds, now)
        rate = self.rate(now)
        if rate < math.inf:
            self.level = min(self.level + rate * seconds, self.capacity(rate))
        else:
            self.level = math.inf

    def rate(self, now: float) -> float:
        """How much may be sent now, per second."""
        rate = self.probe.rate
        if self.limit == math.inf or self.window_s > LONGEST_PACED_S:
            return rate
        even = self.limit * (1.0 - self.remaining.headroom) / self.window_s * self._pace
        return min(rate, even * self.remaining.share(now))

    def capacity(self, rate: float) -> float:
        """What may go out at once; little if nobody says what bursts the server accepts."""
        blind = rate >= self.probe.rate
        return rate * (min(self._burst_s, _BLIND_BURST_S) if blind else self._burst_s)

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted, or until that is to be asked again.

        Call :meth:`advance` before.
        """
        delay = self.wait_s(cost, now)
        if delay > _RECHECK_S and self.remaining.may_change(now):
            return _RECHECK_S if self.window_s <= LONGEST_PACED_S else delay
        return delay

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted, as far as is known. Call :meth:`advance` before."""
        if cost <= 0:
            return 0.0
        delay = 0.0
        rate = self.rate(now)
        if rate < math.inf:
            short = min(cost, self.capacity(rate)) - self.level
            if short > _EPSILON:
                self._asked = True
                delay = short / rate
        delay = self.remaining.delay_s(cost, now, delay)
        if delay > _RECHECK_S:
            delay = min(delay, max(0.0, self._charged_at + _LONGEST_GAP_S - now))
        return delay

    def charge(self, cost: float, now: float) -> None:
        """Take ``cost``."""
        self.level -= cost
        self.remaining.take(cost)
        self.charged += cost
        self._charged_at = now
        self.probe.sent += 1

    def refund(self, amount: float, slot: object, now: float) -> None:
        """Give back ``amount``. There is no window here, and no ``slot``."""
        self.level += amount
        self.remaining.take(-amount)
        self.charged -= amount

    # What the server says.

    def observe(self, reading: LimitReading, span: Span) -> bool:
        """Follow ``reading``, which the headers of an answer show; true if more may be sent now."""
        now, total, total_now = span.now, span.totals[self.kind], span.totals_now[self.kind]
        if not self.remaining.is_newest(total):
            return False
        before = self.rate(now)
        self._note_limit(reading.limit, now)
        self.remaining.observe(
            reading, sent_at=span.sent_at, total=total, now=now, total_now=total_now
        )
        rate = self.rate(now)
        self.level = min(self.level, self.capacity(rate)) if rate < math.inf else math.inf
        return rate > before

    def _note_limit(self, limit: float, now: float) -> None:
        if self.limit == math.inf:
            self.charged = 0.0
        if abs(limit - self.limit) > 1e-3 * limit and len(self.changes) < _MAX_CHANGES:
            self.changes.append((now, limit))
        self.limit = limit
        self.remaining.set_limit(limit)

    def refused(
        self, cost: float, rejection: Rejection, *, sent: Sent, pause_s: float, named: bool
    ) -> None:
        """Cut the rate after a burst of rejections, unless the headers explain it.

        A fixed window may be shorter than an answer takes. So the headers of fixed windows explain
        only one burst in a while.

        Args:
            cost: what the rejected request costs.
            rejection: what the server complained of.
            sent: what was sent before.
            pause_s: for how long all sending pauses now.
            named: whether the headers name this limit.
        """
        explained = named and self.remaining.lacks(cost)
        again, self._explained_at = self._stamp - self._explained_at < _AGAIN_S, self._stamp
        if explained and not rejection.ramp_too_fast and not (again and self.remaining.is_fixed):
            return
        sent_per_s = sent.per_s[self.kind]
        if named:  # little may have been sent lately only because there was little work
            sent_per_s = max(sent_per_s, self.limit / self.window_s / 2)
        self.probe.refused(
            cost,
            sent_per_s=sent_per_s,
            charged=sent.totals[self.kind],
            now=self._stamp,
            gap_s=max(pause_s, _LEAST_GAP_S),
            has_retry_after=rejection.has_retry_after,
            ramp_too_fast=rejection.ramp_too_fast,
            mild=named,
        )

    def hear_of(self, per_minute: float) -> None:
        """Begin the search at a limit that one rejection named, and no answer."""
        rate = per_minute / MINUTE_S
        if rate < self.probe.rate:
            self.probe.search_from(rate)

    def report(self, since_s: float) -> LimitReport:
        """How the limit turned out; times count from ``since_s``."""
        known, probed, others = (
            self.limit < math.inf,
            self.probe.rate < math.inf,
            self.remaining.others,
        )
        return LimitReport(
            name=self.name,
            window_s=self.window_s,
            found=self.limit if known else None,
            tried_per_minute=self.probe.rate * 60 if probed else None,
            changes=tuple((when - since_s, limit) for when, limit in self.changes),
            used=self.charged,
            used_share=self.charged / self.allowance if self.allowance > 0 else None,
            others_per_minute=others * 60 if self.remaining.left < math.inf else None,
        )
