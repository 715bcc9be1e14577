"""The two file formats, read: a line becomes a request. ``records.py`` writes what becomes of it.

* **Cookbook**: a line is a bare request body. Its ``metadata`` member is not sent; it becomes a
  column of its own. The record is ``[request, response]`` or ``[request, response, metadata]``. A
  failure has a list of error strings, one per attempt, in place of the response.
* **Batch**: a line is a row, in one of the forms of ``batch_rows.py``. The record is a line of that Batch
  API's output or error file.

What a program passes in instead of a file becomes a request here, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parallel_processor.files.batch_rows import (
    OPENAI,
    Dialect,
    as_row,
    claimed_id,
    row_dialect,
    wrong_api,
)
from parallel_processor.files.custom_ids import arranged
from parallel_processor.files.records import BOM
from parallel_processor.files.requests_file import InvalidLine, Place, RequestLines, line_place
from parallel_processor.files.sources import Source, SourceLike, find_sources, open_sources
from parallel_processor.models import MODEL_PLACE, Endpoint, Request, filled_url, model_name
from parallel_processor.options import DEFAULT_REQUEST_URL, Options, OutputFormat, shown_url
from parallel_processor.providers.dialects import endpoint_of
from parallel_processor.providers.endpoints import (
    HostRule,
    host_rule,
    lacking_members,
    own_host_only,
    resolve_url,
)
from parallel_processor.providers.jsontext import (
    as_json,
    dump,
    last_value,
    members,
    one_line,
    parse,
    split_last,
    with_first,
    without,
    without_nan,
)

_log = logging.getLogger("parallel_processor")
_MAX_INVALID_CHARS = 2000  # how much of an invalid line is put into its record
_METADATA = frozenset({"metadata"})
_UNSENDABLE = frozenset({"stream", "stream_options", "background"})
NAN_IN_METADATA = "NaN or Infinity in metadata"
"""Is among what :attr:`Request.dropped` names if such numbers became null."""


def read_requests(
    path: SourceLike,
    *,
    request_url: str = DEFAULT_REQUEST_URL,
    model: str | None = None,
    output_format: OutputFormat = "auto",
    allowed_hosts: Sequence[str] = (),
) -> Iterator[Request]:
    """The requests of a file as :meth:`Processor.process_file` reads them, one by one.

    That of an invalid line has an ``invalid_reason``. ``number`` is the number of the line. The arguments
    are those of :meth:`Processor.process_file`. :meth:`Processor.imap_unordered` takes such iterators.

    Raises :class:`InputFileError` for a file that can't be read, at once, and for rows that share an id,
    when the second one is reached.

    >>> for request in read_requests(f"{folder}/requests.jsonl", output_format="batch"):
    ...     print(request.number, request.custom_id, request.model)
    1 request-1 text-embedding-3-small
    2 request-2 text-embedding-3-small
    3 request-3 text-embedding-3-small
    """
    sources = find_sources(path)
    for source in sources:
        if (
            source.size_bytes is not None
        ):  # so that an error is raised here, not in the caller's loop
            with source.open():
                pass
    options = Options(request_url=request_url, allowed_hosts=allowed_hosts)
    return _requests_of(sources, options, model, output_format)


def _requests_of(
    sources: Sequence[Source], options: Options, model: str | None, output_format: OutputFormat
) -> Iterator[Request]:
    with open_sources(sources) as lines:
        yield from arranged(requests_of(lines, options, model), output_format, lines.place)


def requests_of(
    lines: RequestLines, options: Options, model: str | None, *, is_sent: bool = False
) -> Iterator[Request]:
    """The requests of ``lines`` as a run with ``options`` reads them, and with ``model``.

    ``is_sent`` is that of :func:`requests_in`.
    """
    url, rule = options.request_url, host_rule(options)
    return requests_in(lines.numbered(), url, lines.place, model, rule, is_sent=is_sent)


def requests_in(
    lines: Iterable[tuple[int, bytes | InvalidLine]],
    request_url: str,
    place: Place = line_place,
    model: str | None = None,
    rule: HostRule = own_host_only,
    *,
    is_sent: bool = False,
) -> Iterator[Request]:
    """A request for each line that isn't blank. That of an invalid line has an ``invalid_reason``.

    A line comes with its number. ``model`` is for bodies without one. ``rule`` tells where rows may go.
    With ``is_sent``, what the API of ``request_url`` can't take is invalid, too.
    """
    for number, line in lines:
        if isinstance(line, InvalidLine):
            request = _invalid_request(line.text, f"{place(number)}: {line.reason}", number)
            metadata = line.metadata
            yield replace(
                request,
                custom_id=line.custom_id,
                metadata=metadata,
                metadata_json=None if metadata is None else dump(metadata),
            )
            continue
        line = line.removeprefix(BOM).strip()  # joined files have a byte-order mark in the middle
        if line:
            yield parse_line(line, number, request_url, place, model, rule, is_sent)


def parse_line(
    line: bytes,
    number: int,
    request_url: str,
    place: Place = line_place,
    model: str | None = None,
    rule: HostRule = own_host_only,
    is_sent: bool = False,
) -> Request:
    """The request of one line, which has no white space around it. ``number`` counts from 1."""
    body = None
    try:
        text = line.decode("utf-8")
        try:
            body = parse(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            return _request_with_nan(text, number, model, request_url)
        if not isinstance(body, dict):
            hint = " but an array; write one object a line" if isinstance(body, list) else ""
            raise ValueError(f"not a JSON object{hint}")
        # A bare request with a model, which most are, is no row.
        if "custom_id" in body or "model" not in body:
            dialect = row_dialect(body)
            row = dialect and _row_request(text, body, number, request_url, dialect, model, rule)
            fault = _why_not_for(request_url, body, dialect) if is_sent else ""
            if row or fault:
                return _refused(row or _request(text, body, number), fault, place)
        if model is not None or MODEL_PLACE in request_url:
            text, body = _with_model(text, body, model, request_url)
        return _request(text, body, number)
    except UnicodeDecodeError as error:
        invalid_reason = f"not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}"
    except json.JSONDecodeError as error:
        invalid_reason = f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except ValueError as error:
        invalid_reason = str(error)
    text = line[: 4 * _MAX_INVALID_CHARS].decode("utf-8", "replace")
    request = _invalid_request(text, f"{place(number)}: {invalid_reason}", number)
    return request if (claim := claimed_id(body)) is None else as_row(request, *claim)


_NO_MODEL_IN_BODY = f"it names no model to take the place of {MODEL_PLACE} in the request URL"
_NO_MODEL = f"{_NO_MODEL_IN_BODY}: give one with --model"


def _refused(request: Request, fault: str, place: Place) -> Request:
    """``request`` as an invalid one, if there is a ``fault``."""
    if not fault:
        return request
    return replace(request, invalid_reason=f"{place(request.number)} {fault}")


def _why_not_for(url: str, body: dict[str, Any], dialect: Dialect | None) -> str:
    """Why ``body`` can't be sent to ``url``, whose API is another; empty if it may be."""
    if dialect is not None:
        return wrong_api(dialect, url) if body.get("url") is None else ""
    lacking = lacking_members(body, url)
    fault = f"has neither model nor {lacking}: it is no request for {shown_url(url)}"
    return fault if lacking else ""


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
            metadata_json = one_line(last_value(parts, "metadata").encode())
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


