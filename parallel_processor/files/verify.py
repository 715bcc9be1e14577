"""Checks that a results file holds what a requests file asked for: nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel_processor.files.custom_ids import CustomIds
from parallel_processor.files.formats import Record, identity, read_record, read_requests
from parallel_processor.files.records import reading
from parallel_processor.files.requests_file import RequestLines, RequestsFile
from parallel_processor.options import DEFAULT_REQUEST_URL

_MAX_CONFLICTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How the records of a results file match the lines of a requests file, in counts.

    Attributes:
        lines: requests in the requests file.
        answered: requests that have a good record.
        failed: requests that have only a failed record.
        missing: requests without a record.
        doubled: records beyond those that the lines need.
        torn: lines that are no records, or can't be told to be answers or failures.
        foreign: records that belong to no request. They do no harm.
        conflicts: pairs of lines whose requests differ but share a ``custom_id``, at most 100. Nobody can
            tell whose answer a record of it is.

    >>> Verification(lines=3, answered=2, failed=0, missing=1, doubled=0, torn=0, foreign=0).ok
    False
    """

    lines: int
    answered: int
    failed: int
    missing: int
    doubled: int
    torn: int
    foreign: int
    conflicts: tuple[tuple[int, int], ...] = ()

    @property
    def ok(self) -> bool:
        """True if every line has exactly one good record; foreign records may be there besides."""
        faults = (self.failed, self.missing, self.doubled, self.torn, self.conflicts)
        return not any(faults) and self.answered == self.lines


def verify_results(
    requests_path: str | Path | RequestLines,
    save_path: str | Path,
    errors_path: str | Path | None = None,
    *,
    request_url: str = DEFAULT_REQUEST_URL,
) -> Verification:
    """Compare a results file, and an errors file if there is one, with the requests.

    For a table, give what :func:`open_table` returns instead of ``requests_path``.

    Takes about 170 bytes of memory per line. ``request_url`` matters only for Batch rows: one for
    another host is invalid. Don't call it while a run writes the files: the last line may be
    incomplete.

    Raises :class:`InputFileError` and :class:`ResultsFileError` for files that can't be read.

    >>> process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl", request_url=url).failed
    0
    >>> verify_results(f"{folder}/requests.jsonl", f"{folder}/results.jsonl").ok
    True
    """
    paths = [Path(save_path)] + ([Path(errors_path)] if errors_path is not None else [])
    lines = requests_path
    if isinstance(lines, (str, Path)):
        lines = RequestsFile(Path(lines))
    return verify_lines(lines, lambda: _records(paths), request_url)


def verify_lines(
    lines: RequestLines, records: Callable[[], Iterable[Record | None]], request_url: str
) -> Verification:
    """Compare ``lines`` with what ``records`` yields, which is called twice; ``None`` is a torn line."""
    wanted = _Wanted(lines, request_url)
    torn = 0
    for record in records():
        if record is None:
            torn += 1
        elif record.ok:
            wanted.count(record)
    for record in records():
        if record is not None and not record.ok:
            wanted.count(record)
    return Verification(
        lines=wanted.lines,
        answered=wanted.answered,
        failed=wanted.failed,
        missing=wanted.lines - wanted.answered - wanted.failed,
        doubled=wanted.doubled,
        torn=torn,
        foreign=wanted.foreign,
        conflicts=tuple(wanted.conflicts),
    )


class _Wanted:
    """The requests that still need a record. Good records must be counted first."""

    def __init__(self, lines: RequestLines, request_url: str) -> None:
        self.lines = self.answered = self.failed = self.doubled = self.foreign = 0
        self.conflicts: list[tuple[int, int]] = []
        self._left: dict[bytes, int] = {}
        ids = CustomIds()
        with lines:
            for request in read_requests(lines.numbered(), request_url, lines.unit):
                key = identity(request)
                self._left[key] = self._left.get(key, 0) + 1
                self.lines += 1
                earlier = ids.add(request) if request.custom_id is not None else None
                if earlier is not None and not earlier.is_equal:
                    self.conflicts.append((earlier.line, request.number))
        del self.conflicts[_MAX_CONFLICTS:]

    def count(self, record: Record) -> None:
        """Count ``record`` for a line that needs one, or as one too many."""
        left = self._left.get(record.identity)
        if left is None:
            self.foreign += 1
        elif left == 0:
            self.doubled += 1
        else:
            self._left[record.identity] = left - 1
            self.answered += bool(record.ok)
            self.failed += not record.ok


def _records(paths: list[Path]) -> Iterator[Record | None]:
    """The records in ``paths``; ``None`` for a line that is none, or that has no line end."""
    for path in paths:
        with reading(path) as file:
            yield from records_in(file)


def records_in(lines: Iterable[bytes]) -> Iterator[Record | None]:
    """The record in each of ``lines`` that is not blank; ``None`` if there is none, or no line end."""
    for line in lines:
        if line.strip():
            record = read_record(line) if line.endswith(b"\n") else None
            yield None if record is None or record.ok is None else record
