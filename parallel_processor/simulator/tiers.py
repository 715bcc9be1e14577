"""Service tiers: which one a request asks for, whether there is room for it, and who answers it.

A request that a tier has no room for has taken from the tier's limits, and costs no tokens besides. Each
provider refuses it in its own way, or lets the default tier answer it without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from parallel_processor.simulator.refusals import error_reply
from parallel_processor.simulator.wire import HttpReply

DEFAULT_TIER = "default"
TIER_REFUSALS = ("openai", "groq", "azure", "gemini", "bedrock", "downgrade")
"""How a tier without room refuses; with the last one it doesn't, and the default tier answers."""

_DEFAULT_WORDS = {"", "auto", "standard", "standard_only", "on_demand", "STANDARD", DEFAULT_TIER}
_FULL = "flex tier capacity exceeded. Please try again later."


def asked_tier(body: Mapping[str, Any]) -> str:
    """The tier that a request asks for, under one name whatever the provider calls it."""
    word = body.get("service_tier", body.get("serviceTier"))
    word = word.get("type") if isinstance(word, Mapping) else word
    return DEFAULT_TIER if not isinstance(word, str) or word in _DEFAULT_WORDS else word


class Tiers:
    """Has room for a share of the requests of each tier. Safe to call from any thread.

    Args:
        grants: these shares; a tier that isn't named has room for all.
        refusal: one of ``TIER_REFUSALS``.
        draw: returns a random number below 1.
    """

    def __init__(
        self, grants: Mapping[str, float], refusal: str, draw: Callable[[], float]
    ) -> None:
        self._grants, self._refusal, self._draw = grants, refusal, draw

    def admit(self, tier: str, headers: str) -> tuple[str, HttpReply | None]:
        """The tier that answers a request for ``tier``, or why none does."""
        share = self._grants.get(tier, 1.0)
        if share >= 1.0 or self._draw() < share:
            return tier, None
        if self._refusal == "downgrade":
            return DEFAULT_TIER, None
        return tier, no_capacity(self._refusal, headers)

    def tell(self, tier: str, reply: HttpReply) -> HttpReply:
        """``reply``, which is a good answer, with the name of the ``tier`` that gave it."""
        headers = reply.headers
        if self._refusal == "gemini":
            word = "standard" if tier == DEFAULT_TIER else tier
            return _changed(reply, reply.body, f"{headers}x-gemini-service-tier: {word}\r\n")
        if self._refusal == "bedrock":  # its OpenAI-compatible endpoint doesn't say
            return reply
        content = json.loads(reply.body)
        word = "on_demand" if (self._refusal, tier) == ("groq", DEFAULT_TIER) else tier
        return _changed(reply, json.dumps(content | {"service_tier": word}).encode(), headers)


def no_capacity(form: str, headers: str) -> HttpReply:
    """What a provider says if a tier has no room."""
    if form == "groq":
        return error_reply(498, _FULL, "capacity_exceeded", "capacity_exceeded", headers)
    if form == "azure":
        message = "Invalid value for service_tier: this model doesn't support flex."
        return error_reply(400, message, "invalid_request_error", None, headers)
    if form == "gemini":
        error = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
        return HttpReply(status=503, body=json.dumps({"error": error}).encode(), headers=headers)
    if form == "bedrock":
        text = json.dumps({"message": "Too many requests: no capacity, at capacity for this tier."})
        return HttpReply(status=429, body=text.encode(), headers=headers)
    message = "Insufficient resources to serve flex requests at this time."
    return error_reply(429, message, "resource_unavailable", "resource_unavailable", headers)


def _changed(reply: HttpReply, body: bytes, headers: str) -> HttpReply:
    return HttpReply(
        status=reply.status, body=body, headers=headers, content_type=reply.content_type
    )
