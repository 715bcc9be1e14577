"""Finding, holding and following limits: a bucket against the simulator's limits, in virtual time.

Each row of ``scripts/bench adaptive`` is here too, over more kinds of server, and without waiting. The
shares are of what the server lets through; the numbers beside them are what was measured, rounded
down, so that a change for the worse shows.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from virtual import AUTO, Client, Server, World, make_response, share

from parallel_processor.models import Response
from parallel_processor.options import Limits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.simulator import LimitChange, ModelLimits

pytestmark = pytest.mark.acceptance

RATE = 600.0  # requests a minute
LIMIT = {"requests_per_minute": RATE}
NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
TOO_HIGH = Limits(requests_per_minute=10 * RATE, tokens_per_minute=math.inf)
QUIET: dict[str, Any] = {"header_style": "none", "retry_after": False}

ENFORCEMENTS: dict[str, dict[str, Any]] = {
    "bucket": {},
    "bucket of 5 s": {"burst_s": 5.0},
    "bucket of 1 s": {"burst_s": 1.0},
    "minutes": {"enforcement": "window"},
    "seconds": {"enforcement": "window", "window_s": 1.0},
}


def play(
    seconds: int, limits: Limits = AUTO, client: dict[str, Any] | None = None, **options: Any
) -> tuple[Server, Client]:
    """Let a client work against a server for some time."""
    world = World()
    server = Server(world, **({"latency_s": 0.5, "latency_jitter": 0.3} | options))
    made = Client(world, server, limits, **(client or {}))
    world.run(seconds)
    return server, made


def check(
    seconds: tuple[int, int],
    per_minute: float,
    least: float,
    most: float = math.inf,
    *,
    rejected: float = 1.0,
    counts: str = "admitted",
    limits: Limits = AUTO,
    client: dict[str, Any] | None = None,
    **options: Any,
) -> Client:
    """From the first to the last second, the server lets through ``least`` to ``most`` of ``per_minute``.

    At most the share ``rejected`` of all requests is rejected.
    """
    server, made = play(seconds[1], limits, client, **options)
    assert least <= share(getattr(server, counts), *seconds, per_minute) <= most
    assert made.refused <= rejected * made.sent
    return made


def busiest_minute(counts: Counter[int], seconds: int) -> int:
    return max(sum(counts[s] for s in range(t, t + 60)) for t in range(seconds - 59))


# The limit is unknown, and the headers name it.


@pytest.mark.parametrize("style", ["openai", "project", "azure", "anthropic", "mistral"])
def test_headers_of_any_style_are_followed(style: str) -> None:
    """From ten seconds on, 95 % of a limit that isn't configured is used, and nothing is rejected."""
    tokens = {"tokens_per_minute": RATE * 1000} if style == "project" else {}
    check((10, 90), RATE, 0.98, rejected=0.0, header_style=style, **LIMIT, **tokens)


@pytest.mark.parametrize("enforcement", ENFORCEMENTS)
@pytest.mark.parametrize("latency_s", [0.1, 3.0])
def test_any_enforcement_is_held(enforcement: str, latency_s: float) -> None:
    """Buckets with much and little in them and fixed windows are used to 94 % with hardly a rejection."""
    options = LIMIT | ENFORCEMENTS[enforcement] | {"latency_s": latency_s}
    check((10, 130), RATE, 0.94, rejected=0.002, **options)


@pytest.mark.parametrize("rate", [30.0, 20_000.0])
def test_small_and_large_limits_are_found(rate: float) -> None:
    """A limit of one request in two seconds is found as well as one of 333 a second."""
    check((10, 70), rate, 0.95, rejected=0.0, requests_per_minute=rate, latency_s=0.2)


def test_headroom_is_left_to_others() -> None:
    """With a headroom of a fifth, at most four fifths of what the headers name is used."""
    limits = Limits(requests_per_minute="auto", tokens_per_minute="auto", headroom=0.2)
    server, client = play(130, limits, requests_per_minute=RATE)
    assert busiest_minute(server.admitted, 130) <= 0.8 * RATE + 5
    assert share(server.admitted, 10, 130, 0.8 * RATE) >= 0.97


