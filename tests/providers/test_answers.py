"""What a success must hold to be an answer, for each endpoint and for responses of unknown ones."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Response
from parallel_processor.providers.answers import (
    UNKNOWN,
    Expected,
    count_inputs,
    fault_of,
    is_failure_list,
)
from parallel_processor.providers.jsontext import read_answer
from parallel_processor.providers.responses import classify

ANSWERED, FAILED, FATAL = AttemptStatus.ANSWERED, AttemptStatus.FAILED, AttemptStatus.FATAL
RETRY, RATE_LIMITED = AttemptStatus.RETRY, AttemptStatus.RATE_LIMITED
HOST = "https://api.example.com"


def expected(path: str, inputs: int | None = None, is_batch_row: bool = False) -> Expected:
    return Expected(HOST + path, inputs, is_batch_row)


CHAT, RESPONSES = expected("/v1/chat/completions"), expected("/v1/responses")
COMPLETIONS, MODERATIONS = expected("/v1/completions"), expected("/v1/moderations")
MESSAGES, EMBEDDINGS = expected("/v1/messages"), expected("/v1/embeddings")
AZURE = expected("/openai/deployments/d/chat/completions?api-version=2024-10-21")
GEMINI = expected("/v1beta/models/gemini-2.5-flash:generateContent")
GEMINI_VECTOR = expected("/v1beta/models/m:embedContent")
GEMINI_VECTORS = expected("/v1beta/models/m:batchEmbedContents")
OLLAMA_CHAT, OLLAMA_GENERATE = expected("/api/chat"), expected("/api/generate")
OLLAMA_EMBED, OLLAMA_EMBEDDINGS = expected("/api/embed", 2), expected("/api/embeddings")


def judged(
    body: Any, asked: Expected = UNKNOWN, status: int = 200, headers: dict[str, str] | None = None
) -> Attempt:
    """The attempt that a body makes; what isn't bytes becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        data, line = read_answer(raw)
    except ValueError:
        response = Response(status=status, headers=headers or {}, body=raw)
    else:
        response = Response(
            status=status, headers=headers or {}, body=line, data=data, is_json=True
        )
    return classify(response, expected=asked)


