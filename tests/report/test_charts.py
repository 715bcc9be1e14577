"""Charts: what they draw is exactly what the samples say."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest
import reports

from parallel_processor.models import WaitCause
from parallel_processor.report.histogram import BINS, bin_of, upper_s
from parallel_processor.report.html.charts import (
    Chart,
    Series,
    chart_figure,
    chart_svg,
    log_axis,
    time_axis,
    value_axis,
)
from parallel_processor.report.html.panels import charts_of
from parallel_processor.report.samples import RunReport, Sample, intervals, requests_per_minute_now
from parallel_processor.report.summary import Summary

SVG = "{http://www.w3.org/2000/svg}"


def latencies(*seconds: float) -> tuple[int, ...]:
    """The counts of answers that took so long."""
    bins = [0] * BINS
    for each in seconds:
        bins[bin_of(each)] += 1
    return tuple(bins)


TIMELINE = (
    Sample(at_s=0.0, limits={"requests": 100.0, "tokens": math.inf}),
    Sample(
        at_s=10.0,
        attempts=20,
        answered=15,
        reserved_tokens=4000,
        used_tokens=300,
        in_flight=5,
        errors={"timeout": 1},
        waited_s={WaitCause.REQUESTS: 6.0, WaitCause.INPUT: 1.0},
        latencies=latencies(0.5, 0.5, 4.0),
        limits={"requests": 120.0, "tokens": math.inf},
    ),
    Sample(
        at_s=40.0,
        attempts=50,
        answered=45,
        reserved_tokens=10_000,
        used_tokens=600,
        in_flight=2,
        errors={"timeout": 1, "HTTP 500": 30},
        waited_s={WaitCause.REQUESTS: 36.0, WaitCause.INPUT: 1.0, WaitCause.TOKEN_COUNTING: 0.0},
        latencies=latencies(0.5, 0.5, 4.0, 9.0),
        limits={"requests": 120.0, "tokens": 50_000.0},
    ),
)


def report(timeline: tuple[Sample, ...], **more: Any) -> RunReport:
    """A report with this timeline alone."""
    return RunReport(summary=Summary(), started_at=0.0, written_at=0.0, timeline=timeline, **more)


def values(title: str, timeline: tuple[Sample, ...] = TIMELINE) -> dict[str, list[float | None]]:
    """What the chart of this title shows, by the names of its series."""
    (chart,) = [each for each in charts_of(report(timeline)) if each.title == title]
    assert chart.edges == tuple(sample.at_s for sample in timeline)
    return {series.name: list(series.values) for series in chart.series}


def chart(*series: Series, **more: object) -> Chart:
    """A chart of two intervals."""
    return Chart(title="T", unit="u", edges=(0.0, 1.0, 4.0), series=series, **more)  # type: ignore


def series(*numbers: float | None, **more: object) -> Series:
    """A series of these values."""
    return Series(name="a", values=numbers, look="s0", **more)  # type: ignore[arg-type]


def paths(each: Chart) -> list[str]:
    """The path commands of the chart's lines and areas."""
    root = ElementTree.fromstring(chart_figure(each))
    return [path.attrib["d"] for path in root.iter(f"{SVG}path")]


def test_rates_are_the_differences_of_the_samples() -> None:
    """Each interval's rate is the rise of its count a minute, whatever its length."""
    rates = {"sent": [120.0, 60.0], "answered": [90.0, 60.0], "limit": [120.0, 120.0]}
    assert values("Requests") == rates


def test_an_infinite_limit_is_no_limit() -> None:
    """Where a limit is infinite nothing is drawn, and elsewhere it is."""
    assert values("Tokens") == {
        "reserved when sent": [24_000.0, 12_000.0],
        "used by answers": [1800.0, 600.0],
        "limit": [None, 50_000.0],
    }
    free = tuple(replace(s, limits={"requests": math.inf, "tokens": math.inf}) for s in TIMELINE)
    assert "limit" not in values("Requests", free) | values("Tokens", free)


def test_errors_are_told_by_kind() -> None:
    """The most frequent is first; of more than six kinds the rare ones are added up."""
    found = values("Rejections and errors")
    assert list(found.items()) == [("HTTP 500", [0.0, 60.0]), ("timeout", [6.0, 0.0])]
    errors = {f"kind {n}": 10 * n for n in range(1, 9)}
    found = values("Rejections and errors", (Sample(at_s=0.0), Sample(at_s=60.0, errors=errors)))
    assert list(found) == ["kind 8", "kind 7", "kind 6", "kind 5", "kind 4", "others"]
    assert found["others"] == [10.0 + 20.0 + 30.0]


