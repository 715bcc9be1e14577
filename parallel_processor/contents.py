"""What an answer holds: its text, its vectors and its usage, wherever its provider puts them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from typing import Any


def response_text(response: Any) -> str | None:
    """The text of a response, of its first choice if there are several. ``None`` if it has none.

    >>> response_text({"choices": [{"message": {"role": "assistant", "content": "Yes."}}]})
    'Yes.'
    """
    if isinstance(response, list):  # TGI's root endpoint
        response = response[0] if response else None
    if not isinstance(response, Mapping):
        return None
    for choice in mappings(response.get("choices"))[:1]:  # chat, completions
        return _text_of(choice.get("message"), choice.get("text"))
    for candidate in mappings(response.get("candidates"))[:1]:  # Gemini
        content = candidate.get("content")
        parts = mappings(content.get("parts")) if isinstance(content, Mapping) else []
        return _joined({"type": "text"} | dict(part) for part in parts if not part.get("thought"))
    if isinstance(output := response.get("output"), Mapping):  # Converse
        message = output.get("message")
        content = message.get("content") if isinstance(message, Mapping) else None
        return _joined({"type": "text"} | dict(part) for part in mappings(content))
    if isinstance(text := response.get("generated_text"), str):  # TGI
        return text
    if "meta_info" in response and isinstance(text := response.get("text"), str):  # SGLang
        return text
    if "done" in response:  # Ollama
        return _text_of(response.get("message"), response.get("response"))
    items = [item for item in mappings(response.get("output")) if "content" in item]  # responses
    if items:
        return _joined(part for item in items for part in mappings(item["content"]))
    if isinstance(message := response.get("message"), Mapping):  # Cohere
        return _text_of(message, None)
    return _joined(mappings(response.get("content")))  # messages


def response_tier(response: Any) -> str | None:
    """The service tier that answered, as the response names it; ``None`` if it doesn't."""
    if not isinstance(response, Mapping):
        return None
    if type(name := response.get("service_tier")) is str and name:
        return name
    usage, metadata = response.get("usage"), response.get("usageMetadata")
    places = [name, response.get("serviceTier")]
    if isinstance(usage, Mapping):
        places.append(usage.get("service_tier"))
    if isinstance(metadata, Mapping):
        places.append(metadata.get("trafficType"))
    for place in places:
        name = place.get("type") if isinstance(place, Mapping) else place
        if isinstance(name, str) and name:
            return name
    return None


def _text_of(message: Any, text: Any) -> str | None:
    """The content of ``message``, and ``text`` if there is no message."""
    content = message.get("content") if isinstance(message, Mapping) else text
    return content if isinstance(content, str) else _joined(mappings(content))


def _joined(parts: Iterable[Mapping[str, Any]]) -> str | None:
    """The parts that are text, joined. A model's reasoning is not text."""
    texts = [part.get("text") for part in parts if part.get("type") in ("text", "output_text")]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found else None


def response_embeddings(response: Any) -> list[list[float]] | None:
    """The vectors of an embeddings response in the order of its inputs; ``None`` if it has none.

    Vectors in base64 (``"encoding_format": "base64"``) are 32-bit floats, little-endian.

    >>> response_embeddings({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]})
    [[1.0], [2.0]]
    """
    found: Any = response
    if isinstance(response, Mapping):  # OpenAI's, Ollama's and Gemini's names
        found = response.get("data") or response.get("embeddings") or [response]
        if isinstance(found, Mapping):  # Cohere's, by type
            found = found.get("float") or next(iter(found.values()), None)
    rows = [row for row in mappings(found) if "embedding" in row or "values" in row]
    vectors = [_vector(row.get("embedding", row)) for row in sorted(rows, key=_index)]
    if not rows and isinstance(found, list):  # bare vectors
        vectors = [row if isinstance(row, list) else None for row in found]
    return [vector for vector in vectors if vector is not None] or None


def _index(row: Mapping[str, Any]) -> int:
    return index if isinstance(index := row.get("index"), int) else 0


def _vector(value: Any) -> list[float] | None:
    if isinstance(value, Mapping):
        value = value.get("values")
    if not isinstance(value, str):
        return value if isinstance(value, list) else None
    try:
        packed = base64.b64decode(value, validate=True)
        return [number for (number,) in struct.iter_unpack("<f", packed)]
    except (ValueError, struct.error):
        return None


_OLLAMA_COUNTS = ("prompt_eval_count", "eval_count")  # at the top level of a native response


def response_usage(response: Any) -> Mapping[str, Any] | None:
    """What a response says about the tokens that it used, in its own form; ``None`` if it says nothing."""
    if not isinstance(response, Mapping):
        return None
    for name in ("usage", "usageMetadata", "meta", "meta_info"):  # Cohere's, SGLang's
        if isinstance(usage := response.get(name), Mapping) and usage:
            return usage
    counts = {name: response[name] for name in _OLLAMA_COUNTS if name in response}
    return counts or None


def mappings(values: Any) -> list[Mapping[str, Any]]:
    """The objects in the list ``values``; an empty list if it is no list."""
    return [v for v in values if isinstance(v, Mapping)] if isinstance(values, list) else []
