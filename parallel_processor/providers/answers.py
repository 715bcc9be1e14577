"""Judges a success: is it an answer, that is, does it hold what its endpoint promises?

A gateway answers 200 for much that is none: an error under any name, ``null``, a pending state, half a
text, fewer vectors than inputs. :func:`fault_of` says what is wrong, or ``None``. The same function
judges a response that comes in and a record that is read back, which has no URL: then the response's
shape tells what was promised (``promises.py``). So an answer that was recorded is never bought again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from parallel_processor.providers.claims import choice_claim, strong_claim, weak_claim
from parallel_processor.providers.promises import (
    POLLED,
    STREAMED,
    Check,
    Promise,
    is_pending,
    promise_of,
)

_INPUT_NAMES = frozenset({"input", "prompt", "inputs", "texts", "requests"})


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
    if not isinstance(body, (dict, Mapping)) or _INPUT_NAMES.isdisjoint(body):
        return None
    given = _inputs_in(body)
    if isinstance(given, str):
        return 1
    if not isinstance(given, list):
        return None
    first = given[0] if given else ""
    if isinstance(first, (str, list)):
        return len(given)
    return 1 if isinstance(first, int) else None  # one text as tokens


def _inputs_in(body: Mapping[str, Any]) -> Any:
    if "requests" in body:  # Gemini's, one object each
        requests = body["requests"]
        return [""] * len(requests) if isinstance(requests, list) else None
    return next(
        (body[name] for name in ("input", "prompt", "inputs", "texts") if name in body), None
    )


def fault_of(data: Any, expected: Expected = UNKNOWN) -> Fault | None:
    """What is wrong with ``data``, the JSON of a success; ``None`` if it is an answer."""
    promise = promise_of(expected.url)
    check = promise.check
    if type(data) is dict:
        claim = strong_claim(data)
        if claim is None and check(data, expected.inputs) is None:
            return None
        return _fault_of_object(data, check, claim, expected)
    if isinstance(data, list):
        return _fault_of_list(data, promise, expected)
    kind = "null" if data is None else type(data).__name__
    text = f"the answer is {_JSON_NAMES.get(kind, kind)}, not an object"
    # A bare value of an endpoint that nobody knows may have been paid for.
    return Fault("no answer", text, is_final=data is not None and not promise.is_certain)


_JSON_NAMES = {"str": "a string", "int": "a number", "float": "a number", "bool": "a truth value"}


def _fault_of_object(
    data: dict[str, Any], check: Check, claim: Mapping[str, Any] | None, expected: Expected
) -> Fault:
    claim = claim or choice_claim(data) or weak_claim(data)
    if claim is not None:
        return _fault_of_claim(claim)
    if is_pending(data):
        return Fault("not answered yet", POLLED, is_final=True)
    reason = check(data, expected.inputs) or "no answer"
    if reason is STREAMED:
        return Fault("unexpected stream", reason, is_final=True)
    return Fault("no answer", reason)


def _fault_of_claim(claim: Mapping[str, Any]) -> Fault:
    return Fault("error", str(claim.get("message") or claim.get("code") or ""), error=claim)


def _fault_of_list(data: list[Any], promise: Promise, expected: Expected) -> Fault | None:
    is_failure = is_failure_list(data)
    if is_failure and data and (claim := _claim(data[-1])) is not None:
        return _fault_of_claim(claim)
    if promise.list_name and data and all(isinstance(row, (dict, list)) for row in data):
        reason = promise.check({promise.list_name: data}, expected.inputs)  # llama.cpp's, TEI's
        return None if reason is None else Fault("no answer", reason)
    if promise.is_certain:
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
