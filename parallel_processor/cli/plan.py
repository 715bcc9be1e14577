"""``plan``: what a job will take; nothing is sent."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from parallel_processor.cli.console import say, show
from parallel_processor.cli.ending import Ending
from parallel_processor.cli.environment import find_key
from parallel_processor.cli.flags import FLAGS, table_arguments
from parallel_processor.cli.parser import PROGRAM, READERS, Flag, FlagParser
from parallel_processor.exceptions import ConfigurationError, ResultsFileError, WorkerProcessError
from parallel_processor.models import WaitCause
from parallel_processor.options import MOST_PROCESSES, Settings
from parallel_processor.report.wording import (
    cause_text,
    clock_text,
    count,
    counted,
    kind_text,
    share_text,
)

if TYPE_CHECKING:
    from parallel_processor.planning.job.spread import Spread
    from parallel_processor.planning.plan import Findings, GroupPlan, Plan

# fmt: off
_FLAGS = (
    Flag("sample", "", "N", "count the tokens of N requests of each model and URL, and estimate those of "
          "the others by their size", default_text="all are counted", read=READERS[int]),
    Flag("seed", "", "N", "chooses which", 0),
    Flag("latency", "", "SECONDS", "how long an answer takes", 1.0),
    Flag("json", "", "", "print JSON"),
)
_PROCESSES = Flag("processes", "", "N", "how many processes read", default_text="one for each CPU",
                  read=READERS[int])
# fmt: on
_SHOWN = 10  # lines of each kind
_NO_PRICES = "unknown: give --prices FILE, or pip install 'parallel-api-processor[cost]'"
_MOST_CHARS = 200
_EPILOG = """Takes all flags of the run. Those about sending change nothing.

