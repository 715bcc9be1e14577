"""What a run shows while it goes on.

A bar on a terminal and in a notebook, a plain line every 10 seconds elsewhere. The thread that feeds
the run draws it, between requests and while it waits: no thread of its own, no lock on anyone's way. tqdm
is imported for a bar only: a run that shows none starts sooner without.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TextIO

from parallel_processor.counters import Counters, Counts
from parallel_processor.figures import Usage
from parallel_processor.forks import FORKS_WAIT
from parallel_processor.notebooks import is_notebook, notebook_bar

_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0
_BAR_FORMAT = "{percentage:3.0f}%|{bar:6}| {desc}"
_FALLBACK_SIZE = {"ncols": 120, "nrows": 24}  # of a terminal that doesn't tell, as in containers
HELD_BY = {
    "requests": "the limit of requests",
    "tokens": "the limit of tokens",
    "input_tokens": "the limit of input tokens",
    "output_tokens": "the limit of output tokens",
    "pause": "a pause",
    "in flight": "the server's load",
    "answers": "the answers",
    "input": "the machine or input",
    "token counting": "the machine or input",
    "consumer": "the consumer",
    "disk": "the disk",
}


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
        stream = sys.stdout if is_notebook() else sys.stderr  # which is red in a notebook
        self._file = file if file is not None else stream
        self._bar: Any = None
        if self._file is None:  # the process was started without
            show = False
        elif show is not False:
            self._bar = _new_bar(self._file)
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
        return HELD_BY["input"] if busy else HELD_BY.get(name, name)

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
        ended = counts.answered + counts.failed + counts.unanswered
        if ended < counts.read or fraction != 1.0:
            words.append(f"ETA {_eta(counts, total, done, elapsed_s)}")
            words.append(f"held back by {self._held_by(now)}")
        words.append(f"{counts.in_flight:,} in flight")
        words += _rates(self._usage())
        return ", ".join(words), done, total


def _new_bar(file: TextIO) -> Any:
    bar_class = _bar_class(file)
    if bar_class is None:
        return None
    return bar_class(file=file, bar_format=_BAR_FORMAT, total=1, **_size(bar_class, file))


def _bar_class(file: TextIO) -> Any:
    """tqdm's bar for a notebook or a terminal; ``None`` where neither shows it."""
    if is_notebook():
        return _without_monitor(notebook_bar())
    if not file.isatty():
        return None
    with FORKS_WAIT:
        from tqdm.std import tqdm  # for a bar only; see above

    return _without_monitor(tqdm)


def _without_monitor(bar_class: Any) -> Any:
    """The same bar without tqdm's thread, which would outlive it."""
    bar_class.get_lock()  # made now, it is the one lock of all bars
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
        f"{usage.admitted[name] * scale:,.0f}{of_limit(limit)} {name}/min"
        for name, limit in usage.limits.items()
    ]


def of_limit(limit: float) -> str:
    """What is behind a figure that a limit bounds."""
    return f"/{limit:,.0f}" if math.isfinite(limit) else ""


def _eta(counts: Counts, total: int | None, done: int, elapsed_s: float) -> str:
    fresh = counts.answered + counts.failed
    if total is None or not fresh or elapsed_s <= 0:
        return "?"
    return str(timedelta(seconds=round((total - done) * elapsed_s / fresh)))


class BarStream:
    """A stream for log lines that keeps them above the bar instead of across it."""

    def write(self, text: str) -> None:
        """Write ``text`` to stderr, if there is one, with the bar taken away meanwhile."""
        if sys.stderr is None:
            return
        if "tqdm.std" not in sys.modules:  # there is no bar
            sys.stderr.write(text)
            return
        from tqdm.std import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flush stderr."""
        if sys.stderr is not None:
            sys.stderr.flush()
