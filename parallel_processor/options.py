"""Every setting, checked once when it is made. All are frozen and keyword-only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from parallel_processor.exceptions import ConfigurationError

_LARGEST = 1e300
_MOST_PROCESSES = 64
_LONGEST_S = 1_000_000  # eleven days; poll(2) takes 24 at most

_HIDDEN = re.compile(r"(?<=//)[^/\s]*@|\?.*", re.DOTALL)
DEFAULT_REQUEST_URL = "https://api.openai.com/v1/embeddings"


def shown_url(url: str) -> str:
    """``url`` without a login and a query, either of which may hold a secret."""
    return _HIDDEN.sub("", url)


def _check(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigurationError(f"{name} must be {want}, not {value!r}")


def _check_number(name: str, value: float, *, least: float = 0.0, above: bool = True) -> None:
    """``value`` is a number, not NaN, and above ``least`` (at least that, if ``above`` is false)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ConfigurationError(f"{name} must be a number, not {value!r}")
    ok, words = (value > least, "above") if above else (value >= least, "at least")
    _check(ok, name, value, f"{words} {least:g}")
    _check(value <= _LARGEST or value == math.inf, name, value, f"at most {_LARGEST:g} or infinite")


def _check_seconds(name: str, value: float, *, above: bool = True) -> None:
    """A wait that the system is asked for: what it can't count is an error there."""
    _check_number(name, value, above=above)
    _check(value <= _LONGEST_S, name, value, f"at most {_LONGEST_S:,} seconds")


def _check_whole(name: str, value: int, least: int) -> None:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _check(ok, name, value, f"a whole number of at least {least}")


def _is_url(url: object) -> bool:
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _is_key(key: object) -> bool:
    return isinstance(key, str) and key.isascii() and key.isprintable() and key == key.strip()


