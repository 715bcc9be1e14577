"""Makes a plan: the requests are read, walked through under their limits, and priced.

``job`` reads the requests, ``forecast`` walks through them under their limits, ``changes`` says what else
could be done, and ``prices`` what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from parallel_processor.checks import check_seconds, check_whole
from parallel_processor.files.sources import Source
from parallel_processor.files.verify import find_answered
from parallel_processor.models import WaitCause
from parallel_processor.options import Options, OutputFormat, shown_url
from parallel_processor.planning.budget import make_budget
from parallel_processor.planning.changes import (
    ALL,
    PACKED,
    Change,
    Shares,
    other_limits,
    pack_size,
    packed,
    scaled,
    without_equal,
)
from parallel_processor.planning.costs import Spent
from parallel_processor.planning.forecast import Forecast, forecast
from parallel_processor.planning.job.bounds import KnownBounds, first_lane
from parallel_processor.planning.job.equal_lines import Repeated
from parallel_processor.planning.job.parts import scan
from parallel_processor.planning.job.scan import (
    Group,
    Notes,
    ScanJob,
    Tally,
    place_of,
    without_secrets,
)
from parallel_processor.planning.job.trace import Load
from parallel_processor.planning.plan import Finding, Findings, GroupPlan, Plan
from parallel_processor.planning.prices import BATCH, Price, find_prices
from parallel_processor.planning.spending import Spending

_CHEAPER = ("flex", BATCH)  # tiers
_HOUR_MINUTES, _MILLION = 60.0, 1e6


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
    processes: int = 1,
) -> Plan:
    """Read ``sources`` as a run with ``options`` would.

    Args:
        results: the results file and the errors file of earlier runs, if there are any. They stay as they
            are.
        sample: how many requests of each model and URL to count; ``None``: all.
        seed: chooses which.
        latency_s: how long an answer takes.
        processes: how many read a plain file. It must be 1 for tables. With the format ``batch`` it is 1
            in any case: ids are numbers of lines there, and a process knows only the lines of its part.

    Raises :class:`InputFileError` and :class:`ResultsFileError` for files that a run would refuse.
    """
    if sample is not None:
        check_whole("sample", sample, 2)
    check_seconds("latency_s", latency_s, above=False)
    job = ScanJob(
        options=without_secrets(options),
        output_format=output_format,
        model=model,
        sample=sample,
        seed=seed,
    )
    before = _Before(options, results)
    answered = find_answered(before.paths, keep_failures=keep_failures, on_answer=before.on_answer)
    has_records = not (answered.is_empty and answered.kept_failures.is_empty)
    if output_format == "batch":
        processes = 1
    tally, units = scan(sources, job, answered if has_records else None, processes)
    return _Planner(sources, options, tally, units, latency_s, before.spent()).plan()


class _Before:
    """What earlier runs have spent of a budget, as the run finds out; nothing without one.

    Attributes:
        paths: the results; ``on_answer`` is to be called with each answer in them.
    """

    def __init__(self, options: Options, results: Iterable[Path]) -> None:
        """Raises :class:`ResultsFileError` if the file beside the results can't be used."""
        self.paths, self.on_answer = list(results), None
        self._spending: Spending | None = None
        budget = make_budget(options)
        if budget is not None and budget.is_bounded:
            self._spending = Spending(budget, options.request_url, stop=lambda error: None)
            self.on_answer = self._spending.add_record
            for path in self.paths[:1]:
                self._spending.open(path, overwrite=False)

    def spent(self) -> Spent:
        """All of it, once each answer was seen."""
        if self._spending is None:
            return Spent()
        self._spending.begin()  # and no end: that would write
        return self._spending.before


