"""Tools that answer in a server's place: responses, requests-mock and VCR cassettes."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from commands import environment, read_lines, write_lines
from raw_server import RawServer, answer_all

from parallel_processor import Limits, Outcome, Processor, RetryPolicy
from parallel_processor.simulator import Simulator
from parallel_processor.transport.interception import is_intercepted, is_recorded

pytestmark = pytest.mark.acceptance

KEY = "sk-test-0123456789abcdef"
NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
HASTE = RetryPolicy(max_attempts=2, backoff_initial_s=0.0, pause_s=0.0)


@contextmanager
def processor(url: str, **settings: Any) -> Iterator[Processor]:
    """A processor for the embeddings of a server."""
    options: dict[str, Any] = {"api_key": KEY, "limits": NO_LIMITS, "retry": HASTE} | settings
    with Processor(request_url=f"{url}/v1/embeddings", **options) as made:
        yield made


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that nobody may visit."""
    with RawServer(answer_all) as made:
        yield made
        assert made.visits == 0


def rows(count: int) -> list[dict[str, Any]]:
    """So many different requests."""
    return [{"model": "m", "input": f"text {number} é"} for number in range(count)]


def inputs_of(outcomes: list[Outcome]) -> Counter[str]:
    """How often each input has an answer."""
    return Counter(outcome.request.body["input"] for outcome in outcomes if outcome.ok)


def run_script(script: str, *words: object) -> None:
    """Run ``script`` in a Python of its own, with warnings as errors."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr


# Both

TOOLS = pytest.mark.parametrize("tool", ["responses", "requests_mock"])


@contextmanager
def mock_of(tool: str, url: str, *answers: dict[str, Any]) -> Iterator[Callable[[], list[Any]]]:
    """A mock that gives each answer, and the last one again; without any, requests reach the server.

    The function returns the requests that the mock has seen.
    """
    module = pytest.importorskip(tool)
    if tool == "responses":
        with module.RequestsMock(assert_all_requests_are_fired=bool(answers)) as mock:
            for answer in answers:
                mock.post(f"{url}/v1/embeddings", **answer)
            if not answers:
                mock.add_passthru(url)
            yield lambda: [call.request for call in mock.calls]
    else:
        with module.Mocker(real_http=not answers) as mock:
            if answers:
                given = [
                    {("status_code" if k == "status" else k): a[k] for k in a} for a in answers
                ]
                mock.post(f"{url}/v1/embeddings", given)
            yield lambda: mock.request_history


@TOOLS
def test_a_mock_answers_every_worker(tool: str, server: RawServer) -> None:
    """Each request has the mock's answer, which saw the key and the body as it was given."""
    with mock_of(tool, server.url, {"json": {"embedding": ["é"]}}) as calls:
        with processor(server.url, max_workers=20) as made:
            outcomes = list(made.imap_unordered(rows(200)))
        seen = calls()
    assert [outcome.response for outcome in outcomes] == [{"embedding": ["é"]}] * 200
    assert inputs_of(outcomes) == Counter(row["input"] for row in rows(200))
    assert Counter(bytes(r.body) for r in seen) == Counter(o.request.payload for o in outcomes)
    assert {r.headers["Authorization"] for r in seen} == {f"Bearer {KEY}"}
    assert {r.headers["Content-Type"] for r in seen} == {"application/json"}


@TOOLS
def test_a_refusal_by_a_mock_is_tried_again(tool: str, server: RawServer, tmp_path: Path) -> None:
    """A 429 with Retry-After and a 500 cost nothing but another call, and a 400 fails."""
    source = write_lines(tmp_path / "in.jsonl", rows(1))
    answers: list[dict[str, Any]] = [
        {"status": 429, "headers": {"Retry-After": "0"}, "json": {"error": {"message": "no"}}},
        {"status": 500},
        {"json": {"embedding": [1]}},
        {"status": 400, "json": {"error": {"message": "bad request"}}},
    ]
    with mock_of(tool, server.url, *answers) as calls, processor(server.url) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl")
        failed = list(made.imap_unordered(rows(1)))
        assert len(calls()) == 4
    assert (summary.answered, summary.attempts, summary.rate_limited) == (1, 3, 1)
    assert read_lines(tmp_path / "out.jsonl")[0][1] == {"embedding": [1]}
    assert "bad request" in str(failed[0].error)


