"""The dialects of Batch files: their rows are read, and their lines of results written and read."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from raw_server import RawServer, Visit, answer_all
from services import NO_LIMITS

from parallel_processor import process_file, read_requests, read_results, verify_results
from parallel_processor.exceptions import InputFileError
from parallel_processor.files.batch_rows import DIALECTS, OPENAI, dialect_of
from parallel_processor.files.formats import parse_line
from parallel_processor.files.identity import identity, read_record
from parallel_processor.files.records import record
from parallel_processor.models import Outcome, Request, Response

URL = "https://api.example/v1/chat/completions"
OWN_URLS = {
    "Gemini": "https://api.example/v1beta/models/gemini-2.5-flash:generateContent",
    "Bedrock": "https://api.example/model/amazon.titan/invoke",
}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
ROWS: dict[str, dict[str, Any]] = {
    "OpenAI": {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": CHAT},
    "Mistral, Together and others": {"custom_id": "a", "body": CHAT},
    "Anthropic": {"custom_id": "a", "params": CHAT},
    "Gemini": {"key": "a", "request": {"contents": [{"parts": [{"text": "Hi"}]}]}},
    "Bedrock": {"recordId": "a", "modelInput": {"inputText": "Hi"}},
}
each_row = pytest.mark.parametrize("name", ROWS)


def line_of(row: Any, model: str | None = None, url: str | None = None) -> Request:
    """The request of a line; by default a URL of its API is named."""
    if url is None:
        url = OWN_URLS.get(
            "Gemini" if "key" in row else "Bedrock" if "recordId" in row else "", URL
        )
    return parse_line(json.dumps(row).encode(), 7, url, model=model, is_sent=True)


def outcome_of(request: Request, status: int = 200, body: Any = None, **ends: Any) -> Outcome:
    """The outcome of a request whose response has this status and body."""
    data = {"answer": 1} if body is None else body
    response = Response(
        status=status,
        headers={"x-request-id": "r"},
        body=json.dumps(data).encode(),
        data=data,
        is_json=True,
    )
    return Outcome(request=request, raw_response=response, **({"ok": status < 300} | ends))


@each_row
def test_rows_are_read_as_they_are_documented(name: str) -> None:
    """Each has its id, its body and its endpoint."""
    row = ROWS[name]
    request = line_of(row)
    body = next(row[each.body_key] for each in DIALECTS if each.body_key in row)
    assert (request.custom_id, request.body, request.invalid_reason) == ("a", body, None)
    assert json.loads(request.payload) == body
    ends = {"OpenAI": "/v1/embeddings", "Anthropic": "/v1/messages"}
    expected = "https://api.example" + ends.get(name, "/v1/chat/completions")
    assert request.url == OWN_URLS.get(name, expected)
    assert dialect_of(request).name == name


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.anthropic.com/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("http://h/proxy/v1/embeddings", "http://h/proxy/v1/messages"),
        ("https://h/projects/p/models/m:rawPredict", "https://h/projects/p/models/m:rawPredict"),
    ],
)
def test_rows_of_anthropic_go_to_the_messages(url: str, expected: str) -> None:
    """Unless the URL names an endpoint of another kind, which the user must have meant."""
    assert line_of(ROWS["Anthropic"], url=url).url == expected


def test_a_row_whose_url_names_the_model_gets_no_other() -> None:
    """Its limits are those of its own model."""
    row = {"custom_id": "a", "url": "/v1beta/models/own:generateContent", "body": {"contents": []}}
    url = "https://h.example/v1beta/models/{model}:generateContent"
    assert line_of(row, "other", url).model == ""
    assert (
        line_of(row | {"url": "/v1beta/models/{model}:generateContent"}, "other", url).model
        == "other"
    )


@pytest.mark.parametrize("name", OWN_URLS)
def test_rows_of_gemini_and_bedrock_dont_go_to_other_apis(name: str) -> None:
    """Nobody else takes their bodies, and what is in them is not for everybody."""
    request = line_of(ROWS[name], url=URL)
    said = re.search(
        r"as the request URL \(--request_url (.*)\), not (.*)", request.invalid_reason or ""
    )
    assert said is not None and said[2] == URL
    assert not line_of(ROWS[name], url=said[1]).invalid_reason
    assert request.custom_id == "a"


@pytest.mark.parametrize("name", ["Anthropic", "Gemini", "Bedrock"])
def test_a_file_for_another_api_is_refused_with_the_url_to_give(name: str, tmp_path: Path) -> None:
    """The default URL is that of another provider, who would refuse each row."""
    source = write_lines(tmp_path / "in.jsonl", [ROWS[name]])
    with pytest.raises(InputFileError, match=r"line 1 .* \(--request_url https://.*\), not https"):
        process_file(source, api_key="k")
    assert read_lines(tmp_path / "in_results.jsonl") == []


def test_one_row_for_another_api_stops_nothing(tmp_path: Path) -> None:
    """It is a failed record, if other requests come first."""
    rows = [{"model": "m", **CHAT}, ROWS["Gemini"], {"model": "m", **CHAT}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    with RawServer(answer_all) as server:
        url = f"{server.url}/v1/chat/completions"
        summary = process_file(source, request_url=url, limits=NO_LIMITS)
    assert (summary.answered, summary.failed) == (2, 1)


@pytest.mark.parametrize("name", ["OpenAI", "Mistral, Together and others", "Anthropic"])
@pytest.mark.parametrize(
    ("own", "expected"), [({}, "m"), ({"model": None}, "m"), ({"model": "o"}, "o")]
)
def test_a_model_is_filled_in_where_there_is_none(
    name: str, own: dict[str, Any], expected: str
) -> None:
    """What is sent is what is recorded."""
    row = {**ROWS[name]}
    key = "params" if name == "Anthropic" else "body"
    for given in ({**row, key: {**CHAT, **own}}, {**CHAT, **own}, {**own}):
        request = line_of(given, "m")
        assert request.model == expected
        assert json.loads(request.payload) == request.body
        assert request.payload.count(b'"model"') == 1


@pytest.mark.parametrize("name", ["Gemini", "Bedrock"])
def test_a_model_that_belongs_into_the_url_is_not_put_into_the_body(name: str) -> None:
    """Their servers would refuse it."""
    assert "model" not in line_of(ROWS[name], "m").body


@pytest.mark.parametrize(
    "row",
    [
        {"custom_id": "a", **CHAT},
        {"custom_id": "a", "model": "m", **CHAT},
        {"custom_id": "a", "method": "POST", "url": "/v1/x", "params_": {}},
        {"method": "POST", "url": "/v1/x", "body": CHAT},
        {"params": CHAT},
        {"request": {"contents": []}, "response": {"candidates": []}},
        {"modelInput": {"inputText": "Hi"}, "modelOutput": {}},
        {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200}, "error": None},
        {"custom_id": "a", "result": {"type": "succeeded", "message": {}}},
    ],
)
def test_a_row_of_no_known_form_is_refused_with_those_there_are(row: dict[str, Any]) -> None:
    """It is never sent: nobody knows what a server would make of it."""
    reason = line_of(row).invalid_reason or ""
    assert reason.startswith("line 7: it is no request, but a row of no known form, with ")
    for dialect in DIALECTS:
        assert f'{{"{dialect.id_key}", "{dialect.body_key}"}}' in reason


@pytest.mark.parametrize(
    "body",
    [
        {"contents": [{"parts": [{"text": "Hi"}]}], "key": "k"},
        {"inputs": "Hi", "parameters": {"n": 1}},
        {"inputText": "Hi"},
        {"query": "q", "documents": ["d"], "params": {"k": 1}},
        {"model": "m", "input": "x", "body": {"a": 1}},
        {"requests": [{"model": "m"}]},
        {"request": "text"},
        {},
    ],
)
def test_a_bare_request_of_any_api_is_sent(body: dict[str, Any]) -> None:
    """Only what has the keys of a row is one."""
    request = line_of(body)
    assert (request.custom_id, request.invalid_reason, request.body) == (None, None, body)


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("Gemini", {"key": 5}, "key is not a string"),
        ("Bedrock", {"recordId": None}, "recordId is not a string"),
        ("Anthropic", {"params": []}, "params is not a JSON object"),
    ],
)
def test_a_bad_row_of_a_dialect_names_its_key(name: str, bad: dict[str, Any], reason: str) -> None:
    """In the words of the file."""
    assert line_of({**ROWS[name], **bad}).invalid_reason == f"line 7: {reason}"


@each_row
def test_an_answer_is_recorded_as_its_own_batch_api_would(name: str) -> None:
    """The line is read back as the answer of that row."""
    request = line_of(ROWS[name])
    line = record(outcome_of(request))
    row = json.loads(line)
    framed = {"status_code": 200, "request_id": "r", "body": {"answer": 1}}
    expected = {
        "Anthropic": {"custom_id": "a", "result": {"type": "succeeded", "message": {"answer": 1}}},
        "Gemini": {"key": "a", "response": {"answer": 1}},
        "Bedrock": {**ROWS["Bedrock"], "modelOutput": {"answer": 1}},
    }
    if name not in expected:
        assert row.pop("id").startswith("batch_req_")
    assert row == expected.get(name, {"custom_id": "a", "response": framed, "error": None})
    found = read_record(line)
    assert found is not None and found[:2] == (identity(request), True)


@each_row
@pytest.mark.parametrize("said", [True, False])
def test_a_failure_is_recorded_as_its_own_batch_api_would(
    name: str, said: bool, tmp_path: Path
) -> None:
    """With the server's own error, or with the reason why there is none."""
    request = line_of(ROWS[name])
    if said:
        error = {"type": "t", "message": "no"}
        body = {"type": "error", "error": error}
        outcome = outcome_of(
            request, 400, body, errors=("HTTP 400 t: no",), error_kind="HTTP 400 t"
        )
    else:
        error = {"message": "late"}
        outcome = Outcome(request=request, ok=False, errors=("late",), error_kind="timeout")
    line = record(outcome)
    row = json.loads(line)
    if name == "Anthropic":
        wrapped = {
            "type": "error",
            "error": {"type": "timeout", **error, **(error if said else {})},
        }
        assert row == {"custom_id": "a", "result": {"type": "errored", "error": wrapped}}
    elif name == "Gemini":
        assert row == {"key": "a", "error": error if said else {"status": "timeout", **error}}
    elif name == "Bedrock":
        text = "HTTP 400 t: no" if said else "late"
        error = {"errorCode": 400 if said else "timeout", "errorMessage": text}
        assert row == {**ROWS["Bedrock"], "error": error}
    else:
        framed = {"status_code": 400, "request_id": "r", "body": {"type": "error", "error": error}}
        assert row["response"] == (framed if said else None)
        assert row["error"] == (None if said else {"code": "timeout", "message": "late"})
    found = read_record(line)
    assert found is not None and found[:2] == (identity(request), False)
    (tmp_path / "out.jsonl").write_bytes(line)
    (back,) = read_results(tmp_path / "out.jsonl")
    assert (back.ok, back.custom_id) == (False, "a")
    assert ("no" if said else "late") in (back.error or "")


