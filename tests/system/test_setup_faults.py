"""Certificates, proxies and URLs that can't work: the run stops at once and says what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import CERTIFICATE, EXPIRED, OTHER_HOST
from raw_server import RawServer, Visit, answer_all, certificate_file

from parallel_processor import Processor, RetryPolicy, RunStoppedError, StopCause

MOST_SENT = 100  # of 100,000 requests
LOGIN = "407 Proxy Authentication Required"
PROXIED = "https://api.example.invalid/v1/embeddings"
TRUSTED = (("REQUESTS_CA_BUNDLE", "{bundle}"),)
VIA = (("https_proxy", "http://{host}"),)


def page(visit: Visit) -> None:
    """A front end, which has a page for every path."""
    while visit.read():
        html = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
        visit.answer(html, headers="Content-Type: text/html\r\n")


def plain(visit: Visit) -> None:
    """A server that speaks no TLS, and says so in its own way."""
    visit.sock.recv(65536)
    visit.answer(b"", status="400 Bad Request", headers="Connection: close\r\n")


def refuses(status: str, *, resets: bool = False) -> Callable[[Visit], None]:
    """A script of a proxy that lets nobody through."""

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(b"", status=status, headers="Connection: close\r\n")
            if resets:
                visit.reset()
            return

    return script


def unused_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass(kw_only=True)
class Setup:
    """A set-up fault: the server (or proxy), the URL, the environment, and what the reason must say.

    In the texts ``{url}``, ``{host}`` and ``{dead}`` stand for the server's URL, its host and port,
    and a port on which nothing listens.
    """

    name: str
    script: Callable[[Visit], None] = answer_all
    certificate: str = ""
    url: str = "{url}/v1/embeddings"
    variables: tuple[tuple[str, str], ...] = ()
    says: tuple[str, ...]
    causes: tuple[StopCause, ...] = (StopCause.SETUP,)


SETUPS = (
    Setup(
        name="an untrusted certificate",
        certificate=CERTIFICATE,
        says=("certificate", "REQUESTS_CA_BUNDLE"),
    ),
    Setup(
        name="an expired certificate",
        certificate=EXPIRED,
        variables=TRUSTED,
        says=("certificate", "expired"),
    ),
    Setup(
        name="another host's certificate",
        certificate=OTHER_HOST,
        variables=TRUSTED,
        says=("certificate", "127.0.0.1"),
    ),
    Setup(
        name="a bundle that isn't there",
        certificate=CERTIFICATE,
        variables=(("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem"),),
        says=("/nowhere/ca.pem",),
    ),
    Setup(
        name="http to a TLS port",
        certificate=CERTIFICATE,
        url="http://{host}/v1/embeddings",
        says=("https",),
    ),
    Setup(
        name="TLS to a plain port",
        script=plain,
        url="https://{host}/v1/embeddings",
        says=("http://",),
    ),
    Setup(
        name="no PySocks",
        url=PROXIED,
        variables=(("https_proxy", "socks5://{host}"),),
        says=("requests[socks]", "{host}"),
    ),
    Setup(
        name="a scheme that requests doesn't know",
        url=PROXIED,
        variables=(("https_proxy", "socks://{host}"),),
        says=("socks5",),
    ),
    Setup(
        name="a proxy that wants a login",
        script=refuses(LOGIN),
        url=PROXIED,
        variables=VIA,
        says=("407", "proxy", "{host}"),
    ),
    Setup(
        name="a proxy that answers 401",
        script=refuses("401 Unauthorized"),
        url=PROXIED,
        variables=VIA,
        says=("401", "proxy", "{host}"),
    ),
    Setup(
        name="a proxy that answers 403",
        script=refuses("403 Forbidden"),
        url=PROXIED,
        variables=VIA,
        says=("403", "proxy", "{host}"),
    ),
    Setup(
        name="a proxy that answers 407 and resets",
        script=refuses(LOGIN, resets=True),
        url=PROXIED,
        variables=VIA,
        says=("407", "proxy", "{host}"),
    ),
    Setup(
        name="a plain proxy that wants a login",
        script=refuses(LOGIN),
        url="http://api.example.invalid/v1/embeddings",
        variables=(("http_proxy", "http://{host}"),),
        says=("407", "proxy", "{host}"),
    ),
    Setup(
        name="a dead proxy",
        url=PROXIED,
        variables=(("https_proxy", "http://{dead}"),),
        says=("proxy", "{dead}"),
        causes=(StopCause.SETUP, StopCause.UNREACHABLE),
    ),
    Setup(name="a page for every path", script=page, says=("HTML", "/v1/embeddings")),
    Setup(
        name="a URL without its endpoint",
        script=refuses("404 Not Found"),
        url="{url}/v1",
        says=("404", "/v1", "/embeddings"),
        causes=(StopCause.EQUAL_FAILURES,),
    ),
)


@contextmanager
def standing(setup: Setup, patch: pytest.MonkeyPatch) -> Iterator[tuple[RawServer, dict[str, str]]]:
    """The server of a set-up fault, and what its texts stand for; the environment is as it must be."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle")
    for name in (*names, "curl_ca_bundle", "ssl_cert_file", "ssl_cert_dir"):
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    with ExitStack() as stack:
        tls = bool(setup.certificate)
        certificate = setup.certificate or CERTIFICATE
        server = stack.enter_context(RawServer(setup.script, tls=tls, certificate=certificate))
        bundle = stack.enter_context(certificate_file(certificate))
        host = server.url.partition("//")[2]
        dead = f"127.0.0.1:{unused_port()}"
        texts = {"url": server.url, "host": host, "dead": dead, "bundle": str(bundle)}
        for name, value in setup.variables:
            patch.setenv(name, value.format(**texts))
        yield server, texts


@pytest.mark.parametrize("setup", SETUPS, ids=[setup.name for setup in SETUPS])
def test_a_fault_of_the_set_up_stops_the_run(
    setup: Setup, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100,000 requests 100 are tried at most, and one line says what has to be done."""
    with standing(setup, monkeypatch) as (server, texts):
        url = setup.url.format(**texts)
        with pytest.raises(RunStoppedError) as stopped:
            processor = Processor(
                request_url=url,
                api_key="sk-test",
                allow_plain_http=True,
                retry=RetryPolicy(max_attempts=2),  # of an outage's pauses
            )
            processor.process_file(many, tmp_path / "out.jsonl", progress=False)
        assert max(server.visits, len(server.heads)) <= MOST_SENT
    text = str(stopped.value)
    assert stopped.value.stop_cause in setup.causes, text
    assert [says for says in setup.says if says.format(**texts) not in text] == [], text
    assert "\n" not in text
