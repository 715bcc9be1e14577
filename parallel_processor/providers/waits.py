"""How long a response asks to wait: in its headers, in Google's ``RetryInfo``, or in words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from parallel_processor.models import Response, mappings
from parallel_processor.providers.durations import duration_s, milliseconds_s, timestamp, wait_s
from parallel_processor.providers.errors import read_error, unwrapped

RATE_LIMIT_STATUSES = (429, 529)
_HINT = re.compile(
    r"(?:try again in|retry in|retry after) "
    r"((?:\d+(?:\.\d+)?(?:ms|[smhd]| (?:second|minute|hour|day)s?) ?)+)",
    re.IGNORECASE,
)
_UNIT_WORD = re.compile(r" ([smhd])(?:econd|inute|our|ay)s?")


def retry_after_s(response: Response, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds that the server asks to wait; ``None`` if it doesn't ask.

    Reads ``retry-after-ms``, then ``Retry-After``, then the hints in the body.
    """
    headers = response.headers
    seconds = milliseconds_s(headers.get("retry-after-ms", ""))
    if seconds is None and "retry-after" in headers:
        sent = timestamp(headers.get("date", ""))  # by the server's own clock, if it sends it
        seconds = wait_s(headers["retry-after"], sent if sent is not None else clock())
    if seconds is None and response.status in RATE_LIMIT_STATUSES:
        seconds = _hint_s(response)
    return seconds


def _hint_s(response: Response) -> float | None:
    """Gemini's ``RetryInfo`` or the words "try again in 1.2s" in the message."""
    body = unwrapped(response.data)
    error = body.get("error") if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    for detail in mappings(details):
        delay = detail.get("retryDelay")
        seconds = duration_s(delay) if isinstance(delay, str) else None
        if seconds is not None:
            return seconds
    match = _HINT.search(read_error(response).message)
    return duration_s(_UNIT_WORD.sub(r"\1", match[1].lower())) if match else None
