"""Outages in virtual time: who waits, for how long, and what it costs."""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from virtual import World

from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import LeftOut
from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.files.formats import made_request
from parallel_processor.models import (
    Attempt,
    AttemptStatus,
    Estimate,
    Outcome,
    Rejection,
    Response,
    Upstream,
)
from parallel_processor.options import Limits, Options, RetryPolicy
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.outage import Outages, Verdict
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
TEN_A_SECOND = Limits(requests_per_minute=600, tokens_per_minute=math.inf)


def reply(status: int, meaning: AttemptStatus, text: str = "no") -> Attempt:
    """A response with this status."""
    response = Response(status=status, headers={}, body=b"{}", data={}, is_json=True)
    error = "" if meaning is AttemptStatus.ANSWERED else f"HTTP {status}: {text}"
    return Attempt(status=meaning, response=response, kind=f"HTTP {status}", error=error)


GOOD = reply(200, AttemptStatus.ANSWERED)
LOADING = reply(503, AttemptStatus.NOT_READY, "loading the model")
BAD_GATEWAY = reply(502, AttemptStatus.RETRY)
UNAVAILABLE = replace(reply(503, AttemptStatus.RETRY), rejection=Rejection(overload=True))
FAULTY = reply(500, AttemptStatus.RETRY)
REFUSED = Attempt(status=AttemptStatus.UNREACHABLE, kind="connection error", error="refused")
RESET = Attempt(status=AttemptStatus.RETRY, kind="connection error", error="reset")
TIMEOUT = Attempt(status=AttemptStatus.RETRY, kind="timeout", error="timed out")

Serve = Callable[[float, int], "tuple[float, Attempt]"]
"""A server: from the seconds since the start and a request's number, how long it takes and what comes."""


class Crowd:
    """So many requests for one model, sent as a run sends them, until each has its outcome."""

    def __init__(
        self,
        serve: Serve,
        count: int,
        *,
        workers: int = 50,
        limits: Limits = NO_LIMITS,
        **retry: Any,
    ) -> None:
        random.seed(1)  # of the backoffs
        self.world, self.stop, self.left_out = World(), StopSignal(), LeftOut(None)
        self.clock = self.world.clock
        self.options = Options(
            request_url="http://host/v1/embeddings", limits=limits, retry=RetryPolicy(**retry)
        )
        self.bucket = TokenBucket(limits, clock=self.clock, most_in_flight=workers, model="m")
        self.settlement = Settlement(
            self.options,
            estimator=CostEstimator(self.options),
            counters=Counters(),
            stop=self.stop,
            waker=None,
            clock=self.clock,
            left_out=self.left_out,
            on_left_out=lambda bucket: None,
            routes=Routes(self.options, TokenBuckets(self.options, self.clock)),
        )
        self.outcomes: list[Outcome] = []
        self.sent: list[float] = []
        self.ended_s = 0.0
        self._serve, self._workers, self._in_flight = serve, workers, 0
        self._began_s = self.clock()
        self._queue = deque(
            PendingRequest(
                request=made_request({"n": n}, n),
                group=self.bucket,
                bucket=self.bucket,
                estimate=Estimate(1),
            )
            for n in range(1, count + 1)
        )
        self._place: tuple[PendingRequest, Reservation] | None = None
        self._count = count
        self.world.after(0.0, self._turn)
        while len(self.outcomes) < count and self.world._events:
            self.world.run(1.0)

    def _turn(self) -> None:
        """What the dispatcher does: the head of the queue has a place, which a retry doesn't take."""
        while self._in_flight < self._workers:
            if self._place is None:
                if not self._queue:
                    return
                self._place = (self._queue.popleft(), Reservation(1.0))
                self.bucket.enqueue(self._place[1])
            pending, reservation = self._place
            if self.stop.is_set() or self.bucket in self.left_out:
                self.outcomes.append(Outcome(request=pending.request, ok=False, unanswered=True))
                self._place = None
                continue
            if delay_s := self.bucket.poll(reservation):
                if delay_s < math.inf:
                    self.world.after(delay_s, self._turn)
                return
            self._place = None
            self._send(pending, reservation)

    def _send(self, pending: PendingRequest, reservation: Reservation) -> None:
        self._in_flight += 1
        at_s = self.clock() - self._began_s
        self.sent.append(at_s)
        took_s, attempt = self._serve(at_s, pending.request.number)

        def end() -> None:
            self._in_flight -= 1
            outcome, retry_in_s, _ = self.settlement.settle(pending, reservation, attempt)
            if outcome is not None:
                self.outcomes.append(outcome)
                self.ended_s = self.clock() - self._began_s
            else:
                self.world.after(retry_in_s, lambda: self._again(pending))
            self._turn()

        self.world.after(took_s, end)

    def _again(self, pending: PendingRequest) -> None:
        self._queue.appendleft(pending)
        self._turn()

    @property
    def answered(self) -> int:
        """How many requests have an answer."""
        return sum(outcome.ok for outcome in self.outcomes)

    def sent_between(self, first_s: float, last_s: float) -> int:
        """How many attempts were sent in this time."""
        return sum(first_s <= at_s < last_s for at_s in self.sent)


