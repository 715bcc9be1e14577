"""Hands out blocks to workers until each has its part. It knows no engine: an engine has five methods.

The driver's thread is the caller's, and the only one that changes anything here. It waits for events of the
engine, a quarter of a second at most, and between them hands out blocks and asks the workers how they are
doing.

* **A worker is trusted once it has answered**, at the start and after it was lost. An engine may start it
  again, or a cluster may have no room for it yet: its blocks don't wait for that, others take them.
* **A block whose worker was lost** goes back to the queue. If that has happened before, it runs alone, so
  that it takes no other block with it. The third time it is set aside. So is a block with three errors.
* **A worker reads ahead.** It gets its next block when it has read the last line of the one before.
* **A slow block.** When nothing is left to hand out, a block that has taken five times as long as the
  median is called back: its worker sends nothing more of it, and the block goes to another. A worker that
  hangs, and so doesn't react, loses it too. What is on record is taken over; the part is created once.
* **A stop** tells all workers, and waits as long as the settings permit for what is in flight.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from parallel_processor.cluster.blocks import Block
from parallel_processor.cluster.job import Attempt, BlockReport, End, Standing
from parallel_processor.cluster.tally import Tally
from parallel_processor.exceptions import StopCause

_log = logging.getLogger("parallel_processor")
_TICK_S = 0.25
_ASK_S = 1.0  # between two questions to a worker
_MAX_LOSSES = 3  # of workers with one block, or errors of one block
_SLOW_FACTOR = 5.0
_LEAST_SLOW_S = 60.0
_GRACE_S = 10.0  # beyond drain_s, for a worker that was told to stop
_SILENCE_S = 30.0  # after which a worker that says nothing gets no more blocks
_WAITING_S = 60.0  # between two warnings that no worker answers


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt has ended."""

    worker: int
    report: BlockReport


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker has said how it is doing."""

    worker: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, or can't be reached, with all that it was doing."""

    worker: int
    reason: str
    is_final: bool = False  # nothing brings it back
    error_class: str = ""  # of what it can't be made for, by its name in ``exceptions``


Event = Ended | Answered | Lost


