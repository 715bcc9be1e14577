"""``from-batch``: one results file, made of the output and error files of several batches.

The files are read twice: to find the best result of each id, which takes about 26 bytes an id, and to write
them. The results file gets its name when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.append_file import written_whole
from parallel_processor.files.batch_rows import MISTRAL, OPENAI, RowRequest, dialect_of
from parallel_processor.files.compression import Unpacked, new_member, written_compression
from parallel_processor.files.custom_ids import CustomIds, arranged, conflict_text, with_id
from parallel_processor.files.formats import requests_in
from parallel_processor.files.identity import id_key
from parallel_processor.files.records import (
    BOM,
    RecordParts,
    read_outcome,
    reading,
    record,
    take_apart,
)
from parallel_processor.files.requests_file import Place
from parallel_processor.files.sources import SourceLike, find_sources, open_sources
from parallel_processor.models import Request
from parallel_processor.options import OutputFormat

_BUFFER_BYTES = 256 * 1024
_ANYWHERE = "https://batch.invalid"  # nothing is sent
_SEEK_BYTES = 16 * 1024  # are read from each place that is looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What :func:`merge` found, in counts of requests; without a requests file, of ids.

    Attributes:
        answered: requests with an answer.
        failed: requests with nothing but failures; one of them is kept.
        missing: requests without any result.
        doubled: results beyond one for each request: they are left out.
        foreign: results of no request: they are left out.
        torn: lines that are no results: they are left out.
        first_torn: where the first of them is; empty if there is none.
    """

    answered: int = 0
    failed: int = 0
    missing: int = 0
    doubled: int = 0
    foreign: int = 0
    torn: int = 0
    first_torn: str = ""

    @property
    def ok(self) -> bool:
        """True if each request has its answer."""
        return not (self.failed or self.missing or self.foreign or self.torn)


class _Place(NamedTuple):
    """Where a result is."""

    ok: bool
    file: int
    start: int


class _Places:
    """The best result of each id: the first answer, else the first failure. About 26 bytes an id."""

    _KEY_BYTES, _FILE_BYTES, _START_BYTES = 10, 2, 6

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(16_384)]
        self.count = 0

    def add(self, key: bytes, place: _Place) -> bool:
        """True if ``place`` is the first of its key."""
        entry = bytes([place.ok]) + place.file.to_bytes(self._FILE_BYTES, "big")
        entry += place.start.to_bytes(self._START_BYTES, "big")
        bucket, at = self._find(key)
        if at < 0:
            bucket += key[2 : 2 + self._KEY_BYTES] + entry
            self.count += 1
        elif place.ok and not bucket[at + self._KEY_BYTES]:
            bucket[at + self._KEY_BYTES : at + self._KEY_BYTES + len(entry)] = entry
        return at < 0

    def get(self, key: bytes) -> _Place | None:
        """The best result of a key; ``None`` if there is none."""
        bucket, at = self._find(key)
        if at < 0:
            return None
        at += self._KEY_BYTES
        file_at, start_at = at + 1, at + 1 + self._FILE_BYTES
        file = int.from_bytes(bucket[file_at:start_at], "big")
        start = int.from_bytes(bucket[start_at : start_at + self._START_BYTES], "big")
        return _Place(bool(bucket[at]), file, start)

    def _find(self, key: bytes) -> tuple[bytearray, int]:
        size = self._KEY_BYTES + 1 + self._FILE_BYTES + self._START_BYTES
        bucket = self._buckets[int.from_bytes(key[:2], "big") % len(self._buckets)]
        wanted = key[2 : 2 + self._KEY_BYTES]
        at = bucket.find(wanted)
        while at > 0 and at % size:  # found across a border within or between entries
            at = bucket.find(wanted, at + 1)
        return bucket, at


def merge(
    batch_paths: Sequence[Path],
    save_path: Path,
    *,
    requests_path: SourceLike | None = None,
    model: str | None = None,
    output_format: OutputFormat = "auto",
    overwrite: bool = False,
) -> Merged:
    """Write one results file of the output and error files of batches.

    Each request gets one record: its answer if there is one in any file, else its failure. With the file of
    the requests, the records are in its order and have any form. Without, they are in the order of the
    files, and lines of a Batch file. Compressed files are read, and written if ``save_path`` says so.

    Raises :class:`ConfigurationError` if ``save_path`` is there already, or the form needs the requests.
    """
    sources = find_sources(requests_path) if requests_path is not None else []
    inputs = [source.path for source in sources if source.path is not None]
    _check_paths([*batch_paths, *inputs], save_path)
    if output_format == "cookbook" and requests_path is None:
        raise ConfigurationError(
            "the cookbook's form has the requests in it: name their file with --requests_filepath"
        )
    if save_path.exists() and save_path.stat().st_size and not overwrite:
        raise ConfigurationError(f"{save_path} is there already: name another, or give --overwrite")
    with ExitStack() as stack:
        folder = save_path.parent
        files = [stack.enter_context(_lasting(path, folder)) for path in batch_paths]
        found, places = _index(batch_paths, files)
        with _replacing(save_path) as save:
            if requests_path is None:
                return _write_as_found(files, places, found, save)
            with open_sources(sources) as lines:
                requests = requests_in(lines.numbered(), _ANYWHERE, lines.place, model)
                wanted = arranged(requests, output_format, lines.place, is_strict=True)
                return _write_in_order(wanted, lines.place, files, places, found, save)


