"""How the providers say no: one row each, with the errors in the form in which each writes them.

Written without a look at the client's own table of providers: the one is there to test the other. A text
may hold ``<model>``, ``<wait>`` (seconds) and ``<id>``.

Sources: the vendors' pages on errors and rate limits (platform.claude.com, ai.google.dev,
docs.aws.amazon.com, console.groq.com, docs.cohere.com, docs.fireworks.ai, docs.together.ai,
platform.moonshot.ai, docs.bigmodel.cn) and, where these show no body, public reports: xAI's 400
(continuedev/continue#11412), Bedrock's 403 (anomalyco/opencode#47073) and 429
(aws-samples/amazon-bedrock-client-for-mac#99), Gemini's 400 (Wei-Shaw/sub2api#1709), Qwen's 400
(memodb-io/memobase#142).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from parallel_processor.simulator.wire import HttpReply

_ASKS_TO_WAIT = re.compile(r"[^\".,]*<wait>[^\".,]*")  # a part of a sentence


class Canned(NamedTuple):
    """An error: status, body and further headers. A body that is a text is no JSON."""

    status: int
    body: Any
    headers: str = ""

    def reply(self, headers: str, **names: str) -> HttpReply:
        """Write it, with ``names`` in the place of those in angle brackets, below ``headers``.

        What asks to wait is left out if ``wait`` is empty.
        """
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        if not names["wait"]:
            text = _ASKS_TO_WAIT.sub("", text)
        for name, value in names.items():
            text = text.replace(f"<{name}>", value)
        return HttpReply(
            status=self.status,
            body=text.encode(),
            headers=headers + self.headers,
            content_type="text/plain" if isinstance(self.body, str) else "application/json",
        )


class Dialect(NamedTuple):
    """One provider, or one kind of server."""

    name: str
    wrong_key: Canned
    limited: Canned  # what the limits refuse
    bad_request: Canned  # one request, for good
    broken: Canned  # its own failure
    hosts: tuple[str, ...] = ()
    key_headers: tuple[str, ...] = ("authorization",)  # where it looks for a key
    style: str = "none"  # in which it tells its limits
    says_wait: bool = True  # a refusal has Retry-After


def _openai(status: int, message: str, kind: str = "", code: Any = None) -> Canned:
    return Canned(
        status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )


def _coded(status: int, code: Any, message: str, **more: Any) -> Canned:
    return Canned(status, {"error": {"code": code, "message": message, **more}})


def _typed(status: int, kind: str, message: str) -> Canned:
    return Canned(status, {"error": {"message": message, "type": kind}})


def _anthropic(status: int, kind: str, message: str) -> Canned:
    error = {"type": kind, "message": message}
    return Canned(status, {"type": "error", "error": error, "request_id": "<id>"})


def _google(code: int, status: str, message: str, **details: Any) -> Canned:
    types = {kind: f"type.googleapis.com/google.rpc.{kind}" for kind in details}
    made = [{"@type": types[kind], **detail} for kind, detail in details.items()]
    return _flat(code, error={"code": code, "message": message, "status": status, "details": made})


def _amazon(status: int, kind: str, message: str) -> Canned:
    origin = "http://internal.amazon.com/coral/com.amazon.bedrock/"
    return Canned(status, {"message": message}, f"x-amzn-ErrorType: {kind}:{origin}\r\n")


def _flat(status: int, **members: Any) -> Canned:
    return Canned(status, members)


def _missing(member: str) -> Canned:
    """FastAPI's error for a member that is not there."""
    return _flat(
        422, detail=[{"type": "missing", "loc": ["body", member], "msg": "Field required"}]
    )


def _compatible(row: Dialect, name: str) -> Dialect:
    """Google's OpenAI-compatible path: a bearer token, and errors in a list."""
    errors = {
        field: getattr(row, field)._replace(body=[getattr(row, field).body])
        for field in ("wrong_key", "limited", "bad_request", "broken")
    }
    return row._replace(name=name, key_headers=("authorization",), **errors)


