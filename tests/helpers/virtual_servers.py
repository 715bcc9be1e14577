"""Servers that nobody tuned a client for, and a run against one of them, in virtual time.

The run is the real thing from the bucket to the settlement of each attempt. Only the network, the threads
and the clock are not: see ``virtual.py``.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol

from virtual import World

from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import LeftOut
from parallel_processor.models import Attempt, AttemptStatus, Request, Response
from parallel_processor.options import Limits, Options, RetryPolicy
from parallel_processor.providers.limit_headers import read_limits
from parallel_processor.providers.responses import classify
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest

Respond = Callable[[Response], None]

NGINX = "<html><head><title>503 Service Temporarily Unavailable</title></head></html>"
BUSY = {"error": {"message": "Too many concurrent requests: the limit is 5", "type": "rate_limit"}}
ITSELF = {"error": {"message": "Extra usage is required for this", "type": "rate_limit_error"}}
ANSWER = {
    "id": "a",
    "object": "chat.completion",
    "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
}


def response(status: int, data: Any, **headers: str) -> Response:
    """A response with JSON, or with the text ``data`` if that is a string."""
    is_json = not isinstance(data, str)
    return Response(
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=b"" if is_json else data.encode(),
        data=data if is_json else None,
        is_json=is_json,
    )


class Rule(Protocol):
    """What a server admits."""

    def admits(self, now: float) -> bool:
        """Take a request that arrives now, or turn it away."""

    def left(self) -> None:
        """A request that was admitted has its answer."""


class Slots:
    """So many requests at once (nginx's ``limit_conn``, a gateway's concurrency limit)."""

    def __init__(self, slots: int) -> None:
        self._free = slots

    def admits(self, now: float) -> bool:
        if not self._free:
            return False
        self._free -= 1
        return True

    def left(self) -> None:
        self._free += 1


class Leaky:
    """So many requests a second, and a burst: nginx's ``limit_req`` with ``nodelay``, or a token bucket."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._excess, self._at = 0.0, -math.inf

    def admits(self, now: float) -> bool:
        excess = max(0.0, self._excess - (now - self._at) * self._per_s) + 1.0
        if excess > self._burst + 1.0:
            return False
        self._excess, self._at = excess, now
        return True

    def left(self) -> None:
        pass


