"""Rates that servers' answers show, followed by several processes together, in virtual time.

The server has the simulator's limits and headers. Each process has a bucket of its own and sends without
end. The shares are of what the server lets through; one process alone uses 99 %, of which several lose the
half second for which a lease lasts.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from virtual import AUTO, Client, Holder, Server, World, share

from parallel_processor.limiter.leases import News
from parallel_processor.limiter.remote_rates import RateStock
from parallel_processor.limiter.shared_rates import SharedRates
from parallel_processor.models import LimitReading
from parallel_processor.options import Limits
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.simulator import LimitChange

RATE = 600.0  # requests a minute
LIMIT: dict[str, Any] = {"requests_per_minute": RATE, "latency_s": 0.5, "latency_jitter": 0.3}
QUIET: dict[str, Any] = {"header_style": "none", "retry_after": False}


class Crowd:
    """Several processes and one server."""

    def __init__(
        self,
        count: int = 4,
        limits: Limits = AUTO,
        client: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.world = World()
        self.server, self.holder = Server(self.world, **LIMIT | options), Holder(self.world)
        self.clients = [
            Client(
                self.world,
                self.server,
                limits,
                shared_limits=self.holder.limits(limits),
                url="http://server",
                **(client or {}),
            )
            for _ in range(count)
        ]

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(seconds)

    @property
    def busiest_minute(self) -> int:
        """The most that the server admitted in 60 seconds."""
        counts = self.server.admitted
        return max(sum(counts[s] for s in range(t, t + 60)) for t in range(max(counts) - 58))

    @property
    def refused_share(self) -> float:
        """How many of all requests were rejected."""
        return sum(each.refused for each in self.clients) / sum(each.sent for each in self.clients)


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("rate", [RATE, 6000.0])
def test_a_limit_in_headers_holds_for_all_processes_together(count: int, rate: float) -> None:
    """The server would let a whole minute's worth out at once; each process alone would keep the limit."""
    crowd = Crowd(count, requests_per_minute=rate)
    crowd.run(130)
    assert crowd.busiest_minute <= rate
    assert share(crowd.server.admitted, 10, 130, rate) >= 0.97
    assert crowd.refused_share == 0
    sent = [client.sent for client in crowd.clients]
    assert min(sent) >= 0.3 * sum(sent) / count


@pytest.mark.parametrize("count", [4, 16])
def test_what_others_take_is_left_to_them(count: int) -> None:
    """What a rival takes is told from what the processes have taken together."""
    crowd = Crowd(count, rival_requests_per_minute=RATE / 2)
    crowd.run(300)
    assert 0.95 <= share(crowd.server.admitted, 180, 300, RATE / 2) <= 1.06
    assert crowd.refused_share <= 0.002
    (limit,) = crowd.clients[0].bucket.report(0.0).limits
    assert limit.others_per_minute == pytest.approx(RATE / 2, rel=0.2)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_limit_that_changes_is_followed(factor: float) -> None:
    """It is whoever hears of it first that tells the others."""
    crowd = Crowd(changes=(LimitChange(at_s=60, requests_per_minute=RATE * factor),))
    crowd.run(150)
    assert 0.95 <= share(crowd.server.admitted, 70, 150, RATE * factor) <= 1.02
    assert crowd.refused_share <= 0.005
    for client in crowd.clients:
        (limit,) = client.bucket.report(0.0).limits
        assert [told for _, told in limit.changes] == [RATE, RATE * factor]


@pytest.mark.parametrize("count", [4, 16])
def test_a_limit_that_no_header_names_is_found_together(count: int) -> None:
    """A rejection cuts the rate of all processes, once; those in flight then may be rejected, too."""
    crowd = Crowd(count, **QUIET)
    crowd.run(300)
    assert share(crowd.server.admitted, 60, 300, RATE) >= 0.9
    assert crowd.refused_share <= 0.08
    pauses = [client.bucket.server.pauses for client in crowd.clients]
    assert max(pauses) - min(pauses) <= 2


