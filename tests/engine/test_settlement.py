"""What settling an attempt does, through a transport that plays a script and a clock we move."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from clocks import admitted_by

from parallel_processor.engine.settlement import Settled, Settlement
from parallel_processor.engine.stops import LeftOut
from parallel_processor.exceptions import RunStoppedError, StopRequested, TransportError
from parallel_processor.files.formats import made_request
from parallel_processor.files.records import record
from parallel_processor.models import Estimate, Outcome, Request, Response, Upstream
from parallel_processor.options import Limits, Options, RetryPolicy
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.transport.credentials import Credentials
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.attempt import AttemptRunner
from parallel_processor.workers.pending import PendingRequest

OPENAI = "https://api.openai.com/v1/chat/completions"
ANTHROPIC = "https://api.anthropic.com/v1/messages"
KEY = "sk-proj-AbCdEf0123456789xyzW"
TOKENS = 100


def reply(status: int = 200, data: Any = None, **headers: str) -> Response:
    """A reply with a JSON body; header names are written with ``_``."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"ok": True} if data is None else data
    return Response(
        status=status, headers=names, body=json.dumps(body).encode(), data=body, is_json=True
    )


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Response:
    """A reply with an OpenAI error."""
    return reply(status, {"error": {"message": message, "code": code, "type": "t"}}, **headers)


SERVER_ERROR = error(500, "oops")
TORN = TransportError("torn body: cut short", kind="torn body")


class Scripted:
    """A transport whose attempts end as the script says; the last end is repeated."""

    sending_since_s = 0.0

    def __init__(self, options: Options, *ends: Response | BaseException) -> None:
        self._ends = list(ends)
        self.sent: list[Request] = []
        self.before_send: Callable[[], None] = lambda: None
        self.credentials = Credentials(options)

    def renewal_fault(self) -> str:
        """Its key doesn't expire."""
        return ""

    def send(self, request: Request, upstream: Upstream, url: str) -> Response:
        self.before_send()
        self.sent.append(request)
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        if isinstance(end, BaseException):
            raise end
        return end


class Bench:
    """A settlement and all that it works with. Waiting for the bucket moves the clock."""

    def __init__(self, *ends: Response | BaseException, url: str = OPENAI, **settings: Any) -> None:
        self.now_s = 1000.0
        retry = settings.pop("retry", RetryPolicy(backoff_initial_s=0.0))
        limits = Limits(requests_per_minute=6000, tokens_per_minute=600_000)
        settings = {"limits": limits, **settings}
        self.options = Options(request_url=url, retry=retry, **settings)
        self.bucket = TokenBucket(self.options.limits, clock=self.clock)
        self.transport: Any = Scripted(self.options, *ends)
        self.attempts = AttemptRunner(self.transport)
        self.counters = Counters()
        self.stop = StopSignal()
        self.left_out = LeftOut(None)
        self.estimator = CostEstimator(self.options)
        self.settlement = Settlement(
            self.options,
            estimator=self.estimator,
            counters=self.counters,
            stop=self.stop,
            waker=None,
            clock=self.clock,
            left_out=self.left_out,
            on_left_out=lambda bucket: None,
            routes=Routes(self.options, TokenBuckets(self.options, self.clock)),
        )

    def clock(self) -> float:
        return self.now_s

    def reservation(self) -> Reservation:
        """Wait until the bucket admits an attempt."""
        reservation = Reservation(TOKENS)
        self.bucket.enqueue(reservation)
        while delay_s := self.bucket.poll(reservation):
            self.now_s += delay_s
        return reservation

    def run(self, number: int = 1) -> Outcome:
        """Take a request to its outcome, as the dispatcher and a worker thread do."""
        request = made_request({"input": "hello"}, number)
        pending = PendingRequest(
            request=request,
            estimate=Estimate(TOKENS, kind=self.estimator.estimate(request).kind),
            group=self.bucket,
            bucket=self.bucket,
        )
        while True:
            outcome, retry_in_s, _ = self.attempt(pending, self.reservation())
            if outcome is not None:
                return outcome
            self.now_s += retry_in_s

    def attempt(self, pending: PendingRequest, reservation: Reservation) -> Settled:
        """What one attempt ends in."""
        attempt = self.attempts.send_once(pending.request, self.bucket.upstream, self.bucket.host)
        return self.settlement.settle(pending, reservation, attempt)

    def admitted(self) -> tuple[float, float]:
        """The requests and tokens that the bucket counts."""
        usage = admitted_by(self.bucket)
        return usage["requests"], usage["tokens"]


