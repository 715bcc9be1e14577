"""What a run shows while it goes on, and what it says at its end.

A bar on a terminal and in a notebook, a plain line every 10 seconds elsewhere. The thread that feeds
the run draws it, between requests and while it waits: no thread of its own, no lock on anyone's way.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO
from urllib.parse import urlsplit

from tqdm.std import tqdm

from parallel_processor.counters import Counters, Counts
from parallel_processor.models import BucketReport, LimitReport, Summary, Usage
from parallel_processor.options import Limits

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0
_BAR_FORMAT = "{percentage:3.0f}%|{bar:6}| {desc}"
_FALLBACK_SIZE = {"ncols": 120, "nrows": 24}  # of a terminal that doesn't tell, as in containers
_HELD_BY = {
    "pause": "a pause",
    "in flight": "the server's load",
    "answers": "the answers",
    "input": "the machine or input",
    "token counting": "the machine or input",
    "consumer": "the consumer",
    "disk": "the disk",
}
_MAX_BUCKETS = 10  # in a summary for people


class Progress:
    """Shows how far a run is. For the thread that feeds the run.

    ``usage`` tells what the limits admit, ``waits`` the seconds waited so far by cause, ``fraction``
    how much of the input has been read (0 to 1;
    ``None`` where nobody knows). ``show`` asks for lines where there is no terminal; ``False`` shows
    nothing, ``None`` a bar only where somebody can see one.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        usage: Callable[[], Usage],
        waits: Callable[[], Mapping[str, float]],
        fraction: Callable[[], float | None],
        show: bool | None,
        clock: Callable[[], float] = time.monotonic,
        file: TextIO | None = None,
    ) -> None:
        self._counters = counters
        self._usage = usage
        self._waits = waits
        self._fraction = fraction
        self._clock = clock
        self._started_at = clock()
        self._file = file if file is not None else sys.stderr
        if self._file is None:  # the process was started without
            show = False
        bar_class = None if show is False else _bar_class(self._file)
        self._bar: Any = None
        if bar_class is not None:
            size = _size(bar_class, self._file)
            self._bar = bar_class(file=self._file, bar_format=_BAR_FORMAT, total=1, **size)
        self._interval_s = math.inf
        if self._bar is not None:
            self._interval_s = _BAR_INTERVAL_S
        elif show:
            self._interval_s = _LINE_INTERVAL_S
        self.due_at = self._started_at + self._interval_s
        self._refreshed_at = self._started_at
        self._waited: Mapping[str, float] = {}  # at the last refresh

    def _held_by(self, now: float) -> str:
        """What was waited for most since the last refresh; if for little, the machine."""
        waited = self._waits()
        fresh = {name: seconds - self._waited.get(name, 0.0) for name, seconds in waited.items()}
        name = max(fresh, key=fresh.__getitem__, default="")
        busy = sum(fresh.values()) < (now - self._refreshed_at) / 2
        self._waited, self._refreshed_at = waited, now
        return _HELD_BY["input"] if busy else _HELD_BY.get(name, name)

    def refresh(self) -> None:
        """Show where the run stands."""
        now = self._clock()
        self.due_at = now + self._interval_s
        counts = self._counters.counts()
        text, done, total = self._line(counts, now)
        try:
            self._draw(text, done, total)
        except (OSError, ValueError):  # the terminal is gone, or whoever read the lines
            self._give_up()

    def _draw(self, text: str, done: int, total: int | None) -> None:
        bar = self._bar
        if bar is None:
            self._file.write(text + "\n")
            self._file.flush()
            return
        bar.total = max(total or 0, done, 1)
        bar.n = done
        bar.set_description_str(text, refresh=False)
        with bar.get_lock():  # tqdm itself would keep it when the terminal fails
            bar.refresh(nolock=True)

    def _give_up(self) -> None:
        """Show nothing any more; the run goes on."""
        self.due_at = self._interval_s = math.inf
        if self._bar is not None:
            self._bar.disable = True
            self._bar = None

    def close(self) -> None:
        """Take the bar's line to its end."""
        if self._bar is not None and self._clock() >= self._started_at + _BAR_INTERVAL_S:
            self.refresh()
        if self._bar is not None:
            self._bar.close()

    def _line(self, counts: Counts, now: float) -> tuple[str, int, int | None]:
        elapsed_s = now - self._started_at
        done = counts.answered + counts.failed + counts.already_answered
        fraction = self._fraction()
        total = _estimate(fraction, counts)
        words = [f"{done:,}/{_about(total, fraction)}"]
        if counts.failed:
            words.append(f"{counts.failed:,} failed")
        if counts.in_flight or fraction != 1.0:
            words.append(f"ETA {_eta(counts, total, done, elapsed_s)}")
            words.append(f"held back by {self._held_by(now)}")
        words.append(f"{counts.in_flight:,} in flight")
        words += _rates(self._usage())
        return ", ".join(words), done, total


