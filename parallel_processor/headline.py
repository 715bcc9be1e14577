"""What bound a run, in one sentence."""

from __future__ import annotations

import math

from parallel_processor.figures import LimitReport, RunReport
from parallel_processor.wording import (
    cause_text,
    count,
    kind_text,
    number_of,
    share_text,
    window_text,
)

_LIMITS = ("requests", "tokens", "input_tokens", "output_tokens")
_WORTH_A_WORD = 0.1  # of the time


def elapsed_s(report: RunReport) -> float:
    """How long the run has taken, in seconds."""
    return report.summary.elapsed_s or max(report.told_at - report.started_at, 0.0)


def held_share(report: RunReport, *causes: str) -> float:
    """The share of the run, 0 to 1, that ``causes`` held the sending back."""
    whole_s = elapsed_s(report)
    waited_s = sum(report.summary.held_by.get(cause, 0.0) for cause in causes)
    return min(waited_s / whole_s, 1.0) if whole_s > 0 else 0.0


def busy_share(report: RunReport) -> float:
    """The share of the run, 0 to 1, that nothing held the sending back."""
    return 1.0 - held_share(report, *report.summary.held_by)


def main_cause(report: RunReport) -> str:
    """What held the sending back longest; empty if it was busy for longer."""
    held = report.summary.held_by
    cause = max(held, key=held.__getitem__, default="")
    return cause if cause and held_share(report, cause) > busy_share(report) else ""


def binding_limit(report: RunReport, name: str) -> tuple[str, LimitReport] | None:
    """The model whose requests waited longest for the limit ``name``, and that limit.

    Of several the lowest a second, and of equal ones the one whose use is known. ``None`` if there is none.
    """
    buckets = [b for b in report.summary.buckets if any(_is(li, name) for li in b.limits)]
    if not buckets:
        return None
    bucket = max(buckets, key=lambda b: (b.held_by.get(name, 0.0), b.admitted))
    limits = [limit for limit in bucket.limits if _is(limit, name)]
    lowest = min(limits, key=lambda li: (number_of(li) / li.window_s, li.used_share is None))
    return bucket.model, lowest


def _is(limit: LimitReport, name: str) -> bool:
    return limit.name == name and math.isfinite(number_of(limit))


def limit_text(limit: LimitReport) -> str:
    """The limit as a number: 1,200 requests/min."""
    return f"{count(number_of(limit))} {kind_text(limit.name)}/{window_text(limit.window_s)}"


def allowed_by(limit: LimitReport) -> float:
    """What was typed or the server says, whichever is less; infinite if neither is known."""
    numbers = (limit.configured, limit.found)
    return min((number for number in numbers if number is not None), default=math.inf)


def headline(report: RunReport) -> str:
    """What held the run back most, and for how long."""
    if not report.summary.attempts:
        return "Nothing has been sent yet." if report.is_running else "Nothing was sent."
    cause, so_far = main_cause(report), " so far" if report.is_running else ""
    if not cause:
        busy = f"Busy sending {share_text(busy_share(report))} of the time{so_far}"
        return f"{busy}{_held_besides(report)}."
    share = f"{share_text(held_share(report, cause))} of the time{so_far}"
    if cause == "answers":
        return f"All was sent, and the last answers were waited for, {share}."
    return f"Held back {share} by {_bound_by(report, cause)}."


def _held_besides(report: RunReport) -> str:
    """What held a run back that was busy for longer, if it is worth a word."""
    held = report.summary.held_by
    cause = max(held, key=held.__getitem__, default="")
    if not cause or (share := held_share(report, cause)) < _WORTH_A_WORD:
        return ": hardly anything held it back"
    return f", and held back {share_text(share)} by {_bound_by(report, cause)}"


def _bound_by(report: RunReport, cause: str) -> str:
    if cause == "max_workers" and report.max_workers:
        return f"max_workers: at most {count(report.max_workers)} requests may be in flight"
    found = binding_limit(report, cause) if cause in _LIMITS else None
    if found is None:
        return cause_text(cause)
    model, limit = found
    allowed, tried = allowed_by(limit), limit.tried_per_minute
    words = f"the limit of {limit_text(limit)}"
    if tried is not None and tried < allowed < math.inf:  # it is that which was used to a share
        of_what = f"{count(allowed)} {kind_text(limit.name)}/min"
        words = f"refusals, which cut the limit of {of_what} to {count(tried)}"
    if len(report.summary.buckets) > 1 and limit.configured is None and model:
        words += f" of {model}"
    if limit.used_share is not None:
        words += f" ({share_text(min(limit.used_share, 1.0))} of it used)"
    return words
