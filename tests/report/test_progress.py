"""What a run shows, on a terminal that is really one and elsewhere."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from tqdm.std import tqdm

from parallel_processor.files.formats import made_request
from parallel_processor.models import Outcome, WaitCause
from parallel_processor.planning.costs import Costs, ModelCost
from parallel_processor.ratelimit.reports import Usage
from parallel_processor.report.counters import Counters
from parallel_processor.report.progress import Displays, Progress

REQUEST = made_request({}, 1)
ANSWERED = Outcome(request=REQUEST, ok=True)
FAILED = Outcome(request=REQUEST, ok=False, error_kind="HTTP 500")


class View:
    """A run's progress, and everything that it shows; time is ``now_s``."""

    def __init__(self, file: Any, show: bool | None = True) -> None:
        self.now_s = 100.0
        self.read: float | None = 0.5
        self.counters = Counters()
        self.used = {"requests": 10.0, "tokens": 500.0}
        self.span_s = 60.0
        self.waits: Counter[WaitCause] = Counter()
        self.limits = {"requests": 60.0, "tokens": 1_000.0}
        self.costs: Costs | None = None
        self.progress = Progress(
            self.counters,
            usage=lambda: Usage(
                admitted=self.used,
                limits=self.limits,
                waiting_for=WaitCause.NOTHING,
                span_s=self.span_s,
            ),
            waits=lambda: dict(self.waits),
            in_flight=lambda: self.counters.counts().in_flight,
            fraction=lambda: self.read,
            show=show,
            clock=lambda: self.now_s,
            file=file,
            costs=lambda: self.costs,
        )

    def start(self, count: int) -> None:
        """Requests were read and sent."""
        for _ in range(count):
            self.counters.read()
            self.counters.started()

    def lines_after(self, seconds: float) -> list[str]:
        """Let time pass, and show where the run stands; all lines so far."""
        self.now_s += seconds
        self.progress.refresh()
        text: str = self.progress._file.getvalue()
        return text.splitlines()


def view(show: bool | None = True) -> View:
    """A progress whose output is no terminal."""
    return View(io.StringIO(), show)


class Terminal:
    """A pseudo-terminal: ``file`` is what a program writes to, ``text`` what a person sees."""

    def __init__(self) -> None:
        self._screen, descriptor = pty.openpty()
        self.file: TextIO = os.fdopen(descriptor, "w")
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._screen, 65536)
            except OSError:  # the program's end was closed
                return
            if not data:
                return
            self._seen += data

    def text(self) -> str:
        """Everything that was shown; the program must be done."""
        self.file.close()
        self._reader.join()
        os.close(self._screen)
        return self._seen.decode()


@contextmanager
def terminal() -> Iterator[Terminal]:
    """A terminal whose other end is closed even if the test fails."""
    made = Terminal()
    try:
        yield made
    finally:
        if not made.file.closed:
            made.text()


class Shown:
    """A display that is due at once, and never again. It tells which threads called it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.due_at, self._error = 0.0, error
        self.refreshed, self.closed = threading.Event(), threading.Event()
        self.threads: set[threading.Thread] = set()

    def refresh(self) -> None:
        self.due_at = float("inf")
        self.threads.add(threading.current_thread())
        self.refreshed.set()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        self.closed.set()


def test_another_thread_refreshes_the_displays() -> None:
    """What it must not leave behind, such as a lock, no Ctrl-C in the caller's thread can leave."""
    displays, shown = Displays(lambda: 0.0), Shown()
    displays.add(shown)
    displays.start()
    assert shown.refreshed.wait(20)
    assert not shown.closed.is_set()
    for _ in range(2):
        displays.close()
    assert shown.closed.is_set()
    (thread,) = shown.threads
    assert thread.name == "parallel-processor-displays"
    assert not thread.is_alive()


def test_displays_that_are_never_due_need_no_thread() -> None:
    """As in a library that shows nothing."""
    displays, before = Displays(lambda: 0.0), set(threading.enumerate())
    displays.add(view(None).progress)
    displays.start()
    assert set(threading.enumerate()) == before
    displays.close()


