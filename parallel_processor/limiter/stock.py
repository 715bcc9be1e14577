"""What a process has leased and not used yet: arithmetic under the lock of the account.

A :class:`Stock` holds one lease at a time for the buckets that share the same limits. A request takes from
it as it takes from the configured quotas: :class:`LeasedQuota` is one more of them. When the stock doesn't
suffice for the head of a queue, it asks: the head waits, and the thread of ``leasing.py`` fetches a lease.
What is left of the old lease goes back with the same call, so that no two leases ever add up.

**How much.** A lease is for what is queued, and for as many requests more as were used up of late before
they were void. Their number grows by a hundredth of a second's worth while leases come at once, and shrinks
while they come late. So processes that wait for the same limit come to equal shares, by few calls.

**When.** A lease begins when the holder said, counted from after the call that fetched it. It is void
``ttl_s`` after that, counted from before the call. So only this process's own clock matters here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from parallel_processor.limiter.leases import CONFIRM_S, Ask, Lease, Terms
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.quota import CAUSES, WINDOW_S, ConfiguredQuota, Costs, Slot
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.runtime.stop import Settable

_TTL_S = 0.5
_LONGEST_TTL_S = 8.0
_QUICK_CALLS = 20  # after which leases are shorter again
_LATE_S = 0.4  # leases that come later are made smaller, and larger if they come sooner
_SMALLER = 0.8
_STEP_S = 0.01  # by how many seconds' worth of the limit a lease grows
_LEARN = 0.3  # the weight of the newest lease in the mean cost
_EPSILON = 1e-6
_OWED: Slot = [-1.0, 0.0]  # the slot of what was used without a lease


class LeasedQuota(ConfiguredQuota):
    """One quota of a stock, as a bucket sees it. The lock of the account guards it.

    ``counted`` is the quota of the same limit that counts what this process uses.
    """

    def __init__(self, stock: Stock, index: int, terms: Terms, counted: ConfiguredQuota) -> None:
        super().__init__(counted.name, math.inf, 1.0, 0.0)
        self.terms, self.counted = terms, counted
        self._stock, self._index = stock, index
        self.amount = 0.0  # what is left of the lease
        self.slot: Slot = [-1.0, 0.0]  # the lease's slot, and the epoch of its bucket
        self.overused = 0.0
        self.taken = 0.0  # since the last lease
        self.used = 0.0  # in all
        self.mean = 1.0  # of a request

    @property
    def cause(self) -> WaitCause:
        """What a request waits for that this quota delays."""
        return self._stock.cause

    def refilled(self, now: float) -> float:
        """How much may be taken at this moment."""
        return self.amount if self._stock.is_usable(now) else 0.0

    def advance(self, now: float) -> None:
        """Nothing refills by itself."""

    def is_full(self, now: float) -> bool:
        """True: it is as good as new whenever nobody uses it."""
        return True

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be taken; infinite until a lease has come that suffices."""
        if cost <= self.refilled(now) + _EPSILON:
            return 0.0
        return self._stock.delay_s(cost <= self.amount + _EPSILON, now)

    def charge(self, cost: float, now: float) -> Slot:
        """Take ``cost``; what the lease doesn't hold is told to the holder later."""
        self.taken += cost
        self.used += cost
        self._stock.charges += self._index == 0
        if cost <= self.refilled(now) + _EPSILON:
            self.amount = max(0.0, self.amount - cost)
            return self.slot
        self.overused += cost
        return _OWED

    def refund(self, amount: float, slot: Slot, now: float) -> None:
        """Give back ``amount``: to the lease while it lasts, else to the holder with the next call."""
        self.used -= amount
        if slot is _OWED:
            self.overused = max(0.0, self.overused - amount)
        elif slot is self.slot and self._stock.is_usable(now):
            self.amount += amount
        else:
            self._stock.give_back(self._index, slot, amount)

    def postpone(self, amount: float, slot: Slot, sent_at: float) -> Slot:
        """Count ``amount`` as used without a lease: its request left after the lease was void."""
        if slot is not _OWED:
            self._stock.give_back(self._index, slot, amount)
            self.overused += amount
        return _OWED


