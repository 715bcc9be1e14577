"""What a URL and an answer's usage tell about their provider."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.models import Endpoint
from parallel_processor.providers import (
    auth_headers,
    charges_reservation,
    endpoint_of,
    needs_key,
    read_usage,
    resolve_url,
    used_tokens,
)

KEY = "sk-test-1234567890"
BEARER = {"Authorization": f"Bearer {KEY}"}
AZURE = "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"
OPENAI = "https://api.openai.com/v1/chat/completions"
GEMINI = "https://generativelanguage.googleapis.com/v1beta"


@pytest.mark.parametrize(
    "host",
    ["https://api.openai.com", "http://localhost:8000", "http://[::1]:80/proxy", "https://H"],
)
@pytest.mark.parametrize("suffix", ["", "/", "?api-version=2024-10-21", "/?a=/v1/embeddings"])
@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", Endpoint.CHAT),
        ("/openai/deployments/d/chat/completions", Endpoint.CHAT),
        ("/v1beta/openai/chat/completions", Endpoint.CHAT),
        ("/V1/Chat/Completions", Endpoint.CHAT),
        ("/v1/completions", Endpoint.COMPLETIONS),
        ("/v1/responses", Endpoint.RESPONSES),
        ("/openai/v1/embeddings", Endpoint.EMBEDDINGS),
        ("/v1/moderations", Endpoint.MODERATIONS),
        ("/v1/messages", Endpoint.MESSAGES),
        ("/v1/messages/count_tokens", Endpoint.UNKNOWN),
        ("/v1beta/models/gemini-2.5-pro:generateContent", Endpoint.UNKNOWN),
        ("/v1/audio-completions", Endpoint.UNKNOWN),
        ("", Endpoint.UNKNOWN),
    ],
)
def test_the_end_of_the_path_names_the_endpoint(
    host: str, path: str, suffix: str, endpoint: Endpoint
) -> None:
    """Host, prefix, query, case and a slash at the end don't matter."""
    assert endpoint_of(host + path + suffix) is endpoint


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (OPENAI, BEARER),
        (AZURE, {"api-key": KEY}),
        ("https://gateway.example/openai/deployments/d/embeddings", {"api-key": KEY}),
        ("https://r.openai.azure.com/openai/v1/responses", {"api-key": KEY}),
        ("https://R.OpenAI.Azure.com/openai/v1/responses", {"api-key": KEY}),
        ("https://r.services.ai.azure.com/openai/v1/chat/completions", {"api-key": KEY}),
        ("https://openai.azure.com.evil.example/v1/embeddings", BEARER),
        (
            "https://api.anthropic.com/v1/messages",
            {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
        ),
        (
            "http://localhost:4000/v1/messages",
            {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
        ),
        ("https://notanthropic.com/v1/chat/completions", BEARER),
        (f"{GEMINI}/models/g:generateContent", {"x-goog-api-key": KEY}),
        (f"{GEMINI}/openai/chat/completions", BEARER),
        ("https://api.groq.com/openai/v1/chat/completions", BEARER),
        ("http://localhost:11434/v1/chat/completions", BEARER),
    ],
)
def test_the_key_goes_into_the_providers_header(url: str, headers: dict[str, str]) -> None:
    """Azure, Anthropic and Gemini have headers of their own; all others take a bearer token."""
    assert auth_headers(url, KEY) == headers
    without_key = {name: value for name, value in headers.items() if KEY not in value}
    assert auth_headers(url, None) == auth_headers(url, "") == without_key


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        (OPENAI, True),
        (AZURE, True),
        ("https://10.0.0.1/v1/embeddings", True),
        ("https://localhost.example/v1/embeddings", True),
        ("http://10.0.0.1:8000/v1/embeddings", False),
        ("http://gpu-box/v1/embeddings", False),
        ("https://localhost:8443/v1/embeddings", False),
        ("https://api.localhost/v1/embeddings", False),
        ("https://127.0.0.1/v1/embeddings", False),
        ("https://[::1]:8443/v1/embeddings", False),
    ],
)
def test_local_servers_need_no_key(url: str, needed: bool) -> None:
    """A loopback host and plain http go without a key."""
    assert needs_key(url) is needed


@pytest.mark.parametrize(
    ("url", "charged"),
    [
        (OPENAI, True),
        (AZURE, True),
        ("http://localhost:8000/v1/chat/completions", True),
        ("https://fakeapi.groq.com.example/openai/v1/chat/completions", True),
        ("https://api.anthropic.com/v1/messages", False),
        ("https://api.groq.com/openai/v1/chat/completions", False),
        ("https://api.mistral.ai/v1/chat/completions", False),
        (f"{GEMINI}/openai/chat/completions", False),
    ],
)
def test_who_charges_the_reserved_maximum(url: str, charged: bool) -> None:
    """OpenAI, Azure and the unknown charge what was reserved; some charge what was used."""
    assert charges_reservation(url) is charged


