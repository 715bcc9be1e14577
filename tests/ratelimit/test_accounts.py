"""What one account may send, however many patterns, processors and calls send it. Time is virtual."""

from __future__ import annotations

import gc
import math
import os
from typing import Any

import pytest
from callers import limited
from clocks import FakeClock, SlidingCount
from senders import TOKENS, URL, Senders, buckets_of

from parallel_processor.options import Limits
from parallel_processor.ratelimit.accounts import Accounts
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.runtime.forks import FORK_LOCK


@pytest.mark.parametrize(
    ("limits", "by_model", "most"),  # the most of all models, then of a, b and c
    [
        (limited(601), {"a": limited(301)}, (601, 301, 601, 601)),
        (limited(601), {"a": limited(400), "b": limited(400)}, (601, 400, 400, 601)),
        (limited(601), {"a": limited(900)}, (601, 601, 601, 601)),
        (limited(601), {"[ab]": limited(301)}, (601, 301, 301, 601)),
        (limited(601), {"*": limited(math.inf, "auto")}, (601, 601, 601, 601)),
        (limited(601, headroom=0.1), {"a": limited(301, headroom=0.1)}, (540, 270, 540, 540)),
        (limited("auto", 60_100), {"a": limited("auto", 30_100)}, (601, 301, 601, 601)),
        (
            limited("auto", "auto", output_tokens_per_minute=24_040),
            {"a": limited("auto", "auto", output_tokens_per_minute=12_040)},
            (601, 301, 601, 601),
        ),
        (
            limited("auto", "auto", input_tokens_per_minute=36_060),
            {"a": limited("auto", 30_100)},
            (601, 301, 601, 601),
        ),
        # Nobody set the number: it gives way to that of a pattern.
        (Limits(tokens_per_minute=math.inf), {"a": limited(500)}, (2000, 500, 1500, 1500)),
        (Limits(requests_per_minute=math.inf), {"a": limited(300)}, (1550, 300, 1250, 1250)),
        (limited(), {"a": limited(301), "[bc]": limited(100)}, (401, 301, 100, 100)),
    ],
)
def test_a_number_that_was_set_bounds_all_models_together(
    limits: Limits, by_model: dict[str, Limits], most: tuple[float, ...]
) -> None:
    """No minute holds more than the ceiling, nor of a pattern more than its limit; all of it is used."""
    clock = FakeClock()
    buckets = buckets_of(Accounts(clock), clock, limits=limits, limits_by_model=by_model)
    senders = Senders(clock, [buckets.bucket(URL, model) for model in "abc"]).run(75.0)
    total, *each = senders.busiest()
    assert 0.97 * most[0] <= total <= most[0]
    assert all(found <= bound for found, bound in zip(each, most[1:], strict=True))


def test_a_model_that_waits_for_its_own_limit_leaves_the_rest_to_others() -> None:
    """The share of the ceiling that its pattern doesn't permit it is used by the other models."""
    clock = FakeClock()
    buckets = buckets_of(
        Accounts(clock), clock, limits=limited(600), limits_by_model={"a": limited(60)}
    )
    senders = Senders(clock, [buckets.bucket(URL, model) for model in "ab"]).run(75.0)
    _, a, b = senders.busiest()
    assert 58 <= a <= 60
    assert 530 <= b <= 540


