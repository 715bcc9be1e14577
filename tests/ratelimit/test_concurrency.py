"""The number in flight that suits a server: rounds of answers whose latency depends on the number."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from parallel_processor.ratelimit.concurrency import ConcurrencyLimit


class Load:
    """A server that is kept as full as the limit permits, one answer after the other."""

    def __init__(self, latency_s: Callable[[int], float], **settings: object) -> None:
        self.now_s = 0.0
        self.limit = ConcurrencyLimit(now=0.0, **({"climbs": True} | settings))  # type: ignore[arg-type]
        self._latency_s = latency_s
        self._due: list[tuple[float, float]] = []  # end, admission

    def answer(self, count: int, *, most: float = math.inf) -> None:
        """Let so many answers come; at most so many requests are there at a time."""
        for _ in range(count):
            while self.limit.has_room and self.limit.count < most:
                self.limit.started(self.now_s)
                latency_s = self._latency_s(self.limit.count)
                self._due.append((self.now_s + latency_s, self.now_s))
                self.now_s += 1e-6
            self._due.sort()
            end, admitted = self._due.pop(0)
            self.now_s = max(self.now_s, end)
            self.limit.ended(self.now_s, admitted, answered=True)

    def refuse(self) -> bool:
        """The newest request is turned away."""
        _, admitted = self._due.pop()
        self.limit.ended(self.now_s, admitted, answered=False)
        return self.limit.refused(self.now_s, admitted)


def test_without_a_reason_there_is_no_limit() -> None:
    """It counts, and admits everything."""
    load = Load(lambda n: 1.0, climbs=False)
    load.answer(500, most=300)
    assert load.limit.limit == math.inf
    assert (load.limit.peak, load.limit.total) == (300, 799)


def test_a_server_that_can_take_all_gets_all() -> None:
    """While twice as many gain twice the throughput, the number doubles, up to the most."""
    load = Load(lambda n: 1.0, most=500.0)
    load.answer(4000)
    assert load.limit.limit == pytest.approx(500.0, rel=0.1)


@pytest.mark.parametrize("best", [5, 20, 100])
def test_it_comes_to_rest_around_the_best(best: int) -> None:
    """Beyond some number the throughput falls; the limit settles within a quarter of it."""
    load = Load(lambda n: max(1.0, n / best) ** 1.5)
    load.answer(60 * best + 2000)
    assert 0.75 * best <= load.limit.limit <= 1.3 * best


def test_what_isnt_used_isnt_changed() -> None:
    """With a few in flight nothing is learned of higher numbers."""
    load = Load(lambda n: 1.0)
    load.answer(2000, most=10)
    assert load.limit.limit == 32


def test_a_gentle_start_has_four() -> None:
    """A server that may name rate limits gets few requests before its first answers."""
    assert Load(lambda n: 1.0, gentle=True).limit.limit == 4


def test_rate_limits_end_the_search() -> None:
    """If rate limits bound what is sent, the number is free, and what waited for it may go."""
    load = Load(lambda n: 1.0)
    assert load.limit.set_free()
    assert load.limit.limit == math.inf
    assert not load.limit.set_free()


def test_a_burst_of_refusals_leaves_what_the_server_bears() -> None:
    """Of 100 in flight, 40 are refused: each takes its own place away, and 60 are left."""
    load = Load(lambda n: 1.0, climbs=False)
    load.answer(20, most=100)
    for left in range(98, 58, -1):
        assert load.refuse()
        assert load.limit.limit == left


def test_a_refusal_of_the_only_request_is_not_for_the_number() -> None:
    """With nothing else in flight it can't be the reason, but a number that the server named holds."""
    limit = ConcurrencyLimit(now=0.0)
    limit.started(0.0)
    limit.ended(1.0, 0.0, answered=False)
    assert not limit.refused(1.0, 0.0)
    assert limit.limit == math.inf
    assert not limit.refused(1.0, 0.0, named=5.0)
    assert limit.limit == 5.0


def test_a_number_that_is_refused_twice_is_tried_rarely() -> None:
    """It doubles once after the first burst. After the second, one in a hundred is refused at most."""
    slots, load, refused = 5, Load(lambda n: 1.0, climbs=False), 0
    sent_before = 0
    for answers in range(2000):
        load.answer(1, most=50)
        while load.limit.count > slots:
            load.refuse()
            refused += 1
        if answers == 100:
            sent_before, refused = load.limit.total, 0
    assert 4 <= load.limit.limit <= 7
    assert refused <= 0.012 * (load.limit.total - sent_before)


def test_after_a_cut_it_grows_back() -> None:
    """A twentieth a round, until it is more than is needed."""
    load = Load(lambda n: 1.0, climbs=False)
    load.answer(100, most=100)
    load.refuse()
    assert load.limit.limit < 100
    load.answer(5000, most=100)
    assert load.limit.limit > 100


def test_rejections_that_less_load_doesnt_cure_are_tolerated() -> None:
    """If one in twenty is rejected whatever the number is, the number isn't kept low."""
    load = Load(lambda n: 1.0, climbs=False)
    lowest = math.inf
    for _ in range(300):
        load.answer(19, most=100)
        load.refuse()
        lowest = min(lowest, load.limit.limit)
    assert lowest < 80
    assert load.limit.limit == math.inf


# While the server may be out of order


@pytest.mark.parametrize("more", [0, 1])
def test_a_confined_number_falls_with_those_that_were_there(more: int) -> None:
    """So many more may go as ``more`` says; then one at a time, until one is answered."""
    limit = ConcurrencyLimit(now=0.0)
    for _ in range(3):
        limit.started(0.0)
    limit.confine(more, 1.0)
    assert limit.is_confined and limit.limit == 3 + more
    for left in (2, 1, 0):
        limit.ended(2.0, 0.0, answered=False)
        assert limit.limit == max(1, left + more)
    before = limit.limit
    assert limit.refused(2.0, 0.0) and limit.limit == before  # nothing is learned
    limit.started(3.0)
    assert not limit.has_room
    assert limit.ended(4.0, 3.0, answered=False) and limit.limit == 1  # a probe that failed
    limit.started(5.0)
    assert limit.ended(6.0, 5.0, answered=True)
    assert limit.limit == math.inf and not limit.is_confined


def test_a_confinement_gives_back_the_limit_that_was_there() -> None:
    """A second one in between changes nothing in that, and rate limits end the search behind it."""
    limit = ConcurrencyLimit(now=0.0, climbs=True)
    limit.confine(1, 0.0)
    limit.confine(0, 1.0)
    assert limit.free() and limit.limit == 32 and not limit.free()
    limit.confine(1, 2.0)
    assert limit.set_free() and limit.limit == 1
    assert limit.free() and limit.limit == math.inf
