"""Equal lines and shared ids, found by their hashes."""

from __future__ import annotations

from parallel_processor.planning.job.equal_lines import EqualLines, Repeated, RowIds


def test_each_further_equal_line_counts() -> None:
    """In its group, with its size."""
    lines = EqualLines()
    for key, group, tokens in [(7, 0, 10), (7, 0, 10), (8, 1, 5), (7, 0, 10), (72, 1, 5)]:
        lines.add(key, group, tokens)
    assert lines.repeated(2) == [Repeated(2, 20), Repeated()]


def test_lines_of_two_parts_are_compared() -> None:
    """The groups of the second have other numbers in the first."""
    first, second = EqualLines(), EqualLines()
    first.add(7, 1, 10)
    second.add(7, 0, 10)
    second.add(9, 0, 1)
    first.extend(second, [1])
    assert first.repeated(2) == [Repeated(), Repeated(1, 10)]


def test_rows_that_share_an_id_conflict_only_if_they_differ() -> None:
    """Wherever the second one is."""
    ids, more = RowIds(), RowIds()
    ids.add("a", 1, 1)
    ids.add("b", 2, 2)
    ids.add("a", 1, 3)
    more.add("b", 9, 1)
    ids.extend(more, lambda line: line + 3)
    assert list(ids.conflicts()) == [(2, 4)]
