"""The parts of a job's files, each of which a process reads.

A plain file can be entered anywhere: a line belongs to the part that its first byte lies in. So each
process gets as many bytes as the others, and its tally comes back through a pipe. Pipes, compressed files,
arrays and tables are read here, one after the other.

A process is started afresh, not forked: the caller may have threads, and needs no
``if __name__ == "__main__"``. It ends when its standard input does, however this process ended.
"""

from __future__ import annotations

import io
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from parallel_processor.exceptions import InputFileError, ParallelProcessorError, WorkerProcessError
from parallel_processor.files.compression import compression_of
from parallel_processor.files.resume import AnsweredRequests
from parallel_processor.files.shape import is_array
from parallel_processor.files.sources import Source
from parallel_processor.planning.job.scan import ScanJob, Scanner, Tally

_BUFFER_BYTES = 1 << 18
_LEAST_BYTES = 8 << 20  # of a part: less is read before another process has started
_LINES_PER_CHECK = 4096
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from parallel_processor.planning.job.parts import main; main()"
)


class Part(NamedTuple):
    """The lines of a file whose first byte is at ``start`` or later, and before ``end``."""

    source: int  # the number of the file
    path: str
    start: int
    end: int


def scan(
    sources: Sequence[Source], job: ScanJob, answered: AnsweredRequests | None, processes: int
) -> tuple[Tally, list[str]]:
    """What is in ``sources``; and what a line of each is called: ``line``, ``element``, ``row``.

    Tables need ``processes`` to be 1. With ``answered`` it is 1: an answer serves one of equal lines.
    """
    parts = [] if answered is not None else cut(sources, processes)
    if parts:
        for source in sources:
            with source.open():  # raises what is wrong with the file as a whole
                pass
        return scan_apart(parts, job), ["line"] * len(sources)
    scanner, before, units = Scanner(job, answered), 0, []
    for number, source in enumerate(sources):
        with source.open() as lines:
            before += scanner.scan(lines.numbered(), number, before=before)
            units.append(lines.place(0).partition(" ")[0])
    return scanner.tally, units


def cut(
    sources: Sequence[Source], processes: int, least_bytes: int = _LEAST_BYTES
) -> list[list[Part]]:
    """The parts of each process; none if one process is enough, or has to do."""
    sizes = [source.size_bytes or 0 for source in sources]
    count = min(processes, sum(sizes) // least_bytes)
    if count < 2 or not all(map(_is_plain, sources)):
        return []
    ends = [sum(sizes) * number // count for number in range(1, count + 1)]
    found: list[list[Part]] = [[] for _ in ends]
    begin = 0
    for number, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        start = 0
        for parts, end in zip(found, ends, strict=True):
            upto = min(max(end - begin, start), size)
            if upto > start:
                parts.append(Part(number, str(source.path), start, upto))
            start = upto
        begin += size
    return found


def _is_plain(source: Source) -> bool:
    """True for a file of lines that can be entered anywhere."""
    if source.path is None or source.size_bytes is None:
        return False
    try:
        with source.path.open("rb") as file:
            head = file.read(_BUFFER_BYTES)
    except OSError as error:
        raise InputFileError(f"can't read {source.path}: {error.strerror or error}") from error
    return compression_of(head) is None and not is_array(head)


def scan_parts(parts: Sequence[Part], job: ScanJob) -> Tally:
    """What is in ``parts``."""
    scanner = Scanner(job)
    for part in parts:
        try:
            with io.BufferedReader(io.FileIO(part.path), _BUFFER_BYTES) as file:
                if part.start:  # to the first line that begins in the part
                    file.seek(part.start - 1)
                    file.readline()
                lines = _while_wanted(lines_until(file, part.end))
                scanner.scan(lines, part.source, offset=file.tell())
        except OSError as error:
            raise InputFileError(f"can't read {part.path}: {error.strerror or error}") from error
    return scanner.tally


def lines_until(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin before byte ``end``, each with its number from here, from 1."""
    place, number = file.tell(), 0
    while place < end and (line := file.readline()):
        number += 1
        place += len(line)
        yield number, line


def _while_wanted(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """``lines``. The process ends if nobody waits for its result any more."""
    for number, line in lines:
        if number % _LINES_PER_CHECK == 0 and select.select([0], [], [], 0)[0]:
            os._exit(1)
        yield number, line


def scan_apart(all_parts: Sequence[Sequence[Part]], job: ScanJob) -> Tally:
    """What is in ``all_parts``, each read by a process of its own."""
    root = str(Path(__file__).resolve().parents[3])
    with ExitStack() as stack:
        children = []
        for parts in all_parts:
            child = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is for this process
            )
            stack.callback(_end, child)
            pickle.dump((sys.path, pickle.dumps((parts, job))), cast(Any, child.stdin))
            cast(Any, child.stdin).flush()
            children.append(child)
        whole: Tally | None = None
        for child in children:
            tally = _result(child)
            if whole is None:
                whole = tally
            else:
                whole.extend(tally)
    assert whole is not None
    return whole


def _result(child: subprocess.Popen[bytes]) -> Tally:
    """What a process has found; raises what it has raised."""
    try:
        found = pickle.load(cast(Any, child.stdout))
    except (EOFError, OSError, pickle.UnpicklingError):
        raise WorkerProcessError("a process that read the requests has ended early") from None
    if isinstance(found, BaseException):
        raise found
    return cast(Tally, found)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        cast(Any, pipe).close()


def main() -> None:
    """Runs in a new process, whose standard input and output are the pipes."""
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that a print doesn't get into the pipe
    paths, packed = pickle.load(io.BufferedReader(io.FileIO(0, closefd=False)))
    sys.path[:] = paths
    try:
        found: object = scan_parts(*pickle.loads(packed))
    except ParallelProcessorError as error:
        found = type(error)(str(error))
    pickle.dump(found, result, pickle.HIGHEST_PROTOCOL)
    result.close()
