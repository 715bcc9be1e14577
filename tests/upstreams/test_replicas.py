"""Which bucket of a group admits a request, in virtual time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from clocks import FakeClock

from parallel_processor.models import Rejection, Request, Upstream, WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.upstreams.replicas import BucketGroup
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest, RetryState

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
URL = "http://a.example/v1/chat/completions"
REPLICA = "http://b.example/proxy/v1/chat/completions"


class Client:
    """A group of buckets, each of which admits so many at once, and what asks for a place."""

    def __init__(self, *most: int, limits: Limits = NO_LIMITS) -> None:
        self.clock = FakeClock(1000.0)
        self.members = [
            TokenBucket(limits, clock=self.clock, most_in_flight=each, upstream=Upstream(f"//{n}"))
            for n, each in enumerate(most)
        ]
        self.group = BucketGroup(self.members, self.clock)

    def pending(self, *failed_by: TokenBucket) -> PendingRequest:
        """A request, which these have failed just now."""
        request = Request(body={})
        pending = PendingRequest(request=request, group=self.group, bucket=self.members[0])
        if failed_by:
            pending.retry_state = RetryState(request=request)
            pending.retry_state.failed_by = dict.fromkeys(failed_by, self.clock.now_s)
        return pending

    def ask(self, *failed_by: TokenBucket, left: float = math.inf) -> Reservation:
        """A place for a request."""
        place = Reservation(1.0)
        self.group.place(place, self.pending(*failed_by), left)
        return place

    def send(self, *failed_by: TokenBucket, left: float = math.inf) -> tuple[int, Reservation]:
        """Which member has admitted a request at once, and its reservation."""
        place = self.ask(*failed_by, left=left)
        assert place.admitted_at is not None
        bucket, reservation = self.group.admitted(place)
        return self.members.index(bucket), reservation

    @property
    def queued(self) -> list[int]:
        """How many places each member's queue has."""
        return [len(member.queue) for member in self.members]

    @property
    def in_flight(self) -> list[int]:
        """How many each member has in flight."""
        return [member.in_flight for member in self.members]


def test_the_one_with_the_fewest_in_flight_comes_first() -> None:
    """Where they are equal, they take turns."""
    client = Client(9, 9, 9)
    first = [client.send() for _ in range(6)]
    assert client.in_flight == [2, 2, 2]
    for number, reservation in first:
        if number == 1:
            client.members[1].ended(reservation, answered=True)
    assert [client.send()[0] for _ in range(2)] == [1, 1]


def test_where_none_has_room_the_first_that_has_gets_it() -> None:
    """The places in the other queues are given up."""
    client = Client(1, 1)
    sent = dict(client.send() for _ in range(2))
    place = client.ask()
    assert (place.admitted_at, client.queued) == (None, [1, 1])
    assert client.group.wait_cause is WaitCause.CONCURRENCY
    client.members[1].ended(sent[1], answered=True)
    client.group.poll(place)
    bucket, reservation = client.group.admitted(place)
    assert bucket is client.members[1] and reservation is not place
    assert (client.queued, client.in_flight) == ([0, 0], [1, 1])


def test_what_two_have_admitted_is_sent_once() -> None:
    """The charge of the other is given back."""
    client = Client(1, 1)
    sent = dict(client.send() for _ in range(2))
    place = client.ask()
    for number, member in enumerate(client.members):
        member.ended(sent[number], answered=True)
        member.poll(member.queue[0])
    assert client.in_flight == [1, 1]
    client.group.admitted(place)
    assert sorted(client.in_flight) == [0, 1]


def test_a_cancelled_place_leaves_nothing_behind() -> None:
    """Neither in a queue, nor in flight."""
    client = Client(1, 1)
    places = [client.ask() for _ in range(3)]
    for place in places:
        client.group.cancel(place)
    assert (client.queued, client.in_flight) == ([0, 0], [0, 0])


def test_one_that_pauses_gets_nothing() -> None:
    """Until its pause is over, and then only what it may have."""
    client = Client(9, 9)
    client.members[0].pause(10.0)
    assert {client.send()[0] for _ in range(4)} == {1}
    client.clock.now_s += 11.0
    assert client.send()[0] == 0


def test_a_request_goes_on_to_one_that_has_not_failed_it() -> None:
    """Even if that one has more under way; and back once the first has answered another."""
    client = Client(9, 9)
    first = client.members[0]
    sent = [client.send() for _ in range(4)]
    for number, reservation in sent:
        if number == 0:
            client.clock.now_s += 1.0
            first.ended(reservation)
    assert client.send(first)[0] == 1
    later = next(reservation for number, reservation in iter(client.send, None) if number == 0)
    failed_at = client.clock.now_s - 1.0
    first.ended(later, answered=True)
    pending = client.pending(first)
    assert pending.retry_state is not None
    pending.retry_state.failed_by[first] = failed_at
    place = Reservation(1.0)
    client.group.place(place, pending)
    assert client.group.admitted(place)[0] is first


