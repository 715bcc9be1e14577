"""Any lines and any answers, end to end: nothing raises out of a run, nothing is lost, nothing hangs."""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from commands import write_lines
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from raw_server import RawServer, Visit

from parallel_processor import Limits, Processor, RetryPolicy, RunStoppedError, Summary
from parallel_processor.files.shape import why_not_jsonl
from parallel_processor.files.verify import Verification, verify_results
from parallel_processor.providers.answers import count_inputs
from parallel_processor.providers.jsontext import parse

KEY = "sk-test-0123456789abcdef"
BOM = b"\xef\xbb\xbf"
LONGEST_S = 30.0  # of a run, after which it hangs
POLICY = RetryPolicy(max_attempts=2, backoff_initial_s=0.0, pause_s=0.0, rate_limit_deadline_s=0.02)


def answer(visit: Visit) -> None:
    """Give an answer that holds what each endpoint promises."""
    count = count_inputs(parse(visit.body.decode()))
    count = 1 if count is None else count
    rows = {"choices": [{"text": "ok"}] * max(count, 1), "data": [{"embedding": [1]}] * count}
    visit.answer(json.dumps(rows).encode())


class Stage:
    """What the server of this module does next; examples set ``play``."""

    def __init__(self) -> None:
        self.play: Callable[[Visit], None] = answer
        self.server = RawServer(self)

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            self.play(visit)

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.server.url}/v1/chat/completions"

    @contextmanager
    def bodies(self) -> Iterator[list[bytes]]:
        """What arrives within the block, once it has been left."""
        start, arrived = len(self.server.bodies), list[bytes]()
        yield arrived
        arrived += self.server.bodies[start:]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One server for all examples."""
    made = Stage()
    with made.server:
        yield made


class Log(logging.Handler):
    """Keeps what is logged, at any level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message as it would be printed."""
        self.messages.append(self.format(record))


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    """What the package logs."""
    logger, handler = logging.getLogger("parallel_processor"), Log()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one call of ``process_file`` came to."""

    summary: Summary
    stopped: bool
    records: list[Any]
    found: Verification


def process(stage: Stage, source: Path) -> Result:
    """Process the file to an end, and check what any end must be."""
    save = source.with_name("out.jsonl")
    ends: list[Any] = []

    def call() -> None:
        processor = Processor(
            request_url=stage.url,
            api_key=KEY,
            limits=Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf),
            retry=POLICY,
            max_workers=3,
            token_encoding_name="cl100k_base",
        )
        try:
            ends.append(processor.process_file(source, save, progress=False))
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(LONGEST_S)
    assert ends, "it hangs"
    end = ends[0]
    stopped = isinstance(end, RunStoppedError)
    if not stopped and isinstance(end, BaseException):
        raise end
    summary = end.summary if stopped else end
    found = verify_results(source, save, request_url=stage.url)
    assert (found.torn, found.doubled, found.foreign) == (0, 0, 0)
    assert stopped or (found.missing, summary.unanswered) == (0, 0)
    assert found.answered == summary.already_answered + summary.answered
    assert found.failed == summary.failed
    return Result(summary=summary, stopped=stopped, records=records_of(save), found=found)


def records_of(path: Path) -> list[Any]:
    """The records of a results file, integers of any length as floats; each line must be whole."""
    *lines, rest = path.read_bytes().split(b"\n")
    assert rest == b""
    return [json.loads(line, parse_int=float) for line in lines]


# Lines

SPECIAL_TEXTS = [
    *("\ud800", "\udc00x", "\u2028", "\r\n", "\0", "<|endoftext|>", "<|fim_prefix|>", "[DONE]")
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**64), 10**400, 1e308, -0.0, 5e-324])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(SPECIAL_TEXTS)
)
KEYS = st.text(max_size=4) | st.sampled_from(
    [
        *("model", "input", "messages", "role", "content", "tools", "function", "parameters", "n"),
        *("type", "text", "image_url", "url", "max_tokens", "properties", "enum", "error"),
        *("stream", "body", "method", "usage", "name", "tool_calls", "response_format"),
        *("functions", "system"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "gpt-4o", ""]) | VALUES,
        "messages": st.lists(
            st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls"]), VALUES)
            | VALUES,
            max_size=3,
        ),
        "tools": VALUES,
        "max_tokens": VALUES,
        "n": VALUES,
        "refuse": st.just(True),
    },
)
PLACE = "<place>"  # becomes the line's number, since different requests need different ids
NOT_SENT = {"metadata", "stream", "stream_options", "background"}


