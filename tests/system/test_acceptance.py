"""The whole path at full length, against a server in a process of its own that counts for itself.

The jobs that need a minute or more of real time run side by side, each bound by its limit, not by the
machine; but what a server sees in a minute holds only where nothing keeps the requests on their way.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import Server, command, environment, read_lines, run, simulator, write_lines

pytestmark = pytest.mark.acceptance

# The long jobs last 75 s, so that a full minute begins in the first 15 s. Nothing of ours should hold up
# what they send then: what arrives late counts towards a later minute than it was sent in.

CASES = ("headers", "blind", "tokens", "overload")  # of scripts/bench adaptive


def embeddings(count: int) -> list[dict[str, Any]]:
    """The cookbook's own example."""
    return [{"model": "text-embedding-3-small", "input": f"{x}\n"} for x in range(count)]


def chat(number: int, max_tokens: int) -> dict[str, Any]:
    """A chat request that costs 11 tokens and ``max_tokens``."""
    messages = [{"role": "user", "content": f"say {number:04d}"}]
    return {"model": "gpt-4", "messages": messages, "max_tokens": max_tokens}


def assert_each_answered_once(requests: list[Any], results: Path) -> None:
    """Every request has one record, and that holds an answer."""
    records = read_lines(results)
    assert Counter(repr(row[0]) for row in records) == Counter(map(repr, requests))
    assert all("error" not in row[1] and isinstance(row[1], dict) for row in records)


@dataclass
class Job:
    """A command under way, and what was seen of it."""

    requests: list[Any]
    results: Path
    server: Server
    process: subprocess.Popen[str]
    peak_threads: int = 0
    stderr: str = ""
    stats: dict[str, Any] = field(default_factory=dict)

    def settle(self) -> None:
        """Wait until it is past its start: what else begins meanwhile would hold up its first requests."""
        while self.server.stats()["requests_received"] < 60 and self.watch():
            pass

    def watch(self) -> bool:
        """Note how many threads it has; false once it has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            threads = int(status.partition("Threads:")[2].split()[0])
            self.peak_threads = max(self.peak_threads, threads)
        except (OSError, IndexError):
            pass
        try:
            self.process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            return True
        return False


def start(stack: ExitStack, folder: Path, name: str, requests: list[Any], *flags: object) -> Job:
    """Start the command for ``requests`` against a simulator of its own."""
    latency = 2.0 if name == "latency" else 0.05
    server = stack.enter_context(simulator("--latency_s", latency))
    source = write_lines(folder / f"{name}.jsonl", requests)
    results = folder / f"{name}_results.jsonl"
    words = command(
        *("--requests_filepath", source, "--save_filepath", results),
        *("--request_url", f"{server.url}/v1/chat/completions", *flags),
    )
    log = stack.enter_context((folder / f"{name}.log").open("w+"))
    process = subprocess.Popen(words, stderr=log, text=True, env=environment())
    stack.callback(process.kill)
    return Job(requests=requests, results=results, server=server, process=process)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[dict[str, Job]]]:
    """The jobs that take minutes, side by side, each begun when the one before it goes its way."""
    folder = tmp_path_factory.mktemp("long")
    plenty = ("--max_tokens_per_minute", 1e9)
    oversize = [
        chat(0, 9),
        chat(1, 1500),
    ]  # what comes behind one is a matter of test_token_bucket.py
    with ThreadPoolExecutor(1) as watcher, ExitStack() as stack:
        jobs = {
            "oversize": start(
                *(stack, folder, "oversize", oversize), *("--max_tokens_per_minute", 1000)
            ),
            "latency": start(
                *(stack, folder, "latency", [chat(n, 1) for n in range(750)]),
                *("--max_requests_per_minute", 1500, *plenty),
            ),
        }
        jobs["latency"].settle()
        jobs["requests"] = start(
            *(stack, folder, "requests", [chat(n, 1) for n in range(1260)]),
            *("--max_requests_per_minute", 1200, *plenty),
        )
        jobs["requests"].settle()
        jobs["tokens"] = start(
            *(stack, folder, "tokens", [chat(n, 29) for n in range(1575)]),
            *("--max_requests_per_minute", 1e6, "--max_tokens_per_minute", 60_000),
        )
        yield watcher.submit(ended, jobs)


def ended(jobs: dict[str, Job]) -> dict[str, Job]:
    """The jobs at their ends, with what was seen of them."""
    running = list(jobs.values())
    while running:
        running = [job for job in running if job.watch()]
    for job in jobs.values():
        job.stats = job.server.stats()
    return jobs


@pytest.fixture(scope="module")
def long_jobs(begun: Future[dict[str, Job]]) -> dict[str, Job]:
    """The jobs that take minutes, at their ends."""
    return begun.result()


@pytest.fixture(scope="module")
def bench() -> Iterator[subprocess.Popen[str]]:
    """The benchmark of the adaptive limits at its small size, under way from the first test on.

    Its other cases (limits that change, rivals, two models) are tests in virtual time, in test_adaptive.py.
    """
    script = Path(__file__).parents[2] / "scripts" / "bench"
    words = [sys.executable, str(script), "adaptive", "--size", "small", "--cases", ",".join(CASES)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        yield process
        process.terminate()


@pytest.mark.alone
@pytest.mark.parametrize("name", ["requests", "tokens", "oversize", "latency"])
def test_a_long_job_answers_every_request_once(long_jobs: dict[str, Job], name: str) -> None:
    """Nothing is lost or doubled, whatever limit binds; a request beyond a minute's limit included."""
    job = long_jobs[name]
    assert job.process.returncode == 0
    assert_each_answered_once(job.requests, job.results)
    assert job.stats["answered"] == len(job.requests)


