"""Stops of the real command: signals, broken pipes, forks, and servers that don't answer.

What has to end soon would otherwise take minutes: the limit, the pause or the server's silence are so
long that a run which waits for them doesn't end before its process is given up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, read_lines, simulator, write_lines
from raw_server import RawServer, Room, Visit

from parallel_processor import Processor
from parallel_processor.files.verify import Verification, verify_results

FAST = ("--max_requests_per_minute", 60_000, "--max_tokens_per_minute", "inf")
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
HANGS_S = 40.0
GO_ON = "Run the same command again: it continues where it stopped."


def rows(count: int) -> list[dict[str, Any]]:
    """So many different requests."""
    return [{"model": "m", "input": f"text {number}"} for number in range(count)]


def until(condition: Callable[[], bool]) -> None:
    """Return once ``condition`` holds."""
    give_up_at, pause = time.monotonic() + HANGS_S, threading.Event()
    while not condition():
        assert time.monotonic() < give_up_at, "it never happens"
        pause.wait(0.02)


class Command:
    """A process under way, whose stderr is read as it comes."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.stderr = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.stderr += line
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Return once ``text`` was written to stderr."""
        with self._news:
            assert self._news.wait_for(lambda: text in self.stderr, HANGS_S), self.stderr

    def send(self, number: int) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """The exit code, once the process has ended by itself."""
        code = self._process.wait(HANGS_S)
        self._reader.join()
        assert "Traceback" not in self.stderr, self.stderr
        return code

    def stdout_text(self) -> str:
        """What the process that has ended wrote to stdout."""
        assert self._process.stdout is not None
        return self._process.stdout.read()

    def close(self) -> None:
        """End it, however it stands."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def started(*words: str) -> Iterator[Command]:
    """A process under way; it is ended behind the block."""
    process = Command(list(words))
    try:
        yield process
    finally:
        process.close()


class Job:
    """A requests file, and the command that does it."""

    def __init__(self, folder: Path, requests: list[dict[str, Any]]) -> None:
        self.source = write_lines(folder / "in.jsonl", requests)
        self.results = folder / "out.jsonl"

    def words(self, url: str, *flags: object) -> list[str]:
        """The command with the limits of ``flags``."""
        paths = ("--requests_filepath", self.source, "--save_filepath", self.results)
        return command(*paths, "--request_url", f"{url}/v1/embeddings", *flags)

    def records(self) -> list[Any]:
        """The records so far; each must be whole."""
        return read_lines(self.results)

    def has_records(self, count: int) -> bool:
        """True once so many are on record."""
        return self.results.exists() and self.results.read_bytes().count(b"\n") >= count

    def verify(self) -> Verification:
        """What the results file has for the requests."""
        return verify_results(self.source, self.results)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of 200 requests."""
    return Job(tmp_path, rows(200))


@contextmanager
def held(answers: int) -> Iterator[tuple[RawServer, Room]]:
    """A server that answers so many requests, and holds all others until the block ends."""
    room = Room(answers)
    with RawServer(room) as server:
        try:
            yield server, room
        finally:
            room.opened.set()


# The first signal


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_every_answer_that_was_given_is_on_record(number: int, code: int, job: Job) -> None:
    """With 0.5 s latency all that was sent is recorded, and the same command sends the rest only."""
    with simulator("--latency_s", 0.5) as server:
        words = job.words(server.url, *FAST, "--max_workers", 60)
        with started(*words) as process:
            until(lambda: server.stats()["answered"] >= 60)
            process.send(number)
            assert process.end() == code
        stopped = server.stats()
        found = job.verify()
        assert stopped["requests_received"] == stopped["answered"] == found.answered < 200
        assert (found.failed, found.torn, found.doubled, found.foreign) == (0, 0, 0, 0)
        assert f"stopped: interrupted by {signal.Signals(number).name}." in process.stderr
        assert GO_ON in process.stderr
        assert f"{found.answered:,} answered, 0 failed" in process.stderr
        assert f"results are in {job.results}" in process.stderr
        again = subprocess.run(words, capture_output=True, env=environment(), timeout=60)
        done = server.stats()
    assert again.returncode == 0
    assert (done["answered"], done["duplicates"]) == (200, 0)
    assert job.verify().ok


def test_a_wait_for_the_limit_ends(job: Job) -> None:
    """With a request a minute and nothing in flight a stop doesn't wait for the next minute."""
    with simulator() as server:
        flags = ("--max_requests_per_minute", 1, "--max_tokens_per_minute", "inf")
        with started(*job.words(server.url, *flags)) as process:
            until(lambda: job.has_records(1))
            process.send(signal.SIGINT)
            assert process.end() == 130
        assert server.stats()["requests_received"] == 1
    assert len(job.records()) == 1
    assert GO_ON in process.stderr


