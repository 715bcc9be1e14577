"""Under gevent: every thread of a run is a greenlet, and other greenlets go on meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, simulator

pytest.importorskip("gevent")
pytestmark = pytest.mark.acceptance

_PREAMBLE = """
from gevent import monkey
monkey.patch_all()
import gevent, json, math, os, sys, threading
from parallel_processor import Limits, Processor, RunStoppedError, process_file, verify_results

url, directory = sys.argv[1:]
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
account = {"request_url": url + "/v1/embeddings", "limits": limits, "max_workers": 8}
rows = [{"model": "m", "input": f"text {n}"} for n in range(40)]

def write(name):
    with open(os.path.join(directory, name), "w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows)
    return file.name

def of_ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("parallel-processor")]

def open_files():
    return len(os.listdir("/proc/self/fd"))

assert sum(each.ok for each in Processor(**account).imap_unordered(rows[:2])) == 2
before = open_files()
"""
_TOGETHER = """
shared = Processor(**account)

def stream(number):
    return sum(each.ok for each in shared.imap_unordered(rows))

def file(number):
    source, save = write(f"in{number}"), os.path.join(directory, f"out{number}")
    assert process_file(source, save, **account).answered == 40
    return verify_results(source, save).answered

ticks = 0

def tick():
    global ticks
    while True:
        gevent.sleep(0)
        ticks += 1

ticker = gevent.spawn(tick)
jobs = [gevent.spawn(work, number) for number in range(3) for work in (stream, file)]
gevent.joinall(jobs, timeout=30)
assert [job.value for job in jobs] == [40] * 6, [(job.value, job.exception) for job in jobs]
ticker.kill()
assert ticks > 20, ticks
assert of_ours() == [] and open_files() == before, (of_ours(), open_files(), before)
"""
_KILLED = """
ends = []

def work():
    try:
        ends.append(sum(each.ok for each in Processor(**account).imap_unordered(rows)))
    except gevent.GreenletExit:
        ends.append("killed")

for _ in range(3):
    job = gevent.spawn(work)
    while not of_ours():
        gevent.sleep(0)
    job.kill(timeout=20)
assert ends == ["killed"] * 3, ends
try:
    with gevent.Timeout(0.001):
        process_file(write("in"), os.path.join(directory, "out"), drain_s=0, **account)
    raise AssertionError("no timeout")
except gevent.Timeout:
    pass
assert of_ours() == [] and open_files() == before, (of_ours(), open_files(), before)
assert sum(each.ok for each in Processor(**account).imap_unordered(rows)) == 40
"""
_PROCESSES = """
account["processes"] = 2
jobs = [gevent.spawn(lambda: list(Processor(**account).imap_unordered(rows))) for _ in range(2)]
gevent.joinall(jobs, timeout=40)
assert [len(job.value or ()) for job in jobs] == [40] * 2, [job.exception for job in jobs]
assert all(each.ok for job in jobs for each in job.value)
"""


@pytest.mark.parametrize("script", [_TOGETHER, _KILLED, _PROCESSES])
def test_runs_work_in_greenlets(script: str, tmp_path: Path) -> None:
    """Together, killed, timed out and with processes: all comes to its end, and nothing is left."""
    with simulator("--latency_s", "0.02") as server:
        ran = subprocess.run(
            [sys.executable, "-c", _PREAMBLE + script, server.url, str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