# How a request ends


def test_an_answer_is_the_outcome() -> None:
    """A good answer ends the request with its reply and its use, after one attempt."""
    bench = Bench(reply(data={"usage": {"total_tokens": 42}}))
    outcome = bench.run()
    assert outcome.ok
    assert outcome.response == {"usage": {"total_tokens": 42}}
    assert (outcome.attempts, outcome.used_tokens, outcome.errors) == (1, 42, ())
    assert outcome.error is None


def test_failures_before_an_answer_stay_with_it() -> None:
    """An answer after retries tells what went wrong before, and is an answer all the same."""
    outcome = Bench(SERVER_ERROR, TORN, reply()).run()
    assert (outcome.ok, outcome.attempts, outcome.error) == (True, 3, None)
    assert [text.partition(":")[0] for text in outcome.errors] == ["HTTP 500 t", "torn body"]


def test_a_request_that_keeps_failing_has_an_error_per_attempt() -> None:
    """After ``max_attempts`` the outcome is a failure, with each attempt's reason."""
    bench = Bench(SERVER_ERROR, TORN, SERVER_ERROR, retry=_policy(max_attempts=3))
    outcome = bench.run()
    assert (outcome.ok, outcome.unanswered, outcome.attempts) == (False, False, 3)
    assert outcome.errors == ("HTTP 500 t: oops", "torn body: cut short", "HTTP 500 t: oops")
    assert (outcome.error_kind, outcome.error) == ("HTTP 500 t", "HTTP 500 t: oops")


@pytest.mark.parametrize(
    "end", [error(400, "bad"), error(404), TransportError("too large", kind="big", retryable=False)]
)
def test_a_request_that_cannot_succeed_is_sent_once(end: Response | TransportError) -> None:
    """What no retry helps is a failure after one attempt."""
    bench = Bench(end)
    outcome = bench.run()
    assert (outcome.ok, outcome.unanswered, outcome.attempts) == (False, False, 1)
    assert len(bench.transport.sent) == 1
    assert not bench.stop.is_set()


@pytest.mark.parametrize(
    "end", [error(401, "bad key", "invalid_api_key"), error(429, "pay", "insufficient_quota")]
)
def test_a_fatal_answer_stops_the_run(end: Response) -> None:
    """A wrong key or a spent account stops everybody, and leaves the request for the next run."""
    bench = Bench(end)
    outcome = bench.run()
    assert outcome.unanswered
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert str(bench.stop.cause) == outcome.error


def test_a_stop_during_an_attempt_ends_the_retries() -> None:
    """A failure after the stop isn't tried again, nor recorded: the next run sends it."""
    bench = Bench(SERVER_ERROR)
    bench.transport.before_send = lambda: bench.stop.set(StopRequested("enough"))
    outcome = bench.run()
    assert (outcome.unanswered, outcome.attempts) == (True, 1)
    assert len(bench.transport.sent) == 1
    assert bench.admitted() == (1.0, TOKENS)


def test_an_answer_after_the_stop_counts() -> None:
    """What was under way at the stop and is answered is answered."""
    bench = Bench(reply())
    bench.transport.before_send = lambda: bench.stop.set(StopRequested("enough"))
    assert bench.run().ok


def test_a_backoff_is_nobodys_wait() -> None:
    """A failed attempt gives its request back with a time, and keeps neither thread nor place."""
    bench = Bench(SERVER_ERROR, retry=RetryPolicy(backoff_initial_s=1e6, backoff_max_s=1e6))
    request = made_request({"input": "hello"}, 1)
    pending = PendingRequest(
        request=request, estimate=Estimate(TOKENS), group=bench.bucket, bucket=bench.bucket
    )
    outcome, retry_in_s, _ = bench.attempt(pending, bench.reservation())
    assert outcome is None
    assert 0 <= retry_in_s <= 1e6
    assert pending.retry_state is not None and pending.retry_state.errors == ["HTTP 500 t: oops"]
    assert bench.bucket.server.in_flight.count == 0


def test_an_unexpected_exception_passes_through() -> None:
    """A fault of ours is no outcome: the run has to end with it."""
    with pytest.raises(ZeroDivisionError):
        Bench(ZeroDivisionError("a bug")).run()