def chat(content: Any = "Hi.", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat answer of one choice; ``more`` goes into its message."""
    message = {"role": "assistant", "content": content, **more}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {"id": "c1", "object": "chat.completion", "model": "m", "choices": choices, "usage": {}}


def choices(*each: Any, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": list(each), **more}


def vectors(*indexes: Any, vector: Any = (0.1, 0.2)) -> dict[str, Any]:
    """An embeddings answer with a vector for each index; without one for ``None``."""
    rows = [
        {"embedding": list(vector) if isinstance(vector, tuple) else vector}
        | ({} if index is None else {"index": index})
        for index in indexes
    ]
    return {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 5}}


def reply(output: Any, status: Any = "completed", **more: Any) -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": status, "output": output, **more}


def candidate(parts: Any = None, reason: Any = "STOP") -> dict[str, Any]:
    content = {"role": "model"} if parts is None else {"role": "model", "parts": parts}
    return {"candidates": [{"content": content, "finishReason": reason}], "usageMetadata": {}}


MESSAGE = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ""}]}
NO_ERROR = {"message": "", "type": "", "param": "", "code": None}
CONVERSE, COHERE = expected("/model/m/converse"), expected("/v2/chat")
TEI, RERANK, IMAGES = expected("/embed", 2), expected("/rerank"), expected("/v1/images/generations")
TGI = expected("/generate")


def converse(content: Any, reason: Any = "end_turn") -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"output": {"message": message}, "stopReason": reason, "usage": {}}


def cohere(content: Any = None, finish: str = "COMPLETE", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", **({} if content is None else {"content": content}), **more}
    return {"id": "c", "finish_reason": finish, "message": message, "usage": {}}


ANSWERS = [
    (CONVERSE, converse([{"text": "Hi."}])),
    (CONVERSE, converse([{"toolUse": {}}], "tool_use")),
    (CONVERSE, converse([], "guardrail_intervened")),
    (COHERE, cohere([{"type": "text", "text": "Hi."}])),
    (COHERE, cohere(None, "TOOL_CALL", tool_calls=[{"id": "t"}])),
    (COHERE, cohere([], "MAX_TOKENS")),
    (expected("/v2/embed", 1), {"id": "e", "embeddings": {"float": [[0.1]]}, "texts": ["a"]}),
    (TEI, [[0.1], [0.2]]),
    (RERANK, [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.0}]),
    (RERANK, {"results": [{"index": 0, "relevance_score": 0.9}], "meta": {}}),
    (RERANK, {"object": "list", "data": [{"index": 0, "relevance_score": 0.9}]}),
    (IMAGES, {"created": 1, "data": [{"b64_json": "aGk="}, {"url": "https://…"}]}),
    (TGI, {"generated_text": ""}),
    (TGI, {"text": ["vLLM's"]}),  # other servers have endpoints with the same end
    (TGI, {"text": "SGLang's", "meta_info": {}}),
    (TGI, [{"text": "a"}]),
    (TEI, {"vectors": [[0.1]]}),
    (RERANK, {"scores": [0.1, 0.2]}),
    (IMAGES, {"images": [{"url": "https://…"}], "seed": 1}),
    (CHAT, chat()),
    (AZURE, chat() | {"prompt_filter_results": [], "error": None}),
    (CHAT, chat("") | {"error": NO_ERROR, "base_resp": {"status_code": 0, "status_msg": ""}}),
    (CHAT, chat() | {"provider": "p", "success": True, "error_code": 0, "errmsg": "ok"}),
    (CHAT, chat(None, "tool_calls", tool_calls=[{"id": "t"}])),
    (CHAT, chat(None, "stop", tool_calls=[{"id": "t"}])),
    (CHAT, chat(None, "stop", reasoning_content="Hm.")),
    (CHAT, chat(None, "stop", reasoning="Hm.")),
    (CHAT, chat(None, "stop", refusal="No.")),
    (CHAT, chat(None, "stop", audio={"id": "a"})),
    (CHAT, chat(None, "length")),
    (CHAT, chat("", "length", provider_specific_fields={"refusal": None})),
    (CHAT, chat("", "content_filter")),
    (CHAT, chat(None, "content_filter")),
    (CHAT, chat([{"type": "text", "text": "Hi."}])),
    (COMPLETIONS, choices({"text": "", "finish_reason": "stop"})),
    (expected("/v1/completions", 2), choices(*[{"text": "a"}] * 4)),
    (expected("/completions"), {"content": "llama.cpp's own", "stop": True}),
    (RESPONSES, reply([MESSAGE], error=None, background=False)),
    (RESPONSES, reply([], "incomplete", incomplete_details={"reason": "max_output_tokens"})),
    (RESPONSES, {"output": [MESSAGE]}),
    (MESSAGES, {"type": "message", "content": [{"type": "text", "text": "Hi."}]}),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "end_turn"}),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "refusal"}),
    (MODERATIONS, {"id": "m", "results": [{"flagged": False, "categories": {}}]}),
    (expected("/v1/embeddings", 1), vectors(0)),
    (expected("/v1/embeddings", 3), vectors(2, 0, 1)),
    (expected("/v1/embeddings", 3), vectors(None, None, None)),
    (expected("/v1/embeddings", 2), vectors(1, 2)),
    (EMBEDDINGS, vectors(0, vector="zczMPQ==")),
    (EMBEDDINGS, vectors(0, vector=([0.1], [0.2]))),
    (EMBEDDINGS, {"data": [{"index": 0, "embeddings": [[0.1], [0.2]]}]}),
    (EMBEDDINGS, [{"index": 0, "embedding": [[0.1, 0.2]]}]),
    (EMBEDDINGS, vectors(0) | {"error": None}),
    (GEMINI, candidate([{"text": "Hi."}])),
    (GEMINI, candidate(None, "SAFETY")),
    (GEMINI, candidate(None, "MAX_TOKENS")),
    (GEMINI, {"promptFeedback": {"blockReason": "SAFETY"}}),
    (GEMINI_VECTOR, {"embedding": {"values": [0.1]}}),
    (GEMINI_VECTORS, {"embeddings": [{"values": [0.1]}, {"values": [0.2]}]}),
    (OLLAMA_CHAT, {"message": {"role": "assistant", "content": ""}, "done": True}),
    (OLLAMA_GENERATE, {"response": "Hi.", "done": True, "done_reason": "stop"}),
    (OLLAMA_EMBED, {"embeddings": [[0.1], [0.2]]}),
    (OLLAMA_EMBEDDINGS, {"embedding": [0.1]}),
    (OLLAMA_CHAT, {"message": {"content": None, "thinking": "Hm."}, "done": True}),
    # Endpoints that nobody knows: objects, and lists that are told from a failure's.
    *((UNKNOWN, body) for body in ({}, {"ok": True}, {"data": 1}, {"message": "Hi."}, {"a": None})),
    (UNKNOWN, {"results": [], "status": "completed", "message": "Done"}),
    (UNKNOWN, {"code": 0, "msg": "ok", "data": None}),
    (UNKNOWN, {"code": 200, "message": "success", "data": {"text": "Hi."}}),
    (UNKNOWN, {"success": True, "errors": [], "result": {"response": "Hi."}}),
    (UNKNOWN, {"code": "J45.0", "reason": "asthma"}),
    (UNKNOWN, {"detail": "high", "image": "aGk="}),
    (UNKNOWN, {"status": "running", "result": "a dog runs"}),
    (UNKNOWN, {"error": 0.01, "estimate": 3}),
    (UNKNOWN, {"error": False, "text": "Hi."}),
    (UNKNOWN, {"embeddings": {"float": [[0.1]]}, "texts": ["a"]}),
    (UNKNOWN, [[0.1, 0.2], [0.3, 0.4]]),
    (UNKNOWN, [0.1, 0.2]),
    (UNKNOWN, [{"index": 0, "score": 0.9}]),
    (UNKNOWN, [{"generated_text": "Hi."}]),
    (Expected("", None, True), ["a", "b"]),
]


@pytest.mark.parametrize(("asked", "body"), ANSWERS)
def test_what_holds_what_its_endpoint_promises_is_an_answer(asked: Expected, body: Any) -> None:
    """Also if it is odd: it has been paid for; and a record of it is an answer without its URL."""
    assert judged(body, asked).status is ANSWERED
    assert fault_of(body, Expected("", asked.inputs, asked.is_batch_row)) is None


CHUNK = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
NO_ANSWERS = [
    (CONVERSE, converse([], None), "no output message"),
    (CONVERSE, {"output": {}, "stopReason": "end_turn"}, "no output message"),
    (
        CONVERSE,
        {"output": {"message": {"content": []}}, "stopReason": "malformed_model_output"},
        "its stopReason is 'malformed_model_output'",
    ),
    (expected("/v2/embed", 2), {"embeddings": {"float": [[0.1]]}}, "1 vectors for 2 inputs"),
    (expected("/v2/embed", 1), {"embeddings": {"int8": None, "float": [[]]}}, "empty"),
    (CONVERSE, {"message": "ok"}, "no output message"),
    (COHERE, cohere([{"type": "text", "text": "H"}], "ERROR_TOXIC"), "ERROR_TOXIC"),
    (COHERE, cohere([]), "no content"),
    (COHERE, {"id": "c", "finish_reason": "COMPLETE"}, "no message"),
    (TEI, [[0.1]], "1 vectors for 2 inputs"),
    (TEI, [[0.1], []], "empty"),
    (RERANK, {"results": []}, "no results"),
    (RERANK, {"results": [{"text": "a"}]}, "no score"),
    (IMAGES, {"created": 1, "data": []}, "no images"),
    (IMAGES, {"created": 1, "data": [{"revised_prompt": "a"}]}, "missing"),
    (TGI, {"generated_text": None}, "no generated_text"),
    (expected("/api/embed", 2), {"embedding": [0.1]}, "1 vectors for 2 inputs"),
    # As they were reported for chat: nothing, half an answer, or something else.
    *((CHAT, body, "no choices") for body in ({}, {"ok": True}, {"choices": None}, choices())),
    (CHAT, choices(None), "no object"),
    (CHAT, choices({}), "neither message nor text"),
    (CHAT, choices({"message": None}), "neither message nor text"),
    (CHAT, choices(*chat()["choices"], {"message": {"role": "assistant"}}), "without content"),
    (CHAT, chat(None), "without content"),
    (CHAT, chat(None, None, tool_calls=None, refusal=None, annotations=[]), "without content"),
    (CHAT, chat("Half an ans", "error"), "'error'"),
    (CHAT, chat("Half an ans", "network_error"), "'network_error'"),
    (CHAT, chat("Half an ans", "insufficient_system_resource"), "broke off"),
    (CHAT, chat("Half an ans", "abort"), "broke off"),
    (CHAT, {"message": "Endpoint request timed out"}, "timed out"),
    (CHAT, [chat()], "a list"),
    *((CHAT, body, "not an object") for body in (None, "upstream request timeout", 5, True)),
    (UNKNOWN, None, "null"),
    (expected("/v1/completions", 3), choices({"text": "a"}, {"text": "b"}), "2 texts for 3"),
    (RESPONSES, reply([]), "no output"),
    (RESPONSES, reply(None), "no output"),
    (RESPONSES, reply([MESSAGE], "failed"), "'failed'"),
    (RESPONSES, reply([MESSAGE], "cancelled"), "'cancelled'"),
    (MESSAGES, {"type": "message", "content": None}, "no content"),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": None}, "no content"),
    (MODERATIONS, {"results": []}, "no results"),
    (MODERATIONS, {"results": [{}]}, "empty"),
    (expected("/v1/moderations", 2), {"results": [{"flagged": True}]}, "1 results for 2"),
    (expected("/v1/embeddings", 3), vectors(0, 1), "2 vectors for 3 inputs"),
    (expected("/v1/embeddings", 1), vectors(0, 1), "2 vectors for 1 inputs"),
    (expected("/v1/embeddings", 2), vectors(0, 0), "indexes"),
    (expected("/v1/embeddings", 2), vectors(0, 2), "indexes"),
    (EMBEDDINGS, vectors(0, 0), "indexes"),
    (EMBEDDINGS, vectors(), "no vectors"),
    (EMBEDDINGS, {"data": None}, "no vectors"),
    (EMBEDDINGS, {"data": [None]}, "no object"),
    *((EMBEDDINGS, vectors(0, vector=v), "empty") for v in ([], None, "", [None, 1.0], {})),
    (EMBEDDINGS, b'{"data": [{"embedding": [NaN, 1]}]}', "empty"),
    (EMBEDDINGS, [{"index": 0, "embedding": []}], "empty"),
    (GEMINI, {"candidates": []}, "no candidates"),
    (GEMINI, {"usageMetadata": {}}, "no candidates"),
    (GEMINI, candidate(None), "STOP"),
    (GEMINI, candidate(None, "MALFORMED_FUNCTION_CALL"), "MALFORMED"),
    (GEMINI_VECTOR, {"embedding": {"values": []}}, "no vectors"),
    (OLLAMA_CHAT, {"done": True}, "neither message nor response"),
    (OLLAMA_GENERATE, {"response": "", "done": True, "done_reason": "load"}, "load"),
    (OLLAMA_EMBED, {"embeddings": [[0.1]]}, "1 vectors for 2 inputs"),
    (OLLAMA_EMBED, {"embeddings": [[0.1], []]}, "empty"),
    # The shape tells what an unknown endpoint, or a record's, promised.
    (UNKNOWN, {"id": None, "choices": None}, "no choices"),
    (UNKNOWN, chat("Half", "error"), "'error'"),
    (Expected("", 3), vectors(0, 1), "2 vectors for 3 inputs"),
    (UNKNOWN, vectors(0, 0), "indexes"),
    (UNKNOWN, {"id": "modr-1", "model": "m", "results": []}, "no results"),
    *((UNKNOWN, body, "empty list") for body in ([], [None, None], [[]])),
]


@pytest.mark.parametrize(("asked", "body", "reason"), NO_ANSWERS)
def test_what_holds_less_is_a_failed_attempt(asked: Expected, body: Any, reason: str) -> None:
    """It is tried again, and the reason says what is missing."""
    attempt = judged(body, asked)
    assert (attempt.status, reason in attempt.error) == (RETRY, True), attempt


POLLED, STREAM = "polled for", '"stream": false'
ONCE = [
    (CHAT, 202, {"requestId": "0", "status": "pending"}, {}, POLLED),
    (CHAT, 202, b"", {}, POLLED),
    (UNKNOWN, 202, {"id": "p", "urls": {"get": "https://…"}}, {}, POLLED),
    (UNKNOWN, 201, {"id": "p", "status": "starting", "output": None}, {}, POLLED),
    (UNKNOWN, 200, {"status": "IN_QUEUE", "request_id": "r"}, {}, POLLED),
    (UNKNOWN, 200, {"output": {"task_id": "t", "task_status": "PENDING"}}, {}, POLLED),
    (CHAT, 200, {"requestId": "0", "status": "pending"}, {}, POLLED),
    (RESPONSES, 200, reply([], "queued"), {}, POLLED),
    (RESPONSES, 200, reply([MESSAGE], "in_progress"), {}, POLLED),
    (UNKNOWN, 200, ["a", "b"], {}, "Batch row"),
    (UNKNOWN, 200, ["a", None], {}, "Batch row"),
    (UNKNOWN, 200, "a bare text", {}, "a string"),
    (UNKNOWN, 200, b"ID3\x04", {"content-type": "audio/mpeg"}, "audio/mpeg"),
    (UNKNOWN, 200, b"\x89PNG", {"content-type": "image/png"}, "image/png"),
    (UNKNOWN, 200, b"WEBVTT", {"content-type": "text/vtt; charset=utf-8"}, "text/vtt"),
    (UNKNOWN, 200, b"A spoken text", {"content-type": "text/plain; charset=utf-8"}, "spoken"),
    (UNKNOWN, 200, b"\0", {"content-type": "application/octet-stream"}, "octet-stream"),
    (CHAT, 200, b'data: {"choices": [{"delta": {}}]}\n\ndata: {"choices": []}\n\n', {}, STREAM),
    (CHAT, 200, b"event: message_start\ndata: {}\n\nevent: x\ndata: {}\n\n", {}, STREAM),
    (MESSAGES, 200, b'event: message_start\ndata: {"type": "message_start"}\n\n', {}, STREAM),
    (CHAT, 200, b"data: " + json.dumps(CHUNK).encode() + b"\n\ndata: [DONE]\n\n", {}, STREAM),
    (CHAT, 200, b": comment\n\n", {"content-type": "text/event-stream"}, STREAM),
    (CHAT, 200, b"", {"content-type": "text/event-stream"}, STREAM),
    (CHAT, 200, CHUNK, {"content-type": "text/event-stream"}, STREAM),
    (CHAT, 200, CHUNK, {}, STREAM),
    (OLLAMA_CHAT, 200, {"message": {"content": "Hi"}, "done": False}, {}, STREAM),
    (UNKNOWN, 200, b'{"response": "a", "done": false}\n{"done": true}\n', {}, STREAM),
]


@pytest.mark.parametrize(("asked", "status", "body", "headers", "reason"), ONCE)
def test_what_another_attempt_would_only_buy_again_fails_at_once(
    asked: Expected, status: int, body: Any, headers: dict[str, str], reason: str
) -> None:
    """A stream, a state to poll, a sound: the request is what has to change."""
    attempt = judged(body, asked, status, headers)
    assert (attempt.status, reason in attempt.error) == (FAILED, True), attempt


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        b"data: " + json.dumps(chat()).encode() + b"\n\n",
        b": hi\ndata: " + json.dumps(chat()).encode() + b"\n\ndata: [DONE]\n\n",
        json.dumps(chat()).encode() + b"data: [DONE]\n\n",
        json.dumps(chat(), indent=1).encode() + b"\ndata: [DONE]",
    ],
)
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
def test_a_whole_answer_that_is_framed_as_a_stream_is_one(body: Any, content_type: str) -> None:
    """What is recorded is its JSON alone."""
    attempt = judged(body, CHAT, headers={"content-type": content_type})
    assert attempt.status is ANSWERED and attempt.response is not None
    assert attempt.response.data == json.loads(attempt.response.body) == chat()


def error(code: Any = None, message: str = "m", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **more}}


def base_resp(code: int) -> dict[str, Any]:
    return {"base_resp": {"status_code": code, "status_msg": "m"}, "choices": None}


SAID = [
    # By the inner status, a number or a string, whatever the error's name.
    *((CHAT, error(code), FATAL) for code in (401, "401", 402, "402")),
    *((CHAT, error(code), RATE_LIMITED) for code in (429, "429")),
    *((CHAT, error(code), RETRY) for code in (500, "502", 503, 408)),
    *((CHAT, error(code), FAILED) for code in (400, "404", 422)),
    (CHAT, chat() | error(429), RATE_LIMITED),
    (CHAT, choices(chat()["choices"][0] | error(502)), RETRY),
    (CHAT, choices({"message": None} | error(429)), RATE_LIMITED),
    (UNKNOWN, [error(429)], RATE_LIMITED),
    (CHAT, [error(429)], RATE_LIMITED),
    (CHAT, {"error": "model overloaded, try again"}, RETRY),
    (CHAT, {"error": "bad prompt"}, FAILED),
    (CHAT, {"error": "Rate limit exceeded", "code": 429}, RATE_LIMITED),
    (CHAT, {"error": True, "message": "m", "status": 503}, RETRY),
    (CHAT, {"error": {"error": {"code": 429, "message": "m"}}}, RATE_LIMITED),
    (CHAT, {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, RETRY),
    (CHAT, {"type": "error", "error": {"type": "x", "http_code": "400", "message": "m"}}, FAILED),
    (CHAT, {"object": "error", "message": "no such model", "code": 404}, FAILED),
    *((CHAT, base_resp(code), FATAL) for code in (1004, 1008, 2049)),
    *((CHAT, base_resp(code), RATE_LIMITED) for code in (1002, 1039)),
    (CHAT, base_resp(1000), RETRY),
    (CHAT, base_resp(2013), FAILED),
    (CHAT, chat() | {"base_resp": {"status_code": 1027, "status_msg": "m"}}, FAILED),
    (UNKNOWN, {"error_code": 336501, "error_msg": "m", "id": "as-1"}, RATE_LIMITED),
    (UNKNOWN, {"error_code": 336000, "error_msg": "Internal error"}, RETRY),
    (UNKNOWN, {"error_code": 110, "error_msg": "m"}, FATAL),
    (UNKNOWN, {"error_code": "336003", "error_msg": "m"}, FAILED),
    (UNKNOWN, {"error_msg": "the server is busy"}, RETRY),
    (UNKNOWN, {"errorMessage": "m", "errorType": "t"}, FAILED),
    (UNKNOWN, {"success": False, "errors": [{"code": 7009, "message": "Timeout"}]}, RETRY),
    (UNKNOWN, {"success": False, "result": None, "code": 429}, RATE_LIMITED),
    (UNKNOWN, {"detail": "Not Found"}, FAILED),
    (UNKNOWN, {"detail": [{"loc": ["body"], "msg": "field required", "type": "missing"}]}, FAILED),
    (UNKNOWN, {"detail": "Rate limit exceeded"}, RATE_LIMITED),
    (UNKNOWN, {"errors": ["bad"], "data": None}, FAILED),
    (CHAT, {"errors": [{"message": "shard is down", "code": 503}], "data": None}, RETRY),
    (UNKNOWN, {"statusCode": 429, "message": "m"}, RATE_LIMITED),
    (UNKNOWN, {"status": 500, "title": "m", "detail": "d", "type": "about:blank"}, RETRY),
    (UNKNOWN, {"code": 500, "msg": "m", "data": {"trace": "x"}}, RETRY),
    (UNKNOWN, {"code": "rate_limit_daily", "message": "m"}, AttemptStatus.MODEL_SPENT),
    (UNKNOWN, {"code": 20012, "message": "no such model", "data": None}, FAILED),
    (UNKNOWN, {"status": "failed", "id": "p", "output": None}, FAILED),
    (UNKNOWN, {"status": "error", "message": "m"}, FAILED),
    (RESPONSES, reply([], "failed", error={"code": "server_error", "message": "m"}), RETRY),
    (CHAT, error("insufficient_quota"), FATAL),
    (CHAT, error("invalid_api_key"), FATAL),
    (CHAT, b'data: {"error": {"code": 429, "message": "m"}}\n\ndata: [DONE]\n\n', RATE_LIMITED),
    (CHAT, b'data: {"a": 1}\n\ndata: {"error": {"code": 502, "message": "m"}}\n\n', RETRY),
    (OLLAMA_CHAT, b'{"done": false}\n{"error": "the runner has stopped: timeout"}\n', RETRY),
]


@pytest.mark.parametrize(("asked", "body", "status"), SAID)
def test_what_says_that_it_is_an_error_is_judged_as_its_own_status_would_be(
    asked: Expected, body: Any, status: AttemptStatus
) -> None:
    """It is retried, waits or stops the run, and the reason is on record with the real status."""
    attempt = judged(body, asked)
    assert attempt.status is status, attempt
    assert attempt.error.startswith(attempt.kind) and attempt.kind.startswith("error in HTTP 200")
    assert attempt.response is not None and attempt.response.status == 200


def test_an_inner_limit_is_a_rejection_with_its_wait() -> None:
    """The bucket pauses as for a real 429."""
    attempt = judged(error(429, "tokens per min (TPM). Please try again in 1.5s"), CHAT)
    assert (attempt.kind, attempt.retry_after_s) == ("error in HTTP 200 429", 1.5)
    assert attempt.rejection is not None and attempt.rejection.kind == "tokens"


def test_a_servers_control_characters_reach_no_terminal() -> None:
    """Neither by a header nor by what stands in the answer's place."""
    for body, headers in (
        (b"\0", {"content-type": "audio/\x1b[31mx"}),
        ({"choices": [{"text": "", "finish_reason": "error\x1b[2J"}]}, {}),
        ({"error": {"message": "a\x1b[2Jb"}}, {}),
        (b"<html>\x1b]0;title\x07", {}),
    ):
        attempt = judged(body, CHAT, headers=headers)
        assert attempt.status is not ANSWERED and attempt.error.isprintable(), attempt


def test_a_long_list_of_objects_is_judged_by_few_of_them() -> None:
    """A thousand scores cost little more than one."""
    rows = [{"index": number, "score": 0.5} for number in range(1000)]
    looked: list[str] = []

    class Watched(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            looked.append(name)
            return super().get(name, default)

    assert fault_of([Watched(row) for row in rows]) is None
    assert len(looked) < 100


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", {}),
        (b"\n<html><title>Sign in</title></html>", {"content-type": "application/json"}),
        (b"<p>Sign in</p>", {"content-type": "text/html; charset=utf-8"}),
    ],
)
def test_a_web_page_names_the_url_that_leads_to_it(body: bytes, headers: dict[str, str]) -> None:
    """It is a fault of the set-up as long as nothing was answered."""
    attempt = judged(body, Expected("https://user:pw@chat.example.com/?key=k"), headers=headers)
    assert (attempt.status, attempt.stop_cause) == (RETRY, StopCause.SETUP)
    assert "https://chat.example.com" in attempt.error and "Sign in" in attempt.error
    assert "pw" not in attempt.error and "key=k" not in attempt.error


