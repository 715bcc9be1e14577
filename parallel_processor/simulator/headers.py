"""The headers in which the providers tell their limits, each in its own way.

`limit` is always that of the whole minute (or day), also where shorter windows are enforced;
`remaining` is what would be admitted now, and `reset` how long until that is the most it can be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from parallel_processor.simulator.quotas import QuotaLevel

_ORGANISATION_FACTOR = 10  # how much larger an organisation's limit is than its project's
_MISTRAL_NAMES = {"requests": "req-minute", "tokens": "tokens-minute"}
_LITELLM_NAMES = {"requests": "rpm", "tokens": "tpm"}
_TOGETHER_NAMES = {"requests": "rate", "tokens": "token"}
_FIREWORKS_NAMES = {"input-tokens": "prompt", "output-tokens": "generated"}
_LITELLM_WAIT_S = 60  # whatever is left of the minute
_ANTHROPIC_NAMES = ("requests", "tokens", "input-tokens", "output-tokens")
_LAST_SECOND = 253_402_300_799  # of the year 9999
_WITH_MILLISECONDS = ("auto", "openai", "project", "azure", "none")

UNKNOWN_LIMITS = "".join(
    f"x-ratelimit-limit-{name}: -1\r\n"
    f"x-ratelimit-remaining-{name}: -1\r\n"
    f"x-ratelimit-reset-{name}: 0\r\n"
    for name in ("requests", "tokens")
)


class LimitHeaders:
    """Writes the limits' headers in one style. Safe to call from any thread.

    `wall` is the time of day in seconds since 1970, which some styles give resets in.
    """

    def __init__(self, style: str, *, wall: Callable[[], float] = time.time) -> None:
        self._style = style
        self._write = _WRITERS[style]
        self._wall = wall

    def levels(self, levels: Sequence[QuotaLevel], cost: int) -> str:
        """Write the levels, as lines; `cost` is what the request takes in tokens."""
        return self._write(levels, cost, self._wall())

    def wait(self, wait_s: float) -> str:
        """Write how long to wait, as lines."""
        if self._style == "azure_unknown":
            return ""
        if self._style == "litellm" and wait_s > 0:
            ends_at = datetime.fromtimestamp(self._wall() + wait_s, timezone.utc)
            return (
                f"Retry-After: {_LITELLM_WAIT_S}\r\nreset_at: {ends_at:%Y-%m-%d %H:%M:%S} UTC\r\n"
            )
        lines = f"Retry-After: {math.ceil(wait_s)}\r\n"
        if self._style in _WITH_MILLISECONDS:
            lines += f"retry-after-ms: {math.ceil(wait_s * 1000)}\r\n"
        return lines


def go_duration(seconds: float) -> str:
    """Write a time the way Go does, to the millisecond above: 120ms, 7.66s, 2m59.56s, 1h0m0s."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _whole_seconds(seconds: float) -> str:
    return str(math.ceil(seconds - 1e-6))


def _triple(name: str, limit: float, level: float, reset: str) -> str:
    """Write OpenAI's three headers of a limit; a debt is shown as nothing remaining."""
    return (
        f"x-ratelimit-limit-{name}: {int(limit)}\r\n"
        f"x-ratelimit-remaining-{name}: {int(max(0.0, level))}\r\n"
        f"x-ratelimit-reset-{name}: {reset}\r\n"
    )


def _triples(levels: Sequence[QuotaLevel], reset: Callable[[float], str]) -> str:
    return "".join(
        [
            _triple(level.name, level.limit, level.level, reset(level.reset_s))
            for level in levels
            if level.name in ("requests", "tokens")
        ]
    )


