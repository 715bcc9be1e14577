"""Requests/s, CPU and memory of the command beside other clients, against a server that answers at once.

Each row is a process of its own; all rows run in turn in each round, and what is printed are medians of
the rounds, of ratios as well. Start-up is what the same command takes for one request; it is subtracted
from time, CPU and context switches (but at size tiny), and has a column of its own. For the processor that
is its package, its token ranks and its files; the baselines do nothing else but send, apart from lm-deluge,
which does the whole job but reading and writing. Rows that end in ``one core`` are held on one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import jobs, locks
from benchmarks.interpreters import Interpreter, interpreters
from benchmarks.jobs import Place
from benchmarks.processes import ROOT, BenchmarkError, Usage, measured, one_core, python
from benchmarks.tables import Cell, middle, print_table, ratios

SIZES = {"tiny": (200, 1), "small": (3000, 3), "full": (10_000, 5)}  # requests and rounds
SESSION, COOKBOOK, AIOHTTP = "session.post threads", "cookbook's way", "aiohttp, one loop"
HTTP_CLIENT, PROCESSES = "http.client threads", "processor, 2 processes"
COLUMNS = (
    *("client", "requests/s", "CPU us", "switches", "preempted"),
    *("peak MiB", "start s", "x session", "x cookbook", "x aiohttp"),
)
Command = Callable[[Path, Path, int], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A client: what runs it for a file of so many requests, and what share of them it gets.

    It may be held on a ``core``, and run by another Python than this one.
    """

    name: str
    command: Command
    share: float = 1.0
    saves: bool = False
    core: int | None = None
    python: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run, less its start-up."""

    per_s: float
    cpu_us: float
    switches: float
    preempted: float
    peak_mib: float
    start_s: float | None


def baselines(url: str, threads: int) -> list[Row]:
    """The clients that do nothing but send."""
    names = {
        "requests.post threads": ("requests_post", 0.1),
        SESSION: ("session_post", 1.0),
        "session, prepared once": ("prepared_once", 1.0),
        "urllib3 pool threads": ("urllib3_pool", 1.0),
        HTTP_CLIENT: ("http_client", 1.0),
    }
    if jobs.has("pyreqwest"):
        names["pyreqwest (Rust) threads"] = ("pyreqwest", 1.0)
    if jobs.has("aiohttp"):
        names[AIOHTTP] = ("aiohttp", 1.0)
    if jobs.has("lm_deluge"):
        names["lm-deluge"] = ("lm_deluge", 1.0)

    def row(name: str, client: str, share: float) -> Row:
        def command(requests: Path, _: Path, count: int) -> list[str]:
            return jobs.client_command(client, requests, url, count, threads)

        return Row(name=name, command=command, share=share)

    return [row(name, *client) for name, client in names.items()]


def first_of_ours(threads: int) -> str:
    """The name of the row that the others of ours are variants of."""
    return f"processor, {threads} workers"


def ours(where: Place, threads: int) -> list[Row]:
    """The command, as it may be called."""
    at, workers = where.server.url, ("--max_workers", threads)
    first = first_of_ours(threads)
    limits = ("--max_requests_per_minute", 600_000, "--max_tokens_per_minute", 1e9)
    variants: dict[str, tuple[object, ...]] = {
        first: (at(), *jobs.NO_LIMIT, *workers),
        "processor, default workers": (at(), *jobs.NO_LIMIT),
        "processor, 600,000 requests/min": (at(), *limits, *workers),
        "processor, limits in headers": (at("/with-limits"), *jobs.NO_LIMIT, *workers),
    }
    if "--processes" in jobs.our_flags():
        variants[PROCESSES] = (at(), *jobs.NO_LIMIT, *workers, "--processes", 2)
    else:
        print("note: the command has no --processes: that row is skipped")

    def row(name: str, words: tuple[object, ...]) -> Row:
        def command(requests: Path, results: Path, _: int) -> list[str]:
            return jobs.our_command(requests, results, str(words[0]), *words[1:])

        return Row(name=name, command=command, saves=True)

    return [row(name, words) for name, words in variants.items()]


def cookbook(where: Place) -> list[Row]:
    """The loop that is to be replaced."""
    if not jobs.has("aiohttp", quiet=True):
        return []

    def command(requests: Path, results: Path, _: int) -> list[str]:
        return jobs.cookbook_command(where, requests, results, where.server.url())

    return [Row(name=COOKBOOK, command=command, saves=True)]


def with_one_core(rows: list[Row], names: tuple[str, ...]) -> list[Row]:
    """``rows``, and behind each that is named the same on one core."""
    core = one_core()
    if core is None:
        print("note: commands can't be held on one of several cores here: those rows are skipped")
        return rows
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if row.name in names:
            found.append(replace(row, name=f"{row.name}, one core", core=core))
    return found


def with_other_pythons(rows: list[Row], others: list[Interpreter]) -> list[Row]:
    """``rows``, and those of ours and of ``http.client`` once more with each of the others."""
    again = [row for row in rows if row.saves and row.name != COOKBOOK or row.name == HTTP_CLIENT]
    return rows + [
        replace(row, name=f"{other.version}: {row.name}", python=other.path)
        for other in others
        for row in again
    ]


def files(where: Place, count: int) -> tuple[Path, Path]:
    """A file of so many requests, and the path of results that don't exist yet."""
    requests, results = where.folder / f"{count}.jsonl", where.folder / "results.jsonl"
    if not requests.exists():
        jobs.write_requests(requests, count)
    results.unlink(missing_ok=True)
    return requests, results


