"""A web service whose views use one processor: one limit holds across all of them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from parallel_processor import Limits, Processor
from parallel_processor.simulator import Simulator, SimulatorOptions

pytestmark = pytest.mark.acceptance

flask = pytest.importorskip("flask")
serving = pytest.importorskip("werkzeug.serving")
requests = pytest.importorskip("requests")

VISITORS, EACH = 50, 4


def make_app(processor: Processor) -> Any:
    """A view that asks for a few embeddings, as a service's own code would."""
    app = flask.Flask(__name__)

    @app.post("/embed")
    def embed() -> Any:
        texts = flask.request.get_json()["texts"]
        outcomes = processor.map({"model": "m", "input": text} for text in texts)
        return {"lengths": [len(outcome.embedding or ()) for outcome in outcomes]}

    return app


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The URL of ``app`` on a real server with a thread for each request."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def visit(url: str, what: dict[str, Any], together: threading.Barrier) -> Any:
    """Ask the service, at the same time as all others."""
    together.wait(60)
    answer = requests.post(url, json=what, timeout=60)
    answer.raise_for_status()
    return answer.json()


def test_fifty_views_at_once_share_one_limit() -> None:
    """All are answered, and all together take as long as one limit demands, however fast the server is."""
    per_minute, burst_s = 6000.0, 0.5
    limits = Limits(
        requests_per_minute=per_minute, tokens_per_minute=math.inf, burst_seconds=burst_s
    )
    together = threading.Barrier(VISITORS)
    with Simulator(SimulatorOptions(latency_s=0.05)) as simulator:
        with Processor(request_url=f"{simulator.url}/v1/embeddings", limits=limits) as processor:
            with served(make_app(processor)) as url, ThreadPoolExecutor(VISITORS) as pool:
                texts = [[f"{n} {k}" for k in range(EACH)] for n in range(VISITORS)]
                began_at = time.monotonic()
                visits = [
                    pool.submit(visit, f"{url}/embed", {"texts": each}, together) for each in texts
                ]
                assert [len(each.result(60)["lengths"]) for each in visits] == [EACH] * VISITORS
                took_s = time.monotonic() - began_at
                stats = processor.stats()
        seen = simulator.stats()
    assert stats.answered == seen["requests_received"] == VISITORS * EACH
    assert stats.rate_limited == 0
    assert stats.runs == 0
    per_s = per_minute / 60
    assert (
        took_s >= (VISITORS * EACH - per_s * burst_s) / per_s
    )  # fifty limits would let all go at once
