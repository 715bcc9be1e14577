"""The configured limits, and whose turn it is among the buckets that share them.

The limits that a user configures hold for all models that they are meant for together. The buckets of
these models share one ``SharedLimits`` and its lock. Reservations that wait for a configured limit are
admitted in the order of arrival, whatever bucket they are in. A reservation that waits for its own
server delays no other bucket.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Iterable

from parallel_processor.options import Limits
from parallel_processor.ratelimit.quota import MINUTE_S, ConfiguredQuota
from parallel_processor.ratelimit.reports import LimitReport
from parallel_processor.ratelimit.state import BucketState, Reservation


class SharedLimits:
    """The configured limits of the buckets that share them. The caller of every method holds ``lock``.

    Attributes:
        limits: as the user configured them.
        lock: guards this object, the states of its buckets, and their reservations.
        opened_at: when it was made, in seconds of its clock.
        quotas: the arithmetic of each limit.
        tokens_per_minute: the limit of all tokens; infinite if there is none.
        waiting: the states of the buckets whose queue isn't empty.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.lock = threading.Lock()
        self.opened_at = clock()
        self.quotas = [
            ConfiguredQuota(name, limit, limits.burst_seconds, self.opened_at)
            for name, limit in limits.by_kind.items()
            if limit < math.inf or name in ("requests", "tokens")
        ]
        self.tokens_per_minute = limits.by_kind["tokens"]
        self.waiting: list[BucketState] = []
        self._tickets = 0

    @property
    def is_open(self) -> bool:
        """True if nothing is limited."""
        return all(quota.limit == math.inf for quota in self.quotas)

    def levels(self, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """What was admitted of each limit in the last 60 seconds, and the limits."""
        for quota in self.quotas:
            quota.advance(now)
        used = {quota.name: quota.in_window for quota in self.quotas}
        return used, {quota.name: quota.limit for quota in self.quotas}

    def report(self, now: float) -> list[LimitReport]:
        """How much of each limit was used."""
        minutes = (now - self.opened_at + self.limits.burst_seconds) / MINUTE_S
        return [
            LimitReport(
                name=quota.name,
                configured=quota.limit,
                used=quota.charged,
                used_share=quota.charged / (quota.limit * minutes),
            )
            for quota in self.quotas
            if quota.limit < math.inf
        ]

    def firsts(self) -> list[Reservation]:
        """The head of each queue."""
        return [state.queue[0] for state in self.waiting]

    def join(
        self, state: BucketState, reservation: Reservation, clock: Callable[[], float]
    ) -> list[Reservation]:
        """Append ``reservation`` to the queue of ``state``, and admit all that may be sent.

        Returns the reservations that must be woken. ``reservation`` may be among them.
        """
        self._tickets += 1
        reservation.ticket = self._tickets
        state.queue.append(reservation)
        if state.queue[0] is not reservation:
            return []  # only the head of a queue is ever looked at
        if self.waiting:
            before = set(self.firsts())
            self.waiting.append(state)
            woken = self.admit(clock())
            return woken + [first for first in self.firsts() if first not in before]
        # No other request waits: the short way, which most requests of most runs take.
        now, costs, has_room = clock(), reservation.costs, True
        for quota in self.quotas:
            quota.advance(now)
            cost = costs[quota.kind]
            if cost > quota.level or quota.in_window + cost > quota.limit:
                has_room = False
        if has_room and state.is_unlimited_by_server(now):
            state.take(now)
            return []
        self.waiting.append(state)
        return self.admit(now)

    def leave(self, state: BucketState, reservation: Reservation) -> None:
        """Take ``reservation`` out of the queue, if it is there."""
        if reservation in state.queue:
            state.queue.remove(reservation)
            if not state.queue:
                self.waiting.remove(state)

    def admit(self, now: float) -> list[Reservation]:
        """Admit all that may be sent, and return them.

        Every state in ``waiting`` then says how long the head of its queue has to wait, and for what.
        """
        admitted: list[Reservation] = []
        for quota in self.quotas:
            quota.advance(now)
        for state in self.waiting:
            state.advance(now)
        heads = [(state.queue[0].ticket, state) for state in self.waiting]
        heapq.heapify(heads)  # the oldest head first
        while heads:
            state = heads[0][1]
            if state.wait_for_server(now):
                if not state.wait_for_configured(now):  # later heads wait for these limits too
                    for _, later in heads[1:]:
                        later.wait_behind(state, now)
                    break
                admitted.append(state.take(now))
                if state.queue:
                    heapq.heapreplace(heads, (state.queue[0].ticket, state))
                    continue
                self.waiting.remove(state)
            heapq.heappop(heads)
        return admitted


def wake(reservations: Iterable[Reservation], but: Reservation | None = None) -> None:
    """Set ``wake`` of all ``reservations``, except ``but``. The lock must not be held."""
    for reservation in reservations:
        if reservation is not but:
            reservation.wake.set()
