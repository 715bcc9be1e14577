"""The queues in which requests wait for their buckets.

The clock of the buckets stands still unless a test moves it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from clocks import FakeClock, admitted_by

from parallel_processor.engine.queues import RequestQueues
from parallel_processor.models import Estimate, Request, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.tokens.estimates import Cost
from parallel_processor.upstreams.replicas import AnyBucket, BucketGroup
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest, RetryState

AT_ONCE = -math.inf


def cost(estimate: Estimate) -> Cost:
    """What an attempt is expected to be charged."""
    return Cost(estimate.input_tokens, estimate.output_cap)


@pytest.fixture
def wake() -> threading.Event:
    """What buckets wake."""
    return threading.Event()


@pytest.fixture
def queues(wake: threading.Event) -> RequestQueues:
    """Queues in which nobody waits."""
    return RequestQueues(cost, wake)


def bucket_of(requests: float = math.inf, tokens: float = math.inf) -> TokenBucket:
    """A bucket of its own."""
    limits = Limits(requests_per_minute=requests, tokens_per_minute=tokens)
    return TokenBucket(limits, clock=FakeClock())


def loaded_bucket() -> TokenBucket:
    """A bucket whose server may have one request in flight, and has it."""
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    bucket = TokenBucket(limits, clock=FakeClock(), most_in_flight=1)
    assert bucket.enqueue(Reservation(1.0))
    return bucket


def paused_bucket(seconds: float = 300.0) -> TokenBucket:
    """A bucket that admits nothing for a while."""
    bucket = bucket_of()
    bucket.pause(seconds)
    return bucket


def added(queues: RequestQueues, pending: PendingRequest) -> bool:
    """The reader puts a request, and somebody with the lock queues it; true if its queue was empty."""
    is_new = queues.put(pending)
    queues.take_in(len(queues.inbox))
    return is_new


def make(
    number: int, bucket: AnyBucket, *, tried: bool = False, size_bytes: int = 1, tokens: int = 1
) -> PendingRequest:
    """A request on its way."""
    request = Request(body={}, payload=bytes(size_bytes), number=number)
    retry_state = RetryState(request=request, sent=1) if tried else None
    estimate = Estimate(input_tokens=tokens, output_cap=0)
    return PendingRequest(
        request=request,
        estimate=estimate,
        group=bucket,
        bucket=bucket.members[0],
        retry_state=retry_state,
    )


def number_of(admitted: AdmittedRequest | None) -> int | None:
    """Who was admitted."""
    return None if admitted is None else admitted.pending.request.number


def all_of(queues: RequestQueues) -> list[int | None]:
    """Who is admitted one after the other."""
    admitted = list(iter(lambda: number_of(queues.admit()), None))
    assert queues.admit() is None
    return admitted


class Play:
    """Queues, and a script of events and of what must be so after them.

    There are buckets that admit everything (``free``, ``other``), one a second (``minute``; ``slow`` has
    just admitted one), one in flight, which there is (``loaded``), and nothing for a while (``paused``;
    ``brief`` for 30 s). Requests are numbered from 0 as they are put.
    """

    def __init__(self) -> None:
        self.queues = queues = RequestQueues(cost, threading.Event())
        slow = bucket_of(60)
        slow.enqueue(Reservation(1.0))
        self.buckets = {
            "free": bucket_of(600),
            "other": bucket_of(),
            "minute": bucket_of(60),
            "slow": slow,
            "loaded": loaded_bucket(),
            "paused": paused_bucket(),
            "brief": paused_bucket(30.0),
        }
        self.count, self.news = 0, [False]
        self.facts: dict[str, Callable[[], object]] = {
            "next": lambda: number_of(queues.admit()),
            "all": lambda: " ".join(map(str, all_of(queues))),
            "wait": queues.take_places,
            "new": lambda: " ".join(map(str, self.news)),
            "cause": lambda: queues.wait_cause.value,
            "passed": lambda: queues.all_wait,
            "clear": lambda: " ".join(str(number) for number in self._clear()),
            "queues": lambda: len(queues),
            "counts": lambda: f"{queues.count} {queues.later} {queues.size_bytes}",
        }

    def __call__(self, script: str) -> None:
        """Let this happen, and check it."""
        for event in script.split(", "):
            kind, _, words = event.partition(" ")
            if kind in self.facts:
                assert str(self.facts[kind]()) == words, event
            else:
                getattr(self, f"_do_{kind}")(*words.split())

    def _clear(self) -> list[int]:
        return sorted(each.request.number for each in self.queues.clear())

    def _make(self, name: str, size_bytes: int = 1, **how: Any) -> PendingRequest:
        self.count += 1
        return make(self.count - 1, self.buckets[name], size_bytes=size_bytes, **how)

    def _do_put(self, *names: str) -> None:
        self.news = [added(self.queues, self._make(name)) for name in names]

    def _do_large(self, name: str, size_bytes: str) -> None:
        added(self.queues, self._make(name, int(size_bytes)))

    def _do_uncounted(self, name: str) -> None:
        pending = self._make(name)
        pending.estimate = None
        added(self.queues, pending)

    def _do_again(self, name: str, due_at: str = "-inf", size_bytes: str = "1") -> None:
        pending = self._make(name, int(size_bytes), tried=True)
        self.queues.add_again(pending, float(due_at))

    def _do_due(self, now: str, _: str, next_at: str) -> None:
        assert self.queues.release_due(float(now)) == float(next_at)

    def _do_soon(self) -> None:
        assert 0.0 < self.queues.take_places() < 2.0

    def _do_back(self) -> None:
        self.queues.give_places_back()

    def _do_pass(self, name: str) -> None:
        self.buckets[name]._clock.now_s += 1e6  # type: ignore[attr-defined]

    # What must be so of a bucket.

    def _do_places(self, name: str, count: str) -> None:
        assert len(self.buckets[name].queue) == int(count)

    def _do_charged(self, name: str, count: str) -> None:
        bucket = self.buckets[name]
        assert admitted_by(bucket)["requests"] == bucket.server.in_flight.count == int(count)


PLAYS = {
    # Who goes.
    "a queue is first come, first served": (
        "put free free free free free, new True False False False False, all 0 1 2 3 4, queues 0, "
        "put free, new True"
    ),
    "each queue has its turn, however long it is": (
        "put free free free free, put other other, all 0 4 1 5 2 3"
    ),
    "no queue waits for another": (
        "put paused minute free loaded, put paused minute free loaded, put paused minute free loaded, "
        "all 1 2 6 10, queues 3, places paused 1, places minute 1, places free 0, places loaded 1"
    ),
    # Places.
    "only the head of each queue takes a place, and the shortest wait is told": (
        "put paused brief paused brief, wait 30.0, places paused 1, places brief 1, wait 30.0, "
        "places paused 1, places brief 1"
    ),
    "a bucket that waits for the end of an exchange knows no time, nor does nobody": (
        "wait inf, put loaded, wait inf"
    ),
    "a place may be admitted when it is taken": "put paused free, wait 0.0, all 1",
    "places that are given back are free and not charged, and the order stays": (
        "put paused free slow paused free slow paused free slow, wait 0.0, next 1, wait 0.0, "
        "charged free 2, places paused 1, places slow 1, back, places paused 0, places free 0, "
        "places slow 0, charged free 1, counts 8 0 8, pass paused, pass slow, all 0 2 4 3 7 6"
    ),
    # What is tried again.
    "what is tried again goes before all that have no place yet": (
        "put free free free, again free, all 3 0 1 2"
    ),
    "what has a place keeps it, also once it is given back": (
        "put paused paused, wait 300.0, again paused, back, pass paused, all 0 2 1"
    ),
    "what is tried again may be a queue of its own, at once or when its time has come": (
        "again free, queues 1, again other 1010, queues 1, due 1010 -> inf, queues 2, all 0 1"
    ),
    "nothing is released before its time, and the next time is told": (
        "due 1000 -> inf, again free 1030, again free 1010, again free 1020, put free free, "
        "due 1009.9 -> 1010, next 3, due 1010 -> 1020, next 1, due 1029.9 -> 1030, next 2, next 4, "
        "next None, counts 0 1 1, due 1e6 -> inf, all 0"
    ),
    "all whose time has come go before the others, equal times included": (
        "put free other free other, again free 1000, again other 1000, again free 1001, again other 1001, "
        "due 2000 -> inf, all 4 5 6 7 0 1 2 3"
    ),
    # What is counted.
    "all that waits is counted with its size until it goes: with a place, without, in a backoff": (
        "large free 10, large free 200, again free -inf 3000, again free 1010 40000, counts 3 1 43210, "
        "wait 0.0, counts 3 1 43210, back, counts 3 1 43210, all 2 0 1, counts 0 1 40000, due 1010 -> inf, "
        "counts 1 0 40000, all 3, counts 0 0 0"
    ),
    "neither a bucket that was waited for nor a backoff is a queue": (
        "queues 0, put free free, queues 1, next 0, queues 1, next 1, again free 1010, queues 0"
    ),
    # The end.
    "clearing returns all: with a place, without, uncounted, in a backoff": (
        "again paused, put paused brief, wait 30.0, again brief, again paused 1010, again free 1020, "
        "uncounted brief, clear 0 1 2 3 4 5 6"
    ),
    "clearing leaves nothing behind": (
        "put paused minute paused, again minute 1010, wait 0.0, clear 0 1 2 3, places paused 0, "
        "places minute 0, charged minute 0, queues 0, counts 0 0 0, due 1e9 -> inf, next None, clear "
    ),
    # What they wait for.
    "of a pause of minutes and a limit of seconds, the limit is what is waited for": (
        "put paused, wait 300.0, cause pause, put slow, soon, cause requests"
    ),
    "it isn't worth it to look further if nothing waits": (
        "passed False, put free other, all 0 1, passed False"
    ),
    "behind a single model that is paused there may be others": "put paused, wait 300.0, passed True",
    "behind a single model that waits for its limit there may be others": "put slow, soon, passed True",
    "a single model's load is not passed, unless another model has been seen": (
        "put loaded, wait inf, passed False, put other, passed False, all 1, wait inf, passed True"
    ),
}


@pytest.mark.parametrize("script", PLAYS.values(), ids=PLAYS)
def test_what_happens(script: str) -> None:
    """Which request goes when, which has a place in its bucket, and what is counted."""
    Play()(script)


def test_who_goes_has_what_its_bucket_admitted(queues: RequestQueues) -> None:
    """The reservation is charged with what the attempt is expected to cost when it goes."""
    bucket = bucket_of(60, 6000)
    added(queues, make(0, bucket, tokens=40))
    admitted = queues.admit()
    assert admitted is not None
    assert admitted.reservation.admitted_at == 1000.0
    assert admitted_by(bucket) == {"requests": 1, "tokens": 40}


def test_what_an_attempt_costs_is_asked_when_it_is_its_turn(wake: threading.Event) -> None:
    """Who waits behind others is charged with what is known when it becomes first."""
    factor = 1
    queues = RequestQueues(lambda estimate: Cost(factor * estimate.input_tokens), wake)
    bucket = bucket_of(tokens=60_000)
    added(queues, make(0, bucket, tokens=10))
    added(queues, make(1, bucket, tokens=10))
    queues.admit()
    factor = 3
    queues.admit()
    assert admitted_by(bucket)["tokens"] == 40


def test_the_output_has_its_share_of_the_cost(wake: threading.Event) -> None:
    """What is expected of the answer is charged as output."""
    queues = RequestQueues(lambda estimate: Cost(30.0, 10.0), wake)
    added(queues, make(0, bucket_of()))
    admitted = queues.admit()
    assert admitted is not None
    assert admitted.reservation.costs == (1.0, 30.0, 20.0, 10.0)


def test_one_poll_is_for_all_under_shared_limits(
    queues: RequestQueues, wake: threading.Event
) -> None:
    """What a bucket admits while another's is asked for goes when somebody asks again."""
    clock = FakeClock()
    one = TokenBucket(Limits(), clock=clock)
    other = TokenBucket(Limits(), clock=clock, shared_limits=one.shared_limits)
    for bucket in (one, other):
        bucket.pause(10.0)
    added(queues, make(0, one))
    added(queues, make(1, other))
    assert queues.admit() is None
    clock.now_s += 20.0
    assert number_of(queues.admit()) == 0
    assert wake.is_set()
    assert admitted_by(other)["requests"] == 2
    assert queues.take_places() == 0.0
    assert number_of(queues.admit()) == 1


