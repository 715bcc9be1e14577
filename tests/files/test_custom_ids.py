"""Batch rows that share a custom_id: two different ones end the run, equal ones are told."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from raw_server import RawServer, answer_all
from services import NO_LIMITS, processor

from parallel_processor.api import process_file
from parallel_processor.exceptions import InputFileError
from parallel_processor.files.custom_ids import CustomIds
from parallel_processor.files.verify import verify_results
from parallel_processor.models import Request


def row(custom_id: str, text: str = "same", **more: Any) -> dict[str, Any]:
    """A Batch row."""
    return {"custom_id": custom_id, "body": {"model": "m", "input": text}, **more}


def requested(custom_id: str, number: int, payload: bytes = b"{}", url: str = "u") -> Request:
    """The request of a row."""
    return Request(body={}, custom_id=custom_id, payload=payload, url=url, number=number)


def test_a_row_is_found_among_many() -> None:
    """The first line with the id is named, and whether URL and body are equal, too."""
    ids = CustomIds()
    for number in range(1, 20_001):
        assert ids.add(requested(f"id-{number}", number)) is None
    for number in (1, 777, 20_000):
        assert ids.add(requested(f"id-{number}", 30_000)) == (number, True)
        assert ids.add(requested(f"id-{number}", 30_000, b"{1}")) == (number, False)
        assert ids.add(requested(f"id-{number}", 30_000, url="v")) == (number, False)
    assert ids.add(requested("\ud800", 4_000_000_000)) is None
    assert ids.add(requested("\ud800", 1)) == (4_000_000_000, True)


def test_a_row_takes_less_than_24_bytes() -> None:
    """However many rows there are, above a constant."""
    ids, sizes = CustomIds(), []
    for first in (0, 50_000):
        for number in range(first, first + 50_000):
            ids.add(requested(f"id-{number}", number))
        sizes.append(sum(sys.getsizeof(bucket) for bucket in ids._buckets))
    assert 15 <= (sizes[1] - sizes[0]) / 50_000 < 24


def test_two_requests_under_one_id_end_this_run_and_the_next(tmp_path: Path) -> None:
    """Both lines are named, the second is never sent, and the check names them, too."""
    source, save = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [row("x", "one"), row("y"), row("x", "two"), row("z")])
    with RawServer(answer_all) as server:
        account: Any = {"request_url": f"{server.url}/v1/embeddings", "limits": NO_LIMITS}
        for _ in range(2):
            with pytest.raises(InputFileError, match=r"line 1 and line 3 .* custom_id 'x'"):
                process_file(source, save, **account)
    assert sorted(line["custom_id"] for line in read_lines(save)) == ["x", "y"]
    found = verify_results(source, save)
    assert (found.ok, found.conflicts) == (False, ((1, 3),))


def test_equal_rows_are_both_answered_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their answers can't be mixed up."""
    caplog.set_level(logging.WARNING)
    source, save = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, [row("x"), row("y"), row("x"), row("y")])
    with RawServer(answer_all) as server:
        summary = process_file(
            source, save, request_url=f"{server.url}/v1/embeddings", limits=NO_LIMITS
        )
    assert summary.answered == 4
    warnings = [record.getMessage() for record in caplog.records]
    assert [text for text in warnings if "custom_id" in text] == [
        "line 1 and line 3 are the same request, custom_id 'x'; each is sent, here and below"
    ]
    assert verify_results(source, save).ok


def test_a_program_may_use_an_id_twice() -> None:
    """Outcomes of an iterable come with their request, so nothing can be mixed up."""
    requests = [Request(body={"model": "m", "input": text}, custom_id="x") for text in ("a", "b")]
    with RawServer(answer_all) as server, processor(server.url) as made:
        assert [outcome.ok for outcome in made.map(requests)] == [True, True]
