"""Worker processes: as reliable as threads, whatever becomes of them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
import services
from commands import command, environment, read_lines, simulator, write_lines
from raw_server import RawServer, Visit, answer_all
from services import rows, threads

from parallel_processor import (
    ConfigurationError,
    Limits,
    Outcome,
    Processor,
    RetryPolicy,
    RunStoppedError,
    WorkerProcessError,
    verify_results,
)
from parallel_processor.models import Upstream
from parallel_processor.options import Options
from parallel_processor.providers.answers import UNKNOWN
from parallel_processor.simulator import Simulator, SimulatorOptions
from parallel_processor.workers import pipe
from parallel_processor.workers.child import Child

HANGS_S = 60.0
ANSWER = b'{"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}'
KEY = "sk-test-0123456789abcdef"


def processor(url: str, **settings: Any) -> AbstractContextManager[Processor]:
    """A processor with a key and two processes for the embeddings of a server."""
    return services.processor(url, **{"api_key": KEY, "processes": 2} | settings)


def children() -> list[int]:
    """The processes that this one has started and that live."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended
            found += [int(word) for word in (task / "children").read_text().split()]
    return [child for child in found if is_alive(child)]


def is_alive(pid: int) -> bool:
    """True for a process that is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def inputs_of(outcomes: list[Outcome]) -> Counter[str]:
    """How often each input has an answer."""
    return Counter(outcome.request.body["input"] for outcome in outcomes if outcome.ok)


def outcomes_of_a_silent_server(end: Callable[[Processor], None]) -> list[Outcome]:
    """Call ``end`` in a thread while four requests are under way that nobody answers."""
    entered = threading.Semaphore(0)

    def silent(visit: Visit) -> None:
        visit.read()
        entered.release()
        visit.wait_for_the_end()

    with RawServer(silent) as server:
        with processor(server.url, max_workers=4, drain_s=1e6) as made:

            def end_it() -> None:
                for _ in range(4):
                    assert entered.acquire(timeout=HANGS_S)
                end(made)

            thread = threading.Thread(target=end_it)
            thread.start()
            outcomes: list[Outcome] = []
            with pytest.raises(RunStoppedError, match="enough"):
                outcomes.extend(made.imap_unordered(rows(100)))
            thread.join()
    return outcomes


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Finds a function of this module as another process can import it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return lambda name: getattr(importlib.import_module("test_processes"), name)


def factory() -> requests.Session:
    """A session of the caller's."""
    session = requests.Session()
    session.headers["X-Made-By"] = f"process {os.getpid()}"
    return session


# Work


def test_every_request_has_one_outcome() -> None:
    """All are answered once, with their values, and nothing is left of the processes."""
    files, before = set(os.listdir("/proc/self/fd")), children()
    with Simulator(SimulatorOptions()) as server, processor(server.url, max_workers=20) as made:
        outcomes = list(made.imap_unordered(rows(300)))
        assert server.stats()["requests_received"] == 300
    assert inputs_of(outcomes) == Counter(row["input"] for row in rows(300))
    assert all(outcome.response["object"] == "list" for outcome in outcomes)
    assert all(
        outcome.raw_response is not None and outcome.raw_response.headers for outcome in outcomes
    )
    assert (threads(), children()) == ([], before)
    assert set(os.listdir("/proc/self/fd")) <= files


def test_failures_are_tried_again_and_recorded() -> None:
    """Retries, final failures and rejections are as with threads."""
    options = SimulatorOptions(
        errors=("500", "reset", "bad_json"), error_rate=0.3, error_attempts=1, seed=5
    )
    retry = RetryPolicy(backoff_initial_s=0.0, pause_s=0.0)
    with Simulator(options) as server, processor(server.url, retry=retry) as made:
        outcomes = list(made.imap_unordered(rows(200)))
        faults = sum(server.stats()["faults"].values())
    assert len(inputs_of(outcomes)) == 200
    assert sum(outcome.attempts for outcome in outcomes) == 200 + faults
    assert faults > 20


def test_the_limits_are_of_all_processes_together() -> None:
    """A server that enforces what is configured rejects nothing."""
    limits = Limits(requests_per_minute=1500, tokens_per_minute=math.inf, burst_seconds=1.2)
    options = SimulatorOptions(requests_per_minute=1500, burst_s=1.2)
    with Simulator(options) as server, processor(server.url, limits=limits) as made:
        assert len(list(made.imap_unordered(rows(50)))) == 50
        assert server.stats()["faults"] == {}