def test_a_queue_behind_another_runs_place_waits_for_it(
    queues: RequestQueues, wake: threading.Event
) -> None:
    """Where a bucket is shared, who came first is first, and the next hears of it."""
    bucket = bucket_of(60)
    bucket.enqueue(Reservation(1.0))
    theirs = Reservation(1.0, threading.Event())
    bucket.enqueue(theirs)
    added(queues, make(0, bucket))
    assert queues.admit() is None
    assert 0.0 < queues.take_places() < math.inf
    wake.clear()
    bucket._clock.now_s += 1.1  # type: ignore[attr-defined]
    assert bucket.poll(theirs) == 0.0
    assert wake.is_set()


def test_a_queue_hears_when_it_becomes_first_by_a_call_for_another_bucket(
    queues: RequestQueues, wake: threading.Event
) -> None:
    """What is told to another bucket under the shared limits may let the place before it go."""
    clock, limits = FakeClock(), Limits(requests_per_minute=6e5, tokens_per_minute=6000.0)
    one = TokenBucket(limits, clock=clock)
    other = TokenBucket(limits, clock=clock, shared_limits=one.shared_limits)
    dear, theirs = Reservation(500.0), Reservation(50.0, threading.Event())
    assert one.enqueue(dear)
    assert not one.enqueue(theirs)
    added(queues, make(0, one))
    assert queues.admit() is None
    assert queues.take_places() > 5.0
    one.ended(dear, used_tokens=1.0)  # it was not that dear: theirs may go soon, and hears of it
    wake.clear()
    clock.now_s += 0.1
    assert not other.enqueue(Reservation(1.0))
    assert theirs.admitted_at is not None
    assert one.queue[0].wake is wake
    assert one.delay < 0.1
    assert wake.is_set()


