"""Checks of a setting. Each raises :class:`ConfigurationError` with name, value and what it may be."""

from __future__ import annotations

import math

from parallel_processor.exceptions import ConfigurationError

_LARGEST = 1e300
_LONGEST_S = 1_000_000  # 11 days; poll(2) can't wait for more than 24


def check(ok: bool, name: str, value: object, want: str) -> None:
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
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(ok, name, value, f"a whole number of at least {least}")
