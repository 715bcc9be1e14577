"""The search for a rate that no header names: growth, cuts, and the way back."""

from __future__ import annotations

import math

import pytest

from parallel_processor.ratelimit.rate_probe import GENTLE_PER_S, RateProbe


def reject(probe: RateProbe, now: float, sent: int = 100, count: int = 1, **more: object) -> None:
    """Send ``sent`` requests since the last time, of which ``count`` are rejected in one burst."""
    probe.sent, probe.rejections = sent, count
    facts = {"sent_per_s": 10.0, "charged": 0.0, "gap_s": 15.0} | more
    probe.refused(1.0, now=now, **facts)  # type: ignore[arg-type]


def settled(now: float = 0.0) -> RateProbe:
    """A probe that was just rejected at 16 a second, and goes on with 8."""
    probe = RateProbe(GENTLE_PER_S)
    probe.advance(12.0)
    reject(probe, now)
    return probe


def test_a_rate_that_is_used_doubles_every_four_seconds() -> None:
    """From two a second to sixteen in twelve seconds."""
    probe = RateProbe(GENTLE_PER_S)
    for _ in range(120):
        probe.advance(0.1)
    assert probe.rate == pytest.approx(16.0)


def test_the_first_rejection_halves_the_rate() -> None:
    """The rate that was tried when it came is the peak that the curve leads back to."""
    assert settled().rate == pytest.approx(8.0)


def test_the_rate_comes_back_on_a_curve() -> None:
    """Quickly at first, flat around the peak after a minute, and beyond it later."""
    probe, rates = settled(), []
    for _ in range(9):
        probe.advance(15.0)
        rates.append(probe.rate)
    steps = [later - earlier for earlier, later in zip(rates, rates[1:], strict=False)]
    assert rates[3] == pytest.approx(16.0)
    assert min(steps) == min(steps[2:4])
    assert rates[-1] > 18.0


def test_a_limit_that_is_named_ends_the_search() -> None:
    """There is no rate to find any more, but a rate that was cut after a rejection stays."""
    searching, cut = RateProbe(GENTLE_PER_S), settled()
    searching.set_free()
    cut.set_free()
    assert searching.rate == math.inf
    assert cut.rate == pytest.approx(8.0)


def test_a_rejection_right_after_a_pause_cuts_nothing() -> None:
    """Nothing was accepted since the last one, so that the rate was not tried."""
    probe = settled()
    reject(probe, 15.0, sent=1, count=1)
    assert probe.rate == pytest.approx(8.0)


def test_rejections_in_a_row_cut_deeper_than_late_ones() -> None:
    """A rejection after a long while takes 15 %, one shortly after it 30 %."""
    probe = settled()
    probe.advance(60.0)
    reject(probe, 1.0)
    assert probe.rate == pytest.approx(0.85 * 16.0)
    probe.advance(1.0)
    before = probe.rate
    reject(probe, 2.0)
    assert probe.rate == pytest.approx(0.7 * before)


def test_what_was_let_through_between_rejections_is_the_least() -> None:
    """The server refilled so much in that time, pauses included."""
    probe = settled(0.0)
    probe.advance(5.0)
    reject(probe, 20.0, charged=141.0)
    assert probe.rate == pytest.approx(140.0 / 20.0)


def test_few_rejections_cut_to_a_quarter_at_most() -> None:
    """Where one in a hundred is rejected whatever the rate is, the rate isn't the reason."""
    probe = settled()
    for number in range(30):
        probe.advance(0.5)
        reject(probe, float(number))
    assert probe.rate == pytest.approx(4.0)


def test_many_rejections_cut_further() -> None:
    """A rate of which half is rejected goes on falling, to one request a pause."""
    probe = settled()
    for number in range(60):
        probe.advance(0.01)
        reject(probe, float(number), sent=10, count=5)
    assert probe.rate == pytest.approx(1 / 15.0)


def test_a_number_that_is_too_high_is_cut_from_what_was_sent() -> None:
    """Without a rate of its own, the probe begins with half of what went out lately."""
    probe = RateProbe()
    reject(probe, 0.0, sent_per_s=100.0)
    assert probe.rate == pytest.approx(50.0)


def test_a_request_that_costs_nothing_can_be_rejected() -> None:
    """An empty text, rejected for its tokens: the rate stays above zero."""
    probe = RateProbe()
    probe.refused(0.0, sent_per_s=0.0, charged=0.0, now=0.0, gap_s=15.0)
    assert probe.rate > 0


def test_one_rejection_in_a_hundred_that_names_a_time_to_wait_cuts_nothing() -> None:
    """Up to that share, pausing for as long as the server asks is enough."""
    probe = RateProbe()
    reject(probe, 0.0, sent=100, count=1, has_retry_after=True)
    assert probe.rate == math.inf
    reject(probe, 1.0, sent=100, count=2, has_retry_after=True)
    assert probe.rate < math.inf


def test_a_complaint_of_the_rise_slows_the_rise() -> None:
    """From then on the rate grows by half in a quarter of an hour, and evenly."""
    probe = settled()
    probe.advance(60.0)
    reject(probe, 1.0, ramp_too_fast=True)
    assert probe.rate == pytest.approx(0.8 * 16.0)
    probe.advance(900.0)
    assert probe.rate == pytest.approx(1.5 * 0.8 * 16.0)
