"""One attempt over real sockets; ``raw_server`` plays what no server should do."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from raw_server import OK, RawServer, Visit, answer_all, head_of, header_of
from requests.adapters import HTTPAdapter
from transports import (
    KEY,
    REQUEST,
    answering,
    error_from,
    error_of,
    in_threads,
    request_to,
    response_to,
    sending,
    session_with,
    transport,
)

from parallel_processor.exceptions import ConfigurationError, TransportError
from parallel_processor.files.formats import made_request
from parallel_processor.simulator import Simulator, SimulatorOptions
from parallel_processor.transport.session import Transport

pytestmark = pytest.mark.usefixtures("clean_environment")

HALF_RESPONSE = head_of(b"x" * 100) + b"half"


def open_sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass  # it was the listing's own
    return count


# What is sent


def test_a_request_arrives_as_it_was_written() -> None:
    """The payload goes out byte for byte, with its length, its type and the key."""
    request = made_request({"input": "Grüße 🎉", "n": 10**30}, 1)
    with RawServer(answer_all) as server, transport(f"{server.url}/v1/embeddings") as sender:
        response = sender.send(request)
    head = server.heads[0]
    assert head.startswith("POST /v1/embeddings HTTP/1.1\r\n")
    assert server.bodies == [request.payload]
    assert header_of(head, "content-length") == str(len(request.payload))
    assert header_of(head, "content-type") == "application/json"
    assert header_of(head, "authorization") == f"Bearer {KEY}"
    assert (response.status, response.data, response.is_json) == (200, OK, True)


def test_each_body_has_its_own_length() -> None:
    """Requests that share a prepared head don't share a body or a length."""
    sent = [made_request({"input": "x" * size}, size) for size in (1, 5000, 2)]
    with RawServer(answer_all) as server, transport(server.url) as sender:
        for request in sent:
            sender.send(request)
    assert server.bodies == [request.payload for request in sent]
    assert server.visits == 1


def test_without_a_key_no_authorization_is_sent() -> None:
    """A server that wants no key gets no header for one."""
    with RawServer(answer_all) as server, transport(server.url, api_key=None) as sender:
        sender.send(REQUEST)
    assert header_of(server.heads[0], "authorization") is None


def test_a_login_in_the_url_becomes_basic_authentication() -> None:
    """It is sent in the header and nowhere else; a server that repeats it doesn't get it on record."""
    with RawServer(answer_all) as server:
        url = server.url.replace("//", "//me:p%40ss-word@") + "/v1/embeddings"
        with transport(url, api_key=None) as sender:
            sender.send(REQUEST)
        host = server.url.removeprefix("http://")
    assert header_of(server.heads[0], "authorization") == "Basic bWU6cEBzcy13b3Jk"
    assert header_of(server.heads[0], "host") == host
    assert server.heads[0].count("ss-word") == server.heads[0].count("%40") == 0


