"""How long an outcome waits until its line is in the file, in a process of its own.

Two calls are wrapped. ``ResultWriter.put`` notes the time at which a worker has classified a response.
``AppendFile.append`` notes the time at which a block of lines was written. The lines are looked at when
all is over, for the number in each prompt.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.writer import ResultWriter
from parallel_processor.options import Limits
from parallel_processor.processor import Processor

_NUMBER = re.compile(rb'"content": ?"Question (\d+):')


def main() -> None:
    """``delays REQUESTS RESULTS URL WORKERS REPORT``."""
    requests, results, url, workers, report = sys.argv[1:]
    arrived: list[tuple[Any, float]] = []
    written: list[tuple[bytes, float]] = []
    put, append = ResultWriter.put, AppendFile.append

    def timed_put(self: ResultWriter, outcome: Any) -> None:
        arrived.append((outcome, time.perf_counter()))
        put(self, outcome)

    def timed_append(self: AppendFile, data: bytes) -> None:
        append(self, data)
        written.append((data, time.perf_counter()))

    ResultWriter.put, AppendFile.append = timed_put, timed_append  # type: ignore[method-assign]
    limits = Limits(requests_per_minute=float("inf"), tokens_per_minute=float("inf"))
    settings = {"request_url": url, "api_key": "sk-benchmark", "limits": limits}
    Processor(**settings, max_workers=int(workers)).process_file(requests, results)
    at = {int(number): t for data, t in written for number in _NUMBER.findall(data)}
    delays = sorted(at[outcome.request.number - 1] - t for outcome, t in arrived)
    if len(at) != len(delays):
        raise RuntimeError(f"{len(delays)} outcomes, but {len(at)} lines")
    found = {f"p{p}": delays[min(len(delays) * p // 100, len(delays) - 1)] for p in (50, 99)}
    in_ms = {name: delay_s * 1000 for name, delay_s in (found | {"most": delays[-1]}).items()}
    Path(report).write_text(json.dumps(in_ms), "utf-8")


if __name__ == "__main__":
    main()
