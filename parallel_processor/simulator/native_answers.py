"""Good answers in the forms of the APIs that are not OpenAI's.

Sources: ai.google.dev/api (GenerateContentResponse, EmbedContentResponse), docs.aws.amazon.com
API_runtime_Converse, docs.cohere.com/reference (chat, embed, rerank), github.com/ollama/ollama docs/api.md,
huggingface.github.io text-generation-inference and text-embeddings-inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint


class Said(NamedTuple):
    """What a chat answers: its text, with how many tokens, and whether a cap cut it short."""

    model: str
    text: str
    read: int
    written: int
    cut: bool
    number: int


def _gemini(said: Said) -> Any:
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": said.text}]},
                "finishReason": "MAX_TOKENS" if said.cut else "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": said.read,
            "candidatesTokenCount": said.written,
            "totalTokenCount": said.read + said.written,
        },
        "modelVersion": said.model,
        "responseId": f"{said.number:024d}",
    }


def _converse(said: Said) -> Any:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": said.text}]}},
        "stopReason": "max_tokens" if said.cut else "end_turn",
        "usage": {
            "inputTokens": said.read,
            "outputTokens": said.written,
            "totalTokens": said.read + said.written,
        },
        "metrics": {"latencyMs": 1},
    }


def _cohere(said: Said) -> Any:
    """Bill less than was read: what Cohere puts before a prompt is free."""
    return {
        "id": f"{said.number:024d}",
        "finish_reason": "MAX_TOKENS" if said.cut else "COMPLETE",
        "message": {"role": "assistant", "content": [{"type": "text", "text": said.text}]},
        "usage": {
            "billed_units": {"input_tokens": max(0, said.read - 3), "output_tokens": said.written},
            "tokens": {"input_tokens": said.read, "output_tokens": said.written},
        },
    }


def _ollama(said: Said, holder: Mapping[str, Any]) -> Any:
    return {
        "model": said.model,
        "created_at": "2026-01-01T00:00:00Z",
        **holder,
        "done": True,
        "done_reason": "length" if said.cut else "stop",
        "prompt_eval_count": said.read,
        "eval_count": said.written,
    }


def _ollama_chat(said: Said) -> Any:
    return _ollama(said, {"message": {"role": "assistant", "content": said.text}})


def _ollama_generate(said: Said) -> Any:
    return _ollama(said, {"response": said.text})


def _tgi(said: Said) -> Any:
    return {"generated_text": said.text}


CHATS: Mapping[Endpoint, Callable[[Said], Any]] = {
    Endpoint.GENERATE_CONTENT: _gemini,
    Endpoint.CONVERSE: _converse,
    Endpoint.COHERE_CHAT: _cohere,
    Endpoint.OLLAMA_CHAT: _ollama_chat,
    Endpoint.OLLAMA_GENERATE: _ollama_generate,
    Endpoint.TGI_GENERATE: _tgi,
}
"""The answers that have a text."""

ASKED = ("contents", "messages", "prompt", "inputs")
"""Where such an endpoint's request has its text."""


def cap_of(body: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a request allows, under any of the names."""
    places = [body, *(body.get(name) for name in _CONFIGS)]
    found = [
        value
        for place in places
        if isinstance(place, dict)
        for name in _CAPS
        if type(value := place.get(name)) is int and value > 0
    ]
    return max(found, default=None)


_CONFIGS = ("generationConfig", "inferenceConfig", "options", "parameters")
_CAPS = ("maxOutputTokens", "maxTokens", "max_tokens", "num_predict", "max_new_tokens")


def _embed_content(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    return {"embedding": {"values": vectors[0] if vectors else []}}


def _batch_embed(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    return {"embeddings": [{"values": vector} for vector in vectors]}


def _cohere_embed(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    billed = {"billed_units": {"input_tokens": read}, "api_version": {"version": "2"}}
    return {"id": "sim", "embeddings": {"float": vectors}, "texts": inputs, "meta": billed}


def _ollama_embed(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    return {"model": "sim", "embeddings": vectors, "prompt_eval_count": read}


def _tei_embed(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    return vectors


def _rerank(inputs: list[Any], vectors: list[list[float]], read: int) -> Any:
    return [{"index": index, "score": 1 / (index + 1)} for index, _ in enumerate(inputs)]


VECTORS: Mapping[Endpoint, Callable[[list[Any], list[list[float]], int], Any]] = {
    Endpoint.EMBED_CONTENT: _embed_content,
    Endpoint.BATCH_EMBED_CONTENTS: _batch_embed,
    Endpoint.COHERE_EMBED: _cohere_embed,
    Endpoint.OLLAMA_EMBED: _ollama_embed,
    Endpoint.TEI_EMBED: _tei_embed,
    Endpoint.RERANK: _rerank,
}
"""The answers that have none."""


def inputs_of(body: Mapping[str, Any]) -> list[Any]:
    """Return what is to be embedded or ranked, each as one element."""
    if isinstance(requests := body.get("requests"), list):
        return [each.get("content") for each in requests if isinstance(each, dict)]
    names = (name for name in ("inputs", "input", "texts", "documents", "content") if name in body)
    found = body.get(next(names, ""))
    return found if isinstance(found, list) else [found]
