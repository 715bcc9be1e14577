"""The token buckets of one processor: one for each model, endpoint and key, under the limits meant for it.

What a user types holds for one account: one host, with one key. So each replica and each key has the typed
limits for itself. With the setting ``account``, all of them are one account.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from parallel_processor.credentials.urls import host_of
from parallel_processor.models import Upstream, WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.accounts import Accounts
from parallel_processor.ratelimit.quota import MINUTE_S
from parallel_processor.ratelimit.reports import BucketReport, Usage
from parallel_processor.ratelimit.shared import SharedLimits, wake
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.locks import InterruptSafeLock

_MAX_BUCKETS = 256  # a file may name a new model in each line
_KINDS: tuple[str, ...] = ("requests", "tokens")
MakeLimits = Callable[..., SharedLimits]
"""Takes the arguments of ``SharedLimits``."""


def upstreams_of(options: Options) -> tuple[Upstream, ...]:
    """Where requests may be sent: each URL with each of the keys for its host."""
    urls, keyring = (options.request_url, *options.replica_urls), options.keyring
    return tuple(Upstream(url, key) for url in urls for key in range(len(keyring.keys(url)) or 1))


def _options_of(options: Options, upstream: Upstream) -> Options:
    """``options`` of a processor that has ``upstream`` alone."""
    keys = options.keyring.keys(upstream.url)
    key = keys[upstream.key] if keys else None
    return replace(options, request_url=upstream.url, replica_urls=(), api_key=key, api_keys={})


class _AccountQuotas:
    """The configured limits of one account: those of each pattern, and those of all other models."""

    def __init__(
        self,
        options: Options,
        clock: Callable[[], float],
        accounts: Accounts,
        make_limits: Callable[[Options], MakeLimits],
    ) -> None:
        """Take them from ``accounts``. Caller holds ``FORK_LOCK``."""
        self._make, self._clock = make_limits(options), clock
        self._account = account = accounts.of(options, clock)
        self.opened_at = account.opened_at
        self.default = self._make(options.limits, clock, account=account)
        self.patterns = [
            (pattern, self._of_pattern(pattern, limits))
            for pattern, limits in options.limits_by_model.items()
        ]

    def _of_pattern(self, pattern: str, limits: Limits) -> SharedLimits:
        """The limits of ``pattern``, under those that the user set for all models, if there are any."""
        return self._make(
            limits, self._clock, account=self._account, pattern=pattern, under=self.default
        )

    def change(self, options: Options, buckets: list[TokenBucket]) -> list[Reservation]:
        """Have the limits of ``options``, also for ``buckets``, which are its own; what must be woken."""
        limits, by_model, before = options.limits, options.limits_by_model, dict(self.patterns)
        new = {p: self._of_pattern(p, each) for p, each in by_model.items() if p not in before}
        with self._account.lock:
            now = self._clock()
            self.default.change(limits, None, now)
            self.patterns = [(pattern, (new | before)[pattern]) for pattern in by_model]
            for pattern, shared_limits in self.patterns:  # new ones, too: the ceilings have changed
                shared_limits.change(by_model[pattern], self.default, now)
            moves = [(bucket, bucket.shared_limits, self._next_of(bucket)) for bucket in buckets]
            for made in new.values():
                made.inherit({last for _, last, following in moves if following is made}, now)
            for bucket, _, following in moves:
                bucket.follow(following)
            return [first for shared_limits in self.all for first in shared_limits.firsts()]

    def _next_of(self, bucket: TokenBucket) -> SharedLimits:
        """The limits of ``bucket`` from now on. One for several models stays where it is if it can."""
        if not bucket.model and bucket.shared_limits in self.all:
            return bucket.shared_limits
        return self.of_model(bucket.model, bucket.upstream.tier)

    def of_model(self, model: str, tier: str = "") -> SharedLimits:
        """Those of the first pattern that is for ``model``, or for it in this ``tier``: ``gpt*@flex``."""
        for pattern, shared_limits in self.patterns:
            if fnmatchcase(model, pattern) or (tier and fnmatchcase(f"{model}@{tier}", pattern)):
                return shared_limits
        return self.default

    @property
    def all(self) -> list[SharedLimits]:
        """Those of all models, then those of the patterns."""
        return [self.default, *(limits for _, limits in self.patterns)]

    def usage(
        self, buckets: list[TokenBucket], now: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What was admitted in the last 60 seconds, and what may be, by kind; ``buckets`` are all.

        What is set aside counts for what it admitted alone.
        """
        admitted, limits = dict.fromkeys(_KINDS, 0.0), dict.fromkeys(_KINDS, 0.0)
        own = [bucket for bucket in buckets if bucket.shared_limits in self.all]
        for shared_limits in {bucket.shared_limits for bucket in own} or {self.default}:
            with shared_limits.lock:
                used, configured = shared_limits.levels(now)
            under = [bucket for bucket in own if bucket.shared_limits is shared_limits]
            in_use = [bucket for bucket in under if not bucket.is_set_aside]
            for name in _KINDS:
                admitted[name] += used[name]
                if in_use or not under:
                    found = [each.server.rates.found_limit(name) for each in in_use] or [math.inf]
                    limits[name] += min(configured[name], sum(found))
        with self.default.lock:
            total, _ = self.default.levels(now)
        for ceiling in self.default.ceilings if self.patterns else ():
            if ceiling.name in admitted:  # it counts what all buckets together take
                admitted[ceiling.name] = total[ceiling.name]
                limits[ceiling.name] = min(limits[ceiling.name], ceiling.limit)
        return admitted, limits


