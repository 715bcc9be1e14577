"""Buckets that share configured limits: served in the order of arrival, and never above the limits.

A discrete-event simulation drives several buckets under one ceiling as dispatchers do, on a clock that
goes to exactly the times that ``poll`` names. What it checks:

* No 60 seconds, both ends included, hold more of all buckets together than the limit.
* Requests that wait for the ceiling are admitted in the order of arrival, whatever bucket they are in.
* A request that waits for its own bucket, which pauses here, delays none in another bucket.
* Everybody is admitted in the end.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from clocks import MINUTE_S, FakeClock, SlidingCount, in_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.models import Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import INSTANT_S, Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

A, B, C = 0, 1, 2


def limited(requests: float = math.inf, tokens: float = math.inf, **more: Any) -> Limits:
    """Limits of so many requests and tokens a minute."""
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens, **more)


@dataclass(slots=True, eq=False)
class Waiter:
    """One caller of one of the buckets."""

    number: int
    bucket: int
    tokens: float
    place: Reservation
    poll_at_s: float = math.inf
    entries: list[list[float]] = field(default_factory=list)

    @property
    def is_admitted(self) -> bool:
        return self.place.admitted_at is not None


class Shared:
    """Callers of buckets under one ceiling, each in the place of a thread, on one clock."""

    def __init__(self, limits: Limits, buckets: int = 3, *, order: int = 0) -> None:
        self.clock = FakeClock()
        self.shared_limits = SharedLimits(limits, self.clock)
        self.buckets = [
            TokenBucket(limits, clock=self.clock, shared_limits=self.shared_limits)
            for _ in range(buckets)
        ]
        self.limits = (limits.requests_per_minute, limits.tokens_per_minute)
        self.counts = (SlidingCount(), SlidingCount())
        self.line: list[Waiter] = []  # who waits, in the order of arrival
        self.admitted: list[Waiter] = []
        self.paused_until_s = [-math.inf] * buckets
        self.polls = 0
        self._order = random.Random(order)
        self._numbers = 0

    # What callers do.

    def arrive(self, bucket: int, tokens: float = 1.0) -> Waiter:
        """Somebody comes, and waits if it has to."""
        waiter = Waiter(self._numbers, bucket, tokens, Reservation(tokens, threading.Event()))
        self._numbers += 1
        self.line.append(waiter)
        self.buckets[bucket].enqueue(waiter.place)
        self._note_admissions()
        if not waiter.is_admitted:
            self._poll(waiter)
        self._run_woken()
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """Somebody leaves, or an attempt that was admitted is never sent."""
        self.buckets[waiter.bucket].cancel(waiter.place)
        if waiter in self.line:
            self.line.remove(waiter)
        for entry in waiter.entries:
            entry[1] = 0.0
        self._run_woken()

    def pause(self, bucket: int, seconds: float) -> None:
        """A server refuses one bucket's requests."""
        self.buckets[bucket].pause(seconds)
        self.paused_until_s[bucket] = max(self.paused_until_s[bucket], self.clock.now_s + seconds)
        self._run_woken()

    # How time passes.

    def run(self, until_s: float = math.inf) -> None:
        """Let everybody do what they do until ``until_s``."""
        while self._step(until_s):
            pass
        if until_s < math.inf:
            self.clock.now_s = max(self.clock.now_s, until_s)

    def _step(self, until_s: float) -> bool:
        due = min(self.line, key=lambda waiter: waiter.poll_at_s, default=None)
        if due is None or due.poll_at_s > until_s or due.poll_at_s == math.inf:
            return False
        self.clock.now_s = max(self.clock.now_s, due.poll_at_s)
        self._poll(due)
        self._run_woken()
        return True

    def finish(self) -> None:
        """Let everybody be admitted; nobody is forgotten, and nobody polls in vain."""
        polls = self.polls
        waiting = len(self.line)
        self.run()
        assert not self.line, "these wait, and nobody will wake them"
        assert self.polls - polls <= 20 * (waiting + 1) * (1 + len(self.buckets))

    def _poll(self, waiter: Waiter) -> None:
        waiter.place.wake.clear()
        self.polls += 1
        delay = self.buckets[waiter.bucket].poll(waiter.place)
        self._note_admissions()
        assert (delay == 0.0) == waiter.is_admitted
        if delay:
            waiter.poll_at_s = self.clock.now_s + delay
            assert waiter.poll_at_s > self.clock.now_s, "polling again without time passing"

    def _run_woken(self) -> None:
        while woken := [waiter for waiter in self.line if waiter.place.wake.is_set()]:
            self._poll(self._order.choice(woken))

    # What is checked.

    def _note_admissions(self) -> None:
        """Who was admitted was the first of all whose bucket isn't paused, and fits; it is told."""
        new = [waiter for waiter in self.line if waiter.is_admitted]
        for waiter in new:
            assert not self._is_paused(waiter.bucket)
            before = self.line[: self.line.index(waiter)]
            assert all(self._is_paused(each.bucket) for each in before), "somebody was overtaken"
            assert all(each.bucket != waiter.bucket for each in before)
            self.line.remove(waiter)
            self.admitted.append(waiter)
            self._count(waiter)

    def _is_paused(self, bucket: int) -> bool:
        return self.clock.now_s < self.paused_until_s[bucket] - 2 * INSTANT_S

    def _count(self, waiter: Waiter) -> None:
        for count, limit, cost in zip(self.counts, self.limits, (1.0, waiter.tokens), strict=True):
            waiter.entries.append(count.add(self.clock.now_s, cost))
            recent = count.total(self.clock.now_s - 60.0, self.clock.now_s)
            assert recent <= max(limit, cost) * (1 + 1e-9) + 1e-6

    @property
    def order(self) -> list[int]:
        """The numbers of those who were admitted."""
        return [waiter.number for waiter in self.admitted]


