"""Checks of a setting. Each raises :class:`ConfigurationError` with name, value and what it may be."""

from __future__ import annotations

import math

from parallel_processor.exceptions import ConfigurationError

_LARGEST = 1e300
_LONGEST_S = 1_000_000  # 11 days; poll(2) can't wait for more than 24


def check(ok: bool, name: str, value: object, want: str) -> None:
    """Raise unless ``ok``; ``want`` says what the setting may be."""
    if not ok:
        raise ConfigurationError(f"{name} must be {want}, not {value!r}")


def check_number(name: str, value: float, *, least: float = 0.0, above: bool = True) -> None:
    """Raise unless ``value`` is a number above ``least``, or equal to it if ``above`` is false."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ConfigurationError(f"{name} must be a number, not {value!r}")
    ok, words = (value > least, "above") if above else (value >= least, "at least")
    check(ok, name, value, f"{words} {least:g}")
    check(value <= _LARGEST or value == math.inf, name, value, f"at most {_LARGEST:g} or infinite")


def check_seconds(name: str, value: float, *, above: bool = True) -> None:
    """Raise unless ``value`` is a time that the operating system can wait for."""
    check_number(name, value, above=above)
    check(value <= _LONGEST_S, name, value, f"at most {_LONGEST_S:,} seconds")


def check_whole(name: str, value: int, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``; True and False are none."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(ok, name, value, f"a whole number of at least {least}")


def check_budget(
    max_cost: float, max_total_tokens: float, max_seconds: float, max_failures: int | str | None
) -> None:
    """Raise unless the first three are above 0, and the last is a count or a share in percent."""
    bounds = {
        "max_cost": max_cost,
        "max_total_tokens": max_total_tokens,
        "max_seconds": max_seconds,
    }
    for name, value in bounds.items():
        check_number(name, value)
    if max_failures is not None:
        most = failure_bound(max_failures)
        want = "a whole number of at least 0, or a share such as 5%"
        check(most is not None, "max_failures", max_failures, want)


def failure_bound(max_failures: object) -> tuple[float, float] | None:
    """How many requests may fail, and which share; one is infinite. ``None`` if it says neither."""
    if isinstance(max_failures, str) and max_failures.endswith("%"):
        try:
            share = float(max_failures[:-1]) / 100
        except ValueError:
            return None
        return (math.inf, share) if 0 <= share <= 1 else None
    if isinstance(max_failures, str) and max_failures.isascii() and max_failures.isdigit():
        max_failures = int(max_failures)
    is_whole = isinstance(max_failures, int) and not isinstance(max_failures, bool)
    return (float(max_failures), math.inf) if is_whole and max_failures >= 0 else None  # type: ignore[operator, arg-type]
