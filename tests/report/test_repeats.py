"""Equal warnings: the first at once, the others as a number."""

from __future__ import annotations

import pytest
from clocks import FakeClock

from parallel_processor.report.repeats import RepeatedWarnings


def test_equal_warnings_are_told_once_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    """The next one after 10 seconds says how many came meanwhile, and the end how many since."""
    clock = FakeClock()
    warnings = RepeatedWarnings(clock)
    for number in range(1, 101):
        clock.now_s = 1000.0 + number // 51 * 10  # number 51 comes 10 s later
        warnings.warn("429", number, f"request {number} waits")
        if number % 50 == 0:
            warnings.warn("500", number, f"request {number} is tried again")
    warnings.close()
    warnings.close()
    assert caplog.messages == [
        "request 1 waits",
        "request 50 is tried again",
        "request 51 waits (and 49 more like this)",
        "request 100 is tried again",
        "49 more like this: request 100 waits",
    ]
    numbers = [getattr(entry, "request_number", None) for entry in caplog.records]
    assert numbers == [1, 50, 51, 100, None]


def test_many_kinds_of_warnings_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A server that never says the same twice costs no memory."""
    warnings = RepeatedWarnings(FakeClock())
    for number in range(1000):
        warnings.warn(str(number), number, "no")
    assert len(warnings._warned) == 100 and len(caplog.records) == 1000
