"""What a run has done so far, counted as it happens."""

from __future__ import annotations

import dataclasses
import operator
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_processor.models import Outcome
from parallel_processor.report.histogram import BINS, bin_of
from parallel_processor.report.summary import RunCounts, Summary, counters_of
from parallel_processor.runtime.locks import InterruptSafeLock

_MAX_KINDS = 50  # of errors: servers choose their names
_OTHERS = "other errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts(RunCounts):
    """The counters at one moment, consistent with each other."""

    read: int = 0  # requests that were read and are to be sent
    started: int = 0  # requests that were started; in flight until their outcome is on record
    already_answered: int = 0  # requests that the results file had an answer for
    already_failed: int = 0  # requests that the results file had a failure for, which was kept
    errors: Mapping[str, int] = field(default_factory=dict)  # the failed attempts by kind
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)  # the failed requests by kind
    latencies: tuple[int, ...] = ()  # the answers by latency, in the bins of histogram.py

    @property
    def in_flight(self) -> int:
        """Requests that were started and have no outcome on record yet."""
        return self.started - self.answered - self.failed - self.unanswered

    def total(self, fraction: float | None) -> int | None:
        """The number of all requests, from those in the part that was read; ``None`` if that is unknown."""
        seen = self.read + self.already_answered + self.already_failed
        return max(seen, round(seen / fraction)) if fraction and seen else None

    def left(self, fraction: float | None) -> int | None:
        """How many requests have no record yet; ``None`` if unknown."""
        if fraction == 1.0 and not self.read:
            return 0
        total = self.total(fraction)
        before = self.already_answered + self.already_failed
        return None if total is None else total - before - self.answered - self.failed

    def ended_and_left(self, fraction: float | None) -> tuple[int, int] | None:
        """How many requests have ended in this run, and how many are left; ``None`` if unknown."""
        left = self.left(fraction)
        return None if left is None else (self.answered + self.failed, left)

    def at_end(self) -> Counts:
        """The same for a run that is over: what has no outcome on record never will."""
        return dataclasses.replace(self, unanswered=self.unanswered + self.in_flight)

    def __add__(self, other: Counts) -> Counts:
        """The counts of two runs together."""
        sums: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in _NUMBERS
        }
        errors = _counted(self.errors, other.errors)
        by_kind = _counted(self.errors_by_kind, other.errors_by_kind)
        latencies = self.latencies or other.latencies
        if self.latencies and other.latencies:
            latencies = tuple(map(operator.add, self.latencies, other.latencies))
        return Counts(errors=errors, errors_by_kind=by_kind, latencies=latencies, **sums)


_NUMBERS = [each.name for each in dataclasses.fields(Counts)[:-3]]


class Counters:
    """Counts for one run. Any thread may call any method."""

    def __init__(self) -> None:
        self._yielded: deque[Outcome] = (
            deque()
        )  # what the reader has counted, and nobody added up yet
        self._lock = (
            InterruptSafeLock()
        )  # guards every field below, but for the numbers that the reader counts
        self._numbers = dict.fromkeys(_NUMBERS, 0)
        self._errors: dict[str, int] = {}
        self._errors_by_kind: dict[str, int] = {}
        self._latencies = [0] * BINS

    def skipped(self, *, failed: bool = False) -> None:
        """A request is not sent: the results file has its answer, or a failure that is kept.

        For the reader, as are :meth:`read` and :meth:`yielded`. They take no lock: an interrupt may come.
        """
        self._numbers["already_failed" if failed else "already_answered"] += 1

    def read(self) -> None:
        """A request was read that is to be sent."""
        self._numbers["read"] += 1

    def yielded(self, outcome: Outcome) -> None:
        """The program has taken an outcome, or it never will."""
        self._yielded.append(outcome)

    def started(self, count: int = 1) -> None:
        """So many requests are in flight until their outcomes are on record."""
        with self._lock:
            self._numbers["started"] += count

    def sent(self, tokens: int, *, first: bool) -> None:
        """An attempt that reserved ``tokens`` is sent. With the ``first`` one, the request is started."""
        with self._lock:
            numbers = self._numbers
            numbers["attempts"] += 1
            numbers["started" if first else "retries"] += 1
            numbers["reserved_tokens"] += tokens
            if self._yielded:
                self._add_yielded()

    def erred(self, kind: str, *, used_tokens: int = 0) -> None:
        """An attempt failed; the server charged ``used_tokens`` for it."""
        with self._lock:
            self._numbers["used_tokens"] += used_tokens
            _count(self._errors, kind)

    def refused(self) -> None:
        """A rate limit rejected an attempt."""
        with self._lock:
            self._numbers["rate_limited"] += 1

    def paused(self) -> None:
        """Sending pauses."""
        with self._lock:
            self._numbers["pauses"] += 1

    def finished(self, outcomes: Iterable[Outcome], *, recorded: bool = True) -> None:
        """Outcomes are on record, or ``recorded`` is false and they never will be."""
        with self._lock:
            self._add(outcomes, recorded)

    # Caller holds ``_lock``.

    def _add(self, outcomes: Iterable[Outcome], recorded: bool) -> None:
        numbers, latencies = self._numbers, self._latencies
        for outcome in outcomes:
            if outcome.unanswered or not recorded:
                numbers["unanswered"] += 1
                continue
            if outcome.deduplicated:
                numbers["deduplicated"] += 1
            if outcome.ok:
                numbers["answered"] += 1
                numbers["used_tokens"] += outcome.used_tokens or 0
                if outcome.latency_s is not None:
                    latencies[bin_of(outcome.latency_s)] += 1
            else:
                numbers["failed"] += 1
                _count(self._errors_by_kind, outcome.error_kind)

    def _add_yielded(self) -> None:
        while self._yielded:
            self._add([self._yielded.popleft()], recorded=True)

    # For any thread.

    def counts(self) -> Counts:
        """Where the run stands."""
        with self._lock:
            return self._counts()

    def _counts(self) -> Counts:
        """Caller holds ``_lock``."""
        self._add_yielded()
        numbers: dict[str, Any] = dict(self._numbers)
        return Counts(
            errors=dict(self._errors),
            errors_by_kind=dict(self._errors_by_kind),
            latencies=tuple(self._latencies),
            **numbers,
        )

    def summary(self, elapsed_s: float, *, fraction: float | None = None, **more: Any) -> Summary:
        """The run's summary; ``more`` are the fields that others know.

        ``fraction`` is the share of the input that has been read; ``None`` if unknown.
        """
        with self._lock:
            counts = self._counts()
        by_kind = sorted(counts.errors_by_kind.items(), key=lambda item: -item[1])
        return Summary(
            already_answered=counts.already_answered,
            already_failed=counts.already_failed,
            elapsed_s=elapsed_s,
            left=counts.left(fraction),
            left_is_exact=fraction == 1.0,
            errors_by_kind=dict(by_kind),
            **counters_of(counts),
            **more,
        )


def _counted(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Both together."""
    found = dict(one)
    for kind, number in other.items():
        _count(found, kind, number)
    return found


def _count(errors: dict[str, int], kind: str, number: int = 1) -> None:
    """Count ``number`` more of ``kind``. Beyond some kinds, all new ones are counted as one."""
    if kind not in errors and len(errors) >= _MAX_KINDS:
        kind = _OTHERS
    errors[kind] = errors.get(kind, 0) + number
