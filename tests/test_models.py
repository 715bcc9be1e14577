"""What is found in answers of all shapes."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor import response_embeddings, response_text
from parallel_processor.contents import response_tier, response_usage
from parallel_processor.models import Outcome, Request, Response

CHAT = {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}
TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
PARTS = {"choices": [{"message": {"content": TEXTS}}]}
RESPONSES = {
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "b"}, {"type": "refusal"}]},
    ]
}
GEMINI_PARTS = [{"text": "Hm.", "thought": True}, {"text": "a"}, {"text": "b"}, {"inlineData": {}}]
GEMINI = {"candidates": [{"content": {"parts": GEMINI_PARTS}, "finishReason": "STOP"}]}
MESSAGES = {"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "ab"}]}


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (CHAT, "a"),
        (PARTS, "ab"),
        ({"choices": [{"text": "ab"}]}, "ab"),
        (RESPONSES, "ab"),
        (MESSAGES, "ab"),
        ({"choices": [{"message": {"content": ""}}]}, ""),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, None),
        (GEMINI, "ab"),
        ({"message": {"role": "assistant", "content": "ab"}, "done": True}, "ab"),
        ({"response": "ab", "done": True}, "ab"),
        ({"output": {"message": {"content": [{"text": "a"}, {"text": "b"}]}}}, "ab"),  # Converse
        ({"output": {"message": {"content": [{"reasoningContent": {}}, {"text": "ab"}]}}}, "ab"),
        ({"output": {"text": "ab"}}, None),
        ({"message": {"role": "assistant", "content": [{"type": "text", "text": "ab"}]}}, "ab"),
        ({"generated_text": "ab"}, "ab"),
        ({"text": "ab", "meta_info": {"completion_tokens": 1}}, "ab"),  # SGLang's own
        ([{"generated_text": "ab"}], "ab"),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, None),
        ({"candidates": [{"finishReason": "SAFETY"}]}, None),
        ({"choices": []}, None),
        ({"data": [{"embedding": [1.0]}]}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_text_of_an_answer(response: Any, text: str | None) -> None:
    """Of each endpoint, and ``None`` where there is none."""
    assert response_text(response) == text


def test_embeddings_have_the_order_of_their_inputs() -> None:
    """By their index, whatever order the server sent. Base64 is 32-bit floats, as OpenAI's API has it."""
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1.25)).decode()
    rows = [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1.0]}]
    assert response_embeddings({"data": rows}) == [[1.0], [0.5, -1.25]]


@pytest.mark.parametrize(
    "response",
    [
        {"embeddings": [[0.5], [1.0]]},
        {"embeddings": [{"values": [0.5]}, {"values": [1.0]}]},
        [[0.5], [1.0]],
        {"embeddings": {"float": [[0.5], [1.0]], "int8": [[1], [2]]}},
        {"embeddings": {"int8": [[0.5], [1.0]]}},
        [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.5]}],
    ],
)
def test_vectors_have_other_names_elsewhere(response: Any) -> None:
    """Those of Ollama, Gemini, TEI, Cohere and llama.cpp, in the order of the inputs."""
    assert response_embeddings(response) == [[0.5], [1.0]]


@pytest.mark.parametrize("response", [{"embedding": [0.5]}, {"embedding": {"values": [0.5]}}])
def test_a_single_vector_may_stand_alone(response: Any) -> None:
    """As Ollama's older endpoint and Gemini send it."""
    assert response_embeddings(response) == [[0.5]]


@pytest.mark.parametrize("broken", ["!", "AAA", "AAAA", 7, {}, None])
def test_what_is_no_vector_is_none(broken: Any) -> None:
    """Neither an error nor an empty vector."""
    assert response_embeddings({"data": [{"embedding": broken}]}) is None


@pytest.mark.parametrize(
    ("response", "tier"),
    [
        ({"service_tier": "flex"}, "flex"),
        ({"serviceTier": {"type": "priority"}}, "priority"),
        ({"service_tier": None, "usage": {"service_tier": "standard"}}, "standard"),
        ({"usageMetadata": {"trafficType": "ON_DEMAND_FLEX"}}, "ON_DEMAND_FLEX"),  # Vertex
        ({"usageMetadata": {"trafficType": 1}}, None),
    ],
)
def test_the_tier_is_in_the_answers_own_words(response: Any, tier: str | None) -> None:
    """Wherever its provider puts it; an outcome has it."""
    made = Response(status=200, headers={}, body=b"", data=response, is_json=True)
    assert Outcome(request=Request(body={}), ok=True, raw_response=made).service_tier == tier


def test_usage_is_the_servers_own_object() -> None:
    """As it stands in the answer."""
    assert response_usage({"usage": {"input_tokens": 3}}) == {"input_tokens": 3}
    assert response_usage({"usage": 3}) is None
    assert response_usage({"usage": {}}) is None
    assert response_usage({"usage": {}, "meta_info": {"completion_tokens": 3}}) is not None
    assert response_usage({"usageMetadata": {"totalTokenCount": 3}}) == {"totalTokenCount": 3}
    assert response_usage({"done": True, "eval_count": 3}) == {"eval_count": 3}
    assert response_usage({"meta": {"billed_units": {}}}) == {"billed_units": {}}


NAMES = ["choices", "message", "content", "text", "type", "output", "data", "embedding", "usage"]
KEYS = st.sampled_from(NAMES) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(JSON)
def test_no_answer_makes_them_raise(response: Any) -> None:
    """Any JSON at all."""
    response_text(response)
    response_embeddings(response)
    response_tier(response)
    response_usage(response)
