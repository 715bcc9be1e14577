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
from typing import Any, TextIO

import pytest

from parallel_processor.counters import Counters
from parallel_processor.figures import BucketReport, LimitReport, Summary, Usage
from parallel_processor.formats import made_request
from parallel_processor.options import Limits
from parallel_processor.outcome import Outcome
from parallel_processor.progress import Progress
from parallel_processor.summaries import summary_text

REQUEST = made_request({}, 1)
ANSWERED = Outcome(request=REQUEST, ok=True)
FAILED = Outcome(request=REQUEST, ok=False, error_kind="HTTP 500")


class View:
    """A run's progress, and everything that it is told; time is ``now_s``."""

    def __init__(self, file: Any, show: bool | None = True) -> None:
        self.now_s = 100.0
        self.read: float | None = 0.5
        self.counters = Counters()
        self.used = {"requests": 10.0, "tokens": 500.0}
        self.span_s = 60.0
        self.waits: Counter[str] = Counter()
        self.limits = {"requests": 60.0, "tokens": 1_000.0}
        self.progress = Progress(
            self.counters,
            usage=lambda: Usage(
                admitted=self.used, limits=self.limits, held_by="", span_s=self.span_s
            ),
            waits=lambda: dict(self.waits),
            fraction=lambda: self.read,
            show=show,
            clock=lambda: self.now_s,
            file=file,
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


# Lines, where there is no terminal


def test_a_line_says_everything() -> None:
    """Done, failed, in flight, both rates with their limits, the ETA and what holds the run back."""
    shown = view()
    shown.start(40)
    shown.counters.skipped()
    shown.counters.finished([ANSWERED] * 18 + [FAILED])
    shown.waits["tokens"] += 20.0
    shown.span_s = 30.0
    assert shown.lines_after(30.0) == [
        "20/~82, 1 failed, ETA 0:01:38, held back by the limit of tokens, 21 in flight, "
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
    assert "held back" not in line


def test_nobody_knows_the_length_of_a_pipe() -> None:
    """For an input of unknown length there is neither a total nor an ETA."""
    shown = view()
    shown.read = None
    shown.start(5)
    shown.counters.finished([ANSWERED])
    (line,) = shown.lines_after(60.0)
    assert line.startswith("1/?, ETA ?")


def test_the_eta_counts_what_this_run_did() -> None:
    """Answers of an earlier run say nothing about the speed of this one."""
    shown = view()
    for _ in range(50):
        shown.counters.skipped()
    shown.start(50)
    shown.counters.finished([ANSWERED] * 10)  # in 10 s; 140 of 200 are left
    assert "ETA 0:02:20" in shown.lines_after(10.0)[0]


def test_without_an_answer_there_is_no_eta() -> None:
    """Before the first outcome nothing can be said."""
    shown = view()
    shown.start(50)
    assert "ETA ?" in shown.lines_after(10.0)[0]


@pytest.mark.parametrize(
    ("waits", "held_by"),
    [
        ({"requests": 6.0, "tokens": 2.0}, "the limit of requests"),
        ({"tokens": 9.0}, "the limit of tokens"),
        ({"pause": 8.0}, "a pause"),
        ({"max_workers": 6.0}, "max_workers"),
        ({"in flight": 6.0}, "the server's load"),
        ({"disk": 6.0}, "the disk"),
        ({"consumer": 6.0}, "the consumer"),
        ({"answers": 9.9}, "the answers"),
        ({"requests": 2.0, "answers": 2.5}, "the machine or input"),
        ({}, "the machine or input"),
    ],
)
def test_what_was_waited_for_longest_holds_back(waits: dict[str, int], held_by: str) -> None:
    """The largest wait since the last line is named, or the machine if it waited for little."""
    shown = view()
    shown.start(5)
    shown.waits.update(waits)
    assert f"held back by {held_by}, " in shown.lines_after(10.0)[0]
    shown.waits["tokens"] += 9.0
    assert "held back by the limit of tokens, " in shown.lines_after(10.0)[1]


def test_a_limit_that_is_off_is_not_shown() -> None:
    """An infinite limit leaves the rate alone."""
    shown = view()
    shown.limits = {"requests": float("inf"), "tokens": 1_000.0}
    line = shown.lines_after(60.0)[0]
    assert "10 requests/min" in line
    assert "inf" not in line


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
        shown.progress.close()
        assert screen.text() == ""


def test_a_bar_starts_no_thread() -> None:
    """tqdm's own monitor, which would outlive the run, isn't started."""
    with terminal() as screen:
        before = set(threading.enumerate())
        shown = View(screen.file)
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
    bar_lock = shown.progress._bar.get_lock()
    shown.start(3)
    shown.now_s += 1.0
    shown.progress.refresh()
    assert shown.progress.due_at == float("inf")
    logs = threading.Thread(target=lambda: (bar_lock.acquire(), bar_lock.release()), daemon=True)
    logs.start()
    logs.join(10)
    assert not logs.is_alive()
    shown.progress.close()


LOGGING = """
import io, logging, sys
sys.path.insert(0, {tests!r})
from test_progress import View
from parallel_processor.options import Limits
from parallel_processor.progress import BarStream
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
        script = LOGGING.format(tests=os.path.dirname(os.path.abspath(__file__)))
        command = [sys.executable, "-c", script]
        subprocess.run(command, stderr=screen.file, check=True, timeout=60)
        text = screen.text()
    assert re.search(r"\r *\ra line\r\n *\r? *0%\|", text), repr(text)


# The summary


def test_the_summary_names_everything() -> None:
    """Counts, time, rates against the limits, tokens, retries, refusals and errors by kind."""
    summary = Summary(
        already_answered=1_000,
        answered=2_000,
        failed=3,
        unanswered=4,
        attempts=3_000,
        retries=990,
        rate_limited=7,
        pauses=2,
        used_tokens=50_000,
        reserved_tokens=60_000,
        elapsed_s=120.0,
        errors_by_kind={"HTTP 500": 2, "timeout": 1},
    )
    limits = Limits(requests_per_minute=1_500, tokens_per_minute=float("inf"), burst_seconds=30.0)
    assert summary_text(summary, limits).splitlines() == [
        "2,000 answered, 3 failed, 1,000 answered before, 4 given up in 120.0 s",
        "attempts: 3,000 (1,200/1,500 a minute), 990 of them retries, 7 refused by a rate limit; "
        "pauses: 2",
        "tokens: 60,000 reserved (24,000 a minute), 50,000 used by the answers",
        "failed: 2 x HTTP 500",
        "failed: 1 x timeout",
    ]


def test_a_summary_tells_what_became_of_each_limit() -> None:
    """For each model: what it waited for, and the limits that were in force, found or typed in."""
    typed = LimitReport(name="requests", configured=600.0, used=100.0, used_share=0.2)
    found = LimitReport(
        name="requests", found=300.0, used=100.0, used_share=0.951, changes=((1.0, 600.0), (9.0, 300.0))
    )
    day = LimitReport(name="requests", window_s=86_400.0, found=1000.0, used=100.0, used_share=0.1)
    tried = LimitReport(name="requests", tried_per_minute=480.0)
    summary = Summary(
        elapsed_s=100.0,
        buckets=(
            BucketReport(
                url="http://h/v1/embeddings",
                model="small",
                held_by={"requests": 80.0, "pause": 10.0, "input": 0.5},
                admitted=100,
                limits=(typed, found, day),
            ),
            BucketReport(url="http://h/v1/x", model="", admitted=200, limits=(tried,)),
            BucketReport(url="http://h/v1/x", model="sun", admitted=5, in_flight_limit=61.6),
            BucketReport(url="http://h/v1/x", model="unused"),
        ),
    )
    assert summary_text(summary, Limits()).splitlines()[-3:] == [
        "/v1/x: held back by nothing; 480 requests/min tried",
        "small: held back 80% by the limit of requests, 10% by a pause; "
        "300 requests/min found (95% used, 1 changes); "
        "1,000 requests in 24 h found (10% used)",
        "sun: held back by nothing; 62 in flight suited the server",
    ]


def test_a_run_that_did_nothing_has_a_summary() -> None:
    """No time and no requests divide by nothing."""
    text = summary_text(Summary(), Limits(requests_per_minute=60))
    assert text.startswith("0 answered, 0 failed in 0.0 s\nattempts: 0 (0/60 a minute)")
