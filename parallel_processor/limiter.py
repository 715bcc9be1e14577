"""The token bucket: what may be sent when.

A bucket guards N quotas (requests and tokens per minute, and what else the server limits) that are
consumed together or not at all. A caller takes a place in its queue and is admitted when it is first
in line and every quota has room (``quota.py`` and ``observed.py`` say when that is). There is one
bucket for each model and endpoint, since that is what servers limit; what was configured for several
of them is their ceiling (``ceiling.py``).

This differs from reserving at once and sleeping until a computed time (golang.org/x/time/rate) in one
point: only the first in line computes a time, from what was really admitted. So a place that is given
up by a caller who stops, a refund, or a pause needs no correction of anyone else's time, and what a
quota counts is when a request was let go, not when it was meant to be.

Under the lock there is only arithmetic. Waiting is done by the caller, on an event of its own that is
set when it may have become first, or was admitted by another thread's call. A thread that isn't first
sleeps without a timer; whoever is first must poll, or give up its place.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple
from urllib.parse import urlsplit

from parallel_processor.ceiling import UNUSED, Ceiling, wake
from parallel_processor.ceiling import Reservation as Reservation
from parallel_processor.charges import Charges
from parallel_processor.figures import BucketReport, Usage
from parallel_processor.models import Refusal, WaitCause
from parallel_processor.options import Limits, shown_url
from parallel_processor.quota import KINDS, MINUTE_S, Quota
from parallel_processor.ratelimits import LimitReading
from parallel_processor.stop import StopSignal


class Ending(NamedTuple):
    """What the end of an attempt brought.

    ``news`` are the limits that were found or changed: name, window, limit before and now.
    ``made_room`` says that who waits with the caller's ``waker`` may go sooner than it was told.
    """

    news: list[tuple[str, float, float, float]]
    made_room: bool


def _wait(event: threading.Event, seconds: float | None) -> object:
    return event.wait(seconds)


class TokenBucket(Charges):
    """Admits requests so that no 60 seconds hold more than the limits. Any thread may call it.

    ``clock`` gives seconds that never go back; ``wait(event, seconds)`` returns when the event is set or
    the seconds have passed (``None``: only the event). Both are injected by tests. ``ceiling`` is what
    it shares with others; by default it has one of its own, of ``limits``. ``most_in_flight`` lets it
    look for the number in flight that suits a server without limits, up to that many.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float | None], object] = _wait,
        ceiling: Ceiling | None = None,
        most_in_flight: int | None = None,
        url: str = "",
        model: str = "",
    ) -> None:
        self.url, self.model = url, model
        self.host = urlsplit(url).hostname or ""
        self._clock = clock
        self._wait = wait
        self.ceiling = ceiling if ceiling is not None else Ceiling(limits, clock)
        self._lock = self.ceiling.lock  # guards what follows, and everything of Charges
        now = self._opened_at = clock() if ceiling is not None else self.ceiling.opened_at
        self._burst_s = limits.burst_seconds
        super().__init__(self.ceiling, limits, most_in_flight=most_in_flight, now=now)

    # What callers do.

    def acquire(
        self, tokens: float, stop: StopSignal | None = None, *, output_tokens: float = 0.0
    ) -> Reservation | None:
        """Wait until one request of ``tokens`` may be sent; ``None`` if ``stop`` is set before."""
        if stop is not None and stop.is_set():
            return None
        reservation = Reservation(tokens, output_tokens=output_tokens)
        admitted = False
        try:
            admitted = self.enqueue(reservation) or self._wait_for(reservation, stop)
        finally:
            if not admitted:
                self.cancel(reservation)
        return reservation if admitted else None

    def _wait_for(self, reservation: Reservation, stop: StopSignal | None) -> bool:
        with stop.waking(reservation.wake) if stop is not None else nullcontext():
            while True:
                reservation.wake.clear()
                if stop is not None and stop.is_set():
                    return False
                delay = self.poll(reservation)
                if delay == 0.0:
                    return True
                self._wait(reservation.wake, delay if delay < math.inf else None)

    def enqueue(self, reservation: Reservation) -> bool:
        """Take a place in the queue without waiting; true if it was admitted at once.

        A place that isn't wanted any more must be given back by :meth:`cancel`.
        """
        with self._lock:
            woken = self.ceiling.join(self, reservation, self._clock)
            admitted = reservation.admitted_at is not None
            if not admitted and reservation.wake is UNUSED:
                reservation.wake = threading.Event()
        if woken:
            wake(woken, reservation)
        return admitted

    def poll(self, reservation: Reservation) -> float:
        """Admit whoever may be; seconds until ``reservation`` should be polled again.

        0 once it is admitted, infinite while another is first in line. Clear ``wake`` before the call.
        """
        with self._lock:
            firsts = set(self.ceiling.firsts())
            woken = self.ceiling.admit(self._clock())
            woken += [first for first in self.ceiling.firsts() if first not in firsts]
            if reservation.admitted_at is not None:
                delay = 0.0
            elif self.queue and self.queue[0] is reservation:
                delay = min(self.delay, threading.TIMEOUT_MAX)  # what an event can wait for
            else:
                delay = math.inf
        wake(woken, reservation)
        return delay

    def cancel(self, reservation: Reservation) -> None:
        """Give back a place in the queue, or the whole charge of a request that was never sent."""
        with self._lock:
            if reservation.admitted_at is not None:
                now = self._clock()
                self._correct(reservation, (0.0,) * len(KINDS), now)
                self._end(reservation, now, answered=False)
                self.server.in_flight.total -= 1
            else:
                self.ceiling.leave(self, reservation)
            woken = self.ceiling.firsts()
        wake(woken)

    def settle(
        self, reservation: Reservation, used_tokens: float, *, output_tokens: float = 0.0
    ) -> None:
        """Correct an admitted charge to what was really used, in either direction."""
        with self._lock:
            less = used_tokens < reservation.costs[1]
            self._settle(reservation, used_tokens, output_tokens, self._clock())
            woken = self.ceiling.firsts() if less else []
        wake(woken)

    def ended(
        self,
        reservation: Reservation,
        readings: Sequence[LimitReading] = (),
        *,
        answered: bool = False,
        used_tokens: float | None = None,
        output_tokens: float = 0.0,
        answer_tokens: int = 0,
        waker: object = None,
    ) -> Ending:
        """The attempt is over; its answer, if any, had ``readings`` in its headers.

        ``used_tokens`` corrects the charge, as :meth:`settle` does; ``answer_tokens`` is what the answer
        says was used, which the report tells. Whoever waits with ``waker`` isn't
        woken for the room that this made, but told of it by what is returned.
        """
        with self._lock:
            now = self._clock()
            less = used_tokens is not None and used_tokens < reservation.costs[1]
            if used_tokens is not None:
                self._settle(reservation, used_tokens, output_tokens, now)
            self.answered += answered
            self.answer_tokens += answer_tokens
            quicker = self._end(reservation, now, answered=answered)
            if readings:
                self.advance(now)
                quicker |= self.server.observe(
                    readings,
                    sent_at=reservation.admitted_at or now,
                    totals=reservation.totals,
                    now=now,
                    totals_now=self._totals,
                )
            news, self.server.news = self.server.news, []
            if less:
                woken = self.ceiling.firsts()
            else:
                woken = [self.queue[0]] if quicker and self.queue else []
        others = [first for first in woken if first.wake is not waker]
        wake(others)
        return Ending(news, len(others) < len(woken))

    def sent(self, reservation: Reservation, sent_at: float) -> None:
        """Count an admitted request in the window of ``sent_at``, a time of the bucket's clock.

        For requests that left much later than they were admitted, told once they have been sent.
        """
        with self._lock:
            now = self._clock()
            for i, (quota, slot) in enumerate(reservation.charges):
                if isinstance(quota, Quota):
                    quota.advance(now)
                    cost = reservation.costs[quota.kind]
                    reservation.charges[i] = (quota, quota.postpone(cost, slot, min(sent_at, now)))

    def refuse(self, reservation: Reservation, refusal: Refusal, pause_s: float | None) -> bool:
        """The server turned an attempt away; true if a pause of ``pause_s`` began or grew longer.

        One burst of refusals cuts a rate, or the number in flight, once: those that were under way
        already when the last one was heard of change nothing. Without ``pause_s`` nothing pauses.
        """
        with self._lock:
            now, sent_at = self._clock(), reservation.admitted_at or 0.0
            self.advance(now)
            gap_s, costs = pause_s or 0.0, reservation.costs
            self.server.refuse(refusal, costs, self._totals, gap_s, now, sent_at)
            began = pause_s is not None and self.server.pause(pause_s, now, sent_at)
            woken = self.ceiling.firsts()  # whoever was held behind this bucket's first
        wake(woken)
        return began

    def pause(self, seconds: float, refused: Reservation | None = None) -> bool:
        """Admit nothing for ``seconds`` from now; true if this began or lengthened a pause.

        Not if ``refused`` was admitted before the current pause began: that is the same burst.
        """
        with self._lock:
            sent_at = None if refused is None else refused.admitted_at or 0.0
            began = self.server.pause(seconds, self._clock(), sent_at)
            woken = self.ceiling.firsts()
        wake(woken)
        return began

    def usage(self) -> Usage:
        """What was admitted under its ceiling in the last 60 seconds."""
        with self._lock:
            used, limits = self.ceiling.levels(now := self._clock())
            held_by = self.held_by if self.queue else ""
            span_s = min(MINUTE_S, now - self._opened_at + self._burst_s)
            return Usage(admitted=used, limits=limits, held_by=WaitCause(held_by), span_s=span_s)

    def report(self, since_s: float) -> BucketReport:
        """How its limits turned out; times count from ``since_s`` of the clock."""
        with self._lock:
            self.advance(now := self._clock())
            limits = (*self.ceiling.report(now), *(q.report(since_s) for q in self.server.quotas))
            return self.server.report(
                url=shown_url(self.url),
                model=self.model,
                limits=limits,
                answered=self.answered,
                reserved_tokens=round(self._totals[1]),
                used_tokens=self.answer_tokens,
            )
