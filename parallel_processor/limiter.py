"""The token bucket: what may be sent when.

One bucket guards N quotas (requests and tokens per minute) that are consumed together or not at all.
A caller takes a place in its queue and is admitted when it is first in line and every quota has room
(``quota.py`` says when that is).

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
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

from parallel_processor.models import Usage
from parallel_processor.options import Limits
from parallel_processor.quota import MINUTE_S, Quota
from parallel_processor.stop import StopSignal

_INSTANT_S = 1e-9  # a wait below this is rounding
_UNUSED = threading.Event()  # stands for one that isn't made until somebody has to wait


class Reservation:
    """A place in the queue of a bucket, and once ``admitted_at`` is set, the right to one attempt.

    ``tokens`` is what the attempt is expected to cost; ``wake`` is set whenever
    :meth:`TokenBucket.poll` should be called again. ``admitted_at`` is in seconds of the bucket's
    clock. The bucket alone changes a reservation.
    """

    __slots__ = ("admitted_at", "costs", "slots", "wake")

    def __init__(self, tokens: float, wake: threading.Event = _UNUSED) -> None:
        self.costs: tuple[float, ...] = (1.0, tokens)
        self.wake = wake
        self.admitted_at: float | None = None
        self.slots: list[list[float]] = []


def _wait(event: threading.Event, seconds: float | None) -> object:
    return event.wait(seconds)


class TokenBucket:
    """Admits requests so that no 60 seconds hold more than the limits. Any thread may call it.

    ``clock`` gives seconds that never go back; ``wait(event, seconds)`` returns when the event is set or
    the seconds have passed (``None``: only the event). Both are injected by tests.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float | None], object] = _wait,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()  # guards every field below, and admitted_at of reservations
        now = clock()
        self._quotas = (
            Quota("requests", limits.requests_per_minute, limits.burst_seconds, now),
            Quota("tokens", limits.tokens_per_minute, limits.burst_seconds, now),
        )
        self._opened_at = now
        self._burst_s = limits.burst_seconds
        self._queue: deque[Reservation] = deque()
        self._pause_began = -math.inf
        self._paused_until = -math.inf
        self._held_by = ""

    def acquire(self, tokens: float, stop: StopSignal | None = None) -> Reservation | None:
        """Wait until one request of ``tokens`` may be sent; ``None`` if ``stop`` is set before."""
        if stop is not None and stop.is_set():
            return None
        reservation = Reservation(tokens)
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
            self._queue.append(reservation)
            if self._queue[0] is reservation:
                self._admit(self._clock())
            if reservation.admitted_at is not None:
                return True
            if reservation.wake is _UNUSED:
                reservation.wake = threading.Event()
            return False

    def poll(self, reservation: Reservation) -> float:
        """Admit whoever may be; seconds until ``reservation`` should be polled again.

        0 once it is admitted, infinite while another is first in line. Clear ``wake`` before the call.
        """
        with self._lock:
            first = self._queue[0] if self._queue else None
            delay, woken = self._admit(self._clock())
            waiting = reservation.admitted_at is None
            if self._queue and self._queue[0] is not first:
                woken.append(self._queue[0])
            if waiting and self._queue and self._queue[0] is not reservation:
                delay = math.inf
            else:
                delay = min(delay, threading.TIMEOUT_MAX)  # what an event can wait for
        for other in woken:
            if other is not reservation:
                other.wake.set()
        return delay if waiting else 0.0

    def _admit(self, now: float) -> tuple[float, list[Reservation]]:
        """Admit from the queue's front; seconds until the new front may be, and who was admitted.

        Caller holds ``_lock``.
        """
        admitted: list[Reservation] = []
        queue, quotas = self._queue, self._quotas
        for quota in quotas:
            quota.advance(now)
        while queue:
            first = queue[0]
            delay, self._held_by = self._paused_until - now, "pause"
            for quota, cost in zip(quotas, first.costs, strict=True):
                quota_delay = quota.delay_s(cost, now)
                if quota_delay > delay:
                    delay, self._held_by = quota_delay, quota.name
            if delay > _INSTANT_S:
                return delay, admitted
            queue.popleft()
            first.slots = [q.charge(c, now) for q, c in zip(quotas, first.costs, strict=True)]
            first.admitted_at = now
            admitted.append(first)
        self._held_by = ""
        return math.inf, admitted

    def cancel(self, reservation: Reservation) -> None:
        """Give back a place in the queue, or the whole charge of a request that was never sent."""
        with self._lock:
            if reservation.admitted_at is not None:
                now = self._clock()
                for quota, cost, slot in zip(
                    self._quotas, reservation.costs, reservation.slots, strict=True
                ):
                    quota.advance(now)
                    quota.refund(cost, slot, now)
                reservation.costs = (0.0,) * len(self._quotas)
            elif reservation in self._queue:
                self._queue.remove(reservation)
            first = self._queue[0] if self._queue else None
        if first is not None:
            first.wake.set()

    def settle(self, reservation: Reservation, used_tokens: float) -> None:
        """Correct an admitted charge to what was really used, in either direction."""
        with self._lock:
            now = self._clock()
            tokens = self._quotas[1]
            tokens.advance(now)
            extra = used_tokens - reservation.costs[1]
            if extra > 0:
                tokens.charge(extra, now)
            elif extra < 0:
                tokens.refund(-extra, reservation.slots[1], now)
            reservation.costs = (reservation.costs[0], used_tokens)
            first = self._queue[0] if self._queue and extra < 0 else None
        if first is not None:
            first.wake.set()

    def sent(self, reservation: Reservation, sent_at: float) -> None:
        """Count an admitted request in the window of ``sent_at``, a time of the bucket's clock.

        For requests that left much later than they were admitted, told once they have been sent.
        """
        with self._lock:
            now = self._clock()
            parts = zip(self._quotas, reservation.costs, reservation.slots, strict=True)
            for quota in self._quotas:
                quota.advance(now)
            reservation.slots = [q.postpone(c, slot, min(sent_at, now)) for q, c, slot in parts]

    def pause(self, seconds: float, refused: Reservation | None = None) -> bool:
        """Admit nothing for ``seconds`` from now; true if this began or lengthened a pause.

        A refusal of a request that was admitted before the current pause began belongs to the same
        burst, and changes nothing. Whoever waits is admitted after the pause, in the same order.
        """
        with self._lock:
            if refused is not None and (refused.admitted_at or 0.0) <= self._pause_began:
                return False
            now = self._clock()
            self._pause_began = now
            if now + seconds <= self._paused_until:
                return False
            self._paused_until = now + seconds
            return True

    def usage(self) -> Usage:
        """What was admitted in the last 60 seconds; cheap enough for a progress line."""
        with self._lock:
            now = self._clock()
            for quota in self._quotas:
                quota.advance(now)
            return Usage(
                admitted={quota.name: quota.in_window for quota in self._quotas},
                limits={quota.name: quota.limit for quota in self._quotas},
                held_by=self._held_by if self._queue else "",
                span_s=min(MINUTE_S, now - self._opened_at + self._burst_s),
            )