def _with_model(
    text: str, body: dict[str, Any], model: str | None, request_url: str = ""
) -> tuple[str, dict[str, Any]]:
    """``text`` and its value, with ``model`` if they name none; ``ValueError`` if a URL then lacks one."""
    if model is not None and body.get("model") is None:
        if "model" in body:  # as null
            text = without(members(text), frozenset({"model"}))
        text, body = with_first(text, "model", model), {**body, "model": model}
    if MODEL_PLACE in request_url and not model_name(body):
        raise ValueError(_NO_MODEL)
    return text, body


def _request_with_nan(
    text: str, number: int, model: str | None = None, request_url: str = ""
) -> Request:
    """The request of a cookbook line that strict JSON rejects: NaN in its metadata becomes null.

    The metadata aren't sent, so they need not be JSON. Raises ``ValueError`` if the rest is at fault.
    """
    parts = members(text) if isinstance(parse(text, strict=False), dict) else []
    made = [
        part._replace(text=f"{json.dumps(part.key)}: {without_nan(part.value)}")
        if part.key == "metadata"
        else part
        for part in parts
    ]
    mended = without(made, frozenset()) if parts else text
    body = parse(mended)
    if row_dialect(body):  # its metadata are the API's own, and are sent
        parse(text)
    mended, body = _with_model(mended, body, model, request_url)
    request = _request(mended, body, number)
    return replace(request, dropped=request.dropped | {NAN_IN_METADATA})


