"""Waits as servers write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.providers.durations import duration_s, milliseconds_s, timestamp, wait_s

NOW = 1_445_412_420.0  # Wed, 21 Oct 2015 07:27:00 GMT
IN_A_MINUTE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120ms", 0.12),
        ("1s", 1),
        ("7.66s", 7.66),
        ("6m0s", 360),
        ("2m59.56s", 179.56),
        ("4m12.172s", 252.172),
        ("23h18m29.144s", 83_909.144),
        ("10h17m5.7s", 37_025.7),
        ("57.238747106s", 57.238747106),
        ("1d2h", 93_600),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("5ns", 5e-9),
        ("1m 30s", 90),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Go's durations, joined from numbers and units."""
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "5", "s", "-5s", "5x", "5s later", "in 5s", "1.s", ".5s", "1 0s", "9" * 400 + "s"],
)
def test_what_is_no_duration(text: str) -> None:
    """Anything before, between or after the parts makes it invalid."""
    assert duration_s(text) is None


def test_long_texts_take_no_longer() -> None:
    """A million digits without a unit are rejected without going over them again and again."""
    assert duration_s("1" * 1_000_000) is None
    assert duration_s("1m" * 500_000) == 30_000_000


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("56", 56),
        (" 1.5 ", 1.5),
        ("0", 0),
        ("6m0s", 360),
        (IN_A_MINUTE, 60),
        *((f"Wed, 21 Oct 2015 07:28:00{zone}", 60) for zone in (" +0000", " -0000", "")),  # UTC
        ("2015-10-21T07:28:00Z", 60),
        ("2015-10-21T09:28:00+02:00", 60),
        ("2015-10-21T07:28:00", 60),
        ("Wed, 21 Oct 2015 07:26:00 GMT", 0),
        (str(NOW + 30), 30),
        (str(int((NOW + 30) * 1000)), 30),
        (str(NOW - 30), 0),
    ],
)
def test_waits_in_headers(value: str, seconds: float) -> None:
    """Seconds, durations, dates and Unix times; a time that has passed is no wait."""
    assert wait_s(value, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        *("", "-1", "-0.5", "nan", "inf", "-inf", "1e999", "soon", "12 34", "0x10", "-5s"),
        *("Wed, 99 Oct 2015 07:28:00 GMT", "2015-13-01T00:00:00Z", "9" * 400, "١ ٢"),
    ],
)
def test_unclear_waits_are_none(value: str) -> None:
    """Negative, infinite and unreadable values give ``None``."""
    assert wait_s(value, NOW) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2000", 2.0),
        ("12.5", 0.0125),
        ("0", 0.0),
        ("5000000000", 5_000_000.0),
        *((odd, None) for odd in ("-1", "nan", "inf", "2s", IN_A_MINUTE, "")),
    ],
)
def test_milliseconds(value: str, seconds: float | None) -> None:
    """Only a bare number is accepted."""
    assert milliseconds_s(value) == seconds


@given(st.one_of(st.text(), st.from_regex(r"[-+0-9a-zA-Z:,. ]*"), st.floats().map(str)))
def test_every_text_gives_a_finite_wait_or_none(value: str) -> None:
    """No text raises, and none makes anybody wait forever."""
    for seconds in (duration_s(value), milliseconds_s(value), wait_s(value, NOW)):
        assert seconds is None or 0 <= seconds < math.inf
    when = timestamp(value)
    assert when is None or math.isfinite(when)


@pytest.mark.parametrize("value", ["1e308", "1e15", "9999-01-01T00:00:00Z"])
def test_a_time_beyond_a_year_is_no_wait(value: str) -> None:
    """A server that sends such a time is confused; the default pause applies."""
    assert wait_s(value, 1.7e9) is None
