"""What a simulated server is told to do, checked once when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator.faults import FAULT_KINDS

DEFAULT_ERRORS = ("500", "503", "429", "reset", "torn", "html", "detail", "bad_json")
"""The faults a client is expected to get over by trying again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """Every choice a `Simulator` offers; the defaults answer everything, at once and for ever.

    A limit of None is no limit. `spend_limit` is in answered requests. `error_rate` is the share of
    the *distinct* request bodies that fail, each `error_attempts` times (0: always).
    """

    host: str = "127.0.0.1"
    port: int = 0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    reject_oversize: bool = False
    latency_s: float = 0.0
    latency_jitter: float = 0.0
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
        self._check_range("port", 0, 65_535)
        self._check_range("latency_s", 0.0, math.inf)
        self._check_range("latency_jitter", 0.0, 1.0)
        self._check_range("error_rate", 0.0, 1.0)
        self._check_range("error_attempts", 0, math.inf)
        self._check_range("stall_s", 0.0, math.inf)
        self._check_range("embedding_dimensions", 1, 4_096)
        self._check_range("default_output_tokens", 0, math.inf)
        if self.spend_limit is not None:
            self._check_range("spend_limit", 0, math.inf)
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise ConfigurationError(f"{name} must be above 0 or None, not {limit!r}")
        unknown = sorted(set(self.errors) - FAULT_KINDS)
        if unknown:
            raise ConfigurationError(f"errors: unknown {unknown}; known: {sorted(FAULT_KINDS)}")
        if self.error_rate and not self.errors:
            raise ConfigurationError("errors must name a kind when error_rate is above 0")

    def _check_range(self, name: str, lowest: float, highest: float) -> None:
        value = getattr(self, name)
        if not lowest <= value <= highest or (highest == math.inf and value == math.inf):
            raise ConfigurationError(f"{name} must be {lowest} to {highest}, not {value!r}")
