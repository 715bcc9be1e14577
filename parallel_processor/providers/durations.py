"""Parses waits as servers write them: Go durations, timestamps, HTTP dates, bare numbers."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone

from parallel_processor.runtime.forks import FORK_LOCK

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}

_LONGEST_S = 366 * 86400.0  # a time more than a year away is no wait


def duration_s(text: str) -> float | None:
    """Seconds of a Go duration such as ``6m0s`` or ``120ms``; ``None`` for anything else."""
    seconds, end = 0.0, 0
    text = text.rstrip()
    while match := _DURATION.match(text, end):
        seconds += float(match[1]) * _UNIT_S[match[2]]
        end = match.end()
    return seconds if end and end == len(text) and math.isfinite(seconds) else None


def milliseconds_s(value: str) -> float | None:
    """Seconds of a header that holds a bare number of milliseconds; ``None`` for anything else."""
    seconds = number(value) / 1000
    return seconds if 0 <= seconds < math.inf else None


def number(text: str) -> float:
    """The number in ``text``; NaN if there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def wait_s(value: str, now: float) -> float | None:
    """Seconds that a header's ``value`` asks to wait from ``now`` (Unix time); ``None`` if unclear.

    * A number is in seconds; above 1e9 it is a Unix time, above 1e11 one in milliseconds.
    * Go durations, RFC 3339 timestamps and HTTP dates are understood as well.
    * A time in the past gives 0.
    """
    bare = number(value)
    if bare <= 1e9:
        return bare if bare >= 0 else None
    if (seconds := duration_s(value)) is not None:
        return seconds
    when = timestamp(value) if math.isnan(bare) else bare / (1000 if bare > 1e11 else 1)
    if when is None or not math.isfinite(when) or when - now > _LONGEST_S:
        return None
    return max(0.0, when - now)


def timestamp(value: str) -> float | None:
    """Unix time of an RFC 3339 timestamp or an HTTP date, in UTC if it names no zone; else ``None``."""
    value = value[:100].strip()
    for read in (_from_rfc_3339, _from_http_date):
        try:
            when = read(value)
            return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
        except (TypeError, ValueError, IndexError, OverflowError):
            pass
    return None


def _from_rfc_3339(value: str) -> datetime:
    return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", value))


def _from_http_date(value: str) -> datetime:
    with FORK_LOCK:
        import email.utils  # slow to import, and few servers send a date

    return email.utils.parsedate_to_datetime(value)
