"""What a run says at its end, for a person: the counts, and what became of each limit."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from parallel_processor.figures import BucketReport, LimitReport, Summary
from parallel_processor.options import Limits
from parallel_processor.progress import HELD_BY, of_limit
from parallel_processor.wording import number_of

_MAX_BUCKETS = 10


def summary_text(summary: Summary, limits: Limits) -> str:
    """The summary as lines for a person."""
    before = [
        f", {count:,} {what} before"
        for count, what in (
            (summary.already_answered, "answered"),
            (summary.already_failed, "failed"),
        )
        if count
    ]
    lines = [
        f"{summary.answered:,} answered, {summary.failed:,} failed{''.join(before)}"
        + (
            f", {summary.deduplicated:,} of them not sent but shared"
            if summary.deduplicated
            else ""
        )
        + (f", {summary.unanswered:,} given up" if summary.unanswered else "")
        + (", the rest not sent" if summary.stop_reason else "")
        + f" in {summary.elapsed_s:,.1f} s",
        f"attempts: {summary.attempts:,}{_pace(summary.attempts, summary, limits, 'requests')}, "
        f"{summary.retries:,} of them retries, {summary.rate_limited:,} refused by a rate limit; "
        f"pauses: {summary.pauses:,}",
        f"tokens: {summary.reserved_tokens:,} reserved"
        f"{_pace(summary.reserved_tokens, summary, limits, 'tokens')}, "
        f"{summary.used_tokens:,} used by the answers",
    ]
    lines += [f"failed: {count:,} x {kind}" for kind, count in summary.errors_by_kind.items()]
    busiest = sorted(summary.buckets, key=lambda bucket: -bucket.admitted)[:_MAX_BUCKETS]
    if limits.headroom:
        lines.append(f"{limits.headroom:.0%} of each limit was left to others")
    lines += [_bucket_text(bucket, summary.elapsed_s) for bucket in busiest if bucket.admitted]
    return "\n".join(lines)


def _bucket_text(bucket: BucketReport, elapsed_s: float) -> str:
    """What bound one model, and what became of its limits."""
    words = [
        f"{seconds / elapsed_s:.0%} by {HELD_BY.get(name, name)}"
        for name, seconds in bucket.held_by.items()
        if elapsed_s > 0 and seconds >= 0.01 * elapsed_s
    ]
    text = (
        f"{bucket.model or urlsplit(bucket.url).path}: held back {', '.join(words) or 'by nothing'}"
    )
    for limit in _tightest(bucket.limits):
        text += f"; {_limit_text(limit)}"
    if bucket.in_flight_limit is not None:
        text += f"; {bucket.in_flight_limit:,.0f} in flight suited the server"
    return text


def _tightest(limits: Sequence[LimitReport]) -> Sequence[LimitReport]:
    """Of what was configured and what was found for one kind, the limit that is lower."""
    kept: dict[tuple[str, float], LimitReport] = {}
    for limit in limits:
        key = (limit.name, limit.window_s)
        if key not in kept or number_of(limit) < number_of(kept[key]):
            kept[key] = limit
    return tuple(kept.values())


def _limit_text(limit: LimitReport) -> str:
    name = limit.name.replace("_", " ")
    number = f"{number_of(limit):,.0f} {name} in {limit.window_s / 3600:g} h"
    if limit.window_s == 60.0:
        number = f"{number_of(limit):,.0f} {name}/min"
    if limit.found is None and limit.configured is None:
        return f"{number} tried" if limit.tried_per_minute is not None else f"no limit of {name}"
    tried, found = limit.tried_per_minute, limit.found
    source = " found" if limit.configured is None else ""
    if tried is not None and found is not None and tried < found:
        number, source = f"{found:,.0f} {name}/min", f" found, cut to {tried:,.0f} by refusals"
    changes = f", {len(limit.changes) - 1} changes" if len(limit.changes) > 1 else ""
    used = "" if limit.used_share is None else f" ({min(limit.used_share, 1.0):.0%} used{changes})"
    return f"{number}{source}{used}"


def _pace(count: int, summary: Summary, limits: Limits, name: str) -> str:
    """What ``count`` is a minute; a short run's burst counts as the time that it stands for."""
    limit = limits.by_kind[name]
    minutes = (summary.elapsed_s + limits.burst_seconds) / 60
    return f" ({count / minutes:,.0f}{of_limit(limit)} a minute)"
