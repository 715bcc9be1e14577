"""The token bucket against an independent count, in simulated time (``callers.py``).

* **Never above.** No 60 seconds, both ends included, hold more than the limit. What ``ended`` adds
  counts from then on. A cost above a whole minute's limit is alone in its 60 seconds.
* **Never far below.** While work waits, T >= 60 seconds from a rested bucket hold at least
  ``T / 60 * (0.99 * limit - c)``, where c is the largest cost: a window can't be filled with a part
  of a request. For costs up to half a second's worth of the limit, which is the default capacity,
  the first minute holds 99 % of the limit; for costs up to a 205th of it so does any longer time.
  A minute that begins amid the waiting, when a burst has just gone out, may lack that burst, the
  window's quarter of a second and c (``poorest_minute``): 98.65 % less c by default. In the long
  run the burst doesn't matter.
* First come, first served. A cancelled reservation leaves nothing behind. A pause admits nobody.
  Everybody is admitted in the end, and nobody polls in vain.

``test_shared.py`` has what several buckets under the same limits do.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from callers import MARGIN_S, SLOT_S, Simulation, Waiter, act, limited, tokens_of
from clocks import MINUTE_S, FakeClock, SlidingCount, admitted_by
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_processor.models import Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

PACE = 1 - 0.5 / MINUTE_S


# What callers may do, at random.

gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.2), st.floats(0.0, 5.0), st.floats(0.0, 200.0))
bursts_s = st.one_of(st.just(0.5), st.floats(0.001, 60.0))
picks = st.integers(0, 1000)


# Never far below.


def keep_busy(
    simulation: Simulation,
    costs: Iterable[float],
    seconds: float,
    *,
    depth: int = 3,
    then: Callable[[Waiter], None] = lambda waiter: None,
) -> tuple[float, float]:
    """Let ``depth`` callers wait at all times; from when until when they did.

    ``then`` is what each does when it is admitted.
    """
    simulation.checks_limits = False  # once for all is faster
    start_s = simulation.clock.now_s
    supply: Iterator[float] = itertools.cycle(costs)
    seen = len(simulation.admitted)
    while True:
        while len(simulation.line) < depth:
            simulation.arrive(next(supply))
            for waiter in simulation.admitted[seen:]:
                then(waiter)
            seen = len(simulation.admitted)
            assert seen < 20_000, "no limit holds anybody"
        if not simulation.step(start_s + seconds):
            break
    for count, limit in zip(simulation.counts, simulation.limits, strict=True):
        assert count.busiest() <= limit * (1 + 1e-9) + 1e-6
    return start_s, start_s + seconds


def check_from_start(count: SlidingCount, start_s: float, end_s: float, per_minute: float) -> None:
    """At every moment from a minute after the start, ``per_minute`` has been used since the start."""
    used = 0.0
    for when, amount in [*count.entries, [end_s, 0.0]]:
        if when >= start_s:
            minutes = (when - start_s) / MINUTE_S
            if minutes >= 1:
                assert used >= per_minute * minutes - 1e-6, f"after {when - start_s} s"
            used += amount


def check_sliding(count: SlidingCount, start_s: float, end_s: float, least: float) -> None:
    """Each minute within the time holds ``least``: those that just miss an admission are the poorest."""
    starts = [start_s, *(when for when, _ in count.entries if start_s <= when <= end_s - MINUTE_S)]
    held = count.totals((math.nextafter(when, math.inf), when + MINUTE_S) for when in starts)
    assert min(held) >= least - 1e-6


def poorest_minute(limit: float, burst_s: float, largest: float) -> float:
    """What the poorest minute of waiting holds at least, wherever it begins."""
    at_once = max(limit * burst_s / MINUTE_S, largest)
    return min(limit * PACE, limit * (1 - MARGIN_S / MINUTE_S) - at_once) - largest


@given(
    limit=st.one_of(st.integers(200, 10_000_000), st.floats(200.0, 1e6)),
    shares=st.lists(st.floats(0.4, 1.0), min_size=1, max_size=20),
    largest=st.floats(0.4, 1.0),
    burst_s=st.one_of(st.just(0.5), st.floats(0.5, 3.0)),
    depth=st.integers(1, 4),
)
@settings(max_examples=40)
@example(limit=60_000, shares=[1.0], largest=120 / 120.99, burst_s=0.5, depth=1)
def test_costs_up_to_the_capacity_use_99_percent_of_the_first_minute(
    limit: float, shares: list[float], largest: float, burst_s: float, depth: int
) -> None:
    """The first minute holds 99 %, and longer times lack one cost a minute at most."""
    simulation = Simulation(limited(tokens=limit, burst_seconds=burst_s))
    unit = largest * limit / 120
    start_s, end_s = keep_busy(simulation, [unit * share for share in shares], 135.0, depth=depth)
    count = simulation.counts[1]
    assert count.total(start_s, start_s + MINUTE_S) >= 0.99 * limit
    check_from_start(count, start_s, end_s, 0.99 * limit - unit)
    check_sliding(count, start_s, end_s, poorest_minute(limit, burst_s, unit))


@pytest.mark.parametrize("burst_s", [0.05, 0.5, 5.0, 60.0])
@pytest.mark.parametrize("limit", [205, 500.5])
def test_small_costs_use_99_percent_at_all_times(limit: float, burst_s: float) -> None:
    """With costs of at most a 205th of the limit, 99 % holds for the first minute and on."""
    simulation = Simulation(limited(requests=limit, burst_seconds=burst_s))
    start_s, end_s = keep_busy(simulation, [0.0], 250.0, depth=1)
    # Below a capacity of one request, the first one's debt is the granularity.
    missing = max(0.0, 1 - limit * burst_s / MINUTE_S)
    check_from_start(simulation.counts[0], start_s, end_s, 0.99 * limit - missing)
    check_sliding(simulation.counts[0], start_s, end_s, poorest_minute(limit, burst_s, 1.0))
    assert simulation.counts[0].busiest() <= limit


@given(
    limit=st.one_of(st.integers(1, 300), st.floats(1.0, 300.0)),
    cost=st.floats(0.01, 1.0),
    shares=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=20),
    burst_s=bursts_s,
)
@settings(max_examples=40)
def test_costs_above_the_capacity_lack_one_request_a_minute_at_most(
    limit: float, cost: float, shares: list[float], burst_s: float
) -> None:
    """The limit, less 1 % and one largest request, is used in every minute while work waits."""
    simulation = Simulation(limited(tokens=limit, burst_seconds=burst_s))
    start_s, end_s = keep_busy(simulation, [limit * cost * share for share in shares], 200.0)
    check_from_start(simulation.counts[1], start_s, end_s, 0.99 * limit - limit * cost)
    least = poorest_minute(limit, burst_s, limit * cost)
    check_sliding(simulation.counts[1], start_s, end_s, least)


def test_requests_larger_than_the_burst_stay_within_the_limit() -> None:
    """With 1,100 tokens under 60,000 a minute, no minute holds a 55th request, and each holds 53."""
    simulation = Simulation(limited(tokens=60_000))
    start_s, end_s = keep_busy(simulation, [1100.0], 600.0)
    count = simulation.counts[1]
    assert count.busiest() == 54 * 1100
    assert count.total(start_s, start_s + MINUTE_S) == 54 * 1100  # 99 % is what is possible
    check_sliding(count, start_s, end_s, 53 * 1100)


@given(
    prelude=st.lists(
        st.tuples(
            gaps_s,
            st.one_of(
                st.tuples(
                    st.just("arrive"),
                    st.lists(st.tuples(st.just(0), st.floats(0.0, 0.05)), max_size=12),
                ),
                st.tuples(st.just("cancel waiting"), picks),
                st.tuples(st.just("pause"), st.just(0), st.floats(0.0, 60.0)),
            ),
        ),
        max_size=8,
    ),
    limit=st.integers(100, 5000),
    shares=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=10),
    burst_s=bursts_s,
)
@settings(max_examples=40)
def test_after_any_past_the_limit_is_used(
    prelude: list, limit: float, shares: list[float], burst_s: float
) -> None:
    """Idle times, bursts, pauses and abandoned waits cost nothing of the minutes that follow."""
    limits = limited(tokens=limit, burst_seconds=burst_s)
    simulation = Simulation(limits)
    for gap_s, action in prelude:
        simulation.run(simulation.clock.now_s + gap_s)
        act(simulation, limits, action)
    simulation.run(simulation.pauses[0][1])
    start_s, end_s = keep_busy(simulation, [limit * 0.02 * share for share in shares], 130.0)
    largest = max(waiter.tokens for waiter in simulation.admitted)
    least = poorest_minute(limit, burst_s, largest)
    check_sliding(simulation.counts[1], start_s, end_s, least)


@given(
    requests=st.integers(60, 2000),
    tokens=st.integers(60, 2000),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
@settings(max_examples=40)
def test_two_limits_leave_nothing_unused(requests: int, tokens: int, shares: list[float]) -> None:
    """Whatever the mix, what is used of both limits adds up to 99 % of one, less a request of each."""
    simulation = Simulation(limited(requests, tokens))
    largest = tokens / 50
    start_s, end_s = keep_busy(simulation, [largest * share for share in shares], 130.0)
    both = SlidingCount()
    for waiter in simulation.admitted:
        both.add(waiter.admitted_s, 1 / requests + waiter.tokens / tokens)
    check_from_start(both, start_s, end_s, 0.99 - 1 / requests - largest / tokens)


@given(share=st.floats(0.3, 0.9), used=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=10))
@settings(max_examples=25)
def test_refunds_can_be_used(share: float, used: list[float]) -> None:
    """Where answers use less than they reserved, what they use is held to the limit, and fills it."""
    limit = 60_000.0
    simulation = Simulation(limited(tokens=limit))
    reserved = share * limit / 120
    factors = itertools.cycle(used)
    start_s, end_s = keep_busy(
        simulation,
        [reserved],
        130.0,
        then=lambda waiter: simulation.settle(waiter, waiter.tokens * next(factors)),
    )
    check_from_start(simulation.counts[1], start_s, end_s, 0.99 * limit - reserved)


@given(
    limits=st.builds(limited, st.integers(30, 3000), st.integers(30, 3000), burst_seconds=bursts_s),
    cost=st.floats(0.0, 0.2),
    arrivals=st.lists(
        st.tuples(gaps_s, st.one_of(st.none(), st.floats(0.0, 5.0))), min_size=1, max_size=40
    ),
)
@settings(max_examples=80)
@example(
    limits=limited(30, 30, burst_seconds=38),
    cost=0.15625,
    arrivals=[*[(0.0, None)] * 3, (0.03125, 0.0), (0.125, None), *[(0.0, None)] * 3],
)
def test_who_gives_up_leaves_no_trace(
    limits: Limits, cost: float, arrivals: list[tuple[float, float | None]]
) -> None:
    """The others go as if nobody had given up; an admission that is cancelled may cost a slot's length."""
    tokens = tokens_of(cost, limits)
    crowded, calm = Simulation(limits), Simulation(limits)
    for gap_s, patience_s in arrivals:
        crowded.run(crowded.clock.now_s + gap_s)
        calm.run(calm.clock.now_s + gap_s)
        if patience_s is None:
            crowded.arrive(tokens)
            calm.arrive(tokens)
        else:
            crowded.arrive(tokens, patience_s=patience_s)
    crowded.run(1e6)
    calm.run(1e6)
    stayed = [waiter.admitted_s for waiter in crowded.admitted if not waiter.done]
    tolerance_s = 1e-6 + SLOT_S * (len(crowded.admitted) - len(stayed))
    assert stayed == pytest.approx([waiter.admitted_s for waiter in calm.admitted], abs=tolerance_s)
    assert not crowded.line


