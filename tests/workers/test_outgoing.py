"""What is sent for a request, and what is known of its answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines
from raw_server import RawServer, Visit

from parallel_processor import Processor, RetryPolicy, process_file
from parallel_processor.files.formats import made_request
from parallel_processor.models import Request, Upstream
from parallel_processor.providers.answers import Expected
from parallel_processor.workers.outgoing import Outgoing

OLLAMA = "http://127.0.0.1:11434/api/chat"


@pytest.mark.parametrize(
    ("url", "body", "added"),
    [
        (OLLAMA, {"model": "m"}, {"stream": False}),
        (OLLAMA + "/", {"model": "m", "stream": True}, {"stream": False}),
        ("http://127.0.0.1/api/generate?x=1", {"prompt": '"stream"'}, {"stream": False}),
        (OLLAMA, {}, {"stream": False}),
        (OLLAMA, {"stream": False}, {}),
        ("http://127.0.0.1:11434/v1/chat/completions", {"model": "m"}, {}),
        ("http://127.0.0.1:11434/api/embed", {"model": "m"}, {}),
    ],
)
def test_endpoints_that_stream_unasked_are_told_not_to(
    url: str, body: dict[str, Any], added: dict[str, bool]
) -> None:
    """Only what is sent changes; the request stays as it was read."""
    request = made_request(body, 1, url)
    before = request.payload
    sent = json.loads(Outgoing(url).payload(request, Upstream(url)))
    assert sent == json.loads(before) | added
    assert request.payload == before


@pytest.mark.parametrize("path", ["/v1beta/models/m:generateContent", "/model/m/converse"])
def test_a_model_that_the_url_names_is_not_in_the_body(path: str) -> None:
    """These APIs know no such member."""
    url = f"http://127.0.0.1{path}"
    request = made_request({"model": "m", "contents": []}, 1, url)
    outgoing = Outgoing(url)
    for _ in range(2):
        assert json.loads(outgoing.payload(request, Upstream())) == {"contents": []}


GEMINI = "http://127.0.0.1/v1beta/models/{model}:generateContent"
CONVERSE = "http://127.0.0.1/model/{model}/converse"


@pytest.mark.parametrize(
    ("url", "model", "path"),
    [
        (GEMINI, "gemini-2.5-pro", "/v1beta/models/gemini-2.5-pro:generateContent"),
        (GEMINI, "models/gemini-2.5-pro", "/v1beta/models/gemini-2.5-pro:generateContent"),
        (CONVERSE, "us.a.b-v1:0", "/model/us.a.b-v1%3A0/converse"),
        (CONVERSE, "arn:aws:b/x", "/model/arn%3Aaws%3Ab%2Fx/converse"),
    ],
)
def test_the_model_goes_into_the_url_that_has_a_place_for_it(
    url: str, model: str, path: str
) -> None:
    """It is not in the body that is sent; the request, and so its record, keeps it."""
    request = made_request({"model": model, "contents": []}, 1, url)
    outgoing, before = Outgoing(url), request.payload
    assert json.loads(outgoing.payload(request, Upstream())) == {"contents": []}
    assert outgoing.expected(request, Upstream()).url == f"http://127.0.0.1{path}"
    assert outgoing.expected(request, Upstream(model="x")).url == url.replace("{model}", "x")
    assert request.payload == before


ITS_OWN = '{"model" : "m", "messages": [{"service_tier": 1}], "n": 1.50'


@pytest.mark.parametrize(
    ("url", "upstream", "text", "sent"),
    [
        (
            "https://api.openai.com/v1/responses",
            Upstream(tier="flex"),
            "{}",
            '{"service_tier": "flex"}',
        ),
        (
            "https://h/v1/chat/completions",
            Upstream(tier="flex"),
            ITS_OWN + "}",
            ITS_OWN + ', "service_tier": "flex"}',
        ),
        (
            "https://h/v1/chat/completions",
            Upstream(tier="flex"),
            ITS_OWN + ',"service_tier":null }',
            ITS_OWN + ',"service_tier":"flex" }',
        ),
        (
            "https://h/v1/chat/completions",
            Upstream(tier="flex"),
            '{"service_\\u0074ier":"x", "service_tier": "y"}',
            '{"service_\\u0074ier":"flex", "service_tier": "flex"}',
        ),
        (
            "https://h/v1/chat/completions",
            Upstream(model="big"),
            ITS_OWN + "}",
            ITS_OWN.replace('"m"', '"big"') + "}",
        ),
        (
            "https://api.groq.com/openai/v1/chat/completions",
            Upstream(tier="default"),
            '{"a": "é"}',
            '{"a": "é", "service_tier": "on_demand"}',
        ),
        (
            "https://bedrock-runtime.us-east-1.amazonaws.com/model/x/converse",
            Upstream(tier="flex"),
            "{}",
            '{"serviceTier": {"type": "flex"}}',
        ),
        (
            "https://generativelanguage.googleapis.com/v1beta/models/{model}:generateContent",
            Upstream(tier="default", model="big"),
            '{"contents": [], "model": "m"}',
            '{"contents": [], "service_tier": "standard"}',
        ),
    ],
)
def test_a_lane_changes_its_own_members_and_no_other_byte(
    url: str, upstream: Upstream, text: str, sent: str
) -> None:
    """Wherever the provider wants the tier. A model in the URL is in no body."""
    request = Request(body=json.loads(text), payload=text.encode())
    assert Outgoing(url).payload(request, upstream).decode() == sent


def test_the_url_the_inputs_and_the_form_of_the_record_are_known() -> None:
    """The request's own URL goes before the run's."""
    outgoing = Outgoing("https://a/v1/embeddings")
    row = Request(body={"input": ["a", "b"]}, custom_id="x", url="https://a/v1/moderations")
    assert outgoing.expected(row, Upstream()) == Expected("https://a/v1/moderations", 2, True)
    line = made_request({"input": "a"}, 1)
    assert outgoing.expected(line, Upstream()) == Expected("https://a/v1/embeddings", 1, False)


def test_a_worker_process_knows_how_many_vectors_there_must_be() -> None:
    """The number of inputs travels with the request."""

    def serve(visit: Visit) -> None:
        while visit.read():
            visit.answer(b'{"data": [{"embedding": [1]}, {"embedding": [2]}]}')

    retry = RetryPolicy(max_attempts=1)
    with RawServer(serve) as server:
        url = f"{server.url}/v1/embeddings"
        with Processor(request_url=url, processes=2, retry=retry) as processor:
            few, right = processor.map([{"input": ["a", "b", "c"]}, {"input": ["a", "b"]}])
    assert (few.ok, right.ok) == (False, True)
    assert "2 vectors for 3 inputs" in str(few.error)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_against_ollama_needs_no_stream_member(
    processes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent, warned of once, and not in the records, so that a resumed run sends nothing."""

    def serve(visit: Visit) -> None:
        while visit.read():
            whole = json.loads(visit.body).get("stream") is False
            visit.answer(
                b'{"message": {"content": "Hi"}, "done": %s}' % str(whole).lower().encode()
            )

    caplog.set_level(logging.WARNING)
    bodies = [{"model": "m", "messages": [{"content": str(n)}]} for n in range(3)]
    source, save = write_lines(tmp_path / "in.jsonl", bodies), tmp_path / "out.jsonl"
    with RawServer(serve) as server:
        settings: Any = {"request_url": f"{server.url}/api/chat", "processes": processes}
        assert process_file(source, save, **settings).answered == 3
        assert process_file(source, save, **settings).answered == 0
        assert len(server.bodies) == 3
    records = [json.loads(line) for line in save.read_text().splitlines()]
    assert sorted(str(record[0]) for record in records) == sorted(map(str, bodies))
    assert len([text for text in caplog.messages if '"stream": false' in text]) == 1
