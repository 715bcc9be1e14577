"""Servers that limit, queue or refuse without a word of what they limit, in virtual time.

Each row is a server and what a client gets out of it: whole runs, from the buckets to the settlement. The
shares are of what the server lets through from the sixtieth second on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from virtual import AUTO, World
from virtual_servers import (
    BUSY,
    NGINX,
    Leaky,
    Rule,
    Slots,
    VirtualRun,
    VirtualServer,
    Window,
    response,
)

from parallel_processor.models import LimitReading
from parallel_processor.options import Limits, RetryPolicy
from parallel_processor.ratelimit.state import Reservation

pytestmark = pytest.mark.acceptance  # virtual time: the same in every Python

LIMITS = {
    "defaults": Limits(),
    "auto": AUTO,
    "12,000 a minute": Limits(requests_per_minute=12_000.0, tokens_per_minute=math.inf),
    "inf": Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf),
}
TOO_MANY = response(429, BUSY)
TOO_MANY_FOR_A_MINUTE = response(429, BUSY, retry_after="60")


def refusal(status: int) -> Any:
    """What nginx and HAProxy say: a page of HTML, no reason, no time."""
    return response(status, NGINX)


def play(seconds: float, limits: str, run: dict[str, Any] | None = None, **server: Any) -> Any:
    """Let a run of the given limits meet a server for so many seconds at most."""
    random.seed(1)  # of the backoffs' jitter
    world = World()
    made = VirtualServer(world, **({"wire_s": 0.001} | server))
    client = VirtualRun(world, made, limits=LIMITS[limits], **(run or {}))
    world.run(seconds)
    return client, made


RULES: dict[str, tuple[Callable[[], Rule], float, float]] = {  # the rule, what it allows, latency
    "limit_req 10/s, burst 20": (lambda: Leaky(10, 20), 10.0, 0.05),
    "limit_req 10/s, no burst": (lambda: Leaky(10, 0), 10.0, 0.05),
    "limit_req 10/s, slow answers": (lambda: Leaky(10, 20), 10.0, 1.0),
    "limit_conn 5": (lambda: Slots(5), 5.0, 1.0),
    "limit_conn 20": (lambda: Slots(20), 20.0, 1.0),
    "10 a second": (lambda: Window(10, 1.0), 10.0, 0.05),
    "100 in 10 seconds": (lambda: Window(100, 10.0), 10.0, 0.05),
    "a bucket of a minute": (lambda: Leaky(5, 300), 5.0, 0.5),
}


@pytest.mark.parametrize("limits", ["defaults", "auto"])
@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("rule", RULES)
def test_what_a_server_limits_without_a_word_is_found(rule: str, status: int, limits: str) -> None:
    """Be it the rate or the number in flight: most of it is used, few are refused, none fails."""
    make, per_s, latency_s = RULES[rule]
    server = {"rule": make(), "refusal": refusal(status), "latency_s": latency_s, "jitter": 0.3}
    first = 120 if rule == "a bucket of a minute" else 60  # the bucket itself is the first minute's
    run, _ = play(first + 60, limits, **server)
    least = 0.8 if limits == "auto" and "conn" in rule and status == 429 else 0.85
    assert run.answered_share(first, first + 60, per_s) >= least
    assert run.refused_share(first, first + 60) <= 0.03
    assert not run.failed


@pytest.mark.parametrize("limits", ["defaults", "auto", "inf"])
@pytest.mark.parametrize("answer", [TOO_MANY, TOO_MANY_FOR_A_MINUTE, refusal(503)])
def test_five_slots_are_filled_at_once(answer: Any, limits: str) -> None:
    """The number in flight falls to five, nothing waits for a minute, and no request pays."""
    server = {"rule": Slots(5), "refusal": answer, "latency_s": 1.0, "jitter": 0.3}
    retry = RetryPolicy(max_attempts=2)
    run, _ = play(200, limits, {"count": 200, "retry": retry}, **server)
    assert run.ended_s <= 1.15 * 40
    assert not run.failed
    assert run.bucket.server.in_flight.limit <= 7


@pytest.mark.parametrize(
    ("limits", "timeout_s", "share"),
    [("defaults", 5.0, 1.2), ("defaults", 10.0, 1.15), ("inf", 5.0, 1.15), ("auto", 10.0, 1.15)],
)
def test_a_server_that_queues_is_not_driven_into_timeouts(
    limits: str, timeout_s: float, share: float
) -> None:
    """One slot of 0.25 s, and a queue for ever: everything is answered, and little for nobody."""
    run, server = play(200, limits, {"count": 300, "timeout_s": timeout_s}, latency_s=0.25, slots=1)
    assert run.ended_s <= share * 75
    assert not run.failed
    assert server.answered <= 360


FAULTS: dict[str, tuple[dict[int | None, float], float, float]] = {  # latency, timeout
    "one in fifty is overloaded": ({529: 0.02}, 0.3, 600.0),
    "15 in 100 are overloaded": ({529: 0.15}, 0.3, 600.0),
    "30 in 100 are unavailable": ({503: 0.3}, 0.3, 600.0),
    "one in ten stalls": ({None: 0.1}, 0.3, 2.0),
    "some stall, some are overloaded": ({None: 0.15, 529: 0.15}, 0.3, 2.0),
}


@pytest.mark.parametrize("limits", ["inf", "12,000 a minute", "auto"])
@pytest.mark.parametrize("faults", FAULTS)
def test_faults_that_are_no_load_hold_nothing_up(faults: str, limits: str) -> None:
    """Where less load doesn't make refusals and timeouts rarer, as many are in flight as before."""
    shares, latency_s, timeout_s = FAULTS[faults]
    run = {"count": 3000, "max_workers": 64, "retry": RetryPolicy(max_attempts=20)}
    server = {"latency_s": latency_s, "jitter": 0.3, "faults": shares}
    made, _ = play(300, limits, run | {"timeout_s": timeout_s}, **server)
    answered = 1 - sum(shares.values())
    attempt_s = latency_s * answered + timeout_s * shares.get(None, 0.0)
    most = 7.0 if limits == "auto" else 2.5  # the search itself takes longer than the work
    assert made.ended_s <= most * 3000 * attempt_s / answered / 64
    assert not made.failed


