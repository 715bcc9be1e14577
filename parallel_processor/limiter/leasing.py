"""The thread that fetches leases, and what it does while the holder of the buckets can't be reached.

::

    dispatcher, workers                      leasing thread                       holder (Redis, an actor)
    ───────────────────                      ──────────────                       ────────────────────────
    head of a queue finds the stock short
    └─ wake ──────────────────────────────>  Stock.ask (lock of the account)
                                             lease() ───────── no lock ─────────> one call
                                             Stock.receive (lock) <──────────────  granted, delay
    poll: the head waits for ``delay``  <─── wake the heads

**Owners.** The lock of the account guards the stock, as it guards the buckets. The connection is the
thread's alone, which makes the calls of all stocks of an account. The lock of :class:`LeasingThread` guards
only whether there is a thread, and what it works for.

**The end.** The thread ends a second after the last head waited for it: it gives back what is left of the
lease, closes the connection and is gone. It needs no stop: when a run ends, nothing waits any more. At the
interpreter's end it is a daemon; after a kill, nobody has to be told: the lease becomes void. In a forked
child, the account, the stock and the connection are made anew.

**The holder is away.** Nothing is admitted but what is leased already. The thread tries again, at most a
second later each time, while a head waits. The log says when it began and when it was over.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakSet

from parallel_processor.limiter.leases import Ask, Lease, Limiter
from parallel_processor.limiter.stock import Stock
from parallel_processor.ratelimit.state import BucketState, Reservation
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.runtime.stop import Settable, WakeEvent
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_IDLE_S = 1.0  # after which the thread ends
_LEAST_RETRY_S, _MOST_RETRY_S = 0.05, 1.0
_SAME_PAUSE_S = 0.05  # a pause that ends later by less is the same


class Leasing:
    """Keeps the stock of some buckets. One thread calls :meth:`step`.

    Attributes:
        stock: what is leased; the lock of the account guards it.
        states: the buckets of each name; the lock guards them, too.
    """

    def __init__(
        self,
        limiter: Limiter,
        account: str,
        make_stock: Callable[[Settable], Stock],
        *,
        lock: threading.Lock,
        waiting: Sequence[BucketState],
        clock: Callable[[], float],
        run: Callable[[Leasing], Settable],
    ) -> None:
        """Lease from ``limiter`` for the ``account``, and for the states in ``waiting`` that take from it.

        ``make_stock`` is given what is to be set when a step is due; ``run`` returns that.
        """
        self.stock = make_stock(run(self))
        self.states: dict[str, WeakSet[BucketState]] = {}
        self._limiter, self._account = limiter, account
        self._lock, self._waiting, self._clock = lock, waiting, clock
        self._away_since = math.inf
        self._told_limits: tuple[float, ...] = ()

    def check(self, limiter: Limiter) -> None:
        """Ask ``limiter`` for nothing, so that a holder that can't be used is found; closes it.

        To be called before anything is sent. Raises :class:`LimiterError`.
        """
        with self._lock:
            ask = self.stock.tell(self._clock())
        try:
            self._tell_limits(limiter.lease(self._account, ask))
        finally:
            limiter.close()

    def step(self) -> float:
        """Make the call that is due, if one is; the seconds until the next one may be, or infinite."""
        with self._lock:
            now, stock = self._clock(), self.stock
            heads_wait = any(True for _ in self._own())
            if not heads_wait:
                stock.is_asking = stock.is_short = False
            is_due = heads_wait and now >= stock.confirm_at
            if stock.is_asking and stock.confirm_at == math.inf:
                ask = stock.ask([each.costs for state in self._own() for each in state.queue], now)
            elif is_due or stock.has_news:
                ask = stock.tell(now)
            else:
                return min(stock.confirm_at - now, _IDLE_S) if heads_wait else math.inf
        try:
            lease = self._limiter.lease(self._account, ask)
        except Exception as error:  # a limiter of the caller's may raise anything
            return self._wait_for_holder(ask, error, now)
        if self._away_since < math.inf:
            _log.info("the limiter is back after %.3g s", self._clock() - self._away_since)
            self._away_since = math.inf
        self._receive(ask, lease, now, confirms=is_due)
        return 0.0

    def give_back(self) -> None:
        """Give back what is left of the lease."""
        try:
            with self._lock:
                now = self._clock()
                ask = self.stock.rest(now)
            if ask is not None:
                self._receive(ask, self._limiter.lease(self._account, ask), now, confirms=False)
        except Exception as error:
            _log.debug("what is left of a lease is lost: %s", error)

    def _receive(self, ask: Ask, lease: Lease, asked_at: float, *, confirms: bool) -> None:
        with self._lock:
            now, stock = self._clock(), self.stock
            stock.is_away = False
            if stock.receive(ask, lease, asked_at, now):
                if confirms:
                    stock.confirm()
                if confirms or any(ask.amounts):
                    stock.is_short = False
                    stock.is_asking = stock.confirm_at < math.inf
            self._follow_pauses(lease, now)
            heads = self._heads()
        self._tell_limits(lease)
        for head in heads:
            head.wake.set()

    def _wait_for_holder(self, ask: Ask, error: Exception, asked_at: float) -> float:
        """Note that the holder is away; the seconds until the next call."""
        with self._lock:
            self.stock.failed(ask)
            is_first, self.stock.is_away = self._away_since == math.inf, True
            heads = self._heads() if is_first else []
        if is_first:
            self._away_since = asked_at
            if not getattr(error, "is_lasting", False):  # else the run ends with it
                _log.warning("%s; requests wait until it is back", str(error).rstrip("."))
        for head in heads:
            head.wake.set()  # what they wait for has changed
        away_s = self._clock() - self._away_since
        return min(max(away_s / 4, _LEAST_RETRY_S), _MOST_RETRY_S)

    # Caller holds the lock.

    def _own(self) -> Iterator[BucketState]:
        """The states that wait, and take from the stock."""
        quota = self.stock.quotas[0]
        return (state for state in self._waiting if quota in state.configured)

    def _heads(self) -> list[Reservation]:
        return [state.queue[0] for state in self._waiting]

    def _follow_pauses(self, lease: Lease, now: float) -> None:
        """Pause the buckets of which another process was told to."""
        for name, seconds in lease.pauses:
            for state in self.states.get(name, ()):
                if now + seconds > state.server.paused_until + _SAME_PAUSE_S:
                    state.server.pause(seconds, now, None)

    # Without it.

    def _tell_limits(self, lease: Lease) -> None:
        """Log that another process holds a lower limit, once for each."""
        if lease.limits == self._told_limits:
            return
        self._told_limits = lease.limits
        for quota, limit in zip(self.stock.quotas, lease.limits, strict=True):
            if limit < quota.terms.limit:
                _log.warning(
                    "another process limits the account to %g %s a minute, or this one did in the last two "
                    "minutes: that holds here, not %g",
                    *(limit, quota.name, quota.terms.limit),
                )


class LeasingThread:
    """Calls :meth:`Leasing.step` of all leasings of an account that have one limiter.

    The thread lives while there is something to do. It alone uses the limiter.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._leasings: tuple[Leasing, ...] = ()
        self._event = WakeEvent()
        self._lock = InterruptSafeLock()  # guards the fields above and below
        self._thread: InterruptSafeThread | None = None

    def add(self, leasing: Leasing) -> Settable:
        """Make steps of ``leasing``, too; to be set when one is due."""
        with self._lock:
            self._leasings += (leasing,)
        return self

    def set(self) -> None:
        """Have a step made soon. Any thread may call it, without the lock of the account."""
        with self._lock:
            self._event.set()
            if self._thread is None:
                thread = InterruptSafeThread(self._run, "parallel-processor-limiter")
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        try:
            while True:
                self._event.clear()
                wait_s = min(leasing.step() for leasing in self._leasings)
                if wait_s <= 0 or self._event.wait(min(wait_s, _IDLE_S)) or wait_s < math.inf:
                    continue
                self._close()
                with self._lock:
                    if not self._event.is_set:
                        self._thread = None
                        return
        except BaseException:
            with self._lock:
                self._thread = None
            raise

    def _close(self) -> None:
        try:
            for leasing in self._leasings:
                leasing.give_back()
        finally:
            self._limiter.close()
