"""The lines in which requests wait for their buckets.

The clock of the buckets stands still unless a test moves it.
"""

from __future__ import annotations

import math
import threading

import pytest
from clocks import FakeClock, admitted_by

from parallel_processor.engine.queues import RequestQueues
from parallel_processor.models import Estimate, Request
from parallel_processor.options import Limits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.tokens.estimates import Cost
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
def lines(wake: threading.Event) -> RequestQueues:
    """Lines in which nobody waits."""
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


def make(
    number: int, bucket: TokenBucket, *, tried: bool = False, size_bytes: int = 1, tokens: int = 1
) -> PendingRequest:
    """A request on its way."""
    request = Request(body={}, payload=bytes(size_bytes), number=number)
    retry_state = RetryState(request=request, sent=1) if tried else None
    estimate = Estimate(input_tokens=tokens, output_cap=0)
    return PendingRequest(
        request=request, estimate=estimate, bucket=bucket, retry_state=retry_state
    )


def number_of(admitted: AdmittedRequest | None) -> int | None:
    """Who was admitted."""
    return None if admitted is None else admitted.pending.request.number


def all_of(lines: RequestQueues) -> list[int | None]:
    """Who is admitted one after the other."""
    admitted = list(iter(lambda: number_of(lines.admit()), None))
    assert lines.admit() is None
    return admitted


# Who goes.


def test_a_line_is_first_come_first_served(lines: RequestQueues) -> None:
    """Those who wait for one bucket go in the order in which they came."""
    bucket = bucket_of()
    news = [lines.add(make(number, bucket)) for number in range(5)]
    assert news == [True, False, False, False, False]
    assert all_of(lines) == [0, 1, 2, 3, 4]
    assert not lines
    assert lines.add(make(5, bucket))


def test_each_line_has_its_turn(lines: RequestQueues) -> None:
    """However long a line is, the next one's first goes behind its first."""
    long, short = bucket_of(), bucket_of()
    for number in range(4):
        lines.add(make(number, long))
    lines.add(make(4, short))
    lines.add(make(5, short))
    assert all_of(lines) == [0, 4, 1, 5, 2, 3]


def test_no_line_waits_for_another(lines: RequestQueues) -> None:
    """Who is behind a bucket that waits goes if its own admits it."""
    buckets = [paused_bucket(), bucket_of(60), bucket_of(), loaded_bucket()]
    for number in range(12):
        lines.add(make(number, buckets[number % 4]))
    assert all_of(lines) == [1, 2, 6, 10]
    assert len(lines) == 3
    assert [len(bucket.queue) for bucket in buckets] == [1, 1, 0, 1]


def test_who_goes_has_what_its_bucket_admitted(lines: RequestQueues) -> None:
    """The reservation is charged with what the attempt is expected to cost when it goes."""
    bucket = bucket_of(60, 6000)
    lines.add(make(0, bucket, tokens=40))
    admitted = lines.admit()
    assert admitted is not None
    assert admitted.reservation.admitted_at == 1000.0
    assert admitted_by(bucket) == {"requests": 1, "tokens": 40}


def test_what_an_attempt_costs_is_asked_when_it_is_its_turn(wake: threading.Event) -> None:
    """Who waits behind others is charged with what is known when it becomes first."""
    factor = 1
    lines = RequestQueues(lambda estimate: Cost(factor * estimate.input_tokens), wake)
    bucket = bucket_of(tokens=60_000)
    lines.add(make(0, bucket, tokens=10))
    lines.add(make(1, bucket, tokens=10))
    lines.admit()
    factor = 3
    lines.admit()
    assert admitted_by(bucket)["tokens"] == 40


def test_the_output_has_its_share_of_the_cost(wake: threading.Event) -> None:
    """What is expected of the answer is charged as output."""
    lines = RequestQueues(lambda estimate: Cost(30.0, 10.0), wake)
    lines.add(make(0, bucket_of()))
    admitted = lines.admit()
    assert admitted is not None
    assert admitted.reservation.costs == (1.0, 30.0, 20.0, 10.0)


def test_one_poll_is_for_all_under_a_ceiling(lines: RequestQueues, wake: threading.Event) -> None:
    """What a bucket admits while another's is asked for goes when somebody asks again."""
    clock = FakeClock()
    one = TokenBucket(Limits(), clock=clock)
    other = TokenBucket(Limits(), clock=clock, shared_limits=one.shared_limits)
    for bucket in (one, other):
        bucket.pause(10.0)
    lines.add(make(0, one))
    lines.add(make(1, other))
    assert lines.admit() is None
    clock.now_s += 20.0
    assert number_of(lines.admit()) == 0
    assert wake.is_set()
    assert admitted_by(other)["requests"] == 2
    assert lines.take_places() == 0.0
    assert number_of(lines.admit()) == 1


