"""A plan: what a job will take, before anything of it is sent.

``parts`` reads the requests, ``forecast`` walks through them under their limits, ``changes`` says what else
could be done, and ``prices`` what it costs. Here, that becomes one :class:`Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.files.resume import find_answered
from parallel_processor.files.sources import Source
from parallel_processor.models import WaitCause
from parallel_processor.options import Options, OutputFormat, shown_url
from parallel_processor.planning.bounds import first_lane
from parallel_processor.planning.changes import (
    PACKED,
    Change,
    Shares,
    other_limits,
    pack_size,
    packed,
    scaled,
    without_equal,
)
from parallel_processor.planning.equal_lines import Repeated
from parallel_processor.planning.forecast import Forecast, forecast
from parallel_processor.planning.parts import scan
from parallel_processor.planning.prices import BATCH, Price, Prices, find_prices
from parallel_processor.planning.scan import Group, Notes, ScanJob, Tally, place_of, without_secrets
from parallel_processor.planning.spread import Spread
from parallel_processor.planning.trace import Load

_CHEAPER = ("flex", BATCH)  # tiers
_HOUR_MINUTES = 60.0
_MOST_CONFLICTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A line that something is to be said of: ``line 3``, and what it is."""

    place: str
    text: str


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
        uncapped: how many name no most for their answer: the least is reserved for them.
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
        bad_lines: how many of them are no valid request; ``bad`` has the first 100. So it is with what
            follows.
        conflicts: rows that share a ``custom_id`` with another request: a run ends before it sends one.
        oversized: requests that no server will take, as far as that is known.
        alone: requests of more tokens than a minute's limit, which go alone.
        answered: how many have their answer in the results.
        kept_failures: how many have a failure there that stays.
        requests: how many are left to be sent.
        equal: how many of them are equal to an earlier one.
        groups: these requests by model and URL.
        forecast: how long they take.
        is_lower_bound: true if a limit is to be found (``auto``), or nothing is limited: then it takes so
            long at least.
        hourly: requests and tokens a minute that are needed to be through in an hour.
        changes: what else could be done.
        has_prices: true if prices were looked for.
        is_sampled: true if not all tokens were counted.
    """

    names: tuple[str, ...]
    lines: int
    bad_lines: int
    bad: tuple[Finding, ...]
    conflict_count: int
    conflicts: tuple[Finding, ...]
    oversized_count: int
    oversized: tuple[Finding, ...]
    alone_count: int
    alone: tuple[Finding, ...]
    answered: int
    kept_failures: int
    requests: int
    equal: int
    groups: tuple[GroupPlan, ...]
    forecast: Forecast
    latency_s: float
    is_lower_bound: bool
    hourly: Mapping[str, float]
    changes: tuple[Change, ...]
    has_prices: bool
    is_sampled: bool

    @property
    def ok(self) -> bool:
        """True if every line is a request that can be sent."""
        return not (self.bad_lines or self.conflict_count)

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


def make_plan(
    sources: Sequence[Source],
    options: Options,
    *,
    results: Iterable[Path] = (),
    keep_failures: bool = False,
    output_format: OutputFormat = "auto",
    model: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    latency_s: float = 1.0,
    prices: Any = None,
    processes: int = 1,
) -> Plan:
    """Read ``sources`` as a run with ``options`` would.

    Args:
        results: the results file and the errors file of earlier runs, if there are any. They stay as they
            are.
        sample: how many requests of each model and URL to count; ``None``: all.
        seed: chooses which.
        latency_s: how long an answer takes.
        prices: as :func:`find_prices` takes them.
        processes: how many read a plain file. Tables need 1.

    Raises :class:`InputFileError` and :class:`ResultsFileError` for files that a run would refuse.
    """
    for name, value, least in (("sample", sample, 2), ("latency_s", latency_s, 0)):
        if value is not None and not value >= least:
            raise ConfigurationError(f"{name} must be at least {least}, not {value!r}")
    job = ScanJob(
        options=without_secrets(options),
        output_format=output_format,
        model=model,
        sample=sample,
        seed=seed,
        prices=prices,
    )
    answered = find_answered(results, keep_failures=keep_failures)
    has_records = not (answered.is_empty and answered.kept_failures.is_empty)
    tally, units = scan(sources, job, answered if has_records else None, processes)
    return _Planner(sources, options, tally, units, latency_s, find_prices(prices)).plan()


class _Planner:
    """Makes a plan of what was read."""

    def __init__(
        self,
        sources: Sequence[Source],
        options: Options,
        tally: Tally,
        units: Sequence[str],
        latency_s: float,
        prices: Prices | None,
    ) -> None:
        self._sources, self._options, self._tally, self._units = sources, options, tally, units
        self._latency_s, self._prices = latency_s, prices
        self._groups = list(tally.groups.values())
        self._repeated = tally.repeated.repeated(len(self._groups))
        self._tier = first_lane(options).tier
        is_sampled = any(group.tokens.is_sampled for group in self._groups)
        self._loads = tally.trace.loads(
            [group.tokens.tokens_per_byte if is_sampled else 1.0 for group in self._groups]
        )

    def plan(self) -> Plan:
        """The plan."""
        tally, options = self._tally, self._options
        loads = self._as_sent()
        told = self._forecast(loads, options)
        conflicts = list(tally.ids.conflicts())
        groups = tuple(map(self._group, self._groups, self._repeated))
        return Plan(
            names=tuple(source.name for source in self._sources),
            lines=tally.requests + tally.bad.count + tally.answered + tally.kept,
            bad_lines=tally.bad.count,
            bad=self._findings(tally.bad),
            conflict_count=len(conflicts),
            conflicts=tuple(
                Finding(
                    place=self._place(each.later),
                    text=f"has the custom_id of {self._place(each.earlier)}, and is another request",
                )
                for each in sorted(conflicts, key=lambda each: each.later)[:_MOST_CONFLICTS]
            ),
            oversized_count=tally.oversized.count,
            oversized=self._findings(tally.oversized),
            alone_count=tally.alone.count,
            alone=self._findings(tally.alone),
            answered=tally.answered,
            kept_failures=tally.kept,
            requests=tally.requests,
            equal=sum(each.requests for each in self._repeated),
            groups=groups,
            forecast=told,
            latency_s=self._latency_s,
            is_lower_bound=self._is_open(told),
            hourly=_hourly(loads),
            changes=tuple(self._changes(loads, told)),
            has_prices=self._prices is not None,
            is_sampled=any(group.counted < group.requests for group in groups),
        )

    # What is left to be sent, and how.

    def _as_sent(self) -> list[Load]:
        """The requests as the run sends them with its settings."""
        loads = self._loads
        if self._options.dedupe:
            loads = scaled(loads, without_equal(self._groups, self._repeated))
        return loads

    def _forecast(self, loads: Sequence[Load], options: Options) -> Forecast:
        names = [(group.url, group.model) for group in self._groups]
        size_bytes = sum(group.tokens.size_bytes for group in self._groups)
        mean = size_bytes / max(self._tally.requests, 1)
        return forecast(loads, names, options, latency_s=self._latency_s, size_bytes=mean)

    def _is_open(self, told: Forecast) -> bool:
        """True if a server's limit that nobody has typed may make the job longer."""
        options = self._options
        all_limits = (options.limits, *options.limits_by_model.values())
        return not told.limits or any(limits.is_auto for limits in all_limits)

    def _changes(self, loads: Sequence[Load], told: Forecast) -> list[Change]:
        if not loads:
            return []
        found = []
        shares = {} if self._options.dedupe else without_equal(self._groups, self._repeated)
        if shares:
            found.append(
                self._change("equal lines sent once (dedupe)", scaled(loads, shares), shares)
            )
        if shares := packed(self._groups, PACKED):
            most = max(pack_size(group, PACKED) for group in self._groups if group.packable)
            text = f"inputs packed, {most:,} a request (pack_inputs)"
            found.append(self._change(text, scaled(loads, shares)))
        for text, options in other_limits(self._options, told):
            found.append(self._change(text, loads, options=options))
        now = self._dollars(self._tier)
        for tier in _CHEAPER:
            then = self._dollars(tier)
            if now is not None and then is not None and then < now:
                found.append(self._of_tier(tier, loads, then))
        return found

    def _change(
        self,
        text: str,
        loads: Sequence[Load],
        shares: Mapping[int, Shares] | None = None,
        *,
        options: Options | None = None,
    ) -> Change:
        dollars = self._dollars(self._tier, shares)
        seconds = self._forecast(loads, options or self._options).seconds
        return replace(_sums(text, loads), seconds=seconds, dollars=dollars)

    def _of_tier(self, tier: str, loads: Sequence[Load], dollars: float) -> Change:
        text = "sent to a Batch API (to-batch)" if tier == BATCH else f"service tier {tier}"
        return replace(_sums(text, loads), dollars=dollars)

    # Money.

    def _price(self, group: Group, tier: str) -> Price | None:
        if self._prices is None:
            return None
        return self._prices.of(group.url or self._options.request_url, group.model, tier)

    def _dollars(self, tier: str, shares: Mapping[int, Shares] | None = None) -> float | None:
        """What all requests cost with the answers that are reserved; ``None`` without a price for one."""
        total = 0.0
        for group in self._groups:
            price = self._price(group, tier)
            if price is None:
                return None
            left = (shares or {}).get(group.number, Shares())
            total += left.tokens * _costs(price, group)[1]
        return total if self._groups else None

    def _group(self, group: Group, repeated: Repeated) -> GroupPlan:
        inputs, reserved = group.tokens.spreads()
        price = self._price(group, self._tier)
        dollars = (None, None) if price is None else _costs(price, group)
        return GroupPlan(
            url=shown_url(group.url),
            model=group.model,
            requests=group.tokens.count,
            counted=group.tokens.counted,
            input_tokens=inputs,
            reserved_tokens=reserved,
            uncapped=group.uncapped,
            equal=repeated.requests,
            packable=group.packable,
            input_dollars=dollars[0],
            reserved_dollars=dollars[1],
        )

    # Lines.

    def _findings(self, notes: Notes) -> tuple[Finding, ...]:
        return tuple(Finding(place=self._place(place), text=text) for place, text in notes.first)

    def _place(self, number: int) -> str:
        """``line 3``, with the name of the file if there are several."""
        place = place_of(number)
        text = f"{self._units[place.source]} {place.line:,}"
        if len(self._sources) == 1:
            return text
        return f"{self._sources[place.source].name}, {text}"


def _costs(price: Price, group: Group) -> tuple[float, float]:
    """What the prompts of ``group`` cost, and what they cost with the answers that are reserved."""
    count, tokens = group.tokens.count, group.tokens.spreads()[0].total
    rates = price.rates(round(tokens / max(count, 1)))
    inputs = price.per_request * count + rates.input * tokens / 1e6
    return inputs, inputs + rates.output * group.tokens.output_tokens / 1e6


def _sums(text: str, loads: Sequence[Load]) -> Change:
    return Change(
        what=text,
        requests=math.ceil(sum(load.requests for load in loads) - 1e-6),
        tokens=round(sum(load.input_tokens + load.output_tokens for load in loads)),
    )


def _hourly(loads: Sequence[Load]) -> dict[str, float]:
    """The rates that it takes to be through in an hour, a minute."""
    sums = _sums("", loads)
    return {"requests": sums.requests / _HOUR_MINUTES, "tokens": sums.tokens / _HOUR_MINUTES}
