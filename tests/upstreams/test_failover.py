"""Several upstreams that serve one model, over real connections: what one fails, the others answer."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer, Visit, answer_all, header_of
from services import in_background

from parallel_processor import (
    Limits,
    Outcome,
    Processor,
    Request,
    RetryPolicy,
    RunStoppedError,
    process_file,
)
from parallel_processor.credentials.key_text import read_key_file
from parallel_processor.exceptions import StopCause

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
QUICK = RetryPolicy(backoff_initial_s=0.02, backoff_max_s=0.02)


def always(status: str, text: str = "no", headers: str = "") -> Callable[[Visit], None]:
    """A server that gives each request this error."""

    def serve(visit: Visit) -> None:
        while visit.read():
            body = b'{"error": {"message": "%s"}}' % text.encode()
            visit.answer(body, status=status, headers=headers)

    return serve


def hang(visit: Visit) -> None:
    """A server that takes requests, and never answers."""
    while visit.read():
        pass


def reset(visit: Visit) -> None:
    """A server whose connections break."""
    if visit.read():
        visit.reset()


@contextmanager
def servers(*scripts: Callable[[Visit], None]) -> Iterator[list[RawServer]]:
    """A server for each script, each on a port of its own."""
    with ExitStack() as stack:
        yield [stack.enter_context(RawServer(script)) for script in scripts]


def send(
    found: list[RawServer], count: int = 60, urls: list[str] | None = None, **settings: Any
) -> tuple[list[Outcome], Processor]:
    """Send so many requests to the servers; their outcomes."""
    urls = urls or [url_of(server) for server in found]
    usual: dict[str, Any] = {"limits": NO_LIMITS, "retry": QUICK, "max_workers": 6}
    with Processor(request_url=urls[0], replica_urls=urls[1:], **usual | settings) as processor:
        outcomes = processor.map({"model": "m", "input": str(n)} for n in range(count))
    return outcomes, processor


def url_of(server: RawServer, path: str = "/v1/embeddings") -> str:
    """Where requests go."""
    return server.url + path


def unused_url() -> str:
    """A URL at which nobody listens."""
    with RawServer(answer_all) as server:
        return url_of(server)


def test_requests_go_where_the_fewest_are_under_way() -> None:
    """Servers that are equally quick have about the same share of them."""
    with servers(answer_all, answer_all, answer_all) as found:
        outcomes, processor = send(found, 90)
        shares = [len(server.bodies) for server in found]
    assert all(outcome.ok for outcome in outcomes)
    assert sum(shares) == 90
    assert min(shares) >= 10
    assert [bucket.url for bucket in processor.snapshot().buckets] == [
        url_of(server) for server in found
    ]


ILL: dict[str, Callable[[Visit], None]] = {
    "500": always("500 Internal Server Error"),
    "502": always("502 Bad Gateway"),
    "503": always("503 Service Unavailable", "loading model"),
    "429": always("429 Too Many Requests", headers="Retry-After: 1\r\n"),
    "a wait of an hour": always("429 Too Many Requests", headers="Retry-After: 3600\r\n"),
    "a spent day": always("429 Too Many Requests", "Rate limit reached on requests per day (RPD)"),
    "another model": always("404 Not Found", "the model m does not exist"),
    "a proxy's 400": always("400 Bad Request", "Invalid model name passed in model=m"),
    "a refused key": always("401 Unauthorized", "Incorrect API key provided"),
    "no money": always("402 Payment Required", "Insufficient credits"),
    "resets": reset,
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("script", ILL.values(), ids=ILL)
def test_a_server_that_fails_everything_costs_no_request(
    script: Callable[[Visit], None], place: int
) -> None:
    """Whichever it is, and however it fails: the others answer, and it is soon left alone."""
    scripts = [answer_all, answer_all]
    scripts.insert(place, script)
    with servers(*scripts) as found:
        outcomes, _ = send(found, 300)
        assert all(outcome.ok for outcome in outcomes)
        assert len(found[place].bodies) < 30


def test_a_server_that_is_not_there_costs_no_request() -> None:
    """Nor does it stop the run, though nothing has been answered when it can't be reached."""
    with servers(answer_all) as found:
        outcomes, _ = send(found, urls=[unused_url(), url_of(found[0])])
    assert all(outcome.ok for outcome in outcomes)


def test_a_server_that_hangs_is_left_alone() -> None:
    """Its requests time out, and the others answer them."""
    with servers(hang, answer_all) as found:
        outcomes, _ = send(found, 100, request_timeout_s=0.3)
        assert all(outcome.ok for outcome in outcomes)
        assert len(found[0].bodies) < 30


