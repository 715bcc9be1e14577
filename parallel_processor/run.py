"""One run: a stream of requests is fed through their buckets to worker threads, until all have outcomes.

The caller's thread feeds: it reads requests, and gives them to the dispatcher (``dispatcher.py``), which
hands them to a ``ThreadPoolExecutor`` when their buckets admit them: threads exist for requests in flight,
not for requests that wait. A thread goes on with the next request as long as the dispatcher has one for
it. What has an outcome counts until that has been written, or yielded to the embedding caller, so that a
slow disk and a slow consumer bound memory as the network does. The feeder waits on one bell, ``_wake``,
which rings for whatever it may be waiting for: room for more requests, an outcome, the stop.

How a run ends. *By itself*: the input is at its end and everything is on record. *By a stop* (a fatal
answer, a failing disk, :meth:`Run.stop`, an exception in the feeder, which is how Ctrl-C arrives):
nothing more is admitted, what waits is dropped, exchanges under way get ``drain_s`` seconds to end (half a
second in an interrupted notebook), and are cut then. Threads, sockets and files are gone when the run is.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator

from parallel_processor.attempts import Ended
from parallel_processor.buckets import Buckets
from parallel_processor.counters import Counters
from parallel_processor.crews import make_crew, make_duplicates
from parallel_processor.delivery import Delivery
from parallel_processor.descriptors import affordable_workers
from parallel_processor.dispatcher import Dispatcher
from parallel_processor.exceptions import StopRequested
from parallel_processor.ledger import Ledger
from parallel_processor.limiter import TokenBucket
from parallel_processor.models import Request
from parallel_processor.options import Options
from parallel_processor.outcome import Outcome
from parallel_processor.pending import Admitted, Waiting
from parallel_processor.pricing import Pricing
from parallel_processor.progress import Displays, join_timeout_s
from parallel_processor.stop import Bell, StopSignal, do_all, drain_s
from parallel_processor.worker import Worker

_log = logging.getLogger("parallel_processor")
_WRITER_SLACK = 256  # outcomes that may wait for a writer which is at the disk


class Run:
    """The feeding of one stream of requests. :meth:`stop` and :meth:`cut` may come from any thread.

    What may be set before it begins: ``sink``, to which outcomes go from the worker threads, and whoever
    takes them calls :meth:`recorded` (without one, :meth:`outcomes` yields them); ``on_cut``, which is
    called when what is in flight is given up; ``reads_values``, false if nobody will look at the answers'
    values, but only at their text; ``ahead``, which tells how many more may be read for reasons of the
    caller's own; ``is_wanted``, which is asked before a request's first attempt.
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
        self.displays = Displays(clock)
        self.on_cut: Callable[[], None] | None = None
        self.reads_values = True
        self.ahead: Callable[[], float] = lambda: math.inf
        self.is_wanted: Callable[[Request], bool] | None = None
        self._options = options
        self._buckets = buckets
        self._pricing = pricing
        self._clock = clock
        self.waking = (stop := StopSignal()).waking  # for others who wait
        self._stop = stop
        self._wake = Bell()
        self._process_id = os.getpid()
        self._activity = "input"  # what the feeder is doing
        self._give_up_at = math.inf  # set by a stop
        self._seen: set[TokenBucket] = set()
        self._max_workers = affordable_workers(options.max_workers)
        self._worker = Worker(
            options, pricing=pricing, counters=self.counters, stop=self._stop, clock=clock
        )
        begin = self._worker.begin
        self._crew = make_crew(options, self._max_workers, begin=begin, finish=self._end)
        self._dispatcher = self._make_dispatcher()
        self._worker.waker = self._dispatcher.wake
        self._delivery = Delivery(
            counters=self.counters,
            bell=self._wake,
            on_record=self._dispatcher.recorded,
            duplicates=make_duplicates(options),
        )

    def _make_dispatcher(self) -> Dispatcher:
        return Dispatcher(
            count=self._count,
            cost=self._pricing.cost,
            start=self._crew.start,
            flush=self._crew.flush,
            drop=lambda waiting: self._delivery.drop(waiting),
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

    @property
    def in_flight(self) -> int:
        """How many requests are under way at the server, at this moment."""
        return self._dispatcher.in_flight

    @property
    def sink(self) -> Callable[[Outcome], None] | None:
        """Where outcomes go from the worker threads; ``None`` if :meth:`outcomes` yields them."""
        return self._delivery.sink

    @sink.setter
    def sink(self, sink: Callable[[Outcome], None]) -> None:
        self._delivery.sink = sink

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
        self._worker.is_wanted = self.is_wanted
        self._crew.reads_values = self.reads_values or self._options.validate is not None
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
                self._give_up_at = min(self._give_up_at, self._clock() + join_timeout_s(error))
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
                if self._delivery or self._stop.is_set():
                    break

    def _take_in(self, request: Request) -> None:
        self.counters.read()
        if self._delivery.claim(request):
            self._put(request)
        else:
            self._dispatcher.pass_by()  # last: what is counted and never delivered is waited for
        self.displays.show()

    def _put(self, request: Request) -> None:
        url = request.url or self._options.request_url
        waiting = Waiting(request=request, bucket=self._buckets.bucket(url, request.model))
        if self._options.processes > 1 or waiting.bucket not in self._seen:
            self._seen.add(waiting.bucket)  # its encoding is loaded here: no import amid a fork
            self._count(waiting)
        self._dispatcher.put(waiting)

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
        if self._delivery or self._stop.is_set():
            return 0
        count = int(min(self._dispatcher.room(), self.ahead()))
        if count <= 0:
            self._activity = "look-ahead"
            self._wait(math.inf)
        return max(count, 0)

    def _idle_cause(self, is_full: bool) -> str:
        """What holds the run back where no bucket does."""
        if self._dispatcher.unrecorded > self._dispatcher.in_flight + self._dispatcher.slack / 2:
            return "consumer" if self.sink is None else "disk"
        return "max_workers" if is_full else self._activity

    def _wait(self, seconds: float) -> None:
        """Wait for ``_wake``, at most ``seconds``, and keep the display going."""
        self.displays.show()
        seconds = min(seconds, self.displays.wait_s)
        self._wake.wait(seconds if seconds < math.inf else None)

    def _ready(self) -> Iterator[Outcome]:
        """The outcomes at hand; each makes room once the consumer asks for the next."""
        for outcome in self._delivery.taken():
            self._activity = "consumer"
            yield outcome

    def recorded(self, outcomes: list[Outcome], on_record: bool = True) -> None:
        """Make room for as many as ``outcomes``, which are on record or, if not, never will be."""
        self._delivery.recorded(outcomes, on_record)

    def _end(self, admitted: Admitted, ended: Ended | BaseException | None) -> Admitted | None:
        """An attempt is over: its request gets an outcome or goes back. Gives the next to be sent.

        Any thread of the crew calls this, and whatever goes wrong ends the run instead of hanging it.
        """
        try:
            outcome, retry_in_s, made_room = self._worker.finish(*admitted, ended)
            if outcome is not None:
                self._delivery.deliver(outcome)
                return self._dispatcher.done(made_room=made_room)
            waiting = admitted.waiting
            return self._dispatcher.done(waiting, retry_in_s=retry_in_s, made_room=made_room)
        except BaseException as error:
            self._stop.set(error)
            return None

    def _drain(self) -> Iterator[Outcome]:
        """Wait until everything is on record; after a stop for a while only."""
        while True:
            self._wake.clear()
            yield from self._ready()
            if not self._dispatcher.is_busy():
                return
            if self._stop.is_set() and self._give_up_at == math.inf:
                self._give_up_at = self._clock() + drain_s(self._stop.cause, self._options)
                _log.info("stopping; requests in flight: %d", self._dispatcher.in_flight)
            left = self._give_up_at - self._clock()
            if left <= 0:
                return
            if not self._delivery:
                self._wait(left)

    def _finish(self) -> None:
        """Let what is in flight end, or cut it; then end threads and processes, but not in a fork."""
        if os.getpid() != self._process_id:
            return
        try:
            if self.sink is not None:  # else nobody is left to take what still comes
                for _ in self._drain():
                    pass
        finally:
            steps = (self._dispatcher.join, self._cut_rest, self._crew.close)
            do_all((*steps, self._delivery.close, self.displays.close))

    def _cut_rest(self) -> None:
        if self._dispatcher.is_busy():  # in flight, or refused by the disk
            self.cut(StopRequested("gave up what was in flight"))
