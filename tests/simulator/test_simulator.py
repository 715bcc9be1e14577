"""The simulator, over real sockets; where time matters, over a clock that the test moves."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from simulators import WordCounter

from parallel_processor.models import Endpoint
from parallel_processor.simulator import Simulator, SimulatorOptions
from parallel_processor.simulator.answers import Answerer
from parallel_processor.simulator.faults import FAULT_KINDS, FaultPlan, digest_of
from parallel_processor.simulator.headers import go_duration
from parallel_processor.simulator.limits import RateLimits
from parallel_processor.simulator.stats import Stats, busiest_window
from parallel_processor.tokens.counter import TokenCounter

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EMBEDDINGS = "/v1/embeddings"
CHAT = "/v1/chat/completions"


@contextmanager
def serving(clock: Any = time.monotonic, **options: Any) -> Iterator[Simulator]:
    """Run a simulator that counts words."""
    options = SimulatorOptions(**options)
    with Simulator(options, counter=WordCounter(), clock=clock) as simulator:
        yield simulator


def connect(simulator: Simulator, timeout_s: float = 10) -> socket.socket:
    port = int(simulator.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def client(simulator: Simulator) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(simulator.url.rpartition("/")[2], timeout=10))


def post(
    connection: http.client.HTTPConnection, body: Any, path: str = EMBEDDINGS, key: str = ""
) -> tuple[int, Any, dict[str, str]]:
    """Send a request; return status, JSON (or bytes that are none), and headers in lower case."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    payload = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, payload, headers)
    response = connection.getresponse()
    content = response.read()
    try:
        content = json.loads(content)
    except ValueError:
        pass
    return response.status, content, {name.lower(): value for name, value in response.getheaders()}


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds, after ten seconds at the latest."""
    deadline_s = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline_s:
        threading.Event().wait(0.002)


def raw_post(body: bytes, path: str = EMBEDDINGS, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


# --- answers


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "one two"}]}, "chat.completion"),
        ("/openai/deployments/x/chat/completions?api-version=1", {}, "chat.completion"),
        ("/v1/responses", {"input": "one two"}, "response"),
        ("/v1/completions", {"prompt": ["one", "two"]}, "text_completion"),
        (EMBEDDINGS, {"input": "one two"}, "list"),
        ("/v1/moderations", {"input": "one two"}, None),
        ("/v1/messages", {"messages": [{"role": "user", "content": "one two"}]}, None),
        ("/somewhere/else", {}, "chat.completion"),
    ],
)
def test_every_endpoint_has_its_shape(path: str, body: dict[str, Any], kind: str | None) -> None:
    """An answer names its model and has the object type of the endpoint at the path's end."""
    with Simulator() as simulator, client(simulator) as connection:
        status, answer, headers = post(connection, body | {"model": "m"}, path)
    assert status == 200
    assert answer["model"] == "m"
    assert answer.get("object") == kind
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert headers["openai-processing-ms"] == "0"


