"""A file that grows by whole lines, plain or compressed, and that one process at a time may write."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from parallel_processor.exceptions import ParallelProcessorError, ResultsFileError
from parallel_processor.files.compression import (
    Member,
    compression_of,
    new_member,
    written_compression,
)
from parallel_processor.files.torn_ends import IntactPart, intact_part, intact_text

try:
    import fcntl
except ImportError:  # not POSIX: there are no locks then
    fcntl = None  # type: ignore[assignment]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EROFS})  # for a pipe or a device
_MAX_REPLACEMENTS = 10
_BUFFER_BYTES = 1024 * 1024
_HEAD_BYTES = 16
STDOUT = Path("/dev/stdout")
"""Standard output, as a path."""
REPLACEMENT_SUFFIX = ".new~"
"""The ending of a file that is written to replace another one."""
# Opening a pipe that nobody reads then fails at once; otherwise it would wait forever.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)


class AppendFile:
    """An open results or errors file. For one thread at a time.

    Opening creates the file if it is missing, with the permissions ``mode`` less the umask, and locks
    it. The lock ends with the process, however that ends. Pipes and devices are not locked.
    ``flags`` are further flags for ``os.open``.

    Raises :class:`ResultsFileError` if the file can't be written, or another process has it.
    """

    def __init__(self, path: Path, mode: int = 0o666, flags: int = 0) -> None:
        self.path = path
        self.dirty = False
        self._size = 0  # the size that the file must have at least
        self._has_lasting_name = False
        try:
            self._file = _open_locked(path, mode, flags)
        except BlockingIOError:
            raise ResultsFileError(
                f"another process is writing {path}: wait until it ends, or name another results file"
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
        """In bytes."""
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
                with contextlib.suppress(OSError):  # a pipe can't be truncated
                    os.ftruncate(self._file.fileno(), size)
            raise
        self.dirty = True
        self._size = size + len(data)

    def open_text(self) -> BinaryIO:
        """Open the text that is in the file, for reading; ``OSError`` if it is compressed."""
        text = io.BufferedReader(io.FileIO(self.path), _BUFFER_BYTES)
        kind = compression_of(text.peek(_HEAD_BYTES))
        if kind is not None:
            text.close()
            why = f"it is compressed with {kind}, which its name doesn't say: rename or unpack it"
            raise OSError(errno.EINVAL, why)
        return text

    def cut(self, size: int, text_bytes: int) -> bool:
        """Leave ``size`` of the ``text_bytes`` that :meth:`open_text` gave; false if that can't be.

        Then :meth:`beside` makes a file that can take their place.
        """
        if self.size != size:
            self.truncate(size)
        return True

    def beside(self, path: Path, flags: int) -> AppendFile:
        """A file of the same kind at ``path``, which :meth:`replace_by` takes."""
        return AppendFile(path, mode=0o600, flags=flags)

    def end(self) -> None:
        """Nothing more is appended for now: make the file complete."""

    def truncate(self, size: int) -> None:
        """Truncate the file to its first ``size`` bytes."""
        os.ftruncate(self._file.fileno(), size)
        self.dirty = True
        self._size = size

    def sync(self) -> None:
        """Make sure that what was written survives a power loss."""
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
            sync_directory(self.path.parent)

    def _check_name(self) -> None:
        """Raise ``OSError`` if another program removed, replaced or shortened the file."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return
        if not os.path.exists(self.path) or not os.path.samestat(status, os.stat(self.path)):
            raise OSError(errno.ESTALE, "another program has removed or replaced it")
        if status.st_size < self._size:
            raise OSError(errno.ESTALE, "another program has shortened it")

    def replace_by(self, other: AppendFile) -> None:
        """Put ``other``, which is complete and synced, in this file's place, and become that file.

        The lock holds all the time: ``other`` is locked as well.
        """
        status = os.fstat(self._file.fileno())
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.fchown(other._file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(other._file.fileno(), stat.S_IMODE(status.st_mode))
        target = self.path.resolve()  # a symbolic link stays one
        os.replace(other.path, target)
        sync_directory(target.parent)
        old, self._file, self._size = self._file, other._file, other._size
        old.close()

    def close(self) -> None:
        """Release the descriptor and the lock. To close it again does nothing."""
        if self._file.closed:
            return
        # A forked child has a copy of the descriptor. If it unlocked that, the parent would lose its lock.
        if fcntl is not None and os.getpid() == self._owner:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        self._file.close()


class PackedFile(AppendFile):
    """A compressed results or errors file. See ``compression.py``.

    What :meth:`append` has written can be unpacked, whatever happens next.
    """

    def __init__(self, path: Path, kind: str, mode: int = 0o666, flags: int = 0) -> None:
        super().__init__(path, mode, flags)
        self._kind = kind
        self._member: Member | None = None  # the one that grows
        self._owed = b""  # what must be written before another member begins
        self._intact: IntactPart | None = None  # found by open_text, until the file is changed

    def append(self, data: bytes) -> None:
        begun, owed = self._member, self._owed
        member = begun or new_member(self._kind, str(self.path))
        left = owed if begun is None else begun.closing()
        packed = (owed if begun is None else b"") + member.add(data)
        self._member, self._owed = None, left  # if this fails, the next member is another one
        self._intact = None
        super().append(packed)
        self._member, self._owed = member, b""

    def end(self) -> None:
        if self.is_regular and not self.size:  # nothing is no compressed file for gunzip
            member = new_member(self._kind, str(self.path))
            self._owed = begin + member.closing() if (begin := member.add(b"")) else b""
        if self._member is not None:
            self._owed = self._member.closing()
            self._member = None
        if self._owed:
            super().append(self._owed)
            self._owed = b""

    def open_text(self) -> BinaryIO:
        if self._intact is None:
            self._intact = intact_part(self.path, self._kind)
        return intact_text(self.path, self._kind, self._intact)

    def cut(self, size: int, text_bytes: int) -> bool:
        if self._intact is not None and self._intact.size != self.size:
            self.truncate(self._intact.size)
        if self._intact is not None and self._intact.closing:
            super().append(self._intact.closing)
            self._intact = IntactPart(self.size)
        return size == text_bytes

    def beside(self, path: Path, flags: int) -> AppendFile:
        return PackedFile(path, self._kind, mode=0o600, flags=flags)

    def replace_by(self, other: AppendFile) -> None:
        super().replace_by(other)
        self._intact = None


def open_results(path: Path) -> AppendFile:
    """Open a results or errors file, compressed if its name says so.

    Raises :class:`ResultsFileError` as :class:`AppendFile` does, and
    :class:`ConfigurationError` for a compression that can't be written.
    """
    kind = written_compression(path)
    return AppendFile(path) if kind is None else PackedFile(path, kind)


def replace_text(file: AppendFile, chunks: Iterable[bytes]) -> None:
    """Give ``file`` another text, in one step: a crash leaves the old one or the new one."""
    path = file.path.resolve().with_name(file.path.name + REPLACEMENT_SUFFIX)
    beside = file.beside(path, _NO_LINK)
    try:
        beside.truncate(0)  # an earlier copy, whose process was killed, may be there
        for chunk in chunks:
            beside.append(chunk)
        beside.end()
        beside.sync()
        file.replace_by(beside)
    except BaseException:
        beside.close()
        path.unlink(missing_ok=True)
        raise


def drop(file: AppendFile, ranges: Sequence[int], size: int) -> None:
    """Replace ``file`` by a copy without the bytes in ``ranges`` of its text, which has ``size`` bytes."""
    with file.open_text() as old:
        replace_text(file, _chunks_without(old, ranges, size))


def _chunks_without(file: BinaryIO, ranges: Sequence[int], size: int) -> Iterator[bytes]:
    starts, ends = (
        chain((0,), islice(ranges, 1, None, 2)),
        chain(islice(ranges, 0, None, 2), (size,)),
    )
    place = 0
    for start, end in zip(starts, ends, strict=True):
        while place < start:  # compressed text can't be gone to
            place += len(file.read(min(_BUFFER_BYTES, start - place)))
        while chunk := file.read(min(_BUFFER_BYTES, end - start)):
            yield chunk
            start += len(chunk)
        place = start


def _open_locked(path: Path, mode: int, flags: int) -> io.FileIO:
    """Open and lock ``path``. Try again if the file was replaced between the two."""
    for _ in range(_MAX_REPLACEMENTS):
        file = _open(path, _FLAGS | flags, mode)
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
    """Open ``path``. The object that is returned owns the descriptor."""
    opened: list[io.FileIO] = []
    if path == STDOUT and not stat.S_ISREG(os.fstat(1).st_mode):
        # In a container, another user's pipe can't be opened by its name.
        opened.extend(map(io.FileIO, map(os.dup, [1]), "w"))
        return opened[0]
    # A single call of C: after a plain ``os.open``, a KeyboardInterrupt could lose the descriptor.
    opened.extend(map(io.FileIO, map(os.open, [path], [flags], [mode]), "w"))
    return opened[0]


def sync_directory(directory: Path) -> None:
    """Make a new name in ``directory`` permanent. Where a directory can't be opened, nothing is needed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` at the end of the block, unless that raises.

    A symbolic link stays one. Two processes don't write at once. Raises :class:`ResultsFileError`.
    """
    target = path.resolve()
    beside = AppendFile(target.with_name(target.name + REPLACEMENT_SUFFIX), flags=_NO_LINK)
    try:
        try:
            with beside.path.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside.path, target)
        except BaseException:
            beside.path.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
    except ParallelProcessorError:  # some are an OSError
        raise
    except OSError as error:
        raise ResultsFileError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        beside.close()


def replace_file(path: Path, data: bytes) -> None:
    """Give the file at ``path`` the content ``data`` in one step, or leave it as it was."""
    replacement = path.with_name(path.name + REPLACEMENT_SUFFIX)
    try:
        replacement.write_bytes(data)
        os.replace(replacement, path)
    finally:
        replacement.unlink(missing_ok=True)