def test_what_sending_waited_for_adds_up() -> None:
    """The shares of the causes and of the busy time are 100 % of each interval."""
    found = values("What sending waited for")
    assert found["the request limit"] == pytest.approx([60.0, 100.0])
    assert found["the input or the CPU"] == pytest.approx([10.0, 0.0])
    assert found["busy sending"] == pytest.approx([30.0, 0.0])


def test_waits_longer_than_the_interval_are_scaled() -> None:
    """Waits that a coarse clock counted into the next interval don't exceed 100 %."""
    last = Sample(at_s=1.0, waited_s={WaitCause.TOKENS: 3.0, WaitCause.DISK: 1.0})
    found = values("What sending waited for", (Sample(at_s=0.0), last))
    assert sum(v or 0.0 for column in found.values() for v in column) == pytest.approx(100.0)


def test_latencies_are_those_of_the_interval() -> None:
    """The percentiles are of the answers that came in the interval, not of all before."""
    found = values("Latency")
    assert found["p50"] == [upper_s(bin_of(0.5)), upper_s(bin_of(9.0))]
    assert found["p99"] == [upper_s(bin_of(4.0)), upper_s(bin_of(9.0))]


def test_no_answers_leave_a_gap() -> None:
    """An interval without answers has no percentiles, and the line is broken there."""
    timeline = (*TIMELINE, replace(TIMELINE[-1], at_s=50.0))
    assert values("Latency", timeline)["p95"][-1] is None
    assert [path.count("M") for path in paths(chart(series(None, 2.0)))] == [1]
    broken = Chart(title="", unit="", edges=(0, 1, 2, 3), series=(series(1.0, None, 2.0),))
    assert [path.count("M") for path in paths(broken)] == [2]


def test_in_flight_is_the_peak() -> None:
    """What was in flight is the most that any of the samples at an interval's ends saw."""
    assert values("In flight") == {"in flight": [5.0, 5.0]}
    (*_, last) = charts_of(report(TIMELINE, max_workers=64))
    assert [each.name for each in last.series] == ["in flight", "max_workers"]


@pytest.mark.parametrize("timeline", [(), TIMELINE[:1], (TIMELINE[0], TIMELINE[0])])
def test_without_an_interval_there_are_no_charts(timeline: tuple[Sample, ...]) -> None:
    """No sample, one, and two at the same moment have nothing to draw."""
    assert charts_of(report(timeline)) == ()


def test_many_samples_are_thinned_without_losing_counts() -> None:
    """Of 400 samples about 120 intervals remain, that together hold all that was counted."""
    timeline = tuple(
        Sample(at_s=n * (1.0 if n < 300 else 1.001), attempts=n * n, in_flight=n)
        for n in range(400)
    )
    found = intervals(timeline)
    assert 60 <= len(found) <= 120
    assert [a.after for a in found[:-1]] == [b.before for b in found[1:]]
    sums = sum(each.per_minute("attempts") * each.seconds / 60 for each in found)
    assert sums == pytest.approx(399 * 399)
    assert (found[0].before, found[-1].after) == (timeline[0], timeline[-1])
    assert max(each.in_flight for each in found) == 399


def test_a_last_moment_is_no_interval_of_its_own() -> None:
    """A sample just behind the last interval is added to that, so that its rate isn't absurd."""
    timeline = (Sample(at_s=0.0), Sample(at_s=600.0, attempts=10), Sample(at_s=600.1, attempts=12))
    (only,) = intervals(timeline)
    assert only.per_minute("attempts") == pytest.approx(12 * 60 / 600.1)


def test_the_pace_of_the_last_minute() -> None:
    """It counts from the last sample that is a minute old, and is unknown in the first minute."""
    assert requests_per_minute_now(TIMELINE) is None
    timeline = (*TIMELINE, Sample(at_s=100.0, attempts=170))
    assert requests_per_minute_now(timeline) == 120.0


def test_a_line_is_stairs_at_the_right_places() -> None:
    """Values hold from edge to edge, and lie where the scale says."""
    (path,) = paths(chart(series(0.0, 100.0), top=100.0))
    assert path == "M0.0 180.0H250.0L250.0 0.0H1000.0"


def test_areas_are_on_top_of_each_other() -> None:
    """The second area begins where the first one ends, forth and back."""
    lower, upper = paths(chart(series(25.0, 50.0), series(75.0, 50.0), stacked=True, top=100.0))
    assert lower == "M0.0 135.0H250.0L250.0 90.0H1000.0L1000.0 180.0H250.0L250.0 180.0H0.0Z"
    assert upper == "M0.0 0.0H250.0L250.0 0.0H1000.0L1000.0 90.0H250.0L250.0 135.0H0.0Z"


