"""The figures for Prometheus, read from a real scrape."""

from __future__ import annotations

import math
import re
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from commands import run, write_lines
from services import gated, processor, rows

from parallel_processor import ConfigurationError, serve_metrics
from parallel_processor.simulator import Simulator, SimulatorOptions

pytest.importorskip("prometheus_client")


def scrape(port: int) -> dict[str, float]:
    """The values by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("parallel_processor_"): float(value) for name, _, value in lines}


def test_a_scrape_has_the_numbers_of_stats() -> None:
    """While a run is under way, and at its end."""
    with gated(b"text 2") as (server, gate), processor(server.url) as made:
        with serve_metrics(made, 0) as port:
            outcomes = made.imap_unordered(rows(3))
            next(outcomes)
            next(outcomes)
            assert gate.came.wait(60)
            during = scrape(port)
            gate.opened.set()
            assert len(list(outcomes)) == 1
            after, stats = scrape(port), made.stats()
    assert during["runs"] == 1 and during["attempts_total"] == 3
    assert during["in_flight"] >= 1
    assert after["answered_total"] == stats.answered == 3
    assert after["runs"] == after["in_flight"] == 0
    assert after['limit_per_minute{kind="requests"}'] == math.inf
    assert after['latency_seconds{quantile="0.95"}'] == stats.latency_s[95]


def test_a_scrape_tells_the_tiers_apart() -> None:
    """By model and tier, and nothing of a model without tiers."""
    options = SimulatorOptions(tier_grants={"flex": 0.0})
    with Simulator(options) as simulator:
        tiers: Any = {"service_tiers": ("flex", "default")}
        with processor(simulator.url, **tiers) as made, serve_metrics(made, 0) as port:
            made.map(rows(2))
            found = scrape(port)
        with processor(simulator.url) as made, serve_metrics(made, 0) as port:
            made.map(rows(2))
            assert not any(name.startswith("tier_") for name in scrape(port))
    flex, default = '{model="m",tier="flex"}', '{model="m",tier="default"}'
    assert found[f"tier_moved_on_total{flex}"] == found[f"tier_admitted_total{flex}"] == 2
    assert found[f"tier_answered_total{default}"] == 2


def test_a_scrape_has_the_money() -> None:
    """By model and tier; nothing without prices."""
    prices = {"m": {"input": 1.0, "output": 0}}
    with Simulator() as server:
        with processor(server.url, prices=prices) as made, serve_metrics(made, 0) as port:
            made.map(rows(2))
            found = scrape(port)
            assert found['cost_dollars_total{model="m",tier=""}'] == made.stats().cost
        with processor(server.url) as made, serve_metrics(made, 0) as port:
            made.map(rows(2))
            assert not any(name.startswith("cost_dollars") for name in scrape(port))


def test_nothing_is_left_of_the_server() -> None:
    """Its thread and its port are free when the block is left."""
    with Simulator() as simulator, processor(simulator.url) as made:
        before = set(threading.enumerate())
        with serve_metrics(made, 0) as port:
            scrape(port)
        assert {thread for thread in threading.enumerate() if thread not in before} == set()
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_port_that_is_taken_is_an_error() -> None:
    """It names the address."""
    with processor("http://127.0.0.1:9") as made, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"),
            serve_metrics(made, port),
        ):
            raise AssertionError("nothing can be served there")


def test_the_command_serves_metrics(tmp_path: Path) -> None:
    """It says where, and the run is as ever; a word that is no port is bad usage."""
    source = write_lines(tmp_path / "in.jsonl", rows(5))
    with Simulator() as simulator:
        url = ("--request_url", f"{simulator.url}/v1/embeddings")
        done = run("--requests_filepath", source, *url, "--metrics_port", "0")
    assert done.returncode == 0, done.stderr
    assert re.search(r"metrics are at http://127\.0\.0\.1:\d+/metrics", done.stderr)
    done = run("--requests_filepath", source, *url, "--metrics_port", "many")
    assert done.returncode == 2 and "'many' is not a port" in done.stderr
