"""The limits of buckets that lease them from a holder which other processes share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from weakref import WeakKeyDictionary, WeakSet

from parallel_processor.exceptions import LimiterError, RunStoppedError, StopCause
from parallel_processor.limiter.leases import Ask, Lease, Limiter, Terms
from parallel_processor.limiter.leasing import Leasing, LeasingThread
from parallel_processor.limiter.remote_rates import RateStock, RemoteRates
from parallel_processor.limiter.stock import Stock
from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import AccountLimits
from parallel_processor.ratelimit.quota import ConfiguredQuota
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import BucketState, Reservation
from parallel_processor.runtime.stop import Settable

_REFUSED_S = (
    2.0  # for so long, a refusal ends runs; meanwhile a thread asks again for those that wait
)


class AccountLeases:
    """What an account of this process leases. The lock of the account guards it, once it is made."""

    def __init__(
        self,
        account: AccountLimits,
        limiter: Callable[[], Limiter],
        name: str,
        clock: Callable[[], float],
        run: Callable[[Leasing], Settable] | None,
    ) -> None:
        """Connect by ``limiter`` to the holder, where the account has the ``name``."""
        self._account, self._name, self._clock = account, name, clock
        made = limiter()
        self._limiter: Limiter = _Watched(made, self._note)
        self._run = run or LeasingThread(self._limiter).add
        self._refused: tuple[str, float] | None = None  # what was said, and when
        self.follows_servers = getattr(made, "follows_servers", False)
        self.leasings: dict[Hashable, Leasing] = {}

    def of(self, key: Hashable, make_stock: Callable[[Settable], Stock]) -> Leasing:
        """What leases for ``key``; made if it isn't there."""
        if key not in self.leasings:
            self.leasings[key] = Leasing(
                self._limiter,
                self._name,
                make_stock,
                lock=self._account.lock,
                waiting=self._account.waiting[None],
                clock=self._clock,
                run=self._run,
            )
        return self.leasings[key]

    def _note(self, refusal: str | None) -> None:
        self._refused = (refusal, self._clock()) if refusal is not None else None

    def refusal(self, now: float) -> str | None:
        """What the holder has just said, if it refused this process for good."""
        refused = self._refused
        return refused[0] if refused is not None and now < refused[1] + _REFUSED_S else None


# ``FORK_LOCK`` guards it. A forked child has other accounts.
_LEASES: WeakKeyDictionary[AccountLimits, AccountLeases] = WeakKeyDictionary()


