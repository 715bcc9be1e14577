"""Faults of the set-up: each is told from an outage, and its text says what to change."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import BadStatusLine
from pathlib import Path

import pytest
from raw_server import CERTIFICATE, RawServer, Visit, answer_all
from transports import REQUEST, answering, error_of, request_to, sending, transport

from parallel_processor.exceptions import TransportError
from parallel_processor.transport import probe
from parallel_processor.transport.setup_faults import Way, fault_in_response, fault_of

pytestmark = pytest.mark.usefixtures("clean_environment")

WAY = Way("https://api.example.com/v1/embeddings")
PROXIED = WAY._replace(proxy="http://proxy:3128")


def of_certificate(code: int, message: str) -> ssl.SSLCertVerificationError:
    """What OpenSSL raises for a certificate."""
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def of_handshake(reason: str) -> ssl.SSLError:
    """What OpenSSL raises for a handshake."""
    error = ssl.SSLError(1, f"[SSL] {reason}")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("root", "kind", "words"),
    [
        (of_certificate(18, "self-signed certificate"), "TLS error", "--ca_bundle FILE"),
        (of_certificate(19, "self-signed certificate in chain"), "TLS error", "--ca_bundle system"),
        (of_certificate(20, "no local issuer certificate"), "TLS error", "REQUESTS_CA_BUNDLE"),
        (of_certificate(21, "can't verify the first"), "TLS error", "REQUESTS_CA_BUNDLE"),
        (
            of_certificate(10, "certificate has expired"),
            "TLS error",
            "has expired: have it renewed",
        ),
        (of_certificate(9, "certificate is not yet valid"), "TLS error", "set the clock"),
        (of_certificate(62, "Hostname mismatch"), "TLS error", "for another host (Hostname mis"),
        (of_certificate(64, "IP address mismatch"), "TLS error", "for another host (IP address"),
        (of_handshake("WRONG_VERSION_NUMBER"), "TLS error", "use http:// in the request URL"),
        (of_handshake("record layer failure"), "TLS error", "use http:// in the request URL"),
        (of_handshake("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "TLS error", "a client certificate"),
        (of_handshake("SSLV3_ALERT_HANDSHAKE_FAILURE"), "TLS error", "another TLS version"),
        (OSError("Tunnel connection failed: 407 Login"), "proxy error", "user:password@host"),
        (OSError("Tunnel connection failed: 401 Login"), "proxy error", "user:password@host"),
        (OSError("Tunnel connection failed: 403 No"), "proxy error", "does not permit api.example"),
        (OSError("Tunnel connection failed: 405 What"), "proxy error", "is no proxy for https"),
        (
            BadStatusLine("b'\\x15\\x03\\x01\\x00\\x02'"),
            "wrong scheme",
            "write https:// in HTTPS_P",
        ),
        (BadStatusLine("\x15\x03\x03\x00\x02\x02"), "wrong scheme", "write https:// in HTTPS_P"),
    ],
)
def test_a_fault_has_its_remedy(root: BaseException, kind: str, words: str) -> None:
    """The label is short, and the text says what to change."""
    found = fault_of([OSError("outer"), root], PROXIED)
    assert found is not None
    assert found[0] == kind
    assert words in found[1]


@pytest.mark.parametrize(
    "root",
    [
        *(of_handshake("UNEXPECTED_EOF_WHILE_READING"), of_handshake("TLSV1_ALERT_INTERNAL_ERROR")),
        *(ConnectionResetError("reset"), TimeoutError("timed out"), BadStatusLine("")),
        OSError("Tunnel connection failed: 503 Service Unavailable"),
        OSError("Tunnel connection failed: 429 Too Many"),
    ],
)
def test_what_may_go_away_is_no_fault_of_the_setup(root: BaseException) -> None:
    """Such failures are tried again."""
    assert fault_of([root], PROXIED) is None


def test_advice_fits_the_store_that_is_trusted() -> None:
    """Who trusts the system's store already isn't told to."""
    untrusted = of_certificate(20, "no local issuer certificate")
    found = fault_of([untrusted], WAY._replace(trusts_system=True))
    assert found is not None and "--ca_bundle system" not in found[1]


PLAIN = Way("http://api.example.com/v1")


@pytest.mark.parametrize(
    ("way", "status", "headers", "body", "words"),
    [
        (PLAIN, 400, {}, b"<h1>The plain HTTP request was sent to HTTPS port", "use https://"),
        (PLAIN, 400, {}, b"Client sent an HTTP request to an HTTPS server.\n", "use https://"),
        (PLAIN, 400, {}, b"You're speaking plain HTTP to an SSL-enabled port", "use https://"),
        (PLAIN, 400, {}, b"This combination of host and port requires TLS.", "use https://"),
        (PLAIN, 403, {}, b"The API can only be accessed over HTTPS.", "use https://"),
        (PLAIN, 301, {"location": "https://api.example.com/v1"}, b"", "use https://"),
        (PLAIN, 308, {"location": "https://login.example.com/"}, b"", None),
        (PLAIN, 400, {}, b'{"error": {"message": "bad model"}}', None),
        (WAY, 400, {}, b"plain http", None),
        (WAY, 407, {}, b"", "wants a login"),
        (PLAIN._replace(proxy="http://p:1"), 407, {}, b"", "the proxy http://p:1 wants a login"),
        (PLAIN._replace(proxy="http://p:1"), 403, {"server": "squid/5.7"}, b"", "does not permit"),
        (PLAIN._replace(proxy="http://p:1"), 401, {"server": "tinyproxy/1.11"}, b"", "a login"),
        (PLAIN._replace(proxy="http://p:1"), 403, {"server": "uvicorn"}, b"", None),
    ],
)
def test_a_response_may_show_a_fault(
    way: Way, status: int, headers: dict[str, str], body: bytes, words: str | None
) -> None:
    """A proxy's own refusal, or a server that wants TLS; an API's refusal is neither."""
    found = fault_in_response(status, headers, body, way)
    assert (found is not None) == (words is not None)
    assert found is None or (words or "") in found[1]


# Over real sockets


def test_a_certificate_that_nobody_knows_ends_the_run() -> None:
    """The text names the host and both ways to trust it."""
    with RawServer(answer_all, tls=True) as server:
        error = error_of(server.url)
    assert error.is_setup
    assert server.url.removeprefix("https://") in str(error)
    assert "REQUESTS_CA_BUNDLE" in str(error) and "--ca_bundle" in str(error)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The raw server's certificate in a file."""
    path = tmp_path / "ca.pem"
    path.write_text(CERTIFICATE)
    return path