def _policy(**settings: Any) -> RetryPolicy:
    return RetryPolicy(backoff_initial_s=0.0, **settings)


# What it costs


def test_every_attempt_pays() -> None:
    """Each attempt is charged a request and its tokens, those that fail included."""
    bench = Bench(SERVER_ERROR, TORN, error(429), reply(), retry=_policy(pause_s=0.0))
    assert bench.run().ok
    assert bench.admitted() == (4.0, 4.0 * TOKENS)
    assert bench.counters.counts().rate_limited == 1


@pytest.mark.parametrize(
    ("url", "used", "charged"),
    [
        (OPENAI, 30, TOKENS),  # it charges what was reserved
        (OPENAI, 130, 130),
        (ANTHROPIC, 30, 30),  # it charges what was used
        (ANTHROPIC, 130, 130),
        ("https://api.groq.com/openai/v1/chat/completions", 0, 0),
    ],
)
def test_a_charge_is_settled_as_the_provider_counts(url: str, used: int, charged: int) -> None:
    """More than reserved is charged everywhere, less only where the provider counts what was used."""
    bench = Bench(reply(data={"usage": {"total_tokens": used}}), url=url)
    bench.run()
    assert bench.admitted() == (1.0, charged)


def test_an_answer_without_usage_costs_what_was_reserved() -> None:
    """Where the answer doesn't say, nothing is given back."""
    bench = Bench(reply(), url=ANTHROPIC)
    bench.run()
    assert bench.admitted() == (1.0, TOKENS)


# Rejections


@pytest.mark.parametrize(("headers", "pause_s"), [({"retry_after": "7"}, 7.0), ({}, 3.0)])
def test_a_rejection_pauses_everybody(headers: dict[str, str], pause_s: float) -> None:
    """The next attempt comes after as long as the server says, or else as ``pause_s``."""
    bench = Bench(error(429, **headers), reply(), retry=_policy(pause_s=3.0))
    assert bench.run().ok
    assert bench.now_s == pytest.approx(1000.0 + pause_s)
    counts = bench.counters.counts()
    assert (counts.rate_limited, counts.pauses) == (1, 1)


def test_a_wait_of_hours_stops_the_run() -> None:
    """A daily limit that opens in nine hours ends the run with the server's words."""
    bench = Bench(error(429, "daily limit", retry_after="32400"))
    outcome = bench.run()
    assert outcome.unanswered
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert bench.stop.cause.stop_cause == "server wait"
    assert "32,400 s" in str(bench.stop.cause)
    assert "daily limit" in str(bench.stop.cause)
    assert bench.now_s == 1000.0


def test_endless_rejections_fail_the_request_at_its_deadline() -> None:
    """A request that is only ever rejected fails, and the run goes on."""
    policy = _policy(rate_limit_deadline_s=100.0)
    bench = Bench(error(429, retry_after="30"), retry=policy)
    outcome = bench.run()
    assert (outcome.ok, outcome.unanswered, outcome.error_kind) == (False, False, "HTTP 429 t")
    assert bench.now_s == pytest.approx(1120.0)
    assert outcome.attempts == 5
    assert not bench.stop.is_set()


# Secrets


