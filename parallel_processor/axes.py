"""The scales of charts: where a value lies, and which ticks are written beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallel_processor.wording import clock_text, tick_text

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TIME_STEPS_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400),
)
_MOST_TIMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A scale from ``low`` to ``high`` with its ticks: values, and how they are written."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` lies, from 0 to 1; outside of the scale at its end."""
        if self.is_log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


def linear_axis(most: float) -> Axis:
    """From 0 to a round number of at least ``most``."""
    most = most if most > 0 and math.isfinite(most) else 1.0
    magnitude = 10.0 ** math.floor(math.log10(most / 4))
    step = next(s * magnitude for s in _STEPS if s * magnitude >= most / 4 * (1 - 1e-9))
    number = math.ceil(most / step * (1 - 1e-9))
    ticks = tuple((step * n, tick_text(round(step * n, 12))) for n in range(number + 1))
    return Axis(low=0.0, high=step * number, ticks=ticks)


def log_axis(least: float, most: float) -> Axis:
    """From a round number below ``least`` to one above ``most``; both are above 0."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    last = max(last, first + 1)
    factors = (1, 2, 5) if last - first <= 1 else (1, 3) if last - first == 2 else (1,)
    values = [f * 10.0**power for power in range(first, last) for f in factors] + [10.0**last]
    low = max((v for v in values if v <= least), default=values[0])
    high = min((v for v in values if v >= most and v > low), default=values[-1])
    ticks = tuple((v, tick_text(float(f"{v:.6g}"))) for v in values if low <= v <= high)
    return Axis(low=low, high=high, ticks=ticks, is_log=True)


def time_axis(begin_s: float, end_s: float) -> Axis:
    """From ``begin_s`` to ``end_s``, which is later, with at most six ticks of round times."""
    wanted = (end_s - begin_s) / _MOST_TIMES
    days = math.ceil(wanted / 86400)
    step = next((s for s in _TIME_STEPS_S if s >= wanted), days * 86400)
    numbers = range(math.ceil(begin_s / step - 1e-9), math.floor(end_s / step + 1e-9) + 1)
    ticks = tuple((n * step, _time_text(n * step, step)) for n in numbers)
    return Axis(low=begin_s, high=end_s, ticks=ticks)


def _time_text(seconds: float, step: float) -> str:
    return clock_text(seconds) if step >= 1 else f"{round(seconds, 3):g} s"
