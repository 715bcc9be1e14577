"""Estimates what a request may cost in tokens: its prompt, and the output that it may get.

Servers admit a request by the most that it may cost. OpenAI documents the larger of ``max_tokens``
and an estimate of the prompt. Azure documents the prompt, ``max_tokens`` and ``best_of``. Their
formulas are not published. The cost here is the conservative reading of both::

    chat         prompt + n * (larger of max_tokens and max_completion_tokens, else the default)
    completions  prompts + number of prompts * max(n, best_of) * (max_tokens, else 16)
    responses    input + (max_output_tokens, else the default)
    messages     prompt + (max_tokens, else the default)
    other chats  prompt + (the largest output that it names, else the default) * candidateCount
    embeddings, moderations, reranking   input
    unknown      everything that is in it + the largest output that it names

What a server adds from its own store (``previous_response_id``, ``conversation``, files) can't be
counted. Texts for Claude, Gemini, Llama … are counted with OpenAI's encodings: an estimate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint, model_name
from parallel_processor.tokens.content import PER_MESSAGE, PER_REPLY, ContentCounter
from parallel_processor.tokens.encodings import (
    base_model_name,
    check_encoding_name,
    encoding_for_model,
    text_counter,
)

# A larger cap is counted as this. No model writes more, and a cap that only means "no limit", such
# as 2**31 - 1, must not delay the requests behind it for hours.
MAX_OUTPUT_TOKENS = 1_000_000
MAX_CHOICES = 128  # the API's maximum of ``n``; it rejects larger values, which are counted as this
_COMPLETION_OUTPUT_TOKENS = 16  # the API's own default
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_OTHER_CAPS = (
    *(*_CAPS, "max_new_tokens", "max_tokens_to_sample", "maxOutputTokens", "maxTokens"),
    "num_predict",
)
_OTHER_CAPS_IN = ("generationConfig", "inferenceConfig", "parameters", "options", "sampling_params")

# Endpoints of the providers' own: those that chat, and those whose answers have no text.
_CHATS = {
    *(Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.GENERATE_CONTENT, Endpoint.CONVERSE),
    *(Endpoint.COHERE_CHAT, Endpoint.OLLAMA_CHAT),
}
_WITHOUT_OUTPUT = {
    *(Endpoint.EMBEDDINGS, Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.RERANK),
    *(Endpoint.EMBED_CONTENT, Endpoint.BATCH_EMBED_CONTENTS, Endpoint.COHERE_EMBED),
    *(Endpoint.OLLAMA_EMBED, Endpoint.TEI_EMBED),
}
_INPUTS = ("input", "inputs", "texts", "content", "query", "documents", "prompt", "system")


class TokenCounter:
    """Estimates what requests cost, in tokens. Any thread may call it.

    Args:
        encoding_name: the encoding for all requests. By default each has its model's encoding, or
            ``cl100k_base`` if that isn't known.
        default_output_tokens: what is reserved for a request that doesn't bound its response.

    Raises :class:`ConfigurationError` for an encoding that doesn't exist, or a negative default.
    Counting never raises, whatever JSON a body holds. The first use of an encoding loads it, which
    takes 0.15 to 0.3 s.
    """

    def __init__(
        self, *, encoding_name: str | None = None, default_output_tokens: int = 16
    ) -> None:
        if encoding_name is not None:
            check_encoding_name(encoding_name)
        if default_output_tokens < 0:
            raise ConfigurationError(
                f"default_output_tokens is {default_output_tokens!r}: it must be 0 or more"
            )
        self._encoding_name = encoding_name
        self._default_output_tokens = default_output_tokens

    def input_tokens(self, body: Mapping[str, Any], endpoint: Endpoint, model: str = "") -> int:
        """The prompt's tokens, with tools, images and the like.

        ``model`` is that of a body which names none.
        """
        content = _content_counter(self._encoding_name, model_name(body) or model)
        if endpoint in _CHATS:
            return _chat_input(content, body)
        if endpoint is Endpoint.RESPONSES:
            return _responses_input(content, body)
        if endpoint is Endpoint.COMPLETIONS:
            prompts = _inputs(content, body.get("prompt", "<|endoftext|>"))
            return prompts + content.content(body.get("suffix"))
        if endpoint is Endpoint.BATCH_EMBED_CONTENTS and isinstance(body.get("requests"), list):
            return sum(_all_inputs(content, each) for each in body["requests"])
        if endpoint is not Endpoint.UNKNOWN and not body.keys().isdisjoint(_INPUTS):
            return _all_inputs(content, body)
        # An unknown API, or one with another name for the input.
        return content.json({key: body[key] for key in body if key != "model"})

    def output_tokens(self, body: Mapping[str, Any], endpoint: Endpoint) -> int:
        """The tokens to reserve for the response, with all its choices."""
        cap = self.output_cap(body, endpoint)
        return self.usual_output(body, endpoint) if cap is None else cap

    def usual_output(self, body: Mapping[str, Any], endpoint: Endpoint) -> int:
        """The tokens to reserve for a response that the request doesn't bound, with all its choices."""
        if endpoint is Endpoint.UNKNOWN:
            return 0
        return _answers(body, endpoint) * self._default_output_tokens

    def output_cap(self, body: Mapping[str, Any], endpoint: Endpoint) -> int | None:
        """The most tokens that the response may have, all choices together; ``None`` if not bounded."""
        if endpoint is Endpoint.CHAT:
            cap = _largest_cap(body, ("max_tokens", "max_completion_tokens"))
            return None if cap is None else _answers(body, endpoint) * cap
        if endpoint is Endpoint.COMPLETIONS:
            cap = _largest_cap(body, ("max_tokens",))
            each = _COMPLETION_OUTPUT_TOKENS if cap is None else cap
            return _prompts(body.get("prompt")) * _choices(body, "n", "best_of") * each
        if endpoint is Endpoint.RESPONSES:
            return _largest_cap(body, ("max_output_tokens",))
        if endpoint is Endpoint.MESSAGES:
            return _largest_cap(body, ("max_tokens",))
        if endpoint in _WITHOUT_OUTPUT:
            return 0
        nested = (body.get(key) for key in _OTHER_CAPS_IN)
        places = (body, *(place for place in nested if isinstance(place, dict)))
        caps = (_largest_cap(place, _OTHER_CAPS) for place in places)
        cap = max((cap for cap in caps if cap is not None), default=None)
        return None if cap is None else _answers(body, endpoint) * cap


