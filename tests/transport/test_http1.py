"""Heads of messages: a response's is read as http.client reads it, a request's is complete."""

from __future__ import annotations

import http.client
import io
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parallel_processor.transport.http1 import (
    MalformedLength,
    ResponseHead,
    parse_head,
    request_head,
)

TOKEN = st.text("abcdefXYZ0123456789-_.!", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)
WORDS = st.lists(VALUE, max_size=3).map(" ".join).map(str.strip)
KNOWN = st.sampled_from(
    [
        ("Content-Length", "0"),
        ("content-length", "12"),
        ("CONTENT-LENGTH", "-1"),
        ("Content-Length", "twelve"),
        ("Transfer-Encoding", "chunked"),
        ("Transfer-Encoding", "Chunked"),
        ("Connection", "close"),
        ("Connection", "Keep-Alive"),
        ("Connection", "keep-alive, Upgrade"),
    ]
)
PAIRS = st.lists(st.one_of(KNOWN, st.tuples(TOKEN, WORDS)), max_size=20)
FRAMING = {"content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection"}


class _Socket:
    """What ``http.client`` reads an answer from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def by_http_client(head: str) -> http.client.HTTPResponse:
    """The same head as the standard library reads it."""
    socket: Any = _Socket(head.encode("latin-1") + b"\r\n\r\n")
    response = http.client.HTTPResponse(socket, method="POST")
    response.begin()
    return response


def headers_of(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """``pairs`` without a second header that says how to read the body: nobody agrees on that."""
    names: set[str] = set()
    kept = []
    for name, value in pairs:
        if name.lower() in FRAMING and name.lower() in names:
            continue
        names.add(name.lower())
        kept.append((name, value))
    return kept


@given(
    version=st.sampled_from(["1.0", "1.1"]),
    status=st.integers(200, 999),
    reason=WORDS,
    pairs=PAIRS.map(headers_of),
    fold=st.sampled_from(["", "\r\n ", "\r\n\t", "\r\n   "]),
    end=st.sampled_from(["\r\n", "\n"]),
    space=st.sampled_from(["", " ", " \t"]),
)
@example("1.0", 200, "", [("Connection", "keep-alive"), ("Content-Length", "2")], "", "\r\n", " ")
@example("1.1", 204, "", [("Content-Length", "2")], "", "\r\n", " ")
@example("1.1", 304, "", [], "", "\n", "")
def test_a_head_is_read_as_the_standard_library_does(
    version: str,
    status: int,
    reason: str,
    pairs: list[tuple[str, str]],
    fold: str,
    end: str,
    space: str,
) -> None:
    """Status, headers, framing and the connection's end come out the same."""
    lines = [f"{name}:{space}{value}" for name, value in pairs]
    if fold and pairs and pairs[-1][0].lower() not in FRAMING:
        lines[-1] += f"{fold}more"
    head = end.join([f"HTTP/{version} {status} {reason}", *lines])
    try:
        ours = parse_head(head)
    except MalformedLength:  # the standard library reads on until the connection ends
        return
    theirs = by_http_client(head)
    assert ours.status == theirs.status
    assert ours.is_chunked == bool(theirs.chunked)
    assert ours.length == theirs.length
    assert ours.keeps_connection == (not theirs.will_close)
    for name, value in ours.headers.items():
        joined = ", ".join(theirs.headers.get_all(name) or [])  # which keeps spaces at the end
        assert " ".join(value.split()) == " ".join(joined.split())
    assert set(ours.headers) == {name.lower() for name in theirs.headers}


@given(st.text(st.characters(max_codepoint=0xFF)))
@example("HTTP/1.1 200")
@example("HTTP/1.1 200 OK\n no: name")
@example("HTTP/1.1 200 OK\n: no name")
@example("HTTP/1.1 200 OK\nno colon")
def test_any_text_is_a_head_or_an_error_of_http(text: str) -> None:
    """Nothing that a server can send raises anything else."""
    try:
        head = parse_head(text)
    except http.client.HTTPException:
        return
    assert isinstance(head, ResponseHead)
    assert 100 <= head.status <= 999