def test_a_chat_answer_echoes_its_request_and_counts_real_tokens() -> None:
    """The text repeats the last message's words within the cap; usage is what tiktoken says."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello world again"}]},
    ]
    body = {"model": "gpt-4o", "messages": messages, "max_tokens": 2, "n": 2}
    with Simulator() as simulator, client(simulator) as connection:
        _, answer, _ = post(connection, body, CHAT)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["hello world"] * 2
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    read = TokenCounter().input_tokens(body, Endpoint.CHAT)
    usage = {"prompt_tokens": read, "completion_tokens": 4, "total_tokens": read + 4}
    assert answer["usage"] == usage


def test_a_completion_has_a_choice_per_prompt_and_n() -> None:
    """Choices are numbered through all prompts, each echoing its own."""
    body = {"model": "m", "prompt": ["first prompt", "second prompt"], "n": 2}
    with Simulator() as simulator, client(simulator) as connection:
        _, answer, _ = post(connection, body, "/v1/completions")
    texts = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert texts == list(enumerate(["first prompt"] * 2 + ["second prompt"] * 2))


def test_a_response_at_its_cap_is_incomplete() -> None:
    """A Responses answer that reaches its cap says so as the real one does."""
    body = {"model": "m", "input": "one two three", "max_output_tokens": 1}
    with Simulator() as simulator, client(simulator) as connection:
        _, answer, _ = post(connection, body, "/v1/responses")
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["content"][0]["text"] == "one"
    assert answer["usage"]["output_tokens"] == 1


@pytest.mark.parametrize(
    ("value", "count"), [("text", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), ([], 0)]
)
def test_there_is_a_vector_per_input(value: Any, count: int) -> None:
    """A text or a list of tokens is one input, a list of either several."""
    with serving(embedding_dimensions=5) as simulator, client(simulator) as connection:
        _, answer, _ = post(connection, {"input": value})
    assert [item["index"] for item in answer["data"]] == list(range(count))
    for item in answer["data"]:
        assert len(item["embedding"]) == 5
        assert sum(x * x for x in item["embedding"]) == pytest.approx(1, abs=1e-4)


def test_vectors_depend_on_the_input_alone() -> None:
    """Equal inputs have equal vectors, other inputs others, in base64 too."""
    with serving() as simulator, client(simulator) as connection:
        _, both, _ = post(connection, {"input": ["a", "b"]})
        _, one, _ = post(connection, {"input": "b", "encoding_format": "base64", "dimensions": 8})
    first, second = (item["embedding"] for item in both["data"])
    packed = base64.b64decode(one["data"][0]["embedding"])
    assert struct.unpack("<8f", packed) == pytest.approx(second, abs=1e-6)
    assert first != second


def test_a_stream_is_answered_as_one() -> None:
    """A request with stream: true gets server-sent events."""
    with serving() as simulator, client(simulator) as connection:
        status, content, headers = post(connection, {"stream": True}, CHAT)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert content.endswith(b"data: [DONE]\n\n")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["content", "text", "role", "type"]) | st.text(), inner, max_size=4
        )
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["model", "messages", "input", "prompt", "max_tokens", "n", "dimensions", "encoding_format"]
)


@given(
    st.dictionaries(FIELDS | st.text(max_size=3), JSON_VALUES, max_size=6),
    st.sampled_from(Endpoint),
)
def test_any_json_object_is_answered(body: dict[str, Any], endpoint: Endpoint) -> None:
    """However odd a body is, its answer is JSON."""
    answerer = Answerer(TokenCounter(), embedding_dimensions=4)
    content, written = answerer.answer(body, endpoint, number=1, read=10, digest=0)
    assert isinstance(json.loads(content), dict | list)
    assert written >= 0


# --- limits


def test_requests_above_the_limit_are_refused_until_it_has_refilled() -> None:
    """A whole minute's worth passes at once, the next one is told when to come, and then passes."""
    clock = FakeClock()
    with serving(clock, requests_per_minute=3) as simulator, client(simulator) as connection:
        levels = [post(connection, {"input": "a"})[2] for _ in range(3)]
        assert [level["x-ratelimit-remaining-requests"] for level in levels] == ["2", "1", "0"]
        assert [level["x-ratelimit-reset-requests"] for level in levels] == ["20s", "40s", "1m0s"]
        clock.now_s += 0.5
        status, answer, headers = post(connection, {"input": "a", "model": "m"})
        assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "20", "19500")
        assert answer["error"] == {
            "message": "Rate limit reached for m in organization org-sim on requests per min "
            "(RPM): Limit 3, Used 3, Requested 1. Please try again in 19.5s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        clock.now_s += 19.5
        assert post(connection, {"input": "a"})[0] == 200
        stats = simulator.stats()
    assert (stats["requests_received"], stats["answered"], stats["refused"]) == (5, 4, 1)


def test_a_request_is_charged_its_tokens() -> None:
    """The charge is the counter's, and a refusal charges neither limit."""
    clock = FakeClock()
    options = {"requests_per_minute": 10, "tokens_per_minute": 6}
    with serving(clock, **options) as simulator, client(simulator) as connection:
        _, _, headers = post(connection, {"input": "a b c d"})
        assert headers["x-ratelimit-remaining-tokens"] == "2"
        assert headers["x-ratelimit-reset-tokens"] == "40s"
        status, answer, headers = post(connection, {"input": "a b c"})
        error = answer["error"]
        assert (status, error["type"]) == (429, "tokens")
        assert "Limit 6, Used 4, Requested 3. Please try again in 10s." in error["message"]
        assert headers["x-ratelimit-remaining-requests"] == "9"
        assert simulator.stats()["tokens_received"] == 4


def test_an_oversize_request_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    """More than a minute's tokens pass when the bucket is full, and the next one pays."""
    clock = FakeClock()
    with serving(clock, tokens_per_minute=6) as simulator, client(simulator) as connection:
        assert post(connection, {"input": "a"})[0] == 200
        status, _, headers = post(connection, {"input": "a " * 9})
        assert (status, headers["retry-after"]) == (429, "10")
        clock.now_s += 10
        status, _, headers = post(connection, {"input": "a " * 9})
        assert (status, headers["x-ratelimit-remaining-tokens"]) == (200, "0")
        assert headers["x-ratelimit-reset-tokens"] == "1m30s"
        assert post(connection, {"input": "a"})[2]["retry-after"] == "40"


def test_an_oversize_request_may_be_refused_for_good() -> None:
    """With reject_oversize it is told that it is too large, and no time to wait."""
    options = {"tokens_per_minute": 6, "reject_oversize": True}
    with serving(**options) as simulator, client(simulator) as connection:
        status, answer, headers = post(connection, {"input": "a " * 7, "model": "m"})
    assert status == 429
    assert answer["error"]["message"].startswith("Request too large for m in organization org-sim")
    assert "Limit 6, Requested 7." in answer["error"]["message"]
    assert "retry-after" not in headers


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), max_size=60),
    st.integers(50, 200),
    st.integers(1, 30),
)
def test_no_schedule_gets_more_than_the_buckets_hold(
    schedule: list[tuple[float, int]], tokens_per_minute: int, requests_per_minute: int
) -> None:
    """In any stretch of time, no more passes than a full bucket and its refill; waits are exact."""
    clock = FakeClock()
    options = SimulatorOptions(
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute
    )
    limits = RateLimits(options, clock=clock)
    passed: list[tuple[float, int]] = []
    for delay_s, tokens in schedule:
        clock.now_s += delay_s
        refusal = limits.admit("m", read=tokens, written=0).refusal
        if refusal is not None:
            assert refusal.wait_s is not None
            assert refusal.wait_s > 0
            clock.now_s += refusal.wait_s
            assert limits.admit("m", read=tokens, written=0).refusal is None
        passed.append((clock.now_s, tokens))
    for start, (from_s, _) in enumerate(passed):
        for end in range(start, len(passed)):
            stretch = passed[start : end + 1]
            share = 1 + (passed[end][0] - from_s) / 60
            assert len(stretch) <= requests_per_minute * share + 1e-6
            assert sum(tokens for _, tokens in stretch) <= tokens_per_minute * share + 1e-6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.00002, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (59.9999, "1m0s"),
        (179.56, "2m59.56s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (83909.144, "23h18m29.144s"),
    ],
)
def test_durations_are_written_like_go_does(seconds: float, text: str) -> None:
    """Times in headers and messages have Go's units."""
    assert go_duration(seconds) == text