def out(
    begins_s: float, lasts_s: float, attempt: Attempt, latency_s: float = 0.2, drains: bool = False
) -> Serve:
    """A server that is out of order for a while.

    What is under way then fails at that moment, or is answered if it ``drains``.
    """

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        if begins_s <= at_s < begins_s + lasts_s:
            return 0.01, attempt
        if at_s < begins_s < at_s + latency_s and not drains:
            return begins_s - at_s, RESET
        return latency_s, GOOD

    return serve


# Seconds of the outage's begin and length, what comes meanwhile, and the parts of the run
OUTAGES: dict[str, tuple[float, float, Attempt, dict[str, Any]]] = {
    "it loads for 60 s": (0.0, 60.0, LOADING, {}),
    "a gateway says so in its own way": (0.0, 60.0, BAD_GATEWAY, {}),
    "it restarts for 30 s behind a gateway": (5.0, 30.0, BAD_GATEWAY, {}),
    "it restarts for 30 s by itself": (5.0, 30.0, REFUSED, {}),
    "it is reset": (5.0, 30.0, RESET, {}),
    "a load balancer without servers": (5.0, 30.0, UNAVAILABLE, {}),
    "one worker": (5.0, 30.0, BAD_GATEWAY, {"workers": 1, "count": 100}),
    "within a rate limit": (5.0, 30.0, BAD_GATEWAY, {"limits": TEN_A_SECOND, "count": 200}),
    "two attempts are all that the user wants": (5.0, 30.0, UNAVAILABLE, {"max_attempts": 2}),
    "slow answers, without which 60 in flight would be too few": (
        *(10.0, 30.0, UNAVAILABLE),
        {"limits": Limits(requests_per_minute=1200, tokens_per_minute=math.inf), "count": 800}
        | {"workers": 200, "latency_s": 3.0},
    ),
    "slow answers, and it ends in order": (
        *(10.0, 30.0, UNAVAILABLE),
        {"limits": Limits(requests_per_minute=1200, tokens_per_minute=math.inf), "count": 800}
        | {"workers": 200, "latency_s": 3.0, "drains": True},
    ),
    "nine minutes": (5.0, 540.0, BAD_GATEWAY, {}),
}


