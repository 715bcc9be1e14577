"""The simulator's limits by model, over time, with a rival, in windows and by usage."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.simulator import LimitChange, ModelLimits, SimulatorOptions
from parallel_processor.simulator.limits import RateLimits
from parallel_processor.simulator.names import OTHERS, ModelNames


class Account:
    """Limits, a clock that stands at 0 seconds since the first request, and a way to ask."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.limits = RateLimits(SimulatorOptions(**options), clock=self.clock)
        self.limits.levels()

    def at(self, seconds: float) -> None:
        """Move the clock to so many seconds after the first request."""
        self.clock.now_s = 1000.0 + seconds

    def wait_s(self, tokens: int = 0, written: int = 0, model: str = "m") -> float | None:
        """Ask once; return 0 for yes, or how long to wait."""
        refusal = self.limits.admit(model, read=tokens, written=written).refusal
        return 0.0 if refusal is None else refusal.wait_s

    def admitted(self, most: int = 10_000, model: str = "m") -> int:
        """Send requests of no tokens until one is refused; return how many weren't."""
        return next((n for n in range(most) if self.wait_s(model=model) != 0), most)

    def levels(self) -> dict[str, float]:
        """Return what is left of each limit."""
        return {level.name: level.level for level in self.limits.levels()}


# --- models


def test_each_model_has_its_own_limits() -> None:
    """The first pattern decides, a model that matches none has the general limit, apart too."""
    own = {
        "gpt-4o-mini*": ModelLimits(requests_per_minute=5),
        "gpt-*": ModelLimits(requests_per_minute=2),
        "free": ModelLimits(),
    }
    account = Account(requests_per_minute=3, limits_by_model=own)
    for model, most in (
        ("gpt-4o-mini", 5),
        ("gpt-4o-mini-2024", 5),
        ("gpt-4o", 2),
        ("gpt-5", 2),
        ("claude", 3),
        ("GPT-4o", 3),
        ("free", 100),
    ):
        assert account.admitted(100, model=model) == most
    assert account.limits.levels() == ()


def test_without_patterns_all_models_share_one_set() -> None:
    """What one model takes is gone for the others."""
    account = Account(requests_per_minute=3)
    assert account.admitted(2, model="a") == 2
    assert account.admitted(model="b") == 1


def test_a_models_own_limits_count_from_the_first_request_of_all() -> None:
    """A model that comes late finds the windows where they would be had it been there before."""
    own = {"*": ModelLimits(requests_per_minute=60)}
    account = Account(limits_by_model=own, enforcement="window", window_s=10)
    account.at(7)
    assert account.admitted(model="late") == 10
    assert account.wait_s(model="late") == 3


def test_only_so_many_models_are_told_apart() -> None:
    """Names are remembered up to a number and a length; the rest go under one name."""
    names = ModelNames(most=2)
    assert [names.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHERS, "a", OTHERS]
    assert ModelNames().of("x" * 300) == "x" * 256


# --- further limits


def test_input_and_output_have_limits_of_their_own() -> None:
    """The one counts what is read, the other what is written, the third both."""
    account = Account(
        tokens_per_minute=100, input_tokens_per_minute=70, output_tokens_per_minute=50
    )
    assert account.wait_s(20, 30) == 0
    assert account.levels() == {"tokens": 50, "input-tokens": 50, "output-tokens": 20}
    verdict = account.limits.admit("m", read=0, written=45)
    assert verdict.refusal is not None
    assert verdict.refusal.name == "output-tokens"
    assert verdict.refusal.wait_s == 30


def test_the_day_has_a_bucket_of_its_own() -> None:
    """A day's requests may all come at once, and come back in the course of a day."""
    account = Account(requests_per_day=24, enforcement="window", window_s=1)
    assert account.admitted() == 24
    assert account.wait_s() == 3600
    account.at(3600)
    assert account.admitted() == 1


def test_a_short_burst_is_all_that_a_bucket_holds() -> None:
    """With burst_s of 2, two seconds' worth passes at once, and then what is refilled."""
    account = Account(requests_per_minute=60, burst_s=2)
    assert account.admitted() == 2
    assert account.wait_s() == 1
    account.at(60)
    assert account.admitted() == 2


