"""What a worker thread does with one request, from its admission to its outcome."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from parallel_processor.answers import judge
from parallel_processor.counters import Counters
from parallel_processor.exceptions import RunStoppedError, TransportError
from parallel_processor.jsontext import parse
from parallel_processor.limiter import Reservation, TokenBucket
from parallel_processor.models import Attempt, Estimate, Outcome, Refusal, Reply, Request, Verdict
from parallel_processor.options import Options
from parallel_processor.pricing import Pricing
from parallel_processor.ratelimits import LimitReading, read_limits
from parallel_processor.redact import Redactor
from parallel_processor.retry import Tries, longest_backoff_s, make_retrying
from parallel_processor.stop import StopSignal
from parallel_processor.transport import Transport

_log = logging.getLogger("parallel_processor")
_LATE_S = 0.1  # within this, the bucket's own margin covers a request's way to the wire
_LEAST_PAUSE_S = 0.1  # for a server that refuses and says "0 seconds"


@dataclass(slots=True, kw_only=True)
class _AdmittedTries(Tries):
    """Tries with what they may use, their bucket, and an admission that hasn't been used yet."""

    estimate: Estimate
    bucket: TokenBucket
    reservation: Reservation | None = None


class Worker:
    """Takes requests to their outcomes for one run. Every worker thread calls the same object."""

    def __init__(
        self,
        options: Options,
        *,
        pricing: Pricing,
        transport: Transport,
        counters: Counters,
        stop: StopSignal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._pricing = pricing
        self._transport = transport
        self._counters = counters
        self._stop = stop
        self._clock = clock
        self._redact = Redactor(options.api_key)
        self._was_reached = False  # by any worker, in this run
        self._retrying = make_retrying(
            options.retry, sleep=stop.wait, before_sleep=self._tell_retry, clock=clock
        )

    def process(
        self, request: Request, estimate: Estimate, bucket: TokenBucket, reservation: Reservation
    ) -> Outcome:
        """The outcome of ``request``, whose first attempt ``reservation`` has admitted already."""
        tries = _AdmittedTries(
            request=request, estimate=estimate, bucket=bucket, reservation=reservation
        )
        attempt: Attempt = self._retrying(self._attempt, tries)
        return Outcome(
            request=request,
            ok=attempt.verdict is Verdict.ANSWERED,
            reply=attempt.reply,
            errors=tuple(tries.errors),
            error_kind=attempt.kind,
            attempts=tries.sent,
            used_tokens=attempt.used_tokens,
            unanswered=attempt.verdict in (Verdict.STOPPED, Verdict.FATAL),
        )

    def _attempt(self, tries: _AdmittedTries) -> Attempt:
        """One attempt, from its admission to its verdict; nothing is sent once the run stops."""
        bucket, reservation = tries.bucket, tries.reservation
        if reservation is None:
            tokens, output_tokens = self._pricing.cost(tries.estimate)
            reservation = bucket.acquire(tokens, self._stop, output_tokens=output_tokens)
        tries.reservation = None
        if reservation is None:
            return Attempt(verdict=Verdict.STOPPED)
        if self._stop.is_set():
            bucket.cancel(reservation)
            return Attempt(verdict=Verdict.STOPPED)
        _log.debug("request %d: attempt %d", tries.request.number, tries.sent + 1)
        self._counters.sent(int(reservation.costs[1]), first=tries.sent == 0)
        tries.sent += 1
        try:
            attempt, readings = self._send(tries.request, bucket.host)
        except BaseException:
            bucket.ended(reservation)
            raise
        if self._transport.sending_since_s - (reservation.admitted_at or 0.0) > _LATE_S:
            bucket.sent(reservation, self._transport.sending_since_s)
        self._settle(tries, reservation, attempt)
        answered = attempt.verdict is Verdict.ANSWERED
        for name, window_s, before, limit in bucket.ended(reservation, readings, answered=answered):
            was = f", was {before:,.0f}" if before < math.inf else ""
            _log.info("limit%s: %s %s in %g s%s", _of(bucket), f"{limit:,.0f}", name, window_s, was)
        tries.note(attempt, self._clock())
        self._react(attempt, reservation, tries)
        return attempt

    def _send(self, request: Request, host: str) -> tuple[Attempt, Sequence[LimitReading]]:
        """How the exchange ended, and what its answer's headers say of limits."""
        readings: Sequence[LimitReading] = ()
        try:
            reply = self._transport.send(request)
            readings = read_limits(reply.headers, host)
            attempt = self._judge(reply)
            self._was_reached = True
        except TransportError as error:
            if error.is_cut:  # no fault of the server's, whatever attempt it was
                return Attempt(verdict=Verdict.STOPPED), ()
            verdict = Verdict.RETRY if error.retryable else Verdict.FAILED
            if error.unreachable:
                verdict = Verdict.UNREACHABLE
            attempt = Attempt(verdict=verdict, kind=error.kind, error=str(error))
        if attempt.error:
            attempt = replace(attempt, error=self._redact(attempt.error))
        return attempt, readings

    def _judge(self, reply: Reply) -> Attempt:
        """What ``reply`` means; of one that is no good answer, keys are cut out before it is read."""
        attempt = judge(reply)
        return attempt if attempt.verdict is Verdict.ANSWERED else judge(self._without_keys(reply))

    def _without_keys(self, reply: Reply) -> Reply:
        text = self._redact(reply.body.decode("utf-8", "replace"))
        headers = {name.lower(): self._redact(value) for name, value in reply.headers.items()}
        try:
            data, is_json = parse(text, strict=False), True
        except ValueError:
            data, is_json = None, False
        return Reply(
            status=reply.status, headers=headers, body=text.encode(), data=data, is_json=is_json
        )

    def _settle(self, tries: _AdmittedTries, reservation: Reservation, attempt: Attempt) -> None:
        """Charge what was used; less than reserved only where the provider counts so."""
        if attempt.used_tokens is None:
            return
        reserved, used = reservation.costs[1], float(attempt.used_tokens)
        output = attempt.output_tokens
        if output is not None:
            self._pricing.learn(tries.estimate, output)
        if used > reserved or (used < reserved and self._pricing.charges_use):
            tries.bucket.settle(reservation, used, output_tokens=output or 0)

    def _react(self, attempt: Attempt, reservation: Reservation, tries: _AdmittedTries) -> None:
        """What an attempt's end means for everyone else."""
        if attempt.verdict is Verdict.FATAL:
            self._stop.set(RunStoppedError(attempt.error))
        elif attempt.verdict is Verdict.RATE_LIMITED:
            self._pause(attempt, reservation, tries.bucket)
        elif attempt.verdict is Verdict.UNREACHABLE:
            self._wait_for_server(attempt, reservation, tries)
        elif attempt.refusal is not None:
            tries.bucket.refuse(reservation, attempt.refusal, None)

    def _pause(self, attempt: Attempt, refused: Reservation, bucket: TokenBucket) -> None:
        """Hold this bucket for as long as the server says; a wait of hours is the user's choice."""
        self._counters.refused()
        policy = self._options.retry
        seconds = policy.pause_s if attempt.retry_after_s is None else attempt.retry_after_s
        seconds = max(seconds, _LEAST_PAUSE_S)
        if seconds > policy.rate_limit_deadline_s:
            message = f"the server asks to wait {seconds:,.0f} s: {attempt.error}"
            self._stop.set(RunStoppedError(message))
        elif bucket.refuse(refused, attempt.refusal or Refusal(), seconds):
            self._counters.paused()
            _log.info("pausing for %.3g s after a rate limit%s", seconds, _of(bucket))

    def _wait_for_server(
        self, attempt: Attempt, refused: Reservation, tries: _AdmittedTries
    ) -> None:
        """Hold everybody while there is no server; one that never answered ends the run."""
        policy = self._options.retry
        if not self._was_reached and tries.unreachable >= policy.max_attempts:
            host = urlsplit(self._options.request_url).netloc.rpartition("@")[2]
            self._stop.set(RunStoppedError(f"can't reach {host}: {attempt.error}"))
            return
        seconds = longest_backoff_s(policy, tries.unreachable)
        if tries.bucket.pause(seconds, refused):
            self._counters.paused()
            _log.info("pausing for %.3g s: %s", seconds, attempt.error)

    def _tell_retry(self, tries: Tries, attempt: Attempt, seconds: float) -> None:
        if self._stop.is_set():
            return
        number, error = tries.request.number, attempt.error
        if attempt.verdict is not Verdict.RETRY:
            _log.warning("request %d waits for its turn: %s", number, error)
        else:
            _log.warning("request %d is tried again in %.1f s: %s", number, seconds, error)


def _of(bucket: TokenBucket) -> str:
    return f" of {bucket.model}" if bucket.model else ""


def flawed(request: Request) -> Outcome:
    """The outcome of a line that can't be sent."""
    return Outcome(
        request=request, ok=False, errors=(request.flaw or "",), error_kind="line can't be sent"
    )