def test_a_line_behind_another_runs_place_waits_for_it(
    lines: RequestQueues, wake: threading.Event
) -> None:
    """Where a bucket is shared, who came first is first, and the next hears of it."""
    bucket = bucket_of(60)
    bucket.enqueue(Reservation(1.0))
    theirs = Reservation(1.0, threading.Event())
    bucket.enqueue(theirs)
    lines.add(make(0, bucket))
    assert lines.admit() is None
    assert 0.0 < lines.take_places() < math.inf
    wake.clear()
    bucket._clock.now_s += 1.1  # type: ignore[attr-defined]
    assert bucket.poll(theirs) == 0.0
    assert wake.is_set()


def test_a_line_hears_when_it_becomes_first_by_a_call_for_another_bucket(
    lines: RequestQueues, wake: threading.Event
) -> None:
    """What is told to another bucket under the ceiling may let the place before it go."""
    clock, limits = FakeClock(), Limits(requests_per_minute=6e5, tokens_per_minute=6000.0)
    one = TokenBucket(limits, clock=clock)
    other = TokenBucket(limits, clock=clock, shared_limits=one.shared_limits)
    dear, theirs = Reservation(500.0), Reservation(50.0, threading.Event())
    assert one.enqueue(dear)
    assert not one.enqueue(theirs)
    lines.add(make(0, one))
    assert lines.admit() is None
    assert lines.take_places() > 5.0
    one.ended(dear, used_tokens=1.0)  # it was not that dear: theirs may go soon, and hears of it
    wake.clear()
    clock.now_s += 0.1
    assert not other.enqueue(Reservation(1.0))
    assert theirs.admitted_at is not None
    assert one.queue[0].wake is wake
    assert one.delay < 0.1
    assert wake.is_set()


# Places.


def test_the_first_of_each_line_takes_a_place(lines: RequestQueues) -> None:
    """Nobody else does, and the shortest wait is told."""
    long, short = paused_bucket(300.0), paused_bucket(30.0)
    for number in range(6):
        lines.add(make(number, (long, short)[number % 2]))
    assert lines.take_places() == 30.0
    assert [len(bucket.queue) for bucket in (long, short)] == [1, 1]
    assert lines.take_places() == 30.0
    assert [len(bucket.queue) for bucket in (long, short)] == [1, 1]


def test_who_waits_for_nothing_but_others_may_wait_for_ever(lines: RequestQueues) -> None:
    """A bucket that waits for the end of an exchange knows no time, nor does nobody."""
    assert lines.take_places() == math.inf
    lines.add(make(0, loaded_bucket()))
    assert lines.take_places() == math.inf


def test_a_place_may_be_admitted_when_it_is_taken(lines: RequestQueues) -> None:
    """Then nothing is to be waited for."""
    lines.add(make(0, paused_bucket()))
    lines.add(make(1, bucket_of()))
    assert lines.take_places() == 0.0
    assert all_of(lines) == [1]


def test_places_that_are_given_back_are_free(lines: RequestQueues) -> None:
    """Others are behind nobody, what was admitted isn't charged, and the order stays as it was."""
    paused, free, slow = paused_bucket(), bucket_of(600), bucket_of(60)
    slow.enqueue(Reservation(1.0))
    for number in range(9):
        lines.add(make(number, (paused, free, slow)[number % 3]))
    assert lines.take_places() == 0.0
    assert lines.admit() is not None
    lines.take_places()
    assert admitted_by(free)["requests"] == 2
    assert all(bucket.queue for bucket in (paused, slow))
    lines.give_places_back()
    assert not any(bucket.queue for bucket in (paused, free, slow))
    assert admitted_by(free)["requests"] == 1
    assert free.server.in_flight.count == 1
    assert lines.count == 8
    for bucket in (paused, slow):
        bucket._clock.now_s += 1e6  # type: ignore[attr-defined]
    order = all_of(lines)
    assert [number for number in order if number % 3 == 0] == [0, 3, 6]
    assert [number for number in order if number % 3 == 1] == [4, 7]
    assert [number for number in order if number % 3 == 2] == [2]


# Those that are tried again.


def test_who_is_tried_again_is_the_head_of_its_line(lines: RequestQueues) -> None:
    """It goes before whoever has no place yet."""
    bucket = bucket_of()
    for number in range(3):
        lines.add(make(number, bucket))
    lines.add_again(make(9, bucket, tried=True), AT_ONCE)
    assert all_of(lines) == [9, 0, 1, 2]


