"""The driver's rules, with an engine that does what the test says, in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from parallel_processor.cluster.blocks import Block, cut
from parallel_processor.cluster.driver import Answered, Driver, Ended, Event, Lost
from parallel_processor.cluster.job import Attempt, BlockReport, End, Standing
from parallel_processor.cluster.tally import Tally
from parallel_processor.exceptions import StopCause
from parallel_processor.report.snapshot import Snapshot

SIZE = 10  # of a block


class Script:
    """An engine whose workers do what ``decide`` says, each attempt after some seconds.

    ``decide`` gets worker and attempt; it returns seconds and an end, or ``None`` for a worker that hangs.
    A worker in ``silent`` answers no question. The clock moves to the next event, or by the driver's wait.
    """

    def __init__(
        self, workers: int, decide: Callable[[int, Attempt], tuple[float, End | str] | None]
    ) -> None:
        self.workers, self._decide = workers, decide
        self.now = 0.0
        self.silent: set[int] = set()
        self.begun: list[tuple[int, int]] = []  # worker, start of the block
        self.stopped: list[tuple[int, bool]] = []
        self.most = 0  # attempts of one worker at once
        self._due: list[tuple[float, int, Event]] = []
        self._running: dict[int, dict[int, Attempt]] = {n: {} for n in range(workers)}
        self.has_read: set[int] = set()  # attempts whose block is read
        self.calls: list[tuple[float, Callable[[], None]]] = []  # what else happens, and when

    def clock(self) -> float:
        return self.now

    def run(self, worker: int, attempt: Attempt) -> None:
        self.begun.append((worker, attempt.block.start))
        self._running[worker][attempt.number] = attempt
        self.most = max(self.most, len(self._running[worker]))
        decided = self._decide(worker, attempt)
        if decided is not None:
            seconds, end = decided
            event: Event = (
                Lost(worker, end) if isinstance(end, str) else self.ended(worker, attempt, end)
            )
            self.later(seconds, event)

    def ended(self, worker: int, attempt: Attempt, end: End) -> Event:
        report = BlockReport(
            attempt=attempt,
            end=end,
            lines=1,
            error="as told",
            error_class="RunStoppedError",
            stop_cause=StopCause.KEY,
        )
        return Ended(worker, report)

    def later(self, seconds: float, event: Event) -> None:
        self._due.append((self.now + seconds, len(self._due), event))

    def ask(self, worker: int) -> None:
        if worker not in self.silent:
            running = self._running[worker]
            standing = Standing(
                incarnation=str(worker),
                snapshot=Snapshot(),
                read_bytes=dict.fromkeys(running, 1),
                reading=frozenset(running.keys() - self.has_read),
            )
            self.later(0.0, Answered(worker, standing))

    def stop(self, worker: int, reason: str, *, cancels: bool = False) -> None:
        self.stopped.append((worker, cancels))

    def events(self, timeout_s: float) -> list[Event]:
        until = min([self.now + timeout_s, *(at for at, _, _ in self._due)])
        self.now = max(self.now, until)
        due = sorted(each for each in self._due if each[0] <= self.now)
        self._due = [each for each in self._due if each[0] > self.now]
        for at, call in list(self.calls):
            if at <= self.now:
                self.calls.remove((at, call))
                call()
        for _, _, event in due:
            if isinstance(event, Ended):
                self._running[event.worker].pop(event.report.attempt.number, None)
            elif isinstance(event, Lost):
                self._running[event.worker].clear()
        return [event for _, _, event in due]


def drive(engine: Script, blocks: int) -> tuple[Driver, Tally]:
    """Run a job of so many blocks to its end."""
    driver, tally = made(engine, blocks)
    driver.run()
    return driver, tally


def made(engine: Script, blocks: int) -> tuple[Driver, Tally]:
    size = blocks * SIZE
    tally = Tally(size)
    source: Iterator[Block] = cut(Block(0, size), SIZE)
    return Driver(engine, source, tally, drain_s=5.0, clock=engine.clock), tally


def test_all_workers_share_the_blocks() -> None:
    """Each block is sent once, and no worker stays idle while there are blocks."""
    engine = Script(3, lambda worker, attempt: (10.0, End.DONE))
    driver, tally = drive(engine, 9)
    assert sorted(start for _, start in engine.begun) == list(range(0, 90, SIZE))
    assert (tally.blocks, driver.fatal, tally.fraction()) == (9, None, 1.0)
    assert 30.0 <= engine.now < 33.0


def test_a_worker_that_does_not_answer_gets_no_block() -> None:
    """A worker without room in the cluster is asked, and the others do its work (ray#15045)."""
    engine = Script(2, lambda worker, attempt: (1.0, End.DONE))
    engine.silent = {0}
    drive(engine, 4)
    assert {worker for worker, _ in engine.begun} == {1}


def test_nobody_answers_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """While no worker answers, a warning says once a minute what is waited for."""
    engine = Script(2, lambda worker, attempt: (1.0, End.DONE))
    engine.silent = {0, 1}
    driver, _ = made(engine, 1)
    engine.calls.append((180.5, lambda: driver.stop("enough")))
    with caplog.at_level(logging.WARNING, "parallel_processor"):
        driver.run()
    assert len(caplog.messages) == 3
    assert all(text.startswith("no worker answers; waiting for 2") for text in caplog.messages)


def test_a_lost_block_goes_to_another_worker() -> None:
    """The worker that was lost is asked until it answers; then it gets blocks again."""
    lost: list[int] = []

    def decide(worker: int, attempt: Attempt) -> tuple[float, End | str]:
        if worker == 0 and not lost:
            lost.append(attempt.block.start)
            return 1.0, "killed"
        return 2.0, End.DONE

    engine = Script(2, decide)
    _, tally = drive(engine, 6)
    assert (tally.blocks, tally.workers_lost, tally.set_aside) == (6, 1, [])
    assert len(engine.begun) == 7 and engine.begun.count((0, lost[0])) >= 1
    assert len([worker for worker, _ in engine.begun if worker == 0]) > 1


def test_a_block_that_kills_its_worker_is_set_aside_alone() -> None:
    """The third time it is reported; no other block is lost with it more than once."""

    def decide(worker: int, attempt: Attempt) -> tuple[float, End | str] | None:
        if attempt.block.start == 20:
            return 3.0, "out of memory"
        engine.has_read.add(attempt.number)
        return 2.0, End.DONE

    engine = Script(1, decide)
    _, tally = drive(engine, 5)
    (given_up,) = tally.set_aside
    assert (given_up.start, given_up.end) == (20, 30)
    assert given_up.reason == "its worker was lost 3 times: out of memory"
    assert (tally.blocks, tally.workers_lost) == (4, 3)
    assert engine.begun.count((0, 20)) == 3


def test_errors_are_tried_three_times() -> None:
    """A block whose attempts fail is set aside, and the others are done."""
    engine = Script(2, lambda w, a: (1.0, End.FAILED if a.block.start == 0 else End.DONE))
    driver, tally = drive(engine, 4)
    assert [each.reason for each in tally.set_aside] == ["it failed 3 times: as told"]
    assert (tally.blocks, driver.fatal, driver.stop_reason) == (3, None, "")


def test_the_next_block_begins_when_the_last_line_is_read() -> None:
    """Two blocks of one worker overlap while the first has only requests in flight, never three."""

    def decide(worker: int, attempt: Attempt) -> tuple[float, End | str]:
        engine.has_read.add(attempt.number)
        return 10.0, End.DONE

    engine = Script(1, decide)
    drive(engine, 6)
    assert engine.most == 2
    assert engine.now < 6 * 10.0 / 2 + 10
    unread = Script(1, lambda worker, attempt: (10.0, End.DONE))
    drive(unread, 6)
    assert unread.most == 1


def test_a_slow_block_goes_to_a_second_worker() -> None:
    """It is called back, and given away once its worker doesn't react; what comes later is ignored."""

    def decide(worker: int, attempt: Attempt) -> tuple[float, End | str] | None:
        return None if attempt.number == 1 else (10.0, End.DONE)

    engine = Script(2, decide)
    _, tally = drive(engine, 8)
    hung, start = engine.begun[0]
    assert engine.stopped == [(hung, False)]
    assert [worker for worker, block in engine.begun if block == start] == [hung, 1 - hung]
    assert (tally.blocks, tally.fraction()) == (8, 1.0)
    assert 60.0 < engine.now < 100.0


def test_a_block_that_is_given_back_is_sent_once_more() -> None:
    """A slow worker that reacts keeps its journal; nothing of the block is sent by two at a time."""
    slow: list[Attempt] = []

    def decide(worker: int, attempt: Attempt) -> tuple[float, End | str] | None:
        if attempt.number == 1:
            slow.append(attempt)
            return 63.0, End.STOPPED
        return 10.0, End.DONE

    engine = Script(2, decide)
    _, tally = drive(engine, 8)
    starts = [start for _, start in engine.begun]
    assert starts.count(slow[0].block.start) == 2 and len(starts) == 9
    assert tally.blocks == 8


def test_a_fatal_answer_ends_the_run() -> None:
    """Nothing more is handed out, and the workers are told; the cause is that of the first."""
    engine = Script(2, lambda w, a: (2.0, End.FATAL) if a.number == 1 else (5.0, End.STOPPED))
    driver, tally = drive(engine, 50)
    assert driver.fatal is not None and driver.fatal.error_class == "RunStoppedError"
    assert len(engine.begun) == 2 and tally.blocks == 0
    assert {worker for worker, _ in engine.stopped} == {1}


def test_a_model_that_is_left_out_does_not_end_the_others() -> None:
    """Its blocks are set aside, and the run's error is known at the end."""
    engine = Script(1, lambda w, a: (1.0, End.LEFT_OUT if a.block.start == 0 else End.DONE))
    driver, tally = drive(engine, 3)
    assert (tally.blocks, len(tally.set_aside)) == (2, 1)
    assert driver.fatal is not None and driver.fatal.stop_cause is StopCause.KEY


def test_no_worker_is_left() -> None:
    """If nothing brings any worker back, the run ends instead of waiting for ever (ray#6612)."""
    engine = Script(2, lambda w, a: (1.0, End.DONE))
    engine.silent = {0, 1}
    for worker in range(2):
        engine.later(1.0, Lost(worker, "ModuleNotFoundError: parallel_processor", is_final=True))
    driver, _ = drive(engine, 3)
    assert driver.fatal is not None and driver.fatal.error_class == "WorkerProcessError"
    assert "ModuleNotFoundError" in driver.fatal.text


def test_a_limiter_that_is_away_is_an_error_at_the_start_and_waited_for_later() -> None:
    """A worker that can't be made for it ends a run that has not begun; later it is asked again."""
    away = "the limiter is away"
    engine = Script(1, lambda w, a: (1.0, End.DONE))
    engine.silent = {0}
    engine.later(1.0, Lost(0, away, error_class="LimiterError"))
    driver, _ = drive(engine, 3)
    assert driver.fatal is not None
    assert (driver.fatal.error_class, driver.fatal.text) == ("LimiterError", away)
    engine = Script(1, lambda w, a: (5.0, End.DONE))
    engine.later(6.0, Lost(0, away, error_class="LimiterError"))
    driver, tally = drive(engine, 3)
    assert driver.fatal is None and tally.blocks == 3


def test_a_stop_waits_for_what_is_in_flight_and_then_cancels() -> None:
    """A worker that doesn't end within drain_s is told to cancel, and is left behind after that."""
    engine = Script(1, lambda w, a: None)
    driver, _ = made(engine, 3)
    engine.calls.append((3.0, lambda: driver.stop("interrupted by SIGINT")))
    driver.run()
    assert engine.stopped == [(0, False), (0, True)]
    assert 3.0 + 5.0 + 10.0 <= engine.now < 22.0
