"""Which bucket a request belongs to, and what all buckets report together."""

from __future__ import annotations

import math
from typing import Any

import pytest
from callers import limited
from clocks import FakeClock, in_threads

from parallel_processor.models import LimitReading, Upstream
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.wait_times import WaitTimes

URL = "https://host.example/v1/chat/completions"
OTHER_URL = "https://host.example/v1/embeddings"


def buckets_of(
    limits: Limits | None = None,
    by_model: dict[str, Limits] | None = None,
    clock: FakeClock | None = None,
    **settings: Any,
) -> TokenBuckets:
    """The buckets of a processor with these limits."""
    options = Options(
        limits=limits or limited(600, 6000), limits_by_model=by_model or {}, **settings
    )
    return TokenBuckets(options, clock or FakeClock())


def admit(bucket: TokenBucket, tokens: float = 1.0) -> Reservation:
    """One admitted attempt."""
    reservation = Reservation(tokens)
    assert bucket.enqueue(reservation)
    return reservation


def reading(name: str, limit: float) -> LimitReading:
    """What an answer's headers say of one limit."""
    return LimitReading(name=name, limit=limit, remaining=limit, reset_s=None, window_s=60.0)


def test_a_model_at_a_url_has_one_bucket() -> None:
    """The same one each time; another model's or endpoint's is another."""
    buckets = buckets_of()
    bucket = buckets.bucket(URL, "a")
    assert (bucket.url, bucket.model, bucket.host) == (URL, "a", "host.example")
    assert buckets.bucket(URL, "a") is bucket
    others = {buckets.bucket(URL, "b"), buckets.bucket(OTHER_URL, "a"), buckets.bucket(URL, "")}
    assert len(others | {bucket}) == 4


def test_threads_agree_on_the_bucket() -> None:
    """Threads that ask for a model at once get the same bucket."""
    buckets = buckets_of()

    def ask() -> list[TokenBucket]:
        return [buckets.bucket(URL, f"m{number}") for number in range(200)]

    found = in_threads([ask] * 8)
    assert all(each == found[0] for each in found)
    assert len(set(found[0])) == 200


def test_what_matches_no_pattern_shares_the_limits() -> None:
    """The limits hold for all models and endpoints together that have none of their own."""
    buckets = buckets_of(limited(600))
    a, b, c = buckets.bucket(URL, "a"), buckets.bucket(URL, "b"), buckets.bucket(OTHER_URL, "a")
    assert a.shared_limits is b.shared_limits is c.shared_limits
    assert a.shared_limits.limits == limited(600)
    for number in range(5):  # half a second's worth
        admit((a, b, c)[number % 3])
    late = Reservation(1.0)
    assert not b.enqueue(late)
    assert b.poll(late) == pytest.approx(0.1, rel=0.02)


def test_models_of_one_pattern_share_its_limits() -> None:
    """What one of them takes is missing to the other, and to no further model."""
    buckets = buckets_of(limited(600), {"gpt-4o*": limited(60), "o?": limited(120)})
    mini, full = buckets.bucket(URL, "gpt-4o-mini"), buckets.bucket(OTHER_URL, "gpt-4o")
    other, third = buckets.bucket(URL, "o3"), buckets.bucket(URL, "gpt-4")
    assert mini.shared_limits is full.shared_limits
    assert len({mini.shared_limits, other.shared_limits, third.shared_limits}) == 3
    admit(mini)
    assert not full.enqueue(Reservation(1.0))
    admit(other)
    admit(third)


@pytest.mark.parametrize(
    ("rpm", "models"),
    [
        (10, ("gpt-4o-mini", "gpt-4o-mini-2024-07-18")),
        (20, ("gpt-4o", "gpt-4o-2024-08-06")),
        (30, ("o1",)),
        (40, ("GPT-4o", "my-gpt-4o", "o2", "o12", "a[b]", "")),  # as in a shell, case matters
    ],
)
def test_the_first_pattern_that_matches_counts(rpm: float, models: tuple[str, ...]) -> None:
    """Patterns are those of a shell, in their order; a star matches requests without a model as well."""
    rates = {"gpt-4o-mini*": 10, "gpt-4o*": 20, "o[13]": 30, "gpt-4o-*": 99}
    patterns = {pattern: limited(rate) for pattern, rate in rates.items()}
    for buckets in (
        buckets_of(limited(40), patterns),
        buckets_of(None, patterns | {"*": limited(40)}),
    ):
        found = [buckets.bucket(URL, model).shared_limits.limits for model in models]
        assert found == [limited(rpm)] * len(models)


