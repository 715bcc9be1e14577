"""Files on this machine, and on object stores by fsspec: a URL such as ``s3://bucket/folder`` names those.

Both kinds of :class:`Folder` create a file in one step: nobody sees a part of it, and if two try, one file
stays. fsspec and the package of the store (``s3fs``, ``gcsfs``, ``adlfs``) are imported for a URL alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from parallel_processor.exceptions import InputFileError, ResultsFileError
from parallel_processor.files.append_file import sync_directory
from parallel_processor.files.object_stores import file_system, is_url, local_path

_PIECE_BYTES = 8 << 20
_TEMPORARY = ".tmp"


def everywhere(path: str) -> str:
    """``path`` for a process with another working directory: absolute, unless it is a URL or empty."""
    return str(local_path(path).absolute()) if path and not is_url(path) else path


def open_input(path: str) -> BinaryIO:
    """Open the requests file for reading at any place; ``OSError`` if that fails."""
    if not is_url(path):
        return local_path(path).open("rb", buffering=0)
    return cast(BinaryIO, file_system(path).open(path, "rb", block_size=_PIECE_BYTES))


def input_size(path: str) -> int:
    """The size of the requests file in bytes. Raises :class:`InputFileError` if there is no such file."""
    try:
        if is_url(path):
            found = file_system(path).info(path)
            size = found["size"] if found["type"] == "file" else None
        else:
            size = local_path(path).stat().st_size if local_path(path).is_file() else None
            if size is None:
                local_path(path).stat()
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror or error}") from error
    if size is None:
        raise InputFileError(f"can't read {path}: it is not a file that can be read in blocks")
    return int(size)


class Folder(Protocol):
    """A folder of files that are written once."""

    name: str

    def names(self) -> list[str]:
        """The names of its files, sorted; none if it isn't there. What is being written has no name."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; ``FileNotFoundError`` if it is not there."""
        ...

    def create(self, name: str, chunks: Iterable[bytes], *, replace: bool = False) -> bool:
        """Write a whole file in one step. False if it is there already, unless it is to be replaced.

        Raises :class:`ResultsFileError` if it can't be written; nothing is left of it then.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; do nothing if it is not there."""
        ...

    def within(self, name: str) -> Folder:
        """A folder in this one."""
        ...


class LocalFolder:
    """A folder on this machine, or on a file system that all workers mount."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def names(self) -> list[str]:
        try:
            found = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResultsFileError(f"can't read {self.path}: {error.strerror or error}") from error
        return sorted(name for name in found if not name.endswith(_TEMPORARY))

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb", buffering=_PIECE_BYTES)

    def create(self, name: str, chunks: Iterable[bytes], *, replace: bool = False) -> bool:
        target = self.path / name
        if target.exists() and not replace:
            return False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            made = self.path / f"{name}.{uuid.uuid4().hex}{_TEMPORARY}"
            try:
                with made.open("xb", buffering=_PIECE_BYTES) as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(made, target)
            finally:
                made.unlink(missing_ok=True)
        except OSError as error:
            raise ResultsFileError(f"can't write {target}: {error.strerror or error}") from error
        sync_directory(self.path)
        return True

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove what killed processes were writing."""
        for path in self.path.glob(f"*{_TEMPORARY}"):
            path.unlink(missing_ok=True)

    def within(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)


class RemoteFolder:
    """A folder on an object store."""

    def __init__(self, url: str) -> None:
        self.name, self._fs = url.rstrip("/"), file_system(url)

    def names(self) -> list[str]:
        try:
            self._fs.invalidate_cache(self.name)  # another worker may have written since
            found = self._fs.ls(self.name, detail=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResultsFileError(f"can't list {self.name}: {error}") from error
        return sorted(each["name"].rpartition("/")[2] for each in found if each["type"] == "file")

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(f"{self.name}/{name}", "rb", block_size=_PIECE_BYTES))

    def create(self, name: str, chunks: Iterable[bytes], *, replace: bool = False) -> bool:
        url = f"{self.name}/{name}"
        if not replace and self._fs.exists(url):
            return False
        with (
            tempfile.TemporaryFile() as file
        ):  # whole first: the store gets it in one go, or nothing
            try:
                file.writelines(chunks)
                file.seek(0)
                with self._fs.open(
                    url, "wb" if replace else "xb", block_size=_PIECE_BYTES
                ) as target:
                    shutil.copyfileobj(file, target, _PIECE_BYTES)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno == errno.EEXIST or "PreconditionFailed" in str(error):
                    return False
                raise ResultsFileError(f"can't write {url}: {error.strerror or error}") from error
        self._fs.invalidate_cache(self.name)
        return True

    def remove(self, name: str) -> None:
        try:
            self._fs.rm_file(f"{self.name}/{name}")
        except FileNotFoundError:
            pass

    def within(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.name}/{name}")


def open_folder(path: str) -> LocalFolder | RemoteFolder:
    """The folder at a path or URL. It is made when its first file is."""
    return RemoteFolder(path) if is_url(path) else LocalFolder(local_path(path))