_INVALID = "invalid_request_error"
_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel"
_GEMINI = Dialect(
    "gemini",
    _google(
        *(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        ErrorInfo={"reason": "API_KEY_INVALID", "domain": "googleapis.com"},
    ),
    _google(
        *(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota. Please retry in <wait>s."),
        QuotaFailure={"violations": [{"quotaId": _MINUTE, "quotaValue": "10"}]},
        RetryInfo={"retryDelay": "<wait>s"},
    ),
    _google(400, "INVALID_ARGUMENT", "* contents: contents is not specified"),
    _google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    hosts=("generativelanguage.googleapis.com",),
    key_headers=("x-goog-api-key",),
    says_wait=False,
)
_VERTEX = _GEMINI._replace(
    name="vertex",
    wrong_key=_google(
        *(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
        ErrorInfo={"reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED"},
    ),
    limited=_google(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later."),
    hosts=("*aiplatform.googleapis.com",),
    key_headers=("authorization",),
)
# fmt: off
_ALL = (
    Dialect(
        "openai",
        _openai(401, "Incorrect API key provided: sk-<id>.", _INVALID, "invalid_api_key"),
        _openai(429, "Rate limit reached for <model> in organization org-sim on tokens per min (TPM): "
                "Limit 200000, Used 200000, Requested 9. Please try again in <wait>s.", "tokens",
                "rate_limit_exceeded"),
        _openai(400, "This model's maximum context length is 128000 tokens.", _INVALID,
                "context_length_exceeded"),
        _openai(500, "The server had an error while processing your request.", "server_error"),
        hosts=("*openai.com",), style="openai",
    ),
    Dialect(
        "azure",
        _coded(401, "401", "Access denied due to invalid subscription key or wrong API endpoint. Make "
               "sure to provide a valid key for an active subscription."),
        _coded(429, "429", "Requests to the ChatCompletions_Create Operation have exceeded token rate "
               "limit of your current OpenAI S0 pricing tier. Please retry after <wait> seconds."),
        _openai(400, "This model's maximum context length is 128000 tokens.", _INVALID,
                "context_length_exceeded"),
        _coded(500, "InternalServerError", "Backend returned an error."),
        hosts=("*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
        key_headers=("api-key", "authorization"), style="azure",
    ),
    Dialect(
        "anthropic",
        _anthropic(401, "authentication_error", "invalid x-api-key"),
        _anthropic(429, "rate_limit_error", "This request would exceed your organization's rate limit of "
                   "50 requests per minute."),
        _anthropic(400, _INVALID, "max_tokens: Field required"),
        _anthropic(529, "overloaded_error", "Overloaded"),
        hosts=("api.anthropic.com",), key_headers=("x-api-key",), style="anthropic",
    ),
    _GEMINI,
    _compatible(_GEMINI, "gemini-openai"),
    _VERTEX,
    _compatible(_VERTEX, "vertex-openai"),
    Dialect(
        "bedrock",
        _flat(403, Message="Authentication failed: Please make sure your API Key is valid."),
        _amazon(429, "ThrottlingException", "Too many tokens, please wait before trying again."),
        _amazon(400, "ValidationException", "The provided model identifier is invalid."),
        _amazon(424, "ModelErrorException", "The request failed due to an error with the model."),
        hosts=("bedrock-runtime*.amazonaws.com", "bedrock-mantle.*"), says_wait=False,
    ),
    Dialect(
        "groq",
        _openai(401, "Invalid API Key", _INVALID, "invalid_api_key"),
        _openai(429, "Rate limit reached for model `<model>` in organization `org_sim` service tier "
                "`on_demand` on tokens per minute (TPM): Limit 6000, Used 5900, Requested 200. Please try "
                "again in <wait>s. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com",
                "tokens", "rate_limit_exceeded"),
        _openai(400, "'n' : number must be at most 1", _INVALID),
        _openai(498, "Flex tier capacity exceeded.", "capacity_exceeded", "capacity_exceeded"),
        hosts=("api.groq.com",), style="groq",
    ),
    Dialect(
        "mistral",
        _flat(401, detail="Unauthorized"),
        _flat(429, object="error", message="Rate limit exceeded", type="rate_limited", code="1300"),
        _missing("messages"),
        _flat(500, object="error", message="Service unavailable.", type="internal_error"),
        hosts=("api.mistral.ai",), style="mistral",
    ),
    Dialect(
        "deepseek",
        Canned(401, "Authentication Fails (governor)"),
        _openai(429, "Rate limit reached.", "rate_limit_reached", _INVALID),
        _openai(400, "Model Not Exist", _INVALID, _INVALID),
        _openai(503, "Service is too busy.", "service_unavailable_error", _INVALID),
        hosts=("api.deepseek.com",), says_wait=False,
    ),
    Dialect(
        "xai",
        _flat(400, code="Client specified an invalid argument", error="Incorrect API key provided: "
              "xa***ng. You can obtain an API key from https://console.x.ai."),
        _flat(429, code="Some resource has been exhausted", error="Too many requests for team 1 and model "
              "<model>. Your team's rate limit is: Requests per Minute (actual/limit): 61/60."),
        _flat(400, code="Client specified an invalid argument",
              error="The model expects a single `text` element per message."),
        _flat(500, code="The service is currently unavailable", error="Service unavailable."),
        hosts=("api.x.ai",), style="openai",
    ),
    Dialect(
        "openrouter",
        _coded(401, 401, "User not found."),
        _coded(429, 429, "Provider returned error", metadata={"raw": "<model> is temporarily rate-limited "
               "upstream. Please retry shortly.", "provider_name": "Sim"}),
        _coded(400, 400, "<model> is not a valid model ID"),
        _coded(200, 502, "Provider returned error"),
        hosts=("openrouter.ai",), style="openrouter",
    ),
    Dialect(
        "together",
        _openai(401, "Invalid API key provided.", _INVALID, "invalid_api_key"),
        _openai(429, "You have reached the rate limit of your account.", "dynamic_request_limited"),
        _openai(422, "Input validation error: messages is empty", _INVALID),
        _openai(503, "The server is overloaded or not ready yet.", "service_unavailable"),
        hosts=("api.together.xyz", "api.together.ai"), style="together",
    ),
    Dialect(
        "fireworks",
        _openai(401, "The API key you provided is invalid.", "unauthorized", "UNAUTHORIZED"),
        _openai(429, "Rate limit exceeded, please try again later", "rate_limit_exceeded",
                "rate_limit_exceeded"),
        _openai(404, "Model not found, inaccessible, and/or not deployed", "NOT_FOUND"),
        _openai(503, "Service overloaded", "service_unavailable"),
        hosts=("api.fireworks.ai",), style="fireworks",
    ),
    Dialect(
        "cohere",
        _flat(401, id="<id>", message="invalid api token"),
        _flat(429, id="<id>", message="You are using a Trial key, which is limited to 20 API calls / "
              "minute. You can continue to use the Trial key for free or upgrade to a Production key with "
              "higher rate limits at 'https://dashboard.cohere.com/api-keys'."),
        _flat(400, id="<id>", message="invalid request: message must be at least 1 token long"),
        _flat(500, id="<id>", message="internal server error, this has been reported"),
        hosts=("api.cohere.com", "api.cohere.ai"), says_wait=False,
    ),
    Dialect(
        "voyage",
        _flat(401, detail="Provided API key is invalid."),
        _flat(429, detail="You have not yet added your payment method in the billing page and will have "
              "reduced rate limits of 3 RPM and 10K TPM. To unlock our standard rate limits, please add a "
              "payment method in the billing page."),
        _flat(400, detail="Argument 'input' must be a string or a list of strings."),
        _flat(503, detail="Service temporarily unavailable."),
        hosts=("api.voyageai.com", "*ai.mongodb.com"), says_wait=False,
    ),
    Dialect(
        "jina",
        _flat(401, detail="Invalid API key, please get a new one from https://jina.ai"),
        _flat(429, detail="Per token rate limit exceeded: 500 requests per minute."),
        _missing("input"),
        _flat(503, detail="Service unavailable"),
        hosts=("api.jina.ai",), says_wait=False,
    ),
    Dialect(
        "moonshot",
        _typed(401, "invalid_authentication_error", "Invalid Authentication"),
        _typed(429, "rate_limit_reached_error", "Your account org-sim<ak-1> request reached organization "
               "max RPM: 3, please try again after <wait> seconds"),
        _typed(400, _INVALID, "Invalid request: model is empty"),
        _typed(429, "engine_overloaded_error", "The engine is currently overloaded, try again later"),
        hosts=("api.moonshot.ai", "api.moonshot.cn"), says_wait=False,
    ),
    Dialect(
        "qwen",
        _openai(401, "Incorrect API key provided. ", _INVALID, "invalid_api_key"),
        _openai(429, "Requests rate limit exceeded.", "limit_requests", "limit_requests"),
        _openai(400, "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid, it "
                "should not be larger than 10.: input.contents", "InvalidParameter", "InvalidParameter"),
        _openai(500, "An internal error has occured.", "InternalError", "InternalError"),
        hosts=("dashscope*.aliyuncs.com",), says_wait=False,
    ),
    Dialect(
        "zhipu",
        _coded(401, "401", "令牌已过期或验证不正确！"),
        _coded(429, "1302", "您的账户已达到速率限制，请您控制请求频率"),
        _coded(400, "1214", "messages 参数非法。请检查文档。"),
        _coded(500, "500", "内部错误"),
        hosts=("open.bigmodel.cn", "api.z.ai"), says_wait=False,
    ),
    Dialect(
        "ollama",
        _flat(401, error="unauthorized"),
        _flat(503, error="server busy, please try again.  maximum pending requests exceeded"),
        _flat(404, error="model '<model>' not found"),
        _flat(500, error="llama runner process has terminated: signal: killed"),
        hosts=("ollama.com",), says_wait=False,
    ),
    Dialect(
        "vllm",
        _flat(401, error="Unauthorized"),
        _openai(503, "The server is at capacity.", "ServiceUnavailableError", 503),
        _openai(400, "This model's maximum context length is 4096 tokens.", "BadRequestError", 400),
        _openai(500, "EngineCore encountered an issue.", "InternalServerError", 500),
        says_wait=False,
    ),
    Dialect(
        "sglang",
        _flat(401, error="Unauthorized"),
        _flat(503, object="error", message="The request queue is full.", code=503),
        _flat(400, object="error", message="The input (5000 tokens) is longer than the model's context "
              "length (4096 tokens).", type="BadRequestError", code=400),
        _flat(500, object="error", message="Internal error", code=500),
        says_wait=False,
    ),
    Dialect(
        "llama.cpp",
        _coded(401, 401, "Invalid API Key", type="authentication_error"),
        _coded(503, 503, "Loading model", type="unavailable_error"),
        _coded(400, 400, "the request exceeds the available context size", type="exceed_context_size_error",
               n_prompt_tokens=5000, n_ctx=4096),
        _coded(500, 500, "Compute error.", type="server_error"),
        says_wait=False,
    ),
    Dialect(
        "tgi",
        Canned(401, ""),
        _flat(429, error="Model is overloaded", error_type="overloaded"),
        _flat(422, error="Input validation error: `inputs` must have less than 4096 tokens. Given: 5000",
              error_type="validation"),
        _flat(424, error="Request failed during generation: Server error", error_type="generation"),
        says_wait=False,
    ),
    Dialect(
        "tei",
        Canned(401, ""),
        _flat(429, error="Model is overloaded", error_type="Overloaded"),
        _flat(413, error="batch size 33 > maximum allowed batch size 32", error_type="Validation"),
        _flat(424, error="Inference failed", error_type="Backend"),
        says_wait=False,
    ),
    Dialect(
        "litellm",
        _openai(401, "Authentication Error, Invalid proxy server token passed. Received API Key = sk-<id>",
                "token_not_found_in_db", "401"),
        _openai(429, "Rate limit exceeded for api_key: 1. Limit type: requests. Current limit: 120, "
                "Remaining: 0", "throttling_error", "429"),
        _openai(400, "litellm.BadRequestError: model <model> unknown", "None", "400"),
        _openai(500, "litellm.InternalServerError: Connection error.", "None", "500"),
        key_headers=("authorization", "x-api-key", "x-goog-api-key", "api-key"), style="litellm",
    ),
)
# fmt: on
DIALECTS: Mapping[str, Dialect] = {row.name: row for row in _ALL}
