"""What a lease costs the actor that holds the limits of a Ray cluster.

Two callers ask it for leases under two limits, at a steady rate, on an embedded Ray. ``actor`` is the CPU
time of the actor's process for one call; ``idle`` is what it uses of a core without a call. ``raylet`` and
``gcs`` are Ray's own processes in the same time, for one call.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchmarkError
from benchmarks.tables import print_table

# calls a second, seconds, callers
SIZES = {"tiny": (50, 1.0, 1), "small": (200, 5.0, 2), "full": (200, 20.0, 2)}
NAMES = {"actor": b"ray::BucketActor", "raylet": b"raylet/raylet", "gcs": b"gcs/gcs_server"}
TICKS_A_S = os.sysconf("SC_CLK_TCK")


def processes() -> Iterator[tuple[str, int]]:
    """The processes of Ray below this one that are measured, by name."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        for name, part in NAMES.items():
            if part in line and f"pp-ray-{os.getpid()}-".encode() in line + environ(path):
                yield name, int(path.name)


def environ(path: Path) -> bytes:
    """The arguments of the parent of a worker, which name the folder of its Ray."""
    parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
    return Path(f"/proc/{parent}/cmdline").read_bytes()


def cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """The CPU time of each process so far."""
    found = {}
    for name, pid in pids.items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[name] = (int(fields[11]) + int(fields[12])) / TICKS_A_S
    return found


class Caller:
    """Asks for leases at a steady rate, in a process of its own."""

    def ask(self, per_s: float, seconds: float) -> int:
        """How many were granted."""
        from parallel_processor.cluster.ray_limiter import RayLimiter
        from parallel_processor.limiter.leases import Ask, Terms

        terms = tuple(Terms(key=key, limit=1e9, burst_s=0.5) for key in ("requests", "tokens"))
        nothing = (0, 0)
        ask = Ask(terms=terms, amounts=(5.0, 500.0), ttl_s=0.5, epochs=nothing, serials=nothing)
        limiter, began, count = RayLimiter(), time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            limiter.lease("bench", ask)
            count += 1
            time.sleep(max(0.0, began + count / per_s - now))
        return count


def actor(arguments: list[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="scripts/bench actor", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--cookbook", default="", help=argparse.SUPPRESS)
    per_s, seconds, count = SIZES[parser.parse_args(arguments).size]
    if find_spec("ray") is None:
        print("ray is not installed")
        return 0
    from parallel_processor.cluster.ray_engine import connected
    from parallel_processor.cluster.ray_limiter import start_limiter

    with connected(None, 2) as ray:
        start_limiter()
        callers: list[Any] = [ray.remote(Caller).options(num_cpus=0).remote() for _ in range(count)]
        ray.get([caller.ask.remote(10, 0.5) for caller in callers])
        pids = dict(processes())
        if set(pids) != set(NAMES):
            raise BenchmarkError(f"not all of Ray's processes were found: {pids}")
        before = cpu_s(pids)
        time.sleep(seconds / 4)
        idle = cpu_s(pids)
        asked = sum(ray.get([each.ask.remote(per_s / count, seconds) for each in callers]))
        after = cpu_s(pids)
    print_table(
        ("process", "calls", "calls/s", "us a call", "idle, % of a core"),
        [
            (
                name,
                (
                    asked,
                    asked / seconds,
                    (after[name] - idle[name]) / asked * 1e6,
                    (idle[name] - before[name]) / (seconds / 4) * 100,
                ),
            )
            for name in NAMES
        ],
    )
    return 0
