"""What requests cost: the cookbook's numbers, every endpoint's shapes, and no JSON that raises."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example as hypothesis_example
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.tokens.content import MEDIA_TOKENS
from parallel_processor.tokens.counter import MAX_CHOICES, MAX_OUTPUT_TOKENS, TokenCounter
from parallel_processor.tokens.encodings import text_counter

CL100K = text_counter("cl100k_base").count
O200K = text_counter("o200k_base").count


def example(name: str, content: str) -> dict[str, str]:
    """A message of the OpenAI cookbook, "How to count tokens with tiktoken", sections 6 and 7."""
    return {"role": "system", "name": f"example_{name}", "content": content}


JARGON = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate "
        "jargon into plain English.",
    },
    example("user", "New synergies will help drive top-line growth."),
    example("assistant", "Things working well together will increase revenue."),
    example(
        "user",
        "Let's circle back when we have more bandwidth to touch base on opportunities "
        "for increased leverage.",
    ),
    example("assistant", "Let's talk later when we're less busy about how to do better."),
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client "
        "deliverable.",
    },
]
WEATHER = [
    {
        "role": "system",
        "content": "You are a helpful assistant that can answer to questions about the weather.",
    },
    {"role": "user", "content": "What's the weather like in San Francisco?"},
]
GET_WEATHER = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": "The city and state, e.g. San Francisco, CA",
            },
            "unit": {
                "type": "string",
                "description": "The unit of temperature to return",
                "enum": ["celsius", "fahrenheit"],
            },
        },
        "required": ["location"],
    },
}
NESTED_TOOL = {"type": "function", "function": GET_WEATHER}
FLAT_TOOL = {"type": "function", **GET_WEATHER}

PNG_HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 512, 512)
PNG_BASE64 = base64.b64encode(PNG_HEAD + bytes(1_000_000)).decode()
PNG_URL = f"data:image/png;base64,{PNG_BASE64}"
JUNK_BASE64 = base64.b64encode(bytes(range(256)) * 4_000).decode()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def chat(**body: Any) -> int:
    """The prompt tokens of a chat body for gpt-4o."""
    return TokenCounter().input_tokens({"model": "gpt-4o", **body}, Endpoint.CHAT)


def reserved(body: dict[str, Any], endpoint: Endpoint, default: int) -> int:
    """The output tokens that are reserved for a body."""
    return TokenCounter(default_output_tokens=default).output_tokens(body, endpoint)


def total(body: Mapping[str, Any], endpoint: Endpoint, counter: TokenCounter | None = None) -> int:
    """The tokens of a body's prompt and those that are reserved for its answer."""
    counter = counter or TokenCounter()
    return counter.input_tokens(body, endpoint) + counter.output_tokens(body, endpoint)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("gpt-3.5-turbo", 129), ("gpt-4", 129), ("gpt-4o", 124), ("gpt-4o-mini", 124)],
)
def test_jargon_messages_have_the_apis_count(model: str, tokens: int) -> None:
    """The cookbook's six messages cost what the API said they cost."""
    body = {"model": model, "messages": JARGON}
    assert TokenCounter().input_tokens(body, Endpoint.CHAT) == tokens


@pytest.mark.parametrize("offer", [{"tools": [NESTED_TOOL]}, {"functions": [GET_WEATHER]}])
@pytest.mark.parametrize(("model", "tokens", "alone"), [("gpt-4", 105, 71), ("gpt-4o", 101, 68)])
def test_tools_have_the_apis_count(
    offer: dict[str, Any], model: str, tokens: int, alone: int
) -> None:
    """The cookbook's tool and messages cost what the API said they cost."""
    counter = TokenCounter()
    with_tools = counter.input_tokens({"model": model, "messages": WEATHER, **offer}, Endpoint.CHAT)
    without = counter.input_tokens({"model": model, "messages": WEATHER}, Endpoint.CHAT)
    assert (with_tools, with_tools - without) == (tokens, alone)


def test_a_flat_tool_costs_what_a_nested_one_costs() -> None:
    """The Responses API's flat tools, and Anthropic's, cost what the chat API's cost."""
    counter = TokenCounter()
    body = {"model": "gpt-4o", "input": "Hi"}
    flat = counter.input_tokens({**body, "tools": [FLAT_TOOL]}, Endpoint.RESPONSES)
    assert flat - counter.input_tokens(body, Endpoint.RESPONSES) == 68
    schema = {"name": "f", "description": "d", "input_schema": GET_WEATHER["parameters"]}
    chat_tool = {"name": "f", "description": "d", "parameters": GET_WEATHER["parameters"]}
    assert chat(messages=WEATHER, tools=[schema]) == chat(messages=WEATHER, tools=[chat_tool])