def once(where: Place, row: Row, count: int) -> Usage:
    """One run of ``count`` requests, checked."""
    requests, results = files(where, count)
    command, variables = row.command(requests, results, count), {}
    if row.python is not None:
        command[0], variables = str(row.python), {"PYTHONPATH": str(ROOT)}
    usage = jobs.run(where, command, count, core=row.core, **variables)
    if row.saves:
        jobs.check_results(requests, results)
    return usage


def measure(where: Place, row: Row, count: int, tiny: bool) -> Result:
    """One run, less what one request takes."""
    count = max(round(count * row.share), 20)
    none = Usage(wall_s=0.0, cpu_s=0.0, switches=0, preempted=0, peak_mib=0.0)
    start = none if tiny else once(where, row, 1)
    usage, less = once(where, row, count), not tiny
    counted = count - less
    return Result(
        per_s=counted / max(usage.wall_s - start.wall_s, 1e-9),
        cpu_us=(usage.cpu_s - start.cpu_s) / counted * 1e6,
        switches=(usage.switches - start.switches) / counted,
        preempted=(usage.preempted - start.preempted) / counted,
        peak_mib=usage.peak_mib,
        start_s=start.wall_s if less else None,
    )


def table(results: dict[str, list[Result]]) -> list[tuple[str, list[Cell]]]:
    """A row of medians for each client."""
    rates = {name: [result.per_s for result in found] for name, found in results.items()}
    columns = ("per_s", "cpu_us", "switches", "preempted", "peak_mib", "start_s")
    return [
        (
            name,
            [
                *(middle([getattr(result, column) for result in found]) for column in columns),
                *(ratios(rates[name], rates.get(other)) for other in (SESSION, COOKBOOK, AIOHTTP)),
            ],
        )
        for name, found in results.items()
    ]


def acquisitions(where: Place, rows: list[Row]) -> None:
    """Print how often each of ``rows``, all of ours, takes a lock for each request."""
    shorter, longer = locks.LENGTHS
    for row in rows:
        counts: dict[int, dict[str, int]] = {}
        for count in (shorter, longer):
            requests, results = files(where, count)
            command = row.command(requests, results, count)
            counts[count] = locks.acquisitions(where, command, count)
            jobs.check_results(requests, results)
        rates = locks.per_request(counts[shorter], counts[longer], longer - shorter)
        print(locks.line(row.name, rates), flush=True)


def delays(where: Place, count: int, threads: int) -> None:
    """Print how long answers wait for their lines to be written."""
    (requests, results), report = files(where, count), where.folder / "delays.json"
    words = (requests, results, where.server.url(), threads, report)
    measured(python("-m", "benchmarks.delays", *words), where.folder, **where.server.variables())
    jobs.check_results(requests, results)
    found = json.loads(report.read_text("utf-8"))
    print(f"from an outcome to its line in the file, of {count:,} with {threads} workers: ", end="")
    print(", ".join(f"{name} {value_ms:.3g} ms" for name, value_ms in found.items()), flush=True)


def flags(arguments: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = jobs.parser("speed")
    parser.add_argument(
        "--threads", type=int, default=16, help="of each client (default: %(default)d)"
    )
    parser.add_argument("--requests", type=int, help="in each run")
    parser.add_argument("--rounds", type=int)
    parser.add_argument(
        "--rows", default="", help="words, one of which a row's name must have: a,b"
    )
    parser.add_argument(
        "--pythons",
        default="",
        help="versions or paths of others, whose rows are shown, too: 3.13,3.14t; or all",
    )
    return parser.parse_args(arguments)


def asked_rows(where: Place, asked: argparse.Namespace) -> list[Row]:
    """The rows that are to be measured, in the table's order."""
    rows = [
        *baselines(where.server.url(), asked.threads),
        *cookbook(where),
        *ours(where, asked.threads),
    ]
    rows = with_one_core(rows, (HTTP_CLIENT, AIOHTTP, first_of_ours(asked.threads)))
    if asked.pythons:
        rows = with_other_pythons(rows, interpreters(asked.pythons))
    words = [word for word in asked.rows.split(",") if word]
    return [row for row in rows if not words or any(word in row.name for word in words)]


def lock_rows(rows: list[Row], asked: argparse.Namespace) -> list[Row]:
    """Those whose locks are counted: ours of one process and this Python; one alone at size tiny."""
    mine = [row for row in rows if row.saves and row.name not in (COOKBOOK, PROCESSES)]
    mine = [row for row in mine if row.core is None and row.python is None]
    return mine[:1] if asked.size == "tiny" else mine


def speed(arguments: list[str]) -> int:
    """All clients in turn, several times; 1 if something failed."""
    asked = flags(arguments)
    count, rounds = SIZES[asked.size]
    count, rounds = asked.requests or count, asked.rounds or rounds
    try:
        with jobs.place(asked.cookbook) as where:
            rows = asked_rows(where, asked)
            results: dict[str, list[Result]] = {row.name: [] for row in rows}
            for _ in range(rounds):
                for row in rows:
                    results[row.name].append(measure(where, row, count, asked.size == "tiny"))
            threads = f"{asked.threads} threads or tasks"
            print(f"{count:,} requests, {threads}, medians of {rounds} rounds")
            print_table(COLUMNS, table(results))
            delays(where, count, asked.threads)
            acquisitions(where, lock_rows(rows, asked))
    except BenchmarkError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0
