"""The command line as a process of its own: flags, exit codes, signals, keys and streams."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, read_lines, run, write_lines
from raw_server import OK, RawServer, Room, answer_all, header_of

from parallel_processor import __version__
from parallel_processor.cli.flags import FLAGS
from parallel_processor.cli.main import main
from parallel_processor.simulator import Simulator, SimulatorOptions

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "api_request_parallel_processor.py"
KEY = "sk-test-0123456789abcdef"
FAST = ("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf")


def rows(count: int) -> list[dict[str, Any]]:
    """So many different requests."""
    return [{"model": "m", "input": f"text {number}"} for number in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of ten requests."""
    return write_lines(tmp_path / "in.jsonl", rows(10))


def urls(server: Any) -> tuple[str, str]:
    """The flag that sends requests to ``server``."""
    return "--request_url", f"{server.url}/v1/embeddings"


# The cookbook's flags


@pytest.mark.parametrize(("mark", "equals"), [("_", False), ("-", True)])
def test_the_cookbooks_command_works(mark: str, equals: bool, source: Path, tmp_path: Path) -> None:
    """All nine flags at once, with either mark and either way to give a value."""
    save = tmp_path / "my-own_results-file.jsonl"
    with RawServer(answer_all) as server:
        flags = {
            "requests_filepath": source,
            "save_filepath": save,
            "request_url": f"{server.url}/v1/embeddings",
            "api_key": KEY,
            "max_requests_per_minute": 1e6,
            "max_tokens_per_minute": "6250000",
            "token_encoding_name": "cl100k_base",
            "max_attempts": 5,
            "logging_level": 20,
        }
        words: list[object] = []
        for name, value in flags.items():
            flag = "--" + name.replace("_", mark)
            words += [f"{flag}={value}"] if equals else [flag, value]
        done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(read_lines(save)) == 10
    assert {header_of(head, "authorization") for head in server.heads} == {f"Bearer {KEY}"}


def test_help_names_every_flag_and_exit_code() -> None:
    """``--help`` begins with the commands, has the flags in groups, and ends with the exit codes."""
    done = run("--help")
    assert done.returncode == 0
    assert "parallel-processor COMMAND" in done.stdout.partition("files:")[0]
    assert "verify --help" in done.stdout.partition("files:")[0]
    for title, rows in FLAGS.items():
        assert f"\n{title}:\n" in done.stdout
        assert all(f"\n  --{row.name}" in done.stdout for row in rows)
    codes = re.findall(r"^  (\d+)  .", done.stdout.partition("exit codes:")[2], re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "129", "130", "143"]


def test_the_version_is_the_packages() -> None:
    """``--version`` goes to stdout, and needs no other flag."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"parallel-processor {__version__}\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("parallel-processor ver", {"verify"}),
        ("parallel-processor --max_w", {"--max_workers"}),
        ("parallel-processor --token_accounting u", {"usage"}),
        ("parallel-processor verify --s", {"--save_filepath"}),
        ("parallel-processor verify --max_w", set()),
    ],
)
def test_a_shell_can_complete(line: str, expected: set[str], tmp_path: Path) -> None:
    """With ``argcomplete`` installed, flags, choices and commands are completed, and nothing is run."""
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    answer = tmp_path / "answer"
    done = run(**asked, _ARGCOMPLETE_STDOUT_FILENAME=str(answer), _ARGCOMPLETE_IFS="\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert {word.strip() for word in answer.read_text().splitlines()} == expected


# Files


def test_the_results_default_to_a_name_beside_the_requests(source: Path) -> None:
    """It is ``in_results.jsonl``, which the end names. There is no bar where there is no terminal."""
    with RawServer(answer_all) as server:
        done = run("--requests_filepath", source, *urls(server), *FAST)
    assert done.returncode == 0
    assert "\r" not in done.stderr and "it/s" not in done.stderr
    assert "10 answered, 0 failed in " in done.stderr
    assert len(read_lines(source.with_name("in_results.jsonl"))) == 10
    assert done.stderr.endswith(f"results are in {source.with_name('in_results.jsonl')}\n")


def test_failures_are_kept_apart_and_make_the_exit_code_1(source: Path, tmp_path: Path) -> None:
    """``--errors_filepath`` gets the failed. The end says which command sends them again."""
    source.write_text(source.read_text() + "nonsense\n")
    with RawServer(answer_all) as server:
        words = ("--requests_filepath", source, "--errors_filepath", tmp_path / "errors.jsonl")
        done = run(*words, *urls(server), *FAST, "--overwrite", "--keep_failures")
    assert done.returncode == 1
    assert "run the same command without --overwrite and --keep_failures again" in done.stderr
    assert len(read_lines(tmp_path / "in_results.jsonl")) == 10
    assert [row[0] for row in read_lines(tmp_path / "errors.jsonl")] == ["nonsense"]


def test_the_same_command_goes_on_and_overwrite_does_not(source: Path) -> None:
    """A second run sends nothing, one with ``--overwrite`` everything."""
    sent = []
    with RawServer(answer_all) as server:
        for flags in ((), (), ("--overwrite",)):
            done = run("--requests_filepath", source, *urls(server), *FAST, *flags)
            assert done.returncode == 0, done.stderr
            sent.append(len(server.bodies))
    assert sent == [10, 10, 20]
    assert len(read_lines(source.with_name("in_results.jsonl"))) == 10


def test_a_results_file_that_takes_nothing_is_said(source: Path) -> None:
    """A full disk is said at once and at the end, with exit code 1 and no traceback."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    write_lines(source, rows(1))
    with RawServer(answer_all) as server:
        with started(
            "--requests_filepath", source, "--save_filepath", "/dev/full", *urls(server), *FAST
        ) as process:
            process.wait_for("No space left on device; trying again for a while")
            process.send(signal.SIGINT)
            process.wait_for("waiting for requests in flight")
            process.send(signal.SIGINT)
            stderr = process.stderr_text()
    assert process.returncode == 1
    assert "ERROR stopped: can't write /dev/full: No space left on device.\n" in stderr
    assert "\nMake room on the disk, or make the results writable, then run the" in stderr
    assert "Traceback" not in stderr


