"""What a run and its worker processes tell each other, over real pipes."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest

from parallel_processor.models import Attempt, AttemptStatus, LimitReading, Rejection, Response
from parallel_processor.workers import pipe

ANSWER = Attempt(
    status=AttemptStatus.ANSWERED,
    response=Response(
        status=200,
        headers={"x": "1"},
        body=b'{"a": [1, "\xc3\xbc"]}',
        data={"a": [1, "ü"]},
        is_json=True,
    ),
    used_tokens=7,
    output_tokens=3,
    readings=[
        LimitReading(name="requests", limit=60.0, remaining=59.0, reset_s=1.0, window_s=60.0)
    ],
    sent_at_s=1000.5,
    latency_s=0.25,
)
REJECTED = Attempt(
    status=AttemptStatus.RATE_LIMITED,
    response=Response(status=429, headers={"retry-after": "2"}, body=b"no"),
    kind="HTTP 429",
    error="HTTP 429: no",
    retry_after_s=2.0,
    rejection=Rejection(kind="tokens", has_retry_after=True),
)


@pytest.mark.parametrize("attempt", [ANSWER, REJECTED, Attempt(status=AttemptStatus.STOPPED)])
def test_an_attempt_arrives_as_it_was(attempt: Attempt) -> None:
    """Answers and failures, with all that is known of them."""
    file = io.BytesIO()
    pipe.write(file, pipe.pack(attempt))
    file.seek(0)
    assert pipe.unpack(pipe.read(file), parses=True) == attempt


def test_a_value_that_nobody_reads_is_not_made() -> None:
    """A results file needs the answer's text alone."""
    attempt = pipe.unpack(pipe.pack(ANSWER), parses=False)
    assert attempt.response is not None
    assert (attempt.response.data, attempt.response.is_json) == (None, True)
    assert ANSWER.response is not None
    assert attempt.response.body == ANSWER.response.body


def test_long_messages_pass_a_pipe_whole() -> None:
    """More than a pipe holds is written and read to its end, and then comes the end."""
    reader, writer = os.pipe()
    sent: list[Any] = [[b"x" * size] for size in (0, 1, 5_000_000, 70_000)]

    def write() -> None:
        with os.fdopen(writer, "wb", 0) as file:
            for message in sent:
                pipe.write(file, message)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        received = [pipe.read(file) for _ in sent]
        assert pipe.read(file) is None
    thread.join()
    assert received == sent


@pytest.mark.parametrize("length", [0, 3, 8, 20])
def test_a_torn_message_is_the_end(length: int) -> None:
    """A process that was killed amid a message has said nothing."""
    file = io.BytesIO()
    pipe.write(file, ["something", 1, 2, 3])
    assert pipe.read(io.BytesIO(file.getvalue()[:length])) is None


def test_nobody_to_read_is_an_error() -> None:
    """The other end is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", 0) as file, pytest.raises(BrokenPipeError):
        pipe.write(file, ["something"])