class Line(NamedTuple):
    """A line, and what must come of it: ``sent`` is the JSON text that the server must get.

    A line that must fail has ``fails``; without either, both may come.
    """

    text: bytes
    sent: str | None = None
    fails: bool = False


def canonical(text: str | bytes) -> str:
    """One text for equal JSON texts."""
    return json.dumps(json.loads(text, parse_int=str), sort_keys=True)


def encoded(draw: st.DrawFn, value: Any) -> bytes:
    """Any JSON text of ``value``, with what may stand around it."""
    text = json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")])),
    ).encode("utf-8", "backslashreplace")
    start = draw(st.sampled_from([b"", b"", BOM, b" \t", BOM + b" "]))
    return start + text + draw(st.sampled_from([b"", b"\r", b"  "]))


@st.composite
def cookbook_lines(draw: st.DrawFn) -> Line:
    """A body, with ``metadata`` of any type."""
    row = draw(BODIES | st.dictionaries(KEYS, VALUES, max_size=4))
    if draw(st.booleans()):
        row = {**row, "metadata": draw(VALUES)}
    dropped = NOT_SENT if row.get("stream") else {"metadata"}
    sent = {key: value for key, value in row.items() if key not in dropped}
    return Line(encoded(draw, row), sent=canonical(json.dumps(sent)))


@st.composite
def batch_lines(draw: st.DrawFn) -> Line:
    """A Batch row, of which a member may be wrong."""
    row: dict[str, Any] = {
        "custom_id": draw(st.text(max_size=3) | st.sampled_from(SPECIAL_TEXTS)) + PLACE,
        "method": draw(st.sampled_from(["POST", None])),
        "url": draw(
            st.sampled_from([None, "", "/v1/embeddings", "v1/x", "/v1/a b?c=\ud800#d", "?"])
        ),
        "body": draw(BODIES),
    }
    wrong = draw(st.sampled_from(["", "", "", "custom_id", "method", "url", "body"]))
    if wrong:
        numbers = st.integers() | st.lists(st.integers()) | st.booleans()
        odd = {"method": st.just("GET"), "url": st.sampled_from(["https://h/v1/a", "//h", "//["])}
        row[wrong] = draw(numbers | odd.get(wrong, numbers))
    row = {**draw(st.dictionaries(st.sampled_from(["id", "metadata", "x"]), VALUES)), **row}
    if wrong or row["url"] == "?":  # "?" is a path of its own
        return Line(encoded(draw, row), fails=bool(wrong))
    return Line(encoded(draw, row), sent=canonical(json.dumps(row["body"])))


BROKEN_LINES = [
    *(b"NaN", b'{"a": Infinity}', b'{"a": [-Infinity]}', b"[{}]", b'"a"', b"5", b"\0", b"{"),
    b"{,}",
    *(b'{"a": "\xff"}', b'{"\xed\xa0\x80": 1}', b"\xff\xfe{\0}\0", b"{'a': 1}", b'{"a": 01}'),
    *(b"{} {}", b'{"a": "\t"}', BOM + BOM + b"{}"),
    b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",  # one level too deep
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 100_000,
]
LONG_LINES = [b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}", b'{"n": ' + b"7" * 5000 + b"}"]
FIXED_LINES = [
    *(Line(text, fails=True) for text in BROKEN_LINES),
    *(Line(text, sent=canonical(text)) for text in LONG_LINES),
    *(Line(text) for text in (b"", b" \t\r", BOM)),
]


@st.composite
def mutated_lines(draw: st.DrawFn) -> Line:
    """A line of which a part is missing or exchanged."""
    text = draw(cookbook_lines() | batch_lines()).text
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(start + 3, len(text))))
    return Line(text[:start] + draw(st.binary(max_size=3)) + text[end:])


