"""The two file formats: lines to requests, outcomes to records, and records back."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.files.formats import (
    NAN_IN_METADATA,
    made_request,
    parse_line,
    requests_in,
    tell_notes,
)
from parallel_processor.files.identity import Record, identity, read_record
from parallel_processor.files.records import record
from parallel_processor.files.requests_file import line_place
from parallel_processor.models import Outcome, Request, Response
from parallel_processor.providers.answers import Expected, count_inputs, fault_of
from parallel_processor.providers.jsontext import MAX_NESTING, read_answer

URL = "https://api.openai.com/v1/chat/completions"
METADATA = [{"row": 1}, [1, 2], "text", 5, 1.5, True, {}, [], "", 0, False, 0.0]


def line_of(text: str | bytes) -> Request:
    """The request of one line."""
    return parse_line(text if isinstance(text, bytes) else text.encode(), 7, URL)


def answered(request: Request, body: bytes = b'{"choices": []}', status: int = 200) -> Outcome:
    """The outcome of an answer with the given body."""
    data, line = read_answer(body)
    headers = {"x-request-id": "r1"}
    response = Response(status=status, headers=headers, body=line, data=data, is_json=True)
    return Outcome(request=request, ok=True, raw_response=response, attempts=1)


def failed(request: Request, *errors: str, response: Response | None = None) -> Outcome:
    """The outcome of a failure with the given errors."""
    return Outcome(
        request=request, ok=False, raw_response=response, errors=errors, error_kind="HTTP 500"
    )


def test_a_cookbook_line_is_sent_as_it_is() -> None:
    """Digits, spaces, escapes and the order of keys survive byte for byte."""
    line = b'{"z":1.10,  "n": ' + b"1" * 5000 + b', "s":"\\u00e9\xc3\xa9", "a":{"z":1,"b":2}}'
    request = line_of(line)
    assert request.payload == line
    assert request.body["a"] == {"z": 1, "b": 2}
    assert (request.number, request.invalid_reason, request.metadata_json) == (7, None, None)


@pytest.mark.parametrize(
    ("url", "body", "lacks"),
    [
        (URL, {"foo": 1}, "neither model nor messages"),
        (URL, {}, "neither model nor messages"),
        ("https://eu.api.openai.com/v1/embeddings", {"n": 1}, "neither model nor input"),
        (
            "https://api.openai.com/v1/responses",
            {"n": 1},
            "input or previous_response_id or prompt",
        ),
        ("https://api.anthropic.com/v1/messages", {"input": "x"}, "neither model nor messages"),
        (URL, {"model": "m"}, ""),
        (URL, {"messages": []}, ""),
        ("https://api.openai.com/v1/responses", {"prompt": {"id": "p"}}, ""),
        ("https://api.openai.com/v1/completions", {"n": 1}, ""),
        ("https://api.openai.com/v1/new", {"n": 1}, ""),
        ("https://my.example/v1/chat/completions", {"n": 1}, ""),
        ("http://127.0.0.1/embeddings", {"sentences": []}, ""),
    ],
)
def test_an_object_that_is_no_request_is_not_sent(url: str, body: Any, lacks: str) -> None:
    """Where the API of the host is known; anywhere else a server may take what it likes."""
    line = json.dumps(body).encode()
    request, bare = parse_line(line, 7, url, is_sent=True), parse_line(line, 7, url)
    reason = request.invalid_reason
    if lacks:
        assert reason is not None and lacks in reason and url in reason
    else:
        assert reason is None
    assert bare.invalid_reason is None  # that of a check, which needs no URL
    assert identity(bare) == identity(request)


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_is_a_column_of_any_type(metadata: Any) -> None:
    """It is cut out of what is sent, and echoed with the result."""
    request = line_of(json.dumps({"model": "m", "metadata": metadata, "input": "x"}))
    assert request.payload == b'{"model": "m", "input": "x"}'
    assert request.body == {"model": "m", "input": "x"}
    assert request.metadata_json == json.dumps(metadata).encode()
    assert json.loads(record(answered(request))) == [request.body, {"choices": []}, metadata]
    assert json.loads(record(failed(request, "e"))) == [request.body, ["e"], metadata]


def test_no_metadata_is_no_column() -> None:
    """Null counts as none, and is not sent either."""
    for line in (
        '{"model": "m", "metadata": null}',
        '{"metadata": 1, "model": "m", "metadata":null}',
    ):
        request = line_of(line)
        assert request.payload == b'{"model": "m"}'
        assert json.loads(record(answered(request))) == [{"model": "m"}, {"choices": []}]
        assert json.loads(record(failed(request, "e", "f"))) == [{"model": "m"}, ["e", "f"]]


@pytest.mark.parametrize(
    ("line", "payload", "dropped"),
    [
        ('{"a": 1, "stream": true}', b'{"a": 1}', {"stream"}),
        ('{"stream":true,"stream_options":{},"a":1}', b'{"a":1}', {"stream", "stream_options"}),
        ('{"background": true}', b"{}", {"background"}),
        ('{"stream": true, "background": false}', b"{}", {"stream", "background"}),
        ('{"stream": false, "a": 1}', b'{"stream": false, "a": 1}', set()),
        ('{"stream": null}', b'{"stream": null}', set()),
        ('{"a": {"stream": true}}', b'{"a": {"stream": true}}', set()),
        ('{"stream": true, "metadata": 5, "b": 2}', b'{"b": 2}', {"stream"}),
    ],
)
def test_what_only_a_stream_can_answer_is_left_out(
    line: str, payload: bytes, dropped: set[str]
) -> None:
    """It is dropped in both formats, and noted, so that the run can warn."""
    request = line_of(line)
    assert (request.payload, request.dropped) == (payload, dropped)
    assert request.body == json.loads(payload)
    if "metadata" not in line:
        request = line_of(f'{{"custom_id": "i", "body": {line}}}')
        assert (request.payload, request.dropped) == (payload, dropped)
        assert request.body == json.loads(payload)


@pytest.mark.parametrize("rest", ["", ', "method": "POST"', ', "method": null, "url": null'])
def test_a_batch_line_has_an_id_and_a_body(rest: str) -> None:
    """Method and url may be missing; the body's metadata is the API's own and stays."""
    request = line_of(f'{{"custom_id": "i"{rest}, "body":{{"n": 1.10, "metadata": {{"a": "b"}}}}}}')
    assert request.custom_id == "i"
    assert request.payload == b'{"n": 1.10, "metadata": {"a": "b"}}'
    assert request.metadata_json is None
    assert request.url == URL


def test_a_batch_line_names_its_endpoint() -> None:
    """Its url is resolved against the run's."""
    request = line_of('{"custom_id": "i", "url": "/v1/embeddings", "body": {}}')
    assert request.url == "https://api.openai.com/v1/embeddings"


