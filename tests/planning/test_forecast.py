"""How long a job takes, against what the arithmetic of the limits says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from parallel_processor.models import WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.planning.forecast import Forecast, forecast
from parallel_processor.planning.job.trace import Trace

URL = "http://127.0.0.1/v1/chat/completions"
PACE = 119 / 120  # of a limit, at which it is refilled
Tokens = Callable[[int], tuple[float, float]]


def limits(requests: float | str = "auto", tokens: float | str = "auto", **more: Any) -> Limits:
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens, **more)  # type: ignore[arg-type]


def told(
    count: int,
    given: Limits,
    *,
    tokens: Tokens = lambda number: (100, 50),
    models: Sequence[str] = ("a",),
    group_of: Callable[[int], int] = lambda number: 0,
    latency_s: float = 0.5,
    **settings: Any,
) -> Forecast:
    trace = Trace()
    for number in range(count):
        trace.add(group_of(number), 1.0, *tokens(number))
    options = Options(request_url=URL, limits=given, **settings)
    groups = [(URL, model) for model in models]
    return forecast(trace.loads([1.0] * len(groups)), groups, options, latency_s=latency_s)


def test_requests_bind() -> None:
    """The burst goes at once, and the rest at the pace of the limit."""
    found = told(1_200, limits(600))
    assert found.seconds == pytest.approx((1_200 - 5) / (10 * PACE) + 0.5, abs=0.1)
    assert found.binding is WaitCause.REQUESTS
    (use,) = found.limits
    assert (use.name, use.per_minute) == ("requests", 600)
    assert use.used_share == pytest.approx(PACE, rel=0.01)


def test_tokens_bind() -> None:
    """The prompts and the answers that are reserved."""
    found = told(1_200, limits(6_000, 90_000))
    assert found.seconds == pytest.approx((1_200 * 150 - 750) / (1_500 * PACE) + 0.5, abs=0.2)
    assert found.binding is WaitCause.TOKENS


def test_each_pattern_has_its_own_minute() -> None:
    """The slower of two models decides, if they alternate in the file."""
    by_model = {"a": limits(600), "b": limits(300)}
    found = told(1_200, limits(), models="ab", group_of=lambda n: n % 2, limits_by_model=by_model)
    assert found.seconds == pytest.approx(600 / (5 * PACE) + 0.5, rel=0.01)
    assert {use.pattern for use in found.limits} == {"a", "b"}


def test_a_file_that_is_sorted_by_model_takes_longer() -> None:
    """The second model's requests come into view only near the end of the first's."""
    by_model = {"a": limits(3_000), "b": limits(3_000)}
    settings: dict[str, Any] = {"models": "ab", "limits_by_model": by_model}
    mixed = told(20_000, limits(), group_of=lambda n: n % 2, **settings)
    ordered = told(20_000, limits(), group_of=lambda n: n // 10_000, **settings)
    assert mixed.seconds == pytest.approx(10_000 / (50 * PACE), rel=0.01)
    hidden = 10_000 - 4_096  # of the first model, before one of the second is read
    assert ordered.seconds == pytest.approx((hidden + 10_000) / (50 * PACE), rel=0.02)


def test_a_ceiling_holds_over_patterns() -> None:
    """What the flags set is for all models together."""
    found = told(
        900,
        limits(600),
        models="ab",
        group_of=lambda n: n % 2,
        limits_by_model={"a": limits(500), "b": limits(500)},
    )
    assert found.seconds == pytest.approx(900 / (10 * PACE), rel=0.02)


def test_large_requests_use_up_their_minutes() -> None:
    """One of three minutes' tokens lets the next one wait for three minutes."""
    found = told(3, limits(600, 1_000), tokens=lambda number: (3_000, 0))
    assert found.seconds == pytest.approx(2 * 3_000 / (1_000 / 60 * PACE), rel=0.01)
    # Three requests of 300 fill a minute of 1,000, whose last tenth stays unused.
    many = told(30, limits(600, 1_000), tokens=lambda number: (300, 0))
    assert many.seconds == pytest.approx(9 * 60.25 + 2 * 18, rel=0.02)


def test_workers_bind() -> None:
    """As many as there are in each time that an answer takes."""
    found = told(2_000, limits(math.inf, math.inf), latency_s=1.0, max_workers=100)
    assert found.seconds == pytest.approx(20.0)
    assert (found.binding, found.in_flight) == (WaitCause.MAX_WORKERS, 100)
    assert found.limits == ()


def test_threads_are_the_rate_times_the_latency() -> None:
    """Ten a second that take 3 s are 30 in flight, and some more at the start."""
    assert 30 <= told(600, limits(600), latency_s=3.0).in_flight <= 36


@pytest.mark.parametrize(
    ("count", "per_minute", "settings", "expected_s"),
    [
        (1_000_000, 600, {}, 1_000_000 / (10 * PACE)),
        (1_000_000, 1_000_000, {"max_workers": 20_000}, 60.5),
        (300_000, math.inf, {"max_workers": 16, "latency_s": 0.01}, 300_000 / 1_600),
        (300_000, math.inf, {"max_workers": 300}, 500.0),
    ],
)
def test_long_jobs_are_thinned(
    count: int, per_minute: float, settings: dict[str, Any], expected_s: float
) -> None:
    """Loads of many requests wait no longer than these would."""
    trace = Trace()
    for _ in range(count // 100):
        trace.add(0, 100.0, 10_000.0, 5_000.0)
    loads = trace.loads([1.0])
    latency_s = settings.pop("latency_s", 0.5)
    options = Options(request_url=URL, limits=limits(per_minute), **settings)
    found = forecast(loads, [(URL, "a")], options, latency_s=latency_s)
    assert found.seconds == pytest.approx(expected_s, rel=0.02)


def test_several_servers_share_the_job() -> None:
    """Each has the limits for itself, unless all are one account."""
    urls = {"replica_urls": ["http://127.0.0.2/v1/chat/completions"]}
    assert told(1_200, limits(600), **urls).seconds == pytest.approx(60.3, rel=0.02)
    assert told(1_200, limits(600), account="one", **urls).seconds == pytest.approx(121, rel=0.02)


def test_headroom_and_burst_count() -> None:
    """A tenth less takes a ninth more, and what goes at once needs no wait."""
    assert told(600, limits(600, headroom=0.1)).seconds == pytest.approx(600 / (9 * PACE), rel=0.02)
    found = told(600, limits(600, burst_seconds=30.0)).seconds
    assert found == pytest.approx((600 - 300) / (10 * PACE), rel=0.02)


def test_no_request_takes_no_time() -> None:
    """Everything is answered already."""
    assert told(0, limits(600)).seconds == 0.0
