"""Settlement: what an attempt means for its limits, for its request, and for the run.

A finished attempt (``workers/attempt.py``) is settled in one call: its use is charged, the server's limits
and pauses are followed, and its request has an outcome, or is to be sent again after some seconds. Nothing
here waits, so that a request holds a thread and a connection only while it is in flight.

Every log record about one request, here and elsewhere in the package, has the request's number as the
attribute ``request_number`` (``extra``). Other records have no such attribute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from parallel_processor.engine.outcomes import (
    UNANSWERED,
    Settled,
    outcome_of,
    unanswered,
    validated,
)
from parallel_processor.engine.rejections import Rejections, is_timeout
from parallel_processor.engine.retry import RETRIED, RetrySchedule, backoff_s, without_charge
from parallel_processor.engine.stops import EqualFailures, LeftOut, Silence, has_others, reason_of
from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import Options
from parallel_processor.planning.spending import Spending
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import Release, TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.report.limit_news import LimitNews
from parallel_processor.report.repeats import RepeatedWarnings
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.failover import Failover
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.outage import OUT_OF_ORDER, Judgement, Outages, Verdict
from parallel_processor.upstreams.replicas import AnyBucket
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest, RetryState

_log = logging.getLogger("parallel_processor")
_LATE_S = 0.1  # up to this, the bucket's margin covers a request's way to the wire
_ANSWERED = AttemptStatus.ANSWERED  # a look at an enum takes longer than a global
_STOPPED = AttemptStatus.STOPPED


class Settlement:
    """Settles the attempts of one run. Any thread may call it.

    ``waker`` is the event on which the run's dispatcher waits for the buckets. It is not set for room that
    a settled attempt made, which :class:`Settled` reports. ``on_left_out`` is called with a bucket whose
    requests are not to be sent any more, once it is in ``left_out``. With ``validates`` false, others ask
    ``validate``. ``divide`` is told what failed for good or timed out; true if that became another one.
    """

    def __init__(
        self,
        options: Options,
        *,
        estimator: CostEstimator,
        counters: Counters,
        stop: StopSignal,
        waker: object,
        clock: Callable[[], float],
        left_out: LeftOut,
        on_left_out: Callable[[AnyBucket], None],
        routes: Routes,
        lanes: Lanes | None = None,
        is_crowded: Callable[[AnyBucket], bool] = lambda bucket: False,
        validates: bool = True,
        divide: Callable[[PendingRequest, Attempt], bool] = lambda pending, attempt: False,
        spending: Spending | None = None,
    ) -> None:
        self._options, self._estimator, self._counters = options, estimator, counters
        self._stop, self._waker, self._clock = stop, waker, clock
        self._left_out, self._on_left_out = left_out, on_left_out
        self._lanes = None if lanes is None or lanes.is_plain else lanes
        self._is_crowded, self._divide, self._spending = is_crowded, divide, spending
        self._validate = options.validate if validates else None
        self._reached: set[TokenBucket] = set()  # whose server has responded in this run
        self._has_answer = False  # to any request of this run
        self._routes, self._has_other_hosts = routes, has_others(options)
        self._silence = Silence(options.retry, clock)
        self._outages = Outages(options.retry, clock)
        self._failover = Failover(routes, self._outages, options.retry)
        self._rejections = Rejections(options.retry, counters, self._stop_run)
        self.equal_failures = EqualFailures(
            options.stop_after_equal_failures,
            validates=options.validate is not None,
            answered_before=lambda: counters.counts().already_answered > 0,
        )
        self._limit_news = LimitNews()
        self._warnings = RepeatedWarnings(clock)
        self._schedule = RetrySchedule(options.retry, tell=self._tell_retry, clock=clock)

    def settle(
        self, pending: PendingRequest, reservation: Reservation, attempt: Attempt | BaseException
    ) -> Settled:
        """Charge what the attempt used, follow what the server said, and decide what comes next.

        An exception instead of an attempt, or one that is raised here, is a bug: it ends the run.
        """
        if self._spending is not None:
            self._spending.ended(pending, attempt)
        if isinstance(attempt, Attempt):
            try:
                return self._settle(pending, reservation, attempt)
            except BaseException as error:
                attempt = error
        self._stop.set(attempt)
        pending.bucket.ended(reservation)
        return Settled(unanswered(pending))

    def _settle(
        self, pending: PendingRequest, reservation: Reservation, attempt: Attempt
    ) -> Settled:
        if attempt.response is not None:
            self._reached.add(pending.bucket)
        elif attempt.stop_cause is StopCause.SETUP and self._has_answer:  # then it may go away
            attempt = replace(attempt, status=AttemptStatus.UNREACHABLE)
        if attempt.sent_at_s - (reservation.admitted_at or 0.0) > _LATE_S:
            pending.bucket.sent(reservation, attempt.sent_at_s)
        release = self._charge(pending, reservation, attempt)
        if release.limit_changes:
            self._limit_news.tell(pending.bucket, release.limit_changes)
        if attempt.status is _ANSWERED and self._validate is not None:
            attempt = validated(attempt, self._validate)
            if attempt.status is _ANSWERED:
                self.equal_failures.works(pending.group)
        if attempt.status is not _ANSWERED:
            return self.failed(pending, reservation, attempt, made_room=release.made_room)
        self._has_answer = True
        if self._outages.paused and self._outages.is_back(pending.bucket):
            _log.info("%s answers again", self._host(pending.bucket))
        if pending.retry_state is not None:
            self._failover.answered(pending)
        if self._lanes is not None:
            attempt = self._lanes.with_lane(pending, attempt)
        return Settled(outcome_of(pending, attempt), 0.0, release.made_room)

    def failed(
        self,
        pending: PendingRequest,
        reservation: Reservation,
        attempt: Attempt,
        *,
        made_room: bool,
    ) -> Settled:
        """Decide what follows an attempt that is no answer, and was charged."""
        delay_s = self._fail(pending, reservation, attempt)
        lacks_room = self._lanes is not None and self._lanes.lacks_capacity(pending, attempt)
        is_failed = delay_s is None and attempt.status not in UNANSWERED and not lacks_room
        if (is_failed or is_timeout(attempt)) and self._divide(pending, attempt):
            return Settled(None, 0.0, made_room)
        if is_failed:
            self._look_for_equal_failures(pending, attempt)
        if self._goes_on(pending, attempt, delay_s):
            delay_s = 0.0
        if delay_s is None:
            return Settled(outcome_of(pending, attempt), 0.0, made_room)
        is_over = self._stop.cause is not None or pending.group in self._left_out
        return Settled(unanswered(pending) if is_over else None, delay_s, made_room)

    def _goes_on(self, pending: PendingRequest, attempt: Attempt, delay_s: float | None) -> bool:
        """Put a request that failed into its next lane, if that is due; false if it stays."""
        lanes = self._lanes
        if lanes is None or attempt.status is _STOPPED:
            return False
        if delay_s is not None and self._clock() + delay_s < lanes.leaves_at(pending):
            return False
        if not lanes.move_on(pending, or_left_out=True):
            return False
        if pending.group in self._left_out:
            return True
        number, where = pending.request.number, lanes.name_of(pending)
        text = f"request {number} goes on to the {where}: {attempt.error}"
        if lanes.is_fallback(pending):  # which may cost more: that is said
            self._warnings.warn(reason_of(attempt), number, text)
        else:
            _log.debug("%s", text, extra={"request_number": number})
        return True

    def _charge(
        self, pending: PendingRequest, reservation: Reservation, attempt: Attempt
    ) -> Release:
        """Charge what was used. Only some providers give back what was reserved and not used."""
        charged = self._estimator.charge(pending.estimate, reservation.costs[1], attempt)
        return pending.bucket.ended(
            reservation,
            attempt.readings,
            answered=attempt.status is _ANSWERED,
            rejected=attempt.rejection is not None,
            used_tokens=charged,
            output_tokens=attempt.output_tokens or 0,
            answer_tokens=attempt.used_tokens or 0,
            waker=self._waker,
        )

    def _fail(
        self, pending: PendingRequest, reservation: Reservation, attempt: Attempt
    ) -> float | None:
        """Count a failure and act on it; seconds until the next attempt, if there is to be one."""
        if attempt.status is not AttemptStatus.STOPPED:
            self._counters.erred(attempt.kind, used_tokens=attempt.used_tokens or 0)
        retry_state = pending.retry_state
        if retry_state is None:
            retry_state = pending.retry_state = RetryState(request=pending.request)
        number, admitted_at = pending.request.number, reservation.admitted_at or 0.0
        if self._lanes is not None and (name := self._lanes.name_of(pending)) and attempt.error:
            attempt.error = f"{name}: {attempt.error}"
        if self._lanes is not None and self._lanes.lacks_capacity(pending, attempt):
            return self._give_way(self._lanes, pending, reservation, attempt)
        others_at = self._failover.others_answered_at(pending)
        judged = self._outages.judge(pending.bucket, number, admitted_at, attempt, others_at)
        attempt = without_charge(attempt, judged, retry_state, self._options.retry)
        attempt = self._rejections.judged(attempt, pending, retry_state)
        retry_state.note(attempt, self._clock())
        if judged.verdict is Verdict.OUT and retry_state.rejected_since_s is not None:
            # An earlier rejection has ended: the outage has its own deadline.
            retry_state.rejected_since_s = max(retry_state.rejected_since_s, judged.since_s)
        if others_at is None or not self._is_taken_over(attempt, reservation, pending, judged):
            self._react(attempt, reservation, pending, judged)
        elif attempt.status not in OUT_OF_ORDER or (
            retry_state.has_other and judged.verdict is not Verdict.SERVES
        ):
            return 0.0
        if attempt.status not in RETRIED:
            return None
        if pending.group in self._left_out or judged.verdict is Verdict.LOST:
            return 0.0
        delay_s = self._schedule.retry_in_s(retry_state, attempt)
        if delay_s is None or attempt.status is AttemptStatus.RETRY:
            return delay_s
        return max(delay_s, judged.pause_s)

    def _is_taken_over(
        self, attempt: Attempt, reservation: Reservation, pending: PendingRequest, judged: Judgement
    ) -> bool:
        """True if other upstreams serve the request, so that the failure means nothing for the run."""
        was_reached, failover = self._has_responded(pending), self._failover
        is_taken_over = failover.takes_over(
            pending, reservation, attempt, judged, was_reached=was_reached
        )
        if is_taken_over and attempt.status in OUT_OF_ORDER:
            self._pause_server(attempt, reservation, pending.bucket, judged)
        failover.note(pending, reservation, attempt)
        return is_taken_over

    def _give_way(
        self, lanes: Lanes, pending: PendingRequest, refused: Reservation, attempt: Attempt
    ) -> float | None:
        """Follow a refusal of a tier that has no room now; seconds until its next attempt there, if any.

        It is about one request: others may be answered, so nothing pauses unless the server asks for it.
        """
        assert (retry_state := pending.retry_state) is not None
        self._counters.refused()
        self.equal_failures.works(pending.group)
        if attempt.retry_after_s:
            pending.bucket.pause(attempt.retry_after_s, refused)
            lanes.note_full(pending, attempt.retry_after_s)
        attempt = replace(attempt, status=AttemptStatus.RATE_LIMITED)
        retry_state.note(attempt, self._clock())
        retry_state.own_refusals += 1
        if self._failover.asks_other(pending, refused):
            return 0.0
        following = lanes.next_tier(pending)
        if following is None or not self._is_crowded(following):
            return None
        return backoff_s(self._options.retry, retry_state, attempt)

    def _react(
        self, attempt: Attempt, reservation: Reservation, pending: PendingRequest, judged: Judgement
    ) -> None:
        """What a failure means for the other requests: a stop, a pause, or a lower rate."""
        # What looks like a wrong set-up is none where it worked before.
        is_setup = attempt.stop_cause is StopCause.SETUP and not self._has_answer
        if attempt.status is AttemptStatus.FATAL or is_setup:
            self._refuse(pending, attempt.error, attempt.stop_cause)
        elif attempt.status is AttemptStatus.MODEL_SPENT:
            self._leave_out(pending, attempt.error, StopCause.QUOTA)
        elif attempt.status in OUT_OF_ORDER:
            self._wait_for_server(attempt, reservation, pending, judged)
        else:
            self._rejections.follow(attempt, reservation, pending)
            if not self._reached and is_timeout(attempt):
                self._stop_if_silent(reservation, pending)

    def _refuse(self, pending: PendingRequest, reason: str, cause: StopCause) -> None:
        """Stop the run; if only one of its hosts refuses the key or the account, leave that out."""
        if cause is StopCause.KEY:
            reason += self._routes.key_note(pending.bucket)
        if self._has_other_hosts and cause in (StopCause.KEY, StopCause.QUOTA):
            self._leave_out(pending, reason, cause, is_hosts=True)
        else:
            self._stop_run(RunStoppedError(reason, cause), pending)

    def _stop_run(self, error: RunStoppedError, pending: PendingRequest) -> None:
        """Stop the run, or the lane of ``pending`` alone if there is a next one."""
        if self._lanes is None or not self._lanes.close(pending, error):
            self._stop.set(error)

    def _stop_if_silent(self, timed_out: Reservation, pending: PendingRequest) -> None:
        """Stop the run if the server takes connections, and never answers."""
        if text := self._silence.timed_out(timed_out.place):
            host = self._host(pending.bucket)
            after_s = self._options.request_timeout_s
            message = f"{host} takes connections but doesn't answer within {after_s:g} s: {text}"
            self._stop_run(RunStoppedError(message, StopCause.UNREACHABLE), pending)

    def _host(self, bucket: TokenBucket) -> str:
        return urlsplit(bucket.url or self._options.request_url).netloc.rpartition("@")[2]

    def _wait_for_server(
        self, attempt: Attempt, failed: Reservation, pending: PendingRequest, judged: Judgement
    ) -> None:
        """Pause while the server can't be reached, or isn't ready, and try it with single requests.

        If no response ever came, ``max_attempts`` rounds end the run, or a fallback that others reach.
        """
        is_unreachable, policy = attempt.status is AttemptStatus.UNREACHABLE, self._options.retry
        if not self._has_responded(pending) and judged.round >= policy.max_attempts:
            host = self._host(pending.bucket)
            what = f"can't reach {host}: " if is_unreachable else f"no answer from {host}: "
            is_proxys = attempt.kind == "proxy error"  # which its text names
            lane = "" if self._lanes is None else self._lanes.name_of(pending)
            message = attempt.error if is_proxys else what + attempt.error.removeprefix(f"{lane}: ")
            if self._reached:
                self._leave_out(pending, message, StopCause.UNREACHABLE)
            else:
                self._stop_run(RunStoppedError(message, StopCause.UNREACHABLE), pending)
        elif judged.verdict is Verdict.LOST and attempt.stop_cause is StopCause.SETUP:
            self._stop_run(RunStoppedError(attempt.error, attempt.stop_cause), pending)
        elif judged.verdict is Verdict.LOST:
            waited_s = policy.rate_limit_deadline_s
            reason = f"the server was not ready for {waited_s:,.0f} s: {attempt.error}"
            self._leave_out(pending, reason, StopCause.UNREACHABLE)
        else:
            self._pause_server(attempt, failed, pending.bucket, judged)

    def _has_responded(self, pending: PendingRequest) -> bool:
        """True if any server has responded; for a fallback with a URL of its own, if that one has."""
        if self._lanes is None or not self._lanes.is_elsewhere(pending):
            return len(self._reached) > 0
        host = self._host(pending.bucket)
        return any(self._host(each) == host for each in tuple(self._reached))

    def _pause_server(
        self, attempt: Attempt, failed: Reservation, bucket: TokenBucket, judged: Judgement
    ) -> None:
        """Send nothing to a server for a while, then single requests."""
        if judged.verdict is Verdict.SERVES and attempt.status is not AttemptStatus.UNREACHABLE:
            return  # one of several servers behind the URL: the others answer
        if bucket.probe(judged.pause_s, failed):
            self._counters.paused()
            self._outages.note_pause(bucket)
            which = f" {self._host(bucket)}" if self._options.replica_urls else ""
            _log.info("pausing%s for %.3g s: %s", which, judged.pause_s, attempt.error)

    def _leave_out(
        self, pending: PendingRequest, reason: str, cause: StopCause, *, is_hosts: bool = False
    ) -> None:
        """Send no more requests of the group of ``pending``, or to its host, unless the next lane does."""
        group = pending.group
        if self._lanes is not None and self._lanes.close(pending, RunStoppedError(reason, cause)):
            return
        where = "" if self._lanes is None else self._lanes.name_of(pending)
        message = self._left_out.add(group, reason, cause, where, is_hosts=is_hosts)
        self._on_left_out(group)  # by each: no worker takes another one before the queue is empty
        if message:
            group.free()
            _log.error("%s", message)

    def _look_for_equal_failures(self, pending: PendingRequest, attempt: Attempt) -> None:
        """Stop the run if every request of the model fails for one reason."""
        if (error := self.equal_failures.failed(pending.group, attempt)) is not None:
            self._stop_run(error, pending)

    def _tell_retry(self, retry_state: RetryState, attempt: Attempt, seconds: float) -> None:
        """Log that another attempt follows. A lost worker process has a log line of its own."""
        is_over = self._stop.cause is not None or not _log.isEnabledFor(logging.WARNING)
        if is_over or attempt.status is AttemptStatus.LOST:
            return
        number, is_retry = retry_state.request.number, attempt.status is AttemptStatus.RETRY
        when = f"is tried again in {seconds:.1f} s" if is_retry else "waits to be sent again"
        if is_retry and retry_state.has_other:
            when = "is tried again at another server"
        text = f"request {number} {when}: {attempt.error}"
        self._warnings.warn(reason_of(attempt), number, text)

    def close(self) -> None:
        """The run is over: tell how often its warnings came."""
        self._warnings.close()
