"""What responses mean, for every provider's errors and waits."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from parallel_processor.models import AttemptStatus, Rejection, Response
from parallel_processor.providers.errors import read_error
from parallel_processor.providers.jsontext import read_answer
from parallel_processor.providers.responses import classify
from parallel_processor.providers.waits import retry_after_s

ANSWERED, FAILED, FATAL = AttemptStatus.ANSWERED, AttemptStatus.FAILED, AttemptStatus.FATAL
RETRY, RATE_LIMITED = AttemptStatus.RETRY, AttemptStatus.RATE_LIMITED
NOT_READY, SPENT = AttemptStatus.NOT_READY, AttemptStatus.MODEL_SPENT


def response_of(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Response:
    """A response as the transport makes it; what isn't bytes becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names: CaseInsensitiveDict[str] = CaseInsensitiveDict(headers or {})
    try:
        data, line = read_answer(raw)
    except ValueError:
        return Response(status=status, headers=names, body=raw)
    return Response(status=status, headers=names, body=line, data=data, is_json=True)


def error(code: Any = None, kind: Any = None, message: str = "m", **more: Any) -> dict[str, Any]:
    """An error body in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def limited(kind: Any = None, message: str = "m") -> dict[str, Any]:
    """OpenAI's error for an ordinary rate limit."""
    return error("rate_limit_exceeded", kind, message)


def coded(code: Any, message: str = "m", **more: Any) -> dict[str, Any]:
    """An error body of a code and a message, as Azure and OpenRouter send it."""
    return {"error": {"code": code, "message": message, **more}}


def anthropic(kind: str, message: str = "m", **more: Any) -> dict[str, Any]:
    """An error body in Anthropic's shape."""
    return {"type": "error", "error": {"type": kind, "message": message, **more}}


def anthropic_detail(code: str) -> dict[str, Any]:
    """Anthropic's 429 with a code that says more."""
    return anthropic("rate_limit_error", details={"error_code": code})


def gemini(code: int, status: str, message: str = "m", *details: Any) -> dict[str, Any]:
    """An error body in Google's shape."""
    return {"error": {"code": code, "status": status, "message": message, "details": details}}


def exhausted(message: str = "m", *details: Any) -> dict[str, Any]:
    """Google's error for a quota that is used up."""
    return gemini(429, "RESOURCE_EXHAUSTED", message, *details)


def quota(quota_id: str) -> dict[str, Any]:
    """Google's detail that names the exceeded quota."""
    violations = [{"quotaId": quota_id, "quotaValue": "20"}]
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}


LIMIT = "Rate limit reached for m in organization o on tokens per min (TPM): Limit 200000, "
TOO_LARGE = (
    "Request too large for m in organization o on tokens per min (TPM): Limit 3, Requested 9"
)

