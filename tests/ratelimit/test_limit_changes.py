"""Limits that change while requests are sent. Time is virtual.

Several cases are what users of other limiters met:

* a new limit that only what begins after the change has (apache/pinot 15914, mokies/ratelimitj 28);
* a limiter that is made anew, and has forgotten the last minute (LuthienResearch/luthien-proxy 734);
* limits of patterns that can be changed, but not added or removed (dotnet/aspnetcore 45407).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from callers import limited
from clocks import MINUTE_S, FakeClock, SlidingCount
from hypothesis import given, settings
from hypothesis import strategies as st
from senders import URL, Senders, buckets_of

from parallel_processor.models import LimitReading, Upstream
from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import Accounts
from parallel_processor.ratelimit.quota import ConfiguredQuota
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.runtime.stop import WakeEvent

MARGIN_S = 0.3  # an admission counts for so much longer than a minute


def change(buckets: TokenBuckets, limits: Limits | None = None, **by_model: Limits) -> None:
    """Have other limits: for all models if given, and for those of the patterns."""
    options = buckets._options
    limits = limits or options.limits
    buckets.change_limits(replace(options, limits=limits, limits_by_model=by_model))


# One limit.

limit_changes = st.tuples(st.just("change"), st.sampled_from([1.0, 60.0, 600.0, 1200.0, 5000.0]))
sends = st.tuples(st.just("send"), st.floats(0.0, 1.0), st.sampled_from([0.0, 0.3, 1.0]))
gaps = st.tuples(st.just("wait"), st.floats(0.0, 70.0))


@given(
    st.lists(st.one_of(limit_changes, sends, sends, sends, gaps), max_size=120),
    st.sampled_from([0.01, 0.5, 10.0, 60.0]),
)
@settings(max_examples=150, deadline=None)
def test_no_minute_holds_more_than_the_highest_limit_in_it(
    actions: list[tuple[Any, ...]], burst_seconds: float
) -> None:
    """Whatever is sent, given back and changed; a cost is of up to a minute's worth."""
    quota, now = ConfiguredQuota("tokens", 600.0, burst_seconds, 0.0), 0.0
    count, in_force = SlidingCount(), [(0.0, 600.0)]
    for name, *args in actions:
        if name == "wait":
            now += args[0]
        elif name == "change":
            quota.change(args[0], burst_seconds, now)
            in_force.append((now, args[0]))
        else:
            cost = args[0] * quota.limit
            quota.advance(now)
            while (delay_s := quota.delay_s(cost, now)) > 1e-9:
                now += delay_s
                quota.advance(now)
            slot, entry = quota.charge(cost, now), count.add(now, cost)
            quota.refund(args[1] * cost, slot, now)
            entry[1] -= args[1] * cost
            assert quota.in_window == pytest.approx(
                sum(quota._counted(slot[1], slot) for slot in quota.window), abs=1e-6
            )
    for when, _ in count.entries:
        ends = [at for at, _ in in_force[1:]] + [math.inf]
        bounds = [
            b
            for (at, b), end in zip(in_force, ends, strict=True)
            if at <= when and end >= when - MINUTE_S
        ]
        assert count.total(when - MINUTE_S, when) <= max(bounds) + 1e-3