ALIKE_LINES = [  # two ids that UTF-8 with escapes would make one
    Line(b'{"custom_id": "\\ud800", "body": {"refuse": true}}'),
    Line(b'{"custom_id": "\\\\ud800", "body": {}}'),
]
LINES = st.one_of(
    cookbook_lines(),
    batch_lines(),
    mutated_lines(),
    st.binary(max_size=20).map(Line),
    st.sampled_from(FIXED_LINES),
).map(lambda line: line._replace(text=line.text.replace(b"\n", b"\r")))


def failed_numbers(records: list[Any]) -> Counter[int]:
    """The lines that could not be sent, by what their records say."""
    numbers: Counter[int] = Counter()
    for record in records:
        reason = None
        if isinstance(record, list) and isinstance(record[0], str):
            reason = record[1][0]
        elif isinstance(record, dict) and record["response"] is None:  # a row with an id
            assert record["error"]["code"] == "invalid request"
            reason = record["error"]["message"]
        if reason is not None:
            match = re.match(r"line (\d+): .", reason)
            assert match is not None
            numbers[int(match[1])] += 1
    return numbers


def refuses(visit: Visit) -> None:
    """Answer, unless the request asks to be refused."""
    if b'"refuse"' in visit.body:
        visit.answer(b'{"error": {"message": "as you wish"}}', status="400 Bad Request")
    else:
        answer(visit)


@pytest.mark.acceptance
@settings(max_examples=100)
@example(lines=FIXED_LINES, ends=False)
@example(lines=ALIKE_LINES, ends=True)
@given(lines=st.lists(LINES, max_size=8), ends=st.booleans())
def test_any_lines_have_one_record_each(stage: Stage, lines: list[Line], ends: bool) -> None:
    """Good lines arrive, bad ones name their number, and the same call sends what was refused alone."""
    texts = [line.text.replace(PLACE.encode(), b"%d" % n) for n, line in enumerate(lines, 1)]
    counted = {n: line for n, line in enumerate(lines, 1) if line.text.removeprefix(BOM).strip()}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        data = b"\n".join(texts) + b"\n" * ends
        assume(
            why_not_jsonl(data, True, source) is None
        )  # test_shape.py has what is refused as a whole
        source.write_bytes(data)
        stage.play = refuses
        with stage.bodies() as sent:
            first = process(stage, source)
        stage.play = answer
        with stage.bodies() as sent_again:
            second = process(stage, source)
    numbers = failed_numbers(first.records)
    assert len(first.records) == len(counted) == first.found.lines
    assert set(numbers.values()) <= {1}
    assert {n for n, line in counted.items() if line.fails} <= numbers.keys()
    assert not {n for n, line in counted.items() if line.sent is not None} & numbers.keys()
    arrived = Counter(canonical(body) for body in sent)
    assert arrived.total() == len(counted) - numbers.total()
    assert Counter(line.sent for line in counted.values() if line.sent is not None) <= arrived
    refused = [body for body in sent if b'"refuse"' in body]
    assert first.found.failed == numbers.total() + len(refused)
    assert Counter(sent_again) == Counter(refused)
    assert failed_numbers(second.records) == numbers
    assert second.found.answered == len(counted) - numbers.total()


# Answers

WORDS = st.sampled_from(
    [
        *("error", "code", "type", "status", "message", "details", "detail", "msg", "object"),
        *("reason", "usage", "total_tokens", "response", "failed", "429", "server_error"),
        *("retryDelay", "insufficient_quota", "try again in 5ms", "Limit 1 Requested 2"),
        *("\ud800", "", f"key {KEY}"),
    ]
)
ANSWER_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


def is_answer(value: Any) -> bool:
    """False for a list of strings, which would read as a failure (see ``read_record``)."""
    return not (isinstance(value, list) and all(isinstance(item, str) for item in value))


