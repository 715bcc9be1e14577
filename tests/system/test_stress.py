"""Everything at once: threads, faults and stops at random, and then the counts that must hold."""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Server, simulator, write_lines

from parallel_processor import (
    Limits,
    Outcome,
    Processor,
    RetryPolicy,
    RunStoppedError,
    verify_results,
)

WORKERS = 64
FILES, ITERABLES = 3, 3
LINES = 80
# Of what tells an overloaded server only one kind: such answers lower the number in flight.
FAULTS = "500,502,504,529,reset,torn,detail,flat,error_in_200,bad_json,empty,stall"
LIMITS = Limits(requests_per_minute=12_000, tokens_per_minute=1_000_000)
HANGS_S = 120.0


@pytest.fixture
def _constant_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


class Stopper:
    """Stops or cuts whatever runs, after some more requests have arrived, over and over."""

    def __init__(self, server: Server, processor: Processor, rng: random.Random) -> None:
        self._server = server
        self._ways = [processor.stop, processor.cancel]
        self._rng = rng
        self._is_over = threading.Event()
        self._opened_at = time.monotonic()
        self.stops = 0
        self.most_above_limit = -math.inf

    def work(self) -> None:
        """Go on until :meth:`end`."""
        stop_at = 0
        while not self._is_over.wait(0.005):
            received = self._server.stats()["requests_received"]
            self._hold_against_limit(received)
            if received >= stop_at:
                if stop_at:
                    self._rng.choice(self._ways)()
                    self.stops += 1
                stop_at = received + self._rng.randint(1, 200)

    def _hold_against_limit(self, received: int) -> None:
        """What has arrived against what a minute's limit lets through in the time that has passed."""
        seconds = time.monotonic() - self._opened_at + LIMITS.burst_seconds
        self.most_above_limit = max(
            self.most_above_limit, received - seconds * LIMITS.requests_per_minute / 60.0
        )

    def end(self) -> None:
        """Stop nothing any more."""
        self._is_over.set()


def do_file(processor: Processor, source: Path, save: Path, errors: Path | None) -> int:
    """Run the file until it comes to its end; how often it was stopped before."""
    stops = 0
    while processor.process_file(source, save, errors_path=errors).stop_reason:
        stops += 1
    return stops


def do_iterable(processor: Processor, bodies: list[dict[str, Any]]) -> list[Outcome]:
    """Take outcomes until each body has one."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(bodies):
        done = {outcome.request.body["input"] for outcome in outcomes}
        with suppress(RunStoppedError):
            for outcome in processor.imap_unordered(b for b in bodies if b["input"] not in done):
                outcomes.append(outcome)
    return outcomes


def rows(rng: random.Random, name: str) -> list[dict[str, Any]]:
    """Requests of which some are equal, and some have metadata."""
    inputs = [f"{name} {number % (LINES - 8)}" for number in range(LINES)]
    made: list[dict[str, Any]] = [{"model": "m", "input": text} for text in inputs]
    for row in rng.sample(made, LINES // 2):
        row["metadata"] = {"n": rng.randint(0, 1)}
    return made


@pytest.mark.usefixtures("_constant_switches")
def test_whatever_happens_each_request_has_one_answer(tmp_path: Path) -> None:
    """Six threads share a Processor of 64 workers through faults and stops; the limits hold too."""
    rng = random.Random(2)
    jobs = [
        (
            write_lines(tmp_path / f"in{number}.jsonl", rows(rng, f"file {number}")),
            tmp_path / f"out{number}.jsonl",
            tmp_path / f"errors{number}.jsonl" if number else None,
        )
        for number in range(FILES)
    ]
    iterables = [
        [{"model": "m", "input": f"iterable {n}: {number}"} for number in range(LINES)]
        for n in range(ITERABLES)
    ]
    flags = ("--error_rate", 0.3, "--error_attempts", 2, "--errors", FAULTS, "--seed", 5)
    with simulator("--latency_s", 0.3, "--latency_jitter", 0.9, *flags) as server:
        processor = Processor(
            request_url=f"{server.url}/v1/embeddings",
            limits=LIMITS,
            retry=RetryPolicy(max_attempts=10, backoff_initial_s=0.01, pause_s=0.01),
            max_workers=WORKERS,
            request_timeout_s=1.0,
            drain_s=0.5,
        )
        with processor, ThreadPoolExecutor() as threads:
            stopper = Stopper(server, processor, rng)
            stopping = threads.submit(stopper.work)
            try:
                files = [threads.submit(do_file, processor, *job) for job in jobs]
                others = [threads.submit(do_iterable, processor, bodies) for bodies in iterables]
                stops = [future.result(HANGS_S) for future in files]
                results = [future.result(HANGS_S) for future in others]
            finally:
                stopper.end()
                processor.cancel()
            stopping.result(HANGS_S)
        stats = server.stats()

    for job in jobs:
        assert verify_results(*job).ok
    for bodies, outcomes in zip(iterables, results, strict=True):
        assert all(outcome.ok for outcome in outcomes)
        answered = Counter(outcome.request.body["input"] for outcome in outcomes)
        assert answered == Counter(body["input"] for body in bodies)
    assert stopper.stops > 0 < sum(stops)
    assert set(stats["faults"]) == set(FAULTS.split(","))
    assert stats["peak_in_flight"] > WORKERS
    assert stopper.most_above_limit <= 0.0
    assert stats["max_requests_in_60_s"] <= LIMITS.requests_per_minute
    assert stats["max_tokens_in_60_s"] <= LIMITS.tokens_per_minute
    assert [t.name for t in threading.enumerate() if t.name.startswith("parallel-processor")] == []
