"""One limit's arithmetic, at times that the test names."""

from __future__ import annotations

import math
import random

import pytest
from clocks import MINUTE_S, SlidingCount
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.ratelimit.quota import ConfiguredQuota

WINDOW_S = 60.25
SLOT_S = WINDOW_S / 1024
PER_SECOND = (1 - 0.5 / MINUTE_S) / MINUTE_S  # of the limit, at the pace
MAX_SLOTS = 1026


def make_quota(
    limit: float = 60_000, burst_seconds: float = 0.5, now: float = 0
) -> ConfiguredQuota:
    return ConfiguredQuota("tokens", limit, burst_seconds, now)


def charge(quota: ConfiguredQuota, cost: float, now: float) -> list[float]:
    quota.advance(now)
    return quota.charge(cost, now)


def delay_s(quota: ConfiguredQuota, cost: float, now: float) -> float:
    quota.advance(now)
    return quota.delay_s(cost, now)


def test_a_new_quota_holds_a_burst() -> None:
    """The bucket begins full, with half a second's worth, and takes a second to pay a second's."""
    quota = make_quota()
    assert quota.capacity == 500.0
    assert delay_s(quota, 500.0, 0.0) == 0.0
    charge(quota, 500.0, 0.0)
    assert delay_s(quota, 500.0, 0.0) == pytest.approx(500 / 60_000 / PER_SECOND)
    assert delay_s(quota, 0.0, 0.0) == 0.0


def test_it_refills_no_further_than_its_capacity() -> None:
    """A long quiet time saves up nothing."""
    quota = make_quota()
    charge(quota, 300.0, 0.0)
    quota.advance(1000.0)
    assert quota.level == 500.0


def test_a_large_cost_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    """What is larger than the capacity is admitted, and who follows waits until it is paid."""
    quota = make_quota()
    charge(quota, 100.0, 0.0)
    full_s = 100 / 60_000 / PER_SECOND
    assert delay_s(quota, 5000.0, 0.0) == pytest.approx(full_s)
    assert delay_s(quota, 5000.0, full_s) == 0.0
    charge(quota, 5000.0, full_s)
    assert delay_s(quota, 0.0, full_s) == pytest.approx(4500 / 60_000 / PER_SECOND)
    assert delay_s(quota, 200.0, full_s) == pytest.approx(4700 / 60_000 / PER_SECOND)


def test_the_window_holds_what_the_pace_would_let_pass() -> None:
    """A full bucket doesn't help when the last minute has used up the limit."""
    quota = make_quota(burst_seconds=60.0)
    charge(quota, 40_000.0, 0.0)
    charge(quota, 20_000.0, 30.0)
    assert delay_s(quota, 1.0, 60.0) == pytest.approx(0.25)
    assert delay_s(quota, 40_000.0, 60.0) == pytest.approx(0.25)
    assert delay_s(quota, 40_001.0, 60.0) == pytest.approx(30.25)
    assert delay_s(quota, 1.0, 60.25) == 0.0


def test_more_than_the_limit_waits_for_an_empty_window() -> None:
    """A cost above the limit waits for the last minute's admissions to leave, down to the smallest."""
    quota = make_quota()
    charge(quota, 1.0, 0.0)
    assert delay_s(quota, 70_000.0, 50.0) == pytest.approx(10.25)
    assert delay_s(quota, 70_000.0, 60.25) == 0.0
    charge(quota, 70_000.0, 60.25)
    assert delay_s(quota, 0.0, 60.25) > MINUTE_S


def test_what_costs_nothing_makes_nothing_wait() -> None:
    """A window of free or refunded admissions counts as empty."""
    quota = make_quota()
    charge(quota, 0.0, 0.0)
    quota.refund(5.0, charge(quota, 5.0, 1.0), 1.0)
    assert delay_s(quota, 70_000.0, 1.0) == 0.0


def test_admissions_of_one_moment_leave_together() -> None:
    """A slot of the window leaves with its last admission, so that nothing leaves too early."""
    quota = make_quota()
    first = charge(quota, 1.0, 0.0)
    assert charge(quota, 2.0, SLOT_S * 0.9) is first
    assert charge(quota, 4.0, SLOT_S * 1.1) is not first
    quota.advance(WINDOW_S + SLOT_S * 0.8)
    assert quota.in_window == 7.0
    quota.advance(WINDOW_S + SLOT_S * 1.0)
    assert quota.in_window == 4.0


def test_a_refund_makes_room_in_both() -> None:
    """What is given back counts neither in the bucket nor in the window."""
    quota = make_quota()
    slot = charge(quota, 400.0, 0.0)
    quota.refund(300.0, slot, 0.0)
    assert quota.level == 400.0
    assert quota.in_window == 100.0
    quota.refund(100.0, slot, 0.0)
    assert (quota.level, quota.in_window) == (500.0, 0.0)