def test_a_number_is_a_ceiling() -> None:
    """What is typed is never exceeded, though the server would allow more."""
    limits = Limits(requests_per_minute=300, tokens_per_minute=math.inf)
    server, client = play(130, limits, requests_per_minute=RATE)
    assert busiest_minute(server.admitted, 130) <= 300
    assert share(server.admitted, 0, 130, 300) >= 0.98


def test_headers_lower_a_number_that_is_too_high() -> None:
    """What is typed in is ten times too high; the server's word counts, after the first answers."""
    check((10, 130), RATE, 0.98, rejected=0.05, limits=TOO_HIGH, burst_s=5.0, **LIMIT)


def test_input_and_output_tokens_have_limits_of_their_own() -> None:
    """Anthropic's limits of input and output tokens are found; the output's binds, and is used."""
    client = check(
        (15, 90),
        600.0,
        *(0.95, 1.01),
        counts="answered",
        client={"cap": 200, "used": lambda: 100, "reserved": lambda: 100, "settles": True},
        header_style="anthropic",
        token_charge="usage",
        input_tokens_per_minute=100_000.0,
        output_tokens_per_minute=60_000.0,
    )
    assert {limit.name for limit in client.bucket.report(0.0).limits} == {
        *("requests", "input_tokens", "output_tokens")
    }


def test_a_days_limit_is_spent_and_then_dripped() -> None:
    """Groq's requests of a day may go out in minutes; then they come back one by one."""
    server, client = play(400, header_style="groq", requests_per_day=300.0, latency_s=0.2)
    assert sum(server.admitted.values()) >= 300
    assert client.refused <= 2
    (limit,) = [limit for limit in client.bucket.report(0.0).limits if limit.found]
    assert (limit.window_s, limit.found) == (86_400.0, 300.0)


# The limit changes, or others take of it.


@pytest.mark.parametrize("enforcement", ["bucket", "bucket of 5 s", "minutes", "seconds"])
def test_a_limit_that_halves_is_followed_within_ten_seconds(enforcement: str) -> None:
    """95 % of the new limit is used from ten seconds later on, and at most 1 % is rejected."""
    change = (LimitChange(at_s=60, requests_per_minute=RATE / 2),)
    options = LIMIT | ENFORCEMENTS[enforcement]
    check((70, 130), RATE / 2, 0.94, 1.02, rejected=0.01, changes=change, **options)


@pytest.mark.parametrize("enforcement", ["bucket", "bucket of 5 s", "minutes", "seconds"])
def test_a_limit_that_doubles_is_followed(enforcement: str) -> None:
    """95 % of the new limit is used soon; of a fixed minute's from the next one on."""
    change = (LimitChange(at_s=60, requests_per_minute=RATE * 2),)
    options = LIMIT | ENFORCEMENTS[enforcement]
    first = 125 if enforcement == "minutes" else 70
    check((first, 200), RATE * 2, 0.94, rejected=0.002, changes=change, **options)


@pytest.mark.parametrize("enforcement", ["bucket", "bucket of 5 s", "minutes", "seconds"])
@pytest.mark.parametrize("latency_s", [0.5, 5.0])
def test_a_rival_is_made_room_for(enforcement: str, latency_s: float) -> None:
    """Of what a rival leaves 93 % is used at least, and at most 2 % is rejected."""
    options = LIMIT | ENFORCEMENTS[enforcement] | {"rival_requests_per_minute": RATE / 2}
    check((180, 300), RATE / 2, 0.93, rejected=0.02, latency_s=latency_s, **options)


def test_a_greedy_rival_leaves_the_rest() -> None:
    """With nine tenths taken, the last one is used, and nothing is rejected."""
    options = LIMIT | {"rival_requests_per_minute": 0.9 * RATE, "latency_s": 2.0}
    check((300, 600), 0.1 * RATE, 0.95, 1.1, rejected=0.005, **options)


def test_a_rival_that_takes_everything_for_a_while_is_outlived() -> None:
    """When all was gone, and nothing in flight to tell of better times, it goes on soon after."""
    rival = {"rival_requests_per_minute": 60_000.0, "rival_from_s": 4.0, "rival_until_s": 8.0}
    check((30, 120), RATE, 0.95, latency_s=0.2, **LIMIT, **rival)


