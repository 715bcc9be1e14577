"""A results file read back as outcomes: what was asked, what came, and what went wrong."""

from __future__ import annotations

import json
import logging
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines
from raw_server import OK, RawServer, Visit, answer_all

from parallel_processor import Outcome, Processor, ResultsFileError, read_results
from parallel_processor.files.formats import made_request, parse_line
from parallel_processor.files.identity import identity, read_record
from parallel_processor.files.records import record
from parallel_processor.models import INVALID_REQUEST, Request, Response
from parallel_processor.providers.jsontext import elements, read_answer
from parallel_processor.providers.promises import POLLED

URL = "https://api.openai.com/v1/chat/completions"
CHAT = {"choices": [{"message": {"content": "Yes."}}], "usage": {"total_tokens": 7}}
BATCH = Request(body={"n": 1}, custom_id="a")


def response_of(body: bytes, status: int = 200, is_json: bool = True) -> Response:
    """An answer as it comes from a server."""
    data, text = read_answer(body) if is_json else (None, body)
    headers = {"x-request-id": "r1"}
    return Response(status=status, headers=headers, body=text, data=data, is_json=is_json)


def read_back(folder: Path, *lines: bytes) -> list[Outcome]:
    """The outcomes in a results file of these lines."""
    path = folder / "out.jsonl"
    path.write_bytes(b"".join(lines))
    return list(read_results(path))


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    """Request, metadata and answer are there parsed, and byte for byte."""
    line = (
        b'{"z":1.10,  "n": ' + b"1" * 5000 + b', "s": "\\u00e9\xc3\xa9", "metadata": {"row":  7}}'
    )
    body = b'{"b" : [1, 2.50], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    request = parse_line(line, 9, URL)
    sent = Outcome(request=request, ok=True, raw_response=response_of(body))
    (outcome,) = read_back(tmp_path, record(sent))
    assert outcome.ok and outcome.errors == ()
    assert outcome.request.payload == request.payload
    assert outcome.request.metadata_json == b'{"row":  7}'
    assert (outcome.request.number, outcome.metadata) == (1, {"row": 7})
    assert outcome.request.body["s"] == "éé"
    assert outcome.raw_response is not None and outcome.raw_response.body == body
    assert outcome.response == json.loads(body)
    assert (outcome.raw_response.status, outcome.attempts, outcome.used_tokens) == (200, 1, 7)
    assert identity(outcome.request) == identity(request)


@pytest.mark.parametrize(
    ("row", "errors"),
    [
        ([{"n": 1}, ["HTTP 500: a", "timeout: b"]], ("HTTP 500: a", "timeout: b")),
        ([{"n": 1}, ["no"], {"row": 7}], ("no",)),
        ([{"n": 1}, {"error": {"code": "x"}}], ('{"error": {"code": "x"}}',)),
        ([{"n": 1}, [{"error": {"code": "x"}}]], ('{"error": {"code": "x"}}',)),
        ([{"n": 1}, [{"error": "a"}, {"error": "b"}]], ('{"error": "a"}', '{"error": "b"}')),
        ([{"n": 1}, [{"error": "a"}, "b", None]], ('{"error": "a"}', "b", "null")),
        ([{"n": 1}, None], ("the answer is null, not an object: null",)),
        ([{"n": 1}, {"choices": None}], ('the answer has no choices: {"choices": null}',)),
        ([{"n": 1}, "TimeoutError()"], ("TimeoutError()",)),
        ([{"n": 1}, "Paris, perhaps"], ("Paris, perhaps",)),
    ],
)
def test_a_failure_has_its_errors(row: list[Any], errors: tuple[str, ...], tmp_path: Path) -> None:
    """It has one per attempt; so has an error body that the cookbook's script recorded as a response."""
    (outcome,) = read_results(write_lines(tmp_path / "out.jsonl", [row]))
    assert (outcome.ok, outcome.errors, outcome.attempts) == (False, errors, len(errors))
    assert (outcome.error, outcome.raw_response) == (errors[-1], None)
    assert outcome.request.body == {"n": 1}
    assert outcome.metadata == (row[2] if len(row) == 3 else None)


def test_a_line_that_was_not_sent_comes_back_with_its_reason(tmp_path: Path) -> None:
    """Such a request has its text for a body, and took no attempt."""
    request = parse_line(b"[1, 2]", 3, URL)
    errors = (request.invalid_reason or "",)
    (outcome,) = read_back(tmp_path, record(Outcome(request=request, ok=False, errors=errors)))
    assert (outcome.ok, outcome.attempts, outcome.request.body) == (False, 0, "[1, 2]")
    assert outcome.request.invalid_reason == request.invalid_reason == outcome.error
    assert outcome.error_kind == INVALID_REQUEST


