"""The messages between a run and its worker processes: requests to send, and finished attempts.

A message is a pickled list behind its length. A worker process also sends an empty list now and then,
while it has no attempt to return, and a string that is to be logged. Both ends run the same program in the
same version, and nobody else writes to the pipes. (A fork of the run's process may hold them open.)
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO, NamedTuple

from parallel_processor.models import Attempt, AttemptStatus, Response, Upstream
from parallel_processor.options import Options
from parallel_processor.providers.answers import Expected
from parallel_processor.providers.jsontext import parse

_LEAST_SILENCE_S = 5.0  # a process that parses a huge answer says nothing for a while
_PULSES = 4  # in the longest silence
CANCEL = "cancel"  # in place of a list: cancel what is in flight
SHUTDOWN = "shutdown"  # the same, and end the process
_LENGTH = struct.Struct("<Q")


def longest_silence_s(options: Options) -> float:
    """For how long a worker process may say nothing while it has requests in flight.

    No longer than one exchange may take, so that a frozen process holds nothing up for longer.
    """
    return max(options.request_timeout_s, _LEAST_SILENCE_S)


def pulse_s(options: Options) -> float:
    """How often a worker process that has requests in flight says that it works."""
    return min(longest_silence_s(options) / _PULSES, _LEAST_SILENCE_S)


class WorkItem(NamedTuple):
    """A request to send.

    Attributes:
        number: what the answering message refers to.
        upstream: where to send it.
        payload: the body.
        host: decides how the limit headers of the answer are read.
        expected: decides what is an answer.
    """

    number: int
    upstream: Upstream
    payload: bytes
    host: str
    expected: Expected


def write(file: BinaryIO, message: Any) -> None:
    """Write the whole ``message``; ``OSError`` if there is no reader."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[file.write(view) :]


def read(file: BinaryIO) -> Any:
    """The next message; ``None`` at the end, also for a torn message."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return pickle.loads(data) if len(data) == length else None


def pack(attempt: Attempt) -> Any:
    """``attempt`` as it is sent: of a good answer only the values that are not always the same."""
    response = attempt.response
    if attempt.status is not AttemptStatus.ANSWERED or response is None:
        return attempt
    return (
        *(response.status, dict(response.headers), response.body),
        *(attempt.used_tokens, attempt.output_tokens),
        *(attempt.readings, attempt.sent_at_s, attempt.latency_s),
    )


def unpack(packed: Any, *, parses: bool) -> Attempt:
    """The attempt behind what :func:`pack` made. A good answer is JSON, and is parsed if ``parses``."""
    if isinstance(packed, Attempt):
        return packed
    status, headers, body, used_tokens, output_tokens, readings, sent_at_s, latency_s = packed
    data = parse(body.decode(), strict=False) if parses else None
    return Attempt(
        status=AttemptStatus.ANSWERED,
        response=Response(status=status, headers=headers, body=body, data=data, is_json=True),
        used_tokens=used_tokens,
        output_tokens=output_tokens,
        readings=readings,
        sent_at_s=sent_at_s,
        latency_s=latency_s,
    )
