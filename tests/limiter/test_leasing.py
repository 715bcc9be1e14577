"""Processes that lease from one holder, in virtual time: never above the limit, and never far below it."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
from fleets import Fleet, Member
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.models import Rejection, WaitCause
from parallel_processor.options import Limits


def a_minute(requests: float, tokens: float = math.inf, burst_seconds: float = 0.5) -> Limits:
    """Limits of so many a minute."""
    return Limits(
        requests_per_minute=requests, tokens_per_minute=tokens, burst_seconds=burst_seconds
    )


def fleet_of(count: int, requests: float, tokens: float = math.inf, **settings: Any) -> Fleet:
    """A fleet under limits."""
    return Fleet(count, a_minute(requests, tokens), **settings)


processes = st.integers(0, 2)
passing = st.tuples(st.just("pass"), st.one_of(st.floats(0, 1), st.floats(0, 90)))
settling = st.tuples(st.just("settle"), processes, st.integers(0, 50), st.floats(0, 1))
moves = st.one_of(
    passing,
    settling,
    st.tuples(st.just("queue"), processes, st.lists(st.floats(0.0001, 1.0), max_size=30)),
    st.tuples(st.just("queue many"), processes, st.integers(1, 400)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("lose answers"), st.booleans()),
    st.tuples(st.just("slow"), st.sampled_from([0.0, 0.001, 0.05, 0.4, 2.0])),
)
losses = st.sampled_from([("restart",), ("remember",), ("go back",)])


def act(fleet: Fleet, move: tuple[Any, ...], limit: float) -> None:
    """Do what ``move`` says; amounts of tokens are shares of ``limit``."""
    match move:
        case ("pass", seconds):
            fleet.run(seconds)
        case ("queue", process, shares):
            fleet.processes[process].queued.extend(share * limit for share in shares)
        case ("queue many", process, count):
            fleet.processes[process].queued.extend([limit / 5000] * count)
        case ("settle", process, index, share):
            if process < len(fleet.processes) and index < len(fleet.processes[process].sent):
                fleet.processes[process].settle(index, share)
        case ("away", is_away):
            fleet.is_away = is_away
        case ("lose answers", loses):
            fleet.loses_answers = loses
        case ("slow", seconds):
            fleet.round_trip_s = seconds
        case ("restart",):
            fleet.restart()
        case ("remember",):
            fleet.snapshot = copy.deepcopy(fleet.holder._buckets)
        case ("go back",):
            if hasattr(fleet, "snapshot"):
                fleet.holder._buckets = copy.deepcopy(fleet.snapshot)
    fleet.run(0.0)


@given(
    st.floats(1.0, 5000.0),
    st.sampled_from([1000.0, 60_000.0, 1e6]),
    st.sampled_from([0.01, 0.5, 0.5, 60.0]),
    st.lists(moves, max_size=25),
)
def test_no_minute_holds_more_than_the_limits(
    requests: float, tokens: float, burst_s: float, steps: list[tuple[Any, ...]]
) -> None:
    """Whatever is queued, settled, slow or away, any 60 seconds of all processes are within both limits."""
    fleet = Fleet(3, a_minute(requests, tokens, burst_s))
    for step in steps:
        act(fleet, step, tokens)
    fleet.is_away, fleet.loses_answers, fleet.round_trip_s = False, False, 0.001
    fleet.run(30.0)
    assert fleet.requests.busiest() <= requests + 1e-6
    assert fleet.tokens.busiest() <= tokens * (1 + 1e-9) + 1e-6


@given(
    st.sampled_from([20, 60, 333, 1200]),
    st.lists(st.sampled_from([0.0005, 0.002, 0.008]), min_size=1, max_size=4),
    st.lists(st.one_of(passing, settling, losses), min_size=5, max_size=25),
    st.sampled_from([2, 3, 8]),
)
def test_no_minute_holds_more_after_the_holder_lost_its_memory(
    requests: float, shares: list[float], steps: list[tuple[Any, ...]], count: int
) -> None:
    """A holder that was restarted, or came back old, admits nothing too much, for sizes up to a burst."""
    fleet = fleet_of(count, requests, 10_000.0)
    for process in fleet.processes:
        process.queued.extend(share * 10_000.0 for share in shares * 400)
    for step in steps:
        act(fleet, step, 1.0)
    assert fleet.requests.busiest() <= requests
    assert fleet.tokens.busiest() <= 10_000.0 + 1e-6


@given(st.lists(st.tuples(processes, st.floats(0.0001, 1.5)), max_size=60), st.floats(30, 3000))
def test_everything_is_sent_in_the_end(sizes: list[tuple[int, float]], requests: float) -> None:
    """No size of a request makes a process wait for ever, a minute's worth and more included."""
    fleet = fleet_of(3, requests, 10_000.0)
    for process, share in sizes:
        fleet.processes[process].queued.append(share * 10_000.0)
    minutes = sum(max(share, 0.0) for _, share in sizes) + len(sizes) / requests
    large = sum(share > 0.4 for _, share in sizes)  # such a request waits for a window of its own
    fleet.run_until_sent(60 * (1.2 * minutes + large) + 70)


