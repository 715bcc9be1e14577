"""A limit as the server tells it: what its headers say is followed, and what they don't is found.

A quota of this kind stands beside the configured ones in a bucket, and can only make it slower. Three
things bound its rate:

* **The limit** that the headers name, less the headroom, spread evenly over its window. A day's limit
  isn't spread: it may be used up in an hour.
* **What remains** (``remaining.py``). While that is below ten seconds' worth of the limit, the rate is
  in proportion to it: where others take a share r, it comes to rest at 10 * (1 - r) seconds' worth,
  with exactly the rest of the limit used, and never at the bottom, where each error is a refusal.
  What remains of a fixed window is spread over the time that is left.
* **A probe** (``probing.py``), if the headers say nothing, or something was refused in spite of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.figures import LimitReport
from parallel_processor.models import Refusal
from parallel_processor.probing import GENTLE_PER_S, RateProbe
from parallel_processor.quota import KINDS
from parallel_processor.ratelimits import LimitReading
from parallel_processor.remaining import LONGEST_PACED_S, Remaining

PACE = 1.0 - 0.5 / 60.0  # of the limit, as configured quotas have it
_BLIND_BURST_S = 0.1
_AGAIN_S = 10.0
_LEAST_GAP_S, _LONGEST_GAP_S = 5.0, 60.0  # an hour's wait is for a refusal to ask for
_RECHECK_S = 0.25  # a wait that others may shorten is looked at again after this
_LONGEST_USE_S = 4.0  # a pause isn't time in which a rate was used
_EPSILON = 1e-6
_MAX_CHANGES = 100


class Sent(NamedTuple):
    """What was sent for one bucket, by kind: lately, per second, and in all."""

    per_s: Sequence[float]
    totals: Sequence[float]


class ObservedQuota:
    """One limit of the server's. Not thread-safe: the bucket's lock guards it.

    ``name`` is what the limit counts, ``limit`` what it allows in ``window_s`` seconds; infinite until
    it is known. ``changes`` holds the times at which the limit was found or changed, with its value.
    ``allowance`` is what the limit has allowed since it was known, ``charged`` what was sent of it.
    """

    __slots__ = (
        *("_asked", "_burst_s", "_charged_at", "_explained_at", "_stamp", "allowance", "changes"),
        *("charged", "kind", "level", "limit", "name", "probe", "remaining", "window_s"),
    )

    def __init__(
        self,
        name: str,
        *,
        now: float,
        window_s: float = 60.0,
        burst_seconds: float = 0.5,
        headroom: float = 0.0,
        is_sought: bool = False,
    ) -> None:
        self.name = name
        self.kind = KINDS.index(name)
        self.window_s = window_s
        self.limit = math.inf
        self.probe = RateProbe(GENTLE_PER_S if is_sought else math.inf)
        self.remaining = Remaining(window_s, headroom)
        self.changes: list[tuple[float, float]] = []
        self.allowance = self.charged = 0.0
        self._asked = False  # somebody had to wait for this quota's rate since the last advance
        self._stamp = now
        self._burst_s = burst_seconds
        self._charged_at = -math.inf
        self._explained_at = -math.inf
        self.level = self._capacity(GENTLE_PER_S) if is_sought else math.inf

    # What a bucket asks of every quota.

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
            self.level = min(self.level + rate * seconds, self._capacity(rate))
        else:
            self.level = math.inf

    def rate(self, now: float) -> float:
        """What may be sent now, per second."""
        rate = self.probe.rate
        if self.limit == math.inf or self.window_s > LONGEST_PACED_S:
            return rate
        even = self.limit * (1.0 - self.remaining.headroom) / self.window_s * PACE
        return min(rate, even * self.remaining.share(now))

    def _capacity(self, rate: float) -> float:
        """What may go out at once; little where nobody says what the server makes of bursts."""
        blind = rate >= self.probe.rate
        return rate * (min(self._burst_s, _BLIND_BURST_S) if blind else self._burst_s)

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted, as far as is known; advanced to ``now``."""
        if cost <= 0:
            return 0.0
        delay = 0.0
        rate = self.rate(now)
        if rate < math.inf:
            short = min(cost, self._capacity(rate)) - self.level
            if short > _EPSILON:
                self._asked = True
                delay = short / rate
        delay = self.remaining.delay_s(cost, now, delay)
        if delay > _RECHECK_S:
            delay = min(delay, max(0.0, self._charged_at + _LONGEST_GAP_S - now))
            if self.remaining.may_change(now) and self.window_s <= LONGEST_PACED_S:
                delay = min(delay, _RECHECK_S)
        return delay

    def charge(self, cost: float, now: float) -> None:
        """Take ``cost``."""
        self.level -= cost
        self.remaining.left -= cost
        self.charged += cost
        self._charged_at = now
        self.probe.sent += 1

    def refund(self, amount: float, slot: object, now: float) -> None:
        """Give back ``amount``."""
        self.level += amount
        self.remaining.left += amount
        self.charged -= amount

    # What the answers say.

    def observe(
        self, reading: LimitReading, *, sent_at: float, total: float, now: float, total_now: float
    ) -> bool:
        """Follow what an answer's headers say; true if that changes how much may be sent.

        ``sent_at`` is when its request was admitted, ``total`` all that had been charged of this kind
        by then, that request included, and ``total_now`` what has been charged by now.
        """
        if not self.remaining.is_news(total):
            return False
        before = self.rate(now)
        self._note_limit(reading.limit, now)
        self.remaining.observe(reading, sent_at=sent_at, total=total, now=now, total_now=total_now)
        rate = self.rate(now)
        self.level = min(self.level, self._capacity(rate)) if rate < math.inf else math.inf
        return rate > before

    def _note_limit(self, limit: float, now: float) -> None:
        if self.limit == math.inf:
            self.charged = 0.0
        if abs(limit - self.limit) > 1e-3 * limit and len(self.changes) < _MAX_CHANGES:
            self.changes.append((now, limit))
        self.limit = limit
        self.remaining.set_limit(limit)

    def refused(
        self, cost: float, refusal: Refusal, *, sent: Sent, pause_s: float, named: bool
    ) -> None:
        """A burst of refusals: cut the rate, unless the headers explain it.

        In fixed windows, which may be shorter than an answer takes, they do so once only. ``sent``
        tells what was sent before, ``named`` that the answer's headers named this limit.
        """
        explained = named and self.remaining.lacks(cost)
        again, self._explained_at = self._stamp - self._explained_at < _AGAIN_S, self._stamp
        if explained and not refusal.steep and not (again and self.remaining.is_fixed):
            return
        sent_per_s = sent.per_s[self.kind]
        if named:  # what was sent lately may be little for want of work
            sent_per_s = max(sent_per_s, self.limit / self.window_s / 2)
        self.probe.refused(
            cost,
            sent_per_s=sent_per_s,
            charged=sent.totals[self.kind],
            now=self._stamp,
            gap_s=max(pause_s, _LEAST_GAP_S),
            hinted=refusal.hinted,
            steep=refusal.steep,
            mild=named,
        )

    def report(self, since_s: float) -> LimitReport:
        """What became of it; ``since_s`` is where its times begin."""
        known, probed = self.limit < math.inf, self.probe.rate < math.inf
        return LimitReport(
            name=self.name,
            window_s=self.window_s,
            found=self.limit if known else None,
            tried_per_minute=self.probe.rate * 60 if probed else None,
            changes=tuple((when - since_s, limit) for when, limit in self.changes),
            used=self.charged,
            used_share=self.charged / self.allowance if self.allowance > 0 else None,
            others_per_minute=self.remaining.others * 60
            if self.remaining.left < math.inf
            else None,
        )
