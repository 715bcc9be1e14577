"""Tiers and fallbacks: which requests go on, what is sent there, and what stands on record."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import services
from clocks import FakeClock
from commands import read_lines, write_lines
from raw_server import RawServer, Visit, header_of
from requests import Session

from parallel_processor import (
    ConfigurationError,
    Limits,
    Processor,
    Request,
    RetryPolicy,
    RunStoppedError,
    StopCause,
    read_results,
)
from parallel_processor.engine.queues import RequestQueues
from parallel_processor.engine.stops import LeftOut
from parallel_processor.models import Estimate
from parallel_processor.options import Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.simulator.tiers import no_capacity
from parallel_processor.tokens.estimates import Cost
from parallel_processor.upstreams.lanes import Lanes, lanes_of
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest

CHAT = "/v1/chat/completions"
GOOD = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
Reply = tuple[int, Any, str]


def good(headers: str = "", **members: Any) -> Reply:
    """An answer with ``members``."""
    return 200, GOOD | members, headers


def error(status: int, message: str, code: str | None = None, headers: str = "") -> Reply:
    """A failure in OpenAI's form."""
    return status, {"error": {"message": message, "type": "t", "code": code}}, headers


INVOKE = "https://bedrock-runtime.us-east-1.amazonaws.com/model/x/invoke"
FULL = error(429, "no resources for flex", "resource_unavailable")


class Provider:
    """A server that answers each body by a function, and keeps what it was asked for."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self._reply = reply
        self.asked: list[dict[str, Any]] = []

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            body = json.loads(visit.body)
            self.asked.append(body)
            status, data, headers = self._reply(body)
            visit.answer(json.dumps(data).encode(), status=f"{status} x", headers=headers)

    @property
    def tiers(self) -> list[str | None]:
        """The tiers that were asked for, in order."""
        return [body.get("service_tier") for body in self.asked]


def by_tier(**replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Replies by the tier that is asked for, or else ``other``."""
    return lambda body: replies.get(body.get("service_tier", "other"), good())


def rows(count: int) -> list[dict[str, Any]]:
    return [{"model": "m", "messages": [{"role": "user", "content": f"{n}"}]} for n in range(count)]


def ask(provider: Provider, *given: Any, **settings: Any) -> list[Any]:
    """The outcomes of ``given`` at ``provider``, one after the other; by default flex goes first."""
    tiers = settings.pop("service_tiers", ("flex", "default"))
    with (
        RawServer(provider) as server,
        services.processor(
            server.url, CHAT, **{"service_tiers": tiers, "max_workers": 1} | settings
        ) as processor,
    ):
        return list(processor.map(given))


# What goes on.


@pytest.mark.parametrize("form", ["openai", "groq", "azure", "gemini", "bedrock"])
def test_what_a_tier_has_no_room_for_goes_on_at_once(form: str) -> None:
    """Whatever the provider calls it. Azure says only that the model has no such tier."""
    refusal = no_capacity(form, "")
    full = (refusal.status, json.loads(refusal.body), "")
    provider = Provider(by_tier(flex=full, default=good(service_tier="default")))
    (outcome,) = ask(provider, *rows(1))
    assert provider.tiers == ["flex", "default"]
    assert (outcome.ok, outcome.attempts, outcome.service_tier) == (True, 2, "default")


@pytest.mark.parametrize(
    "refusal",
    [
        # Groq's gateway in laravel/ai did not take it for a reason to fail over (laravel/ai 925).
        (
            498,
            {"error": {"message": "Flex tier capacity exceeded", "type": "capacity_exceeded"}},
            "",
        ),
        # Azure under load; its users route the overflow themselves (pollinations 6260, azurerm 29085).
        error(
            429,
            "The system is currently experiencing high demand and cannot process your request. "
            "Your request exceeds the maximum usage size allowed during peak load. Please retry "
            "after 20 seconds.",
            "429",
        ),
        # Said after five minutes in a queue (maritaca-ai/maritalk-api 210).
        error(429, "No capacity for the flex tier: queue is full"),
        # NVIDIA's worker queue, in words of gRPC (NousResearch/hermes-agent 104223).
        error(503, "ResourceExhausted: Worker local total request limit reached"),
    ],
)
def test_reported_refusals_go_on(refusal: Reply) -> None:
    """As users of other clients met them."""
    provider = Provider(by_tier(flex=refusal))
    (outcome,) = ask(provider, *rows(1))
    assert provider.tiers == ["flex", "default"] and outcome.ok