def test_clearing_wakes_whom_a_place_held_up(queues: RequestQueues) -> None:
    """Another run that waits behind a place which is given back hears of it."""
    bucket = bucket_of(60)
    bucket.enqueue(Reservation(1.0))
    added(queues, make(0, bucket))
    queues.take_places()
    theirs = Reservation(1.0, threading.Event())
    bucket.enqueue(theirs)
    queues.clear()
    assert theirs.wake.is_set()
    assert bucket.queue[0] is theirs


def test_each_bucket_has_its_cause(queues: RequestQueues) -> None:
    """A queue waits for what its bucket says, a bucket without a queue for what the run does."""
    slow, paused, idle = bucket_of(60), paused_bucket(), bucket_of()
    slow.enqueue(Reservation(1.0))
    for number, bucket in enumerate((slow, paused, idle)):
        added(queues, make(number, bucket))
    assert all_of(queues) == [2]
    causes = dict(queues.causes(WaitCause.INPUT, False))
    assert causes == {slow: "requests", paused: "pause", idle: "input"}
    assert len(queues.causes(WaitCause.INPUT, False)) == 3


def test_where_workers_are_short_no_bucket_is_the_cause(queues: RequestQueues) -> None:
    """Those whose requests wait do so for what the run waits for."""
    paused, idle = paused_bucket(), bucket_of()
    added(queues, make(0, paused))
    added(queues, make(1, idle))
    assert all_of(queues) == [1]
    assert dict(queues.causes(WaitCause.MAX_WORKERS, True)) == {paused: "max_workers"}


