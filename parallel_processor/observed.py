"""A limit as the server tells it: what its headers say is followed, and what they don't is found.

A quota of this kind stands beside the configured ones in a bucket, and can only make it slower. Three
things bound its rate:

* **The limit** that the headers name, less the headroom, spread evenly over its window. A day's limit
  isn't spread: it may be used up in an hour.
* **What remains.** ``remaining`` is the server's own level when it admitted a request. Taking off what
  was sent after that request, and adding what is refilled meanwhile, gives the level now (the
  *mirror*); answers that arrive out of order are older news than what is known, and change nothing.
  Other clients of the account show as what disappears without our doing, and their rate is estimated
  from that. While the mirror is below ten seconds' worth of the limit, the rate is in proportion to
  it: where others take a share r, it comes to rest at 10 * (1 - r) seconds' worth, with exactly the
  rest of the limit used, and never at the bottom, where each error is a refusal. Under a fixed window
  (``remaining`` jumps back at its end) what remains is spread over the time that is left.
* **A probe** (``probing.py``), if the headers say nothing, or something was refused in spite of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.models import LimitReport
from parallel_processor.probing import GENTLE_PER_S, RateProbe
from parallel_processor.quota import KINDS
from parallel_processor.ratelimits import LimitReading, looks_refilled

PACE = 1.0 - 0.5 / 60.0  # of the limit, as configured quotas have it
LONGEST_PACED_S = 3600.0
_KNEE_S = 10.0
_TRICKLE = 0.02  # the least share of the rate: one has to ask to hear of better times
_RECHECK_S = 0.25  # a wait that what others do may shorten is looked at again after this
_OTHERS_S = 5.0  # time constant of the estimate of what others take
_LEAST_SPAN_S = 0.5  # between two answers that are compared
_BLIND_BURST_S = 0.1
_VOTE = 0.3
_UP = 0.1
_AGAIN_S = 10.0
_LEAST_GAP_S, _LONGEST_GAP_S = 5.0, 60.0  # an hour's wait is for a refusal to ask for
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
        *("allowance", "asked", "changes", "charged", "is_fixed", "kind", "known_since", "level"),
        *("limit", "mirror", "name", "others", "probe", "stamp", "window_ends_at", "window_s"),
        *("_base", "_burst_s", "_headroom", "_most_left", "_newest"),
        *("_charged_at", "_explained_at", "_told_left", "_votes_fixed"),
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
        self.mirror = math.inf
        self.others = 0.0  # what other clients take, per second
        self.is_fixed = False
        self.window_ends_at = math.inf
        self.changes: list[tuple[float, float]] = []
        self.allowance = self.charged = 0.0
        self.known_since = math.inf
        self.asked = False  # somebody had to wait for this quota's rate since the last advance
        self.stamp = now
        self._burst_s = burst_seconds
        self._headroom = headroom
        self._most_left = 0.0
        self._told_left = math.inf
        self._charged_at = -math.inf
        self._explained_at = -math.inf
        self._votes_fixed: float | None = None  # the share of answers that speak for fixed windows
        self._newest = -math.inf  # our total charge at the newest request whose answer was read
        self._base: tuple[float, float, float] | None = None  # (when, total, remaining)
        self.level = math.inf if not is_sought else self._capacity(GENTLE_PER_S)

    # What a bucket asks of every quota.

    def advance(self, now: float) -> None:
        """Refill for the time since the last call."""
        seconds = now - self.stamp
        if seconds <= 0:
            return
        self.stamp = now
        if self.asked:
            self.probe.advance(seconds)
            self.asked = False
        if self.limit < math.inf:
            self.allowance += self.limit / self.window_s * seconds
        if self.mirror < math.inf:
            if not self.is_fixed:
                refill = self.limit / self.window_s - self.others
                self.mirror = min(self.limit, self.mirror + refill * seconds)
            elif now >= self.window_ends_at:
                self.mirror = math.inf
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
        even = self.limit * (1.0 - self._headroom) / self.window_s * PACE
        if self.mirror < math.inf:
            left = self.mirror - self._headroom * self.limit
            if self.is_fixed:
                share = left / max(self.window_ends_at - now, 0.1) / even
            else:
                # No more than half of the largest remainder seen, for servers that keep little.
                knee = min(_KNEE_S * self.limit / self.window_s, self._most_left / 2)
                share = left / knee if knee > 0 else 1.0
            even *= min(1.0, max(share, _TRICKLE))
        return min(rate, even)

    def _capacity(self, rate: float) -> float:
        """What may go out at once; little where nobody says what the server makes of bursts."""
        return rate * (
            self._burst_s if rate < self.probe.rate else min(self._burst_s, _BLIND_BURST_S)
        )

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted, as far as is known; advanced to ``now``."""
        delay = 0.0
        rate = self.rate(now)
        if rate < math.inf:
            short = min(cost, self._capacity(rate)) - self.level
            if short > _EPSILON:
                self.asked = True
                delay = short / rate
        if self.mirror < math.inf:
            share = 1.0 - self._headroom
            short = min(cost, self.limit * share) - (self.mirror - self._headroom * self.limit)
            if short > _EPSILON:
                refill = self.limit / self.window_s
                wait = short / max(refill - self.others, _TRICKLE * refill)
                delay = max(delay, self.window_ends_at - now if self.is_fixed else wait)
            if delay > _RECHECK_S and self.window_s <= LONGEST_PACED_S:
                delay = _RECHECK_S
        if delay > _LONGEST_GAP_S:
            delay = min(delay, max(0.0, self._charged_at + _LONGEST_GAP_S - now))
        return delay

    def charge(self, cost: float, now: float) -> None:
        """Take ``cost``."""
        self.level -= cost
        self.mirror -= cost
        self.charged += cost
        self._charged_at = now
        self.probe.sent += 1

    def refund(self, amount: float, slot: object, now: float) -> None:
        """Give back ``amount``."""
        self.level += amount
        self.mirror += amount
        self.charged -= amount

    # What the answers say.

    def observe(
        self, reading: LimitReading, *, sent_at: float, total: float, now: float, total_now: float
    ) -> bool:
        """Follow what an answer's headers say; true if that changes how much may be sent.

        ``sent_at`` is when its request was admitted, ``total`` all that had been charged of this kind
        by then, that request included, and ``total_now`` what has been charged by now.
        """
        if total < self._newest:
            return False  # older than what is known
        self._newest = total
        before = self.rate(now)
        self._note_limit(reading.limit, now)
        if reading.remaining is not None:
            self._note_enforcement(reading, sent_at, total, now)
            self._note_others(reading.remaining, sent_at, total)
            self._told_left = left = min(reading.remaining, reading.limit)
            self._most_left = max(self._most_left * 0.999, left)
            if not self.is_fixed:
                refill = self.limit / self.window_s - self.others
                left = min(self.limit, left + refill * max(now - sent_at, 0.0))
            self._correct(left - (total_now - total))
            if self.is_fixed and now >= self.window_ends_at:
                self.mirror = math.inf  # a window that is over
        rate = self.rate(now)
        self.level = min(self.level, self._capacity(rate)) if rate < math.inf else math.inf
        return rate > before

    def _correct(self, left: float) -> None:
        """Take the server's word for what is left: at once if it is less than was thought.

        Requests overtake each other on their way, so that a single answer may show too much.
        """
        if self.mirror == math.inf or left < self.mirror:
            self.mirror = left
        else:
            self.mirror += _UP * (left - self.mirror)

    def _note_limit(self, limit: float, now: float) -> None:
        if self.limit == math.inf:
            self.probe.set_free()
            self.known_since = now
            self.charged = 0.0
        if abs(limit - self.limit) > 1e-3 * limit and len(self.changes) < _MAX_CHANGES:
            self.changes.append((now, limit))
        if limit != self.limit:
            self._base = None
            if limit < self.limit:
                self._most_left = min(self._most_left, limit)
        self.limit = limit

    def _note_enforcement(
        self, reading: LimitReading, sent_at: float, total: float, now: float
    ) -> None:
        """Tell a bucket that refills all the time from a window that begins anew."""
        refilled = looks_refilled(reading)
        assert reading.remaining is not None
        if refilled is not None:  # one answer may fit by chance
            weight = _VOTE if self._votes_fixed is not None else 1.0
            votes = self._votes_fixed or 0.0
            self._votes_fixed = votes + weight * ((not refilled) - votes)
            self.is_fixed = self._votes_fixed > 0.5
        if reading.reset_s is not None:  # as of when the server admitted the request
            self.window_ends_at = sent_at + reading.reset_s
        elif self._base is not None:
            when, before, left = self._base
            expected = left + self.limit / self.window_s * (sent_at - when) - (total - before)
            if reading.remaining > expected + 0.3 * self.limit:  # it jumped
                self.is_fixed = True
                self.window_ends_at = now + self.window_s

    def _note_others(self, remaining: float, sent_at: float, total: float) -> None:
        """Estimate what others take from what disappeared between two requests."""
        if self._base is None:
            self._base = (sent_at, total, remaining)
            return
        when, before, left = self._base
        span = sent_at - when
        if span < _LEAST_SPAN_S:
            return
        taken = left + self.limit / self.window_s * span - (total - before) - remaining
        # At the top a bucket doesn't refill, so that what is missing there was taken by nobody.
        if self.is_fixed or max(left, remaining) > 0.98 * self.limit:
            taken = 0.0
        weight = span / (span + _OTHERS_S)
        others = self.others + weight * (taken / span - self.others)
        self.others = min(max(others, 0.0), self.limit / self.window_s)
        self._base = (sent_at, total, remaining)

    def refused(self, cost: float, *, sent: Sent, pause_s: float, steep: bool, named: bool) -> None:
        """A burst of refusals: cut the rate, unless the headers explain it, and not for the second time.

        ``sent`` tells what was sent before, ``named`` that the answer's headers named this limit.
        """
        explained = named and self.lacks(cost)
        again, self._explained_at = self.stamp - self._explained_at < _AGAIN_S, self.stamp
        if steep or again or not explained:
            self.probe.refused(
                cost,
                sent_per_s=sent.per_s[self.kind],
                charged=sent.totals[self.kind],
                now=self.stamp,
                gap_s=max(pause_s, _LEAST_GAP_S),
                steep=steep,
                mild=named,
            )

    def lacks(self, cost: float) -> bool:
        """True if, by the newest headers, not enough remains for ``cost``."""
        return self._told_left - self._headroom * self.limit < cost

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
            others_per_minute=self.others * 60 if known and self.mirror < math.inf else None,
        )
