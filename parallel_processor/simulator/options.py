"""What a simulated server is told to do, checked once when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator.dialects import DIALECTS
from parallel_processor.simulator.faults import FAULT_KINDS
from parallel_processor.simulator.headers import HEADER_STYLES
from parallel_processor.simulator.quotas import METRICS
from parallel_processor.simulator.refusals import DEFAULT_REFUSAL_CODE
from parallel_processor.simulator.rules import Rule
from parallel_processor.simulator.tiers import TIER_REFUSALS

DEFAULT_ERRORS = ("500", "503", "429", "reset", "torn", "html", "detail", "bad_json")
"""The faults a client is expected to get over by trying again."""

CHOICES = {
    "enforcement": ("bucket", "window"),
    "header_style": HEADER_STYLES,
    "dialect": ("auto", *DIALECTS),
    "token_charge": ("reserve", "usage"),
    "tier_refusal": TIER_REFUSALS,
}

MOST_RIVAL_REQUESTS_PER_MINUTE = 60_000
"""More would take the server too long to work out after a quiet time."""

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "latency_s": (0.0, math.inf),
    "latency_jitter": (0.0, 1.0),
    "error_rate": (0.0, 1.0),
    "error_attempts": (0, math.inf),
    "stall_s": (0.0, math.inf),
    "embedding_dimensions": (1, 4_096),
    "default_output_tokens": (0, math.inf),
    "spend_limit": (0, math.inf),
    "rival_requests_per_minute": (0, MOST_RIVAL_REQUESTS_PER_MINUTE),
    "rival_tokens_per_request": (0, math.inf),
    "rival_from_s": (0.0, math.inf),
    "answer_tokens": (1, math.inf),
    "best_in_flight": (1, math.inf),
    "overload_exponent": (0.0, 10.0),
    "refuse_in_flight": (1, math.inf),
    "slots": (1, 100_000),
}
_WHOLE = (
    "rival_tokens_per_request",
    "answer_tokens",
    "best_in_flight",
    "refuse_in_flight",
    "slots",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """The limits of a model that has its own; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        _check_limits(self, "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """New limits from `at_s` seconds after the first request; None leaves one as it is.

    They are those of the models that match `model`, an fnmatch pattern.
    """

    at_s: float
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    model: str = "*"

    def __post_init__(self) -> None:
        _check(_is_number(self.at_s, 0.0, math.inf), "at_s", self.at_s, "0 or more seconds")
        _check(isinstance(self.model, str), "model", self.model, "a pattern")
        _check_limits(self, "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A restart: no connection is open, and none can be made, between these seconds of the run.

    They count from the first request.
    """

    from_s: float
    until_s: float

    def __post_init__(self) -> None:
        _check(_is_number(self.from_s, 0.0, math.inf), "from_s", self.from_s, "0 or more seconds")
        ok = _is_number(self.until_s, self.from_s, math.inf)
        _check(ok, "until_s", self.until_s, "no less than from_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """Every choice a `Simulator` offers; the defaults answer everything, at once and for ever.

    A limit of None is no limit. `spend_limit` is in answered requests. `error_rate` is the share of
    the *distinct* request bodies that fail, each `error_attempts` times (0: always).

    With `limits_by_model` each model has limits of its own: those of the first fnmatch pattern that
    it matches, else the options'; without, all models share one set. `burst_s` is what a bucket
    holds, in seconds' worth of its limit; under `enforcement="window"` each window of `window_s`
    has its part of the limit instead. `requests_per_day` is always a bucket. `changes` and the
    rival, another client of the same account, go by the seconds since the first request.

    `dialect` is the provider that the server speaks like: its errors, the header of its key, and its
    `header_style` if none is given. With "auto" the host that the client names tells it, as behind a proxy,
    else the path.

    `token_charge="reserve"` charges the most that an answer may have at admission; "usage" charges
    the prompt, and the answer once it is written. Then `answer_tokens` is how long answers are, by
    their usage, half as much more or less. With `retry_after` off, refusals say no time to wait;
    `refusal_code` is their code. `best_in_flight` and `overload_exponent` are explained in load.py;
    above `refuse_in_flight` requests the server says that it is overloaded; with `slots` it answers
    so many at once, and the others wait in a queue without end. `rules` give requests an answer of
    your own; the first that applies counts. In `outages` nothing listens.

    With `tier_grants`, requests name service tiers: each has room for that share of its requests, and
    `tier_refusal` is how it refuses the others. Models are then known as `model@tier`, in
    `limits_by_model` and in the timeline.
    """

    host: str = "127.0.0.1"
    port: int = 0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    requests_per_day: float | None = None
    limits_by_model: Mapping[str, ModelLimits] = field(default_factory=dict)
    changes: tuple[LimitChange, ...] = ()
    enforcement: str = "bucket"
    burst_s: float = 60.0
    window_s: float = 60.0
    rival_requests_per_minute: float = 0
    rival_tokens_per_request: int = 0
    rival_from_s: float = 0.0
    rival_until_s: float = math.inf
    reject_oversize: bool = False
    token_charge: str = "reserve"
    answer_tokens: int | None = None
    header_style: str = "auto"
    dialect: str = "auto"
    retry_after: bool = True
    refusal_code: str = DEFAULT_REFUSAL_CODE
    latency_s: float = 0.0
    latency_jitter: float = 0.0
    best_in_flight: int | None = None
    overload_exponent: float = 1.5
    refuse_in_flight: int | None = None
    slots: int | None = None
    rules: tuple[Rule, ...] = ()
    outages: tuple[Outage, ...] = ()
    tier_grants: Mapping[str, float] = field(default_factory=dict)
    tier_refusal: str = "openai"
    error_rate: float = 0.0
    error_attempts: int = 1
    errors: tuple[str, ...] = DEFAULT_ERRORS
    stall_s: float = 30.0
    seed: int = 0
    api_key: str | None = field(default=None, repr=False)
    spend_limit: int | None = None
    embedding_dimensions: int = 8
    token_encoding_name: str | None = None
    default_output_tokens: int = 16

    def __post_init__(self) -> None:
        """Raise ConfigurationError, naming the field and its value, for what can't be simulated."""
        self._check_ranges()
        self._check_schedule()
        for name, known in CHOICES.items():
            value = getattr(self, name)
            _check(value in known, name, value, f"one of {', '.join(known)}")
        ok = all(_is_number(share, 0.0, 1.0) for share in self.tier_grants.values())
        _check(ok, "tier_grants", self.tier_grants, "a share, 0 to 1, for each tier")
        code: object = self.refusal_code
        _check(isinstance(code, str) and bool(code), "refusal_code", code, "a text")
        unknown = sorted(set(self.errors) - FAULT_KINDS)
        if unknown:
            raise ConfigurationError(f"errors: unknown {unknown}; known: {sorted(FAULT_KINDS)}")
        if self.error_rate and not self.errors:
            raise ConfigurationError("errors must name a kind when error_rate is above 0")

    def _check_ranges(self) -> None:
        defaults = type(self).__dataclass_fields__
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            ok = (value is None and defaults[name].default is None) or _is_number(
                value, lowest, highest
            )
            _check(ok, name, value, f"{lowest} to {highest}")
        for name in _WHOLE:
            value = getattr(self, name)
            _check(value is None or isinstance(value, int), name, value, "a whole number")
        for name in ("burst_s", "window_s"):
            value = getattr(self, name)
            _check(_is_number(value, 0.0, math.inf) and value > 0, name, value, "above 0")
        _check_limits(self, *METRICS)

    def _check_schedule(self) -> None:
        until_s = self.rival_until_s
        ok = until_s == math.inf or _is_number(until_s, 0.0, math.inf)
        _check(ok, "rival_until_s", until_s, "0 or more seconds, or infinite")
        own: object = self.limits_by_model
        ok = isinstance(own, Mapping) and all(
            isinstance(pattern, str) and isinstance(limits, ModelLimits)
            for pattern, limits in own.items()
        )
        _check(ok, "limits_by_model", own, "ModelLimits by pattern")
        for name, kind in (("rules", Rule), ("outages", Outage)):
            value = getattr(self, name)
            _check(all(isinstance(one, kind) for one in value), name, value, f"{kind.__name__}s")
        for change in self.changes:
            _check(isinstance(change, LimitChange), "changes", change, "a LimitChange")
            ok = change.model == "*" or bool(self.limits_by_model)
            want = "for every model (*) where models share their limits"
            _check(ok, "changes", change, want)


def _check(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigurationError(f"{name} must be {want}, not {value!r}")


def _is_number(value: object, lowest: float, highest: float) -> bool:
    """Tell whether it is a finite number within these bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return lowest <= value <= highest and value != math.inf


def _check_limits(options: object, *names: str) -> None:
    for name in names:
        limit = getattr(options, name)
        ok = limit is None or (_is_number(limit, 0.0, math.inf) and limit > 0)
        _check(ok, name, limit, "above 0 or None")
