"""One run: a stream of requests goes through its token buckets to workers, until each has an outcome.

The constructor of :class:`Run` makes the stages in the order in which a request passes them.

**Threads.** The caller's thread is the reader: it reads requests, and puts them into the dispatcher's
queues. A worker thread exists for a request in flight, not for one that waits. The reader waits for a
single event, ``_waker``, which is set for all that it may wait for: credits, an outcome, the stop.

**Credits.** A request may be read only if there is a credit for it. It holds the credit until its outcome
is on record, or taken by the program. So a slow disk or a slow program bounds memory as the network does.

**The end.** A run ends by itself once the input is at its end and every outcome is on record. A stop ends
it early: a fatal answer, a failing disk, :meth:`Run.stop`, or an exception in the reader, which is how
Ctrl-C arrives. Then nothing more is sent, and what is queued is dropped. Requests in flight have
``drain_s`` seconds to end (half a second in an interrupted notebook), and are then cancelled. No thread,
socket or file of the run is left.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

from parallel_processor.engine.delivery import Delivery, Recorded, Sink, make_duplicates
from parallel_processor.engine.dispatcher import Dispatcher
from parallel_processor.engine.settlement import Settlement, invalid
from parallel_processor.exceptions import ResultsFileError, RunStoppedError, StopRequested
from parallel_processor.models import Attempt, Outcome, Request, WaitCause
from parallel_processor.options import Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.report.progress import Displays
from parallel_processor.report.wait_times import WaitTimes
from parallel_processor.runtime.descriptors import affordable_workers
from parallel_processor.runtime.exits import at_exit
from parallel_processor.runtime.notebook import join_timeout_s
from parallel_processor.runtime.stop import Settable, StopSignal, WakeEvent, do_all
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest
from parallel_processor.workers.pool import WorkerPool, make_pool

_log = logging.getLogger("parallel_processor")
_WRITER_SLACK = 256  # outcomes that may wait for a writer, which writes many at once

MakeSink = Callable[[Recorded, Callable[[BaseException], None]], Sink]
"""Makes the sink of a run, given the function that records outcomes and the one that stops the run."""


class Run:
    """Sends one stream of requests. Any thread may call :meth:`stop` and :meth:`cancel`.

    Args:
        options: the settings.
        buckets: the limits, which other runs may share.
        estimator: estimates what a request will cost.
        make_sink: makes the sink, which takes outcomes from the worker threads and gives credits back to
            the run. Without a sink, :meth:`outcomes` yields the outcomes.
        on_cancel: called when requests in flight are cancelled.
        ahead: the caller's own bound: how many more requests may be read.
        is_wanted: asked before a request's first attempt; if it says no, the request is not sent.
        parses_answers: false if only the answers' text will be used.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        options: Options,
        *,
        buckets: TokenBuckets,
        estimator: CostEstimator,
        make_sink: MakeSink | None = None,
        on_cancel: Callable[[], None] | None = None,
        ahead: Callable[[], float] | None = None,
        is_wanted: Callable[[Request], bool] | None = None,
        parses_answers: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters, self.wait_times, self.displays = Counters(), WaitTimes(), Displays(clock)
        self.yields_outcomes = make_sink is None
        self._options, self._clock = options, clock
        self._buckets, self._estimator = buckets, estimator
        self._on_cancel, self._ahead = on_cancel, ahead
        self._process_id = os.getpid()
        self._stop, self._is_stopping = StopSignal(), False
        self._give_up_at = math.inf  # set by a stop
        self._waker = WakeEvent()  # for the reader
        self._activity = WaitCause.INPUT  # what the reader is doing
        self._seen: set[TokenBucket] = set()
        self._max_workers = affordable_workers(options.max_workers)
        # 1. A request that equals an earlier one waits for the outcome of that one.
        self._duplicates = make_duplicates(options)
        # 2. The others wait in the queues of their token buckets until these admit them.
        self._dispatcher = self._make_dispatcher(is_wanted)
        # 3. A worker sends an admitted request once: an attempt. Then it calls _settle for the next one.
        self._pool = self._make_pool(parses_answers)
        # 4. Settling an attempt yields the request's outcome, or queues the request again.
        self._settlement = self._make_settlement()
        # 5. The outcome goes to the sink or to the program, and then its credit back to the dispatcher.
        self._delivery = self._make_delivery(make_sink)
        at_exit(self._pool.abort)
        at_exit(self._dispatcher.abort)  # called before the other: nothing more is sent after it

    def _make_dispatcher(self, is_wanted: Callable[[Request], bool] | None) -> Dispatcher:
        return Dispatcher(
            cost=self._estimator.cost,
            start=lambda admitted: self._pool.start(admitted),
            flush=lambda: self._pool.flush(),
            drop=lambda pending: self._delivery.drop(pending),
            on_room=self._waker.set,
            activity=self._idle_cause,
            counters=self.counters,
            wait_times=self.wait_times,
            stop=self._stop,
            max_workers=self._max_workers,
            writer_slack=0 if self.yields_outcomes else _WRITER_SLACK,
            count=self._count,
            is_wanted=is_wanted,
            clock=self._clock,
        )

    def _make_pool(self, parses_answers: bool) -> WorkerPool:
        return make_pool(
            self._options,
            self._max_workers,
            settle=self._settle,
            stop=self._stop,
            parses_answers=parses_answers or self._options.validate is not None,
        )

    def _make_settlement(self) -> Settlement:
        return Settlement(
            self._options,
            estimator=self._estimator,
            counters=self.counters,
            stop=self._stop,
            waker=self._dispatcher.waker,
            clock=self._clock,
        )

    def _make_delivery(self, make_sink: MakeSink | None) -> Delivery:
        return Delivery(
            counters=self.counters,
            waker=self._waker,
            on_record=self._dispatcher.recorded,
            make_sink=make_sink and (lambda recorded: make_sink(recorded, self.stop)),
            duplicates=self._duplicates,
        )

    @property
    def stop_cause(self) -> BaseException | None:
        """Why the run stops; ``None`` while it doesn't."""
        return self._stop.cause

    @property
    def in_flight(self) -> int:
        """How many requests are in flight at this moment."""
        return self._dispatcher.in_flight

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
        """Send ``requests``, and yield the outcomes that no sink takes, as they come."""
        with self._stop.waking(self._waker):
            try:
                yield from self._feed(requests)
                self._activity = WaitCause.ANSWERS
                self._dispatcher.close()
                yield from self._drain()
                if self._dispatcher.error is not None:
                    raise self._dispatcher.error
            except Exception as error:  # in the input: requests in flight still get their outcomes
                self._dispatcher.close(hurry=True)
                self._dispatcher.join()
                self._stop.set(error)
                yield from self._drain()
                raise
            except BaseException as error:
                self._stop.set(error)
                self._give_up_at = min(self._give_up_at, self._clock() + join_timeout_s(error))
                raise
            finally:
                self._finish()

    # The reader.

    def _feed(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Read as far as there are credits, and yield the outcomes at hand before each wait."""
        iterator = iter(requests)
        while True:
            yield from self._ready()
            if self._stop.is_set():
                return
            for _ in range(self._room()):
                self._activity = WaitCause.INPUT
                request = next(iterator, None)
                if request is None:
                    return
                self._take_in(request)
                if self._delivery or self._stop.is_set():
                    break

    def _take_in(self, request: Request) -> None:
        self.counters.read()
        claim = self._claim(request)
        if claim is True:
            self._put(request)
        else:
            if isinstance(claim, Outcome):
                self._delivery.deliver(claim)
            self._dispatcher.skip()  # last: once it is counted, its outcome is waited for
        self.displays.show()

    def _claim(self, request: Request) -> Outcome | bool:
        """True if ``request`` is to be sent; false if it shares the outcome of one that is under way.

        An outcome if there is one already: the request is invalid, or an equal one was answered.
        """
        if request.invalid_reason is not None:
            return invalid(request)
        return True if self._duplicates is None else self._duplicates.claim(request)

    def _put(self, request: Request) -> None:
        url = request.url or self._options.request_url
        pending = PendingRequest(request=request, bucket=self._buckets.bucket(url, request.model))
        if self._options.processes > 1 or pending.bucket not in self._seen:
            self._seen.add(pending.bucket)
            self._count(pending)  # loads its encoding here: a fork must not interrupt that
        self._dispatcher.put(pending)

    def _count(self, pending: PendingRequest) -> None:
        """Count the request's tokens. Any thread may do it."""
        pending.estimate = self._estimator.estimate(pending.request)
        tokens = self._estimator.cost(pending.estimate).tokens
        limit = pending.bucket.shared_limits.tokens_per_minute
        if tokens > limit:
            number = pending.request.number
            _log.warning(
                "request %d needs %d tokens, more than the %g of a whole minute: it is sent alone, "
                "and the minutes behind it wait",
                *(number, tokens, limit),
                extra={"request_number": number},
            )

    def _room(self) -> int:
        """How many requests may be read; if none, wait until that may have changed, and return 0."""
        self._waker.clear()
        if self._delivery or self._stop.is_set():
            return 0
        room: float = self._dispatcher.room()
        count = int(room if self._ahead is None else min(room, self._ahead()))
        if count <= 0:
            self._activity = WaitCause.LOOK_AHEAD
            self._wait(math.inf)
        return max(count, 0)

    def _idle_cause(self, is_full: bool) -> WaitCause:
        """What holds the run back where no bucket does."""
        if self._dispatcher.waits_for_records:
            return WaitCause.CONSUMER if self.yields_outcomes else WaitCause.DISK
        return WaitCause.MAX_WORKERS if is_full else self._activity

    def _wait(self, seconds: float) -> None:
        """Wait for ``_waker``, at most ``seconds``, and refresh the displays when they are due."""
        self.displays.show()
        seconds = min(seconds, self.displays.wait_s)
        self._waker.wait(seconds if seconds < math.inf else None)

    def _ready(self) -> Iterator[Outcome]:
        """The outcomes at hand."""
        for outcome in self._delivery.taken():
            self._activity = WaitCause.CONSUMER
            yield outcome

    # The workers.

    def _settle(
        self, admitted: AdmittedRequest, attempt: Attempt | BaseException
    ) -> AdmittedRequest | None:
        """An attempt has ended: deliver the outcome, or queue the request again; the next one to send.

        The pool's threads call this. A bug ends the run instead of hanging it.
        """
        try:
            outcome, retry_in_s, made_room = self._settlement.settle(*admitted, attempt)
            if outcome is not None:
                self._delivery.deliver(outcome)
                return self._dispatcher.done(made_room=made_room)
            pending = admitted.pending
            return self._dispatcher.done(pending, retry_in_s=retry_in_s, made_room=made_room)
        except BaseException as error:
            self._stop.set(error)
            return None

    # The end.

    def _drain(self) -> Iterator[Outcome]:
        """Wait until everything is on record, after a stop only for ``drain_s``; yield what comes."""
        while True:
            self._waker.clear()
            yield from self._ready()
            if not self._dispatcher.is_busy():
                return
            if self._stop.is_set() and not self._is_stopping:
                self._is_stopping = True
                drain_until = self._clock() + drain_s(self._stop.cause, self._options)
                self._give_up_at = min(self._give_up_at, drain_until)
                _log.info("stopping; requests in flight: %d", self._dispatcher.in_flight)
            left = self._give_up_at - self._clock()
            if left <= 0:
                return
            if not self._delivery:
                self._wait(left)

    def _finish(self) -> None:
        """Let requests in flight end, or cancel them; then end threads and processes."""
        if os.getpid() != self._process_id:  # a fork has none of them
            return
        try:
            if not self.yields_outcomes:  # otherwise nobody takes what still comes
                for _ in self._drain():
                    pass
        finally:
            steps = (self._dispatcher.join, self._cancel_rest, self._pool.close)
            do_all((*steps, self._delivery.close, self.displays.close))

    def _cancel_rest(self) -> None:
        if self._dispatcher.is_busy():  # in flight, or not written by a failing disk
            self.cancel(StopRequested("gave up what was in flight"))


def drain_s(cause: BaseException | None, options: Options) -> float:
    """How many seconds requests in flight may take after a stop.

    If the server caused the stop, all that they need. If the disk did, at least ``write_retry_s``: failed
    writes are tried again for so long, unless the run is cancelled before.
    """
    if isinstance(cause, RunStoppedError):
        return math.inf
    if isinstance(cause, ResultsFileError):
        return max(options.drain_s, options.write_retry_s)
    return options.drain_s
