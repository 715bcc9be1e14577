"""What a failure of one upstream means where others can serve the request.

* **Out of order** (it can't be reached, isn't ready, or fails what others answer): it pauses, and comes
  back by single requests (``outage.py``). The request costs no attempt, and goes to the others at once.
* **Refused** (a key, no money, a wrong certificate): its host is set aside with that key, for all models.
* **Spent** (a daily quota, a wait of more than the policy permits): it is set aside for this model.
* **Another model.** An upstream that has answered nothing, and fails a request for good, may serve another
  model than the others do. The others are asked, too. If they answer what it has failed, three times, it is
  set aside for this model. If all of them fail the request, it has failed.

Where no other is left, a failure means what it means for a single server. While all are out of order,
nothing is given up that one of them may serve yet.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import RetryPolicy, shown_url
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.upstreams.outage import OUT_OF_ORDER, Judgement, Outages, Verdict
from parallel_processor.upstreams.replicas import BucketGroup, has_failed
from parallel_processor.upstreams.routes import Routes

if TYPE_CHECKING:
    from parallel_processor.workers.pending import PendingRequest

_log = logging.getLogger("parallel_processor")
_LEAST_EVIDENCE = 3  # requests that one failed for good, and others answered


class Failover:
    """Follows the failures of the upstreams of one run. Any thread may call it."""

    def __init__(self, routes: Routes, outages: Outages, policy: RetryPolicy) -> None:
        self._routes, self._outages, self._policy = routes, outages, policy
        self._evidence: Counter[TokenBucket] = (
            Counter()
        )  # an answer more or less makes no difference

    def _has_other(self, pending: PendingRequest) -> bool:
        """True if another upstream may answer ``pending`` now, as far as is known."""
        group, bucket = pending.group, pending.bucket
        return isinstance(group, BucketGroup) and any(
            not self._outages.is_out(other) and not has_failed(other, pending)
            for other in group.others(bucket)
        )

    def others_answered_at(self, pending: PendingRequest) -> float | None:
        """When the newest that another upstream answered was admitted; ``None`` without others."""
        group, bucket = pending.group, pending.bucket
        if pending.retry_state is not None:
            pending.retry_state.has_other = False  # of the group that it was in before
        if not isinstance(group, BucketGroup) or not (others := group.others(bucket)):
            return None
        return max(other.newest_answered_at for other in others)

    def asks_other(self, pending: PendingRequest, reservation: Reservation) -> bool:
        """Note that the upstream has no room for ``pending``; true if one is left that wasn't asked."""
        group, retry_state = pending.group, pending.retry_state
        if not isinstance(group, BucketGroup) or retry_state is None:
            return False
        asked = retry_state.failed_by
        asked[pending.bucket] = reservation.admitted_at or 0.0
        others = group.others(pending.bucket)
        return any(other not in asked and not self._outages.is_out(other) for other in others)

    def note(self, pending: PendingRequest, reservation: Reservation, attempt: Attempt) -> None:
        """Remember who failed ``pending``, and whether another upstream may answer it now."""
        if (retry_state := pending.retry_state) is None:
            return
        if attempt.status is AttemptStatus.RETRY:
            retry_state.failed_by[pending.bucket] = reservation.admitted_at or 0.0
        retry_state.has_other = self._has_other(pending)

    def takes_over(
        self,
        pending: PendingRequest,
        reservation: Reservation,
        attempt: Attempt,
        judged: Judgement,
        *,
        was_reached: bool,
    ) -> bool:
        """True if others serve the request of a failure: it means nothing for the run, and is no outcome.

        ``was_reached`` says whether any upstream has responded so far.
        """
        group, bucket, status = pending.group, pending.bucket, attempt.status
        if not isinstance(group, BucketGroup) or not (others := group.others(bucket)):
            return False
        if status is AttemptStatus.FATAL:
            if self._routes.refuse(group, bucket):
                self._tell(bucket, attempt.error + self._key_note(attempt, bucket))
            return bucket not in group.alive
        asked_s = attempt.retry_after_s or 0.0
        is_long = (
            status is AttemptStatus.RATE_LIMITED and asked_s > self._policy.rate_limit_deadline_s
        )
        if status is AttemptStatus.MODEL_SPENT or is_long:
            if self._routes.set_aside(group, bucket):
                self._tell(bucket, attempt.error, for_model=True)
            return bucket not in group.alive
        if status in OUT_OF_ORDER:
            return not self._is_end(others, judged, was_reached)
        if status is AttemptStatus.FAILED:
            return self._asks_others(pending, reservation, attempt, others)
        return False

    def _key_note(self, attempt: Attempt, bucket: TokenBucket) -> str:
        return self._routes.key_note(bucket) if attempt.stop_cause is StopCause.KEY else ""

    def _is_end(self, others: list[TokenBucket], judged: Judgement, was_reached: bool) -> bool:
        """True if all upstreams are out of order for so long that the run, or the model, is given up."""
        if judged.verdict is Verdict.LOST:
            deadline_s = self._policy.rate_limit_deadline_s
            return all(self._outages.out_for_s(other) >= deadline_s for other in others)
        most = self._policy.max_attempts
        return (
            not was_reached
            and judged.round >= most
            and all(self._outages.rounds(other) >= most for other in others)
        )

    def _asks_others(
        self,
        pending: PendingRequest,
        reservation: Reservation,
        attempt: Attempt,
        others: list[TokenBucket],
    ) -> bool:
        """True if the upstream may serve another model, and one is left that hasn't failed the request."""
        bucket, retry_state = pending.bucket, pending.retry_state
        has_answered = bucket.newest_answered_at > -math.inf
        if attempt.response is None or has_answered or retry_state is None:
            return False
        retry_state.failed_by[bucket] = reservation.admitted_at or 0.0
        retry_state.refused_by[bucket] = attempt.error
        return any(
            not has_failed(other, pending) and not other.server.in_flight.is_confined
            for other in others
        )

    def answered(self, pending: PendingRequest) -> None:
        """Another upstream has answered ``pending``: those that failed it for good may be wrong."""
        group, retry_state = pending.group, pending.retry_state
        if not isinstance(group, BucketGroup) or retry_state is None:
            return
        for bucket, error in retry_state.refused_by.items():
            if bucket is pending.bucket or bucket.newest_answered_at > -math.inf:
                continue
            self._evidence[bucket] += 1
            is_wrong = self._evidence[bucket] >= _LEAST_EVIDENCE
            if is_wrong and self._routes.set_aside(group, bucket):
                self._tell(bucket, f"it fails what others answer: {error}", for_model=True)

    def _tell(self, bucket: TokenBucket, error: str, *, for_model: bool = False) -> None:
        has_more = self._routes.key_count(bucket) > 1
        number = f" with key {bucket.upstream.key + 1}" if has_more else ""
        of = f" for {bucket.model}" if for_model and bucket.model else ""
        text = "%s%s is set aside%s, the others go on: %s"
        _log.warning(text, shown_url(bucket.url), number, of, error)