@pytest.mark.parametrize(
    ("line", "invalid_reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"a": 1} x', "not JSON: Extra data at character 10"),
        (b'{"a": "\t"}', "not JSON: Invalid control character at character 8"),
        (b"[1]", "not a JSON object but an array; write one object a line"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8 is 0xff"),
        ("{}".encode("utf-16"), "not UTF-8: byte 1 is 0xff"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested deeper than 100 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 100 levels"),
        (b'{"custom_id": 5, "body": {}}', "custom_id is not a string"),
        (b'{"custom_id": "i", "body": null}', "body is not a JSON object"),
        (b'{"custom_id": "i", "body": "{}"}', "body is not a JSON object"),
        (b'{"custom_id": "i", "method": "GET", "body": {}}', "method is 'GET', not POST"),
        (b'{"custom_id": "i", "url": 5, "body": {}}', "url is not a string"),
        (
            b'{"custom_id": "i", "url": "https://evil.example/v1", "body": {}}',
            "its url 'https://evil.example/v1' is on another host than the request URL: "
            "--allow_host evil.example permits it (allowed_hosts)",
        ),
    ],
)
def test_a_bad_line_says_which_it_is_and_why(line: bytes, invalid_reason: str) -> None:
    """It becomes a failed record that can be read back, and is never taken for answered."""
    request = line_of(line)
    assert request.invalid_reason == f"line 7: {invalid_reason}"
    written = record(failed(request, request.invalid_reason))
    assert written.count(b"\n") == 1
    row = json.loads(written)
    if request.custom_id is not None:
        assert (row["custom_id"], row["error"]["message"]) == ("i", request.invalid_reason)
    else:
        assert row[1] == [request.invalid_reason]
    assert len(written) < 30_000
    found = read_record(written)
    assert found is not None and not found.ok


def test_lines_are_numbered_and_blank_ones_skipped() -> None:
    """A byte-order mark before any line, CRLF, blank lines and a missing last line end are all fine."""
    lines = [b'\xef\xbb\xbf{"a": 1}\r\n', b"\r\n", b" \t\n", b'  {"a": 2}  \n', b"x\n", b'{"a": 3}']
    requests = list(requests_in(enumerate(lines, 1), URL))
    assert [request.number for request in requests] == [1, 4, 5, 6]
    assert [request.body for request in requests] == [{"a": 1}, {"a": 2}, "x", {"a": 3}]
    assert [request.invalid_reason is None for request in requests] == [True, True, False, True]
    joined = [b'{"a": 1}\n', b'\xef\xbb\xbf{"a": 2}\n', b"\xef\xbb\xbf\n"]
    requests = list(requests_in(enumerate(joined, 1), URL))
    assert [request.payload for request in requests] == [b'{"a": 1}', b'{"a": 2}']


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":\r1,\r "metadata":\r[1,\r2], "b": 2}',
        b'{"custom_id":\r"i", "body":\r{"a":\r1}}',
        b'{"custom_id": "i", "body": {"a":\r1, "stream":\rtrue}}',
        b'{"a":\r1}',
    ],
)
def test_a_carriage_return_within_a_line_does_not_split_its_record(line: bytes) -> None:
    """It stands between tokens only, and becomes a space."""
    written = record(answered(line_of(line)))
    assert len(written.splitlines()) == 1
    assert b"\r" not in line_of(line).payload


