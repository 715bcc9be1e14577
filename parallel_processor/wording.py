"""Figures and causes in words, as the report of a run shows them."""

from __future__ import annotations

import math
import time

from parallel_processor.figures import LimitReport
from parallel_processor.progress import HELD_BY

_MILLION = 1e6
_CAUSES = {
    "max_workers": "max_workers",
    "look-ahead": "other models' requests ahead",
    "answers": "the last answers",
}


def count(number: float) -> str:
    """``number`` with thousands separators, a small one with what it has behind the point."""
    if not math.isfinite(number):
        return "no limit"
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"


def tick_text(number: float) -> str:
    """``number`` as short as it can be written exactly."""
    if abs(number) >= 10 * _MILLION:
        return f"{number / _MILLION:,.10g} M"
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:.10g}"


def clock_text(seconds: float) -> str:
    """``seconds`` as 1:02:03."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}"


def latency_text(seconds: float | None) -> str:
    """``seconds`` as 1.23 s, or 0:01:40 from 100 s on."""
    if seconds is None:
        return ""
    return clock_text(seconds) if seconds >= 100 else f"{seconds:.3g} s"


def share_text(share: float) -> str:
    """``share`` as 84 %."""
    if math.isnan(share):
        return "?"
    return f"{share * 100:.0f} %" if share >= 0.01 or share <= 0 else "< 1 %"


def moment_text(when: float) -> str:
    """``when``, in seconds since 1970, by the clock on the wall and in UTC."""
    here, utc = time.localtime(when), time.gmtime(when)
    if here.tm_gmtoff == 0:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", utc)
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", here) + time.strftime(" (%H:%M:%S UTC)", utc)


def kind_text(name: str) -> str:
    """What a limit counts: ``input_tokens`` as input tokens."""
    return name.replace("_", " ")


def cause_text(cause: str) -> str:
    """What a run waits for."""
    return _CAUSES.get(cause) or HELD_BY.get(cause, cause)


def window_text(window_s: float) -> str:
    """The time that a limit is for, as what stands behind it."""
    if window_s == 60.0:
        return "min"
    whole = {1.0: "s", 3600.0: "h", 86400.0: "day"}
    return whole.get(window_s, f"{window_s:,g} s")


def number_of(limit: LimitReport) -> float:
    """What the limit comes to in its window: the least of what is known of it."""
    numbers = (limit.configured, limit.found, limit.tried_per_minute)
    return min((number for number in numbers if number is not None), default=math.inf)
