"""What each URL is sent with, at real servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import RawServer, answer_all, header_of
from transports import REQUEST, request_to, session_with, transport

from parallel_processor.models import Upstream
from parallel_processor.options import Options
from parallel_processor.transport.credentials import Credentials

KEYS = {"own": "own-0123456789", "other": "other-0123456789"}
AZURE = "https://r.openai.azure.com/openai/v1/chat/completions"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3fQ.c2ln"


def heads_of(server: RawServer, **options: Any) -> list[str]:
    """The head of a request that these options are sent with."""
    with transport(server.url + "/v1/x", **options) as sender:
        sender.send(REQUEST)
    return server.heads[-1:]


def test_headers_and_query_are_sent() -> None:
    """Each header replaces one of ours that has its name, whatever its case."""
    with RawServer(answer_all) as server:
        (head,) = heads_of(
            server,
            api_key="k",
            headers={"x-team": "blue", "CONTENT-TYPE": "application/json; charset=utf-8"},
            query={"api-version": "1", "q": "a b"},
        )
    assert head.startswith("POST /v1/x?api-version=1&q=a+b HTTP/1.1\r\n")
    assert header_of(head, "X-Team") == "blue"
    assert re.findall("(?im)^content-type: (.*?)\r$", head) == ["application/json; charset=utf-8"]
    assert header_of(head, "Authorization") == "Bearer k"


@pytest.mark.parametrize(
    ("auth_header", "name", "value"),
    [
        ("api-key", "api-key", "k"),
        ("Authorization: Token", "authorization", "Token k"),
        ("X-Auth:", "x-auth", "k"),
    ],
)
def test_the_header_for_the_key_may_be_chosen(auth_header: str, name: str, value: str) -> None:
    """No other header has it then."""
    with RawServer(answer_all) as server:
        (head,) = heads_of(server, api_key="k", auth_header=auth_header)
    assert header_of(head, name) == value
    assert re.findall(r"(?m)\bk\r$", head) == ["k\r"]


def test_the_version_of_anthropic_may_be_chosen() -> None:
    """A gateway's users do that by a header."""
    options = Options(
        request_url="https://api.anthropic.com/v1/messages",
        api_key="k",
        headers={"Anthropic-Version": "2026-10-21"},
    )
    headers = Credentials(options).credential(options.request_url).headers
    assert headers == {"x-api-key": "k", "Anthropic-Version": "2026-10-21"}


def test_a_token_of_entra_is_no_key_of_azure() -> None:
    """Azure takes it as a bearer token only."""
    found = [
        Credentials(Options(request_url=AZURE, api_key=key)).credential(AZURE).headers
        for key in ("0123456789abcdef", TOKEN)
    ]
    assert found == [{"api-key": "0123456789abcdef"}, {"Authorization": f"Bearer {TOKEN}"}]


def test_each_of_several_keys_can_be_sent() -> None:
    """The upstream says which; the heads of all of them are kept."""
    with RawServer(answer_all) as server, transport(server.url, api_key=["a", "b"]) as sender:
        assert sender.credentials.count(server.url) == 2
        for index in (0, 1, 0, 1):
            sender.send(REQUEST, Upstream(key=index))
    keys = [header_of(head, "Authorization") for head in server.heads]
    assert keys == ["Bearer a", "Bearer b"] * 2


@pytest.mark.parametrize("factory", [None, session_with(auth=None)])
def test_a_key_that_was_replaced_is_sent_from_then_on(factory: Any) -> None:
    """By a connection of ours as by a session's adapter."""
    keys = iter(["first", "second"])
    clock = iter(range(0, 10_000, 20))
    with (
        RawServer(answer_all) as server,
        transport(
            server.url,
            api_key=Rotating(lambda: next(keys), lambda: float(next(clock))),
            session_factory=factory,
        ) as sender,
    ):
        sender.send(REQUEST)
        assert sender.renewal_fault() is None
        sender.send(REQUEST)
    assert [header_of(h, "Authorization") for h in server.heads] == [
        "Bearer first",
        "Bearer second",
    ]


def Rotating(fetch: Any, clock: Any) -> Any:
    """A key that was fetched once."""
    from parallel_processor.credentials.rotating_key import RotatingKey

    key = RotatingKey(fetch, clock=clock)
    key.fetch_first()
    return key


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[dict[str, RawServer]]:
    """Two servers on addresses of their own."""
    with RawServer(answer_all) as own, RawServer(answer_all, host="127.0.0.2") as other:
        yield {"own": own, "other": other}


