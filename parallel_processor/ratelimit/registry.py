"""The token buckets of one processor: one for each model and endpoint, under the limits meant for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from parallel_processor.models import Upstream, WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.accounts import AccountLimits, Accounts
from parallel_processor.ratelimit.quota import MINUTE_S
from parallel_processor.ratelimit.reports import BucketReport, Usage
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.locks import InterruptSafeLock

_MAX_BUCKETS = 256  # a file may name a new model in each line


class TokenBuckets:
    """The token buckets of one processor. Any thread may call it.

    Beyond 256 buckets, all further models under the same limits share one bucket.
    """

    def __init__(
        self,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        accounts: Accounts | None = None,
        make_limits: Callable[..., SharedLimits] = SharedLimits,
    ) -> None:
        """Make buckets that share the configured limits with others of their account in ``accounts``.

        Without ``accounts``, nothing is shared. ``make_limits`` takes the arguments of ``SharedLimits``.
        """
        accounts = accounts or Accounts(clock)
        self._make_limits = make_limits
        self._options = options
        self._clock = clock
        self._lock = InterruptSafeLock()  # guards both fields below
        self._buckets: dict[tuple[str, str], TokenBucket] = {}  # by URL and model
        self._shared: dict[SharedLimits, TokenBucket] = {}  # for further models
        with FORK_LOCK:  # no other thread takes quotas meanwhile, and none is forgotten
            accounts.forget_unused()
            account = accounts.of(options, options.limits, clock)
            self._default = make_limits(options.limits, clock, account=account)
            self._patterns = [
                (pattern, self._of_pattern(accounts, account, pattern, limits))
                for pattern, limits in options.limits_by_model.items()
            ]
        self._opened_at = account.opened_at

    def _of_pattern(
        self, accounts: Accounts, account: AccountLimits, pattern: str, limits: Limits
    ) -> SharedLimits:
        """The limits of ``pattern``, under those that the user set for all models, if there are any."""
        under = self._default if self._default.ceilings else None
        if under is None:
            account = accounts.of(self._options, limits, self._clock, pattern)
        return self._make_limits(limits, self._clock, account=account, pattern=pattern, under=under)

    def limits(self) -> list[SharedLimits]:
        """The configured limits: those of each pattern, and those of all other models."""
        return [self._default, *(limits for _, limits in self._patterns)]

    def bucket(self, url: str, model: str) -> TokenBucket:
        """The bucket of requests to ``url`` for ``model``."""
        key = (url, model)
        bucket = self._buckets.get(key)
        if bucket is not None:
            return bucket
        with self._lock:
            shared_limits = self._shared_limits(model)
            if key not in self._buckets and len(self._buckets) >= _MAX_BUCKETS:
                return self._shared.setdefault(shared_limits, self._make(shared_limits, "", ""))
            return self._buckets.setdefault(key, self._make(shared_limits, url, model))

    def _make(self, shared_limits: SharedLimits, url: str, model: str) -> TokenBucket:
        return TokenBucket(
            shared_limits.limits,
            clock=self._clock,
            shared_limits=shared_limits,
            most_in_flight=self._options.max_workers,
            longest_s=self._options.request_timeout_s,
            upstream=Upstream(url),
            model=model,
        )

    def _shared_limits(self, model: str) -> SharedLimits:
        for pattern, shared_limits in self._patterns:
            if fnmatchcase(model, pattern):
                return shared_limits
        return self._default

    def _all(self) -> list[TokenBucket]:
        with self._lock:
            return [*self._buckets.values(), *self._shared.values()]

    def usage(self) -> Usage:
        """What the buckets admitted in the last 60 seconds, and what they may admit.

        What other processors admitted under the same limits is included.
        """
        admitted: dict[str, float] = {"requests": 0.0, "tokens": 0.0}
        limits = dict.fromkeys(admitted, 0.0)
        buckets, now = self._all(), self._clock()
        for shared_limits in {bucket.shared_limits for bucket in buckets} or {self._default}:
            with shared_limits.lock:
                used, configured = shared_limits.levels(now)
            own = [bucket for bucket in buckets if bucket.shared_limits is shared_limits]
            for name in admitted:
                found = (
                    sum(bucket.server.rates.found_limit(name) for bucket in own)
                    if own
                    else math.inf
                )
                admitted[name] += used[name]
                limits[name] += min(configured[name], found)
        with self._default.lock:
            total, _ = self._default.levels(now)
        for ceiling in self._default.ceilings if self._patterns else ():
            if ceiling.name in admitted:  # it counts what all buckets together take
                admitted[ceiling.name] = total[ceiling.name]
                limits[ceiling.name] = min(limits[ceiling.name], ceiling.limit)
        span_s = min(MINUTE_S, now - self._opened_at + self._options.limits.burst_seconds)
        waiting_for = next(
            (bucket.wait_cause for bucket in buckets if bucket.queue), WaitCause.NOTHING
        )
        return Usage(admitted=admitted, limits=limits, waiting_for=waiting_for, span_s=span_s)

    def reports(
        self, since_s: float, waited_s: Callable[[TokenBucket], Mapping[WaitCause, float]]
    ) -> tuple[BucketReport, ...]:
        """How the limits of each bucket turned out; times count from ``since_s`` of the clock.

        ``waited_s`` returns the seconds that the requests of a bucket waited, by cause.
        """
        return tuple(
            replace(bucket.report(since_s), waited_s=waited_s(bucket)) for bucket in self._all()
        )
