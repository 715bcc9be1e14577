"""What the server of one model and endpoint limits, as far as it is known: rates, load, pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.models import LimitReading, Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.concurrency import ConcurrencyLimit
from parallel_processor.ratelimit.evidence import RateEvidence
from parallel_processor.ratelimit.quota import CAUSES, IN_FLIGHT, KINDS, MINUTE_S
from parallel_processor.ratelimit.remaining import LONGEST_PACED_S
from parallel_processor.ratelimit.server_quota import Sent, ServerQuota

_MARK_S = 1.5  # a rate is measured over this time to twice this time
_LEAST_S = 0.2  # and never over less than this
_FIRST_PAUSE_S = 1.0  # that nobody named: for a server that counts per second
_LONGEST_PAUSE_S = 15.0  # it doubles up to this while nothing is answered
_SAME = 0.01  # two rejections name the same limit if they differ by no more than this share


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


class _Named(NamedTuple):
    """A limit that the headers of rejections alone named."""

    per_minute: float
    times: int
    named_at: float


class ServerLimits:
    """The limits of one model and endpoint. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        in_flight: the bound of the number in flight.
        quotas: the limits that are known, or searched for.
        paused_until: nothing is admitted before this time.
        pauses: how many pauses began or grew longer.
        rejections: how many attempts a limit rejected.
        refusals: how many attempts were refused for any reason, or timed out.
        heard_from: when the newest request was admitted that was answered, as of the last refusal.
        next_mark_at: before this time, :meth:`mark` needn't be called.
    """

    def __init__(self, limits: Limits, now: float, in_flight: ConcurrencyLimit) -> None:
        self._limits = limits
        self.in_flight = in_flight
        self.quotas: list[ServerQuota] = []
        if limits.requests_per_minute == "auto":
            self._quota("requests", MINUTE_S, now, is_sought=True)
        self._pause_began = -math.inf
        self.paused_until = -math.inf
        self.pauses = self.rejections = self.refusals = 0
        self.heard_from = -math.inf
        self._own_pause_s = 0.0  # the last pause whose length nobody named
        self._binding = WaitCause.NOTHING  # what held the head of the queue last
        self._named: dict[str, _Named] = {}  # by what they count
        self._evidence = RateEvidence()
        self._paused_s = 0.0  # by :attr:`paused_until`, in all
        self._timed_out: tuple[int, float] = (-1, 0.0)  # answers so far, and the pause for timeouts
        nothing = (0.0,) * len(KINDS)
        self.next_mark_at = -math.inf
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
        """Note what was charged by now. :meth:`_sent` takes the rate of the last seconds from it.

        To be called with each charge from :attr:`next_mark_at` on.
        """
        newer = self._marks[1]
        if newer[0] == -math.inf:  # the first call
            self._marks = [(now, newer[1]), (now, newer[1])]
            self._evidence.note_sent(0.0, 0.0, now)
        else:
            self._marks = [newer, (now, tuple(totals))]
            paused_s = self._paused_s - max(0.0, self.paused_until - now)
            self._evidence.note_sent(totals[0], paused_s, now)
        self.next_mark_at = now + _MARK_S

    def advance(self, now: float) -> None:
        """Refill the quotas."""
        for quota in self.quotas:
            quota.probe.latency_s = self.in_flight.latency_s
            quota.advance(now)

    @property
    def limits_tokens(self) -> bool:
        """True if any quota counts tokens."""
        quotas = self.quotas
        return bool(quotas) and any(quota.name != "requests" for quota in quotas)

    @property
    def bounds(self) -> tuple[float, float]:
        """The rate and the number in flight that refusals have shown."""
        rates = (q.probe.rate for q in self.quotas if q.name == "requests")
        return min(rates, default=math.inf), self.in_flight.borne

    def restore(self, bounds: tuple[float, float]) -> None:
        """Take back what refusals have shown since :attr:`bounds` was this."""
        rate, borne = bounds
        self.in_flight.restore(borne)
        for quota in self.quotas:
            if quota.name == "requests" and quota.probe.rate < rate:
                quota.probe.search_from(rate)

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
        if delay > 0 and wait_cause is not WaitCause.PAUSE:
            self._binding = wait_cause
        return delay, wait_cause

    def observe(
        self,
        readings: Sequence[LimitReading],
        *,
        rejected: bool,
        sent_at: float,
        totals: Sequence[float],
        now: float,
        totals_now: Sequence[float],
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Follow the headers of an answer. Returns whether more may be sent now, and what changed.

        Args:
            readings: the limits that the headers show.
            rejected: whether the request was turned away.
            sent_at: when the request was admitted.
            totals: what had been charged by then, by kind, that request included.
            now: the time.
            totals_now: what has been charged by now, by kind.
        """
        is_quicker, limit_changes = False, []
        numbers = [reading.limit for reading in readings if reading.name == IN_FLIGHT]
        if numbers:
            is_quicker = self.in_flight.told(min(numbers))
        if numbers or rejected:
            readings = [
                reading
                for reading in readings
                if reading.name != IN_FLIGHT
                and not (rejected and self._is_hearsay(reading, now, sent_at))
            ]
        if any(reading.window_s <= LONGEST_PACED_S for reading in readings):
            is_quicker |= self.in_flight.set_free()
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

    def _is_hearsay(self, reading: LimitReading, now: float, sent_at: float) -> bool:
        """Whether a rejection is the first to name this limit, and no answer has named any."""
        if any(q.name == reading.name and q.limit < math.inf for q in self.quotas):
            return False
        per_minute = reading.limit * MINUTE_S / reading.window_s
        last, times = self._named.get(reading.name), 1
        if last is not None and abs(last.per_minute - per_minute) <= _SAME * per_minute:
            times = last.times + (sent_at > last.named_at)  # a burst counts once
            now = now if sent_at > last.named_at else last.named_at
        self._named[reading.name] = _Named(per_minute, times, now)
        return reading.window_s <= LONGEST_PACED_S and times == 1

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
        self._paused_s += now + seconds - max(now, self.paused_until)
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
        pause_s: float | None,
        now: float,
        *,
        admitted_at: float,
        place: int,
    ) -> float:
        """Cut what explains the rejection; for how long everything pauses for it, or 0.

        Without ``pause_s`` the pause is short at first, and grows while nothing is answered. ``place`` is
        what :meth:`ConcurrencyLimit.started` returned. A refusal for load (503 or 529, and no wait) cuts
        the rate only if that makes refusals rarer, or to find that out.
        """
        self.refusals += 1
        self._evidence.note_refusal(admitted_at, self.heard_from, self.in_flight.total, now)
        self.rejections += not rejection.overload
        is_old = self._is_old(admitted_at)
        is_load = rejection.overload and not rejection.has_retry_after
        if self._is_rate(rejection, now, admitted_at, place):
            per_s = self._sent(now, totals).per_s[0]
            explains = self._evidence.explain(per_s)
            if is_load and self._spares_rate(explains, per_s):
                return 0.0
            if pause_s is None and not (is_old or (is_load and explains is None)):
                pause_s = self._next_pause_s()
            if not is_old and not rejection.concurrency:
                self._cut_rate(rejection, costs, totals, pause_s or 0.0, now)
        elif rejection.concurrency or is_load:
            return 0.0
        return self._begin_pause(pause_s or 0.0, now, admitted_at)

    def _is_rate(self, rejection: Rejection, now: float, admitted_at: float, place: int) -> bool:
        """False if the number in flight explains the rejection. It is cut if it may be the reason."""
        if rejection.kind or rejection.ramp_too_fast:
            return True
        if rejection.concurrency:
            return not self.in_flight.refused(now, admitted_at, rejection.limit, place=place)
        quota = self._quota("requests", MINUTE_S, now)
        if quota.probe.is_found and self._binding in CAUSES and not self.in_flight.is_certain:
            self.in_flight.refused(now, admitted_at, place=place)
            return True  # the rate was tried higher, and not the number
        is_known = self.in_flight.borne < math.inf
        explains = self.in_flight.refused(now, admitted_at, place=place)
        return not (explains and (is_known or rejection.overload))

    def _spares_rate(self, explains: bool | None, per_s: float) -> bool:
        """True if the rate isn't the reason, and take its cuts back; or if it must show that first."""
        probes = [quota.probe for quota in self.quotas if quota.name == "requests"]
        if explains is False:
            for probe in probes:
                probe.give_up()
            return True
        is_growing = any(probe.is_growing for probe in probes)
        return explains is None and (is_growing or not self._evidence.is_measured(per_s))

    def _next_pause_s(self) -> float:
        """The length of a pause that nobody named."""
        is_first = self.heard_from >= self.paused_until
        self._own_pause_s = (
            _FIRST_PAUSE_S if is_first else min(2 * self._own_pause_s, _LONGEST_PAUSE_S)
        )
        return self._own_pause_s

    def _begin_pause(self, seconds: float, now: float, admitted_at: float) -> float:
        if not seconds and not self._is_old(admitted_at):
            self._pause_began = now  # the burst began
        return seconds if seconds and self.pause(seconds, now, admitted_at) else 0.0

    def _cut_rate(
        self,
        rejection: Rejection,
        costs: Sequence[float],
        totals: Sequence[float],
        pause_s: float,
        now: float,
    ) -> None:
        limited = [quota for quota in self.quotas if quota.limit < math.inf]
        requests = self._quota(rejection.kind or "requests", MINUTE_S, now)
        requests.probe.rejections += 1
        if rejection.kind or rejection.ramp_too_fast or not limited:
            cost, named = costs[requests.kind], requests.limit < math.inf
        elif any(quota.remaining.lacks(costs[quota.kind]) for quota in limited):
            return  # the headers explain the rejection: nothing was estimated too high
        else:
            cost, named = 1.0, True
        sent = self._sent(now, totals)
        requests.refused(cost, rejection, sent=sent, pause_s=pause_s, named=named)
        hearsay = self._named.get(requests.name)
        if hearsay is not None and hearsay.times == 1 and requests.limit == math.inf:
            requests.hear_of(hearsay.per_minute)

    def time_out(self, now: float, admitted_at: float, place: int, answers: int) -> float:
        """Cut the number in flight after an attempt without an answer in time; how long to pause, or 0.

        Where nothing is answered any more, what was given up may still keep the server busy. Where nothing
        ever was, the time may be too short, and the requests are to fail soon.
        """
        self.refusals += 1
        if self.in_flight.timed_out(now, admitted_at, place):
            self._timed_out = answers, 0.0
            return 0.0
        before, pause_s = self._timed_out
        if before != answers:
            self._timed_out = answers, 0.0
            return 0.0
        waited_s = now - admitted_at
        most_s = MINUTE_S if answers else max(waited_s, _FIRST_PAUSE_S)
        pause_s = min(max(2 * pause_s, waited_s), most_s)
        self._timed_out = answers, pause_s
        return self._begin_pause(pause_s, now, admitted_at)


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