Limit = float | Literal["auto"]
"""A limit per minute, ``math.inf`` for none, or ``"auto"`` for what the server turns out to allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be sent in any 60 seconds.

    All limits are per minute; ``math.inf`` switches one off, and ``"auto"``, for ``requests_per_minute``
    and ``tokens_per_minute``, finds it: the first few requests go out gently, and then as fast as the
    answers' headers say, or as their refusals show.
    Whatever a number says is a ceiling: where the server tells of less, less is sent.
    ``input_tokens_per_minute`` and ``output_tokens_per_minute`` are for accounts that have such limits.
    ``burst_seconds`` is how many seconds' worth of a limit may go out at once after a quiet time (at
    most 60; servers may apply a limit of 600 a minute as 10 a second, so that more than a few seconds'
    worth risks refusals). ``headroom`` is the share of every limit, 0 to 0.9, that is left to others.

    >>> limits = Limits(requests_per_minute=500, tokens_per_minute="auto", headroom=0.1)
    >>> limits.by_kind["requests"], limits.is_auto
    (450.0, True)
    """

    requests_per_minute: Limit = 1500.0
    tokens_per_minute: Limit = 125_000.0
    input_tokens_per_minute: float = math.inf
    output_tokens_per_minute: float = math.inf
    burst_seconds: float = 0.5
    headroom: float = 0.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if isinstance(value, str):
                _check(value == "auto", name, value, "a number, inf or auto")
            else:
                _check_number(name, value)
        _check_number("input_tokens_per_minute", self.input_tokens_per_minute)
        _check_number("output_tokens_per_minute", self.output_tokens_per_minute)
        _check_number("burst_seconds", self.burst_seconds)
        _check(self.burst_seconds <= 60, "burst_seconds", self.burst_seconds, "at most 60")
        _check_number("headroom", self.headroom, above=False)
        _check(self.headroom <= 0.9, "headroom", self.headroom, "at most 0.9")

    @property
    def is_auto(self) -> bool:
        """True if the server is to say how much may be sent."""
        return "auto" in (self.requests_per_minute, self.tokens_per_minute)

    @property
    def by_kind(self) -> Mapping[str, float]:
        """The ceilings, less the headroom, by what they count; infinite where there is none."""
        found = {
            "requests": self.requests_per_minute,
            "tokens": self.tokens_per_minute,
            "input_tokens": self.input_tokens_per_minute,
            "output_tokens": self.output_tokens_per_minute,
        }
        share = 1.0 - self.headroom
        return {k: math.inf if v == "auto" else v * share for k, v in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a request is tried again.

    ``max_attempts`` counts failed attempts, the first included; refusals by a rate limit don't
    count, but a request that has been refused for ``rate_limit_deadline_s`` seconds fails. Before
    retry *k* a worker waits a random time up to ``min(backoff_max_s, backoff_initial_s * 2**(k-1))``
    seconds (full jitter; AWS Architecture Blog, "Exponential Backoff And Jitter"). ``pause_s`` is how
    long everything pauses after a refusal whose answer doesn't say how long.

    >>> retry = RetryPolicy(max_attempts=2, backoff_initial_s=0)
    >>> with Processor(request_url=url, retry=retry) as processor:
    ...     print(processor.options.retry.max_attempts)
    2
    """

    max_attempts: int = 5
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 60.0
    pause_s: float = 15.0
    rate_limit_deadline_s: float = 600.0

    def __post_init__(self) -> None:
        _check_whole("max_attempts", self.max_attempts, 1)
        _check_seconds("backoff_initial_s", self.backoff_initial_s, above=False)
        _check_seconds("backoff_max_s", self.backoff_max_s, above=False)
        _check_seconds("pause_s", self.pause_s, above=False)
        _check_number("rate_limit_deadline_s", self.rate_limit_deadline_s, above=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a :class:`~parallel_processor.Processor`.

    ``request_url`` is where requests go, ``api_key`` is sent with them, and ``retry`` says how often.
    ``max_workers`` bounds the requests in flight, and with them threads, connections and memory.
    With ``processes`` above 1 (64 at most) their threads are in so many processes, for servers without
    limits which one core can't keep up with; everything else stays in this one.
    ``request_timeout_s`` bounds one whole exchange, however slowly the answer drips;
    ``connect_timeout_s`` the connection's making; an answer of more than ``max_response_bytes``,
    decompressed, is a failure. ``token_encoding_name`` is used for every request;
    ``None`` takes what the request's model uses. ``default_output_tokens`` is reserved for the answer
    of a request that names no maximum. ``session_factory`` makes the ``requests.Session`` of each
    worker; ``None`` takes a plain one. ``drain_s`` bounds how long a stopped run waits for the
    answers that are under way, ``write_retry_s`` how long records that a disk refused are tried again.
    ``allow_plain_http`` lets the key go to another host without TLS. The key stays out of ``repr``.

    ``validate`` is called with the parsed JSON of each answer, in several threads at once. What it raises
    is a failed attempt, after which the request is tried again, up to ``max_attempts``; what it returns
    is ignored. ``dedupe`` sends equal requests of a run once, and gives all of them that answer.

    ``limits_by_model`` has limits of their own for models, by pattern (``"gpt-4o*"``, as in a shell).
    Models that match one pattern share its limit; the first pattern counts, and what matches none has
    ``limits``. ``token_accounting`` says what the server's token limit charges: ``"reserve"`` the
    most that a request may use, ``"usage"`` what its answer did use, ``"auto"`` what is known of the
    host.

    >>> options = Options(request_url=url, api_key="sk-secret", max_workers=50)
    >>> options.max_workers, options.limits.requests_per_minute, "secret" in repr(options)
    (50, 1500.0, False)
    """

    request_url: str = DEFAULT_REQUEST_URL
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    limits_by_model: Mapping[str, Limits] = field(default_factory=dict)
    token_accounting: Literal["auto", "reserve", "usage"] = "auto"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_workers: int = 1000
    processes: int = 1
    request_timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    max_response_bytes: int = 64 * 1024 * 1024
    drain_s: float = 30.0
    write_retry_s: float = 60.0
    allow_plain_http: bool = False
    token_encoding_name: str | None = None
    default_output_tokens: int = 16
    session_factory: Callable[[], Any] | None = None
    validate: Callable[[Any], object] | None = None
    dedupe: bool = False

    def __post_init__(self) -> None:
        url: object = self.request_url
        shown = shown_url(url) if isinstance(url, str) else url
        _check(_is_url(url), "request_url", shown, "an http:// or https:// URL")
        if self.api_key is not None and not _is_key(self.api_key):
            raise ConfigurationError("api_key must be printable ASCII without spaces around it")
        _check(isinstance(self.limits, Limits), "limits", self.limits, "a Limits")
        ok = isinstance(self.limits_by_model, Mapping) and all(
            isinstance(pattern, str) and isinstance(limits, Limits)
            for pattern, limits in self.limits_by_model.items()
        )
        _check(ok, "limits_by_model", self.limits_by_model, "a Limits for each pattern")
        ok = self.token_accounting in ("auto", "reserve", "usage")
        _check(ok, "token_accounting", self.token_accounting, "auto, reserve or usage")
        _check(isinstance(self.retry, RetryPolicy), "retry", self.retry, "a RetryPolicy")
        _check_whole("max_workers", self.max_workers, 1)
        _check_whole("processes", self.processes, 1)
        _check(self.processes <= _MOST_PROCESSES, "processes", self.processes, "at most 64")
        _check_seconds("request_timeout_s", self.request_timeout_s)
        _check_seconds("connect_timeout_s", self.connect_timeout_s)
        _check_whole("max_response_bytes", self.max_response_bytes, 1)
        _check_number("drain_s", self.drain_s, above=False)
        _check_number("write_retry_s", self.write_retry_s, above=False)
        _check_whole("default_output_tokens", self.default_output_tokens, 0)
        for name in ("session_factory", "validate"):
            function = getattr(self, name)
            _check(function is None or callable(function), name, function, "a function")
