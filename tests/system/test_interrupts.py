"""Real signals at random moments: whatever they hit, a run leaves nothing behind."""

from __future__ import annotations

import json
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

def measured():
    began_at = time.perf_counter()
    work(shared)
    return time.perf_counter() - began_at

work(shared)
span_s = min(measured() for _ in range(5))
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


# Where the main thread takes locks that this package has made: the functions, by part of the run.
_LOCKS = """
import collections, json, math, os, sys, threading

HOME = "parallel_processor."
taken = collections.Counter()

def module(frame):
    return frame.f_globals["__name__"]

class Recorded:
    def __init__(self):
        self._lock = make_rlock()

    def acquire(self, *args, **settings):
        if threading.current_thread() is threading.main_thread():
            frame = sys._getframe(1)
            while not module(frame).startswith(HOME) or module(frame) == HOME + "runtime.locks":
                frame = frame.f_back
            taken[module(frame).removeprefix(HOME) + "." + frame.f_code.co_name] += 1
        return self._lock.acquire(*args, **settings)

    def release(self):
        self._lock.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()

def watched(make):
    return lambda: Recorded() if module(sys._getframe(1)).startswith(HOME) else make()

make_rlock = threading.RLock
threading.Lock, threading.RLock = watched(threading.Lock), watched(threading.RLock)

from parallel_processor import Limits, Processor

def told():
    found = dict(taken)
    taken.clear()
    return found

url, directory = sys.argv[1:]
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
processor = Processor(request_url=url + "/v1/embeddings", limits=limits, max_workers=8)
rows = [{"model": "m", "input": f"text {n}"} for n in range(600)]
source, save, report = (os.path.join(directory, name) for name in ("in.jsonl", "out.jsonl", "r.html"))
with open(source, "w") as file:
    file.writelines(json.dumps(row) + "\\n" for row in rows)

outcomes = processor.imap_unordered(rows, progress=True)
next(outcomes)
found = {"start": told()}
for number, _ in zip(range(500), outcomes):
    pass
found["middle"] = told()
assert len(list(outcomes)) == 99
found["end"] = told()
settings = {"progress": True, "report_path": report}
assert processor.process_file(source, save, **settings).answered == 600
found["600 lines"] = told()
with open(source, "a") as file:
    file.writelines(json.dumps(row | {"input": f"more {n}"}) + "\\n" for n, row in enumerate(rows * 2))
assert processor.process_file(source, save, **settings).answered == 1200
found["1200 lines"] = told()
print(json.dumps(found))
"""


def test_the_callers_thread_takes_locks_only_at_the_start_and_the_end(tmp_path: Path) -> None:
    """Neither requests nor displays make it take one: its locks don't depend on how long a run is."""
    with simulator() as server:
        ran = subprocess.run(
            [sys.executable, "-c", _LOCKS, server.url, tmp_path],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["start"]["engine.account.run"] == 1  # the locks of a run are watched
    assert found["end"]["engine.account._end"] == 1
    assert found["middle"] == {}
    assert found["600 lines"] == found["1200 lines"]
    assert sum(found["600 lines"].values()) < 100