@pytest.mark.parametrize(("before", "after"), [(600, 1200), (1200, 600), (10, 6000), (6000, 10)])
def test_a_changed_limit_is_used_to_the_full_from_the_beginning(
    before: float, after: float
) -> None:
    """A lower one without a gap, a higher one without a burst; what was admitted is still told."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(before))
    senders = Senders(clock, [buckets.bucket(URL, "m")]).run(90.0)
    change(buckets, limited(after))
    changed_at = clock.now_s
    assert buckets.usage().admitted["requests"] == pytest.approx(before, rel=0.02)
    senders.run(90.0)
    least_s = max(2.0, MINUTE_S / after)
    for since_s in (0.0, 10.0, 30.0):
        found = senders.total.total(changed_at + since_s, changed_at + since_s + 2 * least_s)
        assert found == pytest.approx(after * 2 * least_s / MINUTE_S, rel=0.1, abs=1.1)
    assert senders.total.busiest() <= max(before, after)
    assert buckets.usage().limits["requests"] == after
    (limit,) = buckets.bucket(URL, "m").report(0.0).limits
    assert limit.configured == after
    assert limit.used_share == pytest.approx(0.99, abs=0.02)
    assert limit.changes == ((1000.0, before), (changed_at, after))


def test_a_limit_may_come_and_go() -> None:
    """Without it nothing waits; with it again, the pace is that of the limit at once."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(600))
    bucket = buckets.bucket(URL, "m")
    senders = Senders(clock, [bucket]).run(70.0)
    change(buckets, limited())
    assert bucket.shared_limits.is_open and not bucket.report(0.0).limits
    assert all(bucket.enqueue(Reservation(1.0)) for _ in range(30))
    assert buckets.usage().limits["requests"] == math.inf
    assert buckets.usage().admitted["requests"] == pytest.approx(625, abs=5)
    change(buckets, limited(600))
    began_s = clock.now_s
    senders.run(60.0)
    assert senders.total.total(began_s, began_s + 2.0) <= 21
    assert senders.total.total(began_s, began_s + MINUTE_S) == pytest.approx(595, abs=2)


def test_a_waiting_request_is_woken() -> None:
    """It would have waited for most of a minute; its caller needs no timer for the new limit."""
    clock, wake = FakeClock(), WakeEvent()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(1))
    bucket = buckets.bucket(URL, "m")
    assert bucket.enqueue(Reservation(1.0))
    place = Reservation(1.0, wake)
    assert not bucket.enqueue(place) and bucket.poll(place) > 50
    wake.clear()
    change(buckets, limited(60_000))
    assert wake.is_set
    assert bucket.poll(place) < 0.01


# Patterns.


def test_a_model_goes_from_one_pattern_to_another() -> None:
    """New patterns, removed ones, another order: no minute is above the highest of its limits."""
    clock = FakeClock()
    buckets = buckets_of(
        Accounts(clock), clock, limits=limited(), limits_by_model={"*": limited(1200)}
    )
    models = [buckets.bucket(URL, model) for model in "abc"]
    senders = Senders(clock, models).run(75.0)
    assert senders.total.busiest() == pytest.approx(1195, abs=5)
    change(buckets, a=limited(600), **{"*": limited(1200)})
    began_s = clock.now_s
    senders.run(75.0)
    a, b, c = (count.total(began_s, clock.now_s) for count in senders.counts)
    assert a == pytest.approx(600 * 75 / 60, rel=0.02)
    assert b + c == pytest.approx(1200 * 75 / 60, rel=0.02)
    assert senders.counts[0].busiest() <= 600
    change(buckets, **{"[ab]": limited(300), "a": limited(5), "c": limited(60)})
    began_s = clock.now_s
    senders.run(75.0)
    a, b, c = (count.total(began_s, clock.now_s) for count in senders.counts)
    assert a + b == pytest.approx(300 * 75 / 60, rel=0.02)
    assert c == pytest.approx(60 * 75 / 60, abs=2)
    change(buckets)
    assert all(bucket.shared_limits is models[0].shared_limits for bucket in models)
    assert all(bucket.enqueue(Reservation(1.0)) for bucket in models)
    assert buckets.usage().limits["requests"] == math.inf


def test_a_ceiling_over_patterns_changes_with_them() -> None:
    """What was set for all models bounds those of a pattern, too, also if it is set later."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits_by_model={"a": limited(900)})
    senders = Senders(clock, [buckets.bucket(URL, model) for model in "ab"]).run(10.0)
    for ceiling in (600, 300):
        change(buckets, limited(ceiling), a=limited(900))
        began_s = clock.now_s
        senders.run(70.0)
        sent = senders.total.total(began_s, clock.now_s)
        assert sent == pytest.approx(ceiling * 70 / 60, rel=0.02)


def test_a_bucket_of_many_models_stays_under_its_pattern() -> None:
    """Beyond 256 models, those of a pattern share a bucket. Without the pattern it goes to the rest."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits_by_model={"x*": limited(60)})
    for number in range(256):
        buckets.bucket(URL, f"m{number}")
    shared = buckets.bucket(URL, "x1")
    change(buckets, **{"x*": limited(90)})
    assert buckets.bucket(URL, "x2") is shared
    assert buckets.usage().limits["requests"] == 1590
    change(buckets)
    assert shared.shared_limits is buckets.bucket(URL, "m0").shared_limits


