"""Reads the account's limits from the headers of a response.

Understood are the names of OpenAI (also used by Azure, Groq, Cerebras, SambaNova and most gateways,
some with a unit at the end), Anthropic, Mistral, OpenRouter, Together, Fireworks, LiteLLM (limits of a
key, a team, a user …, by model or not, in fixed minutes) and Kong, and the IETF's ``RateLimit-Policy``,
which says its window. What a name means at one provider alone is in its row of ``dialects.py``.
LiteLLM's limit of requests in flight is named ``in_flight`` and has no window.

**Window.** OpenAI's names don't say which window a limit is for. ``limit-requests`` is per minute
for one account and per day for another. There are two kinds of servers:

* OpenAI's limiter is a bucket that refills all the time. ``reset`` is the time until it is full:
  ``(limit - remaining) * window / limit``. Published headers fit this to the millisecond or to one
  token. 500 / 499 / ``120ms`` and 10000 / 9481 / ``3.114s`` are per minute. 10000 / 9999 /
  ``8.64s`` and 1500000 / 1495621 / ``4m12.172s`` (community.openai.com, thread 541210) are per day.
* Others count in fixed windows. ``reset`` is the time to the window's end, whatever remains.

To take a daily limit for one per minute costs some rejections until the next response. The reverse
all but stops the run. So a limit is per minute unless its reset indicates a day:

* Above ten minutes: a day. Neither a fixed minute nor a bucket in debt shows that.
* Above a minute: a day if it fits the refill of a daily bucket, whose ``remaining`` is in whole
  units. Otherwise it may be the debt of a minute's bucket, or what Azure's manual shows (``300``).
* Up to a minute: a day only if it fits that refill closely and has a fraction of a second. Fixed
  windows mostly show whole seconds. A response of another fixed window can pass this test only
  before 0.07 % of the limit is used, and then one in a hundred does at most. A daily bucket is
  recognised at its first request after a rest, and always once a minute's worth of it is used.

The caller should keep to a day once it has seen a limit with a reset above ten minutes.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from parallel_processor.models import LimitReading, refill_s
from parallel_processor.providers.dialects import provider_at
from parallel_processor.providers.durations import duration_s, number, timestamp, wait_s

_MINUTE_S, _DAY_S = 60.0, 86_400.0
_WINDOW_S = {"second": 1.0, "minute": _MINUTE_S, "hour": 3600.0, "day": _DAY_S}

_ROUNDING_S = 1.1  # of a reset in whole seconds, held against a clock in whole seconds
_LONGEST_DEBT_S = 600.0
_LONGEST_RESET_S = 2 * _DAY_S  # a daily bucket in debt; a longer time is no reset
_SHORTEST_TELLING_S = 0.1  # below this, a bucket's own rounding could look like a day's refill

IN_EVERY_LIMIT = "limit"
"""Is in the name, in lower case, of every header that :func:`read_limits` looks at for a limit."""
_GREATEST_LIMIT = 1e15  # servers without a limit show 2**63 - 1

_ANY = r"(requests|req|(?:input-|output-)?tokens)"
_OPENAI = re.compile(
    rf"x-ratelimit-limit-(?:project-)?{_ANY}(?:-([1-9]\d{{0,3}}))?(?:-(second|minute|hour|day))?"
)
_ANTHROPIC = re.compile(rf"anthropic-ratelimit-{_ANY}-limit")
_TOGETHER = re.compile(r"x-(rate|token)limit-limit(?:-dynamic)?")
_FIREWORKS = re.compile(r"x-ratelimit-limit-tokens-(prompt|generated)")  # per second
_OPENROUTER = "x-ratelimit-limit"
_LITELLM = re.compile(
    r"x-ratelimit-[a-z]+(?:_[a-z]+)*-limit-(requests|tokens|max_parallel_requests)"
    r"|x-litellm-key-(rpm|tpm)-limit"
)
_KONG = re.compile(r"x-ratelimit-limit-(second|minute|hour|day)")
_POLICY = re.compile(r"\s*(?:\"([^\"]*)\"|(\d+))((?:\s*;[^,;]*)*)\s*(?:,|$)")
_PARAMETER = re.compile(r";\s*([a-z]+)\s*=\s*\"?([\w-]+)")

_LIMIT_NAMES = {
    "req": "requests",
    "rate": "requests",
    "rpm": "requests",
    "token": "tokens",
    "tpm": "tokens",
    "max_parallel_requests": "in_flight",
    "prompt": "input_tokens",
    "generated": "output_tokens",
    **dict.fromkeys(_WINDOW_S, "requests"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lookup:
    """The headers of one limit, in the response's own spelling; ``None`` for one that isn't there."""

    name: str  # the limit's name, as in LimitReading
    limit: str
    remaining: str | None
    reset: str | None
    window_s: float | None  # None if the values decide
    stamped: bool  # the reset is a Unix time


def read_limits(
    headers: Mapping[str, str], host: str = "", *, now: Callable[[], float] = time.time
) -> tuple[LimitReading, ...]:
    """The limits that a response's ``headers`` show, in their order. Unclear ones are left out.

    Args:
        headers: the headers, in any spelling.
        host: the server's name in lower case, without a port. Some providers use the names of
            others with another meaning.
        now: the Unix time, for a response that has timestamps but no ``Date``.

    A project's limit and a dynamic limit have the same name as the account's: all of them hold.
    """
    lookups, date, policies = _plan(tuple(headers), host)
    if not lookups and policies is None:
        return ()

    def server_time() -> float:
        sent = None if date is None else _cached_timestamp(headers[date][:100])
        return now() if sent is None else sent

    readings = [_read(lookup, headers, server_time) for lookup in lookups]
    if policies is not None:
        readings += _of_policies(headers, policies)
    return tuple([reading for reading in readings if reading is not None])


@functools.lru_cache(maxsize=32)
def _plan(
    names: tuple[str, ...], host: str
) -> tuple[tuple[_Lookup, ...], str | None, Mapping[str, str] | None]:
    """What to look up in a set of headers, the name of its date header, and those of the IETF's.

    A server's responses have few such sets, so each plan is made once.
    """
    spelled = {name.lower(): name for name in names}
    lookups = (_lookup(name, spelled, host) for name in spelled)
    found = tuple(lookup for lookup in lookups if lookup is not None)
    ietf = {name: spelled[name] for name in spelled if name.startswith("ratelimit")}
    has_window = "ratelimit-policy" in ietf and not any(lookup.window_s for lookup in found)
    return found, spelled.get("date"), ietf if has_window else None


def _lookup(name: str, spelled: Mapping[str, str], host: str) -> _Lookup | None:
    """How to read the limit whose header is ``name``, in lower case; ``None`` for another header."""
    stamped, windows_s = False, provider_at(host).windows_s
    window_s: float | None = None
    if match := _OPENAI.fullmatch(name):
        if match[2] and not match[3]:
            return None
        unit_s = _WINDOW_S.get(match[3])
        window_s = unit_s * int(match[2] or 1) if unit_s else windows_s.get(match[1])
    elif match := _ANTHROPIC.fullmatch(name):
        window_s = _MINUTE_S
    elif match := _LITELLM.fullmatch(name):
        window_s = 0.0 if match[1] == "max_parallel_requests" else _MINUTE_S
    elif match := _KONG.fullmatch(name):
        window_s = _WINDOW_S[match[1]]
    elif match := _FIREWORKS.fullmatch(name):
        window_s = _WINDOW_S["second"]
    elif (match := _TOGETHER.fullmatch(name)) and match[1] in windows_s:
        window_s = windows_s[match[1]]
    elif name == _OPENROUTER:
        stamped = True
    else:
        return None
    kind = next(group for group in match.groups() if group) if match else "requests"
    return _Lookup(
        name=_LIMIT_NAMES.get(kind, kind.replace("-", "_")),
        limit=spelled[name],
        remaining=spelled.get(name.replace("-limit", "-remaining", 1)),
        reset=spelled.get(name.replace("-limit", "-reset", 1)),
        window_s=window_s,
        stamped=stamped,
    )


def _read(
    lookup: _Lookup, headers: Mapping[str, str], server_time: Callable[[], float]
) -> LimitReading | None:
    limit = _count(headers[lookup.limit])
    if not limit:
        return None
    remaining = None if lookup.remaining is None else _count(headers[lookup.remaining])
    text = None if lookup.reset is None else headers[lookup.reset]
    reset_s = None if text is None else _reset_s(text, server_time)
    window_s = lookup.window_s
    if lookup.stamped:
        if reset_s is None or (_count(text or "") or 0) <= 1e11:
            return None  # not OpenRouter: any gateway may count its own requests, in any window
        window_s = _MINUTE_S if reset_s <= _MINUTE_S + _ROUNDING_S else _DAY_S
    elif window_s is None:
        window_s = _inferred_window_s(limit, remaining, reset_s)
    if limit < 1 and (window_s >= _MINUTE_S or not window_s):
        return None  # less than one request: no server has such a limit
    return LimitReading(
        name=lookup.name, limit=limit, remaining=remaining, reset_s=reset_s, window_s=window_s
    )


def _of_policies(headers: Mapping[str, str], names: Mapping[str, str]) -> list[LimitReading | None]:
    """The limits of ``RateLimit-Policy``, whose quota and window are both there.

    ``"name";q=100;w=60`` comes with ``RateLimit: "name";r=50;t=30``. Older drafts write ``100;w=60``, with
    ``RateLimit-Remaining`` and ``RateLimit-Reset`` for the policy that ``RateLimit-Limit`` names.
    """
    text = {name: headers[spelled][:1000] for name, spelled in names.items()}
    levels = {name: parameters for name, _, parameters in _policies(text.get("ratelimit", ""))}
    current = number(text.get("ratelimit-limit", "").partition(",")[0])
    readings: list[LimitReading | None] = []
    for name, quota, parameters in _policies(text["ratelimit-policy"]):
        limit, window_s = _count(parameters.get("q", quota)), _count(parameters.get("w", ""))
        if not limit or not window_s or parameters.get("qu", "requests") != "requests":
            continue
        level = levels.get(name, {}) if name else {}
        if limit == current:
            level = {"r": text.get("ratelimit-remaining", ""), "t": text.get("ratelimit-reset", "")}
        remaining, reset_s = _count(level.get("r", "")), _count(level.get("t", ""))
        readings.append(
            LimitReading(
                name="requests",
                limit=limit,
                remaining=remaining,
                reset_s=reset_s if reset_s is not None and reset_s <= window_s else None,
                window_s=window_s,
            )
        )
    return readings


@functools.lru_cache(maxsize=64)
def _policies(text: str) -> tuple[tuple[str, str, Mapping[str, str]], ...]:
    """Name, quota and parameters of each item of a list of the IETF's."""
    items = _POLICY.finditer(text)
    return tuple(
        (item[1] or "", item[2] or "", dict(_PARAMETER.findall(item[3]))) for item in items
    )