@pytest.mark.alone
def test_the_request_limit_is_kept_and_used(long_jobs: dict[str, Job]) -> None:
    """At 1,200 a minute no 60 seconds at the server hold more, and the first minute holds 98.5 %."""
    stats = long_jobs["requests"].stats
    assert stats["max_requests_in_60_s"] <= 1200
    assert stats["requests_in_first_60_s"] >= 0.985 * 1200


@pytest.mark.alone
def test_the_token_limit_is_kept_and_used(long_jobs: dict[str, Job]) -> None:
    """At 60,000 tokens a minute no 60 seconds hold more, and the first minute holds 98.5 %."""
    stats = long_jobs["tokens"].stats
    assert stats["max_tokens_in_60_s"] <= 60_000
    assert stats["tokens_in_first_60_s"] >= 0.985 * 60_000


@pytest.mark.alone
def test_threads_are_for_requests_in_flight(long_jobs: dict[str, Job]) -> None:
    """25 requests a second with 2 s latency need about 50 threads, not the 1,000 that are allowed."""
    job = long_jobs["latency"]
    assert 50 <= job.peak_threads <= 120
    assert job.stats["peak_in_flight"] <= 120


@pytest.mark.usefixtures("bench")
def test_the_cookbooks_example(tmp_path: Path) -> None:
    """Of its lines, 3,000 at 600,000 requests a minute are each answered once."""
    requests = embeddings(3_000)
    source = write_lines(tmp_path / "requests.jsonl", requests)
    with simulator() as server:
        done = run(
            *("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings"),
            *("--max_requests_per_minute", 600_000, "--max_tokens_per_minute", 1e9),
        )
        stats = server.stats()
    assert done.returncode == 0, done.stderr
    assert_each_answered_once(requests, tmp_path / "requests_results.jsonl")
    assert (stats["answered"], stats["requests_received"]) == (3_000, 3_000)


def test_limits_are_found_and_held(bench: subprocess.Popen[str]) -> None:
    """These cases of the adaptive benchmark reach their goals: a share of the true limit, and few 429s."""
    table, _ = bench.communicate(timeout=200)
    print(table)
    rows = table.splitlines()
    assert len(rows) == len(CASES)
    assert [row for row in rows if not row.endswith("ok")] == []
    assert bench.returncode == 0