def test_nesting_has_one_limit() -> None:
    """What is accepted as a request can be read back from its record."""
    for depth in range(MAX_NESTING - 2, MAX_NESTING + 1):
        deep = "[" * (depth - 1) + "]" * (depth - 1)
        request = line_of(f'{{"a": {deep}}}')
        assert request.invalid_reason is None
        found = read_record(record(answered(request, f'{{"a": {deep}}}'.encode())))
        assert found is not None and found[:2] == (identity(request), True)
        batch = line_of('{"custom_id": "i", "body": {}}')
        found = read_record(record(answered(batch, f'{{"a": {deep}}}'.encode())))
        assert found is not None and found[:2] == (identity(batch), True)


@pytest.mark.parametrize("body", [{"a": [1]}, MappingProxyType({"a": [1]}), UserDict({"a": [1]})])
def test_a_callers_body_is_a_cookbook_line(body: Mapping[str, Any]) -> None:
    """Any mapping is accepted, and may be changed afterwards."""
    request = made_request(body, 3)
    body["a"].append(2)
    assert (request.body, request.payload, request.number) == ({"a": [1]}, b'{"a": [1]}', 3)


def test_a_callers_body_is_taken_as_json_has_it() -> None:
    """Metadata is cut out, keys become strings, tuples lists, and lone surrogates escapes."""
    request = made_request({1: (2, "é\ud800"), "metadata": {"i": 1}, "stream": True}, 1)
    assert request.payload == '{"1": [2, "é\\ud800"]}'.encode()
    assert request.body == {"1": [2, "é\ud800"]}
    assert request.metadata_json == b'{"i": 1}'
    assert request.dropped == {"stream"}


NAN_LINES = [
    ('{"a": 1, "metadata": {"x": NaN, "y": 1.10}}', '{"a": 1}', '{"x": null, "y": 1.10}'),
    ('{"metadata":[-Infinity,"NaN","a \\"NaN"],"a":1}', '{"a":1}', '[null,"NaN","a \\"NaN"]'),
    ('{"a": "NaN", "metadata": Infinity}', '{"a": "NaN"}', None),
    ('{"metadata": NaN, "a": 1, "metadata": {"é": NaN}}', '{"a": 1}', '{"é": null}'),
    ('{"stream": true, "a": 1, "metadata": [NaN]}', '{"a": 1}', "[null]"),
]


