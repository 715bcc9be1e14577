"""Opens the results files of a job, finds out what they answer, and repairs them after a stop.

The results file is the only state. A request is answered if a good record of it is there; *k* equal
requests need *k* records. ``identity.py`` says which record is of which request.

A cookbook line that has no id of its own has its place in the file as the id of its Batch record. If lines
before it come or go, that id becomes another line's. Such a line is refused: its record would be the second
one with that id.

The repair has two steps, and a crash in either loses nothing. A torn last line is cut off in place.
If there are failed records, a file without them is written, and replaces the old one once it is on disk.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from parallel_processor.exceptions import InputFileError, ResultsFileError
from parallel_processor.files.append_file import AppendFile, drop, open_results
from parallel_processor.files.batch_rows import is_json
from parallel_processor.files.identity import (
    Record,
    given_id,
    id_key,
    identity,
    keys,
    line_id,
    read_record,
)
from parallel_processor.files.requests_file import Place
from parallel_processor.models import Request

_log = logging.getLogger("parallel_processor")
_BUFFER_BYTES = 1024 * 1024
_LINES_PER_CHECK = 1000
_BUCKETS = 16_384

Check = Callable[[], None]
"""Is called every 1,000 lines while a file is read. It may raise; the file stays unchanged then."""
OnAnswer = Callable[[bytes], None]
"""Is called with each line that records an answer."""
OpenText = Callable[[], AbstractContextManager[BinaryIO]]


class AnsweredRequests:
    """The requests that have a good record, each as often as it was answered. For one thread.

    It takes 16 bytes per answer, where a ``dict`` takes over 100. The first two bytes of a key
    choose one of 16,384 byte strings. The other 14 bytes are appended to it.
    """

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = []
        self._has_warned = False
        # What the scan of the files found: good and failed records, and lines that are no records.
        self.answered = self.failed = self.foreign = 0
        self.has_ids_alone = False  # true if Batch records tell nothing else of their requests

    @cached_property
    def kept_failures(self) -> AnsweredRequests:
        """The requests whose failed record stays; empty if they are sent again."""
        return AnsweredRequests()

    @property
    def is_empty(self) -> bool:
        """True if nothing was ever added."""
        return not self._buckets

    @cached_property
    def given_ids(self) -> AnsweredRequests:
        """The ids that cookbook lines were given, of the records that stay; alone, and with their lines."""
        return AnsweredRequests()

    @cached_property
    def lines(self) -> AnsweredRequests:
        """The cookbook lines that have a Batch record which no request was found for yet."""
        return AnsweredRequests()

    def add_record(self, record: Record) -> None:
        """Add what ``record`` answers."""
        self.add(record.identity)
        self.has_ids_alone = self.has_ids_alone or record.has_id_alone
        if record.origin is not None:
            self.lines.add(record.origin)
        if record.given_id is not None:
            self.given_ids.add(record.given_id)
            self.given_ids.add(record.identity)

    def add(self, key: bytes) -> None:
        """Add an answer for the requests that have this key."""
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
        for place, key in enumerate(keys(request)):
            if self._take(key):
                if place == 1 and not self.lines.is_empty:
                    self.lines._take(identity(request))
                if place == 2 and request.custom_id == line_id(request.number):
                    self._note_place(request)
                return True
        return False

    def check_lines(self, requests: Iterable[Request], place: Place, check: Check) -> None:
        """Raise what :meth:`check_id` would, before anything is sent, for lines that are no Batch rows.

        It need not be called unless ``has_ids_alone``. ``requests`` is read up to the first row: a record
        with nothing but an id may be that of a row.
        """
        for number, request in enumerate(requests):
            if number % _LINES_PER_CHECK == 0:
                check()
            if request.custom_id is not None:
                return
            kept = (self, self.kept_failures)
            if not any(each.has(key) for key in keys(request) for each in kept):
                self.check_id(request, place(request.number))

    def check_id(self, request: Request, place: str) -> None:
        """Raise :class:`InputFileError` if the record of another request may have the id of this one.

        ``place`` says where the request is.
        """
        custom_id = request.custom_id
        if custom_id is None:
            if self.lines.has(identity(request)):
                raise InputFileError(
                    f"{place} has its answer in the results file, in a Batch record of a line with another "
                    "number: lines came, went or moved before it. Undo that; or name another results file"
                )
            if self.has(id_key(given_id(request))):
                raise InputFileError(
                    f"{place} may have its answer in the results file, in a Batch record with the id "
                    f"{given_id(request)[:100]!r}: give --output_format batch (output_format=) to take "
                    "such records for those of the lines; or name another results file"
                )
            return
        key = id_key(custom_id)
        of_line = [each for each in keys(request) if each != key]
        for ids in (self.given_ids, self.kept_failures.given_ids):
            if not ids.has(key) or any(map(ids.has, of_line)):  # or it is that of an equal line
                continue
            raise InputFileError(
                f"{place} would be recorded with the id {custom_id[:100]!r}, which the results file has "
                "for another request: lines were changed, or came or went before it. Undo that; or give "
                'requests ids that stay (in their metadata: "custom_id"), and name another results file or '
                "start afresh with --overwrite"
            )

    def _note_place(self, request: Request) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the record %r was made elsewhere, and says of its request only which line it was: it is "
                "taken for the answer of that line as it is now, and so are others. If lines came or went "
                "since, they are mixed up",
                request.custom_id,
            )

    def _take(self, key: bytes) -> bool:
        number, rest = _place_of(key)
        at = self._find(number, rest)
        if at < 0:
            return False
        bucket = self._buckets[number]
        assert bucket is not None
        last = bucket[-len(rest) :]
        del bucket[-len(rest) :]
        if at < len(bucket):
            bucket[at : at + len(rest)] = last
        return True

    def has(self, key: bytes) -> bool:
        """True if an answer with this key was added."""
        return bool(self._buckets) and self._find(*_place_of(key)) >= 0

    def _find(self, number: int, rest: bytes) -> int:
        """Where a key is in its bucket; below 0 if it isn't there."""
        bucket = self._buckets[number] or bytearray()
        at = bucket.find(rest)
        while at > 0 and at % len(rest):  # found across the border of two keys
            at = bucket.find(rest, at + 1)
        return at


