"""What limited a run, in one sentence."""

from __future__ import annotations

import math

from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import LimitReport
from parallel_processor.report.samples import RunReport
from parallel_processor.report.summary import Summary
from parallel_processor.report.wording import (
    allowed_by,
    bucket_name,
    cause_text,
    count,
    limit_text,
    number_of,
    share_text,
)

_LEAST_SHARE = 0.1  # of the time: a shorter wait is not worth a word


def held_share(summary: Summary, *causes: WaitCause) -> float:
    """The share of the run, from 0 to 1, for which sending waited for any of ``causes``."""
    waited_s = sum(summary.waited_s.get(cause, 0.0) for cause in causes)
    return min(waited_s / summary.elapsed_s, 1.0) if summary.elapsed_s > 0 else 0.0


def busy_share(summary: Summary) -> float:
    """The share of the run, from 0 to 1, for which sending waited for nothing."""
    return 1.0 - held_share(summary, *summary.waited_s)


def longest_wait(summary: Summary) -> WaitCause:
    """What sending waited for longest."""
    return max(summary.waited_s, key=summary.waited_s.__getitem__, default=WaitCause.NOTHING)


def main_cause(summary: Summary) -> WaitCause:
    """What limited the run: the longest wait, or nothing if the run was busy for longer."""
    cause = longest_wait(summary)
    return cause if held_share(summary, cause) > busy_share(summary) else WaitCause.NOTHING


def binding_limit(summary: Summary, cause: WaitCause) -> tuple[str, LimitReport] | None:
    """The model whose requests waited longest for the limit ``cause``, and that limit.

    Of several limits the lowest a second; of equal ones the one whose use is known. ``None`` if
    ``cause`` is no known limit.
    """
    known = [
        (bucket, limit)
        for bucket in summary.buckets
        for limit in bucket.limits
        if limit.name == cause and math.isfinite(number_of(limit))
    ]
    if not known:
        return None
    bucket = max((b for b, _ in known), key=lambda b: (b.waited_s.get(cause, 0.0), b.admitted))
    limits = [limit for owner, limit in known if owner is bucket]
    lowest = min(limits, key=lambda li: (number_of(li) / li.window_s, li.used_share is None))
    return bucket.model, lowest


def headline(report: RunReport) -> str:
    """What stopped the run, and what sending waited for most, and for how long."""
    return _stop(report) + _waits(report)


def _stop(report: RunReport) -> str:
    """That the run was stopped, for which model, and what is left; empty if it wasn't."""
    summary = report.summary
    if report.is_running or not summary.stop_cause:
        return ""
    models = ", ".join(filter(None, summary.stopped_models))
    left = f" with {summary.left_text}" if summary.left else ""
    return f"Stopped{f' because of {models}' if models else ''}{left}. "


def _waits(report: RunReport) -> str:
    summary, so_far = report.summary, " so far" if report.is_running else ""
    if not summary.attempts:
        return "Nothing has been sent yet." if report.is_running else "Nothing was sent."
    cause = longest_wait(summary)
    share = held_share(summary, cause)
    waited = f"waited {share_text(share)} of the time{so_far} for {_cause(report, cause)}"
    if main_cause(summary):
        return f"Sending {waited}."
    busy = f"Sending was busy {share_text(busy_share(summary))} of the time{so_far}"
    return f"{busy}, and {waited}." if share >= _LEAST_SHARE else f"{busy}: it hardly waited."


def _cause(report: RunReport, cause: WaitCause) -> str:
    """``cause`` with the figures that belong to it."""
    if cause is WaitCause.MAX_WORKERS and report.max_workers:
        return f"a free worker (max_workers is {count(report.max_workers)})"
    found = binding_limit(report.summary, cause)
    if found is None:
        return cause_text(cause) + _sufferer(report, cause)
    model, limit = found
    allowed, tried = allowed_by(limit), limit.tried_per_minute
    words = f"the limit of {limit_text(limit)}"
    if tried is not None and tried < allowed < math.inf:  # the share used is that of ``allowed``
        words = f"the limit of {limit_text(limit, allowed)}, reduced to {count(tried)} after 429s"
    if len(report.summary.buckets) > 1 and limit.configured is None and model:
        words += f" of {model}"
    if limit.used_share is not None:
        words += f" ({share_text(min(limit.used_share, 1.0))} used)"
    return words


def _sufferer(report: RunReport, cause: WaitCause) -> str:
    """Of several models, the one that waited longest for what its server does."""
    buckets = report.summary.buckets
    if len(buckets) < 2 or cause not in (WaitCause.PAUSE, WaitCause.CONCURRENCY):
        return ""
    bucket = max(buckets, key=lambda each: each.waited_s.get(cause, 0.0))
    return f", {bucket_name(bucket, buckets)}" if bucket.waited_s.get(cause) else ""
