"""What a server has left of a limit: the last header, extrapolated to now."""

from __future__ import annotations

import math

import pytest

from parallel_processor.models import LimitReading
from parallel_processor.ratelimit.remaining import Remaining

LIMIT = 600.0  # ten a second


class Told:
    """A limit of 600 a minute, and answers whose headers show what remains of it."""

    def __init__(self, headroom: float = 0.0) -> None:
        self.remaining = Remaining(60.0, headroom)
        self.remaining.set_limit(LIMIT)
        self.now_s = 100.0

    def tell(
        self,
        left: float,
        *,
        sent_at: float | None = None,
        total: float = 0.0,
        total_now: float = 0.0,
        reset_s: float | None = None,
    ) -> None:
        if not self.remaining.is_newest(total):
            return
        self.remaining.observe(
            LimitReading(
                name="requests", limit=LIMIT, remaining=left, reset_s=reset_s, window_s=60.0
            ),
            sent_at=self.now_s if sent_at is None else sent_at,
            total=total,
            now=self.now_s,
            total_now=total_now,
        )

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.remaining.advance(seconds, self.now_s)


def test_nothing_is_known_at_first() -> None:
    """Before the first answer nothing is limited."""
    told = Told()
    assert told.remaining.left == math.inf
    assert told.remaining.share(told.now_s) == 1.0
    assert told.remaining.delay_s(5.0, told.now_s, 0.0) == 0.0


def test_what_was_sent_since_is_taken_off_and_what_was_refilled_is_added() -> None:
    """The answer to the 10th request, sent two seconds ago, and 30 were sent since."""
    told = Told()
    told.tell(100.0, sent_at=98.0, total=10.0, total_now=40.0)
    assert told.remaining.left == pytest.approx(100.0 + 20.0 - 30.0)
    told.wait(1.0)
    assert told.remaining.left == pytest.approx(100.0)


def test_older_answers_change_nothing() -> None:
    """An answer to an earlier request that arrives later is out of date."""
    told = Told()
    told.tell(100.0, total=10.0, total_now=10.0)
    told.tell(590.0, total=9.0, total_now=10.0)
    assert told.remaining.left == pytest.approx(100.0)


def test_less_is_believed_at_once_and_more_gradually() -> None:
    """Requests overtake each other, so that one answer alone may show too much."""
    told = Told()
    told.tell(300.0, total=1.0, total_now=1.0)
    told.tell(200.0, total=2.0, total_now=2.0)
    assert told.remaining.left == pytest.approx(200.0)
    told.tell(300.0, total=3.0, total_now=3.0)
    assert 200.0 < told.remaining.left < 250.0


def test_the_rate_falls_with_what_is_left() -> None:
    """Below ten seconds' worth the rate is proportional to what is left, and never zero."""
    told = Told()
    told.tell(500.0)
    assert told.remaining.share(told.now_s) == 1.0
    told.tell(50.0)
    assert told.remaining.share(told.now_s) == pytest.approx(0.5)
    told.tell(0.0)
    assert 0.0 < told.remaining.share(told.now_s) <= 0.05


def test_headroom_counts_as_gone() -> None:
    """With a tenth left to others, 110 that remain are 50."""
    told = Told(headroom=0.1)
    told.tell(500.0)
    told.tell(110.0)
    assert told.remaining.share(told.now_s) == pytest.approx(0.5)
    assert told.remaining.lacks(51.0)
    assert not told.remaining.lacks(50.0)


def test_what_others_take_is_found() -> None:
    """What disappears though it was not sent from here was taken by others."""
    told = Told()
    for second in range(60):
        told.tell(
            500.0 - 5.0 * second - 2.0 * second + 2.0 * second, total=second, total_now=second
        )
        told.wait(1.0)
    assert told.remaining.others == pytest.approx(10.0 + 5.0 - 1.0, rel=0.35)


def test_a_fixed_windows_rest_is_spread_over_its_time() -> None:
    """60 that remain for 12 seconds are half of the even rate; after its end nothing is known."""
    told = Told()
    for total in range(4):
        told.tell(60.0 - total, total=float(total), total_now=float(total), reset_s=12.0)
    assert told.remaining.share(told.now_s) == pytest.approx(57.0 / 120.0)
    told.wait(12.0)
    assert told.remaining.left == math.inf


def test_a_cost_waits_until_enough_is_there() -> None:
    """A cost waits until the server has refilled enough, which other clients may change."""
    told = Told()
    told.tell(500.0)
    told.tell(2.0)
    assert told.remaining.delay_s(1.0, told.now_s, 0.0) == 0.0
    assert told.remaining.delay_s(100.0, told.now_s, 0.0) == pytest.approx(9.8)
    assert told.remaining.may_change(told.now_s)
