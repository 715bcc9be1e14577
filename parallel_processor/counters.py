"""What a run has done so far, counted as it happens."""

from __future__ import annotations

import dataclasses
import operator
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_processor.figures import Summary
from parallel_processor.latencies import BINS, bin_of
from parallel_processor.outcome import Outcome

_MOST_KINDS = 50  # of errors, whose names servers choose
_OTHERS = "other errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counters at one moment, consistent with each other. Names as in ``Summary``.

    ``errors`` are the attempts that failed, by kind; ``latencies`` the answers by bin (see
    ``latencies.py``).
    """

    read: int = 0
    started: int = 0
    answered: int = 0
    failed: int = 0
    unanswered: int = 0
    deduplicated: int = 0
    already_answered: int = 0
    already_failed: int = 0
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    pauses: int = 0
    used_tokens: int = 0
    reserved_tokens: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    latencies: tuple[int, ...] = ()

    @property
    def in_flight(self) -> int:
        """Requests that were started and have no outcome on record yet."""
        return self.started - self.answered - self.failed - self.unanswered

    def at_end(self) -> Counts:
        """The same of a run that is over: what has no outcome on record never will."""
        return dataclasses.replace(self, unanswered=self.unanswered + self.in_flight)

    def __add__(self, other: Counts) -> Counts:
        """The counts of two runs together."""
        sums: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in _NUMBERS
        }
        errors = dict(self.errors)
        for kind, number in other.errors.items():
            _count(errors, kind, number)
        pairs = (self.latencies or other.latencies, other.latencies or self.latencies)
        both = self.latencies and other.latencies
        latencies = tuple(map(operator.add, *pairs)) if both else pairs[0]
        return Counts(errors=errors, latencies=latencies, **sums)


_NUMBERS = [each.name for each in dataclasses.fields(Counts)[:-2]]


class Counters:
    """Counts for one run. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards every field below
        self._read = 0
        self._started = 0
        self._answered = 0
        self._failed = 0
        self._unanswered = 0
        self._deduplicated = 0
        self._already_answered = 0
        self._already_failed = 0
        self._attempts = 0
        self._retries = 0
        self._rate_limited = 0
        self._pauses = 0
        self._used_tokens = 0
        self._reserved_tokens = 0
        self._errors: dict[str, int] = {}
        self._errors_by_kind: dict[str, int] = {}
        self._latencies = [0] * BINS

    def skipped(self, *, failed: bool = False) -> None:
        """A request isn't sent, since the results file has its answer, or a failure that is kept."""
        with self._lock:
            self._already_failed += failed
            self._already_answered += not failed

    def read(self) -> None:
        """A request was read that is to be sent."""
        with self._lock:
            self._read += 1

    def started(self) -> None:
        """A request is in flight until its outcome is on record."""
        with self._lock:
            self._started += 1

    def sent(self, tokens: int, *, first: bool) -> None:
        """An attempt that reserved ``tokens`` goes out."""
        with self._lock:
            self._attempts += 1
            self._retries += not first
            self._reserved_tokens += tokens

    def erred(self, kind: str, *, used_tokens: int = 0) -> None:
        """An attempt failed; ``used_tokens`` were paid for all the same."""
        with self._lock:
            self._used_tokens += used_tokens
            _count(self._errors, kind)

    def refused(self) -> None:
        """A rate limit refused an attempt."""
        with self._lock:
            self._rate_limited += 1

    def paused(self) -> None:
        """All sending pauses."""
        with self._lock:
            self._pauses += 1

    def finished(self, outcomes: Iterable[Outcome], *, recorded: bool = True) -> None:
        """Outcomes are on record, or ``recorded`` is false and they never will be."""
        with self._lock:
            for outcome in outcomes:
                if outcome.unanswered or not recorded:
                    self._unanswered += 1
                    continue
                self._deduplicated += outcome.deduplicated
                if outcome.ok:
                    self._answered += 1
                    self._used_tokens += outcome.used_tokens or 0
                    if outcome.latency_s is not None:
                        self._latencies[bin_of(outcome.latency_s)] += 1
                else:
                    self._failed += 1
                    _count(self._errors_by_kind, outcome.error_kind)

    def counts(self) -> Counts:
        """Where the run stands."""
        with self._lock:
            return Counts(
                errors=dict(self._errors),
                latencies=tuple(self._latencies),
                **{name: getattr(self, f"_{name}") for name in _NUMBERS},
            )

    def summary(self, elapsed_s: float, stop_reason: str = "", **more: Any) -> Summary:
        """The run's summary, once it has ended; ``more`` is what others have to add."""
        counts = self.counts()
        with self._lock:
            by_kind = sorted(self._errors_by_kind.items(), key=lambda item: -item[1])
        return Summary(
            **{name: getattr(counts, name) for name in _IN_SUMMARY},
            elapsed_s=elapsed_s,
            errors_by_kind=dict(by_kind),
            stop_reason=stop_reason,
            **more,
        )


_IN_SUMMARY = [name for name in _NUMBERS if name not in ("read", "started")]


def _count(errors: dict[str, int], kind: str, number: int = 1) -> None:
    """So many more of ``kind``; what comes after many other kinds is counted with others."""
    if kind not in errors and len(errors) >= _MOST_KINDS:
        kind = _OTHERS
    errors[kind] = errors.get(kind, 0) + number