@TOOLS
def test_what_a_mock_lets_through_reaches_the_server(tool: str) -> None:
    """It is sent, and bounded as ever."""
    with Simulator() as simulator, mock_of(tool, simulator.url):
        with processor(simulator.url) as made:
            outcomes = list(made.imap_unordered(rows(20)))
    assert inputs_of(outcomes) == Counter(row["input"] for row in rows(20))


# responses


def test_responses_says_what_it_does_not_know(server: RawServer) -> None:
    """A request that nobody registered fails with the mock's own words."""
    responses = pytest.importorskip("responses")
    with responses.RequestsMock() as mock, processor(server.url) as made:
        mock.assert_all_requests_are_fired = False
        outcomes = list(made.imap_unordered(rows(1)))
    assert "Connection refused by Responses" in str(outcomes[0].error)


def test_worker_processes_stay_at_home_for_a_mock(server: RawServer) -> None:
    """A mock of this process answers where two processes were asked for."""
    responses = pytest.importorskip("responses")
    with responses.RequestsMock() as mock, processor(server.url, processes=2) as made:
        mock.post(f"{server.url}/v1/embeddings", json={"embedding": [1]})
        assert all(outcome.ok for outcome in made.imap_unordered(rows(10)))
        assert len(mock.calls) == 10


# requests-mock


def test_a_mock_of_one_session_answers(server: RawServer) -> None:
    """A mocker of the session that the factory gives is asked, and so is a mounted adapter."""
    requests_mock = pytest.importorskip("requests_mock")
    session, mounted = requests.Session(), requests.Session()
    adapter = requests_mock.Adapter()
    adapter.register_uri("POST", f"{server.url}/v1/embeddings", json={"embedding": ["adapter"]})
    mounted.mount("http://", adapter)
    with requests_mock.Mocker(session=session) as mock:
        mock.post(f"{server.url}/v1/embeddings", json={"embedding": ["mocker"]})
        with processor(server.url, session_factory=lambda: session, max_workers=1) as made:
            assert [o.response for o in made.imap_unordered(rows(2))] == [
                {"embedding": ["mocker"]}
            ] * 2
    with processor(server.url, session_factory=lambda: mounted, max_workers=1) as made:
        assert [o.response for o in made.imap_unordered(rows(2))] == [
            {"embedding": ["adapter"]}
        ] * 2


# VCR


def test_a_cassette_replays_what_the_server_said(tmp_path: Path) -> None:
    """Recorded with a server, played without one: the same answers for the same requests."""
    vcr = pytest.importorskip("vcr")
    recorder = vcr.VCR(match_on=["method", "uri", "body"], filter_headers=["authorization"])
    cassette = str(tmp_path / "cassette.yaml")
    with Simulator() as simulator, processor(simulator.url, max_workers=8) as made:
        url = simulator.url
        with recorder.use_cassette(cassette) as tape:
            recorded = list(made.imap_unordered(rows(40)))
            assert len(tape) == 40
        assert simulator.stats()["requests_received"] == 40
    assert KEY not in Path(cassette).read_text("utf-8")
    with processor(url, max_workers=8) as made, recorder.use_cassette(cassette) as tape:
        replayed = list(made.imap_unordered(rows(40)))
        assert tape.all_played
    answers = {outcome.request.payload: outcome.response for outcome in replayed}
    assert inputs_of(replayed) == Counter(row["input"] for row in rows(40))
    assert answers == {outcome.request.payload: outcome.response for outcome in recorded}
    assert not is_recorded()


def test_a_cassette_without_the_request_ends_the_run(server: RawServer, tmp_path: Path) -> None:
    """What may not be recorded is an error of the test's, and not sent."""
    vcr = pytest.importorskip("vcr")
    with vcr.use_cassette(str(tmp_path / "none.yaml"), record_mode="none"):
        refused = vcr.errors.CannotOverwriteExistingCassetteException
        with processor(server.url) as made, pytest.raises(refused):
            list(made.imap_unordered(rows(3)))


