"""The tokens that a response used, in every provider's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.providers.usage import read_usage, used_tokens


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
    """The total if there is one, otherwise the sum of the parts; ``None`` if there is no number."""
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
    """All that isn't input is output, including a model's reasoning."""
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
