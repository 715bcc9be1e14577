"""The two file formats, read and written.

* **Cookbook**: a line is a bare request body. Its ``metadata`` member is not sent; it becomes a
  column of its own. The record is ``[request, response]`` or ``[request, response, metadata]``. A
  failure has a list of error strings, one per attempt, in place of the response.
* **Batch**: a line is ``{"custom_id", "method", "url", "body"}``; ``method`` and ``url`` are
  optional. The record is a line of a Batch API output or error file.

A record holds request and response as they came, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from parallel_processor.files.records import BOM, UNCLEAR, take_apart
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.models import Outcome, Request
from parallel_processor.options import DEFAULT_REQUEST_URL
from parallel_processor.providers.endpoints import resolve_url
from parallel_processor.providers.jsontext import (
    Member,
    dump,
    members,
    one_line,
    parse,
    split_last,
    without,
)

_log = logging.getLogger("parallel_processor")
_MAX_INVALID_CHARS = 2000  # how much of an invalid line is put into its record
_METADATA = frozenset({"metadata"})
_UNSENDABLE = frozenset({"stream", "stream_options", "background"})
NAN_IN_METADATA = "NaN or Infinity in metadata"
"""Is among what :attr:`Request.dropped` names if such numbers became null."""
_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')  # a string, or such a number
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def read_requests(
    lines: Iterable[tuple[int, bytes | InvalidLine]], request_url: str, unit: str = "line"
) -> Iterator[Request]:
    """A request for each line that isn't blank. That of an invalid line has an ``invalid_reason``.

    A line comes with its number; ``unit`` is what that counts.
    """
    for number, line in lines:
        if isinstance(line, InvalidLine):
            yield _invalid_request(line.text, f"{unit} {number}: {line.reason}", number)
            continue
        line = line.removeprefix(BOM).strip()  # joined files have a byte-order mark in the middle
        if line:
            yield parse_line(line, number, request_url, unit)


def parse_line(line: bytes, number: int, request_url: str, unit: str = "line") -> Request:
    """The request of one line, which has no white space around it. ``number`` counts from 1."""
    try:
        text = line.decode("utf-8")
        try:
            body = parse(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _request_with_nan(text, number)
        if not isinstance(body, dict):
            hint = " but an array; write one object a line" if isinstance(body, list) else ""
            raise ValueError(f"not a JSON object{hint}")
        if "custom_id" in body and "body" in body:
            return _batch_request(members(text), body, number, request_url)
        return _request(text, body, number)
    except UnicodeDecodeError as error:
        invalid_reason = f"not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
    except json.JSONDecodeError as error:
        invalid_reason = f"not JSON: {error.msg} at character {error.pos + 1}"
    except ValueError as error:
        invalid_reason = str(error)
    text = line[: 4 * _MAX_INVALID_CHARS].decode("utf-8", "replace")
    return _invalid_request(text, f"{unit} {number}: {invalid_reason}", number)


def _invalid_request(text: str, reason: str, number: int) -> Request:
    text = text[:_MAX_INVALID_CHARS]
    return Request(body=text, payload=dump(text), number=number, invalid_reason=reason)


def _request(text: str, body: dict[str, Any], number: int) -> Request:
    """The request of a cookbook line. ``body`` is the parsed text; it is changed."""
    dropped = unsendable(body)
    metadata, metadata_json = body.get("metadata"), None
    if not dropped and (split := split_last(text, "metadata")) is not None:
        text, value = split
        del body["metadata"]
        if metadata is not None:
            metadata_json = one_line(value.encode())
    elif dropped or "metadata" in body:
        parts = members(text)
        if metadata is not None:
            metadata_json = one_line(_last(parts, "metadata").encode())
        text = without(parts, dropped | _METADATA)
        body = {key: value for key, value in body.items() if key not in dropped | _METADATA}
    return Request(
        body=body,
        payload=one_line(text.encode()),
        number=number,
        metadata=metadata,
        metadata_json=metadata_json,
        dropped=dropped,
    )


def _request_with_nan(text: str, number: int) -> Request:
    """The request of a cookbook line that strict JSON rejects: NaN in its metadata becomes null.

    The metadata aren't sent, so they need not be JSON. Raises ``ValueError`` if the rest is at fault.
    """
    parts = members(text) if isinstance(parse(text, strict=False), dict) else []
    made = [
        part._replace(text=f"{json.dumps(part.key)}: {_NAN.sub(_null, part.value)}")
        if part.key == "metadata"
        else part
        for part in parts
    ]
    mended = without(made, frozenset()) if parts else text
    body = parse(mended)
    if "custom_id" in body and "body" in body:  # its metadata are the API's own, and are sent
        parse(text)
    request = _request(mended, body, number)
    return replace(request, dropped=request.dropped | {NAN_IN_METADATA})


def tell_notes(request: Request, noted: set[str], name: str) -> None:
    """Log what was left out of ``request`` or changed in it, but for what is in ``noted``; adds it there.

    ``name`` is what the request's number counts.
    """
    new = request.dropped - noted
    noted |= new
    left_out = ", ".join(sorted(new - {NAN_IN_METADATA}))
    notes = [f"{left_out} left out"] if left_out else []
    notes += [f"{NAN_IN_METADATA} is kept as null"] if NAN_IN_METADATA in new else []
    for note in notes:
        extra = {"request_number": request.number}
        _log.warning("%s %d: %s, here and below", name, request.number, note, extra=extra)


def _null(match: re.Match[str]) -> str:
    return "null" if match[1] else match[0]


def _batch_request(
    parts: list[Member], row: dict[str, Any], number: int, request_url: str
) -> Request:
    custom_id, method, url = row["custom_id"], row.get("method"), row.get("url")
    if not isinstance(custom_id, str):
        raise ValueError("custom_id is not a string")
    if method is not None and method != "POST":
        raise ValueError(f"method is {method!r}, not POST")
    if url is not None and not isinstance(url, str):
        raise ValueError("url is not a string")
    if not isinstance(row["body"], dict):
        raise ValueError("body is not a JSON object")
    body, text = row["body"], _last(parts, "body")
    dropped = unsendable(body)
    if dropped:
        text = without(members(text), dropped)
        body = {key: value for key, value in body.items() if key not in dropped}
    return Request(
        body=body,
        payload=one_line(text.encode()),
        number=number,
        custom_id=custom_id,
        url=resolve_url(request_url, url),
        dropped=dropped,
    )


def unsendable(body: Mapping[str, Any]) -> frozenset[str]:
    """The members of ``body`` that ask for a response which isn't one JSON object. They are dropped."""
    if not body.get("stream") and not body.get("background"):
        return frozenset()
    return _UNSENDABLE & body.keys()


