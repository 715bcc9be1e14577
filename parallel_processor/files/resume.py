"""Opens the results files of a job, finds out what they answer, and repairs them after a stop.

The results file is the only state. A request is answered if a good record of it is there; *k* equal
requests need *k* records.

The repair has two steps, and a crash in either loses nothing. A torn last line is cut off in place.
If there are failed records, a file without them is written, and replaces the old one once it is on disk.

A run in order appends in order. What an earlier run left out of order, because it was stopped, or because
failed requests were tried again, is sorted at the end (:func:`put_in_order`).
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, BinaryIO

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX, AppendFile, open_results
from parallel_processor.files.formats import identity, is_json, read_record
from parallel_processor.models import Request

_log = logging.getLogger("parallel_processor")
_BUFFER_BYTES = 1024 * 1024
_LINES_PER_CHECK = 1000
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BUCKETS = 16_384

Check = Callable[[], None]
"""Is called every 1,000 lines while a file is read. It may raise; the file stays unchanged then."""


class AnsweredRequests:
    """The requests that have a good record, each as often as it was answered. For one thread.

    It takes 16 bytes per answer, where a ``dict`` takes over 100. The first two bytes of a key
    choose one of 16,384 byte strings. The other 14 bytes are appended to it.
    """

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = []
        # What the scan of the files found: good and failed records, and lines that are no records.
        self.answered = self.failed = self.foreign = 0

    @cached_property
    def kept_failures(self) -> AnsweredRequests:
        """The requests whose failed record stays; empty if they are sent again."""
        return AnsweredRequests()

    @property
    def is_empty(self) -> bool:
        """True if nothing was ever added."""
        return not self._buckets

    def add(self, key: bytes) -> None:
        """Add an answer for the requests of identity ``key``."""
        self._buckets = self._buckets or [None] * _BUCKETS
        number, rest = _place_of(key)
        bucket = self._buckets[number]
        if bucket is None:
            self._buckets[number] = bytearray(rest)
        else:
            bucket += rest

    def take(self, request: Request) -> bool:
        """True if ``request`` is answered. The answer is used up: it serves no other request."""
        if not self._buckets:
            return False
        number, rest = _place_of(identity(request))
        bucket = self._buckets[number] or bytearray()
        at = bucket.find(rest)
        while at > 0 and at % len(rest):  # found across the border of two keys
            at = bucket.find(rest, at + 1)
        if at < 0:
            return False
        last = bucket[-len(rest) :]
        del bucket[-len(rest) :]
        if at < len(bucket):
            bucket[at : at + len(rest)] = last
        return True


def _place_of(key: bytes) -> tuple[int, bytes]:
    return int.from_bytes(key[:2], "big") % _BUCKETS, key[2:]


class _Scan:
    """One reading of a results file: what it answers, and what has to be repaired."""

    def __init__(
        self, file: AppendFile, answered: AnsweredRequests, keep_failures: bool, check: Check
    ) -> None:
        self.answered = answered
        self._keep_failures = keep_failures
        self.size_bytes = 0  # of the text
        self.end = 0  # where the last line that stays ends
        self.lacks_line_end = False
        self._records = self._foreign = 0
        self.unclear_line = 0  # the first one; 0 if there is none
        self.failed = array("Q")  # where runs of failed records begin and end, alternately
        with file.open_text() as lines:
            for number, line in enumerate(lines):
                if number % _LINES_PER_CHECK == 0:
                    check()
                self._add(line, number + 1)
                self.size_bytes += len(line)
        self.is_foreign = self._foreign > 0 and self._records == 0  # lines, but no record

    def _add(self, line: bytes, number: int) -> None:
        record, start, end = read_record(line), self.end, self.end + len(line)
        if record is not None and record.ok is None and not self.unclear_line:
            self.unclear_line = number
        is_whole = line.endswith(b"\n")
        self._records += record is not None
        if record is not None and record.ok:
            self.answered.answered += 1
            self.answered.add(record.identity)
        elif record is not None:
            self.answered.failed += 1
            if self._keep_failures:
                self.answered.kept_failures.add(record.identity)
            elif not is_whole:
                return  # it is cut off, like a torn line
            elif self.failed and self.failed[-1] == start:
                self.failed[-1] = end
            else:
                self.failed.extend((start, end))
        elif not is_whole and _is_torn(line):
            return
        elif line.strip():
            self.answered.foreign += 1
            self._foreign += 1
        self.end, self.lacks_line_end = end, not is_whole


def _is_torn(line: bytes) -> bool:
    """True if a last line is the beginning of a record, or zeros that a power loss has left."""
    return line[:1] in (b"[", b"{", b"\0") and not is_json(line)


@contextmanager
def open_files(save: Path, errors: Path | None) -> Iterator[list[AppendFile]]:
    """Open and lock the results file, and the errors file if there is one. Close them at the end."""
    with ExitStack() as stack:
        files = []
        for path in [save] if errors is None else [save, errors]:
            files.append(open_results(path))
            stack.callback(files[-1].close)
        yield files


def prepare(
    files: Sequence[AppendFile],
    *,
    overwrite: bool = False,
    keep_failures: bool = False,
    check: Check = lambda: None,
) -> AnsweredRequests:
    """Repair the files of a job, and return which requests they answer.

    A torn last line is cut off. Failed records are removed, so that their requests are sent again.
    Lines that are no records stay.

    Args:
        files: the results file, and the errors file if there is one. Pipes and devices are left
            alone.
        overwrite: empty the files instead.
        keep_failures: leave failed records in place; their requests are not sent again.
        check: called now and then while a file is read.

    Raises :class:`ResultsFileError` if a file can't be read or repaired, or has lines but no
    record. No complete record is lost then.
    """
    answered = AnsweredRequests()
    regular = [file for file in files if file.is_regular]
    if overwrite:
        for file in regular:
            file.truncate(0)
    else:  # nothing is changed before every file is understood
        scans = [_scan(file, answered, keep_failures, check) for file in regular]
        for file, scan in zip(regular, scans, strict=True):
            _mend(file, scan)
    _report(files[0].path, answered, keep_failures)
    return answered


def _scan(file: AppendFile, answered: AnsweredRequests, keep_failures: bool, check: Check) -> _Scan:
    """Read ``file``, and add what it answers to ``answered``. It must hold records, and nothing unclear."""
    try:
        scan = _Scan(file, answered, keep_failures, check)
    except OSError as error:
        raise _repair_error(file, error) from error
    if scan.is_foreign:
        raise ResultsFileError(
            f"{file.path} holds no records: name another results file, or start afresh with --overwrite"
        )
    if scan.unclear_line:
        raise ResultsFileError(
            f"{file.path}: line {scan.unclear_line} is in another program's form: what is in the"
            " response's place may be an answer or an error. Nothing was changed. Remove such lines if they"
            " are errors, name another results file, or start afresh with --overwrite"
        )
    return scan


def _repair_error(file: AppendFile, error: OSError) -> ResultsFileError:
    return ResultsFileError(
        f"can't repair {file.path}: {error.strerror or error}; no answer in it was lost"
    )


def _mend(file: AppendFile, scan: _Scan) -> None:
    """Leave only whole lines and good records in ``file``."""
    try:
        if scan.size_bytes != scan.end:
            _log.info("%s: a torn last line is cut off", file.path)
        size = scan.end
        if not file.cut(scan.end, scan.size_bytes):
            scan.failed.extend((scan.end, scan.size_bytes))
            size = scan.size_bytes
        if scan.lacks_line_end:
            file.append(b"\n")
            file.end()
        file.sync()
        if scan.failed:
            _drop(file, scan.failed, size + scan.lacks_line_end)
    except ResultsFileError:
        raise
    except OSError as error:
        raise _repair_error(file, error) from error


def _report(path: Path, answered: AnsweredRequests, keep_failures: bool) -> None:
    if answered.answered:
        _log.info("%s has %s answers", path, f"{answered.answered:,}")
    if answered.failed:
        what = "stay as they are" if keep_failures else "are tried again"
        _log.info("%s requests that failed before %s", f"{answered.failed:,}", what)
    if answered.foreign:
        _log.warning("%s lines of the results are no records; they stay", f"{answered.foreign:,}")


def _drop(file: AppendFile, ranges: Sequence[int], size: int) -> None:
    """Replace ``file`` by a copy without the bytes in ``ranges`` of its text, which has ``size`` bytes."""
    with file.open_text() as old:
        _replace(file, _chunks_without(old, ranges, size))


def _replace(file: AppendFile, chunks: Iterable[bytes]) -> None:
    """Give ``file`` another text, in one step: a crash leaves the old one or the new one."""
    path = file.path.resolve().with_name(file.path.name + REPLACEMENT_SUFFIX)
    beside = file.beside(path, _NO_LINK)
    try:
        beside.truncate(0)  # an earlier copy, whose process was killed, may be there
        for chunk in chunks:
            beside.append(chunk)
        beside.end()
        beside.sync()
        file.replace_by(beside)
    except BaseException:
        beside.close()
        path.unlink(missing_ok=True)
        raise


def _chunks_without(file: BinaryIO, ranges: Sequence[int], size: int) -> Iterator[bytes]:
    starts, ends = (
        chain((0,), islice(ranges, 1, None, 2)),
        chain(islice(ranges, 0, None, 2), (size,)),
    )
    place = 0
    for start, end in zip(starts, ends, strict=True):
        while place < start:  # compressed text can't be gone to
            place += len(file.read(min(_BUFFER_BYTES, start - place)))
        while chunk := file.read(min(_BUFFER_BYTES, end - start)):
            yield chunk
            start += len(chunk)
        place = start


def order_key(request: Request) -> int:
    """What :func:`put_in_order` knows a request by."""
    return _order_key(identity(request))


def _order_key(found: bytes) -> int:
    return int.from_bytes(found[:8], "big")


def put_in_order(files: Iterable[AppendFile], keys: array[int]) -> None:
    """Bring the records into the order of their requests, whose ``keys`` come in that order.

    Only where something is out of order, which takes about 200 bytes of memory a line. A sorted copy then
    replaces the file in one step. Lines that belong to no request come last.

    Raises :class:`ResultsFileError`; the file stays as it was.
    """
    for file in files:
        try:
            if file.is_regular and not _has_order(file, keys):
                _log.info("%s is put in order", file.path)
                _sort(file, keys)
        except OSError as error:
            text = f"can't put {file.path} in order: {error.strerror or error}; no answer in it was lost"
            raise ResultsFileError(text) from error


def _has_order(file: AppendFile, keys: array[int]) -> bool:
    at, known = 0, None
    with file.open_text() as lines:
        for line in lines:
            key = _order_key(record.identity) if (record := read_record(line)) else None
            place = at
            while place < len(keys) and keys[place] != key:
                place += 1
            if place < len(keys):
                if known is not None:
                    return False  # behind a line that should be last
                at = place + 1
            else:
                known = known or frozenset(keys)
                if key in known:
                    return False
    return True


def _sort(file: AppendFile, keys: array[int]) -> None:
    from tempfile import TemporaryFile  # here: it loads much that a run needs not

    places: dict[int, list[int]] = {}
    for place in range(len(keys) - 1, -1, -1):
        places.setdefault(keys[place], []).append(place)
    with file.open_text() as text, TemporaryFile(dir=file.path.resolve().parent) as spool:
        rows: list[tuple[int, int, int]] = []
        start = 0
        for line in text:
            record = read_record(line)
            found = places.get(_order_key(record.identity)) if record is not None else None
            rows.append((found.pop() if found else len(keys), start, len(line)))
            start += len(line)
            spool.write(line)
        rows.sort()
        _replace(file, _rows_of(spool, rows))


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
