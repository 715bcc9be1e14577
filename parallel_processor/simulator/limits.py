"""The server's side of the rate limits, after what the providers' headers give away.

By default each limit is a bucket that holds a whole minute's worth and is refilled continuously, a
sixtieth of it a second; a request takes from all or from none. So a client that starts with a burst
may get twice the limit through in its first minute, as it may at the real API. Written without a
look at the client's own limiter: the one is there to test the other.

There is no thread: whenever a request comes, what has happened since the last one is worked out in
the order of time, so that it makes no difference when anybody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.simulator.account import Account
from parallel_processor.simulator.options import SimulatorOptions
from parallel_processor.simulator.quotas import Charge, QuotaLevel, Refusal

_SHARED = ""


class Verdict(NamedTuple):
    """What the limits say to one request, when, and their levels after it.

    `at_s` is in seconds since the first request.
    """

    refusal: Refusal | None
    levels: tuple[QuotaLevel, ...]
    at_s: float


class RateLimits:
    """The limits of all models; each has its own if `limits_by_model` names any, else all share.

    Safe to call from any thread. It remembers every model: bounding them is the caller's. Time 0 is
    the first call of `admit`, `levels` or `start_s`.
    """

    def __init__(
        self, options: SimulatorOptions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._clock = clock
        self._apart = bool(options.limits_by_model)
        self._lock = InterruptSafeLock()  # guards all below
        self._started_s: float | None = None
        self._accounts: dict[str, Account] = {}

    def admit(self, model: str, *, read: int, written: int) -> Verdict:
        """Charge one request its tokens, or refuse it and charge nothing.

        A request above the whole token limit is refused for good under `reject_oversize`; otherwise
        it waits for a full bucket and leaves it in debt.
        """
        charge = Charge(1, read, written)
        with self._lock:
            now_s = self._now_s()
            account = self._account(model, now_s)
            refusal = account.refusal(charge)
            if refusal is None:
                account.charge(charge)
            return Verdict(refusal, account.levels(), now_s)

    def settle(self, model: str, *, written: int) -> Verdict:
        """Charge the tokens of an answer once they are known, into debt if need be."""
        with self._lock:
            now_s = self._now_s()
            account = self._account(model, now_s)
            account.charge(Charge(0, 0, written))
            return Verdict(None, account.levels(), now_s)

    def levels(self) -> tuple[QuotaLevel, ...]:
        """Return the levels now, charging nothing; none where each model has its own."""
        with self._lock:
            now_s = self._now_s()
            return () if self._apart else self._account(_SHARED, now_s).levels()

    def start_s(self) -> float:
        """Return the seconds since the first request, and begin to count if this is it."""
        with self._lock:
            return self._now_s()

    def elapsed_s(self) -> float:
        """Return the seconds since the first request, 0 before it."""
        started_s = self._started_s
        return 0.0 if started_s is None else self._clock() - started_s

    def rival(self) -> tuple[int, int]:
        """Return how many of the rival's requests were admitted and refused until now."""
        with self._lock:
            for account in self._accounts.values():
                account.advance(self._now_s())
            accounts = self._accounts.values()
            admitted = sum(account.rival_admitted for account in accounts)
            return admitted, sum(account.rival_refused for account in accounts)

    def _now_s(self) -> float:
        """Return the seconds since the first request; caller holds `_lock`."""
        now_s = self._clock()
        if self._started_s is None:
            self._started_s = now_s
        return now_s - self._started_s

    def _account(self, model: str, now_s: float) -> Account:
        """Return the limits of a model as they are now; caller holds `_lock`."""
        name = model if self._apart else _SHARED
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(self._options, name)
        account.advance(now_s)
        return account
