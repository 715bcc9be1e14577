"""What the server of one model and endpoint limits, as far as it is known: rates, load, pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.models import LimitReading, Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.concurrency import ConcurrencyLimit
from parallel_processor.ratelimit.quota import CAUSES, KINDS, MINUTE_S
from parallel_processor.ratelimit.remaining import LONGEST_PACED_S
from parallel_processor.ratelimit.server_quota import Sent, ServerQuota

_MARK_S = 1.5  # a rate is measured over this time to twice this time
_LEAST_S = 0.2  # and never over less than this


class LimitChange(NamedTuple):
    """A limit that the headers newly named, or that changed.

    Attributes:
        name: what it counts.
        window_s: the length of its window in seconds.
        before: the limit before; infinite if it was unknown.
        limit: the limit now.
    """

    name: str
    window_s: float
    before: float
    limit: float


class ServerLimits:
    """The limits of one model and endpoint. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        in_flight: the bound of the number in flight.
        quotas: the limits that are known, or searched for.
        paused_until: nothing is admitted before this time.
        pauses: how many pauses began or grew longer.
        rejections: how many attempts a limit rejected.
    """

    def __init__(self, limits: Limits, now: float, in_flight: ConcurrencyLimit) -> None:
        self._limits = limits
        self.in_flight = in_flight
        self.quotas: list[ServerQuota] = []
        if limits.requests_per_minute == "auto":
            self._quota("requests", MINUTE_S, now, is_sought=True)
        self._pause_began = -math.inf
        self.paused_until = -math.inf
        self.pauses = self.rejections = 0
        nothing = (0.0,) * len(KINDS)
        # The last two marks: a time, and what had been charged by then.
        self._marks = [(-math.inf, nothing), (-math.inf, nothing)]

    def _quota(
        self, name: str, window_s: float, now: float, *, is_sought: bool = False
    ) -> ServerQuota:
        for quota in self.quotas:
            if quota.name == name and quota.window_s == window_s:
                return quota
        quota = ServerQuota(name, window_s, self._limits, now=now, is_sought=is_sought)
        self.quotas.append(quota)
        return quota

    def mark(self, now: float, totals: Sequence[float]) -> None:
        """Note what was charged by now. :meth:`_sent` takes the rate of the last seconds from it."""
        newer = self._marks[1]
        if newer[0] == -math.inf:  # the first call
            self._marks = [(now, newer[1]), (now, newer[1])]
        elif now - newer[0] >= _MARK_S:
            self._marks = [newer, (now, tuple(totals))]

    def _sent(self, now: float, totals: Sequence[float]) -> Sent:
        when, before = self._marks[0]
        seconds = max(now - when, _LEAST_S)
        per_s = [(after - b) / seconds for after, b in zip(totals, before, strict=True)]
        return Sent(per_s, totals)

    def obstacle(self, costs: Sequence[float], now: float) -> tuple[float, WaitCause]:
        """Seconds that an attempt of ``costs`` has to wait, and for what."""
        delay, wait_cause = self.paused_until - now, WaitCause.PAUSE
        for quota in self.quotas:
            quota_delay = quota.delay_s(costs[quota.kind], now)
            if quota_delay > delay:
                delay, wait_cause = quota_delay, CAUSES[quota.kind]
        if not self.in_flight.has_room and delay < math.inf:
            is_confined = self.in_flight.is_confined
            delay, wait_cause = math.inf, WaitCause.PAUSE if is_confined else WaitCause.CONCURRENCY
        return delay, wait_cause

    def observe(
        self,
        readings: Sequence[LimitReading],
        *,
        sent_at: float,
        totals: Sequence[float],
        now: float,
        totals_now: Sequence[float],
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Follow the headers of an answer. Returns whether more may be sent now, and what changed.

        Args:
            readings: the limits that the headers show.
            sent_at: when the request was admitted.
            totals: what had been charged by then, by kind, that request included.
            now: the time.
            totals_now: what has been charged by now, by kind.
        """
        is_quicker, limit_changes = False, []
        readings = [reading for reading in readings if reading.window_s]  # rates
        if any(reading.window_s <= LONGEST_PACED_S for reading in readings):
            is_quicker = self.in_flight.set_free()
            for quota in self.quotas:
                quota.probe.set_free()
        for reading in _tightest(readings):
            quota = self._quota(reading.name, self._window_s(reading), now)
            before, changes = quota.limit, len(quota.changes)
            is_quicker |= quota.observe(
                reading,
                sent_at=sent_at,
                total=totals[quota.kind],
                now=now,
                total_now=totals_now[quota.kind],
            )
            if len(quota.changes) > changes:
                change = LimitChange(quota.name, quota.window_s, before, quota.limit)
                limit_changes.append(change)
        return is_quicker, limit_changes

    def _window_s(self, reading: LimitReading) -> float:
        """The window of the reading. A limit that was once a day's stays one, whatever its reset says."""
        alike = [q for q in self.quotas if q.name == reading.name and q.limit == reading.limit]
        longest = max([reading.window_s, *(quota.window_s for quota in alike)])
        for quota in alike:
            if quota.window_s < longest:
                self.quotas.remove(quota)
        return longest

    def found_limit(self, name: str) -> float:
        """How many of ``name`` the server says it allows in a minute; infinite if it says nothing."""
        found = (q for q in self.quotas if q.name == name and q.window_s <= LONGEST_PACED_S)
        return min((q.limit * MINUTE_S / q.window_s for q in found), default=math.inf)

    def pause(self, seconds: float, now: float, admitted_at: float | None) -> bool:
        """As :meth:`TokenBucket.pause`, for a rejection of what was admitted at ``admitted_at``."""
        if self._is_old(admitted_at):
            return False
        self._pause_began = now
        if now + seconds <= self.paused_until:
            return False
        self.paused_until = now + seconds
        self.pauses += 1
        return True

    def _is_old(self, admitted_at: float | None) -> bool:
        return admitted_at is not None and admitted_at <= self._pause_began

    def refuse(
        self,
        rejection: Rejection,
        costs: Sequence[float],
        totals: Sequence[float],
        pause_s: float,
        now: float,
        admitted_at: float,
    ) -> None:
        """Cut the limit that the rejection names, once per burst. To be called before the pause for it."""
        if rejection.overload:
            self.in_flight.overloaded(now, admitted_at)
            return
        self.rejections += 1
        limited = [quota for quota in self.quotas if quota.limit < math.inf]
        requests = self._quota(rejection.kind or "requests", MINUTE_S, now)
        requests.probe.rejections += 1
        if self._is_old(admitted_at):
            return
        if rejection.kind or rejection.ramp_too_fast or not limited:
            cost, named = costs[requests.kind], requests.limit < math.inf
        elif any(quota.remaining.lacks(costs[quota.kind]) for quota in limited):
            return  # the headers explain the rejection: nothing was estimated too high
        else:
            cost, named = 1.0, True
        sent = self._sent(now, totals)
        requests.refused(cost, rejection, sent=sent, pause_s=pause_s, named=named)


def _tightest(readings: Sequence[LimitReading]) -> Sequence[LimitReading]:
    """One reading for each kind and window: of a project's and its organisation's, the scarcer one."""
    if any(reading.name in ("input_tokens", "output_tokens") for reading in readings):
        # Anthropic shows the scarcer of these two once more, as "tokens".
        readings = [r for r in readings if r.name != "tokens"]
    found: dict[tuple[str, float], LimitReading] = {}
    for reading in readings:
        key = (reading.name, reading.window_s)
        if key not in found or _left(reading) < _left(found[key]):
            found[key] = reading
    return tuple(found.values())


def _left(reading: LimitReading) -> float:
    return reading.limit if reading.remaining is None else reading.remaining
