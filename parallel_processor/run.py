"""One run: a stream of requests is fed through their buckets to worker threads, until all have outcomes.

The caller's thread feeds: it reads requests, and gives them to the dispatcher (``dispatcher.py``), which
hands them to a ``ThreadPoolExecutor`` when their buckets admit them: threads exist for requests in flight,
not for requests that wait. A thread goes on with the next request as long as the dispatcher has one for
it. What has an outcome counts until that has been written, or yielded to the embedding caller, so that a
slow disk and a slow consumer bound memory as the network does. The feeder waits on one bell, ``_wake``,
which rings for whatever it may be waiting for: room for more requests, an outcome, the stop.

How a run ends. *By itself*: the input is at its end and everything is on record. *By a stop* (a fatal
answer, a failing disk, :meth:`Run.stop`, an exception in the feeder, which is how Ctrl-C arrives):
nothing more is admitted, what waits is dropped, exchanges under way get ``drain_s`` seconds to end, and
are cut then. Threads, sockets and files are gone when the run is.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from parallel_processor.attempts import Ended
from parallel_processor.buckets import Buckets, Waiting
from parallel_processor.counters import Counters
from parallel_processor.crews import make_crew
from parallel_processor.descriptors import affordable_workers
from parallel_processor.dispatcher import Admitted, Dispatcher
from parallel_processor.exceptions import ResultsFileError, RunStoppedError, StopRequested
from parallel_processor.ledger import Ledger
from parallel_processor.limiter import TokenBucket
from parallel_processor.models import Request
from parallel_processor.options import Options
from parallel_processor.outcome import Outcome
from parallel_processor.pricing import Pricing, model_of
from parallel_processor.progress import Progress
from parallel_processor.stop import Bell, StopSignal, do_all
from parallel_processor.worker import Worker, flawed, unanswered

_log = logging.getLogger("parallel_processor")
_WRITER_SLACK = 256  # outcomes that may wait for a writer which is at the disk


class Run:
    """The feeding of one stream of requests. :meth:`stop` and :meth:`cut` may come from any thread.

    With ``sink``, outcomes go there from the worker threads, and whoever takes them calls
    :meth:`recorded`; without one, :meth:`outcomes` yields them. ``on_cut`` is called when what is in
    flight is given up.
    """

    def __init__(
        self,
        options: Options,
        *,
        buckets: Buckets,
        pricing: Pricing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.ledger = Ledger()
        self.progress: Progress | None = None
        self.sink: Callable[[Outcome], None] | None = None
        self.on_cut: Callable[[], None] | None = None
        self._options = options
        self._buckets = buckets
        self._pricing = pricing
        self._clock = clock
        self._stop = StopSignal()
        self._wake = Bell()
        self._activity = "input"  # what the feeder is doing
        self._give_up_at = math.inf  # set by a stop
        self._seen: set[TokenBucket] = set()
        self._outcomes: deque[Outcome] = deque()
        self._max_workers = affordable_workers(options.max_workers)
        self._worker = Worker(
            options, pricing=pricing, counters=self.counters, stop=self._stop, clock=clock
        )
        self._crew = make_crew(
            options, self._max_workers, begin=self._worker.begin, finish=self._end
        )
        self._dispatcher = self._make_dispatcher()
        self._worker.waker = self._dispatcher.wake

    def _make_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            count=self._count,
            cost=self._pricing.cost,
            start=self._crew.start,
            flush=self._crew.flush,
            drop=lambda waiting: self._deliver(unanswered(waiting)),
            on_room=self._wake.set,
            activity=self._idle_cause,
            ledger=self.ledger,
            stop=self._stop,
            max_workers=self._max_workers,
            clock=self._clock,
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
        self._crew.cut()
        if self.on_cut is not None:
            self.on_cut()

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Feed ``requests``, and yield what there is no sink for, as it comes."""
        self._dispatcher.slack = _WRITER_SLACK if self.sink is not None else 0
        self._crew.reads_values = self.sink is None
        with self._stop.waking(self._wake):
            try:
                yield from self._feed(requests)
                self._activity = "answers"
                self._dispatcher.close()
                yield from self._drain()
                if self._dispatcher.error is not None:
                    raise self._dispatcher.error
            except Exception as error:  # the input's: what is under way still comes
                self._dispatcher.close(hurry=True)
                self._dispatcher.join()
                self._stop.set(error)
                yield from self._drain()
                raise
            except BaseException as error:
                self._stop.set(error)
                raise
            finally:
                self._finish()

    def _feed(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        iterator = iter(requests)
        while True:
            yield from self._ready()
            if self._stop.is_set():
                return
            for _ in range(self._room()):
                self._activity = "input"
                request = next(iterator, None)
                if request is None:
                    return
                self._take_in(request)
                if self._outcomes or self._stop.is_set():
                    break

    def _take_in(self, request: Request) -> None:
        self.counters.read()
        if request.flaw is not None:
            self._deliver(flawed(request))
            self._dispatcher.pass_by()  # last: what is counted and never delivered is waited for
        else:
            url = request.url or self._options.request_url
            waiting = Waiting(request=request, bucket=self._buckets.bucket(url, model_of(request)))
            if self._options.processes > 1 or waiting.bucket not in self._seen:
                self._seen.add(waiting.bucket)  # its encoding is loaded here: no import amid a fork
                self._count(waiting)
            self._dispatcher.put(waiting)
        self._show()

    def _count(self, waiting: Waiting) -> None:
        """Count the request's tokens. Any thread may do it."""
        waiting.estimate = self._pricing.estimate(waiting.request)
        tokens = self._pricing.cost(waiting.estimate).tokens
        limit = waiting.bucket.ceiling.tokens_per_minute
        if tokens > limit:
            _log.warning(
                "request %d needs %d tokens, more than the %g of a whole minute: it is sent alone, "
                "and the minutes behind it wait",
                *(waiting.request.number, tokens, limit),
                extra={"request_number": waiting.request.number},
            )

    def _room(self) -> int:
        """Wait until more may be read, and how many; 0 if an outcome or the stop came first."""
        self._wake.clear()
        if self._outcomes or self._stop.is_set():
            return 0
        count = self._dispatcher.room()
        if not count:
            self._activity = "look-ahead"
            self._wait(math.inf)
        return count

    def _idle_cause(self, is_full: bool) -> str:
        """What holds the run back where no bucket does."""
        if self._dispatcher.unrecorded > self._dispatcher.in_flight + self._dispatcher.slack / 2:
            return "consumer" if self.sink is None else "disk"
        return "max_workers" if is_full else self._activity

    def _wait(self, seconds: float) -> None:
        """Wait for ``_wake``, at most ``seconds``, and keep the display going."""
        if self.progress is not None:
            self._show()
            seconds = min(seconds, max(self.progress.due_at - self._clock(), 0.0))
        self._wake.wait(seconds if seconds < math.inf else None)

    def _show(self) -> None:
        if self.progress is not None and self._clock() >= self.progress.due_at:
            self.progress.refresh()

    def _ready(self) -> Iterator[Outcome]:
        """The outcomes at hand; each makes room once the consumer asks for the next."""
        while self._outcomes:
            outcome = self._outcomes.popleft()
            if not outcome.unanswered:
                self._activity = "consumer"
                yield outcome
            self.recorded([outcome])

    def recorded(self, outcomes: list[Outcome], on_record: bool = True) -> None:
        """Make room for as many as ``outcomes``, which are on record or, if not, never will be."""
        self.counters.finished(outcomes, recorded=on_record)
        self._dispatcher.recorded(len(outcomes))

    def _end(self, admitted: Admitted, ended: Ended | BaseException | None) -> Admitted | None:
        """An attempt is over: its request gets an outcome or goes back. Gives the next to be sent.

        Any thread of the crew calls this, and whatever goes wrong ends the run instead of hanging it.
        """
        try:
            outcome, retry_in_s, made_room = self._worker.finish(*admitted, ended)
            if outcome is not None:
                self._deliver(outcome)
                return self._dispatcher.done(made_room=made_room)
            waiting = admitted.waiting
            return self._dispatcher.done(waiting, retry_in_s=retry_in_s, made_room=made_room)
        except BaseException as error:
            self._stop.set(error)
            return None

    def _deliver(self, outcome: Outcome) -> None:
        number = outcome.request.number
        if outcome.request.flaw is not None:
            self.counters.started()
            _log.error("%s", outcome.error, extra={"request_number": number})
        elif not outcome.ok and not outcome.unanswered:
            extra = {"request_number": number}  # as in worker.py
            _log.error("request %d failed: %s", number, outcome.error, extra=extra)
        if outcome.unanswered and self.sink is not None:
            self.recorded([outcome])
        elif self.sink is not None:
            self.sink(outcome)
        else:
            self._outcomes.append(outcome)
            self._wake.set()

    def _drain(self) -> Iterator[Outcome]:
        """Wait until everything is on record; after a stop for a while only."""
        while True:
            self._wake.clear()
            yield from self._ready()
            if not self._dispatcher.is_busy():
                return
            if self._stop.is_set() and self._give_up_at == math.inf:
                self._give_up_at = self._clock() + self._drain_s()
                _log.info("stopping; requests in flight: %d", self._dispatcher.in_flight)
            left = self._give_up_at - self._clock()
            if left <= 0:
                return
            if not self._outcomes:
                self._wait(left)

    def _drain_s(self) -> float:
        """How long exchanges under way may take after a stop: to their end if it's the server's.

        A failing disk has its own time; what is cut is not tried again.
        """
        if isinstance(self._stop.cause, RunStoppedError):
            return math.inf
        if isinstance(self._stop.cause, ResultsFileError):
            return max(self._options.drain_s, self._options.write_retry_s)
        return self._options.drain_s

    def _finish(self) -> None:
        """Let what is in flight end, or cut it; then end threads and processes."""
        try:
            if self.sink is not None:  # else nobody is left to take what still comes
                for _ in self._drain():
                    pass
        finally:
            steps = (self._dispatcher.join, self._cut_rest, self._crew.close)
            do_all((*steps, self._close_progress))

    def _cut_rest(self) -> None:
        if self._dispatcher.in_flight > 0:
            self.cut(StopRequested("gave up what was in flight"))

    def _close_progress(self) -> None:
        if self.progress is not None:
            self.progress.close()
