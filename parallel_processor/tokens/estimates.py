"""Estimates what to reserve for a request: its prompt, and the part of its output that a server charges.

Servers differ:

* OpenAI and Azure charge the most that a request may use, when they admit it, and never correct
  that. To reserve less would be rejected.
* Others charge what a response used. There, a ``max_tokens`` that is ten times too high would leave
  nine tenths of the limit unused until each response comes. So the cost is what recent responses of
  the same model and endpoint used.

A request without a cap is estimated by recent responses everywhere.

To count a prompt takes longer than all else that is done for a request. So while nothing limits tokens, a
prompt is guessed by its size, once 100 of its model and endpoint were counted, and its output by recent
responses alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint, Estimate, Request
from parallel_processor.options import Options
from parallel_processor.providers.dialects import endpoint_of, url_model
from parallel_processor.providers.endpoints import charges_reservation
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.tokens.counter import TokenCounter

_KEPT = 200
_QUANTILE = 0.9
_EVERY = 10  # after so many responses the quantile is computed again; fewer say nothing
_MAX_KINDS = 256
_COUNTED = 100  # prompts, after which others can be guessed


class Cost(NamedTuple):
    """The tokens that an attempt is expected to cost: all of them, and how many of them are output."""

    tokens: int
    output_tokens: int = 0


class RequestKind:
    """What was learned of the requests of one model and endpoint. Any thread may call it.

    Attributes:
        endpoint: the endpoint.
        plain_cap: the most output that a request may get which names no cap; ``None`` if it isn't bounded.
        plain_output: the output to reserve for such a request before responses have come.
        expected_output: the tokens that nine of ten recent responses stayed within; ``None`` before ten
            have come.
        tokens_per_byte: input tokens per byte of a request's JSON; ``None`` before 100 were counted.
    """

    __slots__ = (
        *("_bytes", "_counted", "_fresh", "_lock", "_sizes", "_tokens"),
        *("endpoint", "expected_output", "plain_cap", "plain_output", "tokens_per_byte"),
    )

    def __init__(self, endpoint: Endpoint, plain_cap: int | None, plain_output: int) -> None:
        self.endpoint, self.plain_cap, self.plain_output = endpoint, plain_cap, plain_output
        self.expected_output: int | None = None
        self.tokens_per_byte: float | None = None
        self._lock = InterruptSafeLock()  # guards all that follows, and every change
        self._sizes: deque[int] = deque(maxlen=_KEPT)
        self._fresh = self._counted = self._tokens = self._bytes = 0

    def counted(self, input_tokens: int, size_bytes: int) -> None:
        """Note that the JSON of a request has ``size_bytes``, and its prompt ``input_tokens``."""
        with self._lock:
            self._counted += 1
            self._tokens += input_tokens
            self._bytes += size_bytes
            if self._counted >= _COUNTED and self._bytes:
                self.tokens_per_byte = self._tokens / self._bytes

    def answered(self, output_tokens: int) -> None:
        """Note the length of a response; compute ``expected_output`` after each ten."""
        with self._lock:
            self._sizes.append(output_tokens)
            self._fresh += 1
            if self._fresh == _EVERY:
                self._fresh = 0
                ordered = sorted(self._sizes)
                self.expected_output = ordered[int(_QUANTILE * (len(ordered) - 1))]


class CostEstimator:
    """Estimates costs, and learns from responses. Any thread may call it."""

    def __init__(self, options: Options) -> None:
        self._request_url = options.request_url
        self._counter = TokenCounter(
            encoding_name=options.token_encoding_name,
            default_output_tokens=options.default_output_tokens,
        )
        self._kinds: dict[tuple[str, str], RequestKind] = {}
        self.charges_use = options.token_accounting == "usage"
        if options.token_accounting == "auto":
            self.charges_use = not charges_reservation(options.request_url)

    def url_and_model(self, request: Request) -> tuple[str, str]:
        """Where ``request`` goes, and the model that it, or that URL, names; empty if neither does."""
        url = request.url or self._request_url
        return url, request.model or url_model(url)

    def estimate(self, request: Request) -> Estimate:
        """What ``request`` may use. Its tokens are counted here, once."""
        _, model = self.url_and_model(request)
        kind = self._kind_of(request, model)
        tokens = self._counter.input_tokens(request.body, kind.endpoint, model)
        kind.counted(tokens, len(request.payload))
        return Estimate(tokens, *self._output(request.body, kind.endpoint), kind)

    def guess(self, request: Request, model: str) -> Estimate | None:
        """A guess that reads nothing of its body; ``None`` before enough of its kind were counted.

        ``model`` is that of :meth:`url_and_model`.
        """
        kind = self._kind_of(request, model)
        if kind.tokens_per_byte is None:
            return None
        input_tokens = int(len(request.payload) * kind.tokens_per_byte)
        return Estimate(input_tokens, kind.plain_cap, kind.plain_output, kind)

    def _output(self, body: Mapping[str, Any], endpoint: Endpoint) -> tuple[int | None, int]:
        """The most output that a request may get, and the output to reserve."""
        cap = self._counter.output_cap(body, endpoint)
        return cap, self._counter.usual_output(body, endpoint) if cap is None else cap

    def _kind_of(self, request: Request, model: str) -> RequestKind:
        """What was learned of similar requests. Beyond 256 kinds, nothing is learned of new ones."""
        key = (request.url or self._request_url, model)
        kind = self._kinds.get(key)
        if kind is None:
            endpoint = endpoint_of(key[0])
            kind = RequestKind(endpoint, *self._output({}, endpoint))
            if len(self._kinds) < _MAX_KINDS:
                kind = self._kinds.setdefault(key, kind)
        return kind

    def cost(self, estimate: Estimate) -> Cost:
        """What an attempt that is sent now is expected to be charged."""
        output, cap, kind = estimate.output_tokens, estimate.output_cap, estimate.kind
        if kind is not None and (cap is None or (cap and self.charges_use)):
            expected = kind.expected_output
            if expected is not None:
                output = expected if cap is None else min(cap, expected)
        return Cost(estimate.input_tokens + output, output)