@pytest.mark.parametrize(("line", "payload", "metadata"), NAN_LINES)
def test_nan_in_metadata_is_kept_as_null(
    line: str, payload: str, metadata: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The metadata aren't sent, so what JSON doesn't know costs no request; a note says so."""
    request = line_of(line)
    assert request.invalid_reason is None
    assert request.payload.decode() == payload
    assert request.metadata_json == (None if metadata is None else metadata.encode())
    assert NAN_IN_METADATA in request.dropped
    noted: set[str] = set()
    for _ in range(2):
        tell_notes(request, noted, line_place)
    texts = [entry.getMessage() for entry in caplog.records]
    assert texts[-1] == "line 7: NaN or Infinity in metadata is kept as null, here and below"
    assert len(texts) == len(request.dropped)
    assert identity(request) == read_record(record(answered(request))).identity  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "line",
    [
        '{"a": NaN, "metadata": NaN}',
        '{"a": {"metadata": NaN}}',
        '{"custom_id": "i", "body": {"metadata": NaN}}',
        '{"custom_id": "i", "body": {}, "metadata": NaN}',
        '[{"metadata": NaN}]',
    ],
)
def test_nan_in_what_is_sent_is_no_json(line: str) -> None:
    """It would be rejected by the server."""
    assert line_of(line).invalid_reason == "line 7: NaN is not JSON"


class Array:
    """What numbers and arrays of numpy, and of others, have in common."""

    dtype = "any"

    def __init__(self, value: Any) -> None:
        self._value = value

    def tolist(self) -> Any:
        return self._value


@pytest.mark.parametrize(
    ("body", "metadata", "payload", "metadata_json"),
    [
        ({"t": Array(0.5)}, Array(7), b'{"t": 0.5}', b"7"),
        ({"t": Array([[1, 2]])}, {"row": Array(True)}, b'{"t": [[1, 2]]}', b'{"row": true}'),
        ({"t": [Array(1)]}, {Array(3): "x"}, b'{"t": [1]}', b'{"3": "x"}'),
        ({"t": 1}, {"x": Array(float("nan"))}, b'{"t": 1}', b'{"x": null}'),
        ({"t": 1}, float("-inf"), b'{"t": 1}', b"null"),
    ],
)
def test_a_program_may_pass_what_numpy_has(
    body: Any, metadata: Any, payload: bytes, metadata_json: bytes
) -> None:
    """Numbers and arrays become JSON, in a mapping as in a Request."""
    for row in ({**body, "metadata": metadata}, Request(body=body, metadata=metadata)):
        request = made_request(row, 3)
        assert request.invalid_reason is None
        assert (request.payload, request.metadata_json or b"null") == (payload, metadata_json)


def test_the_real_numpy_is_taken() -> None:
    """Its numbers, arrays, texts and truth values, as values and as keys."""
    numpy = pytest.importorskip("numpy")
    body = {
        "temperature": numpy.float32(0.5),
        "n": numpy.int64(1),
        "input": numpy.array([numpy.str_("a"), "b"]),
        "echo": numpy.bool_(True),
        "logit_bias": {numpy.int32(7): numpy.float64(1.5)},
        "metadata": {"row": numpy.int64(3), "score": numpy.float64("nan")},
    }
    request = made_request(body, 1)
    assert json.loads(request.payload) == {
        "temperature": 0.5,
        "n": 1,
        "input": ["a", "b"],
        "echo": True,
        "logit_bias": {"7": 1.5},
    }
    assert request.metadata_json == b'{"row": 3, "score": null}'


CIRCLE: dict[str, Any] = {}
CIRCLE["a"] = CIRCLE
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize("body", [None, 5, "{}", [1]])
def test_what_is_neither_a_body_nor_a_request_is_a_type_error(body: Any) -> None:
    """The message says which request it is."""
    with pytest.raises(TypeError, match="request 3 is a "):
        made_request(body, 3)


@pytest.mark.parametrize(
    "body", [{"a": {1}}, {"a": float("nan")}, {(1, 2): 3}, CIRCLE, {"a": DEEP}]
)
def test_a_callers_body_that_is_no_json_is_invalid(body: Any) -> None:
    """One bad row stops nothing, and its error names it."""
    request = made_request(body, 3)
    assert (request.invalid_reason or "").startswith("request 3 can't be sent: ")
    assert request.number == 3 and request.body is not None


def test_records_of_batch_lines_are_batch_output() -> None:
    """Answers and failures have the members that the Batch API's files have."""
    request = line_of('{"custom_id": "i", "body": {}}')
    row = json.loads(record(answered(request, b'{"n": 1}', 201)))
    assert row.pop("id").startswith("batch_req_")
    response = {"status_code": 201, "request_id": "r1", "body": {"n": 1}}
    assert row == {"custom_id": "i", "response": response, "error": None}

    row = json.loads(record(failed(request, "first", "timeout: last")))
    assert row["response"] is None
    assert row["error"] == {"code": "HTTP 500", "message": "timeout: last"}

    page = Response(status=500, headers={"request-id": "r2"}, body=b"<html>\xff")
    row = json.loads(record(failed(request, "e", response=page)))
    assert row["response"] == {"status_code": 500, "request_id": "r2", "body": "<html>\ufffd"}


@pytest.mark.parametrize("body", [b'{"code": [redacted]}', b'{"a": 1', b"\xff"])
def test_a_failed_answer_that_was_cut_is_recorded_as_text(body: bytes) -> None:
    """If the removal of a key breaks the JSON of a response, the record is still valid."""
    request = line_of('{"custom_id": "i", "body": {}}')
    response = Response(status=400, headers={}, body=body, is_json=True)
    row = json.loads(record(failed(request, "e", response=response)))
    assert row["response"]["body"] == body.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("line", "ok"),
    [
        (b'[{"a": 1}, {"choices": [{"text": ""}]}]', True),
        (b'[{"a": 1}, {"choices": [{"text": ""}], "error": null}, {"m": 1}]', True),
        (b'[{"a": 1}, {"n": NaN}]', True),
        (b'[{"a": 1}, [[0.1, 0.2]]]', True),
        (b'[{"a": 1}, null]', False),
        (b'\xef\xbb\xbf[{"a": 1}, {}]\r\n', True),
        (b'[{"a": 1}, ["e"]]', False),
        (b'[{"a": 1}, ["e", "f"], null]', False),
        (b'[{"a": 1}, []]', False),
        (b'[{"a": 1}, {"error": {"code": "429"}}]', False),
        (b'[{"a": 1}, [{"error": {"code": 429}}]]', False),
        (b'["not JSON", ["line 3: not JSON"]]', False),
        (b'{"custom_id": "i", "response": {"status_code": 200, "body": {}}, "error": null}', True),
        (b'{"custom_id": "i", "response": {"status_code": 201, "body": {}}}', True),
        (b'{"custom_id": "i", "response": {"status_code": 400, "body": null}}', False),
        (b'{"custom_id": "i", "response": {"status_code": 200}, "error": "text"}', False),
        (b'{"custom_id": "i", "response": null, "error": {"code": "batch_expired"}}', False),
        (b'{"custom_id": "i", "response": {"body": null}, "error": null}', False),
    ],
)
def test_a_record_tells_if_it_is_an_answer(line: bytes, ok: bool) -> None:
    """Records of this program, the cookbook's script, the Batch API and vLLM are understood."""
    found = read_record(line)
    assert found is not None
    assert found.ok is ok


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"",
            b"\n",
            b"text",
            b"5",
            b"null",
            b"{}",
            b"[]",
            b"[1, 2]",
            b'[{"a": 1}]',
            b"[[1], [2]]",
        ),
        b'["a", "b"]',
        b'["a", {"b": 1}]',
        b'[{"a": 1}, {"b": 2}, null, 5]',
        b'{"custom_id": 5, "response": {"status_code": 200}}',
        b'{"custom_id": "i", "method": "POST", "url": "/v1/x", "body": {}}',
        b'{"custom_id": "i", "result": {"type": "succeeded"}}',
        b'[{"a": 1}, {"b": 2}',
        b'[{"a": "\xff"}, {}]',
        b"[" * 100_000,
    ],
)
def test_what_is_no_record_is_none(line: bytes) -> None:
    """A line that is no record is left alone: the file may have been named by mistake."""
    assert read_record(line) is None


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["\ud800", "\u2028", "\r\n", "[", '"', "\\"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
BODIES = st.dictionaries(
    st.text(max_size=5) | st.sampled_from(["model", "input", "messages", "body"]), JSON, max_size=4
).filter(lambda body: not isinstance(body.get("body"), dict))  # that would be a row without its id
LAYOUTS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "separators": st.sampled_from([None, (",", ":"), (" ,", ": ")])}
)


