"""The page of a run: whole in itself, safe, and readable on a wide and a narrow screen."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reports

from parallel_processor.report.html.markup import joined, safe, tag, with_code
from parallel_processor.report.html.page import page_text
from parallel_processor.report.samples import RequestNote, RunReport, Sample
from parallel_processor.report.wording import (
    clock_text,
    count,
    latency_text,
    moment_text,
    share_text,
)

VOID = {"meta", "br"}
HOSTILE = '<script>alert(1)</script><img src=x onerror="a()">\'&amp;\x00\ud800'


class Page(HTMLParser):
    """A page's elements and texts; refuses an element that isn't closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is to be read."""
        return " ".join(" ".join(self.texts).split())

    def names(self) -> list[str]:
        """The names of all elements."""
        return [name for name, _ in self.elements]


def hostile(report: RunReport) -> RunReport:
    """The report with hostile text wherever text comes from others."""
    summary = report.summary
    buckets = []
    for bucket in summary.buckets:
        limits = tuple(replace(limit, name=HOSTILE) for limit in bucket.limits)
        buckets.append(replace(bucket, model=HOSTILE, url=HOSTILE, limits=limits))
    note = RequestNote(number=7, custom_id=HOSTILE, model=HOSTILE, error=HOSTILE, kind=HOSTILE)
    last = replace(report.timeline[-1], errors={HOSTILE: 1})
    return replace(
        report,
        summary=replace(
            summary, buckets=tuple(buckets), errors_by_kind={HOSTILE: 3}, stop_reason=HOSTILE
        ),
        requests_path=HOSTILE,
        save_path=HOSTILE,
        url=HOSTILE,
        timeline=(*report.timeline[:-1], last),
        slowest=(note,),
        failures=(note,),
    )


@pytest.mark.parametrize("name", reports.ALL)
def test_the_page_is_well_formed_and_loads_nothing(name: str) -> None:
    """Every element is closed, there is no script, and neither a file nor a host is named."""
    text = page_text(reports.ALL[name]())
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.names().count("h1") == page.names().count("main") == 1
    assert "script" not in page.names()
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    names = {key for _, attributes in page.elements for key in attributes}
    assert not names & {"src", "srcset", "href", "xlink:href", "data", "action", "background"}
    assert not re.search(r"url\(|@import|expression\(", text)


@pytest.mark.parametrize("name", reports.ALL)
def test_what_comes_from_others_is_escaped(name: str) -> None:
    """Hostile text becomes neither an element nor an attribute, is shown, and can be written."""
    report = reports.ALL[name]()
    text = page_text(hostile(report))
    page, plain = Page(text), Page(page_text(report))
    known = "p section table thead tbody tr th td div figure figcaption svg ul li span b code"
    assert set(page.names()) <= {*plain.names(), *known.split()}
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "\x00" not in text
    text.encode("utf-8")


def test_a_finished_run_tells_what_happened() -> None:
    """The figures, what bound the run, the advice, and every table are there."""
    page = Page(page_text(reports.faulty()))
    for words in (
        "requests.jsonl Ended Sending waited 74 % of the time for the limit of 600 requests/min (97 %",
        "Took 0:08:00",
        "Started 2026-01-05 ",
        "Failed 12",
        "What to change Look at the errors of the 12 failed requests.",
        "1,200 at 0:00:00, 600 at 0:02:01",
        "HTTP 503 server_error 129",
        "Kind Attempts Requests that failed in the end HTTP 503 server_error 129 3",
        "4,711 HTTP 400 invalid_request_error: Invalid 'messages[1].content': string too long.",
        "Slowest answers Line custom_id Model Attempts Latency 4,711 eval-0000-question",
    ):
        assert words in page.text
    assert page.names().count("figure") == 6
    assert not [a for n, a in page.elements if n == "meta" and "http-equiv" in a]


def test_a_running_run_is_refreshed() -> None:
    """Its page is loaded again every 10 seconds, and says so and how far it is."""
    page = Page(page_text(reports.running()))
    assert ("meta", {"http-equiv": "refresh", "content": "10"}) in page.elements
    assert "This page is refreshed every 10 seconds while the run goes on." in page.text
    assert "Running for 0:01:35" in page.text
    assert "Read 37 % of the file" in page.text
    assert "Requests/min 540 540 in the last minute" in page.text
    assert "Answered 855 12,400 more before" in page.text


def test_a_stopped_run_says_why() -> None:
    """The reason stands at the top, and what to do about it in the advice."""
    page = Page(page_text(reports.many_models()))
    assert "Stopped: HTTP 429 insufficient_quota: You exceeded your current quota" in page.text
    assert "Add credit to the account" in page.text
    assert "Given up 41 for the next run" in page.text


def test_a_hundred_percent_is_of_all_requests() -> None:
    """A run that was stopped when all was read says what is done, and what is left."""
    report = reports.many_models()
    summary = replace(report.summary, answered=399, failed=0, left=1, left_is_exact=True)
    summary = replace(summary, already_answered=0, already_failed=0)
    page = Page(page_text(replace(report, summary=summary, fraction=1.0)))
    assert "Done 99 % 1 left for the next run" in page.text


@pytest.mark.parametrize("timeline", [(), (Sample(at_s=0.0),)])
@pytest.mark.parametrize("is_running", [False, True])
def test_a_run_without_anything_has_a_page(timeline: tuple[Sample, ...], is_running: bool) -> None:
    """An empty run, and one that has just begun, have a page without charts and tables."""
    report = replace(reports.empty(), timeline=timeline, is_running=is_running)
    page = Page(page_text(report))
    assert not {"svg", "table"} & set(page.names())
    assert "There is nothing to draw" in page.text
    assert "Nothing" in page.text


def test_columns_without_anything_are_left_out() -> None:
    """A table shows no column in which nothing is known."""
    text = Page(page_text(reports.faulty())).text
    limits = text.partition("Limits Model")[2].partition("Models")[0]
    assert "Server says" in limits
    assert "Configured" not in limits
    assert "Found by trying" not in limits


def test_of_many_rows_the_first_hundred_are_shown() -> None:
    """A run of hundreds of models doesn't make a page without end."""
    text = page_text(reports.many_models(300))
    assert "and 200 more" in Page(text).text
    assert len(text) < 1_000_000


