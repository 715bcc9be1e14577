"""The tokens that a response used, in every provider's words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.planning.prices import Price, Rates
from parallel_processor.providers.usage import Use, read_usage, read_use, used_tokens

GEMINI = {"promptTokenCount": 5, "candidatesTokenCount": 7, "thoughtsTokenCount": 4}
OPENAI = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
CACHED = {"cached_tokens": 3}


def usage(**fields: Any) -> dict[str, Any]:
    """A response in most providers' shape."""
    return {"usage": fields}


def gemini(**fields: Any) -> dict[str, Any]:
    """A response of Gemini's own API."""
    return {"usageMetadata": fields}


@pytest.mark.parametrize(
    ("answer", "used", "output"),
    [
        (usage(**OPENAI, prompt_tokens_details=CACHED), 12, 7),
        (usage(**OPENAI, completion_tokens_details={"reasoning_tokens": 2}), 12, 7),
        (usage(input_tokens=5, output_tokens=7, total_tokens=12), 12, 7),
        (
            usage(input_tokens=5, output_tokens=7, total_tokens=12, input_tokens_details=CACHED),
            12,
            7,
        ),
        (usage(prompt_tokens=5, completion_tokens=7), 12, 7),
        (usage(prompt_tokens=8, total_tokens=8), 8, 0),  # embeddings
        # Anthropic: what was written to the cache is input.
        (usage(input_tokens=10, output_tokens=7), 17, 7),
        (usage(input_tokens=10, cache_creation_input_tokens=100, output_tokens=7), 117, 7),
        (usage(input_tokens=10, cache_read_input_tokens=1000, output_tokens=7), 17, 7),
        (usage(input_tokens=10, cache_creation_input_tokens=None, output_tokens=7), 17, 7),
        # Gemini: what a model thought is output, what a tool said is input.
        (gemini(**GEMINI, totalTokenCount=16), 16, 11),
        (gemini(**GEMINI, toolUsePromptTokenCount=1, cachedContentTokenCount=2), 17, 11),
        (gemini(promptTokenCount=5, totalTokenCount=5), 5, 0),
        # xAI: the reasoning tokens are in the total alone.
        (usage(prompt_tokens=5, completion_tokens=7, total_tokens=20), 20, 15),
        # Cohere's own API
        (
            usage(billed_units={"input_tokens": 1}, tokens={"input_tokens": 5, "output_tokens": 7}),
            12,
            7,
        ),
        ({"meta": {"billed_units": {"input_tokens": 5}, "api_version": {"version": "2"}}}, 5, 0),
        ({"text": "", "meta_info": {"prompt_tokens": 5, "completion_tokens": 7}}, 12, 7),  # SGLang
        # Converse: what was written to the cache is input, what was read from it is free.
        (usage(inputTokens=5, outputTokens=7, totalTokens=12), 12, 7),
        (
            usage(
                inputTokens=5,
                cacheWriteInputTokens=100,
                cacheReadInputTokens=1000,
                outputTokens=7,
                totalTokens=1112,
            ),
            112,
            7,
        ),
        # Ollama's own API: a prompt that it has in its cache isn't counted.
        ({"prompt_eval_count": 5, "eval_count": 7, "response": "…"}, 12, 7),
        ({"eval_count": 7, "response": "…"}, 7, 7),
        ({"prompt_eval_count": 5, "embeddings": []}, 5, 0),
        (usage(prompt_tokens=5, input_tokens=5), 5, 0),
        (usage(total_tokens=None, prompt_tokens=5, completion_tokens=None), 5, 0),
        (usage(total_tokens=9), 9, None),
        (usage(total_tokens=9, completion_tokens=4), 9, 4),
        (usage(total_tokens=9, completion_tokens=40), 9, 9),
        (usage(total_tokens=9, prompt_tokens=40), 9, 0),
        (usage(total_tokens=9, prompt_tokens="5"), 9, None),
        (usage(total_tokens=12.0), 12, None),
        (usage(total_tokens=0), 0, None),
        *((usage(total_tokens=odd), None, None) for odd in ("12", -1, math.nan, math.inf, True)),
        *(({"usage": odd}, None, None) for odd in (None, {}, [])),
        *((odd, None, None) for odd in ({"input_tokens": 5}, [], None)),
        ({"usage": None, "output_tokens": 5}, None, None),
    ],
)
def test_tokens_are_read_from_every_providers_usage(
    answer: Any, used: int | None, output: int | None
) -> None:
    """The total if there is one, otherwise the sum of the parts. All that isn't input is output."""
    assert read_usage(answer) == (used, output)
    assert used_tokens(answer) == used


COUNTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
USAGES = st.dictionaries(
    st.sampled_from(
        [
            *("total_tokens", "prompt_tokens", "completion_tokens", "input_tokens"),
            "output_tokens",
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


@pytest.mark.parametrize(
    ("answer", "use"),
    [
        (usage(**OPENAI, prompt_tokens_details=CACHED), Use(12, 5, 7, 3)),
        (usage(**OPENAI, prompt_tokens_details={"cache_write_tokens": 2}), Use(12, 5, 7, 0, 2)),
        (usage(**OPENAI, prompt_tokens_details=CACHED | {"audio_tokens": 1}), Use(12, 5, 7, 3)),
        (usage(**OPENAI, prompt_tokens_details={"cached_tokens": None}), Use(12, 5, 7)),
        (usage(**OPENAI, prompt_cache_hit_tokens=2), Use(12, 5, 7, 2)),  # DeepSeek's
        (usage(prompt_tokens=5, total_tokens=5), Use(5, 5, 0)),
        (usage(total_tokens=12), Use(12, 12, 0, is_split=False)),
        (usage(prompt_tokens=0, completion_tokens=0, total_tokens=0), None),
        (usage(input_tokens=9, output_tokens=4, input_tokens_details=CACHED), Use(13, 9, 4, 3)),
        (gemini(**GEMINI, cachedContentTokenCount=2), Use(16, 5, 11, 2)),
        (usage(inputTokens=5, outputTokens=7, cacheReadInputTokens=40), Use(12, 45, 7, 40)),
        # BerriAI/litellm#9812: tokens that are written to a cache are not plain ones, too.
        (
            usage(
                input_tokens=3,
                cache_creation_input_tokens=12304,
                cache_read_input_tokens=0,
                output_tokens=550,
            ),
            Use(12857, 12307, 550, 0, 12304),
        ),
        (
            usage(
                input_tokens=3,
                cache_creation_input_tokens=300,
                cache_read_input_tokens=1000,
                cache_creation={"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
                output_tokens=5,
            ),
            Use(308, 1303, 5, 1000, 100, 200),
        ),
        # BerriAI/litellm#11364: a gateway counts them within the prompt, and says them twice.
        (
            usage(
                prompt_tokens=98805,
                completion_tokens=5120,
                total_tokens=103925,
                prompt_tokens_details={"cached_tokens": 66360, "cache_creation_tokens": 32435},
                cache_read_input_tokens=66360,
                cache_creation_input_tokens=32435,
            ),
            Use(103925, 98805, 5120, 66360, 32435),
        ),
        ({"id": "a"}, None),
        (None, None),
    ],
)
def test_what_an_answer_used_is_read_as_it_is_priced(answer: Any, use: Use | None) -> None:
    """The prompt is whole, and the cache's parts of it are told apart."""
    assert read_use(answer) == use
    assert read_use(None, json.dumps(answer).encode()) in (use, None)


def test_tokens_that_may_be_of_the_answer_cost_what_is_dearer() -> None:
    """A sum alone doesn't tell them apart."""
    for rates in ((1.0, 10.0), (10.0, 1.0)):
        price = Price(steps=((-1, Rates(rates[0], rates[1], 0.5, 1.0, 1.0)),))
        assert Use(12, 12, 0, is_split=False).cost(price) == pytest.approx(12 * 10 / 1e6)


def test_the_usage_of_a_text_that_is_not_parsed_is_found() -> None:
    """A text in it that looks like one has its quotes escaped."""
    text = {"text": '"usage": {"total_tokens": 1}', "usage": OPENAI, "data": [0.1, 0.2]}
    assert read_use(None, json.dumps(text).encode()) == Use(12, 5, 7)
    assert read_use(None, b'{"usage": {"total_tokens": 1') is None
