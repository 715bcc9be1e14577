"""Estimates what to reserve for a request: its prompt, and the part of its output that a server charges.

Servers differ:

* OpenAI and Azure charge the most that a request may use, when they admit it, and never correct
  that. To reserve less would be rejected.
* Others charge what a response used. There, a ``max_tokens`` that is ten times too high would leave
  nine tenths of the limit unused until each response comes. So the cost is what recent responses of
  the same model and endpoint used.

A request without a cap is estimated by recent responses everywhere.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

from parallel_processor.models import Estimate, Request
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import charges_reservation, endpoint_of
from parallel_processor.tokens.counter import TokenCounter

_KEPT = 200
_QUANTILE = 0.9
_EVERY = 10  # after so many responses the quantile is computed again; fewer say nothing
_MAX_KEYS = 256


class Cost(NamedTuple):
    """The tokens that an attempt is expected to cost: all of them, and how many of them are output."""

    tokens: int
    output_tokens: int = 0


class CostEstimator:
    """Estimates costs, and learns from responses. Any thread may call it."""

    def __init__(self, options: Options) -> None:
        self._request_url = options.request_url
        self._counter = TokenCounter(
            encoding_name=options.token_encoding_name,
            default_output_tokens=options.default_output_tokens,
        )
        self._sizes = OutputLengths()
        self.charges_use = options.token_accounting == "usage"
        if options.token_accounting == "auto":
            self.charges_use = not charges_reservation(options.request_url)

    def estimate(self, request: Request) -> Estimate:
        """What ``request`` may use. Its tokens are counted here, once."""
        endpoint, counter = endpoint_of(request.url or self._request_url), self._counter
        return Estimate(
            input_tokens=counter.input_tokens(request.body, endpoint),
            output_cap=counter.output_cap(request.body, endpoint),
            output_tokens=counter.output_tokens(request.body, endpoint),
            kind=(endpoint, request.model),
        )

    def cost(self, estimate: Estimate) -> Cost:
        """What an attempt that is sent now is expected to be charged."""
        output, cap = estimate.output_tokens, estimate.output_cap
        if cap is None or (self.charges_use and cap):
            expected = self._sizes.expected(estimate.kind)
            if expected is not None:
                output = expected if cap is None else min(cap, expected)
        return Cost(estimate.input_tokens + output, output)

    def learn(self, estimate: Estimate, output_tokens: int) -> None:
        """Note that the response to such a request had ``output_tokens``."""
        self._sizes.note(estimate.kind, output_tokens)


class _Recent:
    """The newest responses of one model and endpoint."""

    def __init__(self) -> None:
        self.sizes: deque[int] = deque(maxlen=_KEPT)
        self.fresh = 0
        self.expected: int | None = None

    def add(self, tokens: int) -> None:
        """Add a response; compute ``expected`` after each ten."""
        self.sizes.append(tokens)
        self.fresh += 1
        if self.fresh == _EVERY:
            self.fresh = 0
            ordered = sorted(self.sizes)
            self.expected = ordered[int(_QUANTILE * (len(ordered) - 1))]


class OutputLengths:
    """The output tokens of recent responses, by endpoint and model. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _recent and what it holds
        self._recent: dict[Hashable, _Recent] = {}

    def note(self, key: Hashable, tokens: int) -> None:
        """Note that a response had ``tokens`` of output. Beyond 256 keys, new ones are ignored."""
        with self._lock:
            recent = self._recent.get(key)
            if recent is None:
                if len(self._recent) >= _MAX_KEYS:
                    return
                recent = self._recent[key] = _Recent()
            recent.add(tokens)

    def expected(self, key: Hashable) -> int | None:
        """What nine of ten recent responses stayed within; ``None`` before ten have come."""
        with self._lock:
            recent = self._recent.get(key)
            return None if recent is None else recent.expected
