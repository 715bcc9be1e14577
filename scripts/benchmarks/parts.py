"""The limiter, the writer, the reader and the counting of tokens, in a process of their own."""

from __future__ import annotations

import subprocess
from tempfile import TemporaryDirectory

from benchmarks import jobs
from benchmarks.processes import bench_environment, python


def parts(arguments: list[str]) -> int:
    """Run :mod:`benchmarks.parts_process`; 1 if it failed."""
    asked = jobs.parser("parts").parse_args(arguments)
    with TemporaryDirectory(prefix="bench_") as folder:
        command = python("-m", "benchmarks.parts_process", asked.size, folder)
        done = subprocess.run(command, cwd=folder, env=bench_environment())
    return 1 if done.returncode else 0
