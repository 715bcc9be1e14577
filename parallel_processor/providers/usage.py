"""Reads how many tokens a response used, in the words of every provider."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard

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

_PLAIN = {
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "completion_tokens_details"),
}
_PLAIN_DETAILS = {"cached_tokens", "audio_tokens", "text_tokens", "image_tokens"}

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


class TokenPrice(Protocol):
    """What tokens cost."""

    def cost(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
    ) -> float:
        """What a request costs."""
        ...


class Use(NamedTuple):
    """The tokens that an answer used, as they are priced."""

    used_tokens: int  # as used_tokens() has them
    input_tokens: int  # the whole prompt, cached or not
    output_tokens: int
    cached_tokens: int = 0  # of the prompt: read from the server's cache
    cache_write_tokens: int = 0  # of the prompt: written to it
    cache_write_1h_tokens: int = 0  # the same, to be kept for an hour
    is_split: bool = True  # false if only the sum is known, which is in input_tokens

    def cost(self, price: TokenPrice) -> float:
        """What they cost. Tokens that may be of the prompt or of the answer cost what is dearer."""
        if not self.is_split:
            return max(price.cost(self.used_tokens, 0), price.cost(0, self.used_tokens))
        return price.cost(*self[1:-1])


_DECODER = json.JSONDecoder()


def text_member(body: bytes, name: str) -> Any:
    """The value of the last member ``name`` in a JSON text, which is not parsed; ``None`` without one."""
    key = f'"{name}"'.encode()  # in a string, its quotes would have backslashes
    if (place := body.rfind(key)) < 0:
        return None
    text = body[place + len(key) :].decode("utf-8", "replace").lstrip(" \t\r\n:")
    try:
        return _DECODER.raw_decode(text)[0]
    except ValueError:
        return None


def read_use(data: Any, body: bytes = b"") -> Use | None:
    """What a response used; ``None`` if it doesn't say, or says nothing but zeros.

    ``body`` is its text, for one that isn't parsed.
    """
    if data is None:
        data = {name: text_member(body, name) for name in ("usage", "usageMetadata")}
    usage = data.get("usage") if type(data) is dict else None
    if type(usage) is dict and (use := _plain(usage)) is not None:
        return use
    used, output = read_usage(data)
    if not used:  # a gateway that doesn't count says 0
        return None
    if output is None:
        return Use(used, used, 0, is_split=False)
    usage = data.get("usage") or data.get("usageMetadata") or {}
    usage = usage if isinstance(usage, Mapping) else {}
    leaves_out = not usage.keys().isdisjoint(("cache_read_input_tokens", "cacheReadInputTokens"))
    if leaves_out and usage.keys().isdisjoint(("prompt_tokens", "total_tokens")):
        return _as_anthropics(usage, used, output)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    details = details if isinstance(details, Mapping) else usage
    names = ("cached_tokens", "cachedContentTokenCount", "prompt_cache_hit_tokens")
    cached = min(_first(details, names) or _first(usage, names), used - output)
    writes = ("cache_write_tokens", "cache_creation_tokens")
    written = _first(details, writes) or _first(usage, ("cache_creation_input_tokens",))
    written = min(written, used - output - cached)
    return Use(used, used - output, output, cached, written)


def _plain(usage: dict[str, Any]) -> Use | None:
    """Of a usage object as nearly every answer has it, without a walk through all other forms."""
    given, total = usage.get("prompt_tokens"), usage.get("total_tokens")
    if not (type(given) is int and type(total) is int and 0 <= given <= total < _MOST and total):
        return None
    details = usage.get("prompt_tokens_details")
    if not usage.keys() <= _PLAIN:
        return None
    if not details:
        return Use(total, given, total - given)
    if type(details) is not dict or not details.keys() <= _PLAIN_DETAILS:
        return None
    cached = details.get("cached_tokens") or 0
    return (
        Use(total, given, total - given, cached)
        if type(cached) is int and 0 <= cached <= given
        else None
    )


def _as_anthropics(usage: Mapping[str, Any], used: int, output: int) -> Use:
    """Of a usage object whose ``input_tokens`` leave out what was read from the cache."""
    cached = _first(usage, ("cache_read_input_tokens", "cacheReadInputTokens"))
    written = _first(usage, ("cache_creation_input_tokens", "cacheWriteInputTokens"))
    created = usage.get("cache_creation")
    long = _first(created, ("ephemeral_1h_input_tokens",)) if isinstance(created, Mapping) else 0
    long = min(long, written)
    return Use(used, used - output + cached, output, cached, written - long, long)


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((int(n) for name in names if _is_count(n := usage.get(name))), 0)


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
