"""The thread that appends records, and what it does when the disk won't have them."""

from __future__ import annotations

import _thread
import errno
import gc
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from parallel_processor.exceptions import ResultsFileError, StopCause
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.formats import made_request
from parallel_processor.files.writer import ResultWriter
from parallel_processor.models import Outcome, Response

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def answered(number: int, text: str = "hello") -> Outcome:
    """An answered request."""
    body = json.dumps({"answer": text}).encode()
    response = Response(status=200, headers={}, body=body, data={"answer": text}, is_json=True)
    return Outcome(request=made_request({"n": number}, number), ok=True, raw_response=response)


def failed(number: int) -> Outcome:
    """A request that failed twice."""
    request = made_request({"n": number}, number)
    return Outcome(request=request, ok=False, errors=("first", "second"), error_kind="HTTP 500")


class Desk:
    """A writer, and what it told."""

    def __init__(self, save: Path, errors: Path | None = None, **settings: Any) -> None:
        self.written: list[Outcome] = []
        self.lost: list[Outcome] = []
        self.failures: list[ResultsFileError] = []
        self.failed = threading.Event()
        self.tellers: set[str] = set()
        self.files = [AppendFile(path) for path in (save, errors) if path is not None]
        self.writer = ResultWriter(
            *self.files, on_written=self._on_written, on_failure=self._on_failure, **settings
        )

    def _on_written(self, outcomes: list[Outcome], on_record: bool, size_bytes: int) -> None:
        (self.written if on_record else self.lost).extend(outcomes)
        self.tellers.add(threading.current_thread().name)

    def _on_failure(self, error: ResultsFileError) -> None:
        self.failures.append(error)
        self.failed.set()

    def write(self, *outcomes: Outcome) -> None:
        """Put all, and close."""
        for outcome in outcomes:
            self.writer.put(outcome)
        self.writer.close()
        for file in self.files:
            file.close()


def records(path: Path) -> list[Any]:
    """The parsed lines of a file, every one of which must be whole."""
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def test_records_are_whole_lines_in_order(tmp_path: Path) -> None:
    """Each outcome is a line behind those that were there, and the writer's thread tells it as written."""
    path = tmp_path / "out.jsonl"
    path.write_text('[{"n": 0}, {}]\n')
    desk = Desk(path)
    outcomes = [answered(1), failed(2), answered(3)]
    desk.write(*outcomes)
    good = {"answer": "hello"}
    assert records(path) == [
        *([{"n": 0}, {}], [{"n": 1}, good], [{"n": 2}, ["first", "second"]], [{"n": 3}, good])
    ]
    assert desk.written == outcomes
    assert (desk.lost, desk.failures) == ([], [])
    assert desk.tellers == {"parallel-processor-writer"}


