"""Every dialect, by its own requests: the whole Processor against the simulator, which speaks it.

The simulator stands where a proxy would, so that each request goes to its provider's own host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parallel_processor import (
    Limits,
    Processor,
    RetryPolicy,
    RunStoppedError,
    process_file,
    response_text,
)
from parallel_processor.exceptions import ConfigurationError, StopCause
from parallel_processor.models import AttemptStatus, Outcome, Response
from parallel_processor.providers import dialects
from parallel_processor.providers.dialects import (
    PROVIDERS,
    answered_tier,
    key_variables_of,
    provider_at,
    tier_spelling,
    url_model,
)
from parallel_processor.providers.limit_headers import read_limits
from parallel_processor.providers.responses import classify
from parallel_processor.simulator import Rule, Simulator, SimulatorOptions
from parallel_processor.simulator.dialects import DIALECTS, Canned, Dialect
from parallel_processor.simulator.places import dialect_of
from parallel_processor.transport.http1 import Headers

KEY = "sk-right"
MESSAGES = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
INPUT = {"model": "m", "input": ["one", "two"]}
CONTENT = {"parts": [{"text": "one two"}]}
GEMINI = {"model": "g-1", "contents": [{"role": "user", **CONTENT}]}
ECHO, VECTORS = "text", "vectors"
COUNTS = {"prompt_tokens", "total_tokens"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One endpoint of a provider.

    Attributes:
        url: where its requests go; without a host, the simulator itself in the dialect of that name.
        body: what is asked.
        answers: the text that is asked for comes back, or two vectors, or neither.
        usage: the members of its usage; empty if it says nothing.
        limits: the limits that its headers tell, and each one's window in seconds.
        key: the right one.
    """

    url: str
    body: dict[str, Any]
    answers: str = ECHO
    usage: set[str] = field(default_factory=lambda: {*COUNTS, "completion_tokens"})
    limits: dict[str, float] = field(default_factory=dict)
    key: str = KEY


MINUTE = {"requests": 60.0, "tokens": 60.0}
FOUR = {**MINUTE, "input_tokens": 60.0, "output_tokens": 60.0}
ANTHROPIC_USAGE = {"input_tokens", "output_tokens"}
GOOGLE_USAGE = {"promptTokenCount", "candidatesTokenCount", "totalTokenCount"}
OPENAI = "http://api.openai.com/v1"
AZURE = "http://r.openai.azure.com/openai"
GOOGLE = "http://generativelanguage.googleapis.com/v1beta"
VERTEX = "http://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1"
BEDROCK = "http://bedrock-runtime.us-east-1.amazonaws.com"
TOKEN = "eyJhbGciOi.eyJhdWQiOi.c2ln"  # what a JSON Web Token looks like
TEXTS = {"inputs": ["one", "two"]}
BATCH = {"requests": [{"content": CONTENT}, {"content": CONTENT}], "model": "g-1"}

