"""The order of the requests, for a results file that is to have it.

A run in order appends in order (``writer.InputOrder``). What an earlier run left out of order, because it
was stopped, or because failed requests were tried again, is sorted at the end.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from typing import IO

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.files.append_file import AppendFile, replace_text
from parallel_processor.files.identity import keys, read_record
from parallel_processor.models import Request

_log = logging.getLogger("parallel_processor")
_BUFFER_BYTES = 1024 * 1024


class RequestOrder:
    """The order of requests that were passed on. For one thread.

    It takes 8 bytes a request, and about 100 more for one that is recorded as a Batch row.
    """

    def __init__(self) -> None:
        self._keys = array("Q")
        self._usual: dict[int, int] = {}  # the key of a row, by that of its record in another form

    def noting(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Pass on ``requests``, and note their order."""
        for request in requests:
            found = keys(request)
            key = _short(next(found))
            self._keys.append(key)
            if request.custom_id is not None:
                *_, other = found
                self._usual.setdefault(_short(other), key)
            yield request

    def restore(self, files: Iterable[AppendFile]) -> None:
        """Bring the records in ``files`` into the order of the requests, where they aren't.

        That takes about 200 bytes of memory a line. A sorted copy then replaces the file in one step. Lines
        that belong to no request come last.

        Raises :class:`ResultsFileError`; the file stays as it was.
        """
        for file in files:
            try:
                if file.is_regular and not self._is_kept_by(file):
                    _log.info("%s is put in order", file.path)
                    self._sort(file)
            except OSError as error:
                text = f"can't put {file.path} in order: {error.strerror or error}"
                raise ResultsFileError(f"{text}; no answer in it was lost") from error

    def _key(self, line: bytes) -> int | None:
        """The key of the request that the record in ``line`` is of; ``None`` if there is none."""
        record = read_record(line)
        key = None if record is None else _short(record.content)
        return key if key is None else self._usual.get(key, key)

    def _is_kept_by(self, file: AppendFile) -> bool:
        order, at = self._keys, 0
        known: frozenset[int] | None = (
            None  # set once a line was found that belongs to no later request
        )
        with file.open_text() as lines:
            for key in map(self._key, lines):
                if known is None:
                    place = at
                    while place < len(order) and order[place] != key:
                        place += 1
                    if place < len(order):
                        at = place + 1
                        continue
                    known = frozenset(order)
                if key in known:
                    return False  # behind a line that should come later
        return True

    def _sort(self, file: AppendFile) -> None:
        from tempfile import TemporaryFile  # it loads all that packs files

        places: dict[int | None, list[int]] = {}
        for place in range(len(self._keys) - 1, -1, -1):
            places.setdefault(self._keys[place], []).append(place)
        with file.open_text() as text, TemporaryFile(dir=file.path.resolve().parent) as spool:
            rows: list[tuple[int, int, int]] = []
            start = 0
            for line in text:
                found = places.get(self._key(line))
                rows.append((found.pop() if found else len(self._keys), start, len(line)))
                start += len(line)
                spool.write(line)
            rows.sort()
            replace_text(file, _rows_of(spool, rows))


def _short(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _rows_of(file: IO[bytes], rows: Iterable[tuple[int, int, int]]) -> Iterator[bytes]:
    lines, size = [], 0
    for _, start, count in rows:
        file.seek(start)
        lines.append(file.read(count))
        size += count
        if size >= _BUFFER_BYTES:
            yield b"".join(lines)
            lines, size = [], 0
    yield b"".join(lines)
