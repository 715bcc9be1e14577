"""What a user named, as lines of requests: files, globs, pipes, objects on a store, open files, iterables.

:func:`find_sources` finds out what there is, before anything is opened. :func:`open_sources` makes one
:class:`RequestLines` of it. Several files are read one after the other. Their lines are numbered through,
and :meth:`SeveralFiles.place` tells which file a line is in.
"""

from __future__ import annotations

import bisect
import glob
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

from parallel_processor.exceptions import ConfigurationError, InputFileError, ResultsFileError
from parallel_processor.files.append_file import STDOUT
from parallel_processor.files.object_stores import is_url, local_path, open_remote, remote_files
from parallel_processor.files.records import reading, take_apart
from parallel_processor.files.requests_file import (
    InvalidLine,
    Opened,
    RequestLines,
    RequestsFile,
    default_save_path,
    opened,
)
from parallel_processor.options import shown_url

STDIN = "-"
_BUFFER_BYTES = 256 * 1024
SourceLike = str | Path | Sequence[str | Path] | RequestLines | BinaryIO | Iterable[bytes | str]
"""Whatever :func:`find_sources` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input.

    Attributes:
        name: what it is called.
        open: opens it.
        path: where it is on this machine; ``None`` for what is no file.
        size_bytes: ``None`` if it isn't known beforehand.
        is_match: a pattern has matched it; nobody has named it.
    """

    name: str
    open: Callable[[], RequestLines]
    path: Path | None = None
    size_bytes: int | None = None
    is_match: bool = False


def find_sources(given: SourceLike) -> list[Source]:
    """The inputs that ``given`` names, in order; a pattern's matches are sorted.

    Args:
        given: a path; ``-`` for standard input; a pattern such as ``part-*.jsonl``; a URL; a list of these;
            a file that is open for reading bytes, which stays open; any other iterable, of lines.

    Raises :class:`InputFileError` if a pattern matches nothing, and :class:`ConfigurationError` if a file
    is named twice.
    """
    if isinstance(given, str | Path):
        found = _named(str(given))
    elif isinstance(given, list | tuple):
        found = [source for each in given for source in _named(_as_path(each))]
        if not found:
            raise ConfigurationError("name at least one file of requests")
    elif _is_request_lines(given):
        found = [_ready(given)]
    elif hasattr(given, "read") and not isinstance(given, io.TextIOBase):
        name = str(getattr(given, "name", "the file"))
        found = [Source(name=name, open=lambda: RequestsFile(name, _borrowed(given)))]
    elif isinstance(given, Iterable):
        found = [_ready(GivenLines(cast(Iterable[bytes | str], given)))]
    else:
        raise TypeError(f"requests can't be read from a {type(given).__name__}")
    _check_for_twins(found)
    return found


def _is_request_lines(given: object) -> TypeGuard[RequestLines]:
    return hasattr(given, "numbered")


def _ready(lines: RequestLines) -> Source:
    return Source(name=lines.name, open=lambda: lines)


def _as_path(given: object) -> str:
    if not isinstance(given, str | Path):
        raise TypeError(
            f"a list names files, not {type(given).__name__}: for lines pass iter(lines)"
        )
    return str(given)


def _named(name: str) -> list[Source]:
    """The inputs that one name stands for."""
    if name == STDIN:
        text = "standard input"
        return [
            Source(name=text, open=lambda: RequestsFile(text, _stdin()), path=Path("/dev/stdin"))
        ]
    if is_url(name):
        found = remote_files(name)
        return [_remote(name)] if found == [name] else _found(name, list(map(_remote, found)))
    path = local_path(name)
    if not glob.has_magic(str(path)) or path.exists():
        return [_local(path)]
    matches = sorted(glob.glob(str(path), recursive=True))
    return _found(name, [_local(Path(each)) for each in matches if not os.path.isdir(each)])


def _found(pattern: str, sources: list[Source]) -> list[Source]:
    if not sources:
        raise InputFileError(f"can't read {shown_url(pattern)}: no file has such a name")
    return [replace(source, is_match=True) for source in sources]


def apart_from(sources: Sequence[Source], outputs: Iterable[str | Path | None]) -> list[Source]:
    """``sources`` without the results and errors files that a pattern matches, as in a second run.

    Only a file that has nothing but records is left out. An output of an object store is its URL. Raises
    :class:`ConfigurationError` if that is among the requests.
    """
    paths = [
        (str(each), None if is_url(str(each)) else local_path(each)) for each in outputs if each
    ]
    keys = {_key(*each) for each in paths}
    left: list[Source] = []
    for source in sources:
        is_output = _key(source.name, source.path) in keys
        if is_output and source.path is None:
            raise ConfigurationError(
                f"the requests and the results or errors file are the same: {source.name}"
            )
        if not (is_output and source.is_match and _has_records(cast(Path, source.path))):
            left.append(source)
    if sources and not left:
        what = f"{sources[0].name} is a results file"
        raise InputFileError(f"{what}, and no file of requests has such a name")
    return left


def _has_records(path: Path) -> bool:
    """True for a file that begins with a record, or is empty."""
    try:
        with reading(path) as file:
            line = file.readline()
    except ResultsFileError:
        return False
    return not line or take_apart(line) is not None


def _key(name: str, path: Path | None) -> object:
    """What all names of one file share."""
    try:
        status = path.stat() if path is not None else None
    except OSError:  # it is missed when it is opened
        status = None
    return (status.st_dev, status.st_ino) if status is not None else re.sub("://+", "://", name)