def test_failures_go_to_their_own_file(tmp_path: Path) -> None:
    """With a second path, answers and failures are kept apart."""
    desk = Desk(tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    desk.write(answered(1), failed(2), answered(3), failed(4))
    assert [record[0]["n"] for record in records(tmp_path / "out.jsonl")] == [1, 3]
    assert [record[0]["n"] for record in records(tmp_path / "errors.jsonl")] == [2, 4]
    assert len(desk.written) == 4


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    """Outcomes from many threads are each written once, more than a batch of them."""
    desk = Desk(tmp_path / "out.jsonl")

    def put(first: int) -> None:
        for number in range(first, first + 500):
            desk.writer.put(answered(number, "x" * 200))

    threads = [threading.Thread(target=put, args=(500 * place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.write()
    assert sorted(r[0]["n"] for r in records(tmp_path / "out.jsonl")) == list(range(4000))
    assert len(desk.written) == 4000


def test_what_is_queued_is_written_without_waiting_for_the_end(tmp_path: Path) -> None:
    """An outcome is on record soon after it came, while the writer stays open."""
    told = threading.Event()
    file = AppendFile(tmp_path / "out.jsonl")
    writer = ResultWriter(file, on_written=lambda *_: told.set(), on_failure=lambda _: None)
    writer.put(answered(1))
    assert told.wait(10)
    assert len(records(tmp_path / "out.jsonl")) == 1
    writer.close()
    file.close()


def test_the_end_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is flushed to the disk before the writer is gone, once for both its files."""
    synced: list[int] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # not the folder
            synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    desk = Desk(tmp_path / "out.jsonl", tmp_path / "errors.jsonl", fsync_s=3600.0)
    monkeypatch.setattr(os, "fsync", note)
    desk.write(answered(1))
    assert synced == [(tmp_path / "out.jsonl").stat().st_size]


# Broken files


@needs_full
def test_a_full_disk_is_told_once_and_ends(tmp_path: Path) -> None:
    """After ``write_retry_s`` the records are dropped, told as lost, and nobody waits."""
    desk = Desk(FULL, write_retry_s=0.0)
    outcomes = [answered(1), failed(2), answered(3)]
    desk.write(*outcomes)
    assert [str(error) for error in desk.failures] == [
        "can't write /dev/full: No space left on device"
    ]
    assert (desk.lost, desk.written) == (outcomes, [])


@needs_full
def test_give_up_ends_the_trying() -> None:
    """A run that is cancelled doesn't wait for the disk."""
    desk = Desk(FULL, write_retry_s=1e6)
    desk.writer.put(answered(1))
    assert desk.failed.wait(10)
    desk.writer.give_up()
    desk.write(answered(2))
    assert len(desk.lost) == 2


def test_a_pipe_whose_reader_has_left_ends_at_once(tmp_path: Path) -> None:
    """Nothing is tried again, and the error says what happened as a value, too."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    desk = Desk(path, write_retry_s=1e6)
    os.close(reader)
    outcomes = [answered(1), failed(2)]
    desk.write(*outcomes)
    (error,) = desk.failures
    assert str(error) == f"can't write {path}: its reader has left (Broken pipe)"
    assert error.stop_cause is StopCause.READER_LEFT
    assert (desk.lost, desk.written) == (outcomes, [])


def interrupt_by_signal() -> None:
    """As Ctrl-C does: a system call that waits returns, unless it comes a moment too soon for it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@needs_full
@pytest.mark.parametrize("interrupt", [interrupt_by_signal, _thread.interrupt_main])
def test_ctrl_c_while_it_closes_gives_up_the_disk_but_not_the_thread(
    interrupt: Callable[[], None],
) -> None:
    """The interrupt comes through once the thread has ended, even one that no system call notices."""
    desk = Desk(FULL, write_retry_s=1e6)
    outcome = answered(1)
    desk.writer.put(outcome)
    assert desk.failed.wait(30)
    is_closing = threading.Event()
    desk.writer._thread.start = is_closing.set  # type: ignore[method-assign]

    def interrupt_close() -> None:
        is_closing.wait(30)
        interrupt()

    watcher = threading.Thread(target=interrupt_close)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        desk.writer.close()
        watcher.join()
    watcher.join()
    assert not desk.writer._thread._thread.is_alive()
    assert desk.lost == [outcome]
    desk.files[0].close()


class Interrupter:
    """For ``sys.settrace``: raises at the beginning of the ``count``-th function, as Ctrl-C may."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.left -= 1
        if not self.left:
            sys.settrace(None)
            raise KeyboardInterrupt


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What the collector calls would swallow an interrupt."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_ctrl_c_at_any_moment_of_closing_leaves_no_lock_taken(tmp_path: Path) -> None:
    """Wherever it comes, within the standard library too, the thread ends and the record is kept."""
    ends: list[BaseException | None] = [KeyboardInterrupt()]

    def close(desk: Desk, count: int) -> None:
        sys.settrace(Interrupter(count))
        try:
            desk.writer.close()
            ends.append(None)
        except BaseException as error:
            ends.append(error)
        finally:
            sys.settrace(None)

    while ends[-1] is not None:
        count = len(ends)
        desk = Desk(tmp_path / f"{count}.jsonl")
        desk.writer.put(answered(1))
        # The first function is close itself.
        thread = threading.Thread(target=close, args=(desk, count + 1), daemon=True)
        thread.start()
        thread.join(20)
        assert len(ends) == count + 1, f"it hangs after an interrupt of function {count}"
        assert not desk.writer._thread._thread.is_alive()
        assert len(records(tmp_path / f"{count}.jsonl")) == 1
        desk.files[0].close()
    assert len(ends) > 5


@needs_full
def test_a_full_errors_file_costs_no_answer(tmp_path: Path) -> None:
    """Answers that are on record count as such, though the failures beside them could not be kept."""
    desk = Desk(tmp_path / "out.jsonl", FULL, write_retry_s=0.0)
    desk.write(answered(1), failed(2), answered(3))
    assert [record[0]["n"] for record in records(tmp_path / "out.jsonl")] == [1, 3]
    assert [outcome.request.number for outcome in desk.written] == [1, 3]
    assert [outcome.request.number for outcome in desk.lost] == [2]


def test_a_disk_that_recovers_gets_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that failed is tried again, and what came meanwhile follows."""
    write, refused = os.write, []

    def full_at_first(descriptor: int, data: Any) -> int:
        if not refused:
            refused.append(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full_at_first)
    desk = Desk(tmp_path / "out.jsonl")
    desk.write(answered(1), answered(2))
    assert [record[0]["n"] for record in records(tmp_path / "out.jsonl")] == [1, 2]
    assert len(desk.failures) == 1
    assert (len(desk.written), desk.lost) == (2, [])


def test_half_a_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills in the middle of a record leaves whole lines only."""
    path = tmp_path / "out.jsonl"
    path.write_text('[{"n": 0}, {}]\n')
    write = os.write

    def half(descriptor: int, data: Any) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    desk = Desk(path, write_retry_s=0.0)
    desk.write(answered(1, "x" * 1000))
    assert path.read_text() == '[{"n": 0}, {}]\n'
    assert len(desk.lost) == 1


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes a few bytes at a time gets them all."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    Desk(tmp_path / "out.jsonl").write(answered(1), answered(2))
    assert len(records(tmp_path / "out.jsonl")) == 2


def test_a_failing_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes records and then can't keep them ends the run with an error."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    desk = Desk(tmp_path / "out.jsonl")
    desk.write(answered(1))
    assert [str(error) for error in desk.failures] == [
        f"can't write {tmp_path / 'out.jsonl'}: Input/output error"
    ]


def test_what_cannot_be_synced_is_no_failure() -> None:
    """A pipe or a device takes records, and has no disk to flush to."""
    reading, writing = os.pipe()
    try:
        desk = Desk(Path(f"/dev/fd/{writing}"))
        desk.write(answered(1))
        assert json.loads(os.read(reading, 65536)) == [{"n": 1}, {"answer": "hello"}]
        assert desk.failures == []
    finally:
        os.close(reading)
        os.close(writing)


def test_a_record_that_cannot_be_made_hangs_nobody(tmp_path: Path) -> None:
    """A fault in writing one outcome is told like any failure, and its batch as lost."""
    broken: Any = Outcome(request=answered(1).request, ok=True, raw_response=object())  # type: ignore[arg-type]
    desk = Desk(tmp_path / "out.jsonl")
    desk.writer.put(broken)
    assert desk.failed.wait(10)
    desk.write(answered(2))
    assert "AttributeError" in str(desk.failures[0])
    assert [outcome.request.number for outcome in desk.written] == [2]
    assert desk.lost == [broken]