@pytest.mark.parametrize(
    ("row", "ok", "error"),
    [
        ({"custom_id": "a", "result": {"type": "canceled"}}, False, "canceled"),
        ({"custom_id": "a", "result": {"type": "expired"}}, False, "expired"),
        (
            {
                "custom_id": "a",
                "result": {
                    "type": "errored",
                    "error": {"type": "error", "error": {"type": "e", "message": "bad"}},
                },
            },
            False,
            "bad",
        ),
        ({"key": "a", "response": {"candidates": [{"content": {"parts": [1]}}]}}, True, ""),
        ({"key": "a", "error": {"code": 3, "message": "bad", "status": "INVALID"}}, False, "bad"),
        ({"key": "a", "response": {"candidates": []}}, False, "no candidates"),
        ({"recordId": "a", "modelInput": {}, "modelOutput": {"results": [{"n": 1}]}}, True, ""),
        (
            {"recordId": "a", "modelInput": {}, "error": {"errorCode": 400, "errorMessage": "bad"}},
            False,
            "bad",
        ),
    ],
)
def test_results_of_other_batch_apis_are_read(
    row: dict[str, Any], ok: bool, error: str, tmp_path: Path
) -> None:
    """Answers, errors, and what was never executed."""
    (outcome,) = read_results(write_lines(tmp_path / "out.jsonl", [row]))
    assert (outcome.ok, outcome.custom_id) == (ok, "a")
    assert error in (outcome.error or "")
    found = read_record(json.dumps(row).encode())
    assert found is not None and found.ok is ok


