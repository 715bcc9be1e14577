"""Latencies in bins."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.report.histogram import BINS, bin_of, percentile_s, upper_s


@given(st.floats(min_value=0.0, max_value=4000.0))
def test_a_bin_holds_what_it_says(latency_s: float) -> None:
    """Above the bin before it, and within its own, which is no wider than 9.1 %."""
    number = bin_of(latency_s)
    assert latency_s <= upper_s(number) * (1 + 1e-9)
    if number:
        assert latency_s > upper_s(number - 1) * (1 - 1e-9)
        assert upper_s(number) / upper_s(number - 1) < 1.091


@pytest.mark.parametrize("latency_s", [5000.0, 1e9, float("inf")])
def test_what_takes_hours_is_in_the_last_bin(latency_s: float) -> None:
    """Nothing is too long to be counted."""
    assert bin_of(min(latency_s, 1e300)) == BINS - 1


@pytest.mark.parametrize("percent", [1, 50, 95, 99, 100])
def test_a_percentile_is_that_of_the_sorted_list(percent: int) -> None:
    """To the width of a bin."""
    chance = random.Random(7)
    latencies = sorted(chance.lognormvariate(0.0, 1.5) for _ in range(1000))
    counts = [0] * BINS
    for latency_s in latencies:
        counts[bin_of(latency_s)] += 1
    exact = latencies[1000 * percent // 100 - 1]
    found = percentile_s(counts, percent)
    assert found is not None and exact <= found <= exact * 1.0906


def test_of_nothing_there_is_no_percentile() -> None:
    """Neither zero nor an error."""
    assert percentile_s([0] * BINS, 50) is None
    assert percentile_s([], 50) is None