@pytest.mark.parametrize("case", OUTAGES)
def test_an_outage_is_waited_for(case: str) -> None:
    """Everything is answered in at most 1.3 times the time of a client that knows, with single probes."""
    begins_s, lasts_s, attempt, parts = OUTAGES[case]
    parts = {"count": 2000} | parts
    latency_s, drains = parts.pop("latency_s", 0.2), parts.pop("drains", False)
    crowd = Crowd(out(begins_s, lasts_s, attempt, latency_s, drains), **parts)
    knows = Crowd(out(0.0, 0.0, attempt, latency_s), **parts)
    assert crowd.answered == parts["count"]
    assert crowd.ended_s <= 1.3 * (knows.ended_s + lasts_s)
    assert crowd.sent_between(begins_s + 4, begins_s + lasts_s) <= 1 + lasts_s / 2


def test_a_loading_server_is_probed_from_the_first_answer_on() -> None:
    """What was sent at once comes back, and then one request goes after each pause, 5 s at most."""
    crowd = Crowd(out(0.0, 60.0, LOADING), 100)
    times = [round(at_s, 1) for at_s in crowd.sent if 0.5 < at_s < 60]
    assert times[:4] == [1.0, 3.0, 7.0, 12.0]
    assert max(later - earlier for earlier, later in zip(times, times[1:], strict=False)) < 5.2


@pytest.mark.parametrize("workers", [1, 8])
def test_one_request_to_blame_keeps_no_outage_alive(workers: int) -> None:
    """A request that breaks its server each time fails after its attempts, and the others are answered."""

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        return (0.05, BAD_GATEWAY if number == 3 else GOOD)

    crowd = Crowd(serve, 400, workers=workers)
    assert crowd.answered == 399
    (failed,) = [outcome for outcome in crowd.outcomes if not outcome.ok]
    assert (failed.request.number, failed.attempts, failed.unanswered) == (3, 5, False)
    assert crowd.ended_s < 400 * 0.05 / workers + 30


def test_a_share_of_failures_is_no_outage() -> None:
    """A third of 502 among good answers costs attempts as ever, and no pause."""

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        return 0.1, BAD_GATEWAY if int(at_s * 1000 + number) % 3 == 0 else GOOD

    crowd = Crowd(serve, 1000, workers=20)
    assert crowd.answered > 950
    assert crowd.bucket.server.pauses < 6  # at the end, when few are left


def test_answers_of_what_was_sent_before_end_no_outage() -> None:
    """A server that ends in order answers what it has while it refuses the rest: nobody's attempts go."""

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        if at_s < 5 or at_s >= 35:
            return 20.0, GOOD
        return 0.01, UNAVAILABLE

    crowd = Crowd(serve, 300, workers=100, limits=TEN_A_SECOND)
    assert crowd.answered == 300
    assert crowd.sent_between(8, 35) < 40


def test_a_server_that_is_back_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not by an answer that was under way when the outage began."""

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        return (0.01, LOADING) if 5 <= at_s < 35 else (20.0, GOOD)

    with caplog.at_level(logging.INFO, "parallel_processor"):
        Crowd(serve, 100, workers=100, limits=TEN_A_SECOND)
    told = [each.partition(" for ")[0] for each in caplog.messages if "waits to be" not in each]
    assert told[-2:] == ["pausing", "host answers again"]
    assert set(told[:-1]) == {"pausing"}


def test_a_server_that_hangs_costs_no_attempt_in_an_outage() -> None:
    """Probes that time out are no failures of their requests."""

    def serve(at_s: float, number: int) -> tuple[float, Attempt]:
        if at_s < 5:
            return 0.2, GOOD
        if at_s < 8:
            return 0.01, BAD_GATEWAY
        return (10.0, TIMEOUT) if at_s < 200 else (0.2, GOOD)

    assert Crowd(serve, 2000).answered == 2000


def test_an_outage_without_end_leaves_the_model_out() -> None:
    """After ``rate_limit_deadline_s`` what is left has no record, and the reason names the model."""
    crowd = Crowd(out(5.0, 1e6, BAD_GATEWAY), 2000, rate_limit_deadline_s=100.0)
    unanswered = [outcome for outcome in crowd.outcomes if outcome.unanswered]
    assert crowd.answered + len(unanswered) == 2000 and unanswered
    assert 100 < crowd.ended_s < 115
    error = crowd.left_out.error()
    assert error is not None and error.stop_cause == "unreachable" and error.models == ("m",)
    assert str(error) == (
        "requests for m are left unanswered: the server was not ready for 100 s: HTTP 502: no"
    )


def test_a_server_that_is_not_there_ends_the_run_soon() -> None:
    """If none was ever reached, ``max_attempts`` rounds of some seconds are all."""
    crowd = Crowd(out(0.0, 1e6, REFUSED), 1000)
    assert crowd.answered == 0
    assert crowd.ended_s < 15 and len(crowd.sent) < 60
    assert "can't reach host: refused" in str(crowd.stop.cause)


def test_a_response_below_500_ends_an_outage() -> None:
    """A server that rejects a request is up: the next ones needn't wait for an answer."""
    crowd = Crowd(
        lambda at_s, n: (0.01, LOADING if at_s < 1 else reply(400, AttemptStatus.FAILED)), 200
    )
    assert len(crowd.outcomes) == 200
    assert crowd.ended_s < 5


