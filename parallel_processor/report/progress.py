"""What a run shows while it goes on.

A terminal and a notebook show a bar, anything else a line every 10 seconds. A thread of its own draws it:
Ctrl-C in the caller's thread must leave neither tqdm's locks taken nor ours. tqdm is imported only for a
bar: without one, a run starts sooner.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TextIO

from parallel_processor.models import WaitCause
from parallel_processor.planning.costs import Costs
from parallel_processor.ratelimit.reports import Usage
from parallel_processor.report.counters import Counts
from parallel_processor.report.summary import cost_fields
from parallel_processor.report.wording import cause_text, money, round_text, share_text
from parallel_processor.runtime.exits import at_exit
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.notebook import is_notebook
from parallel_processor.runtime.stop import WakeEvent, do_all
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_BAR_INTERVAL_S = 0.2
_LINE_INTERVAL_S = 10.0
_BAR_FORMAT = "{percentage:3.0f}%|{bar:6}| {desc}"
_FALLBACK_SIZE = {"ncols": 120, "nrows": 24}  # of a terminal that doesn't tell, as in containers
_WIDGET_FORMAT = "{percentage:3.0f}%{bar}{desc}"


class Counting(Protocol):
    """What has counters."""

    def counts(self) -> Counts:
        """Where it stands."""
        ...


class Display(Protocol):
    """A progress bar, or a report. For the thread of :class:`Displays`."""

    due_at: float  # of the clock; infinite for never

    def refresh(self) -> None:
        """Show where the run stands, and set the next ``due_at``."""

    def close(self) -> None:
        """The run is over."""


class Displays:
    """All displays of one run, and the thread that refreshes them. There is none if nothing is ever due."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._displays: list[Display] = []
        self._closing = WakeEvent()
        self._thread = InterruptSafeThread(self._run, "parallel-processor-displays")

    def add(self, display: Display) -> None:
        """Add a display. Call it before :meth:`start`."""
        self._displays.append(display)

    def start(self) -> None:
        """Begin to refresh the displays."""
        if self._due_at < math.inf:
            with suppress(RuntimeError):  # the system has no thread left: nothing is shown
                self._thread.start()
                at_exit(self.close)  # otherwise the bar would be left as it is

    def close(self) -> None:
        """Close all of them, and wait until that is done. Any thread may call it, also more than once."""
        self._closing.set()
        self._thread.join()

    @property
    def _due_at(self) -> float:
        return min((display.due_at for display in self._displays), default=math.inf)

    def _run(self) -> None:
        try:
            while not self._closing.wait(self._due_at - self._clock()):
                for display in self._displays:
                    if self._clock() >= display.due_at:
                        display.refresh()
        except Exception:  # a bug: the run goes on
            _log.exception("what the run shows can't be refreshed any more")
        finally:
            do_all([display.close for display in self._displays])


class Progress:
    """Shows how far a run is. For one thread, but for the constructor, which draws nothing.

    Args:
        usage: returns how much of the limits is used.
        waits: returns the seconds waited so far, by cause.
        in_flight: returns how many requests are in flight.
        fraction: returns the share of the input that has been read, from 0 to 1; ``None`` if unknown.
        costs: returns what was spent; ``None`` if money is not counted.
        show: true for a bar, or lines where there is no terminal; ``None`` for a bar or nothing.
    """

    def __init__(
        self,
        counters: Counting,
        *,
        usage: Callable[[], Usage],
        waits: Callable[[], Mapping[WaitCause, float]],
        in_flight: Callable[[], int],
        fraction: Callable[[], float | None],
        show: bool | None,
        clock: Callable[[], float] = time.monotonic,
        file: TextIO | None = None,
        costs: Callable[[], Costs | None] = lambda: None,
    ) -> None:
        self._costs = costs
        self._counters = counters
        self._usage = usage
        self._waits = waits
        self._in_flight = in_flight
        self._fraction = fraction
        self._clock = clock
        self._started_at = clock()
        stream = sys.stdout if is_notebook() else sys.stderr  # which is red in a notebook
        self._file = file if file is not None else stream
        self._bar: Any = None  # made by the first refresh
        self._shows_bar, self._interval_s = False, math.inf
        self.due_at = math.inf
        if self._file is not None and show is not False:  # it is None if the process has no stderr
            self._shows_bar = is_notebook() or self._file.isatty()
            if self._shows_bar:
                self._interval_s, self.due_at = _BAR_INTERVAL_S, self._started_at
            elif show:
                self._interval_s = _LINE_INTERVAL_S
                self.due_at = self._started_at + self._interval_s
        self._refreshed_at = self._started_at
        self._waited: Mapping[WaitCause, float] = {}  # at the last refresh

    def _waiting_for(self, now: float) -> str:
        """What was waited for most since the last refresh, and for which share of that time.

        If it was for little, the run was busy: its input or the CPU limits it.
        """
        waited, whole_s = self._waits(), now - self._refreshed_at
        fresh = {cause: s - self._waited.get(cause, 0.0) for cause, s in waited.items()}
        cause = max(fresh, key=fresh.__getitem__, default=WaitCause.INPUT)
        self._waited, self._refreshed_at = waited, now
        if sum(fresh.values()) < whole_s / 2 or whole_s <= 0:
            return cause_text(WaitCause.INPUT)
        return f"{cause_text(cause)} {share_text(min(fresh[cause] / whole_s, 1.0))}"

    def refresh(self) -> None:
        """Show where the run stands."""
        now = self._clock()
        self.due_at = now + self._interval_s
        counts = self._counters.counts()
        text, done, total = self._line(counts, now)
        try:
            self._draw(text, done, total)
        except (OSError, ValueError):  # the terminal is gone, or the reader of the lines
            self._give_up()

    def _draw(self, text: str, done: int, total: int | None) -> None:
        if not self._shows_bar:
            self._file.write(text + "\n")
            self._file.flush()
            return
        if self._bar is None:
            self._bar = _new_bar(self._file)
        bar = self._bar
        bar.total = max(total or 0, done, 1)
        bar.n = done
        bar.set_description_str(text, refresh=False)
        with bar.get_lock():  # tqdm itself would keep it when the terminal fails
            bar.refresh(nolock=True)

    def _give_up(self) -> None:
        """Show nothing more. The run goes on."""
        self.due_at = self._interval_s = math.inf
        if self._bar is not None:
            self._bar.disable = True
            self._bar = None

    def close(self) -> None:
        """Take the bar's line to its end."""
        if self._bar is not None and self._clock() >= self._started_at + _BAR_INTERVAL_S:
            self.refresh()
        self.due_at = math.inf
        if self._bar is not None:
            self._bar.close()

    def _line(self, counts: Counts, now: float) -> tuple[str, int, int | None]:
        elapsed_s = now - self._started_at
        done = counts.answered + counts.failed + counts.already_answered
        fraction = self._fraction()
        total = counts.total(fraction)
        words = [f"{done:,}/{_about(total, fraction)}"]
        if counts.failed:
            words.append(f"{counts.failed:,} failed")
        ended = counts.answered + counts.failed + counts.unanswered
        if ended < counts.read or fraction != 1.0:
            words.append(f"ETA {_eta(counts, total, done, elapsed_s)}")
            words.append(f"waiting for {self._waiting_for(now)}")
        words.append(f"{self._in_flight():,} in flight")
        words += _money(self._costs(), counts, fraction)
        words += _rates(self._usage())
        return ", ".join(words), done, total