def test_a_long_run_makes_a_small_page_soon() -> None:
    """The page of 400 samples and all tables stays below a megabyte and takes little time."""
    faulty, many = reports.faulty(), reports.many_models()
    many = replace(many, slowest=faulty.slowest, failures=faulty.failures * 5)
    assert len(many.timeline) == 401
    began = time.process_time()
    text = page_text(many)
    assert time.process_time() - began < 0.5  # 0.03 s on an idle machine
    assert len(text) < 400_000


def test_markup_is_not_escaped_twice() -> None:
    """What was made by ``tag`` stays, everything else is escaped once, attributes as well."""
    inner = tag("b", "a & b")
    assert inner == "<b>a &amp; b</b>"
    assert tag("p", inner, "<", class_='"x', aria_label="y", id=None) == (
        '<p class="&quot;x" aria-label="y"><b>a &amp; b</b>&lt;</p>'
    )
    assert joined([inner, "&"], "<") == "<b>a &amp; b</b>&lt;&amp;"
    assert with_code("use `--a <b>`.") == "use <code>--a &lt;b&gt;</code>."
    assert tag("meta", name="n") == '<meta name="n">'
    assert safe("\x00\x1f\n\ud800\uffff") == "\ufffd\ufffd\n\ufffd\ufffd"


def test_figures_are_readable() -> None:
    """Thousands have separators, times are h:mm:ss, shares are percents."""
    assert [count(n) for n in (1234567, 0, 3.14159, 99.5, 1e400)] == [
        *("1,234,567", "0", "3.14", "99.5", "no limit")
    ]
    assert [clock_text(s) for s in (3723.4, 59.6, -1, 360000)] == [
        *("1:02:03", "0:01:00", "0:00:00", "100:00:00")
    ]
    assert [share_text(s) for s in (0.844, 1.0, 0.0, 0.004, math.nan)] == [
        *("84 %", "100 %", "0 %", "< 1 %", "?")
    ]
    assert [latency_text(s) for s in (0.01234, 61.23, 100.0, None)] == [
        *("0.0123 s", "61.2 s", "0:01:40", "")
    ]


def test_the_start_is_told_by_the_wall_clock_and_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wall clock isn't UTC, both are there."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-2")
        time.tzset()
        assert moment_text(1_767_600_000.0) == "2026-01-05 10:00:00 XYZ (08:00:00 UTC)"
        patch.setenv("TZ", "UTC")
        time.tzset()
        assert moment_text(1_767_600_000.0) == "2026-01-05 08:00:00 UTC"
    time.tzset()


_MEASURE = """<!DOCTYPE html><body>{frames}<pre id="sizes"></pre><script>
onload = () => {{
  const sizes = [...document.querySelectorAll("iframe")].map(frame => {{
    const root = frame.contentDocument.documentElement;
    return [frame.name, root.clientWidth, root.scrollWidth, root.scrollHeight].join(" ");
  }});
  document.getElementById("sizes").textContent = sizes.join("\\n");
}};
</script></body>"""


@pytest.mark.acceptance
def test_no_screen_is_too_narrow(tmp_path: Path) -> None:
    """In a browser no page is wider than its window, be that of 1280 pixels or of 390."""
    if shutil.which("chromium") is None:
        pytest.skip("there is no Chromium")
    frames = ""
    for name, make in reports.ALL.items():
        report = hostile(make()) if name == "unlimited" else make()
        (tmp_path / f"{name}.html").write_text(page_text(report), "utf-8")
        for width in (1280, 390):
            style = f"width:{width}px;height:900px;border:0"
            frames += f'<iframe name="{name}" src="{name}.html" style="{style}"></iframe>'
    (tmp_path / "all.html").write_text(_MEASURE.format(frames=frames), "utf-8")
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-quic", "--allow-file-access-from-files", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            (tmp_path / "all.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    sizes = re.search(r'<pre id="sizes">(.+?)</pre>', done.stdout, re.DOTALL)
    assert sizes is not None
    rows = [line.split() for line in sizes[1].splitlines()]
    assert [row[0] for row in rows] == [name for name in reports.ALL for _ in range(2)]
    for name, inner, whole, height in rows:
        assert int(inner) in (1280, 390), name
        assert int(whole) <= int(inner), name
        assert int(height) > 500, name
