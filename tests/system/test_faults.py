"""The fault matrix: whatever a server does to a request, what must come of it, and of those beside it."""

from __future__ import annotations

import gzip
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from raw_server import ANSWER, RawServer, Visit, head_of

from parallel_processor import (
    Limits,
    Processor,
    RetryPolicy,
    RunStoppedError,
    Summary,
    read_results,
)
from parallel_processor.files.verify import verify_results

KEY = "sk-test-0123456789abcdef"
MAX_ATTEMPTS = 3
SOON_S = 0.05  # what a server asks to wait for
TIMEOUT_S = 0.3  # of an exchange that has no end
MAX_RESPONSE_BYTES = 100_000
EVERY = 1_000_000  # attempts

OTHERS = [{"model": "m", "input": f"text {number}", "metadata": number} for number in range(4)]
FAULTY = {"model": "m", "input": "faulty"}
FAULTY_ROW = {"custom_id": "the row", "body": {"model": "m", "input": "the row that is faulty"}}
FAULTY_COUNT = 2
ROWS = [*OTHERS[:2], FAULTY, FAULTY_ROW, *OTHERS[2:]]

Play = Callable[[Visit], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What must come of a faulty request: after how many attempts, as which kind of failure.

    Without a ``kind`` it is answered. An error's text begins with the kind, or with ``text``.
    ``stop`` is a part of why the run stops, if it does: the request then stays without a record.
    ``attempts`` is ``None`` where time decides, and at least 2.
    """

    attempts: int | None
    kind: str = ""
    text: str = ""
    stop: str = ""


ANSWERED_AT_ONCE = End(attempts=1)
ANSWERED_THEN = End(attempts=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a server does, and what comes of it if it does so once, and if it does so every time.

    ``refused`` faults are rate limits; ``wait_s`` is how long one asks to wait before the next attempt.
    """

    play: Play
    once: End
    always: End
    refused: bool = False
    wait_s: float = 0.0
    timeout_s: float = 20.0


def retried(play: Play, kind: str, **more: float) -> Fault:
    """A fault that counts towards the attempts."""
    always = End(attempts=MAX_ATTEMPTS, kind=kind)
    return Fault(play=play, once=ANSWERED_THEN, always=always, **more)


def refused(play: Play, kind: str, **more: float) -> Fault:
    """A rate limit, which doesn't count but has a deadline."""
    always = End(attempts=None, kind=kind)
    return Fault(play=play, once=ANSWERED_THEN, always=always, refused=True, **more)


def final(play: Play, kind: str, text: str = "") -> Fault:
    """A fault that no other attempt would mend."""
    end = End(attempts=1, kind=kind, text=text)
    return Fault(play=play, once=end, always=end)


def stops(play: Play, reason: str, *, refused: bool = False) -> Fault:
    """A fault of the whole account."""
    end = End(attempts=1, stop=reason)
    return Fault(play=play, once=end, always=end, refused=refused)


def harmless(play: Play) -> Fault:
    """What looks odd and is an answer."""
    return Fault(play=play, once=ANSWERED_AT_ONCE, always=ANSWERED_AT_ONCE)


# What a server may do. Each plays one answer; one that breaks the connection ends it.


def sends(status: str, body: bytes, headers: str = "") -> Play:
    """A whole answer."""
    return lambda visit: visit.answer(body, status=status, headers=headers)


def says(status: str, value: Any, headers: str = "") -> Play:
    """A whole answer with a JSON body."""
    headers += "Content-Type: application/json\r\n"
    return sends(status, json.dumps(value).encode(), headers)


def error(status: str, headers: str = "", **members: Any) -> Play:
    """An error in OpenAI's shape, which shows the key if there is no other message."""
    return says(status, {"error": {"message": f"not for {KEY}", **members}}, headers)


def bare(data: bytes) -> Play:
    """These bytes; the connection stays."""
    return lambda visit: visit.sock.sendall(data)


def writes(data: bytes = b"") -> Play:
    """These bytes, and then the connection's end."""

    def play(visit: Visit) -> None:
        visit.sock.sendall(data)
        visit.sock.shutdown(socket.SHUT_WR)
        visit.wait_for_the_end()

    return play


def resets(data: bytes = b"") -> Play:
    """These bytes, and then a TCP reset."""

    def play(visit: Visit) -> None:
        visit.sock.sendall(data)
        visit.server.closing.wait(0.02)  # so that the client has read them
        visit.reset()

    return play


def halts(data: bytes = b"") -> Play:
    """These bytes, and then nothing."""

    def play(visit: Visit) -> None:
        visit.sock.sendall(data)
        visit.wait_for_the_end()

    return play


def drips(start: bytes, drop: bytes) -> Play:
    """An answer of which a byte comes now and then, without end."""

    def play(visit: Visit) -> None:
        visit.sock.sendall(start)
        visit.drip(drop * 1000, interval_s=0.01)

    return play


def pours(start: bytes, chunk: bytes) -> Play:
    """An answer without end, as fast as it can be read."""

    def play(visit: Visit) -> None:
        visit.sock.sendall(start)
        while True:  # until the client leaves
            visit.sock.sendall(chunk)

    return play


def redirects(visit: Visit) -> None:
    """Point to another host."""
    url = visit.server.url.replace("127.0.0.1", "localhost")
    visit.answer(b"", status="307 Temporary Redirect", headers=f"Location: {url}/elsewhere\r\n")


OK = "200 OK"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = head_of(b"x" * 10_000)  # the head of more than what comes
BOMB = gzip.compress(bytes(10_000_000))
SOON = f"Retry-After: {SOON_S}\r\n"
SOON_MS = f"Retry-After-Ms: {SOON_S * 1000}\r\n"
HTML = b"<html><body>Bad gateway</body></html>"
QUOTA = {"code": "insufficient_quota", "type": "insufficient_quota"}
TOO_MUCH = ("answer too large", "the answer is larger than 100,000 bytes")
TOO_LARGE = "Request too large for m on tokens per min (TPM): Limit 100, Requested 200."

FAULTS = {
    # Statuses
    "204": retried(bare(b"HTTP/1.1 204 No Content\r\n\r\n"), "not JSON"),
    "400": final(error("400 Bad Request", type="invalid_request"), "HTTP 400 invalid_request"),
    "400 spent": stops(
        error("400 Bad Request", message="You have reached your specified API usage limits."),
        "HTTP 400: You have reached",
    ),
    "400 to retry": retried(error("400 Bad", "x-should-retry: true\r\n"), "HTTP 400"),
    "401": stops(error("401 Unauthorized", code="invalid_api_key"), "HTTP 401 invalid_api_key"),
    "401 text": stops(sends("401 Unauthorized", b"who are you?"), "HTTP 401: who are you?"),
    "402": stops(error("402 Payment Required"), "HTTP 402"),
    "402 wait": refused(error("402 Payment Required", SOON), "HTTP 402", wait_s=SOON_S),
    "403": final(error("403 Forbidden"), "HTTP 403"),
    "403 country": stops(
        error("403 Forbidden", code="unsupported_country_region_territory"), "HTTP 403 unsupported"
    ),
    "404": final(error("404 Not Found", code="model_not_found"), "HTTP 404 model_not_found"),
    "408": retried(error("408 Request Timeout"), "HTTP 408"),
    "409": retried(error("409 Conflict"), "HTTP 409"),
    "413": final(error("413 Payload Too Large"), "HTTP 413"),
    "422": final(says("422 Unprocessable", {"detail": [{"msg": "missing"}]}), "HTTP 422"),
    "425": retried(error("425 Too Early"), "HTTP 425"),
    "429": refused(error("429 Too Many", type="requests"), "HTTP 429 requests"),
    "429 empty": refused(sends("429 Too Many", b""), "HTTP 429"),
    "429 wait": refused(error("429 Too Many", SOON), "HTTP 429", wait_s=SOON_S),
    "429 wait ms": refused(error("429 Too Many", SOON_MS), "HTTP 429", wait_s=SOON_S),
    "429 hint": refused(
        error("429 Too Many", message="Please try again in 50ms."), "HTTP 429", wait_s=SOON_S
    ),
    "429 hours": stops(
        error("429 Too Many", "Retry-After: 7200\r\n"), "to wait 7,200 s", refused=True
    ),
    "429 quota": stops(error("429 Too Many", **QUOTA), "HTTP 429 insufficient_quota"),
    "429 too large": final(
        error("429 Too Many", message=TOO_LARGE, code="rate_limit_exceeded"),
        "HTTP 429 rate_limit_exceeded",
    ),
    "498": refused(error("498 Capacity"), "HTTP 498"),
    "500": retried(error("500 Oops", type="server_error"), "HTTP 500 server_error"),
    "500 wait": retried(error("500 Oops", SOON), "HTTP 500", wait_s=SOON_S),
    "500 for good": final(error("500 Oops", "x-should-retry: false\r\n"), "HTTP 500"),
    "502": retried(sends("502 Bad Gateway", HTML), "HTTP 502"),
    "503": refused(error("503 Unavailable"), "HTTP 503"),  # others are answered
    "503 wait": refused(error("503 Unavailable", SOON), "HTTP 503", wait_s=SOON_S),
    "504": retried(sends("504 Gateway Timeout", HTML), "HTTP 504"),
    "529": refused(error("529 Overloaded", type="overloaded_error"), "HTTP 529 overloaded_error"),
    "redirect": final(redirects, "HTTP 307"),
    # Connections
    "reset": retried(resets(), "connection error"),
    "reset in the head": retried(resets(b"HTTP/1.1 200"), "connection error"),
    "reset in the body": retried(resets(LONG + b'{"a": '), "connection error"),
    "close": retried(writes(), "connection error"),
    "torn": retried(writes(LONG + b'{"ok": true}'), "torn body"),
    "torn head": retried(writes(b"HTTP/1.1 200 OK\r\nContent-"), "torn body"),
    "torn chunk": retried(writes(CHUNKED + b'ff\r\n{"ok": true}'), "torn body"),
    "no last chunk": retried(writes(CHUNKED + b'c\r\n{"ok": true}\r\n'), "torn body"),
    "no chunk": retried(writes(CHUNKED + b"here it comes\r\n"), "torn body"),
    "no HTTP": retried(writes(b"SSH-2.0-OpenSSH_9.2\r\n"), "connection error"),
    "stall": retried(halts(), "timeout", timeout_s=TIMEOUT_S),
    "stall in the body": retried(halts(LONG), "timeout", timeout_s=TIMEOUT_S),
    "drip of the body": retried(drips(LONG, b" "), "timeout", timeout_s=TIMEOUT_S),
    "drip of chunks": retried(drips(CHUNKED, b"1\r\n \r\n"), "timeout", timeout_s=TIMEOUT_S),
    "drip of headers": retried(
        drips(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), "timeout", timeout_s=TIMEOUT_S
    ),
    "endless headers": retried(pours(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 99), "connection error"),
    "endless header": retried(pours(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 999), "connection error"),
    "endless informations": retried(
        pours(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99), "timeout", timeout_s=TIMEOUT_S
    ),
    "endless body": final(pours(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 9999), *TOO_MUCH),
    "endless chunks": final(pours(CHUNKED, b"5\r\n     \r\n" * 999), *TOO_MUCH),
    "gzip bomb": final(sends(OK, BOMB, "Content-Encoding: gzip\r\n"), *TOO_MUCH),
    "no gzip": retried(sends(OK, b"plain", "Content-Encoding: gzip\r\n"), "torn body"),
    # Bodies
    "text": retried(sends(OK, b"hello", "Content-Type: text/plain\r\n"), "not JSON"),
    "empty": retried(sends(OK, b""), "not JSON"),
    "broken JSON": retried(sends(OK, b'{"choices": [{"a": 1}'), "not JSON"),
    "deep JSON": retried(sends(OK, b"[" * 200 + b"]" * 200), "not JSON"),
    "stream": final(
        sends(OK, b"data: {}\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream\r\n"),
        "unexpected stream",
    ),
    "list error": final(
        says("400 Bad Request", [{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}]),
        "HTTP 400 invalid_argument",
    ),
    "flat error": final(
        says("400 Bad Request", {"object": "error", "message": "no", "code": "1300"}),
        "HTTP 400 1300",
    ),
    "detail": stops(says("401 Unauthorized", {"detail": "Unauthorized"}), "HTTP 401: Unauthorized"),
    "200 of a 500": retried(error(OK, code=500), "error in HTTP 200 500"),
    "200 of a 400": final(error(OK, code=400), "error in HTTP 200 400"),
    "200 of a 401": stops(error(OK, code=401), "error in HTTP 200 401"),
    "200 of a 429": refused(error(OK, SOON, code=429), "error in HTTP 200 429", wait_s=SOON_S),
    "200 of no money": stops(error(OK, **QUOTA), "error in HTTP 200 insufficient_quota"),
    "200 of a text": final(says(OK, {"error": "no"}), "error in HTTP 200"),
    "failed response": retried(
        says(OK, {"object": "response", "status": "failed", "error": {"code": "server_error"}}),
        "error in HTTP 200 server_error",
    ),
    "NaN": harmless(sends(OK, b'{"embedding": [1], "score": NaN}')),
    "many lines": harmless(sends(OK, b'\r\n\n{"embedding":\r\n [1]}\n')),
    "UTF-16": harmless(sends(OK, '{"embedding": ["é"]}'.encode("utf-16"))),
    "wrong type": harmless(sends(OK, ANSWER, "Content-Type: text/html\r\n")),
    "no type": harmless(sends(OK, ANSWER)),
    "list": harmless(says(OK, [{"index": 0, "embedding": [1]}])),
    "gzip": harmless(sends(OK, gzip.compress(ANSWER), "Content-Encoding: gzip\r\n")),
    "201": harmless(sends("201 Created", ANSWER)),
}


@dataclass
class Scene:
    """A server's script: what is not faulty is answered, what is gets ``play`` so many times first.

    The first fault waits until every request has come, so that it meets them all in flight.
    """

    play: Play
    times: int
    came: dict[bytes, list[float]] = field(default_factory=dict)  # when, by body
    all_here: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards came

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            with self.lock:
                times = self.came.setdefault(visit.body, [])
                times.append(time.monotonic())
                if len(self.came) == len(ROWS):
                    self.all_here.set()
            if b"faulty" in visit.body and len(times) <= self.times:
                assert self.all_here.wait(20)
                self.play(visit)
            else:
                visit.answer()

    def faulty(self) -> list[list[float]]:
        """When each of the faulty requests came."""
        return [times for body, times in self.came.items() if b"faulty" in body]


def process(processor: Processor, source: Path, save: Path) -> tuple[Summary, str]:
    """Run the file; the summary, and why the run was stopped."""
    try:
        return processor.process_file(source, save, progress=False), ""
    except RunStoppedError as error:
        assert error.summary is not None
        return error.summary, str(error)


def has_failed(record: list[Any]) -> bool:
    """True for error strings in the answer's place."""
    return isinstance(record[1], list) and all(isinstance(text, str) for text in record[1])


def errors_of(save: Path) -> list[tuple[list[str] | None, str | None]]:
    """The errors and the kind of each failed record, as far as its format has them."""
    found: list[tuple[list[str] | None, str | None]] = []
    for record, outcome in zip(read_lines(save), read_results(save), strict=True):
        if isinstance(record, dict) and not outcome.ok:
            found.append((None, outcome.error_kind))
        elif isinstance(record, list) and has_failed(record):
            found.append((record[1], None))
    return found


def check_end(end: End, scene: Scene, save: Path, summary: Summary, stop: str) -> None:
    """Hold what came of the faulty requests against what must."""
    attempts = [len(times) for times in scene.faulty()]
    if end.attempts is None:
        assert min(attempts) >= 2
    else:
        assert attempts == [end.attempts] * FAULTY_COUNT
    failed = FAULTY_COUNT if end.kind else 0
    unanswered = FAULTY_COUNT if end.stop else 0
    assert (end.stop in stop) if end.stop else (stop == "")
    assert (summary.failed, summary.unanswered) == (failed, unanswered)
    assert summary.answered == len(ROWS) - failed - unanswered
    assert summary.errors_by_kind == ({end.kind: FAULTY_COUNT} if end.kind else {})
    found = errors_of(save)
    assert len(found) == failed
    for errors, kind in found:
        assert kind in (None, end.kind)
        if errors is not None:
            assert len(errors) in attempts
            assert all(text.startswith(end.text or end.kind) for text in errors)


@pytest.mark.parametrize("times", [1, EVERY], ids=["once", "always"])
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_ends_as_it_must(name: str, times: int, tmp_path: Path) -> None:
    """The others are answered beside it, nothing leaks, and the same call does what is left."""
    fault = FAULTS[name]
    end = fault.once if times == 1 else fault.always
    source, save = write_lines(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    scene = Scene(fault.play, times)
    policy = RetryPolicy(
        max_attempts=MAX_ATTEMPTS, backoff_initial_s=0.0, pause_s=0.02, rate_limit_deadline_s=0.25
    )
    with RawServer(scene) as server:
        processor = Processor(
            request_url=f"{server.url}/v1/embeddings",
            api_key=KEY,
            limits=Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf),
            retry=policy,
            request_timeout_s=fault.timeout_s,
            max_response_bytes=MAX_RESPONSE_BYTES,
        )
        summary, stop = process(processor, source, save)
        check_end(end, scene, save, summary, stop)
        assert KEY not in save.read_text("utf-8") + stop
        found = verify_results(source, save)
        assert (summary.rate_limited > 0) == fault.refused
        assert found.answered == summary.answered
        assert (found.failed, found.missing) == (summary.failed, summary.unanswered)
        assert (found.doubled, found.torn, found.foreign) == (0, 0, 0)
        for first, *rest in scene.faulty():
            assert not rest or rest[0] - first >= fault.wait_s
        before, scene.times = len(server.heads), 0
        summary, _ = process(processor, source, save)
        assert len(server.heads) - before == summary.answered == found.failed + found.missing
    assert verify_results(source, save).ok
    assert {head.partition("\r\n")[0] for head in server.heads} == {"POST /v1/embeddings HTTP/1.1"}
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith("parallel-processor")]
