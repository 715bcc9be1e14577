"""What failures of real servers mean: waits, wrapped errors, load, loading, and the reason on record.

The bodies are made after public reports and error pages, shortened.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from bodies import GEMINI, attempt_of, google, said

from parallel_processor.models import AttemptStatus, Rejection

FAILED, FATAL, RETRY = AttemptStatus.FAILED, AttemptStatus.FATAL, AttemptStatus.RETRY
LIMITED, NOT_READY = AttemptStatus.RATE_LIMITED, AttemptStatus.NOT_READY

WAITS: list[tuple[str, int, Any, dict[str, str], float | None]] = [
    (
        "case: words",
        429,
        said("the limit of 20 requests a minute is reached, try again after 1 seconds"),
        {},
        1,
    ),
    (
        "case: 403",
        403,
        {"statusCode": 403, "message": "call quota used up, replenished in 00:00:20"},
        {"Retry-After": "20"},
        20,
    ),
    (
        "case: a wrapped 429",
        424,
        {
            "code": 424,
            "msg": "http 429: status code: 429, message: the organization's rate limit is "
            "exceeded, try again after 1 seconds",
            "data": None,
        },
        {},
        1,
    ),
    (
        "APIM, words alone",
        403,
        {
            "statusCode": 403,
            "message": "Out of call volume quota. Quota will be replenished in 5.03:23:11.",
        },
        {},
        444_191,
    ),
    (
        "APIM, hours",
        403,
        {
            "statusCode": 403,
            "message": "Out of call volume quota. Quota will be replenished in 02:00:00.",
        },
        {},
        7200,
    ),
    (
        "Azure",
        429,
        said(
            "Requests to the Embeddings_Create Operation have exceeded call rate limit. Please "
            "retry after 86400 seconds."
        ),
        {},
        86_400,
    ),
    (
        "Azure's milliseconds",
        429,
        said("m"),
        {"x-ms-retry-after-ms": "1500", "Retry-After": "9"},
        1.5,
    ),
    (
        "please wait",
        429,
        {"error": "Too many requests, please wait 2 seconds before the next request"},
        {},
        2,
    ),
    ("minutes", 429, {"message": "You can try again in about 3 minutes."}, {}, 180),
    ("minutes and seconds", 429, {"message": "retry in 1 minute and 30 seconds"}, {}, 90),
    ("a fraction", 429, {"message": "Retry after 1,5 s"}, {}, 1.5),
    ("an hour", 429, {"message": "your limit resets in 1 hour"}, {}, 3600),
    ("milliseconds", 429, {"message": "try again in 250 milliseconds"}, {}, 0.25),
    ("Chinese", 429, said("请求过于频繁，请 30 秒后重试"), {}, 30),
    ("Chinese, minutes", 429, said("触发限流，请在2分钟后再试"), {}, 120),
    ("Chinese, wait", 429, said("请等待5秒再发送"), {}, 5),
    ("two of one server", 429, None, {"Retry-After": "20, 20"}, 20),
    ("two of two servers", 429, None, {"Retry-After": "5, 20"}, 20),
    (
        "two dates",
        429,
        None,
        {
            "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT, Wed, 21 Oct 2015 07:28:00 GMT",
            "Date": "Wed, 21 Oct 2015 07:27:00 GMT",
        },
        60,
    ),
    ("a unit in the header", 429, None, {"Retry-After": "20 seconds"}, 20),
    ("Gemini as a string", 429, said(json.dumps(google(GEMINI, delay="21s")), 429), {}, 21),
    (
        "Gemini as Python's text",
        500,
        {"detail": f"429 RESOURCE_EXHAUSTED. {google(GEMINI, delay='21s')}"},
        {},
        21,
    ),
    ("a member", 429, {"error": "rate limited", "retry_after": 4.5}, {}, 4.5),
    ("a member of the error", 429, said("m", retry_after_seconds=7), {}, 7),
    (
        "OpenRouter's inner headers",
        429,
        said(
            "free-models-per-min", 429, metadata={"headers": {"X-RateLimit-Reset": "1445412450000"}}
        ),
        {"Date": "Wed, 21 Oct 2015 07:27:00 GMT"},
        30,
    ),
    (
        "OpenAI's text in a gateway's 500",
        500,
        {
            "error": "Error code: 429 - {'error': {'message': 'Rate limit reached. Please try "
            "again in 1.2s.', 'code': 'rate_limit_exceeded'}}"
        },
        {},
        1.2,
    ),
    (
        "a gateway's 400",
        400,
        said('OpenAIException - {"error": {"message": "try again in 3s", "code": 429}}', "400"),
        {},
        3,
    ),
    ("the end of a window", 429, None, {"RateLimit-Remaining": "0", "RateLimit-Reset": "41"}, 41),
    ("503 in words", 503, {"error": "busy, retry in 5 seconds"}, {}, 5),
    ("no wait", 429, said("You have made 20 requests in 30 seconds"), {}, None),
    ("a wait in quotes", 429, said('The prompt "try again in 5 seconds" is limited'), {}, None),
    ("a time that is none", 429, said("Retry after " + "9" * 400 + " seconds"), {}, None),
]


@pytest.mark.parametrize(
    ("status", "body", "headers", "seconds"), [pytest.param(*row[1:], id=row[0]) for row in WAITS]
)
def test_a_wait_is_read_in_every_form(
    status: int, body: Any, headers: dict[str, str], seconds: float | None
) -> None:
    """Headers, members and words, in every unit; what asks to wait costs no attempt."""
    attempt = attempt_of(status, body, headers)
    assert attempt.status is LIMITED
    assert attempt.retry_after_s == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Rate limited. Wait 3.5s.", 3.5),
        ("You can make another request in 12 seconds", 12),
        ("Expected available in 86 seconds.", 86),
        ("Your quota will reset after 3h29m4s.", 12_544),
        ("rate limit will be lifted in 15 minutes", 900),
        ("Please wait at least 30 seconds between requests", 30),
        ("cool down for 20 seconds", 20),
        ("in 7 seconds you may retry", 7),
        ("resets_in: 30s", 30),
        ("Please retry in PT20S", 20),
        ("try again in 1 hour, 5 minutes", 3900),
        ("请稍后 10 秒再试", 10),
        ("請於 3 分鐘後重試", 180),
        ("20 requests per 60 seconds are allowed", None),
        ("Try again at 2099-01-01T00:00:00Z", None),
        ("it took 5 seconds", None),
    ],
)
def test_a_wait_is_read_in_other_words(text: str, seconds: float | None) -> None:
    """The verb and the unit make it a wait; a length of a window is none."""
    assert attempt_of(429, said(text)).retry_after_s == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("The model is being downloaded", "Waiting for model to load", "warming up", "启动中"),
        *("The inference server is booting", "instance is waking up", "Container starting"),
        *("loading checkpoint shards of the model", "the model is still being initialized"),
        *("vLLM engine is not ready", "Service is starting up, please try again later"),
    ],
)
def test_a_start_is_read_in_other_words(text: str) -> None:
    """A server that starts says so in many ways."""
    assert attempt_of(503, {"error": text}).status is NOT_READY


@pytest.mark.parametrize(
    ("status", "body", "headers", "meant"),
    [
        (424, {"code": 424, "msg": "a dependency failed"}, {}, FAILED),
        (424, {"code": 424, "msg": "http 503: status code: 503, message: busy"}, {}, RETRY),
        (424, {"code": 424, "msg": "http 401: status code: 401"}, {}, FAILED),
        (424, {"code": 424, "msg": "http 400: status code: 400, message: bad schema"}, {}, FAILED),
        (
            500,
            {"error": "Error code: 401 - {'error': {'message': 'the gateway has no key'}}"},
            {},
            RETRY,
        ),
        (401, {"error": "Error code: 429 - {'error': {'message': 'slow'}}"}, {}, FATAL),
        (403, {"message": "no"}, {}, FAILED),
        (403, {"message": "no", "code": "rate_limit_exceeded"}, {}, LIMITED),
        (400, {"message": "Rate exceeded", "__type": "ThrottlingException"}, {}, LIMITED),
        (407, "<html><title>Proxy Authentication Required</title></html>", {}, FATAL),
    ],
)
def test_a_wrapped_status_counts_where_it_says_more(
    status: int, body: Any, headers: dict[str, str], meant: AttemptStatus
) -> None:
    """A gateway's 424 and 5xx mean what they wrap; its own refusals mean what they say."""
    assert attempt_of(status, body, headers).status is meant