def test_where_all_requests_are_sent_each_bucket_waits_as_the_run_does(
    queues: RequestQueues,
) -> None:
    """As long as any request waits, a bucket without a queue waits for no worker."""
    bucket = bucket_of()
    added(queues, make(0, bucket))
    assert all_of(queues) == [0]
    assert queues.causes(WaitCause.MAX_WORKERS, True) == [(bucket, "max_workers")]


def test_only_upstreams_in_use_have_a_cause(queues: RequestQueues) -> None:
    """One that is set aside waits for nothing, nor does the CPU count for one without the head's place."""
    one, other, aside = paused_bucket(), bucket_of(), bucket_of()
    group = BucketGroup((one, other, aside), FakeClock())
    group.set_aside(aside)
    added(queues, make(0, group))
    queues.take_places()
    assert queues.admit() is not None
    assert dict(queues.causes(WaitCause.ANSWERS, False)) == dict.fromkeys((one, other), "answers")
    other.pause(60.0)
    again = make(1, group)
    again.retry_state = RetryState(request=again.request)
    again.retry_state.failed_by[one] = math.inf
    added(queues, again)
    queues.take_places()
    assert dict(queues.causes(WaitCause.ANSWERS, False)) == {one: "answers", other: "pause"}


def test_a_bucket_that_nobody_asked_for_has_no_cause(queues: RequestQueues) -> None:
    """Only what requests came for is held back by anything."""
    assert queues.causes(WaitCause.INPUT, False) == []