def test_processors_of_one_account_follow_together() -> None:
    """A number that they share is changed once for both; one that only one of them has is not."""
    clock = FakeClock()
    accounts = Accounts(clock)
    one, other = (buckets_of(accounts, clock, limits=limited(600)) for _ in range(2))
    senders = Senders(clock, [each.bucket(URL, "m") for each in (one, other)]).run(70.0)
    change(one, limited(1200))
    change(other, limited(1200))
    began_s = clock.now_s
    senders.run(70.0)
    assert senders.total.total(began_s, clock.now_s) == pytest.approx(1400, rel=0.02)
    assert buckets_of(accounts, clock, limits=limited(1200)).usage().admitted["requests"] > 1100
    change(one, limited(600))
    change(other, m2=limited(60))  # it has not changed this one
    assert other.bucket(URL, "m").report(0.0).limits[0].configured == 600


def test_each_account_has_the_changed_limits() -> None:
    """Two servers with two keys are four accounts; each tier, and the model of a fallback, has its own."""
    clock = FakeClock()
    urls = {"request_url": URL, "replica_urls": ["https://b.example/v1/chat/completions"]}
    buckets = buckets_of(
        Accounts(clock), clock, limits=limited(60), api_key=["k", "l"], allowed_hosts=(), **urls
    )
    hosts = (URL, urls["replica_urls"][0])
    likes = [
        Upstream("", key, tier, model)
        for key in (0, 1)
        for tier in ("", "flex")
        for model in ("", "n")
    ]
    made = [buckets.bucket(url, "m", like) for url in hosts for like in likes]
    change(buckets, limited(90), **{"m@flex": limited(30), "n": limited(math.inf, 900)})
    for bucket in made:
        flex = bucket.model == "m" and bucket.upstream.tier == "flex"
        limits = {limit.name: limit.configured for limit in bucket.report(0.0).limits}
        if flex:
            assert bucket.shared_limits.levels(clock())[1]["requests"] == 30
        assert limits["requests"] in (90, 30)
        assert limits.get("tokens") == (900 if bucket.model == "n" else None)
    assert len({bucket.shared_limits for bucket in made}) == 4 * 3
    assert buckets.usage().limits["requests"] == 4 * 90


# Limits that are found.


def test_a_number_gives_way_to_a_search_at_its_rate() -> None:
    """``auto`` begins where the number was, and not from the start."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(600))
    bucket = buckets.bucket(URL, "m")
    senders = Senders(clock, [bucket]).run(20.0)
    change(buckets, limited("auto", "auto"))
    assert bucket.server.rates.rate == pytest.approx(10.0, rel=0.05)
    began_s = clock.now_s
    senders.run(5.0)
    assert senders.total.total(began_s, clock.now_s) > 55
    change(buckets, limited(600))
    assert bucket.server.rates.rate == math.inf
    assert bucket.shared_limits.limits_tokens is False


def test_what_the_server_has_told_stays() -> None:
    """Headers have named the limit: neither ``auto`` nor a number begins a search."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(600))
    bucket = buckets.bucket(URL, "m")
    place = Reservation(1.0)
    assert bucket.enqueue(place)
    told = LimitReading(
        name="requests", limit=6000.0, remaining=5999.0, reset_s=0.01, window_s=MINUTE_S
    )
    bucket.ended(place, [told], answered=True)
    for limits in (limited("auto"), limited(), limited(600)):
        change(buckets, limits)
        assert bucket.server.rates.rate == math.inf
        assert bucket.server.in_flight.limit == math.inf
        assert bucket.server.rates.found_limit("requests") == 6000.0


def test_the_number_in_flight_is_sought_once_nothing_is_limited() -> None:
    """And no more once something is."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limited(600))
    bucket = buckets.bucket(URL, "m")
    assert bucket.server.in_flight.limit == math.inf
    change(buckets, limited())
    assert bucket.server.in_flight.limit == 32
    change(buckets, limited(math.inf, 1000))
    assert bucket.server.in_flight.limit == math.inf
