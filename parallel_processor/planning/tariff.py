"""What an attempt costs: the most that it may, before it is sent, and what it did, once it has ended.

**The most.** A prompt has the tokens that were counted, times what the answers so far show of that count:
a server's own tokenizer may make more of the same text. The answer has as many tokens as the request
permits. A request that names no maximum may get as many as the largest answer so far, and 4,096 at least;
this is said once a model.

**What it did** is the answer's ``usage`` at the price of the service tier that answered. An attempt
counts in full (as the most) if it may have been charged and nobody can tell: a connection that broke, a
timeout, a gateway that gave up, an answer without ``usage``, or with one of zeros. Where only the sum of
tokens is said, all of them cost what is dearer. A refusal costs nothing, and so does what was never sent.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parallel_processor.models import Attempt, AttemptStatus, Estimate, Response
from parallel_processor.planning.costs import Spent
from parallel_processor.planning.prices import INSTALL, Price, Prices
from parallel_processor.providers.dialects import answered_tier
from parallel_processor.providers.usage import Use, read_use, text_member

_log = logging.getLogger("parallel_processor")
_LEAST_OUTPUT = 4096  # reserved for an answer without a bound
_FEW = 10  # answers of a model, before which its count of tokens isn't known to be right
_UNKNOWN_SHARE = 2.0  # of the tokens counted: another tokenizer
_OPENAI_SHARE = 1.1
_MARGIN = 1.05  # above the largest share seen
_FREE = (  # what the server did not process
    *(AttemptStatus.RATE_LIMITED, AttemptStatus.UNREACHABLE, AttemptStatus.NOT_READY),
    *(AttemptStatus.FATAL, AttemptStatus.MODEL_SPENT),
)
_GAVE_UP = {408, 499, 502, 504, *range(520, 528)}  # a gateway, while the server may have gone on


class Asked(NamedTuple):
    """What an attempt asks for."""

    url: str
    model: str
    tier: str = ""  # as the run or the request names it


@dataclass(slots=True)
class _Seen:
    """What the answers of a model have shown."""

    answers: int = 0
    input_share: float = 1.0  # the largest, of the tokens counted
    output_share: float = 1.0  # of the maximum named
    output_tokens: int = 0  # the largest answer
    is_told: bool = False  # that a request names no maximum
    spent: Spent = field(default_factory=Spent)  # by all of them


class Tariff:
    """Prices, and what was learned of the models. Not thread-safe: the budget's lock guards it.

    Attributes:
        prices: what tokens cost; ``None`` if nobody asks for money.
    """

    def __init__(self, prices: Prices | None, request_url: str) -> None:
        self.prices, self._request_url = prices, request_url
        self._found: dict[tuple[Asked, str], Price | None] = {}
        self._seen: dict[str, _Seen] = {}

    def price(self, asked: Asked, tier: str = "") -> Price | None:
        """The price of what was asked for; of the ``tier`` that answered, if that is dearer.

        Some servers say that the default tier answered, whatever they charge.
        """
        key = asked, tier
        if key not in self._found:
            self._found[key] = self._dearest(asked, {asked.tier, tier or asked.tier})
        return self._found[key]

    def _dearest(self, asked: Asked, tiers: set[str]) -> Price | None:
        if self.prices is None:
            return None
        found = [self.prices.of(asked.url, asked.model, each) for each in tiers]
        known = [price for price in found if price is not None]
        return max(known, key=lambda price: price.rates()[:2], default=None)

    def no_price(self, asked: Asked) -> str:
        """Says that there is none, and how to give it."""
        model = asked.model or "requests that name no model"
        tier = f" in the {asked.tier} tier" if asked.tier else ""
        text = f"max_cost is set, and there is no price for {model}{tier}: give one in a file of prices"
        has_package = self.prices is not None and self.prices.uses_package
        return text if has_package else f"{text}, or {INSTALL}"

    def most(self, asked: Asked, estimate: Estimate) -> Spent:
        """The most that an attempt may use. The cost is 0 if the model has no price."""
        seen = self._seen.setdefault(asked.model, _Seen())
        cap = estimate.output_cap
        if cap is None:
            output = max(_LEAST_OUTPUT, seen.output_tokens)
            if not seen.is_told:
                seen.is_told = True
                _log.warning(
                    "requests%s name no maximum of output tokens: the budget reserves %s for each, or the "
                    "largest answer so far; a longer one may exceed it",
                    f" for {asked.model}" if asked.model else "",
                    f"{_LEAST_OUTPUT:,}",
                )
        else:
            output = math.ceil(cap * seen.output_share)
        return self._spent(asked, estimate, output)

    def likely(self, asked: Asked, estimate: Estimate, most: Spent) -> Spent:
        """What an attempt will surely not exceed: the ``most``, but where no maximum bounds it.

        There it is an answer twice as long as the longest, once ten have come.
        """
        seen = self._seen.setdefault(asked.model, _Seen())
        if estimate.output_cap is not None or seen.answers < _FEW:
            return most
        output = min(2 * seen.output_tokens, max(_LEAST_OUTPUT, seen.output_tokens))
        return self._spent(asked, estimate, output)

    def _spent(self, asked: Asked, estimate: Estimate, output_tokens: int) -> Spent:
        share = self._input_share(self._seen[asked.model], estimate)
        inputs, price = math.ceil(estimate.input_tokens * share), self.price(asked)
        cost = 0.0 if price is None else price.most(inputs, output_tokens)
        return Spent(cost, inputs + output_tokens)

    def _input_share(self, seen: _Seen, estimate: Estimate) -> float:
        if seen.answers >= _FEW:
            return seen.input_share * _MARGIN
        is_known = estimate.kind is not None and not estimate.kind.charges_use
        return max(seen.input_share, _OPENAI_SHARE if is_known else _UNKNOWN_SHARE)

    def usual(self, asked: Asked) -> Spent:
        """What an answer of the model has used on average; nothing before the first."""
        seen = self._seen.get(asked.model)
        return seen.spent.times(1 / seen.answers) if seen is not None and seen.answers else Spent()

    def with_prompt(self, use: Use, asked: Asked, estimate: Estimate | None) -> Use:
        """The same; if it tells nothing of the prompt, with as many tokens as that may have had."""
        if use.input_tokens or estimate is None or estimate.input_tokens <= 0:
            return use
        seen = self._seen.setdefault(asked.model, _Seen())
        given = math.ceil(estimate.input_tokens * self._input_share(seen, estimate))
        return use._replace(input_tokens=given, used_tokens=use.used_tokens + given)

    def learn(self, asked: Asked, estimate: Estimate | None, use: Use, spent: Spent) -> None:
        """Note what an answer used."""
        seen = self._seen.setdefault(asked.model, _Seen())
        seen.answers += 1
        seen.spent = seen.spent.plus(spent)
        seen.output_tokens = max(seen.output_tokens, use.output_tokens)
        if estimate is not None and estimate.input_tokens > 0:
            seen.input_share = max(seen.input_share, use.input_tokens / estimate.input_tokens)
        if estimate is not None and estimate.output_cap:
            seen.output_share = max(seen.output_share, use.output_tokens / estimate.output_cap)

    def of_record(self, model: str, response: Response, asked_tier: str = "") -> Spent:
        """What a record says that its request has cost, by the price of the model it names.

        Of the model that was asked for, and the one that answered, the dearer counts. ``model`` is empty
        if the record doesn't have the request. The cost is 0 if neither has a price.
        """
        use = use_of(response)
        if use is None:
            return Spent()
        data = _said(response)
        answered = data.get("model") if isinstance(data, dict) else None
        tier = answered_tier({}, data)  # a record has no headers
        models = {model, answered if isinstance(answered, str) else ""} - {""}
        places = (Asked(self._request_url, each, asked_tier or tier) for each in models)
        prices = (self.price(asked, tier) for asked in places)
        costs = [use.cost(price) for price in prices if price is not None]
        return Spent(max(costs, default=0.0), use.used_tokens)


def _said(response: Response) -> Any:
    """The answer; of one that isn't parsed, what it says of model and tier."""
    if response.data is not None:
        return response.data
    return {name: text_member(response.body, name) for name in ("model", "service_tier")}


def tier_of(response: Response) -> str:
    """The service tier that answered; empty if the answer doesn't say."""
    return answered_tier(response.headers, _said(response))


def use_of(response: Response | None) -> Use | None:
    """What ``response`` says that it used; ``None`` if it doesn't."""
    return None if response is None else read_use(response.data, response.body)


def counted_use(attempt: Attempt) -> Use | None:
    """The same, of an attempt whose tokens were counted; nothing of what was cached."""
    used, output = attempt.used_tokens, attempt.output_tokens or 0
    return Use(used, used - output, output) if used else None


def may_be_charged(attempt: Attempt | BaseException) -> bool:
    """True if an attempt without ``usage`` may have been charged."""
    if not isinstance(attempt, Attempt):
        return True
    if attempt.status is AttemptStatus.ANSWERED:
        return True
    if attempt.status in _FREE or attempt.rejection is not None:
        return False
    if attempt.response is not None:
        return attempt.response.status < 400 or attempt.response.status in _GAVE_UP
    # Without a latency nothing was sent; a worker process that is lost can't tell.
    return attempt.latency_s is not None or attempt.status is AttemptStatus.LOST
