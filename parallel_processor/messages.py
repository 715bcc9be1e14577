"""What a run and its worker processes tell each other: requests to be sent, and how attempts ended.

A message is a list of such, pickled, behind its length. Both ends are of one program and one version,
and nobody else writes to the pipes; a fork of the run's process may hold them.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO, NamedTuple

from parallel_processor.jsontext import parse
from parallel_processor.models import Attempt, Reply, Verdict

CUT = "cut"  # in the place of a list: give up what is under way
BYE = "bye"  # the same, and end
_LENGTH = struct.Struct("<Q")


class Errand(NamedTuple):
    """A request to be sent; ``number`` is what the answer to this message refers to."""

    number: int
    url: str | None
    payload: bytes
    host: str


def write(file: BinaryIO, message: Any) -> None:
    """Write ``message`` in one go; ``OSError`` if nobody reads."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[file.write(view) :]


def read(file: BinaryIO) -> Any:
    """The next message; ``None`` at the end, torn ones included."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = file.read(length)
    return pickle.loads(data) if len(data) == length else None


def pack(attempt: Attempt) -> Any:
    """``attempt`` as it travels: an answer as the few things that differ from one to the next."""
    reply = attempt.reply
    if attempt.verdict is not Verdict.ANSWERED or reply is None:
        return attempt
    headers = dict(reply.headers)
    return reply.status, headers, reply.body, attempt.used_tokens, attempt.output_tokens


def unpack(packed: Any, *, parses: bool) -> Attempt:
    """What :func:`pack` packed; the answer's text was found to be JSON, and is read if ``parses``."""
    if isinstance(packed, Attempt):
        return packed
    status, headers, body, used_tokens, output_tokens = packed
    data = parse(body.decode(), strict=False) if parses else None
    reply = Reply(status=status, headers=headers, body=body, data=data, is_json=True)
    return Attempt(
        verdict=Verdict.ANSWERED,
        reply=reply,
        used_tokens=used_tokens,
        output_tokens=output_tokens,
    )
