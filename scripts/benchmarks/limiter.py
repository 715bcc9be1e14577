"""Plain processes that share one limit by a Redis server, seen from the server that they send to.

``worst`` is the most that any 60 seconds hold at the server. ``used`` is what was sent from the first
request to the last, as a share of what the limit allows in that time. ``calls`` are the leases that Redis
was asked for. The run fails if the limit was exceeded, less than 97 % of it was used, or Redis was asked
0.3 times a request or more. A run of less than a minute shows little of the first, the tiny one nothing.

``lease`` is what a lease costs Redis, and how many a second one connection gets, with two limits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.processes import BenchmarkError, bench_environment, python
from benchmarks.tables import print_table

# requests a minute, seconds, processes, leases
SIZES = {"tiny": (3000, 5, 2, 200), "small": (6000, 20, 3, 5000), "full": (6000, 75, 3, 20_000)}
LEAST_USED, MOST_CALLS = 0.97, 0.3
LEAST_S = 20  # of a run that may miss a goal
LATENCY_S = 0.2
ANSWER = b'{"data":[{"embedding":[1.0]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'


class Arrivals(ThreadingHTTPServer):
    """Answers each request after a while, and notes when it came."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.times: list[float] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1/embeddings"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Arrivals

    def do_POST(self) -> None:
        self.server.times.append(time.monotonic())
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(LATENCY_S)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}"
        self.wfile.write(head.encode() + b"\r\n\r\n" + ANSWER)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis without a memory on disk, on loopback; its URL."""
    if shutil.which("redis-server") is None:
        raise BenchmarkError("redis-server is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen([*words, "--dir", str(folder)], stdout=subprocess.DEVNULL) as process:
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def ask(url: str, *words: str) -> Any:
    """What Redis answers, once it does."""
    import redis

    with redis.Redis.from_url(url) as client:
        for _ in range(200):
            try:
                return client.execute_command(*words)
            except redis.ConnectionError:
                time.sleep(0.02)
    raise BenchmarkError("redis-server does not answer")


def calls(url: str) -> tuple[int, float]:
    """How many leases were asked for since the start, and the CPU time of one in us."""
    stats = ask(url, "INFO", "commandstats").get(
        "cmdstat_evalsha", {"calls": 0, "usec_per_call": 0}
    )
    return int(stats["calls"]), float(stats["usec_per_call"])


def fleet(folder: Path, redis: str, url: str, limit: int, seconds: int, count: int) -> None:
    """Let so many commands send their parts of the work, to its end."""
    commands = []
    for number in range(count):
        source = folder / f"{number}.jsonl"
        rows = [
            {"model": "m", "input": f"{number} {row}"}
            for row in range(limit * seconds // 60 // count)
        ]
        source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        words = ["-m", "parallel_processor", "--requests_filepath", str(source)]
        words += [
            "--request_url",
            url,
            "--limiter",
            redis,
            "--no_progress",
            "--logging_level",
            "30",
        ]
        words += ["--max_requests_per_minute", str(limit), "--max_tokens_per_minute", "inf"]
        commands.append(subprocess.Popen([*python(), *words], env=bench_environment()))
    try:
        codes = [command.wait() for command in commands]
    finally:
        for command in commands:
            command.kill()
    if any(codes):
        raise BenchmarkError(f"the commands ended with {codes}")


def limiter(arguments: list[str]) -> int:
    """Run it; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench limiter", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--cookbook", default="", help=argparse.SUPPRESS)
    limit, seconds, count, leases = SIZES[parser.parse_args(arguments).size]
    with TemporaryDirectory(prefix="bench_") as name, redis_server(Path(name)) as redis:
        ask(redis, "PING")
        with Arrivals() as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            fleet(Path(name), redis, server.url, limit, seconds, count)
            server.shutdown()
        asked, _ = calls(redis)
        ask(redis, "CONFIG", "RESETSTAT")
        per_s = lease_rate(redis, leases)
        _, cpu_us = calls(redis)
    times = sorted(server.times)
    worst = max(bisect_right(times, each + 60) - i for i, each in enumerate(times))
    used = (len(times) - 1) / (times[-1] - times[0]) * 60 / limit
    share = asked / len(times)
    print_table(
        ("processes", "limit", "requests", "worst 60 s", "used", "calls a request"),
        [(str(count), (limit, len(times), worst, used, share))],
    )
    print_table(("lease", "a second", "us of CPU"), [("one connection", (per_s, cpu_us))])
    missed = worst > limit or used < LEAST_USED or share >= MOST_CALLS
    return int(missed and seconds >= LEAST_S)


def lease_rate(redis: str, count: int) -> float:
    """How many leases a second one connection gets."""
    from parallel_processor.limiter.leases import Ask, Terms
    from parallel_processor.limiter.redis_limiter import RedisLimiter

    terms = tuple(Terms(key=key, limit=1e9, burst_s=0.5) for key in ("requests", "tokens"))
    nothing = (0, 0)
    asks = Ask(terms=terms, amounts=(5.0, 500.0), ttl_s=0.5, epochs=nothing, serials=nothing)
    connection = RedisLimiter(redis)
    started_at = time.perf_counter()
    for _ in range(count):
        connection.lease("bench", asks)
    seconds = time.perf_counter() - started_at
    connection.close()
    return count / seconds
