"""The token bucket against an independent count, in simulated time.

A discrete-event simulation drives what the dispatcher and the workers use: ``enqueue``, ``poll``,
``cancel``, ``ended``, ``pause``. It moves its clock to exactly the times that ``poll`` names. What it
checks:

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

``test_ceiling.py`` has what several buckets under the same limits do.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from clocks import MINUTE_S, FakeClock, SlidingCount, admitted_by, in_threads
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parallel_processor.models import Rejection, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

INSTANT_S = 2e-9  # the bucket takes less than a nanosecond for rounding
PACE = 1 - 0.5 / MINUTE_S
MARGIN_S = 0.25 + 60.25 / 1024  # an admission counts for longer than a minute by this, at most


def make_limits(
    requests: float = math.inf, tokens: float = math.inf, burst_s: float = 0.5
) -> Limits:
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens, burst_seconds=burst_s)


@dataclass(slots=True, eq=False)
class Waiter:
    """One caller of the bucket.

    One that ``leaves_s`` ever gives up then, or when it is admitted, if that is earlier. ``entries``
    is what the count says of it once it is admitted.
    """

    tokens: float
    reservation: Reservation
    leaves_s: float = math.inf
    poll_at_s: float = math.inf
    entries: list[list[float]] = field(default_factory=list)
    done: bool = False  # cancelled or settled

    @property
    def due_s(self) -> float:
        return min(self.poll_at_s, self.leaves_s)

    @property
    def admitted_s(self) -> float:
        assert self.reservation.admitted_at is not None
        return self.reservation.admitted_at


class Simulation:
    """Callers of one bucket, each in the place of a thread, on one clock.

    ``order`` decides in which order callers that are woken together get to run; each runs ``late_s``
    after its timer. Every admission is checked against the count when it happens.
    """

    def __init__(
        self, limits: Limits, *, start_s: float = 1000.0, order: int = 0, late_s: float = 0.0
    ) -> None:
        self.clock = FakeClock(start_s)
        self.bucket = TokenBucket(limits, clock=self.clock)
        self.limits = (limits.requests_per_minute, limits.tokens_per_minute)
        self.counts = (SlidingCount(), SlidingCount())
        self.line: list[Waiter] = []  # who waits, in the order of arrival
        self.admitted: list[Waiter] = []
        self.pauses: list[tuple[float, float]] = []  # as the bucket should see them
        self.polls = 0
        self.checks_limits = True
        self._order = random.Random(order)
        self._late_s = late_s

    # What callers do.

    def arrive(self, tokens: float, *, patience_s: float = math.inf) -> Waiter:
        reservation = Reservation(tokens, threading.Event())
        waiter = Waiter(tokens, reservation, self.clock.now_s + patience_s)
        self.line.append(waiter)
        admitted = self.bucket.enqueue(waiter.reservation)
        self._note_admissions()
        assert admitted == (waiter not in self.line)
        if not admitted:
            self._poll(waiter)
        return waiter

    def cancel(self, waiter: Waiter) -> None:
        self.bucket.cancel(waiter.reservation)
        waiter.done = True
        if waiter in self.line:
            self.line.remove(waiter)
        for entry in waiter.entries:
            entry[1] = 0.0  # never sent
        self._run_woken()

    def settle(self, waiter: Waiter, used: float) -> None:
        self.bucket.ended(waiter.reservation, used_tokens=used)
        waiter.done = True
        if used < waiter.tokens:
            waiter.entries[1][1] = used
        else:
            self.counts[1].add(self.clock.now_s, used - waiter.tokens)
        self._run_woken()

    def pause(self, seconds: float, refused: Waiter | None = None) -> None:
        now = self.clock.now_s
        began, until = self.pauses[-1] if self.pauses else (-math.inf, -math.inf)
        same_burst = refused is not None and refused.admitted_s <= began
        expected = not same_burst and now + seconds > until
        reservation = None if refused is None else refused.reservation
        assert self.bucket.pause(seconds, reservation) == expected
        if not same_burst:
            self.pauses.append((now, max(until, now + seconds)))

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
        self.clock.now_s = due.due_s
        if due.leaves_s <= self.clock.now_s:
            self.cancel(due)
        else:
            self._poll(due)
        self._run_woken()
        return True

    def finish(self) -> None:
        """Let everybody be admitted, in a time that is bounded, and see that nothing is left."""
        start_s = max([self.clock.now_s, *(until for _, until in self.pauses)])
        owed = [math.fsum(amount for _, amount in count.entries) for count in self.counts]
        costs = [[1.0, waiter.tokens] for waiter in self.line]
        bound_s = start_s + 1.0 + 61.0 * len(costs)
        for i, limit in enumerate(self.limits):
            bound_s += 61.0 * (owed[i] + sum(cost[i] for cost in costs)) / limit
        while self.step(math.inf):
            assert self.clock.now_s <= bound_s + self._late_s * len(costs)
        assert not self.line, "these wait, and nobody will wake them"
        self.clock.now_s = bound_s + 120.0 + self._late_s * len(costs)
        assert not self.bucket.queue
        assert list(admitted_by(self.bucket).values()) == [0.0, 0.0]
        for tokens in (0.0, min(1.0, self.limits[1])):
            self.arrive(tokens)
            assert not self.line  # a rested bucket with an empty queue admits at once
            self.clock.now_s += 60.0 * sum(2 / limit for limit in self.limits) + 61.0

    def _poll(self, waiter: Waiter) -> None:
        waiter.reservation.wake.clear()
        delay = self.bucket.poll(waiter.reservation)
        self.polls += 1
        self._note_admissions()
        assert (delay == 0.0) == (waiter not in self.line)
        if delay:
            assert (delay == math.inf) == (waiter is not self.line[0])
            waiter.poll_at_s = self.clock.now_s + delay
            assert waiter.poll_at_s > self.clock.now_s, "polling again without time passing"
            waiter.poll_at_s += self._late_s

    def _run_woken(self) -> None:
        while woken := [waiter for waiter in self.line if waiter.reservation.wake.is_set()]:
            self._poll(self._order.choice(woken))

    # What is checked.

    def _note_admissions(self) -> None:
        """Who was admitted stood in front, and fits; they are told."""
        while self.line and self.line[0].reservation.admitted_at is not None:
            waiter = self.line.pop(0)
            assert waiter.admitted_s == self.clock.now_s
            self.admitted.append(waiter)
            self._check_pause()
            for count, cost in zip(self.counts, (1.0, waiter.tokens), strict=True):
                waiter.entries.append(count.add(self.clock.now_s, cost))
            if self.checks_limits:
                self._check_limits(waiter)
            if waiter.leaves_s < math.inf:
                self.cancel(waiter)
        assert all(waiter.reservation.admitted_at is None for waiter in self.line)

    def check_usage(self) -> None:
        """What the bucket counts of the last minute is what the count says."""
        now = self.clock.now_s
        for used, count in zip(admitted_by(self.bucket).values(), self.counts, strict=True):
            least = count.total(now - MINUTE_S - 0.2499, now)
            most = count.total(now - MINUTE_S - MARGIN_S - 1e-6, now)
            rounding = 1e-6 + 1e-9 * count.total(-math.inf, math.inf)
            assert least - rounding <= used <= most + rounding

    def _check_pause(self) -> None:
        for began, until in self.pauses:
            assert not began <= self.clock.now_s < until - INSTANT_S

    def _check_limits(self, waiter: Waiter) -> None:
        now = self.clock.now_s
        for count, limit, (_, cost) in zip(self.counts, self.limits, waiter.entries, strict=True):
            rounding = 1e-6 + 1e-9 * limit
            if limit < math.inf:
                recent = itertools.takewhile(lambda e: e[0] >= now - MINUTE_S, count.entries[::-1])
                assert sum(e[1] for e in recent) <= max(limit, cost) + rounding


# What callers may do, at random.

gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.2), st.floats(0.0, 5.0), st.floats(0.0, 200.0))
limits_per_minute = st.one_of(
    st.integers(1, 119),  # the capacity is below one request
    st.floats(0.01, 119.9),
    st.integers(120, 4000),
    st.floats(120.0, 4000.0),
    st.sampled_from([1e-3, 60.0, 120.0, 1e6, 1e12, math.inf]),
)
bursts_s = st.one_of(st.just(0.5), st.floats(0.001, 60.0))
all_limits = st.builds(make_limits, limits_per_minute, limits_per_minute, bursts_s)
# Costs are in minutes' worth of the token limit (in millions of tokens, if there is none).
costs = st.one_of(
    st.just(0.0),
    st.floats(0.0, 0.0083),
    st.floats(0.0, 0.1),
    st.floats(0.0, 1.0),
    st.just(1.0),
    st.floats(1.0, 4.0),
)
picks = st.integers(0, 1000)
actions = st.one_of(
    st.tuples(st.just("arrive"), st.lists(costs, min_size=1, max_size=8)),
    st.tuples(st.just("cancel waiting"), picks),
    st.tuples(st.just("cancel admitted"), picks),
    st.tuples(st.just("settle"), picks, st.floats(0.0, 2.0)),
    st.tuples(st.just("pause"), st.floats(0.0, 90.0)),
    st.tuples(st.just("refusal"), picks, st.floats(0.0, 90.0)),
)
scripts = st.lists(st.tuples(gaps_s, actions), max_size=12)


def tokens_of(cost: float, limits: Limits) -> float:
    """A cost as tokens, whole where a limit is large enough to tell."""
    limit = limits.tokens_per_minute if limits.tokens_per_minute < math.inf else 1e6
    return float(int(cost * limit)) if limit > 1000 else cost * limit


def act(simulation: Simulation, limits: Limits, action: tuple) -> None:
    """Do one action of a script, if there is somebody to do it."""
    name, *args = action
    if name == "arrive":
        for cost in args[0]:
            simulation.arrive(tokens_of(cost, limits))
    elif name == "pause":
        simulation.pause(args[0])
    else:
        sent = [waiter for waiter in simulation.admitted if not waiter.done]
        group = simulation.line if name == "cancel waiting" else sent
        if group:
            waiter = group[args[0] % len(group)]
            if name == "settle":
                simulation.settle(waiter, waiter.tokens * args[1])
            elif name == "refusal":
                simulation.pause(args[1], waiter)
            else:
                simulation.cancel(waiter)


@given(
    limits=all_limits,
    script=scripts,
    start_s=st.sampled_from([0.0, 12.5, 1e6]),
    order=picks,
    late_s=st.sampled_from([0.0, 0.0, 1e-4, 0.3]),
)
@settings(max_examples=300)
def test_whatever_callers_do_every_rule_holds(
    limits: Limits, script: list, start_s: float, order: int, late_s: float
) -> None:
    """Never above a limit, in order, never in a pause, nobody hangs, nothing is left behind."""
    simulation = Simulation(limits, start_s=start_s, order=order, late_s=late_s)
    for gap_s, action in script:
        simulation.run(simulation.clock.now_s + gap_s)
        simulation.check_usage()
        act(simulation, limits, action)
        simulation.check_usage()
    simulation.finish()
    callers = len(simulation.admitted) + len(script)
    assert simulation.polls <= 5 * callers + 10  # nobody polls in vain


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
    simulation = Simulation(make_limits(tokens=limit, burst_s=burst_s))
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
    simulation = Simulation(make_limits(requests=limit, burst_s=burst_s))
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
    simulation = Simulation(make_limits(tokens=limit, burst_s=burst_s))
    start_s, end_s = keep_busy(simulation, [limit * cost * share for share in shares], 200.0)
    check_from_start(simulation.counts[1], start_s, end_s, 0.99 * limit - limit * cost)
    least = poorest_minute(limit, burst_s, limit * cost)
    check_sliding(simulation.counts[1], start_s, end_s, least)


def test_requests_larger_than_the_burst_stay_within_the_limit() -> None:
    """With 1,100 tokens under 60,000 a minute, no minute holds a 55th request, and each holds 53."""
    simulation = Simulation(make_limits(tokens=60_000))
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
                st.tuples(st.just("arrive"), st.lists(st.floats(0.0, 0.05), max_size=12)),
                st.tuples(st.just("cancel waiting"), picks),
                st.tuples(st.just("pause"), st.floats(0.0, 60.0)),
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
    limits = make_limits(tokens=limit, burst_s=burst_s)
    simulation = Simulation(limits)
    for gap_s, action in prelude:
        simulation.run(simulation.clock.now_s + gap_s)
        act(simulation, limits, action)
    if simulation.pauses:
        simulation.run(simulation.pauses[-1][1])
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
    simulation = Simulation(make_limits(requests, tokens))
    largest = tokens / 50
    start_s, end_s = keep_busy(simulation, [largest * share for share in shares], 130.0)
    both = SlidingCount()
    for waiter in simulation.admitted:
        both.add(waiter.admitted_s, 1 / requests + waiter.tokens / tokens)
    check_from_start(both, start_s, end_s, 0.99 - 1 / requests - largest / tokens)


@given(
    share=st.floats(0.3, 0.9),
    used=st.lists(st.floats(0.3, 1.0), min_size=1, max_size=10),
)
@settings(max_examples=25)
def test_refunds_can_be_used(share: float, used: list[float]) -> None:
    """Where answers use less than they reserved, what they use is held to the limit, and fills it."""
    limit = 60_000.0
    simulation = Simulation(make_limits(tokens=limit))
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
    limits=st.builds(make_limits, st.integers(30, 3000), st.integers(30, 3000), bursts_s),
    cost=st.floats(0.0, 0.2),
    arrivals=st.lists(
        st.tuples(gaps_s, st.one_of(st.none(), st.floats(0.0, 5.0))), min_size=1, max_size=40
    ),
)
@settings(max_examples=80)
def test_who_gives_up_leaves_no_trace(
    limits: Limits, cost: float, arrivals: list[tuple[float, float | None]]
) -> None:
    """The others are admitted when they would have been if nobody had come and given up."""
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
    assert stayed == pytest.approx([waiter.admitted_s for waiter in calm.admitted], abs=1e-6)
    assert not crowded.line


# Single rules.


def make_simulation(requests: float = math.inf, tokens: float = math.inf) -> Simulation:
    return Simulation(make_limits(requests, tokens))


def test_a_full_capacity_goes_out_at_once() -> None:
    """After a quiet time, half a second's worth is admitted without waiting, and no more."""
    simulation = make_simulation(requests=1200)
    for _ in range(15):
        simulation.arrive(0.0)
    assert len(simulation.admitted) == 10
    simulation.run(1000.1)
    assert len(simulation.admitted) == 11


