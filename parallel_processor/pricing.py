"""What is reserved for a request: its prompt, and as much of its answer as the server's limit charges.

Servers differ. OpenAI and Azure charge the most that a request may use when they admit it, and keep
charging that: to reserve less would be refused. Others charge what an answer did use: there a
``max_tokens`` that is ten times too high would leave nine tenths of the limit unused until each answer
comes, so that what recent answers of the same model and kind used is reserved in its place. A request
that names no cap gets that everywhere.
"""

from __future__ import annotations

from parallel_processor.learned import OutputSizes
from parallel_processor.models import Cost, Estimate, Request
from parallel_processor.options import Options
from parallel_processor.providers import charges_reservation, endpoint_of
from parallel_processor.tokens import TokenCounter


class Pricing:
    """Estimates costs, and learns from answers. Any thread may call it."""

    def __init__(self, options: Options) -> None:
        self._request_url = options.request_url
        self._counter = TokenCounter(
            encoding_name=options.token_encoding_name,
            default_output_tokens=options.default_output_tokens,
        )
        self._sizes = OutputSizes()
        self.charges_use = options.token_accounting == "usage"
        if options.token_accounting == "auto":
            self.charges_use = not charges_reservation(options.request_url)

    def estimate(self, request: Request) -> Estimate:
        """What ``request`` may use, which is counted once."""
        endpoint = endpoint_of(request.url or self._request_url)
        counter, body = self._counter, request.body
        return Estimate(
            input_tokens=counter.input_tokens(body, endpoint),
            output_cap=counter.output_cap(body, endpoint),
            output_tokens=counter.output_tokens(body, endpoint),
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
        """The answer of such a request had ``output_tokens``."""
        self._sizes.note(estimate.kind, output_tokens)