@pytest.mark.parametrize("burst_s", [0.1, 0.5, 10.0])
def test_the_limit_is_used(burst_s: float) -> None:
    """Three processes with work for two minutes use 97 % of it, with few calls."""
    fleet = Fleet(3, a_minute(6000, burst_seconds=burst_s))
    for process in fleet.processes:
        process.queued.extend([1.0] * 4000)
    fleet.run(120)
    sent = len(fleet.requests.entries)
    assert sent >= 0.97 * 12_000
    assert fleet.requests.busiest() <= 6000
    assert fleet.calls <= 0.15 * sent


def test_processes_get_similar_shares() -> None:
    """A process that comes a minute later soon sends nearly as much as the two before it."""
    fleet = fleet_of(3, 6000)
    for process in fleet.processes[:2]:
        process.queued.extend([1.0] * 9000)
    fleet.run(60)
    fleet.processes[2].queued.extend([1.0] * 9000)
    fleet.run(40)
    before = [len(process.sent) for process in fleet.processes]
    fleet.run(30)
    shares = [len(p.sent) - b for p, b in zip(fleet.processes, before, strict=True)]
    assert min(shares) >= 0.6 * max(shares)


def test_many_processes_wait_in_the_order_of_arrival() -> None:
    """At a request in ten seconds, five processes are served in turn, and each lease is confirmed."""
    fleet = fleet_of(5, 6)
    for process in fleet.processes:
        process.queued.extend([1.0] * 3)
    fleet.run(160)
    assert [len(process.sent) for process in fleet.processes] == [3] * 5
    whole_asks = [ask for ask in fleet.asks if any(ask.amounts)]
    assert len(whole_asks) == 15
    assert fleet.calls <= 30


def test_what_an_answer_did_not_use_is_sent_again() -> None:
    """Answers that use a tenth of what was reserved let three times as many requests be sent."""
    fleet = fleet_of(2, math.inf, 60_000)
    for _ in range(240):
        for process in fleet.processes:
            process.queued.extend([100.0] * (60 - len(process.queued)))
        fleet.run(0.5)
        for process in fleet.processes:
            while process.sent:
                process.settle(0, 0.1)
    assert fleet.tokens.busiest() <= 60_000
    assert len(fleet.tokens.entries) > 3000  # 1,200 without the refunds


def test_what_was_used_beyond_the_reservation_is_charged() -> None:
    """Answers that use twice what was reserved halve what is sent."""
    fleet = fleet_of(1, math.inf, 60_000)
    (process,) = fleet.processes
    for _ in range(240):
        process.queued.extend([100.0] * (60 - len(process.queued)))
        fleet.run(0.5)
        while process.sent:
            process.settle(0, 2.0)
    used = sum(amount for _, amount in fleet.tokens.entries)
    assert 0.9 * 120_000 <= used <= 1.02 * 120_000


def test_a_request_larger_than_a_minute_goes_alone() -> None:
    """It waits for an empty minute, and the next request for another one."""
    fleet = fleet_of(2, math.inf, 6000)
    fleet.processes[0].queued.extend([100.0, 9000.0])
    fleet.run(5)
    fleet.processes[1].queued.append(100.0)
    fleet.run(400)
    times = [when for when, _ in fleet.tokens.entries]
    assert [amount for _, amount in fleet.tokens.entries] == [100.0, 9000.0, 100.0]
    assert times[1] - times[0] >= 60 and times[2] - times[1] >= 60