def test_requests_that_wait_go_one_by_one_at_the_pace() -> None:
    """Who waits goes in the order of arrival, each as soon as the limit permits."""
    simulation = make_simulation(requests=60)
    waiters = [simulation.arrive(0.0) for _ in range(51)]
    simulation.run(1060.0)
    assert simulation.admitted == waiters
    times = [waiter.admitted_s for waiter in waiters]
    assert times == pytest.approx([1000.0 + number / PACE for number in range(51)])


def test_limits_are_consumed_together_or_not_at_all() -> None:
    """A request that waits for tokens has taken nothing of the requests."""
    simulation = make_simulation(requests=120, tokens=60_000)
    simulation.arrive(2000.0)
    simulation.arrive(2000.0)
    simulation.run(1001.0)
    assert admitted_by(simulation.bucket) == {"requests": 1.0, "tokens": 2000.0}
    assert simulation.bucket.wait_cause is WaitCause.TOKENS


@pytest.mark.parametrize("limit", [1e-3, 1e-12])
def test_no_wait_is_longer_than_an_event_can_wait(limit: float) -> None:
    """With next to no limit, a caller is told to come back within what the system can wait for."""
    simulation = make_simulation(requests=limit)
    simulation.arrive(0.0)
    waiter = simulation.arrive(0.0)
    assert MINUTE_S < waiter.poll_at_s - 1000.0 <= threading.TIMEOUT_MAX