def _openai(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    return _triples(levels, go_duration)


def _azure(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    return _triples(levels, _whole_seconds)


def _project(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write the token limit as the project's, and one ten times as large as the organisation's."""
    lines = ""
    for level in levels:
        if level.name == "requests":
            lines += _openai([level], cost, wall_s)
        if level.name == "tokens":
            limit = level.limit * _ORGANISATION_FACTOR
            used = level.limit - level.level
            reset = go_duration(level.reset_s / _ORGANISATION_FACTOR)
            lines += _triple("tokens", limit, limit - used, reset)
            reset = go_duration(level.reset_s)
            lines += _triple("project-tokens", level.limit, level.level, reset)
    return lines


def _groq(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write the requests of the day, not of the minute."""
    lines = ""
    for level in levels:
        name = {"requests-per-day": "requests", "tokens": "tokens"}.get(level.name)
        if name is not None:
            lines += _triple(name, level.limit, level.level, go_duration(level.reset_s))
    return lines


def _mistral(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    lines = ""
    for level in levels:
        name = _MISTRAL_NAMES.get(level.name)
        if name is not None:
            lines += f"x-ratelimit-limit-{name}: {int(level.limit)}\r\n"
            lines += f"x-ratelimit-remaining-{name}: {int(max(0.0, level.level))}\r\n"
        if level.name == "tokens":
            lines += f"x-ratelimit-tokens-query-cost: {cost}\r\n"
    return lines


def _anthropic(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write tokens to the nearest thousand, and resets as times of day, to the second above."""
    lines = ""
    for level in levels:
        if level.name not in _ANTHROPIC_NAMES:
            continue
        remaining = int(max(0.0, level.level))
        if level.name != "requests":
            remaining = (remaining + 500) // 1000 * 1000
        full_s = min(math.ceil(wall_s + level.reset_s - 1e-6), _LAST_SECOND)
        reset = datetime.fromtimestamp(full_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        start = f"anthropic-ratelimit-{level.name}"
        lines += f"{start}-limit: {int(level.limit)}\r\n"
        lines += f"{start}-remaining: {remaining}\r\n{start}-reset: {reset}\r\n"
    return lines


def _litellm(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write the limits of the key, which say nothing of when they come back."""
    lines = ""
    for level in levels:
        if level.name in _LITELLM_NAMES:
            start = "x-ratelimit-api_key"
            lines += f"{start}-limit-{level.name}: {int(level.limit)}\r\n"
            lines += f"{start}-remaining-{level.name}: {int(max(0.0, level.level))}\r\n"
            lines += f"x-litellm-key-{_LITELLM_NAMES[level.name]}-limit: {int(level.limit)}\r\n"
    return lines


def _openrouter(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write the requests alone, and the reset in milliseconds since 1970."""
    return "".join(
        [
            f"X-RateLimit-Limit: {int(level.limit)}\r\n"
            f"X-RateLimit-Remaining: {int(max(0.0, level.level))}\r\n"
            f"X-RateLimit-Reset: {math.ceil((wall_s + level.reset_s) * 1000)}\r\n"
            for level in levels
            if level.name == "requests"
        ]
    )


def _together(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write limits per second."""
    lines = ""
    for level in levels:
        if level.name in _TOGETHER_NAMES:
            start = f"x-{_TOGETHER_NAMES[level.name]}limit"
            lines += f"{start}-limit: {level.limit / 60:g}\r\n"
            lines += f"{start}-remaining: {max(0.0, level.level) / 60:g}\r\n"
            lines += f"{start}-reset: {_whole_seconds(level.reset_s)}\r\n"
    return lines


def _fireworks(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    """Write limits of tokens per second, of a prompt and of what is generated."""
    lines = ""
    for level in levels:
        if level.name in _FIREWORKS_NAMES:
            name = _FIREWORKS_NAMES[level.name]
            lines += f"x-ratelimit-limit-tokens-{name}: {int(level.limit / 60)}\r\n"
            lines += f"x-ratelimit-remaining-tokens-{name}: {int(max(0.0, level.level) / 60)}\r\n"
    return lines


def _unknown(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    return UNKNOWN_LIMITS


def _none(levels: Sequence[QuotaLevel], cost: int, wall_s: float) -> str:
    return ""


_WRITERS: dict[str, Callable[[Sequence[QuotaLevel], int, float], str]] = {
    "auto": _openai,
    "openai": _openai,
    "project": _project,
    "azure": _azure,
    "azure_unknown": _unknown,
    "anthropic": _anthropic,
    "groq": _groq,
    "mistral": _mistral,
    "litellm": _litellm,
    "openrouter": _openrouter,
    "together": _together,
    "fireworks": _fireworks,
    "none": _none,
}

HEADER_STYLES = tuple(_WRITERS)