# --- key and money


def test_a_wrong_key_is_turned_away() -> None:
    """The answer repeats the key's ends, like the real one; wherever a key comes, it is read."""
    with serving(api_key="sk-right") as simulator, client(simulator) as connection:
        status, answer, _ = post(connection, {}, key="sk-wrong-0123456789")
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert "sk-wrong*******6789" in answer["error"]["message"]
        assert post(connection, {})[0] == 401
        assert post(connection, {}, key="sk-right")[0] == 200
        for name in ("x-api-key", "api-key"):
            connection.request("POST", EMBEDDINGS, "{}", {name: "sk-right"})
            with connection.getresponse() as response:
                assert (response.status, bool(response.read())) == (200, True)
        assert simulator.stats()["unauthorised"] == 2


def test_money_lasts_for_exactly_so_many_answers() -> None:
    """Whatever the number of clients, spend_limit answers are given, and then there are none."""
    with serving(spend_limit=20, latency_s=0.01) as simulator:

        def ask(number: int) -> tuple[int, Any, dict[str, str]]:
            with client(simulator) as connection:
                return post(connection, {"input": str(number)})

        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(ask, range(50)))
        assert sum(status == 200 for status, _, _ in replies) == 20
        refused = [reply for reply in replies if reply[0] == 429]
        assert len(refused) == 30
        for _, answer, headers in refused:
            assert answer["error"]["type"] == answer["error"]["code"] == "insufficient_quota"
            assert "retry-after" not in headers
        assert simulator.stats()["answered"] == 20
        assert simulator.stats()["out_of_quota"] == 30


