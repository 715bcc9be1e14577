"""The dialects of Batch files: how a row names its request, and how a line of results tells its outcome.

===============  ========================  =========================================  ==================
dialect          a row                     an answer                                  a failure
===============  ========================  =========================================  ==================
OpenAI           custom_id, url, body      custom_id, response: status_code, body     response, or error
Mistral          custom_id, body           the same                                   the same
Anthropic        custom_id, params         custom_id, result: type, message           result: type, error
Gemini           key, request              key, response                              key, error
Bedrock          recordId, modelInput      recordId, modelInput, modelOutput          …, error
===============  ========================  =========================================  ==================

vLLM, Groq and Azure have OpenAI's rows; Together and Novita have Mistral's. A new dialect is a row of
``DIALECTS``: reading, writing and resuming follow from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint, Outcome, Request
from parallel_processor.options import shown_url
from parallel_processor.providers.dialects import endpoint_of, provider_of
from parallel_processor.providers.jsontext import dump, parse

ORIGIN = "batch_req_line_"
"""How the ``id`` of a record begins whose request was no row; the identity of that request follows."""
ASKED = frozenset({"messages", "prompt", "input", "inputs", "contents"})
"""The members that requests ask with: most have one of them."""


_ANSWERED = frozenset({"response", "modelOutput", "error"})  # a line of results has one of them


class RowResult(NamedTuple):
    """What a line of results says of one row."""

    custom_id: str
    answer: Any  # None for a failure
    error: Any  # the failure; None if the answer alone tells
    path: tuple[str, ...]  # the members that lead to the answer
    is_framed: bool = False  # the answer may be in an object with status_code and body
    origin: bytes | None = None  # the identity of the request, if it was no row


class Dialect(NamedTuple):
    """One form of Batch files."""

    name: str
    id_key: str  # the member of a row that is its id
    body_key: str  # the member that is sent
    write: Callable[[Outcome, str], bytes]  # the line of an outcome, for the id of its row
    read: Callable[[Mapping[str, Any]], RowResult | None]  # None if an object is no such line
    path: str = ""  # the endpoint of all rows; empty: that of each row, or of the request URL
    has_model: bool = True  # the body names the model; otherwise the URL does
    needs_id: bool = True  # otherwise its Batch API takes rows without one
    api_url: str = ""  # a request URL for rows that only one API takes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest(Request):
    """The request of a row whose results don't have OpenAI's form, or that was no row in its file.

    A row without an id is recorded as a cookbook line is.

    Attributes:
        dialect: the form of its record.
        origin: the identity of the cookbook line that it was; empty for a row.
    """

    dialect: Dialect
    origin: bytes = b""

    @property
    def is_row(self) -> bool:
        """False for the cookbook's form."""
        return self.custom_id is not None and self.dialect is not COOKBOOK


def as_row(
    request: Request, custom_id: str | None, dialect: Dialect, origin: bytes = b""
) -> RowRequest:
    """``request`` as one whose record has the form of ``dialect``, for this id."""
    return RowRequest(
        body=request.body,
        payload=request.payload,
        number=request.number,
        metadata=request.metadata,
        metadata_json=request.metadata_json,
        custom_id=custom_id,
        url=request.url,
        invalid_reason=request.invalid_reason,
        dropped=request.dropped,
        dialect=dialect,
        origin=origin,
    )


def dialect_of(request: Request) -> Dialect:
    """The form of the record of ``request``, which has a ``custom_id``."""
    return request.dialect if isinstance(request, RowRequest) else OPENAI


def row_dialect(row: Mapping[str, Any]) -> Dialect | None:
    """The dialect of a row; ``None`` for the body of a request.

    Raises ``ValueError`` for a row of no known dialect: nothing that a server may charge for is guessed.
    """
    for dialect in DIALECTS:
        if dialect.body_key in row and dialect.id_key in row:
            is_openai = dialect is OPENAI and "url" not in row and "method" not in row
            return MISTRAL if is_openai else dialect
    wrapping = [each for each in DIALECTS if isinstance(row.get(each.body_key), dict)]
    if "custom_id" in row or (wrapping and (ASKED | {"query"}).isdisjoint(row)):
        for dialect in wrapping:
            if not dialect.needs_id and _ANSWERED.isdisjoint(row) and "custom_id" not in row:
                return dialect
        keys = ", ".join(list(row)[:8])
        raise ValueError(
            f"it is no request, but a row of no known form, with {keys[:200]}. Known are {_known_forms()},"
            " and a bare request, whose id may be in its metadata: "
            '{"model": …, "metadata": {"custom_id": …}}'
        )
    return None


