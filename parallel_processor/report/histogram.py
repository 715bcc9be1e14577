"""A histogram of latencies with logarithmic bins, as HdrHistogram has them: it needs little memory.

A bin is 2^(1/8) = 1.09 times as wide as the one before it. A percentile is therefore exact to 9 %. The
first bin counts up to a millisecond, the last one all above 1.1 hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PERCENTILES = (50, 95, 99)
"""Those that reports and metrics show."""
_LEAST_S = 0.001
_PER_OCTAVE = 8
BINS = 22 * _PER_OCTAVE + 1


def bin_of(latency_s: float) -> int:
    """The number of the bin that counts ``latency_s``."""
    if latency_s <= _LEAST_S:
        return 0
    return min(math.ceil(math.log2(latency_s / _LEAST_S) * _PER_OCTAVE), BINS - 1)


def upper_s(number: int) -> float:
    """The longest latency that bin ``number`` counts, in seconds."""
    return float(_LEAST_S * 2.0 ** (number / _PER_OCTAVE))


def percentile_s(counts: Sequence[int], percent: float) -> float | None:
    """The latency that ``percent`` of the counted ones do not exceed; ``None`` without any."""
    total = sum(counts)
    if not total:
        return None
    wanted, seen = total * percent / 100, 0
    for number, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return upper_s(number)
    return None


def percentiles_s(counts: Sequence[int]) -> Mapping[int, float | None]:
    """Each of ``PERCENTILES``, ``None`` where nothing was counted."""
    return {percent: percentile_s(counts, percent) for percent in PERCENTILES}
