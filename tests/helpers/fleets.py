"""Processes that share the limits of one holder, in virtual time and without a thread.

Each process has the buckets and the stock of a real one, and a clock of its own. Between the processes and
the holder there is a network that takes time, and may be down. All of it happens in one thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from clocks import FakeClock, SlidingCount

from parallel_processor.exceptions import LimiterError
from parallel_processor.limiter.buckets import SharedBuckets
from parallel_processor.limiter.leases import Ask, Lease
from parallel_processor.limiter.leasing import Leasing
from parallel_processor.limiter.limits import LeasedLimits
from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import AccountLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.stop import WakeEvent

_MOST_STEPS = 100


class Fleet:
    """Several processes, the holder of their buckets, and what they have sent."""

    def __init__(self, count: int, limits: Limits, *, round_trip_s: float = 0.001) -> None:
        self.clock = FakeClock(50_000.0)
        self.round_trip_s = round_trip_s
        self.is_away = self.loses_answers = False
        self.calls = 0
        self.asks: list[Ask] = []
        self.requests, self.tokens = SlidingCount(), SlidingCount()
        self.restart()
        self.processes = [Member(self, limits, 1000.0 * number) for number in range(count)]

    def restart(self) -> None:
        """The holder loses its memory."""
        self.holder: Any = SharedBuckets(lambda: 1e9 + self.clock())

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until, steps = self.clock.now_s + seconds, 0
        while True:
            before = self.clock.now_s
            for process in self.processes:
                process.work()
            due = min(process.due_at for process in self.processes)
            if due > until:
                break
            self.clock.now_s = max(self.clock.now_s, due)
            steps = steps + 1 if self.clock.now_s == before else 0
            assert steps < _MOST_STEPS, "the processes never come to rest"
        self.clock.now_s = max(self.clock.now_s, until)

    def run_until_sent(self, most_s: float) -> None:
        """Let time pass until nothing waits any more; fails if that takes more than ``most_s``."""
        for _ in range(math.ceil(most_s)):
            if not any(process.queued for process in self.processes):
                return
            self.run(1.0)
        waiting = [len(process.queued) for process in self.processes]
        raise AssertionError(f"after {most_s} s there wait {waiting}")


class Member:
    """One process: a bucket, the requests that wait for it, and the leasing that its thread would do."""

    follows_servers = False

    def __init__(self, fleet: Fleet, limits: Limits, offset_s: float) -> None:
        self._fleet = fleet
        self.clock: Callable[[], float] = lambda: fleet.clock() + offset_s
        self.event = WakeEvent()
        self.shared = LeasedLimits(
            limits,
            self.clock,
            limiter=lambda: self,
            name="a",
            run=lambda leasing: self.event,
            account=AccountLimits(self.clock),
        )
        leasing = self.shared.leasing
        assert leasing is not None
        self.leasing: Leasing = leasing
        self.bucket = TokenBucket(limits, clock=self.clock, shared_limits=self.shared, model="m")
        self.queued: deque[float] = deque()
        self.sent: list[tuple[Reservation, list[float]]] = []
        self.due_at = self._step_at = math.inf
        self._head: Reservation | None = None

    # As a limiter.

    def lease(self, account: str, ask: Ask) -> Lease:
        """Ask the holder over the network."""
        fleet = self._fleet
        fleet.clock.now_s += fleet.round_trip_s / 2
        if fleet.is_away:
            raise LimiterError("the holder is away")
        fleet.calls += 1
        fleet.asks.append(ask)
        lease: Lease = fleet.holder.lease(account, ask)
        if fleet.loses_answers:
            raise LimiterError("the answer was lost")
        fleet.clock.now_s += fleet.round_trip_s / 2
        return lease

    def close(self) -> None:
        """There is nothing to close."""

    # As a process.

    def work(self) -> None:
        """Do what is due at this moment, one step of its thread included."""
        self._send()
        if self.event.is_set or self._fleet.clock() >= self._step_at:
            self.event.clear()
            self._step_at = self.leasing.step() + self._fleet.clock()
        delay_s = self._send()
        now = self._fleet.clock()
        self.due_at = now if self.event.is_set else min(now + delay_s, self._step_at)

    def _send(self) -> float:
        """Send what may be sent; the seconds until more may be."""
        while self.queued:
            if self._head is None:
                self._head = Reservation(self.queued[0], WakeEvent())
                self.bucket.enqueue(self._head)
            delay = self.bucket.poll(self._head)
            if self._head.admitted_at is None:
                return delay
            now, tokens = self._fleet.clock(), self.queued.popleft()
            self._fleet.requests.add(now, 1.0)
            self.sent.append((self._head, self._fleet.tokens.add(now, tokens)))
            self._head = None
        return math.inf

    def settle(self, index: int, share: float) -> None:
        """One of the requests that were sent is answered, and used ``share`` of its tokens."""
        reservation, entry = self.sent.pop(index)
        used = reservation.costs[1] * share
        self.bucket.ended(reservation, answered=True, used_tokens=used)
        entry[1] = used
