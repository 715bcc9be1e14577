"""Reads how many tokens a response used, in the words of every provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from parallel_processor.contents import response_usage

_GEMINI_INPUT = ("promptTokenCount", "toolUsePromptTokenCount")
# The fields of a usage object. Those of the first set that has a number are added up. Anthropic's
# input_tokens exclude the cache: tokens written to it count against the limit, tokens read don't.
_USAGE_FIELDS = (
    ("total_tokens",),
    ("totalTokenCount",),
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "cache_creation_input_tokens", "output_tokens"),
    ("inputTokens", "cacheWriteInputTokens", "outputTokens"),  # Converse: as Anthropic's
    (*_GEMINI_INPUT, "candidatesTokenCount", "thoughtsTokenCount"),
    ("prompt_eval_count", "eval_count"),  # Ollama
)
_INPUT_FIELDS = (
    ("prompt_tokens",),
    ("input_tokens", "cache_creation_input_tokens"),
    ("inputTokens", "cacheWriteInputTokens"),
    _GEMINI_INPUT,
    ("prompt_eval_count",),
)
_OUTPUT_FIELDS = (
    *("completion_tokens", "output_tokens", "outputTokens", "candidatesTokenCount", "eval_count"),
)

_MOST = 1e15  # larger numbers are none


def used_tokens(data: Any) -> int | None:
    """The tokens that a response used, input and output together; ``None`` if it doesn't say.

    Reads the fields of OpenAI, Anthropic, Gemini, Bedrock, Cohere and Ollama.
    """
    return read_usage(data)[0]


def read_usage(data: Any) -> tuple[int | None, int | None]:
    """All tokens that a response used, and the output's part; ``None`` for what it doesn't say."""
    usage = data.get("usage") if type(data) is dict else None
    if type(usage) is dict and "tokens" not in usage:
        total, given = usage.get("total_tokens"), usage.get("prompt_tokens")
        if type(total) is int and type(given) is int and 0 <= given <= total < _MOST:
            return total, total - given  # as nearly every answer says it
    if (usage := response_usage(data)) is None:
        return None, None
    if isinstance(usage.get("tokens"), Mapping):
        usage = usage["tokens"]  # Cohere's own API
    elif isinstance(usage.get("billed_units"), Mapping):
        usage = usage["billed_units"]  # Cohere's embeddings, which say nothing else
    for names in _USAGE_FIELDS:
        found = (usage.get(name) for name in names)
        counts = [int(count) for count in found if _is_count(count)]
        if counts:
            total = sum(counts)
            return total, _output(usage, total)
    return None, None


def cached_tokens(data: Any) -> int:
    """The tokens of a prompt that the server had in its cache, of those that ``usage`` counts."""
    usage = data.get("usage") if isinstance(data, Mapping) else None
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    count = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return int(count) if _is_count(count) else 0


def _output(usage: Mapping[str, Any], total: int) -> int | None:
    """How much of ``total`` is output: all but the input. So it includes a model's reasoning."""
    for names in _INPUT_FIELDS:
        if _is_count(usage.get(names[0])):
            counts = (usage.get(name) for name in names)
            return max(0, total - sum(int(count) for count in counts if _is_count(count)))
    outputs = [int(usage[name]) for name in _OUTPUT_FIELDS if _is_count(usage.get(name))]
    return min(sum(outputs), total) if outputs else None


def _is_count(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MOST
