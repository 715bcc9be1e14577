"""Embeddings under a limit of requests, packed: seconds, and what they would take one by one."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

from parallel_processor import Limits, process_file, verify_results
from parallel_processor.options import PackInputs
from parallel_processor.simulator import Simulator, SimulatorOptions

SIZES = {"tiny": 1_000, "small": 5_000, "full": 20_000}  # lines
RPM, PACK = 600, 100


def packs(arguments: list[str]) -> int:
    """Run it, and print the rows; 1 if a line was lost, or if packing gained too little."""
    parser = argparse.ArgumentParser(prog="scripts/bench packs", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    count, is_good = SIZES[parser.parse_args(arguments).size], True
    alone_s = count / RPM * 60
    print(f"{count:,} lines, {RPM} requests/min: {alone_s:,.0f} s if each is sent alone")
    ways: tuple[PackInputs, ...] = (PACK, "auto")
    for asked in ways:
        seconds, attempts, is_whole = _run(count, asked)
        print(f"  --pack_inputs {asked}: {seconds:.1f} s, {attempts:,} requests")
        is_good &= is_whole and seconds < 5 + 1.1 * alone_s / PACK
    return not is_good


def _run(count: int, asked: PackInputs) -> tuple[float, int, bool]:
    """Seconds, requests, and whether each line has its answer."""
    options = SimulatorOptions(requests_per_minute=RPM, tokens_per_minute=10**9, latency_s=0.1)
    bodies = ({"model": "text-embedding-3-small", "input": f"text {n}"} for n in range(count))
    with tempfile.TemporaryDirectory() as folder, Simulator(options) as server:
        requests, results = Path(folder, "requests.jsonl"), Path(folder, "results.jsonl")
        requests.write_text("".join(json.dumps(body) + "\n" for body in bodies))
        began_s = time.monotonic()
        summary = process_file(
            requests,
            results,
            request_url=f"{server.url}/v1/embeddings",
            limits=Limits(requests_per_minute=RPM, tokens_per_minute=math.inf),
            pack_inputs=asked,
            progress=False,
        )
        seconds = time.monotonic() - began_s
        is_whole = verify_results(requests, results).ok and summary.answered == count
    return seconds, summary.attempts, is_whole