@pytest.mark.parametrize("workers", [1, 50])
@pytest.mark.parametrize(
    ("status", "said", "end"),
    [
        ("429 Too Many Requests", "pausing for 300 s", " given up"),
        ("500 Oops", "is tried again in 300.0 s", "0 answered, 0 failed"),
    ],
)
def test_a_pause_and_a_backoff_end(
    status: str, said: str, end: str, workers: int, job: Job
) -> None:
    """Requests that wait for five minutes give up at once, aren't failed, and have no record."""

    def refuse(visit: Visit) -> None:
        while visit.read():
            visit.answer(b"{}", status=status, headers="Retry-After: 300\r\n")

    with RawServer(refuse) as server:
        with started(*job.words(server.url, *FAST, "--max_workers", workers)) as process:
            process.wait_for(said)
            process.send(signal.SIGINT)
            assert process.end() == 130
    assert job.records() == []
    assert end in process.stderr
    assert GO_ON in process.stderr


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_answers_that_never_come_are_waited_for_so_long(max_attempts: int, job: Job) -> None:
    """After ``--drain_seconds`` what came is on record, and what didn't is neither that nor failed."""
    flags = ("--max_workers", 12, "--drain_seconds", 0.5, "--max_attempts", max_attempts)
    with held(answers=20) as (server, room):
        with started(*job.words(server.url, *FAST, *flags)) as process:
            room.wait_for(12)
            process.send(signal.SIGINT)
            assert process.end() == 130
        assert len(server.bodies) == 32
    assert len(job.records()) == 20
    assert (job.verify().answered, job.verify().failed) == (20, 0)
    assert "20 answered, 0 failed, 12 given up" in process.stderr


@pytest.mark.parametrize("max_attempts", [1, 5])
def test_a_second_signal_gives_up_what_is_in_flight(max_attempts: int, job: Job) -> None:
    """What was answered is on record, what wasn't is left to the next run, which does it."""
    flags = ("--max_workers", 12, "--drain_seconds", 1e6, "--max_attempts", max_attempts)
    with held(answers=20) as (server, room):
        with started(*job.words(server.url, *FAST, *flags)) as process:
            room.wait_for(12)
            process.send(signal.SIGINT)
            process.wait_for("waiting for requests in flight")
            process.send(signal.SIGINT)
            assert process.end() == 130
        assert (job.verify().answered, job.verify().failed) == (20, 0)
        assert "20 answered, 0 failed, 12 given up" in process.stderr
        assert GO_ON in process.stderr
        room.opened.set()
        words = job.words(server.url, *FAST, "--keep_failures")
        assert subprocess.run(words, env=environment(), timeout=60).returncode == 0
        assert len(server.bodies) == 200 + 12
    assert job.verify().ok


# Without signal handlers of ours