def _plain(options: Options) -> MakeLimits:
    return SharedLimits


PLAIN = Upstream()
"""A request as it is."""


class TokenBuckets:
    """The token buckets of one processor. Any thread may call it.

    Beyond 256 buckets, or two for each upstream if that is more, all further models of an upstream under
    the same limits share one bucket. Beyond as many of those, further URLs of the requests share one, too.
    ``clock`` is theirs.
    """

    def __init__(
        self,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        accounts: Accounts | None = None,
        make_limits: Callable[[Options], MakeLimits] = _plain,
    ) -> None:
        """Make buckets that share the configured limits with others of their account in ``accounts``.

        Without ``accounts``, nothing is shared. ``make_limits`` is called with the options of each account,
        and returns what takes the arguments of ``SharedLimits``.
        """
        accounts = accounts or Accounts(clock)
        self._options, self.clock = options, clock
        self._lock = InterruptSafeLock()  # guards the next two fields
        # By URL, model and upstream, whose own URL is not looked at.
        self._buckets: dict[tuple[str, str, Upstream], TokenBucket] = {}
        self._shared: dict[tuple[SharedLimits, Upstream], TokenBucket] = {}  # for further models
        self._quotas: dict[tuple[str, int], _AccountQuotas] = {}
        upstreams = upstreams_of(options)
        self._most = max(_MAX_BUCKETS, 2 * len(upstreams))
        with FORK_LOCK:  # no other thread takes quotas meanwhile, and none is forgotten
            accounts.forget_unused()
            for upstream in upstreams:
                if (owner := self._owner(upstream)) not in self._quotas:
                    own = _options_of(options, upstream)
                    self._quotas[owner] = _AccountQuotas(own, clock, accounts, make_limits)
        self._first = next(iter(self._quotas.values()))

    def _owner(self, upstream: Upstream) -> tuple[str, int]:
        """What tells the account of ``upstream`` from those of others."""
        is_one = self._options.account is not None
        return ("", 0) if is_one else (host_of(upstream.url), upstream.key)

    def change_limits(self, options: Options) -> None:
        """Have the limits of ``options`` from now on, which differ in nothing else."""
        woken: list[Reservation] = []
        with self._lock:
            self._options = options
            buckets = [*self._buckets.values(), *self._shared.values()]
            for quotas in self._quotas.values():
                own = [each for each in buckets if self._quotas_of(each.upstream) is quotas]
                woken += quotas.change(options, own)
            self._shared = {
                (each.shared_limits, at): each for (_, at), each in self._shared.items()
            }
        wake(woken)

    def _quotas_of(self, upstream: Upstream) -> _AccountQuotas:
        return self._quotas.get(self._owner(upstream), self._first)

    def limits(self) -> list[SharedLimits]:
        """The configured limits of each account: those of each pattern, and those of all other models."""
        return [limits for quotas in self._quotas.values() for limits in quotas.all]

    def bucket(self, url: str, model: str, like: Upstream = PLAIN) -> TokenBucket:
        """The bucket of requests to ``url`` for ``model``, with the key, tier and model of ``like``."""
        place = (url, model, like)
        bucket = self._buckets.get(place)
        if bucket is not None:
            return bucket
        upstream = like._replace(url=url)
        with self._lock:
            model = like.model or model
            shared_limits = self._quotas_of(upstream).of_model(model, like.tier)
            if place not in self._buckets and len(self._buckets) >= self._most:
                return self._overflow(shared_limits, upstream, like)
            return self._buckets.setdefault(place, self._make(shared_limits, upstream, model))

    def _overflow(
        self, shared_limits: SharedLimits, upstream: Upstream, like: Upstream
    ) -> TokenBucket:
        """The bucket of all further models, one for each upstream. Caller holds ``_lock``."""
        if (shared_limits, upstream) not in self._shared and len(self._shared) >= self._most:
            upstream = like._replace(key=0)  # the URL of a fallback stays
        made = self._make(shared_limits, upstream, upstream.model)
        return self._shared.setdefault((shared_limits, upstream), made)

    def _make(self, shared_limits: SharedLimits, upstream: Upstream, model: str) -> TokenBucket:
        return TokenBucket(
            shared_limits.limits,
            clock=self.clock,
            shared_limits=shared_limits,
            most_in_flight=self._options.max_workers,
            longest_s=self._options.request_timeout_s,
            upstream=upstream,
            model=model,
        )

    def _all(self) -> list[TokenBucket]:
        with self._lock:
            return [*self._buckets.values(), *self._shared.values()]

    def usage(self) -> Usage:
        """What the buckets admitted in the last 60 seconds, and what they may admit.

        What other processors admitted under the same limits is included.
        """
        admitted, limits = dict.fromkeys(_KINDS, 0.0), dict.fromkeys(_KINDS, 0.0)
        buckets, now = self._all(), self.clock()
        for quotas in self._quotas.values():
            used, allowed = quotas.usage(buckets, now)
            for name in _KINDS:
                admitted[name] += used[name]
                limits[name] += allowed[name]
        span_s = min(MINUTE_S, now - self._first.opened_at + self._options.limits.burst_seconds)
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
