"""Workers on Ray that know no limit: what one of them hears from the server holds for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_jobs import parts, write_requests
from commands import run
from services import rows

from parallel_processor.simulator import Simulator, SimulatorOptions

pytest.importorskip("ray")
PER_S = 20
REQUESTS = 120


def test_workers_find_a_limit_in_headers_and_keep_it_together(tmp_path: Path) -> None:
    """The server lets a minute's worth out at once, so only the workers themselves hold it."""
    write_requests(tmp_path, rows(REQUESTS))
    options = SimulatorOptions(requests_per_minute=60 * PER_S, latency_s=0.1)
    with Simulator(options) as server:
        ended = run(
            *("run-on-ray", "--requests_filepath", tmp_path / "in.jsonl"),
            *("--save_filepath", tmp_path / "out", "--request_url", f"{server.url}/v1/embeddings"),
            *("--max_requests_per_minute", "auto", "--max_tokens_per_minute", "auto"),
            *("--num_workers", 3, "--block_bytes", 500, "--no_progress"),
        )
        (seconds,) = server.timeline().values()
    assert ended.returncode == 0, ended.stderr
    assert f"{60 * PER_S:,} requests/min found" in ended.stderr
    assert [record[0] for record in parts(tmp_path)] == rows(REQUESTS)
    admitted = [second[0] for second in seconds]
    busiest = max(sum(admitted[at : at + 3]) for at in range(len(admitted)))
    assert busiest <= 4 * PER_S  # the burst of half a second, and leases that are used late