def test_a_session_of_the_callers_is_made_in_each_process(importable: Callable[[str], Any]) -> None:
    """A factory that can be imported works, with its headers, proxies and so on."""
    seen: set[str] = set()

    def note(visit: Visit) -> None:
        while visit.read():
            seen.add(visit.header("x-made-by") or "")
            visit.answer()

    with RawServer(note) as server:
        settings = {"session_factory": importable("factory"), "api_key": None, "max_workers": 8}
        with processor(server.url, **settings) as made:
            outcomes = list(made.imap_unordered(rows(40)))
    assert all(outcome.ok for outcome in outcomes)
    assert len(seen) == 2 and f"process {os.getpid()}" not in seen


def test_a_factory_that_cannot_travel_is_refused() -> None:
    """The error says what would work."""
    with (
        processor("http://127.0.0.1:1", session_factory=lambda: requests.Session()) as made,
        pytest.raises(ConfigurationError, match="of a module that another process can import"),
    ):
        list(made.imap_unordered(rows(1)))


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 65])
def test_the_number_is_checked(count: Any) -> None:
    """At least one, and no more than make sense."""
    with pytest.raises(ConfigurationError, match="processes must be"):
        Processor(request_url="http://127.0.0.1:1/v1/embeddings", processes=count)


# Deaths


class Killer:
    """A server whose ``at``-th requests have a worker process killed while they are under way."""

    def __init__(self, *at: int) -> None:
        self._at = at
        self._lock = threading.Lock()
        self.received = 0
        self.killed: list[int] = []

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            with self._lock:
                self.received += 1
                kills = self.received in self._at
            if kills and (left := [child for child in children() if child not in self.killed]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left[0], signal.SIGKILL)
                    self.killed.append(left[0])
            visit.answer()


def test_what_a_killed_process_had_under_way_is_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is lost or doubled, nothing counts as a failure, and another takes its place."""
    caplog.set_level(logging.WARNING)
    killer = Killer(20, 60, 100)
    with RawServer(killer) as server:
        settings = {"retry": RetryPolicy(max_attempts=1), "max_workers": 10}
        with processor(server.url, **settings) as made:
            outcomes = list(made.imap_unordered(rows(200)))
    assert inputs_of(outcomes) == Counter(row["input"] for row in rows(200))
    assert len(killer.killed) == 3
    assert 200 <= killer.received <= 200 + 3 * 10
    assert caplog.text.count("a worker process is gone (killed by signal 9)") == 3
    assert threads() == []


def test_a_request_that_kills_its_process_each_time_fails() -> None:
    """It is lost four times at most, and the others are answered."""

    def kill(visit: Visit) -> None:
        while visit.read():
            if b"text 7" in visit.body:
                for child in children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                return
            visit.answer()

    with RawServer(kill) as server:
        retry = RetryPolicy(backoff_initial_s=0.0)
        with processor(server.url, max_workers=1, processes=1 + 1, retry=retry) as made:
            outcomes = list(made.imap_unordered(rows(10)))
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert [outcome.request.body["input"] for outcome in failed] == ["text 7"]
    assert failed[0].error == "lost: its worker process is gone (killed by signal 9)"
    assert len(failed[0].errors) == 4
    assert len(inputs_of(outcomes)) == 9


def test_processes_that_do_not_live_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no child comes to work, the run ends with an error instead of starting more for ever."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        processor("http://127.0.0.1:1") as made,
        pytest.raises(WorkerProcessError, match="end before they have sent anything"),
    ):
        list(made.imap_unordered(rows(5)))
    assert threads() == []


class Locked(Exception):
    """What can't be pickled."""

    def __init__(self) -> None:
        super().__init__("it has a lock")
        self.lock = threading.Lock()