def _bar_class(file: TextIO) -> Any:
    """tqdm's bar for a notebook or a terminal; ``None`` where neither shows it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and type(shell).__name__ == "ZMQInteractiveShell":
        from tqdm.auto import tqdm as notebook_bar

        return _without_monitor(notebook_bar)
    return _without_monitor(tqdm) if file.isatty() else None


def _without_monitor(bar_class: Any) -> Any:
    """The same bar without tqdm's thread, which would outlive it."""
    tqdm.get_lock()  # type: ignore[no-untyped-call]  # made now, it is the one lock of all bars
    return type("Bar", (bar_class,), {"monitor_interval": 0})


def _size(bar_class: Any, file: TextIO) -> dict[str, int]:
    """The bar's place where a terminal doesn't tell its size; nothing leaves that to tqdm."""
    if not file.isatty():
        return {}
    try:
        return {} if os.get_terminal_size(file.fileno()).columns else _FALLBACK_SIZE
    except (OSError, ValueError):
        return _FALLBACK_SIZE


def _estimate(fraction: float | None, counts: Counts) -> int | None:
    """The number of requests, from how many were found in the part that has been read."""
    seen = counts.read + counts.already_answered
    if not fraction or not seen:
        return None
    return max(seen, round(seen / fraction))


def _about(total: int | None, fraction: float | None) -> str:
    if total is None:
        return "?"
    return f"{total:,}" if fraction == 1.0 else f"~{float(f'{total:.2g}'):,.0f}"


def _rates(usage: Usage) -> list[str]:
    """What goes out a minute, against the limits."""
    scale = 60.0 / max(usage.span_s, 1.0)
    return [
        f"{usage.admitted[name] * scale:,.0f}{_of(limit)} {name}/min"
        for name, limit in usage.limits.items()
    ]


def _of(limit: float) -> str:
    return f"/{limit:,.0f}" if math.isfinite(limit) else ""


def _eta(counts: Counts, total: int | None, done: int, elapsed_s: float) -> str:
    fresh = counts.answered + counts.failed
    if total is None or not fresh or elapsed_s <= 0:
        return "?"
    return str(timedelta(seconds=round((total - done) * elapsed_s / fresh)))


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
    lines += [_bucket_text(bucket, summary.elapsed_s) for bucket in busiest if bucket.admitted]
    return "\n".join(lines)


def _bucket_text(bucket: BucketReport, elapsed_s: float) -> str:
    """What bound one model, and what became of its limits."""
    words = [
        f"{seconds / elapsed_s:.0%} {_HELD_BY.get(name, name)}"
        for name, seconds in bucket.held_by.items()
        if elapsed_s > 0 and seconds >= 0.01 * elapsed_s
    ]
    text = (
        f"{bucket.model or urlsplit(bucket.url).path}: held back by {', '.join(words) or 'nothing'}"
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
        if key not in kept or _number(limit) < _number(kept[key]):
            kept[key] = limit
    return tuple(kept.values())


def _number(limit: LimitReport) -> float:
    numbers = (limit.configured, limit.found, limit.tried_per_minute)
    return min((number for number in numbers if number is not None), default=math.inf)


def _limit_text(limit: LimitReport) -> str:
    name = limit.name.replace("_", " ")
    number = f"{_number(limit):,.0f} {name} in {limit.window_s / 3600:g} h"
    if limit.window_s == 60.0:
        number = f"{_number(limit):,.0f} {name}/min"
    if limit.found is None and limit.configured is None:
        return f"{number} tried" if limit.tried_per_minute is not None else f"no limit of {name}"
    source = " found" if limit.configured is None else ""
    changes = f", {len(limit.changes) - 1} changes" if len(limit.changes) > 1 else ""
    used = "" if limit.used_share is None else f" ({min(limit.used_share, 1.0):.0%} used{changes})"
    return f"{number}{source}{used}"


def _pace(count: int, summary: Summary, limits: Limits, name: str) -> str:
    """What ``count`` is a minute; a short run's burst counts as the time that it stands for."""
    limit = limits.by_kind[name]
    minutes = (summary.elapsed_s + limits.burst_seconds) / 60
    return f" ({count / minutes:,.0f}{_of(limit)} a minute)"


class BarStream:
    """A stream for log lines that keeps them above the bar instead of across it."""

    def write(self, text: str) -> None:
        """Write ``text`` to stderr, if there is one, with the bar taken away meanwhile."""
        if sys.stderr is None:
            return
        with tqdm.external_write_mode(file=sys.stderr):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush stderr."""
        if sys.stderr is not None:
            sys.stderr.flush()