def test_what_others_take_is_reported() -> None:
    """The report estimates the rival's rate."""
    server, client = play(400, requests_per_minute=RATE, rival_requests_per_minute=RATE / 2)
    (limit,) = [limit for limit in client.bucket.report(0.0).limits if limit.found]
    assert limit.others_per_minute == pytest.approx(RATE / 2, rel=0.2)


# No header names the limit.


@pytest.mark.parametrize(
    ("enforcement", "least"), list(zip(ENFORCEMENTS, (0.95, 0.77, 0.77, 0.95, 0.74), strict=True))
)
@pytest.mark.parametrize("rate", [600.0, 6000.0])
def test_a_limit_that_no_header_names_is_found(enforcement: str, least: float, rate: float) -> None:
    """After a minute most of it is used, though each rejection costs a pause, and 2 % are rejected."""
    options = {"requests_per_minute": rate} | QUIET | ENFORCEMENTS[enforcement]
    check((60, 300), rate, least, rejected=0.02, **options)


def test_a_number_that_is_too_high_is_found_out() -> None:
    """A ceiling of ten times the limit is no more than a ceiling: rejections show the rest."""
    check((60, 300), RATE, 0.85, rejected=0.03, limits=TOO_HIGH, **LIMIT, **QUIET)


def test_a_limit_that_no_header_names_may_rise() -> None:
    """Where a limit doubles silently, more is sent in time."""
    change = (LimitChange(at_s=300, requests_per_minute=RATE * 2),)
    check((1000, 1200), RATE * 2, 0.7, changes=change, **LIMIT, **QUIET)


def test_slow_down_is_obeyed_for_long() -> None:
    """After a complaint of the rise, the rate rises by half in a quarter of an hour at most."""
    world = World()
    server = Server(
        world, latency_s=0.5, requests_per_minute=RATE, refusal_code="slow_down", **QUIET
    )
    client = Client(world, server)
    rates = []
    for _ in range(35):
        world.run(20)
        (limit,) = [each for each in client.bucket.report(0.0).limits if each.tried_per_minute]
        rates.append(limit.tried_per_minute or 0.0)
    quiet = [
        later / earlier
        for second, (earlier, later) in enumerate(zip(rates, rates[1:], strict=False), 1)
        if second > 3 and not any(server.refused[s] for s in range(second * 20, second * 20 + 20))
    ]
    assert len(quiet) >= 15
    assert max(quiet) <= 1 + 0.5 * 20 / 900 + 1e-6
    assert share(server.admitted, 300, 700, RATE) >= 0.8
    assert client.refused <= 0.02 * client.sent


def test_rejections_that_have_another_reason_dont_end_in_a_standstill() -> None:
    """A server that rejects one request in fifty, whatever the rate, is still used."""
    world = World()
    server = Server(world, latency_s=0.2, **QUIET)
    client = Client(world, server, AUTO)
    serve = server.serve

    def sometimes_refuse(model: str, read: int, cap: int, used: int, answer: Any) -> None:
        if client.sent % 50 == 0:
            server.refuse(answer)
        else:
            serve(model, read, cap, used, answer)

    server.serve = sometimes_refuse  # type: ignore[method-assign]
    world.run(300)
    assert sum(server.answered.values()) >= 400  # each rejection costs a pause of 15 s


# Tokens


def test_caps_that_are_too_high_leave_nothing_unused() -> None:
    """Where the server charges use, 90 % of the limit is used in real tokens with learned reservations."""
    answers = random.Random(5)
    chats = {"cap": 800, "settles": True, "reserved": lambda: 110}
    chats["used"] = lambda: answers.randint(40, 120)
    options = {"tokens_per_minute": 60_000.0, "token_charge": "usage", "latency_s": 2.0}
    check((10, 100), 60_000.0, 0.9, 1.02, rejected=0.0, counts="tokens", client=chats, **options)


def test_a_server_that_counts_more_than_we_do_is_believed() -> None:
    """Where each request costs a fifth more there than here, the remaining tokens show it."""
    client = {"read": 80, "cap": 20, "reserved": lambda: 0}
    options = {"counts": "tokens", "client": client, "tokens_per_minute": 60_000.0}
    check((200, 400), 60_000.0, 0.97, rejected=0.005, **options)


