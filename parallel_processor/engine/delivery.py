"""The way of an outcome to the sink or to the program, and of its credit back to the dispatcher.

With a sink, the worker that has the outcome puts it there at once. Without one, the outcome is kept for
the reader, which yields it to the program. It holds its credit until :meth:`Delivery.recorded` is called:
by the sink's owner once it is on record, or when the program asks for the next outcome.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from parallel_processor.engine.outcomes import unanswered
from parallel_processor.files.writer import held_bytes
from parallel_processor.models import OVER_BUDGET, Outcome
from parallel_processor.options import Options
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.forks import load
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.workers.pending import PendingRequest

if TYPE_CHECKING:
    from parallel_processor.planning.duplicates import Duplicates
    from parallel_processor.planning.spending import Spending

_log = logging.getLogger("parallel_processor")

Sink = Callable[[Outcome], None]
Recorded = Callable[[list[Outcome], bool, int], None]
MakeSink = Callable[[Recorded, Callable[[BaseException], None]], Sink]
"""Makes the sink of a run. It is given two functions: one to call once outcomes are on record, which gives
their credits and their bytes back, and one that stops the run."""


class Delivery:
    """The outcomes of one run. Any thread may call :meth:`deliver` and :meth:`recorded`.

    Args:
        counters: count the outcomes once they are on record.
        waker: set for each outcome that the reader is to yield.
        on_record: called with the number of outcomes that are on record, or never will be, and with their
            bytes; without a sink by the reader alone.
        make_sink: makes the sink, given :meth:`recorded`; ``None`` if the reader yields the outcomes.
        on_unanswered: see :class:`WriterSlack`.
        duplicates: knows which requests share an outcome.
        on_failure: called for each request that failed for good.
        spending: is told which answers are on record.

    Attributes:
        ready: the outcomes to yield.
    """

    def __init__(
        self,
        *,
        counters: Counters,
        waker: WakeEvent,
        on_record: Callable[[int, int], None],
        make_sink: Callable[[Recorded], Sink] | None,
        on_unanswered: Callable[[int], None] | None,
        duplicates: Duplicates | None,
        on_failure: Callable[[], None] = lambda: None,
        spending: Spending | None = None,
    ) -> None:
        self._counters, self._waker = counters, waker
        self._on_record, self._duplicates = on_record, duplicates
        self._on_unanswered, self._on_failure, self._spending = on_unanswered, on_failure, spending
        self.ready: deque[Outcome] = deque()
        self._sink = make_sink(self.recorded) if make_sink is not None else None

    def deliver(self, outcome: Outcome) -> int:
        """Deliver ``outcome``, and those of the equal requests that waited for it.

        Returns the bytes that the sink has now; whoever calls this counts them.
        """
        size_bytes = self._hand_over(outcome)
        is_invalid = outcome.request.invalid_reason is not None
        if self._duplicates is not None and not is_invalid and not outcome.deduplicated:
            size_bytes += sum(map(self._hand_over, self._duplicates.end(outcome)))
        return size_bytes

    def drop(self, pending: PendingRequest) -> None:
        """A request will not be sent, or not again. It has an outcome if it was sent before.

        Equal requests that wait for it are unanswered in any case.
        """
        if pending.retry_state is not None:
            self.deliver(unanswered(pending))
            return
        if self._on_unanswered is not None:
            self._on_unanswered(pending.request.number)
        if self._duplicates is not None:
            for other in self._duplicates.end(unanswered(pending)):
                self._hand_over(other)

    def _hand_over(self, outcome: Outcome) -> int:
        request = outcome.request
        is_unsent = request.invalid_reason is not None or outcome.error_kind is OVER_BUDGET
        if is_unsent or outcome.deduplicated:
            self._counters.started()  # the dispatcher has not counted it: it was never handed out
        if not outcome.ok and not outcome.unanswered:
            extra = {"request_number": request.number}
            what = f"request {request.number} failed: " if request.invalid_reason is None else ""
            _log.error("%s%s", what, outcome.error, extra=extra)
            self._on_failure()
        if self._spending is not None:
            self._spending.delivers(outcome)
        if self._sink is None:
            self.ready.append(outcome)
            self._waker.set()
        elif outcome.unanswered:
            if self._on_unanswered is not None:
                self._on_unanswered(request.number)
            self.recorded([outcome])
        else:
            size_bytes = held_bytes(outcome)  # first: the sink's owner may give it away at once
            self._sink(outcome)
            return size_bytes
        return 0

    def taken(self) -> Iterator[Outcome]:
        """The outcomes to yield. Asking for the next one gives back the credit of the one before."""
        while self.ready:
            outcome = self.ready.popleft()
            if not outcome.unanswered:
                yield outcome
            self._counters.yielded(outcome)
            self._on_record(1, 0)

    def recorded(
        self, outcomes: list[Outcome], on_record: bool = True, size_bytes: int = 0
    ) -> None:
        """Give back the credits of ``outcomes``, which are on record or, if not, never will be.

        ``size_bytes`` is what they took in the sink, as :func:`held_bytes` counts.
        """
        self._counters.finished(outcomes, recorded=on_record)
        if self._spending is not None:
            self._spending.recorded(outcomes, on_record)
        self._on_record(len(outcomes), size_bytes)

    def close(self) -> None:
        """Forget the answers that equal requests would share."""
        if self._duplicates is not None:
            self._duplicates.close()


def make_duplicates(options: Options) -> Duplicates | None:
    """What finds equal requests, if ``options`` ask for that. Only then SQLite is imported."""
    return load("parallel_processor.planning.duplicates").Duplicates() if options.dedupe else None
