"""What a bucket has charged: its limits' levels as requests are admitted, corrected and ended.

Everything here is arithmetic. The lock that guards it is the ceiling's, and who calls holds it.
"""

from __future__ import annotations

import math
from collections import deque

from parallel_processor.ceiling import Ceiling, Charge, Reservation
from parallel_processor.inflight import InFlightLimit
from parallel_processor.options import Limits
from parallel_processor.quota import KINDS
from parallel_processor.serverlimits import ServerLimits


class Charges:
    """The charges of one bucket under ``ceiling``, and those who wait for it. Caller holds its lock.

    ``most_in_flight`` lets it look for the number in flight that suits a server without limits.
    """

    def __init__(
        self, ceiling: Ceiling, limits: Limits, *, most_in_flight: int | None, now: float
    ) -> None:
        in_flight = InFlightLimit(
            now=now,
            climbs=ceiling.is_open and most_in_flight is not None,
            gentle=limits.is_auto,
            most=most_in_flight or math.inf,
        )
        self._configured = ceiling.quotas
        self.server = ServerLimits(limits, now, in_flight)
        self.queue: deque[Reservation] = deque()
        self.delay = math.inf
        self.held_by = ""
        self.answered = self.answer_tokens = 0  # attempts, and what their answers used
        self._totals: tuple[float, ...] = (0.0,) * len(KINDS)  # charged so far, by kind

    def advance(self, now: float) -> None:
        """Refill what the server's own limits allow."""
        for quota in self.server.quotas:
            quota.advance(now)

    def is_free(self, now: float) -> bool:
        """True if the server has said nothing that could hold anybody up."""
        server = self.server
        return not server.quotas and now >= server.paused_until and server.in_flight.has_room

    @property
    def has_room(self) -> bool:
        """False if one has to end before another may go. To be sure, the caller holds the lock."""
        return self.server.in_flight.has_room

    def own_obstacle(self, now: float) -> tuple[float, str]:
        """Seconds that the first in line has to wait for what the server says, and for what of it."""
        return self.server.obstacle(self.queue[0].costs, now)

    def take(self, now: float) -> Reservation:
        """Admit the first in line."""
        first = self.queue.popleft()
        costs = first.costs
        charges: list[Charge] = []
        for configured in self._configured:
            charges.append((configured, configured.charge(costs[configured.kind], now)))
        for quota in self.server.quotas:
            quota.charge(costs[quota.kind], now)
            charges.append((quota, []))
        first.charges = charges
        totals, (a, b, c, d) = self._totals, costs
        first.totals = self._totals = (totals[0] + a, totals[1] + b, totals[2] + c, totals[3] + d)
        first.admitted_at = now
        self.server.mark(now, self._totals)
        self.server.in_flight.started(now)
        self.delay, self.held_by = math.inf, ""
        return first

    def _correct(self, reservation: Reservation, costs: tuple[float, ...], now: float) -> None:
        """Charge ``costs`` in the place of what was charged."""
        before, reservation.costs = reservation.costs, costs
        for quota, slot in reservation.charges:
            extra = costs[quota.kind] - before[quota.kind]
            if extra:
                quota.advance(now)
                if extra > 0:
                    quota.charge(extra, now)
                else:
                    quota.refund(-extra, slot, now)
        parts = zip(self._totals, costs, before, strict=True)
        self._totals = tuple(total + cost - charged for total, cost, charged in parts)

    def _settle(self, reservation: Reservation, used: float, output: float, now: float) -> None:
        """Charge what was used, of which ``output`` is the answer's part."""
        self._correct(reservation, (reservation.costs[0], used, used - output, output), now)

    def _end(self, reservation: Reservation, now: float, *, answered: bool) -> bool:
        """One less is in flight; true if that made room."""
        if reservation.ended:
            return False
        reservation.ended, sent_at = True, reservation.admitted_at or now
        return self.server.in_flight.ended(now, sent_at, answered=answered)
