"""Which bucket a request belongs to: one for each model and endpoint, under the ceiling meant for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from parallel_processor.ceiling import Ceiling
from parallel_processor.figures import BucketReport, Usage
from parallel_processor.limiter import TokenBucket
from parallel_processor.models import Estimate, Request, WaitCause
from parallel_processor.options import Options
from parallel_processor.quota import MINUTE_S
from parallel_processor.retry import Tries

_MAX_BUCKETS = 256


@dataclass(slots=True, kw_only=True, eq=False)
class Waiting:
    """A request on its way: its bucket, what it may use once that is counted, its tries once one failed.

    Whoever has it may change it: the thread that counts its tokens or makes its attempt.
    """

    request: Request
    bucket: TokenBucket
    estimate: Estimate | None = None
    tries: Tries | None = None


class Buckets:
    """The buckets of one processor. Any thread may call it.

    A file may name a new model in each line: beyond 256 buckets, further models of one ceiling share
    a bucket.
    """

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()  # guards both fields below
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._shared: dict[Ceiling, TokenBucket] = {}  # of further models
        self._default = Ceiling(options.limits, clock)
        self._patterns = [
            (pattern, Ceiling(limits, clock)) for pattern, limits in options.limits_by_model.items()
        ]
        self._opened_at = clock()

    def bucket(self, url: str, model: str) -> TokenBucket:
        """The bucket of requests to ``url`` for ``model``."""
        key = (url, model)
        bucket = self._buckets.get(key)
        if bucket is not None:
            return bucket
        with self._lock:
            ceiling = self._ceiling(model)
            if key not in self._buckets and len(self._buckets) >= _MAX_BUCKETS:
                return self._shared.setdefault(ceiling, self._make(ceiling, "", ""))
            return self._buckets.setdefault(key, self._make(ceiling, url, model))

    def _make(self, ceiling: Ceiling, url: str, model: str) -> TokenBucket:
        return TokenBucket(
            ceiling.limits,
            clock=self._clock,
            ceiling=ceiling,
            most_in_flight=self._options.max_workers,
            url=url,
            model=model,
        )

    def _ceiling(self, model: str) -> Ceiling:
        for pattern, ceiling in self._patterns:
            if fnmatchcase(model, pattern):
                return ceiling
        return self._default

    def _all(self) -> list[TokenBucket]:
        with self._lock:
            return [*self._buckets.values(), *self._shared.values()]

    def usage(self) -> Usage:
        """What all buckets together admitted in the last 60 seconds, and what of how much."""
        admitted: dict[str, float] = {"requests": 0.0, "tokens": 0.0}
        limits = dict.fromkeys(admitted, 0.0)
        buckets = self._all()
        for ceiling in {bucket.ceiling for bucket in buckets} or {self._default}:
            with ceiling.lock:
                used, ceilings = ceiling.levels(self._clock())
            own = [bucket for bucket in buckets if bucket.ceiling is ceiling]
            for name in admitted:
                found = sum(bucket.server.found_limit(name) for bucket in own) if own else math.inf
                admitted[name] += used[name]
                limits[name] += min(ceilings[name], found)
        now = self._clock()
        span_s = min(MINUTE_S, now - self._opened_at + self._options.limits.burst_seconds)
        held_by = next((bucket.held_by for bucket in buckets if bucket.queue), "")
        return Usage(admitted=admitted, limits=limits, held_by=WaitCause(held_by), span_s=span_s)

    def reports(
        self, since_s: float, held_by: Callable[[TokenBucket], Mapping[WaitCause, float]]
    ) -> tuple[BucketReport, ...]:
        """What became of each limit; times are counted from ``since_s`` of the clock."""
        return tuple(
            replace(bucket.report(since_s), held_by=held_by(bucket)) for bucket in self._all()
        )