CASES: dict[str, Case] = {
    "OpenAI chat": Case(url=f"{OPENAI}/chat/completions", body=MESSAGES, limits=MINUTE),
    "OpenAI responses": Case(
        url=f"{OPENAI}/responses",
        body={"model": "m", "input": "one two"},
        usage={*ANTHROPIC_USAGE, "total_tokens"},
        limits=MINUTE,
    ),
    "OpenAI embeddings": Case(
        url=f"{OPENAI}/embeddings", body=INPUT, answers=VECTORS, usage=COUNTS, limits=MINUTE
    ),
    "OpenAI completions": Case(
        url=f"{OPENAI}/completions", body={"model": "m", "prompt": "one two"}, limits=MINUTE
    ),
    "OpenAI moderations": Case(
        url=f"{OPENAI}/moderations", body=INPUT, answers="", usage=set(), limits=MINUTE
    ),
    "OpenAI images": Case(
        url=f"{OPENAI}/images/generations",
        body={"model": "m", "prompt": "one cat"},
        answers="",
        usage=set(),
        limits=MINUTE,
    ),
    "Azure classic": Case(
        url=f"{AZURE}/deployments/{{model}}/chat/completions?api-version=2024-10-21",
        body=MESSAGES,
        limits=MINUTE,
    ),
    "Azure v1": Case(url=f"{AZURE}/v1/chat/completions", body=MESSAGES, limits=MINUTE),
    "Azure with an Entra token": Case(
        url=f"{AZURE}/v1/embeddings",
        body=INPUT,
        answers=VECTORS,
        usage=COUNTS,
        limits=MINUTE,
        key=TOKEN,
    ),
    "Anthropic": Case(
        url="http://api.anthropic.com/v1/messages",
        body={**MESSAGES, "max_tokens": 9},
        usage=ANTHROPIC_USAGE,
        limits=FOUR,
    ),
    "Gemini": Case(
        url=f"{GOOGLE}/models/{{model}}:generateContent", body=GEMINI, usage=GOOGLE_USAGE
    ),
    "Gemini embedContent": Case(
        url=f"{GOOGLE}/models/g-1:embedContent",
        body={"content": CONTENT},
        answers="vector",
        usage=set(),
    ),
    "Gemini batchEmbedContents": Case(
        url=f"{GOOGLE}/models/{{model}}:batchEmbedContents",
        body=BATCH,
        answers=VECTORS,
        usage=set(),
    ),
    "Gemini compatible": Case(url=f"{GOOGLE}/openai/chat/completions", body=MESSAGES),
    "Vertex": Case(
        url=f"{VERTEX}/publishers/google/models/{{model}}:generateContent",
        body=GEMINI,
        usage=GOOGLE_USAGE,
    ),
    "Vertex compatible": Case(url=f"{VERTEX}/endpoints/openapi/chat/completions", body=MESSAGES),
    "Bedrock Converse": Case(
        url=f"{BEDROCK}/model/{{model}}/converse",
        body={
            "model": "a.b-v1:0",
            "messages": [{"role": "user", "content": [{"text": "one two"}]}],
        },
        usage={"inputTokens", "outputTokens", "totalTokens"},
    ),
    "Bedrock compatible": Case(url=f"{BEDROCK}/openai/v1/chat/completions", body=MESSAGES),
    "Groq": Case(
        url="http://api.groq.com/openai/v1/chat/completions",
        body=MESSAGES,
        limits={"requests": 86_400.0, "tokens": 60.0},
    ),
    "Mistral": Case(url="http://api.mistral.ai/v1/chat/completions", body=MESSAGES, limits=MINUTE),
    "DeepSeek": Case(url="http://api.deepseek.com/chat/completions", body=MESSAGES),
    "xAI": Case(url="http://api.x.ai/v1/chat/completions", body=MESSAGES, limits=MINUTE),
    "OpenRouter": Case(
        url="http://openrouter.ai/api/v1/chat/completions", body=MESSAGES, limits={"requests": 60.0}
    ),
    "Together": Case(
        url="http://api.together.xyz/v1/chat/completions",
        body=MESSAGES,
        limits={"requests": 1.0, "tokens": 1.0},
    ),
    "Fireworks": Case(
        url="http://api.fireworks.ai/inference/v1/chat/completions",
        body=MESSAGES,
        limits={"input_tokens": 1.0, "output_tokens": 1.0},
    ),
    "Cohere": Case(
        url="http://api.cohere.com/v2/chat", body=MESSAGES, usage={"billed_units", "tokens"}
    ),
    "Cohere embed": Case(
        url="http://api.cohere.com/v2/embed",
        body={"model": "m", "texts": ["one", "two"], "input_type": "search_document"},
        answers=VECTORS,
        usage={"billed_units", "api_version"},
    ),
    "Voyage": Case(
        url="http://api.voyageai.com/v1/embeddings", body=INPUT, answers=VECTORS, usage=COUNTS
    ),
    "Jina": Case(url="http://api.jina.ai/v1/embeddings", body=INPUT, answers=VECTORS, usage=COUNTS),
    "Moonshot": Case(url="http://api.moonshot.ai/v1/chat/completions", body=MESSAGES),
    "Qwen": Case(
        url="http://dashscope-intl.aliyuncs.com/compatible-mode/v1/chat/completions", body=MESSAGES
    ),
    "Zhipu": Case(url="http://open.bigmodel.cn/api/paas/v4/chat/completions", body=MESSAGES),
    "Ollama": Case(url="ollama:/v1/chat/completions", body=MESSAGES),
    "Ollama native": Case(
        url="ollama:/api/chat", body=MESSAGES, usage={"prompt_eval_count", "eval_count"}
    ),
    "Ollama embed": Case(
        url="ollama:/api/embed", body=INPUT, answers=VECTORS, usage={"prompt_eval_count"}
    ),
    "vLLM": Case(url="vllm:/v1/chat/completions", body=MESSAGES),
    "SGLang": Case(url="sglang:/v1/chat/completions", body=MESSAGES),
    "llama.cpp": Case(url="llama.cpp:/v1/chat/completions", body=MESSAGES),
    "TGI": Case(url="tgi:/generate", body={"inputs": "one two"}, usage=set()),
    "TGI compatible": Case(url="tgi:/v1/chat/completions", body=MESSAGES),
    "TEI": Case(url="tei:/embed", body=TEXTS, answers=VECTORS, usage=set()),
    "TEI rerank": Case(
        url="tei:/rerank", body={"query": "q", "texts": ["one", "two"]}, answers="", usage=set()
    ),
    "LiteLLM": Case(url="litellm:/v1/chat/completions", body=MESSAGES, limits=MINUTE),
    "LiteLLM messages": Case(
        url="litellm:/v1/messages",
        body={**MESSAGES, "max_tokens": 9},
        usage=ANTHROPIC_USAGE,
        limits=MINUTE,
    ),
}
LIMITS: dict[str, Any] = {
    "requests_per_minute": 6e5,
    "tokens_per_minute": 6e8,
    "input_tokens_per_minute": 6e8,
    "output_tokens_per_minute": 6e8,
    "requests_per_day": 6e7,
}


