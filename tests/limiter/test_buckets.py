"""One contract for whatever holds the buckets: the Python object, and the script in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_servers import RedisServer, redis_server

from parallel_processor.limiter.buckets import SharedBuckets
from parallel_processor.limiter.leases import HOLD_S, Ask, Lease, Terms
from parallel_processor.limiter.redis_limiter import RedisLimiter

REQUESTS = Terms(key="*:requests", limit=600.0, burst_s=0.5)
TOKENS = Terms(key="*:tokens", limit=60_000.0, burst_s=0.5)
TTL_S = 0.5
RATE = 600.0 / 61.0
Holder = Callable[[str, Ask], Lease]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for the whole module."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1e9)


@pytest.fixture(params=["python", "redis"])
def holder(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Holder]:
    """The ``lease`` of an empty holder whose time is that of ``clock``."""
    if request.param == "python":
        yield SharedBuckets(clock).lease
        return
    server = request.getfixturevalue("redis")
    server.ask("FLUSHALL")
    limiter = RedisLimiter(server.url)
    yield lambda account, ask: limiter.lease(account, ask, now=clock())
    limiter.close()


def ask_for(*amounts: float, after: Lease | None = None, **more: Any) -> Ask:
    """An ask for requests, and for tokens if there is a second amount; ``after`` is the newest lease."""
    terms = more.pop("terms", (REQUESTS, TOKENS)[: len(amounts)])
    return Ask(
        terms=terms,
        amounts=amounts,
        ttl_s=TTL_S,
        epochs=after.epochs if after else (0,) * len(terms),
        serials=after.serials if after else (0,) * len(terms),
        **more,
    )


def opened(holder: Holder, clock: FakeClock, *amounts: float) -> Lease:
    """The answer to an ask for nothing, after which the bucket is as full as it gets."""
    lease = holder("a", ask_for(*(0.0 for _ in amounts)))
    clock.now_s += 60
    return lease


def test_a_new_bucket_begins_empty(holder: Holder) -> None:
    """It admits nothing while leases of before a loss may be used, and then what has refilled."""
    lease = holder("a", ask_for(3.0))
    assert lease.is_granted
    assert lease.delay_s == pytest.approx(HOLD_S + 3 / RATE)


def test_leases_are_dated_one_after_the_other(holder: Holder, clock: FakeClock) -> None:
    """Each begins when it is paid: nobody asks twice, and who asks first is first."""
    opened(holder, clock, 1.0)
    delays = [holder("a", ask_for(4.0)).delay_s for _ in range(4)]
    full = 0.5 * RATE
    wanted = [max(0.0, 4 * count - full) / RATE for count in range(1, 5)]
    assert delays == pytest.approx(wanted)


def test_a_lease_is_under_all_limits_or_none(holder: Holder, clock: FakeClock) -> None:
    """It begins when the last of its limits lets it, and says which one that is."""
    opened(holder, clock, 1.0, 1.0)
    assert holder("a", ask_for(1.0, 10_000.0)).delay_s == 0.0  # the bucket is full
    lease = holder("a", ask_for(1.0, 400.0))
    assert lease.binding == 1
    assert lease.delay_s == pytest.approx((10_400 - 50 * RATE) / (100 * RATE))
    assert holder("a", ask_for(20.0, 0.0)).binding == 0
    assert holder("a", ask_for(0.0, 0.0)).delay_s == 0.0


def test_what_a_lease_did_not_use_comes_back(holder: Holder, clock: FakeClock) -> None:
    """The next lease begins as if it had never been leased."""
    known = opened(holder, clock, 1.0)
    lease = holder("a", ask_for(30.0, after=known))
    back = ((0, lease.slot, 30.0),)
    assert holder("a", ask_for(4.0, after=lease, returned=back)).delay_s == 0.0


def test_what_was_used_without_a_lease_is_charged(holder: Holder, clock: FakeClock) -> None:
    """The next lease begins as much later."""
    known = opened(holder, clock, 1.0)
    lease = holder("a", ask_for(1.0, after=known, overused=(30.0,)))
    assert lease.delay_s == pytest.approx((31 - 0.5 * RATE) / RATE)


def test_a_lease_of_more_than_a_minute_waits_for_an_empty_one(
    holder: Holder, clock: FakeClock
) -> None:
    """Whatever its size, it begins when nothing else is left in the window."""
    opened(holder, clock, 1.0)
    holder("a", ask_for(1.0))
    assert 60.0 <= holder("a", ask_for(900.0)).delay_s <= 61.5


def test_accounts_share_nothing(holder: Holder, clock: FakeClock) -> None:
    """A debt of one account delays no other."""
    opened(holder, clock, 1.0)
    holder("b", ask_for(0.0))
    clock.now_s += 60
    holder("a", ask_for(100.0))
    assert holder("b", ask_for(1.0)).delay_s == 0.0


def test_a_process_that_is_not_remembered_must_tell_its_history(
    holder: Holder, clock: FakeClock
) -> None:
    """It is granted nothing before, and what it tells counts in the window."""
    known = opened(holder, clock, 1.0)
    stranger = Ask(
        terms=(REQUESTS,), amounts=(1.0,), ttl_s=TTL_S, epochs=(7,), serials=known.serials
    )
    refused = holder("a", stranger)
    assert not refused.is_granted and refused.epochs == known.epochs
    told = holder("a", ask_for(1.0, after=refused, history=((0, 10.0, 600.0),)))
    assert told.is_granted and 50 <= told.delay_s <= 51.5


def test_a_holder_that_went_back_in_time_forgets(holder: Holder, clock: FakeClock) -> None:
    """A process that has seen a later lease than the bucket knows makes it begin anew."""
    known = opened(holder, clock, 1.0)
    later = Ask(terms=(REQUESTS,), amounts=(1.0,), ttl_s=TTL_S, epochs=known.epochs, serials=(99,))
    lease = holder("a", later)
    assert not lease.is_granted
    assert lease.epochs > known.epochs and lease.serials == (99,)
    assert holder("a", ask_for(1.0, after=lease)).delay_s == pytest.approx(HOLD_S + 1 / RATE)


def test_the_lowest_limit_counts_for_two_minutes(holder: Holder, clock: FakeClock) -> None:
    """While a process names a lower limit it holds for all; then the higher one does again."""
    lower = Terms(key=REQUESTS.key, limit=60.0, burst_s=0.5)
    opened(holder, clock, 1.0)
    assert holder("a", ask_for(0.0, terms=(lower,))).limits == (60.0,)
    clock.now_s += 119
    assert holder("a", ask_for(0.0)).limits == (60.0,)
    clock.now_s += 2
    assert holder("a", ask_for(0.0)).limits == (600.0,)


def test_a_pause_is_told_to_everybody(holder: Holder, clock: FakeClock) -> None:
    """Each answer names the pauses that are not over; the longest of one name counts."""
    holder("a", ask_for(0.0, pauses=(("m", 20.0), ("n", 1.0))))
    holder("a", ask_for(0.0, pauses=(("m", 5.0),)))
    clock.now_s += 2
    ((name, left_s),) = holder("a", ask_for(0.0)).pauses
    assert name == "m" and left_s == pytest.approx(18.0)
    assert holder("b", ask_for(0.0)).pauses == ()
    clock.now_s += 20
    assert holder("a", ask_for(0.0)).pauses == ()


def test_a_clock_that_is_set_back_admits_nothing_too_much(holder: Holder, clock: FakeClock) -> None:
    """The bucket begins anew, instead of standing still until the old time is reached."""
    known = opened(holder, clock, 1.0)
    clock.now_s -= 3600
    lease = holder("a", ask_for(1.0, after=known))
    assert not lease.is_granted and lease.epochs > known.epochs
    assert holder("a", ask_for(1.0, after=lease)).delay_s == pytest.approx(HOLD_S + 1 / RATE)


amounts = st.one_of(st.just(0.0), st.floats(0.01, 20.0), st.floats(0.01, 900.0))
calls = st.tuples(
    st.one_of(st.just(0.0), st.floats(0, 1), st.floats(-5, 90)),  # how much later it is
    amounts,
    amounts,
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.floats(0, 50)), max_size=3),
    st.tuples(amounts, st.just(0.0)),
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 59), st.floats(0, 100)), max_size=2),
    st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0.001, 30)), max_size=1),
    st.sampled_from([600.0, 600.0, 300.0, 2.5]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(calls, max_size=40))
def test_the_script_does_what_the_python_does(
    redis: RedisServer, steps: list[tuple[Any, ...]]
) -> None:
    """Any calls are answered alike by both, also if the clock goes back."""
    redis.ask("FLUSHALL")
    clock, limiter = FakeClock(1e9), RedisLimiter(redis.url)
    python, slots, epochs, serials = SharedBuckets(clock), [0], (0, 0), (0, 0)
    try:
        for later_s, first, second, returned, overused, history, pauses, limit in steps:
            clock.now_s += later_s
            ask = Ask(
                terms=(Terms(key="r", limit=limit, burst_s=0.5), TOKENS),
                amounts=(first, second),
                ttl_s=TTL_S,
                epochs=epochs,
                serials=serials,
                returned=tuple((i, slots[-1 - k % len(slots)], a) for i, k, a in returned),
                overused=overused,
                history=tuple(history),
                pauses=tuple(pauses),
            )
            wanted, found = python.lease("a", ask), limiter.lease("a", ask, now=clock())
            assert found.delay_s == pytest.approx(wanted.delay_s, abs=1e-4)
            assert dict(found.pauses) == pytest.approx(dict(wanted.pauses))
            for name in ("is_granted", "epochs", "serials", "limits"):
                assert getattr(found, name) == getattr(wanted, name), name
            assert abs(found.slot - wanted.slot) <= 1
            slots.append(wanted.slot)
            epochs, serials = wanted.epochs, wanted.serials
    finally:
        limiter.close()


def test_the_buckets_of_a_cluster_are_in_one_place(tmp_path: Path) -> None:
    """A node of a cluster runs the script, because all keys of an account are in one hash slot."""
    with redis_server(tmp_path, "--cluster-enabled", "yes") as server:
        server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while "cluster_state:ok" not in server.ask("CLUSTER", "INFO"):
            pass
        limiter = RedisLimiter(server.url)
        assert limiter.lease("a.example", ask_for(1.0, 5.0, pauses=(("m", 1.0),))).is_granted
        limiter.close()


def test_a_bucket_does_not_grow(redis: RedisServer) -> None:
    """An hour of leases leaves as many fields as a minute has slots, and the key expires by itself."""
    redis.ask("FLUSHALL")
    clock, limiter = FakeClock(1e9), RedisLimiter(redis.url)
    for _ in range(3000):
        clock.now_s += 1.2
        limiter.lease("a", ask_for(5.0), now=clock())
    limiter.close()
    key = "parallel-processor:{a}:*:requests"
    assert sorted(redis.ask("KEYS", "*")) == [key, f"{key}:slots"]
    assert redis.ask("HLEN", key) < 80
    assert redis.ask("ZCARD", f"{key}:slots") < 60
    for each in (key, f"{key}:slots"):
        assert 0 < redis.ask("PTTL", each) <= 86_400_000


@pytest.mark.parametrize("evicted", ["", ":slots"])
def test_a_bucket_whose_memory_was_evicted_begins_anew(redis: RedisServer, evicted: str) -> None:
    """A server that runs out of memory may drop either key: then the process must tell its history."""
    redis.ask("FLUSHALL")
    limiter = RedisLimiter(redis.url)
    known = limiter.lease("a", ask_for(1.0))
    assert redis.ask("DEL", f"parallel-processor:{{a}}:*:requests{evicted}") == 1
    assert not limiter.lease("a", ask_for(1.0, after=known)).is_granted
    limiter.close()