# Single rules.


def test_requests_that_wait_go_one_by_one_at_the_pace() -> None:
    """A request that waits goes in the order of arrival, as soon as the limit permits."""
    simulation = Simulation(limited(60))
    waiters = [simulation.arrive() for _ in range(51)]
    simulation.run(1060.0)
    assert simulation.admitted == waiters
    times = [waiter.admitted_s for waiter in waiters]
    assert times == pytest.approx([1000.0 + number / PACE for number in range(51)])


def test_limits_are_consumed_together_or_not_at_all() -> None:
    """A request that waits for tokens has taken nothing of the requests."""
    simulation = Simulation(limited(120, 60_000))
    simulation.arrive(2000.0)
    simulation.arrive(2000.0)
    simulation.run(1001.0)
    assert admitted_by(simulation.bucket) == {"requests": 1.0, "tokens": 2000.0}
    assert simulation.bucket.wait_cause is WaitCause.TOKENS


@pytest.mark.parametrize("limit", [1e-3, 1e-12])
def test_no_wait_is_longer_than_an_event_can_wait(limit: float) -> None:
    """With next to no limit, a caller is told to come back within what the system can wait for."""
    simulation = Simulation(limited(limit))
    simulation.arrive()
    assert MINUTE_S < simulation.arrive().poll_at_s - 1000.0 <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("limit", [1e12, 1e15, 1e18])