class Hostile(Server):
    """Admits everything, and tells the same limit in each answer."""

    def __init__(self, world: World, lines: str) -> None:
        super().__init__(world, latency_s=0.2)
        self._lines = lines

    def serve(
        self, model: str, read: int, cap: int, used: int, answer: Callable[[Response], None]
    ) -> None:
        self.admitted[self._second()] += 1
        self._world.after(0.2, lambda: answer(make_response(200, self._lines, {"ok": True})))


@pytest.mark.parametrize(
    "lines",
    [
        "x-ratelimit-limit-tokens: 1\r\nx-ratelimit-remaining-tokens: 0\r\n",
        "x-ratelimit-limit-requests: 2\r\nx-ratelimit-remaining-requests: 0\r\n",
        "x-ratelimit-limit-requests: 600\r\nx-ratelimit-remaining-requests: 0\r\n"
        "x-ratelimit-reset-requests: 9h\r\n",
        "x-ratelimit-limit-requests: 1000000000000\r\nx-ratelimit-remaining-requests: 0\r\n",
    ],
)
def test_whatever_headers_say_one_request_a_minute_is_sent(lines: str) -> None:
    """A limit that can't be meant holds nobody for longer than it takes to hear of it anew."""
    world = World()
    server = Hostile(world, lines)
    limits = Limits(requests_per_minute="auto", tokens_per_minute="auto", headroom=0.9)
    Client(world, server, limits)
    world.run(1200)
    busy = sorted(server.admitted)
    assert max(later - earlier for earlier, later in zip(busy, busy[1:], strict=False)) <= 62
    assert busy[-1] >= 1130


# Several models


def test_a_slow_model_delays_no_fast_one() -> None:
    """Two models have limits of their own, found by their own headers."""
    world = World()
    limits = {
        "slow": ModelLimits(requests_per_minute=RATE / 10),
        "fast": ModelLimits(requests_per_minute=RATE),
    }
    servers = [Server(world, latency_s=0.5, limits_by_model=limits) for _ in limits]
    shared_limits = SharedLimits(AUTO, world.clock)
    for server, model in zip(servers, limits, strict=True):
        Client(world, server, model=model, shared_limits=shared_limits)
    world.run(100)
    for server, rate in zip(servers, (RATE / 10, RATE), strict=True):
        assert share(server.admitted, 20, 100, rate) >= 0.95
        assert not server.refused


def test_models_share_what_was_typed_for_all_of_them() -> None:
    """Two models under one limit together never exceed it, and both get their part."""
    world = World()
    limits = Limits(requests_per_minute=RATE, tokens_per_minute=math.inf)
    shared_limits = SharedLimits(limits, world.clock)
    servers = [Server(world, latency_s=0.5) for _ in range(2)]
    for server in servers:
        Client(world, server, limits, shared_limits=shared_limits)
    world.run(130)
    assert busiest_minute(servers[0].admitted + servers[1].admitted, 130) <= RATE
    for server in servers:
        assert share(server.admitted, 0, 130, RATE / 2) >= 0.97


# Load


@pytest.mark.parametrize(
    ("best", "latency_s", "seconds"),
    [
        *((64, 0.2, 100), (64, 1.0, 200), (64, 4.0, 400)),
        *((8, 0.5, 300), (8, 4.0, 2000), (400, 2.0, 200)),
    ],
)
def test_an_overloaded_server_gets_as_many_as_suit_it(
    best: int, latency_s: float, seconds: int
) -> None:
    """85 % of the best throughput is reached, wherever the best number in flight is."""
    most = best / (latency_s + 0.02) * 60  # the network's way there and back included
    options = {"latency_s": latency_s, "best_in_flight": best, "limits": NO_LIMITS}
    check((seconds // 2, seconds), most, 0.85, counts="answered", **options)


def test_a_server_that_turns_away_is_filled_and_not_flooded() -> None:
    """Where 503 is the answer above 64 in flight, most of them are used, and few are turned away."""
    options = {"latency_s": 1.0, "refuse_in_flight": 64, "limits": NO_LIMITS}
    check((30, 300), 64 / 1.02 * 60, 0.83, rejected=0.04, counts="answered", **options)


def test_a_server_that_bears_anything_gets_all_there_is() -> None:
    """The number in flight grows to ``max_workers`` within ten latencies, and stays there."""
    check((30, 120), 1000 / 2.02 * 60, 0.93, counts="answered", limits=NO_LIMITS, latency_s=2.0)