def test_a_bundle_of_the_settings_is_trusted(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ca_bundle`` outranks the variable of requests."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    with (
        RawServer(answer_all, tls=True) as server,
        transport(server.url, ca_bundle=bundle) as sender,
    ):
        assert sender.send(REQUEST).status == 200


def test_the_systems_store_is_what_openssl_reads(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``SSL_CERT_FILE`` is a part of it, as for Python's own ssl."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with (
        RawServer(answer_all, tls=True) as server,
        transport(server.url, ca_bundle="system") as sender,
    ):
        assert sender.send(REQUEST).status == 200


@contextmanager
def proxied_by(
    script: Callable[[Visit], None], monkeypatch: pytest.MonkeyPatch, scheme: str = "http"
) -> Iterator[RawServer]:
    """A server that the environment names as the proxy for ``https``."""
    with RawServer(script) as server:
        address = server.url.removeprefix("http://")
        monkeypatch.setenv("https_proxy", f"{scheme}://me:hidden@{address}")
        yield server


def refuses_and_resets(visit: Visit) -> None:
    """A proxy that ends a connection within the head of its refusal."""
    visit.read()
    visit.sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authen")
    visit.reset()


@pytest.mark.parametrize(
    "script", [answering(b"no", "407 Proxy Authentication Required"), refuses_and_resets]
)
def test_a_proxy_that_wants_a_login_is_named(
    script: Callable[[Visit], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it resets the connection behind its status; its password is not shown."""
    with proxied_by(script, monkeypatch) as server:
        error = error_of("https://api.example.com/")
    assert (error.kind, error.is_setup) == ("proxy error", True)
    assert server.url in str(error) and "407" in str(error)
    assert "hidden" not in str(error)


def test_a_proxys_words_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters of its status line reach no terminal."""
    with proxied_by(answering(b"", "503 \x1b[31mAway\x07 now"), monkeypatch):
        error = error_of("https://api.example.com/")
    assert error.unreachable and str(error).isprintable() and "Away now" in str(error)
    assert "no connection to api.example.com through the proxy" in str(error)


def test_a_plain_proxys_refusal_needs_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that resets the connection behind the head of 407 has said enough."""

    def refuse(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(b"HTTP/1.1 407 Login\r\nContent-Length: 500\r\n\r\n<html>")
        visit.reset()

    with RawServer(refuse) as server:
        monkeypatch.setenv("http_proxy", server.url)
        error = error_of("http://api.example.com/")
    assert error.is_setup and server.url in str(error)


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back, and nothing was sent."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    error = error_of("https://api.example.com/")
    assert (error.kind, error.unreachable, error.is_setup) == ("proxy error", True, False)
    assert "http://127.0.0.1:1 of HTTPS_PROXY" in str(error)
    assert "api.example.com" not in str(error)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks://127.0.0.1:1080", "write socks5h:// in HTTPS_PROXY"),
        ("htp://127.0.0.1:3128", "is no address of a proxy"),
        ("http://me:hidden@127.0.0.1:99999", "is no address of a proxy"),
        ("http://", "is no address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_is_explained(
    proxy: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is tried."""
    monkeypatch.setenv("https_proxy", proxy)
    error = error_of("https://api.example.com/")
    assert error.is_setup and words in str(error)
    assert "hidden" not in str(error)


def test_socks_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is the command that installs it."""
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = error_of("https://api.example.com/")
    assert error.is_setup and "pip install 'requests[socks]'" in str(error)


def hangs_up(visit: Visit) -> None:
    """A server that ends each connection without a word."""
    visit.sock.recv(1)
    visit.reset()


@pytest.mark.parametrize(("tls", "scheme"), [(True, "http"), (False, "https")])
def test_the_other_scheme_is_found_by_asking(
    tls: bool, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where connections end without a word, the third is reason to ask; that sends no request."""
    asked: list[str] = []
    monkeypatch.setattr(
        "parallel_processor.transport.session.speaks_other_scheme",
        lambda url: not asked.append(url),
    )
    with RawServer(hangs_up) as server:
        url = server.url.replace("http", scheme)
        with transport(url) as sender:
            errors = []
            for _ in range(3):
                with pytest.raises(TransportError) as caught:
                    sender.send(REQUEST)
                errors.append(caught.value)
    assert asked == [url]
    assert [error.is_setup for error in errors] == [False, False, True]
    assert f"use {'https' if scheme == 'http' else 'http'}:// " in str(errors[2])


def test_a_probe_tells_tls_from_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each port is known by what it answers, and a silent one is neither."""
    monkeypatch.setattr(probe, "_TIMEOUT_S", 0.3)
    with RawServer(answer_all, tls=True) as encrypted, RawServer(answer_all) as plain:
        assert probe.speaks_other_scheme(encrypted.url.replace("https", "http"))
        assert probe.speaks_other_scheme(plain.url.replace("http", "https"))
        assert not probe.speaks_other_scheme(plain.url)
    wants_tls = sending(b"HTTP/1.0 400 Bad\r\n\r\nClient sent an HTTP request to an HTTPS server.")
    with RawServer(wants_tls) as server, RawServer(hangs_up) as silent:
        assert not probe.speaks_other_scheme(server.url.replace("http", "https"))
        assert not probe.speaks_other_scheme(silent.url.replace("http", "https"))
    assert not probe.speaks_other_scheme("http://127.0.0.1:1/")


def test_a_failed_handshake_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks before TLS stands is a server that can't be reached: it costs no attempt."""
    with RawServer(hangs_up) as server:
        assert error_of(server.url.replace("http", "https")).unreachable


@pytest.mark.parametrize("host", ["a..b", ".a", "x" * 64])
def test_a_row_for_a_host_that_cannot_be_fails_alone(host: str) -> None:
    """It is that request's own fault."""
    with transport("http://127.0.0.1:1/") as sender, pytest.raises(TransportError) as caught:
        sender.send(request_to(f"http://{host}/v1"))
    assert (caught.value.kind, caught.value.retryable) == ("invalid request", False)
    assert not caught.value.is_setup
