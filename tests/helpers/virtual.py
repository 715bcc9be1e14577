"""The bucket of a client and the limits of a server in virtual time: an hour passes in a second.

The client does with a :class:`TokenBucket` what a dispatcher and its workers do. The server has the
simulator's limits, headers and rejections. The network between them has varying delays. There is no
thread and no socket, only one heap of events, so every run is the same.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from clocks import FakeClock

from parallel_processor.limiter.buckets import SharedBuckets
from parallel_processor.limiter.leases import Ask, Lease
from parallel_processor.limiter.leasing import Leasing
from parallel_processor.limiter.limits import LeasedLimits
from parallel_processor.models import AttemptStatus, Rejection, Response, Upstream
from parallel_processor.options import Limits
from parallel_processor.providers.limit_headers import read_limits
from parallel_processor.providers.responses import classify
from parallel_processor.ratelimit.accounts import AccountLimits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.simulator import SimulatorOptions
from parallel_processor.simulator.headers import LimitHeaders
from parallel_processor.simulator.limits import RateLimits
from parallel_processor.simulator.load import Load
from parallel_processor.simulator.refusals import refused

PAUSE_S = 15.0
AUTO = Limits(requests_per_minute="auto", tokens_per_minute="auto")


class World:
    """Time, and what is to happen in it."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = FakeClock(1000.0)
        self.random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let ``event`` happen in so many seconds."""
        heapq.heappush(self._events, (self.clock.now_s + seconds, next(self._numbers), event))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.clock.now_s + seconds
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            self.clock.now_s = max(self.clock.now_s, when)
            event()
        self.clock.now_s = until


class Server:
    """The simulator's limits, load and headers, and what it saw in each second."""

    def __init__(self, world: World, **options: Any) -> None:
        self.options = SimulatorOptions(**options)
        self._world = world
        self._limits = RateLimits(self.options, clock=world.clock)
        self._headers = LimitHeaders(self.options.header_style, wall=world.clock)
        self._load = Load(
            best=self.options.best_in_flight,
            exponent=self.options.overload_exponent,
            most=self.options.refuse_in_flight,
        )
        self.admitted: Counter[int] = Counter()  # requests by second
        self.tokens: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self._started_s = world.clock()

    def _second(self) -> int:
        return int(self._world.clock() - self._started_s)

    def refuse(self, answer: Callable[[Response], None]) -> None:
        """Turn a request away, and say nothing of the reason."""
        self._reject(answer, 0.01, make_response(429, "", {"error": {"message": "no"}}))

    def _reject(
        self, answer: Callable[[Response], None], after_s: float, response: Response
    ) -> None:
        self.refused[self._second()] += 1
        self._world.after(after_s, lambda: answer(response))

    def serve(
        self, model: str, read: int, cap: int, used: int, answer: Callable[[Response], None]
    ) -> None:
        """Take a request that arrives now; ``answer`` is called when its response arrives."""
        options, world = self.options, self._world
        way_back_s = world.random.uniform(0.001, 0.02)
        in_flight = self._load.enter()
        if not in_flight:
            error = {"code": "server_is_overloaded", "message": "busy"}
            self._reject(answer, way_back_s, make_response(503, "", {"error": error}))
            return
        written = cap if options.token_charge == "reserve" else 0
        verdict = self._limits.admit(model, read=read, written=written)
        lines = self._headers.levels(verdict.levels, read + written)
        if verdict.refusal is not None:
            self._load.leave()
            hint = options.retry_after
            if hint and verdict.refusal.wait_s is not None:
                lines += self._headers.wait(verdict.refusal.wait_s)
            made = refused(verdict.refusal, model, lines, code=options.refusal_code, hint=hint)
            response = make_response(429, made.headers, json.loads(made.body))
            self._reject(answer, way_back_s, response)
            return
        self.admitted[self._second()] += 1
        self.tokens[self._second()] += read + written
        jitter = 1 + options.latency_jitter * world.random.uniform(-1, 1)
        latency_s = options.latency_s * jitter * self._load.slowdown(in_flight)

        def end() -> None:
            self._load.leave()
            self.answered[self._second()] += 1
            text = lines
            if options.token_charge == "usage":
                levels = self._limits.settle(model, written=used).levels
                self.tokens[self._second()] += used
                text = self._headers.levels(levels, read + used)
            usage = {"prompt_tokens": read, "completion_tokens": used, "total_tokens": read + used}
            answer(make_response(200, text, {"usage": usage}))

        world.after(latency_s + way_back_s, end)


def make_response(status: int, lines: str, data: Any) -> Response:
    pairs = (line.split(": ", 1) for line in lines.split("\r\n") if line)
    headers = {name.lower(): value for name, value in pairs}
    return Response(status=status, headers=headers, body=b"", data=data, is_json=True)