@contextmanager
def speaking(case: Case, monkeypatch: pytest.MonkeyPatch, *rules: Rule) -> Iterator[str]:
    """A simulator that speaks the case's dialect, and the URL for its requests."""
    name, _, path = case.url.partition(":")
    dialect = "auto" if name == "http" else name
    options = SimulatorOptions(api_key=case.key, dialect=dialect, rules=rules, **LIMITS)
    with Simulator(options) as simulator:
        monkeypatch.setenv("http_proxy", simulator.url)
        yield case.url if name == "http" else simulator.url + path


def saying(case: Case, word: str) -> dict[str, Any]:
    """The case's request, with another first word."""
    body: dict[str, Any] = json.loads(json.dumps(case.body).replace('"one', f'"{word}'))
    assert word in json.dumps(body)
    return body


RULES = tuple(
    Rule(answer=name, containing=name, first=1) for name in ("limited", "broken", "bad_request")
)
RETRY = RetryPolicy(pause_s=0.01, backoff_initial_s=0.01)


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest, clean_environment: None) -> Case:
    """Each endpoint of each provider."""
    found: Case = request.param
    return found


def test_a_dialect_is_spoken(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is read; a refusal and a failure are gone through; an error is of its request alone."""
    words = ("one", "limited" if is_first(case) else "also", "broken", "bad_request")
    with speaking(case, monkeypatch, *RULES) as url:
        with Processor(
            request_url=url, api_key=case.key, allow_plain_http=True, retry=RETRY
        ) as processor:
            outcomes = processor.map(saying(case, word) for word in words)
            stats = processor.stats()
    plain, limited, broken, failed = outcomes
    check_answer(plain, case, url)
    assert (limited.ok, broken.ok, failed.ok) == (True, True, False)
    attempts = 2 if is_first(case) else 1
    assert (limited.attempts, broken.attempts, failed.attempts) == (attempts, 2, 1)
    assert stats.retries == attempts


def test_no_dialect_is_left_out() -> None:
    """Each that the simulator speaks is asked, and each provider of the table."""
    assert {dialect_of_case(case).name for case in CASES.values()} == set(DIALECTS)
    asked = {name.split()[0] for name in CASES}
    assert {row.name.split()[0] for row in PROVIDERS} == asked


def is_first(case: Case) -> bool:
    """True for the first endpoint of a dialect: a refusal, which takes a while, is gone through once."""
    dialect = dialect_of_case(case)
    return case is next(each for each in CASES.values() if dialect_of_case(each) is dialect)


def dialect_of_case(case: Case) -> Dialect:
    """How the simulator answers the case's requests."""
    name, _, rest = case.url.partition(":")
    host, _, path = rest.removeprefix("//").partition("/")
    return dialect_of(host, f"/{path}") if name == "http" else DIALECTS[name]


def check_answer(outcome: Outcome, case: Case, url: str) -> None:
    """Check text or vectors, the usage, the tokens used and the limits that the headers tell."""
    assert outcome.ok, outcome.error
    assert outcome.text == ("one two" if case.answers == ECHO else None)
    count = {VECTORS: 2, "vector": 1}.get(case.answers, 0)
    assert [len(vector) for vector in outcome.embeddings or []] == [8] * count
    assert (outcome.embedding is not None) is (count > 0)
    assert (
        set(outcome.usage or ()) - {"input_tokens_details", "output_tokens_details"} == case.usage
    )
    assert (outcome.used_tokens is not None) is bool(case.usage)
    assert outcome.raw_response is not None
    host = url.partition("//")[2].partition("/")[0].partition(":")[0]
    readings = read_limits(outcome.raw_response.headers, host)
    assert {reading.name: reading.window_s for reading in readings} == case.limits


WAITED_FOR = {"llama.cpp": AttemptStatus.NOT_READY}
OVERLOADED = ("ollama", "vllm", "sglang")  # these have no limits


@pytest.mark.parametrize("row", DIALECTS.values(), ids=DIALECTS)
def test_a_refusal_is_no_failure(row: Dialect) -> None:
    """A limit is waited for, and a server without limits that has too much to do is tried again."""
    usual = AttemptStatus.RETRY if row.name in OVERLOADED else AttemptStatus.RATE_LIMITED
    attempt = classify(response_of(row.limited))
    assert attempt.status is WAITED_FOR.get(row.name, usual)
    assert classify(response_of(row.wrong_key)).stop_cause is StopCause.KEY
    assert classify(response_of(row.bad_request)).status is AttemptStatus.FAILED


def response_of(canned: Canned) -> Response:
    """The response that the transport would make of it."""
    reply = canned.reply("", id="req_1", wait="7", model="m")
    pairs = (line.split(": ", 1) for line in reply.headers.splitlines())
    headers = {name.lower(): value for name, value in pairs}
    try:
        return Response(
            status=reply.status,
            headers=headers,
            body=reply.body,
            data=json.loads(reply.body),
            is_json=True,
        )
    except ValueError:
        return Response(status=reply.status, headers=headers, body=reply.body)


def test_a_wrong_key_stops_the_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the vendor calls it a bad request."""
    with speaking(case, monkeypatch) as url, pytest.raises(RunStoppedError) as caught:
        with Processor(request_url=url, api_key=f"{case.key}X", allow_plain_http=True) as processor:
            processor.map([case.body])
    assert caught.value.stop_cause is StopCause.KEY


# What people reported of other tools, as they quote it: where it came from, and what it must mean.
REPORTS = {
    "continuedev/continue#11412: xAI's wrong key looked like a bad request": (
        400,
        {
            "code": "invalid",
            "error": "Incorrect API key provided: sk***YA. You can obtain an API key from",
        },
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "anomalyco/opencode#47073: Bedrock's expired key was not told from other refusals": (
        403,
        {"Message": "Authentication failed: Please make sure your API Key is valid."},
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "Wei-Shaw/sub2api#1709: requests went on to be sent with a key that Gemini didn't know": (
        400,
        {
            "error": {
                "code": 400,
                "message": "API Key not found. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
                "details": [{"reason": "API_KEY_INVALID", "domain": "googleapis.com"}],
            }
        },
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "RooCodeInc/Roo-Code#5050: Bedrock's limit was taken for the end of the task": (
        429,
        {"message": "Too many tokens, please wait before trying again."},
        (AttemptStatus.RATE_LIMITED, StopCause.NOTHING),
    ),
    "minorun365/agent-book#29: Bedrock's limit of a day was waited for": (
        429,
        {"message": "Too many tokens per day, please wait before trying again."},
        (AttemptStatus.MODEL_SPENT, StopCause.NOTHING),
    ),
    "memodb-io/memobase#142: one request with too many texts for Qwen failed the whole job": (
        400,
        {
            "error": {
                "message": "<400> InternalError.Algo.InvalidParameter: Value error, batch size is invalid,"
                " it should not be larger than 10.: input.contents",
                "type": "InvalidParameter",
                "param": None,
                "code": "InvalidParameter",
            }
        },
        (AttemptStatus.FAILED, StopCause.NOTHING),
    ),
    "huggingface/text-embeddings-inference#50: TEI's 413 was sent again and again": (
        413,
        {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"},
        (AttemptStatus.FAILED, StopCause.NOTHING),
    ),
    "continuedev/continue#11541: a key that Google found in public is refused without a code": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Your API key was reported as leaked. Please use another API key.",
                "status": "PERMISSION_DENIED",
            }
        },
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "continuedev/continue#12781: a key of another API of Google's": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Requests to this API generativelanguage.googleapis.com are blocked.",
                "status": "PERMISSION_DENIED",
                "details": [{"reason": "API_KEY_SERVICE_BLOCKED", "domain": "googleapis.com"}],
            }
        },
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "Gemini without a key": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Method doesn't allow unregistered callers (callers without established "
                "identity). Please use API Key or other form of API consumer identity to call this API.",
                "status": "PERMISSION_DENIED",
            }
        },
        (AttemptStatus.FATAL, StopCause.KEY),
    ),
    "Voyage and Cohere name the plan in what is a limit of a minute": (
        429,
        {"message": "You are using a Trial key, which is limited to 20 API calls / minute."},
        (AttemptStatus.RATE_LIMITED, StopCause.NOTHING),
    ),
}


@pytest.mark.parametrize(("status", "body", "meant"), REPORTS.values(), ids=REPORTS)
def test_what_others_stumbled_over_is_understood(
    status: int, body: Any, meant: tuple[AttemptStatus, StopCause]
) -> None:
    """The run stops for a key, waits for a limit, and goes on after a bad request."""
    attempt = classify(response_of(Canned(status, body)))
    assert (attempt.status, attempt.stop_cause) == meant


def test_a_gateway_before_azure_gets_azures_header(
    monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    """On any host, as by openai/codex#3048: its URLs have a deployment, its hosts are one's own."""
    case = CASES["Azure classic"]
    with speaking(case, monkeypatch) as url:
        gateway = url.replace("r.openai.azure.com", "apim.azure-api.net/openai2")
        with Processor(request_url=gateway, api_key=KEY, allow_plain_http=True) as processor:
            (outcome,) = processor.map([case.body])
    assert outcome.ok, outcome.error


NEXT = """Provider(
    "Next", ("http://api.next.example/v1/chat/completions",), hosts=("api.next.example",),
    keys=("NEXT_API_KEY",), auth=Auth("api-key", ""), windows_s={"requests": 86_400.0},
)"""


def test_the_next_provider_takes_four_lines(
    monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    """Its row is all: its key gets its header, its limits their windows, its variable is known."""
    assert len(NEXT.splitlines()) == 4
    monkeypatch.setattr(dialects, "PROVIDERS", (*PROVIDERS, eval(NEXT, vars(dialects).copy())))
    provider_at.cache_clear()
    try:
        url = "http://api.next.example/v1/chat/completions"
        assert key_variables_of(url) == ("NEXT_API_KEY",)
        case = Case(url=url, body=MESSAGES, limits={"requests": 86_400.0, "tokens": 60.0})
        with speaking(case, monkeypatch) as url:
            with Processor(request_url=url, api_key=KEY, allow_plain_http=True) as processor:
                (outcome,) = processor.map([case.body])
        check_answer(outcome, case, url)
    finally:
        provider_at.cache_clear()


def test_each_provider_is_known_by_its_own_hosts() -> None:
    """The hosts of its URLs are its own, or this machine, which is nobody's."""
    for row in PROVIDERS:
        for url in row.urls:
            host = url.partition("://")[2].partition("/")[0].partition(":")[0].lower()
            assert provider_at(host).name == ("" if host == "localhost" else row.name)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("eu.api.openai.com", "OpenAI"),
        ("us-central1-aiplatform.googleapis.com", "Vertex AI"),
        ("bedrock-runtime-fips.us-east-1.amazonaws.com", "Bedrock"),
        ("bedrock-mantle.us-west-2.api.aws", "Bedrock"),
        ("eu.ai.mongodb.com", "Voyage"),
        ("openai.azure.com.evil.example", ""),
        ("notopenai.com", ""),
        ("aiplatform.googleapis.com.evil.example", ""),
        ("bedrock-runtime.us-east-1.amazonaws.com.evil.example", ""),
        ("127.0.0.1", ""),
    ],
)
def test_a_host_is_its_providers_or_nobodys(host: str, name: str) -> None:
    """No host is taken for a provider's whose name it only holds: a key may depend on it."""
    assert provider_at(host).name == name


