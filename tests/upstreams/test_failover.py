"""Several upstreams that serve one model, over real connections: what one fails, the others answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from raw_server import RawServer, Visit, answer_all

from parallel_processor import Limits, Outcome, Processor, RetryPolicy, RunStoppedError
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
            rows = [
                {"custom_id": str(n), "url": "/v1/embeddings", "body": {"model": "m", "input": "a"}}
                for n in range(20)
            ]
            outcomes = processor.map(made(row) for row in rows)
        paths = [{head.split()[1] for head in server.heads} for server in found]
    assert all(outcome.ok for outcome in outcomes)
    assert paths == [{"/v1/embeddings"}, {"/proxy/v1/embeddings"}]


def made(row: dict[str, Any]) -> Any:
    """The request of a Batch row."""
    from parallel_processor import Request

    return Request(body=row["body"], custom_id=row["custom_id"], url=row["url"])


def test_each_server_has_the_limits_for_itself(tmp_path: Any) -> None:
    """With an account's name, they are those of all together."""
    limits = Limits(requests_per_minute=600, tokens_per_minute=math.inf)
    for account, wanted in ((None, 1200), ("team", 600)):
        with servers(answer_all, answer_all) as found:
            _, processor = send(found, 8, limits=limits, account=account)
        assert processor.stats().limits["requests"] == wanted
