"""The speed benchmarks run, have their rows, and lose no request. What they measure is not judged here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import environment

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench"
CLIENTS = ["requests.post threads", "session.post threads", "session, prepared once"]
CLIENTS += ["urllib3 pool threads", "http.client threads"]
RIVALS = {"lm_deluge": "lm-deluge", "pyreqwest": "pyreqwest (Rust) threads"}
CLIENTS += [name for module, name in RIVALS.items() if find_spec(module)]
PROCESSOR = ["16 workers", "default workers", "600,000 requests/min", "limits in headers"]
WITH_AIOHTTP = ["aiohttp, one loop", "cookbook's way"] if find_spec("aiohttp") else []
HELD = ["http.client threads", "processor, 16 workers", *WITH_AIOHTTP[:1]]
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
LAST_S = 120

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(
        shutil.which("nginx") is None and (os.geteuid() != 0 or shutil.which("apt-get") is None),
        reason="nginx isn't there and can't be installed",
    ),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl"),
]


def bench(*words: str) -> str:
    """What ``scripts/bench`` prints; it must succeed, however little of the machine is left to it."""
    command = ["nice", sys.executable, os.fspath(SCRIPT), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=LAST_S
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout


def rows(table: str, name: str) -> list[str]:
    """The lines that begin with ``name``."""
    return [line for line in table.splitlines() if line.startswith(name)]


def test_speed_has_a_row_for_each_client() -> None:
    """Every client sends each request exactly once, by the server's own count, and has its row."""
    table = bench("speed", "--size", "tiny")
    names = [*CLIENTS, *WITH_AIOHTTP, *(f"processor, {name}" for name in PROCESSOR)]
    names += [f"{name}, one core" for name in HELD if len(CORES) > 1]
    for name in names:
        assert len(rows(table, f"{name}  ")) == 1, name
    assert len(rows(table, "from an outcome to its line")) == 1
    assert len(rows(table, "lock acquisitions a request, processor, 16 workers: ")) == 1


@pytest.mark.slow
def test_latency_shares_are_printed() -> None:
    """Our command, and the cookbook's way where aiohttp is there."""
    table = bench("latency", "--size", "tiny")
    for name in ["session.post threads", "processor  ", "processor, no limits", *WITH_AIOHTTP[1:]]:
        assert len(rows(table, name)) == 1, name


@pytest.mark.slow
def test_start_measures_all_sizes() -> None:
    """Imports, first requests, memory, and large bodies."""
    table = bench("start", "--size", "tiny")
    for name in ("import parallel_processor", "first request of 10, processor"):
        assert len(rows(table, name)) == 1, name
    assert len(rows(table, "processor, ")) == 2
    assert len(rows(table, "100 kB prompts")) == len(rows(table, "1 MB answers")) == 2


def test_a_stream_is_taken_to_its_end() -> None:
    """Both ways of iterating, with their memory; how far the generator was read ahead is bounded."""
    table = bench("stream", "--size", "tiny")
    for name in ("imap_unordered", "imap,"):
        assert len(rows(table, name)) == 4, name
    for row in rows(table, "imap_unordered"):  # by 16 workers, and four times as many read ahead
        assert float(row.split()[-1].replace(",", "")) <= 5 * 16


def test_parts_are_compared() -> None:
    """The limiter, the writer, the reader and the counting."""
    table = bench("parts", "--size", "tiny")
    for name in ("bucket: enqueue", "10,000/s through one bucket"):
        assert len(rows(table, name)) == 2, name
    for name in ("writer", "reader", "estimates", "tokens"):
        assert len(rows(table, name)) == 1, name


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no Redis")
def test_a_limit_is_shared() -> None:
    """Two processes under one limit, and what a lease costs."""
    table = bench("limiter", "--size", "tiny")
    (row,) = rows(table, "2 ")
    limit, requests, worst = (int(each.replace(",", "")) for each in row.split()[1:4])
    assert (limit, requests) == (3000, 250) and worst <= limit
    assert len(rows(table, "one connection")) == 1


def test_a_dead_replica_costs_no_request() -> None:
    """Three servers, one of them slow, one killed and started again: the figures are printed."""
    table = bench("replicas", "--size", "tiny")
    assert rows(table, "failed requests: ") == ["failed requests: 0"]
    assert len(rows(table, "answered of what the living could: ")) == 1


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A benchmark under way, its folders in ``tmp_path``."""
    command = [sys.executable, os.fspath(SCRIPT), "latency", "--size", "small"]
    changed = environment(TMPDIR=os.fspath(tmp_path))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=changed, **quiet) as process:
        yield process
        process.kill()


@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="no list of children")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_a_stop(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    """The server and the clients end with the benchmark, and its folder goes."""
    while len(started := children(running.pid)) < 2:  # nginx and a client
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it has ended: {running.wait(timeout=0.05)}")
    running.send_signal(number)
    assert running.wait(timeout=30) != 0
    give_up_at = time.monotonic() + 30
    while left := [
        pid for pid in started if Path(f"/proc/{pid}").exists()
    ]:  # until init has seen it
        assert time.monotonic() < give_up_at, left
    assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started and that go on."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