@pytest.mark.parametrize("limit", [1e12, 1e15, 1e18])
def test_a_wait_too_short_for_the_clock_isnt_waited_for(limit: float) -> None:
    """Rounding of large amounts at large times doesn't make a caller poll for ever."""
    simulation = Simulation(make_limits(tokens=limit), start_s=1e6)
    keep_busy(simulation, [limit / 333, limit / 170, limit / 77], 100.0)


def test_requests_may_be_late_by_a_quarter_of_a_second() -> None:
    """The server counts no more than the limit, though each request takes its time to get there."""
    simulation = make_simulation(requests=600)
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
    """Who waits and who comes in a pause is admitted after it, first come first."""
    simulation = make_simulation(requests=60)
    simulation.arrive(0.0)
    waiters = [simulation.arrive(0.0) for _ in range(2)]
    simulation.pause(30.0)
    simulation.run(1010.0)
    waiters.append(simulation.arrive(0.0))
    assert simulation.bucket.wait_cause is WaitCause.PAUSE
    simulation.run(1029.999)
    assert len(simulation.admitted) == 1
    simulation.finish()
    assert simulation.admitted[1:4] == waiters
    assert waiters[0].admitted_s == pytest.approx(1030.0)


def test_one_burst_of_refusals_is_one_pause() -> None:
    """Refusals of what was sent before a pause neither lengthen it nor begin another, even after it."""
    simulation = make_simulation(requests=6000)
    sent = [simulation.arrive(0.0) for _ in range(4)]
    simulation.run(1001.0)
    bucket = simulation.bucket
    assert bucket.pause(10.0, sent[0].reservation)
    simulation.run(1003.0)
    assert not bucket.pause(60.0, sent[1].reservation)
    after = simulation.arrive(0.0)
    simulation.run(1012.0)
    assert after.admitted_s == pytest.approx(1011.0)
    assert not bucket.pause(10.0, sent[2].reservation)
    assert bucket.pause(10.0, after.reservation)  # what was sent since is news
    late = simulation.arrive(0.0)
    simulation.run(1100.0)
    assert late.admitted_s == pytest.approx(1022.0)


