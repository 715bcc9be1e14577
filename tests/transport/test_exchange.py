"""Exchanges on kept connections: what is written and read, and when the connection is used again."""

from __future__ import annotations

import gzip
import http.client
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from raw_server import (
    ANSWER,
    CERTIFICATE,
    RawServer,
    Visit,
    answer_all,
    certificate_file,
    head_of,
    header_of,
)
from transports import REQUEST, answering, error_of, in_threads, request_to, session_with, transport

from parallel_processor.exceptions import TransportError
from parallel_processor.files.formats import made_request
from parallel_processor.transport import http1
from parallel_processor.transport.connections import BoundedPool, ConnectionRegistry
from parallel_processor.transport.exchange import KeptConnection, RawResponse
from parallel_processor.transport.http1 import Incoming, bound_by
from parallel_processor.transport.session import Transport
from parallel_processor.transport.timeouts import Timeouts

pytestmark = pytest.mark.usefixtures("clean_environment")

HEAD = b"POST /v1 HTTP/1.1\r\nHost: here\r\nContent-Length: "
CERTIFICATE_HASH = "ce275665"  # openssl x509 -hash: how a folder of certificates names its files


class CountingSocket(socket.socket):
    """A socket that knows what was called."""

    def __init__(self, plain: socket.socket) -> None:
        super().__init__(fileno=plain.detach())
        self.calls: list[str] = []

    def _counted(name: str) -> Any:  # type: ignore[misc]
        def call(self: CountingSocket, *args: Any) -> Any:
            self.calls.append(name)
            return getattr(socket.socket, name)(self, *args)

        return call

    send, sendall, recv, settimeout = map(_counted, ("send", "sendall", "recv", "settimeout"))


class OneConnection:
    """A pool whose only connection is this one."""

    def __init__(self, sock: CountingSocket) -> None:
        self.sock: CountingSocket | None = sock

    def open(self, timeout_s: float) -> Any:
        return self

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


@contextmanager
def connected_to(
    script: Callable[[Visit], None],
) -> Iterator[tuple[KeptConnection, CountingSocket]]:
    """A connection to a server, and its socket."""
    with RawServer(script) as server:
        sock = CountingSocket(socket.create_connection(server._listener.getsockname()[:2]))
        sock.settimeout(50.0)
        sock.calls.clear()
        pool: Any = OneConnection(sock)
        timeouts = Timeouts(50.0)
        kept = KeptConnection(pool, ConnectionRegistry(), 10.0, timeouts)
        yield kept, sock
        kept.close()
        timeouts.close()


# What it costs


def test_an_exchange_is_one_write_and_one_read() -> None:
    """Head and body go out together, the answer comes in at once, and no timeout is changed."""
    with connected_to(answer_all) as (kept, sock):
        for _ in range(3):
            assert kept.exchange(HEAD, b"{}", 100) == RawResponse(
                200, {"content-length": str(len(ANSWER))}, ANSWER
            )
        assert sock.calls == ["settimeout"] + ["send", "recv"] * 3
        assert sock.gettimeout() is None  # a call with a timeout would be several of the system


def test_a_long_request_is_written_in_two() -> None:
    """A long body is sent completely, without being copied."""
    payload = b"x" * 3_000_000

    def measure(visit: Visit) -> None:
        while visit.read():
            visit.answer(b"%d" % len(visit.body))

    with connected_to(measure) as (kept, sock):
        assert kept.exchange(HEAD, payload, 100).body == b"3000000"
        assert sock.calls[:3] == ["settimeout", "send", "send"]
        assert set(sock.calls[3:]) <= {"sendall", "recv"}


def test_a_timeout_that_is_about_right_stays() -> None:
    """A socket's timeout is changed when it is more than 1 % off, and is never less than what is left."""
    one, other = socket.socketpair()
    with CountingSocket(one) as sock, other:
        for left_s in (100.0, 99.5, 50.0, 49.9, 100.0):
            bound_by(sock, time.monotonic() + left_s)
            assert left_s - 0.1 <= (sock.gettimeout() or 0.0) <= left_s * 1.01
        assert sock.calls == ["settimeout"] * 3
        with pytest.raises(TimeoutError):
            bound_by(sock, time.monotonic() - 1.0)


# What comes in


@contextmanager
def incoming(data: bytes, *, ends: bool = True) -> Iterator[Incoming]:
    """What a peer has sent that leaves afterwards."""
    one, other = socket.socketpair()
    with one, other:
        other.sendall(data)
        if ends:
            other.shutdown(socket.SHUT_WR)
        one.settimeout(10.0)
        yield Incoming(one)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n"])