@pytest.mark.parametrize(
    "line",
    [
        *("", "HTTP/1.1", "HTTP/1.1 20", "HTTP/1.1 2000 x", "HTTP/1.1 -20 x", "HTTP/2 200 x"),
        *("HTTP/2.0 200 OK", "http/1.1 200 OK", "ICY 200 OK", "HTTP/1.1 ２００ OK"),
        "HTTP/1.1 099 x",
    ],
)
def test_other_protocols_are_rejected(line: str) -> None:
    """A first line that isn't HTTP/1 is an error."""
    with pytest.raises(http.client.BadStatusLine):
        parse_head(line)


def test_a_thousand_headers_are_read() -> None:
    """Gateways that trace and explain much are no trouble."""
    lines = [f"x-{number}: y" for number in range(1000)]
    assert len(parse_head("\n".join(["HTTP/1.1 200 OK", *lines])).headers) == 1000


@pytest.mark.parametrize(
    "length", ["", "-1", "+5", "5.0", "0x5", "five", "5, 6", "9" * 20, "5 5", "５"]
)
def test_a_malformed_length_is_an_error(length: str) -> None:
    """Nobody knows whether such a body is whole. Two equal lengths are fine."""
    assert parse_head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5").length == 5
    with pytest.raises(MalformedLength, match="Content-Length"):
        parse_head(f"HTTP/1.1 200 OK\r\nContent-Length: {length}")


def test_chunks_outrank_a_length() -> None:
    """A body that is chunked has no other length."""
    head = parse_head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: gzip, chunked")
    assert (head.is_chunked, head.length) == (True, None)


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("api.example.com", 443, "api.example.com"),
        ("api.example.com", 8443, "api.example.com:8443"),
        ("::1", 443, "[::1]"),
        ("::1", 80, "[::1]:80"),
    ],
)
def test_a_request_names_its_host(host: str, port: int, named: str) -> None:
    """The port is left out where it is the scheme's own; IPv6 addresses have brackets."""
    head = request_head(host, port, 443, "/v1/x?y=z", {"A": "b", "Content-Length": "77"})
    lines = head.decode().split("\r\n")
    assert lines == [
        "POST /v1/x?y=z HTTP/1.1",
        f"Host: {named}",
        "Accept-Encoding: identity",
        "A: b",
        "Content-Length: ",
    ]


def test_headers_of_the_callers_outrank_our_own() -> None:
    """Host and accept-encoding of the session replace ours."""
    headers = {"Host": "other", "Accept-Encoding": b"gzip"}
    head = request_head("api.example.com", 80, 80, "/", headers)
    assert head == (b"POST / HTTP/1.1\r\nHost: other\r\nAccept-Encoding: gzip\r\nContent-Length: ")


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c"])
def test_a_header_that_would_be_two_is_rejected(value: str) -> None:
    """Nothing is smuggled in by a line break."""
    with pytest.raises(ValueError, match="Invalid header"):
        request_head("api.example.com", 80, 80, "/", {"A": value})


def test_headers_are_a_mapping_that_is_parsed_when_it_is_looked_at() -> None:
    """They equal a dict, travel between processes, and tell cheaply whether a word is in them."""
    text = "Server: x\r\nX-Ratelimit-Limit: 5\r\nx-ratelimit-limit: 6"
    headers = parse_head(f"HTTP/1.1 200 OK\r\n{text}").headers
    assert headers.mention("ratelimit")
    assert not headers.mention("retry-after")
    parsed = {"server": "x", "x-ratelimit-limit": "5, 6"}
    assert headers == parsed
    assert dict(pickle.loads(pickle.dumps(headers))) == parsed
    assert dict(parse_head("HTTP/1.1 200 OK").headers) == {}


@pytest.mark.parametrize(
    ("more", "length", "keeps"),
    [
        ("Connection: close", 5, False),
        ("X-Note: it is close", 5, True),
        ("Access-Control-Expose-Headers: Content-Length", 5, True),
        ("X: a\r\n Content-Length: 7", 5, True),
        ("X-Content-Length: 7", 5, True),
        ("Content-Length: 5", 5, True),
        ("Transfer-Encoding: chunked", None, True),
    ],
)
def test_what_is_unusual_in_a_head_is_looked_at(more: str, length: int | None, keeps: bool) -> None:
    """The quick way is for heads in which nothing could mean anything else."""
    for lines in (["Content-Length: 5", more], [more, "Content-Length: 5"]):
        head = parse_head("\r\n".join(["HTTP/1.1 200 OK", *lines]))
        assert (head.length, head.keeps_connection) == (length, keeps)