@pytest.mark.parametrize(
    ("response", "errors", "kind"),
    [
        (response_of(b'{"a": 1.0}'), (), ""),
        (response_of(b'{"error": {}}', 400), ("once", "HTTP 400: twice"), "HTTP 400"),
        (response_of(b"<html>\xc3\xa9", 502, is_json=False), ("HTTP 502: twice",), "HTTP 502"),
        (None, ("timeout: twice",), "timeout"),
    ],
    ids=["answer", "JSON error", "no JSON", "no response"],
)
def test_a_batch_row_comes_back(
    response: Response | None, errors: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    """It has its ``custom_id``, the server's response where there was one, and the last error."""
    ends = {"ok": not errors, "errors": errors, "error_kind": kind}
    sent = Outcome(request=BATCH, raw_response=response, **ends)  # type: ignore[arg-type]
    (outcome,) = read_back(tmp_path, record(sent))
    assert (outcome.ok, outcome.error_kind, outcome.error) == (not errors, kind, sent.error)
    assert (outcome.custom_id, outcome.request.body, outcome.attempts) == ("a", None, 1)
    assert (outcome.raw_response is None) == (response is None)
    for name in ("status", "headers", "body", "is_json") if response else ():
        assert getattr(outcome.raw_response, name) == getattr(response, name)


@pytest.mark.parametrize(
    ("response", "error", "kind", "text"),
    [
        (
            {"status_code": 404, "body": {"error": {"message": "A"}}},
            None,
            "HTTP 404",
            "HTTP 404: A",
        ),
        (None, {"code": "batch_expired", "message": "Too late"}, "batch_expired", "Too late"),
        (None, {"odd": 1}, "", '{"odd": 1}'),
        (None, "odd", "", "odd"),
        (None, None, "", "no response"),
        ({"body": None}, None, "no answer", "no answer: the answer is null, not an object"),
        (
            {"status_code": 200, "body": {"choices": []}},
            None,
            "no answer",
            "no answer: the answer has no choices",
        ),
        (
            {"status_code": 202, "body": {"id": "p"}},
            None,
            "not answered yet",
            f"not answered yet: {POLLED}",
        ),
        ({"error": {"message": "A"}}, None, "error", "error: A"),
    ],
)
def test_the_batch_apis_own_failures_are_read(
    response: Any, error: Any, kind: str, text: str, tmp_path: Path
) -> None:
    """Error files of the Batch API have the error in the body, or an expired row's beside it."""
    row = {"id": "b", "custom_id": "a", "response": response, "error": error}
    (outcome,) = read_results(write_lines(tmp_path / "out.jsonl", [row]))
    assert (outcome.ok, outcome.error_kind, outcome.error) == (False, kind, text)


@pytest.mark.parametrize(
    "response",
    [
        {"choices": [{"message": {"content": "Hi"}}], "usage": {"total_tokens": 7}},
        {"status_code": "200", "body": CHAT},
        {"status_code": 200, "body": CHAT, "request_id": None},
        {"body": CHAT},
    ],
)
def test_answers_of_other_batch_runners_are_read(response: Any, tmp_path: Path) -> None:
    """An older vLLM wrote the bare body; others lack the status, or have it as a text."""
    row = {"id": "vllm-1", "custom_id": "a", "response": response, "error": None}
    (outcome,) = read_results(write_lines(tmp_path / "out.jsonl", [row]))
    assert outcome.ok and outcome.raw_response is not None
    assert outcome.response == response.get("body", response)
    assert json.loads(outcome.raw_response.body) == outcome.response
    assert outcome.used_tokens == 7


def test_a_list_is_an_answer_in_a_batch_row(tmp_path: Path) -> None:
    """Its record tells an answer from an error, which that of a cookbook line doesn't."""
    row = {"custom_id": "a", "response": {"status_code": 200, "body": ["a", "b"]}, "error": None}
    path = write_lines(tmp_path / "out.jsonl", [row, [{"n": 1}, ["a", "b"]]])
    assert [(outcome.ok, outcome.response) for outcome in read_results(path)] == [
        (True, ["a", "b"]),
        (False, None),
    ]


def test_what_reads_and_what_resumes_agree(tmp_path: Path) -> None:
    """A line is an outcome exactly if a resumed job takes it for a record, with the same result."""
    lines = [
        b'[{"n": 1}, {"a": 1}]\n',
        b'[{"n": 1}, null]\n',
        b'[{"n": 1}, "text", null]\n',
        b'[{"n": 1}, []]\n',
        b'["a", ["b"]]\n',
        b'["a", {"b": 1}]\n',
        b'[1, {"b": 1}]\n',
        b'[{"n": 1}]\n',
        b'{"custom_id": "a"}\n',
        b'{"custom_id": "a", "response": {"status_code": 200}}\n',
        b'{"custom_id": "a", "response": 5}\n',
        b'{"custom_id": "a", "response": [1.5]}\n',
        b'{"custom_id": "a", "response": {"choices": [{"text": "a"}]}}\n',
        b'{"custom_id": "a", "response": {"status_code": 200, "body": "text"}, "error": {"code": 1}}\n',
        b'{"custom_id": 1, "response": null}\n',
        b"\n",
        b"nonsense\n",
        b"\xff\n",
        b"\xef\xbb\xbf" + b'[{"n": 1}, {"a": NaN}]\r\n',
        b'[{"n": 1}, ' + b"[" * 200 + b"]" * 200 + b"]\n",
    ]
    outcomes = {outcome.request.number: outcome for outcome in read_back(tmp_path, *lines)}
    for number, line in enumerate(lines, 1):
        expected, found = read_record(line), outcomes.get(number)
        assert (found is None) == (expected is None), line
        if found is not None and expected is not None:
            assert found.ok == bool(expected.ok), line
            if found.custom_id is None:
                assert identity(found.request) == expected.identity, line
    assert len(outcomes) == 11


def test_elements_are_cut_out_of_an_array() -> None:
    """Whatever white space is between them, and however long a number is."""
    assert elements('[ {"a" : [1, 2]} ,"]," ,\t1.10, ' + "1" * 5000 + " ] ") == [
        *('{"a" : [1, 2]}', '"],"', "1.10", "1" * 5000)
    ]
    assert elements("[ ]") == []


def test_a_torn_last_line_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An incomplete record, of a stopped or a running job, is skipped without a warning."""
    whole = b'[{"n": 1}, {"a": 1}]\n'
    for size in range(len(whole) - 1):
        assert len(read_back(tmp_path, whole, whole[:size])) == 1
    assert len(read_back(tmp_path, whole, whole[:-1])) == 2
    assert caplog.messages == []


def test_foreign_lines_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is one warning for a file, which names the first of them."""
    caplog.set_level(logging.WARNING)
    lines = [b'[{"n": 1}, {"a": 1}]\n', b"\n", b"what\n", b'{"n": 1}\n', b'[{"n": 2}, ["no"]]\n']
    assert [outcome.request.number for outcome in read_back(tmp_path, *lines)] == [1, 5]
    (message,) = caplog.messages
    assert "line 3" in message and str(tmp_path) in message


def test_a_file_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """The error names the path, before anything is asked of the outcomes."""
    path = write_lines(tmp_path / "out.jsonl", [])
    with pytest.raises(ResultsFileError, match="gone.jsonl"):
        read_results(tmp_path / "gone.jsonl")
    with pytest.raises(ResultsFileError, match="gone.jsonl"):
        read_results(path, tmp_path / "gone.jsonl")
    with pytest.raises(ResultsFileError, match=tmp_path.name):
        read_results(tmp_path)


def test_the_errors_file_comes_second(tmp_path: Path) -> None:
    """Its outcomes follow those of the results, numbered by its own lines."""
    results = write_lines(tmp_path / "out.jsonl", [[{"n": 1}, CHAT], [{"n": 2}, CHAT]])
    errors = write_lines(tmp_path / "errors.jsonl", [[{"n": 3}, ["no"]]])
    found = [(o.request.number, o.ok, o.request.body) for o in read_results(results, str(errors))]
    assert found == [(1, True, {"n": 1}), (2, True, {"n": 2}), (1, False, {"n": 3})]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """While 60 MB of records are read, little more than one is in memory."""
    path = tmp_path / "out.jsonl"
    line = json.dumps([{"n": 1}, {"text": "x" * 100_000}]).encode() + b"\n"
    path.write_bytes(line * 600)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_results(path)) == 600
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_the_file_can_be_read_while_a_run_writes_it(tmp_path: Path) -> None:
    """What is on record is read while other answers are awaited."""
    opened = threading.Event()
    entered = threading.Event()

    def hold(visit: Visit) -> None:
        while visit.read():
            if json.loads(visit.body)["n"] == 3:
                entered.set()
                opened.wait()
            visit.answer()

    source = write_lines(tmp_path / "in.jsonl", [{"n": n, "metadata": n} for n in range(4)])
    save = tmp_path / "out.jsonl"
    with RawServer(hold) as server, Processor(request_url=server.url, max_workers=1) as processor:
        run = threading.Thread(target=processor.process_file, args=(source, save))
        run.start()
        try:
            assert entered.wait(30)
            rounds: Iterator[list[Any]] = iter(
                lambda: [o.metadata for o in read_results(save)], [0, 1, 2]
            )
            for count, found in enumerate(rounds):
                assert found == [0, 1, 2][: len(found)] and count < 1_000_000
        finally:
            opened.set()
            run.join()
    assert [outcome.metadata for outcome in read_results(save)] == [0, 1, 2, 3]


def test_outcomes_of_a_run_and_of_its_file_are_the_same(tmp_path: Path) -> None:
    """What a program gets and what it reads afterwards agree in all that a file can hold."""
    bodies = [{"model": "m", "input": str(n), "metadata": {"row": n}} for n in range(20)]
    source = write_lines(tmp_path / "in.jsonl", bodies)
    with RawServer(answer_all) as server, Processor(request_url=server.url) as processor:
        processor.process_file(source, tmp_path / "out.jsonl")
        got = {o.metadata["row"]: o for o in processor.imap_unordered(bodies)}
    read = {o.metadata["row"]: o for o in read_results(tmp_path / "out.jsonl")}
    assert set(got) == set(read) == set(range(20))
    for row, outcome in got.items():
        assert read[row].response == outcome.response == OK
        assert read[row].request.body == outcome.request.body
        assert identity(read[row].request) == identity(made_request(bodies[row], 1))
