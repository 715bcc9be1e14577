"""Charts over time as inline SVG, without any script.

A value holds for a whole interval, so that lines are stairs. The plot itself is stretched to the width that
there is; texts and lines keep their sizes. Each interval has a tooltip. Colours are classes (``s0`` …)
of the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from parallel_processor.axes import Axis, linear_axis, log_axis, time_axis
from parallel_processor.markup import Markup, tag
from parallel_processor.wording import clock_text, count

_WIDTH, _HEIGHT = 1000, 180  # the plot's own units; in height they are pixels
_ABOVE, _BELOW = 8, 24
_LOG_FROM = (
    20  # times as large as the smallest: a linear scale would show the small ones as nothing
)
_FAR_OFF = 3  # times as large as all values: such a bound would make them flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One value an interval, ``None`` where there is none.

    ``look`` is the class of its colour. ``note`` stands beside its name in the legend. A bound is drawn
    dashed, and not at all if it is far above everything else.
    """

    name: str
    values: tuple[float | None, ...]
    look: str
    note: str = ""
    is_bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows: ``edges`` are the times between which the values hold, one more than those.

    ``suffix`` stands behind a value in a tooltip. The values of a stacked chart are put on top of each
    other. ``top`` is the end of its scale, if that is fixed. ``may_be_log`` lets the scale be
    logarithmic if the values are of different orders. ``nothing`` is said where there are no series.
    """

    title: str
    unit: str
    edges: tuple[float, ...]
    series: tuple[Series, ...]
    suffix: str = ""
    stacked: bool = False
    top: float | None = None
    may_be_log: bool = False
    nothing: str = ""


def chart_figure(chart: Chart, css_class: str = "card") -> Markup:
    """The chart with its title, unit and legend."""
    axis = value_axis(chart)
    unit = f"{chart.unit}, logarithmic scale" if axis.is_log else chart.unit
    return tag(
        "figure",
        tag("figcaption", tag("h3", chart.title), tag("p", unit, class_="unit")),
        chart_svg(chart, axis),
        _legend(chart, axis),
        class_=css_class,
    )


def value_axis(chart: Chart) -> Axis:
    """The scale of the values."""
    if chart.top is not None:
        return linear_axis(chart.top)
    lines = [s for s in chart.series if not s.is_bound]
    values = [v for s in lines for v in s.values if v is not None]
    if chart.stacked:
        values = [
            sum(v or 0.0 for v in column) for column in zip(*(s.values for s in lines), strict=True)
        ]
    most, least = max(values, default=0.0), min((v for v in values if v > 0), default=0.0)
    if chart.may_be_log and least and most > _LOG_FROM * least:
        return log_axis(least, most)
    bounds = [v for s in chart.series if s.is_bound for v in s.values if v is not None]
    near = [v for v in bounds if not most or v <= _FAR_OFF * most]
    return linear_axis(max([most, *near], default=0.0) * 1.05)


def chart_svg(chart: Chart, axis: Axis) -> Markup:
    """The chart alone, a document of its own in XML as well."""
    times = time_axis(chart.edges[0], chart.edges[-1])
    plot = tag(
        "svg",
        *(_areas(chart, axis, times) if chart.stacked else _lines(chart, axis, times)),
        tag("g", *_tooltips(chart, times), class_="tips"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        y=_ABOVE,
        width="100%",
        height=_HEIGHT,
    )
    return tag(
        "svg",
        *_grid(axis, times),
        plot,
        role="img",
        aria_label=_described(chart),
        xmlns="http://www.w3.org/2000/svg",
        width="100%",
        height=_ABOVE + _HEIGHT + _BELOW,
        class_="chart",
    )


def _grid(axis: Axis, times: Axis) -> list[Markup]:
    """Lines and texts at the ticks."""
    parts = []
    for value, text in axis.ticks:
        y = round(_ABOVE + _HEIGHT * (1 - axis.place(value)), 1)
        look = "base" if value == axis.low else "rule"
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_=look))
        parts.append(tag("text", text, x="-8", y=y + 4, class_="value"))
    for at_s, text in times.ticks:
        x = f"{times.place(at_s) * 100:.2f}%"
        foot = _ABOVE + _HEIGHT
        parts.append(tag("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="base"))
        parts.append(tag("text", text, x=x, y=foot + 18, class_="time"))
    return parts


def _steps(values: Sequence[float], places: Sequence[float], axis: Axis) -> str:
    """The stairs of ``values`` as path commands without the first one's letter."""
    points = []
    for value, (left, right) in zip(values, pairwise(places), strict=True):
        y = _HEIGHT * (1 - axis.place(value))
        points.append(f"{left:.1f} {y:.1f}H{right:.1f}")
    return "L".join(points)