OPENAI_SPENT = ("insufficient_quota", "credit_balance_exhausted")
OPENAI_LIMITS = (
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded"),
    *("organization_usage_limit_exceeded", "billing_hard_limit_reached"),
)
OPENAI = [
    (400, error("context_length_exceeded", "invalid_request_error"), FAILED),
    (400, error(None, "invalid_request_error", param="service_tier"), FAILED),
    (401, error("invalid_api_key", "invalid_request_error"), FATAL),
    (401, error(), FATAL),
    *((status, error(), FAILED) for status in (403, 413, 422)),
    *((status, error(), RETRY) for status in (408, 409, 425)),
    (403, error("unsupported_country_region_territory", "request_forbidden"), FATAL),
    (404, error("model_not_found", "invalid_request_error"), FAILED),
    (429, limited("tokens"), RATE_LIMITED),
    (429, limited("requests"), RATE_LIMITED),
    (429, limited("tokens", LIMIT + "Requested 156060"), RATE_LIMITED),
    (429, limited("tokens", LIMIT + "Requested 200001"), FAILED),
    (429, limited("tokens", TOO_LARGE), FAILED),
    (429, limited("tokens", "Request too large for m"), FAILED),
    (429, error("slow_down", "rate_limit_error"), RATE_LIMITED),
    *((429, error(code, "insufficient_quota"), FATAL) for code in OPENAI_SPENT),
    *((429, error(code), FATAL) for code in OPENAI_LIMITS),
    (500, error("server_error", "server_error"), RETRY),
    (502, b"", RETRY),
    (504, b"", RETRY),
    (503, error("server_is_overloaded", "service_unavailable_error"), RETRY),
]
AZURE = [
    (429, coded("429", "Rate limit is exceeded"), RATE_LIMITED),
    (429, coded("429", "temporarily unable to process"), RATE_LIMITED),
    (401, coded("401", "Access denied due to invalid key"), FATAL),
    (401, {"statusCode": 401, "message": "Access denied"}, FATAL),
    (404, coded("DeploymentNotFound"), FAILED),
    (400, coded("content_filter"), FAILED),
    (400, coded("context_length_exceeded"), FAILED),
]
USAGE_LIMITS = "reached your specified API usage limits."
ANTHROPIC = [
    (400, anthropic("invalid_request_error"), FAILED),
    (400, anthropic("invalid_request_error", f"You have {USAGE_LIMITS}"), FATAL),
    (401, anthropic("authentication_error"), FATAL),
    (402, anthropic("billing_error"), FATAL),
    (403, anthropic("permission_error"), FATAL),
    (404, anthropic("not_found_error"), FAILED),
    (409, anthropic("conflict_error"), RETRY),
    (413, anthropic("request_too_large"), FAILED),
    (413, b"<html><title>413 Request Entity Too Large</title></html>", FAILED),
    (429, anthropic("rate_limit_error"), RATE_LIMITED),
    (429, anthropic_detail("enforced_spend_limit_reached"), FATAL),
    (429, anthropic_detail("contract_spend_limit_reached"), FATAL),
    (429, anthropic_detail("ramp_limit_exceeded"), RATE_LIMITED),
    (500, anthropic("api_error"), RETRY),
    (504, anthropic("timeout_error"), RETRY),
    (529, anthropic("overloaded_error"), RATE_LIMITED),
]
GEMINI = [
    (400, gemini(400, "INVALID_ARGUMENT", "m", {"reason": "API_KEY_INVALID"}), FATAL),
    (400, [gemini(400, "INVALID_ARGUMENT", "m", {"reason": "API_KEY_INVALID"})], FATAL),
    (400, gemini(400, "INVALID_ARGUMENT"), FAILED),
    (429, exhausted(), RATE_LIMITED),
    (429, [exhausted()], RATE_LIMITED),
    (429, exhausted("m", quota("GenerateRequestsPerMinutePerProject")), RATE_LIMITED),
    (429, exhausted("m", quota("GenerateRequestsPerDayPerProjectPerModel")), SPENT),
    (429, exhausted("m", quota("GenerateRequestsPerDayPerProject")), FATAL),
    (429, exhausted("Quota exceeded …, limit: 0, model: m"), FAILED),
    (429, exhausted("Quota exceeded …, limit: 20, m"), RATE_LIMITED),
    (500, gemini(500, "INTERNAL"), RETRY),
    (503, gemini(503, "UNAVAILABLE"), RETRY),
    (504, gemini(504, "DEADLINE_EXCEEDED"), RETRY),
]
OTHERS = [
    (429, limited("tokens"), RATE_LIMITED),  # Groq
    (413, limited("tokens", TOO_LARGE), FAILED),
    (498, error(None, "flex_capacity"), RETRY),
    (499, error(), FAILED),
    (400, {"object": "error", "message": "m", "type": "t", "code": None}, FAILED),  # Mistral
    (429, {"object": "error", "type": "insufficient_quota"}, FATAL),
    (401, {"detail": "Unauthorized"}, FATAL),
    (422, {"detail": [{"loc": ["body"], "msg": "m", "type": "missing"}]}, FAILED),
    (429, {"message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}, RATE_LIMITED),
    (
        402,
        error("invalid_request_error", "unknown_error", "Insufficient Balance"),
        FATAL,
    ),  # DeepSeek
    (401, b"Authentication Fails (no such user)", FATAL),
    (402, coded(402, "Insufficient credits"), FATAL),  # OpenRouter
    (429, coded(429, "Rate limit exceeded: free-models-per-day"), FATAL),
    (429, coded(429, "free-models-per-min"), RATE_LIMITED),
    (502, coded(502), RETRY),
    (200, coded(402), FATAL),
    (200, coded(429), RATE_LIMITED),
    (200, coded(400), FAILED),
    (200, coded(502), RETRY),
    (200, [coded(502)], RETRY),
    (429, error(None, "dynamic_request_limited"), RATE_LIMITED),  # Together
    (503, error(None, "service_unavailable"), RETRY),
    (404, {"error": {"message": "m", "type": "NotFoundError", "code": 404}}, FAILED),  # vLLM
    (400, {"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, FAILED),
    (404, {"error": "model 'x' not found"}, FAILED),  # Ollama
    (503, b"", RETRY),
    (503, coded(503, "Loading model", type="unavailable_error"), NOT_READY),
    (400, {"error": {"code": 400, "type": "exceed_context_size_error", "n_ctx": 1}}, FAILED),
    *((status, b"<html>", RETRY) for status in (520, 521, 522, 523, 524)),  # proxies
]
FAILED_RESPONSE = {"object": "response", "status": "failed"}
FAILED_CODES = (
    *("invalid_prompt", "data_residency_mismatch", "vector_store_timeout", "image_too_large"),
)
SUCCESSES = [
    (200, {"choices": [{"text": ""}], "error": None}, ANSWERED),
    (201, {"choices": [{"text": ""}]}, ANSWERED),
    (200, {"choices": [{"message": {"content": "Rate limit. insufficient_quota"}}]}, ANSWERED),
    (200, {"object": "response", "status": "completed", "output": [{}], "error": None}, ANSWERED),
    (200, {"object": "response", "status": "incomplete", "output": []}, ANSWERED),
    (200, {"object": "response", "status": "failed", "error": None}, FAILED),
    (200, [[0.1, 0.2]], ANSWERED),
    (200, {"error": "out of memory"}, FAILED),
    (200, coded("²"), FAILED),
    (200, error("insufficient_quota", "server_error"), FATAL),
    (200, error(None, "overloaded_error"), RETRY),
    (200, b'{"choices": [', RETRY),
    (200, b"", RETRY),
    (204, b"", RETRY),
    (200, b"<html>maintenance</html>", RETRY),
    (200, FAILED_RESPONSE | {"error": {"code": "server_error"}}, RETRY),
    (200, FAILED_RESPONSE | {"error": {"code": "rate_limit_exceeded"}}, RATE_LIMITED),
    *((200, FAILED_RESPONSE | {"error": {"code": code}}, FAILED) for code in FAILED_CODES),
]


@pytest.mark.parametrize(
    ("http_status", "body", "status"), [*OPENAI, *AZURE, *ANTHROPIC, *GEMINI, *OTHERS, *SUCCESSES]
)
def test_every_known_response_has_its_status(
    http_status: int, body: Any, status: AttemptStatus
) -> None:
    """The tables of the providers' errors, row by row."""
    attempt = classify(response_of(http_status, body))
    assert attempt.status is status
    assert bool(attempt.error) == bool(attempt.kind) == (status is not ANSWERED)


REQUESTS, TOKENS = Rejection(kind="requests"), Rejection(kind="tokens")
RAMP, OVERLOAD, UNNAMED = Rejection(ramp_too_fast=True), Rejection(overload=True), Rejection()
RPM = "Rate limit reached for m on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again"
TPM = "Rate limit reached for `m` on tokens per minute (TPM): Limit 6000, Used 5900, Requested 200. Please"
AZURE_LIMIT = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have "
    "exceeded {} rate limit of your current OpenAI S0 pricing tier. Please retry after 22 seconds."
)
AZURE_LOADS = (
    "The system is currently experiencing high demand and cannot process your request. Your request "
    "exceeds the maximum usage size allowed during peak load.",
    "The service is Temporarily Unable to Process your request.",
)
ANTHROPIC_LIMIT = "This request would exceed your organization's rate limit of {} per minute"
GEMINI_LIMIT = (
    "Quota exceeded for quota metric 'Generate Content API requests per minute' and limit …"
)
REJECTIONS = [
    # OpenAI names the limit in the type, and in the message.
    (429, limited("requests"), REQUESTS),
    (429, limited("tokens"), TOKENS),
    (429, limited("tokens", LIMIT + "Requested 156060"), replace(TOKENS, limit=200_000)),
    (429, limited(None, RPM + " in 20s."), replace(REQUESTS, limit=3)),
    (429, limited(None, "Limit: 10000 / min on RPM."), replace(REQUESTS, limit=10_000)),
    (429, limited(None, "Limit: 10000 / min on TPM."), replace(TOKENS, limit=10_000)),
    (429, error("slow_down", "rate_limit_error"), RAMP),
    (503, error("slow_down", "service_unavailable_error"), RAMP),
    (503, error("server_is_overloaded", "service_unavailable_error"), OVERLOAD),
    (429, limited(None, "Too many requests"), UNNAMED),
    # Azure has one code for its limits and its load.
    (429, coded("429", AZURE_LIMIT.format("token")), TOKENS),
    (429, coded("429", AZURE_LIMIT.format("call")), REQUESTS),
    (429, coded("429", "Rate limit is exceeded. Try again."), UNNAMED),
    *((429, coded("429", message), OVERLOAD) for message in AZURE_LOADS),
    # Anthropic
    (429, anthropic_detail("ramp_limit_exceeded"), RAMP),
    (429, anthropic("rate_limit_error"), UNNAMED),
    (429, anthropic("rate_limit_error", ANTHROPIC_LIMIT.format("40,000 input tokens")), TOKENS),
    (
        429,
        anthropic("rate_limit_error", ANTHROPIC_LIMIT.format("50 requests")),
        replace(REQUESTS, limit=50),
    ),
    (529, anthropic("overloaded_error"), OVERLOAD),
    # Others
    (429, exhausted(), UNNAMED),
    (429, exhausted(GEMINI_LIMIT), REQUESTS),
    (429, limited("tokens", TPM + " try again in 1s."), replace(TOKENS, limit=6_000)),
    (503, gemini(503, "UNAVAILABLE"), OVERLOAD),
    (503, b"", OVERLOAD),
    (503, b"<html>busy</html>", OVERLOAD),
    (529, b"", OVERLOAD),
    (429, b"", UNNAMED),
    (429, b"Too Many Requests", UNNAMED),
    (429, {"message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}, UNNAMED),
    (429, {"detail": "Too many tokens in your request, rapid ATPMs and RPMs"}, UNNAMED),
]


@pytest.mark.parametrize(("status", "body", "rejection"), REJECTIONS)
def test_a_rejection_says_what_it_is_about(status: int, body: Any, rejection: Rejection) -> None:
    """The limit that the server names, its load, or a rate that rose too fast; nothing is guessed."""
    attempt = classify(response_of(status, body))
    has_retry_after = attempt.retry_after_s is not None
    assert attempt.rejection == replace(rejection, has_retry_after=has_retry_after)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"choices": [{"message": {"content": "Rate limit: tokens per min. slow_down"}}]}),
        (400, error("invalid", None, "more than 5 requests per min, high demand")),
        (401, error("invalid_api_key")),
        (408, error()),
        (409, error(None, "requests", "tokens per min")),
        (500, error("server_error", "server_error", "high demand")),
        (502, b""),
        (520, b"<html>"),
        (429, error("insufficient_quota", "insufficient_quota")),
        (429, limited("tokens", TOO_LARGE)),
        (429, anthropic_detail("enforced_spend_limit_reached")),
    ],
)
def test_what_is_no_rejection_has_none(status: int, body: Any) -> None:
    """An answer, a fault, and a request that can never succeed say nothing about the rate."""
    assert classify(response_of(status, body)).rejection is None


@pytest.mark.parametrize(
    ("status", "headers", "rejection"),
    [
        (503, {"Retry-After": "2"}, replace(OVERLOAD, has_retry_after=True)),
        (402, {"Retry-After": "2"}, replace(UNNAMED, has_retry_after=True)),
        (429, {"x-should-retry": "false"}, None),
        (503, {"x-should-retry": "false"}, None),
        (500, {"Retry-After": "2"}, None),
    ],
)
def test_headers_change_the_rejection(
    status: int, headers: dict[str, str], rejection: Rejection | None
) -> None:
    """A response that is retried may be a rejection; one that fails is none."""
    assert classify(response_of(status, b"", headers)).rejection == rejection


@pytest.mark.parametrize(
    ("http_status", "headers", "status"),
    [
        (503, {"Retry-After": "2"}, RATE_LIMITED),
        (503, {"Retry-After": "soon"}, RETRY),
        (402, {"Retry-After": "2"}, RATE_LIMITED),
        (500, {"Retry-After": "2"}, RETRY),
        (400, {"x-should-retry": "true"}, RETRY),
        (400, {"X-Should-Retry": "false"}, FAILED),
        (500, {"x-should-retry": "false"}, FAILED),
        (429, {"x-should-retry": "false"}, FAILED),
        (429, {"x-should-retry": "true"}, RATE_LIMITED),
        (500, {"x-should-retry": "perhaps"}, RETRY),
        (401, {"x-should-retry": "true"}, FATAL),
        (429, {"x-ratelimit-limit-req-minute": "0"}, FAILED),
        (429, {"x-ratelimit-limit-req-minute": "60"}, RATE_LIMITED),
        (302, {"Location": "https://evil.example/"}, FAILED),
        (200, {"Content-Type": "text/event-stream; charset=utf-8"}, FAILED),
    ],
)
def test_headers_change_the_status(
    http_status: int, headers: dict[str, str], status: AttemptStatus
) -> None:
    """The server's word on waiting and retrying counts, but never against a fatal error."""
    assert classify(response_of(http_status, b"", headers)).status is status


def test_what_never_fits_is_never_retried() -> None:
    """A request larger than the limit fails, even if the server says that it should be retried."""
    body = limited("tokens", TOO_LARGE)
    assert classify(response_of(429, body, {"x-should-retry": "true"})).status is FAILED


NOT_FOLLOWED = "redirects are not followed; the server points to"


@pytest.mark.parametrize(
    ("status", "body", "headers", "text"),
    [
        (400, error("c", "t", "what\n happened"), {}, "HTTP 400 c: what happened"),
        (400, error(None, "t"), {}, "HTTP 400 t: m"),
        (429, coded("429"), {}, "HTTP 429: m"),
        (400, {"error": "text"}, {}, "HTTP 400: text"),
        (400, {"detail": "Unauthorized"}, {}, "HTTP 400: Unauthorized"),
        (422, {"detail": [{"msg": "a"}, {"msg": "b"}, 1, {"msg": 2}]}, {}, "HTTP 422: a; b"),
        (422, {"detail": {"a": 1}}, {}, 'HTTP 422: {"detail": {"a": 1}}'),
        (400, {"error": {"code": 400}}, {}, 'HTTP 400: {"error": {"code": 400}}'),
        (400, {"error": {}}, {}, 'HTTP 400: {"error": {}}'),
        (500, b"", {}, "HTTP 500"),
        (500, b" <html>\n no </html>", {}, "HTTP 500: no"),
        (500, b"\xff", {}, "HTTP 500: \ufffd"),
        (500, "x" * 600, {}, "HTTP 500: " + "x" * 500),
        (400, error("a\nb " + "c" * 100), {}, "HTTP 400 a b " + "c" * 96 + ": m"),
        (500, {"error": "e"}, {"X-Request-Id": "r1"}, "HTTP 500: e (request id r1)"),
        (500, {"error": "e"}, {"Request-Id": "r2"}, "HTTP 500: e (request id r2)"),
        (200, b"<Error>", {}, "not JSON: the answer is not JSON: '<Error>'"),
        (200, error("c"), {}, "error in HTTP 200 c: m"),
        (307, b"moved", {"Location": "https://a/"}, f"HTTP 307: {NOT_FOLLOWED} 'https://a/'"),
    ],
)
def test_the_error_says_what_the_server_said(
    status: int, body: Any, headers: dict[str, str], text: str
) -> None:
    """Status, code or type, message in one line, and the request id for the provider's support."""
    assert classify(response_of(status, body, headers)).error == text


@pytest.mark.parametrize(
    ("body", "used", "output"),
    [
        ({"usage": {"total_tokens": 9}}, 9, None),
        ({"usage": {"total_tokens": 9, "prompt_tokens": 5}}, 9, 4),
        ({"choices": []}, None, None),
    ],
)
def test_the_tokens_used_come_with_an_answer(body: Any, used: Any, output: Any) -> None:
    """They are the usage's, and the output's part is there if the usage has it."""
    attempt = classify(response_of(200, body))
    assert (attempt.used_tokens, attempt.output_tokens) == (used, output)


def test_codes_are_read_whatever_their_shape() -> None:
    """Codes are lower case; numbers count, truth values and objects don't."""
    info = read_error(response_of(400, error(1300, "Some_Type")))
    assert (info.code, info.type) == ("1300", "some_type")
    for odd in (True, None, {}, [], 1.5):
        assert read_error(response_of(400, error(odd, odd))).codes == {""}


NOW = "Wed, 21 Oct 2015 07:27:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"Retry-After-Ms": "nan", "Retry-After": "9"}, 9),
        ({"retry-after-ms": LATER, "retry-after": "9"}, 9),
        ({"Retry-After": "56"}, 56),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": LATER, "Date": NOW}, 60),
        ({"Retry-After": NOW, "Date": LATER}, 0),
        ({"Retry-After": LATER}, 30),
        ({"Retry-After": LATER, "Date": "garbage"}, 30),
        *(({"Retry-After": odd}, None) for odd in ("-1", "nan", "inf", "garbage", "")),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 400])