@pytest.mark.parametrize(
    ("url", "model"),
    [
        (f"{GOOGLE}/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro"),
        (f"{GOOGLE}/tunedModels/my-own:generateContent?key=x", "my-own"),
        (f"{VERTEX}/publishers/google/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro"),
        (f"{AZURE}/deployments/gpt-4o/embeddings?api-version=1", "gpt-4o"),
        (f"{BEDROCK}/model/us.a.b-v1%3A0/converse", "us.a.b-v1:0"),
        (f"{BEDROCK}/model/{{model}}/converse", ""),
        (f"{GOOGLE}/openai/chat/completions", ""),
        (f"{OPENAI}/chat/completions", ""),
    ],
)
def test_a_path_names_its_model(url: str, model: str) -> None:
    """Gemini's, Azure's and Bedrock's do."""
    assert url_model(url) == model


@pytest.mark.parametrize(
    ("url", "tier", "members"),
    [
        (f"{OPENAI}/responses", "flex", {"service_tier": "flex"}),
        (f"{AZURE}/v1/responses", "priority", {"service_tier": "priority"}),
        ("https://api.groq.com/openai/v1/chat/completions", "flex", {"service_tier": "flex"}),
        (
            "https://api.groq.com/openai/v1/chat/completions",
            "default",
            {"service_tier": "on_demand"},
        ),
        ("https://api.groq.com/openai/v1/chat/completions", "auto", {"service_tier": "auto"}),
        (f"{GOOGLE}/models/g:generateContent", "flex", {"service_tier": "flex"}),
        (f"{GOOGLE}/models/g:generateContent", "default", {"service_tier": "standard"}),
        ("http://gateway/v1beta/models/g:generateContent", "default", {"service_tier": "standard"}),
        (f"{BEDROCK}/model/m/converse", "flex", {"serviceTier": {"type": "flex"}}),
        (f"{BEDROCK}/openai/v1/chat/completions", "flex", {"service_tier": "flex"}),
        ("https://api.anthropic.com/v1/messages", "default", {"service_tier": "standard_only"}),
        (f"{VERTEX}/publishers/google/models/g:generateContent", "flex", {}),
        (f"{OPENAI}/responses", "", {}),
    ],
)
def test_a_tier_is_spelled_the_providers_way(url: str, tier: str, members: dict[str, Any]) -> None:
    """As a member of the body; Vertex has none, but a header."""
    assert tier_spelling(url, tier) == members