def test_a_number_that_is_too_high_is_only_a_ceiling() -> None:
    """The leases of the account are one thing, those under the server's rates another."""
    limits = Limits(requests_per_minute=10 * RATE, tokens_per_minute=math.inf)
    crowd = Crowd(limits=limits)
    crowd.run(130)
    assert 0.97 <= share(crowd.server.admitted, 10, 130, RATE) <= 1.0


def test_input_and_output_tokens_are_leased() -> None:
    """Where the limit of output tokens binds, what answers didn't use goes back to the holder."""
    crowd = Crowd(
        client={"cap": 200, "used": lambda: 100, "reserved": lambda: 100, "settles": True},
        header_style="anthropic",
        token_charge="usage",
        input_tokens_per_minute=100_000.0,
        output_tokens_per_minute=60_000.0,
    )
    crowd.run(90)
    assert 0.95 <= share(crowd.server.answered, 15, 90, RATE) <= 1.01
    names = {limit.name for limit in crowd.clients[0].bucket.report(0.0).limits}
    assert names == {"requests", "input_tokens", "output_tokens"}


@pytest.mark.parametrize("style", ["openai", "none"])
def test_a_holder_that_forgets_is_told_what_the_processes_know(style: str) -> None:
    """It is started again in the middle of the run: the limit holds, and the search does not begin anew."""
    crowd = Crowd(header_style=style, retry_after=False)
    crowd.run(130)
    tried = crowd.clients[0].bucket.server.rates.rate
    crowd.holder.restart()
    crowd.run(1)
    assert crowd.clients[0].bucket.server.rates.rate == pytest.approx(tried, rel=0.2)
    crowd.run(129)
    assert share(crowd.server.admitted, 130, 260, RATE) >= 0.9
    if style == "openai":
        assert crowd.busiest_minute <= 1.03 * RATE
        assert crowd.refused_share == 0


def test_nothing_is_leased_while_no_answer_shows_a_limit() -> None:
    """A server without limits costs no calls."""
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    crowd = Crowd(2, limits, {"demand_per_s": 50.0}, header_style="none", requests_per_minute=None)
    crowd.run(20)
    assert sum(client.sent for client in crowd.clients) >= 1900
    assert crowd.holder.calls == 0


def test_a_process_that_has_sent_nothing_keeps_the_limit_that_another_heard_of() -> None:
    """Its first lease is under the limit already, before any answer has come to it."""
    crowd = Crowd(1)
    crowd.run(70)
    told: list[LimitReading] = []
    late = Client(
        crowd.world, crowd.server, shared_limits=crowd.holder.limits(AUTO), url="http://server"
    )
    late_bucket, ended = late.bucket, late.bucket.ended

    def note(place: Any, readings: Any, **rest: Any) -> Any:
        told.extend(readings)
        return ended(place, readings, **rest)

    late_bucket.ended = note  # type: ignore[method-assign]
    crowd.run(0.3)
    assert not told
    assert late_bucket.server.rates.found_limit("requests") == RATE
    crowd.run(60)
    assert crowd.busiest_minute <= RATE


def test_what_an_answer_shows_during_a_call_goes_to_the_holder_with_the_next() -> None:
    """It takes the place of an earlier reading only while that is not on its way."""
    limits = Limits(requests_per_minute=math.inf)
    stock = RateStock("b", limits, 0.0, WakeEvent())
    readings = [
        LimitReading(name="requests", limit=limit, remaining=None, reset_s=None, window_s=60.0)
        for limit in (100.0, 200.0, 300.0)
    ]
    news = [News(age_s=0.0, readings=(reading,)) for reading in readings]
    stock.note(news[0], 0.0, is_urgent=False)
    ask = stock.tell(0.0)
    assert ask.server is not None
    stock.note(news[1], 0.5, is_urgent=False)
    stock.note(news[2], 0.5, is_urgent=False)
    lease = SharedRates(ask.server, 0.0).lease(ask, ask.server, 0.0)
    stock.receive(ask, lease, 0.0, 1.0)
    told = stock.tell(1.0).server
    assert told is not None and [each.readings for each in told.news] == [news[2].readings]
