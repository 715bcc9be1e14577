"""The requests file: checked before anything is sent, then read once, line by line, as it is sent."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX
from parallel_processor.files.shape import why_not_jsonl

_BUFFER_BYTES = 256 * 1024
_DEVICE_FOLDERS = frozenset({"/dev", "/dev/fd"})


class InvalidLine(NamedTuple):
    """Stands in the place of a line that can't be read. It becomes a failed record."""

    text: str  # what is known of the line; it is recorded in the request's place
    reason: str


class RequestLines(Protocol):
    """Where the lines of requests come from: a file, or a part of one. For one thread.

    Attributes:
        name: what it is called in logs and reports.
        unit: what the numbers of its lines count: ``line`` or ``byte``.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def numbered(self) -> Iterator[tuple[int, bytes | InvalidLine]]:
        """Read the lines once. Each comes with its number, from 1; a line end is not needed."""
        ...

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` if unknown."""
        ...

    def __enter__(self) -> RequestLines: ...

    def __exit__(self, *_: object) -> None: ...


class RequestsFile:
    """An open requests file, as an iterable of its lines. For one thread.

    Raises :class:`InputFileError` if it can't be read, or is of another format as a whole. A pipe is looked
    at when its first line is asked for, because that may take a while to come.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=_BUFFER_BYTES)
            status = os.fstat(self._file.fileno())
        except OSError as error:
            hint = "; for standard input name /dev/stdin" if str(path) == "-" else ""
            text = f"can't read {path}: {error.strerror or error}{hint}"
            raise InputFileError(text) from error
        self.path, self.name, self.unit = path, str(path), "line"
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._read = 0
        self._ended = False
        if self._size is not None:
            try:
                self._check_shape()
            except BaseException:
                self._file.close()
                raise

    def _check_shape(self) -> None:
        assert isinstance(self._file, io.BufferedReader)
        try:
            head = self._file.peek(_BUFFER_BYTES)
        except OSError as error:
            raise InputFileError(f"can't read {self.path}: {error.strerror or error}") from error
        is_whole = self._size is not None and len(head) >= self._size
        if (reason := why_not_jsonl(head, is_whole, self.path)) is not None:
            raise InputFileError(reason)

    def __iter__(self) -> Iterator[bytes]:
        if self._size is None:
            self._check_shape()
        try:
            for line in self._file:
                self._read += len(line)
                yield line
        except OSError as error:
            raise InputFileError(f"can't read {self.path}: {error.strerror or error}") from error
        self._ended = True

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines, each with its number."""
        return enumerate(self, 1)

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` for a pipe that hasn't ended."""
        if self._ended:
            return 1.0
        return min(self._read / self._size, 0.9999) if self._size else None

    def __enter__(self) -> RequestsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def default_save_path(requests_path: Path) -> Path:
    """``name_results.jsonl`` beside ``name.jsonl``.

    Raises :class:`ConfigurationError` for a pipe or a device: nothing lasts beside it.
    """
    is_pipe = requests_path.exists() and not (requests_path.is_file() or requests_path.is_dir())
    if is_pipe or str(requests_path.parent) in _DEVICE_FOLDERS or _is_descriptor(requests_path):
        raise ConfigurationError(
            f"the requests come from {requests_path}, which is no file that results could stand beside: "
            "name a results file (--save_filepath, in a program save_path)"
        )
    return requests_path.parent / f"{requests_path.stem}_results.jsonl"


def _is_descriptor(path: Path) -> bool:
    return path.parts[1:2] == ("proc",) and path.parts[-2:-1] == ("fd",)


def check_paths(
    requests_path: Path,
    save_path: Path,
    errors_path: Path | None,
    report_path: Path | None = None,
    template_path: Path | None = None,
) -> None:
    """Raise :class:`ConfigurationError` unless the files differ, and the folders of the outputs exist."""
    paths = (requests_path, template_path, save_path, errors_path, report_path)
    names = ("requests", "template", "results", "errors", "report")
    seen: dict[object, str] = {}
    for name, path in zip(names, paths, strict=True):
        if path is None:
            continue
        if path.name.endswith(REPLACEMENT_SUFFIX):
            raise ConfigurationError(
                f"the {name} file {path} has an ending that is kept for temporary files: rename it"
            )
        try:
            if _is_directory(path):
                raise ConfigurationError(f"the {name} file {path} is a directory")
            # A directory that should hold the requests, too, is missed when they are opened.
            if path.parent != requests_path.parent and not _is_directory(path.parent):
                raise ConfigurationError(
                    f"the directory of the {name} file {path} does not exist: create it, or name another"
                )
            other = seen.setdefault(_file_of(path), name)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            reason = getattr(error, "strerror", None) or "a loop of symbolic links"
            raise ConfigurationError(f"can't use the {name} file {path}: {reason}") from error
        if other != name:
            raise ConfigurationError(f"the {other} and the {name} file are the same: {path}")


def _is_directory(path: Path) -> bool:
    """True for a directory; ``OSError`` if that can't be told, which ``is_dir`` hides since Python 3.14."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except ValueError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP):
            raise
        return False


def _file_of(path: Path) -> object:
    """What two paths to one file share: its device and inode; its full path if it doesn't exist yet."""
    if not path.exists():
        return path.resolve()
    status = path.stat()
    return status.st_dev, status.st_ino
