"""The join of a block's lines with the journals of its attempts, for any journals."""

from __future__ import annotations

import io
import json

from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.cluster.blocks import Block, BlockLines
from parallel_processor.cluster.parts import Records, match
from parallel_processor.options import Options

_NUMBERS = st.lists(st.integers(0, 5), max_size=10)


def record(number: int, *, ok: bool, mark: int) -> bytes:
    """A record of the request ``number``; ``mark`` tells answers to equal requests apart."""
    answer = {"embedding": [1.0], "mark": mark} if ok else [f"HTTP 500 {mark}"]
    return json.dumps([{"input": number}, answer]).encode() + b"\n"


@given(
    _NUMBERS,
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8), max_size=3),
    st.data(),
)
def test_each_line_gets_a_record_of_its_own(
    wanted: list[int], journals: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    """A line's record is of its request, and no record serves two lines; good ones are preferred."""
    # Each journal begins with a copy of the one before it, and may end in the middle of a line.
    text = b"".join(json.dumps({"input": number}).encode() + b"\n" for number in wanted)
    records, earlier, mark = Records(), b"", 0
    good: dict[int, int] = {}
    for journal in journals:
        content = earlier
        for number, ok in journal:
            mark += 1
            content += record(number, ok=ok, mark=mark)
        torn = content[: data.draw(st.integers(len(earlier), len(content)))]
        whole = torn[: torn.rfind(b"\n") + 1]
        for line in whole[len(earlier) :].splitlines():
            request, answer = json.loads(line)
            good[request["input"]] = good.get(request["input"], 0) + isinstance(answer, dict)
        records.add(io.BytesIO(torn))
        earlier = whole
    lines = BlockLines(io.BytesIO(text), Block(0, len(text)), "in")
    found = list(match(lines, Options(), records))
    assert len(found) == len(wanted)
    taken = [each.place for each in found if each is not None]
    assert len(set(taken)) == len(taken)
    for number, each in zip(wanted, found, strict=True):
        if each is not None:
            request, answer = json.loads(records.read(each.place))
            assert request == {"input": number}
            assert each.ok == isinstance(answer, dict)
    for number in set(wanted):
        matches = [each for other, each in zip(wanted, found, strict=True) if other == number]
        ok = sum(each is not None and each.ok for each in matches)
        assert ok == min(len(matches), good.get(number, 0))
