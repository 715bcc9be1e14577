"""Requests that are submitted one by one: what their futures tell at an end that isn't the usual one."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from runs import URL, ok, sessions_of
from services import in_background, threads

from parallel_processor import Outcome, Processor, RunStoppedError
from parallel_processor.models import AttemptStatus
from parallel_processor.providers import responses
from parallel_processor.runtime.threads import InterruptSafeThread


def body_of(number: int, model: str = "m") -> dict[str, Any]:
    """A request."""
    return {"n": number, "model": model}


def test_a_processor_may_be_left_within_a_callback() -> None:
    """The callback can't wait for its own run, so leaving doesn't wait: nothing hangs."""
    left = threading.Event()
    processor = Processor(request_url=URL, session_factory=sessions_of(ok))

    def leave(future: Future[Outcome]) -> None:
        processor.__exit__(None, None, None)
        left.set()

    future = processor.submit(body_of(1))
    future.add_done_callback(leave)
    assert future.result(20).ok and left.wait(20)
    in_background(processor._account.submissions.close)()
    assert threads() == []


def test_a_future_of_a_model_that_is_left_out_has_its_reason_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It doesn't wait for the run's end, and the other models' futures have their outcomes."""
    status = responses.classify

    def classify(response: Any, *given: Any) -> Any:
        attempt = status(response, *given)
        if response.status != 429:
            return attempt
        fields = {"status": AttemptStatus.MODEL_SPENT, "kind": "HTTP 429", "error": "spent"}
        return type(attempt)(response=response, **fields)

    monkeypatch.setattr("parallel_processor.workers.attempt.classify", classify)

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        return (429, {"error": {"message": "no"}}) if body["model"] == "spent" else ok(body)

    with Processor(request_url=URL, session_factory=sessions_of(answer)) as processor:
        for number in range(3):  # the first one is sent; those after it aren't
            with pytest.raises(RunStoppedError, match="for spent are left unanswered: spent"):
                processor.submit(body_of(number, "spent")).result(20)
            assert processor.submit(body_of(number)).result(20).ok
        assert processor.stats().attempts == 4
    assert threads() == []


@pytest.mark.parametrize("way", ["close", "_join"])
def test_whoever_waits_for_the_thread_waits_for_its_callbacks(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it feeds nothing any more: at the end of the block, and at the interpreter's."""
    entered, may_end = threading.Event(), threading.Event()
    told: list[object] = []
    join = InterruptSafeThread.join

    def let_go_and_join(thread: InterruptSafeThread, timeout_s: float | None = None) -> None:
        if entered.is_set():
            may_end.set()
        join(thread, timeout_s)

    def tell(future: Future[Outcome]) -> None:
        entered.set()
        may_end.wait(20)
        told.append(type(future.exception()))

    def refuse(body: dict[str, Any]) -> tuple[int, Any]:
        return 401, {"error": {"message": "a wrong key"}}

    monkeypatch.setattr(InterruptSafeThread, "join", let_go_and_join)
    processor = Processor(request_url=URL, session_factory=sessions_of(refuse))
    processor.submit(body_of(1)).add_done_callback(tell)
    assert entered.wait(20)
    getattr(processor._account.submissions, way)()
    assert told == [RunStoppedError]
    may_end.set()
    processor._account.submissions.close()
    assert threads() == []


AT_THE_END = """
import logging, socket
from parallel_processor import Processor
logging.basicConfig()
server = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{server.getsockname()[1]}/v1/embeddings"
future = Processor(request_url=url).submit({"model": "m", "input": "x"})
future.add_done_callback(lambda ended: print(type(ended.exception()).__name__, flush=True))
connection, _ = server.accept()  # and no answer
"""


def test_futures_that_are_pending_at_the_interpreters_end_are_told() -> None:
    """A warning says how many are lost, and each has an exception."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=50
    )
    assert "the interpreter ends before all submitted requests have an outcome (1 " in done.stderr
    assert done.stdout == "RunStoppedError\n"