# --- faults


@pytest.mark.parametrize(
    ("kind", "status", "content"),
    [
        ("500", 500, b'"server_error"'),
        ("502", 502, b"<html>"),
        ("503", 503, b"server_is_overloaded"),
        ("504", 504, b"<html>"),
        ("429", 429, b"rate_limit_exceeded"),
        ("529", 529, b"overloaded_error"),
        ("html", 503, b"<!DOCTYPE html>"),
        ("detail", 500, b'{"detail": '),
        ("list", 503, b'[{"error": '),
        ("flat", 500, b'{"object": "error"'),
        ("error_in_200", 200, b'{"error": '),
        ("bad_json", 200, b'{"id": '),
        ("empty", 200, b""),
        ("sse", 200, b"data: "),
        ("text401", 401, b"Authentication Fails"),
        ("redirect", 302, b""),
    ],
)
def test_a_fault_stands_in_an_answers_place_once(kind: str, status: int, content: bytes) -> None:
    """The first attempt at a request fails in the way that was asked for, the second succeeds."""
    with serving(error_rate=1, errors=(kind,)) as simulator, client(simulator) as connection:
        connection.request("POST", EMBEDDINGS, '{"input": "a"}')
        response = connection.getresponse()
        assert response.status == status
        assert content in response.read()
        assert response.getheader("Retry-After") == ("1" if kind == "429" else None)
        assert response.getheader("x-request-id")
        assert post(connection, {"input": "a"})[0] == 200
        stats = simulator.stats()
    assert stats["faults"] == {kind: 1}
    assert (stats["answered"], stats["duplicates"], stats["connections_opened"]) == (1, 0, 1)


def test_a_redirect_leads_to_another_host() -> None:
    """The place that a redirect names is not this server, and can't exist."""
    with serving(error_rate=1, errors=("redirect",)) as simulator, client(simulator) as connection:
        assert ".invalid/" in post(connection, {})[2]["location"]


def test_a_torn_answer_is_shorter_than_it_says() -> None:
    """The connection ends in the middle of the body."""
    with serving(error_rate=1, errors=("torn",)) as simulator, client(simulator) as connection:
        connection.request("POST", EMBEDDINGS, '{"input": "a"}')
        with connection.getresponse() as response, pytest.raises(http.client.IncompleteRead):
            response.read()


def test_a_reset_is_a_reset() -> None:
    """The client gets a connection reset, and no answer."""
    with serving(error_rate=1, errors=("reset",)) as simulator, connect(simulator) as connection:
        connection.sendall(raw_post(b"{}"))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_stall_ends_without_an_answer() -> None:
    """Nothing is sent, and after stall_s the connection is closed."""
    options = {"error_rate": 1, "errors": ("stall",), "stall_s": 0.05}
    with serving(**options) as simulator, connect(simulator) as connection:
        connection.sendall(raw_post(b"{}"))
        assert receive_all(connection) == b""


def test_a_drip_begins_like_a_good_answer() -> None:
    """The head comes at once and promises a body."""
    with serving(error_rate=1, errors=("drip",)) as simulator, connect(simulator) as connection:
        connection.sendall(raw_post(b'{"input": "a"}'))
        head = connection.recv(65536)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.endswith(b"\r\n\r\n")