def test_tools_that_the_formula_does_not_cover_cost_about_their_json() -> None:
    """Nested schemas, references and built-in tools cost about what their JSON text costs."""
    nested = {
        "type": "object",
        "properties": {
            "orders": {
                "type": "array",
                "items": {"type": "object", "properties": {"id": {"type": "string"}}},
            },
            "kind": {"type": ["string", "null"], "description": "What it is."},
            "place": {"$ref": "#/$defs/place"},
        },
        "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for tool in (
        {"type": "function", "function": {"name": "order", "parameters": nested}},
        {"type": "web_search", "user_location": {"type": "approximate", "country": "GB"}},
        {"type": "mcp", "server_label": "docs", "server_url": "https://example.com/mcp"},
    ):
        tokens = chat(messages=[], tools=[tool]) - chat(messages=[])
        text = O200K(json.dumps(tool, separators=(",", ":")))
        assert 0.5 * text <= tokens <= 1.5 * text + 25


def test_json_costs_about_its_text() -> None:
    """The count of any JSON is near that of its compact text."""
    value = {"a": [1, 2.5, None, True, "some words"], "longer_name": {"b": "x", "c": 1234567890}}
    tokens = TokenCounter().input_tokens(value, Endpoint.UNKNOWN)
    assert tokens == pytest.approx(CL100K(json.dumps(value, separators=(",", ":"))), rel=0.3)


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ({"role": "user", "content": "hello world"}, 3 + 1 + 2),
        ({"role": "assistant", "content": None}, 3 + 1),
        ({"role": "user", "content": ""}, 3 + 1),
        ({"role": "user", "content": []}, 3 + 1),
        ({"role": "user", "name": "Bob", "content": "hello world"}, 3 + 1 + 2 + 2),
        ({"role": "user", "content": [{"type": "text", "text": "hello world"}] * 2}, 3 + 1 + 4),
        ({"role": "user", "content": ["hello world"]}, 3 + 1 + 2),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "hello"}]}, 3 + 1 + 1),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, 3 + 1 + 3 + 1 + 1),
        ({"role": "assistant", "function_call": CALL["function"]}, 3 + 1 + 3 + 1 + 1),
        ({"role": "tool", "tool_call_id": "c1", "content": "hello"}, 3 + 1 + 2 + 1),
        ("hello world", 3 + 2),
        (None, 3),
    ],
)
def test_messages_of_every_shape(message: Any, tokens: int) -> None:
    """A message costs three tokens, its role, its content, its name and its calls."""
    assert chat(messages=[message]) - chat(messages=[]) == tokens


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|fim_prefix|><|endofprompt|>", "a\ud800b"])
def test_special_tokens_and_surrogates_are_text(text: str) -> None:
    """The names of special tokens and lone surrogates cost what they cost as text."""
    assert chat(messages=user(text)) - chat(messages=user("")) == O200K(text)


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": PNG_URL}}, 255),
        ({"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}}, 85),
        ({"type": "image_url", "image_url": PNG_URL}, 255),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, 765),
        ({"type": "input_image", "image_url": PNG_URL, "detail": "high"}, 255),
        ({"type": "input_image", "image_url": PNG_URL, "detail": "low"}, 85),
        ({"type": "input_image", "file_id": "file-1"}, 765),
        ({"type": "image", "source": {"type": "base64", "data": PNG_BASE64}}, 255),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, 765),
        ({"type": "input_audio", "input_audio": {"data": JUNK_BASE64}}, MEDIA_TOKENS),
        ({"type": "file", "file": {"file_data": JUNK_BASE64}}, MEDIA_TOKENS),
        ({"type": "document", "source": {"type": "base64", "data": JUNK_BASE64}}, MEDIA_TOKENS),
        ({"type": "document", "source": {"type": "text", "data": "hello world"}}, 2),
        ({"type": "document", "source": {"type": "content", "content": "hello world"}}, 2),
        ({"type": "tool_result", "content": [{"type": "text", "text": "hello world"}]}, 2),
        ({"type": "tool_use", "name": "f", "input": {}}, 3 + 1 + 1),
    ],
)
def test_parts_of_every_shape(part: dict[str, Any], tokens: int) -> None:
    """Images cost what their size makes them cost, other files a flat sum, in all three APIs."""
    assert chat(messages=user([part])) - chat(messages=user([])) == tokens