def written(value: Any, layout: dict[str, Any]) -> bytes:
    """JSON text of the value, with lone surrogates as escapes."""
    return json.dumps(value, **layout).encode("utf-8", "backslashreplace")


@given(BODIES, st.sampled_from(METADATA) | JSON, LAYOUTS, JSON, st.lists(st.text(), min_size=1))
def test_cookbook_records_round_trip(
    body: dict[str, Any], metadata: Any, layout: dict[str, Any], answer: Any, errors: list[str]
) -> None:
    """Any request with any answer or errors is one line that tells for which request it is."""
    body.pop("metadata", None)
    request = parse_line(written({**body, "metadata": metadata}, layout), 1, URL)
    for outcome in (answered(request, written(answer, layout)), failed(request, *errors)):
        line = record(outcome)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert b"\r" not in line
        response = answer if outcome.ok else errors
        column = [] if metadata is None else [metadata]
        assert json.loads(line.decode("utf-8")) == [body, response, *column]
        found = read_record(line)
        assert found is not None
        assert found.identity == identity(request)
        fault = fault_of(answer, Expected(inputs=count_inputs(body)))
        assert bool(found.ok) is (outcome.ok and fault is None)


@given(st.text(), BODIES, LAYOUTS, JSON, st.lists(st.text(), min_size=1), st.integers(200, 299))
def test_batch_records_round_trip(
    custom_id: str,
    body: dict[str, Any],
    layout: dict[str, Any],
    answer: Any,
    errors: list[str],
    status: int,
) -> None:
    """Any id with any answer or errors is one line that tells for which request it is."""
    line = written({"custom_id": custom_id, "body": body}, layout)
    request = parse_line(line, 1, URL)
    for outcome in (answered(request, written(answer, layout), status), failed(request, *errors)):
        line = record(outcome)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        row = json.loads(line.decode("utf-8"))
        assert row["custom_id"] == custom_id
        assert row["response"] == (
            {"status_code": status, "request_id": "r1", "body": answer} if outcome.ok else None
        )
        assert (row["error"] or {"message": None})["message"] == outcome.error
        found, fault = read_record(line), fault_of(answer, Expected(is_batch_row=True))
        assert found is not None and found.identity == identity(request)
        assert bool(found.ok) is (outcome.ok and fault is None and status != 202)  # no answer yet


