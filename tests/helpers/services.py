"""A processor for a test's server, requests for it, and a server that holds some of its answers back."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from raw_server import RawServer, Visit

from parallel_processor import Limits, Processor, RetryPolicy

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
HASTE = RetryPolicy(backoff_initial_s=0.0, pause_s=0.0)


@contextmanager
def processor(url: str, path: str = "/v1/embeddings", **settings: Any) -> Iterator[Processor]:
    """A processor for a server, without limits of its own."""
    options: dict[str, Any] = {"limits": NO_LIMITS, "retry": HASTE} | settings
    with Processor(request_url=url + path, **options) as made:
        yield made


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """So many different requests."""
    return [{"model": "m", "input": f"text {number}"} for number in range(first, first + count)]


def threads() -> list[str]:
    """The package's threads."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("parallel-processor")]


def in_background(work: Callable[[], object]) -> Callable[[], Any]:
    """Do ``work`` in a thread; the result waits until it is done, and returns or raises what it did."""
    future: Future[object] = Future()

    def guarded() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=guarded, daemon=True).start()
    return lambda: future.result(40)


class Gate:
    """A server that answers all but the requests with ``held`` in them, until it is opened."""

    def __init__(self, held: bytes) -> None:
        self.held = held
        self.opened = threading.Event()
        self.came = threading.Event()
        self.answers = threading.Semaphore(0)

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            if self.held in visit.body:
                self.came.set()
                self.opened.wait(60)
            visit.answer()
            self.answers.release()


@contextmanager
def gated(held: bytes) -> Iterator[tuple[RawServer, Gate]]:
    """A server with a gate, which is open at the end whatever happens."""
    gate = Gate(held)
    with RawServer(gate) as server:
        try:
            yield server, gate
        finally:
            gate.opened.set()
