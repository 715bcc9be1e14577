"""Judges a success: is it an answer, that is, does it hold what its endpoint promises?

A gateway answers 200 for much that is none: an error under any name, ``null``, a pending state, half a
text, fewer vectors than inputs. :func:`fault_of` says what is wrong, or ``None``. The same function
judges a response that comes in and a record that is read back, which has no URL: then the response's
shape tells what was promised. Whatever an endpoint's own check accepts, the one by shape accepts, too:
so an answer that was recorded is never bought again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from parallel_processor.providers.claims import (
    choice_claim,
    is_said,
    strong_claim,
    weak_claim,
    without_result,
)

STREAMED = (
    'the server sends a stream unless the request has "stream": false: add that to the request'
)
POLLED = "the server has accepted the request, and the answer would have to be polled for"

_Check = Callable[[Mapping[str, Any], "int | None"], "str | None"]


class Expected(NamedTuple):
    """What is known about a request when its response is judged."""

    url: str = ""  # where it was sent; empty if that is not known
    inputs: int | None = None  # how many vectors or verdicts it asks for; None if that is not known
    is_batch_row: bool = (
        False  # its record tells every answer from an error; the cookbook's doesn't
    )


UNKNOWN = Expected()


class Fault(NamedTuple):
    """Why a success is no answer."""

    kind: str  # a short label
    message: str
    is_final: bool = False  # another attempt would end the same way, and might be charged
    error: Mapping[str, Any] | None = None  # the server's own error, whose code decides
    is_setup: bool = False  # no request can be answered until the user changes something


def count_inputs(body: Any) -> int | None:
    """How many vectors, verdicts or texts an embeddings, moderations or completions request asks for.

    ``None`` if that can't be told: several objects may be the parts of one input.
    """
    given = body.get("input", body.get("prompt")) if isinstance(body, (dict, Mapping)) else None
    if isinstance(given, str):
        return 1
    if not isinstance(given, list):
        return None
    first = given[0] if given else ""
    if isinstance(first, (str, list)):
        return len(given)
    return 1 if isinstance(first, int) else None  # one text as tokens


def fault_of(data: Any, expected: Expected = UNKNOWN) -> Fault | None:
    """What is wrong with ``data``, the JSON of a success; ``None`` if it is an answer."""
    check = _check_of(expected.url)
    if type(data) is dict:
        claim = strong_claim(data)
        if claim is None and check(data, expected.inputs) is None:
            return None
        return _fault_of_object(data, check, claim, expected)
    if isinstance(data, list):
        return _fault_of_list(data, check, expected)
    kind = "null" if data is None else type(data).__name__
    text = f"the answer is {_JSON_NAMES.get(kind, kind)}, not an object"
    # A bare value of an endpoint that nobody knows may have been paid for.
    return Fault("no answer", text, is_final=data is not None and check is _by_shape)


_JSON_NAMES = {"str": "a string", "int": "a number", "float": "a number", "bool": "a truth value"}


def _fault_of_object(
    data: dict[str, Any], check: _Check, claim: Mapping[str, Any] | None, expected: Expected
) -> Fault:
    claim = claim or choice_claim(data) or weak_claim(data)
    if claim is not None:
        return _fault_of_claim(claim)
    if _is_pending(data):
        return Fault("not answered yet", POLLED, is_final=True)
    reason = check(data, expected.inputs) or "no answer"
    if reason is STREAMED:
        return Fault("unexpected stream", reason, is_final=True)
    return Fault("no answer", reason)


def _fault_of_claim(claim: Mapping[str, Any]) -> Fault:
    return Fault("error", str(claim.get("message") or claim.get("code") or ""), error=claim)


def _fault_of_list(data: list[Any], check: _Check, expected: Expected) -> Fault | None:
    is_failure = is_failure_list(data)
    if is_failure and data and (claim := _claim(data[-1])) is not None:
        return _fault_of_claim(claim)
    if check is _vectors and data and all(isinstance(row, dict) for row in data):
        reason = _vectors({"data": data}, expected.inputs)  # llama.cpp's own endpoint
        return None if reason is None else Fault("no answer", reason)
    if check is not _by_shape:
        return Fault("no answer", "the answer is a list, not an object")
    if not data or all(element is None or element == [] for element in data):
        return Fault("no answer", "the answer is an empty list")
    if is_failure and not expected.is_batch_row:
        text = (
            "the answer is a list of strings, which a results file can't tell from the errors of a"
            " failure: send the request as a Batch row"
        )
        return Fault("no answer", text, is_final=True)
    return None


def is_failure_list(data: Any) -> bool:
    """True for what stands for a failure in the cookbook's files: a list of texts, nulls and errors."""
    return isinstance(data, list) and all(
        element is None or isinstance(element, str) or _claim(element) is not None
        for element in data
    )


def _claim(element: Any) -> Mapping[str, Any] | None:
    """The error that an element of a list is; ``None`` if it is none."""
    return strong_claim(element) or weak_claim(element) if isinstance(element, dict) else None


_PENDING = {
    *("pending", "queued", "in_queue", "in_progress", "processing", "running", "starting"),
    *("started", "submitted", "accepted", "waiting", "scheduled"),
}


def _is_pending(data: Mapping[str, Any]) -> bool:
    """True for a state instead of a result: the answer would come later, elsewhere."""
    inner = data.get("output")
    for holder in (data, inner if isinstance(inner, dict) else {}):
        for name in ("status", "state", "task_status"):
            state = holder.get(name)
            if isinstance(state, str) and state.lower() in _PENDING:
                return data.get("object") == "response" or holder is inner or without_result(data)
    return False


# What the endpoints promise. Each check returns what is missing, or None. Good answers pass quickly.

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
        return None
    return "the answer has no vectors" if _is_empty(data.get("embedding")) else None


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


def _by_shape(data: Mapping[str, Any], inputs: int | None) -> str | None:
    """An unknown endpoint: what the response's own shape promises, and no word of an error."""
    reasons = [check(data, inputs) for check in _shapes(data)]
    if None in reasons:
        return None
    if not reasons and weak_claim(data) is not None:
        reasons.append("the answer says that it is an error")
    if not reasons and _is_pending(data):
        reasons.append(POLLED)
    if not reasons or any(check(data, inputs) is None for check in _PROMISES.values()):
        return None
    return reasons[0]


def _shapes(data: Mapping[str, Any]) -> Iterable[_Check]:
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


_PROMISES: dict[str, _Check] = {  # by the end of the path; "/completions" ends another one
    "/chat/completions": _choices,
    "/completions": _completions,
    "/responses": _output,
    "/embeddings": _vectors,
    "/moderations": _results,
    "/messages": _content,
    ":generatecontent": _candidates,
    ":embedcontent": _vectors,
    ":batchembedcontents": _vectors,
    "/api/chat": _ollama,
    "/api/generate": _ollama,
    "/api/embed": _vectors,
}


@lru_cache(maxsize=256)
def _check_of(url: str) -> _Check:
    path = urlsplit(url).path.rstrip("/").lower()
    ends = (check for end, check in _PROMISES.items() if path.endswith(end))
    return next(ends, _by_shape)


def is_known(url: str) -> bool:
    """True if what the endpoint at ``url`` promises is known."""
    return _check_of(url) is not _by_shape