def test_a_wait_too_short_for_the_clock_isnt_waited_for(limit: float) -> None:
    """Rounding of large amounts at large times doesn't make a caller poll for ever."""
    simulation = Simulation(limited(tokens=limit), start_s=1e6)
    keep_busy(simulation, [limit / 333, limit / 170, limit / 77], 100.0)


def test_requests_may_be_late_by_a_quarter_of_a_second() -> None:
    """The server counts no more than the limit, though each request takes its time to get there."""
    simulation = Simulation(limited(600))
    keep_busy(simulation, [0.0], 200.0)
    delays = random.Random(1)
    for slowest_s in (0.01, 0.1, 0.249):
        arrived = SlidingCount()
        for when in sorted(
            w.admitted_s + delays.uniform(0, slowest_s) for w in simulation.admitted
        ):
            arrived.add(when, 1.0)
        assert arrived.busiest() <= 600


def test_a_pause_admits_nobody_and_keeps_the_order() -> None:
    """What waits before a pause and what comes in it is admitted after it, in the order of arrival."""
    simulation = Simulation(limited(60))
    simulation.arrive()
    waiters = [simulation.arrive() for _ in range(2)]
    simulation.pause(30.0)
    simulation.run(1010.0)
    waiters.append(simulation.arrive())
    assert simulation.bucket.wait_cause is WaitCause.PAUSE
    simulation.run(1029.999)
    assert len(simulation.admitted) == 1
    simulation.finish()
    assert simulation.admitted[1:4] == waiters
    assert waiters[0].admitted_s == pytest.approx(1030.0)