def made_request(
    given: Request | Mapping[str, Any], number: int, request_url: str = DEFAULT_REQUEST_URL
) -> Request:
    """The request that a program passed in, ready to be sent.

    A mapping is treated as a cookbook line: its ``metadata`` is a column. The body of a
    :class:`Request` is sent to its ``url`` as it is, without members that ask for a stream. An
    invalid request has an ``invalid_reason``. The caller may change the body afterwards.

    Raises ``TypeError`` for anything but a mapping or a :class:`Request`.
    """
    if not isinstance(given, Request | Mapping):
        name = type(given).__name__
        raise TypeError(f"request {number} is a {name}, not a dict or a Request")
    try:
        if isinstance(given, Request):
            return _completed(given, number, request_url)
        text = _as_json(dict(given))
        try:
            return _request(text, parse(text), number)
        except ValueError:
            return _request_with_nan(text, number)
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"request {number} can't be sent: {error}"
        bare = given if isinstance(given, Request) else Request(body=dict(given))
        return replace(
            bare, payload=b"{}", number=number, metadata_json=None, url=None, invalid_reason=reason
        )


def _completed(given: Request, number: int, request_url: str) -> Request:
    """``given`` with its ``number``. One that was read from a file stays as it is."""
    if given.payload or given.invalid_reason is not None:
        return replace(given, number=number)
    if not isinstance(given.body, Mapping):
        raise TypeError(f"its body is a {type(given.body).__name__}, not a dict")
    if given.custom_id is not None and not isinstance(given.custom_id, str):
        raise TypeError("its custom_id is not a string")
    dropped = unsendable(given.body)
    text = _as_json({key: given.body[key] for key in given.body if key not in dropped})
    metadata = None if given.metadata is None else _as_json(given.metadata)
    if metadata is not None and ("NaN" in metadata or "Infinity" in metadata):
        mended = _NAN.sub(_null, metadata)
        dropped = dropped | {NAN_IN_METADATA} if mended != metadata else dropped
        metadata = mended
    return replace(
        given,
        number=number,
        body=parse(text),
        payload=text.encode(),
        metadata_json=None if metadata is None else metadata.encode(),
        url=resolve_url(request_url, given.url) if given.url else None,
        dropped=dropped,
    )