@given(st.floats(0, 1), st.integers(0, 5), st.randoms())
def test_which_requests_fail_does_not_depend_on_the_order(
    rate: float, seed: int, random: Any
) -> None:
    """The faults of a set of requests are the same in any order, each error_attempts times."""
    digests = [digest_of(str(number).encode(), seed) for number in range(50)]
    shuffled = digests[:]
    random.shuffle(shuffled)
    plans = [FaultPlan(rate=rate, attempts=2, kinds=("500", "reset", "torn")) for _ in range(2)]
    first = {digest: [plans[0].next_fault(digest) for _ in range(3)] for digest in digests}
    second: dict[int, list[str | None]] = {digest: [] for digest in shuffled}
    for _ in range(3):
        for digest in shuffled:
            second[digest].append(plans[1].next_fault(digest))
    assert first == second
    for faults in first.values():
        assert faults[2] is None
        assert faults[0] == faults[1]


def test_the_share_of_failing_requests_is_the_rate() -> None:
    """Of many distinct requests, about error_rate fail, all kinds among them, and for ever at 0."""
    kinds = tuple(sorted(FAULT_KINDS))
    plan = FaultPlan(rate=0.1, attempts=0, kinds=kinds)
    digests = [digest_of(str(number).encode(), 7) for number in range(10_000)]
    faults = [fault for fault in map(plan.next_fault, digests) if fault is not None]
    assert len(faults) == pytest.approx(1000, abs=100)
    assert set(faults) == set(kinds)
    assert [fault for fault in map(plan.next_fault, digests) if fault is not None] == faults


def test_latency_varies_within_its_jitter() -> None:
    """Each answer takes latency_s, up to the jitter's share more or less, and says so."""
    options = {"latency_s": 0.02, "latency_jitter": 0.5}
    with serving(**options) as simulator, client(simulator) as connection:
        started_s = time.monotonic()
        headers = [post(connection, {"input": "a"})[2] for _ in range(10)]
        elapsed_s = time.monotonic() - started_s
    times_ms = [int(header["openai-processing-ms"]) for header in headers]
    assert all(10 <= time_ms <= 30 for time_ms in times_ms)
    assert len(set(times_ms)) > 1
    assert elapsed_s >= sum(times_ms) / 1000 - 0.01


# --- statistics


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9)), min_size=1, max_size=40))
def test_the_busiest_minute_is_exact(events: list[tuple[int, int]]) -> None:
    """The sliding window agrees with a count of every window that begins with an arrival."""
    events.sort()
    stats = Stats(started_s=0.0)
    for half_s, tokens in events[1::2] + events[::2]:  # out of order, as threads may be
        stats.admitted(half_s / 2, tokens)
    windows = [[e for e in events if start <= e[0] < start + 120] for start, _ in events]
    summary = stats.summary()
    assert summary["max_requests_in_60_s"] == max(map(len, windows))
    assert summary["max_tokens_in_60_s"] == max(sum(t for _, t in window) for window in windows)
    assert summary["requests_in_first_60_s"] == len(windows[0])
    assert summary["tokens_in_first_60_s"] == sum(tokens for _, tokens in windows[0])
    assert summary["last_arrival_s"] == events[-1][0] / 2


def test_no_arrivals_have_no_busiest_minute() -> None:
    """The figures of nothing are zero."""
    assert busiest_window(array("d"), array("q")) == (0, 0)


def test_stats_are_served_and_equal_to_the_methods() -> None:
    """GET /stats and stats() show the same, and equal bodies answered again are duplicates."""
    clock = FakeClock()
    with serving(clock) as simulator, client(simulator) as connection:
        for number in (1, 2, 1, 1):
            clock.now_s += 2
            post(connection, {"input": f"word {number}"})
        post(connection, b"[]")
        connection.request("GET", "/stats")
        served = json.loads(connection.getresponse().read())
        assert served == simulator.stats()
    assert served["answered"] == 4
    assert served["duplicates"] == 2
    assert served["bad_requests"] == 1
    assert served["tokens_received"] == 8
    assert (served["first_arrival_s"], served["last_arrival_s"]) == (2, 8)
    assert (served["connections_opened"], served["connections_now"]) == (1, 1)