def _local(path: Path) -> Source:
    size = path.stat().st_size if path.is_file() else None
    return Source(name=str(path), open=lambda: RequestsFile(path), path=path, size_bytes=size)


def _remote(url: str) -> Source:
    name = shown_url(url)
    return Source(name=name, open=lambda: RequestsFile(name, open_remote(url)))


def _stdin() -> Opened:
    """Standard input. Closing it leaves that open."""
    if sys.stdin is None:  # something else may have its descriptor by now
        raise InputFileError("can't read standard input: it is closed")
    try:
        return opened(io.FileIO(os.dup(0)))
    except OSError as error:
        raise InputFileError(f"can't read standard input: {error.strerror}") from error


def _borrowed(file: Any) -> Opened:
    """A program's open file, which stays open."""
    return Opened(io.BufferedReader(_Borrowed(file), _BUFFER_BYTES), None)


class _Borrowed(io.RawIOBase):
    def __init__(self, file: Any) -> None:
        self._read = getattr(file, "read1", file.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputFileError("the file gives text: open it in binary mode")
        buffer[: len(data)] = data
        return len(data)


def _check_for_twins(sources: Sequence[Source]) -> None:
    """Raise :class:`ConfigurationError` if a file is named twice: its requests would be sent twice."""
    seen: dict[object, Source] = {}
    for source in sources if len(sources) > 1 else ():
        other = seen.setdefault(_key(source.name, source.path), source)
        if other is not source:
            raise ConfigurationError(f"{source.name} is the same file of requests as {other.name}")


def find_save_path(sources: Sequence[Source]) -> Path:
    """Where results go if nobody says: beside one file, and to standard output for standard input.

    Raises :class:`ConfigurationError` if there is no such place.
    """
    if (only := _only_file(sources)) is not None and (path := only.path) is not None:
        return STDOUT if only.name == "standard input" else default_save_path(path)
    what = sources[0].name if len(sources) == 1 else f"{len(sources)} files"
    raise ConfigurationError(
        f"the requests come from {what}: name a results file (--save_filepath, in a program save_path)"
    )


def _only_file(sources: Sequence[Source]) -> Source | None:
    """The only one of ``sources``, apart from the results beside it, which a pattern matches, too."""
    if len(sources) != 2 or not all(each.is_match and each.path for each in sources):
        return sources[0] if len(sources) == 1 else None
    for source, other in (sources, sources[::-1]):
        beside = default_save_path(cast(Path, source.path))
        if other.path == beside and _has_records(beside):
            return source
    return None


def open_sources(sources: Sequence[Source]) -> RequestLines:
    """All of them, as one. Raises :class:`InputFileError` if one can't be read, or is of another format."""
    return sources[0].open() if len(sources) == 1 else SeveralFiles(sources)


class GivenLines:
    """The lines of a program's iterable, as bytes or text. For one thread."""

    name = "the lines"

    def __init__(self, lines: Iterable[bytes | str]) -> None:
        self._lines, self._ended = lines, False

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines. Raises ``TypeError`` for anything else."""
        for number, line in enumerate(self._lines, 1):
            if isinstance(line, str):
                yield number, line.encode("utf-8", "surrogatepass")
            elif isinstance(line, bytes):
                yield number, line
            else:
                what = f"line {number} is a {type(line).__name__}, not bytes or str"
                raise TypeError(f"{what}: to send bodies use Processor.imap")
        self._ended = True

    def place(self, number: int) -> str:
        """``line 3``."""
        return f"line {number}"

    def fraction(self) -> float | None:
        """``None`` until the end."""
        return 1.0 if self._ended else None

    def interrupt(self) -> None:
        """Nothing can end the program's own wait."""

    def __enter__(self) -> GivenLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class SeveralFiles:
    """Several inputs, one after the other. One is open at a time. For one thread.

    Those on this machine are looked at when this is made: :class:`InputFileError` for one that can't be
    sent.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.name = f"{sources[0].name} and {len(sources) - 1} more"
        self._sources = sources
        for source in sources:
            if source.size_bytes is not None:
                with source.open():
                    pass
        sizes = [source.size_bytes for source in sources]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._begun: list[RequestLines] = []
        self._before: list[int] = []  # how many lines there are before each of them
        self._is_interrupted = self._ended = False

    def numbered(self) -> Iterator[tuple[int, bytes | InvalidLine]]:
        """The lines of all, numbered through."""
        before = 0
        for source in self._sources:
            with source.open() as lines:
                self._before.append(before)
                self._begun.append(lines)
                if self._is_interrupted:
                    return
                number = 0
                for number, line in lines.numbered():
                    yield before + number, line
                before += number
        self._ended = not self._is_interrupted

    def place(self, number: int) -> str:
        """``part-1.jsonl, line 3``."""
        at = bisect.bisect_left(self._before, number) - 1
        return f"{self._begun[at].name}, {self._begun[at].place(number - self._before[at])}"

    def fraction(self) -> float | None:
        """How much has been read; ``None`` if a size isn't known."""
        if self._ended:
            return 1.0
        begun = len(self._begun)
        if not self._total or not begun:
            return None
        size, share = self._sources[begun - 1].size_bytes or 0, self._begun[-1].fraction() or 0.0
        before = sum(each.size_bytes or 0 for each in self._sources[: begun - 1])
        return min((before + size * share) / self._total, 0.9999)

    def interrupt(self) -> None:
        """End a wait for the next line."""
        self._is_interrupted = True
        if self._begun:
            self._begun[-1].interrupt()

    def __enter__(self) -> SeveralFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for lines in self._begun[-1:]:  # its reader may have been left in the middle
            lines.__exit__()
