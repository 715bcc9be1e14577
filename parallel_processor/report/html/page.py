"""The report of a run as a page of HTML: what limited the run, what went wrong, what to change.

The page is a single file: its charts are SVG, its style sheet is inside, and it loads nothing. While the
run goes on, the browser loads the page again every 10 seconds.
"""

from __future__ import annotations

import math

from parallel_processor.report.advice import advice, nothing_to_change
from parallel_processor.report.headline import headline
from parallel_processor.report.html.charts import chart_figure
from parallel_processor.report.html.markup import Markup, tag, with_code
from parallel_processor.report.html.panels import charts_of
from parallel_processor.report.html.tables import tables
from parallel_processor.report.samples import RunReport, requests_per_minute_now
from parallel_processor.report.summary import Summary
from parallel_processor.report.wording import clock_text, count, moment_text, money, share_text

_REFRESH_S = 10
_LONG = 9  # characters of a figure that gets a smaller font


def page_text(report: RunReport) -> str:
    """The page, from its doctype on."""
    import importlib.resources  # only for a page: a run starts sooner without

    folder = importlib.resources.files("parallel_processor.report.html")
    style = Markup((folder / "report.css").read_text("utf-8"))
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        *([tag("meta", http_equiv="refresh", content=_REFRESH_S)] if report.is_running else []),
        tag("title", f"{_state(report)}: {_file_name(report)}"),
        tag("style", style),
    ]
    parts = [_header(report), _figures(report), _advice(report), _charts(report), *tables(report)]
    body = tag("body", tag("main", *parts))
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), body, lang='en')}\n"


def _state(report: RunReport) -> str:
    if report.is_running:
        return "Running"
    return "Stopped" if report.summary.stop_reason else "Ended"


def _file_name(report: RunReport) -> str:
    return report.requests_path.rpartition("/")[2] or "requests of a program"


def _header(report: RunReport) -> Markup:
    state = _state(report)
    facts = [
        ("Requests", report.requests_path),
        ("Results", report.save_path),
        ("Sent to", report.url),
        ("Started", moment_text(report.started_at)),
        ("As of" if report.is_running else "Ended", moment_text(report.written_at)),
        ("Took" if not report.is_running else "Running for", clock_text(report.summary.elapsed_s)),
    ]
    cells = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    lines = [
        tag("h1", _file_name(report), " ", tag("span", state, class_=f"state {state.lower()}"))
    ]
    if report.is_running:
        note = f"This page is refreshed every {_REFRESH_S} seconds while the run goes on."
        lines.append(tag("p", note, class_="unit"))
    elif report.summary.stop_reason:
        lines.append(tag("p", f"Stopped: {report.summary.stop_reason}", class_="stop"))
    lines.append(tag("p", headline(report), class_="headline"))
    return tag("header", *lines, tag("dl", *cells, class_="facts"))


def _figures(report: RunReport) -> Markup:
    """The key figures as tiles."""
    summary = report.summary
    tiles = [
        _tile("Answered", count(summary.answered), _before(summary.already_answered)),
        _tile("Failed", count(summary.failed), _before(summary.already_failed), summary.failed > 0),
        *_left_tiles(report),
        _tile("Attempts", count(summary.attempts), f"{count(summary.retries)} retries"),
        _tile("Rejected (429)", count(summary.rate_limited), _rejections(summary)),
        _tile("Tokens used", count(summary.used_tokens), _reserved(summary)),
        *_money_tiles(summary),
        _tile("Requests/min", *_pace(report)),
    ]
    return tag("section", tag("h2", "Key figures", class_="hidden"), *tiles, class_="tiles")


def _tile(name: str, figure: str, note: str = "", is_bad: bool = False) -> Markup:
    look = f"figure{' bad' if is_bad else ''}{' long' if len(figure) > _LONG else ''}"
    return tag(
        "div",
        tag("p", name, class_="name"),
        tag("p", figure, class_=look),
        tag("p", note, class_="note"),
        class_="tile",
    )


def _before(number: int) -> str:
    return f"{count(number)} more before" if number else ""


def _left_tiles(report: RunReport) -> list[Markup]:
    """How far the run is, what it gave up, and what it did not have to send."""
    tiles = []
    summary = report.summary
    if report.is_running and report.fraction is not None:
        note = "of the file" if report.fraction < 1 else "all of the file"
        tiles.append(_tile("Read", share_text(report.fraction), note))
    elif summary.left is not None:
        tiles.append(_tile("Done", share_text(_done_share(summary)), _left_note(summary)))
    if summary.unanswered:
        tiles.append(_tile("Given up", count(summary.unanswered), "for the next run"))
    if report.summary.deduplicated:
        tiles.append(_tile("Not sent", count(report.summary.deduplicated), "equal to another"))
    return tiles


def _done_share(summary: Summary) -> float:
    done = summary.answered + summary.failed + summary.already_answered + summary.already_failed
    total = done + (summary.left or 0)
    return math.floor(100 * done / total) / 100 if total else 1.0  # 100 % is all of them


def _left_note(summary: Summary) -> str:
    return f"{summary.left_text} for the next run" if summary.left else "all of the file"


def _rejections(summary: Summary) -> str:
    if not summary.rate_limited or not summary.attempts:
        return "by rate limits"
    share = share_text(summary.rate_limited / summary.attempts)
    pauses = f", {count(summary.pauses)} pause{'' if summary.pauses == 1 else 's'}"
    return f"{share} of the attempts{pauses if summary.pauses else ''}"


def _reserved(summary: Summary) -> str:
    return f"{count(summary.reserved_tokens)} reserved" if summary.reserved_tokens else ""


def _money_tiles(summary: Summary) -> list[Markup]:
    if summary.cost is None or not (summary.cost or summary.cost_before):
        return []
    words = [f"{money(summary.cost_before)} before"] if summary.cost_before else []
    if summary.left != 0 and summary.expected_cost is not None:
        words.append(f"about {money(summary.expected_cost)} in all")
    return [_tile("Cost", money(summary.cost), ", ".join(words))]


def _pace(report: RunReport) -> tuple[str, str]:
    """The attempts a minute; while the run goes on, those of the last minute as well."""
    whole_s = report.summary.elapsed_s
    if whole_s <= 0:
        return "0", ""
    now = requests_per_minute_now(report.timeline) if report.is_running else None
    note = "on average" if now is None else f"{count(round(now))} in the last minute"
    return count(round(report.summary.attempts * 60 / whole_s)), note


def _advice(report: RunReport) -> Markup:
    texts = advice(
        report.summary,
        is_running=report.is_running,
        again="the same command (without `--overwrite`)",
        resend="the same command (without `--overwrite` and `--keep_failures`)",
    )
    items = [tag("li", with_code(text)) for text in texts or (nothing_to_change(report.summary),)]
    return tag("section", tag("h2", "What to change"), tag("ul", *items), class_="card advice")


def _charts(report: RunReport) -> Markup:
    boxes = [chart_figure(chart) for chart in charts_of(report)]
    if not boxes:
        yet = " yet" if report.is_running else ""
        boxes = [tag("p", f"There is nothing to draw{yet}.", class_="unit")]
    grid = tag("div", *boxes, class_="grid")
    return tag("section", tag("h2", "Over time"), grid, class_="charts")