def test_who_has_a_place_keeps_it(lines: RequestQueues) -> None:
    """Who comes back is the next behind the one that has the line's place, also once it is given back."""
    bucket = paused_bucket()
    for number in range(2):
        lines.add(make(number, bucket))
    lines.take_places()
    lines.add_again(make(9, bucket, tried=True), AT_ONCE)
    lines.give_places_back()
    bucket._clock.now_s += 1e6  # type: ignore[attr-defined]
    assert all_of(lines) == [0, 9, 1]


def test_who_is_tried_again_may_be_the_only_one(lines: RequestQueues) -> None:
    """It makes a line of its own, at once or when its time has come."""
    at_once, later = bucket_of(), bucket_of()
    lines.add_again(make(0, at_once, tried=True), AT_ONCE)
    assert len(lines) == 1
    lines.add_again(make(1, later, tried=True), 1010.0)
    assert len(lines) == 1
    assert lines.release_due(1010.0) == math.inf
    assert len(lines) == 2
    assert all_of(lines) == [0, 1]


def test_nobody_is_called_before_its_time(lines: RequestQueues) -> None:
    """Each comes to the head of its line when its backoff is over, and the next one's time is told."""
    bucket = bucket_of()
    assert lines.release_due(1000.0) == math.inf
    lines.add_again(make(7, bucket, tried=True), 1030.0)
    lines.add_again(make(8, bucket, tried=True), 1010.0)
    lines.add_again(make(9, bucket, tried=True), 1020.0)
    lines.add(make(0, bucket))
    lines.add(make(1, bucket))
    assert lines.release_due(1009.9) == 1010.0
    assert number_of(lines.admit()) == 0
    assert lines.release_due(1010.0) == 1020.0
    assert number_of(lines.admit()) == 8
    assert lines.release_due(1029.9) == 1030.0
    assert number_of(lines.admit()) == 9
    assert number_of(lines.admit()) == 1
    assert lines.admit() is None
    assert (lines.count, lines.later) == (0, 1)
    assert lines.release_due(1e6) == math.inf
    assert all_of(lines) == [7]


