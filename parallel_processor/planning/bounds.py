"""What bounds a run: money and tokens, how long it takes, and how many of its requests fail."""

from __future__ import annotations

import math
from collections.abc import Callable

from parallel_processor.checks import failure_bound
from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.options import Options
from parallel_processor.planning.budget import Budget
from parallel_processor.planning.costs import Costs
from parallel_processor.planning.spending import Spending
from parallel_processor.runtime.locks import InterruptSafeLock

_LEAST_ENDED = 100  # requests, before which a share says little
_LEAST_PAUSE_S = 0.05


class FailureBound:
    """Counts the requests that failed for good. Any thread may call it.

    Args:
        most: a number, or a share such as ``5%``; ``None`` for no bound.
        ended: how many requests have an outcome, without failures that are being counted.
        stop: called with the error once there is one failure too many.
    """

    def __init__(
        self,
        most: int | str | None,
        ended: Callable[[], int],
        stop: Callable[[BaseException], None],
    ) -> None:
        found = None if most is None else failure_bound(most)
        self._most, self._share = found or (math.inf, math.inf)
        self._ended, self._stop = ended, stop
        self._lock = InterruptSafeLock()  # guards the fields below
        self._failed = 0

    def add(self, count: int = 1) -> None:
        """So many more have failed; those whose failure is kept from an earlier run count, too."""
        if self._most == self._share == math.inf or not count:
            return
        with self._lock:
            self._failed += count
            failed = self._failed
        if failed > self._most:
            number = "1 request has" if failed == 1 else f"{failed:,} requests have"
            text = f"{number} failed, and max_failures is {self._most:,.0f}"
            self._stop(RunStoppedError(text, StopCause.BUDGET))
        elif self._share < math.inf:
            ended = max(self._ended(), failed)
            if ended >= _LEAST_ENDED and failed > self._share * ended:
                text = f"{failed:,} of {ended:,} requests have failed"
                text += f", and max_failures is {self._share * 100:g}%"
                self._stop(RunStoppedError(text, StopCause.BUDGET))


class Deadline:
    """Stops a run so early that what is in flight then can end in time. A display: its thread looks.

    Args:
        max_seconds: how long the run may take, from now on.
        latency_s: the usual seconds of an answer; ``None`` while there are none.
        stop: called with the error.
    """

    def __init__(
        self,
        max_seconds: float,
        *,
        latency_s: Callable[[], float | None],
        stop: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self._max_seconds, self._ends_at = max_seconds, clock() + max_seconds
        self._latency_s, self._stop, self._clock = latency_s, stop, clock
        self.due_at = clock() + max_seconds / 2

    def refresh(self) -> None:
        """Stop the run if it is time; else look again when it may be."""
        now = self._clock()
        left_s = self._ends_at - (self._latency_s() or 0.0) - now
        if left_s > 0:
            # An answer may take longer by then: half of the time is waited at once.
            self.due_at = now + (left_s if left_s < _LEAST_PAUSE_S else left_s / 2)
            return
        self.due_at = math.inf
        text = f"max_seconds is {self._max_seconds:g}, and what is sent now would not end by then"
        self._stop(RunStoppedError(text, StopCause.BUDGET))

    def close(self) -> None:
        """The run is over."""
        self.due_at = math.inf


class Bounds:
    """What bounds one run. Any thread may call it.

    Args:
        options: the settings.
        budget: what the runs of a processor spend; ``None`` if nobody asks.
        ended: see :class:`FailureBound`; ``latency_s``: see :class:`Deadline`.
        stop: called with the error once a bound is reached.
        clock: seconds that never go back.

    Attributes:
        spending: what it spends; ``None`` if nobody asks.
        bounded: the same, if that has a bound.
        failures: counts the requests that fail.
        deadline: a display that keeps the bound of time; ``None`` if there is none.
        give_up_at: when what is in flight is given up, on ``clock``.
    """

    def __init__(
        self,
        options: Options,
        budget: Budget | None,
        *,
        ended: Callable[[], int],
        latency_s: Callable[[], float | None],
        stop: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self.spending = None if budget is None else Spending(budget, options.request_url, stop)
        self.bounded = self.spending if budget is not None and budget.is_bounded else None
        self.failures = FailureBound(options.max_failures, ended, stop)
        self.deadline: Deadline | None = None
        self.give_up_at = math.inf
        if (seconds := options.max_seconds) < math.inf:
            self.give_up_at = clock() + seconds + options.drain_s
            self.deadline = Deadline(seconds, latency_s=latency_s, stop=stop, clock=clock)

    def costs(self) -> Costs | None:
        """What was spent until now; ``None`` if nobody asks, or there are no prices."""
        return None if self.spending is None else self.spending.costs()