@pytest.mark.parametrize(
    ("request_url", "relative", "url"),
    [
        (OPENAI, None, OPENAI),
        (OPENAI, "", OPENAI),
        (OPENAI, "/v1/chat/completions", OPENAI),
        (OPENAI, "/chat/completions", OPENAI),
        (OPENAI, "/v1/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "v1/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "/v1/completions", "https://api.openai.com/v1/completions"),
        (OPENAI, "/completions", "https://api.openai.com/v1/completions"),
        (OPENAI, "/v1/some/thing", "https://api.openai.com/v1/some/thing"),
        (OPENAI + "/", "/v1/chat/completions", OPENAI + "/"),
        (OPENAI, "https://api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        (OPENAI, "//api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        ("https://API.openai.com/v1/embeddings", "https://api.openai.com/v1/x", None),
        ("https://h", "/v1/embeddings", "https://h/v1/embeddings"),
        ("https://h/v1", "/v1/embeddings", "https://h/v1/embeddings"),
        ("https://h/gw/v1/", "/v1/embeddings", "https://h/gw/v1/embeddings"),
        ("https://h/gw", "/v1/embeddings", "https://h/gw/v1/embeddings"),
        ("http://h/gw/v1/chat/completions", "/v1/embeddings", "http://h/gw/v1/embeddings"),
        ("http://h/gw/v1/chat/completions", "/gw/v1/embeddings", "http://h/gw/v1/embeddings"),
        ("http://h/chat/completions", "/v1/chat/completions", "http://h/chat/completions"),
        (
            f"{GEMINI}/openai/chat/completions",
            "/v1/chat/completions",
            f"{GEMINI}/openai/chat/completions",
        ),
        (AZURE, "/chat/completions", AZURE),
        (AZURE, "/v1/chat/completions", AZURE),
        (AZURE, "/openai/deployments/d/chat/completions", AZURE),
        (AZURE, "/v1/embeddings", AZURE.replace("chat/completions", "embeddings")),
        (OPENAI, "/v1/embeddings?a=b", "https://api.openai.com/v1/embeddings?a=b"),
    ],
)
def test_a_batch_row_names_an_endpoint(request_url: str, relative: str, url: str | None) -> None:
    """What a gateway or a deployment puts before the endpoint stays."""
    assert resolve_url(request_url, relative) == (url or relative)


@pytest.mark.parametrize(
    "relative",
    [
        "https://evil.example/v1/chat/completions",
        "//evil.example/v1/chat/completions",
        "http://api.openai.com/v1/chat/completions",
        "https://api.openai.com:8443/v1/chat/completions",
        "https://api.openai.com@evil.example/",
        "https://api.openai.com\\@evil.example/",
        "https://[::1/v1",
        "file:///etc/passwd",
        "javascript:1",
    ],
)
def test_another_host_is_refused(relative: str) -> None:
    """No key goes to another host, port or scheme."""
    with pytest.raises(ValueError):
        resolve_url(OPENAI, relative)


@given(st.text())
def test_no_row_leads_to_another_host(relative: str) -> None:
    """Whatever a row's url is, the host is the request URL's, or the row is refused."""
    try:
        url = resolve_url(OPENAI, relative)
    except ValueError:
        return
    assert url.startswith("https://api.openai.com/")


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 7,
                    "total_tokens": 12,
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {"reasoning_tokens": 2},
                }
            },
            12,
        ),
        ({"usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}}, 12),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, 8),
        (
            {
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 100,
                    "cache_read_input_tokens": 1000,
                    "output_tokens": 7,
                }
            },
            117,
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 5,
                    "candidatesTokenCount": 7,
                    "thoughtsTokenCount": 4,
                    "totalTokenCount": 16,
                }
            },
            16,
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 5,
                    "toolUsePromptTokenCount": 1,
                    "cachedContentTokenCount": 2,
                    "candidatesTokenCount": 7,
                    "thoughtsTokenCount": 4,
                }
            },
            17,
        ),
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7}}, 12),
        # xAI: the reasoning tokens are in the total alone.
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 20}}, 20),
        (
            {
                "usage": {
                    "billed_units": {"input_tokens": 1},
                    "tokens": {"input_tokens": 5, "output_tokens": 7},
                }
            },
            12,
        ),
        ({"prompt_eval_count": 5, "eval_count": 7, "response": "…"}, 12),
        ({"usage": {"prompt_tokens": 5, "input_tokens": 5}}, 5),
        ({"usage": {"total_tokens": None, "prompt_tokens": 5, "completion_tokens": None}}, 5),
        ({"usage": {"total_tokens": 12.0}}, 12),
        ({"usage": {"total_tokens": 0}}, 0),
        ({"usage": None}, None),
        ({"usage": {}}, None),
        ({"usage": []}, None),
        ({"usage": {"total_tokens": "12"}}, None),
        ({"usage": {"total_tokens": -1}}, None),
        ({"usage": {"total_tokens": float("nan")}}, None),
        ({"usage": {"total_tokens": float("inf")}}, None),
        ({"usage": {"total_tokens": True}}, None),
        ({"input_tokens": 5}, None),
        ([], None),
        (None, None),
    ],
)
def test_used_tokens_are_read_from_every_providers_usage(answer: Any, tokens: int | None) -> None:
    """The total if there is one, else the parts that count; nothing where there is no number."""
    assert used_tokens(answer) == tokens


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        # OpenAI: what a model thought is in the completion.
        (
            {
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 7,
                    "total_tokens": 12,
                    "completion_tokens_details": {"reasoning_tokens": 2},
                }
            },
            (12, 7),
        ),
        (
            {
                "usage": {
                    "input_tokens": 5,
                    "input_tokens_details": {"cached_tokens": 3},
                    "output_tokens": 7,
                    "total_tokens": 12,
                }
            },
            (12, 7),
        ),
        ({"usage": {"prompt_tokens": 8, "total_tokens": 8}}, (8, 0)),  # embeddings
        # Anthropic: what was written to the cache is input.
        ({"usage": {"input_tokens": 10, "output_tokens": 7}}, (17, 7)),
        (
            {
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 100,
                    "cache_read_input_tokens": 1000,
                    "output_tokens": 7,
                }
            },
            (117, 7),
        ),
        (
            {
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": None,
                    "output_tokens": 7,
                }
            },
            (17, 7),
        ),
        # Gemini: what a model thought is output, what a tool said is input.
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 5,
                    "candidatesTokenCount": 7,
                    "thoughtsTokenCount": 4,
                    "totalTokenCount": 16,
                }
            },
            (16, 11),
        ),
        (
            {
                "usageMetadata": {
                    "promptTokenCount": 5,
                    "toolUsePromptTokenCount": 1,
                    "cachedContentTokenCount": 2,
                    "candidatesTokenCount": 7,
                    "thoughtsTokenCount": 4,
                }
            },
            (17, 11),
        ),
        ({"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}}, (5, 0)),
        # xAI: the reasoning tokens are in the total alone.
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 20}}, (20, 15)),
        # Cohere's own API
        (
            {
                "usage": {
                    "billed_units": {"input_tokens": 1, "output_tokens": 1},
                    "tokens": {"input_tokens": 5, "output_tokens": 7},
                }
            },
            (12, 7),
        ),
        # Ollama's own API: a prompt that it has in its cache isn't counted.
        ({"prompt_eval_count": 5, "eval_count": 7, "response": "…"}, (12, 7)),
        ({"eval_count": 7, "response": "…"}, (7, 7)),
        ({"prompt_eval_count": 5, "embeddings": []}, (5, 0)),
        ({"usage": {"total_tokens": 9}}, (9, None)),
        ({"usage": {"total_tokens": 9, "completion_tokens": 4}}, (9, 4)),
        ({"usage": {"total_tokens": 9, "completion_tokens": 40}}, (9, 9)),
        ({"usage": {"total_tokens": 9, "prompt_tokens": 40}}, (9, 0)),
        ({"usage": {"total_tokens": 9, "prompt_tokens": "5"}}, (9, None)),
        ({"usage": {}}, (None, None)),
        ({"usage": None, "output_tokens": 5}, (None, None)),
        ([], (None, None)),
        (None, (None, None)),
    ],
)
def test_the_outputs_part_is_read_from_every_providers_usage(
    answer: Any, usage: tuple[int | None, int | None]
) -> None:
    """What isn't input is output, with all that a model thought."""
    assert read_usage(answer) == usage
    assert used_tokens(answer) == usage[0]


COUNTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
USAGES = st.dictionaries(
    st.sampled_from(
        [
            *(
                "total_tokens",
                "prompt_tokens",
                "completion_tokens",
                "input_tokens",
                "output_tokens",
            ),
            *("cache_creation_input_tokens", "totalTokenCount", "promptTokenCount"),
            *("toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"),
            *("prompt_eval_count", "eval_count", "tokens"),
        ]
    ),
    COUNTS | st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), COUNTS),
)


@given(st.sampled_from(["usage", "usageMetadata"]), USAGES)
def test_the_output_is_a_part_of_what_was_used(name: str, usage: dict[str, Any]) -> None:
    """Whatever a usage holds, nothing raises, and no part is larger than the whole."""
    for answer in ({name: usage}, usage):
        used, output = read_usage(answer)
        assert used is None or used >= 0
        assert output is None or (used is not None and 0 <= output <= used)
