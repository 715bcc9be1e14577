"""What would change if a job were sent in another way: packed, without equal lines, with other limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from parallel_processor.models import WaitCause
from parallel_processor.options import Limits, Options, PackInputs
from parallel_processor.planning.forecast import Forecast
from parallel_processor.planning.job.bounds import Bounds
from parallel_processor.planning.job.equal_lines import Repeated
from parallel_processor.planning.job.scan import Group
from parallel_processor.planning.job.trace import Load
from parallel_processor.planning.pack_sizes import MOST_AUTO
from parallel_processor.ratelimit.quota import MINUTE_S

_LARGEST = 1e300  # limit

PACKED = 100
"""Inputs of a pack, as nearly every provider takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A way to send the same job, and what becomes of it.

    Attributes:
        what: the change.
        requests: how many are sent.
        tokens: how many are reserved.
        seconds: how long it takes; ``None`` if that can't be told.
        dollars: what it costs with the answers that are reserved; ``None`` if that isn't known.
    """

    what: str
    requests: int
    tokens: int
    seconds: float | None = None
    dollars: float | None = None


class Shares(NamedTuple):
    """What of a load is left."""

    requests: float = 1.0
    inputs: float = 1.0
    outputs: float = 1.0


ALL = Shares()


def scaled(loads: Sequence[Load], shares: Mapping[int, Shares]) -> list[Load]:
    """``loads`` with these shares of each group."""
    made = []
    for group, requests, inputs, outputs in loads:
        left = shares.get(group, ALL)
        made.append(
            Load(group, requests * left.requests, inputs * left.inputs, outputs * left.outputs)
        )
    return [load for load in made if load.requests > 0]


def without_equal(groups: Sequence[Group], repeated: Sequence[Repeated]) -> dict[int, Shares]:
    """What is left if equal requests are sent once."""
    found = {}
    for group, equal in zip(groups, repeated, strict=True):
        if equal.requests:
            inputs = group.tokens.input_tokens
            of_requests = equal.requests / group.tokens.count
            of_inputs = equal.size * group.tokens_per_size / inputs if inputs else 0.0
            found[group.number] = Shares(
                1.0 - of_requests, max(0.0, 1.0 - of_inputs), 1.0 - of_requests
            )
    return found


def packed(
    groups: Sequence[Group], asked: PackInputs, bounds: Sequence[Bounds]
) -> dict[int, Shares]:
    """What is left if ``asked`` inputs go together, or as many as the ``bounds`` of each group permit."""
    found = {}
    for group, bound in zip(groups, bounds, strict=True):
        if group.packable:
            share = group.packable / group.tokens.count
            found[group.number] = Shares(1.0 - share + share / pack_size(group, asked, bound))
    return found


def pack_size(group: Group, asked: PackInputs, bounds: Bounds) -> int:
    """How many inputs of ``group`` the run puts together (``pack_sizes.py``)."""
    tokens = group.tokens.input_tokens + group.tokens.output_tokens
    each = tokens / max(group.tokens.count, 1) or 1.0
    if asked == "auto":
        most, packs = float(MOST_AUTO), bounds.requests_per_minute
    else:
        most, packs = float(asked), min(bounds.requests_per_minute, MINUTE_S)
    room = min(
        bounds.tokens_per_minute / packs if packs < math.inf else math.inf, bounds.all_tokens
    )
    return max(1, math.floor(min(most, bounds.inputs, room / each)))


def other_limits(options: Options, told: Forecast) -> Iterator[tuple[str, Options]]:
    """Twice each limit that holds, and twice ``max_workers`` if they do; with what it is called."""
    for use in told.limits:
        field = f"{use.name}_per_minute"
        now, twice = _number(use.per_minute), _number(use.per_minute * 2)
        text = f"{twice} {use.name.replace('_', ' ')} a minute"
        if use.pattern is None:
            yield (
                f"{text} instead of {now}",
                replace(options, limits=_twice(options.limits, field)),
            )
        else:
            by_model = dict(options.limits_by_model)
            by_model[use.pattern] = _twice(by_model[use.pattern], field)
            text = f"{text} for {use.pattern} instead of {now}"
            yield text, replace(options, limits_by_model=by_model)
    if told.binding is WaitCause.MAX_WORKERS:
        most = options.max_workers * 2
        yield (
            f"max_workers {most:,} instead of {options.max_workers:,}",
            replace(options, max_workers=most),
        )


def _twice(limits: Limits, field: str) -> Limits:
    value = getattr(limits, field)
    return replace(limits, **{field: type(value)(min(value * 2, _LARGEST))})  # a default stays one


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"
