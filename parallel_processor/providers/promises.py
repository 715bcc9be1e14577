"""What an answer of each endpoint must hold, and what is missing in one that doesn't hold it.

A check returns what is missing, or ``None``; good answers pass quickly. Whatever an endpoint's own check
accepts, the one by shape accepts, too. A new endpoint is a row of ``_PROMISES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint
from parallel_processor.providers.claims import is_said, weak_claim, without_result
from parallel_processor.providers.dialects import endpoint_of

STREAMED = (
    'the server sends a stream unless the request has "stream": false: add that to the request'
)
POLLED = "the server has accepted the request, and the answer would have to be polled for"

Check = Callable[[Mapping[str, Any], "int | None"], "str | None"]

_PENDING = {
    *("pending", "queued", "in_queue", "in_progress", "processing", "running", "starting"),
    *("started", "submitted", "accepted", "waiting", "scheduled"),
}


def is_pending(data: Mapping[str, Any]) -> bool:
    """True for a state instead of a result: the answer would come later, elsewhere."""
    inner = data.get("output")
    for holder in (data, inner if isinstance(inner, dict) else {}):
        for name in ("status", "state", "task_status"):
            state = holder.get(name)
            if isinstance(state, str) and state.lower() in _PENDING:
                return data.get("object") == "response" or holder is inner or without_result(data)
    return False


# A half answer: the server broke off. "abort" is vLLM's word, the long one DeepSeek's.
_BROKEN = {"abort", "aborted", "cancelled", "failed", "insufficient_system_resource"}
_QUIET = (None, "", "stop", "end_turn", "eos")  # these don't explain why nothing was said
_NOT_SAID = {"role", "content", "name", "annotations", "provider_specific_fields"}


def _choices(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Chat and completions: each choice has a message or a text, and none broke off."""
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        return "the answer has no choices"
    for choice in choices:
        if not isinstance(choice, dict):
            return "a choice is no object"
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and (finish in _BROKEN or "error" in finish):
            return f"the answer broke off: finish_reason is {finish!r}"
        if "error" in choice and is_said(choice["error"]):
            return "a choice is an error"
        message = choice.get("message")
        if isinstance(message, dict):
            if message.get("content") is None and finish in _QUIET and _says_nothing(message):
                return "a choice has a message without content"
        elif not isinstance(choice.get("text"), str):
            return STREAMED if "delta" in choice else "a choice has neither message nor text"
    return None


def _says_nothing(message: Mapping[str, Any]) -> bool:
    """True if there is no tool call, reasoning, refusal or other member either."""
    return not any(value for name, value in message.items() if name not in _NOT_SAID)