def test_the_wait_is_read_from_the_headers(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    """Milliseconds first, then seconds or a date, which counts from the server's own date."""
    half_past = 1_445_412_450.0
    assert retry_after_s(response_of(status, b"", headers), lambda: half_past) == seconds


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please try again in 22.497s.", 22.497),
        ("Please try again in 6m0s. Visit …", 360),
        ("Please try again in 200ms.", 0.2),
        ("try again in 1.2s", 1.2),
        ("Try again in 2h3m", 7380),
        ("Please retry after 22 seconds", 22),
        ("Please retry after 1 second.", 1),
        ("Please retry in 1.5 seconds", 1.5),
        ("Please retry in 2 minutes.", 120),
        ("Please retry in 10h17m5.7s.", 37_025.7),
        ("Please try again in a while", None),
        ("Please retry after " + "9" * 400 + " seconds", None),
        ("5s", None),
    ],
)
def test_the_wait_is_read_from_the_message(message: str, seconds: float | None) -> None:
    """The words that providers use, where there is no header, in rejections only."""
    assert retry_after_s(response_of(429, error(message=message))) == seconds
    assert retry_after_s(response_of(429, {"message": message})) == seconds
    assert retry_after_s(response_of(429, error(message=message), {"retry-after": "7"})) == 7
    assert retry_after_s(response_of(400, error(message=message))) is None