@pytest.mark.parametrize("body", [b"", b'{"choices": [', b"upstream connect error", b"<Error/>"])
def test_a_torn_text_is_tried_again(body: bytes) -> None:
    """What is no JSON, though it might have been, has not been bought."""
    assert judged(body, CHAT).status is RETRY
    assert judged(body, UNKNOWN, headers={"content-type": "text/plain"}).status is RETRY


NAMES = (
    *("choices", "message", "content", "text", "delta", "finish_reason", "error", "code", "status"),
    *("data", "object", "embedding", "embeddings", "index", "usage", "output", "results", "type"),
    *("candidates", "promptFeedback", "blockReason", "parts", "response", "done", "detail", "msg"),
    *("base_resp", "status_code", "error_code", "success", "errors", "state", "values"),
    *("score", "relevance_score", "generated_text", "b64_json", "stopReason", "role"),
)
WORDS = ("list", "response", "message", "stop", "error", "completed", "queued", "429", "text", "")
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 429, 1004, 0.5, math.nan, *WORDS]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=12,
)
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/embed"),
    *("/v1/moderations", "/v1/messages", "/m:generateContent", "/m:embedContent", "/api/chat"),
    *("/api/generate", "/invoke", "", "/model/m/converse", "/v2/chat", "/v2/embed", "/embed"),
    *("/rerank", "/generate", "/v1/images/generations"),
)