def test_many_clients_are_served_at_once() -> None:
    """Hundreds of requests that take their time are all in flight together."""
    clients = 200
    bodies = [json.dumps({"input": str(number)}).encode() for number in range(clients)]
    with serving(latency_s=1.0) as simulator:
        connections = [connect(simulator) for _ in range(clients)]
        for body, connection in zip(bodies, connections, strict=True):
            connection.sendall(raw_post(body, headers="Connection: close\r\n"))
        answers = [receive_all(connection) for connection in connections]
        for connection in connections:
            connection.close()
        stats = simulator.stats()
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
    assert stats["connections_peak"] == stats["answered"] == clients
    assert stats["peak_in_flight"] > clients / 2  # all of them on a machine that has the time


# --- HTTP


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/healthz", 200), ("/v1/models", 404)])
def test_pages_for_people(path: str, status: int) -> None:
    """There is a help text and a health check, and nothing else to get."""
    with serving() as simulator, client(simulator) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == status
        assert response.read()


def test_other_methods_are_not_allowed() -> None:
    """A PUT is refused, and a HEAD too, without a body that would spoil the connection."""
    with serving() as simulator, client(simulator) as connection:
        for method in ("PUT", "HEAD"):
            connection.request(method, "/v1/embeddings")
            response = connection.getresponse()
            response.read()
            assert response.status == 405
        assert post(connection, {})[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"a"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_bad_request(body: bytes) -> None:
    """What can't be read as a JSON object gets a 400, and the connection goes on."""
    with serving() as simulator, client(simulator) as connection:
        status, answer, _ = post(connection, body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert post(connection, {})[0] == 200


@pytest.mark.parametrize("depth", [100, 900, 980, 1_000, 3_000, 50_000])
def test_deep_nesting_breaks_nothing(depth: int, capfd: pytest.CaptureFixture[str]) -> None:
    """However deep a body is, it is answered or is a bad request, and nothing is printed."""
    with Simulator() as simulator, client(simulator) as connection:
        for field, opening, closing_ in (("input", b"[", b"]"), ("model", b'{"content":', b"}")):
            nested = opening * depth + b"1" + closing_ * depth
            for path in (EMBEDDINGS, CHAT, "/v1/responses"):
                status, _, _ = post(connection, b'{"%s":%s}' % (field.encode(), nested), path)
                assert status in (200, 400)
    assert capfd.readouterr() == ("", "")


def test_requests_may_come_in_any_pieces() -> None:
    """One byte at a time, or several requests at once: each gets its answer."""
    request = raw_post(b'{"input": "a"}')
    last = raw_post(b'{"input": "a"}', headers="Connection: close\r\n")
    with serving() as simulator:
        with connect(simulator) as connection:
            for place in range(len(last)):
                connection.sendall(last[place : place + 1])
            assert receive_all(connection).count(b"HTTP/1.1 200 OK") == 1
        with connect(simulator) as connection:
            connection.sendall(request * 3 + b"\r\n" + last)
            assert receive_all(connection).count(b"HTTP/1.1 200 OK") == 4


def test_chunked_bodies_are_read() -> None:
    """A body in chunks, with an extension and a trailer, is put together."""
    chunks = b'8;x=y\r\n{"input"\r\n8\r\n: "a b"}\r\n0\r\nTrailer: t\r\n\r\n'
    head = b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
    with serving() as simulator, connect(simulator) as connection:
        connection.sendall(head + b"\r\n" + chunks)
        assert receive_all(connection).startswith(b"HTTP/1.1 200 OK")
        assert simulator.stats()["tokens_received"] == 2


def test_a_large_body_is_read_whole() -> None:
    """Megabytes arrive as they were sent."""
    with serving() as simulator, client(simulator) as connection:
        assert post(connection, {"input": "word " * 1_000_000})[0] == 200
        assert simulator.stats()["tokens_received"] == 1_000_000


def test_a_client_that_asks_may_go_on() -> None:
    """Expect: 100-continue is granted before the body is read."""
    request = raw_post(b"{}", headers="Expect: 100-continue\r\nConnection: close\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    with serving() as simulator, connect(simulator) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert receive_all(connection).startswith(b"HTTP/1.1 200 OK")


def test_http_1_0_closes_unless_asked_to_stay() -> None:
    """An old client's connection is kept only if it says so."""
    with serving() as simulator, connect(simulator) as connection:
        connection.sendall(b"GET /healthz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        assert connection.recv(65536).endswith(b"ok\n")
        connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in receive_all(connection)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # the beginning of TLS
        b"GARBAGE\r\n\r\n",
        b"POST / HTTP/2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 65_536 + b"\r\n\r\n",
    ],
)
def test_garbage_ends_its_own_connection_only(
    garbage: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no HTTP gets its connection closed, and nothing is printed."""
    with serving() as simulator:
        with connect(simulator) as connection:
            connection.sendall(garbage)
            try:
                assert receive_all(connection) == b""
            except ConnectionResetError:
                pass
        with connect(simulator) as connection:
            connection.sendall(raw_post(b'{"input": "leaves before its answer"}')[:-5])
        with client(simulator) as connection:
            assert post(connection, {"input": "a"})[0] == 200
    assert capfd.readouterr() == ("", "")


# --- life and death


def test_nothing_is_left_after_the_end() -> None:
    """Threads that wait for a request, for time and for a stalled client all end, at once."""
    before = set(threading.enumerate())
    started_s = time.monotonic()
    with serving(latency_s=60) as slow, serving(error_rate=1, errors=("stall",)) as stalled:
        with connect(slow) as idle, connect(slow) as waiting, connect(stalled) as stuck:
            waiting.sendall(raw_post(b"{}"))
            stuck.sendall(raw_post(b"{}"))
            idle.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert idle.recv(65536)
            both = (slow, stalled)
            wait_until(lambda: [each.stats()["peak_in_flight"] for each in both] == [1, 1])
            slow.stop()
            stalled.stop()
            assert [receive_all(connection) for connection in (idle, waiting, stuck)] == [b""] * 3
        with pytest.raises(ConnectionRefusedError):
            connect(slow)
    assert set(threading.enumerate()) == before
    assert time.monotonic() - started_s < 20


def test_the_key_is_not_shown() -> None:
    """The options' repr does not hold the key."""
    assert "sk-secret" not in repr(SimulatorOptions(api_key="sk-secret"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "parallel_processor.simulator", *arguments]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals) -> None:
    """It prints one line with its address, takes flags in both spellings, and ends with 0."""
    flags = ("--port", "0", "--requests-per-minute", "2", "--embedding_dimensions=3")
    process = subprocess.Popen(
        command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            with closing(http.client.HTTPConnection(line.split("//")[1].strip())) as connection:
                replies = [post(connection, {"input": "a"}) for _ in range(3)]
                assert [status for status, _, _ in replies] == [200, 200, 429]
                assert len(replies[0][1]["data"][0]["embedding"]) == 3
                process.send_signal(number)
                assert process.communicate(timeout=20) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 0


def test_the_command_refuses_bad_flags() -> None:
    """A value that can't be simulated is bad usage, in one message."""
    run = subprocess.run(command("--errors", "fire"), capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "unknown ['fire']" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_says_when_a_port_is_taken() -> None:
    """An address that can't be had ends the command with a message."""
    with serving() as simulator:
        port = simulator.url.rpartition(":")[2]
        run = subprocess.run(command("--port", port), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1


# --- example requests


CHAT_BODY = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Write the number 0 in words."}],
    "max_tokens": 30,
    "metadata": {"row_id": 0},
}
EMBEDDING_BODY = {"model": "text-embedding-3-small", "input": "0\n"}


@pytest.mark.parametrize(("kind", "first"), [("embeddings", EMBEDDING_BODY), ("chat", CHAT_BODY)])
def test_example_requests_are_written(kind: str, first: dict[str, Any], tmp_path: Path) -> None:
    """The script writes as many distinct requests as are asked for."""
    output = tmp_path / "requests.jsonl"
    script = SCRIPTS / "make_example_requests"
    assert os.access(script, os.X_OK)
    arguments = ["--kind", kind, "--count", "25", "--output", str(output)]
    subprocess.run([sys.executable, str(script), *arguments], check=True)
    lines = output.read_text("utf-8").splitlines()
    assert json.loads(lines[0]) == first
    assert len(set(lines)) == 25