@pytest.mark.parametrize("wrap", [lambda body: body, lambda body: [body]])
def test_googles_delay_is_read_from_the_details(wrap: Any) -> None:
    """A valid RetryInfo comes before the words of the message."""
    details = [quota("x"), 5, {"retryDelay": 7}, {"retryDelay": "soon"}, {"retryDelay": "57.5s"}]
    body = exhausted("Please retry in 9s.", *details)
    assert retry_after_s(response_of(429, wrap(body))) == 57.5
    body = exhausted("Please retry in 9s.", *details[:4])
    assert retry_after_s(response_of(429, wrap(body))) == 9


WORDS = st.sampled_from(
    [
        *("error", "code", "type", "status", "message", "details", "detail", "msg", "object"),
        *("reason", "error_code", "violations", "quotaId", "retryDelay", "usage", "response"),
        *("total_tokens", "failed", "429", "²", "١٢٣", "500", "try again in 5s", "\ud800"),
    ]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), WORDS
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
STATUSES = st.integers(0, 999) | st.sampled_from([200, 400, 401, 402, 429, 503, 529])
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("retry-after", "retry-after-ms", "date", "x-should-retry", "content-type"),
            *("location", "x-request-id", "x-ratelimit-limit-req-minute"),
        ]
    ),
    st.text(max_size=30) | st.floats().map(str) | st.sampled_from([NOW, LATER, "true", "false"]),
)


