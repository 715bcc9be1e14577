"""Proxies that others wrote, as they come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import OTHER_HOST
from commands import write_lines
from programs import squid, tinyproxy
from raw_server import RawServer, answer_all, certificate_file, header_of

from parallel_processor import Limits, Processor, RunStoppedError, StopCause, Summary
from parallel_processor.files.verify import verify_results

AUTO = Limits(requests_per_minute="auto", tokens_per_minute="auto")


def run_through(url: str, folder: Path, count: int, **settings: Any) -> Summary:
    """Send so many small requests to ``url``; all must be answered, and on record once."""
    rows = [{"model": "m", "input": f"text {number}"} for number in range(count)]
    source, save = write_lines(folder / "in.jsonl", rows), folder / "out.jsonl"
    options: dict[str, Any] = {"limits": AUTO} | settings
    processor = Processor(request_url=f"{url}/v1/embeddings", **options)
    summary = processor.process_file(source, save, progress=False)
    assert verify_results(source, save).ok
    return summary


@pytest.fixture(autouse=True, scope="module")
def no_proxies() -> Iterator[None]:
    """The environment names no proxy but a test's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


# Proxies. A loopback host would be reached without them, so it goes by other names here.

NUMBER = "2130706433"  # 127.0.0.1
NAME = "api.example.invalid"


@contextmanager
def api(scheme: str, host: str, patch: pytest.MonkeyPatch) -> Iterator[tuple[RawServer, str]]:
    """A server that is to be reached through a proxy, and its URL; its certificate is trusted."""
    with (
        RawServer(answer_all, tls=scheme == "https", certificate=OTHER_HOST) as server,
        certificate_file(OTHER_HOST) as bundle,
    ):
        patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        yield server, server.url.replace("127.0.0.1", host)


def through(proxy: str, url: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Send twenty requests to ``url`` through a proxy."""
    for name in ("http_proxy", "https_proxy"):
        patch.setenv(name, proxy)
    run_through(url, folder, 20, api_key="sk-test", allow_plain_http=True)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("login", ["", "me secret"])
def test_tinyproxy_lets_requests_through(
    scheme: str, login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the right login, if it wants one; the server behind it never sees that login."""
    with tinyproxy(tmp_path, login) as port, api(scheme, NUMBER, monkeypatch) as (server, url):
        name = f"{login.replace(' ', ':')}@" if login else ""
        through(f"http://{name}127.0.0.1:{port}", url, tmp_path, monkeypatch)
        assert len(server.heads) == 20
        assert not any(header_of(head, "proxy-authorization") for head in server.heads)
    assert "2130706433" in (tmp_path / "tinyproxy.out").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("login", ["", "me:wrong@"])
def test_tinyproxy_wants_a_login(
    scheme: str, login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right one the run stops at once, and names the proxy but not the password."""
    with (
        tinyproxy(tmp_path, "me secret") as port,
        api(scheme, NUMBER, monkeypatch) as (server, url),
    ):
        with pytest.raises(RunStoppedError) as stopped:
            through(f"http://{login}127.0.0.1:{port}", url, tmp_path, monkeypatch)
        assert server.heads == []
    text = str(stopped.value)
    assert stopped.value.stop_cause is StopCause.SETUP, text
    assert f"127.0.0.1:{port}" in text
    assert "wrong" not in text


SQUID_LOGIN = """
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/logins
acl known proxy_auth REQUIRED
http_access allow known
http_access deny all
"""


@pytest.mark.acceptance
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("rules", "login", "says"),
    [
        ("http_access allow all", "", ""),
        ("http_access deny all", "", "403"),
        (SQUID_LOGIN, "me:secret@", ""),
        (SQUID_LOGIN, "me:wrong@", "407"),
        (SQUID_LOGIN, "", "407"),
    ],
    ids=["open", "closed", "right login", "wrong login", "no login"],
)
def test_squid_lets_through_whom_it_knows(
    scheme: str, rules: str, login: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is let through is answered; who isn't is told so at once, by the proxy's name."""
    with squid(rules) as port, api(scheme, NAME, monkeypatch) as (server, url):
        proxy = f"http://{login}127.0.0.1:{port}"
        if not says:
            through(proxy, url, tmp_path, monkeypatch)
            assert len(server.heads) == 20
            return
        with pytest.raises(RunStoppedError) as stopped:
            through(proxy, url, tmp_path, monkeypatch)
        assert server.heads == []
    assert stopped.value.stop_cause is StopCause.SETUP, stopped.value
    assert says in str(stopped.value)
    assert f"127.0.0.1:{port}" in str(stopped.value)