@pytest.mark.parametrize("key", [KEY, None])
def test_netrc_never_replaces_the_key(
    key: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A login for the host in ~/.netrc is never sent, with or without a key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer(answer_all) as server, transport(server.url, api_key=key) as sender:
        assert requests.utils.get_netrc_auth(server.url) == ("somebody", "secret")
        sender.send(REQUEST)
    assert header_of(server.heads[0], "authorization") == (f"Bearer {key}" if key else None)


def test_a_request_of_its_own_url_goes_there() -> None:
    """A Batch row's URL is used in place of the run's."""
    with RawServer(answer_all) as server, transport(f"{server.url}/v1/responses") as sender:
        sender.send(request_to(f"{server.url}/v1/embeddings"))
        sender.send(REQUEST)
    assert [head.split()[1] for head in server.heads] == ["/v1/embeddings", "/v1/responses"]


def test_hundreds_of_urls_are_no_trouble() -> None:
    """A file whose rows have ever new URLs piles up no prepared requests, and needs one connection."""
    with RawServer(answer_all) as server, transport(server.url) as sender:
        for number in range(150):
            sender.send(request_to(f"{server.url}/{number}"))
        assert len(sender._settings) < 100
        assert len(sender._threads.worker.routes) < 100
        assert server.visits == 1
    assert [head.split()[1] for head in server.heads] == [f"/{number}" for number in range(150)]


# Connections


def test_each_thread_has_its_session() -> None:
    """Threads share no session, and each uses its own for all that it sends."""
    made: list[requests.Session] = []

    def factory() -> requests.Session:
        made.append(requests.Session())
        return made[-1]

    with Simulator() as simulator:
        url = f"{simulator.url}/v1/embeddings"
        with transport(url, session_factory=factory) as sender:
            in_threads(4, lambda: [sender.send(REQUEST) for _ in range(5)])
        assert simulator.stats()["connections_opened"] == 4
    assert len(made) == 4


def test_close_leaves_no_socket() -> None:
    """After close, every connection of every thread is gone, however its exchanges ended."""

    def some_fail(visit: Visit) -> None:
        while visit.read():
            if visit.number % 3 == 0:
                visit.sock.sendall(head_of(b"x" * 100))  # and no body
                return
            visit.answer(b"not json" if visit.number % 3 == 1 else b"{}")

    def send(sender: Transport) -> None:
        for _ in range(3):
            try:
                sender.send(REQUEST)
            except TransportError:
                pass

    gc.collect()
    before = open_sockets()
    gc.disable()  # which must not be what closes them
    try:
        with RawServer(some_fail) as server, transport(server.url) as sender:
            in_threads(6, lambda: send(sender))
            assert open_sockets() > before
            sender.close()
        assert open_sockets() == before
    finally:
        gc.enable()


# Answers


def test_a_chunked_answer_is_read() -> None:
    """Chunks are put together, whatever their sizes."""
    body = json.dumps({"text": "abc" * 1000}).encode()
    pieces = [body[place : place + 700] for place in range(0, len(body), 700)]
    chunks = [f"{len(piece):x};ext=1\r\n".encode() + piece + b"\r\n" for piece in pieces]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = head + b"".join(chunks) + b"0\r\nTrailer: x\r\n\r\n"
    assert response_to(sending(sent)).body == body


def test_an_answer_that_ends_with_its_connection_is_read() -> None:
    """Without a length, the end of the connection ends the body."""
    assert response_to(sending(b'HTTP/1.0 200 OK\r\n\r\n{"a": 1}')).data == {"a": 1}


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_not_json_is_kept_as_it_came(body: bytes) -> None:
    """A body that isn't JSON is no error of the transport."""
    response = response_to(answering(body, "502 Bad Gateway"))
    assert (response.status, response.is_json, response.data) == (502, False, None)
    assert response.body == body


def test_headers_are_found_whatever_their_case() -> None:
    """However the server writes a header's name, it is found in lower case."""
    response = response_to(answering(b"{}", headers="RETRY-AFTER: 3\r\nX-Request-ID: abc\r\n"))
    assert (response.headers["retry-after"], response.headers["x-request-id"]) == ("3", "abc")


def test_a_redirect_is_not_followed() -> None:
    """A redirect is the response, and the host that it names gets no request."""
    with RawServer(answer_all) as other:
        location = f"Location: {other.url}/x\r\n"
        response = response_to(answering(b"", "307 Temporary Redirect", location))
        assert (response.status, response.headers["location"]) == (307, f"{other.url}/x")
        assert other.visits == 0


# Failures


def test_a_refused_connection_is_retryable() -> None:
    """If nobody listens, the message is short, names the cause, and shows no Python objects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = error_of(f"http://127.0.0.1:{port}/")
    assert (error.kind, error.retryable) == ("connection error", True)
    assert "Connection refused" in str(error)
    assert "object at" not in str(error)


@pytest.mark.parametrize(
    ("before", "kinds"),
    [(b"", ["connection error"]), (HALF_RESPONSE, ["connection error", "torn body"])],
)
def test_a_reset_is_retryable(before: bytes, kinds: list[str]) -> None:
    """A TCP reset instead of a response, or within one, is an error; a part is no response."""

    def reset(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(before)
        visit.reset()

    error = error_from(reset)
    assert error.kind in kinds
    assert error.retryable


@pytest.mark.parametrize(
    "torn",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"a": 1}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"a": 1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"a": 1}\r\n',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"a": 1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{"a": 1}',
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n4\r\n"
        + gzip.compress(b'{"a": 1}')[:4]
        + b"\r\n",
    ],
)
def test_a_torn_body_is_retryable(torn: bytes) -> None:
    """A body that is cut short is an error, even if the JSON happens to be complete."""
    error = error_from(sending(torn))
    assert (error.kind, error.retryable) == ("torn body", True)


GZIPPED = gzip.compress(b'{"a": 1}')
DEFLATED = zlib.compress(b'{"a": 1}')


@pytest.mark.parametrize(
    ("coding", "whole"),
    [
        *(("gzip", GZIPPED), ("x-gzip", GZIPPED), ("GZIP", GZIPPED)),
        *(("deflate", DEFLATED), ("deflate", DEFLATED[2:-4])),
    ],
)
def test_a_torn_compressed_stream_is_no_answer(coding: str, whole: bytes) -> None:
    """A body of the right length whose stream was cut short is torn, even if its text is whole JSON."""
    headers = f"Content-Encoding: {coding}\r\n"
    assert response_to(answering(whole, headers=headers)).data == {"a": 1}
    for size in (1, 4, len(whole) // 2, len(whole) - 1):
        error = error_from(answering(whole[:size], headers=headers))
        assert (error.kind, error.retryable) == ("torn body", True)


def test_an_adapters_torn_stream_is_no_answer() -> None:
    """Bodies that requests' own adapter has received are decompressed as strictly."""
    script = answering(GZIPPED[:-3], headers="Content-Encoding: gzip\r\n")
    error = error_from(script, session_factory=session_with(auth=lambda prepared: prepared))
    assert (error.kind, error.retryable) == ("torn body", True)


@pytest.mark.parametrize(
    "body", [GZIPPED + bytes(9), gzip.compress(b'{"a"') + gzip.compress(b": 1}")]
)
def test_what_follows_a_compressed_stream(body: bytes) -> None:
    """Another stream goes on with the text, and padding is left out, as for other clients."""
    assert response_to(answering(body, headers="Content-Encoding: gzip\r\n")).data == {"a": 1}


@pytest.mark.parametrize("end", ["", "x" * 50])
def test_a_failures_status_counts_without_its_body(end: str) -> None:
    """A server that refuses a request, and resets the connection behind the head, has said enough."""

    def refuse(visit: Visit) -> None:
        visit.read()
        head = b"HTTP/1.1 413 Too Large\r\nContent-Length: 100\r\nRetry-After: 7\r\n\r\n"
        visit.sock.sendall(head + end.encode())
        visit.reset()

    response = response_to(refuse)
    assert (response.status, response.body, response.headers["retry-after"]) == (413, b"", "7")


def test_a_thousand_headers_are_fine() -> None:
    """An answer with so many is an answer."""
    headers = "".join(f"X-Trace-{number}: {'v' * 90}\r\n" for number in range(1000))
    assert response_to(answering(headers=headers)).data == {"ok": True}


def test_a_servers_words_move_no_cursor() -> None:
    """What stands in a broken status line is on record and in the log, as plain text."""
    error = error_from(sending("HTTP/1.1 2\x1b[2J00 \u202eok\r\n\r\n".encode()))
    assert str(error) == "connection error: HTTP/1.1 200 â®ok"


@pytest.mark.parametrize("length", ["9" * 20, "-5", "ten", "5, 6"])
def test_a_malformed_length_is_a_torn_answer(length: str) -> None:
    """Nothing tells where such a body ends, so that it is asked for again."""
    error = error_from(sending(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{{}}".encode()))
    assert (error.kind, error.retryable) == ("torn body", True)


@pytest.mark.parametrize("small", [b"[],", b"{},", b"[[]],"])
def test_an_answer_of_tiny_lists_is_never_parsed(small: bytes) -> None:
    """Its value would take many times as much memory as its text; an answer of numbers is fine."""
    fits = 1024 * 1024
    body = b"[" + small * (fits // len(small)) + b"0]"
    settings = {"max_response_bytes": fits + 100}
    error = error_from(answering(body), **settings)
    assert (error.kind, error.retryable) == ("answer too large", False)
    numbers = b"[" + b"-0.0123456789," * (fits // 14) + b"0]"
    assert response_to(answering(numbers), **settings).is_json


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 999999999999 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**20 + b"\r\n\r\n",
        bytes(range(256)) * 4,
    ],
)
def test_odd_bytes_are_a_connection_error(odd: bytes) -> None:
    """A peer that speaks no HTTP ends the attempt, not the run."""
    error = error_from(sending(odd))
    assert error.retryable
    assert len(str(error)) < 400
    assert "\n" not in str(error)


def test_an_answer_that_is_too_large_is_given_up() -> None:
    """More than ``max_response_bytes`` is not read, and not asked for again."""

    def endless(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            visit.sock.sendall(b"x" * 65536)

    error = error_from(endless, max_response_bytes=1_000_000)
    assert (error.kind, error.retryable) == ("answer too large", False)
    assert "1,000,000 bytes" in str(error)


def test_a_compression_bomb_is_given_up() -> None:
    """The decompressed size counts, and little more than the limit is ever decompressed."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    bomb = b"".join(squeezer.compress(zeros) for _ in range(300)) + squeezer.flush()
    script = answering(bomb, headers="Content-Encoding: gzip\r\n")
    error = error_from(script, max_response_bytes=2_000_000)
    assert (error.kind, error.retryable) == ("answer too large", False)


@pytest.mark.parametrize("url", ["http://[::1/", "http://a b/", "http://127.0.0.1:99999/"])
def test_a_url_that_cannot_be_is_not_tried_again(url: str) -> None:
    """A row with an invalid URL fails at once."""
    assert not error_of("http://127.0.0.1:1/", request_to(url)).retryable


# The bound on an exchange


def never_answers(visit: Visit) -> None:
    visit.wait_for_the_end()


def drips_body(visit: Visit) -> None:
    visit.read()
    visit.sock.sendall(head_of(b"x" * 10_000))
    visit.drip(b"x" * 10_000)


def drips_chunks(visit: Visit) -> None:
    visit.read()
    visit.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    visit.drip(b"1\r\nx\r\n" * 2000)


def drips_head(visit: Visit) -> None:
    visit.read()
    visit.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Waiting: yes\r\n" * 90)


def drips_interim_answers(visit: Visit) -> None:
    visit.read()
    while not visit.server.closing.wait(0.02):
        visit.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def stops_reading(visit: Visit) -> None:
    """Leave the request in the network, until the client gives up."""
    visit.server.closing.wait()


@pytest.mark.parametrize(
    "script", [never_answers, drips_body, drips_chunks, drips_head, drips_interim_answers]
)
def test_no_answer_outlasts_the_bound(script: Callable[[Visit], None]) -> None:
    """However a response is delayed or dripped, the whole exchange ends after its timeout."""
    error = error_from(script, request_timeout_s=0.3)
    assert (error.kind, error.retryable) == ("timeout", True)


def test_a_request_that_is_not_read_is_given_up() -> None:
    """A server that reads only a part of the request can't block the worker."""
    request = made_request({"input": "x" * 20_000_000}, 1)
    error = error_from(stops_reading, request=request, request_timeout_s=0.3)
    assert (error.kind, error.retryable) == ("timeout", True)


def test_a_slow_reader_is_not_held_to_the_connect_timeout() -> None:
    """A server that reads a large request slowly has the whole request timeout."""

    def late_reader(visit: Visit) -> None:
        visit.server.closing.wait(0.5)
        visit.read()
        visit.answer()

    request = made_request({"input": "x" * 20_000_000}, 1)
    with RawServer(late_reader) as server, transport(server.url, connect_timeout_s=0.2) as sender:
        assert sender.send(request).status == 200


def test_after_a_timeout_the_next_request_has_a_new_connection() -> None:
    """The late response to a request that timed out is never taken for the next one's."""

    def late_at_first(visit: Visit) -> None:
        visit.read()
        if visit.number == 1:
            visit.wait_for_the_end()
        visit.answer(b'{"visit": %d}' % visit.number)

    with RawServer(late_at_first) as server, transport(server.url, request_timeout_s=0.3) as sender:
        with pytest.raises(TransportError):
            sender.send(REQUEST)
        assert sender.send(REQUEST).data == {"visit": 2}


def test_a_kept_connection_has_the_whole_time_again() -> None:
    """Each exchange on a connection has its own timeout."""

    def pauses(visit: Visit) -> None:
        while visit.read():
            visit.server.closing.wait(0.2)
            visit.answer()

    with RawServer(pauses) as server, transport(server.url, request_timeout_s=0.5) as sender:
        assert [sender.send(REQUEST).status for _ in range(4)] == [200] * 4
    assert server.visits == 1


# TLS


def test_an_unknown_certificate_is_rejected() -> None:
    """A self-signed server gets neither the request nor the key."""
    with RawServer(answer_all, tls=True) as server:
        error = error_of(server.url)
        assert server.heads == []
    assert (error.kind, error.retryable) == ("TLS error", True)
    assert "certificate" in str(error).lower()


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("script", [never_answers, drips_body, drips_head])
def test_the_bound_holds_over_tls(script: Callable[[Visit], None]) -> None:
    """An encrypted exchange ends after its timeout, too."""
    with RawServer(script, tls=True) as server:
        error = error_of(server.url, request_timeout_s=0.5)
    assert error.kind == "timeout"


def test_a_handshake_that_never_ends_is_given_up() -> None:
    """A server that accepts and doesn't speak TLS is bounded by the connect timeout."""
    with RawServer(never_answers) as server:
        url = server.url.replace("http:", "https:")
        error = error_of(url, connect_timeout_s=0.3)
    assert error.retryable
    assert "timed out" in str(error)


# Proxies


proxy = answering(b'{"by": "proxy"}')  # forwards nothing


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """``http_proxy`` gets the whole URL, with the proxy's own login."""
    with RawServer(proxy) as server:
        address = server.url.removeprefix("http://")
        monkeypatch.setenv("http_proxy", f"http://me:pass@{address}")
        with transport("http://api.example.com/v1/embeddings") as sender:
            answers = [sender.send(REQUEST).data for _ in range(3)]
    assert answers == [{"by": "proxy"}] * 3
    assert server.visits == 1
    assert server.heads[0].startswith("POST http://api.example.com/v1/embeddings HTTP/1.1")
    assert header_of(server.heads[0], "proxy-authorization") == "Basic bWU6cGFzcw=="


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that ``no_proxy`` names is reached directly."""
    with RawServer(proxy) as forbidden, RawServer(answer_all) as server:
        monkeypatch.setenv("http_proxy", forbidden.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with transport(server.url) as sender:
            assert sender.send(REQUEST).data == OK
        assert forbidden.visits == 0


def test_the_environment_is_merged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies are looked up for a run's first request, and for no other."""
    with RawServer(answer_all) as server, transport(server.url) as sender:
        sender.send(REQUEST)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        in_threads(3, lambda: sender.send(REQUEST))
        assert len(server.bodies) == 4


def test_a_proxy_that_refuses_a_tunnel_is_a_proxy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message shows the proxy's status, but not its password."""
    with RawServer(answering(b"", "407 Proxy Authentication Required")) as server:
        address = server.url.removeprefix("http://")
        monkeypatch.setenv("https_proxy", f"http://me:hidden@{address}")
        error = error_of("https://api.example.com/")
    assert (error.kind, error.retryable) == ("proxy error", True)
    assert "407" in str(error)
    assert "hidden" not in str(error)


def test_the_bound_holds_for_a_proxys_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that drips its response to CONNECT is given up after the connect timeout."""
    with RawServer(drips_head) as server:
        monkeypatch.setenv("https_proxy", server.url)
        error = error_of("https://api.example.com/", connect_timeout_s=0.3, request_timeout_s=600.0)
    assert error.retryable
    assert "timed out" in str(error)


# Sessions of the caller


class _CannedAdapter(HTTPAdapter):
    """An adapter that answers by itself."""

    def send(self, request: Any, **settings: Any) -> requests.Response:
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(b'{"by": "adapter"}'), status=200, preload_content=False
        )
        return self.build_response(request, raw)


def test_an_adapter_of_the_callers_is_kept() -> None:
    """The response of the session's own adapter is used, and nothing is sent over the network."""

    def factory() -> requests.Session:
        session = requests.Session()
        session.mount("http://", _CannedAdapter())
        return session

    with transport("http://127.0.0.1:1/", session_factory=factory) as sender:
        assert sender.send(REQUEST).data == {"by": "adapter"}


def test_headers_of_the_callers_session_are_sent() -> None:
    """Headers of the session are sent along with the key."""
    factory = session_with(headers={"OpenAI-Organization": "org-1", "User-Agent": "mine"})
    with RawServer(answer_all) as server, transport(server.url, session_factory=factory) as sender:
        sender.send(REQUEST)
    head = server.heads[0]
    assert header_of(head, "openai-organization") == "org-1"
    assert header_of(head, "user-agent") == "mine"
    assert header_of(head, "authorization") == f"Bearer {KEY}"


def test_an_auth_of_the_callers_sees_every_body() -> None:
    """An auth class signs each request, instead of the key."""

    class Signature(requests.auth.AuthBase):
        def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            assert isinstance(prepared.body, bytes)
            prepared.headers["Authorization"] = f"Signed {zlib.crc32(prepared.body)}"
            return prepared

    sent = [made_request({"input": text}, 1) for text in ("a", "b")]
    with RawServer(answer_all) as server:
        with transport(server.url, session_factory=session_with(auth=Signature())) as sender:
            for request in sent:
                sender.send(request)
    signatures = [header_of(head, "authorization") for head in server.heads]
    assert signatures == [f"Signed {zlib.crc32(request.payload)}" for request in sent]


def test_an_auth_that_answers_a_challenge_works() -> None:
    """Digest authentication, which sends the request twice, gets its response."""

    def challenge(visit: Visit) -> None:
        while visit.read():
            if (visit.header("authorization") or "").startswith("Digest "):
                visit.answer()
            else:
                headers = 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth"\r\n'
                visit.answer(b"", status="401 Unauthorized", headers=headers)

    factory = session_with(auth=requests.auth.HTTPDigestAuth("user", "secret"))
    with RawServer(challenge) as server, transport(server.url, session_factory=factory) as sender:
        assert sender.send(REQUEST).status == 200
    assert server.bodies == [REQUEST.payload] * 2


def test_proxies_of_the_callers_sessions_are_used() -> None:
    """Each session's own proxy is used for what that session sends."""
    with RawServer(proxy) as one, RawServer(proxy) as two:
        factories = [session_with(proxies={"http": server.url}) for server in (one, two)]
        with transport(
            "http://api.example.com/", session_factory=lambda: factories.pop()()
        ) as sender:
            in_threads(2, lambda: sender.send(REQUEST))
        assert (one.visits, two.visits) == (1, 1)


def test_a_session_merges_its_settings_once() -> None:
    """What a session would look up for every request is looked up for the first."""
    merged: list[str] = []

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, *rest: Any) -> Any:
            merged.append(url)
            return super().merge_environment_settings(url, *rest)

    with RawServer(answer_all) as server, transport(server.url, session_factory=Session) as sender:
        for _ in range(5):
            sender.send(REQUEST)
        assert merged == [server.url]


def test_a_factory_that_fails_ends_the_run() -> None:
    """An error of the caller's own code is never taken for a network error."""
    errors: list[Exception] = [KeyError("vault"), OSError("no file"), requests.Timeout("slow")]

    def factory() -> requests.Session:
        raise error

    for error in errors:
        with (
            transport("http://127.0.0.1:1/", session_factory=factory) as sender,
            pytest.raises(ConfigurationError, match="session_factory failed: ") as caught,
        ):
            sender.send(REQUEST)
        assert caught.value.__cause__ is error
        assert str(error) in str(caught.value)


@pytest.mark.parametrize("made", [None, requests, requests.Session, object()])
def test_a_factory_has_to_give_a_session(made: object) -> None:
    """The message names the option and the type of what it returned."""
    with (
        transport("http://127.0.0.1:1/", session_factory=lambda: made) as sender,
        pytest.raises(ConfigurationError, match="session_factory") as caught,
    ):
        sender.send(REQUEST)
    assert str(caught.value).endswith(f", not {type(made).__name__}")


# Cancelling


def cancel_on_arrival(server: RawServer, sender: Transport) -> threading.Thread:
    """A thread that cancels once a connection has come."""
    thread = threading.Thread(target=lambda: (server.came.wait(), sender.cancel()))
    thread.start()
    return thread


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("script", [never_answers, drips_body])
def test_cancel_ends_an_exchange(script: Callable[[Visit], None], tls: bool) -> None:
    """An exchange under way fails as soon as another thread cancels it, plain or encrypted."""
    with (
        RawServer(script, tls=tls) as server,
        transport(server.url, request_timeout_s=600.0) as sender,
    ):
        canceller = cancel_on_arrival(server, sender)
        with pytest.raises(TransportError) as caught:
            sender.send(REQUEST)
        canceller.join()
    assert caught.value.retryable


def test_a_cancelled_handshake_ends_with_its_connect_timeout() -> None:
    """A connection that is being made ends by itself, and nothing is sent over it."""
    with RawServer(stops_reading) as server:
        url = server.url.replace("http:", "https:")
        with transport(url, connect_timeout_s=0.3, request_timeout_s=600.0) as sender:
            canceller = cancel_on_arrival(server, sender)
            with pytest.raises(TransportError):
                sender.send(REQUEST)
            canceller.join()
            with pytest.raises(TransportError, match="cancelled"):
                sender.send(REQUEST)
    assert server.visits == 1


def test_after_a_cancel_nothing_is_sent() -> None:
    """A cancelled transport makes no new exchange, on an old connection or on a new one."""
    with RawServer(answer_all) as server, transport(server.url) as sender:
        sender.send(REQUEST)
        sender.cancel()
        in_threads(2, lambda: pytest.raises(TransportError, sender.send, REQUEST))
        with pytest.raises(TransportError):
            sender.send(REQUEST)
    assert len(server.bodies) == 1


def test_the_simulators_faults_are_told_apart() -> None:
    """Each fault of a connection is an error of its kind."""
    kinds = {"reset": "connection error", "torn": "torn body", "stall": "timeout"}
    found = {}
    for fault in kinds:
        options = SimulatorOptions(error_rate=1.0, errors=(fault,))
        with Simulator(options) as simulator:
            url = f"{simulator.url}/v1/embeddings"
            found[fault] = error_of(url, request_timeout_s=0.3).kind
    assert found == kinds


# Interim answers


def test_an_interim_answer_is_not_the_answer() -> None:
    """100, 103 and 102 are skipped, so that no request gets the answer of the one before it."""

    def hint(visit: Visit) -> None:
        while visit.read():
            visit.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            visit.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            visit.sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
            visit.answer(b'{"answer_to": ' + visit.body + b"}")

    with RawServer(hint) as server, transport(server.url) as sender:
        for text in ("a", "b", "c"):
            got = sender.send(made_request({"input": text}, 1))
            assert (got.status, got.data) == (200, {"answer_to": {"input": text}})
        assert server.visits == 1


def test_a_switch_of_protocols_is_no_answer() -> None:
    """101 ends the connection; the request may be tried again on another."""

    def switch(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        visit.wait_for_the_end()

    assert error_from(switch).retryable


def test_a_proxys_login_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's address that can't be used is named without its login."""
    monkeypatch.setenv("http_proxy", "http://user:S3cr3t@127.0.0.1:99999")
    monkeypatch.delenv("no_proxy", raising=False)
    assert "S3cr3t" not in str(error_of("http://host.invalid"))