def test_signal_handlers_are_the_callers(job: Job) -> None:
    """In another thread than the main one a file is done, a stop ends it, and no handler is touched."""

    def handlers() -> list[Any]:
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return [wakeup, *map(signal.getsignal, sorted(signal.valid_signals()))]

    before = handlers()
    summaries = []
    with held(answers=20) as (server, room):
        with Processor(request_url=f"{server.url}/v1", max_workers=7) as processor:

            def work() -> None:
                summaries.append(processor.process_file(job.source, job.results))

            thread = threading.Thread(target=work)
            thread.start()
            room.wait_for(7)
            assert handlers() == before
            processor.stop("enough")
            room.opened.set()
            thread.join(HANGS_S)
    assert handlers() == before
    assert [(s.answered, s.unanswered, s.stop_reason) for s in summaries] == [(27, 0, "enough")]
    assert job.verify().answered == 27


EMBEDDED = """
import math, sys
from parallel_processor import Limits, Processor
source, results, url, limit = sys.argv[1:]
limits = Limits(requests_per_minute=float(limit), tokens_per_minute=math.inf)
with Processor(request_url=url, limits=limits, max_workers=60) as processor:
    try:
        processor.process_file(source, results)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("limit", [60_000, 60])
def test_ctrl_c_in_a_program_or_a_notebook(limit: int, job: Job) -> None:
    """``KeyboardInterrupt`` reaches the caller once the answers under way are on record."""
    with simulator("--latency_s", 0.5) as server:
        url = f"{server.url}/v1/embeddings"
        words = [sys.executable, "-c", EMBEDDED, job.source, job.results, url, limit]
        with started(*map(str, words)) as process:
            until(lambda: server.stats()["requests_received"] >= (80 if limit > 60 else 1))
            process.send(signal.SIGINT)
            assert process.end() == 0
            assert process.stdout_text() == "interrupted\n"
        stats = server.stats()
    assert stats["requests_received"] == stats["answered"] == job.verify().answered < 200


TWICE = """
import logging, sys, threading
from parallel_processor import Processor
source, results, url, processes = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
with Processor(request_url=url, max_workers=12, drain_s=1e6, processes=int(processes)) as processor:
    try:
        processor.process_file(source, results)
    except KeyboardInterrupt:
        print("interrupted", [t.name for t in threading.enumerate() if t.name.startswith("parallel")])
        print(processor.process_file(source, results).answered)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_in_a_program_gives_up_the_rest(processes: int, job: Job) -> None:
    """What was answered is on record, no thread is left, and the same call can go on at once."""
    with held(answers=20) as (server, room):
        url = f"{server.url}/v1/embeddings"
        words = [sys.executable, "-c", TWICE, job.source, job.results, url, processes]
        with started(*map(str, words)) as process:
            room.wait_for(12)
            process.send(signal.SIGINT)
            process.wait_for("stopping; requests in flight: 12")
            process.send(signal.SIGINT)
            room.wait_for(12)
            room.opened.set()
            assert process.end() == 0, process.stderr
            assert process.stdout_text() == "interrupted []\n180\n"
        assert len(server.bodies) == 200 + 12
    assert job.verify().ok


# Streams that are closed or broken


# The room stays closed: otherwise all might be answered before the signal is handled.
SOON = ("--max_workers", 10, "--logging_level", 10, "--drain_seconds", 0.2)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed: str, stop: bool, job: Job) -> None:
    """A command without stdout, or any stream, does its work and can be stopped; files stay clean."""
    answers = 100 if stop else 200
    with held(answers) as (server, room):
        words = job.words(server.url, *FAST, *SOON)
        with started("sh", "-c", f'exec "$@" {closed}', "sh", *words) as process:
            if stop:
                room.wait_for(10)
                process.send(signal.SIGINT)
            assert process.end() == (130 if stop else 0)
            assert process.stdout_text() == ""
    found = job.verify()
    assert (found.answered, found.failed, found.torn, found.foreign) == (answers, 0, 0, 0)
    assert found.ok is not stop
    assert read_lines(job.source) == rows(200)


def test_a_broken_pipe_for_stderr_doesnt_keep_a_stop_from_working(job: Job) -> None:
    """With nobody left to read what is said, the first signal still ends the run in order."""
    with held(answers=100) as (server, room):
        reading, writing = os.pipe()
        words = job.words(server.url, *FAST, *SOON)
        with subprocess.Popen(words, stderr=writing, env=environment()) as process:
            try:
                os.close(writing)
                room.wait_for(10)
                os.close(reading)
                process.send_signal(signal.SIGTERM)
                assert process.wait(HANGS_S) == 143
            finally:
                process.kill()
    assert job.verify().answered == 100


