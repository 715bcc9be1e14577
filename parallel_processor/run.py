"""One run: a stream of requests is fed through the bucket to worker threads, until all have outcomes.

The caller's thread feeds. For each request it takes a credit, waits for the bucket, and hands the
request to a ``ThreadPoolExecutor``, which has an idle thread for it or makes one: threads exist for
requests in flight, not for requests that wait. A credit is held until the outcome has been written, or
yielded to the embedding caller, so that a slow disk and a slow consumer bound memory as the network
does. The feeder waits on one event, ``_wake``, which is set by whatever it may be waiting for: a place
in the bucket, a credit, an outcome, the stop.

How a run ends. *By itself*: the input is at its end and every credit is back. *By a stop* (a fatal
answer, a failing disk, :meth:`Run.stop`, an exception in the feeder, which is how Ctrl-C arrives):
nothing more is admitted, whoever waits gives up at once, exchanges under way get ``drain_s`` seconds to
end, and are cut then. Threads, sockets and files are gone when the run is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from parallel_processor.counters import Counters
from parallel_processor.descriptors import affordable_workers
from parallel_processor.exceptions import ResultsFileError, RunStoppedError, StopRequested
from parallel_processor.limiter import Reservation, TokenBucket
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Options
from parallel_processor.progress import Progress
from parallel_processor.stop import StopSignal
from parallel_processor.transport import Transport
from parallel_processor.worker import Worker, flawed

_log = logging.getLogger("parallel_processor")


class Run:
    """The feeding of one stream of requests. :meth:`stop` and :meth:`cut` may come from any thread.

    ``cost`` gives the tokens that a request is expected to use. With ``sink``, outcomes go there from
    the worker threads, and whoever takes them calls :meth:`recorded`; without one, :meth:`outcomes`
    yields them. ``on_cut`` is called when what is in flight is given up.
    """

    def __init__(
        self,
        options: Options,
        *,
        bucket: TokenBucket,
        cost: Callable[[Request], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.progress: Progress | None = None
        self.sink: Callable[[Outcome], None] | None = None
        self.on_cut: Callable[[], None] | None = None
        self._options = options
        self._bucket = bucket
        self._cost = cost
        self._max_workers = affordable_workers(options.max_workers)
        self._clock = clock
        self._stop = StopSignal()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # guards _in_flight
        self._in_flight = 0  # for a moment below that where an interrupt came between two steps
        self._ticket: list[Request] = []  # holds the request that is being handed to a worker
        self._feeder_waits = False  # written by the feeder; a stale value costs one needless wake
        self._has_threads = False
        self._give_up_at = math.inf  # set by a stop
        self._outcomes: deque[Outcome] = deque()
        self._transport = Transport(options)
        self._worker = Worker(
            options,
            bucket=bucket,
            transport=self._transport,
            counters=self.counters,
            stop=self._stop,
            clock=clock,
        )

    @property
    def stop_cause(self) -> BaseException | None:
        """Why the run stops; ``None`` while it doesn't."""
        return self._stop.cause

    def stop(self, cause: BaseException) -> None:
        """Admit nothing more; what is in flight may end."""
        self._stop.set(cause)

    def cut(self, cause: BaseException) -> None:
        """Stop, and end what is in flight now."""
        self._stop.set(cause)
        self._transport.cut()
        if self.on_cut is not None:
            self.on_cut()

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Feed ``requests``, and yield what there is no sink for, as it comes."""
        executor = ThreadPoolExecutor(
            self._max_workers, thread_name_prefix="parallel-processor-worker"
        )
        with self._stop.waking(self._wake):
            try:
                yield from self._feed(requests, executor)
                yield from self._drain()
            except Exception as error:  # the input's: what is under way still comes
                self._stop.set(error)
                yield from self._drain()
                raise
            except BaseException as error:
                self._stop.set(error)
                self._take_back()
                raise
            finally:
                self._finish(executor)

    def _feed(self, requests: Iterable[Request], executor: ThreadPoolExecutor) -> Iterator[Outcome]:
        for request in requests:
            tokens = self._cost(request) if request.flaw is None else 0
            reservation: Reservation | None = None
            while not self._stop.is_set():
                yield from self._ready()
                if not self._has_credit():
                    continue
                if request.flaw is not None or (reservation := self._admit(tokens)) is not None:
                    break
            else:
                return
            self._take_credit(request)
            if reservation is None:
                self._deliver(flawed(request))
            else:
                self._submit(executor, tokens, reservation)
            self._ticket = []
            self._show()

    def _has_credit(self) -> bool:
        """Wait for a credit; false if an outcome or the stop came first."""
        while not self._outcomes:
            self._wake.clear()
            if self._stop.is_set():
                break
            self._feeder_waits = True
            if self._in_flight < self._max_workers:
                self._feeder_waits = False
                return True
            if not self._outcomes:
                self._wait(math.inf, "workers")
        self._feeder_waits = False
        return False

    def _admit(self, tokens: int) -> Reservation | None:
        """Wait for the bucket; ``None`` if an outcome or the stop came first.

        A place in the bucket's queue isn't kept while outcomes are yielded: the consumer may take its
        time, and nobody behind it would be admitted.
        """
        reservation = Reservation(tokens, self._wake)
        admitted = False
        try:
            admitted = self._bucket.enqueue(reservation)
            while not (admitted or self._outcomes):
                self._wake.clear()
                if self._stop.is_set():
                    break
                delay = self._bucket.poll(reservation)
                admitted = delay == 0.0
                if not admitted and not self._outcomes:
                    self._wait(delay, "")
        finally:
            if not admitted:
                self._bucket.cancel(reservation)
        return reservation if admitted else None

    def _submit(self, executor: ThreadPoolExecutor, tokens: int, reservation: Reservation) -> None:
        try:
            executor.submit(self._process, self._ticket, tokens, reservation)
            self._has_threads = True
        except RuntimeError as error:
            # The system has no more threads. The request is queued all the same, for one of those
            # that there are. Any other reason is the interpreter's end.
            if not self._has_threads or "can't start new thread" not in str(error):
                self._take_back()
                raise
            self._max_workers = max(1, self._in_flight - 1)
            _log.warning("only %d requests can be in flight: %s", self._max_workers, error)

    def _wait(self, seconds: float, held_by: str) -> None:
        """Wait for ``_wake``, at most ``seconds``, and keep the display going."""
        progress = self.progress
        if progress is None:
            self._wake.wait(seconds if seconds < math.inf else None)
            return
        self._show()
        began = self._clock()
        seconds = min(seconds, max(progress.due_at - began, 0.0))
        self._wake.wait(seconds if seconds < math.inf else None)
        progress.waited(self._bucket.usage().held_by or held_by, self._clock() - began)

    def _show(self) -> None:
        if self.progress is not None and self._clock() >= self.progress.due_at:
            self.progress.refresh()

    def _ready(self) -> Iterator[Outcome]:
        """The outcomes at hand; each gives its credit back once the consumer asks for the next."""
        while self._outcomes:
            outcome = self._outcomes.popleft()
            if not outcome.unanswered:
                yield outcome
            self.recorded([outcome])

    def _take_credit(self, request: Request) -> None:
        self.counters.started()
        with self._lock:
            self._in_flight, self._ticket = self._in_flight + 1, [request]

    def _take_back(self) -> None:
        """Give up what was being handed over when the feeder was interrupted, if nobody has it."""
        with suppress(IndexError):  # who takes it out of the ticket answers for its credit
            request = self._ticket.pop()
            self.recorded([Outcome(request=request, ok=False, unanswered=True)])

    def recorded(self, outcomes: list[Outcome], on_record: bool = True) -> None:
        """Give back the credits of ``outcomes``, which are on record or, if not, never will be."""
        self.counters.finished(outcomes, recorded=on_record)
        with self._lock:
            self._in_flight -= len(outcomes)
        if self._feeder_waits:
            self._wake.set()

    def _process(self, ticket: list[Request], tokens: int, reservation: Reservation) -> None:
        """Runs in a worker thread. Whatever happens, the request gets an outcome."""
        try:
            request = ticket.pop()
        except IndexError:
            return  # the feeder took it back
        try:
            outcome = self._worker.process(request, tokens, reservation)
        except BaseException as error:  # a fault of ours: the run ends with it instead of hanging
            self._stop.set(error)
            outcome = Outcome(request=request, ok=False, unanswered=True)
        self._deliver(outcome)

    def _deliver(self, outcome: Outcome) -> None:
        if outcome.request.flaw is not None:
            _log.error("%s", outcome.error)
        elif not outcome.ok and not outcome.unanswered:
            _log.error("request %d failed: %s", outcome.request.number, outcome.error)
        if outcome.unanswered and self.sink is not None:
            self.recorded([outcome])
        elif self.sink is not None:
            self.sink(outcome)
        else:
            self._outcomes.append(outcome)
            self._wake.set()

    def _drain(self) -> Iterator[Outcome]:
        """Wait until every credit is back; after a stop for a while only."""
        self._feeder_waits = True
        while self._in_flight > 0:
            self._wake.clear()
            yield from self._ready()
            if self._stop.is_set() and self._give_up_at == math.inf:
                self._give_up_at = self._clock() + self._drain_s()
                _log.info("stopping; requests in flight: %d", self._in_flight)
            left = self._give_up_at - self._clock()
            if left <= 0:
                return
            if self._in_flight and not self._outcomes:
                self._wait(left, "answers")

    def _drain_s(self) -> float:
        """How long exchanges under way may take after a stop: to their end if it's the server's.

        A failing disk has its own time; what is cut is not tried again.
        """
        if isinstance(self._stop.cause, RunStoppedError):
            return math.inf
        if isinstance(self._stop.cause, ResultsFileError):
            return max(self._options.drain_s, self._options.write_retry_s)
        return self._options.drain_s

    def _finish(self, executor: ThreadPoolExecutor) -> None:
        """Let what is in flight end, or cut it; then end the threads and close the sockets."""
        try:
            if self.sink is not None:  # else nobody is left to take what still comes
                for _ in self._drain():
                    pass
        finally:
            if self._in_flight > 0:
                self.cut(StopRequested("gave up what was in flight"))
            executor.shutdown(wait=True)
            self._transport.close()
            if self.progress is not None:
                self.progress.close()