def test_a_head_ends_with_an_empty_line(end: bytes) -> None:
    """What follows the empty line is left to be read."""
    with incoming(b"HTTP/1.1 200 OK\r\nA: b" + end + b"\r\n\r\nbody") as answer:
        assert answer.head().rstrip("\r") == "HTTP/1.1 200 OK\r\nA: b"
        assert answer.read(100) == b"\r\n\r\nbody"
        assert answer.read(100) == b""


@pytest.mark.parametrize("lines", [b"A: b\r\n" * 20_000, b"X: " + b"x" * 65_600 + b"\r\n\r\n"])
def test_a_head_has_a_bound(lines: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is too long is rejected, even if its end is received with the last bytes."""
    monkeypatch.setattr(http1, "MAX_HEAD_BYTES", 64 * 1024)
    with incoming(b"HTTP/1.1 200 OK\r\n" + lines) as answer:
        with pytest.raises(http.client.LineTooLong):
            answer.head()


def test_another_protocol_is_told_by_its_first_bytes() -> None:
    """A peer that doesn't speak HTTP is given up at once."""
    with incoming(b"SSH-2.0-", ends=False) as answer, pytest.raises(http.client.BadStatusLine):
        answer.head()


def test_lines_and_bytes_are_read_alternately() -> None:
    """``http.client`` reads chunks in this way."""
    with incoming(b"one\ntwo" + b"x" * 100_000 + b"\nlast") as answer:
        assert answer.readline(100) == b"one\n"
        assert answer.read(3) == b"two"
        assert answer.readline(10) == b"x" * 10
        assert answer.read(99_990) == b"x" * 99_990
        assert answer.readline(100) == b"\n"
        assert answer.readline(100) == b"last"
        assert answer.readline(100) == b""


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("identity", b'{"a": 1}'),
        ("gzip", gzip.compress(b'{"a": 1}')),
        ("gzip", gzip.compress(b'{"a": 1' + b" " * 250_000 + b"}")),
        ("GZIP", gzip.compress(b'{"a": 1}')),
        ("x-gzip", gzip.compress(b'{"a": 1}')),
        ("gzip", gzip.compress(b'{"a"') + gzip.compress(b": 1}")),
        ("gzip", gzip.compress(b'{"a": 1}') + b"\0\0"),
        ("deflate", zlib.compress(b'{"a": 1}')),
        ("deflate", zlib.compress(b'{"a": 1}')[2:-4]),
        ("gzip, gzip", gzip.compress(gzip.compress(b'{"a": 1}'))),
        ("deflate, gzip", gzip.compress(zlib.compress(b'{"a": 1}'))),
        ("unheard-of", b'{"a": 1}'),
    ],
)
def test_an_answer_is_decompressed_however_it_was_compressed(coding: str, body: bytes) -> None:
    """Streams in a row, padding and codings within codings are read, and the connection is kept."""
    script = answering(body, headers=f"Content-Encoding: {coding}\r\n")
    with RawServer(script) as server, transport(server.url) as sender:
        assert [sender.send(REQUEST).data for _ in range(2)] == [{"a": 1}] * 2
        assert server.visits == 1


@pytest.mark.parametrize(("coding", "compress"), [("identity", bytes), ("gzip", gzip.compress)])
def test_an_answer_may_have_the_greatest_size(
    coding: str, compress: Callable[[bytes], bytes]
) -> None:
    """``max_response_bytes`` are read, and not one more; what counts is the decompressed size."""

    def script(visit: Visit) -> None:
        while visit.read():
            body = compress(b"x" * (1000 + visit.number))
            visit.answer(body, headers=f"Content-Encoding: {coding}\r\nConnection: close\r\n")

    with RawServer(script) as server, transport(server.url, max_response_bytes=1001) as sender:
        assert len(sender.send(REQUEST).body) == 1001
        with pytest.raises(TransportError, match="larger than 1,001 bytes"):
            sender.send(REQUEST)


# What is kept


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH_2 = b"Content-Length: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


KEPT = [
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n",
    OK + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n" + LENGTH_2 + b"\r\n{}",
    OK + LENGTH_2 + LENGTH_2 + b"\r\n{}",
    OK + CHUNKED + b"2;a=b\r\n{}\r\n0\r\nX-One: 1\r\nX-Two: 2\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + LENGTH_2 + b"\r\n{}",
]
NOT_KEPT = [
    OK + LENGTH_2 + b"\r\n{} and more",
    b"HTTP/1.1 204 No Content\r\n\r\n{}",
    OK + CHUNKED + b"2\r\n{}\r\n0\r\n\r\n{}",
    OK + b"Connection: close\r\n" + LENGTH_2 + b"\r\n{}",
    b"HTTP/1.0 200 OK\r\n" + LENGTH_2 + b"\r\n{}",
]


