"""What an attempt means: for the limits, for everybody who waits, and for its request.

An attempt is begun when its bucket has admitted it, made by a thread (``attempts.py``), and finished
here: what it used is charged, what the server said is followed, and its request either has an outcome
or is to be tried again after some seconds. Nothing here waits, so that no thread and no connection is
held by a request that isn't under way.

Whatever is logged about one request, here and elsewhere in the package, has its number as the record's
attribute ``request_number`` (``extra``); other records have no such attribute.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from parallel_processor.answers import stop_cause
from parallel_processor.attempts import Ended
from parallel_processor.counters import Counters
from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.limiter import Release, Reservation, TokenBucket
from parallel_processor.models import CANT_BE_SENT, Attempt, Refusal, Request, Verdict
from parallel_processor.options import Options
from parallel_processor.outcome import Outcome
from parallel_processor.pending import Tries, Waiting
from parallel_processor.pricing import Pricing
from parallel_processor.retry import RETRIED, RetrySchedule, longest_backoff_s
from parallel_processor.stop import StopSignal

_log = logging.getLogger("parallel_processor")
_LATE_S = 0.1  # within this, the bucket's own margin covers a request's way to the wire
_MAX_ERROR_CHARS = 1000
_LEAST_PAUSE_S = 0.1  # for a server that refuses and says "0 seconds"


class Finished(NamedTuple):
    """What follows an attempt: the request's outcome, or another attempt in ``retry_in_s`` seconds.

    ``made_room`` says that somebody who waits for the bucket may go now.
    """

    outcome: Outcome | None
    retry_in_s: float = 0.0
    made_room: bool = False


class Worker:
    """Takes requests to their outcomes for one run, attempt by attempt. Any thread may call it.

    ``is_wanted`` is asked before a request's first attempt, if there is somebody to ask.
    ``waker`` is what wakes the one who fills the buckets' queues, and isn't used where
    :class:`Finished` tells the same.
    """

    is_wanted: Callable[[Request], bool] | None = None
    waker: object = None

    def __init__(
        self,
        options: Options,
        *,
        pricing: Pricing,
        counters: Counters,
        stop: StopSignal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._pricing = pricing
        self._counters = counters
        self._stop = stop
        self._clock = clock
        self._was_reached = False  # by any attempt of this run
        self._schedule = RetrySchedule(options.retry, tell=self._tell_retry, clock=clock)

    def begin(self, waiting: Waiting, reservation: Reservation) -> bool:
        """The attempt goes out now; false if the run has stopped, or nobody wants it any more."""
        is_first, is_wanted = waiting.tries is None, self.is_wanted
        if is_first:
            self._counters.started()
        if self._stop.is_set() or (is_first and is_wanted and not is_wanted(waiting.request)):
            waiting.bucket.cancel(reservation)
            return False
        sent = waiting.tries.sent if waiting.tries is not None else 0
        if _log.isEnabledFor(logging.DEBUG):
            number = waiting.request.number
            _log.debug("request %d: attempt %d", number, sent + 1, extra={"request_number": number})
        self._counters.sent(int(reservation.costs[1]), first=sent == 0)
        return True

    def finish(
        self, waiting: Waiting, reservation: Reservation, ended: Ended | BaseException | None
    ) -> Finished:
        """The attempt is over: charge what it used, follow what the server said, and go on.

        ``ended`` is ``None`` if it was not sent. A fault of ours ends the run.
        """
        if isinstance(ended, Ended):
            try:
                return self._finish(waiting, reservation, ended)
            except BaseException as error:
                ended = error
        if ended is not None:
            self._stop.set(ended)
            waiting.bucket.ended(reservation)
        return Finished(unanswered(waiting))

    def _finish(self, waiting: Waiting, reservation: Reservation, ended: Ended) -> Finished:
        attempt = ended.attempt
        if attempt.reply is not None:
            self._was_reached = True
        if ended.sent_at_s - (reservation.admitted_at or 0.0) > _LATE_S:
            waiting.bucket.sent(reservation, ended.sent_at_s)
        ending = self._settle(waiting, reservation, ended)
        for name, window_s, before, limit in ending.limit_changes:
            was = f", was {before:,.0f}" if before < math.inf else ""
            of = _of(waiting.bucket)
            _log.info("limit%s: %s %s in %g s%s", of, f"{limit:,.0f}", name, window_s, was)
        if attempt.verdict is Verdict.ANSWERED and self._options.validate is not None:
            attempt = _validated(attempt, self._options.validate)
        if attempt.verdict is not Verdict.ANSWERED:
            if attempt.verdict is not Verdict.STOPPED:
                self._counters.erred(attempt.kind, used_tokens=attempt.used_tokens or 0)
            delay_s = self._fail(waiting, reservation, attempt)
            if delay_s is not None and self._stop.is_set():
                return Finished(unanswered(waiting), 0.0, ending.made_room)
            if delay_s is not None:
                return Finished(None, delay_s, ending.made_room)
        outcome = _outcome(waiting, attempt, ended.latency_s)
        return Finished(outcome, 0.0, ending.made_room)

    def _settle(self, waiting: Waiting, reservation: Reservation, ended: Ended) -> Release:
        """Charge what was used; less than reserved only where the provider counts so."""
        attempt = ended.attempt
        used, output = attempt.used_tokens, attempt.output_tokens
        if output is not None and waiting.estimate is not None:
            self._pricing.learn(waiting.estimate, output)
        if used is not None and used < reservation.costs[1] and not self._pricing.charges_use:
            used = None
        return waiting.bucket.ended(
            reservation,
            ended.readings,
            answered=attempt.verdict is Verdict.ANSWERED,
            used_tokens=used,
            output_tokens=output or 0,
            answer_tokens=attempt.used_tokens or 0,
            waker=self.waker,
        )

    def _fail(self, waiting: Waiting, reservation: Reservation, attempt: Attempt) -> float | None:
        """Tell everyone whom a failure concerns; seconds until the next attempt, if there is one."""
        tries = waiting.tries
        if tries is None:
            tries = waiting.tries = Tries(request=waiting.request)
        tries.note(attempt, self._clock())
        self._react(attempt, reservation, waiting.bucket, tries)
        return self._schedule.retry_in_s(tries, attempt) if attempt.verdict in RETRIED else None

    def _react(
        self, attempt: Attempt, reservation: Reservation, bucket: TokenBucket, tries: Tries
    ) -> None:
        """What an attempt's end means for everyone else."""
        if attempt.verdict is Verdict.FATAL:
            cause = StopCause.QUOTA if attempt.reply is None else stop_cause(attempt.reply)
            self._stop.set(RunStoppedError(attempt.error, cause))
        elif attempt.verdict is Verdict.RATE_LIMITED:
            self._pause(attempt, reservation, bucket)
        elif attempt.verdict is Verdict.UNREACHABLE:
            self._wait_for_server(attempt, reservation, bucket, tries)
        elif attempt.refusal is not None:
            bucket.refuse(reservation, attempt.refusal, None)

    def _pause(self, attempt: Attempt, refused: Reservation, bucket: TokenBucket) -> None:
        """Hold this bucket for as long as the server says; a wait of hours is the user's choice."""
        self._counters.refused()
        policy = self._options.retry
        seconds = policy.pause_s if attempt.retry_after_s is None else attempt.retry_after_s
        seconds = max(seconds, _LEAST_PAUSE_S)
        if seconds > policy.rate_limit_deadline_s:
            message = f"the server asks to wait {seconds:,.0f} s: {attempt.error}"
            self._stop.set(RunStoppedError(message, StopCause.SERVER_WAIT))
        elif bucket.refuse(refused, attempt.refusal or Refusal(), seconds):
            self._counters.paused()
            _log.info("pausing for %.3g s after a rate limit%s", seconds, _of(bucket))

    def _wait_for_server(
        self, attempt: Attempt, refused: Reservation, bucket: TokenBucket, tries: Tries
    ) -> None:
        """Hold everybody while there is no server; one that never answered ends the run."""
        policy = self._options.retry
        if not self._was_reached and tries.unreachable >= policy.max_attempts:
            host = urlsplit(self._options.request_url).netloc.rpartition("@")[2]
            message = f"can't reach {host}: {attempt.error}"
            self._stop.set(RunStoppedError(message, StopCause.UNREACHABLE))
            return
        seconds = longest_backoff_s(policy, tries.unreachable)
        if bucket.pause(seconds, refused):
            self._counters.paused()
            _log.info("pausing for %.3g s: %s", seconds, attempt.error)

    def _tell_retry(self, tries: Tries, attempt: Attempt, seconds: float) -> None:
        if self._stop.is_set() or attempt.verdict is Verdict.LOST:  # whose process has its own line
            return
        number, error = tries.request.number, attempt.error
        extra = {"request_number": number}
        if attempt.verdict is not Verdict.RETRY:
            _log.warning("request %d waits for its turn: %s", number, error, extra=extra)
        else:
            _log.warning(
                "request %d is tried again in %.1f s: %s", number, seconds, error, extra=extra
            )