def _completions(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """Completions: at least a choice for each prompt; llama.cpp's own endpoint has one text."""
    if "choices" not in data and isinstance(data.get("content"), str):
        return None
    reason = _choices(data)
    if reason is None and inputs is not None and len(data["choices"]) < inputs:
        return f"{len(data['choices'])} texts for {inputs} prompts"
    return reason


def _output(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Responses: completed with some output, or incomplete."""
    status, output = data.get("status"), data.get("output")
    if status not in (None, "completed", "incomplete"):
        return f"the response has the status {status!r}"
    if isinstance(output, list) and (output or status == "incomplete"):
        return None
    return "the response has no output"


def _vectors(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """Embeddings: a vector for each input, none empty, each index once."""
    rows = data.get("data")
    if not isinstance(rows, list):
        return _bare_vectors(data, inputs)
    indexes = set()
    for row in rows:
        if not isinstance(row, dict):
            return "a row of the data is no object"
        if _is_empty(row.get("embedding")) and not row.get("embeddings"):
            return "a vector is empty"
        if type(index := row.get("index")) is int:
            indexes.add(index)
    count = len(rows)
    if not count or (inputs is not None and count != inputs):
        return _numbers(count, inputs)
    if indexes and (len(indexes) < count or max(indexes) - min(indexes) >= count):
        return "the indexes of the vectors don't count up: some are missing or there twice"
    return None


def _bare_vectors(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """Ollama's and Gemini's embeddings, which have a name of their own; Cohere's, by type."""
    vectors = data.get("embeddings")
    if isinstance(vectors, list):
        if any(_is_empty(vector) for vector in vectors):
            return "a vector is empty"
        count = len(vectors)
        is_wrong = not count or (inputs is not None and count != inputs)
        return _numbers(count, inputs) if is_wrong else None
    if isinstance(vectors, dict) and any(vectors.values()):
        faults = (_bare_vectors({"embeddings": each}, inputs) for each in vectors.values() if each)
        return next(filter(None, faults), None)
    if _is_empty(data.get("embedding")):
        return "the answer has no vectors"
    return None if inputs in (None, 1) else _numbers(1, inputs)


def _is_empty(vector: Any) -> bool:
    """True if there is no number in it; of a list, the first element tells."""
    if isinstance(vector, dict):  # Gemini
        vector = vector.get("values", vector)
    if not isinstance(vector, list):  # base64; vectors by type
        return not vector or not isinstance(vector, (str, dict))
    first = vector[0] if vector else None
    return first is None or first == [] or first != first


def _numbers(count: int, inputs: int | None) -> str:
    return "the answer has no vectors" if not inputs else f"{count} vectors for {inputs} inputs"


def _results(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """Moderations: a verdict for each input."""
    results = data.get("results")
    if not isinstance(results, list) or not results:
        return "the answer has no results"
    if not all(isinstance(result, dict) and result for result in results):
        return "a result is empty"
    if inputs is not None and len(results) != inputs:
        return f"{len(results)} results for {inputs} inputs"
    return None


def _content(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Anthropic's messages: content, which may be empty if the model had nothing to say."""
    content = data.get("content")
    if isinstance(content, list) and (content or data.get("stop_reason")):
        return None
    return None if content and isinstance(content, str) else "the message has no content"


def _candidates(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Gemini's own API: candidates with content, or the reason why there is none."""
    feedback = data.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        return None
    candidates = data.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        return "the answer has no candidates"
    for candidate in candidates:
        if not isinstance(candidate, dict):
            return "a candidate is no object"
        content, reason = candidate.get("content"), candidate.get("finishReason")
        if not (isinstance(content, dict) and content.get("parts")) and reason in _UNEXPLAINED:
            return f"a candidate has no content; its finishReason is {reason!r}"
    return None


# A filter or a full budget explains an empty candidate. These don't: another attempt helps.
_UNEXPLAINED = (
    *(None, "", "STOP", "OTHER", "FINISH_REASON_UNSPECIFIED"),
    *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"),
)


def _ollama(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Ollama's own chat and generate: a message or a text, and the end."""
    if data.get("done") is False:
        return STREAMED
    if data.get("done_reason") in ("load", "unload"):
        return f"the model did nothing but {data['done_reason']}: the request has no prompt"
    message = data.get("message")
    if isinstance(message, dict) and not message.keys().isdisjoint(("role", "content")):
        return None
    if isinstance(data.get("response"), str):
        return None
    return "the answer has neither message nor response"


def _converse(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Bedrock's Converse: a message, which may be empty if the model had nothing to say."""
    output = data.get("output")
    message = output.get("message") if isinstance(output, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    reason = data.get("stopReason")
    if content == [] and str(reason).startswith("malformed_"):
        return f"the message has no content; its stopReason is {reason!r}"
    if isinstance(content, list) and (content or reason):
        return None
    return "the answer has no output message with content"


def _cohere(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Cohere's chat: a message that says something, and didn't break off."""
    message, finish = data.get("message"), data.get("finish_reason")
    if isinstance(finish, str) and finish.startswith(("ERROR", "TIMEOUT")):
        return f"the answer broke off: finish_reason is {finish!r}"
    if not isinstance(message, dict):
        return "the answer has no message"
    if _says_nothing(message) and not message.get("content") and finish in (None, "COMPLETE"):
        return "the message has no content"
    return None


def _ranking(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Reranking: places of documents, under two names."""
    rows = data.get("results") or data.get("data")
    if not isinstance(rows, list) or not rows:
        return "the answer has no results"
    is_ranking = all(
        isinstance(row, dict) and "index" in row and _SCORES & row.keys() for row in rows
    )
    return None if is_ranking else "a result has no score"


_SCORES = {"relevance_score", "score"}


def _images(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """Images: each has its bytes, or a place where it is."""
    rows = data.get("data")
    if not isinstance(rows, list) or not rows:
        return "the answer has no images"
    has_all = all(isinstance(row, dict) and (row.get("b64_json") or row.get("url")) for row in rows)
    return None if has_all else "an image is missing"


def _generated(data: Mapping[str, Any], inputs: int | None = None) -> str | None:
    """TGI's own endpoint: a text."""
    has_text = isinstance(data.get("generated_text"), str)
    return None if has_text else "the answer has no generated_text"


def by_shape(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """An unknown endpoint: what the response's own shape promises, and no word of an error."""
    reasons = [check(data, inputs) for check in _shapes(data)]
    if None in reasons:
        return None
    if not reasons and weak_claim(data) is not None:
        reasons.append("the answer says that it is an error")
    if not reasons and is_pending(data):
        reasons.append(POLLED)
    if not reasons or any(check(data, inputs) is None for check in _CERTAIN):
        return None
    return reasons[0]


def _shapes(data: Mapping[str, Any]) -> Iterable[Check]:
    """The checks for the shapes that ``data`` has."""
    rows = data.get("data")
    if "choices" in data:
        yield _choices
    if "candidates" in data or "promptFeedback" in data:
        yield _candidates
    if data.get("object") == "response":
        yield _output
    if data.get("type") == "message" and "content" in data:
        yield _content
    if "results" in data and str(data.get("id")).startswith("modr"):
        yield _results
    if "done" in data and ("message" in data or "response" in data):
        yield _ollama
    first = rows[0] if isinstance(rows, list) and rows else None
    has_vectors = rows == [] or (isinstance(first, dict) and "embedding" in first)
    if has_vectors and data.get("object") == "list" and "usage" in data:
        yield _vectors


def _if_named(check: Check, *names: str) -> Check:
    """``check`` for what has one of ``names``; else by shape."""

    def checked(data: Mapping[str, Any], inputs: int | None) -> str | None:
        """What is missing."""
        return by_shape(data, inputs) if data.keys().isdisjoint(names) else check(data, inputs)

    return checked


class Promise(NamedTuple):
    """What an endpoint's answers hold."""

    check: Check
    list_name: str = ""  # where a server leaves out the object around a list, the list's name in it
    is_certain: bool = (
        True  # other servers may have an endpoint with the same end, and other answers
    )


_VECTORS = Promise(_vectors, "data")
_PROMISES: Mapping[Endpoint, Promise] = {
    Endpoint.CHAT: Promise(_choices),
    Endpoint.COMPLETIONS: Promise(_completions),
    Endpoint.RESPONSES: Promise(_output),
    Endpoint.EMBEDDINGS: _VECTORS,
    Endpoint.MODERATIONS: Promise(_results),
    Endpoint.IMAGES: Promise(_if_named(_images, "data"), is_certain=False),
    Endpoint.MESSAGES: Promise(_content),
    Endpoint.GENERATE_CONTENT: Promise(_candidates),
    Endpoint.EMBED_CONTENT: _VECTORS,
    Endpoint.BATCH_EMBED_CONTENTS: _VECTORS,
    Endpoint.CONVERSE: Promise(_converse),
    Endpoint.COHERE_CHAT: Promise(_cohere),
    Endpoint.COHERE_EMBED: _VECTORS,
    Endpoint.OLLAMA_CHAT: Promise(_ollama),
    Endpoint.OLLAMA_GENERATE: Promise(_ollama),
    Endpoint.OLLAMA_EMBED: _VECTORS,
    Endpoint.RERANK: Promise(_if_named(_ranking, "results", "data"), "results", is_certain=False),
    Endpoint.TEI_EMBED: Promise(
        _if_named(_vectors, "data", "embedding", "embeddings"), "embeddings", is_certain=False
    ),
    Endpoint.TGI_GENERATE: Promise(_if_named(_generated, "generated_text"), is_certain=False),
}


_CERTAIN = (
    *(promise.check for promise in _PROMISES.values() if promise.is_certain),
    *(_ranking, _images, _generated),
)


@lru_cache(maxsize=256)
def promise_of(url: str) -> Promise:
    """What the endpoint at ``url`` promises; of an unknown one, what its answer's own shape does."""
    return _PROMISES.get(endpoint_of(url), _BY_SHAPE)


def is_known(url: str) -> bool:
    """True if what the endpoint at ``url`` promises is known."""
    return promise_of(url).is_certain


_BY_SHAPE = Promise(by_shape, is_certain=False)
