"""The reader: it takes requests from the input as far as there are credits, and queues them.

It waits only for the run's ``waker``, set for credits, an outcome and the stop. It takes no lock but the
packer's: it works in the thread that iterates over the run, which a KeyboardInterrupt may hit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from parallel_processor.engine.credits import READ_AT_ONCE
from parallel_processor.engine.delivery import Delivery
from parallel_processor.engine.dispatcher import Dispatcher
from parallel_processor.engine.outcomes import invalid, over_budget
from parallel_processor.engine.stops import LeftOut
from parallel_processor.models import Estimate, Outcome, Request, WaitCause
from parallel_processor.report.counters import Counters
from parallel_processor.report.limit_news import tell_large
from parallel_processor.runtime.stop import StopSignal, WakeEvent
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.replicas import AnyBucket
from parallel_processor.workers.pending import PendingRequest

if TYPE_CHECKING:
    from parallel_processor.planning.duplicates import Duplicates
    from parallel_processor.planning.packer import Packer
    from parallel_processor.planning.spending import Spending


class Reader:
    """Reads the requests of one run. For one thread; any may call :meth:`count` and :meth:`leave`.

    Args:
        estimator: estimates what a request will cost.
        lanes: says which bucket a request waits for.
        left_out: the models whose requests are not sent.
        duplicates: knows which requests share an outcome; ``None`` if none do.
        dispatcher: gets what is to be sent.
        delivery: gets the outcomes of what isn't sent.
        counters: count what is read.
        begin: called before the first request is queued; it may raise.
        ahead: how many more requests may be read. ``None``: any number.
        is_beside: what ``ahead`` leaves out are the places of older runs.
        counts: this thread counts the tokens, not the one that sends: child processes do that.
        spending: knows which requests the whole budget has no room for; ``None`` without a budget.
        packer: gets what is to be sent, to put it by :meth:`put`; ``None`` if nothing is packed.
        waker: the event that the reader waits for.
        stop: after it, nothing is read.

    Attributes:
        activity: what the reader does; any thread may look at it.
    """

    def __init__(
        self,
        *,
        estimator: CostEstimator,
        lanes: Lanes,
        left_out: LeftOut,
        duplicates: Duplicates | None,
        dispatcher: Dispatcher,
        delivery: Delivery,
        counters: Counters,
        begin: Callable[[], None],
        ahead: Callable[[], float] | None,
        is_beside: bool,
        counts: bool,
        spending: Spending | None,
        packer: Packer | None,
        waker: WakeEvent,
        stop: StopSignal,
    ) -> None:
        self._estimator, self._lanes, self._left_out = estimator, lanes, left_out
        self._duplicates, self._dispatcher, self._delivery = duplicates, dispatcher, delivery
        self._counters, self._begin = counters, begin
        self._ahead, self._is_beside = ahead, is_beside
        self._counts, self._spending = counts or spending is not None, spending
        self._waker, self._stop = waker, stop
        self.activity, self._seen = WaitCause.INPUT, set[AnyBucket]()
        self._has_begun, self._packer = False, packer
        self._send = self._put if packer is None else packer.add

    def feed(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Read as far as there are credits, and yield the outcomes at hand before each wait."""
        iterator, ready = iter(requests), self._delivery.ready
        while True:
            if ready:
                yield from self.ready()
            if self._stop.cause is not None:
                return
            for _ in range(min(self._room(), READ_AT_ONCE)):
                self.activity = WaitCause.INPUT
                request = next(iterator, None)
                if request is None:
                    return
                self._take_in(request)
                if ready or self._stop.cause is not None:
                    break

    def _take_in(self, request: Request) -> None:
        self._counters.read()
        if (
            request.invalid_reason is None
            and self._duplicates is None
            or (claim := self._claim(request)) is True
        ):
            self._send(request)
        else:
            size_bytes = self._delivery.deliver(claim) if isinstance(claim, Outcome) else 0
            self._dispatcher.credits.skip(size_bytes)  # its outcome holds a credit, too

    def _claim(self, request: Request) -> Outcome | bool:
        """True to send it, its outcome if it has one by now, false if it will have that of an equal one."""
        if request.invalid_reason is not None:
            return invalid(request)
        return True if self._duplicates is None else self._duplicates.claim(request)

    def put(self, request: Request, estimate: Estimate | None = None) -> None:
        """Queue a request, with an ``estimate`` if it was counted. For one thread at a time."""
        if estimate is None:
            self._put(request)
            return
        pending = self._lanes.enter(request, *self._estimator.url_and_model(request))
        pending.estimate = estimate
        if self._stop.cause is not None:  # a run that stops does not begin
            self._delivery.drop(pending)
            return
        tell_large(pending.bucket, request, self._estimator.cost(estimate).tokens)
        self._queue(pending)

    def _put(self, request: Request) -> None:
        url, model = self._estimator.url_and_model(request)
        group = (pending := self._lanes.enter(request, url, model)).group
        if not group.counts_tokens:
            pending.estimate = self._estimator.guess(request, model)
        if pending.estimate is None and (self._counts or group not in self._seen):
            self._seen.add(group)
            self.count(pending)  # loads the encoding in this thread: no fork comes in between
        if self._spending is not None and (reason := self._spending.why_never(pending)):
            self._dispatcher.credits.skip(self._delivery.deliver(over_budget(request, reason)))
        else:
            self._queue(pending)

    def _queue(self, pending: PendingRequest) -> None:
        if pending.group in self._left_out:
            self.leave(pending)
            return
        if not self._has_begun:
            self._begin()
            self._has_begun = True
        self._dispatcher.put(pending)

    def leave(self, *left_out: PendingRequest) -> None:
        """The model of these requests is left out."""
        for pending in left_out:
            self._left_out.tell(pending.request, pending.group)
            self._delivery.drop(pending)

    def count(self, pending: PendingRequest) -> None:
        """Count the request's tokens. Any thread may do it."""
        pending.estimate = self._estimator.estimate(pending.request)
        tell_large(pending.bucket, pending.request, self._estimator.cost(pending.estimate).tokens)

    def _room(self) -> int:
        """How many requests may be read now. If none may, wait for a change and return 0."""
        self._waker.clear()
        if self._delivery.ready or self._stop.cause is not None:
            return 0
        room: float = self._dispatcher.room()
        count = int(room if self._ahead is None else min(room, self._ahead()))
        if count <= 0:
            if self._packer is not None and self._dispatcher.credits.is_empty:
                self._packer.flush()  # nothing else would wake this thread
            is_beside = room > 0 and self._is_beside
            self.activity = WaitCause.MAX_WORKERS if is_beside else WaitCause.LOOK_AHEAD
            self._waker.wait()
        return max(count, 0)

    def flush(self, *, begins: bool = True) -> None:
        """Queue what was kept back to be packed. Unless the run ``begins`` now, only if it had begun."""
        if self._packer is not None and (begins or self._has_begun):
            self._packer.flush()

    def close(self) -> None:
        """Nothing is read any more. What is kept back after a stop will not be sent."""
        for request in () if self._packer is None else self._packer.close():
            self._delivery.drop(self._lanes.enter(request, *self._estimator.url_and_model(request)))

    def ready(self) -> Iterator[Outcome]:
        """The outcomes at hand."""
        for outcome in self._delivery.taken():
            self.activity = WaitCause.CONSUMER
            yield outcome
