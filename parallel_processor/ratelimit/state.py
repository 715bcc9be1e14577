"""The state of one token bucket: its queue, what was charged, and what its server allows.

``TokenBucket`` is the thread-safe front of this state. The limits that the user configured belong to
the ``SharedLimits``, which decide whose turn it is and work on the states of all buckets under them.
Everything here is arithmetic. The caller of every method holds the lock of the ``SharedLimits``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from parallel_processor.models import LimitReading, Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.concurrency import ConcurrencyLimit
from parallel_processor.ratelimit.minute_count import CountedSlot, MinuteCount
from parallel_processor.ratelimit.quota import TOKENS, ConfiguredQuota, Costs, Slot
from parallel_processor.ratelimit.reports import BucketReport
from parallel_processor.ratelimit.server import ServerLimits
from parallel_processor.ratelimit.server_quota import ServerQuota, Span
from parallel_processor.ratelimit.server_rates import LimitChange
from parallel_processor.runtime.stop import Settable, WakeEvent

INSTANT_S = 1e-9  # a wait below this is rounding

_Charge = tuple[ConfiguredQuota | ServerQuota, Slot]  # the quota, and the slot of its window
_NOT_CHARGED: list[_Charge] = []
_NO_SLOT: list[float] = []  # of a quota without a window, or of what isn't counted
_UNUSED = WakeEvent()  # the default of ``wake``: nothing waits for it
_NOTHING: Costs = (0.0, 0.0, 0.0, 0.0)


class Reservation:
    """A place in the queue of a bucket. Once admitted, the right to make one attempt.

    Only the bucket and its ``SharedLimits`` change a reservation.

    Attributes:
        costs: what the attempt is expected to cost, in the order of ``KINDS``.
        wake: set when :meth:`TokenBucket.poll` should be called again.
        ticket: its number in the order of arrival, over all buckets that share limits.
        admitted_at: when it was admitted, in seconds of the bucket's clock; ``None`` before.
        ended: true once its attempt is over.
        charges: the quotas that were charged for it.
        counted: the slot of the minute's count that counts it, if there is one.
        totals: what the bucket had charged when it was admitted, by kind, this reservation included.
        place: how many were in flight when it was admitted, itself included.
    """

    __slots__ = (
        "admitted_at",
        "charges",
        "costs",
        "counted",
        "ended",
        "place",
        "ticket",
        "totals",
        "wake",
    )

    def __init__(
        self, tokens: float, wake: Settable = _UNUSED, *, output_tokens: float = 0.0
    ) -> None:
        """Ask for ``tokens``, of which the answer is expected to use ``output_tokens``."""
        self.costs: Costs = (1.0, tokens, tokens - output_tokens, output_tokens)
        self.wake = wake
        self.ticket = 0
        self.admitted_at: float | None = None
        self.ended = False
        self.charges = _NOT_CHARGED  # shared until it is charged: saves a list each
        self.counted: CountedSlot = _NO_SLOT
        self.totals: Costs = _NOTHING
        self.place = 0


class BucketState:
    """The queue, the charges and the server limits of one bucket.

    Attributes:
        server: what the server allows, as far as it is known.
        queue: the reservations that wait, oldest first.
        delay: seconds that the head of the queue has to wait; infinite if the queue is empty.
        wait_cause: what the head of the queue waits for.
        answered: how many attempts were answered.
        newest_answered_at: when the newest of them was admitted.
        answer_tokens: how many tokens the answers say they used.
        moved_on: how many requests went on to another lane.
        downgraded: how many answers came from another tier than was asked for.
        configured: the quotas that the user configured for it, which other buckets may share.
    """

    def __init__(
        self,
        limits: Limits,
        configured: Sequence[ConfiguredQuota],
        minute_count: MinuteCount | None = None,
        *,
        now: float,
        climbs: bool = False,
        most_in_flight: float = math.inf,
        longest_s: float = math.inf,
    ) -> None:
        """Charge the quotas ``configured`` and ``minute_count``, which other buckets may share.

        With ``climbs``, the number in flight that suits the server is searched for, up to
        ``most_in_flight``. An answer may take ``longest_s``.
        """
        in_flight = ConcurrencyLimit(
            now=now, climbs=climbs, gentle=limits.is_auto, most=most_in_flight, longest_s=longest_s
        )
        self.server = ServerLimits(limits, now, in_flight)
        self.queue: deque[Reservation] = deque()
        self.delay = math.inf
        self.wait_cause = WaitCause.NOTHING
        self.answered = self.answer_tokens = self.moved_on = self.downgraded = 0
        self.newest_answered_at = -math.inf
        self.configured = configured
        self._minute_count = minute_count
        self._in_flight = in_flight
        self._totals: Costs = _NOTHING  # charged so far, by kind

    def follow(
        self,
        limits: Limits,
        configured: Sequence[ConfiguredQuota],
        minute_count: MinuteCount | None,
        now: float,
    ) -> None:
        """Be under other ``limits`` from now on."""
        is_open, self.configured = all(q.limit == math.inf for q in configured), configured
        self._minute_count = minute_count
        self.server.follow_limits(limits, self._totals, now, is_open=is_open)

    # Before an attempt.

    def admit_at_once(self, reservation: Reservation, now: float) -> bool:
        """Admit and charge ``reservation`` if nothing delays it, past the queue; true if it was admitted.

        To be called while no reservation of the account waits. It leaves to the queue what is admitted
        for its size, or within the rounding.
        """
        server, in_flight, costs = self.server, self._in_flight, reservation.costs
        if now < server.paused_until or in_flight.count >= in_flight.limit:
            return False
        for quota in self.configured:
            cost = costs[quota.kind]
            if cost > quota.refilled(now) or quota.in_window + cost > quota.limit:
                return False
        if server.quotas:
            server.advance(now)
            if server.obstacle(costs, now)[0] > INSTANT_S:
                return False
        self._charge(reservation, now)
        return True

    def advance(self, now: float) -> None:
        """Refill the quotas of the server."""
        self.server.advance(now)

    def wait_for_server(self, now: float) -> bool:
        """Set ``delay`` and ``wait_cause`` by the server's limits; true if the head needn't wait."""
        self.delay, self.wait_cause = self.server.obstacle(self.queue[0].costs, now)
        return self.delay <= INSTANT_S

    def wait_for_configured(self, now: float) -> ConfiguredQuota | None:
        """Add the configured limits to ``delay`` and ``wait_cause``; the one that the head waits for."""
        costs, longest = self.queue[0].costs, None
        for quota in self.configured:
            cost = costs[quota.kind]
            if not cost and quota.kind > TOKENS:
                continue  # an embedding has no output, so a debt of output tokens doesn't delay it
            delay = quota.delay_s(cost, now)
            if delay > self.delay:
                self.delay, self.wait_cause = delay, quota.cause
                longest = quota if delay > INSTANT_S else None
        return longest

    def wait_behind(self, first: BucketState, now: float) -> None:
        """Wait at least as long as the head of ``first``, which came earlier."""
        own = self.server.obstacle(self.queue[0].costs, now)
        self.delay, self.wait_cause = max((first.delay, first.wait_cause), own)

    def take(self, now: float) -> Reservation:
        """Admit and charge the head of the queue."""
        first = self.queue.popleft()
        self._charge(first, now)
        self.wait_for_nothing()
        return first

    def wait_for_nothing(self) -> None:
        """Note that no head of the queue is known to wait."""
        self.delay, self.wait_cause = math.inf, WaitCause.NOTHING

    def _charge(self, reservation: Reservation, now: float) -> None:
        server, costs = self.server, reservation.costs
        if self.configured or server.quotas:
            charges: list[_Charge] = []
            reservation.charges = charges
            for configured in self.configured:
                charges.append((configured, configured.charge(costs[configured.kind], now)))
            for quota in server.quotas:
                quota.charge(costs[quota.kind], now)
                charges.append((quota, _NO_SLOT))
        if self._minute_count is not None:
            reservation.counted = self._minute_count.add(1.0, costs[TOKENS], now)
        requests, tokens, inputs, outputs = self._totals
        _, more, more_inputs, more_outputs = costs
        reservation.totals = self._totals = totals = (
            requests + 1.0,
            tokens + more,
            inputs + more_inputs,
            outputs + more_outputs,
        )
        if now >= server.next_mark_at:
            server.mark(now, totals)
        reservation.admitted_at = now
        reservation.place = self._in_flight.started(now)

    # After it.

    def cancel(self, reservation: Reservation, now: float) -> None:
        """Give back the whole charge of an admitted reservation that was never sent."""
        self.correct(reservation, _NOTHING, now)
        if not reservation.ended:
            reservation.ended = True
            self._in_flight.cancelled(now, reservation.admitted_at or now)

    def postpone(self, reservation: Reservation, sent_at: float, now: float) -> None:
        """Count an admitted reservation in the configured windows as of ``sent_at``."""
        for i, (quota, slot) in enumerate(reservation.charges):
            if isinstance(quota, ConfiguredQuota):
                quota.advance(now)
                cost = reservation.costs[quota.kind]
                reservation.charges[i] = (quota, quota.postpone(cost, slot, min(sent_at, now)))
        if self._minute_count is not None and reservation.counted:
            reservation.counted = self._minute_count.postpone(
                reservation.costs, reservation.counted, min(sent_at, now), now
            )

    def correct(self, reservation: Reservation, costs: Costs, now: float) -> None:
        """Charge ``costs`` instead of what was charged."""
        before, reservation.costs = reservation.costs, costs
        for quota, slot in reservation.charges:
            extra = costs[quota.kind] - before[quota.kind]
            if extra < 0:
                quota.refund(-extra, slot, now)
            elif extra > 0:
                quota.advance(now)
                quota.charge(extra, now)
        if self._minute_count is not None:
            self._minute_count.correct(before, costs, reservation.counted, now)
        requests, tokens, inputs, outputs = self._totals
        a, b, c, d = costs
        e, f, g, h = before
        self._totals = (requests + a - e, tokens + b - f, inputs + c - g, outputs + d - h)

    def end(
        self, reservation: Reservation, now: float, *, answered: bool, answer_tokens: int
    ) -> bool:
        """Count the end of an attempt; true if that made room in flight for another."""
        self.answered += answered
        self.answer_tokens += answer_tokens
        if reservation.ended:
            return False
        reservation.ended, sent_at = True, reservation.admitted_at or now
        if answered and sent_at > self.newest_answered_at:
            self.newest_answered_at = sent_at
        place = reservation.place
        return self._in_flight.ended(now, sent_at, answered=answered, place=place)

    def observe(
        self,
        reservation: Reservation,
        readings: Sequence[LimitReading],
        now: float,
        *,
        rejected: bool,
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Follow the headers of an answer; see :meth:`ServerLimits.observe`."""
        self.advance(now)
        span = Span(reservation.admitted_at or now, reservation.totals, now, self._totals)
        return self.server.observe(readings, span, rejected=rejected)

    def refuse(
        self, reservation: Reservation, rejection: Rejection, pause_s: float | None, now: float
    ) -> float:
        """Follow a rejection; for how long everything pauses for it, or 0."""
        sent_at = reservation.admitted_at or 0.0
        self.advance(now)
        self.server.heard_from = self.newest_answered_at
        return self.server.refuse(
            rejection,
            reservation.costs,
            self._totals,
            pause_s,
            now,
            admitted_at=sent_at,
            place=reservation.place,
        )

    def time_out(self, reservation: Reservation, now: float) -> float:
        """Follow an attempt without an answer in time; for how long everything pauses, or 0."""
        sent_at, place = reservation.admitted_at or 0.0, reservation.place
        return self.server.time_out(now, sent_at, place, self.answered)

    def report(self, now: float, since_s: float) -> BucketReport:
        """How the limits of the server turned out; times count from ``since_s``."""
        self.advance(now)
        server, in_flight = self.server, self.server.in_flight
        return BucketReport(
            url="",
            model="",
            admitted=in_flight.total,
            rejections=server.rejections,
            pauses=server.pauses,
            answered=self.answered,
            moved_on=self.moved_on,
            downgraded=self.downgraded,
            reserved_tokens=round(self._totals[TOKENS]),
            used_tokens=self.answer_tokens,
            in_flight_limit=in_flight.limit if in_flight.limit < math.inf else None,
            peak_in_flight=in_flight.peak,
            limits=server.rates.reports(since_s),
        )
