"""A plan: what a job will take, before anything of it is sent. ``planner.py`` makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parallel_processor.models import WaitCause
from parallel_processor.planning.changes import Change
from parallel_processor.planning.forecast import Forecast
from parallel_processor.planning.job.spread import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A line that something is to be said of: ``line 3``, and what it is."""

    place: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Lines of one kind: how many there are, and the first 100."""

    count: int
    first: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The requests of one model at one URL that are left to be sent.

    Attributes:
        url: where they go; ``model`` is theirs, empty if they name none.
        requests: how many there are.
        counted: of how many the tokens were counted; of the others they are estimated.
        input_tokens: those of their prompts.
        reserved_tokens: those of their prompts and of the largest answers that they permit, which the run
            reserves before any answer has come.
        uncapped: how many name no maximum of output tokens: ``default_output_tokens`` is reserved.
        equal: how many are equal to an earlier one.
        packable: how many have one input that could go together with others.
        input_dollars: what the prompts cost; ``None`` without a price.
        reserved_dollars: the same with the answers that are reserved.
    """

    url: str
    model: str
    requests: int
    counted: int
    input_tokens: Spread
    reserved_tokens: Spread
    uncapped: int
    equal: int
    packable: int
    input_dollars: float | None = None
    reserved_dollars: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job will take.

    Attributes:
        names: of the files of requests.
        lines: how many there are, without blank ones.
        bad: those that are no valid request.
        conflicts: rows that share a ``custom_id`` with another request: a run ends before it sends one.
        oversized: requests that no server will take, as far as that is known.
        alone: requests of more tokens than a minute's limit, which go alone.
        answered: how many have their answer in the results.
        kept_failures: how many have a failure there that stays.
        requests: how many are left to be sent.
        equal: how many of them are equal to an earlier one.
        groups: these requests by model and URL.
        forecast: how long they take, if an answer takes ``latency_s``.
        is_lower_bound: true if a limit is to be found (``auto``), or nothing is limited: then it takes so
            long at least.
        hourly: requests and tokens a minute that are needed to be through in an hour.
        exceeded: the bounds of the budget that are less than that and what was spent before, such as
            ``max_cost``.
        unpriced: models without a price, for which nothing is sent under ``max_cost``.
        cost_before: US dollars that earlier runs with the same results have spent. Only known with
            ``max_cost`` or ``max_total_tokens``; ``tokens_before`` likewise.
        changes: what else could be done.
        has_prices: true if prices were looked for.
        is_sampled: true if not all tokens were counted.

    >>> plan = plan_file(f"{folder}/requests.jsonl", request_url=url)
    >>> plan.ok, plan.lines, plan.input_tokens, [group.model for group in plan.groups]
    (True, 3, 9, ['text-embedding-3-small'])
    """

    names: tuple[str, ...]
    lines: int
    bad: Findings
    conflicts: Findings
    oversized: Findings
    alone: Findings
    answered: int
    kept_failures: int
    requests: int
    equal: int
    groups: tuple[GroupPlan, ...]
    forecast: Forecast
    latency_s: float
    is_lower_bound: bool
    hourly: Mapping[str, float]
    exceeded: tuple[str, ...]
    unpriced: tuple[str, ...]
    cost_before: float
    tokens_before: int
    changes: tuple[Change, ...]
    has_prices: bool
    is_sampled: bool

    @property
    def ok(self) -> bool:
        """True if every line is a request that can be sent."""
        return not (self.bad.count or self.conflicts.count)

    @property
    def input_tokens(self) -> int:
        """The tokens of all prompts."""
        return round(sum(group.input_tokens.total for group in self.groups))

    @property
    def reserved_tokens(self) -> int:
        """The tokens that the run reserves, before any answer has come."""
        return round(sum(group.reserved_tokens.total for group in self.groups))

    @property
    def tokens_error(self) -> float:
        """Both are right within so much, with a probability of 95 %."""
        return math.sqrt(sum(group.input_tokens.error**2 for group in self.groups))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it: what is infinite is ``None``."""
        found = asdict(self) | {"input_tokens": self.input_tokens, "ok": self.ok}
        found |= {"reserved_tokens": self.reserved_tokens, "tokens_error": self.tokens_error}
        return dict(_plain(found))


def _plain(value: Any) -> Any:
    if isinstance(value, WaitCause):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
