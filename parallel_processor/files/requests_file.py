"""A requests file: checked before anything is sent, then read once, line by line, as it is sent."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX
from parallel_processor.files.compression import Unpacked, unpacked, written_compression
from parallel_processor.files.records import BOM
from parallel_processor.files.shape import elements, is_array, why_not_jsonl

_BUFFER_BYTES = 256 * 1024
_COMPRESSED = frozenset({".gz", ".zst", ".zstd", ".bz2", ".xz"})
_DEVICE_FOLDERS = frozenset({"/dev", "/dev/fd"})


Place = Callable[[int], str]
"""Says where the line of a number is, for messages: ``RequestLines.place``."""


def line_place(number: int) -> str:
    """``line 3``."""
    return f"line {number}"


class InvalidLine(NamedTuple):
    """Stands in the place of a line that can't be read. It becomes a failed record."""

    text: str  # what is known of the line; it is recorded in the request's place
    reason: str
    custom_id: str | None = None  # of a Batch row
    metadata: Mapping[str, Any] | None = None  # of a cookbook line


class RequestLines(Protocol):
    """Where the lines of requests come from: files, a part of one, or a program. For one thread.

    Attributes:
        name: what it is called in logs and reports.
    """

    @property
    def name(self) -> str: ...

    def numbered(self) -> Iterator[tuple[int, bytes | InvalidLine]]:
        """Read the lines once. Each comes with its number, from 1 upwards; a line end is not needed."""
        ...

    def place(self, number: int) -> str:
        """Where a line is that was read: ``line 3``, ``byte 300``, ``part-1.jsonl, line 3``."""
        ...

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` if unknown. Any thread may ask."""
        ...

    def interrupt(self) -> None:
        """End a wait for the next line: there are no more lines. Any thread may call it."""
        ...

    def __enter__(self) -> RequestLines: ...

    def __exit__(self, *_: object) -> None: ...


class Opened(NamedTuple):
    """An open file, at its begin, and its size in bytes; ``None`` for a pipe, whose end isn't known."""

    file: io.BufferedReader
    size: int | None


def open_path(path: Path) -> Opened:
    """Open a file, a pipe or a device. Raises :class:`InputFileError`.

    A pipe that nobody writes is open at once: the reader of its first line waits, who can be interrupted.
    """
    try:
        return opened(io.FileIO(path, opener=_open_without_waiting))
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror or error}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)  # from here on, a wait is that of the reader
    return descriptor


def opened(raw: io.FileIO) -> Opened:
    """``raw`` for a reader of lines."""
    status = os.fstat(raw.fileno())
    if stat.S_ISREG(status.st_mode):
        return Opened(io.BufferedReader(raw, _BUFFER_BYTES), status.st_size)
    return Opened(io.BufferedReader(_Pipe(raw), _BUFFER_BYTES), None)


class _Pipe(io.RawIOBase):
    """A pipe or a device. A wait for what comes next can be ended by another thread."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw, self.is_interrupted = raw, False
        self._receiver, self._sender = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._receiver, selectors.EVENT_READ)
        self._can_wait = True
        try:
            self._selector.register(raw, selectors.EVENT_READ)
        except (OSError, ValueError):  # a device that always has something
            self._can_wait = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        while self._can_wait and not self.is_interrupted:
            if any(key.fileobj is self._raw for key, _ in self._selector.select()):
                break
        return 0 if self.is_interrupted else self._raw.readinto(buffer)

    def interrupt(self) -> None:
        """There is nothing more to read."""
        if not self.is_interrupted:
            self.is_interrupted = True
            with contextlib.suppress(OSError):  # closed meanwhile
                self._sender.send(b"x")

    def close(self) -> None:
        if not self.closed:
            self._selector.close()
            for each in (self._receiver, self._sender, self._raw):
                each.close()
        super().close()


class RequestsFile:
    """One open requests file, as an iterable of its lines. For one thread.

    A compressed file is unpacked, and of a JSON array each element is a line. The first bytes tell.

    Args:
        path: what the file is called.
        opened: the file, if it is open already. It is closed with this one.

    Raises :class:`InputFileError` if it can't be read, or is of another format as a whole. A pipe is looked
    at when its first line is asked for, because that may take a while to come.
    """

    def __init__(self, path: Path | str, opened: Opened | None = None) -> None:
        self.name, self.unit = str(path), "line"
        self._file, self._size = opened or open_path(Path(path))
        raw = self._file.raw
        self._pipe = raw if isinstance(raw, _Pipe) else None
        self._packed: Unpacked | None = None
        self._is_array = self._is_known = False
        self._read = self._blank_lines = 0  # in front of the first line that isn't blank
        self._ended = False
        if self._size is not None:
            try:
                self._look()
            except BaseException:
                self._file.close()
                raise

    def _look(self) -> None:
        """Find out what the file holds, by its begin."""
        self._is_known = True
        try:
            self._file = unpacked(self._file, self.name)
            raw = self._file.raw
            self._packed = raw if isinstance(raw, Unpacked) else None
            head = self._without_blank_lines()
        except OSError as error:
            raise self._error(error) from error
        size = self._size if self._packed is None else None
        is_whole = size is not None and self._read + len(head) >= size
        if (reason := why_not_jsonl(head, is_whole, Path(self.name))) is not None:
            raise InputFileError(reason)
        self._is_array = is_array(head)
        self.unit = "element" if self._is_array else "line"

    def _look_at_pipe(self) -> None:
        """Look at a pipe, which waits for its first bytes; a file was looked at when it was opened."""
        if not self._is_known:
            self._look()

    def _without_blank_lines(self) -> bytes:
        """What the file begins with; a piece that is blank, as a pipe may have it, is read and counted."""
        head = self._file.peek(_BUFFER_BYTES)
        while head and not head.removeprefix(BOM).strip():
            self._blank_lines += head.count(b"\n")
            self._read += len(self._file.read(len(head)))
            head = self._file.peek(_BUFFER_BYTES)
        return head

    def _error(self, error: OSError) -> InputFileError:
        return InputFileError(f"can't read {self.name}: {error.strerror or error}")

    def __iter__(self) -> Iterator[bytes]:
        self._look_at_pipe()
        try:
            for line in elements(self._file, self.name) if self._is_array else self._file:
                if self._pipe is not None and self._pipe.is_interrupted:
                    return  # this line may not be whole
                self._read += len(line)
                yield line
        except OSError as error:
            if self._pipe is not None and self._pipe.is_interrupted:
                return
            if isinstance(error, InputFileError):  # it has the name already
                raise
            raise self._error(error) from error
        self._ended = self._pipe is None or not self._pipe.is_interrupted

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines, each with its number. Blank ones at the begin are counted, but may be missing."""
        self._look_at_pipe()
        yield from enumerate(self, 1 if self._is_array else 1 + self._blank_lines)

    def place(self, number: int) -> str:
        """``line 3``."""
        return f"{self.unit} {number}"

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` for a pipe that hasn't ended."""
        if self._ended:
            return 1.0
        read = self._read if self._packed is None else self._packed.read_bytes
        return min(read / self._size, 0.9999) if self._size else None

    def interrupt(self) -> None:
        """End a wait for the next line of a pipe."""
        if self._pipe is not None:
            self._pipe.interrupt()

    def __enter__(self) -> RequestsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def default_save_path(requests_path: Path) -> Path:
    """``name_results.jsonl`` beside ``name.jsonl`` and ``name.jsonl.gz``.

    Raises :class:`ConfigurationError` for a pipe or a device: nothing lasts beside it.
    """
    is_pipe = requests_path.exists() and not (requests_path.is_file() or requests_path.is_dir())
    if is_pipe or str(requests_path.parent) in _DEVICE_FOLDERS or _is_descriptor(requests_path):
        raise ConfigurationError(
            f"the requests come from {requests_path}, which is no file that results could stand beside: "
            "name a results file (--save_filepath, in a program save_path)"
        )
    return requests_path.parent / f"{plain_stem(requests_path)}_results.jsonl"


