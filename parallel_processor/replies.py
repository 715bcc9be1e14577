"""Reads what people look for in a response of any endpoint: its text, its embeddings, its usage.

Each function takes the parsed JSON of a response, of any shape, and returns ``None`` for what isn't
there. The shapes are those of OpenAI's chat, responses, completions and embeddings, and of
Anthropic's messages.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from typing import Any


def response_text(response: Any) -> str | None:
    """The text of a response, of its first choice if there are several. ``None`` if it has none.

    >>> response_text({"choices": [{"message": {"role": "assistant", "content": "Yes."}}]})
    'Yes.'
    """
    if not isinstance(response, Mapping):
        return None
    for choice in mappings(response.get("choices"))[:1]:  # chat, completions
        message = choice.get("message")
        content = message.get("content") if isinstance(message, Mapping) else choice.get("text")
        return content if isinstance(content, str) else _joined(mappings(content))
    items = [item for item in mappings(response.get("output")) if "content" in item]  # responses
    if items:
        return _joined(part for item in items for part in mappings(item["content"]))
    return _joined(mappings(response.get("content")))  # messages


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
    data = mappings(response.get("data")) if isinstance(response, Mapping) else []
    rows = sorted((row for row in data if "embedding" in row), key=_index)
    vectors = [_vector(row["embedding"]) for row in rows]
    return [vector for vector in vectors if vector is not None] or None


def _index(row: Mapping[str, Any]) -> int:
    index = row.get("index")
    return index if isinstance(index, int) else 0


def _vector(value: Any) -> list[float] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return None
    try:
        return [
            number for (number,) in struct.iter_unpack("<f", base64.b64decode(value, validate=True))
        ]
    except (binascii.Error, struct.error):
        return None


def response_usage(response: Any) -> Mapping[str, Any] | None:
    """What a response says about the tokens that it used, in its own form; ``None`` if it says nothing."""
    usage = response.get("usage") if isinstance(response, Mapping) else None
    return usage if isinstance(usage, Mapping) else None


def mappings(values: Any) -> list[Mapping[str, Any]]:
    """The objects in the list ``values``; an empty list if it is no list."""
    return [v for v in values if isinstance(v, Mapping)] if isinstance(values, list) else []
