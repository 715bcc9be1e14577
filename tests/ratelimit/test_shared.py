"""Buckets that share configured limits: served in the order of arrival, and never above the limits.

The simulation of ``callers.py`` checks at every admission:

* No 60 seconds, both ends included, hold more of all buckets together than the limit.
* Requests that wait for shared limits are admitted in the order of arrival, whatever bucket they are in.
* A request that waits for its own bucket, which pauses here, delays none in another bucket.
* Everybody is admitted in the end, and nobody polls in vain.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from callers import Simulation, act, limited
from clocks import MINUTE_S, FakeClock, SlidingCount, in_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.models import Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

A, B, C = 0, 1, 2

# Whatever happens.

gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.2), st.floats(0.0, 5.0), st.floats(0.0, 200.0))
per_minute = st.one_of(
    st.integers(1, 119),  # the capacity is below one request
    st.floats(0.01, 119.9),
    st.integers(120, 4000),
    st.floats(120.0, 4000.0),
    st.sampled_from([1e-3, 60.0, 120.0, 1e6, 1e12, math.inf]),
)
bursts_s = st.one_of(st.just(0.5), st.floats(0.001, 60.0))
all_limits = st.builds(limited, per_minute, per_minute, burst_seconds=bursts_s)
# Costs are in minutes' worth of the token limit.
costs = st.one_of(
    st.just(0.0),
    st.floats(0.0, 0.0083),
    st.floats(0.0, 0.1),
    st.floats(0.0, 1.0),
    st.just(1.0),
    st.floats(1.0, 4.0),
)
buckets, picks = st.integers(0, 2), st.integers(0, 1000)
arrivals = st.tuples(st.just("arrive"), st.lists(st.tuples(buckets, costs), min_size=1, max_size=8))
actions = st.one_of(
    arrivals,
    st.tuples(st.just("cancel waiting"), picks),
    st.tuples(st.just("cancel admitted"), picks),
    st.tuples(st.just("settle"), picks, st.floats(0.0, 2.0)),
    st.tuples(st.just("pause"), buckets, st.floats(0.0, 90.0)),
    st.tuples(st.just("rejection"), picks, st.floats(0.0, 90.0)),
)


def in_bucket(action: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The action with the first ``count`` buckets only."""
    name, *args = action
    if name == "arrive":
        return name, [(bucket % count, cost) for bucket, cost in args[0]]
    return (name, args[0] % count, args[1]) if name == "pause" else action


@given(
    limits=all_limits,
    count=st.integers(1, 3),
    script=st.lists(st.tuples(gaps_s, actions), max_size=15),
    start_s=st.sampled_from([0.0, 12.5, 1e6]),
    order=picks,
    late_s=st.sampled_from([0.0, 0.0, 1e-4, 0.3]),
)
@settings(max_examples=500)
def test_whatever_callers_do_every_rule_holds(
    limits: Limits, count: int, script: list, start_s: float, order: int, late_s: float
) -> None:
    """Never above a limit, in order, never in a pause, nobody hangs, nothing is left behind."""
    simulation = Simulation(limits, count, start_s=start_s, order=order, late_s=late_s)
    for gap_s, action in script:
        simulation.run(simulation.clock.now_s + gap_s)
        simulation.check_usage()
        act(simulation, limits, in_bucket(action, count))
        simulation.check_usage()
    simulation.finish()
    callers = len(simulation.admitted) + len(script)
    assert simulation.polls <= (5 if count == 1 else 20 * (1 + count)) * callers + 10


@given(all_limits, st.lists(st.tuples(gaps_s, arrivals), max_size=15), picks)
@settings(max_examples=100)
def test_a_bucket_that_waits_for_itself_costs_others_nothing(
    limits: Limits, script: list, order: int
) -> None:
    """Beside a paused bucket, the others' requests go when they would go without it."""
    times = []
    for used in ({A, B, C}, {B, C}):
        simulation = Simulation(limits, 3, order=order)
        simulation.pause(1e9, bucket=A)
        for gap_s, (name, costs) in script:
            simulation.run(simulation.clock.now_s + gap_s)
            act(simulation, limits, (name, [each for each in costs if each[0] in used]))
        simulation.run(1e8)
        times.append([waiter.admitted_s for waiter in simulation.admitted])
    assert times[0] == pytest.approx(times[1], abs=1e-6)


# One thing at a time.