def test_a_request_that_all_fail_has_failed() -> None:
    """Each was asked, and what it said is on record."""
    bad = always("404 Not Found", "the model m does not exist")
    with servers(bad, bad) as found:
        outcomes, _ = send(found, 4)
        assert [len(server.bodies) for server in found] == [4, 4]
    assert [outcome.ok for outcome in outcomes] == [False] * 4
    assert {len(outcome.errors) for outcome in outcomes} == {2}


def test_where_all_fail_alike_the_run_stops() -> None:
    """As it does with a single server."""
    bad = always("404 Not Found", "the model m does not exist")
    with (
        servers(bad, bad) as found,
        pytest.raises(RunStoppedError, match="failed alike") as stopped,
    ):
        send(found, 300)
    assert stopped.value.stop_cause is StopCause.EQUAL_FAILURES


def test_only_the_last_refused_key_stops_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """The first one is set aside with a warning that names its server."""
    refuse = always("401 Unauthorized", "Incorrect API key provided")
    with servers(refuse, refuse) as found:
        with pytest.raises(RunStoppedError, match="401") as stopped:
            send(found)
        urls = [url_of(server) for server in found]
    assert stopped.value.stop_cause is StopCause.KEY
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    (told,) = [text for text in warnings if "is set aside" in text]
    assert any(url in told for url in urls)


def test_where_no_server_is_there_the_run_stops() -> None:
    """Only once each has been tried for as long as a single one would be."""
    urls = [unused_url(), unused_url()]
    with pytest.raises(RunStoppedError, match="can't reach") as stopped:
        send([], urls=urls, retry=RetryPolicy(max_attempts=2, backoff_initial_s=0.02))
    assert stopped.value.stop_cause is StopCause.UNREACHABLE


def test_a_row_has_its_endpoint_on_each_server() -> None:
    """What precedes it is each server's own."""
    with servers(answer_all, answer_all) as found:
        urls = [
            url_of(found[0], "/v1/chat/completions"),
            url_of(found[1], "/proxy/v1/chat/completions"),
        ]
        with Processor(
            request_url=urls[0], replica_urls=urls[1:], limits=NO_LIMITS, max_workers=4
        ) as processor:
            body = {"model": "m", "input": "text"}
            outcomes = processor.map(
                Request(body=body, custom_id=str(n), url="/v1/embeddings") for n in range(20)
            )
        paths = [{head.split()[1] for head in server.heads} for server in found]
    assert all(outcome.ok for outcome in outcomes)
    assert paths == [{"/v1/embeddings"}, {"/proxy/v1/embeddings"}]


def test_each_server_has_the_limits_for_itself() -> None:
    """With an account's name, they are those of all together."""
    limits = Limits(requests_per_minute=600, tokens_per_minute=math.inf)
    for account, wanted in ((None, 1200), ("team", 600)):
        with servers(answer_all, answer_all) as found:
            _, processor = send(found, 8, limits=limits, account=account)
        assert processor.stats().limits["requests"] == wanted


def refusing(key: str, after: int = 0) -> Callable[[Visit], None]:
    """A server that refuses ``key`` once it has had so many requests with it."""
    taken = itertools.count()

    def serve(visit: Visit) -> None:
        while visit.read():
            if visit.header("authorization") == f"Bearer {key}" and next(taken) >= after:
                body = b'{"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}'
                visit.answer(body, status="401 Unauthorized")
            else:
                visit.answer()

    return serve


@pytest.mark.parametrize("after", [0, 5])
def test_a_refused_key_is_set_aside(after: int, caplog: pytest.LogCaptureFixture) -> None:
    """At the start or in the middle of a run; the warning has its number, and not the key itself."""
    with servers(refusing("sk-bad", after)) as found:
        outcomes, processor = send(found, api_key=["sk-good", "sk-bad"])
        keys = [header_of(head, "authorization") for head in found[0].heads]
    assert all(outcome.ok for outcome in outcomes)
    assert after < keys.count("Bearer sk-bad") < after + 10
    (warning,) = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert f"{found[0].url}/v1/embeddings with key 2 is set aside" in warning
    assert [bucket.key for bucket in processor.snapshot().buckets] == [0, 1]