@pytest.mark.parametrize(
    ("headers", "answer", "tier"),
    [
        ({}, {"service_tier": "flex"}, "flex"),
        ({}, {"service_tier": "on_demand"}, "default"),
        ({}, {"serviceTier": {"type": "priority"}}, "priority"),
        ({}, {"usage": {"service_tier": "standard"}}, "default"),
        ({"x-gemini-service-tier": "standard"}, {"usageMetadata": {}}, "default"),
        ({}, {"usageMetadata": {"trafficType": "ON_DEMAND_FLEX"}}, "flex"),
        ({}, {"service_tier": None, "usage": None}, ""),
        ({}, [1], ""),
    ],
)
def test_the_tier_that_answered_is_read(headers: dict[str, str], answer: Any, tier: str) -> None:
    """In one set of words, from the body or a header."""
    assert answered_tier(headers, answer) == tier


def test_headers_that_say_nothing_of_a_tier_are_not_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That would take longer than all else that is read of an answer."""
    headers = Headers("server: a\r\nx-request-id: b")
    monkeypatch.delattr(Headers, "_get")
    assert answered_tier(headers, {"service_tier": "flex"}) == "flex"
    monkeypatch.undo()
    assert answered_tier(Headers("X-Gemini-Service-Tier: flex"), {}) == "flex"


@pytest.mark.parametrize(
    ("end", "instead"),
    [
        ("/v1beta/models/m:streamGenerateContent?alt=sse", ":generateContent"),
        ("/model/m/converse-stream", "/converse"),
        ("/model/m/invoke-with-response-stream", "/invoke"),
    ],
)
def test_an_endpoint_that_only_streams_is_refused(end: str, instead: str) -> None:
    """At once, with the endpoint to use instead."""
    with pytest.raises(ConfigurationError, match=f"streams its answers.*: use {instead}$"):
        Processor(request_url=f"http://localhost{end}")


NATIVE = [name for name, case in CASES.items() if not case.url.endswith("/completions")]


@pytest.mark.parametrize("name", NATIVE)
def test_records_of_every_form_are_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    """What is on record as answered is not sent again, be it a list of numbers."""
    case, source = CASES[name], tmp_path / "requests.jsonl"
    source.write_text(json.dumps(case.body) + "\n")
    settings: dict[str, Any] = {"api_key": case.key, "allow_plain_http": True}
    with speaking(case, monkeypatch) as url:
        first = process_file(source, request_url=url, **settings)
        again = process_file(source, request_url=url, **settings)
    assert (first.answered, again.already_answered, again.attempts) == (1, 1, 0)


def test_models_in_a_url_are_apart_and_resumed(tmp_path: Path, clean_environment: None) -> None:
    """Each has its bucket; the results keep the model, so that no request is sent twice."""
    lines = [{**GEMINI, "model": f"g-{number % 2}", "metadata": number} for number in range(4)]
    source = tmp_path / "requests.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"contents": []}]))
    with Simulator() as simulator:
        settings: dict[str, Any] = {
            "request_url": f"{simulator.url}/v1beta/models/{{model}}:generateContent"
        }
        first = process_file(source, **settings)
        again = process_file(source, **settings)
        assert simulator.stats()["answered"] == 4
    assert (first.answered, first.failed, again.already_answered) == (4, 1, 4)
    assert sorted(bucket.model for bucket in first.buckets) == ["g-0", "g-1"]
    results = (tmp_path / "requests_results.jsonl").read_text()
    assert results.count('"model": "g-') == 4
    assert "names no model to take the place of {model} in the request URL" in results


def test_limits_by_model_hold_for_a_model_in_the_path(
    tmp_path: Path, clean_environment: None
) -> None:
    """Its bucket has the name, though no body has it."""
    source = tmp_path / "requests.jsonl"
    source.write_text(json.dumps({"contents": [CONTENT]}))
    with Simulator() as simulator:
        summary = process_file(
            source,
            request_url=f"{simulator.url}/v1beta/models/g-1:generateContent",
            limits_by_model={"g-*": Limits(requests_per_minute=600)},
        )
    (bucket,) = summary.buckets
    assert bucket.model == "g-1"
    assert {limit.pattern for limit in bucket.limits if limit.name == "requests"} == {"g-*"}


def test_one_file_may_hold_several_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None
) -> None:
    """Each row goes to its own host, with its key in that host's header, in its own form."""
    names = ("Anthropic", "Gemini", "Bedrock Converse", "Cohere", "OpenAI chat")
    hosts = [CASES[name].url.split("/")[2] for name in names[:-1]]
    source = tmp_path / "requests.jsonl"
    rows = [
        {"custom_id": name, "method": "POST", "url": CASES[name].url, "body": CASES[name].body}
        for name in names
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with speaking(CASES["OpenAI chat"], monkeypatch) as url:
        summary = process_file(
            source,
            request_url=url,
            api_key=KEY,
            api_keys=dict.fromkeys(hosts, KEY),
            allowed_hosts=hosts,
            allow_plain_http=True,
        )
    assert summary.answered == len(names), summary
    lines = (tmp_path / "requests_results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    answers = {each["custom_id"]: each["response"]["body"] for each in results}
    assert {name: response_text(answers[name]) for name in names} == dict.fromkeys(names, "one two")
    models = {bucket.url.split("/")[2]: bucket.model for bucket in summary.buckets}
    assert models == dict(
        zip([*hosts, "api.openai.com"], ["m", "g-1", "a.b-v1:0", "m", "m"], strict=True)
    )
