"""The requests that a report names: those that took longest, and those that failed last."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Iterable

from parallel_processor.figures import RequestNote
from parallel_processor.outcome import Outcome

_SLOWEST = 20
_FAILURES = 100
_ERROR_CHARS = 300
_MODEL_CHARS = 100


class Notes:
    """Picks them out of all outcomes of a run. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._slowest: list[tuple[float, int, RequestNote]] = []  # a heap
        self._failures: deque[RequestNote] = deque(maxlen=_FAILURES)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Look at ``outcomes``, which are on record."""
        with self._lock:
            for outcome in outcomes:
                if not outcome.ok:
                    self._failures.append(_note(outcome))
                elif outcome.latency_s is not None and outcome.latency_s > self._least_s():
                    self._add_slow(outcome, outcome.latency_s)

    def _least_s(self) -> float:
        """What a latency has to be above. Caller holds ``_lock``."""
        return self._slowest[0][0] if len(self._slowest) >= _SLOWEST else -1.0

    def _add_slow(self, outcome: Outcome, latency_s: float) -> None:
        """Caller holds ``_lock``."""
        entry = (latency_s, -outcome.request.number, _note(outcome))
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, entry)
        else:
            heapq.heapreplace(self._slowest, entry)

    def slowest(self) -> tuple[RequestNote, ...]:
        """The answers that took longest, the longest first."""
        with self._lock:
            return tuple(note for _, _, note in sorted(self._slowest, key=_order, reverse=True))

    def failures(self) -> tuple[RequestNote, ...]:
        """The requests that failed last, the last first."""
        with self._lock:
            return tuple(reversed(self._failures))


def _order(entry: tuple[float, int, RequestNote]) -> tuple[float, int]:
    return entry[:2]


def _note(outcome: Outcome) -> RequestNote:
    request = outcome.request
    model = request.body.get("model") if isinstance(request.body, dict) else None
    return RequestNote(
        number=request.number,
        custom_id=request.custom_id,
        model=str(model)[:_MODEL_CHARS] if model is not None else "",
        attempts=outcome.attempts,
        latency_s=outcome.latency_s,
        error=(outcome.error or "")[:_ERROR_CHARS],
        kind=outcome.error_kind,
    )
