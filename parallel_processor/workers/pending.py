"""A request on its way through a run: its bucket, its tokens, and its attempts so far."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from parallel_processor.models import Attempt, AttemptStatus, Estimate, Request

if TYPE_CHECKING:  # a child process sends without loading the limits
    from parallel_processor.ratelimit.state import Reservation
    from parallel_processor.ratelimit.token_bucket import Tally, TokenBucket
    from parallel_processor.upstreams.replicas import AnyBucket

_MAX_ERRORS = 1000  # a rate limit may reject a request much more often
_UNCOUNTED = (AttemptStatus.RATE_LIMITED, AttemptStatus.UNREACHABLE, AttemptStatus.NOT_READY)


@dataclass(slots=True, kw_only=True)
class RetryState:
    """The attempts of one request that has failed at least once. Only the owner of the request uses it.

    Attributes:
        request: the request.
        sent: how many attempts were made.
        failures: how many of them count towards ``max_attempts``.
        lost: how many of them were lost with a worker process.
        rejected_since_s: when an attempt was first rejected by a rate limit, or the server wasn't ready or
            reached, in seconds of the run's clock.
        answers_at_refusal: how many requests of its bucket had been answered at its last refusal.
        first_refusal: how its bucket stood at the first refusal that others may not share.
        own_refusals: how many refusals there were since, that one included.
        is_refused_alone: others are answered, so that the refusals are about the request itself.
        judged_by: the bucket that these refusals are of; of several upstreams, the others don't count.
        failed_by: which of several upstreams failed it, and when that attempt was admitted.
        refused_by: which of them failed it for good, and why.
        has_other: another upstream may answer it now.
        errors: the error texts of the attempts, for the record.
        state: the request's ``tenacity.RetryCallState``; ``Any``, as only ``retry.py`` imports tenacity.
    """

    request: Request
    sent: int = 0
    failures: int = 0
    lost: int = 0
    rejected_since_s: float | None = None
    answers_at_refusal: int = 0
    first_refusal: Tally | None = None
    own_refusals: int = 0
    is_refused_alone: bool = False
    judged_by: TokenBucket | None = None
    failed_by: dict[TokenBucket, float] = field(default_factory=dict)
    refused_by: dict[TokenBucket, str] = field(default_factory=dict)
    has_other: bool = False
    errors: list[str] = field(default_factory=list)
    state: Any = None

    @property
    def is_fresh(self) -> bool:
        """True if no attempt was made yet in the request's lane."""
        return not self.failures and not self.lost and self.rejected_since_s is None

    def note(self, attempt: Attempt, now: float) -> None:
        """Count ``attempt``, and keep its error for the record."""
        self.sent += 1
        if attempt.error:
            del self.errors[_MAX_ERRORS - 1 :]  # of more than that, the first ones and the last
            self.errors.append(attempt.error)
        if attempt.status is AttemptStatus.RETRY:
            self.failures += 1
        elif attempt.status is AttemptStatus.LOST:
            self.lost += 1
        elif attempt.status in _UNCOUNTED and self.rejected_since_s is None:
            self.rejected_since_s = now


@dataclass(slots=True, kw_only=True, eq=False)
class PendingRequest:
    """A request that waits to be sent, or is being sent.

    One thread owns it at a time and may change it: the thread that counts its tokens, or the worker
    that makes its attempt.

    Attributes:
        request: the request.
        group: what it waits for in a queue: its bucket, or the bucket of any of several upstreams.
        bucket: the token bucket that admitted it, else one of ``group``.
        lane: the number of the lane that it is in. Each lane has a group of its own.
        entered_s: when it entered that lane, in seconds of the run's clock; 0 if there is only one.
        estimate: its expected tokens; ``None`` until they are counted.
        retry_state: its attempts; ``None`` until one failed.
    """

    request: Request
    group: AnyBucket
    bucket: TokenBucket
    lane: int = 0
    entered_s: float = 0.0
    estimate: Estimate | None = None
    retry_state: RetryState | None = None

    @property
    def is_fresh(self) -> bool:
        """True if no attempt was made yet in its lane."""
        return self.retry_state is None or self.retry_state.is_fresh

    @property
    def failed_attempts(self) -> int:
        """How many attempts failed."""
        return 0 if self.retry_state is None else self.retry_state.sent

    def tell_attempt(self, log: logging.Logger) -> None:
        """Log that its next attempt begins."""
        number, attempt = self.request.number, self.failed_attempts + 1
        log.debug("request %d: attempt %d", number, attempt, extra={"request_number": number})

    @property
    def errors(self) -> tuple[str, ...]:
        """Why they failed."""
        return () if self.retry_state is None else tuple(self.retry_state.errors)


class AdmittedRequest(NamedTuple):
    """A request that may be sent now, and the reservation that its bucket admitted."""

    pending: PendingRequest
    reservation: Reservation