def test_one_burst_of_rejections_is_one_pause() -> None:
    """A rejection of what was sent before a pause neither lengthens it nor begins another after it."""
    simulation = Simulation(limited(6000))
    first, second, third = (simulation.arrive() for _ in range(3))
    simulation.run(1001.0)
    simulation.pause(10.0, first)  # each call checks whether it was a new pause
    simulation.run(1003.0)
    simulation.pause(60.0, second)
    after = simulation.arrive()
    simulation.run(1012.0)
    assert after.admitted_s == pytest.approx(1011.0)
    simulation.pause(10.0, third)
    simulation.pause(10.0, after)
    late = simulation.arrive()
    simulation.run(1100.0)
    assert late.admitted_s == pytest.approx(1022.0)


def test_a_shorter_pause_changes_nothing() -> None:
    """A pause within a longer one doesn't end it."""
    simulation = Simulation(limited(6000))
    simulation.pause(10.0)
    simulation.pause(5.0)
    simulation.run(1009.9995)
    waiter = simulation.arrive()
    simulation.run(1020.0)
    assert waiter.admitted_s == pytest.approx(1010.0)


def test_a_cancelled_admission_is_given_back_once() -> None:
    """The whole charge of a request that was never sent comes back, however often it is cancelled."""
    simulation = Simulation(limited(60, 60_000))
    bucket, sent = simulation.bucket, simulation.arrive(400.0)
    bucket.cancel(sent.reservation)
    assert admitted_by(bucket) == {"requests": 0.0, "tokens": 0.0}
    assert simulation.arrive(400.0) not in simulation.line
    bucket.cancel(sent.reservation)
    assert admitted_by(bucket) == {"requests": 1.0, "tokens": 400.0}
    assert (bucket.report(0.0).admitted, bucket.server.in_flight.count) == (1, 1)
    waiter = simulation.arrive(400.0)
    simulation.run(1010.0)
    assert waiter.admitted_s == pytest.approx(1000.0 + 1 / PACE)