@given(STATUSES, HEADERS, JSON.map(lambda value: json.dumps(value).encode()) | st.binary())
def test_no_answer_raises(status: int, headers: dict[str, str], body: bytes) -> None:
    """Whatever status, headers and body come, there is a status, and a failure has its reason."""
    attempt = classify(response_of(status, body, headers))
    assert (attempt.status is ANSWERED) == (not attempt.error) == (not attempt.kind)
    assert attempt.status is not ANSWERED or 200 <= status < 300
    wait = attempt.retry_after_s
    assert wait is None or 0 <= wait < math.inf
    assert "\n" not in attempt.kind


@pytest.mark.parametrize(
    "error_body",
    [
        b'{"error": {"message": "Limit 1 Requested ' + b"1" * 100_000 + b'"}}',
        b'{"error": {"message": "try again in ' + b"1m" * 100_000 + b'"}}',
        b'{"error": {"details": [{"retryDelay": "' + b"1" * 1_000_000 + b'"}]}}',
        b'{"detail": ' + b"[" * 90 + b"]" * 90 + b"}",
        b'{"error": {"code": "' + b"c" * 1_000_000 + b'"}}',
        b"[" * 100_000,
        b'{"error": ' * 100_000,
    ],
)
def test_a_huge_error_is_classified_at_once(error_body: bytes) -> None:
    """No part of an error takes time or room beyond its length."""
    started_at = time.process_time()
    attempt = classify(response_of(429, error_body))
    assert len(attempt.error) < 1000
    assert time.process_time() - started_at < 2