def _lines(chart: Chart, axis: Axis, times: Axis) -> list[Markup]:
    places = [_WIDTH * times.place(edge) for edge in chart.edges]
    parts = []
    lines = [series for series in chart.series if not series.is_bound]
    bounds = [series for series in chart.series if series.is_bound]
    for series in (*lines[::-1], *bounds):  # the first line above the others, bounds above all
        path = ""
        for first, last in _runs(series, axis):
            values = [v or 0.0 for v in series.values[first:last]]
            path += "M" + _steps(values, places[first : last + 1], axis)
        look = "bound" if series.is_bound else f"line {series.look}"
        parts.append(tag("path", d=path, class_=look))
    return parts


def _runs(series: Series, axis: Axis) -> list[tuple[int, int]]:
    """Where ``series`` has values that can be shown: from, and up to but not with."""
    runs: list[tuple[int, int]] = []
    for i, value in enumerate(series.values):
        if value is None or (series.is_bound and value > axis.high):
            continue
        if runs and runs[-1][1] == i:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


def _areas(chart: Chart, axis: Axis, times: Axis) -> list[Markup]:
    places = [_WIDTH * times.place(edge) for edge in chart.edges]
    below, parts = [0.0] * (len(places) - 1), []
    for series in chart.series:
        above = [low + (value or 0.0) for low, value in zip(below, series.values, strict=True)]
        back = _steps(below[::-1], places[::-1], axis)
        path = f"M{_steps(above, places, axis)}L{back}Z"
        parts.append(tag("path", d=path, class_=f"area {series.look}"))
        below = above
    return parts


def _tooltips(chart: Chart, times: Axis) -> list[Markup]:
    """An invisible column for each interval that tells its values."""
    parts = []
    for i, (begin, end) in enumerate(pairwise(chart.edges)):
        left, right = _WIDTH * times.place(begin), _WIDTH * times.place(end)
        lines = [f"{clock_text(begin)} to {clock_text(end)}"]
        lines += [
            f"{series.name}: {count(value)}{chart.suffix}"
            for series in chart.series
            if (value := series.values[i]) is not None and (value or not chart.stacked)
        ]
        parts.append(
            tag(
                "rect",
                tag("title", "\n".join(lines)),
                x=round(left, 1),
                width=round(right - left, 1),
                height=_HEIGHT,
            )
        )
    return parts


def _legend(chart: Chart, axis: Axis) -> Markup:
    items = []
    for series in chart.series:
        far = series.is_bound and not _runs(series, axis) and any(series.values)
        note = f"{series.note}, above this chart" if far else series.note
        key = tag("span", class_="key bound" if series.is_bound else f"key {series.look}")
        items.append(tag("li", key, series.name, *([" ", tag("b", note)] if note else [])))
    return tag("ul", *items, class_="legend")


def _described(chart: Chart) -> str:
    """The chart in a sentence, for those who can't see it."""
    names = [f"{s.name} ({s.note})" if s.note else s.name for s in chart.series]
    begin, end = clock_text(chart.edges[0]), clock_text(chart.edges[-1])
    return f"{chart.title}, {chart.unit}, from {begin} to {end}: {joined_names(names)}"


def joined_names(names: Sequence[str]) -> str:
    """``names`` as a list in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
