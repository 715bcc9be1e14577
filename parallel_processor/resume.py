"""What a results file says is done already, and its mending after a stop.

The results file is the only state. A request is answered if a good record of it is there; equal
requests are counted, so that *k* equal lines need *k* answers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.formats import identity, read_record
from parallel_processor.models import Request

_BUFFER_BYTES = 1024 * 1024


class AnsweredRequests:
    """A counted set of the requests that have a good record. For the feeding thread only."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self.answered = 0
        self.failed = 0
        self.foreign = 0

    def add(self, key: bytes) -> None:
        """One more answer to the requests of identity ``key``."""
        self._counts[key] = self._counts.get(key, 0) + 1
        self.answered += 1

    def take(self, request: Request) -> bool:
        """True if ``request`` is answered; the answer then stands for no other request."""
        if not self._counts or request.flaw is not None:
            return False
        key = identity(request)
        left = self._counts.get(key, 0)
        if left == 0:
            return False
        if left == 1:
            del self._counts[key]
        else:
            self._counts[key] = left - 1
        return True


def prepare_results(path: Path) -> AnsweredRequests:
    """Read the results file at ``path``, and leave only whole, good records in it.

    A torn last line is cut off, failed records are dropped to be tried again. Lines that are no records
    stay. A file that needs a change is replaced atomically: until the new one is complete on disk, the
    old one stands.
    """
    answered = AnsweredRequests()
    try:
        if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
            return answered
        if _scan(path, answered):
            _replace(path)
    except OSError as error:
        raise ResultsFileError(f"{path}: {error.strerror or error}") from error
    return answered


def _scan(path: Path, answered: AnsweredRequests) -> bool:
    """Count the records of ``path``; true if it holds a failed or a torn one."""
    torn = False
    for line in _lines(path):
        found = read_record(line)
        if found is None:
            blank = not line.strip()
            torn = torn or not line.endswith(b"\n")
            answered.foreign += 0 if blank or torn else 1
        elif found.ok:
            answered.add(found.identity)
            torn = torn or not line.endswith(b"\n")  # a whole record without its line end
        else:
            answered.failed += 1
    return torn or answered.failed > 0


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        yield from file


def _replace(path: Path) -> None:
    """Write the lines of ``path`` that stay to a new file beside it, and put that in its place."""
    path = path.resolve()  # a symbolic link stays one
    beside = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with beside.open("wb", buffering=_BUFFER_BYTES) as file:
            os.chmod(beside, stat.S_IMODE(path.stat().st_mode))
            for line in _lines(path):
                found = read_record(line)
                if found.ok if found is not None else line.endswith(b"\n"):
                    file.write(line if line.endswith(b"\n") else line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_directory(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` last; where directories can't be opened it lasts by itself."""
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