# Whatever happens.

gaps_s = st.one_of(st.just(0.0), st.floats(0.0, 0.5), st.floats(0.0, 100.0))
buckets = st.integers(0, 2)
per_minute = st.one_of(st.integers(1, 600), st.floats(0.5, 5000.0), st.just(math.inf))
shares = st.one_of(st.floats(0.0, 0.01), st.floats(0.0, 0.3), st.floats(0.0, 2.0))
actions = st.one_of(
    st.tuples(st.just("arrive"), st.lists(st.tuples(buckets, shares), min_size=1, max_size=10)),
    st.tuples(st.just("pause"), buckets, st.floats(0.0, 90.0)),
    st.tuples(st.just("give up"), st.integers(0, 1000), st.booleans()),
)
scripts = st.lists(st.tuples(gaps_s, actions), max_size=15)


def play(shared: Shared, script: list[Any], skipped: frozenset[int] = frozenset()) -> None:
    """Do what a script says, but for arrivals in ``skipped`` buckets."""
    limit = shared.limits[1] if shared.limits[1] < math.inf else 1000.0
    for gap_s, (name, *args) in script:
        shared.run(shared.clock.now_s + gap_s)
        if name == "arrive":
            for bucket, share in args[0]:
                if bucket not in skipped:
                    shared.arrive(bucket, share * limit)
        elif name == "pause":
            shared.pause(*args)
        else:
            group = shared.line if args[1] else [w for w in shared.admitted if w.entries[0][1]]
            if group:
                shared.give_up(group[args[0] % len(group)])


@given(st.builds(limited, per_minute, per_minute), scripts, st.integers(0, 1000))
@settings(max_examples=200)
def test_whatever_callers_do_every_rule_holds(limits: Limits, script: list, order: int) -> None:
    """Never above the ceiling, in the order of arrival, paused buckets aside, and nobody starves."""
    shared = Shared(limits, order=order)
    play(shared, script)
    shared.finish()


arrivals = st.lists(
    st.tuples(
        gaps_s,
        st.tuples(st.just("arrive"), st.lists(st.tuples(buckets, shares), min_size=1, max_size=5)),
    ),
    max_size=15,
)