@pytest.mark.parametrize(
    ("answer", "is_dripped", "visits"),
    [
        *((answer, is_dripped, 1) for answer in KEPT for is_dripped in (False, True)),
        *((answer, False, 3) for answer in NOT_KEPT),
    ],
)
def test_a_connection_is_kept_after_a_complete_answer(
    answer: bytes, is_dripped: bool, visits: int
) -> None:
    """It ends after its last response, and if bytes follow a response; otherwise it is used again."""

    def script(visit: Visit) -> None:
        while visit.read():
            if is_dripped:
                visit.drip(answer, interval_s=0.0)
            else:
                visit.sock.sendall(answer)

    with RawServer(script) as server, transport(server.url) as sender:
        responses = [sender.send(REQUEST) for _ in range(3)]
        assert [each.body for each in responses] in ([b""] * 3, [b"{}"] * 3)
        assert {each.status for each in responses} <= {200, 204, 304}
        assert server.visits == visits


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "unasked",
    [
        b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"unasked": true}',
        b"x",
    ],
)
def test_what_nobody_asked_for_is_no_answer(unasked: bytes, tls: bool) -> None:
    """Bytes that come in on an idle connection end it, and the next request has another."""
    sent = threading.Event()

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(visit.body)
            visit.sock.sendall(unasked)
            sent.set()

    with RawServer(script, tls=tls) as server, transport(server.url) as sender:
        for number in range(3):
            request = made_request({"input": number}, 1)
            assert sender.send(request).body == request.payload
            assert sent.wait(10)
            sent.clear()
    assert server.visits == 3


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_was_closed_while_idle_is_replaced(tls: bool) -> None:
    """A server that hangs up between two requests costs no attempt."""
    closed = threading.Event()

    def one_answer(visit: Visit) -> None:
        visit.read()
        visit.answer()
        socket.socket.shutdown(visit.sock, socket.SHUT_RDWR)
        closed.set()

    with RawServer(one_answer, tls=tls) as server, transport(server.url) as sender:
        for _ in range(3):
            assert sender.send(REQUEST).status == 200
            assert closed.wait(10)
            closed.clear()
    assert server.visits == 3


def test_an_answer_before_the_requests_end_is_read() -> None:
    """The response of a server that rejects a large request while it is being sent is read."""

    def reject(visit: Visit) -> None:
        visit.sock.recv(1000)
        visit.sock.sendall(head_of(b"", "413 Content Too Large"))
        visit.sock.shutdown(socket.SHUT_WR)
        visit.wait_for_the_end()

    request = made_request({"input": "x" * 5_000_000}, 1)
    with RawServer(reject) as server, transport(server.url) as sender:
        assert sender.send(request).status == 413


def test_many_hosts_are_no_trouble() -> None:
    """A thread keeps few connections, whatever its requests' URLs."""
    with RawServer(answer_all) as server, transport(server.url) as sender:
        for number in range(1, 30):
            url = server.url.replace("127.0.0.1", f"127.0.0.{number}")
            try:
                sender.send(request_to(url))
            except TransportError as error:
                assert error.unreachable
        assert len(sender._threads.worker.connections) <= 8


# TLS


def contexts_of(sender: Transport) -> set[int]:
    """Which TLS contexts a transport's open connections have."""
    kept = [each for worker in sender._workers for each in worker.connections.values()]
    return {id(each._connection.sock.context) for each in kept}


