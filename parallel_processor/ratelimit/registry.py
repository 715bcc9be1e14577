"""The token buckets of one processor: one for each model and endpoint, under the limits meant for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from parallel_processor.models import WaitCause
from parallel_processor.options import Options
from parallel_processor.ratelimit.quota import MINUTE_S
from parallel_processor.ratelimit.reports import BucketReport, Usage
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.token_bucket import TokenBucket

_MAX_BUCKETS = 256  # a file may name a new model in each line


class TokenBuckets:
    """The token buckets of one processor. Any thread may call it.

    Beyond 256 buckets, all further models under the same limits share one bucket.
    """

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()  # guards both fields below
        self._buckets: dict[tuple[str, str], TokenBucket] = {}  # by URL and model
        self._shared: dict[SharedLimits, TokenBucket] = {}  # for further models
        self._default = SharedLimits(options.limits, clock)
        self._patterns = [
            (pattern, SharedLimits(limits, clock))
            for pattern, limits in options.limits_by_model.items()
        ]
        self._opened_at = clock()

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
            url=url,
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
        """What all buckets together admitted in the last 60 seconds, and what they may admit."""
        admitted: dict[str, float] = {"requests": 0.0, "tokens": 0.0}
        limits = dict.fromkeys(admitted, 0.0)
        buckets = self._all()
        for shared_limits in {bucket.shared_limits for bucket in buckets} or {self._default}:
            with shared_limits.lock:
                used, configured = shared_limits.levels(self._clock())
            own = [bucket for bucket in buckets if bucket.shared_limits is shared_limits]
            for name in admitted:
                found = sum(bucket.server.found_limit(name) for bucket in own) if own else math.inf
                admitted[name] += used[name]
                limits[name] += min(configured[name], found)
        now = self._clock()
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
