"""What ``scripts/bench stream`` runs: a generator, a consumer that sleeps, and this process's memory.

python -m benchmarks.stream_process URL COUNT METHOD SLEEPS SLEEP_S
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.jobs import request
from benchmarks.tables import Cell, print_table
from parallel_processor import Limits, Processor

THREADS = 16


def memory_mib() -> float:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Take the outcomes, sleep now and then, and print what memory was at these moments."""
    url, count, method, sleeps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    read = 0

    def requests() -> Iterator[dict[str, Any]]:
        nonlocal read
        for number in range(count):
            read = number + 1
            yield request(number)

    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    found: list[tuple[int, float, int]] = []
    with Processor(request_url=url, limits=limits, max_workers=THREADS) as processor:
        outcomes = getattr(processor, method)(requests())
        for number, outcome in enumerate(outcomes, 1):
            outcome.raise_for_error()
            if number % (count // sleeps) == 0:
                time.sleep(float(sys.argv[5]))
                found.append((number, memory_mib(), read - number))
    rows: list[tuple[str, list[Cell]]] = [
        (f"{method}, after {taken:,}", [mib, ahead])
        for taken, mib, ahead in [found[0], found[len(found) // 2], found[-1]]
    ]
    rows.append(
        (f"{method}, the most", [max(mib for _, mib, _ in found), max(row[2] for row in found)])
    )
    print_table(("a generator, a consumer that sleeps", "MiB", "read ahead"), rows)


if __name__ == "__main__":
    main()
