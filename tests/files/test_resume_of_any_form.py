"""Runs of any form that go on after any stop: each line has one good record, and none is paid for twice."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from commands import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import URL, sessions_of
from services import NO_LIMITS

from parallel_processor import Processor, read_results, verify_results
from parallel_processor.exceptions import InputFileError

NUMBERS = st.integers(0, 4)


class Round(NamedTuple):
    """One run, and what happens to the files before it."""

    form: Any
    ordered: bool
    removed: list[int]  # which lines go
    added: list[tuple[int, Any]]  # which come, and in front of which
    failing: set[int]  # which requests are refused
    cut: float  # at which part of the results they end


def row(number: int) -> dict[str, Any]:
    """A Batch row."""
    return {"custom_id": f"row-{number}", "body": body(10 + number)}


def named(number: int) -> dict[str, Any]:
    """A cookbook line with an id of its own."""
    return body(20 + number) | {"metadata": {"custom_id": f"own-{number}", "x": [number]}}


def body(number: int) -> dict[str, Any]:
    """A cookbook line without an id; the body of each request."""
    return {"model": "m", "input": "text", "n": number}


LINES = st.builds(lambda make, number: make(number), st.sampled_from([row, named, body]), NUMBERS)
ROUNDS = st.builds(
    Round,
    form=st.sampled_from(["auto", "batch", "cookbook"]),
    ordered=st.booleans(),
    removed=st.lists(st.integers(0, 9), max_size=2),
    added=st.lists(st.tuples(st.integers(0, 9), LINES), max_size=2),
    failing=st.sets(st.sampled_from([0, 1, 10, 11, 20, 21]), max_size=2),
    cut=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1),
)


def number_in(line: Any) -> int:
    """Which request a line is."""
    return int(line.get("body", line)["n"])


def answered_in(path: Path) -> Counter[int]:
    """What has a good record, however it ends."""
    if not path.exists():
        return Counter()
    return Counter(int(each.response["answer"]) for each in read_results(path) if each.ok)


@settings(max_examples=20)
@given(
    lines=st.lists(LINES, min_size=1, max_size=8),
    rounds=st.lists(ROUNDS, min_size=2, max_size=4),
    ending=st.sampled_from(["", ".gz"]),
)
def test_any_stops_and_changes_end_with_each_line_answered_once(
    lines: list[Any], rounds: list[Round], ending: str
) -> None:
    """In any order of forms. A line that has nothing but its number may be refused, never mixed up."""
    sent: Counter[int] = Counter()
    uses_numbers = any(each.form == "batch" for each in rounds)  # as ids of lines that may move
    failing: set[int] = set()

    def answer(asked: dict[str, Any]) -> tuple[int, Any]:
        if asked["n"] in failing:
            return 400, {"error": {"message": "no", "type": "invalid_request_error"}}
        sent[asked["n"]] += 1
        return 200, {"answer": asked["n"], "embedding": [1.0]}

    with (
        tempfile.TemporaryDirectory() as name,
        Processor(
            request_url=URL, limits=NO_LIMITS, session_factory=sessions_of(answer), max_workers=2
        ) as processor,
    ):
        folder = Path(name)
        source, save = folder / "in.jsonl", folder / f"out.jsonl{ending}"
        for number, each in enumerate([*rounds, rounds[-1]]):
            is_last = number == len(rounds)
            if not is_last:
                for place in each.removed:
                    del lines[place : place + 1]
                for place, line in each.added:
                    lines.insert(place, line)
                # What replaces a packed file is never torn: only what a first run appends may be.
                if save.exists() and (not ending or number == 1):
                    data = save.read_bytes()
                    save.write_bytes(data[: int(each.cut * len(data))])
            failing.clear()
            failing.update(() if is_last else each.failing)
            write_lines(source, lines)
            before = answered_in(save)
            sent.clear()
            wanted = Counter(map(number_in, lines))
            try:
                processor.process_file(source, save, output_format=each.form, ordered=each.ordered)
            except InputFileError:
                assert any("metadata" not in line and "body" not in line for line in lines)
                return
            left = wanted - Counter({n: wanted[n] for n in failing})
            assert sent <= left
            if not ending:  # what a packed file shows behind its last flush is not kept
                due = left - before  # a line that moved to a number without a record is sent again
                assert all(sent[n] == due[n] for n in wanted if n >= 10 or not uses_numbers)
        found = verify_results(source, save)  # an equal line that went leaves its record
        assert (found.answered, found.failed, found.torn) == (len(lines), 0, 0)