def test_more_models_than_256_share_a_bucket() -> None:
    """A file may name a new model in each line; what has a bucket already keeps it."""
    buckets = buckets_of()
    own = [buckets.bucket(URL, f"m{number}") for number in range(256)]
    shared = {buckets.bucket(URL, f"m{number}") for number in range(256, 600)}
    assert len(set(own)) == 256
    (bucket,) = shared
    assert bucket not in own
    assert bucket.shared_limits is own[0].shared_limits
    assert [buckets.bucket(URL, f"m{number}") for number in range(256)] == own
    assert len(buckets.reports(0.0, lambda bucket: {})) == 257


@pytest.mark.parametrize("account", [None, "team"])
def test_a_bucket_of_many_models_stays_where_they_are_sent(account: str | None) -> None:
    """However many models there are, a fallback stays one, and each server and key has its part."""
    urls = [f"https://{host}.example/v1/chat/completions" for host in ("a", "b", "fallback")]
    options = Options(request_url=urls[0], replica_urls=(urls[1],), api_key="k", account=account)
    buckets = TokenBuckets(options)
    for number in range(300):
        found = [
            buckets.bucket(urls[0], f"m{number}", Upstream(key=1)),
            buckets.bucket(urls[1], f"m{number}"),
            buckets.bucket(urls[2], f"m{number}", Upstream(url=urls[2])),
        ]
        assert [(each.url, each.upstream.key) for each in found] == [
            (urls[0], 1),
            (urls[1], 0),
            (urls[2], 0),
        ]
    for number in range(600):  # as many URLs, in the rows of a file
        url = f"https://a.example/v1/{number}"
        buckets.bucket(url, "late")
    late = buckets.bucket("https://c.example/v1/late", "late", Upstream(url=urls[2]))
    assert late.url == urls[2]
    assert buckets.bucket(url, "late").url == ""  # that of the request
    assert len(buckets.reports(0.0, lambda bucket: {})) <= 514


def test_a_bucket_of_many_models_has_their_limits() -> None:
    """However many models there are, each stays under the limits that are meant for it."""
    buckets = buckets_of(limited(600), {"gpt-*": limited(60), "o*": limited(120)})
    for number in range(256):
        buckets.bucket(URL, f"m{number}")
    late = [buckets.bucket(URL, model) for model in ("late", "gpt-4o", "o3")]
    found = [bucket.shared_limits.limits.requests_per_minute for bucket in late]
    assert found == [600, 60, 120]


def test_the_number_in_flight_is_sought_only_without_limits() -> None:
    """The search stays below ``max_workers``, and begins low if the server may name rate limits."""
    for limits, limit in [(limited(600), None), (limited(), 8), (limited("auto", "auto"), 4)]:
        buckets = buckets_of(limits, max_workers=8)
        admit(buckets.bucket(URL, "a"))
        (report,) = buckets.reports(0.0, lambda bucket: {})
        assert report.in_flight_limit == limit


def test_the_usage_of_no_bucket_is_nothing() -> None:
    """Before the first request the limits are known, and nothing is used."""
    usage = buckets_of(limited(600, 6000)).usage()
    assert usage.admitted == {"requests": 0.0, "tokens": 0.0}
    assert usage.limits == {"requests": 600.0, "tokens": 6000.0}
    assert (usage.waiting_for, usage.span_s) == ("", 0.5)


