"""The charts of a run: which figures of its samples go into which one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_processor.charts import Chart, Series
from parallel_processor.figures import RunReport, Sample
from parallel_processor.intervals import Interval, intervals
from parallel_processor.latencies import percentile_s
from parallel_processor.wording import cause_text, count, kind_text, latency_text, share_text

_MOST_KINDS = 5  # of errors, and of causes; the rest are "others"
_PERCENTS = (99, 95, 50)
_ERROR_LOOKS = ("s3", "s1", "s4", "s0", "s2", "s5")
_CAUSE_LOOKS = ("s0", "s1", "s3", "s2", "s4", "s5")
_MOST_OF_LATENCY = 48  # intervals: a percentile wants many answers
_OTHERS = "s6"
_LEAST_SHARE = 0.002  # of the time; what held less isn't a cause


def charts_of(report: RunReport) -> tuple[Chart, ...]:
    """The charts of the run's timeline; none where that has no intervals yet."""
    steps = intervals(report.timeline)
    if not steps:
        return ()
    first, last = steps[0].before, steps[-1].after
    return (
        _causes(steps, first, last),
        _requests(steps, first, last),
        _tokens(steps, first, last),
        _errors(steps, last),
        _latencies(intervals(report.timeline, _MOST_OF_LATENCY), last),
        _in_flight(steps, report),
    )


def _edges(steps: Sequence[Interval]) -> tuple[float, ...]:
    return (steps[0].before.at_s, *(step.after.at_s for step in steps))


def _rate(steps: Sequence[Interval], name: str, label: str, look: str) -> Series:
    """The count ``name`` a minute, with what it came to over all."""
    whole = Interval(before=steps[0].before, after=steps[-1].after, in_flight=0)
    values = tuple(step.per_minute(name) for step in steps)
    note = f"{count(round(whole.per_minute(name)))} on average"
    return Series(name=label, values=values, look=look, note=note)


def _bounds(steps: Sequence[Interval], names: Sequence[str]) -> list[Series]:
    """The limits of ``names`` that were in force at the end of each interval, if there were any."""
    found = []
    for name in names:
        numbers = [step.after.limits.get(name, math.inf) for step in steps]
        values = tuple(n if math.isfinite(n) else None for n in numbers)
        known = [v for v in values if v is not None]
        if known:
            label = "limit" if name == names[0] else f"limit of {kind_text(name)}"
            note = count(known[-1]) + (" at last" if len(set(known)) > 1 else "")
            found.append(Series(name=label, values=values, look="", note=note, is_bound=True))
    return found


def _requests(steps: Sequence[Interval], first: Sample, last: Sample) -> Chart:
    series = [_rate(steps, "attempts", "sent", "s0")]
    if last.answered > first.answered:
        series.append(_rate(steps, "answered", "answered", "s2"))
    return Chart(
        title="Requests",
        unit="a minute",
        edges=_edges(steps),
        series=(*series, *_bounds(steps, ["requests"])),
    )


def _tokens(steps: Sequence[Interval], first: Sample, last: Sample) -> Chart:
    series = []
    if last.reserved_tokens > first.reserved_tokens:
        series.append(_rate(steps, "reserved_tokens", "reserved when sent", "s0"))
    if last.used_tokens > first.used_tokens:
        series.append(_rate(steps, "used_tokens", "used by answers", "s2"))
    bounds = _bounds(steps, ["tokens", "input_tokens", "output_tokens"]) if series else []
    return Chart(
        title="Tokens",
        unit="a minute",
        edges=_edges(steps),
        series=(*series, *bounds),
        nothing="No tokens were counted.",
    )