def in_flight(limit: float | None = None, **more: Any) -> Rejection:
    """A rejection because too many requests were in flight."""
    return Rejection(concurrency=True, limit=limit, **more)


LITELLM = (
    "Rate limit exceeded for api_key: 88dc28. Limit type: {}. Current limit: {}, Remaining: 0."
)
OLD_LITELLM = (
    "LiteLLM Rate Limit Handler for rate limit type = key. Crossed TPM / RPM / Max Parallel "
    "Request Limit. "
    "current rpm: {}, rpm limit: 2, current tpm: 0, tpm limit: 100, current "
    "max_parallel_requests: {}, "
    "max_parallel_requests: 4"
)
LOAD: list[tuple[str, int, Any, dict[str, str], Rejection]] = [
    (
        "case: concurrency",
        429,
        said("current concurrency is 6, above the concurrency limit of 5"),
        {},
        in_flight(5),
    ),
    ("Moonshot", 429, said("request reached organization max concurrency: 3"), {}, in_flight(3)),
    (
        "Moonshot, another order",
        429,
        said("request reached max organization concurrency: 1, please try again after 1 seconds"),
        {},
        in_flight(1, has_retry_after=True),
    ),
    (
        "Anthropic",
        429,
        said(
            "Number of concurrent connections has exceeded your rate limit. Please try again later"
        ),
        {},
        in_flight(),
    ),
    (
        "a relay",
        429,
        said("Too many concurrent requests. Limit: 2 concurrent requests"),
        {},
        in_flight(2),
    ),
    ("Qwen", 429, said("Too many concurrent requests for this model"), {}, in_flight()),
    (
        "Scaleway",
        429,
        said("You exceeded your current threshold of concurrent requests"),
        {},
        in_flight(),
    ),
    (
        "LiteLLM",
        429,
        said(LITELLM.format("max_parallel_requests", 4)),
        {"rate_limit_type": "max_parallel_requests", "retry-after": "60"},
        in_flight(4),
    ),
    (
        "LiteLLM's router",
        429,
        said("Deployment has all max_parallel_requests slots in use."),
        {},
        in_flight(),
    ),
    ("LiteLLM, older", 429, said(OLD_LITELLM.format(0, 4)), {}, in_flight(4)),
    (
        "LiteLLM, older, requests",
        429,
        said(OLD_LITELLM.format(2, 1)),
        {},
        Rejection(kind="requests", limit=2),
    ),
    (
        "LiteLLM, requests",
        429,
        said(LITELLM.format("requests", 120)),
        {"rate_limit_type": "requests", "retry-after": "60"},
        Rejection(kind="requests", limit=120, has_retry_after=True),
    ),
    (
        "LiteLLM, tokens",
        429,
        said(LITELLM.format("tokens", 9000)),
        {},
        Rejection(kind="tokens", limit=9000),
    ),
    ("Chinese", 429, said("您当前使用该API的并发数过高，最大并发数为 5"), {}, in_flight(5)),
    (
        "Zhipu, English",
        429,
        said("High concurrency usage of this API, please reduce concurrency", "1302"),
        {},
        in_flight(),
    ),
    (
        "a limit of 503",
        503,
        {"message": "maximum number of simultaneous requests (8) reached"},
        {},
        in_flight(8),
    ),
    (
        "OpenAI",
        429,
        said(
            "Rate limit reached on requests per min (RPM): Limit 500, Used 500, Requested 1. "
            "Please try again in 120ms."
        ),
        {},
        Rejection(kind="requests", limit=500, has_retry_after=True),
    ),
    (
        "OpenAI's day",
        429,
        said(
            "Rate limit reached for m on requests per day (RPD): Limit 200, Used 200. Please "
            "try again in 7m12s.",
            None,
            "requests",
        ),
        {},
        Rejection(kind="requests", has_retry_after=True),
    ),
    (
        "Moonshot, requests",
        429,
        said("request reached organization max RPM: 3, please try again after 1 seconds"),
        {},
        Rejection(kind="requests", limit=3, has_retry_after=True),
    ),
    (
        "case: words of a minute",
        429,
        said("the limit of 20 requests a minute is reached"),
        {},
        Rejection(kind="requests", limit=20),
    ),
    (
        "Chinese, a minute",
        429,
        said("每分钟最多 60 次请求"),
        {},
        Rejection(kind="requests", limit=60),
    ),
    (
        "Kimi's load",
        429,
        said(
            "The engine is currently overloaded, please try again later", None, "rate_limit_error"
        ),
        {},
        Rejection(overload=True),
    ),
    (
        "Ollama",
        503,
        {"error": "server busy, please try again.  maximum pending requests exceeded"},
        {},
        Rejection(overload=True),
    ),
    (
        "Zhipu's load",
        429,
        said("该模型当前访问量过大，请您稍后再试", "1305"),
        {},
        Rejection(overload=True),
    ),
    (
        "OpenAI's flex tier",
        429,
        said("Resource Unavailable", "resource_unavailable"),
        {},
        Rejection(overload=True),
    ),
    (
        "Mistral",
        429,
        said("Service tier capacity exceeded for this model."),
        {},
        Rejection(overload=True),
    ),
    ("nothing said", 429, "<html><h1>429 Too Many Requests</h1></html>", {}, Rejection()),
]


