"""What a refusal or a timeout means: for its own request, and for all others of its bucket.

* **Who pays.** A refusal for limits costs the request no attempt. Nor does one for load (503 without
  ``Retry-After``), while others are answered. The next point has the exception.
* **Whose matter it is.** A request that is refused again and again, while requests that were sent after it
  are answered, is refused for itself: its prompt is too long for the plan, for example. It pauses nobody
  any more, and each further refusal is a failed attempt.
* **How long to pause.** As long as the server says, or else as long as the user says. If neither does, the
  bucket chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.models import Attempt, AttemptStatus, Rejection
from parallel_processor.options import RetryPolicy
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.workers.pending import PendingRequest, RetryState

_log = logging.getLogger("parallel_processor")
_MIN_PAUSE_S = 0.1  # for a server that rejects and asks to wait 0 seconds
_OWN_REFUSALS = 3  # after so many that others didn't share, a request is refused for itself
_SHARED = 0.2  # others share the refusals if so many of theirs come for each of their answers
_TIMEOUT_STATUSES = (408, 504, 524)  # a gateway's own timeout
_LEAST_TIMEOUT_S = 3.0  # sooner than this, such a status is a fault, and no sign of load


class Rejections:
    """Follows the refusals and timeouts of one run. Any thread may call it."""

    def __init__(
        self,
        policy: RetryPolicy,
        counters: Counters,
        stop: Callable[[RunStoppedError, PendingRequest], None],
    ) -> None:
        """``stop`` is called if a request's server asks for a wait that is too long."""
        self._policy, self._counters, self._stop = policy, counters, stop

    def judged(self, attempt: Attempt, pending: PendingRequest, retry_state: RetryState) -> Attempt:
        """``attempt`` with the status that counts for its request."""
        rejection = attempt.rejection
        if rejection is None or attempt.status not in (
            AttemptStatus.RATE_LIMITED,
            AttemptStatus.RETRY,
        ):
            return attempt
        status = attempt.status
        answers = sum(bucket.tally().answers for bucket in pending.group.members)
        if rejection.overload and answers > retry_state.answers_at_refusal:
            status = AttemptStatus.RATE_LIMITED
        if status is AttemptStatus.RATE_LIMITED and _is_own(rejection, pending.bucket, retry_state):
            status = AttemptStatus.RETRY
        retry_state.answers_at_refusal = answers
        return attempt if status is attempt.status else replace(attempt, status=status)

    def follow(self, attempt: Attempt, reservation: Reservation, pending: PendingRequest) -> None:
        """Slow down or pause what else is sent, if ``attempt`` says that this is needed."""
        bucket, retry_state = pending.bucket, pending.retry_state
        is_alone = retry_state is not None and retry_state.is_refused_alone
        if attempt.status is AttemptStatus.RATE_LIMITED:
            self._pause(attempt, reservation, pending)
        elif attempt.rejection is not None and not is_alone:
            self._tell(bucket.refuse(reservation, attempt.rejection, self._policy.pause_s), bucket)
        elif is_timeout(attempt):
            self._tell(bucket.timed_out(reservation), bucket, "timeouts")

    def _pause(self, attempt: Attempt, refused: Reservation, pending: PendingRequest) -> None:
        """Pause the bucket as long as the server says; end the run if that is too long for the user."""
        self._counters.refused()
        bucket = pending.bucket
        seconds = self._policy.pause_s if attempt.retry_after_s is None else attempt.retry_after_s
        if seconds is not None:
            seconds = max(seconds, _MIN_PAUSE_S)
            if seconds > self._policy.rate_limit_deadline_s:
                message = f"the server asks to wait {seconds:,.0f} s: {attempt.error}"
                models = (bucket.model,)
                error = RunStoppedError(message, StopCause.SERVER_WAIT, models=models)
                self._stop(error, pending)
                return
        self._tell(bucket.refuse(refused, attempt.rejection or Rejection(), seconds), bucket)

    def _tell(self, seconds: float, bucket: TokenBucket, after: str = "a rate limit") -> None:
        if seconds:
            self._counters.paused()
            of = f" of {bucket.model}" if bucket.model else ""
            _log.info("pausing for %.3g s after %s%s", seconds, after, of)


def is_timeout(attempt: Attempt) -> bool:
    """True if the answer did not come in time, by our clock or by a gateway's."""
    if attempt.response is None:
        return attempt.kind == "timeout"
    waited_s = attempt.latency_s or 0.0
    return attempt.response.status in _TIMEOUT_STATUSES and waited_s >= _LEAST_TIMEOUT_S


def _is_own(rejection: Rejection, bucket: TokenBucket, retry_state: RetryState) -> bool:
    """Note a refusal of a request; true if the request is the reason, and not a limit."""
    if rejection.kind or rejection.concurrency or rejection.ramp_too_fast:
        return False
    if retry_state.judged_by not in (None, bucket):
        return False
    now, first, retry_state.judged_by = bucket.tally(), retry_state.first_refusal, bucket
    if first is not None:
        others = now.refusals - first.refusals - retry_state.own_refusals
        if others > _SHARED * (now.answers - first.answers):
            first = None
    if first is None:
        retry_state.first_refusal, retry_state.own_refusals = now, 1
        return False
    retry_state.own_refusals += 1
    is_own = retry_state.own_refusals > _OWN_REFUSALS and now.answered_until_s > first.now_s
    if is_own and not retry_state.is_refused_alone:
        bucket.take_back(first)
        retry_state.is_refused_alone = True
    return is_own
