"""What held a run back, and for how long: seconds by cause, of the whole run and of each bucket."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

_Wait = tuple[float, str, Sequence[tuple[Hashable, str]]]  # since when, for what


class Ledger:
    """Adds up waiting times. Any thread may call it.

    The causes are what a bucket waits for (``requests``, ``tokens``, ``input_tokens``,
    ``output_tokens``, ``in flight``, ``pause``) and what a run does: ``max_workers`` (as many requests
    are in flight as may be), ``disk`` (records wait to be written), ``consumer`` (outcomes wait to be
    taken), ``input`` (nothing was there to send), ``token counting``, ``look-ahead`` (too much waits
    for other buckets to read on), ``answers`` (all is sent).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards every field below
        self._wait: _Wait | None = None  # that is under way
        self._overall: defaultdict[str, float] = defaultdict(float)
        self._by_bucket: defaultdict[Hashable, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )

    def begin(self, now: float, cause: str, buckets: Sequence[tuple[Hashable, str]] = ()) -> None:
        """The run waits for ``cause`` from now on, and each bucket for its own."""
        with self._lock:
            self._add(now)
            self._wait = (now, cause, buckets)

    def end(self, now: float) -> None:
        """The run waits for nothing any more; again does nothing."""
        with self._lock:
            self._add(now)
            self._wait = None

    def _add(self, now: float) -> None:
        if self._wait is None:
            return
        began, cause, buckets = self._wait
        seconds = max(now - began, 0.0)
        self._overall[cause] += seconds
        for bucket, own_cause in buckets:
            self._by_bucket[bucket][own_cause] += seconds

    def overall(self, now: float | None = None) -> Mapping[str, float]:
        """The seconds of the whole run so far, the longest first; with ``now`` up to that moment."""
        with self._lock:
            seconds = dict(self._overall)
            if now is not None and self._wait is not None:
                began, cause, _ = self._wait
                seconds[cause] = seconds.get(cause, 0.0) + max(now - began, 0.0)
            return _sorted(seconds)

    def of_bucket(self, bucket: Hashable) -> Mapping[str, float]:
        """The seconds of one bucket so far, the longest first."""
        with self._lock:
            return _sorted(self._by_bucket[bucket]) if bucket in self._by_bucket else {}


def _sorted(seconds: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
