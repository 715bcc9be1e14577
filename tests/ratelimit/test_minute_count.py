"""What is counted for progress and reports where nothing limits it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.ratelimit.minute_count import MinuteCount
from parallel_processor.ratelimit.quota import WINDOW_S, Costs


def costs(tokens: float) -> Costs:
    """Those of one request."""
    return (1.0, tokens, tokens, 0.0)


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(0, 1000)), max_size=200))
def test_the_last_minute_is_what_was_admitted_in_it(admitted: list[tuple[float, int]]) -> None:
    """As for a limit: to a 1,024th of the window, and never less than the last 60 seconds."""
    count, now, times = MinuteCount(), 0.0, []
    for seconds, tokens in admitted:
        now += seconds
        times.append((now, tokens))
        count.add(1.0, tokens, now)
    found = count.in_window(now)
    surely = [tokens for at, tokens in times if at > now - WINDOW_S]
    at_most = [tokens for at, tokens in times if at > now - WINDOW_S - 0.1]
    assert len(surely) <= found["requests"] <= len(at_most)
    assert sum(surely) <= found["tokens"] <= sum(at_most)


def test_what_was_used_is_counted_instead_of_what_was_reserved() -> None:
    """Less is taken from the time of admission; more counts from now on."""
    count = MinuteCount()
    slot = count.add(1.0, 100.0, 0.0)
    count.correct(costs(100.0), costs(40.0), slot, 5.0)
    assert count.in_window(5.0) == {"requests": 1.0, "tokens": 40.0}
    count.correct(costs(40.0), costs(70.0), slot, 30.0)
    assert count.in_window(30.0) == {"requests": 1.0, "tokens": 70.0}
    assert count.in_window(WINDOW_S + 1.0) == {"requests": 0.0, "tokens": 30.0}
    assert not count.is_empty(WINDOW_S + 1.0)
    assert count.is_empty(WINDOW_S + 31.0)


def test_a_request_that_was_never_sent_is_not_counted() -> None:
    """All of it is taken back."""
    count = MinuteCount()
    slot = count.add(1.0, 100.0, 0.0)
    count.correct(costs(100.0), (0.0, 0.0, 0.0, 0.0), slot, 5.0)
    assert count.in_window(5.0) == {"requests": 0.0, "tokens": 0.0}


def test_a_request_that_left_late_counts_from_then_on() -> None:
    """It moves to the slot of its sending, and leaves the window with that one."""
    count = MinuteCount()
    slot = count.add(1.0, 100.0, 0.0)
    count.add(1.0, 10.0, 20.0)
    moved = count.postpone(costs(100.0), slot, 20.0, 21.0)
    assert moved is not slot
    assert count.in_window(WINDOW_S + 1.0) == {"requests": 2.0, "tokens": 110.0}
    gone = count.add(1.0, 7.0, WINDOW_S + 2.0)
    late_s = 3 * WINDOW_S
    assert (
        count.postpone(costs(7.0), gone, late_s - 1.0, late_s) is gone
    )  # nothing counts it any more
    assert count.is_empty(late_s)


def test_its_memory_is_bounded() -> None:
    """However many requests there are, and though nobody asks."""
    count = MinuteCount()
    for number in range(100_000):
        count.add(1.0, 1.0, number * 0.01)
    assert len(count._slots) <= 1026
