"""Every setting, checked once: when :class:`Limits`, :class:`RetryPolicy` or :class:`Options` is made.

A new setting is a field of one of them, and a row in the table of flags. A field of :class:`Options` is
in :class:`Settings`, too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, cast, get_args

from parallel_processor.checks import check, check_budget, check_number, check_seconds, check_whole
from parallel_processor.credentials.checks import (
    check_auth_header,
    check_headers,
    check_lanes,
    check_limiter,
    check_query,
    checked_hosts,
    checked_keys,
    checked_replicas,
    checked_url,
    keys_by_host,
)
from parallel_processor.credentials.keyring import KeyLike, Keyring
from parallel_processor.credentials.urls import shown_url as shown_url
from parallel_processor.credentials.urls import without_login as without_login


class DefaultUrl(str):
    """The URL that nobody set: the environment may know another."""

    __slots__ = ()


DEFAULT_REQUEST_URL = DefaultUrl("https://api.openai.com/v1/embeddings")


class DefaultLimit(float):
    """A limit that nobody set. It gives way to limits by model, and the run says when it holds it back."""

    __slots__ = ()


DEFAULT_REQUESTS_PER_MINUTE = DefaultLimit(1500.0)
DEFAULT_TOKENS_PER_MINUTE = DefaultLimit(125_000.0)
Limit = float | Literal["auto"]
"""A limit per minute, ``math.inf`` for none, or ``"auto"`` for what the server turns out to allow."""
PackInputs = int | Literal["auto"]
"""How many inputs to send in one request, or ``"auto"`` for as many as the limits make useful."""
TokenAccounting = Literal["auto", "reserve", "usage"]
"""What a server's token limit charges; :class:`Options` explains each."""
OutputFormat = Literal["auto", "batch", "cookbook"]
"""The form of the records: that of each line, lines of a Batch file, or the cookbook's."""

PricesLike = str | os.PathLike[str] | Mapping[str, Mapping[str, float]]
"""A file of prices, its content, or ``"auto"``."""

