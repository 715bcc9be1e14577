"""Which requests of a file are still to be sent, and the threads that recording them takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
from services import NO_LIMITS, in_background, threads

from parallel_processor import Processor, WorkerProcessError
from parallel_processor.engine.file_run import unanswered
from parallel_processor.files.formats import parse_line
from parallel_processor.files.resume import AnsweredRequests, open_files, prepare
from parallel_processor.models import Request
from parallel_processor.report.counters import Counters

URL = "https://api.openai.com/v1/embeddings"


def request(number: int, **more: object) -> Request:
    """The request of a line that differs from those with other numbers."""
    return parse_line(json.dumps({"input": str(number), **more}).encode(), number + 1, URL)


def good(number: int) -> bytes:
    """The record of its answer."""
    return b'[{"input": "%d"}, {"id": "a"}]\n' % number


def bad(number: int) -> bytes:
    """The record of its failure."""
    return b'[{"input": "%d"}, ["HTTP 500"]]\n' % number


def found(save: Path, content: bytes) -> AnsweredRequests:
    """What a results file with that content answers; failures stay."""
    save.write_bytes(content)
    with open_files(save, None) as files:
        return prepare(files, keep_failures=True)


@pytest.fixture
def save(tmp_path: Path) -> Path:
    """Where the results are."""
    return tmp_path / "results.jsonl"


def test_what_is_answered_is_not_sent(save: Path) -> None:
    """What is left is in the input's order, and what isn't is counted."""
    answered, counters = found(save, good(1) + bad(2) + good(3)), Counters()
    requests = iter([request(number) for number in (0, 1, 2, 3, 4)])
    left = list(unanswered(requests, answered, counters, lambda: False))
    assert [each.number for each in left] == [1, 5]
    summary = counters.summary(0.0)
    assert (summary.already_answered, summary.already_failed) == (2, 1)


def test_equal_lines_need_as_many_answers(save: Path) -> None:
    """Of three equal lines with one answer and one failure that stays, one is sent."""
    answered, counters = found(save, good(1) + bad(1)), Counters()
    requests = iter([request(1) for _ in range(3)])
    assert len(list(unanswered(requests, answered, counters, lambda: False))) == 1


def test_a_stop_ends_the_reading_of_what_is_answered(save: Path) -> None:
    """Millions of answered lines are read without a request that is sent, and a stop ends that."""
    answered, counters = found(save, good(1) * 10), Counters()
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(10):
            read.append(number)
            yield request(1)

    left = unanswered(requests(), answered, counters, lambda: len(read) > 3)
    assert list(left) == []
    assert read == [0, 1, 2, 3]
    assert counters.summary(0.0).already_answered == 3


def test_the_requests_are_read_as_they_are_sent() -> None:
    """No line is read before somebody wants it."""
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(10):
            read.append(number)
            yield request(number)

    left = unanswered(requests(), AnsweredRequests(), Counters(), lambda: False)
    assert read == []
    next(left)
    assert read == [0]


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks for streams gets one warning, that of the first line that is sent."""
    requests = iter([request(0), request(1, stream=True, background=True), request(2, stream=True)])
    left = unanswered(requests, AnsweredRequests(), Counters(), lambda: False)
    assert len(list(left)) == 3
    assert caplog.messages == ["line 2: background, stream left out, here and below"]


@pytest.mark.parametrize("most", range(7))
def test_however_few_threads_there_are_no_paid_answer_is_lost(
    most: int, save: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either nothing is sent, and the error says why, or everything is answered and recorded."""
    start, sent = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel-processor") and len(threads()) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        sent.append(body["n"])
        return runs.ok(body)

    source = tmp_path / "requests.jsonl"
    source.write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    processor = Processor(
        request_url=runs.URL, session_factory=runs.sessions_of(answer), limits=NO_LIMITS
    )
    monkeypatch.setattr(threading.Thread, "start", refuse)
    join = in_background(lambda: processor.process_file(source, save))
    if most < 3:  # a writer, a worker and a dispatcher
        with pytest.raises(WorkerProcessError, match="can't start new thread, so nothing was sent"):
            join()
        assert sent == [] and save.read_bytes() == b""
    else:
        assert join().answered == 100
        assert save.read_bytes().count(b"\n") == 100
    assert threads() == []
