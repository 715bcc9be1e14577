"""How long answers turn out to be."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.learned import OutputSizes

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails


def learned(sizes: list[int]) -> int | None:
    """What is expected after answers of these sizes."""
    found = OutputSizes()
    for size in sizes:
        found.note("m", size)
    return found.expected("m")


def test_nothing_is_expected_before_ten_answers() -> None:
    """Nine answers tell nothing, and the tenth does."""
    assert learned([]) is None
    assert learned([5] * 9) is None
    assert learned([5] * 10) == 5


def test_one_long_answer_in_ten_is_left_out() -> None:
    """The expectation is what nine of ten answers stayed within."""
    assert learned([100, *[10] * 8, 20]) == 20
    assert learned([100, 90, *[10] * 8]) == 90


@given(st.lists(st.integers(0, 10**6), min_size=10, max_size=400))
def test_nine_of_ten_recent_answers_stay_within_it(sizes: list[int]) -> None:
    """It is the least that nine of ten of the newest 200 stayed within, as of the last full ten."""
    recent = sizes[: len(sizes) // 10 * 10][-200:]
    expected = learned(sizes)
    assert expected in recent
    assert sum(size <= expected for size in recent) >= 0.9 * len(recent)
    assert sum(size < expected for size in recent) < 0.9 * len(recent)


@pytest.mark.parametrize(("old", "new"), [(1000, 10), (10, 1000)])
def test_what_was_long_ago_is_forgotten(old: int, new: int) -> None:
    """Two hundred new answers leave nothing of the old ones, in either direction."""
    assert learned([old] * 500 + [new] * 200) == new


def test_models_are_told_apart() -> None:
    """Each key has its own expectation."""
    found = OutputSizes()
    for _ in range(10):
        found.note(("chat", "a"), 5)
        found.note(("chat", "b"), 500)
        found.note(("responses", "a"), 50)
    keys = [("chat", "a"), ("chat", "b"), ("responses", "a"), ("responses", "b")]
    assert [found.expected(key) for key in keys] == [5, 500, 50, None]


def test_answers_without_output_are_sizes_like_others() -> None:
    """An expectation of nothing isn't no expectation."""
    assert learned([0] * 10) == 0


def test_no_more_than_256_models_are_learned() -> None:
    """A file that names a new model in each line takes no memory; those that are known go on."""
    found = OutputSizes()
    for model in range(300):
        for _ in range(10):
            found.note(model, model)
    assert [found.expected(model) for model in (0, 255, 256, 299)] == [0, 255, None, None]
    for _ in range(200):
        found.note(0, 7)
    assert found.expected(0) == 7


def test_threads_lose_no_answer() -> None:
    """Ten threads that note one answer each make an expectation."""
    found, start = OutputSizes(), threading.Barrier(10)

    def note(size: int) -> None:
        start.wait(REAL_TIMEOUT_S)
        for model in range(200):
            found.note(model, size)

    with ThreadPoolExecutor(10) as pool:
        for noted in [pool.submit(note, size) for size in range(10)]:
            noted.result(REAL_TIMEOUT_S)
    assert {found.expected(model) for model in range(200)} == {8}