SYSTEM_STORE = "system"
"""The value of ``ca_bundle`` for the authorities that the operating system trusts."""
MOST_PROCESSES = 64
_LEAST = {  # of the settings that are whole numbers
    "max_workers": 1,
    "processes": 1,
    "max_response_bytes": 1,
    "stop_after_equal_failures": 0,
    "default_output_tokens": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be sent in any 60 seconds.

    The first two limits are a number, ``math.inf`` for no limit, or ``"auto"``: start slowly, then follow
    the limits in the answers' headers, or probe for them. A number is a ceiling: if the server's
    headers name less, less is sent. A default that is left as it is gives way to limits by model.

    Attributes:
        requests_per_minute: requests, above 0, or ``"auto"``.
        tokens_per_minute: input and output tokens together, above 0, or ``"auto"``.
        input_tokens_per_minute: input tokens alone, above 0, for accounts with such a limit.
        output_tokens_per_minute: output tokens alone, above 0, for accounts with such a limit.
        burst_seconds: how many seconds' worth of a limit may go out at once after a pause, at most 60.
            Servers may apply 600 a minute as 10 a second, so more than a few seconds' worth risks 429s.
        headroom: the share of every limit that is left to other clients, 0 to 0.9.

    >>> limits = Limits(requests_per_minute=500, tokens_per_minute="auto", headroom=0.1)
    >>> limits.by_kind["requests"], limits.is_auto
    (450.0, True)
    """

    requests_per_minute: Limit = DEFAULT_REQUESTS_PER_MINUTE
    tokens_per_minute: Limit = DEFAULT_TOKENS_PER_MINUTE
    input_tokens_per_minute: float = math.inf
    output_tokens_per_minute: float = math.inf
    burst_seconds: float = 0.5
    headroom: float = 0.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if isinstance(value, str):
                check(value == "auto", name, value, "a number, inf or auto")
            else:
                check_number(name, value)
        for name in ("input_tokens_per_minute", "output_tokens_per_minute", "burst_seconds"):
            check_number(name, getattr(self, name))
        check(self.burst_seconds <= 60, "burst_seconds", self.burst_seconds, "at most 60")
        check_number("headroom", self.headroom, above=False)
        check(self.headroom <= 0.9, "headroom", self.headroom, "at most 0.9")

    @property
    def is_auto(self) -> bool:
        """True if at least one limit is to be found."""
        return "auto" in (self.requests_per_minute, self.tokens_per_minute)

    @property
    def by_kind(self) -> Mapping[str, float]:
        """The ceilings by what they count, less the headroom; infinite for no limit and ``"auto"``."""
        kinds = ("requests", "tokens", "input_tokens", "output_tokens")
        found = {kind: getattr(self, f"{kind}_per_minute") for kind in kinds}
        share = 1.0 - self.headroom
        return {k: math.inf if v == "auto" else v * share for k, v in found.items()}

    @property
    def defaults(self) -> Mapping[str, float]:
        """The limits that nobody set, by what they count as in :attr:`by_kind`."""
        given = {"requests": self.requests_per_minute, "tokens": self.tokens_per_minute}
        return {kind: limit for kind, limit in given.items() if isinstance(limit, DefaultLimit)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and for how long a request is tried again.

    Before retry *k* a request waits a random time of up to
    ``min(backoff_max_s, backoff_initial_s * 2**(k-1))`` seconds (full jitter; AWS Architecture Blog,
    "Exponential Backoff And Jitter").

    Attributes:
        max_attempts: failed attempts after which a request fails, at least 1. 429s and outages don't
            count.
        backoff_initial_s: longest wait before the first retry, in seconds.
        backoff_max_s: longest wait before any retry, in seconds.
        pause_s: seconds for which everything pauses after a 429 that doesn't say how long. ``None``: 1 s
            at first, and up to 15 s while nothing is answered.
        rate_limit_deadline_s: seconds of 429s after which a request fails, and of an outage after which its
            model is left out. If the server asks for a longer wait, the run stops.

    >>> retry = RetryPolicy(max_attempts=2, backoff_initial_s=0)
    >>> with Processor(request_url=url, retry=retry) as processor:
    ...     print(processor.options.retry.max_attempts)
    2
    """

    max_attempts: int = 5
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 60.0
    pause_s: float | None = None
    rate_limit_deadline_s: float = 600.0

    def __post_init__(self) -> None:
        check_whole("max_attempts", self.max_attempts, 1)
        for name in ("backoff_initial_s", "backoff_max_s"):
            check_seconds(name, getattr(self, name), above=False)
        if self.pause_s is not None:
            check_seconds("pause_s", self.pause_s, above=False)
        check_number("rate_limit_deadline_s", self.rate_limit_deadline_s, above=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of a :class:`~parallel_processor.Processor`.

    Attributes:
        request_url: where requests go, an ``http`` or ``https`` URL. ``{model}`` in it stands for the
            model of each request. A login in it is taken out of it, and becomes ``login``.
        replica_urls: further URLs of the same models. A request goes where the fewest are under way.
        api_key: the key that is sent to the host of ``request_url``, printable ASCII; several, to be used
            in turn; or a function that returns one, which is called again when the key has expired. It is
            not in ``repr``.
        api_key_ttl_s: seconds after which a function is called again though no server refused its key.
        api_keys: the keys for other hosts, by ``HOST`` or ``HOST:PORT``, each as ``api_key``; an empty
            one for a host that gets none.
        allowed_hosts: other hosts that the URLs of requests may name, as ``HOST`` or ``HOST:PORT``.
        headers: headers that are sent to the host of ``request_url``; they are not in ``repr``.
        auth_header: the header for ``api_key``, ``NAME`` or ``NAME: PREFIX``. ``None``: that of its host.
        query: parameters that are added to URLs on the host of ``request_url``; not in ``repr``.
        login: ``user:password`` for Basic authentication, in place of a key or besides one that has
            another header; it is not in ``repr``.
        ca_bundle: whose certificates to trust: a file or directory of authorities, or ``"system"`` for
            the operating system's. ``None`` leaves it to requests: its variables, else certifi.
        limits: what may be sent in a minute.
        limits_by_model: limits for models by pattern, such as ``"gpt-4o*"``. The first pattern that a model
            matches counts; its models share one limit. The numbers of ``limits`` hold for all models
            together, those of a pattern besides; defaults that nobody set hold for the other models.
        account: the name of the account. Processors of one name share each limit of the same number.
            ``None``: so do those with the same host in ``request_url`` and the same ``api_key``.
        limiter: which server holds the configured limits, so that several processes and hosts share them:
            a URL of Redis or Valkey (``redis://``, ``rediss://``, ``unix://``), or a function that makes
            a ``Limiter``. It is not in ``repr``. ``None``: they hold for this process.
        token_accounting: what the server's token limit charges. ``"reserve"``: the most that a request
            may use. ``"usage"``: what its answer used. ``"auto"``: what is known of the host.
        retry: how often and for how long a request is tried again.
        max_workers: most requests in flight, at least 1; it bounds threads, connections and memory.
        processes: child processes that the workers are spread over, 1 to 64; 1 has the threads here.
            More help only if the server has no limits and one core can't keep up with it.
        request_timeout_s: seconds for one whole exchange, however slowly the answer arrives.
        connect_timeout_s: seconds for the connection alone.
        max_response_bytes: size above which an answer fails, decompressed, at least 1.
        stop_after_equal_failures: the run stops if nothing of a model was answered and so many of its
            requests failed for one reason; 0 for never.
        drain_s: seconds that a stopped run waits for the requests in flight, 0 or more.
        write_retry_s: seconds for which records that can't be written are tried again, 0 or more.
        allow_plain_http: send the key to another host without TLS.
        token_encoding_name: tiktoken encoding for all requests; ``None`` takes that of each model.
        default_output_tokens: tokens reserved for the answer if a request names no maximum, 0 or more.
        session_factory: makes the ``requests.Session`` of each worker; ``None`` takes a plain one.
        validate: called with the JSON of each answer, in several threads at once. If it raises, the
            attempt has failed; what it returns is ignored.
        dedupe: send equal requests of a run once, and give all of them that answer.
        pack_inputs: send the inputs of so many embeddings, moderations or completions as one request, and
            give each its own part of the answer; ``"auto"`` for as many as the limits make useful. ``None``
            and 1 for no packing. What :meth:`Processor.submit` gets is not packed.
        service_tiers: the tiers to ask for, the cheapest first; empty leaves each request as it is.
        tier_patience_s: seconds after which a request that waits for a tier goes on to the next one.
        fallback_model: the model to ask, instead of its own, for what has failed for good.
        fallback_url: where to send what has failed for good.
        prices: what tokens cost: the path of a JSON file (``{"gpt-4o*": {"input": 2.5, "output": 10}}``, in
            US dollars per million tokens, or LiteLLM's table), its content, or ``"auto"`` for genai-prices
            (the extra ``cost``), which is asked for other models, too. ``None``: money is not counted.
        max_cost: US dollars that may be spent, those of earlier runs with the same results included.
        max_total_tokens: tokens that may be used, likewise.
        max_seconds: seconds that a run may take.
        max_failures: how many requests may fail for good, or the share of those that have ended (``"5%"``,
            from the 100th on). With one more, the run stops. ``None`` for any.

    >>> options = Options(request_url=url, api_key="sk-secret", max_workers=50)
    >>> options.max_workers, options.limits.requests_per_minute, "secret" in repr(options)
    (50, 1500.0, False)
    """

    request_url: str = DEFAULT_REQUEST_URL
    replica_urls: Sequence[str] = ()
    api_key: KeyLike | None = field(default=None, repr=False)
    api_key_ttl_s: float = math.inf
    api_keys: Mapping[str, KeyLike] = field(default_factory=dict, repr=False)
    allowed_hosts: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth_header: str | None = None
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    login: str | None = field(default=None, repr=False)
    ca_bundle: str | os.PathLike[str] | None = None
    limits: Limits = field(default_factory=Limits)
    limits_by_model: Mapping[str, Limits] = field(default_factory=dict)
    account: str | None = None
    limiter: str | Callable[[], Any] | None = field(default=None, repr=False)
    token_accounting: TokenAccounting = "auto"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_workers: int = 1000
    processes: int = 1
    request_timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    max_response_bytes: int = 64 * 1024 * 1024
    stop_after_equal_failures: int = 20
    drain_s: float = 30.0
    write_retry_s: float = 60.0
    allow_plain_http: bool = False
    token_encoding_name: str | None = None
    default_output_tokens: int = 16
    session_factory: Callable[[], Any] | None = None
    validate: Callable[[Any], object] | None = None
    dedupe: bool = False
    pack_inputs: PackInputs | None = None
    service_tiers: Sequence[str] = ()
    tier_patience_s: float = 60.0
    fallback_model: str | None = None
    fallback_url: str | None = None
    prices: PricesLike | None = None
    max_cost: float = math.inf
    max_total_tokens: float = math.inf
    max_seconds: float = math.inf
    max_failures: int | str | None = None

    def __post_init__(self) -> None:
        url, login = checked_url(self.request_url, self.login)
        object.__setattr__(self, "request_url", url)
        object.__setattr__(self, "login", login)
        ok = self.ca_bundle is None or isinstance(self.ca_bundle, (str, os.PathLike))
        check(ok and self.ca_bundle != "", "ca_bundle", self.ca_bundle, "a path, or system")
        self._keep_keys()
        check(isinstance(self.limits, Limits), "limits", self.limits, "a Limits")
        ok = isinstance(self.limits_by_model, Mapping) and all(
            isinstance(pattern, str) and isinstance(limits, Limits)
            for pattern, limits in self.limits_by_model.items()
        )
        check(ok, "limits_by_model", self.limits_by_model, "a Limits for each pattern")
        ok = self.account is None or (isinstance(self.account, str) and self.account != "")
        check(ok, "account", self.account, "a name")
        check_limiter(self.limiter)
        ok = self.token_accounting in get_args(TokenAccounting)
        check(ok, "token_accounting", self.token_accounting, "auto, reserve or usage")
        check(isinstance(self.retry, RetryPolicy), "retry", self.retry, "a RetryPolicy")
        for name, least in _LEAST.items():
            check_whole(name, getattr(self, name), least)
        check(self.processes <= MOST_PROCESSES, "processes", self.processes, "at most 64")
        check_seconds("request_timeout_s", self.request_timeout_s)
        check_seconds("connect_timeout_s", self.connect_timeout_s)
        check_number("drain_s", self.drain_s, above=False)
        check_number("write_retry_s", self.write_retry_s, above=False)
        check_seconds("tier_patience_s", self.tier_patience_s, above=False)
        check_lanes(self.service_tiers, self.fallback_model, self.fallback_url)
        if self.pack_inputs not in (None, "auto"):
            check_whole("pack_inputs", cast(int, self.pack_inputs), 1)
        check_budget(self.max_cost, self.max_total_tokens, self.max_seconds, self.max_failures)
        for name in ("session_factory", "validate"):
            function = getattr(self, name)
            check(function is None or callable(function), name, function, "a function")

    def _keep_keys(self) -> None:
        """Check the keys, and what is sent besides; make a function a key that is fetched."""
        check_number("api_key_ttl_s", self.api_key_ttl_s)
        check_headers(self.headers)
        check_query(self.query)
        check_auth_header(self.auth_header)
        kept = {
            "replica_urls": checked_replicas(self.replica_urls, self.request_url, self.login),
            "api_key": checked_keys("api_key", self.api_key, self.api_key_ttl_s),
            "api_keys": keys_by_host(self.api_keys, self.api_key_ttl_s),
            "allowed_hosts": checked_hosts(self.allowed_hosts),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def keyring(self) -> Keyring:
        """Which keys are for which host."""
        return Keyring(
            [self.request_url, *self.replica_urls], self.api_key, self.api_keys, self.allowed_hosts
        )


class Settings(TypedDict, total=False):
    """The fields of :class:`Options` as keyword arguments; any may be missing.

    ``Processor(**settings)`` and ``process_file(..., **settings)`` take them, so that a program can keep
    the settings of an account in one dict. They are checked when they are used.

    >>> account: Settings = {"request_url": url, "max_workers": 4}
    >>> process_file(f"{folder}/requests.jsonl", **account).failed
    0
    """

    request_url: str
    replica_urls: Sequence[str]
    api_key: KeyLike | None
    api_key_ttl_s: float
    api_keys: Mapping[str, KeyLike]
    allowed_hosts: Sequence[str]
    headers: Mapping[str, str]
    auth_header: str | None
    query: Mapping[str, str]
    login: str | None
    ca_bundle: str | os.PathLike[str] | None
    limits: Limits
    limits_by_model: Mapping[str, Limits]
    account: str | None
    limiter: str | Callable[[], Any] | None
    token_accounting: TokenAccounting
    retry: RetryPolicy
    max_workers: int
    processes: int
    request_timeout_s: float
    connect_timeout_s: float
    max_response_bytes: int
    stop_after_equal_failures: int
    drain_s: float
    write_retry_s: float
    allow_plain_http: bool
    token_encoding_name: str | None
    default_output_tokens: int
    session_factory: Callable[[], Any] | None
    validate: Callable[[Any], object] | None
    dedupe: bool
    pack_inputs: PackInputs | None
    service_tiers: Sequence[str]
    tier_patience_s: float
    fallback_model: str | None
    fallback_url: str | None
    prices: PricesLike | None
    max_cost: float
    max_total_tokens: float
    max_seconds: float
    max_failures: int | str | None
