"""Equal warnings about many requests, told once with their number.

A burst of rejections has a warning for each request in flight. The first of equal ones is logged at once,
and from then on one every 10 seconds that says how many came meanwhile. The rest is told at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from parallel_processor.runtime.locks import InterruptSafeLock

_log = logging.getLogger("parallel_processor")
_INTERVAL_S = 10.0
_MOST = 100  # kinds of warnings; further ones are logged as they come


@dataclass(slots=True)
class _Warned:
    """A warning that was logged."""

    at_s: float
    text: str  # of the last one
    more: int = 0  # equal ones since


class RepeatedWarnings:
    """Logs the warnings of one run. Any thread may call it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = InterruptSafeLock()  # guards the field below
        self._warned: dict[str, _Warned] = {}

    def warn(self, reason: str, number: int, text: str) -> None:
        """Warn about request ``number``, unless a warning for the same ``reason`` was logged just now."""
        now = self._clock()
        with self._lock:
            warned = self._warned.get(reason)
            if warned is not None and now < warned.at_s + _INTERVAL_S:
                warned.more, warned.text = warned.more + 1, text
                return
            more = warned.more if warned is not None else 0
            if warned is not None or len(self._warned) < _MOST:
                self._warned[reason] = _Warned(now, text)
        like_it = f" (and {more:,} more like this)" if more else ""
        _log.warning("%s%s", text, like_it, extra={"request_number": number})

    def close(self) -> None:
        """Tell what was not told yet."""
        with self._lock:
            untold = [warned for warned in self._warned.values() if warned.more]
            self._warned.clear()
        for warned in untold:
            _log.warning("%s more like this: %s", f"{warned.more:,}", warned.text)