@given(st.builds(limited, per_minute, per_minute), arrivals, st.integers(0, 1000))
@settings(max_examples=100)
def test_a_bucket_that_waits_for_itself_costs_others_nothing(
    limits: Limits, script: list, order: int
) -> None:
    """Beside a paused bucket, the others' requests go when they would go without it."""
    times = []
    for skipped in (frozenset(), frozenset({A})):
        shared = Shared(limits, order=order)
        shared.pause(A, 1e9)
        play(shared, script, skipped)
        shared.run(1e8)
        times.append([waiter.place.admitted_at for waiter in shared.admitted])
        assert all(waiter.bucket == A for waiter in shared.line)
    assert times[0] == pytest.approx(times[1], abs=1e-6)


# One thing at a time.


def test_who_waits_for_the_ceiling_goes_in_the_order_of_arrival() -> None:
    """Whatever bucket it is in, and however many wait there."""
    shared = Shared(limited(60))
    for bucket in (A, A, B, A, A, C, B, A):
        shared.arrive(bucket)
    shared.finish()
    assert shared.order == list(range(8))


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    """The large one would never have room if others of its bucket or another took it first."""
    shared = Shared(limited(tokens=600))
    shared.arrive(A, 500)
    shared.arrive(A, 400)
    for bucket in (A, B, B, A, B):
        shared.arrive(bucket, 1)
    shared.finish()
    assert shared.order == list(range(7))


def test_a_request_above_a_whole_minute_goes_alone() -> None:
    """It waits for an empty minute, and who came later waits until its debt is paid."""
    shared = Shared(limited(tokens=1000))
    for bucket, tokens in ((B, 8.0), (A, 3000.0), (B, 8.0)):
        shared.arrive(bucket, tokens)
    shared.finish()
    assert shared.order == [0, 1, 2]
    _, large, after = (waiter.place.admitted_at or 0.0 for waiter in shared.admitted)
    assert 1060.0 < large < 1060.5
    assert 180.0 < after - large < 182.5


def test_who_waits_for_its_own_bucket_holds_up_nobody() -> None:
    """While one model's server asks to wait, the others' requests have the whole ceiling."""
    shared = Shared(limited(600))
    shared.pause(A, 30.0)
    for bucket in (A, A, A, B, C, B, C):
        shared.arrive(bucket)
    assert shared.order == [3, 4, 5, 6]
    assert shared.clock.now_s == 1000.0
    shared.finish()
    assert shared.order == [3, 4, 5, 6, 0, 1, 2]


def test_behind_its_pause_a_bucket_has_its_old_place() -> None:
    """Who came first goes first again, though others wait for the ceiling by then."""
    shared = Shared(limited(60))
    shared.arrive(B)
    shared.pause(A, 2.5)
    for bucket in (A, A, B, B, B, B, B):
        shared.arrive(bucket)
    shared.finish()
    assert shared.order == [0, 3, 4, 1, 2, 5, 6, 7]


@pytest.mark.parametrize("why", ["pause", "refusal", "cancel"])
def test_who_leaves_the_head_of_the_line_lets_the_others_go(why: str) -> None:
    """A large request that waits for the ceiling holds it up no longer once it is stopped itself."""
    shared = Shared(limited(tokens=600))
    first = shared.arrive(A, 500)
    large = shared.arrive(A, 590)  # waits for the window, about a minute
    shared.run(1055.0)  # the pace has long had room for small ones
    late = shared.arrive(B, 1)
    assert not late.is_admitted
    if why == "pause":
        shared.pause(A, 300.0)
    elif why == "refusal":
        shared.buckets[A].refuse(first.place, Rejection(), 300.0)
        shared.paused_until_s[A] = 1355.0
        shared._run_woken()
    else:
        shared.give_up(large)
    shared.run(1056.0)
    assert late.is_admitted


