"""How long a response asks to wait: in its headers, in members of its error, or in words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parallel_processor.contents import mappings
from parallel_processor.models import Response
from parallel_processor.providers.durations import (
    duration_s,
    milliseconds_s,
    number,
    timestamp,
    wait_s,
)
from parallel_processor.providers.errors import ErrorInfo, read_error, unquoted
from parallel_processor.providers.texts import Pattern

RATE_LIMIT_STATUSES = (429, 529)
WAIT_STATUSES = (402, 403, 503)
"""An answer with one of these is a rate limit if it says how long to wait."""
_SPOKEN_STATUSES = (*RATE_LIMIT_STATUSES, 403, 503)

_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")
_DELAYS = ("retry_after", "retryAfter", "retry_after_seconds", "retry_after_s")
_NO_WAITS = ("max_parallel_requests",)  # LiteLLM says 60 s, whenever a place becomes free
_LONGEST_S = 366 * 86400.0

_UNITS = {
    "ms": r"ms|msecs?|milliseconds?|毫秒",
    "s": r"s|secs?|seconds?|秒钟?",
    "m": r"m|mins?|minutes?|分钟?",
    "h": r"h|hrs?|hours?|小时|个小时",
    "d": r"d|days?|天|日",
}
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = Pattern(
    r"(?<![\d.,])(\d{1,12}(?:[.,]\d{1,15})?)[ -]?(?:"
    + "|".join(f"(?P<{name}>{unit})" for name, unit in _UNITS.items())
    + r")(?![a-z])",
    re.IGNORECASE,
)
_AMOUNT = r"\d{1,12}(?:[.,]\d{1,15})?[ -]?(?:" + "|".join(_UNITS.values()) + r")(?![a-z])"
_SPAN = rf"{_AMOUNT}(?:(?:,? and |, ?| )?{_AMOUNT}){{0,4}}"
_CLOCK = r"(?:\d{1,4}\.)?\d{1,3}:\d{2}:\d{2}(?:\.\d+)?"  # of .NET: days.hours:minutes:seconds
_HINT = Pattern(
    r"(?:\b(?:try(?: it)? again|retry(?:ing)?|re-?send|wait|come back|available(?: again)?|resets?(?: in)?"
    r"|replenish(?:ed|es)?|refill(?:ed|s)?|renew(?:ed|s)?|refresh(?:ed|es)?|unblocked|lifted|back ?off"
    r"|cool(?:ing)?[ -]?down|request(?: again)?|allowed)\b[^.;!?0-9\n]{0,40}?)"
    rf"\b({_CLOCK}|{_SPAN}|PT\d{{1,9}}S)"
    rf"|\bin ({_SPAN}),? (?:you )?(?:may |can )?(?:re)?try"
    rf"|(?<![\d.,])({_SPAN}) ?(?:之后|以后|后|再)"
    rf"|等待? ?({_SPAN})"
    rf"|\bretry[-_ ]after\b['\"]?\s*[:=]\s*['\"]?({_SPAN}|\d{{1,9}}(?:\.\d{{1,9}})?\b)"
    rf"|\bresets?_in\b['\"]?\s*[:=]\s*['\"]?({_SPAN})",
    re.IGNORECASE,
)


def retry_after_s(response: Response, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds that the server asks to wait; ``None`` if it doesn't ask."""
    return asked_wait_s(response, response.status, read_error(response), clock)


def asked_wait_s(
    response: Response, http_status: int, info: ErrorInfo, clock: Callable[[], float] = time.time
) -> float | None:
    """As :func:`retry_after_s`, for a response that means ``http_status``.

    Reads ``retry-after-ms``, then ``Retry-After``, then, where a wait is to be expected, the hints in
    the body.
    """
    headers = response.headers
    if headers.get("rate_limit_type", "").lower() in _NO_WAITS:
        return None
    sent = timestamp(headers["date"]) if "date" in headers else None
    now = clock() if sent is None else sent  # by the server's own clock, if it sends it
    for name in _MILLISECONDS:
        if (seconds := milliseconds_s(headers.get(name, ""))) is not None:
            return seconds
    if "retry-after" in headers:
        seconds = _header_s(headers["retry-after"], now)
        if seconds is not None:
            return seconds
    if http_status not in _SPOKEN_STATUSES:
        return None
    hints = (*_members_s(info, now), spoken_s(info.text), _ietf_s(headers, http_status))
    return next((hint for hint in hints if hint is not None), None)