def test_it_goes_on_to_another_server_before_another_key() -> None:
    """A request has fewer attempts than a server that is out of order may have keys."""
    client = Client(9, 9, 9, 1)
    for key, server in enumerate(("//a", "//a", "//a", "//b")):
        upstream = Upstream(server, key)
        client.members[key] = TokenBucket(
            NO_LIMITS, clock=client.clock, most_in_flight=(9, 9, 9, 1)[key], upstream=upstream
        )
    client.group = BucketGroup(client.members, client.clock)
    number, busy = client.send(client.members[0])
    assert number == 3
    place = client.ask(client.members[1])  # it waits, though the other keys have room
    assert (place.admitted_at, client.queued) == (None, [0, 0, 0, 1])
    client.members[3].ended(busy, answered=True)
    client.group.poll(place)
    assert client.group.admitted(place)[0] is client.members[3]


def test_a_server_that_is_written_in_two_ways_is_one() -> None:
    """Its other URL comes after another server."""
    client = Client(9, 9, 9)
    urls = "http://a.example/v1/x", "http://A.example:80/v2/x", "http://b.example/v1/x"
    members = [
        TokenBucket(NO_LIMITS, clock=client.clock, most_in_flight=9, upstream=Upstream(url))
        for url in urls
    ]
    client.members, client.group = members, BucketGroup(members, client.clock)
    assert {client.send(members[0])[0] for _ in range(4)} == {2}


def test_it_goes_on_to_one_that_has_answered_something() -> None:
    """Of the others nothing is known: they may be out of order, too."""
    client = Client(9, 9, 9)
    (_, first), (_, second) = client.send(), client.send()
    client.members[1].ended(second, answered=True)
    client.members[0].ended(first)
    for _ in range(3):
        assert client.send(client.members[0])[0] == 1  # though it has the most in flight


def test_if_the_others_hang_it_goes_back_after_a_while() -> None:
    """A queue isn't held up for as long as others take to time out."""
    client = Client(9, 1)
    while client.in_flight[1] < 1:
        client.send()
    place = client.ask(client.members[0])
    assert (client.queued, client.group.delay_of(place)) == ([0, 1], 30.0)
    client.clock.now_s += 30.0
    assert client.group.poll(place) == 0.0
    assert client.group.admitted(place)[0] is client.members[0]
    assert client.queued == [0, 0]


def test_where_all_have_failed_it_any_will_do() -> None:
    """The request is tried again as with a single server."""
    client = Client(9, 9)
    assert client.send(*client.members)[0] in (0, 1)


def test_the_last_requests_go_where_they_are_answered_soonest() -> None:
    """A slow server gets none that the others finish before it would have."""
    client = Client(9, 1, 9)
    for member, latency_s in zip(client.members, (10.0, 1.0, 1.0), strict=True):
        member.server.in_flight.latency_s = latency_s
    busy = [client.send(client.members[0])[0] for _ in range(9)]
    assert busy.count(0) == 0
    assert client.send()[0] == 0
    assert client.send(left=500)[0] == 0  # for all of them, the others need longer
    place = client.ask(left=5)
    assert place.admitted_at is not None
    assert client.group.admitted(place)[0] is client.members[2]


def test_the_last_one_is_never_set_aside() -> None:
    """The run ends with it, as with a single server."""
    client = Client(9, 9)
    assert client.group.set_aside(client.members[0])
    assert not client.group.set_aside(client.members[1])
    assert {client.send()[0] for _ in range(5)} == {1}


def test_each_has_the_limits_for_itself() -> None:
    """A request that one has no room for goes to the other."""
    limits = Limits(requests_per_minute=60, tokens_per_minute=math.inf)
    client = Client(9, 9, limits=limits)
    assert {client.send()[0] for _ in range(2)} == {0, 1}
    place = client.ask()
    assert client.group.delay_of(place) == pytest.approx(1.0, rel=0.02)
    client.clock.now_s += client.group.delay_of(place)
    assert client.group.poll(place) == 0.0


# Routes.


