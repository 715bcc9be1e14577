"""What becomes of a request: the checks in the order in which a real API makes them.

The key, the money, the body, the limits; then the time an answer takes, and the answer or a fault.
A fault therefore costs its request's tokens, as a failed request does at OpenAI. A refusal by the
limits costs nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from parallel_processor.models import Endpoint
from parallel_processor.simulator.answers import Answerer, TokenCounting, endpoint_of, model_of
from parallel_processor.simulator.connection import Connection
from parallel_processor.simulator.faults import (
    CONNECTION_FAULTS,
    FAULT_REPLIES,
    SSE_BODY,
    FaultPlan,
    digest_of,
)
from parallel_processor.simulator.limits import QuotaLevel, RateLimits
from parallel_processor.simulator.options import SimulatorOptions
from parallel_processor.simulator.refusals import (
    error_reply,
    go_duration,
    out_of_quota,
    refused,
    wrong_key,
)
from parallel_processor.simulator.stats import Stats
from parallel_processor.simulator.wire import HttpReply, HttpRequest

_HELP = """A simulated LLM API: no model, no cost, but real rate limits.
POST  …/chat/completions  …/responses  …/completions  …/embeddings  …/moderations  …/messages
GET   /stats    what was received, answered and refused, as JSON
GET   /healthz  ok
"""


class Service:
    """Answers requests by the options. Safe to call from any number of connection threads."""

    def __init__(
        self, options: SimulatorOptions, counter: TokenCounting, clock: Callable[[], float]
    ) -> None:
        self.stats = Stats(started_s=clock())
        self._options = options
        self._counter = counter
        self._clock = clock
        self._random = random.Random(options.seed)  # only random(), which is one atomic call
        self._answerer = Answerer(counter, embedding_dimensions=options.embedding_dimensions)
        self._limits = RateLimits(
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            reject_oversize=options.reject_oversize,
            clock=clock,
        )
        self._faults = FaultPlan(
            rate=options.error_rate, attempts=options.error_attempts, kinds=options.errors
        )

    def serve(self, request: HttpRequest, connection: Connection) -> None:
        """Answer one request, or fail to as planned; raises OSError when the connection is over."""
        if request.method != "POST":
            connection.send(self._get(request), keep_alive=request.keep_alive)
            return
        exchange = _Exchange(self.stats.arrived(), self._clock())
        try:
            try:
                reply, fault = self._post(request, connection, exchange)
            except RecursionError:  # nested more deeply than Python goes
                reply, fault = self._unreadable(exchange), None
            if fault is not None:
                _play(fault, reply, connection, self._options.stall_s)
                if fault == "drip":
                    self.stats.answered(exchange.digest, None)
                raise ConnectionAbortedError(fault)
        finally:
            self.stats.left()
        connection.send(reply, keep_alive=request.keep_alive)

    def _get(self, request: HttpRequest) -> HttpReply:
        if request.method == "HEAD":  # whose answers have no body
            return HttpReply(status=405, body=b"")
        if request.method != "GET":
            message = f"Not allowed to {request.method} on {request.path}"
            return error_reply(405, message, "invalid_request_error", None)
        if request.path == "/stats":
            summary = json.dumps(self.stats.summary()) + "\n"
            return HttpReply(status=200, body=summary.encode())
        texts = {"/": _HELP, "/healthz": "ok\n"}
        if request.path in texts:
            body = texts[request.path].encode()
            return HttpReply(status=200, body=body, content_type="text/plain; charset=utf-8")
        message = f"Invalid URL (GET {request.path})"
        return error_reply(404, message, "invalid_request_error", None)

    def _post(
        self, request: HttpRequest, connection: Connection, exchange: _Exchange
    ) -> tuple[HttpReply, str | None]:
        """Return the reply, and the fault of the connection that is to befall it."""
        reply = self._turn_down(request, exchange)
        if reply is not None:
            return reply, None
        exchange.digest = digest_of(request.body, self._options.seed)
        exchange.latency_s = self._latency_s()
        if exchange.latency_s > 0:
            connection.pause(exchange.latency_s)
        fault = self._faults.next_fault(exchange.digest)
        if fault is not None:
            self.stats.faulted(fault)
            if fault not in CONNECTION_FAULTS:
                return _with_headers(FAULT_REPLIES[fault], exchange.headers()), None
        reply = self._answer(exchange)
        if fault is None and not self.stats.answered(exchange.digest, self._options.spend_limit):
            self.stats.count("out_of_quota")  # the last of the money went while this one waited
            return out_of_quota(exchange.headers()), None
        return reply, fault

    def _turn_down(self, request: HttpRequest, exchange: _Exchange) -> HttpReply | None:
        """Return a refusal; None, with the tokens charged, for a request that is to be answered."""
        options, stats = self._options, self.stats
        if options.api_key not in (None, request.api_key):
            stats.count("unauthorised")
            return wrong_key(request.api_key, exchange.headers())
        if options.spend_limit is not None and stats.answers() >= options.spend_limit:
            stats.count("out_of_quota")
            exchange.levels = self._limits.levels()
            return out_of_quota(exchange.headers())
        try:
            exchange.body = _parse(request.body)
        except ValueError:
            return self._unreadable(exchange)
        exchange.endpoint = endpoint_of(request.path)
        exchange.read = self._counter.input_tokens(exchange.body, exchange.endpoint)
        written = self._counter.output_tokens(exchange.body, exchange.endpoint)
        verdict = self._limits.admit(exchange.read + written)
        exchange.levels = verdict.levels
        if verdict.refusal is not None:
            stats.count("refused")
            return refused(verdict.refusal, model_of(exchange.body), exchange.headers())
        stats.admitted(exchange.arrived_s, exchange.read + written)
        return None

    def _unreadable(self, exchange: _Exchange) -> HttpReply:
        self.stats.count("bad_requests")
        exchange.levels = self._limits.levels()
        message = "We could not parse the JSON body of your request."
        return error_reply(400, message, "invalid_request_error", None, exchange.headers())

    def _answer(self, exchange: _Exchange) -> HttpReply:
        body, headers = exchange.body, exchange.headers()
        if body.get("stream") is True:
            content_type = "text/event-stream"
            content = SSE_BODY.encode()
        else:
            content_type = "application/json"
            content = self._answerer.answer(body, exchange.endpoint, exchange.number, exchange.read)
        return HttpReply(status=200, body=content, headers=headers, content_type=content_type)

    def _latency_s(self) -> float:
        latency_s, jitter = self._options.latency_s, self._options.latency_jitter
        if not jitter:
            return latency_s
        return latency_s * (1 + jitter * (2 * self._random.random() - 1))


class _Exchange:
    """A POST on its way to its answer, and what is known of it so far; used by one thread."""

    __slots__ = (
        "arrived_s",
        "body",
        "digest",
        "endpoint",
        "latency_s",
        "levels",
        "number",
        "read",
    )

    def __init__(self, number: int, arrived_s: float) -> None:
        self.number = number
        self.arrived_s = arrived_s
        self.body: dict[str, Any] = {}
        self.endpoint = Endpoint.UNKNOWN
        self.read = 0
        self.digest = 0
        self.latency_s = 0.0
        self.levels: tuple[QuotaLevel, ...] = ()

    def headers(self) -> str:
        """Write the headers that every answer has, as far as they are known."""
        lines = [
            f"x-request-id: req_{self.number:032x}\r\n"
            f"openai-processing-ms: {round(self.latency_s * 1000)}\r\n"
        ]
        for level in self.levels:
            lines.append(
                f"x-ratelimit-limit-{level.name}: {int(level.limit)}\r\n"
                f"x-ratelimit-remaining-{level.name}: {int(level.remaining)}\r\n"
                f"x-ratelimit-reset-{level.name}: {go_duration(level.reset_s)}\r\n"
            )
        return "".join(lines)


def _parse(body: bytes) -> dict[str, Any]:
    parsed = json.loads(body)
    if not isinstance(parsed, dict):
        raise ValueError("the body is no JSON object")
    return parsed


def _play(fault: str, reply: HttpReply, connection: Connection, stall_s: float) -> None:
    if fault == "reset":
        connection.reset()
    elif fault == "torn":
        connection.send_torn(reply)
    elif fault == "stall":
        connection.stall(stall_s)
    else:
        connection.send_drip(reply)


def _with_headers(reply: HttpReply, headers: str) -> HttpReply:
    return HttpReply(
        status=reply.status,
        body=reply.body,
        headers=headers + reply.headers,
        content_type=reply.content_type,
    )