def test_a_shorter_pause_changes_nothing() -> None:
    """A pause within a longer one doesn't end it."""
    simulation = make_simulation(requests=6000)
    assert simulation.bucket.pause(10.0)
    assert not simulation.bucket.pause(5.0)
    simulation.run(1009.9995)
    waiter = simulation.arrive(0.0)
    simulation.run(1020.0)
    assert waiter.admitted_s == pytest.approx(1010.0)


def test_a_cancelled_admission_is_given_back_once() -> None:
    """The whole charge of a request that was never sent comes back, however often it is cancelled."""
    simulation = make_simulation(requests=60, tokens=60_000)
    sent = simulation.arrive(400.0)
    simulation.bucket.cancel(sent.reservation)
    assert admitted_by(simulation.bucket) == {"requests": 0.0, "tokens": 0.0}
    assert simulation.arrive(400.0) not in simulation.line
    simulation.bucket.cancel(sent.reservation)
    assert admitted_by(simulation.bucket) == {"requests": 1.0, "tokens": 400.0}
    assert simulation.bucket.report(0.0).admitted == 1
    waiter = simulation.arrive(400.0)
    simulation.run(1010.0)
    assert waiter.admitted_s == pytest.approx(1000.0 + 1 / PACE)


@pytest.mark.parametrize("used", [0.0, 300.0, 500.0, 1500.0])
def test_settle_charges_what_was_used(used: float) -> None:
    """The next request waits for what was really used, whether more or less than was reserved."""
    simulation = make_simulation(tokens=60_000)
    sent, waiter = simulation.arrive(500.0), simulation.arrive(500.0)
    simulation.run(1000.1)
    simulation.settle(sent, used)
    simulation.run(1010.0)
    ready_s = max(1000.1, 1000.0 + used / 1000 / PACE)
    assert waiter.admitted_s == pytest.approx(ready_s)
    assert admitted_by(simulation.bucket)["tokens"] == used + 500.0