def test_a_cassette_plays_a_refusal_and_an_answer(server: RawServer, tmp_path: Path) -> None:
    """The recorded 429 is followed by the recorded 200."""
    vcr = pytest.importorskip("vcr")
    pieces = ["interactions:"]
    for code, headers in ((429, "{Retry-After: ['0']}"), (200, "{}")):
        pieces.append(
            f"- request: {{body: null, headers: {{}}, method: POST, uri: '{server.url}/v1/embeddings'}}\n"
            f"  response: {{body: {{string: '{{\"embedding\": [{code}]}}'}}, headers: {headers},"
            f" status: {{code: {code}, message: said}}}}"
        )
    (tmp_path / "two.yaml").write_text("\n".join([*pieces, "version: 1\n"]))
    with vcr.use_cassette(str(tmp_path / "two.yaml"), record_mode="none"):
        with processor(server.url) as made:
            outcomes = list(made.imap_unordered(rows(1)))
    assert outcomes[0].response == {"embedding": [200]}


# In general


def test_nobody_is_seen_where_nobody_is() -> None:
    """A plain session isn't intercepted; a wrapped method, a foreign subclass and a replacement are."""

    class Own(requests.Session):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            return super().send(*args, **kwargs)

    class Harmless(requests.Session):
        pass

    assert not is_intercepted(requests.Session()) and not is_intercepted(Harmless())
    assert is_intercepted(Own()) and not is_recorded()
    session = requests.Session()
    session.send = lambda *args, **kwargs: requests.Response()  # type: ignore[method-assign]
    assert is_intercepted(session)


def test_a_session_class_of_its_own_sends() -> None:
    """A ``send`` of the session's own is used, in each thread, and gives its answers."""
    threads = set()

    class Own(requests.Session):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            threads.add(threading.current_thread().name)
            return super().send(*args, **kwargs)

    with Simulator() as simulator, processor(simulator.url, session_factory=Own) as made:
        outcomes = list(made.imap_unordered(rows(10)))
    assert inputs_of(outcomes) == Counter(row["input"] for row in rows(10))
    assert threads


_IMPORTED_LATE = """
import sys
tool, url = sys.argv[1:3]
target = "http://127.0.0.1:9/v1/embeddings"
if tool == "responses":
    import responses
    mock = responses.RequestsMock()
elif tool == "requests_mock":
    import requests_mock
    mock = requests_mock.Mocker()
else:
    import vcr
    mock = vcr.use_cassette(sys.argv[3])
with mock as active:
    from parallel_processor import Limits, Processor
    options = {"limits": Limits(requests_per_minute="inf", tokens_per_minute="inf")}
    if tool != "vcr":
        active.post(target, json={"embedding": [tool]})
    mocked = Processor(request_url=url if tool == "vcr" else target, **options)
    answers = [each.response for each in mocked.imap_unordered([{"input": "a"}] * 3)]
    assert len(answers) == 3 and all(answers), answers
    assert tool == "vcr" or answers == [{"embedding": [tool]}] * 3, answers
    assert tool != "vcr" or len(active) == 3
from parallel_processor.transport.exchange import KeptConnection
lines, exchange = [], KeptConnection.exchange
def counted(*args):
    lines.append(1)
    return exchange(*args)
KeptConnection.exchange = counted
sent = list(Processor(request_url=url, **options).imap_unordered([{"input": "b"}] * 3))
assert all(each.ok for each in sent), sent
assert len(lines) == 3, "the own way is not taken after the mock's end"
"""


@pytest.mark.parametrize("tool", ["responses", "requests_mock", "vcr"])
def test_the_package_may_be_imported_while_a_mock_is_active(tool: str, tmp_path: Path) -> None:
    """The mock answers then, and what is sent afterwards goes out as if it had never been."""
    pytest.importorskip(tool)
    with Simulator() as simulator:
        run_script(
            _IMPORTED_LATE.replace('"inf"', 'float("inf")'),
            *(tool, f"{simulator.url}/v1/embeddings", tmp_path / "late.yaml"),
        )
        assert simulator.stats()["requests_received"] == (6 if tool == "vcr" else 3)