@pytest.mark.parametrize(
    "echo", [KEY, f"{KEY[:7]}********{KEY[-4:]}", f"{KEY[:8]}...", f"***{KEY[-4:]}"]
)
def test_no_error_holds_the_key(echo: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a server shows of the key is nowhere: not in errors, replies, causes or log lines."""
    caplog.set_level(logging.DEBUG)
    message = f"Incorrect API key provided: {echo}, see your account."
    ends = [
        error(500, message),
        error(429, message, retry_after="1"),
        TransportError(f"connection error: {echo}", kind=f"k {echo}"),
        error(401, message, "invalid_api_key"),
    ]
    bench = Bench(*ends, api_key=KEY)
    outcome = bench.run()
    said = [repr(outcome), *outcome.errors, str(bench.stop.cause), caplog.text]
    assert outcome.raw_response is not None
    said.append(outcome.raw_response.body.decode())
    assert len(outcome.errors) == 4
    for text in said:
        assert KEY not in text
        assert echo not in text
        assert KEY[-4:] not in text


def test_an_answer_stays_as_it_came() -> None:
    """A good answer is not searched for keys: it is the user's."""
    body = {"text": f"{KEY} and sk-another-0123456789"}
    outcome = Bench(reply(data=body), api_key=KEY).run()
    assert outcome.response == body
    assert outcome.raw_response is not None
    assert outcome.raw_response.body == json.dumps(body).encode()


# Log lines


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The level and the text of what was logged."""
    return [(entry.levelno, entry.getMessage()) for entry in caplog.records]


def test_each_event_has_a_line_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    """Pauses at 20, retries and rejections at 30; one line each, with the number."""
    caplog.set_level(logging.DEBUG)
    Bench(SERVER_ERROR, error(429, retry_after="2"), reply()).run(number=17)
    assert lines(caplog) == [
        (30, "request 17 is tried again in 0.0 s: HTTP 500 t: oops"),
        (20, "pausing for 2 s after a rate limit"),
        (30, "request 17 waits to be sent again: HTTP 429 t: no"),
    ]


@pytest.mark.parametrize(
    ("limits", "headers", "told"),
    [
        (Limits(), {"x-ratelimit-limit-requests": "30000"}, ["requests"]),
        (Limits(), {"x-ratelimit-limit-tokens": "2000000"}, ["tokens"]),
        (Limits(requests_per_minute=9), {"x-ratelimit-limit-requests": "30000"}, []),
        (Limits(requests_per_minute=1500), {"x-ratelimit-limit-requests": "30000"}, []),
        (Limits(requests_per_minute="auto"), {"x-ratelimit-limit-requests": "30000"}, []),
        (Limits(), {"x-ratelimit-limit-requests": "500"}, []),
    ],
)
def test_a_default_below_what_the_server_allows_is_told_once(
    limits: Limits, headers: dict[str, str], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody set a limit, the log names the server's number and the flag, once a run."""
    names = {name.replace("-", "_"): value for name, value in headers.items()}
    bench = Bench(reply(**names), limits=limits)
    caplog.set_level(logging.WARNING)
    for number in (1, 2):
        bench.run(number)
        bench.now_s += 60.0
    warnings = [text for _, text in lines(caplog) if "the default of" in text]
    assert len(warnings) == len(told)
    assert all(
        f"--max_{name}_per_minute" in text for name, text in zip(told, warnings, strict=True)
    )


def test_an_error_of_many_lines_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A page of HTML in an error doesn't tear the log."""
    caplog.set_level(logging.DEBUG)
    page = Response(status=502, headers={}, body=b"<html>\r\n<body>\n\nBad Gateway\n</body>")
    Bench(page, reply()).run()
    assert all("\n" not in text and "\r" not in text for _, text in lines(caplog))


def test_after_a_stop_no_retry_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    """A failure that won't be tried again isn't said to be."""
    caplog.set_level(logging.INFO)
    bench = Bench(SERVER_ERROR)
    bench.transport.before_send = lambda: bench.stop.set(StopRequested("enough"))
    bench.run()
    assert lines(caplog) == []


def test_nothing_is_formatted_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    """At level 40 a request that is answered in the end leaves no line."""
    caplog.set_level(logging.ERROR)
    Bench(SERVER_ERROR, error(429, retry_after="2"), reply()).run()
    assert lines(caplog) == []


# A server that can't be reached


UNREACHABLE = TransportError(
    "connection error: Connection refused", kind="connection error", unreachable=True
)


def test_a_server_that_is_away_for_a_while_costs_no_attempt() -> None:
    """Nothing was sent, so everybody waits, longer each time, and the request goes on as if new."""
    retry = RetryPolicy(max_attempts=2, backoff_initial_s=1.0)
    bench = Bench(reply(), UNREACHABLE, UNREACHABLE, UNREACHABLE, UNREACHABLE, reply(), retry=retry)
    assert bench.run().ok
    before_s = bench.now_s
    outcome = bench.run()
    assert outcome.ok and outcome.attempts == 5
    assert bench.now_s - before_s == pytest.approx(1 + 2 + 4 + 5)
    assert bench.counters.counts().pauses == 4


def test_a_server_that_never_answered_ends_the_run() -> None:
    """After ``max_attempts`` the run stops with the host's name, and the request has no record."""
    bench = Bench(UNREACHABLE, retry=RetryPolicy(max_attempts=3, backoff_initial_s=1.0))
    outcome = bench.run()
    assert outcome.unanswered and outcome.attempts == 3
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert bench.stop.cause.stop_cause == "unreachable"
    assert str(bench.stop.cause) == (
        "can't reach api.openai.com: connection error: Connection refused"
    )


def test_a_model_whose_server_stays_away_is_left_out_at_the_deadline() -> None:
    """A server that did answer once gets ``rate_limit_deadline_s``; then its requests stay unanswered."""
    retry = RetryPolicy(backoff_initial_s=1.0, backoff_max_s=60.0, rate_limit_deadline_s=100.0)
    bench = Bench(reply(), UNREACHABLE, retry=retry)
    assert bench.run().ok
    before_s = bench.now_s
    outcome = bench.run()
    assert outcome.unanswered
    assert 100.0 <= bench.now_s - before_s < 106.0
    assert str(bench.left_out.error()) == (
        "requests are left unanswered: the server was not ready for 100 s: "
        "connection error: Connection refused"
    )
    assert not bench.stop.is_set()


SETUP = TransportError("TLS error: expired", kind="TLS error", is_setup=True)


def test_a_fault_of_the_setup_ends_the_run_at_once() -> None:
    """Nothing was answered yet, and no attempt can succeed: the request has no record."""
    bench = Bench(SETUP)
    outcome = bench.run()
    assert outcome.unanswered and outcome.attempts == 1
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert (bench.stop.cause.stop_cause, str(bench.stop.cause)) == ("setup", "TLS error: expired")


def test_a_fault_of_the_setup_that_goes_away_is_an_outage() -> None:
    """Once the server has answered, a certificate or a proxy that fails costs no attempt."""
    retry = RetryPolicy(max_attempts=2, backoff_initial_s=1.0)
    bench = Bench(reply(), SETUP, SETUP, SETUP, reply(), retry=retry)
    assert bench.run().ok
    assert bench.run().ok
    assert not bench.stop.is_set()


def test_a_fault_of_the_setup_that_stays_ends_the_run_in_the_end() -> None:
    """After ``rate_limit_deadline_s`` the run stops with the remedy instead of failing line by line."""
    retry = RetryPolicy(backoff_initial_s=1.0, backoff_max_s=60.0, rate_limit_deadline_s=100.0)
    bench = Bench(reply(), SETUP, retry=retry)
    assert bench.run().ok
    assert bench.run().unanswered
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert bench.stop.cause.stop_cause == "setup"


def test_a_proxy_that_is_away_is_named_and_not_the_host() -> None:
    """The text of such a failure says which proxy it is."""
    gone = TransportError("proxy error: no proxy", kind="proxy error", unreachable=True)
    bench = Bench(gone, retry=RetryPolicy(max_attempts=2, backoff_initial_s=1.0))
    assert bench.run().unanswered
    assert str(bench.stop.cause) == "proxy error: no proxy"


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_no_part_of_a_key_survives_where_a_text_is_shortened(status: int) -> None:
    """Keys are cut out before anything else is, whatever they look like."""
    key = "3f9c81d2a7b64e05b1c2d3e4f5a60718"
    for length in range(440, 500, 7):
        body = {"error": {"message": "x" * length + " " + key, "code": "y" * 80 + key}}
        bench = Bench(reply(status, body, x_request_id=f"req-{key}"), api_key=key)
        outcome = bench.run()
        assert not outcome.ok
        shown = f"{outcome.errors}{outcome.error_kind}{bench.stop.cause!r}{outcome.raw_response}"
        shown += record(outcome).decode() + str(
            outcome.raw_response and dict(outcome.raw_response.headers)
        )
        assert not any(key[i : i + 8] in shown for i in range(len(key) - 8))


PAGE = Response(status=200, headers={}, body=b"<!doctype html><title>Sign in</title>")


def test_a_web_page_stops_a_run_that_has_no_answer_yet() -> None:
    """The URL is wrong: one attempt is made, and the stop names the URL."""
    bench = Bench(PAGE)
    assert bench.run().unanswered and len(bench.transport.sent) == 1
    assert isinstance(bench.stop.cause, RunStoppedError)
    assert bench.stop.cause.stop_cause == "setup"
    assert "web page" in str(bench.stop.cause)


def test_a_web_page_amid_answers_is_tried_again() -> None:
    """The URL was right: another attempt is answered, and the run goes on."""
    bench = Bench(reply(), PAGE, reply())
    assert [bench.run(number).ok for number in (1, 2)] == [True, True]
    assert bench.stop.cause is None
