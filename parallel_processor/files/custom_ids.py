"""Gives requests the ids that their records need, and finds rows that share one, as they are read.

A record of a Batch row names its request by the ``custom_id`` alone. If two different requests share one,
nobody can tell whose answer a record is, and a resumed run would take the one for the other. So the second
row ends the run before it is sent. Rows that are equal in everything can't be mixed up: each is sent, with
one warning.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from parallel_processor.exceptions import InputFileError
from parallel_processor.files.batch_rows import (
    COOKBOOK,
    OPENAI,
    Dialect,
    RowRequest,
    as_row,
    dialect_of,
    wrong_api,
)
from parallel_processor.files.identity import given_id, id_in, identity
from parallel_processor.files.requests_file import Place, line_place
from parallel_processor.models import Request
from parallel_processor.options import OutputFormat, shown_url

_log = logging.getLogger("parallel_processor")
_BUCKETS = 16_384
_ID_BYTES, _CONTENT_BYTES, _LINE_BYTES = 7, 4, 4  # of an entry
_LINE_AT = _ID_BYTES + _CONTENT_BYTES
_ENTRY_BYTES = _LINE_AT + _LINE_BYTES
_CONTENT_MASK, _MOST_LINES = 256**_CONTENT_BYTES - 1, 256**_LINE_BYTES - 1


class EarlierRow(NamedTuple):
    """A row with the same ``custom_id``."""

    line: int
    is_equal: bool  # in URL and body, too


class CustomIds:
    """The ``custom_id`` of each row so far. For one thread.

    It takes about 21 bytes a row, where a ``dict`` takes over 100: 14 bits of an id's hash choose one of
    16,384 byte strings, and 7 more bytes of it, 4 of the content's hash and the line number are appended.
    The probability that two ids among ten million are taken for the same is below 1 in ten million.
    """

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = []

    def add(self, request: Request) -> EarlierRow | None:
        """Add the row of ``request``; if its id was there already, return the first row with it instead."""
        assert request.custom_id is not None
        self._buckets = self._buckets or [None] * _BUCKETS
        data = request.custom_id.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=_ID_BYTES + 2).digest()
        number, key = int.from_bytes(digest[:2], "big") % _BUCKETS, digest[2:]
        content = (hash((request.url, request.payload)) & _CONTENT_MASK).to_bytes(
            _CONTENT_BYTES, "big"
        )
        bucket = self._buckets[number]
        if bucket is None:
            bucket = self._buckets[number] = bytearray()
        at = bucket.find(key)
        while at > 0 and at % _ENTRY_BYTES:  # found across the border of two entries
            at = bucket.find(key, at + 1)
        if at < 0:
            line = min(request.number, _MOST_LINES)
            bucket += key + content + line.to_bytes(_LINE_BYTES, "big")
            return None
        line = int.from_bytes(bucket[at + _LINE_AT : at + _ENTRY_BYTES], "big")
        return EarlierRow(line, bucket[at + _ID_BYTES : at + _LINE_AT] == content)


def arranged(
    requests: Iterable[Request],
    output_format: OutputFormat,
    place: Place = line_place,
    *,
    is_strict: bool = False,
) -> Iterator[Request]:
    """``requests`` as those whose records have the form ``output_format``, with checked ids.

    Says once what form the rows have, if it isn't OpenAI's. Raises :class:`InputFileError` at the second
    row of one id, if it differs; with ``is_strict`` in any case, as a Batch API does.
    """
    ids, has_warned, told = CustomIds(), False, {OPENAI.name}
    arrange = _ARRANGEMENTS[output_format]
    for request in requests:
        if request.custom_id is None and arrange is None:
            yield request  # most are such
            continue
        if type(request) is RowRequest and request.dialect.name not in told:
            _tell(request, request.dialect, place, is_sent=not is_strict)
            told.add(request.dialect.name)
        if arrange is not None:
            request = arrange(request)
        if request.custom_id is not None and (earlier := ids.add(request)) is not None:
            if not earlier.is_equal or is_strict:
                raise InputFileError(conflict_text(earlier, request, place))
            if not has_warned:
                has_warned = True
                _log.warning(
                    "%s and %s are the same request, custom_id %.100r; each is sent, here and below",
                    *(place(earlier.line), place(request.number), request.custom_id),
                    extra={"request_number": request.number},
                )
        yield request


def refusing_wrong_api(
    requests: Iterator[Request], request_url: str, place: Place
) -> Iterator[Request]:
    """Pass on ``requests``. If line 1 is a row that ``request_url`` can't take, others will be such, too.

    Raises :class:`InputFileError` then. A later one is a bad line, as any other.
    """
    for request in requests:
        is_invalid = isinstance(request, RowRequest) and request.invalid_reason is not None
        if (
            request.number == 1
            and is_invalid
            and (fault := wrong_api(dialect_of(request), request_url))
        ):
            raise InputFileError(f"{place(request.number)} {fault}")
        yield request
        break
    yield from requests


def _tell(request: RowRequest, dialect: Dialect, place: Place, *, is_sent: bool) -> None:
    lacks_model = dialect.has_model and not request.model and request.invalid_reason is None
    _log.info(
        "%s is a row in the form of %s (%s, %s), as others may be%s%s",
        *(place(request.number), dialect.name, dialect.id_key, dialect.body_key),
        f"; it is sent to {shown_url(request.url)}" if request.url and is_sent else "",
        "; it names no model, which --model would fill in" if lacks_model else "",
        extra={"request_number": request.number},
    )


def with_id(request: Request) -> RowRequest:
    """``request`` with the id of its Batch record: its own, that in its metadata, or one of its line."""
    if request.custom_id is not None:
        origin = request.origin if isinstance(request, RowRequest) else b""
        return as_row(request, request.custom_id, OPENAI, origin)
    return as_row(request, given_id(request), OPENAI, identity(request))


def _for_cookbook(request: Request) -> Request:
    custom_id = request.custom_id
    return request if custom_id is None else as_row(request, custom_id, COOKBOOK)


_ARRANGEMENTS: Mapping[OutputFormat, Callable[[Request], Request] | None] = {
    "auto": None,
    "batch": with_id,
    "cookbook": _for_cookbook,
}


def in_form(request: Request, output_format: OutputFormat) -> Request:
    """``request`` as one whose record has the form ``output_format``; its id is not checked."""
    arrange = _ARRANGEMENTS[output_format]
    return request if arrange is None else arrange(request)


def conflict_text(earlier: EarlierRow, request: Request, place: Place = line_place) -> str:
    """What is wrong with a row whose ``custom_id`` an earlier line has, and the remedy."""
    first, later = place(earlier.line), place(request.number)
    both = f"{first} and {later} of the requests have the same custom_id "
    both += repr(str(request.custom_id)[:100])
    if earlier.is_equal:
        return f"{both}, which a Batch API takes once: remove one of them, or give it another id"
    if isinstance(request, RowRequest) and request.origin and not id_in(request.metadata):
        return (
            f"{both}: {first} has it itself, and {later}, which has none, would be given it. "
            f'Give {later} an id of its own, in its metadata ("custom_id")'
        )
    another = "another id of as many characters" if later.startswith("byte ") else "another id"
    return (
        f"{both} but different requests: their answers could not be told apart. "
        f"Give {later} {another}: {first} may have its answer under this one"
    )