# Keys


def test_the_key_comes_from_the_environment(source: Path) -> None:
    """It is used without ``--api_key``, and without its white space. A local server needs no key."""
    with RawServer(answer_all) as server:
        words = ("--requests_filepath", source, *urls(server), *FAST)
        assert run(*words, OPENAI_API_KEY=f" {KEY}\n").returncode == 0
        assert run(*words, "--overwrite", "--api_key=sk-flag-1", OPENAI_API_KEY=KEY).returncode == 0
        assert run(*words, "--overwrite").returncode == 0
    keys = Counter(header_of(head, "authorization") for head in server.heads)
    assert keys == {f"Bearer {KEY}": 10, "Bearer sk-flag-1": 10, None: 10}


def test_a_wrong_key_ends_with_one_clear_line(source: Path) -> None:
    """Exit code 3, the server's words once, and the key nowhere: not even a part that was echoed."""
    options = SimulatorOptions(api_key="sk-right-0000000000000000")
    with Simulator(options) as simulator:
        done = run("--requests_filepath", source, *urls(simulator), *FAST, "--api_key", KEY)
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if "Incorrect API key" in line]
    assert len(lines) == 1
    assert "ERROR stopped: HTTP 401" in lines[0]
    assert lines[0].rstrip(".").endswith("(key: --api_key)")
    assert "\nSet or correct the key or " in done.stderr
    for secret in (KEY, KEY[:8], KEY[-4:]):
        assert secret not in done.stderr
    assert source.with_name("in_results.jsonl").read_bytes() == b""


# What is said


@pytest.fixture(scope="module")
def done_at(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, subprocess.CompletedProcess[str]]:
    """Runs of which each request fails, by their level; side by side, since they mostly wait."""
    levels = (10, 20, 30, 40, 50)

    def run_at(level: int) -> subprocess.CompletedProcess[str]:
        source = write_lines(tmp_path_factory.mktemp("levels") / "in.jsonl", rows(10))
        source.write_text(source.read_text() + "nonsense\n")
        words = ("--requests_filepath", source, "--logging_level", level, "--max_attempts", 3)
        with Simulator(SimulatorOptions(error_rate=1.0, errors=("500",))) as simulator:
            return run(*words, *urls(simulator), *FAST)

    with ThreadPoolExecutor() as threads:
        return dict(zip(levels, threads.map(run_at, levels), strict=True))


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        (10, {"DEBUG", "INFO", "WARNING", "ERROR"}),
        (20, {"INFO", "WARNING", "ERROR"}),
        (30, {"WARNING", "ERROR"}),
        (40, {"ERROR"}),
        (50, set()),
    ],
)
def test_the_level_decides_what_is_said(
    done_at: dict[int, subprocess.CompletedProcess[str]], level: int, levels: set[str]
) -> None:
    """Lines below the level are missing, and the summary too from 30 on."""
    done = done_at[level]
    assert done.returncode == 1
    said = Counter(re.findall(r"^[-\d]+ [:,\d]+ ([A-Z]+) ", done.stderr, re.MULTILINE))
    assert set(said) == levels
    if "WARNING" in levels:
        # The first retry, how many more there were, and the advice, which else stands below the summary.
        assert said["WARNING"] == (3 if level == 30 else 2)
    if "DEBUG" in levels:
        assert done.stderr.count(": attempt ") == 20
    assert ("10 answered, 1 failed" in done.stderr) == (level <= 20)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [(), ("--no_progress",)])