@pytest.mark.parametrize(
    ("first", "second", "factor"),
    [
        ({}, {}, 1),
        ({}, {"request_url": "https://HOST.example/v1/embeddings"}, 1),
        ({}, {"request_url": "https://host.example:443/v1/embeddings"}, 1),
        ({}, {"max_workers": 3}, 1),
        ({}, {"limits_by_model": {"other": limited(9)}}, 1),
        ({"account": "a"}, {"account": "a", "api_key": "k2", "request_url": "https://b.ai/"}, 1),
        ({}, {"limits": limited(70, 1e7)}, 1),  # the same number of requests
        ({}, {"api_key": "k2"}, 2),
        ({}, {"request_url": "https://other.example/v1/chat/completions"}, 2),
        ({}, {"request_url": "https://host.example:444/v1/chat/completions"}, 2),
        ({"account": "a"}, {"account": "b"}, 2),
        ({"account": "host.example"}, {}, 2),
    ],
)
def test_processors_of_one_account_share_its_minute(
    first: dict[str, Any], second: dict[str, Any], factor: int
) -> None:
    """The sum of both is within the limit, unless host, key or name tell them apart."""
    clock = FakeClock()
    accounts = Accounts(clock)
    made = [
        buckets_of(accounts, clock, **{"limits": limited(70), **settings})
        for settings in (first, second)
    ]
    senders = Senders(clock, [buckets.bucket(URL, "m") for buckets in made]).run(75.0)
    total, one, other = senders.busiest()
    assert 70 * factor * 0.97 - 1 <= total <= 70 * factor
    assert max(one, other) <= 70


def test_calls_that_follow_each_other_share_their_minute() -> None:
    """Each call's processor is gone when the next is made; the limit remembers what they sent."""
    clock = FakeClock()
    accounts, count = Accounts(clock), SlidingCount()
    for _ in range(20):
        bucket = buckets_of(accounts, clock, limits=limited(7)).bucket(URL, "m")
        place = Reservation(TOKENS)
        bucket.enqueue(place)
        while delay := bucket.poll(place):
            clock.now_s += delay
        count.add(clock.now_s, 1.0)
        bucket.ended(place, answered=True)
        del bucket
    assert count.busiest() == 7


def test_a_report_has_what_was_sent_since_its_processor_was_made() -> None:
    """What earlier calls of the account sent is in the usage of the minute, not in the report."""
    clock = FakeClock()
    accounts = Accounts(clock)
    for number in (1, 2):
        clock.now_s += 30.0
        buckets = buckets_of(accounts, clock, limits=limited(600))
        bucket = buckets.bucket(URL, "m")
        assert bucket.enqueue(Reservation(TOKENS))
        (limit,) = bucket.report(0.0).limits
        assert (limit.used, limit.used_share) == (1.0, pytest.approx(1 / 5))
        assert buckets.usage().admitted["requests"] == number
        assert buckets.usage().span_s == pytest.approx(30.0 * (number - 1) + 0.5)


def test_an_account_is_forgotten_a_minute_after_its_last_use() -> None:
    """Limits that nobody has any more, and that are full again, take no memory; no key is kept."""
    clock = FakeClock()
    accounts = Accounts(clock)
    keep = buckets_of(accounts, clock, limits=limited(7), api_key="kept")
    for number in range(5):
        buckets = buckets_of(accounts, clock, limits=limited(7 + number), api_key="secret")
        assert buckets.bucket(URL, "m").enqueue(Reservation(TOKENS))
    assert "secret" not in repr(accounts.__dict__)
    del buckets
    gc.collect()
    for after_s, known in [(59.0, 2), (2.0, 1)]:
        clock.now_s += after_s
        with FORK_LOCK:
            accounts.forget_unused()
        assert len(accounts._known) == known
    assert keep.usage().limits["requests"] == 7


def test_nothing_is_shared_without_a_limit_or_on_another_clock() -> None:
    """Unlimited processors don't meet at a lock, and times of two clocks can't be compared."""
    clock = FakeClock()
    accounts = Accounts(clock)
    buckets_of(accounts, clock, limits=limited("auto", "auto"))
    buckets_of(accounts, FakeClock(), limits=limited(7))
    assert not accounts._known


def test_a_forked_child_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither counts what its parent sent nor waits for a lock that stayed held."""
    clock = FakeClock()
    accounts = Accounts(clock)
    bucket = buckets_of(accounts, clock, limits=limited(7)).bucket(URL, "m")
    assert bucket.enqueue(Reservation(TOKENS))
    monkeypatch.setattr(os, "getpid", lambda: 0)  # as in the child, whose copy of the lock is held
    with bucket.shared_limits.lock:
        made = buckets_of(accounts, clock, limits=limited(7)).bucket(URL, "m")
        assert made.enqueue(Reservation(TOKENS))
