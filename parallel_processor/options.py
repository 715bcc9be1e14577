"""Every setting, checked once when it is made. All are frozen and keyword-only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from parallel_processor.exceptions import ConfigurationError

DEFAULT_REQUEST_URL = "https://api.openai.com/v1/embeddings"


def _check(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigurationError(f"{name} must be {want}, not {value!r}")


def _check_number(name: str, value: float, *, least: float = 0.0, above: bool = True) -> None:
    """``value`` is a number, not NaN, and above ``least`` (at least that, if ``above`` is false)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigurationError(f"{name} must be a number, not {value!r}")
    ok, words = (value > least, "above") if above else (value >= least, "at least")
    _check(ok, name, value, f"{words} {least:g}")


def _check_whole(name: str, value: int, least: int) -> None:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _check(ok, name, value, f"a whole number of at least {least}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be sent in any 60 seconds.

    Both limits are per minute; ``math.inf`` switches one off. ``burst_seconds`` is how many seconds'
    worth of a limit may go out at once after a quiet time (0 to 60; servers may apply a limit of
    600 a minute as 10 a second, so that more than a few seconds' worth risks refusals).
    """

    requests_per_minute: float = 1500.0
    tokens_per_minute: float = 125_000.0
    burst_seconds: float = 0.5

    def __post_init__(self) -> None:
        _check_number("requests_per_minute", self.requests_per_minute)
        _check_number("tokens_per_minute", self.tokens_per_minute)
        _check_number("burst_seconds", self.burst_seconds)
        _check(self.burst_seconds <= 60, "burst_seconds", self.burst_seconds, "at most 60")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a request is tried again.

    ``max_attempts`` counts failed attempts, the first included; refusals by a rate limit don't
    count, but a request that has been refused for ``rate_limit_deadline_s`` seconds fails. Before
    retry *k* a worker waits a random time up to ``min(backoff_max_s, backoff_initial_s * 2**(k-1))``
    seconds (full jitter; AWS Architecture Blog, "Exponential Backoff And Jitter"). ``pause_s`` is how
    long everything pauses after a refusal whose answer doesn't say how long.
    """

    max_attempts: int = 5
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 60.0
    pause_s: float = 15.0
    rate_limit_deadline_s: float = 600.0

    def __post_init__(self) -> None:
        _check_whole("max_attempts", self.max_attempts, 1)
        _check_number("backoff_initial_s", self.backoff_initial_s, above=False)
        _check_number("backoff_max_s", self.backoff_max_s, above=False)
        _check_number("pause_s", self.pause_s, above=False)
        _check_number("rate_limit_deadline_s", self.rate_limit_deadline_s, above=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a :class:`~parallel_processor.Processor`.

    ``max_workers`` bounds the requests in flight, and with them threads, connections and memory.
    ``request_timeout_s`` bounds one whole exchange, however slowly the answer drips;
    ``connect_timeout_s`` the connection's making. ``token_encoding_name`` is used for every request;
    ``None`` takes what the request's model uses. ``default_output_tokens`` is reserved for the answer
    of a request that names no maximum. ``session_factory`` makes the ``requests.Session`` of each
    worker; ``None`` takes a plain one. ``drain_s`` bounds how long a stopped run waits for the
    answers that are under way. The key stays out of ``repr``.
    """

    request_url: str = DEFAULT_REQUEST_URL
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_workers: int = 1000
    request_timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    max_response_bytes: int = 64 * 1024 * 1024
    drain_s: float = 30.0
    token_encoding_name: str | None = None
    default_output_tokens: int = 16
    session_factory: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.request_url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname)
        _check(ok, "request_url", self.request_url, "an http:// or https:// URL")
        key = self.api_key
        if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ConfigurationError("api_key must be printable ASCII without spaces around it")
        _check_whole("max_workers", self.max_workers, 1)
        _check_number("request_timeout_s", self.request_timeout_s)
        _check_number("connect_timeout_s", self.connect_timeout_s)
        _check_whole("max_response_bytes", self.max_response_bytes, 1)
        _check_number("drain_s", self.drain_s, above=False)
        _check_whole("default_output_tokens", self.default_output_tokens, 0)