def _new_bar(file: TextIO) -> Any:
    """tqdm's bar for a notebook or a terminal."""
    if is_notebook():
        bar_class = _notebook_bar()
    else:
        with FORK_LOCK:
            from tqdm.std import tqdm as bar_class  # only for a bar: see above
    bar_class.get_lock()  # creates the lock that all bars share
    # Without tqdm's monitor thread, which would outlive the bar.
    quiet: Any = type("Bar", (bar_class,), {"monitor_interval": 0})
    return quiet(file=file, bar_format=_BAR_FORMAT, total=1, **_size(file))


def _notebook_bar() -> Any:
    """tqdm's bar for a notebook: a widget where ``ipywidgets`` is installed, else text."""
    with FORK_LOCK:
        from tqdm import notebook, std  # only for a bar: see above

    if notebook.IProgress is None:  # type: ignore[attr-defined]
        return std.tqdm

    class WidgetBar(notebook.tqdm):  # type: ignore[type-arg]
        """A widget that follows ``total``; tqdm's own keeps the first one."""

        def __init__(self, **settings: Any) -> None:
            settings["bar_format"] = _WIDGET_FORMAT
            super().__init__(**settings)

        def display(self, *args: Any, **settings: Any) -> None:
            self.container.children[1].max = self.total
            super().display(*args, **settings)

    return WidgetBar


def _size(file: TextIO) -> dict[str, int]:
    """The bar's size, where the terminal does not tell it; empty leaves it to tqdm."""
    try:
        is_told = not file.isatty() or os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        is_told = False
    return {} if is_told else _FALLBACK_SIZE


def _about(total: int | None, fraction: float | None) -> str:
    if total is None:
        return "?"
    return f"{total:,}" if fraction == 1.0 else f"~{round_text(total)}"


def _rates(usage: Usage) -> list[str]:
    """What is sent a minute, and the limits."""
    scale = 60.0 / max(usage.span_s, 1.0)
    bounds = {name: f"/{n:,.0f}" if math.isfinite(n) else "" for name, n in usage.limits.items()}
    return [f"{usage.admitted[n] * scale:,.0f}{bound} {n}/min" for n, bound in bounds.items()]


def _money(costs: Costs | None, counts: Counts, fraction: float | None) -> list[str]:
    """What was spent, and what the whole will cost."""
    if costs is None or not (costs.total or costs.before):
        return []
    fields = cost_fields(costs, counts, fraction)
    so_far, expected = costs.before + costs.total + costs.uncertain, fields["expected_cost"]
    return [money(so_far) + ("" if expected is None else f" of about {money(expected)}")]


def _eta(counts: Counts, total: int | None, done: int, elapsed_s: float) -> str:
    fresh = counts.answered + counts.failed
    if total is None or not fresh or elapsed_s <= 0:
        return "?"
    return str(timedelta(seconds=round((total - done) * elapsed_s / fresh)))


class BarStream:
    """A stream for log lines that keeps them above the bar instead of across it."""

    def write(self, text: str) -> None:
        """Write ``text`` to stderr, if there is one. The bar is cleared first and drawn again."""
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
