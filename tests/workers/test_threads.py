"""What a worker thread keeps of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus, Response, Upstream
from parallel_processor.options import Options
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.transport.session import LONG_BYTES
from parallel_processor.workers.threads import WorkerThreads


@pytest.mark.parametrize(
    ("size", "parses", "is_kept"),
    [(LONG_BYTES + 1, False, False), (LONG_BYTES + 1, True, True), (10, False, True)],
)
def test_the_value_of_a_long_answer_is_kept_only_where_it_is_used(
    size: int, parses: bool, is_kept: bool
) -> None:
    """A run that writes the text of answers forgets values that take much memory."""
    response = Response(status=200, headers={}, body=b"x" * size, data=[1], is_json=True)
    answered = Attempt(status=AttemptStatus.ANSWERED, response=response)
    pool = WorkerThreads(
        Options(), 1, settle=lambda *_: None, stop=StopSignal(), parses_answers=parses
    )
    stub: Any = SimpleNamespace(send_once=lambda *_: answered)
    pool._attempts = stub
    pending = SimpleNamespace(
        request=made_request({"input": "x"}, 1),
        bucket=SimpleNamespace(host="", upstream=Upstream()),
    )
    admitted: Any = SimpleNamespace(pending=pending)
    attempt = pool._send(admitted)
    pool.close()
    assert isinstance(attempt, Attempt) and attempt.response is not None
    assert attempt.response.data == ([1] if is_kept else None)
    assert attempt.response.body == response.body
