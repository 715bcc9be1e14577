"""What was spent, as figures that the summary, the report and the metrics show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Spent(NamedTuple):
    """An amount of what a budget bounds."""

    cost: float = 0.0  # US dollars
    tokens: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(self.cost + other.cost, self.tokens + other.tokens)

    def minus(self, other: Spent) -> Spent:
        """What is left without ``other``; it may be below 0."""
        return Spent(self.cost - other.cost, self.tokens - other.tokens)

    def times(self, factor: float) -> Spent:
        """So many times as much."""
        return Spent(self.cost * factor, self.tokens * factor)

    def at_least_0(self) -> Spent:
        """The same without what is below 0."""
        return Spent(max(self.cost, 0.0), max(self.tokens, 0.0))

    def exceeds(self, bound: Spent) -> bool:
        """True if any of it is more than its bound."""
        return self.cost > bound.cost or self.tokens > bound.tokens

    def or_more(self, other: Spent) -> Spent:
        """Of each, the larger one."""
        return Spent(max(self.cost, other.cost), max(self.tokens, other.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """What the answers of one model, in one service tier, have cost.

    Attributes:
        model: the model that was asked for; empty if the requests name none.
        tier: the service tier that answered, if the answers say so.
        answers: how many answers say what they used.
        input_tokens: the tokens of their prompts, cached ones included.
        output_tokens: the tokens of the answers.
        cost: US dollars; ``None`` if no price is known.

    >>> prices = {"text-*": {"input": 0.02, "output": 0}}
    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url, prices=prices)
    >>> for each in summary.costs:
    ...     print(each.model, each.answers, f"${each.cost:.8f}")
    text-embedding-3-small 3 $0.00000018
    """

    model: str
    tier: str = ""
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the runs of a processor, or one of them, have spent.

    Attributes:
        models: what the answers of each model have cost, the dearest first.
        before: US dollars that earlier runs with the same results have spent.
        uncertain: US dollars that attempts may have cost besides, which don't say what they used.
    """

    models: tuple[ModelCost, ...] = ()
    before: float = 0.0
    uncertain: float = 0.0

    @property
    def total(self) -> float:
        """US dollars that the answers have cost, of models that have a price."""
        return sum(each.cost or 0.0 for each in self.models)

    def plus(self, other: Costs) -> Costs:
        """Both together."""
        found: dict[tuple[str, str], ModelCost] = {}
        for each in (*self.models, *other.models):
            key = (each.model, each.tier)
            found[key] = _joined(found[key], each) if key in found else each
        return Costs(
            models=dearest_first(found.values()),
            before=self.before + other.before,
            uncertain=self.uncertain + other.uncertain,
        )


def dearest_first(costs: Iterable[ModelCost]) -> tuple[ModelCost, ...]:
    """``costs`` in the order in which they are shown."""
    return tuple(sorted(costs, key=lambda each: (-(each.cost or 0.0), each.model, each.tier)))


def _joined(one: ModelCost, other: ModelCost) -> ModelCost:
    known = [each.cost for each in (one, other) if each.cost is not None]
    return ModelCost(
        model=one.model,
        tier=one.tier,
        answers=one.answers + other.answers,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cost=sum(known) if known else None,
    )