def test_the_replicas_of_a_tier_are_asked_before_the_next_tier() -> None:
    """Each once: one has no room, and another may have."""
    full, free = Provider(by_tier(flex=FULL)), Provider(by_tier(flex=good(service_tier="flex")))
    with RawServer(full) as first, RawServer(free) as second, RawServer(full) as third:
        for other, tiers in ((second, {"flex"}), (third, {"default"})):
            settings: Any = {
                "service_tiers": ("flex", "default"),
                "replica_urls": [other.url + CHAT],
            }
            with services.processor(first.url, CHAT, **settings) as processor:
                (outcome,) = processor.map(rows(1))
            assert outcome.ok and {outcome.service_tier} == tiers
        assert Counter(full.tiers)["flex"] <= 3


def test_a_fallback_that_can_not_take_the_request_says_so() -> None:
    """The errors of both are there; LiteLLM shows the fallback's alone (BerriAI/litellm 31557)."""
    long = error(400, "maximum context length is 8192 tokens", "context_length_exceeded")
    provider = Provider(lambda body: long if body["model"] == "small" else error(404, "gone"))
    (outcome,) = ask(provider, *rows(1), service_tiers=(), fallback_model="small")
    assert [text.partition(" (")[0] for text in outcome.errors] == [
        "HTTP 404 t: gone",
        "model small: HTTP 400 context_length_exceeded: maximum context length is 8192 tokens",
    ]


def test_a_tier_that_answers_is_the_only_one_that_is_asked() -> None:
    """The cheap one is asked first, for every request."""
    provider = Provider(by_tier(flex=good(service_tier="flex")))
    outcomes = ask(provider, *rows(3))
    assert provider.tiers == ["flex"] * 3
    assert [outcome.service_tier for outcome in outcomes] == ["flex"] * 3


def test_an_ordinary_rate_limit_is_waited_for() -> None:
    """A 429 that says nothing of capacity keeps the request in its tier."""
    refusals = iter([error(429, "Rate limit reached on requests per min", "rate_limit_exceeded")])
    provider = Provider(lambda body: next(refusals, good(service_tier="flex")))
    (outcome,) = ask(provider, *rows(1))
    assert provider.tiers == ["flex", "flex"] and outcome.service_tier == "flex"


def test_patience_ends_the_wait_for_a_tier() -> None:
    """A server that asks to wait for longer than the patience loses the request to the next tier."""
    full = error(429, "Rate limit reached", "rate_limit_exceeded", "Retry-After: 500\r\n")
    provider = Provider(by_tier(flex=full))
    outcomes = ask(provider, *rows(2), tier_patience_s=0.001)
    assert all(outcome.ok for outcome in outcomes)
    assert Counter(provider.tiers)["default"] == 2


def test_the_last_tier_waits_as_any_request_does() -> None:
    """A refusal for capacity in it is no failure."""
    refusals = iter([FULL, FULL])
    provider = Provider(lambda body: next(refusals, good()))
    (outcome,) = ask(provider, *rows(1))
    assert provider.tiers == ["flex", "default", "default"] and outcome.ok


def test_a_failure_has_the_errors_of_all_lanes() -> None:
    """In order, each with its tier; only the last lane's kind counts."""
    replies = by_tier(flex=FULL, default=error(400, "bad parameter", "invalid"))
    (outcome,) = ask(Provider(replies), *rows(1), fallback_model="big")
    assert not outcome.ok and outcome.attempts == 3
    assert [text.split(":")[0] for text in outcome.errors] == [
        *("flex tier", "default tier", "model big")
    ]
    assert outcome.error_kind == "HTTP 400 invalid"