def test_a_settled_charge_is_forgotten_in_time() -> None:
    """What was corrected leaves the window as it was corrected, each limit by itself."""
    simulation = make_simulation(requests=6000, tokens=60_000)
    first, second = simulation.arrive(500.0), simulation.arrive(0.0)
    simulation.settle(first, 100.0)
    simulation.run(1030.0)
    simulation.settle(second, 40.0)
    simulation.arrive(300.0)
    simulation.run(1060.4)
    assert admitted_by(simulation.bucket) == {"requests": 1.0, "tokens": 340.0}


def test_a_late_settlement_gives_back_to_the_bucket_alone() -> None:
    """A refund of what left the window long ago doesn't make room in the window."""
    simulation = make_simulation(tokens=60_000)
    sent = simulation.arrive(500.0)
    simulation.run(1070.0)
    simulation.arrive(300.0)
    simulation.bucket.ended(sent.reservation, used_tokens=0.0)
    assert admitted_by(simulation.bucket)["tokens"] == 300.0


def test_nothing_holds_an_unlimited_bucket() -> None:
    """Without limits everything is admitted at once, of any size."""
    simulation = make_simulation()
    for tokens in [0.0, 1e12] * 50:
        simulation.arrive(tokens)
    assert len(simulation.admitted) == 100