@pytest.mark.parametrize(
    ("status", "body", "headers", "rejection"), [pytest.param(*row[1:], id=row[0]) for row in LOAD]
)
def test_a_rejection_names_what_was_too_much(
    status: int, body: Any, headers: dict[str, str], rejection: Rejection
) -> None:
    """Requests in flight, requests or tokens of a minute, or load, with the number that the text names."""
    attempt = attempt_of(status, body, headers)
    assert attempt.rejection == rejection
    assert attempt.status in (LIMITED, RETRY)


LOADING: list[tuple[str, int, Any, float | None]] = [
    ("case: loading", 503, said("loading the model", 503, "unavailable_error"), None),
    ("llama.cpp", 503, said("Loading model", 503, "unavailable_error"), None),
    (
        "Hugging Face",
        503,
        {"error": "Model org/m is currently loading", "estimated_time": 20.0},
        20,
    ),
    ("Hugging Face, no words", 503, {"error": "m", "estimated_time": 35.6}, 35.6),
    ("TGI", 503, {"error": "Model is not ready", "error_type": "unhealthy"}, None),
    ("KServe", 503, {"error": "Model with name m is not ready."}, None),
    ("Ollama", 503, {"error": "llm server loading model"}, None),
    ("a server", 503, {"detail": "Server is still starting, please wait"}, None),
    ("warm-up", 503, {"message": "the model is warming up"}, None),
    ("scaled to zero", 503, {"message": "Endpoint is scaling up from zero"}, None),
    ("a gateway's 502", 502, {"error": "model is being loaded"}, None),
    ("Chinese", 503, {"message": "模型正在加载中，请稍候"}, None),
    (
        "in a gateway's 500",
        500,
        {
            "error": "Request processing failed: {'error': {'code': 503, 'message': 'Loading "
            "model'}}"
        },
        None,
    ),
]


