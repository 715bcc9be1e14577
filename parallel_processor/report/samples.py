"""Where a run stood from moment to moment, and what happened in between.

A sample counts from the run's start. The difference of two samples is exactly what happened between them.
Samples can therefore be left out: that costs detail, but no count is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from parallel_processor.models import WaitCause
from parallel_processor.report.histogram import percentile_s
from parallel_processor.report.summary import RunCounts, Summary

_MAX_SAMPLES = 360
_FIRST_INTERVAL_S = 0.5
_MAX_INTERVALS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(RunCounts):
    """Where a run stood at one moment. The counters count from the run's start."""

    at_s: float  # the moment, in seconds after the run's start
    in_flight: int = 0  # the requests that were in flight at that moment
    errors: Mapping[str, int] = field(default_factory=dict)  # failed attempts, with 429s
    waited_s: Mapping[WaitCause, float] = field(default_factory=dict)  # seconds until then
    latencies: tuple[int, ...] = ()  # how many answers took how long, in the bins of histogram.py
    limits: Mapping[str, float] = field(default_factory=dict)  # a minute; inf for none


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNote:
    """A request that the report names: one of the slowest, or one that failed."""

    number: int  # its line in the file
    custom_id: str | None = None  # its id, if it has one
    model: str = ""  # its model; empty if it names none
    attempts: int = 0  # how often it was sent
    latency_s: float | None = None  # the seconds of its last attempt; None if unknown
    error: str = ""  # the error of its last attempt; empty for an answer
    kind: str = ""  # the kind of that error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """All that is known of a run, while it goes on or at its end."""

    summary: Summary  # the counts and limits
    started_at: float  # when the run began, in seconds since 1970
    written_at: float  # when the report was made, in seconds since 1970
    is_running: bool = False  # true while the run goes on
    fraction: float | None = None  # share of the input that was read, 0 to 1; None if unknown
    requests_path: str = ""  # the requests file
    save_path: str = ""  # the results file
    url: str = ""  # where the requests go, without what may be secret
    max_workers: int = 0  # the setting of that name
    processes: int = 1  # the setting of that name
    timeline: tuple[Sample, ...] = ()  # some hundreds at most, the first at the run's start
    slowest: tuple[RequestNote, ...] = ()  # the answers that took longest, the longest first
    failures: tuple[RequestNote, ...] = ()  # the requests that failed last, the latest first


class Timeline:
    """The samples of one run. For one thread.

    Memory stays flat: when there are too many samples, every other one is dropped, and the next ones are
    taken half as often.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.interval_s = _FIRST_INTERVAL_S

    def add(self, sample: Sample) -> None:
        """Add one more; the first and the last are always kept."""
        self.samples.append(sample)
        if len(self.samples) > _MAX_SAMPLES:
            self.samples = [*self.samples[:-1:2], sample]
            self.interval_s *= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The time between two samples; ``in_flight`` is the most that was seen in it."""

    before: Sample
    after: Sample
    in_flight: int = 0

    @property
    def seconds(self) -> float:
        """How long it is; above 0."""
        return self.after.at_s - self.before.at_s

    def per_minute(self, name: str) -> float:
        """The rise of the counter ``name``, a minute."""
        rise = getattr(self.after, name) - getattr(self.before, name)
        return float(max(rise, 0)) * 60 / self.seconds

    def errors_per_minute(self, *kinds: str) -> float:
        """The failed attempts of these kinds, a minute."""
        rise = sum(self.after.errors.get(k, 0) - self.before.errors.get(k, 0) for k in kinds)
        return max(rise, 0) * 60 / self.seconds

    def share(self, *causes: WaitCause) -> float:
        """The share of the time, from 0 to 1, for which sending waited for any of ``causes``."""
        before, after = self.before.waited_s, self.after.waited_s
        waited_s = sum(after.get(cause, 0.0) - before.get(cause, 0.0) for cause in causes)
        return min(max(waited_s / self.seconds, 0.0), 1.0)

    def latency_s(self, percent: float) -> float | None:
        """A percentile of the answers that came in it; ``None`` if none did."""
        earlier = Counter(dict(enumerate(self.before.latencies)))
        rise = [n - earlier[i] for i, n in enumerate(self.after.latencies)]
        return percentile_s(rise, percent)


def intervals(timeline: Sequence[Sample], most: int = _MAX_INTERVALS) -> tuple[Interval, ...]:
    """The times between the samples, at most about ``most``; none has a length of 0."""
    if len(timeline) < 2:
        return ()
    least_s = (timeline[-1].at_s - timeline[0].at_s) / most
    found: list[Interval] = []
    before, peak = timeline[0], timeline[0].in_flight
    for sample in timeline[1:]:
        peak = max(peak, sample.in_flight)
        if sample.at_s - before.at_s >= max(least_s, 1e-9):
            found.append(Interval(before=before, after=sample, in_flight=peak))
            before, peak = sample, sample.in_flight
    if found and timeline[-1] is not before:  # the rest is too short for an interval of its own
        last = found.pop()
        peak = max(peak, last.in_flight)
        found.append(Interval(before=last.before, after=timeline[-1], in_flight=peak))
    return tuple(found)


def requests_per_minute_now(timeline: Sequence[Sample]) -> float | None:
    """The attempts of the last minute; ``None`` in the first one."""
    earlier = [sample for sample in timeline if sample.at_s <= timeline[-1].at_s - 60]
    if not earlier:
        return None
    return Interval(before=earlier[-1], after=timeline[-1]).per_minute("attempts")
