"""Start-up, inputs of very different lengths, and large requests and answers.

The time to the first request goes from the command's start to its first bytes behind a TLS handshake, at a
listener in this process; the command is ended then. Memory is taken from whole runs.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import jobs
from benchmarks.jobs import Place
from benchmarks.processes import BenchmarkError, bench_environment, measured, python
from benchmarks.server import LARGE_BYTES
from benchmarks.tables import Cell, print_table

SHORT_CHARS = 30
LONG_CHARS = 100_000
_CHILD = "parallel_processor.workers.child"
_O200K = ("--token_encoding_name", "o200k_base")  # of the largest file of ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done: lines of files, requests that are large, and how often."""

    few: int
    many: int
    sent: tuple[int, int]
    large: int
    repeats: int
    rounds: int


SIZES = {
    "tiny": Size(few=10, many=10_000, sent=(50, 200), large=10, repeats=1, rounds=1),
    "small": Size(few=10, many=200_000, sent=(2000, 20_000), large=500, repeats=5, rounds=3),
    "full": Size(few=10, many=1_000_000, sent=(5000, 1_000_000), large=2000, repeats=9, rounds=3),
}


def imports(where: Place, repeats: int) -> list[tuple[str, list[Cell]]]:
    """Milliseconds that an import takes, less what an empty program takes."""
    names = ("", "requests", "tiktoken", "parallel_processor", _CHILD)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = python("-c", f"import {name}" if name else "pass")
            times[name].append(measured(command, where.folder).wall_s * 1000)
    empty = median(times.pop(""))
    rows = {name: median(found) - empty for name, found in times.items()}
    child = rows.pop(_CHILD)
    shown: list[tuple[str, list[Cell]]] = [
        (f"import {name}", [found]) for name, found in rows.items()
    ]
    return [*shown, ("imports of a worker process", [child])]


def first_request(make: Callable[[str], list[str]], where: Place) -> float:
    """Milliseconds from the start of a command until its first request has begun to arrive.

    ``make`` gives the command for a URL. Each has a listener of its own, or it would meet connections
    that the last one left.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(where.server.folder / "server.pem", where.server.folder / "server.key")
    variables = where.server.variables() | {"TIKTOKEN_CACHE_DIR": str(where.folder / "tiktoken")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        command = make(f"https://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions")
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=where.folder,
            env=bench_environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(1)
                return (time.perf_counter() - started) * 1000
        except OSError as error:
            raise BenchmarkError(f"{' '.join(command)}: no request arrives: {error}") from error
        finally:
            process.kill()
            process.wait()


def first_commands(where: Place, source: Path) -> dict[str, Callable[[str], list[str]]]:
    """What sends requests of ``source`` to a URL, one at a time where that can be said."""
    results = where.folder / "results.jsonl"
    one = (*jobs.NO_LIMIT, "--max_workers", 1)
    commands: dict[str, Callable[[str], list[str]]] = {
        "session.post": lambda url: jobs.client_command("session_post", source, url, 1, 1),
        "processor": lambda url: jobs.our_command(source, results, url, *one),
        "o200k, processor": lambda url: jobs.our_command(source, results, url, *one, *_O200K),
    }
    if jobs.has("aiohttp", quiet=True):
        commands["cookbook's way"] = lambda url: jobs.cookbook_command(where, source, results, url)
    return commands


def first_requests(where: Place, size: Size) -> list[tuple[str, list[Cell]]]:
    """The same for our command and the others, with short and long files."""
    times: dict[str, list[float]] = {}
    for lines in (size.few, size.many):
        source = jobs.write_requests(where.folder / "first.jsonl", lines, SHORT_CHARS)
        for _ in range(size.repeats):
            for name, make in first_commands(where, source).items():
                (where.folder / "results.jsonl").unlink(missing_ok=True)
                found = times.setdefault(f"first request of {lines:,}, {name}", [])
                found.append(first_request(make, where))
    return [(name, [median(found)]) for name, found in times.items()]


def memory(where: Place, size: Size, threads: int) -> list[tuple[str, list[Cell]]]:
    """Peak MiB of runs over short and long files."""
    rows: list[tuple[str, list[Cell]]] = []
    for count in size.sent:
        source = jobs.write_requests(where.folder / "memory.jsonl", count, SHORT_CHARS)
        results = where.folder / "results.jsonl"
        results.unlink(missing_ok=True)
        words = (*jobs.NO_LIMIT, "--max_workers", threads)
        command = jobs.our_command(source, results, where.server.url(), *words)
        usage = jobs.run(where, command, count)
        jobs.check_results(source, results)
        rows.append((f"processor, {count:,} lines", [usage.peak_mib, count / usage.wall_s]))
    return rows


def large(where: Place, size: Size, threads: int) -> list[tuple[str, list[Cell]]]:
    """Requests/s and MB/s with large prompts, and with large answers."""
    rows: list[tuple[str, list[Cell]]] = []
    for title, chars, location, each_bytes in (
        ("100 kB prompts", LONG_CHARS, "", LONG_CHARS),
        ("1 MB answers", SHORT_CHARS, "/large", LARGE_BYTES),
    ):
        found: dict[str, list[float]] = {"session.post threads": [], "processor": []}
        peaks: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(size.rounds):
            for name in found:
                one = once(where, name, 1, chars, location, threads)
                all_of_them = once(where, name, size.large, chars, location, threads)
                seconds = max(all_of_them[0] - one[0], 1e-9)
                found[name].append((size.large - 1) / seconds)
                peaks[name].append(all_of_them[1])
        plain = found["session.post threads"]
        for name, rates in found.items():
            share = median(a / b for a, b in zip(rates, plain, strict=True))
            mb = median(rates) * each_bytes / 1e6
            rows.append((f"{title}, {name}", [median(rates), mb, share, median(peaks[name])]))
    return rows


def once(
    where: Place, name: str, count: int, chars: int, location: str, threads: int
) -> tuple[float, float]:
    """Seconds and peak MiB of one run."""
    source = jobs.write_requests(where.folder / "large.jsonl", count, chars)
    url, results = where.server.url(location), where.folder / "results.jsonl"
    results.unlink(missing_ok=True)
    if name == "processor":
        words = (*jobs.NO_LIMIT, "--max_workers", threads)
        usage = jobs.run(where, jobs.our_command(source, results, url, *words), count)
        jobs.check_results(source, results)
    else:
        command = jobs.client_command("session_post", source, url, count, threads)
        usage = jobs.run(where, command, count)
    return usage.wall_s, usage.peak_mib


def start(arguments: list[str]) -> int:
    """All of these; 1 if something failed."""
    parser = jobs.parser("start")
    parser.add_argument("--threads", type=int, default=16, help="default: %(default)d")
    asked = parser.parse_args(arguments)
    size = SIZES[asked.size]
    try:
        with jobs.place(asked.cookbook) as where:
            rows = [*imports(where, size.repeats), *first_requests(where, size)]
            print_table(("start-up", "ms"), rows)
            print_table(("peak memory", "MiB", "requests/s"), memory(where, size, asked.threads))
            columns = ("large bodies", "requests/s", "MB/s", "x session", "peak MiB")
            print_table(columns, large(where, size, asked.threads))
    except BenchmarkError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0
