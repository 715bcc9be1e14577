"""Charts over time as inline SVG, without any script.

A value holds for a whole interval, so that lines are stairs. The plot is stretched to the width of the
page; texts and lines keep their sizes. Colours are classes (``s0`` …) of the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from parallel_processor.report.html.markup import Markup, tag
from parallel_processor.report.wording import clock_text, tick_text

_WIDTH, _HEIGHT = 1000, 180  # the plot's own units; in height they are pixels
_ABOVE, _BELOW = 8, 24
_FAR_OFF = 3  # times as high as all values: such a bound would flatten them
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIME_STEPS_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or area."""

    name: str  # what the legend calls it
    values: tuple[float | None, ...]  # a value for each interval; None where there is none
    look: str = ""  # the class of its colour
    note: str = ""  # what stands beside the name in the legend
    is_bound: bool = False  # true for a limit, which is drawn dashed


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows."""

    title: str  # its heading
    unit: str  # what the values are
    edges: tuple[float, ...]  # the times between which the values hold; one more of them
    series: tuple[Series, ...]  # its lines, or its areas
    stacked: bool = False  # true for areas on top of each other
    top: float | None = None  # the end of the value axis, if that is fixed
    is_log: bool = False  # true for a logarithmic scale, which shows values of different orders
    nothing: str = ""  # what is said where there are no series


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A scale from ``low`` to ``high``, and its ticks: values, and how they are written."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` lies, from 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def value_axis(most: float) -> Axis:
    """From 0 to a round number of at least ``most``."""
    most = most if most > 0 and math.isfinite(most) else 1.0
    magnitude = 10.0 ** math.floor(math.log10(most / 4))
    step = next(s * magnitude for s in _STEPS if s * magnitude >= most / 4 * (1 - 1e-9))
    number = math.ceil(most / step * (1 - 1e-9))
    ticks = tuple((step * n, tick_text(round(step * n, 12))) for n in range(number + 1))
    return Axis(low=0.0, high=step * number, ticks=ticks)


def log_axis(least: float, most: float) -> Axis:
    """From a power of ten of at most ``least`` to one of at least ``most``; both are above 0."""
    first = math.floor(math.log10(least))
    last = max(math.ceil(math.log10(most)), first + 1)
    factors = (1, 3) if last - first <= 2 else (1,)
    values = [*(f * 10.0**n for n in range(first, last) for f in factors), 10.0**last]
    ticks = tuple((value, tick_text(float(f"{value:.6g}"))) for value in values)
    return Axis(low=values[0], high=values[-1], ticks=ticks, is_log=True)


def time_axis(begin_s: float, end_s: float) -> Axis:
    """From ``begin_s`` to ``end_s``, which is later, with at most six ticks of round times."""
    wanted = (end_s - begin_s) / 5
    step = next((s for s in _TIME_STEPS_S if s >= wanted), math.ceil(wanted / 86400) * 86400)
    numbers = range(math.ceil(begin_s / step - 1e-9), math.floor(end_s / step + 1e-9) + 1)
    ticks = tuple((n * step, _time_text(n * step, step)) for n in numbers)
    return Axis(low=begin_s, high=end_s, ticks=ticks)


def _time_text(seconds: float, step: float) -> str:
    return clock_text(seconds) if step >= 1 else f"{round(seconds, 3):g} s"


def chart_figure(chart: Chart) -> Markup:
    """The chart with its title, unit and legend, or with what is said where it has no series."""
    caption = tag("figcaption", tag("h3", chart.title), tag("p", chart.unit, class_="unit"))
    if not chart.series:
        return tag("figure", caption, tag("p", chart.nothing, class_="none"), class_="card")
    near = _without_far_bounds(chart)
    return tag("figure", caption, chart_svg(near), _legend(near), class_="card")


def _without_far_bounds(chart: Chart) -> Chart:
    """The chart without bounds far above all values, which would flatten them; the legend says so."""
    lines = (series.values for series in chart.series if not series.is_bound)
    most = _FAR_OFF * max((v for values in lines for v in values if v is not None), default=0.0)
    shown = []
    for series in chart.series:
        if series.is_bound and most:
            near = tuple(v if v is not None and v <= most else None for v in series.values)
            note = series.note if any(near) else f"{series.note}, above this chart"
            series = replace(series, values=near, note=note)
        shown.append(series)
    return replace(chart, series=tuple(shown))


def _axis(chart: Chart) -> Axis:
    columns = zip(*(series.values for series in chart.series), strict=True)
    height = sum if chart.stacked else max
    most = max((height(value or 0.0 for value in column) for column in columns), default=0.0)
    if chart.is_log and most > 0:
        return log_axis(min(v for series in chart.series for v in series.values if v), most)
    return value_axis(chart.top or most * 1.05)


def chart_svg(chart: Chart) -> Markup:
    """The chart alone, a document of its own in XML as well."""
    times = time_axis(chart.edges[0], chart.edges[-1])
    axis = _axis(chart)
    places = [_WIDTH * times.place(edge) for edge in chart.edges]
    plot = tag(
        "svg",
        *(_areas(chart, axis, places) if chart.stacked else _lines(chart, axis, places)),
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


def _stairs(values: Sequence[float | None], axis: Axis, places: Sequence[float]) -> str:
    """The path of ``values``, each from one place to the next; ``None`` interrupts it."""
    path, command = "", "M"
    for value, (left, right) in zip(values, pairwise(places), strict=True):
        if value is None:
            command = "M"
            continue
        path += f"{command}{left:.1f} {_HEIGHT * (1 - axis.place(value)):.1f}H{right:.1f}"
        command = "L"
    return path


def _lines(chart: Chart, axis: Axis, places: Sequence[float]) -> list[Markup]:
    """The lines: the first one is drawn above the others, and bounds above all lines."""
    lines = [series for series in chart.series[::-1] if not series.is_bound]
    bounds = [series for series in chart.series if series.is_bound]
    return [
        tag(
            "path",
            tag("title", series.name),
            d=_stairs(series.values, axis, places),
            class_="bound" if series.is_bound else f"line {series.look}",
        )
        for series in (*lines, *bounds)
    ]


def _areas(chart: Chart, axis: Axis, places: Sequence[float]) -> list[Markup]:
    """The areas, each on top of the one before it."""
    below, parts = [0.0] * (len(places) - 1), []
    for series in chart.series:
        above = [low + (value or 0.0) for low, value in zip(below, series.values, strict=True)]
        back = _stairs(below[::-1], axis, places[::-1])
        path = f"{_stairs(above, axis, places)}L{back[1:]}Z"
        parts.append(tag("path", tag("title", series.name), d=path, class_=f"area {series.look}"))
        below = above
    return parts


def _legend(chart: Chart) -> Markup:
    items = []
    for series in chart.series:
        key = tag("span", class_="key bound" if series.is_bound else f"key {series.look}")
        note = [" ", tag("b", series.note)] if series.note else []
        items.append(tag("li", key, series.name, *note))
    return tag("ul", *items, class_="legend")


def _described(chart: Chart) -> str:
    """The chart in a sentence, for a reader who can't see it."""
    names = [f"{s.name} ({s.note})" if s.note else s.name for s in chart.series]
    begin, end = clock_text(chart.edges[0]), clock_text(chart.edges[-1])
    return f"{chart.title}, {chart.unit}, from {begin} to {end}: {', '.join(names)}"