def test_a_display_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """The log says why nothing more is shown."""
    displays, shown = Displays(lambda: 0.0), Shown(ZeroDivisionError("a bug"))
    displays.add(shown)
    displays.start()
    assert shown.refreshed.wait(20)
    displays.close()
    assert shown.closed.is_set()
    assert "a bug" in caplog.text


# Lines, where there is no terminal


def test_a_line_says_everything() -> None:
    """Done, failed, in flight, both rates with their limits, the ETA and what is waited for."""
    shown = view()
    shown.start(40)
    shown.counters.skipped()
    shown.counters.finished([ANSWERED] * 18 + [FAILED])
    shown.waits[WaitCause.TOKENS] += 21.0
    shown.span_s = 30.0
    assert shown.lines_after(30.0) == [
        "20/~82, 1 failed, ETA 0:01:38, waiting for the token limit 70 %, 21 in flight, "
        "20/60 requests/min, 1,000/1,000 tokens/min"
    ]


def test_lines_come_every_ten_seconds() -> None:
    """The next line is due ten seconds after the last."""
    shown = view()
    assert shown.progress.due_at == 110.0
    shown.lines_after(13.0)
    assert shown.progress.due_at == 123.0


@pytest.mark.parametrize("show", [None, False])
def test_a_library_shows_no_lines(show: bool | None) -> None:
    """Without a wish for it nothing is ever due where there is no terminal."""
    shown = view(show)
    assert shown.progress.due_at == float("inf")
    shown.progress.close()
    assert shown.progress._file.getvalue() == ""


def test_the_total_is_exact_once_all_is_read() -> None:
    """With the whole input read the total isn't estimated any more."""
    shown = view()
    shown.start(123)
    shown.read = 1.0
    shown.counters.finished([ANSWERED] * 123)
    (line,) = shown.lines_after(60.0)
    assert line.startswith("123/123, 0 in flight")
    assert "ETA" not in line
    assert "waiting" not in line


@pytest.mark.parametrize(
    ("read", "answered", "words"),
    [
        (0.5, 10, "60/200, ETA 0:02:20"),  # 10 in 10 s; 140 of 200 are left
        (0.5, 0, "50/200, ETA ?"),  # there is no speed yet
        (None, 10, "60/?, ETA ?"),  # a pipe has no length
    ],
)
def test_the_eta_counts_what_this_run_did(read: float | None, answered: int, words: str) -> None:
    """Answers of an earlier run say nothing about the speed of this one."""
    shown = view()
    shown.read = read
    for _ in range(50):
        shown.counters.skipped()
    shown.start(50)
    shown.counters.finished([ANSWERED] * answered)
    assert shown.lines_after(10.0)[0].replace("~", "").startswith(words)


@pytest.mark.parametrize(
    ("waits", "words"),
    [
        ({WaitCause.REQUESTS: 6.0, WaitCause.TOKENS: 2.0}, "the request limit 60 %"),
        ({WaitCause.TOKENS: 9.0}, "the token limit 90 %"),
        ({WaitCause.ANSWERS: 10.5}, "the last answers 100 %"),
        ({WaitCause.REQUESTS: 2.0, WaitCause.ANSWERS: 2.5}, "the input or the CPU"),
        ({}, "the input or the CPU"),
    ],
)
def test_the_longest_wait_is_named(waits: dict[WaitCause, float], words: str) -> None:
    """It is that since the last line; a run that waited for little is busy with its input."""
    shown = view()
    shown.start(5)
    shown.waits.update(waits)
    assert f"waiting for {words}, " in shown.lines_after(10.0)[0]
    shown.waits[WaitCause.TOKENS] += 9.0
    assert "waiting for the token limit 90 %, " in shown.lines_after(10.0)[1]


def test_a_limit_that_is_off_is_not_shown() -> None:
    """An infinite limit leaves the rate alone."""
    shown = view()
    shown.limits = {"requests": float("inf"), "tokens": 1_000.0}
    assert " 10 requests/min, 500/1,000 tokens/min" in shown.lines_after(60.0)[0]