class Engine(Protocol):
    """Runs workers, which have numbers from 0. For the driver's thread.

    A call returns at once; what comes of it is an event. Whatever a lost worker was asked is forgotten: one
    ``Lost`` stands for all of it.
    """

    workers: int

    def run(self, worker: int, attempt: Attempt) -> None:
        """Have a worker make an attempt: ``Ended``."""
        ...

    def ask(self, worker: int) -> None:
        """Ask a worker how it is doing: ``Answered`` as soon as it can."""
        ...

    def stop(self, worker: int, reason: str, *, cancels: bool = False) -> None:
        """Have a worker end its attempts; with ``cancels``, without what is in flight."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """What has happened; waits at most so long for it."""
        ...


@dataclass(slots=True)
class _Block:
    """A block that has no part yet."""

    block: Block
    losses: int = 0  # of workers that had it
    errors: int = 0
    running: int = 0  # attempts
    has_begun: bool = False
    is_done: bool = False  # or set aside


@dataclass(slots=True)
class _Running:
    """An attempt under way."""

    attempt: Attempt
    block: _Block
    began_at: float
    recalled_at: float | None = None  # when its worker was told to give it back
    is_given_away: bool = False  # another worker has it, too


@dataclass(slots=True)
class _Worker:
    number: int
    running: dict[int, _Running] = field(default_factory=dict)
    is_trusted: bool = False
    is_gone: bool = False
    is_asked: bool = False
    ask_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """Why a run ends before its blocks do, or why its exit code is not that of success."""

    error_class: str
    text: str
    stop_cause: StopCause
    models: tuple[str, ...] = ()


class Driver:
    """One run. Any thread may call :meth:`stop`; the rest is for one thread."""

    def __init__(
        self,
        engine: Engine,
        blocks: Iterator[Block],
        tally: Tally,
        *,
        drain_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._tally = engine, tally
        self._blocks, self._queue = blocks, deque[_Block]()
        self._workers = [_Worker(number) for number in range(engine.workers)]
        self._drain_s, self._clock = drain_s, clock
        self._attempts = 0
        self._open = 0  # blocks that were begun and are neither done nor set aside
        self._durations_s: list[float] = []
        self._stop_reason = ""
        self._cancels = self._is_cancelled = False  # what was asked for, what workers were told
        self._give_up_at: float | None = None
        self._warn_at = clock() + _WAITING_S
        self.fatal: Fatal | None = None

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """Hand out nothing more, and end what is under way."""
        self._cancels = self._cancels or cancels
        self._stop_reason = self._stop_reason or reason

    @property
    def stop_reason(self) -> str:
        """Why the run was stopped; empty if it was not."""
        return self._stop_reason

    def run(self) -> None:
        """Hand out blocks until all are done or set aside, or the run is stopped."""
        while not self._is_over():
            if self._stop_reason:
                self._tell_stop()
            else:
                self._hand_out()
                self._recall_slow()
            self._ask()
            self._take_events(_TICK_S)
        self._ask_once_more()

    def _is_over(self) -> bool:
        if self._stop_reason:
            is_late = self._give_up_at is not None and self._clock() >= self._give_up_at + _GRACE_S
            return is_late or not any(worker.running for worker in self._workers)
        return not self._open and not self._queue and not self._has_more()

    def _has_more(self) -> bool:
        """Take one more block into the queue, if there is one."""
        block = next(self._blocks, None)
        if block is not None:
            self._queue.append(_Block(block))
        return block is not None

    # Handing out.

    def _hand_out(self) -> None:
        for worker in sorted(self._workers, key=lambda each: len(each.running)):
            while (self._queue or self._has_more()) and self._can_take(worker, self._queue[0]):
                self._begin(worker, self._queue.popleft())

    def _can_take(self, worker: _Worker, block: _Block) -> bool:
        if not worker.is_trusted or len(worker.running) >= 2:
            return False
        if not worker.running:
            return True
        if block.losses or any(
            each.block.losses or each.recalled_at for each in worker.running.values()
        ):
            return False
        standing = self._tally.standing(worker.number)
        return standing is not None and all(
            number in standing.read_bytes and number not in standing.reading
            for number in worker.running
        )

    def _begin(self, worker: _Worker, block: _Block) -> None:
        if block.is_done:  # another attempt has ended meanwhile
            return
        self._attempts += 1
        attempt = Attempt(block.block, self._attempts)
        self._open += not block.has_begun
        block.has_begun = True
        block.running += 1
        worker.running[attempt.number] = _Running(attempt, block, self._clock())
        self._engine.run(worker.number, attempt)

    def _recall_slow(self) -> None:
        """Call slow blocks back, if a worker has nothing else to do."""
        if self._queue or len(self._durations_s) < 3:
            return
        idle = sum(each.is_trusted and not each.running for each in self._workers)
        limit_s = max(_LEAST_SLOW_S, _SLOW_FACTOR * statistics.median(self._durations_s))
        now = self._clock()
        for worker in self._workers:
            for running in list(worker.running.values()):
                if not idle or running.block.is_done or running.is_given_away:
                    continue
                if running.recalled_at is None and now - running.began_at > limit_s:
                    running.recalled_at = now
                    self._engine.stop(worker.number, "its block goes to another worker")
                elif now - (running.recalled_at or now) > self._drain_s + _GRACE_S:
                    running.is_given_away, worker.is_trusted = True, False
                    self._queue.append(running.block)
                    idle -= 1

    # Asking.

    def _ask(self) -> None:
        now = self._clock()
        for worker in self._workers:
            if not worker.is_asked and not worker.is_gone and now >= worker.ask_at:
                worker.is_asked, worker.ask_at = True, now + _ASK_S
                self._engine.ask(worker.number)
            elif worker.is_asked and now >= worker.ask_at + _SILENCE_S:
                worker.is_trusted = False
        if any(worker.is_trusted for worker in self._workers):
            self._warn_at = now + _WAITING_S
        elif now >= self._warn_at:
            self._warn_at = now + _WAITING_S
            text = "no worker answers; waiting for %d: `ray status` shows if the cluster has room for them"
            _log.warning(text, len(self._workers))

    def _ask_once_more(self) -> None:
        """Get the last counts of the workers that answer."""
        until = self._clock() + 2.0
        for worker in self._workers:
            worker.ask_at = 0.0
        self._ask()
        while self._clock() < until and any(w.is_trusted and w.is_asked for w in self._workers):
            self._take_events(_TICK_S)

    # Events.

    def _take_events(self, timeout_s: float) -> None:
        for event in self._engine.events(timeout_s):
            worker = self._workers[event.worker]
            if isinstance(event, Answered):
                worker.is_asked, worker.is_trusted = False, True
                self._tally.stands(worker.number, event.standing)
                for level, text in event.standing.log:
                    _log.log(level, "worker %d: %s", worker.number, text)
            elif isinstance(event, Lost):
                self._lose(worker, event)
            else:
                self._end(worker, event.report)

    def _lose(self, worker: _Worker, event: Lost) -> None:
        was_known = worker.is_trusted or bool(worker.running)
        worker.is_asked = worker.is_trusted = False
        worker.ask_at = self._clock() + _ASK_S
        # At the start, what may pass is an error, too.
        worker.is_gone = event.is_final or (event.error_class != "" and not self._attempts)
        if was_known:
            self._tally.lost(worker.number)
            _log.warning("worker %d was lost: %s", worker.number, event.reason)
        running, worker.running = list(worker.running.values()), {}
        for each in running:
            each.block.running -= 1
            each.block.losses += 1
            if each.block.losses < _MAX_LOSSES:
                self._again(each)
            else:
                self._set_aside(
                    each.block, f"its worker was lost {each.block.losses} times: {event.reason}"
                )
        if all(each.is_gone for each in self._workers):
            if event.error_class and not self._attempts:  # a setting that can't work there
                self._end_with(event.error_class, event.reason, StopCause.SETUP)
                return
            self._end_with(
                "WorkerProcessError", f"no worker is left: {event.reason}", StopCause.PROCESSES
            )

    def _end(self, worker: _Worker, report: BlockReport) -> None:
        running = worker.running.pop(report.attempt.number, None)
        if running is None or running.block.is_done:
            return
        block = running.block
        block.running -= 1
        if report.end is End.DONE:
            block.is_done = True
            self._open -= 1
            self._durations_s.append(self._clock() - running.began_at)
            self._tally.finished(block.block, report)
        elif report.end is End.STOPPED:
            self._again(running)
        elif report.end is End.FATAL:
            self._again(running)
            self._end_with(report.error_class, report.error, report.stop_cause, report.models)
        elif report.end is End.LEFT_OUT:
            self._set_aside(block, report.error)
            if self.fatal is None:
                text, cause = report.error, report.stop_cause
                self.fatal = Fatal(
                    error_class=report.error_class,
                    text=text,
                    stop_cause=cause,
                    models=report.models,
                )
        else:
            block.errors += 1
            _log.warning("the block from byte %d failed: %s", block.block.start, report.error)
            if block.errors < _MAX_LOSSES:
                self._again(running)
            else:
                self._set_aside(block, f"it failed {block.errors} times: {report.error}")

    def _again(self, running: _Running) -> None:
        """Queue a block again, unless another worker has it."""
        if not running.block.is_done and not running.block.running and not running.is_given_away:
            self._queue.appendleft(running.block)

    def _set_aside(self, block: _Block, reason: str) -> None:
        if block.is_done:
            return
        block.is_done = True
        self._open -= 1
        self._tally.give_up(block.block, reason)
        _log.error("the block from byte %d is set aside: %s", block.block.start, reason)

    # The end.

    def _end_with(
        self, error_class: str, text: str, cause: StopCause, models: tuple[str, ...] = ()
    ) -> None:
        if self.fatal is None or not self._stop_reason:
            self.fatal = Fatal(error_class=error_class, text=text, stop_cause=cause, models=models)
        self.stop(text)

    def _tell_stop(self) -> None:
        """Tell the workers to stop, and to cancel once that was asked for or the time is over."""
        now = self._clock()
        if self._give_up_at is None:
            self._give_up_at = now + self._drain_s
            self._tell(cancels=self._cancels)
        elif not self._is_cancelled and (self._cancels or now >= self._give_up_at):
            self._give_up_at = min(self._give_up_at, now)
            self._tell(cancels=True)

    def _tell(self, *, cancels: bool) -> None:
        self._is_cancelled = cancels
        for worker in self._workers:
            if worker.running:
                self._engine.stop(worker.number, self._stop_reason, cancels=cancels)
