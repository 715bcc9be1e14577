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
from parallel_processor.providers.jsontext import read_answer
from parallel_processor.providers.responses import classify, read_error, retry_after_s

ANSWERED, RETRY, RATE_LIMITED, FAILED, FATAL = (
    AttemptStatus.ANSWERED,
    AttemptStatus.RETRY,
    AttemptStatus.RATE_LIMITED,
    AttemptStatus.FAILED,
    AttemptStatus.FATAL,
)


def reply_of(status: int, body: Any = b"", headers: dict[str, str] | None = None) -> Response:
    """A reply as the transport makes it; what isn't bytes becomes JSON."""
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


def anthropic(kind: str, message: str = "m", **more: Any) -> dict[str, Any]:
    """An error body in Anthropic's shape."""
    return {"type": "error", "error": {"type": kind, "message": message, **more}}


def gemini(code: int, status: str, message: str = "m", *details: Any) -> dict[str, Any]:
    """An error body in Google's shape."""
    return {"error": {"code": code, "status": status, "message": message, "details": details}}


def quota(quota_id: str) -> dict[str, Any]:
    """Google's detail that names the exceeded quota."""
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": quota_id, "quotaValue": "20"}],
    }


LIMIT = "Rate limit reached for m in organization o on tokens per min (TPM): Limit 200000, "
TOO_LARGE = (
    "Request too large for m in organization o on tokens per min (TPM): Limit 3, Requested 9"
)

