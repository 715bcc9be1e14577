"""Flex first, where flex has room for a third: how much of both limits was used, and by whom answered.

The server's own count of each second tells whether a limit was passed in any minute.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

from parallel_processor import Limits, process_file, read_results, verify_results
from parallel_processor.simulator import ModelLimits, Simulator, SimulatorOptions

FLEX, DEFAULT, GRANTS = 600, 400, 1 / 3  # a minute, and the share that flex has room for
SIZES = {"tiny": 10, "small": 70, "full": 130}  # seconds
GOAL = 0.95


def tiers(arguments: list[str]) -> int:
    """Run it, and print the shares; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench tiers", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    lasts_s = SIZES[parser.parse_args(arguments).size]
    limits = {"flex": FLEX, "default": DEFAULT}
    served = {f"*@{tier}": ModelLimits(requests_per_minute=limit) for tier, limit in limits.items()}
    options = SimulatorOptions(
        limits_by_model=served, tier_grants={"flex": GRANTS}, latency_s=0.5, latency_jitter=0.5
    )
    own = {
        f"*@{tier}": Limits(requests_per_minute=limit, tokens_per_minute=math.inf)
        for tier, limit in limits.items()
    }
    count = round((FLEX * GRANTS + DEFAULT) * lasts_s / 60)
    bodies = (
        {"model": "m", "messages": [{"role": "user", "content": f"{n}"}]} for n in range(count)
    )
    with tempfile.TemporaryDirectory() as folder, Simulator(options) as server:
        requests, results = Path(folder, "requests.jsonl"), Path(folder, "results.jsonl")
        requests.write_text("".join(json.dumps(body) + "\n" for body in bodies))
        summary = process_file(
            requests,
            results,
            request_url=f"{server.url}/v1/chat/completions",
            service_tiers=tuple(limits),
            limits_by_model=own,
            progress=False,
        )
        found = verify_results(requests, results)
        answered = Counter(outcome.service_tier for outcome in read_results(results))
        timeline = server.timeline()
    print(summary)
    is_good = found.ok and not summary.failed and sum(answered.values()) == count
    for tier, limit in limits.items():
        sent = [second[0] for second in timeline[f"m@{tier}"]]
        most = max(sum(sent[begin : begin + 60]) for begin in range(len(sent)))
        used = sum(sent) / (limit * len(sent) / 60)
        shown = (
            f"{used:.3f} of its limit used in {len(sent)} s, at most {most} of {limit} in a minute"
        )
        print(f"{tier}: {shown}; {answered[tier]:,} answered")
        is_good &= most <= limit and (used >= GOAL or lasts_s < 60)
    return 0 if is_good else 1
