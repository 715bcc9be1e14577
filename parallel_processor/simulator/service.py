"""What becomes of a request: the checks in the order in which a real API makes them.

The rules, as a gateway before the API would apply them; the key, the money, the body, the load, the
limits; then the time an answer takes, and the answer or a fault. A fault therefore costs its
request's tokens, as a failed request does at OpenAI. A refusal by the limits costs nothing, and
neither does a rule's answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from parallel_processor.simulator.answers import Answerer, TokenCounting, model_of
from parallel_processor.simulator.connection import Connection
from parallel_processor.simulator.dialects import Canned
from parallel_processor.simulator.exchange import Exchange
from parallel_processor.simulator.faults import (
    CONNECTION_FAULTS,
    FAULT_REPLIES,
    SSE_BODY,
    FaultPlan,
    digest_of,
)
from parallel_processor.simulator.headers import HEADER_STYLES, LimitHeaders
from parallel_processor.simulator.limits import RateLimits
from parallel_processor.simulator.load import Load
from parallel_processor.simulator.names import ModelNames
from parallel_processor.simulator.options import SimulatorOptions
from parallel_processor.simulator.places import dialect_of, endpoint_at, model_in
from parallel_processor.simulator.quotas import Refusal
from parallel_processor.simulator.refusals import (
    error_reply,
    out_of_quota,
    refused,
    refused_by_anthropic,
    refused_by_litellm,
    wrong_key,
)
from parallel_processor.simulator.rules import IN_DIALECT, CannedAnswer, Rule, Rules
from parallel_processor.simulator.stats import Stats
from parallel_processor.simulator.tiers import Tiers, asked_tier
from parallel_processor.simulator.timeline import Timeline
from parallel_processor.simulator.wire import HttpReply, HttpRequest

_HELP = """A simulated LLM API: no model, no cost, but real rate limits.
POST  …/chat/completions  …/responses  …/completions  …/embeddings  …/moderations  …/messages
GET   /stats     what was received, answered and refused, as JSON
GET   /timeline  by model and second: [admitted, tokens charged, refused, answered]
GET   /healthz   ok
"""


class Service:
    """Answers requests by the options. Safe to call from any number of connection threads."""

    def __init__(
        self, options: SimulatorOptions, counter: TokenCounting, clock: Callable[[], float]
    ) -> None:
        self.stats = Stats(started_s=clock())
        self.timeline = Timeline()
        self._options = options
        self._counter = counter
        self._clock = clock
        self._random = random.Random(options.seed)  # only random(), which is one atomic call
        self._answerer = Answerer(
            counter,
            embedding_dimensions=options.embedding_dimensions,
            answer_tokens=options.answer_tokens,
        )
        self._names = ModelNames()
        self._limits = RateLimits(options, clock=clock)
        self._headers = {style: LimitHeaders(style) for style in HEADER_STYLES}
        self._load = Load(
            best=options.best_in_flight,
            exponent=options.overload_exponent,
            most=options.refuse_in_flight,
            slots=options.slots,
        )
        self._rules = Rules(options.rules, draw=self._random.random)
        self._tiers = Tiers(options.tier_grants, options.tier_refusal, self._random.random)
        self._faults = FaultPlan(
            rate=options.error_rate, attempts=options.error_attempts, kinds=options.errors
        )

    def summary(self) -> dict[str, Any]:
        """Return every figure of GET /stats."""
        admitted, refused = self._limits.rival()
        return self.stats.summary() | {"rival_admitted": admitted, "rival_refused": refused}

    def elapsed_s(self) -> float:
        """Return the seconds since the first request, 0 before it."""
        return self._limits.elapsed_s()

    def serve(self, request: HttpRequest, connection: Connection) -> None:
        """Answer one request, or fail to as planned; raises OSError when the connection is over."""
        if request.method != "POST":
            connection.send(self._get(request), keep_alive=request.keep_alive)
            return
        dialect = dialect_of(request.host, request.path, self._options.dialect)
        exchange = Exchange(self.stats.arrived(), self._clock(), dialect)
        try:
            try:
                reply, fault = self._post(request, connection, exchange)
            except RecursionError:  # nested more deeply than Python goes
                reply, fault = self._unreadable(exchange), None
            if fault is not None:
                _play(fault, reply, connection, self._options.stall_s)
                if fault == "drip":
                    self._answered(exchange, None)
                raise ConnectionAbortedError(fault)
        finally:
            self.stats.left()
            if exchange.in_flight:
                self._load.leave()
            if exchange.ruled:
                self._rules.leave()
        connection.send(reply, keep_alive=request.keep_alive)

    def _get(self, request: HttpRequest) -> HttpReply:
        if request.method == "HEAD":  # whose answers have no body
            return HttpReply(status=405, body=b"")
        if request.method != "GET":
            message = f"Not allowed to {request.method} on {request.path}"
            return error_reply(405, message, "invalid_request_error", None)
        figures = {"/stats": self.summary, "/timeline": self.timeline.snapshot}
        if request.path in figures:
            text = json.dumps(figures[request.path]()) + "\n"
            return HttpReply(status=200, body=text.encode())
        texts = {"/": _HELP, "/healthz": "ok\n"}
        if request.path in texts:
            body = texts[request.path].encode()
            return HttpReply(status=200, body=body, content_type="text/plain; charset=utf-8")
        message = f"Invalid URL (GET {request.path})"
        return error_reply(404, message, "invalid_request_error", None)

    def _post(
        self, request: HttpRequest, connection: Connection, exchange: Exchange
    ) -> tuple[HttpReply, str | None]:
        """Return the reply, and the fault of the connection that is to befall it."""
        if self._options.rules:
            rule = self._rules.catch(request.body, self._limits.start_s())
            if rule is not None:
                return self._ruled(rule, exchange)
            exchange.ruled = True
        reply = self._turn_down(request, exchange)
        if reply is not None:
            return reply, None
        place = request.path.encode() if model_in(request.path) else b""
        exchange.digest = digest_of(place + request.body, self._options.seed)
        work_s = self._latency_s() * self._load.slowdown(exchange.in_flight)
        exchange.latency_s = self._load.time_s(self._clock(), work_s)
        if exchange.latency_s > 0:
            connection.pause(exchange.latency_s)
            if connection.is_left():
                self.stats.count("abandoned")
        fault = self._faults.next_fault(exchange.digest)
        if fault is not None:
            self.stats.faulted(fault)
            if fault not in CONNECTION_FAULTS:
                return _with_headers(FAULT_REPLIES[fault], self._lines(exchange)), None
        reply = self._answer(exchange)
        if fault is None and not self._answered(exchange, self._options.spend_limit):
            self.stats.count("out_of_quota")  # the last of the money went while this one waited
            return out_of_quota(self._lines(exchange)), None
        return reply, fault

    def _ruled(self, rule: Rule, exchange: Exchange) -> tuple[HttpReply, str | None]:
        """Return a rule's answer, or the fault of the connection that stands for it."""
        self.stats.faulted(rule.name)
        if isinstance(rule.answer, CannedAnswer):
            return _with_headers(rule.answer.reply(), self._lines(exchange)), None
        if rule.answer in CONNECTION_FAULTS:
            return HttpReply(status=200, body=b""), rule.answer
        if rule.answer in IN_DIALECT:
            exchange.levels = self._limits.levels()
            return self._in_dialect(rule.answer, exchange, wait_s=0.0), None
        return _with_headers(FAULT_REPLIES[rule.answer], self._lines(exchange)), None

    def _in_dialect(self, name: str, exchange: Exchange, *, wait_s: float | None) -> HttpReply:
        """Return an error as the dialect words it, with the time to wait if there is one."""
        headers, dialect = self._lines(exchange), exchange.dialect
        if name == "limited" and wait_s is not None and dialect.says_wait:
            headers += self._style(exchange).wait(wait_s)
        canned: Canned = getattr(dialect, name)
        wait = "" if wait_s is None else f"{wait_s:g}"
        names = {"id": exchange.request_id, "wait": wait, "model": exchange.model}
        return canned.reply(headers, **names)

    def _turn_down(self, request: HttpRequest, exchange: Exchange) -> HttpReply | None:
        """Return a refusal; None, with the tokens charged, for a request that is to be answered."""
        options, stats = self._options, self.stats
        if not self._has_key(request, exchange):
            stats.count("unauthorised")
            if exchange.dialect.name != "openai":
                return self._in_dialect("wrong_key", exchange, wait_s=None)
            return wrong_key(request.api_key, self._lines(exchange))
        if options.spend_limit is not None and stats.answers() >= options.spend_limit:
            stats.count("out_of_quota")
            exchange.levels = self._limits.levels()
            return out_of_quota(self._lines(exchange))
        try:
            exchange.body = _parse(request.body)
        except ValueError:
            return self._unreadable(exchange)
        exchange.endpoint = endpoint_at(request.path)
        if "model" not in exchange.body and (model := model_in(request.path)):
            exchange.body["model"] = model
        exchange.tier = asked_tier(exchange.body) if options.tier_grants else ""
        exchange.model = self._names.of(model_of(exchange.body))
        exchange.model += f"@{exchange.tier}" if exchange.tier else ""
        exchange.read = self._counter.input_tokens(exchange.body, exchange.endpoint)
        exchange.in_flight = self._load.enter()
        if not exchange.in_flight:
            stats.count("overloaded")
            return _with_headers(FAULT_REPLIES["503"], self._lines(exchange))
        return self._admit(exchange)

    def _has_key(self, request: HttpRequest, exchange: Exchange) -> bool:
        """Tell whether the key came in a header in which the dialect looks for it."""
        wanted, names = self._options.api_key, exchange.dialect.key_headers
        if wanted is None or (exchange.dialect.name == "openai" and wanted == request.api_key):
            return True
        return any(request.keys.get(name) == wanted for name in names)

    def _admit(self, exchange: Exchange) -> HttpReply | None:
        """Charge a request to the limits, and return None, or their refusal."""
        written = 0
        if self._options.token_charge == "reserve":
            written = self._counter.output_tokens(exchange.body, exchange.endpoint)
        exchange.cost = exchange.read + written
        verdict = self._limits.admit(exchange.model, read=exchange.read, written=written)
        exchange.levels = verdict.levels
        if verdict.refusal is not None:
            self.stats.count("refused")
            self.timeline.book(exchange.model, verdict.at_s, refused=1)
            return self._refused(verdict.refusal, exchange)
        self.stats.admitted(exchange.arrived_s, exchange.cost)
        self.timeline.book(exchange.model, verdict.at_s, admitted=1, tokens=exchange.cost)
        exchange.tier, full = self._tiers.admit(exchange.tier, self._lines(exchange))
        if full is not None:
            self.stats.count("tier_full")
        return full

    def _refused(self, refusal: Refusal, exchange: Exchange) -> HttpReply:
        options, model, style = self._options, model_of(exchange.body), self._style_name(exchange)
        headers, hint = self._lines(exchange), options.retry_after
        has_numbers = exchange.dialect.name in ("openai", "anthropic", "litellm")
        if not has_numbers and refusal.wait_s is not None:
            return self._in_dialect("limited", exchange, wait_s=refusal.wait_s if hint else None)
        if hint and refusal.wait_s is not None:
            headers += self._style(exchange).wait(refusal.wait_s)
        if "anthropic" in (style, exchange.dialect.name):
            request_id = exchange.request_id
            return refused_by_anthropic(refusal, model, headers, request_id=request_id, hint=hint)
        if "litellm" in (style, exchange.dialect.name) and refusal.wait_s is not None:
            return refused_by_litellm(refusal, headers)
        return refused(refusal, model, headers, code=options.refusal_code, hint=hint)

    def _unreadable(self, exchange: Exchange) -> HttpReply:
        self.stats.count("bad_requests")
        exchange.levels = self._limits.levels()
        message = "We could not parse the JSON body of your request."
        return error_reply(400, message, "invalid_request_error", None, self._lines(exchange))

    def _answer(self, exchange: Exchange) -> HttpReply:
        content, written = self._answerer.answer(
            exchange.body,
            exchange.endpoint,
            number=exchange.number,
            read=exchange.read,
            digest=exchange.digest,
        )
        self.stats.wrote(exchange.read, written)
        if self._options.token_charge == "usage":
            self._settle(exchange, written)
        content_type = "application/json"
        if exchange.body.get("stream") is True:
            content, content_type = SSE_BODY.encode(), "text/event-stream"
        headers = self._lines(exchange)
        reply = HttpReply(status=200, body=content, headers=headers, content_type=content_type)
        is_told = exchange.tier and content_type == "application/json"
        return self._tiers.tell(exchange.tier, reply) if is_told else reply

    def _settle(self, exchange: Exchange, written: int) -> None:
        """Charge what was written."""
        verdict = self._limits.settle(exchange.model, written=written)
        exchange.levels = verdict.levels
        exchange.cost += written
        self.stats.settled(self._clock(), written)
        self.timeline.book(exchange.model, verdict.at_s, tokens=written)

    def _answered(self, exchange: Exchange, at_most: int | None) -> bool:
        """Count a good answer; False if `at_most` were counted."""
        if not self.stats.answered(exchange.digest, at_most):
            return False
        self.timeline.book(exchange.model, self._limits.elapsed_s(), answered=1)
        return True

    def _lines(self, exchange: Exchange) -> str:
        return exchange.headers(self._style(exchange))

    def _style(self, exchange: Exchange) -> LimitHeaders:
        return self._headers[self._style_name(exchange)]

    def _style_name(self, exchange: Exchange) -> str:
        """Return the form of the limits' headers: as told, else the dialect's."""
        style = self._options.header_style
        return exchange.dialect.style if style == "auto" else style

    def _latency_s(self) -> float:
        latency_s, jitter = self._options.latency_s, self._options.latency_jitter
        if not jitter:
            return latency_s
        return latency_s * (1 + jitter * (2 * self._random.random() - 1))


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