def test_of_two_refused_keys_each_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first by its number, and both by their place: a line of the file."""
    (tmp_path / "keys").write_text("# two\nsk-one\nsk-two\n")
    keys = read_key_file(str(tmp_path / "keys"), "--api_key_file keys")
    refuse = always("401 Unauthorized", "Incorrect API key provided")
    with servers(refuse) as found, pytest.raises(RunStoppedError) as stopped:
        send(found, api_key=keys)
    (told,) = [r.getMessage() for r in caplog.records if "is set aside" in r.getMessage()]
    number = 1 if "with key 1 is set aside" in told else 2
    assert f"with key {number} is set aside, the others go on: HTTP 401" in told
    assert told.endswith(f"(key: line {number + 1} of --api_key_file keys)")
    assert str(stopped.value).endswith(f"(key: line {4 - number} of --api_key_file keys)")


def test_each_key_has_the_limits_for_itself() -> None:
    """Two keys may send twice as much."""
    limits = Limits(requests_per_minute=600, tokens_per_minute=math.inf)
    with servers(answer_all) as found:
        outcomes, processor = send(found, 12, limits=limits, api_key=["sk-one", "sk-two"])
        keys = {header_of(head, "authorization") for head in found[0].heads}
    assert all(outcome.ok for outcome in outcomes)
    assert keys == {"Bearer sk-one", "Bearer sk-two"}
    assert processor.stats().limits["requests"] == 1200


def test_what_is_set_aside_stays_so_for_the_next_run() -> None:
    """A processor that is used again asks a refused key no more."""
    with (
        servers(refusing("sk-bad")) as found,
        Processor(
            request_url=url_of(found[0]), api_key=["sk-bad", "sk-good"], limits=NO_LIMITS
        ) as processor,
    ):
        for _ in range(3):
            outcomes = processor.map([{"model": "m", "input": "text"}] * 4)
            assert all(outcome.ok for outcome in outcomes)
        refused = [header_of(head, "authorization") for head in found[0].heads].count(
            "Bearer sk-bad"
        )
    assert refused <= 4


def test_worker_processes_send_to_each_server() -> None:
    """What admits a request decides where a worker process sends it."""
    with servers(answer_all, always("500 Internal Server Error"), answer_all) as found:
        outcomes, _ = send(found, 40, processes=2)
        shares = [len(server.bodies) for server in found]
    assert all(outcome.ok for outcome in outcomes)
    assert min(shares) > 0


def test_the_summary_has_a_line_for_each_server(tmp_path: Path) -> None:
    """What each was sent, answered and failed, and its share."""
    requests = tmp_path / "in.jsonl"
    requests.write_text('{"model": "m", "input": "text"}\n' * 20)
    with servers(answer_all, always("500 Internal Server Error")) as found:
        urls = [url_of(server) for server in found]
        summary = process_file(
            requests, request_url=urls[0], replica_urls=urls[1:], limits=NO_LIMITS, retry=QUICK
        )
        sent = [len(server.bodies) for server in found]
    assert summary.answered == 20
    assert summary.failed == 0
    hosts = [server.url.removeprefix("http://") for server in found]
    text = str(summary)
    assert f"m at {hosts[0]}: {sent[0]} sent" in text
    assert f" at {hosts[1]}: {sent[1]} sent" in text and f"0 answered, {sent[1]} failed" in text


def at_first(count: int, status: str) -> Callable[[Visit], None]:
    """A server that gives its first requests this error, and then answers."""
    taken = itertools.count()

    def serve(visit: Visit) -> None:
        while visit.read():
            if next(taken) < count:
                visit.answer(b'{"error": {"message": "no"}}', status=status)
            else:
                visit.answer()

    return serve


# What users of other balancers reported: LiteLLM #3646 (all in a cooldown, so the request fails), nginx
# with max_fails=1 (aptible/docker-nginx #131: one error each, and no server is left).
@pytest.mark.parametrize(
    ("count", "status"),
    [(1, "429 Too Many Requests"), (1, "500 Internal Server Error"), (2, "502 Bad Gateway")],
)
def test_what_all_refuse_for_a_while_is_answered_later(count: int, status: str) -> None:
    """No request fails because every server has had a weak moment, and none is lost for that."""
    quick = RetryPolicy(backoff_initial_s=0.02, backoff_max_s=0.02, pause_s=0.05)
    with servers(at_first(count, status), at_first(count, status)) as found:
        outcomes, _ = send(found, 40, retry=quick)
        shares = [len(server.bodies) for server in found]
    assert all(outcome.ok for outcome in outcomes)
    assert min(shares) > count


def test_a_quick_error_attracts_no_requests() -> None:
    """A server that fails at once has the fewest under way (kubernetes/ingress-nginx #9025)."""
    held = threading.Semaphore(0)

    def slow(visit: Visit) -> None:
        while visit.read():
            held.acquire(timeout=20)
            visit.answer()

    with servers(always("500 Internal Server Error"), slow) as found:
        sent = in_background(lambda: send(found, 30, max_workers=4))
        for _ in range(40):
            held.release()
        outcomes, _ = sent()
        assert all(outcome.ok for outcome in outcomes)
        assert len(found[0].bodies) <= 30
