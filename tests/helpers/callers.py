"""Callers of token buckets in simulated time, and an independent count of what they were admitted.

The discrete-event simulation does what dispatchers and workers do, with one bucket or with several that
share their limits. It moves its clock to exactly the times that ``poll`` names.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
from dataclasses import dataclass, field
from typing import Any

from clocks import MINUTE_S, FakeClock, SlidingCount, admitted_by

from parallel_processor.options import Limits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

INSTANT_S = 2e-9  # the bucket takes less than a nanosecond for rounding
SLOT_S = 60.25 / 1024  # admissions of one slot leave the window together
MARGIN_S = 0.25 + SLOT_S  # an admission counts for longer than a minute by this, at most


def limited(requests: Any = math.inf, tokens: Any = math.inf, **more: Any) -> Limits:
    """Limits of so many requests and tokens a minute."""
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens, **more)


@dataclass(slots=True, eq=False)
class Waiter:
    """One caller of a bucket.

    Attributes:
        number: its place in the order of arrival.
        leaves_s: when it gives up; it gives up at its admission if that is earlier.
        entries: what the counts have of it once it is admitted.
        done: true once it was cancelled or settled.
    """

    number: int
    bucket: int
    tokens: float
    reservation: Reservation
    leaves_s: float = math.inf
    poll_at_s: float = math.inf
    entries: list[list[float]] = field(default_factory=list)
    done: bool = False

    @property
    def due_s(self) -> float:
        return min(self.poll_at_s, self.leaves_s)

    @property
    def is_admitted(self) -> bool:
        return self.reservation.admitted_at is not None

    @property
    def admitted_s(self) -> float:
        assert self.reservation.admitted_at is not None
        return self.reservation.admitted_at


class Simulation:
    """Callers of buckets that share limits, each in the place of a thread, on one clock.

    ``order`` decides in which order callers that are woken together get to run; each runs ``late_s``
    after its timer. Every admission is checked against the count when it happens.
    """

    def __init__(
        self,
        limits: Limits,
        buckets: int = 1,
        *,
        start_s: float = 1000.0,
        order: int = 0,
        late_s: float = 0.0,
    ) -> None:
        self.clock = FakeClock(start_s)
        self.shared_limits = SharedLimits(limits, self.clock)
        self.buckets = [
            TokenBucket(limits, clock=self.clock, shared_limits=self.shared_limits)
            for _ in range(buckets)
        ]
        self.bucket = self.buckets[0]
        self.limits = (limits.by_kind["requests"], limits.by_kind["tokens"])
        self.counts = (SlidingCount(), SlidingCount())
        self.line: list[Waiter] = []  # those that wait, in the order of arrival
        self.admitted: list[Waiter] = []
        self.pauses = [(-math.inf, -math.inf)] * buckets  # begin and end of the last one of each
        self.polls = 0
        self.checks_limits = True
        self._numbers = itertools.count()
        self._order = random.Random(order)
        self._late_s = late_s

    # What callers do.

    def arrive(
        self, tokens: float = 0.0, *, bucket: int = 0, patience_s: float = math.inf
    ) -> Waiter:
        leaves_s = self.clock.now_s + patience_s
        reservation = Reservation(tokens, threading.Event())
        waiter = Waiter(next(self._numbers), bucket, tokens, reservation, leaves_s)
        self.line.append(waiter)
        admitted = self.buckets[bucket].enqueue(reservation)
        self._note_admissions()
        assert admitted == (waiter not in self.line)
        if not admitted:
            self._poll(waiter)
        self._run_woken()
        return waiter

    def cancel(self, waiter: Waiter) -> None:
        """Give up waiting, or don't send what was admitted."""
        self.buckets[waiter.bucket].cancel(waiter.reservation)
        waiter.done = True
        if waiter in self.line:
            self.line.remove(waiter)
        for entry in waiter.entries:
            entry[1] = 0.0
        self._run_woken()

    def settle(self, waiter: Waiter, used: float) -> None:
        self.buckets[waiter.bucket].ended(waiter.reservation, used_tokens=used)
        waiter.done = True
        if used < waiter.tokens:
            waiter.entries[1][1] = used
        else:
            self.counts[1].add(self.clock.now_s, used - waiter.tokens)
        self._run_woken()

    def pause(self, seconds: float, refused: Waiter | None = None, *, bucket: int = 0) -> None:
        now = self.clock.now_s
        began, until = self.pauses[bucket]
        same_burst = refused is not None and refused.admitted_s <= began
        expected = not same_burst and now + seconds > until
        reservation = None if refused is None else refused.reservation
        assert self.buckets[bucket].pause(seconds, reservation) == expected
        if not same_burst:
            self.pauses[bucket] = (now, max(until, now + seconds))
        self._run_woken()

    # How time passes.

    def run(self, until_s: float) -> None:
        """Let everybody do what they do until ``until_s``."""
        while self.step(until_s):
            pass
        self.clock.now_s = max(self.clock.now_s, until_s)

    def step(self, until_s: float) -> bool:
        """Go to the next time at which somebody polls; false if there is none up to ``until_s``."""
        self._run_woken()
        due = min(self.line, key=lambda waiter: waiter.due_s, default=None)
        if due is None or due.due_s > until_s or due.due_s == math.inf:
            return False
        self.clock.now_s = max(self.clock.now_s, due.due_s)
        if due.leaves_s <= self.clock.now_s:
            self.cancel(due)
        else:
            self._poll(due)
        self._run_woken()
        return True

    def finish(self) -> None:
        """Let everybody be admitted, in a time that is bounded, and see that nothing is left."""
        start_s = max([self.clock.now_s, *(until for _, until in self.pauses)])
        late_s = self._late_s * len(self.line)
        bound_s = start_s + 1.0 + 61.0 * len(self.line)
        for i, (limit, count) in enumerate(zip(self.limits, self.counts, strict=True)):
            owed = math.fsum(amount for _, amount in count.entries)
            owed += sum((1.0, waiter.tokens)[i] for waiter in self.line)
            bound_s += 61.0 * owed / limit
        while self.step(math.inf):
            assert self.clock.now_s <= bound_s + late_s
        assert not self.line, "these wait, and nobody will wake them"
        self.clock.now_s = bound_s + 120.0 + late_s
        assert not any(bucket.queue for bucket in self.buckets)
        assert list(admitted_by(self.bucket).values()) == [0.0, 0.0]
        for tokens in (0.0, min(1.0, self.limits[1])):
            self.arrive(tokens)
            assert not self.line  # a rested bucket with an empty queue admits at once
            self.clock.now_s += 60.0 * sum(2 / limit for limit in self.limits) + 61.0

    def _poll(self, waiter: Waiter) -> None:
        waiter.reservation.wake.clear()
        delay = self.buckets[waiter.bucket].poll(waiter.reservation)
        self.polls += 1
        self._note_admissions()
        assert (delay == 0.0) == (waiter not in self.line)
        if delay:
            head = next(each for each in self.line if each.bucket == waiter.bucket)
            assert (delay == math.inf) == (waiter is not head)
            waiter.poll_at_s = self.clock.now_s + delay
            assert waiter.poll_at_s > self.clock.now_s, "polling again without time passing"
            waiter.poll_at_s += self._late_s

    def _run_woken(self) -> None:
        while woken := [waiter for waiter in self.line if waiter.reservation.wake.is_set()]:
            self._poll(self._order.choice(woken))

    # What is checked.

    def _note_admissions(self) -> None:
        """Each one admitted was the first whose bucket isn't paused, and fits."""
        while waiter := next((each for each in self.line if each.is_admitted), None):
            assert waiter.admitted_s == self.clock.now_s
            assert not self._is_paused(waiter.bucket)
            for earlier in self.line[: self.line.index(waiter)]:
                assert earlier.bucket != waiter.bucket and self._is_paused(earlier.bucket)
            self.line.remove(waiter)
            self.admitted.append(waiter)
            for count, cost in zip(self.counts, (1.0, waiter.tokens), strict=True):
                waiter.entries.append(count.add(self.clock.now_s, cost))
            if self.checks_limits:
                self._check_limits(waiter)
            if waiter.leaves_s < math.inf:
                self.cancel(waiter)

    def _is_paused(self, bucket: int) -> bool:
        return self.clock.now_s < self.pauses[bucket][1] - INSTANT_S

    def check_usage(self) -> None:
        """What the buckets count of the last minute is what the count says."""
        now = self.clock.now_s
        for used, count in zip(admitted_by(self.bucket).values(), self.counts, strict=True):
            least = count.total(now - MINUTE_S - 0.2499, now)
            most = count.total(now - MINUTE_S - MARGIN_S - 1e-6, now)
            rounding = 1e-6 + 1e-9 * count.total(-math.inf, math.inf)
            assert least - rounding <= used <= most + rounding

    def _check_limits(self, waiter: Waiter) -> None:
        now = self.clock.now_s
        for count, limit, (_, cost) in zip(self.counts, self.limits, waiter.entries, strict=True):
            rounding = 1e-6 + 1e-9 * limit
            if limit < math.inf:
                recent = itertools.takewhile(lambda e: e[0] >= now - MINUTE_S, count.entries[::-1])
                assert sum(e[1] for e in recent) <= max(limit, cost) + rounding


def tokens_of(cost: float, limits: Limits) -> float:
    """``cost`` minutes' worth of the token limit (of a million, if there is none), mostly whole."""
    limit = limits.tokens_per_minute if limits.tokens_per_minute < math.inf else 1e6
    return float(int(cost * limit)) if limit > 1000 else cost * limit


def act(simulation: Simulation, limits: Limits, action: tuple[Any, ...]) -> None:
    """Do one action of a script, if there is somebody to do it."""
    name, *args = action
    if name == "arrive":
        for bucket, cost in args[0]:
            simulation.arrive(tokens_of(cost, limits), bucket=bucket)
    elif name == "pause":
        simulation.pause(args[1], bucket=args[0])
    else:
        sent = [waiter for waiter in simulation.admitted if not waiter.done]
        group = simulation.line if name == "cancel waiting" else sent
        if group:
            waiter = group[args[0] % len(group)]
            if name == "settle":
                simulation.settle(waiter, waiter.tokens * args[1])
            elif name == "rejection":
                simulation.pause(args[1], waiter, bucket=waiter.bucket)
            else:
                simulation.cancel(waiter)
