"""What is left after a run, however it ended: no thread, no socket, no file, no lock."""

from __future__ import annotations

import errno
import fcntl
import json
import linecache
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from commands import write_lines
from raw_server import RawServer, Visit

from parallel_processor import (
    InputFileError,
    Limits,
    Options,
    Processor,
    ResultsFileError,
    RetryPolicy,
    RunStoppedError,
)
from parallel_processor.transport.session import Transport

COUNT = 40
NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
ROWS = [{"model": "m", "input": f"text {number}"} for number in range(COUNT)]
HANGS_S = 20.0


class Broken(Exception):
    """What callers raise here."""


class Room:
    """A server that answers by a script of its own: ``answer``, ``fault``, ``forbid`` or ``hold``."""

    def __init__(self) -> None:
        self.way: Callable[[Visit], object] = answer
        self.held = threading.Semaphore(0)

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            self.way(visit)

    def hold(self, visit: Visit) -> None:
        """Answer nothing until the client leaves; one row in two is answered all the same."""
        if int(json.loads(visit.body)["input"].split()[1]) % 2:
            answer(visit)
            return
        self.held.release()
        visit.wait_for_the_end()

    def wait_for(self, count: int) -> None:
        """Return once so many requests are held."""
        for _ in range(count):
            assert self.held.acquire(timeout=HANGS_S)


def answer(visit: Visit) -> None:
    """Answer."""
    visit.answer()


def fault(visit: Visit) -> None:
    """Answer half, and end the connection."""
    visit.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    visit.reset()


def forbid(visit: Visit) -> None:
    """Refuse the account."""
    error = {"error": {"message": "wrong key", "code": "invalid_api_key"}}
    visit.answer(json.dumps(error).encode(), status="401 Unauthorized")


@dataclass
class Stage:
    """A job, its server and its processor."""

    room: Room
    processor: Processor
    source: Path
    save: Path
    patch: pytest.MonkeyPatch
    threads: list[threading.Thread] = field(default_factory=list)
    # Kept, or a socket that nobody closed would be closed by being collected.
    transports: list[Transport] = field(default_factory=list)

    def run(self) -> None:
        """Do the job."""
        self.processor.process_file(self.source, self.save)

    def when_held(self, count: int, action: Callable[[], object]) -> None:
        """Have another thread do ``action`` once so many requests are held."""

        def wait() -> None:
            self.room.wait_for(count)
            action()

        self.threads.append(threading.Thread(target=wait))
        self.threads[-1].start()


End = Callable[[Stage], None]


def complete(stage: Stage) -> None:
    """Every request is answered."""
    stage.run()


def broken_connections(stage: Stage) -> None:
    """Every connection breaks."""
    stage.room.way = fault
    with pytest.raises(RunStoppedError, match="no answer from .*reset"):
        stage.run()


def fatal(stage: Stage) -> None:
    """The account is refused."""
    stage.room.way = forbid
    with pytest.raises(RunStoppedError):
        stage.run()