def test_a_reader_of_the_lines_may_leave() -> None:
    """A broken pipe ends the display, not the run."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        os.close(reading)
        shown = View(file)
        shown.progress.refresh()
        assert shown.progress.due_at == float("inf")
        shown.progress.close()
        with pytest.raises(BrokenPipeError):
            file.close()  # what the display could not write is still in it


def test_a_process_without_stderr_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was started with stderr closed runs as any other."""
    monkeypatch.setattr(sys, "stderr", None)
    shown = View(None)
    assert shown.progress.due_at == float("inf")
    shown.progress.close()


# A bar, on a terminal


@pytest.mark.parametrize("show", [True, None])
def test_a_terminal_shows_a_bar(show: bool | None) -> None:
    """The bar has a percentage and what a line would say, and is left standing at the end."""
    with terminal() as screen:
        shown = View(screen.file, show)
        assert shown.progress.due_at == 100.0
        shown.progress.refresh()
        assert shown.progress.due_at == pytest.approx(100.2)
        shown.start(10)
        shown.read = 1.0
        shown.counters.finished([ANSWERED] * 4)
        shown.now_s += 1.0
        shown.progress.refresh()
        shown.counters.finished([ANSWERED] * 6)
        shown.now_s += 1.0
        shown.progress.close()
        text = screen.text()
    assert re.search(r"40%\|[^|]+\| 4/10, ETA ", text)
    assert re.search(r"100%\|[^|]+\| 10/10, 0 in flight, [^\r\n]*\r\n$", text)


def test_nothing_is_shown_if_so_wished() -> None:
    """``False`` leaves a terminal alone."""
    with terminal() as screen:
        shown = View(screen.file, False)
        assert shown.progress.due_at == float("inf")
        shown.progress.close()
        assert screen.text() == ""


def test_a_bar_starts_no_thread() -> None:
    """tqdm's own monitor, which would outlive the run, isn't started."""
    with terminal() as screen:
        before = set(threading.enumerate())
        shown = View(screen.file)
        shown.progress.refresh()
        assert set(threading.enumerate()) == before
        shown.progress.close()


def test_a_terminal_may_go_away() -> None:
    """A terminal that fails ends the display, and leaves no lock behind that a log line needs."""

    class Broken(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if "in flight" in text:
                raise OSError(errno.EPIPE, "Broken pipe")
            return len(text)

    shown = View(Broken())
    shown.start(3)
    shown.now_s += 1.0
    shown.progress.refresh()
    assert shown.progress.due_at == float("inf")
    bar_lock = tqdm.get_lock()
    logs = threading.Thread(target=lambda: (bar_lock.acquire(), bar_lock.release()), daemon=True)
    logs.start()
    logs.join(10)
    assert not logs.is_alive()
    shown.progress.close()


LOGGING = """
import io, logging, sys
sys.path.insert(0, {path!r})
from test_progress import View
from parallel_processor.report.progress import BarStream
logger = logging.getLogger("t")
logger.addHandler(logging.StreamHandler(BarStream()))
view = View(None)
view.start(3)
view.progress.refresh()
logger.warning("a line")
view.progress.refresh()
view.progress.close()
"""


def test_log_lines_stand_above_the_bar() -> None:
    """A log line has a line of its own, and the bar is drawn again below it."""
    with terminal() as screen:
        command = [sys.executable, "-c", LOGGING.format(path=str(Path(__file__).parent))]
        subprocess.run(command, stderr=screen.file, check=True, timeout=60)
        text = screen.text()
    assert re.search(r"\r *\ra line\r\n *\r? *0%\|", text), repr(text)


def test_the_line_has_the_money_so_far_and_in_all() -> None:
    """Earlier runs count, and so does what attempts may have cost; without prices there is nothing."""
    view = View(io.StringIO())
    view.start(10)
    view.counters.finished([ANSWERED] * 10)
    assert "$" not in view.lines_after(10)[-1]
    view.costs = Costs(
        models=(ModelCost(model="m", answers=10, cost=0.8),), before=1.0, uncertain=0.2
    )
    assert ", 0 in flight, $2.00 of about $3.00, " in view.lines_after(10)[-1]
    view.costs = Costs(models=(ModelCost(model="m", answers=10, cost=None),))
    assert "$" not in view.lines_after(10)[-1]
