"""Real signals at random moments: whatever they hit, a run leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, simulator

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")

_PROGRAM = """
import faulthandler, gc, json, math, os, random, signal, sys, threading, time
from parallel_processor import Limits, Processor, verify_results

url, directory, kind, rounds, seed = sys.argv[1:]
faulthandler.dump_traceback_later(50, exit=True)
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
settings = {"request_url": url + "/v1/embeddings", "limits": limits, "max_workers": 4}
rows = [{"model": "m", "input": f"text {n}"} for n in range(40)]
source, save = (os.path.join(directory, name) for name in ("in.jsonl", "out.jsonl"))
with open(source, "w") as file:
    file.writelines(json.dumps(row) + "\\n" for row in rows)
shared = Processor(**settings)

def stream(made):
    count = 0
    for outcome in made.imap_unordered(rows):
        assert outcome.ok
        count += 1
    return count

def file(made):
    return made.process_file(source, save, overwrite=True).answered

work = {"stream": stream, "file": file}[kind]

def attempt(delay_s):
    signal.setitimer(signal.ITIMER_REAL, delay_s)
    try:
        assert work(shared if random.random() < 0.5 else Processor(**settings)) == 40
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

def left_behind():
    gc.collect()
    threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return threads, len(os.listdir("/proc/self/fd"))

signal.signal(signal.SIGALRM, signal.default_int_handler)
work(shared)
began_at = time.perf_counter()
work(shared)
span_s = time.perf_counter() - began_at
nothing = left_behind()
assert not nothing[0], nothing
interrupted = 0
for number in range(int(rounds)):
    random.seed(f"{seed} {number}")
    delay_s = random.uniform(1e-5, span_s)
    try:
        attempt(delay_s)
    except KeyboardInterrupt:
        interrupted += 1
    left = left_behind()
    assert left == nothing, (seed, number, delay_s, left, nothing)
    if number % 5 == 0:
        assert work(shared) == 40, (seed, number)
assert work(shared) == 40
assert interrupted > int(rounds) / 10, interrupted
if kind == "file":
    assert verify_results(source, save).ok
"""


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_an_interrupt_at_any_moment_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """It comes out, unless it hits a callback of the collector's; nothing stays, and a next run works."""
    seed = 1
    with simulator() as server:
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM, server.url, tmp_path, kind, "30", str(seed)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert ran.returncode == 0, f"seed {seed}: {ran.stderr}"
