"""Prompts whose beginning is cached, which the limit on input tokens doesn't count, in simulated time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import pytest
from clocks import MINUTE_S, FakeClock, SlidingCount

from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.tokens.estimates import CostEstimator

LIMIT = 60_000.0  # input tokens a minute
LATENCY_S = 10.0
OUTPUT = 100
REQUEST = made_request(
    {"model": "c", "max_tokens": 4096, "messages": [{"role": "user", "content": "word " * 5_000}]},
    1,
)


def charged_by(charge: Callable[[int], float], minutes: int, most: int = 200) -> SlidingCount:
    """What the server charges for the prompts that are sent, when they are answered.

    ``charge`` takes the number of a request. ``most`` are in flight.
    """
    clock, wake = FakeClock(), WakeEvent()
    bucket = TokenBucket(
        Limits(
            requests_per_minute=math.inf, tokens_per_minute=math.inf, input_tokens_per_minute=LIMIT
        ),
        clock=clock,
    )
    prices = CostEstimator(Options(request_url="https://api.anthropic.com/v1/messages"))
    count, numbers, ends_s = SlidingCount(), itertools.count(), clock() + minutes * MINUTE_S
    in_flight: list[tuple[float, int, Reservation]] = []
    estimate = prices.estimate(REQUEST)
    place: Reservation | None = None
    while clock() < ends_s:
        delay = LATENCY_S
        while len(in_flight) < most:
            if place is None:
                tokens, output = prices.cost(estimate)
                place = Reservation(tokens, wake, output_tokens=output)
                bucket.enqueue(place)
            if (delay := bucket.poll(place)) > 0:
                break
            heapq.heappush(in_flight, (clock() + LATENCY_S, next(numbers), place))
            place = None
        due_s = in_flight[0][0] if in_flight else math.inf
        clock.now_s = min(due_s, clock() + max(delay, 1e-6))
        while in_flight and in_flight[0][0] <= clock():
            _, number, reservation = heapq.heappop(in_flight)
            used = charge(number)
            count.add(reservation.admitted_at or 0.0, used)
            attempt = Attempt(
                status=AttemptStatus.ANSWERED, used_tokens=int(used) + OUTPUT, output_tokens=OUTPUT
            )
            charged = prices.charge(estimate, reservation.costs[1], attempt)
            bucket.ended(reservation, answered=True, used_tokens=charged, output_tokens=OUTPUT)
    count.entries.sort()
    return count


@pytest.mark.parametrize(("cached", "least"), [(0.0, 0.9), (0.5, 0.95), (0.95, 0.95)])
def test_the_limit_is_used_however_much_of_the_prompts_is_cached(
    cached: float, least: float
) -> None:
    """From the second minute on, no minute holds more. Of whole prompts, eleven fit into a minute."""
    prompt = CostEstimator(Options()).estimate(REQUEST).input_tokens
    count = charged_by(lambda number: prompt * (1.0 - cached), minutes=6)
    began_s = count.entries[0][0]
    used = count.total(began_s + MINUTE_S, began_s + 5 * MINUTE_S) / (4 * LIMIT)
    assert used >= least
    assert count.busiest() <= LIMIT


def test_a_cache_that_is_lost_is_noticed() -> None:
    """When every prompt is charged in full again, one minute's worth of those in flight is too much."""
    prompt = CostEstimator(Options()).estimate(REQUEST).input_tokens
    count = charged_by(lambda n: prompt * (0.05 if n < 1000 else 1.0), minutes=12)
    lost_s = count.entries[1000][0]
    assert count.total(lost_s + 3 * MINUTE_S, lost_s + 4 * MINUTE_S) <= LIMIT