def test_a_far_limit_does_not_flatten_the_chart() -> None:
    """A bound of many times the values is left out and its legend says so; a near one is drawn."""
    far = chart(series(1.0, 2.0), series(50.0, 50.0, is_bound=True, note="50"))
    assert "50, above this chart" in chart_figure(far)
    assert [path for path in paths(far) if path] == paths(chart(series(1.0, 2.0)))
    near = chart(series(1.0, 2.0), series(4.0, 4.0, is_bound=True, note="4"))
    assert "above this chart" not in chart_figure(near)
    assert len([path for path in paths(near) if path]) == 2
    fell = series(50.0, 3.0, is_bound=True, note="3")  # a part of the bound is near
    assert "M" in paths(chart(series(1.0, 2.0), fell))[1]


@pytest.mark.parametrize("most", [0.0, 0.003, 1.0, 7.0, 99.0, 101.0, 1260.0, 3.3e7, 1e12])
def test_a_linear_scale_is_round_and_not_far_above(most: float) -> None:
    """It has some ticks at equal distances, no more than six, and holds the largest value."""
    axis = value_axis(most)
    numbers = [value for value, _ in axis.ticks]
    assert 3 <= len(numbers) <= 6
    assert numbers[0] == 0.0
    assert axis.high >= most
    assert most == 0.0 or axis.high <= 1.7 * most
    assert len({text for _, text in axis.ticks}) == len(numbers)


@pytest.mark.parametrize(("least", "most"), [(0.4, 61.0), (1.0, 20.0), (0.001, 4000.0), (3.0, 3.0)])
def test_a_logarithmic_scale_holds_all_values(least: float, most: float) -> None:
    """The smallest and the largest value lie on it, between at least two ticks."""
    axis = log_axis(least, most)
    assert axis.low <= least <= most <= axis.high
    assert 2 <= len(axis.ticks) <= 9
    assert axis.place(axis.low) == 0.0
    assert axis.place(axis.high) == pytest.approx(1.0)
    assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        (2.0, "0 s, 0.5 s, 1 s, 1.5 s, 2 s"),
        (480.0, "0:00:00, 0:02:00, 0:04:00, 0:06:00, 0:08:00"),
        (9000.0, "0:00:00, 0:30:00, 1:00:00, 1:30:00, 2:00:00, 2:30:00"),
    ],
)
def test_times_are_round(seconds: float, texts: str) -> None:
    """The ticks of the time are at round times."""
    assert ", ".join(text for _, text in time_axis(0.0, seconds).ticks) == texts


@pytest.mark.parametrize("seconds", [0.001, 0.7, 59.0, 86_399.0, 3e6])
def test_times_are_few(seconds: float) -> None:
    """However long the run was, there are no more than six ticks, and at least one."""
    assert 1 <= len(time_axis(0.0, seconds).ticks) <= 6


def test_values_of_different_orders_can_all_be_seen() -> None:
    """On a logarithmic scale each factor of ten has the same height; without values it is linear."""
    (path,) = paths(chart(series(1.0, 100.0), is_log=True))
    assert path == "M0.0 180.0H250.0L250.0 0.0H1000.0"
    (path,) = paths(chart(series(None, 0.0), is_log=True))
    assert path == "M250.0 180.0H1000.0"


@pytest.mark.parametrize("name", [n for n in reports.ALL if n != "empty"])
def test_charts_are_well_formed_and_described(name: str) -> None:
    """Each chart is XML, has a role and a description, and finite places."""
    charts = charts_of(reports.ALL[name]())
    assert len(charts) == 6
    for each in charts:
        text = chart_svg(each)
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"].startswith(f"{each.title}, {each.unit}, from 0:00:00 to ")
        assert not re.search(r"\b(nan|inf|None)\b", text)


def test_names_are_escaped() -> None:
    """What an error is called can't become markup."""
    hostile = '</svg><script>alert("1")</script>'
    timeline = (Sample(at_s=0.0), Sample(at_s=1.0, errors={hostile: 5}))
    for each in charts_of(report(timeline)):
        if each.series:
            figure = ElementTree.fromstring(chart_figure(each))
            assert not list(figure.iter("script"))
            assert "<script" not in chart_figure(each)
    assert values("Rejections and errors", timeline) == {hostile: [300.0]}