@pytest.mark.parametrize("used", [0.0, 300.0, 500.0, 1500.0])
def test_settle_charges_what_was_used(used: float) -> None:
    """The next request waits for what was really used, whether more or less than was reserved."""
    simulation = Simulation(limited(tokens=60_000))
    sent, waiter = simulation.arrive(500.0), simulation.arrive(500.0)
    simulation.run(1000.1)
    simulation.settle(sent, used)
    simulation.run(1010.0)
    ready_s = max(1000.1, 1000.0 + used / 1000 / PACE)
    assert waiter.admitted_s == pytest.approx(ready_s)
    assert admitted_by(simulation.bucket)["tokens"] == used + 500.0


def test_a_settled_charge_is_forgotten_in_time() -> None:
    """What was corrected leaves the window as it was corrected, each limit by itself."""
    simulation = Simulation(limited(6000, 60_000))
    first, second = simulation.arrive(500.0), simulation.arrive()
    simulation.settle(first, 100.0)
    simulation.run(1030.0)
    simulation.settle(second, 40.0)
    simulation.arrive(300.0)
    simulation.run(1060.4)
    assert admitted_by(simulation.bucket) == {"requests": 1.0, "tokens": 340.0}


def test_nothing_waits_in_an_unlimited_bucket() -> None:
    """Without limits everything is admitted at once, of any size."""
    simulation = Simulation(limited())
    for tokens in [0.0, 1e12] * 50:
        assert simulation.arrive(tokens).is_admitted


# Which caller wakes which.


def exhausted(callers: int) -> tuple[FakeClock, TokenBucket, list[Reservation]]:
    """A bucket of four requests a second that is used up, and callers in its queue that polled once."""
    clock = FakeClock()
    bucket = TokenBucket(limited(240, 60_000), clock=clock)  # capacity: 2 requests, 500 tokens
    assert bucket.enqueue(Reservation(0.0))
    assert bucket.enqueue(Reservation(500.0))
    reservations = [Reservation(500.0, threading.Event()) for _ in range(callers)]
    for place in reservations:
        assert not bucket.enqueue(place)
        assert bucket.poll(place) > 0
    return clock, bucket, reservations


def awake(reservations: Sequence[Reservation]) -> list[bool]:
    return [reservation.wake.is_set() for reservation in reservations]


def test_when_the_first_gives_up_the_next_is_woken() -> None:
    """Only the first in line has a timer, so its successor must be woken."""
    _, bucket, line = exhausted(3)
    assert [bucket.poll(each) < math.inf for each in line] == [True, False, False]
    bucket.cancel(line[0])
    assert awake(line) == [False, True, False]
    assert bucket.poll(line[1]) < math.inf


def test_when_another_gives_up_the_first_stays_first() -> None:
    """A caller that leaves from the middle of the line changes nobody's turn."""
    clock, bucket, line = exhausted(3)
    bucket.cancel(line[1])
    assert not line[2].wake.is_set()
    clock.now_s += 0.6
    assert bucket.poll(line[0]) == 0.0
    assert line[2].wake.is_set()


def test_a_caller_that_another_admits_is_woken() -> None:
    """One poll admits all that fit, wakes them, and wakes the new first to look after itself."""
    clock = FakeClock()
    bucket = TokenBucket(limited(240), clock=clock)
    for _ in range(2):
        assert bucket.enqueue(Reservation(0.0))
    line = [Reservation(0.0, threading.Event()) for _ in range(4)]
    assert not any(bucket.enqueue(place) for place in line)
    clock.now_s += 1.0
    assert bucket.poll(line[0]) == 0.0
    assert [each.admitted_at for each in line] == [1001.0, 1001.0, None, None]
    assert awake(line) == [False, True, True, False]
    assert bucket.poll(line[1]) == 0.0