def test_a_lease_that_is_not_used_goes_back() -> None:
    """A process that leaves gives back its lease, and another one may use it at once."""
    fleet = fleet_of(2, 60)
    first, second = fleet.processes
    first.queued.extend([1.0] * 2)
    fleet.run(10)
    first.shared.leasing.give_back()
    asked = fleet.calls
    second.queued.append(1.0)
    fleet.run(0.1)
    assert len(second.sent) == 1
    assert fleet.calls == asked + 1


def test_while_the_holder_is_away_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Requests wait for the limiter, the log says so once, and the run goes on when it is back."""
    caplog.set_level(logging.INFO, "parallel_processor")
    fleet = fleet_of(1, 600)
    (process,) = fleet.processes
    process.queued.extend([1.0] * 300)
    fleet.run(5)
    fleet.is_away = True
    fleet.run(1)
    sent = len(process.sent)
    fleet.run(120)
    assert len(process.sent) == sent
    assert process.bucket.wait_cause is WaitCause.LIMITER
    fleet.is_away = False
    fleet.run(5)
    assert len(process.sent) > sent + 30
    assert process.bucket.wait_cause is WaitCause.REQUESTS
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "the holder is away; requests wait until it is back"
    assert len(told) == 2 and told[1].startswith("the limiter is back after 12")


def test_what_goes_back_does_not_come_back_twice() -> None:
    """A call whose answer is lost is made again, but what it gave back is not given back again."""
    fleet = fleet_of(1, math.inf, 60_000)
    (process,) = fleet.processes
    process.queued.extend([400.0] * 400)
    for _ in range(40):
        fleet.run(1.0)
        while process.sent:
            process.settle(0, 0.5)
        fleet.loses_answers = True
        fleet.run(0.3)
        fleet.loses_answers = False
    back = [slot for ask in fleet.asks for _, slot, _ in ask.returned]
    assert len(back) == len(set(back)) > 10  # each lease was for one request


def test_a_pause_of_one_process_holds_for_all() -> None:
    """A 429 with a wait that one process sees pauses the other from its next lease on."""
    fleet = fleet_of(2, 600)
    for process in fleet.processes:
        process.queued.extend([1.0] * 600)
    fleet.run(10)
    first, second = fleet.processes
    first.bucket.refuse(first.sent[-1][0], Rejection(has_retry_after=True), 20.0)
    first.event.set()  # what its caller is woken by, in a thread that this test has not
    fleet.run(1)
    sent = len(second.sent)
    fleet.run(18)
    assert len(second.sent) == sent
    assert second.bucket.wait_cause is WaitCause.PAUSE
    fleet.run(5)
    assert len(second.sent) > sent


def test_the_lowest_limit_holds_for_all(caplog: pytest.LogCaptureFixture) -> None:
    """Two processes that name different limits keep the lower one; the other is told."""
    fleet = fleet_of(1, 600)
    fleet.processes.append(Member(fleet, a_minute(300), 7.0))
    for process in fleet.processes:
        process.queued.extend([1.0] * 900)
    fleet.run(5)
    since = fleet.clock()
    fleet.run(120)
    recent = [when for when, _ in fleet.requests.entries if when >= since]
    assert len(recent) <= 600
    text = (
        "another process limits the account to 300 requests a minute, or this one did in the last "
    )
    text += "two minutes: that holds here, not 600"
    assert [record.getMessage() for record in caplog.records] == [text]


def test_a_slow_network_costs_some_of_the_limit_only() -> None:
    """With 0.3 s there and back, leases last longer, and most of the limit is still used."""
    fleet = fleet_of(2, 6000, round_trip_s=0.3)
    for process in fleet.processes:
        process.queued.extend([1.0] * 9000)
    fleet.run(150)
    assert fleet.requests.busiest() <= 6000
    assert len([when for when, _ in fleet.requests.entries if when > fleet.clock() - 60]) >= 5000


def test_a_process_tells_a_holder_without_a_memory_what_it_used() -> None:
    """Large requests of before a restart count after it, too, so that the minute stays within the limit."""
    fleet = fleet_of(1, math.inf, 10_000)
    fleet.processes[0].queued.extend([3000.0] * 20)
    for _ in range(6):
        fleet.run(33)
        fleet.restart()
    assert fleet.tokens.busiest() <= 10_000
    assert len(fleet.tokens.entries) >= 8
    assert any(ask.history for ask in fleet.asks)
