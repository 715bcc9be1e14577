"""What the server of one model and endpoint limits, as far as it is known: rates, load, pauses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_processor.models import LimitReading, Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.concurrency import ConcurrencyLimit
from parallel_processor.ratelimit.evidence import RateEvidence
from parallel_processor.ratelimit.quota import CAUSES, IN_FLIGHT, KINDS, MINUTE_S
from parallel_processor.ratelimit.server_quota import Sent, ServerQuota, Span
from parallel_processor.ratelimit.server_rates import LimitChange, ServerRates

_MARK_S = 1.5  # a rate is measured over this time to twice this time
_LEAST_S = 0.2  # and never over less than this
_FIRST_PAUSE_S = 1.0  # that nobody named: for a server that counts per second
_LONGEST_PAUSE_S = 15.0  # it doubles up to this while nothing is answered


class ServerLimits:
    """The limits of one model and endpoint. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        in_flight: the bound of the number in flight.
        rates: the rates that are known, or searched for.
        quotas: those that a request is charged to here.
        paused_until: nothing is admitted before this time.
        pauses: how many pauses began or grew longer.
        rejections: how many attempts a limit rejected.
        refusals: how many attempts were refused for any reason, or timed out.
        heard_from: when the newest request was admitted that was answered, as of the last refusal.
        next_mark_at: before this time, :meth:`mark` needn't be called.
    """

    def __init__(self, limits: Limits, now: float, in_flight: ConcurrencyLimit) -> None:
        self.in_flight = in_flight
        self.rates = ServerRates(limits, now)
        self.quotas: Sequence[ServerQuota] = self.rates.quotas
        self._pause_began = -math.inf
        self.paused_until = -math.inf
        self.pauses = self.rejections = self.refusals = 0
        self.heard_from = -math.inf
        self._own_pause_s = 0.0  # the last pause whose length nobody named
        self._binding = WaitCause.NOTHING  # what held the head of the queue last
        self._evidence = RateEvidence()
        self._paused_s = 0.0  # by :attr:`paused_until`, in all
        self._timed_out: tuple[int, float] = (-1, 0.0)  # answers so far, and the pause for timeouts
        nothing = (0.0,) * len(KINDS)
        self.next_mark_at = -math.inf
        # The last two marks: a time, and what had been charged by then.
        self._marks = [(-math.inf, nothing), (-math.inf, nothing)]

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

    def follow(self, rates: ServerRates) -> None:
        """Have ``rates`` in the place of those so far."""
        self.rates, self.quotas = rates, rates.quotas

    def follow_limits(
        self, limits: Limits, totals: Sequence[float], now: float, *, is_open: bool
    ) -> None:
        """Search for what ``limits`` leave to be found, from what was sent last, and for nothing else."""
        self.rates.follow_limits(limits, self._sent(now, totals).per_s[0], now)
        if not is_open:
            self.in_flight.set_free()
        elif not self.rates.is_told:
            self.in_flight.search()

    def advance(self, now: float) -> None:
        """Refill the quotas."""
        self.rates.advance(now, self.in_flight.latency_s)

    @property
    def bounds(self) -> tuple[float, float]:
        """The rate and the number in flight that refusals have shown."""
        return self.rates.rate, self.in_flight.borne

    def restore(self, bounds: tuple[float, float]) -> None:
        """Take back what refusals have shown since :attr:`bounds` was this."""
        rate, borne = bounds
        self.in_flight.restore(borne)
        self.rates.restore(rate)

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
        self, readings: Sequence[LimitReading], span: Span, *, rejected: bool
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Follow the headers of an answer. Returns whether more may be sent now, and what changed.

        ``rejected`` says that the request was turned away.
        """
        is_quicker = False
        numbers = [reading.limit for reading in readings if reading.name == IN_FLIGHT]
        if numbers:
            is_quicker = self.in_flight.told(min(numbers))
            readings = [reading for reading in readings if reading.name != IN_FLIGHT]
        is_quicker_rate, changes = self.rates.observe(readings, span, rejected=rejected)
        if self.rates.is_told:  # they bound the number in flight, too
            is_quicker |= self.in_flight.set_free()
        return is_quicker or is_quicker_rate, changes

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
            sent = self._sent(now, totals)
            explains = self._evidence.explain(sent.per_s[0])
            if is_load and self._spares_rate(explains, sent.per_s[0]):
                return 0.0
            if pause_s is None and not (is_old or (is_load and explains is None)):
                pause_s = self._next_pause_s()
            if not is_old and not rejection.concurrency:
                pause_s = pause_s or 0.0
                self.rates.cut(rejection, costs, sent, pause_s, now, admitted_at=admitted_at)
        elif rejection.concurrency or is_load:
            return 0.0
        return self._begin_pause(pause_s or 0.0, now, admitted_at)

    def _is_rate(self, rejection: Rejection, now: float, admitted_at: float, place: int) -> bool:
        """False if the number in flight explains the rejection. It is cut if it may be the reason."""
        if rejection.kind or rejection.ramp_too_fast:
            return True
        if rejection.concurrency:
            return not self.in_flight.refused(now, admitted_at, rejection.limit, place=place)
        is_held = self._binding in CAUSES or self.rates.is_binding
        if self.rates.is_found(now) and is_held and not self.in_flight.is_certain:
            self.in_flight.refused(now, admitted_at, place=place)
            return True  # the rate was tried higher, and not the number
        is_known = self.in_flight.borne < math.inf
        explains = self.in_flight.refused(now, admitted_at, place=place)
        return not (explains and (is_known or rejection.overload))

    def _spares_rate(self, explains: bool | None, per_s: float) -> bool:
        """True if the rate isn't the reason, and take its cuts back; or if it must show that first."""
        if explains is False:
            self.rates.give_up()
            return True
        is_growing = self.rates.is_growing
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