# --- changes


def test_a_limit_that_falls_is_charged_at_the_old_rate_until_then() -> None:
    """The refill is the old one up to the change and the new one after it; the level is cut."""
    changes = (LimitChange(at_s=10, requests_per_minute=30),)
    account = Account(requests_per_minute=120, changes=changes)
    assert account.admitted() == 120
    account.at(14)
    assert account.levels() == {"requests": 22}  # 10 s * 2/s + 4 s * 0.5/s
    full = Account(requests_per_minute=120, changes=changes)
    full.at(9)
    assert full.levels() == {"requests": 120}
    full.at(10)
    assert full.levels() == {"requests": 30}


def test_a_limit_that_rises_keeps_its_level() -> None:
    """Nothing is given at the change; the refill is faster from then on, up to the new limit."""
    changes = (LimitChange(at_s=10, requests_per_minute=120),)
    account = Account(requests_per_minute=60, changes=changes)
    account.at(10)
    assert account.levels() == {"requests": 60}
    account.at(20)
    assert account.levels() == {"requests": 80}
    account.at(100)
    assert account.levels() == {"requests": 120}


def test_a_change_leaves_alone_what_it_does_not_name() -> None:
    """None changes nothing, and a limit that wasn't there begins full."""
    changes = (
        LimitChange(at_s=20, requests_per_minute=6),
        LimitChange(at_s=10, tokens_per_minute=600),
    )
    account = Account(requests_per_minute=60, changes=changes)
    account.at(9)
    assert account.levels() == {"requests": 60}
    account.at(10)
    assert account.levels() == {"requests": 60, "tokens": 600}
    account.at(20)
    assert account.levels() == {"requests": 6, "tokens": 600}


def test_a_change_is_for_the_models_that_match() -> None:
    """Another model keeps its limits."""
    account = Account(
        limits_by_model={"*": ModelLimits(requests_per_minute=10)},
        changes=(LimitChange(at_s=5, requests_per_minute=4, model="gpt-*"),),
    )
    account.at(5)
    assert account.admitted(model="gpt-4o") == 4
    assert account.admitted(model="claude") == 10


def test_a_change_in_mid_window_cuts_what_is_left_of_it() -> None:
    """A window's remainder falls with the limit; a rise shows in the next window."""
    changes = (
        LimitChange(at_s=15, requests_per_minute=30),
        LimitChange(at_s=25, requests_per_minute=120),
    )
    account = Account(requests_per_minute=60, enforcement="window", window_s=10, changes=changes)
    account.at(14)
    assert account.levels() == {"requests": 10}
    account.at(15)
    assert account.admitted() == 5
    account.at(25)
    assert account.admitted() == 5
    account.at(30)
    assert account.admitted() == 20


# --- the rival


def test_the_rival_takes_its_requests_at_their_times() -> None:
    """Even intervals from the beginning to before the end, from both limits."""
    account = Account(
        requests_per_minute=6000,
        tokens_per_minute=60_000,
        burst_s=0.6,
        rival_requests_per_minute=60,
        rival_tokens_per_request=100,
        rival_from_s=2,
        rival_until_s=5,
    )
    for seconds, requests, tokens in ((1.9, 60, 600), (2, 59, 500), (2.05, 60, 550), (3, 59, 500)):
        account.at(seconds)
        assert account.levels() == pytest.approx({"requests": requests, "tokens": tokens})
    account.at(100)
    assert account.limits.rival() == (3, 0)
    assert account.levels() == {"requests": 60, "tokens": 600}


def test_the_rival_loses_what_does_not_fit() -> None:
    """A rival on a small limit gets what is refilled, and the others nothing but the rest."""
    account = Account(requests_per_minute=6, burst_s=20, rival_requests_per_minute=60)
    account.at(29.5)  # capacity 2, one more each 10 s; the rival's are at 0, 1, … 29
    assert account.limits.rival() == (4, 26)
    assert account.levels() == pytest.approx({"requests": 0.95})
    assert account.wait_s() == pytest.approx(0.5)
    account.at(30)  # the rival is there first
    assert account.limits.rival() == (5, 26)
    assert account.wait_s() == pytest.approx(10)


