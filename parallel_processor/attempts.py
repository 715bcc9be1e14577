"""One attempt: a request goes out, and what comes back is judged. Nothing here waits or remembers.

That is all that a thread does which holds a connection, wherever it runs; what an end means for the
limits, the request and the run is decided by ``worker.py``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from parallel_processor.answers import judge
from parallel_processor.exceptions import TransportError
from parallel_processor.jsontext import parse
from parallel_processor.models import Attempt, LimitReading, Reply, Request, Verdict
from parallel_processor.options import Options
from parallel_processor.ratelimits import read_limits
from parallel_processor.redact import Redactor

if TYPE_CHECKING:
    from parallel_processor.transport import Transport


class Ended(NamedTuple):
    """How an attempt ended, what its answer's headers say of limits, and when it went out.

    ``sent_at_s`` is on the monotonic clock, which all processes of a machine share; 0 if nobody knows.
    ``latency_s`` is how long the exchange took, from the sending on where that is known.
    """

    attempt: Attempt
    readings: Sequence[LimitReading] = ()
    sent_at_s: float = 0.0
    latency_s: float | None = None


class Attempts:
    """Makes attempts. Any thread may call it, and has a session of its own."""

    def __init__(self, options: Options, transport: Transport) -> None:
        self._transport = transport
        self._redact = Redactor(options.api_key)

    def make(self, request: Request, host: str) -> Ended:
        """Send ``request`` once; ``host`` is what the answer's headers are read as."""
        readings: Sequence[LimitReading] = ()
        began_at_s = time.monotonic()
        try:
            reply = self._transport.send(request)
            ended_at_s = time.monotonic()
            readings = read_limits(reply.headers, host)
            attempt = self._judge(reply)
        except TransportError as error:
            ended_at_s = time.monotonic()
            attempt = _broken(error)
        if attempt.error:
            attempt = replace(attempt, error=self._redact(attempt.error))
        sent_at_s = self._transport.sending_since_s
        return Ended(attempt, readings, sent_at_s, ended_at_s - max(began_at_s, sent_at_s))

    def _judge(self, reply: Reply) -> Attempt:
        """What ``reply`` means; of one that is no good answer, keys are cut out before it is read."""
        attempt = judge(reply)
        return attempt if attempt.verdict is Verdict.ANSWERED else judge(self._without_keys(reply))

    def _without_keys(self, reply: Reply) -> Reply:
        text = self._redact(reply.body.decode("utf-8", "replace"))
        headers = {name.lower(): self._redact(value) for name, value in reply.headers.items()}
        try:
            data, is_json = parse(text, strict=False), True
        except ValueError:
            data, is_json = None, False
        return Reply(
            status=reply.status, headers=headers, body=text.encode(), data=data, is_json=is_json
        )


def _broken(error: TransportError) -> Attempt:
    if error.is_cut:  # no fault of the server's, whatever attempt it was
        return Attempt(verdict=Verdict.STOPPED)
    verdict = Verdict.RETRY if error.retryable else Verdict.FAILED
    if error.unreachable:
        verdict = Verdict.UNREACHABLE
    return Attempt(verdict=verdict, kind=error.kind, error=str(error))