def _count(text: str) -> float | None:
    """The number in ``text``; ``None`` if it is no number, negative, or too large for a limit."""
    count = number(text)
    return count if 0 <= count < _GREATEST_LIMIT else None


def _reset_s(text: str, server_time: Callable[[], float]) -> float | None:
    """Seconds until the reset. It is a duration, bare seconds, or a time after ``server_time()``."""
    seconds = _cached_duration_s(text[:100])
    if seconds is None:  # a text that is too short for a time needs no clock
        seconds = wait_s(text, 0.0 if len(text) < 10 else server_time())
    return seconds if seconds is not None and seconds <= _LONGEST_RESET_S else None


# Responses of one second share their date; many share the few milliseconds until a bucket is full.
_cached_timestamp = functools.lru_cache(maxsize=32)(timestamp)
_cached_duration_s = functools.lru_cache(maxsize=256)(duration_s)


def _inferred_window_s(limit: float, remaining: float | None, reset_s: float | None) -> float:
    """A minute or a day, by the rule in the module's docstring."""
    if reset_s is None or reset_s < _SHORTEST_TELLING_S:
        return _MINUTE_S
    if reset_s > _LONGEST_DEBT_S:
        return _DAY_S
    if remaining is None:
        return _MINUTE_S
    predicted_s = refill_s(limit, remaining, _DAY_S)
    unit_s = _DAY_S / limit
    if reset_s > _MINUTE_S + _ROUNDING_S:
        tolerance_s = max(_ROUNDING_S, 0.03 * predicted_s)
        fits = -unit_s - tolerance_s <= reset_s - predicted_s <= tolerance_s
    else:
        tolerance_s = 0.001 + min(0.005 * predicted_s, 2 * unit_s)
        fits = abs(reset_s - predicted_s) <= tolerance_s and not reset_s.is_integer()
    return _DAY_S if fits else _MINUTE_S