def test_the_rival_meets_a_change_where_it_is() -> None:
    """Before the change the rival's requests fit, and after it they don't."""
    account = Account(
        tokens_per_minute=600,
        changes=(LimitChange(at_s=10, tokens_per_minute=60),),
        rival_requests_per_minute=6,
        rival_tokens_per_request=50,
    )
    account.at(10)  # 600 - 50 + 100 = 600 once more; cut to 60; the rival's second
    assert account.levels() == {"tokens": 10}
    account.at(20)
    assert account.limits.rival() == (2, 1)


def test_every_model_has_its_rival() -> None:
    """A model that is asked for later has had the rival all the time."""
    account = Account(
        limits_by_model={"*": ModelLimits(requests_per_minute=60)}, rival_requests_per_minute=30
    )
    account.at(20)
    verdict = account.limits.admit("a", read=0, written=0)
    assert verdict.levels[0].level == 58  # the rival's of this moment, and this
    assert account.limits.rival() == (11, 0)
    account.limits.admit("b", read=0, written=0)
    assert account.limits.rival() == (22, 0)


# --- windows


def test_a_window_comes_back_all_at_once() -> None:
    """What it holds is there until it is used up, and again at its end, not before."""
    account = Account(requests_per_minute=30, enforcement="window")
    assert account.admitted() == 30
    account.at(59.5)
    (level,) = account.limits.levels()
    assert (level.limit, level.level, level.reset_s) == (30, 0, 0.5)
    assert account.wait_s() == 0.5
    account.at(60)
    (level,) = account.limits.levels()
    assert (level.level, level.reset_s) == (30, 60)
    account.at(90)
    assert account.admitted() == 30
    account.at(120)
    assert account.admitted() == 30


def test_windows_may_be_as_short_as_a_second() -> None:
    """600 a minute are 10 in each second; less than one a second is one."""
    account = Account(requests_per_minute=600, enforcement="window", window_s=1)
    for seconds in (0, 0.99, 1, 2.5):
        account.at(seconds)
        assert account.admitted() == (0 if seconds == 0.99 else 10)
    assert account.wait_s() == 0.5
    slow = Account(requests_per_minute=6, enforcement="window", window_s=1)
    assert slow.admitted() == 1


def test_a_debt_goes_over_into_the_next_windows() -> None:
    """More than a window holds passes in a fresh one, and is paid by those that follow."""
    account = Account(tokens_per_minute=600, enforcement="window", window_s=1)
    assert account.wait_s(25) == 0
    assert account.levels() == {"tokens": -15}
    assert account.wait_s(1) == 2
    assert account.wait_s(10) == 3
    account.at(1.5)
    assert account.wait_s(1) == 0.5
    account.at(2)
    assert account.wait_s(1) == 0
    assert account.wait_s(25) == 1  # 4 are left, and a fresh window is needed
    account.at(3)
    assert account.wait_s(25) == 0


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 12)), max_size=60),
    st.sampled_from([0.1, 0.5, 1.0, 7.0]),
)
def test_no_window_holds_more_than_its_part(
    schedule: list[tuple[float, int]], window_s: float
) -> None:
    """In each window no more passes than it holds, and the wait that is told is the right one."""
    account = Account(tokens_per_minute=720 / window_s, enforcement="window", window_s=window_s)
    sums: dict[int, int] = {}
    for delay_s, tokens in schedule:
        account.clock.now_s += delay_s
        wait_s = account.wait_s(tokens)
        assert wait_s is not None
        if wait_s:
            assert wait_s <= window_s + 1e-9
            account.clock.now_s += wait_s
            assert account.wait_s(tokens) == 0
        window = int((account.clock.now_s - 1000) / window_s + 1e-9)
        sums[window] = sums.get(window, 0) + tokens
    assert max(sums.values(), default=0) <= 12


# --- usage