def _place_of(key: bytes) -> tuple[int, bytes]:
    return int.from_bytes(key[:2], "big") % _BUCKETS, key[2:]


class _Scan:
    """One reading of a results file: what it answers, and what has to be repaired."""

    def __init__(
        self,
        open_text: OpenText,
        answered: AnsweredRequests,
        keep_failures: bool,
        check: Check,
        on_answer: OnAnswer | None,
    ) -> None:
        self.answered = answered
        self._keep_failures, self._on_answer = keep_failures, on_answer
        self.size_bytes = 0  # of the text
        self.end = 0  # where the last line that stays ends
        self.lacks_line_end = False
        self._records = self._foreign = 0
        self.unclear_line = 0  # the first one; 0 if there is none
        self.failed = array("Q")  # where runs of failed records begin and end, alternately
        with open_text() as lines:
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
            self.answered.add_record(record)
            if self._on_answer is not None:
                self._on_answer(line)
        elif record is not None:
            self.answered.failed += 1
            if self._keep_failures:
                self.answered.kept_failures.add_record(record)
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
    on_answer: OnAnswer | None = None,
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
        on_answer: called with each line that records an answer.

    Raises :class:`ResultsFileError` if a file can't be read or repaired, or has lines but no
    record. No complete record is lost then.
    """
    answered = AnsweredRequests()
    regular = [file for file in files if file.is_regular]
    if overwrite:
        for file in regular:
            file.truncate(0)
    else:  # nothing is changed before every file is understood
        how = (answered, keep_failures, check, on_answer)
        scans = [scan_records(file.path, file.open_text, *how) for file in regular]
        for file, scan in zip(regular, scans, strict=True):
            _mend(file, scan)
    _report(files[0].path, answered, keep_failures)
    return answered


def scan_records(
    path: Path,
    open_text: OpenText,
    answered: AnsweredRequests,
    keep_failures: bool,
    check: Check,
    on_answer: OnAnswer | None,
) -> _Scan:
    """Read ``path``, and add what it answers to ``answered``. It must hold records, and nothing unclear."""
    try:
        scan = _Scan(open_text, answered, keep_failures, check, on_answer)
    except OSError as error:
        raise _repair_error(path, error) from error
    if scan.is_foreign:
        raise ResultsFileError(
            f"{path} holds no records: name another results file, or start afresh with --overwrite"
        )
    if scan.unclear_line:
        raise ResultsFileError(
            f"{path}: line {scan.unclear_line} is in another program's form: what is in the"
            " response's place may be an answer or an error. Nothing was changed. Remove such lines if they"
            " are errors, name another results file, or start afresh with --overwrite"
        )
    return scan


def _repair_error(path: Path, error: OSError) -> ResultsFileError:
    return ResultsFileError(
        f"can't repair {path}: {error.strerror or error}; no answer in it was lost"
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
            drop(file, scan.failed, size + scan.lacks_line_end)
    except ResultsFileError:
        raise
    except OSError as error:
        raise _repair_error(file.path, error) from error


def _report(path: Path, answered: AnsweredRequests, keep_failures: bool) -> None:
    if answered.answered:
        _log.info("%s has %s answers", path, f"{answered.answered:,}")
    if answered.failed:
        what = "stay as they are" if keep_failures else "are tried again"
        _log.info("%s requests that failed before %s", f"{answered.failed:,}", what)
    if answered.foreign:
        _log.warning("%s lines of the results are no records; they stay", f"{answered.foreign:,}")