@settings(max_examples=200)
@given(
    path=st.sampled_from(PATHS),
    data=VALUES,
    mixed=st.sampled_from(ANSWERS),
    inputs=st.none() | st.integers(0, 3),
)
def test_what_a_run_takes_for_an_answer_its_record_is(
    path: str, data: Any, mixed: tuple[Expected, Any], inputs: int | None
) -> None:
    """Whatever comes: it is judged, and an answer isn't bought again for lack of its URL."""
    merged = {**mixed[1], **data} if isinstance(mixed[1], dict) and isinstance(data, dict) else data
    for each in (data, merged):
        for is_batch_row in (False, True):
            if fault_of(each, Expected(HOST + path, inputs, is_batch_row)) is None:
                assert fault_of(each, Expected("", inputs, is_batch_row)) is None
                assert fault_of(each, Expected("", None, True)) is None
                assert is_batch_row or not is_failure_list(each)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({"input": "a"}, 1),
        ({"input": ["a", "b"]}, 2),
        ({"input": [1, 2, 3]}, 1),
        ({"input": [[1, 2], [3]]}, 2),
        ({"input": [{"text": "a"}, {"image": "b"}]}, None),
        ({"input": []}, 0),
        ({"prompt": ["a", "b", "c"]}, 3),
        ({"texts": ["a", "b"]}, 2),
        ({"inputs": "a"}, 1),
        ({"requests": [{"content": {}}, {"content": {}}]}, 2),
        ({"content": {"parts": []}}, None),
        ({"messages": []}, None),
        ({"input": None}, None),
        (None, None),
    ],
)
def test_inputs_are_counted(body: Any, count: int | None) -> None:
    """As the API counts them: tokens are one text; objects may be the parts of one."""
    assert count_inputs(body) == count