def test_base64_is_never_tokenised() -> None:
    """A megabyte of base64 costs little at places that nothing is known about, too."""
    for value in (JUNK_BASE64, PNG_URL, f"data:application/pdf;base64,{JUNK_BASE64}"):
        body = {"contents": [{"parts": [{"inlineData": {"mimeType": "?", "data": value}}]}]}
        assert TokenCounter().input_tokens(body, Endpoint.UNKNOWN) < 1_100
        assert chat(messages=user([{"type": "brand_new", "data": value}])) < 1_100
        assert chat(messages=[{"role": "assistant", "audio": {"data": value}}]) < 1_100


def test_responses_inputs_of_every_shape() -> None:
    """A response has a text or items for input; instructions, variables, a schema come on top."""

    def cost(**body: Any) -> int:
        return TokenCounter().input_tokens({"model": "gpt-4o", **body}, Endpoint.RESPONSES)

    assert cost(input="hello world") == cost(input=user("hello world")) == 3 + 3 + 1 + 2
    assert cost() == cost(input=None) == 3
    assert cost(input=user([{"type": "input_text", "text": "hello world"}])) == 9
    assert cost(input="hello world", instructions="hello world") == 9 + 3 + 2
    assert cost(input=[{"type": "message", "id": "m", "role": "user", "content": "hello"}]) == 8
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "hello world"}
    assert cost(input=[call]) == 3 + 3 + 3 + 1 + 1
    assert cost(input=[result]) == 3 + 3 + 2
    schema = {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}}
    assert cost(input="hello world", text=schema) > 9 + 8
    assert cost(prompt={"id": "p", "variables": {"city": "hello world"}}) > 3 + 3


def test_anthropic_messages_have_a_system_prompt() -> None:
    """Anthropic's system prompt, a text or parts, is counted as a message."""
    body = {"model": "gpt-4o", "messages": user("hello world"), "max_tokens": 7}
    plain = total(body, Endpoint.MESSAGES)
    assert plain == 3 + 3 + 1 + 2 + 7
    for system in ("hello world", [{"type": "text", "text": "hello world", "cache_control": {}}]):
        assert total({**body, "system": system}, Endpoint.MESSAGES) == plain + 5


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("hello world", 2),
        (["hello world", "hello"], 3),
        ([1, 2, 3], 3),
        ([[1, 2, 3], [4]], 4),
        (["hello world", [1, 2], 7], 2 + 2 + 1),
        ([], 0),
        ([[]], 0),
        ("", 0),
        ([{"type": "text", "text": "hello world"}], 2),
        ([{"type": "image_url", "image_url": {"url": PNG_URL}}], 255),
    ],
)
def test_inputs_of_every_shape(value: Any, tokens: int) -> None:
    """Texts are counted and tokens are numbered, for embeddings, moderations and completions."""
    for endpoint in (Endpoint.EMBEDDINGS, Endpoint.MODERATIONS):
        assert total({"input": value}, endpoint) == pytest.approx(tokens, abs=1)
        assert TokenCounter().output_tokens({"input": value, "max_tokens": 9}, endpoint) == 0
    body = {"prompt": value}
    assert TokenCounter().input_tokens(body, Endpoint.COMPLETIONS) == pytest.approx(tokens, abs=1)


def test_another_vendors_embedding_is_counted_whole() -> None:
    """An embedding without ``input`` costs all the text that it holds."""
    body = {"model": "v", "texts": ["hello world"] * 10}
    assert total(body, Endpoint.EMBEDDINGS) >= 20


CHAT, COMPLETIONS, RESPONSES, UNKNOWN = (
    *(Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.UNKNOWN),
)