def routes_of(**settings: Any) -> Routes:
    """The routes of these settings."""
    options = Options(**{"request_url": URL, "replica_urls": [REPLICA], **settings})
    return Routes(options, TokenBuckets(options, FakeClock()))


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        (URL, [URL, REPLICA]),
        (
            "http://a.example/v1/embeddings",
            ["http://a.example/v1/embeddings", "http://b.example/proxy/v1/embeddings"],
        ),
        ("http://b.example/v1/embeddings", ["http://b.example/v1/embeddings"]),
        (
            "http://A.example:80/v1/embeddings",
            ["http://a.example/v1/embeddings", "http://b.example/proxy/v1/embeddings"],
        ),
    ],
)
def test_a_url_on_the_first_host_stands_for_all(url: str, urls: list[str]) -> None:
    """What precedes the endpoint is each one's own. A URL on another host is that alone."""
    group = routes_of().group(url, "m")
    assert [member.url for member in group.members] == urls


def test_a_refused_key_is_refused_however_its_host_is_written() -> None:
    """A host in upper case, or with its usual port, is the same server with the same key and limits."""
    again = ["http://B.example/v1/chat/completions", "http://b.example:80/x/v1/chat/completions"]
    routes = routes_of(replica_urls=again)
    group = routes.group(URL, "m")
    assert isinstance(group, BucketGroup)
    assert group.members[1].shared_limits is group.members[2].shared_limits
    assert routes.refuse(group, group.members[1])
    assert group.alive == group.members[:1]


def test_one_upstream_has_no_group() -> None:
    """The request waits for the bucket itself."""
    assert isinstance(routes_of(replica_urls=[]).group(URL, "m"), TokenBucket)
    assert isinstance(routes_of(replica_urls=[URL]).group(URL, "m"), TokenBucket)


def test_each_key_at_each_server_is_an_upstream() -> None:
    """A refused one is set aside for every model, also for one that comes later."""
    routes = routes_of(api_key=["k1", "k2"], allow_plain_http=True)
    group = routes.group(URL, "m")
    assert isinstance(group, BucketGroup)
    found = [(member.url, member.upstream.key) for member in group.members]
    assert found == [(URL, 0), (URL, 1), (REPLICA, 0), (REPLICA, 1)]
    assert routes.refuse(group, group.members[1])
    assert not routes.refuse(group, group.members[1])
    for model in ("m", "n"):
        alive = routes.group(URL, model).alive  # type: ignore[union-attr]
        assert [(member.url, member.upstream.key) for member in alive] == [
            (URL, 0),
            (REPLICA, 0),
            (REPLICA, 1),
        ]


def test_what_is_set_aside_adds_nothing_to_the_limits() -> None:
    """The progress line shows what the others allow; what was sent to it before counts."""
    limits = Limits(requests_per_minute=600, tokens_per_minute=math.inf)
    routes = routes_of(api_key=["k1", "k2"], allow_plain_http=True, limits=limits)
    group = routes.group(URL, "m")
    assert isinstance(group, BucketGroup)
    assert group.members[1].enqueue(Reservation(1.0))
    assert routes.buckets.usage().limits["requests"] == 2400.0
    assert routes.refuse(group, group.members[1])
    usage = routes.buckets.usage()
    assert (usage.limits["requests"], usage.admitted["requests"]) == (1800.0, 1.0)


def test_more_models_than_there_are_buckets_share_a_group() -> None:
    """A file may name a new model in each line; each server keeps a bucket of its own."""
    routes = routes_of()
    groups = {routes.group(URL, f"m{number}") for number in range(400)}
    late = routes.group(URL, "m399")
    assert len(groups) == 129
    assert [member.url for member in late.members] == [URL, REPLICA]
    assert late.members[0].shared_limits is not late.members[1].shared_limits


def test_many_keys_are_as_many_upstreams() -> None:
    """None is left out, and none stands for another."""
    keys = [f"k{number}" for number in range(400)]
    routes = routes_of(api_key=keys, replica_urls=[], allow_plain_http=True)
    for model in ("m", "n", "o"):
        members = routes.group(URL, model).members
        assert [(each.url, each.upstream.key) for each in members] == [(URL, n) for n in range(400)]


def test_with_an_accounts_name_all_share_the_limits() -> None:
    """They are one account then."""
    members = routes_of(account="team").group(URL, "m").members
    assert members[0].shared_limits is members[1].shared_limits


def test_a_refusal_cuts_one_upstream_alone() -> None:
    """The others send on as before."""
    client = Client(9, 9)
    number, reservation = client.send()
    member = client.members[number]
    member.ended(reservation, rejected=True)
    assert member.refuse(reservation, Rejection(), 5.0) == 5.0
    assert {client.send()[0] for _ in range(3)} == {1 - number}
