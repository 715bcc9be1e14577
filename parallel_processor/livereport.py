"""A run's report while it goes on: samples are taken, and the file is written time and again.

Memory stays flat: there are at most some hundreds of samples, and where there would be more, every other
one goes and the next ones are taken half as often. Since they are sums, nothing gets lost but detail.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from parallel_processor.figures import RunReport, Sample
from parallel_processor.report import write_report

_MOST_SAMPLES = 360
_FIRST_INTERVAL_S = 0.5
_WRITE_INTERVAL_S = 10.0
_SHARE_OF_TIME = 0.01  # that writing may take


class Timeline:
    """The samples of one run. For one thread."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.interval_s = _FIRST_INTERVAL_S

    def add(self, sample: Sample) -> None:
        """One more; the first and the last are always kept."""
        self.samples.append(sample)
        if len(self.samples) > _MOST_SAMPLES:
            self.samples = [*self.samples[:-1:2], sample]
            self.interval_s *= 2


class LiveReport:
    """The report of one run, for the thread that feeds it.

    ``sample`` tells where the run stands, ``tell`` everything else that a report has, given the samples
    and whether the run is still going on. ``clock`` gives the times at which something is due.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample: Callable[[], Sample],
        tell: Callable[[tuple[Sample, ...], bool], RunReport],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._sample = sample
        self._tell = tell
        self._clock = clock
        self._timeline = Timeline()
        self._write_at = clock() + _WRITE_INTERVAL_S
        self._timeline.add(sample())
        self.due_at = clock() + self._timeline.interval_s

    def refresh(self) -> None:
        """Take a sample, and write the file if it's time for that."""
        self._timeline.add(self._sample())
        now = self._clock()
        self.due_at = now + self._timeline.interval_s
        if now >= self._write_at:
            self._write(is_running=True)
            took_s = self._clock() - now
            self._write_at = now + max(_WRITE_INTERVAL_S, took_s / _SHARE_OF_TIME)

    def close(self) -> None:
        """Take no more samples; :meth:`finish` writes the report once all is known."""
        self.due_at = math.inf

    def finish(self) -> None:
        """Write the report of a run that has ended, however it did."""
        self._timeline.add(self._sample())
        self._write(is_running=False)

    def _write(self, *, is_running: bool) -> None:
        write_report(self._path, self._tell(tuple(self._timeline.samples), is_running))
