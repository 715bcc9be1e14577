"""The tables of a run's report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_processor.planning.costs import ModelCost
from parallel_processor.ratelimit.reports import BucketReport, LimitReport
from parallel_processor.report.html.markup import Markup, tag
from parallel_processor.report.samples import RequestNote, RunReport
from parallel_processor.report.wording import (
    bucket_name,
    clock_text,
    count,
    kind_text,
    latency_text,
    money,
    share_text,
    waits_text,
    window_text,
)

_MAX_ROWS = 100
_MAX_CHANGES = 5
_NOTE_HEADS = ("#Line", "~Error", "custom_id", "Model", "#Attempts", "#Latency")


def tables(report: RunReport) -> list[Markup]:
    """The tables that have rows, as sections with their headings."""
    busiest = sorted(report.summary.buckets, key=lambda b: (-b.admitted, b.model))
    return [
        *_section("Limits", "", _limits(report, busiest)),
        *_section("Models", "", _models(busiest)),
        *_section("Cost", "", _costs(report.summary.costs)),
        *_section("Errors by kind", "", _errors(report)),
        *_section("Failed requests", "The latest first.", _notes(report.failures)),
        *_section("Slowest answers", "", _notes(report.slowest)),
    ]


def _section(title: str, note: str, table: Markup | None) -> list[Markup]:
    if table is None:
        return []
    text = [tag("p", note, class_="unit")] if note else []
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=title)
    return [tag("section", tag("h2", title), *text, box, class_="card")]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup | None:
    """A table without its empty columns; ``None`` without rows.

    The first cell of a row is its heading. A head that begins with # marks a column of figures, one that
    begins with ~ a column of long texts.
    """
    if not rows:
        return None
    kept = rows[:_MAX_ROWS]
    columns = [i for i in range(len(heads)) if any(row[i] for row in kept)]
    looks = {i: {"#": "n", "~": "text"}.get(heads[i][0]) for i in columns}
    top = [tag("th", heads[i].lstrip("#~"), scope="col", class_=looks[i]) for i in columns]
    body = [
        [
            tag("td" if i else "th", row[i], scope=None if i else "row", class_=looks[i])
            for i in columns
        ]
        for row in kept
    ]
    if len(rows) > _MAX_ROWS:
        more = f"and {count(len(rows) - _MAX_ROWS)} more"
        body.append([tag("td", more, colspan=len(columns))])
    return tag(
        "table", tag("thead", tag("tr", *top)), tag("tbody", *(tag("tr", *cells) for cells in body))
    )


def _limits(report: RunReport, buckets: Sequence[BucketReport]) -> Markup | None:
    heads = ("Model", "~Waited for", "Limit", "#Configured", "#Set by others", "#Server says")
    rows = []
    for bucket in buckets:
        for i, limit in enumerate(bucket.limits):
            waits = waits_text(bucket.waited_s, report.summary.elapsed_s)
            first = [bucket_name(bucket, buckets), waits] if i == 0 else ["", ""]
            rows.append([*first, *_limit_cells(limit)])
    return _table(
        (*heads, "#Found by trying", "#Used", "#Share used", "#Used by others", "~Changes"), rows
    )


def _limit_cells(limit: LimitReport) -> list[str]:
    others = limit.others_per_minute
    return [
        f"{kind_text(limit.name)}/{window_text(limit.window_s)}",
        _number(limit.configured),
        _number(limit.in_force),
        _number(limit.found),
        _number(limit.tried_per_minute),
        _number(limit.used),
        "" if limit.used_share is None else share_text(min(limit.used_share, 1.0)),
        f"{count(round(others))}/min" if others and others >= 0.5 else "",
        _changes(limit) if len(limit.changes) > 1 else "",
    ]


def _number(number: float | None) -> str:
    return "" if number is None else count(round(number) if math.isfinite(number) else number)


def _changes(limit: LimitReport) -> str:
    """The last changes of the limit: to what, and when."""
    last = limit.changes[-_MAX_CHANGES:]
    words = [f"{count(value)} at {clock_text(at_s)}" for at_s, value in last]
    if len(last) < len(limit.changes):
        words.insert(0, f"{len(limit.changes) - len(last)} before")
    return ", ".join(words)


def _models(buckets: Sequence[BucketReport]) -> Markup | None:
    heads = ("Model", "#Attempts", "#Answered", "#Rejected (429)", "#Pauses", "#Tokens reserved")
    rows = [
        [
            bucket_name(bucket, buckets),
            *(count(n) for n in (bucket.admitted, bucket.answered, bucket.rejections)),
            *(count(n) for n in (bucket.pauses, bucket.reserved_tokens, bucket.used_tokens)),
            count(round(bucket.used_tokens / bucket.answered)) if bucket.answered else "",
            count(bucket.peak_in_flight),
            _number(bucket.in_flight_limit),
        ]
        for bucket in buckets
    ]
    more: tuple[str, ...] = (
        "#Tokens used",
        "#Tokens an answer",
        "#Most in flight",
        "#Concurrency limit",
    )
    if any(bucket.moved_on or bucket.downgraded for bucket in buckets):
        more += ("#Moved on", "#Another tier")
        for row, bucket in zip(rows, buckets, strict=True):
            row += [count(bucket.moved_on), count(bucket.downgraded)]
    return _table((*heads, *more), rows)


def _costs(costs: Sequence[ModelCost]) -> Markup | None:
    if all(each.cost is None for each in costs):
        return None
    heads = ("Model", "Tier", "#Answers", "#Input tokens", "#Output tokens", "#Cost")
    rows = [
        [
            *(each.model or "requests without a model", each.tier),
            *map(count, (each.answers, each.input_tokens, each.output_tokens)),
            "no price known" if each.cost is None else money(each.cost),
        ]
        for each in costs
    ]
    return _table(heads, rows)


def _errors(report: RunReport) -> Markup | None:
    """For each kind: the attempts that ended with it, and the requests that failed for it."""
    attempts = dict(report.timeline[-1].errors) if report.timeline else {}
    failed = report.summary.errors_by_kind
    kinds = sorted({*attempts, *failed}, key=lambda k: (-attempts.get(k, 0), -failed.get(k, 0), k))
    rows = [
        [kind, count(attempts.get(kind, 0)), count(failed.get(kind, 0))]
        for kind in kinds
        if attempts.get(kind) or failed.get(kind)
    ]
    return _table(("Kind", "#Attempts", "#Requests that failed in the end"), rows)


def _notes(notes: Sequence[RequestNote]) -> Markup | None:
    rows = [
        [
            *(count(note.number), note.error or note.kind, note.custom_id or "", note.model),
            *(count(note.attempts), latency_text(note.latency_s)),
        ]
        for note in notes
    ]
    return _table(_NOTE_HEADS, rows)