def _of(bucket: TokenBucket) -> str:
    return f" of {bucket.model}" if bucket.model else ""


def _validated(attempt: Attempt, validate: Callable[[Any], object]) -> Attempt:
    """An answer that the caller's ``validate`` lets pass, or a failed attempt that was paid for."""
    assert attempt.reply is not None
    try:
        validate(attempt.reply.data)
        return attempt
    except Exception as error:
        name = type(error).__name__
        text = f"invalid answer: {name}: {error}"[:_MAX_ERROR_CHARS]
        return replace(attempt, verdict=Verdict.RETRY, kind=f"invalid answer {name}", error=text)


def _outcome(waiting: Waiting, attempt: Attempt, latency_s: float | None) -> Outcome:
    """The outcome of a request whose last attempt this was."""
    ok, tries = attempt.verdict is Verdict.ANSWERED, waiting.tries
    return Outcome(
        request=waiting.request,
        ok=ok,
        reply=attempt.reply,
        errors=tuple(tries.errors) if tries is not None else (),
        error_kind=attempt.kind,
        attempts=ok + (tries.sent if tries is not None else 0),
        used_tokens=attempt.used_tokens,
        latency_s=latency_s,
        unanswered=attempt.verdict in (Verdict.STOPPED, Verdict.FATAL),
    )


def unanswered(waiting: Waiting) -> Outcome:
    """The outcome of a request that a stop keeps from its next attempt: the next run sends it."""
    tries = waiting.tries
    return Outcome(
        request=waiting.request,
        ok=False,
        errors=tuple(tries.errors) if tries is not None else (),
        attempts=tries.sent if tries is not None else 0,
        unanswered=True,
    )


def flawed(request: Request) -> Outcome:
    """The outcome of a line that can't be sent."""
    return Outcome(request=request, ok=False, errors=(request.flaw or "",), error_kind=CANT_BE_SENT)
