"""Reads the lines of a results file back: to resume a job, and for programs that want the outcomes.

:func:`take_apart` tells records from other lines, and answers from failures, in the files of this
package, of the cookbook's script and of the Batch API.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.models import INVALID_REQUEST, Outcome, Request, Response
from parallel_processor.providers.errors import read_error
from parallel_processor.providers.jsontext import MAX_NESTING, dump, elements, members, parse
from parallel_processor.providers.usage import used_tokens

_log = logging.getLogger("parallel_processor")

BOM = b"\xef\xbb\xbf"
_RECORD_NESTING = 2  # levels of a record around a request or a response
_BUFFER_BYTES = 1024 * 1024


class RecordParts(NamedTuple):
    """A parsed line of a results file.

    Attributes:
        text: the line.
        ok: the request was answered.
        response: the response, or the list of errors in its place.
        request: the request's body; a string if the line was invalid. Batch records have none.
        metadata: what came with the request.
        custom_id: only in Batch records.
        error: only in Batch records.
    """

    text: str
    ok: bool
    response: Any
    request: Any = None
    metadata: Any = None
    custom_id: str | None = None
    error: Any = None


def take_apart(line: bytes) -> RecordParts | None:
    """The record in ``line``; ``None`` if there is none.

    A list of strings in place of the response is a failure. (A response of that shape looks the
    same, but no endpoint sends one.)
    """
    try:
        text = line.removeprefix(BOM).decode("utf-8")
        value = parse(text, strict=False, max_nesting=MAX_NESTING + _RECORD_NESTING)
    except ValueError:
        return None
    if isinstance(value, list) and len(value) in (2, 3):
        request, response = value[:2]
        failed = isinstance(response, list) and all(isinstance(error, str) for error in response)
        if isinstance(request, dict):
            metadata = value[2] if len(value) == 3 else None
            ok = not failed and not _is_error(response)
            return RecordParts(text, ok, response, request, metadata)
        if isinstance(request, str) and failed:  # an invalid line
            return RecordParts(text, False, response, request)
    if isinstance(value, dict) and isinstance(value.get("custom_id"), str) and "response" in value:
        response, error = value["response"], value.get("error")
        status = response.get("status_code") if isinstance(response, dict) else None
        ok = isinstance(status, int) and 200 <= status < 300 and not error
        return RecordParts(text, ok, response, custom_id=value["custom_id"], error=error)
    return None


def _is_error(response: Any) -> bool:
    """True for an error body, which the cookbook's script may have recorded as a response."""
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    return isinstance(response, dict) and bool(response.get("error"))


def read_results(path: str | Path, errors_path: str | Path | None = None) -> Iterator[Outcome]:
    """The records of a results file as outcomes, in the file's order, then those of an errors file.

    The files are read line by line as the outcomes are taken. This works while a run writes them;
    what is written after the end was reached isn't seen. An incomplete last line is left out. Other
    lines that are no records are skipped, with one warning.

    * ``request.number`` is the number of the line.
    * A Batch record names its request only by ``custom_id``: ``request.body`` is ``None``.
    * ``attempts`` is the number of errors of a failure. For an answer it isn't known, and is 1.

    Raises :class:`ResultsFileError` for a file that can't be read.

    >>> summary = process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl", request_url=url)
    >>> for outcome in read_results(f"{folder}/results.jsonl"):
    ...     print(outcome.request.body["model"], outcome.ok)
    text-embedding-3-small True
    text-embedding-3-small True
    text-embedding-3-small True
    """
    paths = [Path(path)] + ([Path(errors_path)] if errors_path is not None else [])
    for each in paths:
        if not each.is_fifo():  # to open and close a pipe would lose what is in it
            with reading(each):  # so that an error is raised here, not in the caller's loop
                pass
    return (outcome for each in paths for outcome in _outcomes(each))


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a results file. If it can't be opened or read, raise :class:`ResultsFileError`."""
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        raise ResultsFileError(f"can't read {path}: {error.strerror or error}") from error


def _outcomes(path: Path) -> Iterator[Outcome]:
    has_warned = False
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            parts = take_apart(line)
            if parts is not None:
                yield _cookbook(parts, number) if parts.custom_id is None else _batch(parts, number)
            elif line.endswith(b"\n") and line.strip() and not has_warned:
                has_warned = True
                _log.warning("%s: line %d is no record; such lines are skipped", path, number)


def _cookbook(parts: RecordParts, number: int) -> Outcome:
    texts = [text.encode() for text in elements(parts.text)]
    data, is_invalid = parts.response, isinstance(parts.request, str) and bool(parts.response)
    request = Request(
        body=parts.request,
        payload=texts[0],
        number=number,
        metadata=parts.metadata,
        metadata_json=texts[2] if parts.metadata is not None else None,
        invalid_reason=data[-1] if is_invalid else None,
    )
    if parts.ok:
        response = Response(status=200, headers={}, body=texts[1], data=data, is_json=True)
        return _answer(request, response)
    errors = (texts[1].decode(),) if _is_error(data) else tuple(data)
    kind, attempts = (INVALID_REQUEST, 0) if is_invalid else ("", len(errors))
    return Outcome(request=request, ok=False, errors=errors, error_kind=kind, attempts=attempts)


def _batch(parts: RecordParts, number: int) -> Outcome:
    request = Request(body=None, number=number, custom_id=parts.custom_id)
    response = _batch_response(parts)
    if parts.ok and response is not None:
        return _answer(request, response)
    kind = "" if response is None else f"HTTP {response.status}"
    error = parts.error
    if isinstance(error, Mapping):
        kind, error = str(error.get("code") or kind), error.get("message") or dump(error).decode()
    elif not error:
        error = f"{kind}: {read_error(response).message}" if response is not None else "no response"
    return Outcome(
        request=request,
        ok=False,
        raw_response=response,
        errors=(str(error),),
        error_kind=kind,
        attempts=1,
    )


def _batch_response(parts: RecordParts) -> Response | None:
    found = parts.response
    if not isinstance(found, dict) or not isinstance(found.get("status_code"), int):
        return None
    status, data = found["status_code"], found.get("body")
    request_id = found.get("request_id")
    headers = {"x-request-id": request_id} if isinstance(request_id, str) else {}
    if isinstance(data, str):  # the text of a response that wasn't JSON
        return Response(status=status, headers=headers, body=data.encode("utf-8", "replace"))
    body = _last_member(_last_member(parts.text, "response"), "body").encode()
    return Response(status=status, headers=headers, body=body, data=data, is_json=True)


def _last_member(text: str, key: str) -> str:
    return next((part.value for part in reversed(members(text)) if part.key == key), "null")


def _answer(request: Request, response: Response) -> Outcome:
    used = used_tokens(response.data)
    return Outcome(request=request, ok=True, raw_response=response, attempts=1, used_tokens=used)
