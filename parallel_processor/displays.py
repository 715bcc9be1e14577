"""What is shown of a run while it goes on: by the thread that feeds it, between requests and in waits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from parallel_processor.stop import do_all


class Display(Protocol):
    """A progress bar, or a report. For the thread that feeds the run."""

    due_at: float  # of the clock; infinite for never

    def refresh(self) -> None:
        """Show where the run stands, and set the next ``due_at``."""

    def close(self) -> None:
        """The run is over."""


class Displays:
    """All that is shown of one run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._displays: list[Display] = []
        self._due_at = math.inf  # the first of theirs

    def add(self, display: Display) -> None:
        """Show this, too."""
        self._displays.append(display)
        self._due_at = min(self._due_at, display.due_at)

    def show(self) -> None:
        """Refresh what is due."""
        if self._due_at < math.inf and self._clock() >= self._due_at:
            for display in self._displays:
                if self._clock() >= display.due_at:
                    display.refresh()
            self._due_at = min(display.due_at for display in self._displays)

    @property
    def wait_s(self) -> float:
        """Seconds until something is due."""
        return max(self._due_at - self._clock(), 0.0) if self._due_at < math.inf else math.inf

    def close(self) -> None:
        """Close them all."""
        do_all([display.close for display in self._displays])
