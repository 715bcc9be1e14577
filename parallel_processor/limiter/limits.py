"""The configured limits of buckets that lease them from a holder which other processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, WeakSet

from parallel_processor.exceptions import LimiterError, RunStoppedError, StopCause
from parallel_processor.limiter.leases import Ask, Lease, Limiter, Terms
from parallel_processor.limiter.leasing import Leasing, LeasingThread
from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import AccountLimits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import BucketState, Reservation
from parallel_processor.runtime.stop import Settable

# By account and limits. ``FORK_LOCK`` guards it. A forked child has other accounts.
_LEASINGS: WeakKeyDictionary[AccountLimits, dict[tuple[Terms, ...], Leasing]] = WeakKeyDictionary()
# By account: what the holder said when it refused this process for good, and when.
_REFUSALS: WeakKeyDictionary[AccountLimits, tuple[str, float]] = WeakKeyDictionary()
_REFUSED_S = 2.0  # for so long, that ends runs; meanwhile a thread asks again for those that wait


class LeasedLimits(SharedLimits):
    """Limits that hold in this process as :class:`SharedLimits` do, and are leased besides.

    Processors of the account in this process share the leases.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float],
        *,
        limiter: Callable[[], Limiter],
        name: str,
        run: Callable[[Leasing], Settable] = LeasingThread,
        account: AccountLimits,
        pattern: str | None = None,
        under: SharedLimits | None = None,
    ) -> None:
        """``limiter`` connects to the holder, where the account has the ``name``.

        ``run`` is that of :class:`Leasing`, the rest as in ``SharedLimits``.
        """
        super().__init__(limits, clock, account=account, pattern=pattern, under=under)
        own = len(self._own)
        terms = tuple(
            Terms(
                key=f"{_named(pattern) if index < own else '*'}:{quota.name}",
                limit=quota.limit,
                burst_s=(self if index < own or under is None else under).limits.burst_seconds,
            )
            for index, quota in enumerate(self.quotas)
        )
        self.leasing: Leasing | None = None
        if terms:
            known = _LEASINGS.setdefault(account, {})
            if terms not in known:
                known[terms] = Leasing(
                    _Watched(limiter(), account, clock),
                    name,
                    terms,
                    self.quotas,
                    lock=self.lock,
                    waiting=self.waiting,
                    clock=clock,
                    run=run,
                )
            self.leasing = known[terms]
            self.charged = [*self.quotas, *self.leasing.stock.quotas]
        self._account, self._leasings = account, _LEASINGS.setdefault(account, {})

    def adopt(self, url: str, model: str, state: BucketState) -> None:
        """Have ``state`` pause when another process is told to, for the same URL and model."""
        if self.leasing is not None:
            self.leasing.states.setdefault(_digest(url, model), WeakSet()).add(state)

    def admit(self, now: float) -> list[Reservation]:
        """Admit all that may be sent; the callers of what must be leased are woken with it.

        Raises :class:`RunStoppedError` if the holder has just refused this process for good.
        """
        refusal = _REFUSALS.get(self._account)
        if refusal is not None and now < refusal[1] + _REFUSED_S:
            raise RunStoppedError(refusal[0], StopCause.SETUP)
        woken = super().admit(now)
        for leasing in self._leasings.values():
            stock = leasing.stock
            if stock.is_short and not stock.is_asking:
                stock.is_asking = True
                woken.append(stock.caller)
        return woken

    def in_force(self) -> Sequence[float]:
        """The limit that holds for each of ``quotas``: the lowest that any process has named."""
        if self.leasing is None:
            return super().in_force()
        limits = zip(self.quotas, self.leasing.stock.limits, strict=True)
        return [min(quota.limit, limit) for quota, limit in limits]

    def tell_pause(self, url: str, model: str, seconds: float, now: float) -> Sequence[Reservation]:
        """Tell the other processes that a server wants nothing to be sent for so many seconds."""
        if self.leasing is None or seconds <= 0:
            return ()
        self.leasing.stock.pauses[_digest(url, model)] = now + seconds
        return (self.leasing.stock.caller,)


class _Watched:
    """A limiter whose lasting errors are noted for the runs of its account. For the leasing thread."""

    def __init__(
        self, limiter: Limiter, account: AccountLimits, clock: Callable[[], float]
    ) -> None:
        self._limiter, self._account, self._clock = limiter, account, clock

    def lease(self, account: str, ask: Ask) -> Lease:
        """What the limiter answers."""
        try:
            lease = self._limiter.lease(account, ask)
        except LimiterError as error:
            if error.is_lasting:
                _REFUSALS[self._account] = (str(error), self._clock())
            raise
        _REFUSALS.pop(self._account, None)
        return lease

    def close(self) -> None:
        """Close its connection."""
        self._limiter.close()


def _named(pattern: str | None) -> str:
    return "*" if pattern is None else f"={pattern}"


def _digest(url: str, model: str) -> str:
    """A name of a bucket that says nothing to others who read it."""
    return hashlib.blake2b(f"{url}\0{model}".encode(), digest_size=12).hexdigest()
