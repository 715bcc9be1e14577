"""Every dialect, by its own requests: the whole Processor against the simulator, which speaks it.

The simulator stands where a proxy would, so that each request goes to its provider's own host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from parallel_processor import Processor, RetryPolicy, RunStoppedError
from parallel_processor.exceptions import StopCause
from parallel_processor.models import AttemptStatus, Outcome, Response
from parallel_processor.providers.limit_headers import read_limits
from parallel_processor.providers.responses import classify
from parallel_processor.simulator import Rule, Simulator, SimulatorOptions
from parallel_processor.simulator.dialects import DIALECTS, Canned, Dialect

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
    words = ("one", "limited", "broken", "bad_request")
    with speaking(case, monkeypatch, *RULES) as url:
        with Processor(
            request_url=url, api_key=case.key, allow_plain_http=True, retry=RETRY
        ) as processor:
            outcomes = processor.map(saying(case, word) for word in words)
            stats = processor.stats()
    plain, limited, broken, failed = outcomes
    check_answer(plain, case, url)
    assert [(each.ok, each.attempts) for each in (limited, broken)] == [(True, 2)] * 2
    assert (failed.ok, failed.attempts) == (False, 1)
    assert stats.retries == 2


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
