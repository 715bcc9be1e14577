"""The token bucket: decides when a request may be sent.

A bucket guards several quotas: requests and tokens per minute, and what else the server limits. A
request consumes all of them together or none. There is one bucket for each model and endpoint, because
that is what servers limit. Limits that the user configured for several buckets are in ``shared.py``.
``quota.py`` and ``server_quota.py`` say when a quota has room.

A caller takes a place in the queue of the bucket (a reservation). It is admitted when it is the head of
the queue and every quota has room.

golang.org/x/time/rate reserves at once and sleeps until a computed time. Here, only the head of the
queue computes a time, from what was really admitted. So a cancelled reservation, a refund or a pause
changes no time that another caller was promised. A quota counts a request when it is admitted.

No method waits. Under the lock there is only arithmetic. The bucket sets ``wake`` of a reservation when
another caller's call admitted it, or made it the head of its queue. The owner of the head must poll it
after the delay that :meth:`TokenBucket.poll` returned, or cancel it. The others need no timer.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlsplit

from parallel_processor.models import LimitReading, Rejection, Upstream, WaitCause
from parallel_processor.options import Limits, shown_url
from parallel_processor.ratelimit.quota import CAUSES
from parallel_processor.ratelimit.reports import BucketReport
from parallel_processor.ratelimit.server import ServerLimits
from parallel_processor.ratelimit.server_rates import LimitChange
from parallel_processor.ratelimit.shared import SharedLimits, wake
from parallel_processor.ratelimit.state import BucketState, Reservation


class Release(NamedTuple):
    """What follows from the end of an attempt.

    Attributes:
        limit_changes: the limits that its headers newly named, or changed.
        made_room: true if a reservation with the caller's ``waker`` may go sooner than it was told.
    """

    limit_changes: Sequence[LimitChange]
    made_room: bool


_NOTHING_FOLLOWS = Release((), False)
_ANY = Upstream()


class Tally(NamedTuple):
    """What became of the attempts of a bucket by one moment.

    Attributes:
        now_s: the moment, in seconds of the bucket's clock.
        refusals: how many attempts were refused, or timed out.
        answers: how many were answered.
        answered_until_s: when the newest request was admitted that was answered.
        bounds: the rate and the number in flight that refusals have shown.
    """

    now_s: float
    refusals: int
    answers: int
    answered_until_s: float
    bounds: tuple[float, float]


class TokenBucket:
    """Admits requests so that no 60 seconds hold more than the limits. Any thread may call it.

    Attributes:
        upstream: where its requests go; its URL is empty if they go to several.
        url: the URL of ``upstream``, ``host`` that URL's host.
        model: the model of its requests; empty if it is for several.
        members: this bucket alone; a group of several upstreams has more. So ``alive``.
        shared_limits: the configured limits, which other buckets may share.
        is_set_aside: true once nothing more is sent: others serve its requests. A group sets it.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        shared_limits: SharedLimits | None = None,
        most_in_flight: int | None = None,
        longest_s: float = math.inf,
        upstream: Upstream = _ANY,
        model: str = "",
    ) -> None:
        """Make a bucket under ``shared_limits``; by default under one of its own, made from ``limits``.

        ``clock`` returns seconds and never goes back. With ``most_in_flight``, and without configured
        limits, the bucket searches for the number in flight that suits the server, up to that many. An
        answer may take ``longest_s``.
        """
        self.upstream, self.url, self.model = upstream, upstream.url, model
        self.members = self.alive = (self,)
        self.is_set_aside = False
        # As other processes know it: a pause of one tier is none of another's.
        self._name = f"{model}@{upstream.tier}" if upstream.tier else model
        self.host = urlsplit(self.url).hostname or ""
        self.shared_limits = shared_limits or SharedLimits(limits, clock)
        self._clock = clock
        self._lock = self.shared_limits.lock  # guards _state and _waiting
        self._waiting = self.shared_limits.waiting
        self._state = BucketState(
            limits,
            self.shared_limits.charged,
            self.shared_limits.minute_count,
            now=clock(),
            climbs=self.shared_limits.is_open and most_in_flight is not None,
            most_in_flight=most_in_flight or math.inf,
            longest_s=longest_s,
        )
        with self._lock:
            self.shared_limits.adopt(self.url, self._name, self._state)

    def follow(self, shared_limits: SharedLimits) -> None:
        """Be under ``shared_limits``, of the same account, as they are now. Caller holds its lock."""
        shared_limits.take_over(self._state, self._waiting, self.url, self._name, self._clock())
        self.shared_limits, self._waiting = shared_limits, shared_limits.waiting

    # Before an attempt.

    def enqueue(self, reservation: Reservation) -> bool:
        """Append ``reservation`` to the queue; true if it was admitted at once.

        Call :meth:`cancel` for a reservation that isn't wanted any more.
        """
        with self._lock:
            now = self._clock()
            reservation.ticket = next(self.shared_limits.tickets)
            if not self._waiting and self._state.admit_at_once(reservation, now):
                return True  # the short way, which most requests of most runs take
            woken = self.shared_limits.join(self._state, reservation, now)
            admitted = reservation.admitted_at is not None
        if woken:
            wake(woken, reservation)
        return admitted

    def admit_at_once(self, reservation: Reservation) -> bool:
        """Admit ``reservation`` if nothing delays it; otherwise it gets no place in the queue."""
        with self._lock:
            return not self._waiting and self._state.admit_at_once(reservation, self._clock())

    def poll(self, reservation: Reservation) -> float:
        """Admit all that may be sent; seconds until ``reservation`` should be polled again.

        0 once it is admitted, infinite while it isn't the head of the queue. Clear ``wake`` before the
        call, so that no wake-up is lost.
        """
        state = self._state
        with self._lock:
            firsts = set(self.shared_limits.firsts())
            woken = self.shared_limits.admit(self._clock())
            woken += [first for first in self.shared_limits.firsts() if first not in firsts]
            if reservation.admitted_at is not None:
                delay = 0.0
            elif state.queue and state.queue[0] is reservation:
                delay = min(state.delay, threading.TIMEOUT_MAX)  # what an event can wait for
            else:
                delay = math.inf
        wake(woken, reservation)
        return delay

    def cancel(self, reservation: Reservation) -> None:
        """Give back a place in the queue, or the whole charge of a request that was never sent."""
        with self._lock:
            if reservation.admitted_at is not None:
                self._state.cancel(reservation, self._clock())
            else:
                self.shared_limits.leave(self._state, reservation)
            woken = self.shared_limits.firsts()
        wake(woken)

    # After it.

    def sent(self, reservation: Reservation, sent_at: float) -> None:
        """Count a request that left long after its admission as of ``sent_at`` of the bucket's clock."""
        with self._lock:
            self._state.postpone(reservation, sent_at, self._clock())

    def ended(
        self,
        reservation: Reservation,
        readings: Sequence[LimitReading] = (),
        *,
        answered: bool = False,
        rejected: bool = False,
        used_tokens: float | None = None,
        output_tokens: float = 0.0,
        answer_tokens: int = 0,
        waker: object = None,
    ) -> Release:
        """Count the end of an attempt.

        Args:
            reservation: the reservation of the attempt.
            readings: what the headers of its answer say of the limits.
            answered: whether it was answered.
            rejected: whether it was turned away, so that :meth:`refuse` follows.
            used_tokens: what to charge instead of what was reserved; ``None`` leaves the charge.
            output_tokens: the answer's part of ``used_tokens``.
            answer_tokens: what the answer says was used, for the report.
            waker: the event of the caller. Reservations with this ``wake`` aren't woken; the result
                says instead that there is room.
        """
        state = self._state
        changes: Sequence[LimitChange] = ()
        refunds = False
        woken: Sequence[Reservation] = ()
        with self._lock:
            now = self._clock()
            if used_tokens is not None:
                requests, tokens, _, _ = reservation.costs
                refunds = used_tokens < tokens
                costs = (requests, used_tokens, used_tokens - output_tokens, output_tokens)
                state.correct(reservation, costs, now)
            has_room = state.end(reservation, now, answered=answered, answer_tokens=answer_tokens)
            if readings:
                is_quicker, changes = state.observe(reservation, readings, now, rejected=rejected)
                has_room |= is_quicker
            if self._waiting:
                if refunds:  # the configured limits have room, for any bucket
                    woken = self.shared_limits.firsts()
                elif has_room and state.queue:
                    woken = [state.queue[0]]
        if not woken:
            return Release(changes, False) if changes else _NOTHING_FOLLOWS
        others = [first for first in woken if first.wake is not waker]
        wake(others)
        return Release(changes, len(others) < len(woken))

    def refuse(
        self, reservation: Reservation, rejection: Rejection, pause_s: float | None = None
    ) -> float:
        """Follow a rejection; for how long everything pauses for it, or 0 if no pause began or grew.

        Call :meth:`ended` before. One burst of rejections cuts a rate once: a rejection of what was
        admitted before the last cut changes nothing. Without ``pause_s`` the bucket chooses the pause.
        """
        with self._lock:
            now = self._clock()
            seconds = self._state.refuse(reservation, rejection, pause_s, now)
            woken = self.shared_limits.firsts()  # they may have waited behind this bucket's head
            woken += self.shared_limits.tell_pause(self.url, self._name, seconds, now)
        wake(woken)
        return seconds

    def timed_out(self, reservation: Reservation) -> float:
        """Follow an attempt without an answer in time; for how long everything pauses, or 0.

        Call :meth:`ended` before.
        """
        with self._lock:
            seconds = self._state.time_out(reservation, self._clock())
            woken = self.shared_limits.firsts()
        wake(woken)
        return seconds

    def pause(self, seconds: float, refused: Reservation | None = None) -> bool:
        """Admit nothing for ``seconds`` from now; true if a pause began or grew longer.

        It does nothing if ``refused`` was admitted before the current pause began: it belongs to the
        same burst.
        """
        with self._lock:
            sent_at = None if refused is None else refused.admitted_at or 0.0
            began = self._state.server.pause(seconds, self._clock(), sent_at)
            woken = self.shared_limits.firsts()
        wake(woken)
        return began

    def probe(self, seconds: float, failed: Reservation) -> bool:
        """Pause as :meth:`pause` does. Then admit one at a time, until one is answered."""
        with self._lock:
            now = self._clock()
            began = self._state.server.pause(seconds, now, failed.admitted_at or 0.0)
            if began:
                self._state.server.in_flight.confine(1, now)
            woken = self.shared_limits.firsts()
        wake(woken)
        return began

    def hold(self) -> None:
        """Admit nothing until one of those in flight is answered, or :meth:`free` is called."""
        with self._lock:
            self._state.server.in_flight.confine(0, self._clock())

    def free(self) -> None:
        """End what :meth:`probe` or :meth:`hold` began, before an answer does."""
        with self._lock:
            self._state.server.in_flight.free()
            woken = self.shared_limits.firsts()
        wake(woken)

    def count(self, *, moved_on: int = 0, downgraded: int = 0) -> None:
        """Count requests that go on to another lane, or answers of another tier than was asked for."""
        with self._lock:
            self._state.moved_on += moved_on
            self._state.downgraded += downgraded

    # Where it stands. To be sure of a value, the caller holds the lock of ``shared_limits``.

    @property
    def queue(self) -> deque[Reservation]:
        """The reservations that wait, oldest first."""
        return self._state.queue

    @property
    def delay(self) -> float:
        """Seconds that the head of the queue has to wait; infinite if the queue is empty."""
        return self._state.delay

    @property
    def wait_cause(self) -> WaitCause:
        """What the head of the queue waits for."""
        return self._state.wait_cause

    def shares_wait_of(self, other: TokenBucket) -> bool:
        """True if the queue of ``other`` seems to wait for limits that it has in common with this one."""
        shares = self.shared_limits is other.shared_limits and not self.shared_limits.is_open
        return shares and other.wait_cause in CAUSES

    @property
    def counts_tokens(self) -> bool:
        """False if nothing limits tokens, as far as the server's answers tell; they are guessed then."""
        state = self._state
        return (
            self.shared_limits.limits_tokens
            or not state.answered
            or state.server.rates.limits_tokens
        )

    def limit_of(self, kind: str) -> float:
        """How many ``requests`` or ``tokens`` a minute it may send, as far as is known; infinite if any."""
        with self._lock:
            _, configured = self.shared_limits.levels(self._clock())
        found = self._state.server.rates.found_limit(kind)
        return min(configured.get(kind, math.inf), found)

    @property
    def has_room(self) -> bool:
        """False while as many requests are in flight as the server takes."""
        return self._state.server.in_flight.has_room

    def is_full_of(self, in_flight: int) -> bool:
        """True if ``in_flight`` requests are all that are, and only the end of one makes room."""
        found = self._state.server.in_flight
        return found.count == in_flight and not found.has_room and not found.is_confined

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self._state.server.in_flight.count

    @property
    def newest_answered_at(self) -> float:
        """When the newest of the answered attempts was admitted; minus infinity if there is none."""
        return self._state.newest_answered_at

    @property
    def server(self) -> ServerLimits:
        """What the server allows, as far as it is known."""
        return self._state.server

    def tally(self) -> Tally:
        """How many attempts were refused and answered so far."""
        state = self._state
        server = state.server
        return Tally(
            self._clock(), server.refusals, state.answered, state.newest_answered_at, server.bounds
        )

    def take_back(self, since: Tally) -> None:
        """Undo what refusals have slowed down since then: they were not about the bucket."""
        with self._lock:
            self._state.server.restore(since.bounds)
            woken = self.shared_limits.firsts()
        wake(woken)

    def report(self, since_s: float) -> BucketReport:
        """How its limits turned out; times count from ``since_s`` of the clock."""
        with self._lock:
            now = self._clock()
            configured = self.shared_limits.report(now, since_s)
            report = self._state.report(now, since_s)
        limits = (*configured, *report.limits)
        _, key, tier, _ = self.upstream
        url, model = shown_url(self.url), self.model
        return replace(report, url=url, model=model, key=key, tier=tier, limits=limits)
