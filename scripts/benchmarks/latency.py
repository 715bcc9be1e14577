"""Many requests in flight, at a server that takes two seconds for each.

Little's law says how much can come: W workers finish W / latency requests a second. The share of that is
taken from the answer number W, when each worker has had one and the ramp is over, to the last one, by
the growth of the results file. Since W divides the number of requests, all workers have the same number.
Without any limit the processor looks for the number in flight that suits the server, which takes a while;
so it has a row with limits that don't bind, where it doesn't, and one without. Threads that only send
are there for what the machine can do; they write no file, so that only their whole run is known.
Memory a thread is the peak less that of the same command with one request, by W.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import jobs
from benchmarks.jobs import Place
from benchmarks.processes import BenchmarkError
from benchmarks.tables import Cell, middle, print_table

# workers, requests for each of them, seconds for an answer, rounds
SIZES = {"tiny": (40, 2, 0.2, 1), "small": (1000, 3, 2.0, 1), "full": (2000, 5, 2.0, 3)}
COOKBOOK_CONNECTIONS = 100  # aiohttp's default
PROCESSOR, UNLIMITED, COOKBOOK = "processor", "processor, no limits", "cookbook's way"
SESSION = "session.post threads"
COLUMNS = (
    *("client", "in flight", "answers/s", "Little's law", "share"),
    *("ramp s", "whole run/s", "CPU us", "peak MiB", "KiB a thread"),
)


class Growth:
    """When a file had how many lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._lines = path, 0, 0
        self._started_at = time.perf_counter()
        self.seen: list[tuple[float, int]] = []

    def look(self) -> None:
        """Count the lines that came since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        if data:
            self._offset += len(data)
            self._lines += data.count(b"\n")
            self.seen.append((time.perf_counter() - self._started_at, self._lines))

    def reached(self, lines: int) -> tuple[float, int]:
        """When there were so many lines, and how many there were then."""
        return next(point for point in self.seen if point[1] >= lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. ``ramp_s`` goes from its start until each worker may have had an answer."""

    per_s: float | None
    share: float | None
    ramp_s: float | None
    whole_per_s: float
    cpu_us: float
    peak_mib: float
    thread_kib: float


def command(where: Place, name: str, requests: Path, count: int, workers: int) -> list[str]:
    """What runs the client ``name`` for ``count`` requests."""
    url, results = where.server.slow_url, where.folder / "results.jsonl"
    results.unlink(missing_ok=True)
    if name == SESSION:
        return jobs.client_command("session_post", requests, url, count, workers)
    if name != COOKBOOK:
        limits = jobs.NO_LIMIT if name == UNLIMITED else jobs.PLENTY
        return jobs.our_command(requests, results, url, *limits, "--max_workers", workers)
    return jobs.cookbook_command(where, requests, results, url)


def measure(where: Place, name: str, workers: int, each: int) -> Result:
    """One run of ``each`` requests for every worker, and one of a single request beside it."""
    results, count = where.folder / "results.jsonl", workers * each
    one = jobs.write_requests(where.folder / "1.jsonl", 1)
    many = jobs.write_requests(where.folder / f"{count}.jsonl", count)
    idle = jobs.run(where, command(where, name, one, 1, workers), 1)
    words, growth = command(where, name, many, count, workers), Growth(results)
    used = jobs.run(where, words, count, watch=growth.look)
    per_s = ramp_s = None
    if name != SESSION:
        jobs.check_results(many, results)
        ramp_s, ramp_lines = growth.reached(workers)
        end_s, lines = growth.reached(count)
        per_s = (lines - ramp_lines) / (end_s - ramp_s)
    return Result(
        per_s=per_s,
        share=None if per_s is None else per_s * where.server.slow_s / workers,
        ramp_s=ramp_s,
        whole_per_s=count / used.wall_s,
        cpu_us=(used.cpu_s - idle.cpu_s) / count * 1e6,
        peak_mib=used.peak_mib,
        thread_kib=(used.peak_mib - idle.peak_mib) * 1024 / workers,
    )


def row(name: str, workers: int, slow_s: float, results: list[Result]) -> tuple[str, list[Cell]]:
    """The medians of a client."""
    names = ("share", "ramp_s", "whole_per_s", "cpu_us", "peak_mib", "thread_kib")
    per_s, *others = (
        middle([getattr(result, each) for result in results]) for each in ("per_s", *names)
    )
    return name, [f"{workers:,}", per_s, workers / slow_s, *others]


def flags(arguments: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = jobs.parser("latency")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--rows", default="", metavar="NAMES", help="comma-separated; default: all")
    return parser.parse_args(arguments)


def latency(arguments: list[str]) -> int:
    """Our command and the cookbook's way in turn; 1 if something failed."""
    asked = flags(arguments)
    workers, each, slow_s, rounds = SIZES[asked.size]
    workers, rounds = asked.workers or workers, asked.rounds or rounds
    clients = {SESSION: workers, PROCESSOR: workers, UNLIMITED: workers}
    if jobs.has("aiohttp"):
        clients[COOKBOOK] = COOKBOOK_CONNECTIONS
    if asked.rows:
        clients = {name: most for name, most in clients.items() if name in asked.rows.split(",")}
    found: dict[str, list[Result]] = {name: [] for name in clients}
    try:
        with jobs.place(asked.cookbook, slow_s) as where:
            for _ in range(rounds):
                for name, most in list(clients.items()):
                    try:
                        found[name].append(measure(where, name, most, each))
                    except BenchmarkError as error:
                        if name != SESSION:
                            raise
                        print(f"{name} can't do it, and have no row: {str(error).splitlines()[-1]}")
                        del clients[name]
    except BenchmarkError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    print(
        f"{each} requests for each in flight, {slow_s:g} s for an answer, medians of {rounds} rounds"
    )
    print_table(COLUMNS, [row(name, clients[name], slow_s, found[name]) for name in clients])
    return 0
