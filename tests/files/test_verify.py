"""The shipped check finds each kind of fault, and accepts a correct file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import write_lines
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.exceptions import InputFileError, ResultsFileError
from parallel_processor.files.verify import Verification, verify_results

REQUESTS = [{"input": "a"}, {"input": "b"}, {"input": "b"}, {"input": "c", "metadata": {"row": 1}}]
GOOD = [
    [{"input": "b"}, {"data": 1}],
    [{"input": "c"}, {"data": 2}, {"row": 1}],
    [{"input": "a"}, {"data": 3}],
    [{"input": "b"}, {"data": 4}],
]


def verify(
    folder: Path, requests: list[object], records: list[object], tail: str = ""
) -> Verification:
    """The verification of ``records``, with ``tail`` behind them."""
    source = write_lines(folder / "in.jsonl", requests)
    results = write_lines(folder / "out.jsonl", records)
    with results.open("a") as file:
        file.write(tail)
    return verify_results(source, results)


def faults(found: Verification) -> dict[str, int]:
    """The counts that aren't zero, without the lines and the answers."""
    names = ("failed", "missing", "doubled", "torn", "foreign")
    return {name: getattr(found, name) for name in names if getattr(found, name)}


def test_a_complete_file_is_right(tmp_path: Path) -> None:
    """Every line has one good record, in any order."""
    found = verify(tmp_path, REQUESTS, GOOD)
    assert found.ok and faults(found) == {}
    assert (found.lines, found.answered) == (4, 4)


@pytest.mark.parametrize(
    ("records", "tail", "expected"),
    [
        (GOOD[1:], "", {"missing": 1}),
        ([*GOOD, GOOD[0]], "", {"doubled": 1}),
        ([*GOOD[1:], [{"input": "b"}, ["HTTP 500"]]], "", {"failed": 1}),
        ([*GOOD, [{"input": "b"}, ["HTTP 500"]]], "", {"doubled": 1}),
        ([*GOOD[1:], [{"input": "z"}, {}]], "", {"missing": 1, "foreign": 1}),
        (GOOD, '[{"input": "a"', {"torn": 1}),
        (GOOD[:3], json.dumps(GOOD[3]), {"torn": 1, "missing": 1}),
        (GOOD, '[{"input": "a"}, [{"input": "b"}, {}]\n', {"torn": 1}),
        ([], "", {"missing": 4}),
    ],
)
def test_each_fault_is_counted(
    tmp_path: Path, records: list[object], tail: str, expected: dict[str, int]
) -> None:
    """A fault makes the file wrong and is named by its kind."""
    found = verify(tmp_path, REQUESTS, records, tail)
    assert faults(found) == expected
    assert not found.ok


@pytest.mark.parametrize(
    "record", [[{"input": "z"}, {"data": 1}], [{"input": "z"}, ["HTTP 500"]], [{"input": "c"}, {}]]
)
def test_records_of_other_requests_are_merely_more(tmp_path: Path, record: object) -> None:
    """Where every line has its answer, they are counted, and the file is right."""
    found = verify(tmp_path, REQUESTS, [*GOOD, record])
    assert faults(found) == {"foreign": 1}
    assert found.ok


def test_an_errors_file_counts_too(tmp_path: Path) -> None:
    """Failures may lie in a file of their own."""
    source = write_lines(tmp_path / "in.jsonl", REQUESTS)
    results = write_lines(tmp_path / "out.jsonl", GOOD[:3])
    errors = write_lines(tmp_path / "errors.jsonl", [[{"input": "b"}, ["timeout"]]])
    found = verify_results(source, results, errors)
    assert faults(found) == {"failed": 1}
    assert (found.lines, found.answered) == (4, 3)


def test_a_line_that_cant_be_sent_has_its_failed_record(tmp_path: Path) -> None:
    """A bad line's record belongs to it, though it is no request."""
    source = tmp_path / "in.jsonl"
    source.write_text("not json\n", "utf-8")
    results = write_lines(tmp_path / "out.jsonl", [["not json", ["line 1: not JSON"]]])
    assert faults(verify_results(source, results)) == {"failed": 1}


def test_files_that_cant_be_read_are_named(tmp_path: Path) -> None:
    """A missing file is an error, not an empty one."""
    source = write_lines(tmp_path / "in.jsonl", REQUESTS)
    with pytest.raises(InputFileError, match="nowhere"):
        verify_results(tmp_path / "nowhere", source)
    with pytest.raises(ResultsFileError, match="nowhere"):
        verify_results(source, tmp_path / "nowhere")


@given(
    st.lists(st.sampled_from("abc")), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()))
)
def test_the_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], records: list[tuple[str, bool]]
) -> None:
    """Every line is answered, failed or missing, and every record is used, doubled or foreign."""
    found = verify(
        tmp_path_factory.mktemp("verify"),
        [{"input": line} for line in lines],
        [[{"input": name}, {"data": 1} if ok else ["timeout"]] for name, ok in records],
    )
    assert found.lines == len(lines) == found.answered + found.failed + found.missing
    assert len(records) == found.answered + found.failed + found.doubled + found.foreign
    for name in "abc":
        good = sum(1 for other, ok in records if ok and other == name)
        if good < lines.count(name):
            assert not found.ok