def test_the_usage_adds_up_what_was_admitted() -> None:
    """Limits that several buckets share count once; those of a pattern add to defaults."""
    clock = FakeClock()
    buckets = buckets_of(Limits(), {"gpt*": limited(1200, 60_000)}, clock)
    clock.now_s += 2.5
    admit(buckets.bucket(URL, "a"), 10)
    admit(buckets.bucket(URL, "b"), 20)
    admit(buckets.bucket(URL, "gpt-4o"), 300)
    usage = buckets.usage()
    assert usage.admitted == {"requests": 3.0, "tokens": 330.0}
    assert usage.limits == {"requests": 2700.0, "tokens": 185_000.0}
    assert usage.span_s == 3.0
    clock.now_s += 120
    usage = buckets.usage()
    assert usage.admitted == {"requests": 0.0, "tokens": 0.0}
    assert usage.span_s == 60.0


def test_the_usage_under_a_ceiling_counts_each_request_once() -> None:
    """The ceiling counts what the buckets of patterns admit as well, and bounds the sum."""
    buckets = buckets_of(limited(600), {"gpt*": limited(400, 60_000)})
    for model in ("a", "gpt-4o"):
        admit(buckets.bucket(URL, model), 30)
    usage = buckets.usage()
    assert usage.admitted == {"requests": 2.0, "tokens": 60.0}
    assert usage.limits == {"requests": 600.0, "tokens": math.inf}


def test_the_usage_has_the_limits_of_the_server() -> None:
    """If the server names less than was configured, that is the limit."""
    buckets = buckets_of(limited(600))
    a, b = buckets.bucket(URL, "a"), buckets.bucket(URL, "b")
    a.ended(admit(a), [reading("requests", 100)])
    assert buckets.usage().limits["requests"] == 600  # b may have more
    b.ended(admit(b), [reading("requests", 200)])
    assert buckets.usage().limits["requests"] == 300
    a.ended(admit(a), [reading("requests", 900)])
    assert buckets.usage().limits["requests"] == 600
    assert buckets.usage().limits["tokens"] == math.inf


def test_the_usage_has_the_cause_of_the_wait() -> None:
    """It is that of the first bucket with a queue; without one nothing waits."""
    buckets = buckets_of(limited(60, 60_000))
    a, b = buckets.bucket(URL, "a"), buckets.bucket(URL, "b")
    admit(a)
    assert buckets.usage().waiting_for == ""
    reservation = Reservation(1.0)
    b.enqueue(reservation)
    assert buckets.usage().waiting_for == "requests"
    b.pause(30.0)
    b.poll(reservation)
    assert buckets.usage().waiting_for == "pause"
    b.cancel(reservation)
    assert buckets.usage().waiting_for == ""


def test_each_limit_is_reported() -> None:
    """A report says of each bucket what it is, what it admitted, and what it waited for."""
    clock, wait_times = FakeClock(), WaitTimes()
    buckets = buckets_of(Limits(), {"gpt*": limited()}, clock)
    clock.now_s += 59.5
    plain, special = buckets.bucket(URL + "?key=secret", "a"), buckets.bucket(URL, "gpt")
    for tokens in (10, 20):
        admit(plain, tokens)
    wait_times.begin(0.0, "requests", [(plain, "requests")])
    wait_times.end(2.0)
    first, second = buckets.reports(1000.0, wait_times.of_bucket)
    assert (first.url, first.model, first.admitted) == (URL, "a", 2)
    assert first.waited_s == {"requests": 2.0}
    found = [(each.name, each.configured, each.used, each.used_share) for each in first.limits]
    assert found == [
        ("requests", 1500.0, 2.0, pytest.approx(2 / 1500)),
        ("tokens", 125_000.0, 30.0, pytest.approx(30 / 125_000)),
    ]
    assert (second.model, second.admitted, second.waited_s, second.limits) == ("gpt", 0, {}, ())
    assert special.model == "gpt"


def test_times_of_a_report_count_from_the_runs_start() -> None:
    """A report has the time at which a limit was found in seconds of the run."""
    clock = FakeClock(1000.0)
    buckets = buckets_of(limited(), clock=clock)
    bucket = buckets.bucket(URL, "a")
    clock.now_s = 1012.0
    bucket.ended(admit(bucket), [reading("tokens", 500)])
    (report,) = buckets.reports(1010.0, lambda bucket: {})
    (limit,) = [each for each in report.limits if each.found is not None]
    assert (limit.name, limit.found, limit.changes) == ("tokens", 500, ((2.0, 500),))