def plain_stem(path: Path) -> str:
    """``name`` of ``name.jsonl`` and ``name.jsonl.gz``."""
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSED else path.stem


def _is_descriptor(path: Path) -> bool:
    return path.parts[1:2] == ("proc",) and path.parts[-2:-1] == ("fd",)


def check_paths(
    requests: Path | Sequence[Path],
    save_path: Path,
    errors_path: Path | None,
    report_path: Path | None = None,
    template_path: Path | None = None,
) -> None:
    """Raise :class:`ConfigurationError` unless the files differ, and the folders of the outputs exist."""
    inputs = [requests] if isinstance(requests, Path) else list(requests)
    outputs = {
        "template": template_path,
        "results": save_path,
        "errors": errors_path,
        "report": report_path,
    }
    names = [("requests", path) for path in inputs] + list(outputs.items())
    seen: dict[object, str] = {}
    folders = {path.parent for path in inputs}
    for name, path in names:
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
            if path.parent not in folders and not _is_directory(path.parent):
                raise ConfigurationError(
                    f"the directory of the {name} file {path} does not exist: create it, or name another"
                )
            other = seen.setdefault(_file_of(path), name)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            reason = getattr(error, "strerror", None) or "a loop of symbolic links"
            raise ConfigurationError(f"can't use the {name} file {path}: {reason}") from error
        if other != name:
            raise ConfigurationError(f"the {other} and the {name} file are the same: {path}")
    for path in filter(None, (save_path, errors_path)):
        written_compression(path)


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
    if stat.S_ISCHR(status.st_mode) and path.parent == Path("/dev"):
        return path.absolute()  # a terminal is where input comes from and output goes to
    return status.st_dev, status.st_ino
