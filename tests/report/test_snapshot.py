"""What several processors have done, added up."""

from __future__ import annotations

import math

import pytest

from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import BucketReport, LimitReport, Usage
from parallel_processor.report.counters import Counts
from parallel_processor.report.snapshot import Snapshot


def made(answered: int, limit: float = 600.0, model: str = "m", span_s: float = 60.0) -> Snapshot:
    """What one processor says."""
    report = LimitReport(name="requests", configured=limit, used=float(answered), used_share=0.25)
    return Snapshot(
        counts=Counts(answered=answered, attempts=answered, read=answered),
        in_flight=2,
        waited_s={WaitCause.REQUESTS: 3.0},
        usage=Usage(
            admitted={"requests": float(answered)},
            limits={"requests": limit},
            waiting_for=WaitCause.REQUESTS,
            span_s=span_s,
        ),
        buckets=(BucketReport(url="u", model=model, admitted=answered, limits=(report,)),),
    )


def test_counts_and_waits_are_added() -> None:
    """Nothing is counted twice or lost, and an empty snapshot changes nothing."""
    both = made(10).plus(made(5))
    assert (both.counts.answered, both.counts.attempts, both.in_flight) == (15, 15, 4)
    assert both.waited_s == {WaitCause.REQUESTS: 6.0}
    assert Snapshot().plus(made(10)) == made(10).plus(Snapshot()) == made(10)
    sample = both.sample(7.0)
    assert (sample.at_s, sample.answered, sample.limits) == (7.0, 15, {"requests": 1200.0})


def test_limits_are_parts_or_the_same() -> None:
    """Parts of a limit add up; a limit that is shared is one, and more of it is used."""
    (bucket,) = made(10).plus(made(5)).buckets
    assert (bucket.admitted, bucket.limits[0].configured) == (15, 1200.0)
    assert (bucket.limits[0].used, bucket.limits[0].used_share) == (15.0, 0.25)
    shared = made(10).plus(made(5), shares_limits=True)
    assert shared.usage.limits == {"requests": 600.0}
    assert shared.buckets[0].limits[0].configured == 600.0
    assert shared.buckets[0].limits[0].used_share == 0.5
    assert made(1, math.inf).plus(made(1, math.inf)).usage.limits == {"requests": math.inf}


def test_rates_are_over_the_same_time() -> None:
    """A young processor's rate counts as what it would be over the longer time of the other."""
    both = made(60, span_s=60.0).plus(made(10, span_s=10.0))
    assert both.usage.span_s == 60.0
    assert both.usage.admitted["requests"] == pytest.approx(120.0)


def test_models_stay_apart() -> None:
    """The buckets of each model are added by themselves."""
    both = made(1, model="a").plus(made(2, model="b")).plus(made(3, model="a"))
    assert {each.model: each.admitted for each in both.buckets} == {"a": 4, "b": 2}
