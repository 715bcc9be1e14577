"""Three replicas, one of them ten times slower, one dead for a while: what was done of what they could.

What a server can do is its slots over the time that it takes for an answer. The dead one is a process that
is killed, and started again at the same port.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from parallel_processor import Limits, process_file, verify_results

SLOTS, LATENCY_S, SLOWER = 16, 0.1, 10
SIZES = {
    "tiny": (8.0, 2.0),
    "small": (30.0, 10.0),
    "full": (60.0, 20.0),
}  # in all, and dead; seconds
GOAL, MOST_TO_THE_DEAD = 0.95, 0.01


class Replica:
    """A simulator in a process of its own, with so many slots."""

    def __init__(self, latency_s: float, port: int = 0) -> None:
        self.rate = SLOTS / latency_s
        self._words = ("--slots", str(SLOTS), "--latency_s", str(latency_s))
        self.start(port)

    def start(self, port: int) -> None:
        """Serve at ``port``; 0 takes a free one."""
        command = [sys.executable, "-m", "parallel_processor.simulator", "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, *self._words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        words = next(line for line in self._process.stdout if "http://" in line).split()
        self.base = next(word for word in words if word.startswith("http://")).rstrip(",/")
        self.base = "http://" + urlsplit(self.base).netloc
        self.url = f"{self.base}/v1/chat/completions"

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.wait()


def replicas(arguments: list[str]) -> int:
    """Run it, and print the shares; 1 if a goal is missed. A tiny run has none but that nothing fails."""
    parser = argparse.ArgumentParser(prog="scripts/bench replicas", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    size = parser.parse_args(arguments).size
    lasts_s, dead_s = SIZES[size]
    living, slow = Replica(LATENCY_S), Replica(LATENCY_S * SLOWER)
    dead = Replica(LATENCY_S)
    died: list[float] = []

    def die() -> None:
        time.sleep(lasts_s / 4)
        died.append(time.monotonic())
        dead.kill()
        time.sleep(dead_s)
        dead.start(urlsplit(dead.url).port or 0)
        died.append(time.monotonic())

    count = int((living.rate + slow.rate + dead.rate) * lasts_s - dead.rate * dead_s)
    text = '{"model": "m", "messages": [{"role": "user", "content": "%d"}], "max_tokens": 8}\n'
    with tempfile.TemporaryDirectory() as folder:
        requests, results = Path(folder, "requests.jsonl"), Path(folder, "results.jsonl")
        requests.write_text("".join(text % number for number in range(count)))
        thread = threading.Thread(target=die)
        try:
            began = time.monotonic()
            thread.start()
            summary = process_file(
                requests,
                results,
                request_url=living.url,
                replica_urls=[slow.url, dead.url],
                limits=Limits(requests_per_minute=float("inf"), tokens_per_minute=float("inf")),
                progress=False,
            )
            took_s = time.monotonic() - began
            found = verify_results(requests, results)
        finally:
            thread.join()
            for each in (living, slow, dead):
                each.kill()
    print(summary)
    gone_s = min(died[1], began + took_s) - died[0]
    could = (living.rate + slow.rate + dead.rate) * took_s - dead.rate * gone_s
    (bucket,) = (each for each in summary.buckets if each.url == dead.url)
    lost = bucket.admitted - bucket.answered
    shares = (summary.answered / could, lost / summary.attempts)
    print(f"answered of what the living could: {shares[0]:.3f} ({count:,} in {took_s:.1f} s)")
    print(f"failed requests: {summary.failed}")
    print(f"attempts that the dead one failed: {shares[1]:.2%} ({lost})")
    is_good = size == "tiny" or (shares[0] >= GOAL and shares[1] < MOST_TO_THE_DEAD)
    return 0 if is_good and not summary.failed and found.ok else 1
