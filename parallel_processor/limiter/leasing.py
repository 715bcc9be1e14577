"""The thread that fetches leases, and what it does while the holder of the buckets can't be reached.

::

    dispatcher, workers                      leasing thread                       holder (Redis, an actor)
    ───────────────────                      ──────────────                       ────────────────────────
    head of a queue finds the stock short
    └─ wake ──────────────────────────────>  Stock.ask (lock of the account)
                                             lease() ───────── no lock ─────────> one call
                                             Stock.receive (lock) <──────────────  granted, delay
    poll: the head waits for ``delay``  <─── wake the heads

**Owners.** The lock of the account guards the stock, as it guards the buckets. The connection is the thread's
alone. ``_lock`` guards only whether there is a thread.

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
from collections.abc import Callable, Iterator
from weakref import WeakSet

from parallel_processor.limiter.leases import Ask, Lease, Limiter, Terms
from parallel_processor.limiter.stock import Stock
from parallel_processor.ratelimit.quota import ConfiguredQuota
from parallel_processor.ratelimit.state import BucketState, Reservation
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_IDLE_S = 1.0  # after which the thread ends
_LEAST_RETRY_S, _MOST_RETRY_S = 0.05, 1.0
_SAME_PAUSE_S = 0.05  # a pause that ends later by less is the same


class Leasing:
    """Keeps the stock of some buckets. Any thread may call :meth:`set`.

    Attributes:
        stock: what is leased; the lock of the account guards it.
        states: the buckets of each name; the lock guards them, too.
    """

    def __init__(
        self,
        limiter: Limiter,
        account: str,
        terms: tuple[Terms, ...],
        counted: list[ConfiguredQuota],
        *,
        lock: threading.Lock,
        waiting: list[BucketState],
        clock: Callable[[], float],
    ) -> None:
        """Lease from ``limiter`` under the limits ``terms`` of ``account``, for the states in ``waiting``."""
        self.stock = Stock(terms, counted, self)
        self.states: dict[str, WeakSet[BucketState]] = {}
        self._limiter, self._account = limiter, account
        self._account_lock, self._waiting, self._clock = lock, waiting, clock
        self._event = WakeEvent()
        self._lock = threading.Lock()  # guards the field below
        self._thread: InterruptSafeThread | None = None
        self._away_since = math.inf
        self._told_limits: tuple[float, ...] = ()

    def set(self) -> None:
        """Have a lease fetched. The thread is started if there is none."""
        with self._lock:
            self._event.set()
            if self._thread is None:
                thread = InterruptSafeThread(self._run, "parallel-processor-limiter")
                thread.start()
                self._thread = thread

    def check(self) -> None:
        """Ask for nothing, so that a holder that can't be used is found; the connection is closed again.

        To be called before anything is sent. Raises :class:`LimiterError`.
        """
        with self._account_lock:
            ask = self.stock.check(self._clock())
        try:
            self._limiter.lease(self._account, ask)
        finally:
            self._limiter.close()

    # The thread.

    def _run(self) -> None:
        try:
            while self._event.wait(_IDLE_S) or not self._ends():
                self._event.clear()
                while self._fetch():
                    pass
        finally:
            self._limiter.close()

    def _ends(self) -> bool:
        """End the thread, unless it was woken just now."""
        try:
            self._call(lambda now: self.stock.ask((), now))
        except Exception as error:
            _log.debug("what is left of a lease is lost: %s", error)
        with self._lock:
            if self._event.is_set:
                return False
            self._thread = None
            return True

    def _fetch(self) -> bool:
        """Fetch a lease for the requests that wait; true if that must be done again."""
        try:
            is_done = self._call(lambda now: self.stock.ask(self._queued(), now))
            if self._away_since < math.inf:
                self._is_back()
            return not (is_done and self._confirm())
        except (
            Exception
        ) as error:  # a limiter of the caller's may raise anything; the heads go on waiting
            return self._wait_for_holder(error)

    def _call(self, make: Callable[[float], Ask | None]) -> bool:
        """Send what ``make`` returns, if anything; false if the holder wants to be asked again."""
        with self._account_lock:
            asked_at = self._clock()
            ask = make(asked_at)
            if ask is None:
                self.stock.is_asking = self.stock.is_short = False
                return True
        lease = self._limiter.lease(self._account, ask)
        with self._account_lock:
            is_done = self.stock.receive(ask, lease, asked_at, self._clock())
            self._follow_pauses(lease)
            if is_done:
                self.stock.is_short = False
                self.stock.is_asking = self.stock.confirm_at < math.inf
            heads = self._heads()
        self._tell_limits(lease)
        for head in heads:
            head.wake.set()
        return is_done

    def _queued(self) -> Iterator[tuple[float, float, float, float]]:
        """What the reservations cost that wait for the stock."""
        for state in self._own():
            for reservation in state.queue:
                yield reservation.costs

    def _own(self) -> Iterator[BucketState]:
        quotas = self.stock.quotas
        return (state for state in self._waiting if quotas[0] in state.configured)

    def _heads(self) -> list[Reservation]:
        return [state.queue[0] for state in self._waiting]

    def _confirm(self) -> bool:
        """Wait until a lease that begins late is due; false if the holder has forgotten it."""
        while True:
            with self._account_lock:
                now = self._clock()
                left_s = self.stock.confirm_at - now
                if left_s == math.inf or not any(True for _ in self._own()):
                    self.stock.is_asking = False
                    return True
            if left_s <= 0:
                break
            self._event.wait(min(left_s, _IDLE_S))
            self._event.clear()
        if not self._call(self.stock.check):
            return False
        with self._account_lock:
            self.stock.confirm()
            self.stock.is_asking = False
            heads = self._heads()
        for head in heads:
            head.wake.set()
        return True

    def _follow_pauses(self, lease: Lease) -> None:
        """Pause the buckets of which another process was told to."""
        now = self._clock()
        for name, seconds in lease.pauses:
            for state in self.states.get(name, ()):
                if now + seconds > state.server.paused_until + _SAME_PAUSE_S:
                    state.server.pause(seconds, now, None)

    def _tell_limits(self, lease: Lease) -> None:
        """Log that another process holds a lower limit, once for each."""
        if lease.limits == self._told_limits:
            return
        self._told_limits = lease.limits
        for quota, limit in zip(self.stock.quotas, lease.limits, strict=True):
            if limit < quota.terms.limit:
                text = "another process of the account has a limit of %g %s a minute, not %g: it holds for all"
                _log.warning(text, limit, quota.name, quota.terms.limit)

    # The holder is away.

    def _wait_for_holder(self, error: Exception) -> bool:
        """Wait a moment; false if no request waits any more."""
        now = self._clock()
        with self._account_lock:
            is_first, self.stock.is_away = not self.stock.is_away, True
            heads = self._heads()
            waits = any(True for _ in self._own())
            if not waits:
                self.stock.is_asking = self.stock.is_short = False
        if is_first:
            self._away_since = now
            _log.warning("%s; requests wait until it is back", error)
        for head in heads if is_first else ():
            head.wake.set()  # what they wait for has changed
        away_s = now - self._away_since
        self._event.wait(min(max(away_s / 4, _LEAST_RETRY_S), _MOST_RETRY_S))
        self._event.clear()
        return waits

    def _is_back(self) -> None:
        with self._account_lock:
            self.stock.is_away = False
        _log.info("the limiter is back after %.3g s", self._clock() - self._away_since)
        self._away_since = math.inf
