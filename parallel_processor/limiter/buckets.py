"""The arithmetic of the shared buckets, for a holder that is a Python object.

A bucket has a level, which refills at the rate of :meth:`Terms.rate` and may go into debt, and a window of
what its leases may use. A lease is dated: it begins once the level is paid, and once any 60 seconds that
hold a use of it hold at most the limit. Later leases pay later. ``lease.lua`` does the same in Redis.

**The window** counts a lease at the latest moment at which it may be used. At the beginning of the newest
lease, whatever may still be used less than a minute before or later is within the limit together with it.
So any 60 seconds hold at most the limit, whatever the sizes and the order of the leases.

**No memory.** A bucket that is new, was flushed, or came back older than a process knows it, has a new
epoch. It admits nothing for 1.5 s: leases of before may be used for so long. Then it begins with the debt
that a request leaves. A process that knew the bucket by another epoch is granted nothing until it has told
what it used in the last minute.

**Limits that differ.** The lowest that any process has named in the last two minutes holds for all.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from parallel_processor.limiter.leases import (
    HOLD_S,
    NAMED_S,
    SLOT_S,
    WINDOW_S,
    Ask,
    Lease,
    ServerNews,
    Terms,
)
from parallel_processor.limiter.shared_rates import SharedRates

_EPSILON = 1e-6
_STEP_S = 1.0  # a clock that goes back by more has been set


@dataclass(slots=True)
class _Bucket:
    """One quota of an account.

    Attributes:
        epoch: which memory this is.
        serial: the number of the newest lease.
        at: the time of the last refill, in seconds.
        level: how much may be leased at once; negative for a debt.
        slots: what leases may use, by the slot of the latest moment of use.
        order: the keys of ``slots``, as a heap.
        in_window: the sum of ``slots``.
        limit: the limit in force; ``rate`` and ``capacity`` follow from it.
        named_at: when a process last named it.
    """

    epoch: int = 0
    serial: int = 0
    at: float = -math.inf
    level: float = 0.0
    slots: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    in_window: float = 0.0
    limit: float = math.inf
    rate: float = math.inf
    capacity: float = math.inf
    named_at: float = -math.inf

    def advance(
        self, now: float, terms: Terms, ttl_s: float, *, serial: int, amount: float
    ) -> None:
        """Refill, drop what left the window, and take the lowest of the limits.

        ``amount`` is asked for: without a memory, one as large may have been leased just before.
        """
        if not self.epoch or serial > self.serial or now < self.at - _STEP_S:
            self.epoch = max(self.epoch + 1, math.floor(now * 1e6 + 0.5))
            self.serial = max(self.serial, serial)
            self.slots, self.order, self.in_window = {}, [], 0.0
            self._name(now, terms, ttl_s)
            debt = max(0.0, max(1.0, amount) - self.capacity)
            self.at, self.level = now, -self.rate * HOLD_S - debt
        now = max(now, self.at)
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now
        if terms.rate(ttl_s) <= self.rate or now - self.named_at > NAMED_S:
            self._name(now, terms, ttl_s)
        while self.order and _leaves(self.order[0]) <= now:
            self.in_window -= self.slots.pop(heapq.heappop(self.order))
        if not self.slots:
            self.in_window = 0.0

    def _name(self, now: float, terms: Terms, ttl_s: float) -> None:
        self.limit, self.rate, self.named_at = terms.limit, terms.rate(ttl_s), now
        self.capacity = self.rate * terms.burst_s
        self.level = min(self.level, self.capacity)

    def count(self, moment: float, amount: float) -> None:
        """Count ``amount`` in the window as used at ``moment``."""
        slot = math.floor(moment / SLOT_S)
        if slot not in self.slots:
            self.slots[slot] = 0.0
            heapq.heappush(self.order, slot)
        self.slots[slot] += amount
        self.in_window += amount

    def take_back(self, slot: int, amount: float) -> None:
        """A lease of ``slot`` did not use ``amount``."""
        self.level = min(self.capacity, self.level + amount)
        found = min(self.slots.get(slot, 0.0), amount)
        if found:
            self.slots[slot] -= found
            self.in_window -= found

    def delay_s(self, amount: float) -> float:
        """Seconds until a lease of ``amount`` may begin."""
        need = min(amount, self.capacity)
        delay = max(0.0, (need - self.level) / self.rate)
        over = self.in_window + min(amount, self.limit) - self.limit
        leaves = self.at
        for slot in sorted(self.slots) if over > _EPSILON else ():
            leaves = _leaves(slot)
            over -= self.slots[slot]
            if over <= _EPSILON:
                break
        return max(delay, leaves - self.at)


def _leaves(slot: int) -> float:
    return (slot + 1) * SLOT_S + WINDOW_S


class SharedBuckets:
    """The buckets of all accounts. Not thread-safe: an actor, or one lock, guards it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Use ``clock``, whose seconds may be those of any day; it may be set back."""
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._rates: dict[
            tuple[str, str], SharedRates
        ] = {}  # of servers, by the first of their terms
        self._pauses: dict[tuple[str, str], float] = {}
        self._asked_at = -math.inf  # for the rates of any server

    def lease(self, account: str, ask: Ask) -> Lease:
        """Grant a lease, or refuse it to a process that the buckets have forgotten."""
        now = self._clock()
        if ask.server is not None:
            return self._lease_of_server(account, ask, ask.server, now)
        buckets = [self._buckets.setdefault((account, terms.key), _Bucket()) for terms in ask.terms]
        asked = zip(ask.terms, ask.serials, ask.amounts, strict=True)
        for bucket, (terms, serial, amount) in zip(buckets, asked, strict=True):
            bucket.advance(now, terms, ask.ttl_s, serial=serial, amount=amount)
        now = max(now, *(bucket.at for bucket in buckets))
        pauses = self._pause(account, ask, now)
        is_known = all(
            epoch in (0, bucket.epoch) for bucket, epoch in zip(buckets, ask.epochs, strict=True)
        )
        delay, binding, slot = 0.0, 0, 0
        if is_known:
            _settle(buckets, ask, now)
            delays = [
                bucket.delay_s(amount) if amount else 0.0
                for bucket, amount in zip(buckets, ask.amounts, strict=True)
            ]
            delay = max(delays)
            binding = delays.index(delay)
            slot = math.floor((now + delay + ask.ttl_s) / SLOT_S)
            for bucket, amount in zip(buckets, ask.amounts, strict=True):
                if amount:
                    bucket.level -= amount
                    bucket.count(now + delay + ask.ttl_s, amount)
                    bucket.serial += 1
        return Lease(
            is_granted=is_known,
            delay_s=delay,
            binding=binding,
            slot=slot,
            epochs=tuple(bucket.epoch for bucket in buckets),
            serials=tuple(bucket.serial for bucket in buckets),
            limits=tuple(bucket.limit for bucket in buckets),
            pauses=pauses,
        )

    def _lease_of_server(self, account: str, ask: Ask, server: ServerNews, now: float) -> Lease:
        key = (account, ask.terms[0].key)
        if now < self._asked_at - _STEP_S:
            self._rates.clear()
        self._asked_at = now
        if key not in self._rates:
            for each in [each for each, rates in self._rates.items() if rates.is_unused(now)]:
                del self._rates[each]
            self._rates[key] = SharedRates(server, now)
        pauses = self._pause(account, ask, now)
        paused_s = dict(pauses).get(key[1].rpartition(":")[0], 0.0)
        return replace(self._rates[key].lease(ask, server, now, paused_s), pauses=pauses)

    def _pause(self, account: str, ask: Ask, now: float) -> tuple[tuple[str, float], ...]:
        """Note the pauses that ``ask`` tells; those of the account that are not over."""
        for name, seconds in ask.pauses:
            until = self._pauses.get((account, name), now)
            self._pauses[account, name] = max(until, now + seconds)
        for key in [key for key, until in self._pauses.items() if until <= now]:
            del self._pauses[key]
        return tuple(
            (key[1], until - now) for key, until in self._pauses.items() if key[0] == account
        )


def _settle(buckets: list[_Bucket], ask: Ask, now: float) -> None:
    """Follow what ``ask`` tells of earlier leases."""
    for index, age_s, amount in ask.history:
        buckets[index].count(now - age_s, amount)
    for index, slot, amount in ask.returned:
        buckets[index].take_back(slot, amount)
    for bucket, amount in zip(buckets, ask.overused, strict=False):
        if amount:
            bucket.level -= amount
            bucket.count(now, amount)
