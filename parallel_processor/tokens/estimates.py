"""Estimates what to reserve for a request: its prompt, and the part of its output that a server charges.

Servers differ:

* OpenAI and Azure charge the most that a request may use, when they admit it, and never correct
  that. To reserve less would be rejected.
* Others charge what a response used. There, a ``max_tokens`` that is ten times too high would leave
  nine tenths of the limit unused until each response comes. So the cost is what recent responses of
  the same model and endpoint used. The same holds for a prompt: what its provider keeps in a cache may
  not count, and a tokenizer of its own makes more tokens of the same text.

A request without a cap is estimated by recent responses everywhere.

To count a prompt takes longer than all else that is done for a request. So while nothing limits tokens, a
prompt is guessed by its size, once 100 of its model and endpoint were counted, and its output by recent
responses alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from parallel_processor.models import Attempt, Endpoint, Estimate, Request
from parallel_processor.options import Options
from parallel_processor.providers.dialects import endpoint_of, provider_of, url_model
from parallel_processor.providers.endpoints import charges_reservation
from parallel_processor.providers.usage import cached_tokens
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.tokens.counter import TokenCounter

_KEPT = 200
_QUANTILE = 0.9
_EVERY = 10  # after so many responses the quantile is computed again; fewer say nothing
_MAX_KINDS = 256
_COUNTED = 100  # prompts, after which others can be guessed
_LARGEST_SHARE = 10.0  # of a prompt's count; what is charged above that is not about the prompt


_Number = TypeVar("_Number", int, float)


class Cost(NamedTuple):
    """The tokens that an attempt is expected to cost: all of them, and how many of them are output."""

    tokens: int
    output_tokens: int = 0


class RequestKind:
    """What was learned of the requests of one model and endpoint. Any thread may call it.

    Attributes:
        endpoint: the endpoint.
        charges_use: whether its server's token limit counts what an answer used.
        counts_cache: whether that includes tokens which the server had in its cache.
        plain_cap: the most output that a request may get which names no cap; ``None`` if it isn't bounded.
        plain_output: the output to reserve for such a request before responses have come.
        expected_output: the tokens that nine of ten recent responses stayed within; ``None`` before ten
            have come.
        input_share: the part of a prompt's counted tokens that nine of ten recent responses were charged,
            at most 10; ``None`` before ten have come, and where servers charge the reservation.
        tokens_per_byte: input tokens per byte of a request's JSON; ``None`` before 100 were counted.
    """

    __slots__ = (
        *("_bytes", "_counted", "_fresh", "_lock", "_shares", "_sizes", "_tokens"),
        *("charges_use", "counts_cache", "endpoint", "expected_output", "input_share"),
        *("plain_cap", "plain_output", "tokens_per_byte"),
    )

    def __init__(
        self,
        endpoint: Endpoint,
        plain_cap: int | None,
        plain_output: int,
        *,
        charges_use: bool = False,
        counts_cache: bool = True,
    ) -> None:
        self.endpoint, self.plain_cap, self.plain_output = endpoint, plain_cap, plain_output
        self.charges_use, self.counts_cache = charges_use, counts_cache
        self.expected_output: int | None = None
        self.input_share: float | None = None
        self.tokens_per_byte: float | None = None
        self._lock = InterruptSafeLock()  # guards all that follows, and every change
        self._sizes: deque[int] = deque(maxlen=_KEPT)
        self._shares: deque[float] = deque(maxlen=_KEPT)
        self._fresh = self._counted = self._tokens = self._bytes = 0

    def of_packs(self, count: int) -> RequestKind:
        """What is learned of ``count`` of these requests that are sent as one; nothing yet."""
        return RequestKind(
            self.endpoint,
            None if self.plain_cap is None else count * self.plain_cap,
            count * self.plain_output,
            charges_use=self.charges_use,
            counts_cache=self.counts_cache,
        )

    def counted(self, input_tokens: int, size_bytes: int) -> None:
        """Note that the JSON of a request has ``size_bytes``, and its prompt ``input_tokens``."""
        with self._lock:
            self._counted += 1
            self._tokens += input_tokens
            self._bytes += size_bytes
            if self._counted >= _COUNTED and self._bytes:
                self.tokens_per_byte = self._tokens / self._bytes

    def answered(self, output_tokens: int, input_share: float | None = None) -> None:
        """Note the length of a response, and what share of its prompt was charged, if that may be learned.

        After each ten, what is expected is computed.
        """
        with self._lock:
            self._sizes.append(output_tokens)
            if input_share is not None:
                self._shares.append(min(input_share, _LARGEST_SHARE))
            self._fresh += 1
            if self._fresh == _EVERY:
                self._fresh = 0
                self.expected_output = _most_of(self._sizes)
                if self._shares:
                    self.input_share = _most_of(self._shares)


def _most_of(values: Collection[_Number]) -> _Number:
    """What nine of ten values stay within."""
    ordered = sorted(values)
    return ordered[int(_QUANTILE * (len(ordered) - 1))]


class CostEstimator:
    """Estimates costs, and learns from responses. Any thread may call it.

    ``guesses`` is false where each prompt's own count is needed: for a budget, or for limits that may come
    in mid-run, when the requests that are read ahead must have theirs.
    """

    def __init__(self, options: Options) -> None:
        self._request_url = options.request_url
        self._counter = TokenCounter(
            encoding_name=options.token_encoding_name,
            default_output_tokens=options.default_output_tokens,
        )
        self._kinds: dict[tuple[str, str], RequestKind] = {}
        self._packed: dict[tuple[RequestKind, int], RequestKind] = {}  # several requests as one
        self._accounting = options.token_accounting
        is_unbounded = options.max_cost == options.max_total_tokens == math.inf
        self.guesses = is_unbounded and not options.limits_by_model

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

    def together(self, estimates: Sequence[Estimate]) -> Estimate:
        """What requests of one kind may use that are sent as one.

        How long their answers are is learned for each number of them.
        """
        inputs, caps, outputs, kinds = zip(*estimates, strict=True)
        cap = None if None in caps else sum(caps)
        kind, count = kinds[0], len(estimates)
        if kind is not None and count > 1 and kind.plain_cap != 0:
            kind = self._packed.get((kind, count)) or kind.of_packs(count)
            if len(self._packed) < _MAX_KINDS:
                self._packed[kinds[0], count] = kind
        return Estimate(sum(inputs), cap, sum(outputs), kind)

    def guess(self, request: Request, model: str) -> Estimate | None:
        """A guess that reads nothing of its body; ``None`` if it is to be counted, as the first are.

        ``model`` is that of :meth:`url_and_model`.
        """
        kind = self._kind_of(request, model)
        if kind.tokens_per_byte is None or not self.guesses:
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
            charges_use = self._accounting == "usage"
            if self._accounting == "auto":
                charges_use = not charges_reservation(key[0])
            kind = RequestKind(
                endpoint,
                *self._output({}, endpoint),
                charges_use=charges_use,
                counts_cache=provider_of(key[0]).counts_cache,
            )
            if len(self._kinds) < _MAX_KINDS:
                kind = self._kinds.setdefault(key, kind)
        return kind

    def charge(self, estimate: Estimate | None, reserved: float, attempt: Attempt) -> int | None:
        """The tokens to charge for ``attempt`` instead of those ``reserved``; ``None`` to leave these.

        What its answer used is learned.
        """
        used, output = attempt.used_tokens, attempt.output_tokens
        kind: RequestKind | None = None if estimate is None else estimate.kind
        if used is None or estimate is None or kind is None:
            return used if used is not None and used > reserved else None
        if not kind.charges_use:
            if output is not None:
                kind.answered(output)
            return used if used > reserved else None
        if not kind.counts_cache and attempt.response is not None:
            used = max(output or 0, used - cached_tokens(attempt.response.data))
        if output is not None:
            counted = estimate.input_tokens
            kind.answered(output, (used - output) / counted if counted > 0 else None)
        return used

    def cost(self, estimate: Estimate) -> Cost:
        """What an attempt that is sent now is expected to be charged."""
        inputs, cap, output, kind = estimate
        if kind is not None and (cap is None or (cap and kind.charges_use)):
            expected = kind.expected_output
            if expected is not None:
                output = expected if cap is None else min(cap, expected)
        if kind is not None and (share := kind.input_share) is not None:
            inputs = math.ceil(inputs * share)
        return Cost(inputs + output, output)