def test_what_is_written_is_charged_when_it_is_known() -> None:
    """The answer's tokens may leave a debt, and then even a request of no tokens waits."""
    account = Account(tokens_per_minute=60, token_charge="usage")
    assert account.wait_s(20) == 0
    account.limits.settle("m", written=55)
    assert account.levels() == {"tokens": -15}
    assert account.wait_s(0) == 15
    assert account.wait_s(5) == 20
    account.at(15)
    assert account.wait_s(0) == 0


def test_settling_does_not_count_a_request() -> None:
    """Only the limits on tokens are charged the second time."""
    account = Account(requests_per_minute=5, output_tokens_per_minute=50, requests_per_day=9)
    account.limits.settle("m", written=7)
    assert account.levels() == {"requests": 5, "output-tokens": 43, "requests-per-day": 9}


# --- in any case


TIMES = st.integers(0, 400).map(lambda eighths: eighths / 8)


@given(
    st.lists(st.tuples(TIMES, st.integers(0, 40)), max_size=25),
    st.lists(st.tuples(TIMES, st.integers(1, 300)), max_size=3),
    st.sampled_from([0, 7, 60, 250]),
    st.sampled_from(["bucket", "window"]),
    st.booleans(),
)
def test_it_makes_no_difference_who_looks_when(
    requests: list[tuple[float, int]],
    changes: list[tuple[float, int]],
    rival: int,
    enforcement: str,
    usage: bool,
) -> None:
    """Limits that are looked at all the time and those that aren't say the same to requests."""
    options: dict[str, Any] = {
        "tokens_per_minute": 120,
        "burst_s": 7,
        "window_s": 5,
        "enforcement": enforcement,
        "changes": tuple(
            LimitChange(at_s=at_s, tokens_per_minute=limit) for at_s, limit in changes
        ),
        "rival_requests_per_minute": rival,
        "rival_tokens_per_request": 3,
    }
    watched, alone = Account(**options), Account(**options)
    requests.sort()
    looks = iter(range(401))
    for at_s, tokens in requests:
        for eighth in looks:
            watched.at(min(eighth / 8, at_s))
            watched.limits.levels()
            if eighth / 8 >= at_s:
                break
        watched.at(at_s)
        alone.at(at_s)
        assert watched.wait_s(tokens) == pytest.approx(alone.wait_s(tokens))
        if usage:
            watched.limits.settle("m", written=tokens)
            alone.limits.settle("m", written=tokens)
        assert watched.levels() == pytest.approx(alone.levels())
    assert watched.limits.rival() == alone.limits.rival()


@given(
    st.lists(st.tuples(TIMES, st.integers(1, 30)), max_size=25),
    st.lists(st.tuples(TIMES, st.sampled_from([30, 60, 120, 480])), max_size=3),
    st.sampled_from([0, 15, 60, 240]),
)
def test_buckets_agree_with_exact_arithmetic(
    requests: list[tuple[float, int]], changes: list[tuple[float, int]], rival: int
) -> None:
    """Level by level, the limits are those of one plain loop over all that happens, in fractions."""
    account = Account(
        tokens_per_minute=240,
        burst_s=15,
        changes=tuple(LimitChange(at_s=at_s, tokens_per_minute=n) for at_s, n in changes),
        rival_requests_per_minute=rival,
        rival_tokens_per_request=7,
    )
    rivals = [(Fraction(n * 60, rival), 1, 7) for n in range(51 * rival // 60 + 1)] if rival else []
    events = [(Fraction(at_s), 0, n) for at_s, n in changes] + rivals
    events += [(Fraction(at_s), 2, n) for at_s, n in requests]
    limit, level, now_s = Fraction(240), Fraction(60), Fraction(0)
    for at_s, kind, number in sorted(events, key=lambda event: event[:2]):
        level = min(limit / 4, level + (at_s - now_s) * limit / 60)
        now_s = at_s
        if kind == 0:
            limit = Fraction(number)
            level = min(level, limit / 4)
            continue
        fits = level >= min(number, limit / 4)
        level -= number * fits
        if kind == 2:
            account.at(float(at_s))
            assert (account.wait_s(number) == 0) == fits
            assert account.levels()["tokens"] == pytest.approx(float(level), abs=1e-6)