def wrong_api(dialect: Dialect, request_url: str) -> str:
    """Why rows of ``dialect`` can't be sent to ``request_url``, with the remedy; empty if they may be."""
    if not dialect.api_url:
        return ""
    if dialect.has_model:  # servers of many providers take Anthropic's bodies
        is_wrong = provider_of(request_url).name == "OpenAI"
    else:
        asked = endpoint_of(request_url)
        is_wrong = asked is not Endpoint.UNKNOWN and not asked.has_model_in_path
    if not is_wrong:
        return ""
    return (
        f"is a row in the form of {dialect.name}, whose body only its own API takes: name the URL of that "
        f"as the request URL (--request_url {dialect.api_url}), not {shown_url(request_url)}"
    )


def claimed_id(row: Any) -> tuple[str, Dialect] | None:
    """The id that ``row`` gives to whatever else is in it, and its dialect; ``None`` if it has none."""
    if isinstance(row, dict):
        for dialect in DIALECTS:
            custom_id = row.get(dialect.id_key)
            if dialect.body_key in row and isinstance(custom_id, str):
                return custom_id, dialect
    return None


def _known_forms() -> str:
    """The dialects that differ in their keys, for a text."""
    return ", ".join(
        f'{{"{each.id_key}", "{each.body_key}"}} ({"OpenAI, Mistral, …" if each is OPENAI else each.name})'
        for each in DIALECTS
    )


def row_record(outcome: Outcome) -> bytes:
    """The line of results that records ``outcome``, whose request has a ``custom_id``."""
    request = outcome.request
    return dialect_of(request).write(outcome, request.custom_id or "") + b"\n"


def row_result(value: Mapping[str, Any]) -> RowResult | None:
    """What a line of results says, in whatever dialect; ``None`` if it is no such line."""
    for dialect in DIALECTS:
        if isinstance(value.get(dialect.id_key), str) and (found := dialect.read(value)):
            return found
    return None


def _write_openai(outcome: Outcome, custom_id: str) -> bytes:
    raw, response, error = outcome.raw_response, b"null", b"null"
    if raw is not None:
        request_id = raw.headers.get("x-request-id") or raw.headers.get("request-id")
        head = dump({"status_code": raw.status, "request_id": request_id})
        response = head[:-1] + b', "body": ' + _body(outcome) + b"}"
    if not outcome.ok and not _is_http_error(outcome):  # otherwise status and body tell
        error = dump({"code": outcome.error_kind, "message": outcome.error})
    head = dump({"id": _record_id(outcome.request), "custom_id": custom_id})
    return head[:-1] + b', "response": ' + response + b', "error": ' + error + b"}"


def _record_id(request: Request) -> str:
    if isinstance(request, RowRequest) and request.origin:
        return ORIGIN + request.origin.hex()
    return f"batch_req_{os.urandom(16).hex()}"


def _read_openai(value: Mapping[str, Any]) -> RowResult | None:
    if "response" not in value:
        return None
    origin, record_id = None, value.get("id")
    if isinstance(record_id, str) and record_id.startswith(ORIGIN):
        try:
            origin = bytes.fromhex(record_id.removeprefix(ORIGIN))
        except ValueError:
            origin = None
    answer, error = value["response"], value.get("error")
    return RowResult(value["custom_id"], answer, error, ("response",), True, origin)


def _write_anthropic(outcome: Outcome, custom_id: str) -> bytes:
    if outcome.ok:
        result = b'{"type": "succeeded", "message": ' + _body(outcome) + b"}"
    else:
        said = _said_error(outcome)
        error = said or {
            "type": "error",
            "error": {"type": outcome.error_kind, "message": outcome.error},
        }
        result = dump({"type": "errored", "error": error})
    return dump({"custom_id": custom_id})[:-1] + b', "result": ' + result + b"}"


def _read_anthropic(value: Mapping[str, Any]) -> RowResult | None:
    result = value.get("result")
    if not isinstance(result, dict):
        return None
    kind, path = result.get("type"), ("result", "message")
    if kind == "succeeded" and "message" in result:
        return RowResult(value["custom_id"], result["message"], None, path)
    if kind not in ("errored", "canceled", "expired"):
        return None
    said = result.get("error")
    inner = said.get("error", said) if isinstance(said, dict) else said
    error = inner or {"code": kind, "message": f"the request was {kind} by the Batch API"}
    if isinstance(error, dict) and "code" not in error and "type" in error:
        error = {"code": error["type"], **error}
    return RowResult(value["custom_id"], None, error, path)


