"""Good answers, shaped like the real ones and the same for the same request.

A text answer echoes the first words of the request's last text, and a vector comes from a hash of
its input: so whoever reads the results can check that each belongs to its request.
"""

from __future__ import annotations

import base64
import json
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any, Protocol

from parallel_processor.models import Endpoint
from parallel_processor.simulator.native_answers import (
    ASKED,
    CHATS,
    VECTORS,
    Said,
    cap_of,
    inputs_of,
)

_ECHOED_WORDS = 12


class TokenCounting(Protocol):
    """What the simulator needs of a `TokenCounter`; the sum of both is what a request costs."""

    def input_tokens(self, body: dict[str, Any], endpoint: Endpoint) -> int:
        """Return the tokens of what a request says."""
        ...

    def output_tokens(self, body: dict[str, Any], endpoint: Endpoint) -> int:
        """Return the tokens reserved for its answers."""
        ...


def model_of(body: dict[str, Any]) -> str:
    """Return the model that a request names; what is no text is not repeated."""
    model = body.get("model")
    return model if isinstance(model, str) else "sim"


@dataclass(slots=True, kw_only=True)
class Question:
    """What is asked and how to answer: `read` input tokens, `length` tokens if not as it comes."""

    body: dict[str, Any]
    model: str
    number: int
    read: int
    length: int | None