def _as_json(value: Any) -> str:
    """``value`` as one line of JSON, in which NaN may stand. Lone surrogates are escaped."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except TypeError:  # a key may be a number of numpy
        text = json.dumps(_with_plain_keys(value), ensure_ascii=False, default=_plain)
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    """A number or an array of numpy, and of packages like it, as what JSON knows."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _with_plain_keys(value: Any) -> Any:
    """``value`` with the keys of its objects as what JSON knows."""
    if isinstance(value, dict):
        return {
            _plain(key) if hasattr(key, "dtype") else key: _with_plain_keys(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_plain_keys(each) for each in value]
    return value


def _last(parts: list[Member], key: str) -> str:
    return next(part.value for part in reversed(parts) if part.key == key)


def record(outcome: Outcome) -> bytes:
    """The line that records ``outcome``, with its line end."""
    request = outcome.request
    if request.custom_id is not None:
        return _batch_record(outcome)
    if outcome.ok and outcome.raw_response is not None:
        response = outcome.raw_response.body
    else:
        response = dump(list(outcome.errors))
    if request.metadata_json is None:
        return b"[" + request.payload + b", " + response + b"]\n"
    return b"[" + request.payload + b", " + response + b", " + request.metadata_json + b"]\n"


def _batch_record(outcome: Outcome) -> bytes:
    raw, response, error = outcome.raw_response, b"null", b"null"
    if raw is not None:
        request_id = raw.headers.get("x-request-id") or raw.headers.get("request-id")
        body = raw.body
        if not raw.is_json or not (outcome.ok or is_json(body)):  # redaction may break the JSON
            body = dump(body.decode("utf-8", "replace"))
        head = dump({"status_code": raw.status, "request_id": request_id})
        response = head[:-1] + b', "body": ' + body + b"}"
    if not outcome.ok:
        error = dump({"code": outcome.error_kind, "message": outcome.error})
    head = dump({"id": f"batch_req_{os.urandom(16).hex()}", "custom_id": outcome.request.custom_id})
    return head[:-1] + b', "response": ' + response + b', "error": ' + error + b"}\n"


def is_json(text: bytes) -> bool:
    """True if ``text`` is a JSON value; NaN is accepted."""
    try:
        parse(text.decode(), strict=False)
    except ValueError:
        return False
    return True


class Record(NamedTuple):
    """What a line of a results file says: the request's :func:`identity`, and if it was answered."""

    identity: bytes
    ok: bool | None  # None for another program's form, which may be an answer or a failure


def read_record(line: bytes) -> Record | None:
    """The record in ``line``; ``None`` if there is none (see ``records.py``)."""
    parts = take_apart(line)
    if parts is None:
        return None
    ok = None if parts.fault is UNCLEAR else parts.ok
    if parts.custom_id is not None:
        return Record(_identity_of_id(parts.custom_id), ok)
    return Record(_identity(parts.request, parts.metadata), ok)


def identity(request: Request) -> bytes:
    """16 bytes that equal requests share: of the ``custom_id``, otherwise of body and metadata."""
    if request.custom_id is not None:
        return _identity_of_id(request.custom_id)
    metadata = request.metadata_json
    return _identity(request.body, parse(metadata.decode()) if metadata is not None else None)


def content_key(request: Request) -> bytes:
    """16 bytes that requests share whose URL and payload are equal byte for byte."""
    url = (request.url or "").encode("utf-8", "surrogatepass")
    return hashlib.blake2b(url + b"\0" + request.payload, digest_size=16).digest()


def _identity(body: Any, metadata: Any) -> bytes:
    """The hash of a body and its metadata. The order of keys doesn't matter."""
    content = _encode([body, metadata or None])  # the cookbook's script drops empty metadata
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _identity_of_id(custom_id: str) -> bytes:
    data = custom_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, person=b"custom_id").digest()