@pytest.mark.parametrize("limits", ["inf", "12,000 a minute"])
def test_latencies_that_differ_by_chance_are_no_queue(limits: str) -> None:
    """Answers take 3 to 57 of the 60 seconds that there are, whatever the number in flight is."""
    run = {"count": 1000, "max_workers": 64, "timeout_s": 60.0}
    made, _ = play(900, limits, run, latency_s=30.0, jitter=0.9)
    assert made.ended_s <= 1.3 * 1000 * 30 / 64
    assert not made.timeouts


def test_where_no_answer_ever_comes_in_time_the_run_stops_soon() -> None:
    """The pauses don't grow to a minute, and that the server is silent stops the run."""
    run, _ = play(150, "defaults", {"count": 200, "timeout_s": 0.05}, latency_s=0.1)
    assert run.stop.is_set()
    assert "doesn't answer within 0.05 s" in str(run.stop.cause)
    assert run.timeouts <= 20 * 6 + 10


def test_slow_answers_are_no_queue() -> None:
    """Where answers take long whatever the number is, nothing holds the rate down."""
    run, _ = play(160, "defaults", latency_s=40.0, jitter=0.9)
    assert run.sent >= 160 * 25 * 0.9917 - 30 or run.in_flight == 1000


@pytest.mark.parametrize("limits", ["defaults", "auto", "inf"])
def test_a_rate_that_was_measured_in_a_burst_does_not_last(limits: str) -> None:
    """Sixty requests at ten a second take no minutes, though the first burst was far quicker."""
    server = {"rule": Leaky(10, 2), "latency_s": 0.05, "refusal": refusal(429)}
    run, _ = play(60, limits, {"count": 60}, **server)
    assert run.ended_s <= 12


@pytest.mark.parametrize("limits", ["defaults", "auto", "inf"])
def test_a_request_that_is_refused_for_itself_slows_nobody(limits: str) -> None:
    """After three refusals it waits alone, and fails in the end with the server's reason."""
    run, _ = play(60, limits, {"count": 400}, latency_s=0.2, refused_for_ever={50})
    assert run.ended_s <= 30
    (errors,) = run.failed
    assert "Extra usage" in errors[-1]
    assert sum(run.answered.values()) == 399


@pytest.mark.parametrize(("latency_s", "most_s"), [(0.005, 5.0), (0.05, 5.0)])
def test_a_server_without_limits_is_soon_filled(latency_s: float, most_s: float) -> None:
    """Where answers come in milliseconds, ``auto`` sends 400 requests in a few seconds."""
    run, _ = play(60, "auto", {"count": 400}, latency_s=latency_s)
    assert run.ended_s <= most_s


def test_pauses_that_nobody_named_grow_while_nothing_is_answered() -> None:
    """One second at first, then twice as long each time up to 15 s; a typed pause stays as typed."""
    everything_refused = {"rule": Leaky(0.0, -1.0), "refusal": refusal(429), "latency_s": 1.0}
    free, _ = play(100, "defaults", {"count": 1}, **everything_refused)
    assert sorted(free.sends) == [0, 1, 3, 7, 15, 30, 45, 60, 75, 90]
    retry = {"retry": RetryPolicy(pause_s=20.0), "count": 1}
    typed, _ = play(100, "defaults", retry, **everything_refused)
    assert sorted(typed.sends) == [0, 20, 40, 60, 80]


class Misleading(VirtualServer):
    """Refuses one request, whose headers name a limit that isn't there."""

    def _arrive(self, number: int, respond: Any) -> None:
        self.misled = getattr(self, "misled", False)
        if number == 5 and not self.misled:
            self.misled = True
            headers = {"x_ratelimit_limit_requests": "60", "x_ratelimit_remaining_requests": "0"}
            respond(response(429, {"error": {"message": "no"}}, **headers))
        else:
            super()._arrive(number, respond)


def test_a_limit_that_one_refusal_named_is_let_go() -> None:
    """A refusal names 60 a minute, and no answer does: 1,000 requests take no 16 minutes."""
    world = World()
    server = Misleading(world, latency_s=0.2, wire_s=0.001)
    run = VirtualRun(world, server, count=1000, limits=LIMITS["defaults"])
    world.run(120)
    assert run.ended_s <= 80


def test_headers_that_name_a_number_in_flight_are_followed() -> None:
    """At most so many are in flight from the first answer on; of two, the smaller counts."""
    run, _ = play(5, "defaults", latency_s=1.0)
    number = LimitReading(name="in_flight", limit=4, remaining=3, reset_s=None, window_s=0.0)
    other = LimitReading(name="in_flight", limit=9, remaining=3, reset_s=None, window_s=0.0)
    bucket = run.bucket
    bucket.ended(Reservation(1.0), (other, number), answered=True)
    assert bucket.server.in_flight.limit == 4
    assert not bucket.has_room