def full_disk(stage: Stage) -> None:
    """The disk takes no record."""

    def refuse_to_write(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with stage.patch.context() as patch, pytest.raises(ResultsFileError, match="No space"):
        patch.setattr(os, "write", refuse_to_write)
        stage.run()


def failing_sync(stage: Stage) -> None:
    """The disk takes records, and loses them."""

    def refuse_to_sync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with stage.patch.context() as patch, pytest.raises(ResultsFileError, match="Input/output"):
        patch.setattr(os, "fsync", refuse_to_sync)
        stage.run()


def stopped(stage: Stage) -> None:
    """Another thread stops it, and its last answers don't come in time."""
    stage.room.way = stage.room.hold
    stage.when_held(4, stage.processor.stop)
    stage.run()


def cancelled(stage: Stage) -> None:
    """Another thread cancels it while exchanges stall."""
    stage.room.way = stage.room.hold
    stage.when_held(4, stage.processor.cancel)
    stage.run()


def broken_input(stage: Stage) -> None:
    """The requests file can't be read to its end."""

    def lines(self: Any) -> Iterator[bytes]:
        yield b'{"input": "text 1"}\n'
        raise InputFileError("can't read on")

    stage.patch.setattr("parallel_processor.files.requests_file.RequestsFile.__iter__", lines)
    with pytest.raises(InputFileError):
        stage.run()


def missing_input(stage: Stage) -> None:
    """There is no requests file."""
    stage.source = stage.source.with_name("none.jsonl")
    with pytest.raises(InputFileError):
        stage.run()


def locked_out(stage: Stage) -> None:
    """Another process has the results file."""
    descriptor = os.open(stage.save, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ResultsFileError, match="another process"):
            stage.run()
    finally:
        os.close(descriptor)


def failing_replacement(stage: Stage) -> None:
    """Failed records can't be replaced."""
    write_lines(stage.save, [[ROWS[0], ["failed"]]])

    def refuse_to_replace(*paths: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    stage.patch.setattr(os, "replace", refuse_to_replace)
    with pytest.raises(ResultsFileError, match="Permission denied"):
        stage.run()


def replaced(stage: Stage) -> None:
    """Failed records are replaced, and the file is another one from then on."""
    write_lines(stage.save, [[row, ["failed"]] for row in ROWS])
    stage.run()


def taken(stage: Stage) -> None:
    """Every outcome of an iterable is taken."""
    assert len(list(stage.processor.imap_unordered(ROWS))) == COUNT


def closed(stage: Stage) -> None:
    """The iterator is closed before its end, while exchanges stall."""
    stage.room.way = stage.room.hold
    outcomes = stage.processor.imap_unordered(ROWS)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]


def dropped(stage: Stage) -> None:
    """The iterator is dropped before its end, while exchanges stall."""
    stage.room.way = stage.room.hold
    outcomes = stage.processor.imap_unordered(ROWS)
    next(outcomes)
    del outcomes


def never_begun(stage: Stage) -> None:
    """No outcome is ever asked for."""
    stage.processor.imap_unordered(ROWS)


def raising_consumer(stage: Stage) -> None:
    """The consumer of the outcomes raises while exchanges stall."""
    stage.room.way = stage.room.hold

    def consume() -> None:
        for _ in stage.processor.imap_unordered(ROWS):
            raise Broken

    with pytest.raises(Broken):
        consume()


def raising_input(stage: Stage) -> None:
    """The iterable raises, and what is in flight never comes."""
    stage.room.way = stage.room.hold

    def rows() -> Iterator[dict[str, Any]]:
        yield from ROWS[:8]
        raise Broken

    with pytest.raises(Broken):
        list(stage.processor.imap_unordered(rows()))


def cancelled_consumer(stage: Stage) -> None:
    """An iterable's run is cancelled while exchanges stall."""
    stage.room.way = stage.room.hold
    stage.when_held(4, stage.processor.cancel)
    with pytest.raises(RunStoppedError):
        list(stage.processor.imap_unordered(ROWS))


FILE_ENDS: list[End] = [
    *(complete, broken_connections, fatal, full_disk, failing_sync, stopped, cancelled),
    *(broken_input, missing_input, locked_out, failing_replacement, replaced),
]
ITERABLE_ENDS: list[End] = [
    *(taken, closed, dropped, never_begun, raising_consumer, raising_input),
    cancelled_consumer,
]


def in_use() -> tuple[list[str], list[str]]:
    """The names of all threads, and what every open descriptor leads to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass  # the one that listed the directory
    return sorted(thread.name for thread in threading.enumerate()), sorted(found)


def assert_free(path: Path) -> None:
    """Anybody may lock the file now."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


@contextmanager
def stage_in(folder: Path, drain_s: float = 0.05) -> Iterator[Stage]:
    """A stage, which goes with the block."""
    room = Room()
    source = write_lines(folder / "in.jsonl", ROWS)
    with RawServer(room) as server, pytest.MonkeyPatch.context() as patch:
        with Processor(
            request_url=server.url,
            limits=NO_LIMITS,
            retry=RetryPolicy(max_attempts=2, backoff_initial_s=0.0),
            max_workers=8,
            drain_s=drain_s,
            write_retry_s=0.0,
        ) as processor:
            stage = Stage(room, processor, source, folder / "out.jsonl", patch)

            def transport(options: Options) -> Transport:
                stage.transports.append(Transport(options))
                return stage.transports[-1]

            patch.setattr("parallel_processor.workers.threads.Transport", transport)
            yield stage
            for thread in stage.threads:
                thread.join()


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have everything loaded that is loaded once."""
    with stage_in(tmp_path_factory.mktemp("warm")) as stage:
        stage.run()


@pytest.mark.parametrize("end", FILE_ENDS + ITERABLE_ENDS, ids=lambda end: end.__name__)
def test_nothing_is_left(end: End, tmp_path: Path) -> None:
    """Threads, sockets and files are as before, the lock is free, and nothing lies beside the file."""
    before = in_use()
    with stage_in(tmp_path) as stage:
        with_server = in_use()
        end(stage)
        names, descriptors = in_use()
        assert [name for name in names if name.startswith("parallel-processor")] == []
        ours = set(descriptors) - set(with_server[1])
        assert [path for path in ours if not path.startswith("socket:")] == []
        if stage.save.exists():
            assert_free(stage.save)
    assert in_use() == before
    assert set(os.listdir(tmp_path)) <= {"in.jsonl", "out.jsonl"}


READING = {"feed", "_take_in", "_claim", "_put", "_room"}


class Interrupter:
    """For ``sys.settrace``: raises ``KeyboardInterrupt`` at the ``count``-th line of a run's reader."""

    def __init__(self, count: int) -> None:
        self.left = count

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        """Follow what the reader runs."""
        path, code = frame.f_code.co_filename, frame.f_code.co_name
        is_reader = path.endswith("/engine/reader.py") and code in READING
        return self._trace_lines if is_reader else None

    def _trace_lines(self, frame: FrameType, event: str, argument: object) -> Any:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with "):  # would leave locks held
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace_lines


def test_ctrl_c_at_any_line_leaves_nothing_to_wait_for(tmp_path: Path) -> None:
    """Wherever it hits the reader, the run ends once what is in flight is answered."""
    ends: list[BaseException | None] = [KeyboardInterrupt()]

    def work(stage: Stage, interrupter: Interrupter) -> None:
        sys.settrace(interrupter.trace)
        try:
            stage.run()
            ends.append(None)
        except BaseException as error:
            ends.append(error)
        finally:
            sys.settrace(None)

    while isinstance(ends[-1], KeyboardInterrupt):
        folder = tmp_path / f"{len(ends)}"
        folder.mkdir()
        with stage_in(folder, drain_s=1e6) as stage:
            write_lines(stage.source, [{"n": 1}, "no request", {"n": 2}])
            count = len(ends)
            thread = threading.Thread(target=work, args=(stage, Interrupter(count)), daemon=True)
            thread.start()
            thread.join(HANGS_S)
            assert len(ends) == count + 1, f"it hangs after an interrupt at line {count}"
    assert ends[-1] is None and len(ends) > 40