class Window:
    """So many requests in each fixed window."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit, self._window_s = limit, window_s
        self._counts: Counter[int] = Counter()

    def admits(self, now: float) -> bool:
        window = int(now // self._window_s)
        if self._counts[window] >= self._limit:
            return False
        self._counts[window] += 1
        return True

    def left(self) -> None:
        pass


class VirtualServer:
    """Admits by ``rule``, answers what it admits, and goes on with it when nobody waits any more.

    With ``slots``, only so many are worked at. The others queue, for ever. Of what arrives, the share
    of each of ``faults`` is responded to with its status, at random; or never, if that is ``None``.
    """

    def __init__(
        self,
        world: World,
        *,
        latency_s: float,
        rule: Rule | None = None,
        jitter: float = 0.0,
        wire_s: float = 0.01,
        slots: float = math.inf,
        refusal: Response | None = None,
        refused_for_ever: Collection[int] = (),
        faults: Mapping[int | None, float] | None = None,
    ) -> None:
        self._faults = faults or {}
        self._world, self._rule = world, rule
        self._latency_s, self._jitter, self._wire_s = latency_s, jitter, wire_s
        self._free = slots
        self._queue: deque[tuple[int, Respond]] = deque()
        self._refusal = refusal or response(429, {"error": {"message": "no"}})
        self._refused_for_ever = refused_for_ever
        self.arrived = self.refused = self.answered = 0

    def _wire(self) -> float:
        return self._world.random.uniform(0.1, 1.9) * self._wire_s

    def send(self, number: int, respond: Respond) -> None:
        """A request leaves the client; ``respond`` is called when its response arrives there."""
        self._world.after(self._wire(), partial(self._arrive, number, respond))

    def _arrive(self, number: int, respond: Respond) -> None:
        self.arrived += 1
        chance = self._world.random.random() if self._faults else 1.0
        for status, share in self._faults.items():
            chance -= share
            if chance < 0.0:
                if status is not None:
                    self._world.after(self._wire(), partial(respond, response(status, NGINX)))
                return
        if number in self._refused_for_ever:
            self._world.after(self._wire(), partial(respond, response(429, ITSELF)))
        elif self._rule is not None and not self._rule.admits(self._world.clock()):
            self.refused += 1
            self._world.after(self._wire(), partial(respond, self._refusal))
        else:
            self._queue.append((number, respond))
            self._work()

    def _work(self) -> None:
        while self._free > 0 and self._queue:
            self._free -= 1
            number, respond = self._queue.popleft()
            jitter = 1.0 + self._jitter * self._world.random.uniform(-1.0, 1.0)
            self._world.after(self._latency_s * jitter, partial(self._end, respond))

    def _end(self, respond: Respond) -> None:
        self._free += 1
        self.answered += 1
        if self._rule is not None:
            self._rule.left()
        self._world.after(self._wire(), partial(respond, response(200, ANSWER)))
        self._work()


class VirtualRun:
    """A run of ``count`` requests. ``ended_s`` is how long it took; infinite if it isn't over."""

    def __init__(
        self,
        world: World,
        server: VirtualServer,
        *,
        count: float = math.inf,
        limits: Limits | None = None,
        timeout_s: float = 600.0,
        max_workers: int = 1000,
        retry: RetryPolicy | None = None,
    ) -> None:
        options = Options(
            request_url="http://localhost/v1/chat/completions",
            limits=limits or Limits(),
            retry=retry or RetryPolicy(),
            request_timeout_s=timeout_s,
            max_workers=max_workers,
        )
        self._world, self._server, self._options = world, server, options
        buckets = TokenBuckets(options, world.clock)
        self.bucket = buckets.bucket(options.request_url, "m")
        self.stop, self.counters = StopSignal(), Counters()
        self._wake = threading.Event()
        self._settlement = Settlement(
            options,
            estimator=CostEstimator(options),
            counters=self.counters,
            stop=self.stop,
            left_out=LeftOut(None),
            on_left_out=lambda bucket: None,
            waker=self._wake,
            clock=world.clock,
            routes=Routes(options, buckets),
        )
        self._left = count
        self._count = count
        self._numbers = itertools.count(1)
        self._again: deque[PendingRequest] = deque()
        self._head: PendingRequest | None = None
        self._place: Reservation | None = None
        self._began_s = world.clock()
        self.sent = self.in_flight = 0
        self.answered: Counter[int] = Counter()  # by second
        self.refused: Counter[int] = Counter()
        self.sends: Counter[int] = Counter()
        self.failed: list[tuple[str, ...]] = []
        self.failed_at_s: list[float] = []
        self.timeouts = 0
        self.ended_s = math.inf
        world.after(0.0, self.turn)

    @property
    def _now_s(self) -> float:
        return self._world.clock() - self._began_s

    def _next(self) -> PendingRequest | None:
        if self._again:
            return self._again.popleft()
        if self._left <= 0:
            return None
        self._left -= 1
        return PendingRequest(
            request=Request(body={"model": "m"}, number=next(self._numbers)),
            group=self.bucket,
            bucket=self.bucket,
        )

    def turn(self) -> None:
        """What the dispatcher does when it wakes."""
        while True:
            self._wake.clear()
            if self.in_flight >= self._options.max_workers or self.stop.is_set():
                return
            if self._place is None:
                self._head = self._next()
                if self._head is None:
                    return
                self._place = Reservation(20.0, self._wake, output_tokens=10.0)
                self.bucket.enqueue(self._place)
            delay = self.bucket.poll(self._place)
            if delay > 0:
                if delay < math.inf:
                    self._world.after(delay + 1e-6, partial(self._poll, self._place))
                return
            assert self._head is not None
            self._send(self._head, self._place)
            self._place = self._head = None

    def _poll(self, place: Reservation) -> None:
        if place is self._place:
            self.turn()

    def _send(self, pending: PendingRequest, place: Reservation) -> None:
        self.sent += 1
        self.sends[int(self._now_s)] += 1
        self.in_flight += 1
        sent_at_s = self._world.clock()
        is_over: list[bool] = []

        def end(result: Response | None) -> None:
            if is_over:
                return
            is_over.append(True)
            latency_s = self._world.clock() - sent_at_s
            if result is not None:
                readings = read_limits(result.headers, now=self._world.clock)
                attempt = classify(result, readings, sent_at_s, latency_s)
            else:
                self.timeouts += 1
                attempt = Attempt(
                    status=AttemptStatus.RETRY,
                    kind="timeout",
                    error="timeout: no answer",
                    sent_at_s=sent_at_s,
                    latency_s=latency_s,
                )
            self._end(pending, place, attempt)

        self._server.send(pending.request.number, end)
        self._world.after(self._options.request_timeout_s, partial(end, None))

    def _end(self, pending: PendingRequest, place: Reservation, attempt: Attempt) -> None:
        """What a worker does when an attempt has ended."""
        self.in_flight -= 1
        if attempt.response is not None and attempt.response.status in (429, 503, 529):
            self.refused[int(self._now_s)] += 1
        settled = self._settlement.settle(pending, place, attempt)
        if settled.outcome is None:
            if settled.retry_in_s > 0:
                self._world.after(settled.retry_in_s, partial(self._come_back, pending))
            else:
                self._again.appendleft(pending)
        elif settled.outcome.ok:
            self.answered[int(self._now_s)] += 1
        else:
            self.failed.append(settled.outcome.errors)
            self.failed_at_s.append(self._now_s)
        if sum(self.answered.values()) + len(self.failed) == self._count:
            self.ended_s = self._now_s
        self.turn()

    def _come_back(self, pending: PendingRequest) -> None:
        self._again.appendleft(pending)
        self.turn()

    def answered_share(self, first_s: int, last_s: int, per_s: float) -> float:
        """What was answered between two seconds, as a share of what so many a second allow."""
        return sum(self.answered[s] for s in range(first_s, last_s)) / (per_s * (last_s - first_s))

    def refused_share(self, first_s: int = 0, last_s: int = 10**6) -> float:
        """The share of what was sent between two seconds that was refused."""
        sent = sum(n for s, n in self.sends.items() if first_s <= s < last_s)
        refused = sum(n for s, n in self.refused.items() if first_s <= s < last_s)
        return refused / max(sent, 1)