def judged(steps: list[Any], requests: int = 1000) -> list[Verdict]:
    """The verdicts on failures at these times; a time alone is an answer to what was sent then.

    ``requests`` of them fail in turn.
    """
    world = World()
    bucket, outages = TokenBucket(NO_LIMITS, clock=world.clock), Outages(RetryPolicy(), world.clock)
    verdicts = []
    for number, step in enumerate(steps):
        at_s, attempt = step if isinstance(step, tuple) else (step, GOOD)
        world.clock.now_s = 1000.0 + at_s
        reservation = Reservation(1.0)
        bucket.enqueue(reservation)
        bucket.ended(reservation, answered=attempt is GOOD)
        if attempt is not GOOD:
            admitted_at = reservation.admitted_at or 0.0
            found = outages.judge(bucket, number % requests, admitted_at, attempt)
            verdicts.append(found.verdict)
    return verdicts


def test_a_server_is_back_for_all_its_models_however_it_is_written() -> None:
    """A host in upper case, or with its usual port, is the same one. Another server's pause goes on."""
    world = World()
    urls = (
        "http://a.example/v1/x",
        "http://A.example/v1/x",
        "http://a.example:80/x",
        "http://b.example/x",
    )
    buckets = [TokenBucket(NO_LIMITS, clock=world.clock, upstream=Upstream(url)) for url in urls]
    outages = Outages(RetryPolicy(), world.clock)
    for bucket in buckets:
        outages.note_pause(bucket)
    assert outages.is_back(buckets[0])
    assert outages.paused == {buckets[3]}


D, OUT, S = Verdict.DOUBTFUL, Verdict.OUT, Verdict.SERVES


@pytest.mark.parametrize(
    ("steps", "verdicts"),
    [
        ([(s, BAD_GATEWAY) for s in (0, 0.5, 1, 1.5, 2)], [S, S, D, D, OUT]),
        ([(s, BAD_GATEWAY) for s in (0, 0.1, 0.2, 0.3, 0.4)], [S, S, D, D, D]),  # too short to say
        ([(s, FAULTY) for s in range(6)], [S] * 6),  # its own fault
        ([(s, TIMEOUT) for s in range(6)], [S] * 6),  # load, for others to judge
        ([(0, LOADING)], [OUT]),
        ([(0, REFUSED), 1, (2, BAD_GATEWAY), (3, BAD_GATEWAY)], [OUT, S, S]),
        ([(0, BAD_GATEWAY), 1, (2, LOADING)], [S, S]),  # one of several servers loads
        ([(0, LOADING), (1, FAULTY), (2, TIMEOUT), (3, BAD_GATEWAY)], [OUT, S, OUT, OUT]),
        ([(0, LOADING), (1, reply(404, AttemptStatus.FAILED)), (2, BAD_GATEWAY)], [OUT, S, S]),
    ],
)
def test_verdicts(steps: list[Any], verdicts: list[Verdict]) -> None:
    """What a failure says depends on what was answered since the first of them."""
    assert judged(steps) == verdicts