@pytest.mark.parametrize(
    ("limits", "pauses_s", "arriving", "order"),
    [
        pytest.param(
            *(limited(60), {}, [(bucket, 1) for bucket in (A, A, B, A, A, C, B, A)], range(8)),
            id="in the order of arrival",
        ),
        pytest.param(
            *(limited(tokens=600), {}),
            *([(A, 500), (A, 400), *((bucket, 1) for bucket in (A, B, B, A, B))], range(7)),
            id="a small request does not overtake a large one",
        ),
        pytest.param(
            *(limited(600), {A: 30.0}, [(bucket, 1) for bucket in (A, A, A, B, C, B, C)]),
            [3, 4, 5, 6, 0, 1, 2],
            id="a bucket that pauses delays no other",
        ),
        pytest.param(
            *(limited(60), {A: 2.5}, [(bucket, 1) for bucket in (B, A, A, B, B, B, B, B)]),
            [0, 3, 4, 1, 2, 5, 6, 7],
            id="after its pause a bucket has its old place",
        ),
    ],
)
def test_requests_are_admitted_in_order(
    limits: Limits, pauses_s: dict[int, float], arriving: list[tuple[int, float]], order: list[int]
) -> None:
    """Across buckets the first to arrive goes first, unless its own bucket pauses."""
    simulation = Simulation(limits, 3)
    for bucket, seconds in pauses_s.items():
        simulation.pause(seconds, bucket=bucket)
    waiters = [simulation.arrive(tokens, bucket=bucket) for bucket, tokens in arriving]
    simulation.finish()
    assert [each.number for each in simulation.admitted[: len(waiters)]] == list(order)


def test_a_request_above_a_whole_minute_goes_alone() -> None:
    """It waits for an empty minute, and what came later waits until its debt is paid."""
    simulation = Simulation(limited(tokens=1000), 2)
    for bucket, tokens in ((B, 8.0), (A, 3000.0), (B, 8.0)):
        simulation.arrive(tokens, bucket=bucket)
    simulation.finish()
    _, large, after = (waiter.admitted_s for waiter in simulation.admitted[:3])
    assert 1060.0 < large < 1060.5
    assert 180.0 < after - large < 182.5


@pytest.mark.parametrize("why", ["pause", "rejection", "cancel"])
def test_a_head_that_is_stopped_lets_the_others_go(why: str) -> None:
    """A large request that waits for shared limits delays nobody once it is stopped itself."""
    simulation = Simulation(limited(tokens=600), 2)
    first = simulation.arrive(500.0)
    large = simulation.arrive(590.0)  # waits for the window, about a minute
    simulation.run(1055.0)  # the pace has long had room for small ones
    late = simulation.arrive(1.0, bucket=B)
    assert not late.is_admitted
    if why == "pause":
        simulation.pause(300.0)
    elif why == "rejection":
        simulation.bucket.refuse(first.reservation, Rejection(), 300.0)
        simulation.pauses[A] = (1055.0, 1355.0)
    else:
        simulation.cancel(large)
    simulation.run(1056.0)
    assert late.is_admitted


@pytest.mark.parametrize("bucket", [A, B])
@pytest.mark.parametrize("how", ["cancel", "settle"])
def test_what_is_given_back_goes_to_the_first(how: str, bucket: int) -> None:
    """What was never sent, or not used by the answer, wakes the oldest request in any bucket at once."""
    simulation = Simulation(limited(tokens=6000), 2)
    sent = simulation.arrive(6000.0)
    first, later = simulation.arrive(30.0, bucket=bucket), simulation.arrive(6000.0)
    assert not first.is_admitted
    if how == "cancel":
        simulation.cancel(sent)
    else:
        simulation.settle(sent, 10.0)
    assert first.is_admitted
    assert not later.is_admitted


def test_the_one_that_polls_admits_the_others() -> None:
    """A caller that comes late to its poll delays only itself."""
    clock = FakeClock()
    limits = limited(600, burst_seconds=0.1)
    shared_limits = SharedLimits(limits, clock)
    first, second = (TokenBucket(limits, clock=clock, shared_limits=shared_limits) for _ in "ab")
    assert first.enqueue(Reservation(0.0))
    places = [Reservation(0.0) for _ in range(2)]
    assert not first.enqueue(places[0])
    assert not second.enqueue(places[1])
    clock.now_s += 1.0
    delay = second.poll(places[1])
    assert places[0].admitted_at == clock.now_s
    assert delay == pytest.approx(0.1, rel=0.02)


