"""The way of an outcome from the thread that has it to whoever takes it, and what it frees there.

With a ``sink``, an outcome goes there at once, and whoever takes it from there calls
:meth:`Delivery.recorded`. Without one it is laid out for the thread that feeds the run, which hands it to
the program when it asks for the next. Either way it counts as under way until then.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator

from parallel_processor.counters import Counters
from parallel_processor.duplicates import Duplicates
from parallel_processor.models import Request
from parallel_processor.outcome import Outcome
from parallel_processor.pending import Waiting
from parallel_processor.stop import Bell
from parallel_processor.worker import flawed, unanswered

_log = logging.getLogger("parallel_processor")


class Delivery:
    """The outcomes of one run. Any thread may call :meth:`deliver` and :meth:`recorded`.

    ``on_record`` is told how many are on record, or never will be; ``bell`` rings for what is laid out.
    """

    def __init__(
        self,
        *,
        counters: Counters,
        bell: Bell,
        on_record: Callable[[int], None],
        duplicates: Duplicates | None = None,
    ) -> None:
        self.sink: Callable[[Outcome], None] | None = None
        self._counters = counters
        self._bell = bell
        self._on_record = on_record
        self._duplicates = duplicates
        self._laid_out: deque[Outcome] = deque()

    def __bool__(self) -> bool:
        """True if an outcome waits to be taken."""
        return bool(self._laid_out)

    def claim(self, request: Request) -> bool:
        """True if ``request`` has to be sent; else its outcome comes without, or has come already."""
        if request.flaw is not None:
            self.deliver(flawed(request))
            return False
        claim = True if self._duplicates is None else self._duplicates.claim(request)
        if isinstance(claim, Outcome):
            self.deliver(claim)
            return False
        return claim

    def deliver(self, outcome: Outcome) -> None:
        """Take ``outcome`` to whom it may concern, and to the requests that are equal to its own."""
        self._hand_over(outcome)
        if self._duplicates is None or outcome.request.flaw is not None or outcome.deduplicated:
            return
        for other in self._duplicates.end(outcome):
            self._hand_over(other)

    def drop(self, waiting: Waiting) -> None:
        """A request won't be sent any more: neither will those that are equal to it."""
        if waiting.tries is not None:
            self.deliver(unanswered(waiting))
        elif self._duplicates is not None:
            for other in self._duplicates.end(unanswered(waiting)):
                self._hand_over(other)

    def _hand_over(self, outcome: Outcome) -> None:
        request = outcome.request
        if request.flaw is not None or outcome.deduplicated:
            self._counters.started()  # which nobody else has counted
        if not outcome.ok and not outcome.unanswered:
            extra = {"request_number": request.number}  # as in worker.py
            what = f"request {request.number} failed: " if request.flaw is None else ""
            _log.error("%s%s", what, outcome.error, extra=extra)
        if self.sink is None:
            self._laid_out.append(outcome)
            self._bell.set()
        elif outcome.unanswered:
            self.recorded([outcome])
        else:
            self.sink(outcome)

    def taken(self) -> Iterator[Outcome]:
        """What is laid out, for the thread that feeds; each is done with once the next is asked for."""
        while self._laid_out:
            outcome = self._laid_out.popleft()
            if not outcome.unanswered:
                yield outcome
            self.recorded([outcome])

    def recorded(self, outcomes: list[Outcome], on_record: bool = True) -> None:
        """Make room for as many as ``outcomes``, which are on record or, if not, never will be."""
        self._counters.finished(outcomes, recorded=on_record)
        self._on_record(len(outcomes))

    def close(self) -> None:
        """Forget the answers of equal requests."""
        if self._duplicates is not None:
            self._duplicates.close()