def faulty(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An auth with a fault."""
    raise Locked


def faulty_session() -> requests.Session:
    """A session with a fault."""
    session = requests.Session()
    session.auth = faulty
    return session


def faulty_factory() -> requests.Session:
    """A factory with a fault."""
    raise Locked


def no_session() -> None:
    """A factory that has forgotten what to give."""


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        ("faulty_session", WorkerProcessError, "Locked in a worker process: it has a lock"),
        ("faulty_factory", ConfigurationError, "session_factory failed: Locked: it has a lock"),
        ("no_session", ConfigurationError, "session_factory must return .* not NoneType"),
    ],
)
def test_a_fault_in_a_process_ends_the_run_at_once(
    factory: str, error: type[Exception], words: str, importable: Callable[[str], Any]
) -> None:
    """An exception that can't travel is told as text, and nothing waits for its process."""
    settings = {"session_factory": importable(factory), "api_key": None}
    with processor("http://127.0.0.1:1", **settings) as made, pytest.raises(error, match=words):
        list(made.imap_unordered(rows(5)))
    assert threads() == []


def test_a_program_that_is_missing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says is in the error."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with (
        processor("http://127.0.0.1:1") as made,
        pytest.raises(WorkerProcessError, match="can't start a worker process: .*nonexistent"),
    ):
        list(made.imap_unordered(rows(5)))
    assert threads() == []


def test_a_process_that_does_not_go_on_is_ended_with_the_run(tmp_path: Path) -> None:
    """One that is stopped (SIGSTOP) keeps its requests, but not the run when that is cancelled."""

    def end(made: Processor) -> None:
        stopped = children()
        for child in stopped:
            os.kill(child, signal.SIGSTOP)
        made.cancel("enough")
        for child in stopped:  # as close does after a while
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    assert outcomes_of_a_silent_server(end) == []
    assert threads() == []