# Who wakes whom.


def waiting(bucket: TokenBucket, count: int, tokens: float = 0.0) -> list[Reservation]:
    """Put callers in line, each having polled once."""
    reservations = [Reservation(tokens, threading.Event()) for _ in range(count)]
    for reservation in reservations:
        assert not bucket.enqueue(reservation)
        assert bucket.poll(reservation) > 0
    return reservations


def exhausted() -> tuple[FakeClock, TokenBucket, Reservation]:
    """A bucket of one request a second, the first of which has been admitted just now."""
    clock = FakeClock()
    bucket = TokenBucket(make_limits(requests=60, tokens=60_000), clock=clock)
    first = Reservation(400.0)
    assert bucket.enqueue(first)
    return clock, bucket, first


def awake(reservations: Sequence[Reservation]) -> list[bool]:
    return [reservation.wake.is_set() for reservation in reservations]


def test_when_the_first_gives_up_the_next_is_woken() -> None:
    """Only the first in line has a timer, so its successor must hear of it."""
    _, bucket, _ = exhausted()
    line = waiting(bucket, 3)
    assert [bucket.poll(each) < math.inf for each in line] == [True, False, False]
    bucket.cancel(line[0])
    assert awake(line) == [False, True, False]
    assert bucket.poll(line[1]) < math.inf


def test_when_another_gives_up_the_first_stays_first() -> None:
    """Who leaves from the middle of the line changes nobody's turn."""
    clock, bucket, _ = exhausted()
    line = waiting(bucket, 3)
    bucket.cancel(line[1])
    assert not line[2].wake.is_set()
    clock.now_s += 2.0
    assert bucket.poll(line[0]) == 0.0
    assert line[2].wake.is_set()


