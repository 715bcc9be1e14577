"""Whether refusals come from load or from chance, by the shares that were refused under less of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from parallel_processor.ratelimit.evidence import RateEvidence, RefusalShares


def shares_of(counts: Mapping[int, tuple[int, int]]) -> RefusalShares:
    """By step: how many attempts ended, and how many of them were refused."""
    shares = RefusalShares()
    for step, (ended, refused) in counts.items():
        shares.ended[step] += ended
        shares.refused(step, refused)
    return shares


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({6: (64, 10)}, None),  # nothing was tried below
        ({6: (64, 10), 5: (8, 0)}, None),  # too little
        ({6: (64, 10), 5: (40, 6)}, False),
        ({6: (64, 10), 5: (40, 0)}, True),
        ({6: (64, 2), 5: (400, 8)}, None),  # two may be chance
        ({6: (1000, 20), 5: (400, 8)}, False),
        ({6: (64, 62), 5: (40, 36)}, True),  # even half may be too much
        ({6: (64, 20), 5: (40, 0), 4: (40, 12)}, None),  # they contradict each other
    ],
)
def test_a_smaller_load_shows_whether_load_is_the_reason(
    counts: Mapping[int, tuple[int, int]], verdict: bool | None
) -> None:
    """Only if clearly fewer are refused under less load, load is the reason."""
    assert shares_of(counts).explain(6) is verdict


def test_evidence_that_is_used_wears_off() -> None:
    """What was true an hour ago is found out again, after some hundred refusals."""
    shares = shares_of({6: (64, 10), 5: (40, 6)})
    uses = 0
    while shares.explain(6) is False:
        uses += 1
    assert 30 < uses < 300


class Sender:
    """Sends at a rate, and tells the evidence."""

    def __init__(self) -> None:
        self.evidence = RateEvidence()
        self._now, self._sent, self._answered_at = 0.0, 0, -math.inf
        self.evidence.note_sent(0.0, 0.0, 0.0)

    def send(self, count: int, per_s: float, refused: int) -> None:
        """Send ``count``, of which every so many is refused, or none if that is 0."""
        for number in range(1, count + 1):
            self._now += 1 / per_s
            self._sent += 1
            if refused and number % refused == 0:
                self.evidence.note_refusal(self._now, self._answered_at, self._sent, self._now)
            else:
                self._answered_at = self._now
            self.evidence.note_sent(self._sent, 0.0, self._now)


def test_a_share_that_half_the_rate_does_not_lower_is_chance() -> None:
    """One in five is refused at 40 a second, and at 20."""
    sender = Sender()
    sender.send(60, 40.0, refused=5)
    assert sender.evidence.explain(40.0) is None
    sender.send(60, 20.0, refused=5)
    assert sender.evidence.explain(20.0) is False


def test_a_share_that_half_the_rate_brings_to_nothing_is_a_limit() -> None:
    """One in five is refused at 40 a second, and none at 20."""
    sender = Sender()
    sender.send(60, 40.0, refused=5)
    sender.send(60, 20.0, refused=0)
    assert sender.evidence.explain(40.0) is True


def test_a_window_that_is_used_up_is_a_limit_whatever_is_sent() -> None:
    """Where all that is sent after a refusal is refused, nothing is learned of the rate."""
    sender = Sender()
    sender.send(60, 40.0, refused=0)
    sender.send(10, 2.0, refused=1)
    assert sender.evidence.explain(2.0) is True
    assert not sender.evidence.is_measured(2.0)
