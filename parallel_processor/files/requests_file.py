"""The requests file: checked before anything is sent, then read once, line by line, as it is sent."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX

_BUFFER_BYTES = 256 * 1024


class RequestsFile:
    """An open requests file, as an iterable of its lines. For one thread."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=_BUFFER_BYTES)
            status = os.fstat(self._file.fileno())
        except OSError as error:
            raise InputFileError(f"can't read {path}: {error.strerror or error}") from error
        self.path = path
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._read = 0
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            for line in self._file:
                self._read += len(line)
                yield line
        except OSError as error:
            raise InputFileError(f"can't read {self.path}: {error.strerror or error}") from error
        self._ended = True

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
    """``name_results.jsonl`` beside ``name.jsonl``."""
    return requests_path.parent / f"{requests_path.stem}_results.jsonl"


def check_paths(
    requests_path: Path, save_path: Path, errors_path: Path | None, report_path: Path | None = None
) -> None:
    """Raise :class:`ConfigurationError` unless the files differ, and the folders of the outputs exist."""
    paths = (requests_path, save_path, errors_path, report_path)
    seen: dict[object, str] = {}
    for name, path in zip(("requests", "results", "errors", "report"), paths, strict=True):
        if path is None:
            continue
        if path.name.endswith(REPLACEMENT_SUFFIX):
            raise ConfigurationError(
                f"the {name} file {path} has an ending that is kept for temporary files: rename it"
            )
        try:
            if path.is_dir():
                raise ConfigurationError(f"the {name} file {path} is a directory")
            if name != "requests" and not path.parent.is_dir():
                raise ConfigurationError(
                    f"the directory of the {name} file {path} does not exist: create it, or name another"
                )
            other = seen.setdefault(_file_of(path), name)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            raise ConfigurationError(f"can't use the {name} file {path}: {error}") from error
        if other != name:
            raise ConfigurationError(f"the {other} and the {name} file are the same: {path}")


def _file_of(path: Path) -> object:
    """What two paths to one file share: its device and inode; its full path if it doesn't exist yet."""
    if not path.exists():
        return path.resolve()
    status = path.stat()
    return status.st_dev, status.st_ino
