"""Measure the processor against the simulated server, and print what came out beside what is wanted.

    scripts/bench adaptive                  each case for some minutes, all side by side
    scripts/bench adaptive --size small     the same cases in 80 s; CI runs some of them
    scripts/bench adaptive --cases halves,doubles

``adaptive``: does the processor find the server's limit by itself, hold it, and follow it? Both sides are
processes of their own, the command line and the simulator, which counts what it let through in each
second. The exit code is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import end, environment

AUTO = ["--max_requests_per_minute", "auto", "--max_tokens_per_minute", "auto"]
NO_LIMIT = ["--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf"]
SLOW, FAST = "slow-model", "fast-model"
ADMITTED, TOKENS, REFUSED, ANSWERED = range(4)  # what the server counts in each second
Timeline = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Case:
    """One row: a server, a client, and what the server must have let through, from when on.

    ``per_minute`` is what would be 100 % of ``counts`` for ``model`` in the seconds from ``from_s``.
    """

    name: str
    server: list[str]
    per_minute: float
    from_s: int
    seconds: int
    least_share: float
    most_refused: float | None
    client: list[str] = field(default_factory=lambda: AUTO)
    counts: int = ADMITTED
    model: str = FAST
    models: tuple[str, ...] = (FAST,)
    max_tokens: int | None = None


def cases(size: str) -> dict[str, Case]:
    """The rows, by their short names; ``rate`` is requests a minute."""
    small = size == "small"
    rate, long_s, change_s = (1200, 80, 20) if small else (6000, 300, 60)
    limit = ["--requests_per_minute", str(rate), "--latency_s", "0.5", "--latency_jitter", "0.3"]
    two = {SLOW: {"requests_per_minute": rate / 10}, FAST: {"requests_per_minute": rate}}
    tokens = rate * 100
    return {
        "headers": Case("limit unknown, headers", limit, rate, 10, 40, 0.95, 0.002),
        "blind": Case(
            "limit unknown, no headers, no Retry-After",
            [*limit, "--header_style", "none", "--no_retry_after"],
            *(rate, 60, long_s, 0.85, 0.02),
        ),
        "halves": Case(
            "limit halves in mid-run: 10 s later",
            [*limit, "--change", f"{change_s}:requests_per_minute={rate / 2}"],
            *(rate / 2, change_s + 10, change_s + 40, 0.95, 0.01),
        ),
        "doubles": Case(
            "limit doubles in mid-run: 30 s later",
            [*limit, "--change", f"{change_s}:requests_per_minute={rate * 2}"],
            *(rate * 2, change_s + 30, change_s + 60, 0.95, 0.01),
        ),
        "rival": Case(
            "a rival takes half: of the rest",
            [*limit, "--burst_s", "10", "--rival_requests_per_minute", str(rate / 2)],
            *(rate / 2, 30, long_s, 0.95, 0.01),
        ),
        "tokens": Case(
            "tokens bind, max_tokens ten times too high, charged by use",
            ["--tokens_per_minute", str(tokens), "--latency_s", "1", "--latency_jitter", "0.5"]
            + ["--token_charge", "usage", "--answer_tokens", "80"],
            *(tokens, 10, 60, 0.90, 0.01),
            client=[*AUTO, "--token_accounting", "usage"],
            counts=TOKENS,
            max_tokens=800,
        ),
        "models": Case(
            "two models, one ten times slower: the fast one",
            ["--limits", json.dumps(two), "--latency_s", "0.5", "--latency_jitter", "0.3"],
            *(rate, 10, 40, 0.95, 0.01),
            models=(SLOW, FAST),
        ),
        "overload": Case(
            "no limits, best with 64 in flight: of the best throughput",
            ["--latency_s", "1", "--latency_jitter", "0.3", "--best_in_flight", "64"],
            *(64 * 60, 20, 60, 0.85, None),
            client=NO_LIMIT,
            counts=ANSWERED,
        ),
    }


@contextmanager
def process(*words: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A command of the package, ended behind the block."""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, text=True, env=environment(), **streams) as started:
        try:
            yield started
        finally:
            end(started, 20)