class Stock:
    """The lease of the buckets that share the same limits. The lock of the account guards it.

    Attributes:
        quotas: one for each limit.
        counted: what counts the use of each in this process.
        caller: a reservation whose ``wake`` has a lease fetched.
        charges: how many requests took from the lease.
        is_short: true if the head of a queue waits for a lease that nobody fetches.
        is_asking: true from then until the lease has come.
        is_away: true while the holder can't be reached.
        pauses: the pauses to tell the holder, with the time at which each ends.
        limits: the limits in force, as far as the holder has said.
    """

    def __init__(
        self, terms: Sequence[Terms], counted: Sequence[ConfiguredQuota], waker: Settable
    ) -> None:
        """A stock without a lease; ``counted`` count what this process uses of the limits of ``terms``."""
        self.quotas = [
            LeasedQuota(self, index, each, quota)
            for index, (each, quota) in enumerate(zip(terms, counted, strict=True))
        ]
        self.counted = counted
        self.caller = Reservation(0.0, waker)
        self.charges = 0
        self.is_short = self.is_asking = self.is_away = False
        self.pauses: dict[str, float] = {}
        self.limits: tuple[float, ...] = tuple(each.limit for each in terms)
        self.ttl_s = _TTL_S
        self._epochs = self._serials = (0,) * len(terms)
        self._forgotten: list[int] = []  # the quotas whose bucket must be told the last minute
        self._begins_at = self._void_at = -math.inf
        self._is_confirmed = True
        self._place = 0  # set while there is no lease yet, and the next ask is at ``_begins_at``
        self._binding = 0
        self._returned: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._batch, self._delay_s, self._quick_calls = 1.0, 0.0, 0

    # What the quotas ask.

    @property
    def cause(self) -> WaitCause:
        """What a request waits for that the stock delays."""
        if self.is_away:
            return WaitCause.LIMITER
        return CAUSES[self.quotas[self._binding].kind]

    @property
    def has_news(self) -> bool:
        """True if there is something to tell the holder that can't wait for the next lease."""
        return bool(self.pauses)

    def is_usable(self, now: float) -> bool:
        """True while the lease may be used."""
        return self._begins_at <= now < self._void_at and self._is_confirmed

    def delay_s(self, suffices: bool, now: float) -> float:
        """Seconds until a lease that ``suffices`` may be used, or asked for; infinite if none will come."""
        if (suffices or self._place) and now < self._begins_at:
            return self._begins_at - now
        self.is_short = True
        return math.inf

    def give_back(self, index: int, slot: Slot, amount: float) -> None:
        """Tell the holder, with the next call, that a lease did not use ``amount``."""
        if slot[1] == self._epochs[index] and slot[0] >= 0:
            self._returned[index, int(slot[0])] += amount

    # Around the call of the thread.

    def ask(self, queued: Sequence[Costs], now: float) -> Ask:
        """What to ask the holder for the requests of ``queued``, one or more. The lease goes back."""
        self._learn(now)
        self._give_all_back()
        return self._make(self._amounts(queued), now)

    def tell(self, now: float) -> Ask:
        """An ask for nothing. Its answer shows whether the holder still knows the lease."""
        return self._make((0.0,) * len(self.quotas), now)

    def rest(self, now: float) -> Ask | None:
        """The last ask for now, which gives the lease back; ``None`` if there is nothing to tell."""
        self._give_all_back()
        has_news = self._returned or any(quota.overused for quota in self.quotas)
        return self.tell(now) if has_news else None

    def _give_all_back(self) -> None:
        for index, quota in enumerate(self.quotas):
            if quota.amount:
                self.give_back(index, quota.slot, quota.amount)
                quota.amount = 0.0
        self._void_at = -math.inf
        self._is_confirmed = True

    def _make(self, amounts: tuple[float, ...], now: float) -> Ask:
        return Ask(
            terms=tuple(quota.terms for quota in self.quotas),
            amounts=amounts,
            ttl_s=self.ttl_s,
            epochs=self._epochs,
            serials=self._serials,
            returned=tuple((*key, amount) for key, amount in self._returned.items()),
            overused=tuple(quota.overused for quota in self.quotas),
            history=tuple(
                (index, age_s, amount)
                for index in self._forgotten
                for age_s, amount in _last_minute(self.quotas[index].counted, now)
            ),
            pauses=tuple((name, until - now) for name, until in self.pauses.items()),
            place=self._place if any(amounts) else 0,
        )

    def _learn(self, now: float) -> None:
        """Follow from how the last lease was used how large the next one should be."""
        if not self.charges:
            return
        for quota in self.quotas:
            quota.mean += _LEARN * (quota.taken / self.charges - quota.mean)
            quota.taken = 0.0
        if now >= self._void_at:  # it was not used up in time
            self._batch = max(1.0, min(self._batch, float(self.charges)))
        elif self._delay_s > _LATE_S:
            self._batch = max(1.0, self._batch * _SMALLER)
        else:
            self._batch += max(1.0, self._step())
        self.charges = 0

    def _step(self) -> float:
        """By how many requests a lease grows."""
        per_s = (q.terms.rate(self.ttl_s) / q.mean for q in self.quotas if q.mean > 0)
        return min(per_s, default=0.0) * _STEP_S

    def _most(self) -> Sequence[float]:
        """How much of each quota one lease may hold."""
        return [quota.terms.rate(self.ttl_s) * quota.terms.burst_s for quota in self.quotas]

    def _amounts(self, queued: Sequence[Costs]) -> tuple[float, ...]:
        """What is queued as far as one lease may hold it, and the requests that are expected beyond it."""
        most = self._most()
        kinds = [quota.kind for quota in self.quotas]
        amounts = [queued[0][kind] for kind in kinds]
        count = 1
        for costs in queued[1:]:
            more = [amount + costs[kind] for amount, kind in zip(amounts, kinds, strict=True)]
            if any(each > limit for each, limit in zip(more, most, strict=True)):
                break
            amounts, count = more, count + 1
        room = [
            (limit - amount) / quota.mean
            for quota, amount, limit in zip(self.quotas, amounts, most, strict=True)
            if quota.mean > 0
        ]
        extra = math.floor(max(0.0, min(self._batch - count, *room)))
        return tuple(
            amount + extra * quota.mean for amount, quota in zip(amounts, self.quotas, strict=True)
        )

    def receive(self, ask: Ask, lease: Lease, asked_at: float, now: float) -> bool:
        """Take what the holder answered to ``ask``; false if the process must ask again at once."""
        self._epochs, self._serials, self.limits = lease.epochs, lease.serials, lease.limits
        if not lease.is_granted:
            self._forget(ask)
            return False
        self._forgotten = []
        self._forget_returned(ask)
        for quota, amount in zip(self.quotas, ask.overused, strict=False):
            quota.overused = max(0.0, quota.overused - amount)
        self.pauses = {
            name: until for name, until in self.pauses.items() if name not in dict(ask.pauses)
        }
        if any(ask.amounts):
            self._hold(ask, lease, asked_at, now)
        return True

    def failed(self, ask: Ask) -> None:
        """Nobody knows whether the holder has got ``ask``.

        What it gives back must not come back twice, so it is lost. What it charges is charged again.
        """
        self._forget_returned(ask)

    def _forget_returned(self, ask: Ask) -> None:
        for index, slot, amount in ask.returned:
            self._returned[index, slot] -= amount
            if self._returned[index, slot] <= _EPSILON:
                del self._returned[index, slot]

    def _forget(self, ask: Ask) -> None:
        """The buckets have lost their memory: tell them the last minute, and drop what they gave."""
        self._forgotten = [
            index for index, epoch in enumerate(ask.epochs) if epoch not in (0, self._epochs[index])
        ]
        for key in [key for key in self._returned if key[0] in self._forgotten]:
            del self._returned[key]
        for quota in self.quotas:
            quota.amount = 0.0
        self._void_at = -math.inf
        self._is_confirmed = True

    def _hold(self, ask: Ask, lease: Lease, asked_at: float, now: float) -> None:
        for index, quota in enumerate(self.quotas):
            quota.amount = 0.0 if lease.place else ask.amounts[index]
            quota.slot = [float(lease.slot), float(lease.epochs[index])]
        self._begins_at, self._void_at = now + lease.delay_s, asked_at + lease.delay_s + ask.ttl_s
        self._binding, self._delay_s, self._place = lease.binding, lease.delay_s, lease.place
        self._is_confirmed = lease.delay_s <= CONFIRM_S
        self._follow_network(now - asked_at)

    def _follow_network(self, seconds: float) -> None:
        """Have leases last longer if the call that fetches one takes most of its life."""
        if seconds > self.ttl_s / 2:
            self.ttl_s, self._quick_calls = min(_LONGEST_TTL_S, max(2 * self.ttl_s, 4 * seconds)), 0
        elif seconds > self.ttl_s / 8:
            self._quick_calls = 0
        else:
            self._quick_calls += 1
            if self._quick_calls >= _QUICK_CALLS:
                self.ttl_s, self._quick_calls = max(_TTL_S, self.ttl_s / 2), 0

    # A lease that begins late.

    @property
    def confirm_at(self) -> float:
        """When to ask the holder whether it still knows the lease; infinite if that needn't be."""
        return math.inf if self._is_confirmed else self._begins_at - CONFIRM_S / 2

    def confirm(self) -> None:
        """The holder still knows the lease."""
        self._is_confirmed = True


def _last_minute(quota: ConfiguredQuota, now: float) -> list[tuple[float, float]]:
    """What the process used of ``quota`` in the last minute: for each second its age and the amount."""
    quota.advance(now)
    seconds: defaultdict[int, float] = defaultdict(float)
    for last_at, amount, *_ in quota.window:
        seconds[math.floor(now - last_at)] += amount
    return [(float(age_s), amount) for age_s, amount in seconds.items() if age_s < WINDOW_S]