def _in_flight(steps: Sequence[Interval], report: RunReport) -> Chart:
    peak = max(step.in_flight for step in steps)
    sent = Series(
        name="in flight",
        values=tuple(float(step.in_flight) for step in steps),
        look="s0",
        note=f"{count(peak)} at most",
    )
    most = Series(
        name="max_workers",
        values=(float(report.max_workers),) * len(steps),
        look="",
        note=count(report.max_workers),
        is_bound=True,
    )
    return Chart(
        title="In flight",
        unit="requests sent and not answered yet",
        edges=_edges(steps),
        series=(sent, most) if report.max_workers else (sent,),
    )


def _latencies(steps: Sequence[Interval], last: Sample) -> Chart:
    series = []
    for percent, look in zip(_PERCENTS, ("s3", "s0", "s5"), strict=True):
        over_all = percentile_s(last.latencies, percent)
        if over_all is not None:
            values = tuple(step.latency_s(percent) for step in steps)
            note = latency_text(over_all)
            series.append(Series(name=f"p{percent}", values=values, look=look, note=note))
    return Chart(
        title="Latency",
        unit="seconds that 99, 95 and 50 % of the answers stayed within",
        edges=_edges(steps),
        series=tuple(series),
        suffix=" s",
        may_be_log=True,
        nothing="No answers so far.",
    )


def _errors(steps: Sequence[Interval], last: Sample) -> Chart:
    """Failed attempts, the most frequent kinds one by one."""
    kinds = sorted((k for k, n in last.errors.items() if n), key=lambda k: -last.errors[k])
    shown, rest = kinds[:_MOST_KINDS], kinds[_MOST_KINDS:]
    if len(rest) == 1:
        shown, rest = kinds, []
    series = [
        Series(
            name=kind,
            values=tuple(step.errors_per_minute(kind) for step in steps),
            look=look,
            note=count(last.errors[kind]),
        )
        for kind, look in zip(shown, _ERROR_LOOKS, strict=False)
    ]
    if rest:
        sums = tuple(sum(step.errors_per_minute(kind) for kind in rest) for step in steps)
        note = count(sum(last.errors[kind] for kind in rest))
        series.append(Series(name="others", values=sums, look=_OTHERS, note=note))
    return Chart(
        title="Refusals and errors",
        unit="attempts a minute that got no answer",
        edges=_edges(steps),
        series=tuple(series),
        stacked=True,
        nothing="No attempt failed.",
    )


def _causes(steps: Sequence[Interval], first: Sample, last: Sample) -> Chart:
    """The share of each interval that each cause held the sending back; the rest it was busy."""
    whole = Interval(before=first, after=last, in_flight=0)
    words: dict[str, list[str]] = {}
    for cause in last.held_by:
        words.setdefault(cause_text(cause), []).append(cause)
    causes = sorted(words.items(), key=lambda item: -whole.share(item[1]))
    causes = [item for item in causes if whole.share(item[1]) >= _LEAST_SHARE]
    if len(causes) > _MOST_KINDS + 1:
        rest = [cause for _, names in causes[_MOST_KINDS:] for cause in names]
        causes = [*causes[:_MOST_KINDS], ("others", rest)]
    columns = [_shares(step, [names for _, names in causes]) for step in steps]
    words_of = [*(word for word, _ in causes), "busy sending"]
    looks = [*_CAUSE_LOOKS[: len(causes)], "busy"]
    over_all = _shares(whole, [names for _, names in causes])
    series = [
        Series(
            name=label,
            values=tuple(100 * column[i] for column in columns),
            look=look,
            note=share_text(over_all[i]),
        )
        for i, (label, look) in enumerate(zip(words_of, looks, strict=True))
    ]
    return Chart(
        title="What held the sending back",
        unit="% of the time",
        edges=_edges(steps),
        series=tuple(series),
        suffix=" %",
        stacked=True,
        top=100.0,
    )


def _shares(step: Interval, causes: Sequence[Sequence[str]]) -> list[float]:
    """The share of each of ``causes``, and what is left, 1 all together."""
    shares = [step.share(names) for names in causes]
    scale = max(sum(shares), 1.0)
    shares = [share / scale for share in shares]
    return [*shares, max(1.0 - sum(shares), 0.0)]
