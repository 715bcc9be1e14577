"""One run: a stream of requests goes through its token buckets to workers, until each has an outcome.

The constructor of :class:`Run` makes the stages in the order in which a request passes them.

**Threads.**

* The *reader* (``reader.py``) is the thread that iterates over :meth:`Run.outcomes`: the caller's, or that
  of ``submissions``. It waits only for ``waker``, set for credits, an outcome and the stop.
* *Workers* send. A worker that has settled an attempt takes the next admitted request from the dispatcher's
  queues itself. No request that waits occupies a worker.
* The *dispatcher* waits until a bucket admits the head of its queue, or a backoff is over. It starts a
  worker for an admitted request that no worker asks for. It and the workers also count tokens.
* The *writer*, behind the sink of a file run, appends records. Another thread refreshes the displays, and
  one more looks after packs while the input pauses.

**The end.** A run ends by itself once the input is at its end and every outcome is on record. A stop ends
it early. Its first cause counts. Then nothing more is sent, what is queued is dropped, and the README's
table of stops says how long requests in flight have to end: by ``stops.drain_s`` for most causes, by the
handlers in :meth:`Run.outcomes` for exceptions in the reader's thread. :meth:`Run._finish` cancels what is
left, at once if nobody takes the outcomes any more.

What is dropped or cancelled has no record, and the next run sends it. No thread, socket or file is left.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from parallel_processor.engine.credits import NO_SLACK, WRITER_SLACK, Credits, WriterSlack
from parallel_processor.engine.delivery import Delivery, MakeSink, Recorded, Sink, make_duplicates
from parallel_processor.engine.dispatcher import Dispatcher
from parallel_processor.engine.queues import RequestQueues
from parallel_processor.engine.reader import Reader
from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import LeftOut, OnLeftOut, drain_s
from parallel_processor.exceptions import StopRequested, WorkerProcessError
from parallel_processor.models import Attempt, Outcome, Request, WaitCause
from parallel_processor.options import Options
from parallel_processor.planning.bounds import Bounds
from parallel_processor.planning.budget import Budget
from parallel_processor.report.counters import Counters
from parallel_processor.report.histogram import percentile_s
from parallel_processor.report.progress import Displays
from parallel_processor.report.wait_times import WaitTimes
from parallel_processor.runtime.descriptors import affordable_workers
from parallel_processor.runtime.exits import at_exit
from parallel_processor.runtime.forks import load
from parallel_processor.runtime.notebook import join_timeout_s
from parallel_processor.runtime.stop import Settable, StopSignal, WakeEvent, do_all
from parallel_processor.runtime.threads import run_apart
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import AdmittedRequest
from parallel_processor.workers.pool import WorkerPool, make_pool

if TYPE_CHECKING:
    from parallel_processor.engine.packing import Packing

_USUAL = 95  # percent of the answers don't take longer
_log = logging.getLogger("parallel_processor")
IsWanted = Callable[[Request], bool]


class Run:
    """Sends one stream of requests. Any thread may call :meth:`stop` and :meth:`cancel`.

    Attributes:
        bounds: what it spends, and what bounds it.

    Args:
        options: the settings.
        routes: the token buckets of its upstreams, which other runs may share.
        estimator: estimates what a request will cost.
        make_sink: makes the sink, which takes each outcome from a worker. ``None``: they are yielded.
        on_begin: called before the first request is queued; it may raise.
        on_cancel: called when requests in flight are cancelled.
        on_left_out: called with a request of a model that is left out, and the reason, which else stops the
            run at the end.
        ahead: how many more requests may be read. Who makes it larger sets ``waker``. ``None``: any.
        is_wanted: asked before a request's first attempt; if it says no, the request is not sent.
        parses_answers: false if only the answers' text will be used.
        slack: what may wait for the sink's owner.
        clock: seconds that never go back. ``budget``: what the runs of a processor spend.
    """

    def __init__(
        self,
        options: Options,
        *,
        routes: Routes,
        estimator: CostEstimator,
        make_sink: MakeSink | None = None,
        on_begin: Callable[[], None] | None = None,
        on_cancel: Callable[[], None] | None = None,
        on_left_out: OnLeftOut | None = None,
        ahead: Callable[[], float] | None = None,
        is_wanted: IsWanted | None = None,
        parses_answers: bool = True,
        slack: WriterSlack = WRITER_SLACK,
        clock: Callable[[], float] = time.monotonic,
        budget: Budget | None = None,
    ) -> None:
        self.counters, self.wait_times, self.displays = Counters(), WaitTimes(), Displays(clock)
        self.yields_outcomes, self._options, self._clock = make_sink is None, options, clock
        self._estimator, self._on_begin, self._on_cancel = estimator, on_begin, on_cancel
        self._left_out, self._process_id = LeftOut(on_left_out), os.getpid()
        self._stop, self.waker = StopSignal(), WakeEvent()  # which is for the reader
        self.bounds = self._make_bounds(budget)
        self._is_stopping, self._give_up_at = False, self.bounds.give_up_at
        self._max_workers = affordable_workers(options.max_workers)
        self._duplicates = make_duplicates(options)
        # 2. PendingRequest: it waits in the queue of its token bucket until the bucket admits it.
        self._lanes = Lanes(options, routes, self._left_out, clock)
        self._queues = RequestQueues(estimator.cost, WakeEvent(), self._lanes)
        self._packing = self._make_packing(is_submitted=on_left_out is not None)
        self._dispatcher = self._make_dispatcher(is_wanted, slack)
        # 3. AdmittedRequest: a worker sends it once, and calls _settle with the Attempt.
        self._pool = self._make_pool(parses_answers, shares_core=on_left_out is None)
        # 4. Attempt: settling it means an Outcome, or a backoff after which the request is queued again.
        self._settlement = self._make_settlement()
        # 5. Outcome: it goes to the sink or to the program. Then the dispatcher gets the credit back.
        self._delivery = self._make_delivery(make_sink, slack)
        # 1. Request: with `dedupe`, equal ones share an outcome; with `pack_inputs`, several become one.
        self._reader = self._make_reader(ahead)
        self._end_at_exit()

    def _end_at_exit(self) -> None:
        for end in (self._pool.abort, self._dispatcher.abort):  # the last one is called first
            at_exit(end)

    def _make_packing(self, *, is_submitted: bool) -> Packing | None:
        if is_submitted or self._options.pack_inputs in (None, 1):
            return None
        packing: Packing = load("parallel_processor.engine.packing").Packing(
            self._options,
            estimator=self._estimator,
            lanes=self._lanes,
            is_waiting=self._queues.is_waiting,
            put=lambda request, estimate: self._reader.put(request, estimate),
            fail=self._stop.set,
            add=lambda pending, retry_in_s: self._dispatcher.add(pending, retry_in_s),
            take=lambda count: self._dispatcher.recorded(-count),
            settlement=lambda: self._settlement,
            counters=self.counters,
        )
        return packing

    def _make_dispatcher(self, is_wanted: IsWanted | None, slack: WriterSlack) -> Dispatcher:
        return Dispatcher(
            queues=self._queues,
            start=lambda admitted: self._pool.start(admitted),
            flush=lambda: self._pool.flush(),
            drop=lambda pending: self._delivery.drop(pending),
            on_room=self.waker.set,
            activity=self._idle_cause,
            counters=self.counters,
            wait_times=self.wait_times,
            stop=self._stop,
            max_workers=self._max_workers,
            slack=NO_SLACK if self.yields_outcomes else slack,
            count=lambda pending: self._reader.count(pending),
            is_wanted=is_wanted,
            clock=self._clock,
            spending=self.bounds.bounded,
            divide=None if self._packing is None else self._packing.smaller,
            inputs=1 if self._packing is None else self._packing.inputs,
        )

    def _make_pool(self, parses_answers: bool, shares_core: bool) -> WorkerPool:
        return make_pool(
            self._options,
            self._max_workers,
            settle=self._settle,
            stop=self._stop,
            parses_answers=parses_answers or self._options.validate is not None,
            shares_core=shares_core,
        )

    def _make_settlement(self) -> Settlement:
        return Settlement(
            self._options,
            estimator=self._estimator,
            counters=self.counters,
            stop=self._stop,
            waker=self._dispatcher.waker,
            clock=self._clock,
            left_out=self._left_out,
            lanes=self._lanes,
            is_crowded=self._queues.is_crowded,
            on_left_out=lambda group: self._reader.leave(*self._dispatcher.remove(group)),
            routes=self._lanes.routes,
            validates=self._packing is None,
            divide=lambda *failed: self._packing is not None and self._packing.divide(*failed),
            spending=self.bounds.spending,
        )

    def _make_delivery(self, make_sink: MakeSink | None, slack: WriterSlack) -> Delivery:
        sink: Callable[[Recorded], Sink] | None
        sink = make_sink and (lambda recorded: make_sink(recorded, self.stop))
        make = Delivery if self._packing is None else self._packing.delivery
        return make(
            counters=self.counters,
            waker=self.waker,
            on_record=self._dispatcher.recorded if make_sink else self.credits.yielded,
            make_sink=sink,
            duplicates=self._duplicates,
            on_unanswered=slack.on_unanswered,
            on_failure=self.bounds.failures.add,
            spending=self.bounds.bounded,
        )

    def _make_reader(self, ahead: Callable[[], float] | None) -> Reader:
        return Reader(
            estimator=self._estimator,
            lanes=self._lanes,
            left_out=self._left_out,
            duplicates=self._duplicates,
            dispatcher=self._dispatcher,
            delivery=self._delivery,
            counters=self.counters,
            begin=self._begin,
            ahead=ahead,
            is_beside=not self.yields_outcomes,
            counts=self._options.processes > 1,
            spending=self.bounds.bounded,
            packer=None if self._packing is None else self._packing.packer,
            waker=self.waker,
            stop=self._stop,
        )

    def _make_bounds(self, budget: Budget | None) -> Bounds:
        """Those of the run. That of time is with the displays, whose thread keeps it."""
        bounds = Bounds(
            self._options,
            budget,
            ended=self._ended,
            latency_s=lambda: percentile_s(self.counters.counts().latencies, _USUAL),
            stop=self._stop.set,
            clock=self._clock,
        )
        if bounds.deadline is not None:
            self.displays.add(bounds.deadline)
        return bounds

    def _ended(self) -> int:
        """How many requests have an outcome, those of earlier runs included."""
        counts = self.counters.counts()
        return counts.answered + counts.failed + counts.already_answered + counts.already_failed

    @property
    def stop_cause(self) -> BaseException | None:
        """Why the run stops; ``None`` while it doesn't."""
        return self._stop.cause

    @property
    def credits(self) -> Credits:
        """How many requests are under way at this moment."""
        return self._dispatcher.credits

    def waking(self, event: Settable) -> AbstractContextManager[None]:
        """While the block runs, a stop sets ``event``."""
        return self._stop.waking(event)

    def stop(self, cause: BaseException) -> None:
        """Send nothing more; requests in flight may end."""
        self._stop.set(cause)

    def cancel(self, cause: BaseException) -> None:
        """Stop, and cancel the requests in flight."""
        self._stop.set(cause)
        self._pool.cancel()
        if self._on_cancel is not None:
            self._on_cancel()

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Send ``requests``. Without a sink, yield their outcomes as they come."""
        with self._stop.waking(self.waker):
            try:
                if not self.yields_outcomes:  # else the thread is the program's, too
                    self._pool.core.join()
                self.displays.start()
                yield from self._reader.feed(requests)
                self._reader.flush()
                self._reader.activity = WaitCause.ANSWERS
                self._dispatcher.close()
                yield from self._drain()
                if self._dispatcher.error is not None:
                    raise self._dispatcher.error
                if (left_out := self._left_out.error()) is not None and not self._left_out.is_told:
                    self._stop.set(left_out)
            except Exception as error:  # of the input, say; what can go at once is still sent
                self._reader.flush(begins=False)
                self._dispatcher.close(hurry=True)
                self._dispatcher.join()
                self._begin_to_stop(self._stop.cause or error)
                try:
                    yield from self._drain()
                finally:
                    self._stop.set(error)  # not before: a worker that is about to send would not
                raise
            except BaseException as error:
                self._stop.set(error)
                self._give_up_at = min(self._give_up_at, self._clock() + join_timeout_s(error))
                raise
            finally:
                try:
                    self._finish()
                except KeyboardInterrupt:  # it may have come before anything was done
                    self._finish()
                    raise

    def _begin(self) -> None:
        """Start a writer, a worker and the dispatcher: without them, nothing may be sent."""
        try:
            if self._on_begin is not None:
                self._on_begin()
            run_apart(self._pool.prepare)  # an interrupt would leave locks of all executors taken
            self._dispatcher.start()
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            raise WorkerProcessError(f"{error}, so nothing was sent") from error

    def _idle_cause(self, is_full: bool) -> WaitCause:
        """What the run waits for, if it waits for no bucket."""
        if self.credits.waits_for_records:
            return WaitCause.CONSUMER if self.yields_outcomes else self.credits.writer_cause
        return self.credits.full_cause if is_full else self._reader.activity

    # The workers.

    def _settle(
        self, admitted: AdmittedRequest, attempt: Attempt | BaseException
    ) -> AdmittedRequest | None:
        """Deliver the outcome, or queue the request again. Returns the next request to send, if any.

        The workers call this with each attempt. A bug ends the run instead of hanging it.
        """
        try:
            settle = (self._packing or self._settlement).settle
            outcome, retry_in_s, made_room = settle(*admitted, attempt)
            if outcome is not None:
                if outcome.ok and self.credits.is_careful:
                    self._dispatcher.open()
                if outcome.unanswered:
                    self._left_out.tell(outcome.request, admitted.pending.group)
                size_bytes = self._delivery.deliver(outcome)
                return self._dispatcher.done(made_room=made_room, size_bytes=size_bytes)
            again = admitted.pending
            return self._dispatcher.done(again, retry_in_s=retry_in_s, made_room=made_room)
        except BaseException as error:
            self._stop.set(error)
            return None

    # The end.

    def _drain(self) -> Iterator[Outcome]:
        """Wait until everything is on record, after a stop only for ``drain_s``; yield what comes."""
        while True:
            self.waker.clear()
            yield from self._reader.ready()
            if not self._dispatcher.is_busy():
                return
            self._begin_to_stop(self._stop.cause)
            left = self._give_up_at - self._clock()
            if left <= 0:
                return
            if not self._delivery.ready:
                self.waker.wait(left)

    def _begin_to_stop(self, cause: BaseException | None) -> None:
        """If there is a cause, requests in flight have ``drain_s`` from now on."""
        if cause is not None and not self._is_stopping:
            self._is_stopping = True
            self._give_up_at = min(self._give_up_at, self._clock() + drain_s(cause, self._options))
            _log.info("stopping; requests in flight: %d", self.credits.in_flight)

    def _finish(self) -> None:
        """Let requests in flight end, or cancel them; then end threads and processes."""
        if os.getpid() != self._process_id:  # a fork has none of them
            return
        try:
            self._reader.close()
            if not self.yields_outcomes:  # otherwise nobody takes what still comes
                list(self._drain())  # yields none
        finally:
            self._dispatcher.waker.set()  # an interrupt may have kept a stop from doing so
            ends = (self._settlement.close, self._delivery.close, self.displays.close)
            threads = (self._dispatcher.join, self._cancel_rest, self._pool.close)
            do_all((*threads, *ends, self._pool.core.leave))

    def _cancel_rest(self) -> None:
        if self._dispatcher.is_busy():  # in flight, or not written by a failing disk
            self.cancel(StopRequested("gave up what was in flight"))