@pytest.mark.parametrize(
    ("endpoint", "body", "cap"),
    [
        (CHAT, {"max_tokens": 100}, 100),
        (CHAT, {"max_completion_tokens": 100}, 100),
        (CHAT, {"max_tokens": 50, "max_completion_tokens": 70}, 70),
        (CHAT, {"max_tokens": 100, "max_completion_tokens": None}, 100),
        (CHAT, {"max_tokens": 100, "n": 3}, 300),
        *((CHAT, {"n": odd, "max_tokens": 5}, 5) for odd in (None, 0, -2, "3", True)),
        (CHAT, {"n": 10**30, "max_tokens": 1}, MAX_CHOICES),
        (CHAT, {"max_tokens": 0}, 0),
        (CHAT, {"max_tokens": 99.5}, 100),
        *((CHAT, {"max_tokens": high}, MAX_OUTPUT_TOKENS) for high in (2**31 - 1, 10**400, 1e300)),
        (RESPONSES, {"max_output_tokens": 9, "max_tokens": 99}, 9),
        (Endpoint.MESSAGES, {"max_tokens": 9, "max_output_tokens": 99}, 9),
        # The API of completions has a cap of its own, for every prompt and every choice.
        *((COMPLETIONS, {"prompt": one}, 16) for one in ("a", [1, 2, 3], [])),
        (COMPLETIONS, {}, 16),
        (COMPLETIONS, {"prompt": ["a", "b", "c"]}, 3 * 16),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2 * 16),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "max_tokens": 5}, 20),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "best_of": 5, "max_tokens": 10}, 2 * 5 * 10),
        (COMPLETIONS, {"prompt": "a", "n": 3, "best_of": None, "max_tokens": 10}, 30),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, 0),
        (COMPLETIONS, {"prompt": "a", "max_tokens": None}, 16),
        (Endpoint.EMBEDDINGS, {"max_tokens": 50}, 0),
        (Endpoint.MODERATIONS, {}, 0),
        (UNKNOWN, {"maxTokens": 50}, 50),
        (UNKNOWN, {"max_new_tokens": 9, "max_tokens": 7}, 9),
        (UNKNOWN, {"generationConfig": {"maxOutputTokens": 9}}, 9),
        (UNKNOWN, {"generationConfig": {"maxOutputTokens": 70}, "maxTokens": 50}, 70),
    ],
)
def test_a_cap_is_reserved(endpoint: Endpoint, body: dict[str, Any], cap: int) -> None:
    """The largest cap that the endpoint's API has is reserved, for every prompt and every choice."""
    assert TokenCounter().output_cap(body, endpoint) == cap
    assert reserved(body, endpoint, default=999) == cap


@pytest.mark.parametrize(
    ("endpoint", "body", "choices"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"max_output_tokens": 50}, 1),
        *((CHAT, {"max_tokens": odd}, 1) for odd in (None, -1, True, "100", [100])),
        *((CHAT, {"max_tokens": odd}, 1) for odd in (float("nan"), float("inf"))),
        (RESPONSES, {}, 1),
        (RESPONSES, {"max_tokens": 99}, 1),
        (Endpoint.MESSAGES, {}, 1),
        (UNKNOWN, {}, 0),
        (UNKNOWN, {"generationConfig": {"temperature": 1}}, 0),
        (UNKNOWN, {"generationConfig": [9], "options": None}, 0),
    ],
)
def test_without_a_usable_cap_the_default_is_reserved(
    endpoint: Endpoint, body: dict[str, Any], choices: int
) -> None:
    """Nothing bounds such a response, so each choice gets the default; an unknown endpoint gets 0."""
    assert TokenCounter().output_cap(body, endpoint) is None
    assert reserved(body, endpoint, default=40) == choices * 40


def test_an_encoding_that_is_named_counts_everything() -> None:
    """The encoding that the user names is used whatever a request's model is."""
    body = {"model": "gpt-4o", "messages": user("お誕生日おめでとう")}
    own = TokenCounter().input_tokens(body, Endpoint.CHAT)
    named = TokenCounter(encoding_name="cl100k_base").input_tokens(body, Endpoint.CHAT)
    assert (own, named) == (3 + 3 + 1 + 8, 3 + 3 + 1 + 9)


@pytest.mark.parametrize("model", [None, 4, ["gpt-4o"], {}, "", "nobody-knows-it", "x" * 10_000])
def test_without_a_known_model_cl100k_counts(model: object) -> None:
    """A body without a model, or with one that isn't known, is counted with cl100k_base."""
    body = {"model": model, "messages": user("お誕生日おめでとう")}
    assert TokenCounter().input_tokens(body, Endpoint.CHAT) == 3 + 3 + 1 + 9


