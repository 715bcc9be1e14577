"""For how long a run waited, and for what: seconds by cause, of the whole run and of each bucket."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from parallel_processor.models import WaitCause
from parallel_processor.runtime.locks import InterruptSafeLock

_Causes = Sequence[tuple[Hashable, WaitCause]]  # what each bucket waits for
_Wait = tuple[float, WaitCause, _Causes]  # since when, and for what


class WaitTimes:
    """Adds up waiting times by :class:`WaitCause`. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = InterruptSafeLock()  # guards every field below
        self._wait: _Wait | None = None  # the wait that is under way
        self._overall: defaultdict[WaitCause, float] = defaultdict(float)
        self._by_bucket: dict[Hashable, defaultdict[WaitCause, float]] = {}

    def begin(self, now: float, cause: WaitCause, buckets: _Causes = ()) -> None:
        """The run waits for ``cause`` from now on, and each bucket for its own cause."""
        with self._lock:
            self._add(now)
            self._wait = (now, cause, buckets)

    def end(self, now: float) -> None:
        """The run no longer waits. A second call does nothing."""
        with self._lock:
            self._add(now)
            self._wait = None

    def _add(self, now: float) -> None:
        """Add the wait that is under way. Caller holds ``_lock``."""
        if self._wait is None:
            return
        began, cause, buckets = self._wait
        seconds = max(now - began, 0.0)
        self._overall[cause] += seconds
        for bucket, own_cause in buckets:
            self._by_bucket.setdefault(bucket, defaultdict(float))[own_cause] += seconds

    def overall(self, now: float | None = None) -> Mapping[WaitCause, float]:
        """The seconds of the whole run, the longest first. With ``now``, the current wait counts."""
        with self._lock:
            seconds = dict(self._overall)
            if now is not None and self._wait is not None:
                began, cause, _ = self._wait
                seconds[cause] = seconds.get(cause, 0.0) + max(now - began, 0.0)
            return _sorted(seconds)

    def of_bucket(self, bucket: Hashable) -> Mapping[WaitCause, float]:
        """The seconds of one bucket, the longest first."""
        with self._lock:
            return _sorted(self._by_bucket.get(bucket, {}))

    def by_bucket(self) -> Mapping[Hashable, Mapping[WaitCause, float]]:
        """The seconds of each bucket that a request has waited for."""
        with self._lock:
            return {bucket: dict(seconds) for bucket, seconds in self._by_bucket.items()}


def _sorted(seconds: Mapping[WaitCause, float]) -> dict[WaitCause, float]:
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
