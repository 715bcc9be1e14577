"""Waits as servers write them: Go durations, timestamps, HTTP dates, bare numbers."""

from __future__ import annotations

import email.utils
import math
import re
from datetime import datetime

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: str) -> float | None:
    """Seconds of a Go duration such as ``6m0s`` or ``120ms``; ``None`` for anything else."""
    text = text.replace(" ", "")
    seconds, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            return None
        seconds += float(match[1]) * _UNIT_S[match[2]]
        end = match.end()
    return seconds if end and end == len(text) else None


def wait_s(value: str, now: float) -> float | None:
    """Seconds from ``now`` (Unix time) that a header's ``value`` asks to wait; ``None`` if unclear.

    A number is seconds, above 1e9 a Unix time, above 1e11 one in milliseconds. Also understood are Go
    durations, RFC 3339 timestamps and HTTP dates. A time that has passed is 0.
    """
    value = value.strip()[:100]
    seconds: float | None
    try:
        seconds = float(value)
    except ValueError:
        seconds = duration_s(value)
        if seconds is None:
            when = timestamp(value)
            seconds = max(0.0, when - now) if when is not None else None
    else:
        if seconds > 1e9:
            seconds = max(0.0, (seconds / 1000 if seconds > 1e11 else seconds) - now)
    return seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else None


def timestamp(value: str) -> float | None:
    """Unix time of an RFC 3339 timestamp or an HTTP date; ``None`` for anything else."""
    try:
        return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", value)).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return None
