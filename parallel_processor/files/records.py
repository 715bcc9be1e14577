"""The lines of a results file, written and read back: to resume a job, and for programs.

:func:`take_apart` tells records from other lines, and answers from failures, in the files of this
package, of the cookbook's script, of the Batch APIs and of ``vllm run-batch``. A record holds request and
response as they came, byte for byte.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from parallel_processor.exceptions import ParallelProcessorError, ResultsFileError
from parallel_processor.files.batch_rows import ASKED, row_record, row_result
from parallel_processor.files.compression import unpacked
from parallel_processor.models import INVALID_REQUEST, Outcome, Request, Response
from parallel_processor.providers.answers import (
    Expected,
    Fault,
    count_inputs,
    fault_of,
    is_failure_list,
)
from parallel_processor.providers.claims import is_said
from parallel_processor.providers.failures import of_failure
from parallel_processor.providers.jsontext import MAX_NESTING, dump, elements, members, parse
from parallel_processor.providers.promises import POLLED
from parallel_processor.providers.usage import used_tokens

_log = logging.getLogger("parallel_processor")

BOM = b"\xef\xbb\xbf"
_RECORD_NESTING = 2  # levels of a record around a request or a response
_BUFFER_BYTES = 1024 * 1024
_FRAME = {"status_code", "body"}  # what a Batch record's response has around the body


class RecordParts(NamedTuple):
    """A parsed line of a results file.

    Attributes:
        text: the line.
        fault: why the request was not answered; ``None`` if it was.
        response: the response, or the list of errors in its place.
        request: the request's body; a string if the line was invalid. Batch records have none.
        metadata: what came with the request.
        custom_id: only in Batch records, as what follows.
        error: the failure, if the record names one.
        path: the members that lead to the response.
        is_framed: the response may be in an object with a ``status_code``.
        origin: the identity of the request, if it was no row.
    """

    text: str
    fault: Fault | None
    response: Any
    request: Any = None
    metadata: Any = None
    custom_id: str | None = None
    error: Any = None
    path: tuple[str, ...] = ()
    is_framed: bool = False
    origin: bytes | None = None

    @property
    def ok(self) -> bool:
        """True if the request was answered."""
        return self.fault is None


UNCLEAR = Fault("unclear", "another program's form, which may be an answer or an error")
"""The fault of another program's record that can't be told to be an answer or a failure."""
_FAILED = Fault("", "")  # the record says so itself
# How the text of an exception begins, which some programs record as it is. An answer may begin nearly so:
# where that is possible, the text is taken for neither.
_ERROR_TEXT = re.compile(
    r"\s*(?:(?:none|null|nan)?\s*$|[\w.]*(?:error|exception)\s*(?:[:(\[]|$)|error code: ?\d|traceback \("
    r"|failed\s*(?:[:(]|after \d|to (?:fetch|connect|get|parse|decode)\b)|connection error\.?\s*$"
    r"|(?:request )?time(?:d )?out\b\s*(?:[.:(]|$)|http[ /]?(?:1\.1 )?[45]\d\d\b"
    r"|[45]\d\d [a-z ]+\s*(?::|$))",
    re.IGNORECASE,
)


def record(outcome: Outcome) -> bytes:
    """The line that records ``outcome``, with its line end."""
    request = outcome.request
    if request.custom_id is not None:
        return row_record(outcome)
    if outcome.ok and outcome.raw_response is not None:
        response = outcome.raw_response.body
    else:
        response = dump(list(outcome.errors))
    if request.metadata_json is None:
        return b"[" + request.payload + b", " + response + b"]\n"
    return b"[" + request.payload + b", " + response + b", " + request.metadata_json + b"]\n"


def take_apart(line: bytes) -> RecordParts | None:
    """The record in ``line``; ``None`` if there is none.

    What stands in the response's place is judged as a response is that comes in (``answers.py``).
    """
    try:
        text = line.removeprefix(BOM).decode("utf-8")
        value = parse(text, strict=False, max_nesting=MAX_NESTING + _RECORD_NESTING)
    except ValueError:
        return None
    if isinstance(value, list) and len(value) in (2, 3):
        request, response = value[:2]
        if isinstance(request, dict):
            metadata = value[2] if len(value) == 3 else None
            if _is_request(response) and not _is_request(request):  # metadata, request, response
                return RecordParts(text, UNCLEAR, response, request, metadata)
            expected = Expected(inputs=count_inputs(request))
            return RecordParts(text, _fault(response, expected), response, request, metadata)
        if isinstance(request, str) and is_failure_list(response):  # an invalid line
            metadata = value[2] if len(value) == 3 else None
            return RecordParts(text, _FAILED, response, request, metadata)
    if isinstance(value, dict) and (row := row_result(value)) is not None:
        fault = _FAILED if is_said(row.error) else _fault_of_row(row.answer, row.is_framed)
        return RecordParts(
            text=text,
            fault=fault,
            response=row.answer,
            custom_id=row.custom_id,
            error=row.error,
            path=row.path,
            is_framed=row.is_framed,
            origin=row.origin,
        )
    return None


def _is_request(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(ASKED) and "model" in value


def _fault(value: Any, expected: Expected) -> Fault | None:
    """What is wrong with ``value``, which stands in the response's place; ``None`` for an answer."""
    if is_failure_list(value) and not expected.is_batch_row:
        return _FAILED
    if isinstance(value, (str, int, float)) and not _ERROR_TEXT.match(str(value)):
        return UNCLEAR
    return fault_of(value, expected)