exit codes:
  0    every line can be sent
  1    some lines can't, or rows share a custom_id, or the plan can't be printed
  2    wrong usage, or files that the run would refuse"""


def build_plan_parser() -> FlagParser:
    """The parser of ``plan``, which has all flags of the command, and some of its own."""
    flags = {
        title: [_PROCESSES if row.name == "processes" else row for row in rows]
        for title, rows in FLAGS.items()
    }
    return FlagParser(
        f"{PROGRAM} plan",
        {"plan": _FLAGS, **flags},
        usage=f"{PROGRAM} plan --requests_filepath FILE [--flag value ...]",
        description="Say what a job will take: tokens, time, threads and money. Nothing is sent.",
        epilog=_EPILOG,
    )


def parse_plan(words: Sequence[str]) -> argparse.Namespace:
    """The flags in ``words``."""
    flags = build_plan_parser().parse(words)
    flags.summary_json = None  # of a run
    if flags.processes is None:
        flags.processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    return flags


def plan(flags: argparse.Namespace, made: Settings) -> Ending:
    """Run the subcommand."""
    # Imported here: the command itself starts sooner without.
    from parallel_processor.api import plan_file

    with contextlib.suppress(ConfigurationError):  # nothing is sent, so no key is needed
        made["api_key"] = find_key(flags, made)
    try:
        found = plan_file(
            flags.requests_filepath,
            flags.save_filepath,
            errors_path=flags.errors_filepath,
            overwrite=flags.overwrite,
            keep_failures=flags.keep_failures,
            output_format=flags.output_format,
            model=flags.model,
            sample=flags.sample,
            seed=flags.seed,
            latency_s=flags.latency,
            **table_arguments(flags),
            **made,
        )
    except (ResultsFileError, WorkerProcessError) as error:
        say(f"{PROGRAM} plan: error: {error}")
        return Ending(2, str(error))
    is_shown = show(json.dumps(found.to_dict(), indent=2) if flags.json else text_of(found))
    return Ending(0 if found.ok and is_shown else 1)


def text_of(plan: Plan) -> str:
    """``plan`` in lines of text."""
    parts = (_lines(plan), _groups(plan), _time(plan), _changes(plan))
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part)


def _lines(plan: Plan) -> Iterator[str]:
    """What the lines are."""
    names = (
        plan.names[0] if len(plan.names) == 1 else f"{plan.names[0]} and {len(plan.names) - 1} more"
    )
    yield f"{names}: {counted(plan.lines, 'line')}"
    for what, found in (
        ("bad lines", plan.bad),
        ("rows with the id of another", plan.conflicts),
        ("too large for their model or provider", plan.oversized),
        ("larger than a minute's limit, so sent alone", plan.alone),
    ):
        if found.count or found is plan.bad:
            yield f"  {what}: {found.count:,}"
            yield from _findings(found)
    yield f"  equal to an earlier line: {plan.equal:,}"
    if plan.answered or plan.kept_failures:
        kept = f", {plan.kept_failures:,} failures stay" if plan.kept_failures else ""
        yield f"  answered already: {plan.answered:,}{kept}"
    yield f"  left to send: {plan.requests:,}"


def _findings(found: Findings) -> Iterator[str]:
    for each in found.first[:_SHOWN]:
        yield f"    {each.place}: {each.text[:_MOST_CHARS]}"
    if found.count > _SHOWN:
        yield f"    and {found.count - _SHOWN:,} more (--json has the first 100)"


def _groups(plan: Plan) -> Iterator[str]:
    """The tokens by model and endpoint."""
    if not plan.groups:
        return
    head = ["model", "endpoint", "requests", "tokens", "min", "median", "p99", "max", "total"]
    rows = [head]
    for group in plan.groups:
        first = [group.model or "(none named)", urlsplit(group.url).path, f"{group.requests:,}"]
        rows.append([*first, "prompts", *_numbers(group.input_tokens)])
        rows.append(["", "", "", "reserved", *_numbers(group.reserved_tokens)])
    yield from _table(rows, left=(0, 1, 3))
    if plan.is_sampled:
        sample = sum(group.counted for group in plan.groups)
        yield (
            f"Tokens are estimated from {sample:,} requests: {plan.tokens_error:,.0f} more or less in all "
            "(95 %, ratio estimator by size)."
        )
    uncapped = sum(group.uncapped for group in plan.groups)
    if uncapped:
        yield (
            f"{uncapped:,} requests name no maximum of output tokens: --default_output_tokens of each is "
            "reserved."
        )


def _numbers(spread: Spread) -> list[str]:
    error = f" ± {spread.error:,.0f}" if spread.error else ""
    each = (spread.least, spread.median, spread.p99, spread.most)
    return [*(f"{value:,}" for value in each), f"{spread.total:,.0f}{error}"]


def _time(plan: Plan) -> Iterator[str]:
    """How long it takes, and what it costs."""
    told = plan.forecast
    least = "at least " if plan.is_lower_bound else ""
    latency = f"if an answer takes {plan.latency_s:g} s (--latency)"
    if plan.requests:
        rate = f"{count(round(told.requests_per_minute))} requests/min"
        yield f"time: {least}{clock_text(told.seconds)} {latency}, {rate}"
        yield f"threads: {told.in_flight:,}, as many as requests are in flight at once"
    if told.binding is not WaitCause.NOTHING:
        share = share_text(min(told.waits[told.binding], 1.0))
        yield f"what binds: {cause_text(told.binding)} ({share} of the time)"
    for use in told.limits:
        of = f" of {use.pattern}" if use.pattern else ""
        name = f"{kind_text(use.name)}{of}"
        yield f"  {name}: {count(use.per_minute)} a minute, {share_text(use.used_share)} used"
    if plan.is_lower_bound and plan.requests:
        needed = ", ".join(f"{count(math.ceil(n))} {kind}/min" for kind, n in plan.hourly.items())
        yield (
            "What the server allows isn't known before it answers: it may take longer. To be through in "
            f"an hour takes {needed}."
        )
    yield from _money(plan)
    if plan.cost_before or plan.tokens_before:
        cost = f"{dollars(plan.cost_before)} and " if plan.has_prices else ""
        yield f"spent by earlier runs: {cost}{plan.tokens_before:,} tokens"
    if plan.exceeded:
        names = " and ".join(f"--{name}" for name in plan.exceeded)
        yield f"The run may end before it is through: {names} is less than that."
    if plan.unpriced:
        names = ", ".join(name or "requests without a model" for name in plan.unpriced)
        yield f"The run sends nothing for {names}, and stops there: --max_cost needs a price."


def _money(plan: Plan) -> Iterator[str]:
    if not plan.requests:
        return
    if not plan.has_prices:
        yield f"money: {_NO_PRICES}"
        return
    known = [group for group in plan.groups if group.reserved_dollars is not None]
    if known:
        prompts = sum(group.input_dollars or 0.0 for group in known)
        reserved = sum(group.reserved_dollars or 0.0 for group in known)
        yield f"money: {dollars(prompts)} for the prompts, {dollars(reserved)} with the answers as reserved"
    if len(known) > 1:
        for group in known:
            yield f"  {_name(group)}: {dollars(group.reserved_dollars or 0.0)}"
    unknown = [_name(group) for group in plan.groups if group.reserved_dollars is None]
    if unknown:
        yield f"no price is known for {', '.join(dict.fromkeys(unknown))} (--prices FILE)"


def _name(group: GroupPlan) -> str:
    return group.model or "requests without a model"


def _changes(plan: Plan) -> Iterator[str]:
    """What else could be done."""
    if not plan.changes:
        return
    yield "what would change:"
    least = ">= " if plan.is_lower_bound else ""
    rows = [["", "requests", "tokens", "time", "money"]]
    for each in plan.changes:
        time = "" if each.seconds is None else f"{least}{clock_text(each.seconds)}"
        money = "" if each.dollars is None else dollars(each.dollars)
        rows.append([f"  {each.what}", f"{each.requests:,}", f"{each.tokens:,}", time, money])
    yield from _table(rows, left=(0,))


def dollars(amount: float) -> str:
    """``amount`` as $1,234.50; a small one with two digits that count."""
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.{max(2, 1 - math.floor(math.log10(amount)))}f}"


def _table(rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    """``rows`` in columns; those that are not in ``left`` are set to the right."""
    filled = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in filled}
    for row in rows:
        cells = (
            row[column].ljust(widths[column])
            if column in left
            else row[column].rjust(widths[column])
            for column in filled
        )
        yield "  ".join(cells).rstrip()