@given(
    keys=st.dictionaries(st.sampled_from(["own", "other"]), st.booleans()),
    places=st.lists(
        st.tuples(
            st.sampled_from(["own", "other"]),
            st.sampled_from(["/v1/x", "/openai/deployments/d/x", "/v1/messages", "//x", "/@own"]),
            st.sampled_from(["", "login", "twice"]),
            st.integers(0, 2),
        ),
        max_size=5,
    ),
    auth_header=st.sampled_from([None, "api-key", "Authorization: Token"]),
)
@settings(max_examples=40, deadline=None)
def test_no_key_ever_reaches_another_host(
    two_hosts: dict[str, RawServer], keys: dict[str, bool], places: Any, auth_header: Any
) -> None:
    """Whatever the URLs of requests are, and whatever is sent before on the same thread."""
    hosts = {name: server.url.partition("//")[2] for name, server in two_hosts.items()}
    for server in two_hosts.values():
        server.heads.clear()
    by_host = {hosts[name]: [KEYS[name], KEYS[name] + "-2"] for name, has in keys.items() if has}
    with transport(
        two_hosts["own"].url + "/v1/x",
        api_key=KEYS["own"],
        api_keys=by_host,
        allowed_hosts=[hosts["other"]],
        auth_header=auth_header,
        headers={"X-Gateway": "own-header-0123456789"},
        query={"code": "own-code-0123456789"},
    ) as sender:
        for name, path, how, index in places:
            login = {"login": "me:x@", "twice": f"{hosts['own']}@{hosts['other']}@"}.get(how, "")
            host = login + hosts[name]
            sender.send(request_to(f"http://{host}{path}"), Upstream(key=index))
    sent = {name: "".join(server.heads) for name, server in two_hosts.items()}
    assert "other-" not in sent["own"] and "own-" not in sent["other"]
    assert (KEYS["other"] in sent["other"]) == (
        "other" in [n for n, *_ in places] and has_key(keys)
    )


def has_key(keys: dict[str, bool]) -> bool:
    """True if the other host has a key."""
    return keys.get("other", False)


@pytest.mark.parametrize("auth", [None, ("me", "session-0123456789")])
def test_what_a_session_has_stays_on_its_own_host(
    two_hosts: dict[str, RawServer], auth: Any
) -> None:
    """Its headers, its parameters and its login: another host gets its own key, and nothing else."""
    factory = session_with(
        {"X-Api-Key": "session-0123456789", "authorization": "session-0123456789", "X-Team": "a"},
        params={"code": "session-0123456789"},
        auth=auth,
    )
    own, other = two_hosts["own"], two_hosts["other"]
    keys = {other.url.partition("//")[2]: KEYS["other"]}
    with transport(own.url, api_key=None, api_keys=keys, session_factory=factory) as sender:
        for server in (own, other, own):
            sender.send(request_to(server.url + "/v1/x"))
            count = "".join(server.heads[-1:]).count("session-0123456789")
            assert count == (0 if server is other else 3 if auth is None else 2)
    assert header_of(other.heads[-1], "authorization") == f"Bearer {KEYS['other']}"
    assert header_of(other.heads[-1], "x-team") == "a"


def test_a_url_that_two_parsers_read_differently_gets_no_key(
    two_hosts: dict[str, RawServer],
) -> None:
    """For one of them the host is what precedes the backslash, for the other what follows the sign."""
    other, own = (two_hosts[name].url.partition("//")[2] for name in ("other", "own"))
    two_hosts["other"].heads.clear()
    with transport(two_hosts["own"].url, api_key=KEYS["own"]) as sender:
        sender.send(request_to(f"http://{other}\\@{own}/v1/x"))
    (head,) = two_hosts["other"].heads
    assert KEYS["own"] not in head


def test_a_request_that_was_made_by_hand_takes_no_key_elsewhere(
    two_hosts: dict[str, RawServer],
) -> None:
    """Nobody checked the URL of a request that a program has completed itself."""
    server = two_hosts["other"]
    with transport(two_hosts["own"].url, api_key=KEYS["own"]) as sender:
        sender.send(request_to(server.url + "/v1/x"))
    assert KEYS["own"] not in server.heads[-1]
    assert json.loads(server.bodies[-1]) == {}