def _fault_of_row(response: Any, is_framed: bool) -> Fault | None:
    """What is wrong with the ``response`` of a Batch record that has no error."""
    if response is None:
        return _FAILED
    status, body = _taken_out(response, is_framed)
    if not 200 <= status < 300:
        return _FAILED
    if status == 202:
        return Fault("not answered yet", POLLED)
    return _fault(body, Expected(is_batch_row=True))


def _taken_out(response: Any, is_framed: bool) -> tuple[int, Any]:
    """The status and the body of a Batch record's response, which may be the bare body."""
    if not is_framed or not isinstance(response, dict) or response.keys().isdisjoint(_FRAME):
        return 200, response  # so vLLM wrote it once
    status = str(response.get("status_code", 200))
    is_number = status.isascii() and status.isdigit()
    return int(status) if is_number else 0, response.get("body")


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
def reading(
    path: Path, buffer_bytes: int = _BUFFER_BYTES, *, is_growing: bool = True
) -> Iterator[BinaryIO]:
    """Open the text of a results file. If it can't be opened or read, raise :class:`ResultsFileError`.

    With ``is_growing`` false, that includes compressed data whose end is missing.
    """
    try:
        with (
            io.BufferedReader(cast(Any, io.FileIO(path)), buffer_bytes) as packed,
            unpacked(packed, str(path), is_growing=is_growing) as file,
        ):
            yield file
    except ParallelProcessorError:  # some are an OSError
        raise
    except OSError as error:
        raise ResultsFileError(f"can't read {path}: {error.strerror or error}") from error


def read_outcome(line: bytes, number: int) -> Outcome | None:
    """The outcome that ``line`` records; ``None`` if it is no record."""
    parts = take_apart(line)
    if parts is None:
        return None
    return _cookbook(parts, number) if parts.custom_id is None else _batch(parts, number)


def _outcomes(path: Path) -> Iterator[Outcome]:
    has_warned = False
    with reading(path) as file:
        for number, line in enumerate(file, 1):
            outcome = read_outcome(line, number)
            if outcome is not None:
                yield outcome
            elif line.endswith(b"\n") and line.strip() and not has_warned:
                has_warned = True
                _log.warning("%s: line %d is no record; such lines are skipped", path, number)


def _cookbook(parts: RecordParts, number: int) -> Outcome:
    texts = [text.encode() for text in elements(parts.text)]
    data, fault = parts.response, parts.fault
    is_invalid = isinstance(parts.request, str) and bool(data)
    request = Request(
        body=parts.request,
        payload=texts[0],
        number=number,
        metadata=parts.metadata,
        metadata_json=texts[2] if parts.metadata is not None else None,
        invalid_reason=data[-1] if is_invalid else None,
    )
    if fault is None:
        response = Response(status=200, headers={}, body=texts[1], data=data, is_json=True)
        return _answer(request, response)
    errors = _errors(data, texts[1].decode(), fault)
    kind, attempts = (INVALID_REQUEST, 0) if is_invalid else (fault.kind, len(errors))
    return Outcome(request=request, ok=False, errors=errors, error_kind=kind, attempts=attempts)


def _errors(data: Any, text: str, fault: Fault) -> tuple[str, ...]:
    """The errors of a failed record, one for each attempt that it tells of."""
    if is_failure_list(data):
        each = zip(data, elements(text), strict=True)
        return tuple(value if isinstance(value, str) else shown for value, shown in each)
    if isinstance(data, str):
        return (data,)
    return (text if fault.error is not None else f"{fault.message}: {text}",)


def _batch(parts: RecordParts, number: int) -> Outcome:
    request = Request(body=None, number=number, custom_id=parts.custom_id)
    response = _batch_response(parts)
    if parts.ok and response is not None:
        return _answer(request, response)
    kind, error = "" if response is None else f"HTTP {response.status}", parts.error
    if isinstance(error, Mapping):
        kind, error = str(error.get("code") or kind), error.get("message") or dump(error).decode()
    elif not error and parts.fault not in (None, _FAILED):
        kind, error = parts.fault.kind, f"{parts.fault.kind}: {parts.fault.message}"
    elif not error and response is not None:
        attempt = of_failure(response)
        kind, error = attempt.kind, attempt.error
    elif not error:
        error = "no response"
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
    if not isinstance(found, (dict, list)):
        return None
    status, data = _taken_out(found, parts.is_framed)
    request_id = found.get("request_id") if isinstance(found, dict) else None
    headers = {"x-request-id": request_id} if isinstance(request_id, str) else {}
    if isinstance(data, str):  # the text of a response that wasn't JSON
        return Response(status=status, headers=headers, body=data.encode("utf-8", "replace"))
    text = parts.text
    for key in (*parts.path, "body") if data is not found else parts.path:
        text = _last_member(text, key)
    return Response(status=status, headers=headers, body=text.encode(), data=data, is_json=True)


def _last_member(text: str, key: str) -> str:
    return next((part.value for part in reversed(members(text)) if part.key == key), "null")


def _answer(request: Request, response: Response) -> Outcome:
    used = used_tokens(response.data)
    return Outcome(request=request, ok=True, raw_response=response, attempts=1, used_tokens=used)