def test_two_requests_are_no_outage() -> None:
    """They may be to blame themselves, and each of their attempts may be paid for."""
    steps = [(s, BAD_GATEWAY) for s in range(9)]
    assert judged(steps, requests=2) == [S] * 9
    assert judged(steps, requests=3) == [S, S, D, D] + [OUT] * 5


def test_a_server_that_never_answers_stops_the_run() -> None:
    """It takes connections, and answers none: single requests time out for a minute, then that is said."""
    crowd = Crowd(lambda at_s, number: (1.0, TIMEOUT), 200)
    assert isinstance(crowd.stop.cause, RunStoppedError)
    assert crowd.stop.cause.stop_cause is StopCause.UNREACHABLE
    assert "host takes connections but doesn't answer within 600 s" in str(crowd.stop.cause)
    assert 60.0 <= max(crowd.sent) < 75.0


def test_a_server_that_never_answers_stops_the_run_also_after_long_timeouts() -> None:
    """With timeouts of ten minutes, it is not tried one by one for hours."""
    crowd = Crowd(lambda at_s, number: (600.0, TIMEOUT), 200)
    assert isinstance(crowd.stop.cause, RunStoppedError) and max(crowd.sent) < 1300.0


def test_a_server_that_answers_in_the_end_goes_on() -> None:
    """A model that loads for 50 s while requests time out, or whatever has answered once, is no silence."""
    slow_start = Crowd(lambda at_s, n: (1.0, TIMEOUT) if at_s < 50.0 else (0.2, GOOD), 100)
    assert slow_start.stop.cause is None and slow_start.answered >= 85
    one_answer = Crowd(lambda at_s, n: (0.2, GOOD) if at_s < 0.1 and n == 1 else (1.0, TIMEOUT), 10)
    assert one_answer.stop.cause is None and len(one_answer.outcomes) == 10


@pytest.mark.parametrize("fault", [FAULTY, TIMEOUT, RESET, UNAVAILABLE])
def test_where_others_answer_three_faults_are_an_outage(fault: Attempt) -> None:
    """Whatever the fault is: its requests go to the others. A single server would have to be sure."""
    clock = World().clock
    bucket = TokenBucket(NO_LIMITS, clock=clock)
    for others_answered_at, verdicts in (
        (clock() + 1.0, [Verdict.SERVES, Verdict.SERVES, Verdict.OUT, Verdict.OUT]),
        (-math.inf, [Verdict.SERVES, Verdict.SERVES, Verdict.DOUBTFUL, Verdict.DOUBTFUL]),
    ):
        outages = Outages(RetryPolicy(), clock)
        found = [outages.judge(bucket, n, clock(), fault, others_answered_at) for n in range(4)]
        assert [judgement.verdict for judgement in found] == verdicts
        assert outages.is_out(bucket) == (Verdict.OUT in verdicts)


def test_while_others_serve_a_server_that_is_away_is_tried_each_second() -> None:
    """A connection that is refused costs nothing there; else the pauses grow to 5 seconds."""
    clock = World().clock
    bucket = TokenBucket(NO_LIMITS, clock=clock)
    for others_answered_at, last_s in ((clock() + 1.0, 1.0), (-math.inf, 5.0)):
        outages = Outages(RetryPolicy(), clock)
        pauses = []
        for n in range(6):
            clock.now_s += 10.0
            at_s = others_answered_at + 1000.0
            pauses.append(outages.judge(bucket, n, clock(), REFUSED, at_s).pause_s)
        assert (pauses[0], pauses[-1], outages.rounds(bucket)) == (1.0, last_s, 6)
        assert outages.out_for_s(bucket) == 50.0