def _write_gemini(outcome: Outcome, key: str) -> bytes:
    head = dump({"key": key})[:-1]
    if outcome.ok:
        return head + b', "response": ' + _body(outcome) + b"}"
    said = (_said_error(outcome) or {}).get("error")
    error = said or {"status": outcome.error_kind, "message": outcome.error}
    return head + b', "error": ' + dump(error) + b"}"


def _read_gemini(value: Mapping[str, Any]) -> RowResult | None:
    if "response" not in value and "error" not in value:
        return None
    error = value.get("error")
    if isinstance(error, dict) and "status" in error:
        error = {**error, "code": error["status"]}
    return RowResult(value["key"], value.get("response"), error, ("response",))


def _write_bedrock(outcome: Outcome, record_id: str) -> bytes:
    head = dump({"recordId": record_id})[:-1] + b', "modelInput": ' + outcome.request.payload
    if outcome.ok:
        return head + b', "modelOutput": ' + _body(outcome) + b"}"
    raw = outcome.raw_response
    code = outcome.error_kind if raw is None else raw.status
    return head + b', "error": ' + dump({"errorCode": code, "errorMessage": outcome.error}) + b"}"


def _read_bedrock(value: Mapping[str, Any]) -> RowResult | None:
    if "modelOutput" not in value and "error" not in value:
        return None
    error = value.get("error")
    if isinstance(error, dict):
        error = {"code": error.get("errorCode"), "message": error.get("errorMessage")}
    return RowResult(value["recordId"], value.get("modelOutput"), error, ("modelOutput",))


def _write_cookbook(outcome: Outcome, custom_id: str) -> bytes:
    request, response = outcome.request, dump(list(outcome.errors))
    if outcome.ok:
        response = _body(outcome)
    metadata = dump({"custom_id": custom_id})
    return b"[" + request.payload + b", " + response + b", " + metadata + b"]"


def _body(outcome: Outcome) -> bytes:
    """The JSON of the response; a string if it isn't JSON."""
    raw = outcome.raw_response
    if raw is None:
        return b"null"
    if not raw.is_json or not (outcome.ok or is_json(raw.body)):  # redaction may break the JSON
        return dump(raw.body.decode("utf-8", "replace"))
    return raw.body


def _said_error(outcome: Outcome) -> dict[str, Any] | None:
    """The body of a failed response, if it is an object with the server's own ``error`` object."""
    raw = outcome.raw_response
    data = raw.data if raw is not None and raw.is_json and is_json(raw.body) else None
    if isinstance(data, list) and len(data) == 1:  # so Gemini does, behind its other API
        data = data[0]
    if not isinstance(data, dict) or not isinstance(data.get("error"), dict) or not data["error"]:
        return None
    return data


def _is_http_error(outcome: Outcome) -> bool:
    """True for an error of the server, with a status and a body that say so."""
    raw = outcome.raw_response
    return raw is not None and raw.status >= 400 and _said_error(outcome) is not None


def is_json(text: bytes) -> bool:
    """True if ``text`` is a JSON value; NaN is accepted."""
    try:
        parse(text.decode(), strict=False)
    except ValueError:
        return False
    return True


def _no_result(value: Mapping[str, Any]) -> RowResult | None:
    return None


OPENAI = Dialect("OpenAI", "custom_id", "body", _write_openai, _read_openai)
MISTRAL = OPENAI._replace(name="Mistral, Together and others")
ANTHROPIC = Dialect(
    *("Anthropic", "custom_id", "params", _write_anthropic, _read_anthropic, "/v1/messages"),
    api_url="https://api.anthropic.com/v1/messages",
)
GEMINI = Dialect(
    *("Gemini", "key", "request", _write_gemini, _read_gemini),
    has_model=False,
    needs_id=False,
    api_url="https://generativelanguage.googleapis.com/v1beta/models/MODEL:generateContent",
)
BEDROCK = Dialect(
    *("Bedrock", "recordId", "modelInput", _write_bedrock, _read_bedrock),
    has_model=False,
    needs_id=False,
    api_url="https://bedrock-runtime.REGION.amazonaws.com/model/MODEL/invoke",
)
DIALECTS = (OPENAI, ANTHROPIC, GEMINI, BEDROCK)
COOKBOOK = Dialect("cookbook", "", "", _write_cookbook, _no_result)
"""The form in which rows are recorded if that of the cookbook is asked for; no row has it."""
