"""What becomes of a request: the outcome of its last attempt, or of none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from parallel_processor.models import (
    INVALID_REQUEST,
    OVER_BUDGET,
    Attempt,
    AttemptStatus,
    Outcome,
    Request,
)
from parallel_processor.workers.pending import PendingRequest

_MAX_ERROR_CHARS = 1000
_ANSWERED = AttemptStatus.ANSWERED  # a look at an enum takes longer than a global
UNANSWERED = (AttemptStatus.STOPPED, AttemptStatus.FATAL, AttemptStatus.MODEL_SPENT)
"""The ends of requests that the next run sends again."""


class Settled(NamedTuple):
    """What follows an attempt.

    Attributes:
        outcome: the request's outcome; ``None`` if it is to be sent again.
        retry_in_s: seconds until it may be sent again.
        made_room: true if the bucket may admit a waiting request earlier than it said.
    """

    outcome: Outcome | None
    retry_in_s: float = 0.0
    made_room: bool = False


def validated(attempt: Attempt, validate: Callable[[Any], object]) -> Attempt:
    """The attempt if the caller's ``validate`` accepts the answer, else a failure that was paid for."""
    assert attempt.response is not None
    try:
        validate(attempt.response.data)
        return attempt
    except Exception as error:
        name = type(error).__name__
        kind, text = f"invalid answer {name}", f"invalid answer: {name}: {error}"[:_MAX_ERROR_CHARS]
        return replace(attempt, status=AttemptStatus.RETRY, kind=kind, error=text)


def outcome_of(pending: PendingRequest, attempt: Attempt) -> Outcome:
    """The outcome of a request whose last attempt this was."""
    ok, failed_before = attempt.status is _ANSWERED, pending.retry_state is not None
    return Outcome(
        request=pending.request,
        ok=ok,
        raw_response=attempt.response,
        errors=pending.errors if failed_before else (),
        error_kind=attempt.kind,
        attempts=ok + (pending.failed_attempts if failed_before else 0),
        used_tokens=attempt.used_tokens,
        latency_s=attempt.latency_s,
        unanswered=not ok and attempt.status in UNANSWERED,
    )


def unanswered(pending: PendingRequest) -> Outcome:
    """The outcome of a request that a stop keeps from its next attempt: the next run sends it."""
    return Outcome(
        request=pending.request,
        ok=False,
        errors=pending.errors,
        attempts=pending.failed_attempts,
        unanswered=True,
    )


def invalid(request: Request) -> Outcome:
    """The outcome of a line that is no valid request."""
    errors = (request.invalid_reason or "",)
    return Outcome(request=request, ok=False, errors=errors, error_kind=INVALID_REQUEST)


def over_budget(request: Request, reason: str) -> Outcome:
    """The outcome of a request that the whole budget has no room for."""
    return Outcome(request=request, ok=False, errors=(reason,), error_kind=OVER_BUDGET)