def write_requests(path: Path, case: Case, count: int) -> None:
    """Chat requests, the models in turn."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            body: dict[str, Any] = {"model": case.models[number % len(case.models)]}
            text = f"Question {number}: what is this about?"
            body["messages"] = [{"role": "user", "content": text}]
            if case.max_tokens is not None:
                body["max_tokens"] = case.max_tokens
            file.write(json.dumps(body) + "\n")


def get(url: str) -> Any:
    """The server's figures."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def run(case: Case, folder: Path) -> tuple[Timeline, str]:
    """What the server saw while the client worked, and how the client explains it."""
    requests, report = folder / "requests.jsonl", folder / "report.json"
    write_requests(requests, case, round(case.per_minute / 60 * (case.seconds + 60) * 3))
    words = list(case.server)
    if "--limits" in words:  # it is a file to the simulator
        place = words.index("--limits") + 1
        limits = folder / "limits.json"
        limits.write_text(words[place], "utf-8")
        words[place] = str(limits)
    server_words = ["parallel_processor.simulator", "--port", "0", "--seed", "1", *words]
    with process(*server_words, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip().removeprefix("listening on ")
        client_words = ["parallel_processor", "--requests_filepath", str(requests)]
        client_words += ["--request_url", f"{url}/v1/chat/completions", *case.client]
        client_words += ["--report_filepath", str(report), "--no_progress", "--logging_level", "40"]
        with process(*client_words, "--drain_seconds", "5") as client:
            timeline: Timeline = {}
            pause = threading.Event()
            while len(timeline.get(case.model, ())) <= case.seconds:
                if client.poll() is not None:
                    raise RuntimeError(f"{case.name}: the client ended with {client.returncode}")
                pause.wait(0.5)
                timeline = get(f"{url}/timeline")
            client.send_signal(signal.SIGINT)
            client.wait(timeout=60)
    return timeline, json.dumps(json.loads(report.read_text("utf-8"))["buckets"], indent=1)


def row_of(case: Case, timeline: Timeline) -> tuple[str, bool]:
    """The row's figures, and whether they are what is wanted."""
    seconds = timeline[case.model][case.from_s : case.seconds]
    share = sum(second[case.counts] for second in seconds) * 60 / case.per_minute / len(seconds)
    everything = [second for model in timeline.values() for second in model[: case.seconds]]
    refused = sum(second[REFUSED] for second in everything)
    sent = refused + sum(second[ADMITTED] for second in everything)
    ok = share >= case.least_share
    row = f"{case.name:58} {share:7.1%} (>= {case.least_share:.0%})"
    if case.most_refused is not None:
        ok = ok and refused <= case.most_refused * sent
        row += f"   429s {refused / sent:6.2%} (<= {case.most_refused:.1%})"
    return f"{row}   {'ok' if ok else 'MISSED'}", ok


def adaptive(arguments: list[str]) -> int:
    """All cases side by side; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench adaptive")
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--cases", default="", help="comma-separated; default: all")
    parser.add_argument("--explain", action="store_true", help="print the client's reports, too")
    flags = parser.parse_args(arguments)
    known = cases(flags.size)
    chosen = [known[name] for name in (flags.cases.split(",") if flags.cases else known)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(chosen)) as pool:
        folders = [Path(folder, str(number)) for number in range(len(chosen))]
        for each in folders:
            each.mkdir()
        results = pool.map(run, chosen, folders)
        missed = 0
        for case, (timeline, report) in zip(chosen, results, strict=True):
            row, ok = row_of(case, timeline)
            missed += not ok
            print(row, flush=True)
            if flags.explain:
                print(report)
    return 1 if missed else 0