@pytest.mark.parametrize(("now", "later"), [(10.0, 0.0), (61.0, 400.0)])
def test_a_late_refund_neither_overfills_the_bucket_nor_frees_the_window_twice(
    now: float, later: float
) -> None:
    """After the refill the level stays at the capacity; a slot leaves the window once."""
    quota = make_quota()
    slot = charge(quota, 400.0, 0.0)
    charge(quota, later, now)
    quota.refund(400.0, slot, now)
    assert (quota.level, quota.in_window) == (500.0, later)


def test_time_that_stands_still_refills_nothing() -> None:
    """Asking again at the same moment gives the same answer."""
    quota = make_quota()
    charge(quota, 2000.0, 5.0)
    assert delay_s(quota, 1.0, 5.0) == delay_s(quota, 1.0, 5.0) > 0


@pytest.mark.parametrize("cost", [0.0, 1.0, 1e9])
def test_without_a_limit_nothing_waits(cost: float) -> None:
    """An infinite limit admits everything, takes refunds, and stays what it is."""
    quota = make_quota(limit=math.inf)
    for second in range(5):
        assert delay_s(quota, cost, float(second)) == 0.0
        quota.refund(cost / 2, charge(quota, cost, float(second)), float(second))
    assert quota.level == math.inf
    assert quota.in_window == 5 * cost / 2


def test_memory_is_bounded() -> None:
    """However much is admitted, the window holds about a thousand slots."""
    quota, choose = make_quota(limit=1e9), random.Random(1)
    now, most = 0.0, 0
    for _ in range(60_000):
        now += choose.choice([0.0, 0.001, 0.003, SLOT_S * 0.06])
        charge(quota, 1.0, now)
        most = max(most, len(quota.window))
    assert now > 1.1 * WINDOW_S
    assert 900 < most <= MAX_SLOTS


@given(
    gaps_s=st.lists(st.floats(0.0, 3 * SLOT_S), min_size=1, max_size=30),
    amounts=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30),
)
@settings(max_examples=20)
def test_rounding_errors_dont_add_up(gaps_s: list[float], amounts: list[float]) -> None:
    """After thousands of charges and refunds of odd amounts, the sum is that of the slots."""
    quota = make_quota(limit=1e9)
    now = 0.0
    for i in range(3000):
        now += gaps_s[i % len(gaps_s)]
        slot = charge(quota, amounts[i % len(amounts)], now)
        if i % 3 == 0:
            quota.refund(amounts[i % len(amounts)] / 3, slot, now)
        assert len(quota.window) <= MAX_SLOTS
    held = math.fsum(slot[1] for slot in quota.window)
    assert quota.in_window == pytest.approx(held, rel=1e-9, abs=1e-4)


@given(
    limit=st.one_of(st.floats(0.01, 100.0), st.floats(100.0, 1e12)),
    burst_seconds=st.floats(0.001, 60.0),
    start_s=st.sampled_from([0.0, 1e6]),
    steps=st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 200.0)), min_size=1, max_size=40),
)
@settings(max_examples=200)
def test_what_waits_as_long_as_told_fits(
    limit: float, burst_seconds: float, start_s: float, steps: list[tuple[float, float]]
) -> None:
    """The delay is enough for the cost to be admitted, within the limit of an independent count."""
    quota, count = make_quota(limit, burst_seconds, start_s), SlidingCount()
    now = start_s
    for share, gap_s in steps:
        cost = share * limit
        now += gap_s
        now += delay_s(quota, cost, now)
        assert delay_s(quota, cost, now) < 1e-9
        charge(quota, cost, now)
        count.add(now, cost)
        assert count.total(now - MINUTE_S, now) <= max(limit, cost) + 1e-6 + limit * 1e-9


@given(
    limit=st.floats(1.0, 1e6),
    burst_seconds=st.floats(0.001, 60.0),
    steps=st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 50.0)), min_size=1, max_size=20),
)
def test_nothing_waits_longer_than_it_must(
    limit: float, burst_seconds: float, steps: list[tuple[float, float]]
) -> None:
    """A moment before the delay is over, a bucket or a window written out in full has no room yet."""
    quota, charged = make_quota(limit, burst_seconds), []
    capacity, refill = limit * burst_seconds / MINUTE_S, limit * PER_SECOND
    now = 0.0
    for share, gap_s in steps:
        cost = share * limit
        now += gap_s
        delay = delay_s(quota, cost, now)
        if delay > 0.01:
            before = now + delay - 0.01
            level, stamp = capacity, 0.0
            for when, amount in charged:
                level = min(capacity, level + (when - stamp) * refill) - amount
                stamp = when
            level = min(capacity, level + (before - stamp) * refill)
            recent = sum(a for when, a in charged if when > before - WINDOW_S - SLOT_S)
            assert level < min(cost, capacity) or recent + cost > limit
        now += delay
        charge(quota, cost, now)
        charged.append((now, cost))