def test_options_that_cant_work_are_rejected() -> None:
    """An encoding that doesn't exist and a negative default are rejected when they are passed."""
    with pytest.raises(ConfigurationError, match="cl100k_base"):
        TokenCounter(encoding_name="cl100k")
    with pytest.raises(ConfigurationError, match="default_output_tokens is -1"):
        TokenCounter(default_output_tokens=-1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["text", "image_url", "<|endoftext|>", "message", PNG_URL[:200], "\udfff"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
TYPES = st.sampled_from(
    [
        *("text", "input_text", "refusal", "image_url", "input_image", "image", "input_audio"),
        *("document", "function_call", "tool_use", "tool_result", "function_call_output"),
        "message",
    ]
)
PART_KEYS = [
    *("text", "image_url", "url", "detail", "source", "data", "content", "output", "name"),
    *("arguments", "input", "function", "custom", "role", "type", "media_type", "tool_calls"),
]


def objects(keys: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that have some of the keys."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))


PARTS = st.recursive(
    JSON | TYPES,
    lambda inner: st.lists(inner, max_size=3) | objects(PART_KEYS, inner | TYPES),
    max_leaves=15,
)
SCHEMAS = objects(
    ["properties", "type", "required", "$defs"],
    JSON | st.dictionaries(st.text(max_size=5), objects(["type", "description", "enum"], JSON)),
)
TOOLS = st.lists(
    JSON
    | objects(["function", "name", "description", "parameters", "input_schema", "type"], JSON)
    | st.fixed_dictionaries({"name": st.text(), "parameters": SCHEMAS, "description": JSON}),
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": JSON | st.sampled_from(["gpt-4o", "gpt-4", "gpt-5-mini", "claude-x", "openai/o3"]),
        "messages": st.lists(PARTS, max_size=3) | JSON,
        "input": st.lists(PARTS, max_size=3) | JSON,
        "prompt": st.lists(JSON, max_size=3) | JSON,
        "tools": TOOLS | JSON,
        "functions": TOOLS | JSON,
        **dict.fromkeys(["system", "instructions", "suffix"], PARTS),
        **dict.fromkeys(["text", "response_format", "generationConfig", "options", "extra"], JSON),
        **dict.fromkeys(["n", "best_of", "max_tokens", "max_completion_tokens"], JSON),
        **dict.fromkeys(["max_output_tokens", "max_new_tokens"], JSON),
    },
)


@settings(max_examples=150)
@given(BODIES | st.dictionaries(st.text(), JSON), st.sampled_from([None, "o200k_base"]))
@hypothesis_example(
    {"model": "gpt-4o", "input": "¸"}, None
)  # one token more in another model's encoding
def test_no_body_raises(body: dict[str, Any], encoding_name: str | None) -> None:
    """Whatever JSON a body holds, every endpoint counts it as two whole numbers from 0 up."""
    counter = TokenCounter(encoding_name=encoding_name)
    for endpoint in Endpoint:
        parts = counter.input_tokens(body, endpoint), counter.output_tokens(body, endpoint)
        assert all(type(part) is int and part >= 0 for part in parts)
        assert total(MappingProxyType(body), endpoint, counter) == sum(parts)


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda inner: [inner],
    lambda inner: {"content": inner},
    lambda inner: {"type": "tool_result", "content": [inner]},
    lambda inner: {"type": "document", "source": {"type": "content", "content": [inner]}},
    lambda inner: {"properties": {"p": inner}},
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_deep_nesting_is_counted(wrap: Callable[[Any], Any]) -> None:
    """Bodies deeper than any parser takes are counted, at every place."""
    deep: Any = 1
    for _ in range(10_000):
        deep = wrap(deep)
    body = {
        "messages": [{"role": "user", "content": deep}, {"role": deep, "tool_calls": deep}],
        "input": [{"role": "user", "content": [deep]}, deep],
        "prompt": deep,
        "tools": [deep, {"name": "f", "parameters": deep}, {"name": deep}],
        "extra": deep,
    }
    for endpoint in Endpoint:
        assert total(body, endpoint) >= 0


def test_a_hundred_megabytes_are_counted_in_seconds() -> None:
    """A text of 100 MB doesn't hold up the requests behind it, and its count is about right."""
    text = "The quick brown fox jumps over the lazy dog. " * 2_300_000
    assert chat(messages=user(text)) == pytest.approx(23_000_000, rel=0.01)


def test_threads_count_alike() -> None:
    """Threads that share a counter get the same numbers as one thread."""
    bodies = [{"model": "gpt-4o", "messages": user("word " * n), "n": 2} for n in range(200)]
    counter = TokenCounter()
    expected = [total(body, Endpoint.CHAT, counter) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda body: total(body, Endpoint.CHAT, counter), bodies)) == expected


SYSTEM, PROMPT = "You are brief.", "Count to three."
GEMINI: dict[str, Any] = {
    "systemInstruction": {"parts": [{"text": SYSTEM}]},
    "contents": [{"role": "user", "parts": [{"text": PROMPT}]}],
    "generationConfig": {"maxOutputTokens": 50, "candidateCount": 2},
}
CONVERSE: dict[str, Any] = {
    "system": [{"text": SYSTEM}],
    "messages": [{"role": "user", "content": [{"text": PROMPT}]}],
    "inferenceConfig": {"maxTokens": 50},
}
PARTS = {"parts": [{"text": PROMPT}]}


@pytest.mark.parametrize(
    ("endpoint", "body", "output"),
    [
        (Endpoint.GENERATE_CONTENT, GEMINI, 100),
        (Endpoint.CONVERSE, CONVERSE, 50),
        (
            Endpoint.MESSAGES,
            {"system": SYSTEM, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50},
            50,
        ),
    ],
)
def test_a_chat_costs_about_the_same_in_every_form(
    endpoint: Endpoint, body: dict[str, Any], output: int
) -> None:
    """A system text, a prompt and a cap, as OpenAI, Anthropic, Google and Amazon write them."""
    counter = TokenCounter(encoding_name="o200k_base")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
    expected = counter.input_tokens({"messages": messages}, Endpoint.CHAT)
    assert abs(counter.input_tokens(body, endpoint) - expected) <= 2
    assert counter.output_cap(body, endpoint) == output


LONG = "The quick brown fox jumps over the lazy dog. " * 50
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 100


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (
            Endpoint.COHERE_CHAT,
            {"messages": [], "documents": [{"id": "a", "data": {"text": LONG}}]},
        ),
        (
            Endpoint.COHERE_CHAT,
            {
                "messages": [
                    {"role": "tool", "content": [{"type": "document", "document": {"data": LONG}}]}
                ]
            },
        ),
        (Endpoint.GENERATE_CONTENT, {"contents": [], "systemInstruction": LONG}),
        (
            Endpoint.GENERATE_CONTENT,
            {"contents": [], "generationConfig": {"responseSchema": {"description": LONG}}},
        ),
    ],
)
def test_every_text_of_a_chat_is_counted(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Documents beside the messages, instructions without parts, the schema of the answer."""
    tokens = TokenCounter(encoding_name="o200k_base").input_tokens(body, endpoint)
    assert O200K(LONG) <= tokens <= O200K(LONG) + 20


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.COHERE_EMBED, {"texts": [], "images": [PICTURE]}),
        (Endpoint.OLLAMA_GENERATE, {"prompt": PROMPT, "images": ["iVBORw0KGgo" * 100]}),
    ],
)
def test_images_beside_the_texts_are_counted(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """As images, not as texts."""
    assert TokenCounter().input_tokens(body, endpoint) > 100


@pytest.mark.parametrize(
    ("endpoint", "body", "texts"),
    [
        (Endpoint.COHERE_EMBED, {"texts": [PROMPT, PROMPT], "input_type": "search_query"}, 2),
        (Endpoint.EMBED_CONTENT, {"content": PARTS}, 1),
        (Endpoint.BATCH_EMBED_CONTENTS, {"requests": [{"content": PARTS}] * 3}, 3),
        (Endpoint.TEI_EMBED, {"inputs": PROMPT, "truncate": True}, 1),
        (Endpoint.OLLAMA_EMBED, {"input": [PROMPT]}, 1),
        (Endpoint.RERANK, {"query": PROMPT, "documents": [PROMPT, PROMPT]}, 3),
        (Endpoint.RERANK, {"query": PROMPT, "texts": [PROMPT]}, 2),
    ],
)
def test_what_has_no_text_as_an_answer_costs_its_input(
    endpoint: Endpoint, body: dict[str, Any], texts: int
) -> None:
    """By whatever name it goes."""
    counter = TokenCounter(encoding_name="o200k_base")
    assert counter.input_tokens(body, endpoint) == texts * O200K(PROMPT)
    assert counter.output_tokens(body, endpoint) == 0


def test_the_model_of_a_url_chooses_the_encoding() -> None:
    """A deployment that is called as its model is, and a body that names none."""
    counter, text = TokenCounter(), "お誕生日おめでとう"
    body = {"input": text}
    assert counter.input_tokens(body, Endpoint.EMBEDDINGS) == CL100K(text)
    assert counter.input_tokens(body, Endpoint.EMBEDDINGS, "gpt-4o") == O200K(text)
