"""Commands as processes of their own, and what each of them cost.

The process that runs the benchmarks stays small and imports little: Linux counts its peak memory at the
time of a start to the child, too.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "scripts"
LONGEST_S = 7200.0


class BenchmarkError(Exception):
    """Something really failed: a command, or a request that was lost or doubled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process took, from its start to its end, its own children included.

    ``switches`` are voluntary context switches, ``preempted`` the others. ``peak_mib`` is that of the
    largest process.
    """

    wall_s: float
    cpu_s: float
    switches: int
    preempted: int
    peak_mib: float


def environment(**changes: str) -> dict[str, str]:
    """This environment with the package and without a proxy or a key, and with ``changes``.

    Modules are compiled once, as installed ones are, whatever this process does.
    """
    without = ("OPENAI_API_KEY", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in without}
    if not find_spec("parallel_processor"):
        kept["PYTHONPATH"] = str(ROOT)
    return kept | changes


def bench_environment(**changes: str) -> dict[str, str]:
    """As :func:`environment`, for modules of this folder as well."""
    found = environment(**changes)
    paths = [str(SCRIPTS), found.get("PYTHONPATH", "")]
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(*words: object) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *map(str, words)]


def measured(
    command: Sequence[str],
    folder: Path,
    *,
    watch: Callable[[], None] | None = None,
    interval_s: float = 0.02,
    core: int | None = None,
    **variables: str,
) -> Usage:
    """Run ``command`` in ``folder`` to its end, and tell what it took.

    ``watch`` is called every ``interval_s`` seconds meanwhile. With ``core`` the command may run on
    that one alone. :class:`BenchmarkError` if it fails.
    """
    log = folder / "stderr.log"
    with log.open("wb") as stderr:
        with held_on(core):
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=bench_environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            status, usage = _wait(process.pid, watch, interval_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise BenchmarkError(f"{' '.join(command)}: exit code {process.returncode}\n{tail}")
    return Usage(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        switches=usage.ru_nvcsw,
        preempted=usage.ru_nivcsw,
        peak_mib=usage.ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1),
    )


def one_core() -> int | None:
    """A core that a command can be held on while a server has another; ``None`` if there is none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    permitted = os.sched_getaffinity(0)
    return max(permitted) if len(permitted) > 1 else None


@contextmanager
def held_on(core: int | None) -> Iterator[None]:
    """Hold this thread on ``core``, which is what a process started in the block inherits."""
    if core is None:
        yield
        return
    permitted = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, permitted)


def _wait(
    pid: int, watch: Callable[[], None] | None, interval_s: float
) -> tuple[int, resource.struct_rusage]:
    """The exit status of ``pid`` and what it used; ends it if that takes too long."""
    timer = threading.Timer(LONGEST_S, os.kill, (pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    try:
        if watch is None:
            _, status, usage = os.wait4(pid, 0)
            return status, usage
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            watch()
            if done:
                return status, usage
            time.sleep(interval_s)
    finally:
        timer.cancel()


def end(process: subprocess.Popen[Any], patience_s: float) -> None:
    """Ask ``process`` to end, and kill it if it doesn't in time."""
    process.terminate()
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def raise_file_limit(wanted: int) -> None:
    """Let this process and those that it starts open ``wanted`` files, or as many as are permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
