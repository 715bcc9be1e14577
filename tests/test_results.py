"""The results files of a job: opened together, read for what is answered, and what is left to send."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel_processor.appendfile import AppendFile
from parallel_processor.counters import Counters
from parallel_processor.exceptions import ResultsFileError, StopRequested
from parallel_processor.filejob import unanswered
from parallel_processor.formats import parse_line
from parallel_processor.models import Request
from parallel_processor.results import open_files, prepare
from parallel_processor.resume import AnsweredRequests

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


def nothing() -> None:
    """Find no reason to stop."""


def prepared(
    save: Path, errors: Path | None = None, *, overwrite: bool = False, keep_failures: bool = False
) -> AnsweredRequests:
    """What the files say, which are mended afterwards."""
    with open_files(save, errors) as files:
        return prepare(files, overwrite=overwrite, keep_failures=keep_failures, check=nothing)


@pytest.fixture
def save(tmp_path: Path) -> Path:
    """Where the results are."""
    return tmp_path / "results.jsonl"


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    """Where the failures are."""
    return tmp_path / "errors.jsonl"


def is_free(path: Path) -> bool:
    """True if no process has the file."""
    try:
        AppendFile(path).close()
    except ResultsFileError:
        return False
    return True


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/dev/fd"))


def test_the_files_are_ours_while_they_are_open(save: Path, errors: Path) -> None:
    """Both are made and locked, and free behind the block, however that ends."""
    with open_files(save, errors) as files:
        assert [file.path for file in files] == [save, errors]
        assert not is_free(save)
        assert not is_free(errors)
    assert is_free(save)
    with pytest.raises(KeyboardInterrupt), open_files(save, None) as files:
        assert [file.path for file in files] == [save]
        raise KeyboardInterrupt
    assert is_free(save)


def test_nothing_stays_open_if_one_cant_be_opened(save: Path, errors: Path) -> None:
    """An errors file of somebody else's costs no lock on the results."""
    before = descriptors()
    theirs = AppendFile(errors)
    with pytest.raises(ResultsFileError, match="another process"), open_files(save, errors):
        raise AssertionError("it isn't ours")
    theirs.close()
    assert is_free(save)
    assert descriptors() == before


def test_answers_of_both_files_count(save: Path, errors: Path) -> None:
    """Whatever file a record is in, good ones stay and failures are sent again."""
    save.write_bytes(good(1) + bad(2) + good(3)[:-5])
    errors.write_bytes(bad(4) + good(5))
    answered = prepared(save, errors)
    assert [answered.take(request(number)) for number in range(1, 6)] == [
        *(True, False, False, False, True)
    ]
    assert (save.read_bytes(), errors.read_bytes()) == (good(1), good(5))


def test_failures_that_are_kept_stay(save: Path, errors: Path) -> None:
    """They stand for their requests as answers do, each in its file."""
    save.write_bytes(good(1) + bad(2))
    errors.write_bytes(bad(4))
    answered = prepared(save, errors, keep_failures=True)
    assert (save.read_bytes(), errors.read_bytes()) == (good(1) + bad(2), bad(4))
    kept = answered.kept_failures
    assert [kept.take(request(number)) for number in (1, 2, 4)] == [False, True, True]


def test_overwriting_starts_afresh(save: Path, errors: Path) -> None:
    """Both files are emptied, even of lines that are no records."""
    save.write_bytes(b"a letter to my grandmother\n")
    errors.write_bytes(bad(1) + good(2))
    answered = prepared(save, errors, overwrite=True, keep_failures=True)
    assert save.read_bytes() == errors.read_bytes() == b""
    assert not answered.take(request(2))
    assert (answered.answered, answered.failed) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_has_no_answers(save: Path, overwrite: bool) -> None:
    """What can't be read back is neither read nor cut."""
    os.mkfifo(save)
    reader = os.open(save, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert not prepared(save, overwrite=overwrite).take(request(1))
    finally:
        os.close(reader)


def test_a_file_of_something_else_is_refused(save: Path) -> None:
    """Nobody's data are mended."""
    save.write_bytes(b"a letter to my grandmother\n")
    with pytest.raises(ResultsFileError, match="holds no records"):
        prepared(save)
    assert save.read_bytes() == b"a letter to my grandmother\n"


@pytest.mark.parametrize(
    ("keep_failures", "words"), [(False, "are sent again"), (True, "stay as they are")]
)
def test_what_was_found_is_said(
    save: Path, errors: Path, caplog: pytest.LogCaptureFixture, keep_failures: bool, words: str
) -> None:
    """The sums of both files, once, with what becomes of them."""
    save.write_bytes(good(1) * 1500 + bad(2) + b"a remark\n")
    errors.write_bytes(bad(3) * 2)
    with caplog.at_level(logging.INFO, logger="parallel_processor"):
        prepared(save, errors, keep_failures=keep_failures)
    assert caplog.messages == [
        f"{save} has 1,500 answers",
        f"3 requests that failed before {words}",
        "1 lines of the results are no records; they stay",
    ]


def test_nothing_is_said_of_nothing(save: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A first run finds nothing to tell."""
    with caplog.at_level(logging.INFO, logger="parallel_processor"):
        prepared(save)
    assert caplog.messages == []


def test_the_reading_can_be_stopped(save: Path) -> None:
    """A stop while a long file is read leaves it as it was."""
    content = bad(1) + good(2) * 1500
    save.write_bytes(content)
    checks = iter([None, StopRequested("enough")])

    def check() -> None:
        cause = next(checks)
        if cause is not None:
            raise cause

    with pytest.raises(StopRequested), open_files(save, None) as files:
        prepare(files, overwrite=False, keep_failures=False, check=check)
    assert save.read_bytes() == content
    assert is_free(save)


def test_what_is_answered_is_not_sent(save: Path) -> None:
    """What is left is in the input's order, and what isn't is counted."""
    save.write_bytes(good(1) + bad(2) + good(3))
    answered, counters = prepared(save, keep_failures=True), Counters()
    requests = iter([request(number) for number in (0, 1, 2, 3, 4)])
    left = list(unanswered(requests, answered, counters, lambda: False))
    assert [each.number for each in left] == [1, 5]
    summary = counters.summary(0.0)
    assert (summary.already_answered, summary.already_failed) == (2, 1)


def test_equal_lines_need_as_many_answers(save: Path) -> None:
    """Of three equal lines with one answer and one failure that stays, one is sent."""
    save.write_bytes(good(1) + bad(1))
    answered, counters = prepared(save, keep_failures=True), Counters()
    requests = iter([request(1) for _ in range(3)])
    assert len(list(unanswered(requests, answered, counters, lambda: False))) == 1


def test_a_stop_ends_the_reading_of_what_is_answered(save: Path) -> None:
    """Millions of answered lines are read without a request that is sent, and a stop ends that."""
    save.write_bytes(good(1) * 10)
    answered, counters = prepared(save), Counters()
    read: list[int] = []

    def requests() -> Iterator[Request]:
        for number in range(10):
            read.append(number)
            yield request(1)

    left = unanswered(requests(), answered, counters, lambda: len(read) > 3)
    assert list(left) == []
    assert read == [0, 1, 2, 3]
    assert counters.summary(0.0).already_answered == 3


def test_the_requests_are_read_as_they_are_sent(save: Path) -> None:
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
