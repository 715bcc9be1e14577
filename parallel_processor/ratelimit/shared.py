"""The configured limits, and whose turn it is among the buckets that share them.

The limits that a user configures hold for all models that they are meant for together. The buckets of
these models share one ``SharedLimits`` and its lock. Reservations that wait for a configured limit are
admitted in the order of arrival, whatever bucket they are in. A reservation that waits for its own
server delays no other bucket.

Limits of a pattern of models stand under those that hold for all models: a request takes from both. A
reservation that waits for the limits of its pattern delays only buckets of that pattern.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Sequence

from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import AccountLimits
from parallel_processor.ratelimit.minute_count import MinuteCount
from parallel_processor.ratelimit.quota import MINUTE_S, ConfiguredQuota
from parallel_processor.ratelimit.reports import LimitReport
from parallel_processor.ratelimit.state import BucketState, Reservation

_Head = tuple[int, BucketState]  # its ticket, and the state whose queue it leads


class SharedLimits:
    """The configured limits of the buckets that share them. The caller of every method holds ``lock``.

    Other processors of the account may have the same quotas. The figures of :meth:`report` are what was
    charged since this object was made.

    Attributes:
        limits: as the user configured them.
        lock: the account's.
        opened_at: when it was made, in seconds of its clock.
        quotas: the arithmetic of each limit, its own first, then the ceilings above it.
        charged: what a request takes from: ``quotas``, and what else a subclass adds.
        minute_count: what was admitted of requests and tokens, unless both are limited.
        is_open: true if nothing is limited.
        tokens_per_minute: the limit of all tokens; infinite if there is none.
        limits_tokens: true if any limit counts tokens.
        waiting: the states of the buckets that share a limit with these, if their queue isn't empty.
        tickets: numbers the reservations in the order of arrival.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        *,
        account: AccountLimits | None = None,
        pattern: str | None = None,
        under: SharedLimits | None = None,
    ) -> None:
        """Take quotas of ``account``, by default of a new one; for the models of ``pattern``, if given.

        The numbers that the user set in ``under``, which is of the same account, are ceilings.
        """
        account = account or AccountLimits(clock)
        self._pattern, self._account = pattern, account
        self.lock, self.tickets = account.lock, account.tickets
        self.opened_at = now = clock()
        self._own: dict[str, ConfiguredQuota] = {}  # by what they count
        self.quotas: list[ConfiguredQuota] = []
        self.charged: list[ConfiguredQuota] = self.quotas
        self._before: dict[ConfiguredQuota, tuple[float, float]] = {}  # charged and allowed
        with self.lock:
            self._have(limits, limits, under, now)
            self._unlimited = tuple(
                name for name in ("requests", "tokens") if limits.by_kind[name] == math.inf
            )
            self.minute_count: MinuteCount | None = None
            if self._unlimited:
                burst_seconds = limits.burst_seconds
                self.minute_count = account.minute_count(pattern, self._unlimited, burst_seconds)
            account.users.add(self)

    def _have(self, limits: Limits, before: Limits, under: SharedLimits | None, now: float) -> None:
        self.limits, self.waiting = limits, self._queues(under)
        for name, limit in limits.by_kind.items():
            if name in self._own:  # it stays, even without a limit: what was admitted is in it
                # What this object has not changed, another processor may have.
                if _differ(before, limits, name):
                    self._account.change(self._own[name], limit, limits.burst_seconds, now)
            elif limit < math.inf:
                self._own[name] = self._account.quota(
                    self._pattern, name, limit, limits.burst_seconds, now
                )
        self.quotas[:] = [*self._own.values(), *(under.ceilings if under is not None else ())]
        for quota in self.quotas:
            self._before.setdefault(quota, (quota.charged, quota.allowed(now)))
        limited = [quota for quota in self.quotas if quota.limit < math.inf]
        self.is_open = not limited
        tokens = (quota.limit for quota in limited if quota.name == "tokens")
        self.tokens_per_minute = min(tokens, default=math.inf)
        self.limits_tokens = any(quota.name != "requests" for quota in limited)

    def _queues(self, under: SharedLimits | None) -> list[BucketState]:
        is_under = under is not None and len(under.ceilings) > 0
        return self._account.waiting[None if is_under else self._pattern]

    def change(self, limits: Limits, under: SharedLimits | None, now: float) -> None:
        """Have ``limits`` from now on. The buckets follow with :meth:`TokenBucket.follow`."""
        self._have(limits, self.limits, under, now)

    def inherit(self, others: Collection[SharedLimits], now: float) -> None:
        """Begin with what was admitted under ``others``, whose models come under these new limits.

        What was unlimited leaves the whole limit.
        """
        for name, quota in self._own.items():
            known = [other._own[name] for other in others if name in other._own]
            is_limited = len(known) == len(others) and all(each.limit < math.inf for each in known)
            if is_limited and quota.is_full(now):  # another processor may use it
                quota.inherit(known, now)

    def take_over(
        self, state: BucketState, waiting: list[BucketState], url: str, model: str, now: float
    ) -> None:
        """Have ``state``, whose queue was in ``waiting``, under these limits from now on."""
        if state in waiting:
            waiting.remove(state)
            self.waiting.append(state)
        state.follow(self.limits, self.charged, self.minute_count, now)
        self.adopt(url, model, state)

    def adopt(self, url: str, model: str, state: BucketState) -> None:
        """Know ``state`` as that of the bucket of ``model`` at ``url``. Only a subclass needs it."""

    def tell_pause(self, url: str, model: str, seconds: float, now: float) -> Sequence[Reservation]:
        """Tell others of a pause of a bucket that begins at ``now``; what must be woken for that."""
        return ()

    @property
    def ceilings(self) -> Sequence[ConfiguredQuota]:
        """The quotas of its own whose number the user set."""
        kinds = self.limits.defaults
        limited = (quota for quota in self._own.values() if quota.limit < math.inf)
        return [quota for quota in limited if quota.name not in kinds]

    def levels(self, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """What was admitted in the last 60 seconds, and its own limits.

        Both are by kind: of requests, of tokens, and of whatever else is limited.
        """
        used: dict[str, float] = {}
        limits = dict.fromkeys(self._unlimited, math.inf)
        if self.minute_count is not None:
            used.update(self.minute_count.in_window(now))
        own = self._own.values()
        for quota, limit in zip(own, self.in_force(), strict=False):  # its own come first
            quota.advance(now)
            used[quota.name], limits[quota.name] = quota.admitted, limit
        return used, limits

    def in_force(self) -> Sequence[float]:
        """The limit that holds for each of ``quotas``, which may be lower than its own."""
        return [quota.limit for quota in self.quotas]

    def report(self, now: float, since_s: float = 0.0) -> list[LimitReport]:
        """How much of each limit was used; times count from ``since_s``."""
        burst_minutes = self.limits.burst_seconds / MINUTE_S
        found = []
        for quota, limit in zip(self.quotas, self.in_force(), strict=True):
            if quota.limit == math.inf:
                continue
            charged, allowed = self._before[quota]
            used = max(quota.charged - charged, 0.0)
            allowed = quota.allowed(now) - allowed + burst_minutes * quota.limit
            is_own = quota is self._own.get(quota.name)
            report = LimitReport(
                name=quota.name,
                configured=quota.limit,
                is_default=is_own and quota.name in self.limits.defaults,
                in_force=limit if limit < quota.limit else None,
                is_leased=len(self.charged) > len(self.quotas),
                pattern=self._pattern if is_own else None,
                changes=tuple((when - since_s, number) for when, number in quota.changes),
                used=used,
                used_share=used / (allowed * limit / quota.limit) if allowed < math.inf else None,
            )
            found.append(report)
        return found

    def firsts(self) -> list[Reservation]:
        """The head of each queue."""
        return [state.queue[0] for state in self.waiting]

    def join(self, state: BucketState, reservation: Reservation, now: float) -> list[Reservation]:
        """Append ``reservation`` to the queue of ``state``, and admit all that may be sent.

        Returns the reservations that must be woken. ``reservation`` may be among them.
        """
        state.queue.append(reservation)
        if state.queue[0] is not reservation:
            return []  # only the head of a queue is ever looked at
        if self.waiting:
            before = set(self.firsts())
            self.waiting.append(state)
            woken = self.admit(now)
            return woken + [first for first in self.firsts() if first not in before]
        self.waiting.append(state)
        return self.admit(now)

    def leave(self, state: BucketState, reservation: Reservation) -> None:
        """Take ``reservation`` out of the queue, if it is there."""
        if reservation in state.queue:
            state.queue.remove(reservation)
            if not state.queue:
                state.wait_for_nothing()
                self.waiting.remove(state)

    def admit(self, now: float) -> list[Reservation]:
        """Admit all that may be sent, and return them.

        Every state in ``waiting`` then says how long the head of its queue has to wait, and for what.
        """
        if len(self.waiting) == 1:
            return self._admit_of(self.waiting[0], now)
        admitted: list[Reservation] = []
        advanced: Sequence[ConfiguredQuota] = ()
        for state in self.waiting:
            state.advance(now)
            if state.configured is not advanced:  # mostly all have the same
                advanced = state.configured
                for configured in advanced:
                    configured.advance(now)
        heads: list[_Head] = [(state.queue[0].ticket, state) for state in self.waiting]
        heapq.heapify(heads)  # the oldest head first
        while heads:
            state = heads[0][1]
            if state.wait_for_server(now):
                quota = state.wait_for_configured(now)
                if quota is not None:  # later heads wait for it, too
                    heads = _not_behind(state, quota, heads, now)
                    continue
                admitted.append(state.take(now))
                if state.queue:
                    heapq.heapreplace(heads, (state.queue[0].ticket, state))
                    continue
                self.waiting.remove(state)
            heapq.heappop(heads)
        return admitted

    def _admit_of(self, state: BucketState, now: float) -> list[Reservation]:
        """Admit all that may be sent of ``state``, the only one that waits."""
        admitted: list[Reservation] = []
        state.advance(now)
        for quota in state.configured:
            quota.advance(now)
        while state.queue and state.wait_for_server(now) and state.wait_for_configured(now) is None:
            admitted.append(state.take(now))
        if not state.queue:
            self.waiting.remove(state)
        return admitted


def _differ(one: Limits, other: Limits, name: str) -> bool:
    """True if the quotas of ``name`` differ."""
    a, b = ((each.by_kind[name], each.burst_seconds) for each in (one, other))
    return a != b


def _not_behind(
    first: BucketState, quota: ConfiguredQuota, heads: list[_Head], now: float
) -> list[_Head]:
    """The heap ``heads`` without ``first``, and without those that wait behind it for ``quota``."""
    others = []
    for head in heads[1:]:
        if quota in head[1].configured:
            head[1].wait_behind(first, now)
        else:
            others.append(head)
    heapq.heapify(others)
    return others


def wake(reservations: Iterable[Reservation], but: Reservation | None = None) -> None:
    """Set ``wake`` of all ``reservations``, except ``but``. The lock must not be held."""
    for reservation in reservations:
        if reservation is not but:
            reservation.wake.set()
