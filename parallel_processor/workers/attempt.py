"""One attempt: a request goes out once, and what comes back is classified.

This is all that a thread with a connection does, in this process or in a worker process. It knows no
limits, retries or files: ``engine/settlement.py`` decides what an attempt means for those.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from parallel_processor.exceptions import StopCause, TransportError
from parallel_processor.models import (
    Attempt,
    AttemptStatus,
    LimitReading,
    Request,
    Response,
    Upstream,
)
from parallel_processor.providers.answers import UNKNOWN, Expected
from parallel_processor.providers.jsontext import parse
from parallel_processor.providers.limit_headers import IN_EVERY_LIMIT, read_limits
from parallel_processor.providers.responses import classify
from parallel_processor.transport.http1 import Headers

if TYPE_CHECKING:
    from parallel_processor.transport.session import Transport

_FATAL = AttemptStatus.FATAL  # a look at an enum takes longer than a global
_MOST_KEYS = 3  # of one attempt: each may expire while the request waits for its answer


class AttemptRunner:
    """Sends requests. Any thread may call it; each thread has a session of its own."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._redact = transport.credentials.redactor()

    def send_once(
        self, request: Request, upstream: Upstream, host: str, expected: Expected = UNKNOWN
    ) -> Attempt:
        """Send ``request`` to ``upstream`` once.

        ``host`` decides how the limit headers of the answer are read, ``expected`` what is an answer. If
        the key has expired, it is sent again with a new one: nothing was processed, so that is one attempt.
        """
        attempt = self._send(request, upstream, host, expected)
        for _ in range(_MOST_KEYS):
            if attempt.status is not _FATAL or attempt.stop_cause is not StopCause.KEY:
                break
            fault = self._transport.renewal_fault()
            if fault is not None:
                error = f"{attempt.error}; {fault}" if fault else attempt.error
                return replace(attempt, error=error)
            attempt = self._send(request, upstream, host, expected)
        return attempt

    def _send(self, request: Request, upstream: Upstream, host: str, expected: Expected) -> Attempt:
        began_at_s = time.monotonic()
        try:
            response = self._transport.send(request, upstream, expected.url)
        except TransportError as error:
            return self._broken(error, began_at_s)
        ended_at_s = time.monotonic()
        sent_at_s = self._transport.sending_since_s
        latency_s = ended_at_s - max(began_at_s, sent_at_s)
        headers = response.headers
        if isinstance(headers, Headers) and not headers.mention(IN_EVERY_LIMIT):
            readings: tuple[LimitReading, ...] = ()
        else:
            readings = read_limits(headers, host)
        if response.status < 300:
            attempt = classify(response, readings, sent_at_s, latency_s, expected)
            if attempt.status is AttemptStatus.ANSWERED:  # the user's own data: it stays as it came
                return attempt
        clean = self._without_keys(response)
        attempt = classify(clean, readings, sent_at_s, latency_s, expected)
        return replace(attempt, error=self._redact(attempt.error)) if attempt.error else attempt

    def _broken(self, error: TransportError, began_at_s: float) -> Attempt:
        """The attempt whose exchange ended with ``error``."""
        latency_s = time.monotonic() - max(began_at_s, self._transport.sending_since_s)
        if error.is_cancelled:  # by this run: whatever the error says, the server did nothing wrong
            attempt = Attempt(status=AttemptStatus.STOPPED)
        else:
            status = AttemptStatus.RETRY if error.retryable else AttemptStatus.FAILED
            if error.unreachable:
                status = AttemptStatus.UNREACHABLE
            if error.is_setup:
                status = AttemptStatus.FATAL
            attempt = Attempt(
                status=status,
                kind=error.kind,
                error=self._redact(str(error)),
                stop_cause=StopCause.SETUP if error.is_setup else StopCause.NOTHING,
            )
        return replace(attempt, sent_at_s=self._transport.sending_since_s, latency_s=latency_s)

    def _without_keys(self, response: Response) -> Response:
        """The response of a failure. Keys are removed before a text is shortened, which may tear one."""
        text = self._redact(response.body.decode("utf-8", "replace"))
        headers = {name.lower(): self._redact(value) for name, value in response.headers.items()}
        try:
            data, is_json = parse(text, strict=False), True
        except ValueError:
            data, is_json = None, False
        return Response(
            status=response.status, headers=headers, body=text.encode(), data=data, is_json=is_json
        )