def test_the_callers_own_wake_up_is_returned() -> None:
    """The end of an attempt doesn't wake those who wait with the caller's event, but says so."""
    bucket = TokenBucket(limited(tokens=60_000), clock=FakeClock())
    sent, place = Reservation(500.0), Reservation(500.0, threading.Event())
    assert bucket.enqueue(sent)
    assert not bucket.enqueue(place)
    assert bucket.ended(sent, used_tokens=0.0, waker=place.wake).made_room
    assert not place.wake.is_set()
    assert bucket.poll(place) == 0.0
    assert not bucket.ended(place, used_tokens=0.0, waker=place.wake).made_room


# What was sent late.


def test_what_was_sent_late_is_counted_when_it_was_sent() -> None:
    """Ten requests whose connections took three seconds leave the window three seconds later."""
    clock = FakeClock()
    bucket = TokenBucket(limited(20, burst_seconds=30), clock=clock)
    late = [Reservation(1) for _ in range(10)]
    assert all(bucket.enqueue(reservation) for reservation in late)
    clock.now_s += 3.0
    for reservation in late:
        bucket.sent(reservation, clock.now_s)
    clock.now_s += 57.5
    assert admitted_by(bucket)["requests"] == 10
    clock.now_s += 3.0
    assert admitted_by(bucket) == {"requests": 0, "tokens": 0}


def test_what_was_sent_late_can_still_be_settled() -> None:
    """The refund goes to where the request is counted now; one that has left is left alone."""
    clock = FakeClock()
    bucket = TokenBucket(Limits(tokens_per_minute=600), clock=clock)
    first, second = Reservation(100), Reservation(100)
    for reservation in (first, second):
        bucket.enqueue(reservation)
        clock.now_s += 30.0
        bucket.poll(reservation)
    bucket.sent(second, clock.now_s)
    bucket.ended(second, used_tokens=40)
    assert admitted_by(bucket)["tokens"] == 140
    clock.now_s += 45.0
    bucket.sent(first, clock.now_s)
    assert admitted_by(bucket)["tokens"] == 40


# In threads (test_shared.py has a crowd of them).


@pytest.mark.parametrize(
    "call",
    [
        lambda bucket, sent: bucket.enqueue(Reservation(1.0)),
        lambda bucket, sent: bucket.poll(sent),
        lambda bucket, sent: bucket.cancel(sent),
        lambda bucket, sent: bucket.sent(sent, 1000.0),
        lambda bucket, sent: bucket.ended(sent, used_tokens=1.0),
        lambda bucket, sent: bucket.refuse(sent, Rejection(), 1.0),
        lambda bucket, sent: bucket.pause(1.0, sent),
        lambda bucket, sent: bucket.report(0.0),
    ],
    ids=["enqueue", "poll", "cancel", "sent", "ended", "refuse", "pause", "report"],
)
def test_the_lock_is_held_from_the_clock_on(
    call: Callable[[TokenBucket, Reservation], object],
) -> None:
    """No call does its arithmetic beside another's, which races alone would show too seldom."""

    def clock() -> float:
        held.append(bucket is not None and bucket.shared_limits.lock.locked())
        return 1000.0

    held: list[bool] = []
    bucket: TokenBucket | None = None
    bucket = TokenBucket(limited(), clock=clock)
    sent = Reservation(5.0)
    assert bucket.enqueue(sent)
    held.clear()
    call(bucket, sent)
    assert held == [True]
    assert not bucket.shared_limits.lock.locked()


def test_the_default_clock_is_the_systems() -> None:
    """A bucket that is given no clock takes ``time.monotonic``."""
    bucket, place = TokenBucket(limited(60)), Reservation(0.0)
    before_s = time.monotonic()
    assert bucket.enqueue(place)
    assert before_s <= (place.admitted_at or 0.0) <= time.monotonic()