def test_every_bucket_knows_how_long_and_for_what() -> None:
    """A bucket names the shared limit or its own pause as what its head waits for."""
    simulation = Simulation(limited(600, 600), 3)
    simulation.pause(45.0, bucket=C)
    for bucket, tokens in ((A, 100.0), (C, 1.0), (A, 100.0), (B, 1.0)):
        simulation.arrive(tokens, bucket=bucket)
    a, b, c = simulation.buckets
    assert (a.wait_cause, b.wait_cause, c.wait_cause) == ("tokens", "tokens", "pause")
    assert a.delay == b.delay
    assert c.delay == pytest.approx(45.0)


def test_input_and_output_are_limited_apart() -> None:
    """What one bucket reads and another writes meet under their own limits."""
    clock = FakeClock()
    limits = limited(input_tokens_per_minute=600, output_tokens_per_minute=60)
    shared_limits = SharedLimits(limits, clock)
    reads, writes = (TokenBucket(limits, clock=clock, shared_limits=shared_limits) for _ in "ab")
    assert reads.enqueue(Reservation(5.0))
    assert writes.enqueue(Reservation(0.5, output_tokens=0.5))
    for bucket, output, wait_cause in [
        (reads, 0.0, "input_tokens"),
        (writes, 10.0, "output_tokens"),
    ]:
        place = Reservation(10.0, output_tokens=output)
        assert not bucket.enqueue(place)
        assert bucket.wait_cause == wait_cause
        bucket.cancel(place)


def test_shared_limits_without_a_number_are_open() -> None:
    """Only what has no number at all lets the number in flight be sought."""
    for limits, is_open in [
        (limited(), True),
        (limited("auto", "auto"), True),
        (limited("auto", 5.0), False),
        (limited(5.0), False),
        (limited(input_tokens_per_minute=5.0), False),
    ]:
        assert SharedLimits(limits, FakeClock()).is_open is is_open


def test_shared_limits_report_what_all_their_buckets_used() -> None:
    """The share is of what the limit has allowed since the start, the first burst included."""
    shared = Simulation(limited(600), 3)
    shared.arrive(bucket=A)
    shared.arrive(bucket=B)
    shared.clock.now_s += 29.5
    (report,) = shared.shared_limits.report(shared.clock.now_s, 0.0)
    assert (report.name, report.configured, report.used) == ("requests", 600, 2)
    assert report.used_share == pytest.approx(2 / 300)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Make threads interrupt each other often."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("frequent_switches")
def test_a_crowd_of_threads_keeps_the_rules() -> None:
    """Whatever threads do at once, the limits hold, no charge is lost, and nothing stays behind."""
    ticks = itertools.count()

    def clock() -> float:
        return next(ticks) * 0.005  # each call takes its time

    shared_limits = SharedLimits(limited(600, 60_000), clock)
    shared = [
        TokenBucket(shared_limits.limits, clock=clock, shared_limits=shared_limits)
        for _ in range(4)
    ]

    def caller(seed: int) -> list[tuple[float, float]]:
        choose, sent = random.Random(seed), []
        for _ in range(15):
            tokens = choose.choice([10.0, 100.0, 900.0])
            bucket, place = choose.choice(shared), Reservation(tokens)
            bucket.enqueue(place)
            while bucket.poll(place):
                pass
            what = choose.random()
            if what < 0.2:
                bucket.cancel(place)
                continue
            if what < 0.25:
                bucket.pause(2.0, place)
            used = tokens / 2 if what > 0.8 else None
            bucket.ended(place, used_tokens=used)
            sent.append((place.admitted_at or 0.0, used or tokens))
        return sent

    sent = sorted(sum(in_threads([partial(caller, seed) for seed in range(16)]), []))
    for limit, amounts in ((600, [1.0] * len(sent)), (60_000, [tokens for _, tokens in sent])):
        count = SlidingCount()
        for (when, _), amount in zip(sent, amounts, strict=True):
            count.add(when, amount)
        assert count.busiest() <= limit
    assert [each.used for each in shared_limits.report(clock(), 0.0)] == [len(sent), sum(amounts)]
    assert sum(bucket.report(0.0).admitted for bucket in shared) == len(sent)
    assert not any(bucket.server.in_flight.count for bucket in shared)
    assert not shared_limits.waiting
    used_now, _ = shared_limits.levels(clock() + MINUTE_S + 1.0)
    assert used_now == {"requests": 0.0, "tokens": 0.0}
