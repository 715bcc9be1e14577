"""A file that grows by whole lines, and belongs to one process at a time."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from pathlib import Path

from parallel_processor.exceptions import ResultsFileError

try:
    import fcntl
except ImportError:  # Windows: there is no lock then
    fcntl = None  # type: ignore[assignment]

_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EROFS})  # a pipe or a device
_MAX_REPLACEMENTS = 10
REPLACEMENT_SUFFIX = ".new~"
"""The ending of a file that is written to replace another one."""
# A pipe that nobody reads is an error at once, instead of a wait that nothing ends; on Windows lines end
# with LF as well.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class AppendFile:
    """An open results or errors file. For one thread at a time.

    Opening creates the file where it is missing, and locks it; the lock ends with the process, however
    that ends. :class:`ResultsFileError` if it can't be written, or another process has it. Pipes and
    devices have no lock. A new file gets ``mode``, less the umask; ``flags``
    are further ones of ``os.open``.
    """

    def __init__(self, path: Path, mode: int = 0o666, flags: int = 0) -> None:
        self.path = path
        self.dirty = False
        self._size = 0  # the least that it must have
        self._has_lasting_name = False
        try:
            self._file = _open_locked(path, mode, flags)
        except BlockingIOError:
            raise ResultsFileError(
                f"another process is writing {path}: wait for it, or name another results file"
            ) from None
        except OSError as error:
            raise ResultsFileError(f"can't write {path}: {error.strerror or error}") from error
        self._owner = os.getpid()

    @property
    def is_regular(self) -> bool:
        """False for a pipe or a device."""
        return stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, data: bytes) -> None:
        """Write all of ``data``, or nothing of it."""
        size = self.size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError:
            if len(view) < len(data):
                with contextlib.suppress(OSError):  # a pipe can't be cut
                    os.ftruncate(self._file.fileno(), size)
            raise
        self.dirty = True
        self._size = size + len(data)

    def cut(self, size: int) -> None:
        """Forget everything behind the first ``size`` bytes."""
        os.ftruncate(self._file.fileno(), size)
        self.dirty = True
        self._size = size

    def sync(self) -> None:
        """Make what was written last through a power loss."""
        if not self.dirty:
            return
        self._check_name()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        self.dirty = False
        if not self._has_lasting_name:
            self._has_lasting_name = True
            _sync_directory(self.path.parent)

    def _check_name(self) -> None:
        """``OSError`` if somebody removed, replaced or shortened the file: its records are gone."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return
        if not os.path.exists(self.path) or not os.path.samestat(status, os.stat(self.path)):
            raise OSError(errno.ESTALE, "it was removed or replaced by somebody else")
        if status.st_size < self._size:
            raise OSError(errno.ESTALE, "it was shortened by somebody else")

    def replace_by(self, other: AppendFile) -> None:
        """Put ``other``, complete and synced, in this file's place, and be that file from now on.

        The lock holds throughout: ``other`` has one as well.
        """
        status = os.fstat(self._file.fileno())
        if hasattr(os, "fchown"):  # not on Windows
            with contextlib.suppress(PermissionError):  # only root may give a file away
                os.fchown(other._file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(other._file.fileno(), stat.S_IMODE(status.st_mode))
        target = self.path.resolve()  # a symbolic link stays one
        if fcntl is None:
            self._replace_closed(other, target)
            return
        os.replace(other.path, target)
        _sync_directory(target.parent)
        old, self._file, self._size = self._file, other._file, other._size
        old.close()

    def _replace_closed(self, other: AppendFile, target: Path) -> None:
        """Windows replaces no file that is open, nor by one; and there is no lock to hold."""
        other.close()
        self.close()
        try:
            os.replace(other.path, target)
            self._size = other._size
        finally:
            self._file = _open_locked(self.path, 0o666, 0)

    def close(self) -> None:
        """Give back the descriptor, and with it the lock; again does nothing.

        A child that was forked meanwhile has the descriptor too, and with it a part in the lock.
        """
        if self._file.closed:
            return
        if fcntl is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        self._file.close()


def _open_locked(path: Path, mode: int, flags: int) -> io.FileIO:
    """Open and lock ``path``; again if it was replaced between the two."""
    for _ in range(_MAX_REPLACEMENTS):
        file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS | flags, mode)
        try:
            if hasattr(os, "O_NONBLOCK"):
                os.set_blocking(file.fileno(), True)
            if fcntl is None or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return file  # a file system without locks
            file.close()
            raise
        file.close()
    raise BlockingIOError


def _open(path: Path, flags: int, mode: int) -> io.FileIO:
    """Open ``path``; the descriptor, and a lock on it, go with the object that holds it.

    It is handed on within one call of C: behind ``os.open`` itself a KeyboardInterrupt would lose it.
    """
    opened: list[io.FileIO] = []
    opened.extend(map(io.FileIO, map(os.open, [path], [flags], [mode]), "w"))
    return opened[0]


def _sync_directory(directory: Path) -> None:
    """Make a name in ``directory`` last; where directories can't be opened it does by itself."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Give the file at ``path`` the content ``data`` in one step.

    A reader sees the old content or the new one. If that fails, the old file stays as it was.
    """
    replacement = path.with_name(path.name + REPLACEMENT_SUFFIX)
    try:
        replacement.write_bytes(data)
        os.replace(replacement, path)
    finally:
        replacement.unlink(missing_ok=True)