def test_a_frozen_process_holds_the_run_no_longer_than_a_request(
    importable: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that is stopped (SIGSTOP) is replaced, and what it had under way is answered."""
    monkeypatch.setattr(pipe, "_LEAST_SILENCE_S", 2.0)
    lock, frozen = threading.Lock(), []

    def freeze_one(visit: Visit) -> None:
        while visit.read():
            with lock:
                if not frozen:
                    frozen.append(int((visit.header("x-made-by") or "").split()[-1]))
                    os.kill(frozen[0], signal.SIGSTOP)
            visit.answer(ANSWER)

    settings = {"session_factory": importable("factory"), "request_timeout_s": 2.0}
    with (
        caplog.at_level(logging.WARNING),
        RawServer(freeze_one) as server,
        processor(server.url, max_workers=4, **settings) as made,
    ):
        outcomes = list(made.imap_unordered(rows(20)))
    assert len(outcomes) == 20 and all(outcome.ok for outcome in outcomes)
    assert "has said nothing for 2 s: it is ended" in caplog.text
    assert not is_alive(frozen[0])


def test_a_process_that_lacks_threads_goes_on_with_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that it began with sends everything, and it says so once."""
    start = threading.Thread.start

    def start_no_worker(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel-processor-worker"):
            raise RuntimeError("can't start new thread")
        start(thread)

    (work, tell), (hear, results) = os.pipe(), os.pipe()
    with (
        RawServer(answer_all) as server,
        os.fdopen(work, "rb") as requests_in,
        os.fdopen(tell, "wb", 0) as requests_out,
        os.fdopen(hear, "rb") as attempts_in,
        os.fdopen(results, "wb", 0) as attempts_out,
    ):
        child = Child(Options(request_url=f"{server.url}/v1", max_workers=8), attempts_out)
        monkeypatch.setattr(threading.Thread, "start", start_no_worker)
        runner = threading.Thread(target=child.run, args=[requests_in])
        runner.start()
        pipe.write(
            requests_out, [pipe.WorkItem(n, Upstream(), b"{}", "h", UNKNOWN) for n in range(6)]
        )
        said: list[Any] = []
        numbers: list[int] = []
        while len(numbers) < 6:
            message = pipe.read(attempts_in)
            if isinstance(message, str):
                said.append(message)
            else:
                numbers += [number for number, _ in message]
        pipe.write(requests_out, pipe.SHUTDOWN)
        runner.join()
        child._transport.close()
    assert said == ["a worker process goes on with fewer threads: can't start new thread"]
    assert sorted(numbers) == list(range(6))


def test_fewer_processes_do_where_the_system_has_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of processes that is reached costs speed, not the run."""
    real, made_processes = subprocess.Popen, []

    def popen(*words: Any, **settings: Any) -> Any:
        if made_processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made_processes.append(real(*words, **settings))
        return made_processes[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with (
        caplog.at_level(logging.WARNING),
        Simulator() as server,
        processor(server.url, max_workers=4, processes=3) as made,
    ):
        outcomes = list(made.imap_unordered(rows(10)))
    assert all(outcome.ok for outcome in outcomes)
    assert "only 1 worker processes can be had" in caplog.text


# Ends


def test_a_consumer_that_leaves_ends_the_processes() -> None:
    """Closing the iterator cancels what is in flight; no process outlives it."""
    before = children()
    with (
        Simulator(SimulatorOptions(latency_s=0.02)) as server,
        processor(server.url, max_workers=6) as made,
    ):
        outcomes = made.imap_unordered(rows(1000))
        assert next(outcomes).ok
        outcomes.close()
    assert (threads(), children()) == ([], before)


def test_a_cancel_ends_what_a_silent_server_holds() -> None:
    """Exchanges in the other processes are cancelled as those of threads are."""
    assert outcomes_of_a_silent_server(lambda made: made.cancel("enough")) == []
    assert threads() == []


def job(folder: Path, url: str, count: int, *more: object) -> tuple[list[str], Path, Path]:
    """The command for a job with two processes, its input and its output."""
    source = write_lines(folder / "in.jsonl", rows(count))
    save = folder / "out.jsonl"
    words = command(
        *("--requests_filepath", source, "--save_filepath", save, "--no_progress"),
        *("--request_url", f"{url}/v1/embeddings", "--processes", 2),
        *("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf", *more),
    )
    return words, source, save


def test_an_interrupt_ends_the_command_in_order(tmp_path: Path) -> None:
    """Ctrl-C reaches all of a terminal's processes; the answers under way are kept, and it goes on."""
    with simulator("--latency_s", 0.05) as server:
        words, source, save = job(tmp_path, server.url, 800, "--max_workers", 20)
        with subprocess.Popen(
            words, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            while not save.exists() or save.stat().st_size < 1000:
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)
            _, stderr = process.communicate(timeout=HANGS_S)
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        kept = len(read_lines(save))
        assert kept == server.stats()["requests_received"]
        assert subprocess.run(words, env=environment(), timeout=300).returncode == 0
        assert server.stats()["requests_received"] == 800
    assert verify_results(source, save).ok


def test_processes_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """``kill -9`` of the run leaves no process behind, and the next run does the rest."""
    with simulator("--latency_s", 0.05) as server:
        words, source, save = job(tmp_path, server.url, 600, "--max_workers", 20)
        with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE) as process:
            while not save.exists() or save.stat().st_size < 1000:
                assert process.poll() is None
            process.kill()
            assert process.stderr is not None
            process.stderr.read()  # its end is that of the last process that has it
        assert subprocess.run(words, env=environment(), timeout=300).returncode == 0
        most = 20 + 30  # in flight, and answered in the last milliseconds
        assert server.stats()["requests_received"] <= 600 + most
    assert verify_results(source, save).ok


PROGRAM = """
from parallel_processor import Limits, Processor

with Processor(request_url={url!r}, processes=2, limits=Limits(requests_per_minute=6e5)) as processor:
    outcomes = list(processor.imap_unordered({{"input": str(n)}} for n in range(50)))
print(sum(outcome.ok for outcome in outcomes))
"""


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_program_needs_no_main_guard(way: str, tmp_path: Path) -> None:
    """A plain script isn't run again in each process, and neither a file nor a name is needed."""
    with Simulator(SimulatorOptions()) as server:
        text = PROGRAM.format(url=f"{server.url}/v1/embeddings")
        path = tmp_path / "program.py"
        path.write_text(text, "utf-8")
        done = subprocess.run(
            [sys.executable, *([str(path)] if way == "file" else ["-"])],
            input=text if way == "stdin" else None,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=HANGS_S,
        )
        assert done.stdout == "50\n", done.stderr
        assert server.stats()["requests_received"] == 50


def test_the_key_is_on_no_command_line() -> None:
    """Others of the machine see the processes' arguments; the key isn't among them."""
    seen: list[bytes] = []

    def look(visit: Visit) -> None:
        while visit.read():
            seen.extend(Path(f"/proc/{child}/cmdline").read_bytes() for child in children())
            seen.extend(Path(f"/proc/{child}/environ").read_bytes() for child in children())
            visit.answer()

    with RawServer(look) as server:
        with processor(server.url, max_workers=1) as made:
            assert all(outcome.ok for outcome in made.imap_unordered(rows(3)))
    assert any(b"parallel_processor.workers.child" in text for text in seen)
    assert not any(KEY.encode() in text for text in seen)