OPENAI = [
    (400, error("context_length_exceeded", "invalid_request_error"), FAILED),
    (400, error(None, "invalid_request_error", param="service_tier"), FAILED),
    (401, error("invalid_api_key", "invalid_request_error"), FATAL),
    (401, error(), FATAL),
    (403, error(), FAILED),
    (403, error("unsupported_country_region_territory", "request_forbidden"), FATAL),
    (404, error("model_not_found", "invalid_request_error"), FAILED),
    (408, error(), RETRY),
    (409, error(), RETRY),
    (413, error(), FAILED),
    (422, error(), FAILED),
    (425, error(), RETRY),
    (429, error("rate_limit_exceeded", "tokens"), RATE_LIMITED),
    (429, error("rate_limit_exceeded", "requests"), RATE_LIMITED),
    (429, error("rate_limit_exceeded", "tokens", LIMIT + "Requested 156060"), RATE_LIMITED),
    (429, error("rate_limit_exceeded", "tokens", LIMIT + "Requested 200001"), FAILED),
    (429, error("rate_limit_exceeded", "tokens", TOO_LARGE), FAILED),
    (429, error("rate_limit_exceeded", "tokens", "Request too large for m"), FAILED),
    (429, error("slow_down", "rate_limit_error"), RATE_LIMITED),
    (429, error("insufficient_quota", "insufficient_quota"), FATAL),
    (429, error("credit_balance_exhausted", "insufficient_quota"), FATAL),
    (429, error("organization_spend_limit_exceeded"), FATAL),
    (429, error("project_spend_limit_exceeded"), FATAL),
    (429, error("organization_usage_limit_exceeded"), FATAL),
    (429, error("billing_hard_limit_reached"), FATAL),
    (500, error("server_error", "server_error"), RETRY),
    (502, b"", RETRY),
    (504, b"", RETRY),
    (503, error("server_is_overloaded", "service_unavailable_error"), RETRY),
]
AZURE = [
    (429, {"error": {"code": "429", "message": "Rate limit is exceeded"}}, RATE_LIMITED),
    (429, {"error": {"code": "429", "message": "temporarily unable to process"}}, RATE_LIMITED),
    (401, {"error": {"code": "401", "message": "Access denied due to invalid key"}}, FATAL),
    (401, {"statusCode": 401, "message": "Access denied"}, FATAL),
    (404, {"error": {"code": "DeploymentNotFound", "message": "m"}}, FAILED),
    (400, {"error": {"code": "content_filter", "message": "m"}}, FAILED),
    (400, {"error": {"code": "context_length_exceeded", "message": "m"}}, FAILED),
]
ANTHROPIC = [
    (400, anthropic("invalid_request_error"), FAILED),
    (
        400,
        anthropic("invalid_request_error", "You have reached your specified API usage limits."),
        FATAL,
    ),
    (401, anthropic("authentication_error"), FATAL),
    (402, anthropic("billing_error"), FATAL),
    (403, anthropic("permission_error"), FATAL),
    (404, anthropic("not_found_error"), FAILED),
    (409, anthropic("conflict_error"), RETRY),
    (413, anthropic("request_too_large"), FAILED),
    (413, b"<html><title>413 Request Entity Too Large</title></html>", FAILED),
    (429, anthropic("rate_limit_error"), RATE_LIMITED),
    (
        429,
        anthropic("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"}),
        FATAL,
    ),
    (
        429,
        anthropic("rate_limit_error", details={"error_code": "contract_spend_limit_reached"}),
        FATAL,
    ),
    (
        429,
        anthropic("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}),
        RATE_LIMITED,
    ),
    (500, anthropic("api_error"), RETRY),
    (504, anthropic("timeout_error"), RETRY),
    (529, anthropic("overloaded_error"), RATE_LIMITED),
]
GEMINI = [
    (400, gemini(400, "INVALID_ARGUMENT", "m", {"reason": "API_KEY_INVALID"}), FATAL),
    (400, [gemini(400, "INVALID_ARGUMENT", "m", {"reason": "API_KEY_INVALID"})], FATAL),
    (400, gemini(400, "INVALID_ARGUMENT"), FAILED),
    (429, gemini(429, "RESOURCE_EXHAUSTED"), RATE_LIMITED),
    (429, [gemini(429, "RESOURCE_EXHAUSTED")], RATE_LIMITED),
    (
        429,
        gemini(429, "RESOURCE_EXHAUSTED", "m", quota("GenerateRequestsPerMinutePerProject")),
        RATE_LIMITED,
    ),
    (
        429,
        gemini(429, "RESOURCE_EXHAUSTED", "m", quota("GenerateRequestsPerDayPerProjectPerModel")),
        FATAL,
    ),
    (429, gemini(429, "RESOURCE_EXHAUSTED", "Quota exceeded …, limit: 0, model: m"), FAILED),
    (429, gemini(429, "RESOURCE_EXHAUSTED", "Quota exceeded …, limit: 20, m"), RATE_LIMITED),
    (500, gemini(500, "INTERNAL"), RETRY),
    (503, gemini(503, "UNAVAILABLE"), RETRY),
    (504, gemini(504, "DEADLINE_EXCEEDED"), RETRY),
]
OTHERS = [
    (429, error("rate_limit_exceeded", "tokens"), RATE_LIMITED),  # Groq
    (413, error("rate_limit_exceeded", "tokens", TOO_LARGE), FAILED),
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
    (402, {"error": {"code": 402, "message": "Insufficient credits"}}, FATAL),  # OpenRouter
    (429, {"error": {"code": 429, "message": "Rate limit exceeded: free-models-per-day"}}, FATAL),
    (429, {"error": {"code": 429, "message": "free-models-per-min"}}, RATE_LIMITED),
    (502, {"error": {"code": 502, "message": "m"}}, RETRY),
    (200, {"error": {"code": 402, "message": "m"}}, FATAL),
    (200, {"error": {"code": 429, "message": "m"}}, RATE_LIMITED),
    (200, {"error": {"code": 400, "message": "m"}}, FAILED),
    (200, {"error": {"code": 502, "message": "m"}}, RETRY),
    (200, [{"error": {"code": 502, "message": "m"}}], RETRY),
    (429, error(None, "dynamic_request_limited"), RATE_LIMITED),  # Together
    (503, error(None, "service_unavailable"), RETRY),
    (404, {"error": {"message": "m", "type": "NotFoundError", "code": 404}}, FAILED),  # vLLM
    (400, {"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, FAILED),
    (404, {"error": "model 'x' not found"}, FAILED),  # Ollama
    (503, b"", RETRY),
    (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, RETRY),
    (400, {"error": {"code": 400, "type": "exceed_context_size_error", "n_ctx": 1}}, FAILED),
    *((status, b"<html>", RETRY) for status in (520, 521, 522, 523, 524)),  # proxies
]
SUCCESSES = [
    (200, {"choices": [], "error": None}, ANSWERED),
    (201, {"choices": []}, ANSWERED),
    (
        200,
        {"choices": [{"message": {"content": "Rate limit reached. insufficient_quota"}}]},
        ANSWERED,
    ),
    (200, {"object": "response", "status": "completed", "error": None}, ANSWERED),
    (
        200,
        {
            "object": "response",
            "status": "incomplete",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"},
        },
        ANSWERED,
    ),
    (200, {"object": "response", "status": "failed", "error": None}, FAILED),
    (200, [[0.1, 0.2]], ANSWERED),
    (200, b"null", ANSWERED),
    (200, {"error": "out of memory"}, FAILED),
    (200, {"error": {"code": "²", "message": "m"}}, FAILED),
    (200, error("insufficient_quota", "server_error"), FATAL),
    (200, error(None, "overloaded_error"), RETRY),
    (200, b'{"choices": [', RETRY),
    (200, b"", RETRY),
    (204, b"", RETRY),
    (200, b"<html>maintenance</html>", RETRY),
    *(
        (200, {"object": "response", "status": "failed", "error": {"code": code}}, verdict)
        for code, verdict in [
            ("server_error", RETRY),
            ("rate_limit_exceeded", RETRY),
            ("invalid_prompt", FAILED),
            ("data_residency_mismatch", FAILED),
            ("vector_store_timeout", FAILED),
            ("image_too_large", FAILED),
        ]
    ),
]


@pytest.mark.parametrize(
    ("status", "body", "verdict"), [*OPENAI, *AZURE, *ANTHROPIC, *GEMINI, *OTHERS, *SUCCESSES]
)
def test_every_known_answer_gets_its_verdict(
    status: int, body: Any, verdict: AttemptStatus
) -> None:
    """The tables of the providers' errors, row by row."""
    attempt = classify(reply_of(status, body))
    assert attempt.status is verdict
    assert bool(attempt.error) == bool(attempt.kind) == (verdict is not ANSWERED)


REQUESTS, TOKENS = Rejection(kind="requests"), Rejection(kind="tokens")
STEEP, OVERLOAD, UNNAMED = Rejection(ramp_too_fast=True), Rejection(overload=True), Rejection()
AZURE_LIMIT = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have "
    "exceeded {} rate limit of your current OpenAI S0 pricing tier. Please retry after 22 seconds."
)
REFUSALS = [
    # OpenAI names the limit in the type, and in the message.
    (429, error("rate_limit_exceeded", "requests"), REQUESTS),
    (429, error("rate_limit_exceeded", "tokens"), TOKENS),
    (429, error("rate_limit_exceeded", "tokens", LIMIT + "Requested 156060"), TOKENS),
    (
        429,
        error(
            "rate_limit_exceeded",
            None,
            "Rate limit reached for m in organization o on requests per min (RPM): Limit 3, Used 3, "
            "Requested 1. Please try again in 20s.",
        ),
        REQUESTS,
    ),
    (429, error("rate_limit_exceeded", None, "Limit: 10000 / min on RPM."), REQUESTS),
    (429, error("rate_limit_exceeded", None, "Limit: 10000 / min on TPM."), TOKENS),
    (429, error("slow_down", "rate_limit_error"), STEEP),
    (503, error("slow_down", "service_unavailable_error"), STEEP),
    (503, error("server_is_overloaded", "service_unavailable_error"), OVERLOAD),
    (429, error("rate_limit_exceeded", None, "Too many requests"), UNNAMED),
    # Azure has one code for its limits and its load.
    (429, {"error": {"code": "429", "message": AZURE_LIMIT.format("token")}}, TOKENS),
    (429, {"error": {"code": "429", "message": AZURE_LIMIT.format("call")}}, REQUESTS),
    (429, {"error": {"code": "429", "message": "Rate limit is exceeded. Try again."}}, UNNAMED),
    (
        429,
        {
            "error": {
                "code": "429",
                "message": "The system is currently experiencing high demand and cannot process your "
                "request. Your request exceeds the maximum usage size allowed during peak load.",
            }
        },
        OVERLOAD,
    ),
    (
        429,
        {
            "error": {
                "code": "429",
                "message": "The service is Temporarily Unable to Process your request.",
            }
        },
        OVERLOAD,
    ),
    # Anthropic
    (
        429,
        anthropic("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}),
        STEEP,
    ),
    (429, anthropic("rate_limit_error"), UNNAMED),
    (
        429,
        anthropic(
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 40,000 input tokens per minute",
        ),
        TOKENS,
    ),
    (
        429,
        anthropic(
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 50 requests per minute",
        ),
        REQUESTS,
    ),
    (529, anthropic("overloaded_error"), OVERLOAD),
    # Others
    (429, gemini(429, "RESOURCE_EXHAUSTED"), UNNAMED),
    (
        429,
        gemini(
            429,
            "RESOURCE_EXHAUSTED",
            "Quota exceeded for quota metric 'Generate Content API requests per minute' and limit …",
        ),
        REQUESTS,
    ),
    (
        429,
        error(
            "rate_limit_exceeded",
            "tokens",
            "Rate limit reached for model `m` on tokens per minute (TPM): Limit 6000, Used 5900, "
            "Requested 200. Please try again in 1s.",
        ),
        TOKENS,
    ),
    (503, gemini(503, "UNAVAILABLE"), OVERLOAD),
    (503, b"", OVERLOAD),
    (503, b"<html>busy</html>", OVERLOAD),
    (529, b"", OVERLOAD),
    (429, b"", UNNAMED),
    (429, b"Too Many Requests", UNNAMED),
    (429, {"message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}, UNNAMED),
    (429, {"detail": "Too many tokens in your request, rapid ATPMs and RPMs"}, UNNAMED),
]


@pytest.mark.parametrize(("status", "body", "rejection"), REFUSALS)
def test_a_refusal_says_what_it_is_about(status: int, body: Any, rejection: Rejection) -> None:
    """The limit that the server names, its load, or a rate that rose too fast; nothing is guessed."""
    attempt = classify(reply_of(status, body))
    assert attempt.rejection == replace(
        rejection, has_retry_after=attempt.retry_after_s is not None
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"choices": [{"message": {"content": "Rate limit: tokens per min. slow_down"}}]}),
        (200, error("slow_down")),
        (400, error("invalid", None, "more than 5 requests per min, high demand")),
        (401, error("invalid_api_key")),
        (408, error()),
        (409, error(None, "requests", "tokens per min")),
        (500, error("server_error", "server_error", "high demand")),
        (502, b""),
        (520, b"<html>"),
        (429, error("insufficient_quota", "insufficient_quota")),
        (429, error("rate_limit_exceeded", "tokens", TOO_LARGE)),
        (429, anthropic("e", details={"error_code": "enforced_spend_limit_reached"})),
    ],
)
def test_what_is_no_refusal_has_none(status: int, body: Any) -> None:
    """An answer, a fault, and a request that can never succeed say nothing about the rate."""
    assert classify(reply_of(status, body)).rejection is None


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
def test_headers_change_the_refusal(
    status: int, headers: dict[str, str], rejection: Rejection | None
) -> None:
    """A response that is retried may be a rejection; one that fails is none."""
    assert classify(reply_of(status, b"", headers)).rejection == rejection


@pytest.mark.parametrize(
    ("status", "headers", "verdict"),
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
def test_headers_change_the_verdict(
    status: int, headers: dict[str, str], verdict: AttemptStatus
) -> None:
    """The server's word on waiting and retrying counts, but never against a fatal error."""
    assert classify(reply_of(status, b"", headers)).status is verdict


def test_what_never_fits_is_never_retried() -> None:
    """A request larger than the limit fails, even if the server says that it should be retried."""
    body = error("rate_limit_exceeded", "tokens", TOO_LARGE)
    assert classify(reply_of(429, body, {"x-should-retry": "true"})).status is FAILED


@pytest.mark.parametrize(
    ("status", "body", "headers", "text"),
    [
        (400, error("c", "t", "what\n happened"), {}, "HTTP 400 c: what happened"),
        (400, error(None, "t"), {}, "HTTP 400 t: m"),
        (429, {"error": {"code": "429", "message": "m"}}, {}, "HTTP 429: m"),
        (400, {"error": "text"}, {}, "HTTP 400: text"),
        (400, {"detail": "Unauthorized"}, {}, "HTTP 400: Unauthorized"),
        (422, {"detail": [{"msg": "a"}, {"msg": "b"}, 1, {"msg": 2}]}, {}, "HTTP 422: a; b"),
        (422, {"detail": {"a": 1}}, {}, 'HTTP 422: {"detail": {"a": 1}}'),
        (400, {"error": {"code": 400}}, {}, 'HTTP 400: {"error": {"code": 400}}'),
        (400, {"error": {}}, {}, 'HTTP 400: {"error": {}}'),
        (500, b"", {}, "HTTP 500"),
        (500, b" <html>\n no </html>", {}, "HTTP 500: <html> no </html>"),
        (500, b"\xff", {}, "HTTP 500: \ufffd"),
        (500, "x" * 600, {}, "HTTP 500: " + '"' + "x" * 499),
        (400, error("a\nb " + "c" * 100), {}, "HTTP 400 a b " + "c" * 96 + ": m"),
        (500, {"error": "e"}, {"X-Request-Id": "r1"}, "HTTP 500: e (request id r1)"),
        (500, {"error": "e"}, {"Request-Id": "r2"}, "HTTP 500: e (request id r2)"),
        (200, b"<html>", {}, "not JSON: the answer is not JSON: '<html>'"),
        (200, error("c"), {}, "error in HTTP 200 c: m"),
        (
            307,
            b"moved",
            {"Location": "https://a/"},
            "HTTP 307: redirects are not followed; the server points to 'https://a/'",
        ),
    ],
)
def test_the_error_says_what_the_server_said(
    status: int, body: Any, headers: dict[str, str], text: str
) -> None:
    """Status, code or type, message in one line, and the request id for the provider's support."""
    assert classify(reply_of(status, body, headers)).error == text


def test_an_answer_tells_what_it_used() -> None:
    """The tokens of the usage come with the verdict, and the answer's part if it is there."""
    attempt = classify(reply_of(200, {"usage": {"total_tokens": 9}}))
    assert (attempt.used_tokens, attempt.output_tokens) == (9, None)
    attempt = classify(reply_of(200, {"usage": {"total_tokens": 9, "prompt_tokens": 5}}))
    assert (attempt.used_tokens, attempt.output_tokens) == (9, 4)
    attempt = classify(reply_of(200, {"choices": []}))
    assert (attempt.used_tokens, attempt.output_tokens) == (None, None)


def test_codes_are_read_whatever_their_shape() -> None:
    """Codes are lower case; numbers count, truth values and objects don't."""
    info = read_error(reply_of(400, error(1300, "Some_Type")))
    assert (info.code, info.type) == ("1300", "some_type")
    for odd in (True, None, {}, [], 1.5):
        assert read_error(reply_of(400, error(odd, odd))).codes == {""}


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
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "garbage"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503, 400])
def test_the_wait_is_read_from_the_headers(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    """Milliseconds first, then seconds or a date, which counts from the server's own date."""
    half_past = 1_445_412_450.0
    assert retry_after_s(reply_of(status, b"", headers), lambda: half_past) == seconds


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
    """The words that providers use, where there is no header, in refusals only."""
    assert retry_after_s(reply_of(429, error(message=message))) == seconds
    assert retry_after_s(reply_of(429, {"message": message})) == seconds
    assert retry_after_s(reply_of(429, error(message=message), {"retry-after": "7"})) == 7
    assert retry_after_s(reply_of(400, error(message=message))) is None


@pytest.mark.parametrize("wrap", [lambda body: body, lambda body: [body]])
def test_googles_delay_is_read_from_the_details(wrap: Any) -> None:
    """A valid RetryInfo comes before the words of the message."""
    details = [quota("x"), 5, {"retryDelay": 7}, {"retryDelay": "soon"}, {"retryDelay": "57.5s"}]
    body = gemini(429, "RESOURCE_EXHAUSTED", "Please retry in 9s.", *details)
    assert retry_after_s(reply_of(429, wrap(body))) == 57.5
    body = gemini(429, "RESOURCE_EXHAUSTED", "Please retry in 9s.", *details[:4])
    assert retry_after_s(reply_of(429, wrap(body))) == 9


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
    """Whatever status, headers and body come, there is a verdict, and a failure has its reason."""
    attempt = classify(reply_of(status, body, headers))
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
def test_a_huge_error_is_judged_at_once(error_body: bytes) -> None:
    """No part of an error takes time or room beyond its length."""
    started_at = time.process_time()
    attempt = classify(reply_of(429, error_body))
    assert len(attempt.error) < 1000
    assert time.process_time() - started_at < 2
