"""What a run has done so far, counted as it happens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from parallel_processor.figures import Summary
from parallel_processor.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The counters at one moment, consistent with each other. Names as in ``Summary``."""

    read: int
    started: int
    answered: int
    failed: int
    unanswered: int
    already_answered: int
    already_failed: int
    attempts: int
    retries: int
    rate_limited: int
    pauses: int

    @property
    def in_flight(self) -> int:
        """Requests that were started and have no outcome on record yet."""
        return self.started - self.answered - self.failed - self.unanswered


class Counters:
    """Counts for one run. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards every field below
        self._read = 0
        self._started = 0
        self._answered = 0
        self._failed = 0
        self._unanswered = 0
        self._already_answered = 0
        self._already_failed = 0
        self._attempts = 0
        self._retries = 0
        self._rate_limited = 0
        self._pauses = 0
        self._used_tokens = 0
        self._reserved_tokens = 0
        self._errors_by_kind: Counter[str] = Counter()

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
                elif outcome.ok:
                    self._answered += 1
                    self._used_tokens += outcome.used_tokens or 0
                else:
                    self._failed += 1
                    self._errors_by_kind[outcome.error_kind] += 1

    def counts(self) -> Counts:
        """Where the run stands."""
        with self._lock:
            return Counts(
                read=self._read,
                started=self._started,
                answered=self._answered,
                failed=self._failed,
                unanswered=self._unanswered,
                already_answered=self._already_answered,
                already_failed=self._already_failed,
                attempts=self._attempts,
                retries=self._retries,
                rate_limited=self._rate_limited,
                pauses=self._pauses,
            )

    def summary(self, elapsed_s: float, stop_reason: str = "", **more: Any) -> Summary:
        """The run's summary, once it has ended; ``more`` is what others have to add."""
        with self._lock:
            return Summary(
                already_answered=self._already_answered,
                already_failed=self._already_failed,
                answered=self._answered,
                failed=self._failed,
                unanswered=self._unanswered,
                attempts=self._attempts,
                retries=self._retries,
                rate_limited=self._rate_limited,
                pauses=self._pauses,
                used_tokens=self._used_tokens,
                reserved_tokens=self._reserved_tokens,
                elapsed_s=elapsed_s,
                errors_by_kind=dict(self._errors_by_kind.most_common()),
                stop_reason=stop_reason,
                **more,
            )