class _Planner:
    """Makes a plan of what was read."""

    def __init__(
        self,
        sources: Sequence[Source],
        options: Options,
        tally: Tally,
        units: Sequence[str],
        latency_s: float,
        before: Spent,
    ) -> None:
        self._sources, self._options, self._tally, self._units = sources, options, tally, units
        self._latency_s, self._prices = latency_s, find_prices(options.prices)
        self._groups = list(tally.groups.values())
        self._repeated = tally.repeated.repeated(len(self._groups))
        self._tier = first_lane(options).tier
        self._loads = tally.trace.loads([group.tokens_per_size for group in self._groups])
        self._before = before
        self._once = without_equal(self._groups, self._repeated) if options.dedupe else {}

    def plan(self) -> Plan:
        """The plan."""
        tally, options = self._tally, self._options
        loads = self._as_sent(options)
        told = self._forecast(loads, options)
        groups = tuple(map(self._group, self._groups, self._repeated))
        return Plan(
            names=tuple(source.name for source in self._sources),
            lines=tally.requests + tally.bad.count + tally.answered + tally.kept,
            bad=self._findings(tally.bad),
            conflicts=self._conflicts(),
            oversized=self._findings(tally.oversized),
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
            exceeded=self._exceeded(loads, told),
            unpriced=self._unpriced(),
            cost_before=self._before.cost,
            tokens_before=round(self._before.tokens),
            changes=tuple(self._changes(loads, told)),
            has_prices=self._prices is not None,
            is_sampled=any(group.counted < group.requests for group in groups),
        )

    # What is left to be sent, and how.

    def _as_sent(self, options: Options) -> list[Load]:
        """The requests as a run with ``options`` sends them."""
        loads = scaled(self._loads, self._once)
        if self._packs(loads, options):
            known = KnownBounds(options, None)
            bounds = [
                known.of(group.url or options.request_url, group.model) for group in self._groups
            ]
            loads = scaled(loads, packed(self._groups, options.pack_inputs or 1, bounds))
        return loads

    def _packs(self, loads: Sequence[Load], options: Options) -> bool:
        """True if inputs go together: with ``auto`` only where requests bind."""
        if options.pack_inputs == "auto":
            return self._forecast(loads, options).binding is WaitCause.REQUESTS
        return options.pack_inputs not in (None, 1)

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

    def _exceeded(self, loads: Sequence[Load], told: Forecast) -> tuple[str, ...]:
        cost = sum(each or 0.0 for each in self._costs(self._tier))
        sums = {
            "max_cost": self._before.cost + cost,
            "max_total_tokens": self._before.tokens + _sums("", loads).tokens,
            "max_seconds": told.seconds,
        }
        return tuple(name for name, most in sums.items() if most > getattr(self._options, name))

    def _unpriced(self) -> tuple[str, ...]:
        if self._options.max_cost == math.inf:
            return ()
        pairs = zip(self._groups, self._costs(self._tier), strict=True)
        return tuple(dict.fromkeys(group.model for group, cost in pairs if cost is None))

    def _changes(self, loads: Sequence[Load], told: Forecast) -> list[Change]:
        if not loads:
            return []
        found = []
        shares = {} if self._options.dedupe else without_equal(self._groups, self._repeated)
        if shares:
            found.append(
                self._change("equal lines sent once (dedupe)", scaled(loads, shares), shares)
            )
        bounds = [group.bounds for group in self._groups]
        may_pack = not self._packs(scaled(self._loads, self._once), self._options)
        if may_pack and (shares := packed(self._groups, PACKED, bounds)):
            sizes = (pack_size(each, PACKED, each.bounds) for each in self._groups if each.packable)
            most = max(sizes)
            text = f"up to {most:,} inputs in a request (pack_inputs {PACKED})"
            found.append(self._change(text, scaled(loads, shares)))
        for text, options in other_limits(self._options, told):
            found.append(self._change(text, self._as_sent(options), options=options))
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

    def _costs(self, tier: str, shares: Mapping[int, Shares] | None = None) -> list[float | None]:
        """What the requests of each group cost with the answers reserved; ``None`` without a price."""
        found: list[float | None] = []
        for group in self._groups:
            price, left = self._price(group, tier), (shares or self._once).get(group.number, ALL)
            found.append(None if price is None else _costs(price, group, left)[1])
        return found

    def _dollars(self, tier: str, shares: Mapping[int, Shares] | None = None) -> float | None:
        """What all of them cost; ``None`` without a price for one."""
        costs = self._costs(tier, shares)
        known = [cost for cost in costs if cost is not None]
        return sum(known) if costs and len(known) == len(costs) else None

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

    def _findings(self, notes: Notes) -> Findings:
        first = (Finding(place=self._place(place), text=text) for place, text in notes.first)
        return Findings(count=notes.count, first=tuple(first))

    def _conflicts(self) -> Findings:
        found = sorted(self._tally.ids.conflicts(), key=lambda each: each.later)
        notes = Notes()
        for each in found:
            text = f"has the custom_id of {self._place(each.earlier)}, and is another request"
            notes.add(each.later, text)
        return self._findings(notes)

    def _place(self, number: int) -> str:
        """``line 3``, with the name of the file if there are several."""
        place = place_of(number)
        text = f"{self._units[place.source]} {place.line:,}"
        if len(self._sources) == 1:
            return text
        return f"{self._sources[place.source].name}, {text}"


def _costs(price: Price, group: Group, left: Shares = ALL) -> tuple[float, float]:
    """What the prompts of ``group`` cost, and what they cost with the answers that are reserved."""
    count, tokens = (group.tokens.count * left.requests, group.tokens.input_tokens * left.inputs)
    rates = price.rates(round(tokens / max(count, 1)))
    inputs = price.per_request * count + rates.input * tokens / _MILLION
    return inputs, inputs + rates.output * group.tokens.output_tokens * left.outputs / _MILLION


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