@pytest.mark.parametrize("is_complete", [True, False])
def test_the_check_may_write_into_a_broken_pipe(is_complete: bool, job: Job) -> None:
    """``verify`` says by its exit code what it found, though nobody reads its counts."""
    write_lines(job.results, [[row, {"ok": True}] for row in rows(200 if is_complete else 199)])
    reading, writing = os.pipe()
    os.close(reading)
    words = command("verify", "--requests_filepath", job.source, "--save_filepath", job.results)
    done = subprocess.run(
        words, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60
    )
    os.close(writing)
    assert done.returncode == (0 if is_complete else 1)
    assert "BrokenPipe" not in done.stderr


# Forks

FORK = """
import contextlib, math, os, sys, threading
from parallel_processor import Limits, Processor, RunStoppedError, process_file, verify_results
source, folder, url = sys.argv[1:]
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
settings = dict(request_url=url, limits=limits, max_workers=20)
started = threading.Semaphore(0)

def endless():
    number = 0
    while True:
        number += 1
        started.release()
        yield {"model": "m", "input": f"of the parent {number}"}

def consume():
    with contextlib.suppress(RunStoppedError):  # by the call of stop
        for outcome in processor.imap_unordered(endless()):
            assert outcome.ok

def write():
    process_file(source, f"{folder}/parent.jsonl", **settings)

with Processor(**settings) as processor:
    threads = [threading.Thread(target=work) for work in (consume, consume, write)]
    for thread in threads:
        thread.start()
    for number in range(5):
        for _ in range(20):
            started.acquire()
        child = os.fork()
        if not child:
            code = 1
            try:
                mine = f"{folder}/child{number}.jsonl"
                summary = process_file(source, mine, **settings)
                code = not (summary.answered and verify_results(source, mine).ok)
            finally:
                os._exit(code)
        print(os.waitpid(child, 0)[1], flush=True)
    processor.stop()
    for thread in threads:
        thread.join()
print(verify_results(source, f"{folder}/parent.jsonl").ok)
"""


def test_a_forked_child_can_process_too(tmp_path: Path) -> None:
    """A fork in the midst of runs neither hangs nor harms the child's own runs, nor the parent's."""
    source = write_lines(tmp_path / "in.jsonl", rows(100))
    with simulator("--latency_s", 0.01) as server:
        url = f"{server.url}/v1/embeddings"
        words = [sys.executable, "-c", FORK, str(source), str(tmp_path), url]
        with started(*words) as process:
            assert process.end() == 0, process.stderr
            assert process.stdout_text() == "0\n" * 5 + "True\n"


OUTLIVE = """
import os, sys
from parallel_processor import Processor
source, results, url = sys.argv[1:]
with Processor(request_url=url) as processor:
    def rows():
        global child
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        end.append(writing)
    end = []
    estimator = processor._account.estimator
    count = estimator.estimate
    estimator.estimate = lambda request: (end or rows()) and count(request) or count(request)
    first = processor.process_file(source, results)
    again = processor.process_file(source, results)
    print(first.answered, again.already_answered)
    os.close(end[0])
    os.waitpid(child, 0)
"""


def test_a_child_that_lives_on_doesnt_keep_the_lock(tmp_path: Path) -> None:
    """A results file is free when its run is over, though a child was forked meanwhile."""
    source = write_lines(tmp_path / "in.jsonl", rows(5))
    with simulator() as server:
        url = f"{server.url}/v1/embeddings"
        words = [sys.executable, "-c", OUTLIVE, str(source), str(tmp_path / "out.jsonl"), url]
        with started(*words) as process:
            assert process.end() == 0, process.stderr
            assert process.stdout_text() == "5 5\n"