class Answerer:
    """Writes answers. Safe to call from any thread.

    Without `answer_tokens` an answer's usage is what its text has; with it, half as much to one and
    a half times as much, by the digest of the request, and its text is as short as before.
    """

    def __init__(
        self, counter: TokenCounting, *, embedding_dimensions: int, answer_tokens: int | None = None
    ) -> None:
        self._counter = counter
        self._dimensions = embedding_dimensions
        self._answer_tokens = answer_tokens

    def answer(
        self, body: dict[str, Any], endpoint: Endpoint, *, number: int, read: int, digest: int
    ) -> tuple[bytes, int]:
        """Answer a request of `read` input tokens; return JSON, and its number of output tokens.

        Its ids are made from `number`.
        """
        question = Question(
            body=body,
            model=model_of(body),
            number=number,
            read=read,
            length=_varied(self._answer_tokens, digest),
        )
        if endpoint in CHATS or endpoint in VECTORS:
            return self._native(question, endpoint)
        if endpoint is Endpoint.EMBEDDINGS:
            content = self._embeddings(question)
        elif endpoint is Endpoint.MODERATIONS:
            content = _moderations(question)
        elif endpoint is Endpoint.IMAGES:
            content = _images(question)
        elif endpoint is Endpoint.RESPONSES:
            content = self._response(question)
        elif endpoint is Endpoint.COMPLETIONS:
            content = self._completion(question)
        elif endpoint is Endpoint.MESSAGES:
            content = self._message(question)
        else:
            content = self._chat(question)
        usage = content.get("usage", {})
        written = usage.get("completion_tokens") or usage.get("output_tokens") or 0
        return json.dumps(content).encode(), written

    def _text(self, question: Question, source: Any, cap: int | None) -> tuple[str, int, bool]:
        """Return an answer's text, its tokens, and whether `cap` cut it short."""
        words = next(_texts(source), "")[:400].split()[:_ECHOED_WORDS] or ["ok"]
        if question.length is not None:
            tokens = question.length if cap is None else min(question.length, cap)
            return " ".join(words), tokens, tokens < question.length
        for kept in range(len(words), 0, -1):
            text = " ".join(words[:kept])
            counted = {"model": question.model, "input": text}
            tokens = self._counter.input_tokens(counted, Endpoint.EMBEDDINGS)
            if cap is None or tokens <= cap:
                return text, tokens, kept < len(words)
        return "ok", 1, True

    def _native(self, question: Question, endpoint: Endpoint) -> tuple[bytes, int]:
        """Return what an API with a form of its own answers."""
        body = question.body
        if endpoint in VECTORS:
            inputs = inputs_of(body)
            vectors = [embedding(each, self._dimensions) for each in inputs]
            return json.dumps(VECTORS[endpoint](inputs, vectors, question.read)).encode(), 0
        asked = next((body[name] for name in ASKED if name in body), body)
        text, written, cut = self._text(question, asked, cap_of(body))
        said = Said(question.model, text, question.read, written, cut, question.number)
        return json.dumps(CHATS[endpoint](said)).encode(), written

    def _chat(self, question: Question) -> dict[str, Any]:
        body = question.body
        cap = _largest(body, "max_completion_tokens", "max_tokens")
        text, tokens, cut = self._text(question, body.get("messages", body), cap)
        finish = "length" if cut else "stop"
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
            for index in range(_choices(body))
        ]
        return {
            "id": f"chatcmpl-{question.number:024d}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": question.model,
            "choices": choices,
            "usage": _usage(question.read, tokens * len(choices)),
        }

    def _completion(self, question: Question) -> dict[str, Any]:
        body = question.body
        cap = _largest(body, "max_tokens") or 16
        choices: list[dict[str, Any]] = []
        written = 0
        for prompt in _inputs(body.get("prompt")):
            text, tokens, cut = self._text(question, prompt, cap)
            for _ in range(_choices(body)):
                finish = "length" if cut else "stop"
                choice = {"text": text, "index": len(choices), "logprobs": None}
                choices.append(choice | {"finish_reason": finish})
                written += tokens
        return {
            "id": f"cmpl-{question.number:024d}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": question.model,
            "choices": choices,
            "usage": _usage(question.read, written),
        }

    def _response(self, question: Question) -> dict[str, Any]:
        body = question.body
        cap = _largest(body, "max_output_tokens")
        text, tokens, cut = self._text(question, body.get("input"), cap)
        status = "incomplete" if cut else "completed"
        message = {
            "id": f"msg_{question.number:024d}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }
        return {
            "id": f"resp_{question.number:024d}",
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": question.model,
            "output": [message],
            "usage": {
                "input_tokens": question.read,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": question.read + tokens,
            },
        }

    def _message(self, question: Question) -> dict[str, Any]:
        body = question.body
        cap = _largest(body, "max_tokens")
        text, tokens, cut = self._text(question, body.get("messages"), cap)
        return {
            "id": f"msg_{question.number:024d}",
            "type": "message",
            "role": "assistant",
            "model": question.model,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "max_tokens" if cut else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": question.read, "output_tokens": tokens},
        }

    def _embeddings(self, question: Question) -> dict[str, Any]:
        body = question.body
        size = min(_largest(body, "dimensions") or self._dimensions, 4_096)
        packed = body.get("encoding_format") == "base64"
        data: list[dict[str, Any]] = []
        for index, text in enumerate(_inputs(body.get("input"))):
            vector: Any = embedding(text, size)
            if packed:
                vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": question.read, "total_tokens": question.read}
        return {"object": "list", "data": data, "model": question.model, "usage": usage}


def embedding(text: Any, dimensions: int) -> list[float]:
    """Return the vector of an input, of length 1 to six digits; equal inputs have equal vectors."""
    source = text if isinstance(text, str) else json.dumps(text)
    hashed = shake_128(source.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    raw = struct.unpack(f"<{dimensions}h", hashed)
    length = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [round(value / length, 6) for value in raw]


def _moderations(question: Question) -> dict[str, Any]:
    scores = {"harassment": 0.0, "hate": 0.0, "self-harm": 0.0, "sexual": 0.0, "violence": 0.0}
    result = {
        "flagged": False,
        "categories": dict.fromkeys(scores, False),
        "category_scores": scores,
    }
    results = [result for _ in _inputs(question.body.get("input"))]
    return {"id": f"modr-{question.number:024d}", "model": question.model, "results": results}


def _images(question: Question) -> dict[str, Any]:
    image = {"b64_json": base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()}
    return {"created": int(time.time()), "data": [image] * _choices(question.body)}


def _varied(tokens: int | None, digest: int) -> int | None:
    """Return half to one and a half times as many tokens, the same for the same digest."""
    return None if tokens is None else max(1, tokens // 2 + digest % (tokens + 1))


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _inputs(value: Any) -> list[Any]:
    """Split what may be one input or a list of them; a list of numbers is one input, in tokens."""
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return value
    return [value]


def _texts(value: Any) -> Iterator[str]:
    """Find the texts in messages, items and their parts, the last message first."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in reversed(value):
            yield from _texts(element)
    elif isinstance(value, dict):
        for key in ("content", "parts", "text", "input", "prompt"):
            yield from _texts(value.get(key))


def _largest(body: dict[str, Any], *names: str) -> int | None:
    """Return the largest of the fields that hold a positive whole number."""
    values = (body.get(name) for name in names)
    return max((v for v in values if type(v) is int and v > 0), default=None)


def _choices(body: dict[str, Any]) -> int:
    """Return how many answers `n` asks for, at most the API's 128."""
    return min(_largest(body, "n") or 1, 128)