class Client:
    """Endless work for one model, sent as a bucket admits it."""

    def __init__(
        self,
        world: World,
        server: Server,
        limits: Limits = AUTO,
        *,
        model: str = "m",
        shared_limits: SharedLimits | None = None,
        read: int = 50,
        cap: int = 50,
        used: Callable[[], int] | None = None,
        reserved: Callable[[], int] | None = None,
        settles: bool = False,
        max_workers: int = 1000,
        demand_per_s: float = math.inf,
        url: str = "",
    ) -> None:
        self.bucket = TokenBucket(
            limits,
            clock=world.clock,
            shared_limits=shared_limits,
            most_in_flight=max_workers,
            upstream=Upstream(url),
            model=model if url else "",
        )
        self._world, self._server, self._model = world, server, model
        self._read, self._cap = read, cap
        self._used = used or (lambda: cap)
        self._reserved = reserved or (lambda: cap)
        self._settles = settles
        self._max_workers = max_workers
        self._due_s = 0.0 if demand_per_s == math.inf else world.clock()
        self._gap_s = 1.0 / demand_per_s
        self._wake: Any = Waker(world, self.turn) if url else threading.Event()
        self._place: Reservation | None = None
        self.sent = self.refused = self.in_flight = 0
        self.outputs: list[int] = []
        world.after(0.0, self.turn)

    def turn(self) -> None:
        """What the dispatcher does when it wakes."""
        while True:
            if isinstance(self._wake, threading.Event):
                self._wake.clear()
            has_work = self._due_s <= self._world.clock()
            if not has_work or self.in_flight >= self._max_workers:
                return
            if self._place is None:
                output = self._reserved()
                self._place = Reservation(self._read + output, self._wake, output_tokens=output)
                self.bucket.enqueue(self._place)
            delay = self.bucket.poll(self._place)
            if delay > 0:
                if delay < math.inf:
                    self._world.after(delay + 1e-6, partial(self._poll, self._place))
                return
            self._send(self._place)
            self._place = None
            if self._due_s:
                self._due_s += self._gap_s
                self._world.after(max(0.0, self._due_s - self._world.clock()), self.turn)

    def _poll(self, place: Reservation | None) -> None:
        if place is self._place:
            self.turn()

    def _send(self, place: Reservation) -> None:
        self.sent += 1
        self.in_flight += 1
        request = (self._model, self._read, self._cap, self._used())
        serve = partial(self._server.serve, *request, partial(self._end, place))
        self._world.after(self._world.random.uniform(0.001, 0.02), serve)

    def _end(self, place: Reservation, response: Response) -> None:
        """What a worker does when an answer comes."""
        self.in_flight -= 1
        attempt = classify(response)
        bucket = self.bucket
        used = attempt.used_tokens
        if used is not None:
            self.outputs.append(attempt.output_tokens or 0)
            if used < place.costs[1] and not self._settles:
                used = None  # the server charges what was reserved
        bucket.ended(
            place,
            read_limits(response.headers, now=self._world.clock),
            answered=attempt.status is AttemptStatus.ANSWERED,
            used_tokens=used,
            output_tokens=attempt.output_tokens or 0,
        )
        wait_s = None
        if attempt.status is AttemptStatus.RATE_LIMITED:
            wait_s = PAUSE_S if attempt.retry_after_s is None else max(attempt.retry_after_s, 0.1)
        if wait_s is not None or attempt.rejection is not None:
            self.refused += 1
            bucket.refuse(place, attempt.rejection or Rejection(), wait_s)
        self.turn()


def share(counts: Counter[int], first_s: int, last_s: int, per_minute: float) -> float:
    """What ``counts`` hold from ``first_s`` to before ``last_s``, of what so many a minute allow."""
    seconds = range(first_s, last_s)
    return sum(counts[second] for second in seconds) / (per_minute / 60 * len(seconds))


class Waker:
    """An event whose setting lets something happen soon: what a thread does that waits for it."""

    def __init__(self, world: World, do: Callable[[], object], after_s: float = 0.0) -> None:
        self._world, self._do, self._after_s = world, do, after_s
        self._is_set = False

    def set(self) -> None:
        """Let it happen, once however often it is set before."""
        if not self._is_set:
            self._is_set = True
            self._world.after(self._after_s, self._wake)

    def _wake(self) -> None:
        self._is_set = False
        self._do()


class Holder:
    """What holds the buckets of all processes of an account; each has a :class:`LeasedLimits`."""

    follows_servers = True

    def __init__(self, world: World, *, round_trip_s: float = 0.002) -> None:
        self._world, self._round_trip_s = world, round_trip_s
        self.calls = 0
        self.restart()

    def restart(self) -> None:
        """Lose all memory."""
        self._buckets = SharedBuckets(lambda: 1e9 + self._world.clock())

    def limits(self, limits: Limits) -> LeasedLimits:
        """Those of one more process."""
        clock = self._world.clock
        return LeasedLimits(
            limits,
            clock,
            limiter=lambda: self,
            name="a",
            run=self._run,
            account=AccountLimits(clock),
        )

    def _run(self, leasing: Leasing) -> Waker:
        def step() -> None:
            wait_s = leasing.step()
            if wait_s <= 0:
                waker.set()
            elif wait_s < math.inf:
                self._world.after(wait_s, waker.set)

        waker = Waker(self._world, step, self._round_trip_s)
        return waker

    def lease(self, account: str, ask: Ask) -> Lease:
        """Grant a lease."""
        self.calls += 1
        return self._buckets.lease(account, ask)

    def close(self) -> None:
        """There is nothing to close."""
