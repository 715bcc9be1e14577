"""Checks that a results file holds what a requests file asked for: nothing lost, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from parallel_processor.files.custom_ids import CustomIds, with_id
from parallel_processor.files.formats import requests_of
from parallel_processor.files.identity import Record, identity, keys, read_record
from parallel_processor.files.object_stores import local_path
from parallel_processor.files.records import BOM, reading
from parallel_processor.files.requests_file import RequestLines
from parallel_processor.files.resume import AnsweredRequests, OnAnswer, scan_records
from parallel_processor.files.sources import SourceLike, apart_from, find_sources, open_sources
from parallel_processor.models import Request
from parallel_processor.options import DEFAULT_REQUEST_URL, Options

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
        by_id: answered requests, no rows, whose record is of a Batch API, and tells nothing of them but
            their id. A run takes such records only with ``output_format="batch"``.

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
    by_id: int = 0

    @property
    def ok(self) -> bool:
        """True if every line has exactly one good record; foreign records may be there besides."""
        faults = (self.failed, self.missing, self.doubled, self.torn, self.conflicts)
        return not any(faults) and self.answered == self.lines


def verify_results(
    requests_path: SourceLike,
    save_path: str | Path,
    errors_path: str | Path | None = None,
    *,
    request_url: str = DEFAULT_REQUEST_URL,
    model: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Verification:
    """Compare a results file, and an errors file if there is one, with the requests.

    The results may have either form, whatever the requests have. Takes about 170 bytes of memory per
    line, or 600 if the forms differ. ``request_url`` matters only for Batch rows: one for another host is
    invalid, unless ``allowed_hosts`` has it. ``model`` is that of the run, for requests that name none.
    Don't call it while a run writes the files: the last line may be incomplete. ``requests_path`` is what
    :func:`process_file` takes; for a table, give what :func:`open_table` returns.

    Raises :class:`InputFileError` and :class:`ResultsFileError` for files that can't be read.

    >>> process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl", request_url=url).failed
    0
    >>> verify_results(f"{folder}/requests.jsonl", f"{folder}/results.jsonl").ok
    True
    """
    paths = [local_path(each) for each in (save_path, errors_path) if each is not None]
    lines = open_sources(apart_from(find_sources(requests_path), paths))
    options = Options(request_url=request_url, allowed_hosts=allowed_hosts)
    return verify_lines(lines, lambda: _records(paths), options, model, lambda: _forms(paths))


def verify_lines(
    lines: RequestLines,
    records: Callable[[], Iterable[Record | None]],
    options: Options,
    model: str | None = None,
    forms: Callable[[], Collection[bytes]] = tuple,
) -> Verification:
    """Compare ``lines`` with what ``records`` yields, which is called twice; ``None`` is a torn line.

    ``forms`` tells how the records begin: with ``{`` or ``[``. Without it, they have the form of their
    lines.
    """
    with lines:
        wanted = _Wanted(forms())
        for request in requests_of(lines, options, model):
            wanted.add(request)
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
        by_id=wanted.by_id,
    )


class _Wanted:
    """The requests that still need a record. Good records must be counted first."""

    def __init__(self, forms: Collection[bytes]) -> None:
        self.lines = self.answered = self.failed = self.doubled = self.foreign = 0
        self.by_id = 0
        self.conflicts: list[tuple[int, int]] = []
        self._forms = forms
        self._left: dict[bytes, int] = {}
        self._other_keys: dict[bytes, bytes] = {}  # of records in the other form: the usual key
        self._ids = CustomIds()

    def add(self, request: Request) -> None:
        """Add a request, which needs a record."""
        is_row = request.custom_id is not None
        if (b"[" if is_row else b"{") in self._forms:
            key, *others = keys(request if is_row else with_id(request))
            for other in others:
                self._other_keys.setdefault(other, key)
        else:
            key = identity(request)
        self._left[key] = self._left.get(key, 0) + 1
        self.lines += 1
        earlier = self._ids.add(request) if is_row else None
        if earlier is not None and not earlier.is_equal and len(self.conflicts) < _MAX_CONFLICTS:
            self.conflicts.append((earlier.line, request.number))

    def count(self, record: Record) -> None:
        """Count ``record`` for a line that needs one, or as one too many."""
        key, is_usual = record.identity, record.identity in self._left
        if not is_usual:
            key = self._other_keys.get(key, key)
        left = self._left.get(key)
        if left is None:
            self.foreign += 1
        elif left == 0:
            self.doubled += 1
        else:
            self._left[key] = left - 1
            self.answered += bool(record.ok)
            self.by_id += bool(record.ok and record.has_id_alone and not is_usual)
            self.failed += not record.ok


def _forms(paths: list[Path]) -> set[bytes]:
    """How the lines in ``paths`` begin."""
    found = set()
    for path in paths:
        with reading(path) as file:
            for line in file:
                found.add(line.removeprefix(BOM).lstrip()[:1])
    return found


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


def find_answered(
    paths: Iterable[Path], *, keep_failures: bool = False, on_answer: OnAnswer | None = None
) -> AnsweredRequests:
    """Which requests the files of a job answer, as a run finds out that goes on from them.

    No file is changed, and one that is not there answers nothing. ``on_answer`` is called with each line
    that records an answer. Raises :class:`ResultsFileError` for what a run refuses.
    """
    answered = AnsweredRequests()
    for path in filter(Path.is_file, paths):
        opened = partial(reading, path)
        scan_records(path, opened, answered, keep_failures, check=lambda: None, on_answer=on_answer)
    return answered