def test_the_attempts_of_a_lane_are_its_own() -> None:
    """A server that fails gets as many attempts in each lane."""
    provider = Provider(lambda body: error(500, "oops"))
    retry = RetryPolicy(max_attempts=3, backoff_initial_s=0)
    (outcome,) = ask(provider, *rows(1), retry=retry)
    assert provider.tiers == ["flex"] * 3 + ["default"] * 3 and len(outcome.errors) == 6


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "This model's maximum context length is 8 tokens", "context_length_exceeded"),
        error(400, "The response was filtered", "content_filter"),
        # sglang's words, which LiteLLM took for no reason to fall back (BerriAI/litellm 10793)
        error(400, "The input (9 tokens) is longer than the model's context length (8 tokens)."),
        error(404, "no such model", "model_not_found"),
    ],
)
def test_what_failed_for_good_goes_to_the_fallback(refusal: Reply) -> None:
    """With the model of the fallback, and every other byte of the request."""
    provider = Provider(lambda body: refusal if body["model"] == "m" else good())
    request = {"model": "m", "messages": [], "temperature": 1.50}
    (outcome,) = ask(provider, request, service_tiers=(), fallback_model="big")
    assert outcome.ok and provider.asked == [request, request | {"model": "big"}]
    assert outcome.response["model"] == "big"  # the answer names none
    assert outcome.request.body["model"] == "m"


def test_an_invalid_line_goes_nowhere(tmp_path: Path) -> None:
    """No fallback can mend it."""
    provider = Provider(lambda body: good())
    source = tmp_path / "in.jsonl"
    source.write_text('{"model": "m", "messages": []}\nno json\n')
    with RawServer(provider) as server:
        with services.processor(server.url, CHAT, fallback_model="big") as processor:
            summary = processor.process_file(source)
    assert (summary.answered, summary.failed, len(provider.asked)) == (1, 1, 1)


def test_a_fallback_model_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Users found other models on their bill, and no word of it (langchain-ai/openwiki 85)."""
    provider = Provider(
        lambda body: error(404, "no") if body["model"] == "m" else good(model="big")
    )
    with caplog.at_level(logging.WARNING, "parallel_processor"):
        ask(provider, *rows(3), service_tiers=(), fallback_model="big")
    told = [r.getMessage() for r in caplog.records if "goes on to the model big" in r.getMessage()]
    assert [text.startswith("2 more like this") for text in told] == [False, True]


def test_a_fallback_is_called_by_its_url(caplog: pytest.LogCaptureFixture) -> None:
    """Which is a part of the command."""
    first = Provider(lambda body: error(404, "no"))
    with RawServer(Provider(lambda body: good())) as second:
        url = second.url + CHAT
        ask(first, *rows(1), service_tiers=(), fallback_url=url)
    assert f"request 1 goes on to the fallback at {url}: " in caplog.text


@pytest.mark.parametrize("own", [None, "sk-of-the-other"])
def test_a_fallback_url_gets_the_key_of_its_host_alone(own: str | None) -> None:
    """None, if there is none for it."""
    first, second = Provider(lambda body: error(400, "no")), Provider(lambda body: good())
    with RawServer(second) as other:
        host = other.url.partition("//")[2]
        settings: Any = {"api_key": "sk-first", "api_keys": {host: own} if own else {}}
        url = other.url + CHAT
        (outcome,) = ask(first, *rows(1), service_tiers=(), fallback_url=url, **settings)
        assert outcome.ok and len(second.asked) == 1
        sent = header_of(other.heads[0], "authorization")
        assert sent == (f"Bearer {own}" if own else None)


def test_a_fallback_that_never_responds_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What should go there has no record, so that the next run asks it; all others are answered."""
    bad = error(400, "no", "content_filter")
    provider = Provider(lambda body: bad if int(body["messages"][0]["content"]) % 2 else good())
    source, saved = write_lines(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    retry = RetryPolicy(max_attempts=2, backoff_initial_s=0.01, backoff_max_s=0.01)
    with RawServer(provider) as server:
        with RawServer(Provider(by_tier())) as gone:
            url = gone.url + CHAT
        settings: Any = {"fallback_url": url, "max_workers": 2, "retry": retry}
        with (
            services.processor(server.url, CHAT, **settings) as processor,
            pytest.raises(RunStoppedError) as stopped,
        ):
            processor.process_file(source, saved)
    assert stopped.value.stop_cause is StopCause.UNREACHABLE
    where, host = f"the fallback at {url}", url.split("/")[2]
    text = f"for m that are to go to {where} are left unanswered: can't reach {host}: connection"
    assert text in str(stopped.value) and text in caplog.text
    contents = [int(record[0]["messages"][0]["content"]) for record in read_lines(saved)]
    assert sorted(contents) == [*range(0, 20, 2)]


def test_what_fails_after_its_fallback_is_left_out_has_no_record() -> None:
    """The fallback might answer it, so that the failure is not the last word."""
    is_left_out = threading.Event()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "left unanswered" in record.getMessage():
                is_left_out.set()

    def given() -> Iterator[dict[str, Any]]:
        first, second = rows(2)
        yield first
        assert is_left_out.wait(60)
        yield second

    handler = Told()
    logging.getLogger("parallel_processor").addHandler(handler)
    retry = RetryPolicy(max_attempts=1, backoff_initial_s=0.01, backoff_max_s=0.01)
    provider, failures = Provider(lambda body: error(400, "no")), list[Any]()
    try:
        with RawServer(provider) as server:
            with RawServer(Provider(by_tier())) as gone:
                url = gone.url + CHAT
            with (
                services.processor(server.url, CHAT, retry=retry, fallback_url=url) as processor,
                pytest.raises(RunStoppedError, match="left unanswered"),
            ):
                failures.extend(processor.imap_unordered(given()))
    finally:
        logging.getLogger("parallel_processor").removeHandler(handler)
    assert len(provider.asked) == 2 and failures == []


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        (
            "https://b.example/v1/chat/completions",
            {},
            "needs a key of its own: --api_key_for b.example",
        ),
        (
            "http://b.example/v1/chat/completions",
            {"api_keys": {"b.example": "sk"}},
            "in plain text",
        ),
        (
            "https://b.example/v1/chat/completions",
            {"session_factory": Session},
            "must be on the host",
        ),
    ],
)
def test_a_fallback_url_without_a_safe_key_is_refused(
    url: str, settings: dict[str, Any], message: str
) -> None:
    """When the processor is made."""
    first = "https://a.example/v1/chat/completions"
    with pytest.raises(ConfigurationError, match=message):
        Processor(request_url=first, api_key="sk-1", fallback_url=url, **settings)