@functools.lru_cache(maxsize=256)
def _content_counter(encoding_name: str | None, model: str) -> ContentCounter:
    name = encoding_for_model(model) if encoding_name is None else encoding_name
    return ContentCounter(text_counter(name), base_model_name(model))


def _answers(body: Mapping[str, Any], endpoint: Endpoint) -> int:
    """How many answers a chat asks for."""
    if endpoint is Endpoint.CHAT:
        return _choices(body, "n")
    config = body.get("generationConfig") if endpoint is Endpoint.GENERATE_CONTENT else None
    return _choices(config, "candidateCount") if isinstance(config, dict) else 1


def _chat_input(content: ContentCounter, body: Mapping[str, Any]) -> int:
    total = PER_REPLY + content.messages(body.get("messages", body.get("contents")))
    if body.get("documents"):  # Cohere's, vLLM's
        total += content.json(body["documents"])
    if "system" in body:  # Anthropic's, Bedrock's
        total += PER_MESSAGE + _instructions(content, body["system"])
    for name in ("systemInstruction", "system_instruction"):  # Gemini's
        if instruction := body.get(name):
            total += content.messages([instruction])
    for name in ("responseSchema", "responseJsonSchema"):
        total += _schema(content, body.get("generationConfig"), name)
    total += content.json(body["toolConfig"]["tools"]) if _has_tools(body.get("toolConfig")) else 0
    total += content.functions(body.get("tools")) + content.functions(body.get("functions"))
    return total + _schema(content, body.get("response_format"), "json_schema")


def _has_tools(config: Any) -> bool:
    """True for the tools in Bedrock's form."""
    return isinstance(config, dict) and bool(config.get("tools"))


def _responses_input(content: ContentCounter, body: Mapping[str, Any]) -> int:
    total = PER_REPLY + content.items(body.get("input"))
    if body.get("instructions") is not None:
        total += PER_MESSAGE + _instructions(content, body["instructions"])
    total += content.functions(body.get("tools"))
    # The prompt is a template on the server; only the variables for it are here.
    total += _schema(content, body.get("prompt"), "variables")
    return total + _schema(content, body.get("text"), "format")


def _instructions(content: ContentCounter, value: Any) -> int:
    return content.repeated(value) if isinstance(value, str) else content.content(value)


def _schema(content: ContentCounter, value: Any, key: str) -> int:
    """The tokens of the JSON at ``value[key]``; 0 if there is none."""
    inner = value.get(key) if isinstance(value, dict) else None
    return content.json(inner) if isinstance(inner, dict) else 0


def _inputs(content: ContentCounter, value: Any) -> int:
    """The tokens of a text, a list of texts, a list of tokens, or any mixture, nested once."""
    if not isinstance(value, list):
        return content.content(value)
    if _are_tokens(value):
        return len(value)
    return sum(
        len(item) if isinstance(item, list) and _are_tokens(item) else content.content(item)
        for item in value
    )


def _all_inputs(content: ContentCounter, body: Any) -> int:
    """The tokens of all that is an input under one of its names."""
    if not isinstance(body, Mapping):
        return content.json(body)
    images = content.json(body["images"]) if body.get("images") else 0
    return images + sum(_inputs(content, body[name]) for name in _INPUTS if name in body)


def _prompts(prompt: Any) -> int:
    """The number of prompts of a completion. A list of tokens is one prompt."""
    return len(prompt) if isinstance(prompt, list) and prompt and not _are_tokens(prompt) else 1


def _are_tokens(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int}


def _choices(body: Mapping[str, Any], *names: str) -> int:
    counts = [value for value in map(body.get, names) if type(value) is int]
    return min(max(1, *counts), MAX_CHOICES) if counts else 1


def _largest_cap(body: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """The largest of ``body[name]`` that a server may read as a number of tokens; else ``None``.

    Negative numbers, NaN, infinities, bools and strings are none.
    """
    usable = [
        min(value, MAX_OUTPUT_TOKENS)
        for value in [body[name] for name in names if name in body]
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    ]
    return math.ceil(max(usable)) if usable else None