def answer_by_path(visit: Visit) -> None:
    """Answers as the endpoint does that is asked."""
    while visit.read():
        answer: dict[str, Any] = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}
        if b"inputText" in visit.body:
            answer = {"results": [{"outputText": "Hi"}]}
        elif "/messages" in visit.head:
            answer = {"type": "message", "content": [{"type": "text", "text": "Hi"}]}
        visit.answer(json.dumps(answer).encode())


WITHOUT_IDS: dict[str, dict[str, Any]] = {
    "Gemini": {"request": {"contents": [{"parts": [{"text": "Hi"}]}]}},
    "Bedrock": {"modelInput": {"inputText": "Hi", "metadata": {"user_id": "u"}}},
}


@pytest.mark.parametrize("name", WITHOUT_IDS)
def test_rows_without_an_id_are_known_by_their_content(name: str, tmp_path: Path) -> None:
    """As Vertex and Bedrock take them. The whole body is sent, and lines may move."""
    row = WITHOUT_IDS[name]
    body = next(iter(row.values()))
    rows = [{key: {**body, "n": n} for key in row} for n in range(4)]
    source, save = write_lines(tmp_path / "in.jsonl", rows[1:]), tmp_path / "out.jsonl"
    with RawServer(answer_by_path) as server:
        url = server.url + OWN_URLS[name].removeprefix("https://api.example")
        account: dict[str, Any] = {"request_url": url, "limits": NO_LIMITS}
        assert process_file(source, save, **account).answered == 3
        assert sorted(record[0]["n"] for record in read_lines(save)) == [1, 2, 3]
        write_lines(source, rows)
        summary = process_file(source, save, **account)
        assert (summary.already_answered, summary.answered) == (3, 1)
        assert verify_results(source, save).ok
        sent = [json.loads(each) for each in server.bodies]
    assert sorted(sent, key=lambda each: int(each["n"])) == [{**body, "n": n} for n in range(4)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Anthropic", "/v1/messages"),
        ("Gemini", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("Bedrock", "/model/amazon.titan/invoke"),
    ],
)
def test_a_file_of_a_dialect_is_sent_once_and_resumed(
    name: str, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says in one line what it is; the results are complete, and nothing is sent again."""
    caplog.set_level(logging.INFO)
    id_key = next(iter(ROWS[name]))
    source = write_lines(
        tmp_path / "in.jsonl", [{**ROWS[name], id_key: each} for each in ("a", "b", "c")]
    )
    with RawServer(answer_by_path) as server:
        account: Any = {"request_url": server.url + path, "limits": NO_LIMITS}
        assert process_file(source, tmp_path / "out.jsonl", **account).answered == 3
        again = process_file(source, tmp_path / "out.jsonl", **account)
        assert (again.answered, again.already_answered) == (0, 3)
        assert len(server.bodies) == 3
    assert sorted(line[id_key] for line in read_lines(tmp_path / "out.jsonl")) == ["a", "b", "c"]
    assert verify_results(source, tmp_path / "out.jsonl").ok
    told = [each.getMessage() for each in caplog.records if "in the form of" in each.getMessage()]
    assert len(told) == 2  # one of each run
    assert told[0].startswith(f"line 1 is a row in the form of {name} ({id_key}, ")
    assert path in told[0] and "as others may be" in told[0]


@pytest.mark.parametrize("name", OWN_URLS)
def test_a_model_is_filled_into_the_url_of_its_own_api(name: str) -> None:
    """The row's body stays as it is; without a model it can't be sent."""
    url = "https://api.example/models/{model}:generateContent"
    request = line_of(ROWS[name], "m:1", url)
    assert request.url == "https://api.example/models/m%3A1:generateContent"
    assert "model" not in request.body
    reason = line_of(ROWS[name], None, url).invalid_reason
    assert reason is not None
    assert "names no model to take the place of {model}" in reason


def test_rows_without_a_model_say_how_to_name_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the line that tells their form; OpenAI's own form is not told."""
    caplog.set_level(logging.INFO)
    rows = [ROWS["OpenAI"], {**ROWS["Mistral, Together and others"], "custom_id": "b"}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert [each.model for each in read_requests(source, request_url=URL, model="m")] == ["m", "m"]
    (told,) = [each.getMessage() for each in caplog.records]
    assert "Mistral" in told and "--model" not in told
    caplog.clear()
    list(read_requests(source, request_url=URL))
    assert "it names no model, which --model would fill in" in caplog.text


def test_rows_of_two_dialects_with_one_id_are_a_conflict(tmp_path: Path) -> None:
    """Their answers could be mixed up by whoever joins them."""
    source = write_lines(tmp_path / "in.jsonl", [ROWS["Gemini"], ROWS["Bedrock"]])
    with pytest.raises(InputFileError, match="line 1 and line 2 .* same custom_id 'a'"):
        list(read_requests(source, request_url=OWN_URLS["Gemini"]))


def test_an_invalid_row_fails_under_its_id(tmp_path: Path) -> None:
    """So that an errors file has nothing but lines of its form."""
    rows = [
        {"custom_id": "a", "method": "GET", "url": "/v1/x", "body": {}},
        {"key": "b", "request": 5},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    with RawServer(answer_all) as server:
        process_file(
            source, tmp_path / "out.jsonl", request_url=server.url + "/v1/x", limits=NO_LIMITS
        )
        assert server.bodies == []
    first, second = sorted(read_lines(tmp_path / "out.jsonl"), key=len, reverse=True)
    assert (first["custom_id"], first["response"]) == ("a", None)
    assert first["error"]["message"] == "line 1: method is 'GET', not POST"
    assert second == {
        "key": "b",
        "error": {"status": "invalid request", "message": "line 2: request is not a JSON object"},
    }


def test_every_dialect_is_told_by_its_keys_alone() -> None:
    """No two have both keys in common, and each is found by the other's table."""
    pairs = {(each.id_key, each.body_key) for each in DIALECTS}
    assert len(pairs) == len(DIALECTS)
    assert DIALECTS[0] is OPENAI