@pytest.mark.parametrize(
    ("status", "body", "seconds"), [pytest.param(*row[1:], id=row[0]) for row in LOADING]
)
def test_a_server_that_loads_is_not_ready(status: int, body: Any, seconds: float | None) -> None:
    """It will answer once it has loaded its model, and may say when that is."""
    attempt = attempt_of(status, body)
    assert (attempt.status, attempt.retry_after_s) == (NOT_READY, seconds)
    assert attempt.rejection is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            500,
            {
                "error": "llama-server process has terminated: error loading model: failed to "
                "load model"
            },
        ),
        (500, {"error": "could not load model: rpc error: code = Unavailable"}),
        (500, {"error": "Exception while loading the model"}),
        (503, {"error": "no healthy upstream"}),
        (503, "<html><title>503 Service Temporarily Unavailable</title></html>"),
        (502, "<html><title>502 Bad Gateway</title></html>"),
        (503, said("Server overloaded, please retry shortly")),
    ],
)
def test_a_server_that_is_broken_or_busy_does_not_load(status: int, body: Any) -> None:
    """A failed load, an outage and too much load are no start."""
    assert attempt_of(status, body).status is RETRY


PAGE = """<!DOCTYPE html>
<html><head><title>429 Too&nbsp;Many Requests</title><style>body {color: red}</style></head>
<body><!-- x --><script>var a = "<b>";</script><h1>Slow down</h1>
<p>Your IP made &gt; 5 requests</p></body></html>"""
NGINX = """<html>\r
<head><title>503 Service Temporarily Unavailable</title></head>\r
<body><center><h1>503 Service Temporarily Unavailable</h1></center><hr><center>nginx</center></body>\r
</html>"""
INNER = {
    "error": {
        "code": 400,
        "message": "unknown name additionalProperties",
        "status": "INVALID_ARGUMENT",
    }
}
FILTERED = {
    "code": "ResponsibleAIPolicyViolation",
    "content_filter_result": {"hate": {"filtered": True}},
}
REASONS: list[tuple[str, int, Any, str]] = [
    (
        "case: nested",
        400,
        said(
            "provider returned an error",
            400,
            metadata={"raw": json.dumps(INNER), "provider_name": "p"},
        ),
        "HTTP 400 invalid_argument: provider returned an error: unknown name additionalProperties",
    ),
    (
        "a raw text",
        429,
        said(
            "Provider returned error",
            429,
            metadata={"raw": "m is temporarily rate-limited upstream."},
        ),
        "HTTP 429: Provider returned error: m is temporarily rate-limited upstream.",
    ),
    (
        "Azure",
        400,
        said("The response was filtered", "content_filter", innererror=FILTERED),
        "HTTP 400 content_filter: The response was filtered: "
        '{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true}}}',
    ),
    (
        "Azure, with a message",
        400,
        said("bad", "c", innererror={"message": "the inner one"}),
        "HTTP 400 c: bad: the inner one",
    ),
    (
        "FastAPI",
        422,
        {
            "detail": [
                {
                    "loc": ["body", "messages", 0, "role"],
                    "msg": "Field required",
                    "type": "missing",
                },
                {"loc": ["body"], "msg": "no"},
            ]
        },
        "HTTP 422: body.messages.0.role: Field required; body: no",
    ),
    ("an object as detail", 400, {"detail": {"error": "no such model"}}, "HTTP 400: no such model"),
    (
        "Cloudflare",
        400,
        {"errors": [{"message": "AiError: bad input", "code": 5006}], "success": False},
        "HTTP 400 5006: AiError: bad input",
    ),
    (
        "Baidu",
        400,
        {"error_code": 336003, "error_msg": "the length of messages must be an odd number"},
        "HTTP 400 336003: the length of messages must be an odd number",
    ),
    (
        "MiniMax",
        400,
        {"base_resp": {"status_code": 2013, "status_msg": "invalid params"}},
        "HTTP 400 2013: invalid params",
    ),
    (
        "Spring",
        404,
        {"timestamp": 1, "status": 404, "error": "Not Found", "path": "/v1"},
        "HTTP 404: Not Found",
    ),
    ("LiteLLM's None", 429, said("slow", "429", "None"), "HTTP 429: slow"),
    ("a JSON text", 500, "upstream request timeout", "HTTP 500: upstream request timeout"),
    ("a page", 429, PAGE, "HTTP 429: 429 Too Many Requests: Slow down Your IP made > 5 requests"),
    ("nginx's page", 503, NGINX, "HTTP 503: 503 Service Temporarily Unavailable nginx"),
    (
        "XML",
        403,
        "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>",
        "HTTP 403: AccessDenied no",
    ),
    (
        "terminal codes",
        400,
        said("\x1b[31mred\x1b[0m \x1b]0;title\x07ok\r\nline\x08\x9b2J \u202egnp\u2066x\ud800"),
        "HTTP 400: red ok line gnpx\ufffd",
    ),
    ("codes in a code", 400, said("m", "\x1b[31mc\r\n\u202eode"), "HTTP 400 c ode: m"),
    (
        "the proxy's",
        407,
        "<html><title>Proxy Authentication Required</title></html>",
        "HTTP 407: the proxy wants a login: Proxy Authentication Required",
    ),
    ("a long one", 400, said("y" * 600), "HTTP 400: " + "y" * 500),
    ("a long page", 500, "<html>" + "<p>z</p>" * 9000, "HTTP 500: " + "z " * 249 + "z"),
]


@pytest.mark.parametrize(
    ("status", "body", "error"), [pytest.param(*row[1:], id=row[0]) for row in REASONS]
)
def test_the_reason_is_on_record(status: int, body: Any, error: str) -> None:
    """The innermost reason, and of a page what a reader sees; nothing that a terminal would obey."""
    assert attempt_of(status, body).error == error


def test_a_request_id_cannot_move_the_cursor() -> None:
    """What stands in a header is made plain as well."""
    attempt = attempt_of(500, said("m"), {"x-request-id": "a\x1b[2Jb\x85"})
    assert attempt.error == "HTTP 500: m (request id ab)"
