"""What was configured for several buckets together, and who is next under it.

The limits that a user types are a ceiling over the buckets of all models that they are meant for. These
buckets share the ceiling's lock, and whoever waits for the ceiling is admitted in the order of arrival,
whatever bucket it is in. Who waits for its own bucket holds up nobody else's.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from parallel_processor.figures import LimitReport
from parallel_processor.observed import ObservedQuota
from parallel_processor.options import Limits
from parallel_processor.quota import MINUTE_S, TOKENS, Quota

INSTANT_S = 1e-9  # a wait below this is rounding
Charge = tuple[Quota | ObservedQuota, list[float]]  # what was charged, and its window's slot
_UNCHARGED: list[Charge] = []
UNUSED = threading.Event()  # stands for one that isn't made until somebody has to wait


class Reservation:
    """A place in the queue of a bucket, and once ``admitted_at`` is set, the right to one attempt.

    ``tokens`` is what the attempt is expected to cost, ``output_tokens`` the answer's part of it, and
    ``costs`` the same in the order of ``KINDS``;
    ``wake`` is set whenever :meth:`TokenBucket.poll` should be called again. ``admitted_at`` is in
    seconds of the bucket's clock. The bucket alone changes a reservation.
    """

    __slots__ = ("admitted_at", "charges", "costs", "ended", "ticket", "totals", "wake")

    def __init__(
        self, tokens: float, wake: threading.Event = UNUSED, *, output_tokens: float = 0.0
    ) -> None:
        self.costs: tuple[float, ...] = (1.0, tokens, tokens - output_tokens, output_tokens)
        self.wake = wake
        self.ticket = 0
        self.admitted_at: float | None = None
        self.ended = False
        self.charges = _UNCHARGED  # a list of its own once it's admitted
        self.totals: tuple[float, ...] = ()  # what the bucket had charged by then, by kind


class Line(Protocol):
    """A bucket, as its ceiling sees it."""

    queue: deque[Reservation]
    delay: float
    held_by: str

    def advance(self, now: float) -> None:
        """Refill what the server's own limits allow."""
        ...

    def is_free(self, now: float) -> bool:
        """True if nothing but the ceiling can hold the first in line."""
        ...

    def own_obstacle(self, now: float) -> tuple[float, str]:
        """Seconds that the first in line has to wait for its own bucket, and for what of it."""
        ...

    def take(self, now: float) -> Reservation:
        """Admit the first in line."""
        ...


class Ceiling:
    """Configured limits and the buckets that share them; its lock is theirs."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.lock = threading.Lock()  # guards this, the buckets, and their reservations
        self.opened_at = clock()
        self.quotas = [
            Quota(name, limit, limits.burst_seconds, self.opened_at)
            for name, limit in limits.by_kind.items()
            if limit < math.inf or name in ("requests", "tokens")
        ]
        self.tokens_per_minute = limits.by_kind["tokens"]
        self.waiting: list[Line] = []  # buckets with somebody in line
        self._tickets = 0

    @property
    def is_open(self) -> bool:
        """True if nothing is limited."""
        return all(quota.limit == math.inf for quota in self.quotas)

    def levels(self, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """What was admitted of each limit in the last 60 seconds, and the limits.

        Caller holds ``lock``.
        """
        for quota in self.quotas:
            quota.advance(now)
        used = {quota.name: quota.in_window for quota in self.quotas}
        return used, {quota.name: quota.limit for quota in self.quotas}

    def join(
        self, bucket: Line, reservation: Reservation, now: Callable[[], float]
    ) -> list[Reservation]:
        """Put ``reservation`` in line, and admit whoever may be; the others of them are returned.

        Caller holds ``lock``.
        """
        self._tickets += 1
        reservation.ticket = self._tickets
        bucket.queue.append(reservation)
        if bucket.queue[0] is not reservation:
            return []
        if self.waiting:
            before = set(self.firsts())
            self.waiting.append(bucket)
            woken = self.admit(now())
            return woken + [first for first in self.firsts() if first not in before]
        moment, costs, has_room = now(), reservation.costs, True  # the short way: nobody waits
        for quota in self.quotas:
            quota.advance(moment)
            cost = costs[quota.kind]
            if cost > quota.level or quota.in_window + cost > quota.limit:
                has_room = False
        if has_room and bucket.is_free(moment):
            bucket.take(moment)
            return []
        self.waiting.append(bucket)
        return self.admit(moment)

    def leave(self, bucket: Line, reservation: Reservation) -> None:
        """Take ``reservation`` out of the line, if it is there. Caller holds ``lock``."""
        if reservation in bucket.queue:
            bucket.queue.remove(reservation)
            if not bucket.queue:
                self.waiting.remove(bucket)

    def report(self, now: float) -> list[LimitReport]:
        """How much of each limit was used. Caller holds ``lock``."""
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
        """Who is first in line in each bucket. Caller holds ``lock``."""
        return [bucket.queue[0] for bucket in self.waiting]

    def admit(self, now: float) -> list[Reservation]:
        """Admit whoever may be, and tell each bucket how long the rest has to wait.

        Gives who was admitted. Caller holds ``lock``.
        """
        admitted: list[Reservation] = []
        for quota in self.quotas:
            quota.advance(now)
        for bucket in self.waiting:
            bucket.advance(now)
        candidates = [(bucket.queue[0].ticket, bucket) for bucket in self.waiting]
        heapq.heapify(candidates)
        while candidates:
            bucket = candidates[0][1]
            bucket.delay, bucket.held_by = bucket.own_obstacle(now)
            if bucket.delay <= INSTANT_S:
                self._add_obstacle(bucket, now)
                if bucket.delay > INSTANT_S:  # what came later waits for the ceiling too
                    self._hold([other for _, other in candidates], bucket, now)
                    break
                admitted.append(bucket.take(now))
                if bucket.queue:
                    heapq.heapreplace(candidates, (bucket.queue[0].ticket, bucket))
                    continue
                self.waiting.remove(bucket)
            heapq.heappop(candidates)
        return admitted

    def _add_obstacle(self, bucket: Line, now: float) -> None:
        """What the first in line of ``bucket`` waits for here."""
        costs = bucket.queue[0].costs
        for quota in self.quotas:
            cost = costs[quota.kind]
            if not cost and quota.kind > TOKENS:
                continue  # an embedding has no output, and doesn't wait for others' debt
            delay = quota.delay_s(cost, now)
            if delay > bucket.delay:
                bucket.delay, bucket.held_by = delay, quota.name

    def _hold(self, candidates: list[Line], first: Line, now: float) -> None:
        for bucket in candidates:
            if bucket is not first:
                bucket.delay, bucket.held_by = max(
                    (first.delay, first.held_by), bucket.own_obstacle(now)
                )


def wake(woken: list[Reservation], but: Reservation | None = None) -> None:
    """Tell callers to poll again. The lock must not be held."""
    for reservation in woken:
        if reservation is not but:
            reservation.wake.set()
