"""The order of a job's requests, put together until it is short."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.planning.job.trace import Load, Trace

_MOST = 16_384


def trace(groups: list[int], number: int = 0) -> Trace:
    made = Trace()
    for at, group in enumerate(groups, number):
        made.add(group, 1.0, float(at), 1.0)
    return made


def sums(loads: list[Load]) -> dict[int, tuple[float, float, float]]:
    """Requests and tokens by group."""
    found: dict[int, Counter[str]] = {}
    for load in loads:
        found.setdefault(load.group, Counter()).update(
            {"requests": load.requests, "inputs": load.input_tokens, "outputs": load.output_tokens}
        )
    return {g: (c["requests"], c["inputs"], c["outputs"]) for g, c in found.items()}


def test_a_short_job_keeps_each_request() -> None:
    """In its order, with its own tokens."""
    loads = trace([0, 1, 0]).loads([2.0, 3.0])
    assert loads == [Load(0, 1, 0, 1), Load(1, 1, 3, 1), Load(0, 1, 4, 1)]


def test_a_long_job_stays_short_and_keeps_its_sums_and_its_order() -> None:
    """The second half is of another group."""
    count = 5 * _MOST
    loads = trace([0] * count + [1] * count).loads([1.0, 1.0])
    assert len(loads) <= _MOST + 2
    numbers = range(2 * count)
    assert sums(loads) == {
        0: (count, sum(numbers[:count]), count),
        1: (count, sum(numbers[count:]), count),
    }
    assert [load.group for load in loads] == sorted(load.group for load in loads)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60))
def test_two_parts_become_the_whole(one: list[int], other: list[int]) -> None:
    """With the numbers of the groups that they have in the first."""
    whole = trace(one + [3 - group for group in other])
    first = trace(one)
    first.extend(trace(other, len(one)), [3, 2, 1, 0])
    assert sums(first.loads([1.0] * 4)) == sums(whole.loads([1.0] * 4))