@pytest.mark.parametrize("in_folder", [False, True])
def test_threads_share_a_tls_context(
    in_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA bundle, a file or a folder, is read once for all connections."""
    path = tmp_path / f"{CERTIFICATE_HASH}.0"
    path.write_text(CERTIFICATE)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path if in_folder else path))
    with RawServer(answer_all, tls=True) as server, transport(server.url) as sender:
        in_threads(5, lambda: sender.send(REQUEST))
        assert len(server.bodies) == server.visits == 5
        assert len(contexts_of(sender)) == 1


@pytest.mark.parametrize("as_pair", [False, True])
def test_a_clients_certificate_is_shown(as_pair: bool, tmp_path: Path) -> None:
    """A server that requires client certificates accepts a session that has one."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    server = RawServer(answer_all, tls=True)
    assert server._tls is not None
    server._tls.load_verify_locations(path)
    server._tls.verify_mode = ssl.CERT_REQUIRED
    cert = (str(path), str(path)) if as_pair else str(path)
    with server:
        with_cert = session_with(verify=str(path), cert=cert)
        with transport(server.url, session_factory=with_cert) as sender:
            assert sender.send(REQUEST).status == 200
        error_of(server.url, session_factory=session_with(verify=str(path)))


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_a_session_may_trust_everybody() -> None:
    """``verify = False`` works, and warns as usual."""
    trusting = session_with(verify=False)
    with RawServer(answer_all, tls=True) as server:
        with transport(server.url, session_factory=trusting) as sender:
            assert [sender.send(REQUEST).status for _ in range(2)] == [200] * 2
        assert server.visits == 1


@pytest.mark.usefixtures("trusted_certificate")
def test_a_certificate_of_another_name_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trusted certificate must also be for the host that was asked."""
    with RawServer(tunnel) as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        error = error_of("https://api.example.com/")
    assert error.kind == "TLS error"
    assert "api.example.com" in str(error)
    assert [head.split()[0] for head in server.heads] == ["CONNECT"]


@pytest.mark.parametrize("content", [None, "nothing"])
def test_a_bundle_that_is_none_is_an_error(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA bundle that is missing or empty is a fault of the set-up, and named."""
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with transport("https://127.0.0.1:1/") as sender:
        for _ in range(2):
            with pytest.raises(TransportError) as caught:
                sender.send(REQUEST)
            assert (caught.value.kind, caught.value.is_setup) == ("TLS error", True)
            assert str(path) in str(caught.value)


@pytest.mark.usefixtures("trusted_certificate")
def test_sessions_with_an_auth_share_a_tls_context() -> None:
    """Requests that go through the adapter share a context and keep their connections, too."""
    factory = session_with(auth=("user", "password"))
    with (
        RawServer(answer_all, tls=True) as server,
        transport(server.url, session_factory=factory) as sender,
    ):
        assert [sender.send(REQUEST).status for _ in range(3)] == [200] * 3
        assert len(sender._adapter._contexts._contexts) == 1
    assert server.visits == 1


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("tls", [False, True])
def test_without_urllib3s_insides_the_ordinary_way_is_taken(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a pool can't open connections for its caller, the adapter sends, with the same results."""
    monkeypatch.setattr(BoundedPool, "can_open", False)
    script = answering(headers="X-Request-ID: abc\r\nX-A: 1\r\nx-a: 2\r\n")
    with RawServer(script, tls=tls) as server, transport(server.url, api_key="sk-test") as sender:
        responses = [sender.send(REQUEST) for _ in range(3)]
        assert sender._threads.worker.connections == {}
        assert sender.sending_since_s > 0.0
    assert server.visits == 1
    assert {header_of(head, "authorization") for head in server.heads} == {"Bearer sk-test"}
    assert responses[0].data == {"ok": True}
    assert responses[0].headers == {"content-length": "12", "x-request-id": "abc", "x-a": "1, 2"}


# Proxies


def tunnel(visit: Visit) -> None:
    """Consent to a tunnel, and be the server at its other end, too."""
    visit.read()
    visit.sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with certificate_file() as path:
        context.load_cert_chain(path)
    with context.wrap_socket(visit.sock, server_side=True) as sock:
        answer_all(Visit(visit.server, sock, visit.number))


@pytest.mark.usefixtures("trusted_certificate")
def test_a_tunnel_is_used_again() -> None:
    """A proxy's tunnel is made once; its login goes to the proxy, and the key to the server only."""
    with RawServer(tunnel) as server:
        factory = session_with(proxies={"https": server.url.replace("//", "//me:pass@")})
        url = "https://localhost:1/v1/x"
        with transport(url, api_key="sk-test", session_factory=factory) as sender:
            assert [sender.send(REQUEST).status for _ in range(3)] == [200] * 3
    assert server.visits == 1
    connect, *posts = [head.split("\r\n") for head in server.heads]
    assert connect[0].startswith("CONNECT localhost:1")
    assert "Proxy-Authorization: Basic bWU6cGFzcw==" in connect
    assert not any("sk-test" in line for line in connect)
    for post in posts:
        assert post[:2] == ["POST /v1/x HTTP/1.1", "Host: localhost:1"]
        assert "Authorization: Bearer sk-test" in post
        assert not any(line.startswith("Proxy-") for line in post)


# Time


def test_the_time_of_sending_is_known() -> None:
    """It is the time when the thread's last request went out, on a connection that stood."""
    with RawServer(answer_all) as server, transport(server.url) as sender:
        assert sender.sending_since_s == 0.0
        for _ in range(2):
            before = time.monotonic()
            sender.send(REQUEST)
            assert before <= sender.sending_since_s <= time.monotonic()
