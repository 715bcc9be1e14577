"""What a request may have at most: by its model, its provider, and the limits of a minute."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from parallel_processor.models import Endpoint, Upstream
from parallel_processor.options import Limits, Options
from parallel_processor.planning.packs import FORMS
from parallel_processor.planning.prices import Prices
from parallel_processor.providers.dialects import endpoint_of, provider_of
from parallel_processor.ratelimit.registry import PLAIN, TokenBuckets

_OPENAIS = {"OpenAI", "Azure OpenAI"}
_OPENAI_INPUT_TOKENS = 8_192.0  # OpenAI's reference of embeddings
WITH_INPUTS = FORMS.keys()
"""Endpoints that take several inputs in a request."""


class Bounds(NamedTuple):
    """Those of one model at one URL; infinite where nothing is known.

    Attributes:
        tokens_per_minute: above it, a request goes alone; ``requests_per_minute`` bounds no request.
        context: tokens of a prompt and its answer together; ``prompt`` those of a prompt.
        inputs: inputs of a request; ``input_tokens`` of one of them, ``all_tokens`` of all of them.
    """

    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    context: float = math.inf
    prompt: float = math.inf
    inputs: float = math.inf
    input_tokens: float = math.inf
    all_tokens: float = math.inf

    @property
    def least(self) -> float:
        """A request of no more tokens, or inputs, is within all bounds."""
        return min(self[1:])

    def fault(self, inputs: int, tokens: int, output: int) -> str | None:
        """Why no server takes a request with a prompt of ``tokens``; ``None`` if one may."""
        for what, number, most in (
            ("tokens with its answer", tokens + output, self.context),
            ("tokens", tokens, min(self.prompt, self.all_tokens)),
            ("inputs", inputs, self.inputs),
            ("tokens in one input", tokens if inputs == 1 else 0, self.input_tokens),
        ):
            if number > most:
                return f"{number:,} {what}, and {most:,.0f} are allowed"
        return None


class KnownBounds:
    """Looks up the bounds of each model at each URL. For one thread.

    Args:
        options: whose limits count.
        prices: knows the contexts of models; ``None`` if there is none.
    """

    def __init__(self, options: Options, prices: Prices | None) -> None:
        self._buckets, self._prices = TokenBuckets(without_auto(options), lambda: 0.0), prices
        self._lane = first_lane(options)

    def of(self, url: str, model: str) -> Bounds:
        """The bounds of requests to ``url`` for ``model``."""
        shared = self._buckets.bucket(url, model, self._lane).shared_limits
        of_requests = (quota.limit for quota in shared.quotas if quota.name == "requests")
        limits = Bounds(min(of_requests, default=math.inf), shared.tokens_per_minute)
        known = (math.inf, math.inf) if self._prices is None else self._prices.context(url, model)
        endpoint, provider = endpoint_of(url), provider_of(url)
        if endpoint not in WITH_INPUTS:
            return limits._replace(context=known[0], prompt=known[1])
        each = min(known)
        if endpoint is Endpoint.EMBEDDINGS and provider.name in _OPENAIS:
            each = min(each, _OPENAI_INPUT_TOKENS)
        inputs, all_tokens = provider.most_inputs
        return limits._replace(inputs=inputs, input_tokens=each, all_tokens=all_tokens)


def first_lane(options: Options) -> Upstream:
    """As what requests are sent first."""
    return Upstream(tier=options.service_tiers[0]) if options.service_tiers else PLAIN


def without_auto(options: Options) -> Options:
    """``options`` whose limits are the numbers in them: what is to be found limits nothing."""
    by_model = {pattern: _numbers(limits) for pattern, limits in options.limits_by_model.items()}
    return replace(options, limits=_numbers(options.limits), limits_by_model=by_model)


def _numbers(limits: Limits) -> Limits:
    names = ("requests_per_minute", "tokens_per_minute")
    found = {name: math.inf for name in names if getattr(limits, name) == "auto"}
    return replace(limits, **found) if found else limits