def test_those_whose_time_has_come_all_go_before_the_others(lines: RequestQueues) -> None:
    """A call after a long time calls everybody, equal times included."""
    buckets = [bucket_of(), bucket_of()]
    for number in range(4):
        lines.add(make(number, buckets[number % 2]))
    for number in range(4, 10):
        lines.add_again(make(number, buckets[number % 2], tried=True), 1000.0 + number // 6)
    assert lines.release_due(2000.0) == math.inf
    order = all_of(lines)
    assert sorted(order[:6]) == [4, 5, 6, 7, 8, 9]
    assert order[6:] == [0, 1, 2, 3]


# What is counted.


def test_everybody_who_waits_is_counted_with_its_size(lines: RequestQueues) -> None:
    """In line, with a place, or during its backoff: until it goes."""
    bucket = bucket_of()
    lines.add(make(0, bucket, size_bytes=10))
    lines.add(make(1, bucket, size_bytes=200))
    lines.add_again(make(2, bucket, size_bytes=3000, tried=True), AT_ONCE)
    lines.add_again(make(3, bucket, size_bytes=40_000, tried=True), 1010.0)
    assert (lines.count, lines.later, lines.size_bytes) == (3, 1, 43_210)
    lines.take_places()
    assert (lines.count, lines.later, lines.size_bytes) == (3, 1, 43_210)
    lines.give_places_back()
    assert (lines.count, lines.later, lines.size_bytes) == (3, 1, 43_210)
    assert all_of(lines) == [2, 0, 1]
    assert (lines.count, lines.later, lines.size_bytes) == (0, 1, 40_000)
    lines.release_due(1010.0)
    assert (lines.count, lines.size_bytes) == (1, 40_000)
    assert all_of(lines) == [3]
    assert (lines.count, lines.size_bytes) == (0, 0)


def test_lines_are_counted_only_while_somebody_is_in_them(lines: RequestQueues) -> None:
    """Neither a bucket that was once waited for nor a backoff makes a line."""
    bucket = bucket_of()
    assert len(lines) == 0
    lines.add(make(0, bucket))
    lines.add(make(1, bucket))
    assert len(lines) == 1
    lines.admit()
    assert len(lines) == 1
    lines.admit()
    lines.add_again(make(2, bucket, tried=True), 1010.0)
    assert len(lines) == 0


# The end.


def test_clearing_gives_everybody_back(lines: RequestQueues) -> None:
    """Wherever they are: with a place, in line, uncounted, or in their backoff."""
    paused, other = paused_bucket(), paused_bucket()
    lines.add_again(make(0, paused, tried=True), AT_ONCE)
    lines.add(make(1, paused))
    lines.add(make(2, other))
    lines.take_places()
    lines.add_again(make(3, other, tried=True), AT_ONCE)
    lines.add_again(make(4, paused, tried=True), 1010.0)
    lines.add_again(make(5, bucket_of(), tried=True), 1020.0)
    uncounted = make(6, other)
    uncounted.estimate = None
    lines.add(uncounted)
    left = [pending.request.number for pending in lines.clear()]
    assert sorted(left) == [0, 1, 2, 3, 4, 5, 6]


def test_clearing_leaves_nothing_behind(lines: RequestQueues) -> None:
    """No place, no count, and nobody who is called later."""
    paused, free = paused_bucket(), bucket_of(60)
    for number, bucket in enumerate((paused, free, paused)):
        lines.add(make(number, bucket, size_bytes=100))
    lines.add_again(make(3, free, tried=True), 1010.0)
    assert lines.take_places() == 0.0
    lines.clear()
    assert not paused.queue
    assert not free.queue
    assert admitted_by(free)["requests"] == 0
    assert free.server.in_flight.count == 0
    assert (len(lines), lines.count, lines.size_bytes) == (0, 0, 0)
    assert lines.release_due(1e9) == math.inf
    assert lines.admit() is None
    assert list(lines.clear()) == []


def test_clearing_wakes_whom_a_place_held_up(lines: RequestQueues) -> None:
    """Another run that waits behind a place which is given back hears of it."""
    bucket = bucket_of(60)
    bucket.enqueue(Reservation(1.0))
    lines.add(make(0, bucket))
    lines.take_places()
    theirs = Reservation(1.0, threading.Event())
    bucket.enqueue(theirs)
    lines.clear()
    assert theirs.wake.is_set()
    assert bucket.queue[0] is theirs


# What they wait for.


def test_each_bucket_has_its_cause(lines: RequestQueues) -> None:
    """A line waits for what its bucket says, a bucket without a line for what the run does."""
    slow, paused, idle = bucket_of(60), paused_bucket(), bucket_of()
    slow.enqueue(Reservation(1.0))
    for number, bucket in enumerate((slow, paused, idle)):
        lines.add(make(number, bucket))
    assert all_of(lines) == [2]
    causes = dict(lines.causes("input", False))
    assert causes == {slow: "requests", paused: "pause", idle: "input"}
    assert len(lines.causes("input", False)) == 3


def test_where_workers_are_short_no_bucket_is_the_cause(lines: RequestQueues) -> None:
    """All wait for what the run waits for."""
    paused, idle = paused_bucket(), bucket_of()
    lines.add(make(0, paused))
    lines.add(make(1, idle))
    assert all_of(lines) == [1]
    assert dict(lines.causes("max_workers", True)) == dict.fromkeys((paused, idle), "max_workers")


def test_a_bucket_that_nobody_asked_for_has_no_cause(lines: RequestQueues) -> None:
    """Only what requests came for is held back by anything."""
    assert lines.causes("input", False) == []


def test_what_may_go_soonest_says_what_holds_all(lines: RequestQueues) -> None:
    """Of a pause of minutes and a limit of seconds the limit is what is waited for."""
    slow, paused = bucket_of(60), paused_bucket()
    slow.enqueue(Reservation(1.0))
    lines.add(make(0, paused))
    lines.take_places()
    assert lines.wait_cause == "pause"
    lines.add(make(1, slow))
    lines.take_places()
    assert lines.wait_cause == "requests"


def test_where_nobody_waits_nobody_is_passed(lines: RequestQueues) -> None:
    """It isn't worth to look further if nothing stands in the way."""
    assert not lines.may_be_passed
    lines.add(make(0, bucket_of()))
    lines.add(make(1, bucket_of()))
    assert all_of(lines) == [0, 1]
    assert not lines.may_be_passed


@pytest.mark.parametrize("bucket", [paused_bucket(), bucket_of(60)])
def test_a_limit_may_be_passed(lines: RequestQueues, bucket: TokenBucket) -> None:
    """Behind a single model that waits for time there may be others."""
    bucket.enqueue(Reservation(1.0))
    lines.add(make(0, bucket))
    lines.take_places()
    assert lines.may_be_passed


def test_a_single_models_load_is_not_passed(lines: RequestQueues) -> None:
    """A local server's requests aren't read far ahead, unless another model has been seen."""
    loaded = loaded_bucket()
    lines.add(make(0, loaded))
    lines.take_places()
    assert not lines.may_be_passed
    lines.add(make(1, bucket_of()))
    assert not lines.may_be_passed  # that one waits for nothing
    assert all_of(lines) == [1]
    assert lines.may_be_passed