def test_a_terminal_shows_a_bar_unless_told_not_to(flags: tuple[str, ...], source: Path) -> None:
    """On a real terminal there is a bar, with ``--no_progress`` there is none."""
    screen, descriptor = pty.openpty()
    seen = bytearray()
    options = SimulatorOptions(latency_s=0.3)
    with Simulator(options) as simulator:
        words = command("--requests_filepath", source, *urls(simulator), *FAST, *flags)
        with subprocess.Popen(words, stderr=descriptor, env=environment()) as process:
            os.close(descriptor)
            try:
                while data := os.read(screen, 65536):
                    seen += data
            except OSError:
                pass  # the terminal's other end was closed
        os.close(screen)
    assert process.returncode == 0
    assert (re.search(rb"100%\|.*10/10, ", bytes(seen)) is not None) == (not flags)
    assert b"10 answered" in seen


@pytest.mark.parametrize("redirection", ["", "2>&-"])
def test_stderr_may_have_no_reader_or_be_closed(redirection: str, source: Path) -> None:
    """Neither hangs the run, changes its exit code, nor makes it write elsewhere."""
    reading, writing = os.pipe()
    os.close(reading)
    with RawServer(answer_all) as server:
        words = command("--requests_filepath", source, *urls(server), *FAST, "--logging_level=10")
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *words]
        streams = {"stdout": subprocess.PIPE, "stderr": writing}
        done = subprocess.run(shell, **streams, env=environment(), timeout=60)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"")
    assert len(read_lines(source.with_name("in_results.jsonl"))) == 10


# Signals