def tell_notes(request: Request, noted: set[str], place: Place) -> None:
    """Log what was left out of ``request`` or changed, but for what is in ``noted``; adds it there."""
    new = request.dropped - noted
    noted |= new
    left_out = ", ".join(sorted(new - {NAN_IN_METADATA}))
    notes = [f"{left_out} left out"] if left_out else []
    notes += [f"{NAN_IN_METADATA} is kept as null"] if NAN_IN_METADATA in new else []
    for note in notes:
        extra = {"request_number": request.number}
        _log.warning("%s: %s, here and below", place(request.number), note, extra=extra)


def _row_request(
    text: str,
    row: dict[str, Any],
    number: int,
    request_url: str,
    dialect: Dialect,
    model: str | None,
    rule: HostRule,
) -> Request:
    custom_id, method, url = row.get(dialect.id_key), row.get("method"), row.get("url")
    if not isinstance(custom_id, str) and dialect.id_key in row:
        raise ValueError(f"{dialect.id_key} is not a string")
    if method is not None and method != "POST":
        raise ValueError(f"method is {method!r}, not POST")
    if url is not None and not isinstance(url, str):
        raise ValueError("url is not a string")
    if not isinstance(row[dialect.body_key], dict):
        raise ValueError(f"{dialect.body_key} is not a JSON object")
    body, text = row[dialect.body_key], last_value(members(text), dialect.body_key)
    dropped = unsendable(body)
    if dropped:
        text = without(members(text), dropped)
        body = {key: value for key, value in body.items() if key not in dropped}
    url = resolve_url(request_url, url or _endpoint_of_rows(dialect, request_url), rule)
    names_model = endpoint_of(url).has_model_in_path and MODEL_PLACE not in url
    if model is not None and dialect.has_model and not names_model:
        text, body = _with_model(text, body, model)
    if MODEL_PLACE in url and not model_name(body):
        if model is None:
            raise ValueError(_NO_MODEL)
        url = filled_url(url, model)
    request = Request(
        body=body,
        payload=one_line(text.encode()),
        number=number,
        custom_id=custom_id,
        url=url,
        dropped=dropped,
    )
    return request if dialect is OPENAI else as_row(request, custom_id, dialect)


def _endpoint_of_rows(dialect: Dialect, request_url: str) -> str:
    """The endpoint of rows of ``dialect`` that name none; empty if it is that of ``request_url``."""
    asked = endpoint_of(request_url)
    return "" if asked is Endpoint.UNKNOWN or asked.has_model_in_path else dialect.path


def unsendable(body: Mapping[str, Any]) -> frozenset[str]:
    """The members of ``body`` that ask for a response which isn't one JSON object. They are dropped."""
    if not body.get("stream") and not body.get("background"):
        return frozenset()
    return _UNSENDABLE & body.keys()


def made_request(
    given: Request | Mapping[str, Any],
    number: int,
    request_url: str = DEFAULT_REQUEST_URL,
    rule: HostRule = own_host_only,
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
            return _completed(given, number, request_url, rule)
        text = as_json(dict(given))
        if MODEL_PLACE in request_url and not model_name(given):
            raise ValueError(_NO_MODEL_IN_BODY)
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


def _completed(given: Request, number: int, request_url: str, rule: HostRule) -> Request:
    """``given`` with its ``number``. One that was read from a file stays as it is."""
    if given.payload or given.invalid_reason is not None:
        return replace(given, number=number)
    if not isinstance(given.body, Mapping):
        raise TypeError(f"its body is a {type(given.body).__name__}, not a dict")
    if given.custom_id is not None and not isinstance(given.custom_id, str):
        raise TypeError("its custom_id is not a string")
    if MODEL_PLACE in (given.url or request_url) and not model_name(given.body):
        raise ValueError(_NO_MODEL_IN_BODY)
    dropped = unsendable(given.body)
    text = as_json({key: given.body[key] for key in given.body if key not in dropped})
    metadata = None if given.metadata is None else as_json(given.metadata)
    if metadata is not None and ("NaN" in metadata or "Infinity" in metadata):
        mended = without_nan(metadata)
        dropped = dropped | {NAN_IN_METADATA} if mended != metadata else dropped
        metadata = mended
    return replace(
        given,
        number=number,
        body=parse(text),
        payload=text.encode(),
        metadata_json=None if metadata is None else metadata.encode(),
        url=resolve_url(request_url, given.url, rule) if given.url else None,
        dropped=dropped,
    )