def loading_s(info: ErrorInfo) -> float | None:
    """The seconds that a server says it needs to load a model; ``None`` if it doesn't say."""
    estimates = (_seconds_of(level.fields.get("estimated_time")) for level in info.levels)
    return next((seconds for seconds in estimates if seconds is not None), None)


def spoken_s(text: str) -> float | None:
    """The wait that a text asks for in words, such as "try again in 1.2s"; ``None`` for none."""
    found = _HINT.search(unquoted(text))
    if found is None:
        return None
    span = next(group for group in found.groups() if group is not None)
    seconds = _clock_s(span) if ":" in span else _span_s(span)
    return seconds if seconds is not None and seconds < _LONGEST_S else None


def _span_s(span: str) -> float | None:
    parts = list(_PART.finditer(span.removeprefix("PT").lower()))
    if not parts:
        return number(span) if number(span) >= 0 else None
    return sum(number(part[1].replace(",", ".")) * _UNIT_S[part.lastgroup or "s"] for part in parts)


def _clock_s(span: str) -> float | None:
    """Seconds of ``00:00:20`` and ``5.03:23:11``."""
    days, dot, rest = span.partition(".") if span.find(".") < span.find(":") else ("", "", span)
    hours, minutes, seconds = (dot and rest or span).split(":")
    total = number(hours) * 3600 + number(minutes) * 60 + number(seconds)
    return total + (number(days) * 86400 if dot else 0.0)


def _header_s(value: str, now: float) -> float | None:
    """Seconds of a ``Retry-After``. Two of them, of a server and of a gateway, come as a list."""
    if (seconds := wait_s(value, now)) is not None:
        return seconds
    values = [part.strip() for part in value.split(",")]
    if len(values) % 2 == 0 and values[: len(values) // 2] == values[len(values) // 2 :]:
        return wait_s(", ".join(values[: len(values) // 2]), now)
    found = [seconds for part in values if (seconds := wait_s(part, now)) is not None]
    return (
        max(found) if len(found) == len(values) else _span_s(value) if _PART.match(value) else None
    )


def _members_s(info: ErrorInfo, now: float) -> Iterable[float | None]:
    """Google's ``RetryInfo``, and members with other names, the innermost error's first."""
    for level in reversed(info.levels):
        fields = level.fields
        for holder in (*mappings(fields.get("details")), fields, *_inner(fields)):
            delay = holder.get("retryDelay")
            yield duration_s(delay) if isinstance(delay, str) else None
            yield from (_seconds_of(holder[key]) for key in _DELAYS if key in holder)
            milliseconds = holder.get("retry_after_ms")
            if isinstance(milliseconds, (int, float)) and not isinstance(milliseconds, bool):
                yield milliseconds_s(str(milliseconds))
            yield _reset_s(holder.get("headers"), now)


def _inner(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return mappings([fields.get("metadata"), fields.get("details")])


def _reset_s(headers: Any, now: float) -> float | None:
    """The wait in the headers that OpenRouter puts into its error; its reset is in milliseconds."""
    if not isinstance(headers, Mapping):
        return None
    names = {str(name).lower(): value for name, value in headers.items()}
    seconds = _seconds_of(names.get("retry-after"))
    if seconds is not None:
        return seconds
    reset = names.get("x-ratelimit-reset")
    return (
        wait_s(str(reset), now)
        if isinstance(reset, (str, int)) and number(str(reset)) > 1e11
        else None
    )


def _ietf_s(headers: Mapping[str, str], http_status: int) -> float | None:
    """Seconds to the end of the window of the IETF's header fields, if nothing is left in it."""
    if (
        http_status not in RATE_LIMIT_STATUSES
        or number(headers.get("ratelimit-remaining", "")) != 0
    ):
        return None
    seconds = number(headers.get("ratelimit-reset", ""))
    return seconds if 0 <= seconds <= 1e6 else None


def _seconds_of(value: Any) -> float | None:
    """Seconds of a member: a number, or a text with a unit."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value)[:100]
    seconds = number(text)
    if not 0 <= seconds < _LONGEST_S:
        return duration_s(text)
    return seconds