def _check_paths(inputs: Sequence[Path], save_path: Path) -> None:
    """Raise :class:`ConfigurationError` if the results would be written over an input, or nowhere."""
    if save_path.is_dir():
        raise ConfigurationError(f"the results file {save_path} is a directory")
    if not save_path.parent.is_dir():
        raise ConfigurationError(f"the directory of the results file {save_path} does not exist")
    if save_path.exists():
        for path in inputs:
            if path.exists() and path.samefile(save_path):
                raise ConfigurationError(f"the results file {save_path} is an input, {path}")


@contextmanager
def _lasting(path: Path, folder: Path) -> Iterator[BinaryIO]:
    """The text of a file, any place of which can be gone to.

    What is compressed, or a pipe, is first written to a temporary file in ``folder``.
    """
    with reading(path, _SEEK_BYTES, is_growing=False) as file:
        if file.seekable() and not isinstance(getattr(file, "raw", None), Unpacked):
            yield file
            return
        from tempfile import TemporaryFile  # it loads all that packs files

        with TemporaryFile(dir=folder, buffering=_SEEK_BYTES) as text:
            for piece in iter(lambda: file.read(_BUFFER_BYTES), b""):
                text.write(piece)
            text.seek(0)
            yield cast(BinaryIO, text)


def _index(paths: Sequence[Path], files: Sequence[BinaryIO]) -> tuple[Merged, _Places]:
    """Where the best result of each id is, and what there is besides."""
    places, doubled, torn, first_torn = _Places(), 0, 0, ""
    for number, file in enumerate(files):
        start = 0
        for line_number, line in enumerate(file, 1):
            parts = take_apart(line)
            if parts is not None and parts.custom_id is not None:
                place = _Place(parts.ok, number, start)
                doubled += not places.add(id_key(parts.custom_id), place)
            elif line.strip():
                torn += 1
                first_torn = first_torn or f"line {line_number} of {paths[number]}"
            start += len(line)
    return Merged(doubled=doubled, torn=torn, first_torn=first_torn), places


class _Lines:
    """Writes lines to an open file, compressed if ``path``, whose place it will take, says so."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        kind = written_compression(path)
        self._file, self._waiting = file, bytearray()
        self._member = None if kind is None else new_member(kind, str(path))

    def write(self, line: bytes) -> None:
        """Add a whole line."""
        self._waiting += line
        if len(self._waiting) >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = bytes(self._waiting)
        self._file.write(data if self._member is None else self._member.add(data))
        self._waiting.clear()

    def end(self) -> None:
        """Write the rest."""
        self._flush()
        if self._member is not None:
            self._file.write(self._member.closing())


@contextmanager
def _replacing(path: Path) -> Iterator[_Lines]:
    """A file of lines that is at ``path`` once the block has ended well."""
    with written_whole(path) as file:
        lines = _Lines(file, path)
        yield lines
        lines.end()


def _write_as_found(
    files: Sequence[BinaryIO], places: _Places, found: Merged, save: _Lines
) -> Merged:
    answered = failed = 0
    for number, file in enumerate(files):
        file.seek(0)
        start = 0
        for line in file:
            parts = take_apart(line)
            if parts is not None and parts.custom_id is not None:
                place = places.get(id_key(parts.custom_id))
                if place is not None and place[1:] == (number, start):
                    request = Request(body=None, custom_id=parts.custom_id)
                    save.write(_line_for(line, parts, request))
                    answered, failed = answered + place.ok, failed + (not place.ok)
            start += len(line)
    return replace(found, answered=answered, failed=failed)


def _write_in_order(
    requests: Iterable[Request],
    place_of: Place,
    files: Sequence[BinaryIO],
    places: _Places,
    found: Merged,
    save: _Lines,
) -> Merged:
    answered = failed = missing = 0
    ids = CustomIds()
    for request in requests:
        with_its_id = with_id(request)
        if (earlier := ids.add(with_its_id)) is not None:
            raise InputFileError(conflict_text(earlier, with_its_id, place_of))
        place = places.get(id_key(with_its_id.custom_id or ""))
        if place is None:
            missing += 1
            continue
        files[place.file].seek(place.start)
        line = files[place.file].readline()
        parts = take_apart(line)
        assert parts is not None  # it was when the index was made
        _check_origin(parts, with_its_id, place_of)
        save.write(_line_for(line, parts, request))
        answered, failed = answered + place.ok, failed + (not place.ok)
    foreign = places.count - answered - failed
    return replace(found, answered=answered, failed=failed, missing=missing, foreign=foreign)


def _check_origin(parts: RecordParts, request: RowRequest, place_of: Place) -> None:
    """Raise :class:`InputFileError` if a result says that it is of another request than ``request``."""
    if parts.origin is not None and parts.origin != request.origin:
        raise InputFileError(
            f"{place_of(request.number)} is not the request whose result has the id "
            f"{str(request.custom_id)[:100]!r}: lines were changed, or came or went before it. Undo that"
        )


def _line_for(line: bytes, parts: RecordParts, request: Request) -> bytes:
    """The record of ``request``, whose result ``line`` is: the line itself, where that has its form."""
    dialect = dialect_of(request) if request.custom_id is not None else None
    is_row = not isinstance(request, RowRequest) or not request.origin
    if dialect in (OPENAI, MISTRAL) and is_row and parts.is_framed:
        return line.removeprefix(BOM).strip() + b"\n"
    outcome = read_outcome(line, request.number)
    assert outcome is not None
    return record(replace(outcome, request=request))