@given(BODIES, st.sampled_from([None, *METADATA]) | JSON, LAYOUTS)
def test_lines_of_the_cookbooks_script_have_the_identity_of_their_request(
    body: dict[str, Any], metadata: Any, layout: dict[str, Any]
) -> None:
    """It writes with Python's defaults, and drops metadata that is empty."""
    line = written({**body, "metadata": metadata}, layout)
    sent = json.loads(line)
    column = sent.pop("metadata", None)
    theirs = json.dumps([sent, {"id": 1}, column] if column else [sent, {"id": 1}])
    found = read_record(theirs.encode())
    assert found == Record(identity(parse_line(line, 1, URL)), True)


def test_equal_requests_have_one_identity() -> None:
    """The order of keys, spaces, escapes and digits that say the same don't matter; values do."""
    same = [
        '{"a": 1.10, "b": "é", "metadata": {"i": 1}}',
        '{"b":"\\u00e9","metadata":{"i":1},"a":1.1}',
        '{"a": 2, "b": "é", "a": 1.1, "metadata": {"i": 1}, "stream": true}',
    ]
    others = ['{"a": 1.1, "b": "é"}', '{"a": 1.1, "b": "é", "metadata": {"i": 2}}', '{"a": "1.1"}']
    others += ['{"custom_id": "i", "body": {}}', '{"custom_id": "j", "body": {}}', '{"a": true}']
    others += ['{"a": 1}', '{"a": [1, 2]}', '{"a": [2, 1]}', "{}"]
    assert len({identity(line_of(line)) for line in same}) == 1
    assert len({identity(line_of(line)) for line in [*same, *others]}) == len(others) + 1


def test_long_integers_do_not_change_with_their_surroundings() -> None:
    """A request's number is the same whether or not its answer has a longer one."""
    request = line_of('{"a": ' + "1" * 4200 + "}")
    found = read_record(record(answered(request, b'{"n": ' + b"2" * 5000 + b"}")))
    assert found is not None and found[:2] == (identity(request), True)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_line_raises(line: bytes) -> None:
    """Any bytes are a request with or without an invalid_reason, and a record or none."""
    request = parse_line(line, 1, URL)
    assert len(identity(request)) == 16
    read_record(line)


@pytest.mark.parametrize("metadata", ["", ', "metadata": 1', ', "metadata": NaN'])
def test_a_url_with_a_place_for_the_model_needs_one(metadata: str) -> None:
    """From the line or from the run; a line without one is not sent."""
    url = "https://api.example/v1beta/models/{model}:generateContent"
    line = f'{{"contents": []{metadata}}}'.encode()
    assert parse_line(line, 1, url, model="m").model == "m"
    assert "names no model to take the place of {model}" in str(
        parse_line(line, 1, url).invalid_reason
    )
    with_model = line.replace(b"{", b'{"model": "own", ', 1)
    assert parse_line(with_model, 1, url, model="m").model == "own"
