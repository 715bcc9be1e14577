"""The charts of a run: which figures of its samples go into which one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from parallel_processor.models import WaitCause
from parallel_processor.report.histogram import PERCENTILES, percentile_s
from parallel_processor.report.html.charts import Chart, Series
from parallel_processor.report.samples import Interval, RunReport, intervals
from parallel_processor.report.wording import cause_text, count, kind_text, latency_text, share_text

_Key = TypeVar("_Key", bound=str)
_ERROR_LOOKS = ("s3", "s1", "s4", "s0", "s2", "s5")
_CAUSE_LOOKS = ("s0", "s1", "s3", "s2", "s4", "s5")
_OTHERS = "s6"
_MAX_AREAS = 6
_MAX_LATENCIES = 48  # intervals: a percentile needs many answers
_LEAST_SHARE = 0.002  # of the time; a cause that took less is left out


def charts_of(report: RunReport) -> tuple[Chart, ...]:
    """The charts of the run's timeline; none while that has no intervals."""
    steps = intervals(report.timeline)
    if not steps:
        return ()
    whole = Interval(before=steps[0].before, after=steps[-1].after)
    return (
        _causes(steps, whole),
        _requests(steps, whole),
        _tokens(steps, whole),
        _errors(steps, whole),
        _latencies(intervals(report.timeline, _MAX_LATENCIES), whole),
        _in_flight(steps, report.max_workers),
    )


def _chart(
    title: str, unit: str, steps: Sequence[Interval], series: Sequence[Series], **more: Any
) -> Chart:
    edges = (steps[0].before.at_s, *(step.after.at_s for step in steps))
    return Chart(title=title, unit=unit, edges=edges, series=tuple(series), **more)


def _rate(steps: Sequence[Interval], whole: Interval, name: str, label: str, look: str) -> Series:
    """The counter ``name`` a minute, and its average."""
    values = tuple(step.per_minute(name) for step in steps)
    note = f"{count(round(whole.per_minute(name)))} on average"
    return Series(name=label, values=values, look=look, note=note)


def _bounds(steps: Sequence[Interval], *names: str) -> list[Series]:
    """The limits of ``names`` that were in force at the end of each interval, if there were any."""
    found = []
    for name in names:
        numbers = [step.after.limits.get(name, math.inf) for step in steps]
        known = [number for number in numbers if math.isfinite(number)]
        if known:
            values = tuple(n if math.isfinite(n) else None for n in numbers)
            label = "limit" if name == names[0] else f"limit of {kind_text(name)}"
            note = count(known[-1]) + (" at the end" if len(set(known)) > 1 else "")
            found.append(Series(name=label, values=values, note=note, is_bound=True))
    return found


def _requests(steps: Sequence[Interval], whole: Interval) -> Chart:
    series = [_rate(steps, whole, "attempts", "sent", "s0")]
    if whole.per_minute("answered"):
        series.append(_rate(steps, whole, "answered", "answered", "s2"))
    series += _bounds(steps, "requests")
    return _chart("Requests", "a minute", steps, series)


def _tokens(steps: Sequence[Interval], whole: Interval) -> Chart:
    lines = (
        ("reserved_tokens", "reserved when sent", "s0"),
        ("used_tokens", "used by answers", "s2"),
    )
    series = [_rate(steps, whole, *line) for line in lines if whole.per_minute(line[0])]
    if series:
        series += _bounds(steps, "tokens", "input_tokens", "output_tokens")
    return _chart("Tokens", "a minute", steps, series, nothing="No tokens were counted.")


def _in_flight(steps: Sequence[Interval], max_workers: int) -> Chart:
    values = tuple(float(step.in_flight) for step in steps)
    most = f"{max(values):,.0f} at most"
    series = [Series(name="in flight", values=values, look="s0", note=most)]
    if max_workers:
        bound, note = (float(max_workers),) * len(steps), count(max_workers)
        series.append(Series(name="max_workers", values=bound, note=note, is_bound=True))
    return _chart("In flight", "requests sent and not answered yet", steps, series)


def _latencies(steps: Sequence[Interval], whole: Interval) -> Chart:
    series = tuple(
        Series(
            name=f"p{percent}",
            values=tuple(step.latency_s(percent) for step in steps),
            look=look,
            note=latency_text(percentile_s(whole.after.latencies, percent)),
        )
        for percent, look in zip(reversed(PERCENTILES), ("s3", "s0", "s5"), strict=True)
    )
    unit = "seconds that 99, 95 and 50 % of the answers stayed within, logarithmic scale"
    shown = series if sum(whole.after.latencies) else ()
    return _chart("Latency", unit, steps, shown, is_log=True, nothing="No answers so far.")


def _groups(keys: Sequence[_Key]) -> list[tuple[_Key, ...]]:
    """Each key alone; where there are too many, the last ones together."""
    if len(keys) <= _MAX_AREAS:
        return [(key,) for key in keys]
    return [*((key,) for key in keys[: _MAX_AREAS - 1]), tuple(keys[_MAX_AREAS - 1 :])]


def _areas(
    groups: Sequence[tuple[_Key, ...]],
    columns: Sequence[Sequence[float]],
    *,
    notes: Sequence[str],
    looks: Sequence[str],
    text: Callable[[_Key], str],
) -> list[Series]:
    """An area for each group; ``columns`` has the values of an interval, in the order of the groups."""
    return [
        Series(
            name=text(group[0]) if len(group) == 1 else "others",
            values=tuple(column[i] for column in columns),
            look=looks[i] if len(group) == 1 else _OTHERS,
            note=notes[i],
        )
        for i, group in enumerate(groups)
    ]


def _errors(steps: Sequence[Interval], whole: Interval) -> Chart:
    """Failed attempts by kind, the most frequent first."""
    numbers = whole.after.errors
    kinds = sorted((kind for kind, n in numbers.items() if n), key=lambda kind: -numbers[kind])
    groups = _groups(kinds)
    series = _areas(
        groups,
        [[step.errors_per_minute(*group) for group in groups] for step in steps],
        notes=[count(sum(numbers[kind] for kind in group)) for group in groups],
        looks=_ERROR_LOOKS,
        text=str,
    )
    title, unit = "Rejections and errors", "attempts a minute that got no answer"
    return _chart(title, unit, steps, series, stacked=True, nothing="No attempt failed.")


def _causes(steps: Sequence[Interval], whole: Interval) -> Chart:
    """The share of each interval that sending waited for each cause; the rest it was busy."""
    causes = [cause for cause in whole.after.waited_s if whole.share(cause) >= _LEAST_SHARE]
    groups = _groups(sorted(causes, key=lambda cause: -whole.share(cause)))
    columns = [_percents(step, groups) for step in steps]
    notes = [share_text(percent / 100) for percent in _percents(whole, groups)]
    series = _areas(groups, columns, notes=notes, looks=_CAUSE_LOOKS, text=cause_text)
    rest = tuple(column[-1] for column in columns)
    busy = Series(name="busy sending", values=rest, look="busy", note=notes[-1])
    shown = [*series, busy]
    return _chart("What sending waited for", "% of the time", steps, shown, stacked=True, top=100.0)


def _percents(step: Interval, groups: Sequence[Sequence[WaitCause]]) -> list[float]:
    """The share of each group of causes, and the rest: 100 % together."""
    shares = [step.share(*group) for group in groups]
    scale = max(sum(shares), 1.0)  # a wait may be counted in the interval after it
    shares = [100 * share / scale for share in shares]
    return [*shares, max(100.0 - sum(shares), 0.0)]
