"""Files on object stores, by fsspec: a URL such as ``s3://bucket/file`` names one.

Requests are read from there. Results are on local disk while a run goes on, where each record lasts: an
object can only be written whole. :class:`StoredFile` puts them there once the run has come to its end.

fsspec and the package of the store (``s3fs``, ``gcsfs``, ``adlfs``) are imported for a URL alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    ResultsFileError,
)
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX, AppendFile
from parallel_processor.files.requests_file import Opened
from parallel_processor.options import shown_url

_log = logging.getLogger("parallel_processor")
_PIECE_BYTES = 8 << 20
_BUFFER_BYTES = 256 * 1024
_MAGIC_CHARS = "*?["
_CLOCKS_S = 60.0  # by which the store's clock and this machine's may differ


def is_url(path: str) -> bool:
    """True for what fsspec opens, false for a path of this machine."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str | Path) -> Path:
    """``path``, or the path that a ``file://`` URL names."""
    return Path(str(path).removeprefix("file://"))


def file_system(url: str) -> Any:
    """The file system of ``url``. Raises :class:`ConfigurationError` if a package for it is missing."""
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            f"{shown_url(url)} is on an object store, which needs fsspec: "
            "pip install 'parallel-api-processor[cloud]'"
        ) from None
    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:  # the package is missing, or nobody knows the store
        raise ConfigurationError(f"can't use {shown_url(url)}: {error}") from None


def remote_files(url: str) -> list[str]:
    """The URLs of the files that match ``url``, sorted, if it is a pattern; else itself."""
    if url.startswith("http") or not any(each in url for each in _MAGIC_CHARS):
        return [url]
    fs = file_system(url)
    try:
        found = sorted(fs.glob(url))
    except Exception as error:  # each store has classes of its own
        raise _unreadable(url, error) from error
    return [cast(str, fs.unstrip_protocol(each)) for each in found]


def open_remote(url: str) -> Opened:
    """Open an object for reading. Raises :class:`InputFileError`."""
    fs = file_system(url)
    try:
        file = fs.open(url, "rb", block_size=_PIECE_BYTES)
        size = getattr(file, "size", None)
    except Exception as error:  # each store has classes of its own
        raise _unreadable(url, error) from error
    # Python's own reader of lines is several times as fast as those of most other file objects.
    return Opened(io.BufferedReader(cast(Any, _Remote(file)), _BUFFER_BYTES), size)


class _Remote(io.RawIOBase):
    """An object that is open. Whatever goes wrong is an ``OSError``."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def is_object(url: str) -> bool:
    """True if there is a file at ``url``; false for a folder, or nothing.

    Raises :class:`ResultsFileError` if the store can't tell.
    """
    try:
        return bool(file_system(url).info(url)["type"] == "file")  # isfile() hides errors
    except FileNotFoundError:
        return False
    except ParallelProcessorError:
        raise
    except Exception as error:  # each store has classes of its own
        raise ResultsFileError(str(_unreadable(url, error))) from error


@contextmanager
def fetched(path: str) -> Iterator[Path]:
    """The results file at ``path``; if that is a URL, a copy of it that is removed at the end."""
    if not is_url(path):
        yield local_path(path)
        return
    from tempfile import TemporaryDirectory  # it loads all that packs files

    with TemporaryDirectory(prefix="parallel-processor-") as folder:
        copy = Path(folder) / path.rpartition("/")[2]
        try:
            file_system(path).get_file(path, str(copy))
        except Exception as error:  # each store has classes of its own
            raise ResultsFileError(str(_unreadable(path, error))) from error
        yield copy


@contextmanager
def found_results(path: str) -> Iterator[Path | None]:
    """The results file at ``path`` as a run goes on from it, to be read; ``None`` if a URL has none.

    That of a URL is the one in the working directory, if there is one, else a copy of the object.
    """
    local = StoredFile(path).path if is_url(path) else local_path(path)
    if not is_url(path) or local.exists():
        yield local
    elif is_object(path):
        with fetched(path) as copy:
            yield copy
    else:
        yield None


def _unreadable(url: str, error: Exception) -> InputFileError:
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return InputFileError(f"can't read {shown_url(url)}: {reason}")


class StoredFile:
    """A results or errors file that belongs on an object store. For one thread.

    Attributes:
        path: where it is while the run goes on, and until it is on the store: in the working directory.

    Raises :class:`ConfigurationError` if nothing can be written there.
    """

    def __init__(self, url: str) -> None:
        self._url, self.name = url, shown_url(url)
        if url.startswith("http"):
            raise ConfigurationError(f"can't write {self.name}: https:// can only be read")
        self._fs = file_system(url)
        self._goes_on, self._written_at_s = False, cast("float | None", None)  # from that object
        name = url.rpartition("/")[2]
        if not name:
            raise ConfigurationError(f"{self.name} is a folder: name a file in it")
        stem, dot, ends = name.partition(".")
        self.path = Path(
            f"{stem}-{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}{dot}{ends}"
        )

    def fetch(self, file: AppendFile) -> None:
        """Begin with what is on the store, if ``file``, which is open at :attr:`path`, is empty.

        Raises :class:`ResultsFileError` if it isn't, and the object is newer: that is of another run.
        """
        self._goes_on = True
        try:
            if not self._fs.exists(self._url):
                return
            self._written_at_s = self._modified_s()
            if file.size:
                self._check_older()
                return
            _log.info("fetching %s, to go on from it", self.name)
            beside = AppendFile(self.path.with_name(self.path.name + REPLACEMENT_SUFFIX))
            beside.truncate(0)
            with self._fs.open(self._url, "rb", block_size=_PIECE_BYTES) as stored:
                for piece in _pieces(stored):
                    beside.append(piece)
            beside.sync()
            file.replace_by(beside)
        except ParallelProcessorError:
            raise
        except Exception as error:  # each store has classes of its own
            raise self._error("read", error) from error

    def _check_older(self) -> None:
        """Raise if the object was written after the file here, which would replace it unseen."""
        written_at_s = self._written_at_s or 0.0
        if written_at_s > self.path.stat().st_mtime + _CLOCKS_S:
            raise ResultsFileError(
                f"{self.name} was written after {self.path}, which a stopped run has left here: another "
                f"run has finished since. Remove {self.path} to go on from there, or {self.name} to go on "
                "from here"
            )

    def _modified_s(self) -> float | None:
        """When the object was written; ``None`` if there is none, or the store doesn't tell."""
        try:
            self._fs.invalidate_cache()
            return float(self._fs.modified(self._url).timestamp())
        except (NotImplementedError, AttributeError, FileNotFoundError):
            return None

    def put(self, file: AppendFile) -> None:
        """Write ``file``, which is complete, to the store, and remove it here.

        Raises :class:`ResultsFileError` if that fails. The file stays then, and the store has what it had.
        """
        try:
            if self._goes_on and self._modified_s() != self._written_at_s:
                raise OSError("another run has written it meanwhile")
            self._fs.put_file(str(self.path), self._url)
            self._fs.invalidate_cache()
            stored = self._fs.info(self._url)["size"]
        except Exception as error:  # each store has classes of its own
            raise self._error("write", error) from error
        if stored != file.size:
            raise self._error("write", OSError(f"{stored:,} bytes of {file.size:,} are there"))
        _log.info("%s is written", self.name)
        self.path.unlink(missing_ok=True)

    def _error(self, what: str, error: Exception) -> ResultsFileError:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return ResultsFileError(
            f"can't {what} {self.name}: {reason}. What there is of the results is in {self.path}: "
            "the same command goes on from it"
        )


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