class LeasedLimits(SharedLimits):
    """Limits that hold in this process as :class:`SharedLimits` do, and are leased besides.

    So are the rates that servers' answers show, if the holder follows them. Processors of the account in
    this process share the leases.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        *,
        limiter: Callable[[], Limiter],
        name: str,
        run: Callable[[Leasing], Settable] | None = None,
        account: AccountLimits,
        pattern: str | None = None,
        under: SharedLimits | None = None,
    ) -> None:
        """``limiter`` connects to the holder, where the account has the ``name``.

        ``run`` is that of :class:`Leasing`, by default of one thread for the account. The rest is as in
        ``SharedLimits``.
        """
        super().__init__(limits, clock, account=account, pattern=pattern, under=under)
        if account not in _LEASES:
            _LEASES[account] = AccountLeases(account, limiter, name, clock, run)
        self._leases, self._clock = _LEASES[account], clock
        self.leasing: Leasing | None = None
        with self.lock:
            self._lease(under)

    def _queues(self, under: SharedLimits | None) -> list[BucketState]:
        return self._account.waiting[None]  # one thread leases for all

    def change(self, limits: Limits, under: SharedLimits | None, now: float) -> None:
        """Have ``limits`` from now on. The holder follows a higher one two minutes later."""
        super().change(limits, under, now)
        self._lease(under)

    def _lease(self, under: SharedLimits | None) -> None:
        """Lease what the quotas permit. Caller holds ``lock``."""
        limited = [quota for quota in self.quotas if quota.limit < math.inf]
        terms = tuple(self._terms(quota, under) for quota in limited)
        self.leasing = self._leases.of(terms, partial(Stock, terms, limited)) if terms else None
        self.charged = [*self.quotas, *(self.leasing.stock.quotas if self.leasing else ())]

    def _terms(self, quota: ConfiguredQuota, under: SharedLimits | None) -> Terms:
        is_own = under is None or quota is self._own.get(quota.name)
        return Terms(
            key=f"{_named(self._pattern) if is_own else '*'}:{quota.name}",
            limit=quota.limit,
            burst_s=(self if is_own or under is None else under).limits.burst_seconds,
        )

    def check(self, limiter: Callable[[], Limiter]) -> None:
        """Raise :class:`LimiterError` if the holder can't be reached by what ``limiter`` makes."""
        if self.leasing is not None:
            self.leasing.check(limiter())

    def adopt(self, url: str, model: str, state: BucketState) -> None:
        """Have ``state`` pause when another process is told to, for the same URL and model.

        If the holder follows servers, the rates of this one are leased from now on.
        """
        name = _digest(url, model)
        if self.leasing is not None:
            self.leasing.states.setdefault(name, WeakSet()).add(state)
        if self._leases.follows_servers and url:
            begin = partial(self._lease_rates, name, state)
            is_known = name in self._leases.leasings
            rates = RemoteRates(self.limits, self._clock(), begin, is_known=is_known)
            state.server.follow(rates)

    def _lease_rates(self, name: str, state: BucketState, now: float) -> RateStock:
        """Have the requests of ``state`` take from leases under the rates of its server."""
        leasing = self._leases.of(name, partial(RateStock, name, self.limits, now))
        leasing.states.setdefault(name, WeakSet()).add(state)
        stock = leasing.stock
        assert isinstance(stock, RateStock)
        state.configured = [*state.configured, *stock.quotas]
        return stock

    def admit(self, now: float) -> list[Reservation]:
        """Admit all that may be sent; the callers of what must be leased are woken with it.

        Raises :class:`RunStoppedError` if the holder has just refused this process for good.
        """
        if (refusal := self._leases.refusal(now)) is not None:
            raise RunStoppedError(refusal, StopCause.SETUP)
        woken = super().admit(now)
        for leasing in self._leases.leasings.values():
            stock = leasing.stock
            if stock.is_short and not stock.is_asking:
                stock.is_asking = True
                woken.append(stock.caller)
        return woken

    def in_force(self) -> Sequence[float]:
        """The limit that holds for each of ``quotas``: the lowest that any process has named."""
        if self.leasing is None:
            return super().in_force()
        leased = dict(zip(self.leasing.stock.counted, self.leasing.stock.limits, strict=True))
        return [min(quota.limit, leased.get(quota, math.inf)) for quota in self.quotas]

    def tell_pause(self, url: str, model: str, seconds: float, now: float) -> Sequence[Reservation]:
        """Tell the other processes that a server wants nothing to be sent for so many seconds."""
        name = _digest(url, model)
        leasings = (self._leases.leasings.get(name), self.leasing)
        known = [leasing.stock for leasing in leasings if leasing is not None]
        if seconds > 0 and known:
            known[0].pauses[name] = now + seconds
        return [stock.caller for stock in known if stock.has_news]


class _Watched:
    """A limiter whose lasting errors are noted for the runs of its account. For the leasing thread."""

    follows_servers = False  # nobody asks

    def __init__(self, limiter: Limiter, note: Callable[[str | None], None]) -> None:
        self._limiter, self._note = limiter, note

    def lease(self, account: str, ask: Ask) -> Lease:
        """What the limiter answers."""
        try:
            lease = self._limiter.lease(account, ask)
        except LimiterError as error:
            if error.is_lasting:
                self._note(str(error))
            raise
        self._note(None)
        return lease

    def close(self) -> None:
        """Close its connection."""
        self._limiter.close()


def _named(pattern: str | None) -> str:
    return "*" if pattern is None else f"={pattern}"


def _digest(url: str, model: str) -> str:
    """A name of a bucket that says nothing to others who read it."""
    return hashlib.blake2b(f"{url}\0{model}".encode(), digest_size=12).hexdigest()
