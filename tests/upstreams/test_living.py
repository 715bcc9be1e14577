"""What replicas do of what those that live could do, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from virtual import World

from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import LeftOut
from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus, Estimate, Outcome, Response
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.replicas import BucketGroup
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
READ_AHEAD = 256  # so late a run knows that it comes to its end
WAY_S = 0.005  # to a server and back
REFUSED = Attempt(status=AttemptStatus.UNREACHABLE, kind="connection error", error="refused")
RESET = Attempt(status=AttemptStatus.RETRY, kind="connection error", error="reset")


def reply(status: int) -> Attempt:
    """A response with this status."""
    response = Response(status=status, headers={}, body=b"{}", data={}, is_json=True)
    if status == 200:
        return Attempt(status=AttemptStatus.ANSWERED, response=response)
    text = f"HTTP {status}"
    return Attempt(status=AttemptStatus.RETRY, response=response, kind=text, error=text)


@dataclass
class Server:
    """Answers as many at once as it has slots, and queues the others. It is ill for a while."""

    latency_s: float = 0.1
    slots: int = 8
    ill_s: tuple[float, float] = (math.inf, math.inf)
    illness: Callable[[float], tuple[float, Attempt]] = lambda now: (0.001, REFUSED)
    free_s: list[float] = field(default_factory=list)

    def serve(self, now: float) -> tuple[float, Attempt]:
        """How long a request takes that is sent now, and what comes."""
        begin, end = self.ill_s
        if begin <= now < end:
            return self.illness(now)
        self.free_s = self.free_s or [0.0] * self.slots
        done_s = max(now, self.free_s[0]) + self.latency_s
        if now < begin < done_s:
            self.free_s = [end] * self.slots
            return begin - now, RESET
        heapq.heapreplace(self.free_s, done_s)
        return done_s - now + WAY_S, reply(200)

    def could(self, until_s: float) -> float:
        """How many it can answer until then."""
        begin, end = self.ill_s
        gone_s = max(0.0, min(end, until_s) - begin)
        return (until_s - gone_s) * self.slots / self.latency_s


class Crowd:
    """So many requests, sent to replicas as a run sends them."""

    def __init__(self, servers: list[Server], count: int, workers: int = 1000) -> None:
        random.seed(1)
        self.world, self.stop = World(), StopSignal()
        clock = self.world.clock
        urls = [f"http://{number}.example/v1/embeddings" for number in range(len(servers))]
        options = Options(request_url=urls[0], replica_urls=urls[1:], limits=NO_LIMITS)
        routes = Routes(options, TokenBuckets(options, clock))
        group = routes.group(urls[0], "m")
        assert isinstance(group, BucketGroup)
        self.group, self.servers = group, dict(zip(group.members, servers, strict=True))
        self.settlement = Settlement(
            options,
            estimator=CostEstimator(options),
            counters=Counters(),
            stop=self.stop,
            waker=None,
            clock=clock,
            left_out=LeftOut(None),
            on_left_out=lambda bucket: None,
            routes=routes,
        )
        self.outcomes: list[Outcome] = []
        self.sent: Counter[int] = Counter()  # by server
        self.failed: Counter[int] = Counter()
        self.ended_s = 0.0
        self._began_s, self._workers, self._in_flight = clock(), workers, 0
        self._place: tuple[PendingRequest, Reservation] | None = None
        self._timer_s = math.inf
        self._queue = deque(
            PendingRequest(
                request=made_request({"n": n}, n),
                group=group,
                bucket=group.members[0],
                estimate=Estimate(1),
            )
            for n in range(1, count + 1)
        )
        self._turn()
        while len(self.outcomes) < count and self.world._events:
            self.world.run(1.0)

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self.world.clock() - self._began_s

    def _turn(self) -> None:
        """What a dispatcher does."""
        while self._in_flight < self._workers:
            if self._place is None:
                if not self._queue:
                    return
                left = len(self._queue)
                self._place = self._queue.popleft(), Reservation(1.0)
                is_last = left <= READ_AHEAD
                request, place = self._place
                self.group.place(place, request, left if is_last else math.inf)
            pending, place = self._place
            if place.admitted_at is None and self.group.poll(place):
                self._wake_in(self.group.delay_of(place))
                return
            self._place = None
            pending.bucket, reservation = self.group.admitted(place)
            self._send(pending, reservation)

    def _wake_in(self, delay_s: float) -> None:
        due_s = self.now_s + delay_s
        if due_s < self._timer_s - 1e-9:
            self._timer_s = due_s
            self.world.after(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer_s = math.inf
        self._turn()

    def _send(self, pending: PendingRequest, reservation: Reservation) -> None:
        self._in_flight += 1
        number = self.group.members.index(pending.bucket)
        self.sent[number] += 1
        took_s, attempt = self.servers[pending.bucket].serve(self.now_s)

        def end() -> None:
            self._in_flight -= 1
            self.failed[number] += attempt.status is not AttemptStatus.ANSWERED
            outcome, retry_in_s, _ = self.settlement.settle(pending, reservation, attempt)
            if outcome is not None:
                self.outcomes.append(outcome)
                self.ended_s = self.now_s
            elif retry_in_s:
                self.world.after(retry_in_s, lambda: self._again(pending))
            else:
                self._queue.appendleft(pending)
            self._turn()

        self.world.after(took_s, end)

    def _again(self, pending: PendingRequest) -> None:
        self._queue.appendleft(pending)
        self._turn()

    @property
    def share(self) -> float:
        """What was answered, of what the living could answer until the end."""
        could = sum(server.could(self.ended_s) for server in self.servers.values())
        return sum(outcome.ok for outcome in self.outcomes) / could


ILLNESSES: dict[str, Callable[[float], tuple[float, Attempt]]] = {
    "dead": lambda now: (0.001, REFUSED),
    "500": lambda now: (0.005, reply(500)),
}


@pytest.mark.parametrize("illness", ILLNESSES.values(), ids=ILLNESSES)
def test_the_living_are_used(illness: Callable[[float], tuple[float, Attempt]]) -> None:
    """Of three, one is ten times slower, and one is ill for 20 s of a minute."""
    slow = Server(latency_s=1.0)
    ill = Server(ill_s=(15.0, 35.0), illness=illness)
    crowd = Crowd([Server(), slow, ill], 8500)
    assert all(outcome.ok for outcome in crowd.outcomes)
    assert crowd.share >= 0.95
    assert crowd.failed[2] <= 0.01 * crowd.sent.total()
    assert 55.0 < crowd.ended_s < 65.0