class Process:
    """A command under way, whose stderr is read as it comes."""

    def __init__(self, words: list[str]) -> None:
        self._popen = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
        self.pid = self._popen.pid
        self.lines: list[str] = []
        self._has_read = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            with self._has_read:
                self.lines.append(line)
                self._has_read.notify_all()

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def wait_for(self, text: str) -> None:
        """Return once a line with ``text`` was written."""
        with self._has_read:
            found = self._has_read.wait_for(lambda: any(text in line for line in self.lines), 30)
        assert found, self.lines

    def send(self, number: int) -> None:
        """Send the command a signal."""
        self._popen.send_signal(number)

    def ends_within(self, seconds: float) -> bool:
        """True once the command has ended, false if it takes longer."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stderr_text(self) -> str:
        """All of stderr, once the command has ended."""
        self._popen.wait(40)
        self._reader.join()
        return "".join(self.lines)

    def close(self) -> None:
        """End it, however it stands."""
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait()
        self._reader.join()
        assert self._popen.stderr is not None
        self._popen.stderr.close()


@contextmanager
def started(*words: object) -> Iterator[Process]:
    """The command line under way; it is ended behind the block."""
    process = Process(command(*words))
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_first_signal_ends_the_run_in_order(number: int, code: int, source: Path) -> None:
    """What is under way is answered and recorded, nothing more is sent, and it says how to go on."""
    room = Room()
    with RawServer(room) as server:
        words = ("--requests_filepath", source, *urls(server), *FAST, "--max_workers", 4)
        with started(*words) as process:
            room.wait_for(4)
            process.send(number)
            process.wait_for("waiting for requests in flight")
            room.opened.set()
            stderr = process.stderr_text()
    assert process.returncode == code
    assert len(server.bodies) == 4
    assert len(read_lines(source.with_name("in_results.jsonl"))) == 4
    name = signal.Signals(number).name
    assert f"WARNING stopped: interrupted by {name}.\n" in stderr
    assert "\nRun the same command again: it continues where it stopped.\n" in stderr
    assert "4 answered, 0 failed" in stderr


def test_the_second_signal_ends_it_at_once(source: Path) -> None:
    """What is under way is given up, and the file holds whole lines only."""
    room = Room()
    with RawServer(room) as server:
        with started("--requests_filepath", source, *urls(server), *FAST) as process:
            room.wait_for(10)
            process.send(signal.SIGINT)
            process.wait_for("waiting for requests in flight")
            process.send(signal.SIGINT)
            stderr = process.stderr_text()
        room.opened.set()
    assert process.returncode == 130
    assert read_lines(source.with_name("in_results.jsonl")) == []
    assert "10 given up" in stderr
    assert "Traceback" not in stderr


def test_a_pipe_that_stays_open_can_be_interrupted(tmp_path: Path) -> None:
    """A command that waits for a line ends with the first signal."""
    pipe, results = tmp_path / "in.jsonl", tmp_path / "in_results.jsonl"
    os.mkfifo(pipe)
    paths = ("--requests_filepath", pipe, "--save_filepath", results)
    with RawServer(answer_all) as server:
        with started(*paths, *urls(server), *FAST) as process:
            with pipe.open("w") as file:
                file.write('{"input": "a"}\n')
                file.flush()
                process.wait_for("sending")
                while not (results.exists() and results.stat().st_size):  # then it reads on
                    server.closing.wait(0.01)
                process.send(signal.SIGINT)
                assert process.ends_within(30.0)
                stderr = process.stderr_text()
    assert process.returncode == 130
    assert "Traceback" not in stderr


def batch_row(custom_id: str, text: str = "text") -> dict[str, Any]:
    """A row of a Batch file."""
    return {"custom_id": custom_id, "body": {"model": "m", "input": text}}


def good(custom_id: str) -> dict[str, Any]:
    """The record of its answer."""
    response = {"status_code": 200, "request_id": None, "body": OK}
    return {"id": "r", "custom_id": custom_id, "response": response, "error": None}


ROWS_XY, GOOD_XY = [batch_row("x"), batch_row("y")], [good("x"), good("y")]


@pytest.mark.parametrize(
    ("rows", "records", "code", "words"),
    [
        (ROWS_XY, GOOD_XY, 0, ["every line has its answer"]),
        (
            *(ROWS_XY, [*GOOD_XY, good("z")], 0),
            ["every line has its answer; 1 record is of a request that the file does not have"],
        ),
        (ROWS_XY, GOOD_XY[:1], 1, ["not every line has exactly one answer"]),
        (
            *([*ROWS_XY, batch_row("x", "other")], [*GOOD_XY, good("x")], 1),
            ["line 1 and line 3 have the same custom_id but different requests"],
        ),
    ],
)
def test_the_check_says_what_it_found(
    *,
    rows: list[object],
    records: list[object],
    code: int,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Foreign records are merely more; rows that share an id are named by their lines."""
    source = write_lines(tmp_path / "in.jsonl", rows)
    write_lines(tmp_path / "in_results.jsonl", records)
    assert main(["verify", "--requests_filepath", str(source)]) == code
    assert capsys.readouterr().err.splitlines()[: len(words)] == words


# Entry points


def test_the_script_runs_from_anywhere(source: Path, tmp_path: Path) -> None:
    """The clone's script works from another folder, with relative paths of that folder."""
    if not SCRIPT.exists():
        pytest.skip("no clone here")
    with RawServer(answer_all) as server:
        words = [sys.executable, str(SCRIPT), "--requests-filepath", source.name]
        words += [*urls(server), *FAST]
        env = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
        streams: Any = {"capture_output": True, "text": True}
        done = subprocess.run(words, **streams, cwd=tmp_path, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "in_results.jsonl")) == 10


def test_nothing_of_the_cookbooks_file_is_lost(tmp_path: Path) -> None:
    """Metadata is echoed, the request and the response are recorded as the cookbook's script does."""
    row = {"model": "m", "input": "a", "metadata": {"row_id": 1}}
    source = write_lines(tmp_path / "in.jsonl", [row])
    with RawServer(answer_all) as server:
        assert run("--requests_filepath", source, *urls(server), *FAST).returncode == 0
    assert [json.loads(body) for body in server.bodies] == [{"model": "m", "input": "a"}]
    assert read_lines(tmp_path / "in_results.jsonl") == [
        [{"model": "m", "input": "a"}, OK, {"row_id": 1}]
    ]


def test_ctrl_c_ends_a_check_that_waits(tmp_path: Path) -> None:
    """``verify`` of requests from a pipe says nothing then, and has the usual exit code."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = ("--requests_filepath", fifo, "--save_filepath", write_lines(tmp_path / "out", []))
    with subprocess.Popen(
        command("verify", *words), stderr=subprocess.PIPE, env=environment()
    ) as process:
        writer = os.open(fifo, os.O_WRONLY)  # once it reads there
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == b""
        os.close(writer)
    assert process.returncode == 130