ANSWER_BODIES = st.one_of(
    ANSWER_VALUES.filter(is_answer).map(lambda value: json.dumps(value).encode()),
    ANSWER_VALUES.filter(is_answer).map(lambda value: json.dumps(value, indent=1).encode("utf-16")),
    ANSWER_VALUES.filter(is_answer).map(lambda value: gzip.compress(json.dumps(value).encode())),
    st.dictionaries(st.just("error"), ANSWER_VALUES).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
    st.sampled_from(
        [
            *(b"", b"<html>", b"data: {}\n\n", b"[" * 5000, b'{"n": ' + b"7" * 5000 + b"}"),
            *(BOM + b"{}", b'{"a": "\xff"}', b"{}" + b" " * 100_000, KEY.encode() * 3, b"\0\0\0{"),
        ]
    ),
)
STATUSES = st.sampled_from(
    [200, 200, 200, 201, 204, 302, 304, 400, 401, 402, 403, 408, 413, 429, 429, 498, 500, 503, 529]
) | st.integers(0, 1100)
HEADERS = st.tuples(
    st.sampled_from(
        [
            *(
                "Retry-After",
                "retry-after-ms",
                "Date",
                "x-should-retry",
                "Content-Type",
                "Location",
            ),
            *("Set-Cookie", "Content-Encoding", "Content-Encoding", "Connection", "X", "Trailer"),
            *("x-request-id", "Content-Length", "Transfer-Encoding", "", "A b"),
        ]
    ),
    st.sampled_from(
        [
            *("0", "0.01", "5", "-1", "nan", "inf", "1e999", "9" * 400, "10ms", "true", "false"),
            *("Tue, 24 Nov 2026 09:00:00 GMT", "2026-11-24T09:00:00Z", "0001-01-01", "gzip"),
            *("deflate", "br, zstd", "gzip, " * 9 + "gzip", "identity", "text/event-stream"),
            *("text/html; charset=utf-7", "a=b; expires=x; domain=.", "http://[", "close", ""),
            *("keep-alive", "chunked", "7, 8", "\u00ff\u0080", KEY),
        ]
    )
    | st.text(st.characters(max_codepoint=255), max_size=10),
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """The bytes of an answer, well framed or not."""
    body, status = draw(ANSWER_BODIES), draw(STATUSES)
    headers = [f"{name}: {value}\r\n" for name, value in draw(st.lists(HEADERS, max_size=4))]
    if body[:2] == b"\x1f\x8b":
        headers.append("Content-Encoding: gzip\r\n")
    framing = draw(st.sampled_from(["length", "length", "length", "chunked", "close"]))
    if framing == "length":
        headers.append(f"Content-Length: {len(body)}\r\n")
    elif framing == "chunked":
        headers.append("Transfer-Encoding: chunked\r\n")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    head = f"HTTP/1.1 {status:03} reason\r\n{''.join(headers)}\r\n".encode("latin-1")
    return head + body


@st.composite
def torn_answers(draw: st.DrawFn) -> bytes:
    """An answer that ends before its end, or has other bytes in it."""
    data = draw(answers())
    start = draw(st.integers(0, len(data)))
    return data[:start] + draw(st.binary(max_size=4)) + draw(st.sampled_from([b"", data[start:]]))


RAW_ANSWERS = st.one_of(answers(), answers(), torn_answers(), st.binary(max_size=40))
REQUESTS = [
    {"messages": [{"role": "user", "content": "hello"}]},
    {"messages": [], "metadata": {"row": 1}},
    {"custom_id": "one", "body": {"messages": [{"role": "user", "content": "hello"}]}},
]


@pytest.mark.acceptance
@settings(max_examples=100)
@given(sequence=st.lists(RAW_ANSWERS, min_size=1, max_size=6))
def test_any_answers_end_in_order(stage: Stage, log: Log, sequence: list[bytes]) -> None:
    """No answer raises more than a stop, or keeps a request from its record, or shows the key."""
    left = deque(sequence)

    def play(visit: Visit) -> None:
        try:
            data = left.popleft()
        except IndexError:
            answer(visit)
            return
        visit.sock.sendall(data)
        visit.sock.close()

    log.messages.clear()
    stage.play = play
    with tempfile.TemporaryDirectory() as folder:
        source = write_lines(Path(folder, "in.jsonl"), REQUESTS)
        first = process(stage, source)
        assert not any(KEY in text for text in log.messages)
        failed = [record for record in first.records if has_failed(record)]
        assert len(failed) == first.found.failed
        assert not any(KEY in json.dumps(record) for record in failed)
        left.clear()
        last = process(stage, source)
    assert not last.stopped
    assert last.found.ok


def has_failed(record: Any) -> bool:
    """True for the record of a failure, in either format."""
    if isinstance(record, dict):
        status = (record["response"] or {"status_code": 200})["status_code"]
        return record["error"] is not None or status >= 400
    return isinstance(record[1], list) and not is_answer(record[1])
