"""Memory of ``imap_unordered`` and ``imap`` over a long generator, with a consumer that sleeps."""

from __future__ import annotations

import subprocess

from benchmarks import jobs
from benchmarks.processes import BenchmarkError, bench_environment, python

_COUNTS = {"tiny": (1000, 5, 0.01), "small": (50_000, 10, 0.5), "full": (1_000_000, 20, 2.0)}


def stream(arguments: list[str]) -> int:
    """Both ways; 1 if something failed."""
    asked = jobs.parser("stream").parse_args(arguments)
    count, sleeps, sleep_s = _COUNTS[asked.size]
    try:
        with jobs.place(None) as where:
            variables = bench_environment(**where.server.variables())
            for method in ("imap_unordered", "imap"):
                words = (where.server.url(), count, method, sleeps, sleep_s)
                command = python("-m", "benchmarks.stream_process", *words)
                subprocess.run(command, check=True, env=variables)
    except (BenchmarkError, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    return 0
