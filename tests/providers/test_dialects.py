"""Every provider's dialect, by its own requests: the whole Processor against the simulator, which speaks it.

The simulator stands where a proxy would, so that each request goes to its provider's own host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from parallel_processor import Processor, RetryPolicy, RunStoppedError
from parallel_processor.exceptions import StopCause
from parallel_processor.models import AttemptStatus, Outcome
from parallel_processor.providers.limit_headers import read_limits
from parallel_processor.simulator import Rule, Simulator, SimulatorOptions

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
        rate_limited: what its refusal means: to wait for the limit, or for the server.
    """

    url: str
    body: dict[str, Any]
    answers: str = ECHO
    usage: set[str] = field(default_factory=lambda: {*COUNTS, "completion_tokens"})
    limits: dict[str, float] = field(default_factory=dict)
    key: str = KEY
    refusal: AttemptStatus = AttemptStatus.RATE_LIMITED


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
        *(),
        url=f"{OPENAI}/images/generations",
        body={"model": "m", "prompt": "a cat"},
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
    "Ollama": Case(url="ollama:/v1/chat/completions", body=MESSAGES, refusal=AttemptStatus.RETRY),
    "Ollama native": Case(
        url="ollama:/api/chat",
        body=MESSAGES,
        usage={"prompt_eval_count", "eval_count"},
        refusal=AttemptStatus.RETRY,
    ),
    "Ollama embed": Case(
        url="ollama:/api/embed",
        body=INPUT,
        answers=VECTORS,
        usage={"prompt_eval_count"},
        refusal=AttemptStatus.RETRY,
    ),
    "vLLM": Case(url="vllm:/v1/chat/completions", body=MESSAGES, refusal=AttemptStatus.RETRY),
    "SGLang": Case(url="sglang:/v1/chat/completions", body=MESSAGES, refusal=AttemptStatus.RETRY),
    "llama.cpp": Case(
        url="llama.cpp:/v1/chat/completions", body=MESSAGES, refusal=AttemptStatus.NOT_READY
    ),
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


def ask(url: str, case: Case, key: str = "") -> Outcome:
    """The outcome of the case's request, which waits for nothing."""
    retry = RetryPolicy(pause_s=0.01, backoff_initial_s=0.01, backoff_max_s=0.01, max_attempts=2)
    with Processor(
        request_url=url, api_key=key or case.key, allow_plain_http=True, max_workers=1, retry=retry
    ) as processor:
        (outcome,) = processor.map([case.body])
        return outcome


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest, clean_environment: None) -> Case:
    """Each endpoint of each provider."""
    found: Case = request.param
    return found


def test_an_answer_is_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text or vectors, the usage, the tokens used and the limits that the headers tell."""
    with speaking(case, monkeypatch) as url:
        outcome = ask(url, case)
    assert outcome.ok, outcome.error
    assert outcome.attempts == 1
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


def test_a_refusal_is_waited_for(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told from other failures, its request is sent again, and it costs no attempt of a limit's."""
    with speaking(case, monkeypatch, Rule(answer="limited", first=1)) as url:
        with Processor(
            request_url=url,
            api_key=case.key,
            allow_plain_http=True,
            retry=RetryPolicy(pause_s=0.01, backoff_initial_s=0.01),
        ) as processor:
            (outcome,) = processor.map([case.body])
            stats = processor.stats()
    assert outcome.ok, outcome.error
    is_limit = case.refusal is AttemptStatus.RATE_LIMITED
    assert stats.rate_limited == (1 if is_limit else 0)


def test_an_error_is_of_its_request_alone(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words are in the outcome; it is not tried again, and the run goes on."""
    with speaking(case, monkeypatch, Rule(answer="bad_request", first=1)) as url:
        with Processor(
            request_url=url, api_key=case.key, allow_plain_http=True, max_workers=1
        ) as processor:
            failed, answered = processor.imap([case.body, case.body])
    assert not failed.ok
    assert failed.attempts == 1
    assert failed.error is not None
    assert len(failed.error) > len("HTTP 400: ")
    assert answered.ok


def test_a_failure_of_the_server_is_tried_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its status."""
    with speaking(case, monkeypatch, Rule(answer="broken", first=1)) as url:
        outcome = ask(url, case)
    assert outcome.ok, outcome.error


def test_a_wrong_key_stops_the_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the vendor calls it a bad request."""
    with speaking(case, monkeypatch) as url, pytest.raises(RunStoppedError) as caught:
        ask(url, case, key=case.key + "X")
    assert caught.value.cause is StopCause.KEY
