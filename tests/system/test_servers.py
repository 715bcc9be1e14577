"""Gateways and proxies that others wrote, as they come: what they refuse, how much is used of it.

Counts are taken at the server behind the gateway, and from the gateway's own log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import OTHER_HOST
from commands import write_lines
from programs import haproxy, nginx, squid, tinyproxy
from raw_server import RawServer, answer_all, certificate_file, header_of

from parallel_processor import Limits, Processor, RunStoppedError, StopCause, Summary
from parallel_processor.files.verify import verify_results
from parallel_processor.simulator import Simulator, SimulatorOptions

AUTO = Limits(requests_per_minute="auto", tokens_per_minute="auto")
LEAST_USED = 0.85  # once the limit can be known
MOST_REFUSED = 0.03
SETTLED_S = 60


def run_through(url: str, folder: Path, count: int, **settings: Any) -> Summary:
    """Send so many small requests to ``url``; all must be answered, and on record once."""
    rows = [{"model": "m", "input": f"text {number}"} for number in range(count)]
    source, save = write_lines(folder / "in.jsonl", rows), folder / "out.jsonl"
    processor = Processor(request_url=f"{url}/v1/embeddings", **settings)
    summary = processor.process_file(source, save, progress=False)
    assert verify_results(source, save).ok
    return summary


def used(simulator: Simulator, per_s: float) -> float:
    """The share of the limit that was used from the 60th second to the last but one; 0 before."""
    (seconds,) = simulator.timeline().values()
    counts = [admitted for admitted, *_ in seconds][SETTLED_S:-1]
    return sum(counts) / (per_s * len(counts)) if counts else 0.0


def statuses(folder: Path) -> Counter[str]:
    """How often nginx sent which status."""
    lines = (folder / "access.log").read_text("utf-8").splitlines()
    return Counter(line.split('"')[2].split()[0] for line in lines)


@pytest.fixture(autouse=True, scope="module")
def no_proxies() -> Iterator[None]:
    """The environment names no proxy but a test's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a gateway lets through in a second, the seconds' worth of work, and the client's limits."""

    per_s: int
    seconds: int
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The share of the limit that was used, and the share of the requests that was refused."""

    used: float
    refused: float


def through_nginx(zone: str, rule: str, latency_s: float, work: Work, folder: Path) -> Measured:
    """Run through nginx, and count what it refused in its log."""
    with Simulator(SimulatorOptions(latency_s=latency_s)) as simulator:
        with nginx(folder, simulator.url, zone, rule) as url:
            run_through(url, folder, work.per_s * work.seconds, limits=work.limits)
        share = used(simulator, work.per_s)
    found = statuses(folder)
    assert set(found) <= {"200", "503"}
    return Measured(used=share, refused=found["503"] / sum(found.values()))


def limit_req(work: Work, folder: Path) -> Measured:
    """So many a second, ten of them at once; more get a 503 in HTML, as nginx comes."""
    zone = f"limit_req_zone $server_port zone=a:1m rate={work.per_s}r/s"
    return through_nginx(zone, "limit_req zone=a burst=10 nodelay", 0.02, work, folder)


def limit_conn(work: Work, folder: Path) -> Measured:
    """So many at once, of half a second each; more get the same 503."""
    zone, rule = "limit_conn_zone $server_port zone=a:1m", f"limit_conn a {work.per_s // 2}"
    return through_nginx(zone, rule, 0.5, work, folder)


def stick_table(work: Work, folder: Path) -> Measured:
    """So many in a second; more get a 429 in HTML, which counts as well."""
    rule = f"http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {work.per_s} }}"
    with Simulator(SimulatorOptions(latency_s=0.02)) as simulator:
        with haproxy(folder, simulator.url, "http_req_rate(1s)", rule) as url:
            summary = run_through(url, folder, work.per_s * work.seconds, limits=work.limits)
        share = used(simulator, work.per_s)
    return Measured(used=share, refused=summary.rate_limited / summary.attempts)


GATEWAYS = (limit_req, limit_conn, stick_table)
gateways = pytest.mark.parametrize("gateway", GATEWAYS, ids=[each.__name__ for each in GATEWAYS])


@pytest.mark.acceptance
@gateways
def test_what_a_gateway_refuses_is_answered_in_the_end(
    gateway: Callable[[Work, Path], Measured], tmp_path: Path
) -> None:
    """Its limit is far below the client's: everything is answered, and on record once."""
    found = gateway(Work(per_s=10, seconds=10, limits=Limits()), tmp_path)
    print(f"{gateway.__name__}: {found}")
    assert 0 < found.refused <= 0.3


@pytest.mark.slow
@gateways
def test_a_gateways_limit_is_found_and_used(
    gateway: Callable[[Work, Path], Measured], tmp_path: Path
) -> None:
    """From the 60th second on most of it is used, and in all little is refused."""
    found = gateway(Work(per_s=100, seconds=75, limits=AUTO), tmp_path)
    print(f"{gateway.__name__}: {found}")
    assert found.used >= LEAST_USED
    assert found.refused <= MOST_REFUSED


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
@pytest.mark.parametrize(
    ("scheme", "rules", "login", "says"),
    [
        ("http", "http_access allow all", "", ""),
        ("https", "http_access deny all", "", "403"),
        ("https", SQUID_LOGIN, "me:secret@", ""),
        ("http", SQUID_LOGIN, "me:wrong@", "407"),
        ("https", SQUID_LOGIN, "", "407"),
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