def test_who_is_admitted_by_anothers_poll_is_woken() -> None:
    """One poll admits all that fit, wakes them, and wakes the new first to look after itself."""
    clock = FakeClock()
    bucket = TokenBucket(make_limits(requests=240), clock=clock)  # capacity: 2 requests
    for _ in range(2):
        assert bucket.enqueue(Reservation(0.0))
    line = waiting(bucket, 4)
    clock.now_s += 1.0
    assert bucket.poll(line[0]) == 0.0
    assert [each.admitted_at for each in line] == [1001.0, 1001.0, None, None]
    assert awake(line) == [False, True, True, False]
    assert bucket.poll(line[1]) == 0.0


@pytest.mark.parametrize("give_back", ["cancel", "end"])
def test_a_refund_wakes_the_first(give_back: str) -> None:
    """What comes back may be enough for the first in line, which hears of it at once."""
    bucket = TokenBucket(make_limits(tokens=60_000), clock=FakeClock())
    sent = Reservation(500.0)
    assert bucket.enqueue(sent)
    line = waiting(bucket, 2, tokens=500.0)
    if give_back == "cancel":
        bucket.cancel(sent)
    else:
        bucket.ended(sent, used_tokens=0.0)
    assert awake(line) == [True, False]
    assert bucket.poll(line[0]) == 0.0
    assert line[1].wake.is_set()


def test_the_callers_own_wake_up_is_returned() -> None:
    """The end of an attempt doesn't wake those who wait with the caller's event, but says so."""
    bucket = TokenBucket(make_limits(tokens=60_000), clock=FakeClock())
    sent = Reservation(500.0)
    assert bucket.enqueue(sent)
    [place] = waiting(bucket, 1, tokens=500.0)
    assert bucket.ended(sent, used_tokens=0.0, waker=place.wake).made_room
    assert not place.wake.is_set()
    assert bucket.poll(place) == 0.0
    assert not bucket.ended(place, used_tokens=0.0, waker=place.wake).made_room


# What was sent late.


def test_what_was_sent_late_is_counted_when_it_was_sent() -> None:
    """Ten requests whose connections took three seconds leave the window three seconds later."""
    clock = FakeClock()
    limits = Limits(requests_per_minute=20, burst_seconds=30)
    bucket = TokenBucket(limits, clock=clock)
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


# In threads.


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Make threads interrupt each other often."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("frequent_switches")
def test_no_charge_is_lost_between_threads() -> None:
    """Threads that charge and correct all the time leave exactly what they charged."""
    bucket = TokenBucket(make_limits(requests=1e12, tokens=1e12), clock=FakeClock())

    def hammer() -> None:
        for _ in range(400):
            kept, given_back = Reservation(8.0), Reservation(8.0)
            assert bucket.enqueue(kept)
            assert bucket.enqueue(given_back)
            bucket.ended(kept, used_tokens=5.0)
            bucket.cancel(given_back)
            bucket.poll(kept)

    in_threads([hammer] * 16)
    assert admitted_by(bucket) == {"requests": 6400.0, "tokens": 32_000.0}
    assert bucket.server.in_flight.count == 0
    assert bucket.report(0.0).admitted == 6400
    assert bucket.enqueue(Reservation(1.0))  # the queue is empty


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
    bucket = TokenBucket(make_limits(), clock=clock)
    sent = Reservation(5.0)
    assert bucket.enqueue(sent)
    held.clear()
    call(bucket, sent)
    assert held == [True]
    assert not bucket.shared_limits.lock.locked()


def test_the_default_clock_is_the_systems() -> None:
    """A bucket that is given no clock takes ``time.monotonic``."""
    bucket, place = TokenBucket(make_limits(requests=60)), Reservation(0.0)
    before_s = time.monotonic()
    assert bucket.enqueue(place)
    assert before_s <= (place.admitted_at or 0.0) <= time.monotonic()
