"""Runs inside other programs: event loops, executors, threads, and the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, simulator

from parallel_processor.runtime import exits
from parallel_processor.simulator import Simulator

_PREAMBLE = """
import itertools, json, math, os, sys, threading, time
from parallel_processor import Limits, Processor, process_file

url, directory, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
account = {"request_url": url + "/v1/embeddings", "limits": limits, "max_workers": 5}
account["processes"] = processes
rows = [{"model": "m", "input": f"text {n}"} for n in range(40)]
processor = Processor(**account)
endless = processor.imap_unordered({"model": "m", "input": str(n)} for n in itertools.count())

def answers(number=0):
    return sum(each.ok for each in processor.imap_unordered(rows))
"""


def run(script: str, url: str, directory: Path, processes: int = 1) -> str:
    """Run a program to its end, and give what it prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PREAMBLE + script, url, directory, str(processes)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    return ran.stdout


def test_what_registers_again_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor's second run is told of the exit in the same order as its first."""
    monkeypatch.setattr(exits, "_ENDS", {})
    calls: list[str] = []

    class Owner:
        def tell(self) -> None:
            calls.append("tell")

        def end(self) -> None:
            calls.append("end")

    first, second = Owner(), Owner()
    for end in (first.tell, second.end, first.tell):
        exits.at_exit(end)
    exits._end_all()
    assert calls == ["tell", "end"]


_IN_A_LOOP = """
import asyncio

async def main():
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    assert answers() == 40
    ticker = asyncio.create_task(tick())
    found = await asyncio.gather(*(asyncio.to_thread(answers) for _ in range(3)))
    assert found == [40] * 3 and ticks > 10, (found, ticks)
    ticker.cancel()
    assert asyncio.get_running_loop() is loop
    assert asyncio.all_tasks() - tasks <= {ticker}

asyncio.run(main())
"""
_WITHOUT_A_LOOP = """
assert answers() == 40
assert "asyncio" not in sys.modules
"""
_IN_AN_EXECUTOR = """
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(answers, range(8))) == [40] * 8
"""
_IN_THREADS = """
found = []
threads = [threading.Thread(target=lambda: found.append(answers())) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [40] * 20, found
"""


@pytest.mark.parametrize("script", [_IN_A_LOOP, _WITHOUT_A_LOOP, _IN_AN_EXECUTOR, _IN_THREADS])
def test_runs_work_inside_other_machinery(script: str, tmp_path: Path) -> None:
    """A running event loop stays as it is, and executors and threads share a processor."""
    with Simulator() as server:
        run(script, server.url, tmp_path)


_OPEN = """
assert next(endless).ok
"""
_DAEMON = """
got = threading.Event()

def consume():
    for outcome in endless:
        got.set()

threading.Thread(target=consume, daemon=True).start()
assert got.wait(30)
"""
_DAEMON_WITH_A_FILE = """
with open(os.path.join(directory, "in"), "w") as file:
    file.writelines(json.dumps(row) + "\\n" for row in rows * 500)
out = os.path.join(directory, "out")
recorded = threading.Event()
more = {"on_outcome": lambda outcome: recorded.set()}
threading.Thread(target=processor.process_file, args=[file.name, out], kwargs=more, daemon=True).start()
assert recorded.wait(30)
"""


@pytest.mark.parametrize(
    ("script", "processes"), [(_OPEN, 1), (_OPEN, 2), (_DAEMON, 1), (_DAEMON_WITH_A_FILE, 1)]
)
def test_the_interpreter_ends_whatever_is_open(script: str, processes: int, tmp_path: Path) -> None:
    """An open iterator never delays the exit, and nothing more is sent."""
    with simulator("--latency_s", "0.005") as server:
        run(script, server.url, tmp_path, processes)
        sent = server.stats()["requests_received"]
    assert sent < 10_000
    if script == _DAEMON_WITH_A_FILE:
        assert (tmp_path / "out").read_bytes().endswith(b"\n")


def test_nothing_is_waited_for_at_the_interpreters_end(tmp_path: Path) -> None:
    """Requests that nobody answers are cut, whether the main thread or a daemon waits for them."""
    script = """
threading.Thread(target=lambda: next(endless, None), daemon=True).start()
import urllib.request
while json.load(urllib.request.urlopen(url + "/stats"))["requests_received"] < 5:
    pass
"""
    with simulator("--latency_s", "600") as server:
        run(script, server.url, tmp_path)
        assert server.stats()["requests_received"] == 5