@pytest.mark.parametrize("how", ["cancel", "end"])
def test_what_one_bucket_gives_back_another_gets(how: str) -> None:
    """What was never sent, or not used by the answer, wakes whoever is first under the ceiling."""
    shared = Shared(limited(tokens=6000))
    sent = shared.arrive(A, 6000)
    other, own = shared.arrive(B, 30), shared.arrive(A, 6000)
    assert not other.is_admitted
    if how == "cancel":
        shared.give_up(sent)
    else:
        shared.buckets[A].ended(sent.place, used_tokens=10)
        sent.entries[1][1] = 10.0
        shared._run_woken()
    assert other.is_admitted
    assert not own.is_admitted


def test_the_one_that_polls_admits_the_others() -> None:
    """A caller that comes late to its poll delays only itself."""
    clock = FakeClock()
    shared_limits = SharedLimits(limited(600, burst_seconds=0.1), clock)
    first, second = (
        TokenBucket(shared_limits.limits, clock=clock, shared_limits=shared_limits) for _ in "ab"
    )
    assert first.enqueue(Reservation(0.0))
    places = [Reservation(0.0, threading.Event()) for _ in range(2)]
    assert not first.enqueue(places[0])
    assert not second.enqueue(places[1])
    clock.now_s += 1.0
    delay = second.poll(places[1])
    assert places[0].admitted_at == clock.now_s
    assert places[0].wake.is_set()
    assert delay == pytest.approx(0.1, rel=0.02)


def test_every_bucket_knows_how_long_and_for_what() -> None:
    """Who is held up by the ceiling says so, and who by its own bucket that."""
    shared = Shared(limited(requests=600, tokens=600))
    shared.arrive(A, 100)
    shared.pause(C, 45.0)
    shared.arrive(C, 1)
    shared.arrive(A, 100)
    shared.arrive(B, 1)
    assert [bucket.wait_cause for bucket in shared.buckets] == ["tokens", "tokens", "pause"]
    assert shared.buckets[A].delay == shared.buckets[B].delay
    assert shared.buckets[C].delay == pytest.approx(45.0)


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


def test_headroom_is_left_under_the_ceiling() -> None:
    """Other clients of the account have their share, whatever buckets there are."""
    shared = Shared(limited(100, headroom=0.25))
    for number in range(300):
        shared.arrive(number % 3)
    shared.finish()
    assert 70 <= shared.counts[0].busiest() <= 75


def test_a_ceiling_without_limits_is_open() -> None:
    """Only what has no number at all lets the number in flight be sought."""
    for limits, is_open in [
        (limited(), True),
        (limited("auto", "auto"), True),
        (limited("auto", 5.0), False),
        (limited(5.0), False),
        (limited(input_tokens_per_minute=5.0), False),
    ]:
        assert SharedLimits(limits, FakeClock()).is_open is is_open


def test_the_ceiling_reports_what_all_its_buckets_used() -> None:
    """The share is of what the limit has allowed since the start, the first burst included."""
    shared = Shared(limited(600, math.inf))
    shared.arrive(A)
    shared.arrive(B)
    shared.clock.now_s += 29.5
    (report,) = shared.shared_limits.report(shared.clock.now_s)
    assert (report.name, report.configured, report.used) == ("requests", 600, 2)
    assert report.used_share == pytest.approx(2 / 300)


def test_a_crowd_of_threads_keeps_the_rules() -> None:
    """Whatever threads do at once, the limits hold, all are served, and nothing stays behind."""
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
            if what < 0.4:
                tokens /= 2
                bucket.ended(place, used_tokens=tokens)
            elif what < 0.45:
                bucket.pause(2.0, place)
            sent.append((place.admitted_at or 0.0, tokens))
        return sent

    sent = sorted(sum(in_threads([partial(caller, seed) for seed in range(16)]), []))
    for limit, amounts in ((600, [1.0] * len(sent)), (60_000, [tokens for _, tokens in sent])):
        count = SlidingCount()
        for (when, _), amount in zip(sent, amounts, strict=True):
            count.add(when, amount)
        assert count.busiest() <= limit
    assert not shared_limits.waiting
    used, _ = shared_limits.levels(clock() + MINUTE_S + 1.0)
    assert used == {"requests": 0.0, "tokens": 0.0}