# Lanes that are closed.


def test_equal_failures_close_a_tier(caplog: pytest.LogCaptureFixture) -> None:
    """A model without flex costs 20 requests a second attempt, not all of them."""
    full = no_capacity("azure", "")
    provider = Provider(by_tier(flex=(full.status, json.loads(full.body), "")))
    with caplog.at_level(logging.WARNING, "parallel_processor"):
        outcomes = ask(provider, *rows(60))
    assert all(outcome.ok for outcome in outcomes)
    assert Counter(provider.tiers) == {"flex": 20, "default": 60}
    assert sum("is not used any more" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("tiers", [("flex",), ("flex", "default")])
def test_each_failure_counts_once_where_no_lane_is_next(tiers: tuple[str, ...]) -> None:
    """The run stops after as many equal failures as it does without tiers."""
    provider = Provider(lambda body: error(400, "no such parameter"))
    with pytest.raises(RunStoppedError) as caught:
        ask(provider, *rows(60), service_tiers=tiers)
    assert caught.value.stop_cause is StopCause.EQUAL_FAILURES
    assert Counter(provider.tiers) == dict.fromkeys(tiers, 20)


@pytest.mark.parametrize(
    "end",
    [
        error(401, "Incorrect API key", "invalid_api_key"),
        error(429, "You exceeded your current quota", "insufficient_quota"),
        error(429, "try again tomorrow", "rate_limit_exceeded", "Retry-After: 80000\r\n"),
    ],
)
def test_what_stops_a_run_closes_a_lane_that_has_a_next_one(end: Reply) -> None:
    """What is queued goes on, and what comes later starts in the next lane."""
    provider = Provider(lambda body: end if body["model"] == "m" else good())
    outcomes = ask(provider, *rows(5), service_tiers=(), fallback_model="big")
    assert all(outcome.ok for outcome in outcomes)
    assert Counter(body["model"] for body in provider.asked) == {"m": 1, "big": 5}


def test_the_last_lane_stops_the_run() -> None:
    """As it would without others."""
    provider = Provider(lambda body: error(401, "Incorrect API key", "invalid_api_key"))
    with pytest.raises(RunStoppedError, match="Incorrect API key"):
        ask(provider, *rows(3))
    assert provider.tiers == ["flex", "default"]


def test_a_row_for_another_endpoint_is_not_sent_to_the_fallback() -> None:
    """A chat endpoint doesn't take the body of an embeddings row."""
    provider = Provider(lambda body: error(400, "no"))
    with RawServer(provider) as server:
        fallback = f"{server.url}/fallback{CHAT}"
        with services.processor(server.url, CHAT, fallback_url=fallback) as processor:
            row = Request(body={"model": "m", "input": "x"}, url="/v1/embeddings")
            outcomes = processor.map([row, *rows(1)])
    assert [outcome.attempts for outcome in outcomes] == [1, 2]


# What stands on record, and in the summary.


@pytest.mark.parametrize(
    ("reply", "tier"),
    [
        (good(service_tier="flex"), "flex"),
        (good("x-gemini-service-tier: flex\r\n"), "flex"),
        (good("x-gemini-service-tier: standard\r\n"), "default"),
        (good(), "flex"),  # nobody says it: the tier that was asked for
        (good(usage={"service_tier": "batch"}), "batch"),  # Anthropic's place
    ],
)
def test_the_record_has_the_tier_that_answered(tmp_path: Path, reply: Reply, tier: str) -> None:
    """And the request as it was read, so that a resumed job knows it."""
    line = b'{"model" : "m", "messages": [], "service_tier":"auto", "n": 1.0}'
    (tmp_path / "in.jsonl").write_bytes(line + b"\n")
    provider = Provider(lambda body: reply)
    with RawServer(provider) as server:
        settings: Any = {"service_tiers": ["flex", "default"]}
        with services.processor(server.url, CHAT, **settings) as processor:
            processor.process_file(tmp_path / "in.jsonl")
            again = processor.process_file(tmp_path / "in.jsonl")
    assert again.already_answered == 1 and provider.tiers == ["flex"]
    assert (tmp_path / "in_results.jsonl").read_bytes().startswith(b"[" + line + b", ")
    (outcome,) = read_results(tmp_path / "in_results.jsonl")
    assert outcome.service_tier == tier


def test_a_silent_downgrade_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Of a tier that was asked for and did not answer."""
    provider = Provider(lambda body: good(service_tier="default"))
    with (
        caplog.at_level(logging.WARNING, "parallel_processor"),
        RawServer(provider) as server,
        services.processor(server.url, CHAT, service_tiers=("priority",)) as processor,
    ):
        processor.map(rows(3))
        report = processor._account.buckets.reports(0.0, lambda bucket: {})[0]
    assert sum("priority tier was asked for" in r.getMessage() for r in caplog.records) == 1
    assert (report.model, report.tier, report.downgraded) == ("m", "priority", 3)


def test_the_summary_tells_the_tiers_apart(tmp_path: Path) -> None:
    """What each was sent, answered and passed on."""
    refusals = iter([FULL])
    source = write_lines(tmp_path / "in.jsonl", rows(3))
    provider = Provider(lambda body: next(refusals, good()))
    with RawServer(provider) as server:
        settings: Any = {"service_tiers": ("flex", "default"), "max_workers": 1}
        with services.processor(server.url, CHAT, **settings) as processor:
            summary = processor.process_file(source)
    found = {each.tier: (each.admitted, each.answered, each.moved_on) for each in summary.buckets}
    assert found == {"flex": (3, 2, 1), "default": (1, 1, 0)}
    assert "m@flex: 3 sent, 2 answered, 1 failed; 1 request moved on;" in str(summary)
    assert summary.answered == 3 and summary.attempts == 4


@pytest.mark.parametrize("settings", [{"processes": 2}, {"dedupe": True}])
def test_lanes_work_with(settings: dict[str, Any], tmp_path: Path) -> None:
    """Processes send for a lane, and equal requests share what the last lane answered."""
    source = write_lines(tmp_path / "in.jsonl", rows(4) + rows(4))
    provider = Provider(by_tier(flex=FULL))
    with RawServer(provider) as server:
        tiers: Any = {"service_tiers": ("flex", "default")}
        with services.processor(server.url, CHAT, **tiers, **settings) as processor:
            summary = processor.process_file(source, ordered=True)
    requests = 4 if settings.get("dedupe") else 8
    assert Counter(provider.tiers) == {"flex": requests, "default": requests}
    assert summary.answered == 8
    contents = [
        each[0]["messages"][0]["content"] for each in read_lines(tmp_path / "in_results.jsonl")
    ]
    assert contents == list("01230123")


def test_a_stop_leaves_both_lanes_to_the_next_run(tmp_path: Path) -> None:
    """What was refused when it came has no record, and nothing goes on after it."""
    source = write_lines(tmp_path / "in.jsonl", rows(6))
    stops: list[Callable[[], object]] = []

    def reply(body: dict[str, Any]) -> Reply:
        if body["service_tier"] == "default":
            return good()
        if len(provider.asked) >= 5 and stops:
            stops.pop()()
        return FULL

    provider = Provider(reply)
    settings: Any = {"service_tiers": ("flex", "default"), "max_workers": 1}
    with (
        RawServer(provider) as server,
        services.processor(server.url, CHAT, **settings) as processor,
    ):
        stops.append(processor.stop)
        first = processor.process_file(source)
        sent = len(provider.asked)
        second = processor.process_file(source)
    assert first.stop_cause is StopCause.CALLER and first.failed == 0
    assert sent == 5 and first.answered + second.answered == 6
    assert second.already_answered == first.answered and second.failed == 0
    assert len(read_lines(tmp_path / "in_results.jsonl")) == 6


# The queues.


class Waiting:
    """Requests that wait in the flex tier of a model: one a minute goes there, any number to default."""

    def __init__(self, patience_s: float = 10.0, **limits: Limits) -> None:
        self.clock = FakeClock()
        few = Limits(requests_per_minute=1, tokens_per_minute=math.inf)
        by_model = {"m@flex": few, "m@default": limits.get("default", few)}
        self.options = Options(
            request_url="http://localhost/v1/chat/completions",
            service_tiers=("flex", "default"),
            tier_patience_s=patience_s,
            limits_by_model={} if "common" in limits else by_model,
            limits=limits.get("common", Limits()),
        )
        buckets = TokenBuckets(self.options, self.clock)
        routes = Routes(self.options, buckets)
        self.lanes = Lanes(self.options, routes, LeftOut(None), self.clock)
        cost: Callable[[Estimate], Cost] = lambda estimate: Cost(1.0, 0.0)  # noqa: E731
        self.queues = RequestQueues(cost, WakeEvent(), self.lanes)

    def put(self, count: int) -> list[PendingRequest]:
        made = []
        for number in range(1, count + 1):
            request = Request(body={"model": "m"}, number=number)
            pending = self.lanes.enter(request, self.options.request_url, "m")
            pending.estimate = Estimate(1)
            self.queues.put(pending)
            made.append(pending)
        self.queues.take_in(count)
        return made

    def turn(self) -> list[tuple[int, int]]:
        """Admit what may go; the number and the lane of each."""
        self.queues.release_due(self.clock())
        sent = []
        while (admitted := self.queues.admit()) is not None:
            sent.append((admitted.pending.request.number, admitted.pending.lane))
        self.queues.take_places()
        return sent


def test_a_request_without_a_turn_goes_on_when_its_patience_ends() -> None:
    """Those that came first do, in their order, as the next tier has room."""
    waiting = Waiting()
    waiting.put(4)
    assert waiting.turn() == [(1, 0)]
    assert waiting.turn() == []
    waiting.clock.now_s += 9.0
    assert waiting.turn() == []
    due_at = waiting.queues.release_due(waiting.clock())
    assert due_at == pytest.approx(waiting.clock() + 1.0)
    waiting.clock.now_s += 1.0
    assert waiting.turn() == [(2, 1)]
    assert waiting.queues.count == 2


def test_what_waits_for_room_in_its_tier_goes_on_at_once() -> None:
    """The server asks that tier's requests to wait, and the next one has room, until it is crowded."""
    waiting = Waiting(
        patience_s=600.0,
        default=Limits(requests_per_minute=6, tokens_per_minute=math.inf, burst_seconds=10.0),
    )
    made = waiting.put(40)
    assert waiting.turn() == [(1, 0)]
    assert waiting.turn() == []
    made[0].bucket.pause(90.0)
    assert waiting.turn() == [] and waiting.turn() == []  # an ordinary pause is waited for
    waiting.lanes.note_full(made[1], 90.0)
    assert waiting.queues.take_places() <= 0.25  # then somebody looks
    assert waiting.turn() == [(2, 1)]
    lanes = Counter(each.lane for each in waiting.queues.clear())
    assert lanes == {1: 7, 0: 31}


def test_a_request_stays_where_the_next_tier_is_crowded() -> None:
    """It would only wait there, at a higher price."""
    waiting = Waiting(patience_s=1.0)
    waiting.put(40)
    waiting.turn()
    for _ in range(20):
        waiting.clock.now_s += 1.0
        waiting.turn()
    lanes = Counter(each.lane for each in waiting.queues.clear())
    assert lanes[0] > 0 and lanes[1] > 0


def test_a_common_limit_is_no_reason_to_go_on() -> None:
    """The next tier waits for the same one."""
    waiting = Waiting(common=Limits(requests_per_minute=1, tokens_per_minute=math.inf))
    made = waiting.put(4)
    assert waiting.turn() == [(1, 0)]
    waiting.clock.now_s += 50.0
    assert waiting.turn() == []
    assert {pending.lane for pending in made} == {0}


def test_the_queue_of_a_closed_lane_goes_on_at_once() -> None:
    """And later requests start in the next one."""
    waiting = Waiting()
    made = waiting.put(4)
    waiting.turn()
    first = made[0]
    assert waiting.lanes.close(first, RunStoppedError("spent"))
    assert waiting.lanes.move_on(first)
    waiting.queues.add_again(first, -math.inf)
    assert {pending.lane for pending in made} == {1}
    assert waiting.put(1)[0].lane == 1


def test_the_limits_of_a_tier_are_its_own_if_they_name_it() -> None:
    """Otherwise what was typed holds for all tiers together."""
    own, common = Waiting(), Waiting(common=Limits(requests_per_minute=1))
    for waiting, shares in ((own, False), (common, True)):
        (pending,) = waiting.put(1)
        following = waiting.lanes.next_tier(pending)
        assert isinstance(following, TokenBucket) and following is not pending.bucket
        assert (following.shared_limits is pending.bucket.shared_limits) is shares
        pending.bucket.enqueue(Reservation(1.0))
        second = Reservation(1.0)
        assert following.enqueue(second) is not shares


def test_the_lanes_are_the_tiers_and_then_the_fallback() -> None:
    """A fallback at the same URL asks for the last tier, another server for none."""
    url = "http://localhost/v1/chat/completions"
    options = Options(request_url=url, service_tiers=("flex", "default"), fallback_model="big")
    assert [(each.tier, each.model) for each in lanes_of(options)] == [
        *(("flex", ""), ("default", ""), ("default", "big"))
    ]
    options = Options(request_url=url, service_tiers=("flex",), fallback_url=url + "/2")
    assert [(each.tier, each.url) for each in lanes_of(options)] == [("flex", ""), ("", url + "/2")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"service_tiers": ("flex", "flex")}, "twice"),
        ({"service_tiers": "flex"}, "service_tiers must be"),
        (
            {"request_url": INVOKE, "api_key": "k", "service_tiers": ("flex",)},
            "takes no service_tiers",
        ),
        ({"tier_patience_s": -1.0}, "tier_patience_s must be"),
        ({"fallback_model": ""}, "fallback_model must be"),
        ({"fallback_url": "ftp://x"}, "fallback_url must be"),
        ({"fallback_url": "http://u:secret@localhost/v1"}, "no login"),
        (
            {
                "request_url": "http://localhost/v1beta/models/g:generateContent",
                "fallback_model": "h",
            },
            "names the model itself",
        ),
    ],
)
def test_a_lane_that_can_not_be_is_refused(settings: dict[str, Any], message: str) -> None:
    """When the processor is made, and without a secret in the text."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Processor(**{"request_url": "http://localhost/v1/chat/completions"} | settings)
    assert "secret" not in str(caught.value)
