"""Why a server turned a request away: which limit, or how much load."""

from __future__ import annotations

import re
from collections.abc import Mapping

from parallel_processor.models import Rejection
from parallel_processor.providers.durations import number
from parallel_processor.providers.errors import ErrorInfo
from parallel_processor.providers.texts import Pattern, phrases

# The rate of requests rose too fast: OpenAI's word and Anthropic's.
_RAMP_CODES = {"slow_down", "ramp_limit_exceeded"}
_LOAD_CODES = {
    *("overloaded", "overloaded_error", "engine_overloaded_error", "server_is_overloaded"),
    *("resource_unavailable", "capacity_exceeded", "service_tier_capacity_exceeded"),
}
_OVERLOADED = phrases(
    "unable|demand|overload|busy|capacity|pending|queue|负载|过载|繁忙|访问量",
    r"temporarily unable to process|high demand|\boverload|server.{0,10}\bbusy\b|at capacity"
    r"|out of capacity|capacity exceeded|maximum pending requests|queue (?:is )?full"
    r"|负载|过载|繁忙|访问量过大",
)
_CONCURRENCY = phrases(
    "concurren|parallel|flight|simultaneous|open |slot|并发|同时",
    r"concurren(?:t|cy)|\bparallel[ _]requests?\b|max_parallel_requests|\bin[- ]flight\b|simultaneous"
    r"|\bin parallel\b"
    r"|\bopen (?:requests|connections)\b|\bslots?\b[^.;]{0,20}\b(?:busy|in use|available|free)\b"
    r"|并发|同时",
)
# LiteLLM before 1.80 names all of its limits, and says by numbers which one was reached.
_ALL_LIMITS = phrases("crossed tpm", r"crossed tpm / rpm / max parallel request limit")
_CURRENT = Pattern(
    r"current (rpm|tpm|max_parallel_requests): (\d+), (?:\1 limit|\1): (\d+)", re.IGNORECASE
)
_KINDS = {"rpm": "requests", "tpm": "tokens"}

_N = r"(\d[\d,]*)"
_IN_FLIGHT = tuple(
    Pattern(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bcurrent limit: {_N}",
        rf"\bmax_parallel_requests:? {_N}",
        rf"concurren(?:t|cy)[^.\d]{{0,30}}\b(?:limit|max(?:imum)?|quota)\b[^.\d]{{0,12}}{_N}",
        rf"\b(?:limit|max(?:imum)?|at most|up to|only)\b[^.\d]{{0,40}}{_N}",
        rf"\bconcurrency: {_N}",
        rf"(?:并发|同时)[^\d。；]{{0,12}}{_N}",
    )
)
_OF_TOKENS = phrases(
    "token|tpm|每分钟",
    r"\btokens?(?: usage)? ?(?:per|a|/) ?min|\btoken rate limit|\bTPM\b|limit type: tokens"
    r"|每分钟[^。]{0,12}(?:token|令牌)",
)
_OF_REQUESTS = phrases(
    "request|call|rpm|每分钟",
    r"\brequests? ?(?:per|a|/) ?min|\b(?:request|call) rate limit|\bRPM\b|limit type: requests"
    r"|每分钟[^。]{0,12}(?:次|请求)",
)
_A_MINUTE = {
    "requests": (
        rf"\bmax RPM: {_N}",
        rf"\bRPM\)?:? limit:? {_N}",
        rf"\blimit type: requests\. current limit: {_N}",
        rf"\b(?:requests? per min(?:ute)?|RPM)\b[^.;]{{0,40}}?\blimit:? {_N}",
        rf"\blimit (?:of |is |to )?{_N} requests? ?(?:per|a|/) ?min",
        rf"\b{_N} requests? ?(?:per|a|/) ?min",
        rf"\blimit:? {_N} ?/ ?min\b",
        rf"每分钟[^。\d]{{0,8}}{_N} ?(?:次|个?请求)",
    ),
    "tokens": (
        rf"\bmax TPM: {_N}",
        rf"\blimit type: tokens\. current limit: {_N}",
        rf"\b(?:tokens? per min(?:ute)?|TPM)\b[^.;]{{0,40}}?\blimit:? {_N}",
        rf"\blimit (?:of |is |to )?{_N} tokens? ?(?:per|a|/) ?min",
        rf"\blimit:? {_N} ?/ ?min\b",
    ),
}
_LIMITS = {
    kind: tuple(Pattern(pattern, re.IGNORECASE) for pattern in patterns)
    for kind, patterns in _A_MINUTE.items()
}


def rejection_of(
    http_status: int,
    info: ErrorInfo,
    headers: Mapping[str, str],
    *,
    is_rate_limit: bool,
    has_retry_after: bool,
) -> Rejection | None:
    """Why the server rejected the request; ``None`` if it was neither for limits nor for load.

    Args:
        http_status: the status of the response, or of the error that it wraps.
        info: the error.
        headers: the response's.
        is_rate_limit: the request waits for its turn; otherwise it is tried again.
        has_retry_after: the server said how long to wait.
    """
    if info.codes & _RAMP_CODES:
        return Rejection(ramp_too_fast=True, has_retry_after=has_retry_after)
    is_load = http_status in (498, 503, 529)  # 498 is Groq's, of its flex tier
    if not is_rate_limit and not is_load:
        return None
    text, named = info.text, headers.get("rate_limit_type", "").lower()
    if _ALL_LIMITS.search(text):
        return _of_all_limits(text, has_retry_after)
    if named == "max_parallel_requests" or _CONCURRENCY.search(text):
        limit = _first(_IN_FLIGHT, text)
        return Rejection(concurrency=True, limit=limit, has_retry_after=has_retry_after)
    is_load = is_load or bool(info.codes & _LOAD_CODES)
    if is_load or (http_status == 429 and _OVERLOADED.search(text)):
        return Rejection(overload=True, has_retry_after=has_retry_after)
    for kind, words in (("tokens", _OF_TOKENS), ("requests", _OF_REQUESTS)):
        if kind in (info.type, named) or words.search(text):
            limit = _first(_LIMITS[kind], text)
            return Rejection(kind=kind, limit=limit, has_retry_after=has_retry_after)
    return Rejection(has_retry_after=has_retry_after)


def _of_all_limits(text: str, has_retry_after: bool) -> Rejection:
    """The limit whose number was reached, in LiteLLM's older text."""
    for match in _CURRENT.finditer(text):
        name, current, limit = match.groups()
        if number(current) >= number(limit):
            kind = _KINDS.get(name.lower(), "")
            return Rejection(
                kind=kind,
                limit=number(limit) or None,
                concurrency=not kind,
                has_retry_after=has_retry_after,
            )
    return Rejection(has_retry_after=has_retry_after)


def _first(patterns: tuple[Pattern, ...], text: str) -> float | None:
    """The first number that a pattern finds; ``None`` for none, and for a limit of nothing."""
    found = next((match for pattern in patterns if (match := pattern.search(text))), None)
    return None if found is None else number(found[1].replace(",", "")) or None
