"""What a request may have at most: by its model, its provider, and the limits of a minute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint
from parallel_processor.providers.answers import count_inputs
from parallel_processor.providers.dialects import endpoint_of, provider_of

# OpenAI's reference of embeddings: inputs of a request, tokens of an input, tokens of all of them.
_MOST_INPUTS, _MOST_OF_INPUT, _MOST_OF_ALL = 2_048, 8_192, 300_000
_OPENAIS = {"OpenAI", "Azure OpenAI"}


class Bounds(NamedTuple):
    """Those of one model at one URL; infinite where nothing is known.

    Attributes:
        tokens_per_minute: above it, a request goes alone.
        context: tokens of a prompt and its answer together.
        inputs: inputs of a request; ``input_tokens`` of one of them, ``all_tokens`` of all of them.
    """

    tokens_per_minute: float = math.inf
    context: float = math.inf
    inputs: float = math.inf
    input_tokens: float = math.inf
    all_tokens: float = math.inf

    @property
    def least(self) -> float:
        """A request of fewer tokens is within all bounds but that of inputs."""
        return min(self.tokens_per_minute, self.context, self.input_tokens, self.all_tokens, self.inputs)

    def fault(self, body: Mapping[str, Any], tokens: int, output: int) -> str | None:
        """Why no server takes a request with a prompt of ``tokens``; ``None`` if one may."""
        if tokens + output > self.context:
            return f"{tokens + output:,} tokens with its answer, and the model takes {self.context:,.0f}"
        inputs = count_inputs(body) or 0
        if inputs > self.inputs:
            return f"{inputs:,} inputs, and {self.inputs:,.0f} are allowed"
        if tokens > self.all_tokens:
            return f"{tokens:,} tokens, and {self.all_tokens:,.0f} are allowed"
        if inputs == 1 and tokens > self.input_tokens:
            return f"an input of {tokens:,} tokens, and {self.input_tokens:,.0f} are allowed"
        return None


def bounds_of(url: str, tokens_per_minute: float, context: float = math.inf) -> Bounds:
    """The bounds of requests to ``url``, of a model with this ``context``."""
    if endpoint_of(url) is Endpoint.EMBEDDINGS and provider_of(url).name in _OPENAIS:
        return Bounds(tokens_per_minute, context, _MOST_INPUTS, _MOST_OF_INPUT, _MOST_OF_ALL)
    return Bounds(tokens_per_minute, context)
