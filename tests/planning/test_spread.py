"""Counting, and estimating from a sample: totals, quantiles and errors."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.planning.job.spread import Histogram, TokenTally


@given(st.lists(st.integers(0, 2_000_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_within_a_bin(values: list[int], share: float) -> None:
    """At most 1/128 below the number that so many don't exceed."""
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    found = Histogram(values).quantile(share)
    assert exact * (1 - 1 / 128) - 1 <= found <= exact


@given(st.lists(st.integers(0, 10_000)), st.lists(st.integers(0, 10_000)))
def test_two_histograms_become_that_of_all(one: list[int], other: list[int]) -> None:
    """Their order makes no difference."""
    merged = Histogram(one)
    merged.merge(Histogram(other))
    assert merged.spread() == Histogram(one + other).spread()


def requests(count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Size, tokens, output and priority of so many requests."""
    chance = random.Random(seed)
    sizes = [chance.randint(100, 2_000) for _ in range(count)]
    return [(s, int(s * chance.gauss(0.25, 0.05)), 50, chance.getrandbits(60)) for s in sizes]


def tally(rows: list[tuple[int, int, int, int]], most: int | None) -> TokenTally:
    made = TokenTally(most)
    for size_bytes, tokens, output, priority in rows:
        made.add(size_bytes, output, priority, lambda tokens=tokens: tokens)  # type: ignore[misc]
    return made


def test_all_are_counted() -> None:
    """Without a sample the totals are exact."""
    rows = requests(1_000, seed=1)
    inputs, reserved = tally(rows, None).spreads()
    assert (inputs.total, inputs.error) == (sum(row[1] for row in rows), 0.0)
    assert reserved.total == inputs.total + 50 * 1_000
    assert inputs.least == min(row[1] for row in rows)
    assert inputs.most == max(row[1] for row in rows)


def test_the_error_of_a_sample_is_that_of_95_percent() -> None:
    """The true total is within it for about 95 of 100 samples, and it is small."""
    hits = 0
    for seed in range(200):
        rows = requests(500, seed=seed)
        inputs, reserved = tally(rows, 60).spreads()
        hits += abs(inputs.total - sum(row[1] for row in rows)) <= inputs.error
        assert inputs.error < 0.08 * inputs.total
        assert reserved.total - inputs.total == pytest.approx(50 * 500)
    assert 180 <= hits <= 199


def test_the_sample_is_the_same_however_it_is_divided() -> None:
    """Two parts that are put together have the sample of the whole."""
    rows = requests(3_000, seed=3)
    whole, first, second = tally(rows, 50), tally(rows[:700], 50), tally(rows[700:], 50)
    first.merge(second)
    assert first.spreads() == whole.spreads()
    assert (first.count, first.counted, first.size_bytes) == (3_000, 50, whole.size_bytes)


def test_a_sample_of_all_has_no_error() -> None:
    """There are fewer requests than it would take."""
    rows = requests(20, seed=4)
    inputs, _ = tally(rows, 50).spreads()
    assert (round(inputs.total), inputs.error) == (sum(row[1] for row in rows), 0.0)


def test_nothing_is_nothing() -> None:
    """No request has no tokens."""
    for most in (None, 10):
        inputs, reserved = TokenTally(most).spreads()
        assert (inputs.total, inputs.most, reserved.total, reserved.error) == (0, 0, 0, 0)
