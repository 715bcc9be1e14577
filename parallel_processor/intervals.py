"""What happened between the samples of a run.

Samples count from the start, so that any two of them tell what was between them exactly. Where there are
more than a chart can show, the ones in between are left out, and nothing is lost but detail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parallel_processor.figures import Sample
from parallel_processor.latencies import percentile_s

_MOST = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The time between two samples; ``in_flight`` is the most that was seen in it."""

    before: Sample
    after: Sample
    in_flight: int

    @property
    def seconds(self) -> float:
        """How long it is; above 0."""
        return self.after.at_s - self.before.at_s

    def per_minute(self, name: str) -> float:
        """What the count ``name`` of a sample rose by a minute."""
        rise = getattr(self.after, name) - getattr(self.before, name)
        return float(max(rise, 0)) * 60 / self.seconds

    def errors_per_minute(self, kind: str) -> float:
        """The failed attempts of one kind, a minute."""
        rise = self.after.errors.get(kind, 0) - self.before.errors.get(kind, 0)
        return max(rise, 0) * 60 / self.seconds

    def share(self, causes: Sequence[str]) -> float:
        """The share of the time, 0 to 1, that any of ``causes`` held the sending back."""
        waited = sum(
            self.after.held_by.get(c, 0.0) - self.before.held_by.get(c, 0.0) for c in causes
        )
        return min(max(waited / self.seconds, 0.0), 1.0)

    def latency_s(self, percent: float) -> float | None:
        """A percentile of the answers that came in it; ``None`` if none did."""
        earlier = Counter(dict(enumerate(self.before.latencies)))
        rise = [n - earlier[i] for i, n in enumerate(self.after.latencies)]
        return percentile_s(rise, percent)


def intervals(timeline: Sequence[Sample], most: int = _MOST) -> tuple[Interval, ...]:
    """The times between the samples, at most about ``most``, none of them without length."""
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
    if found and timeline[-1] is not before:  # too short for an interval of its own
        last = found.pop()
        peak = max(peak, last.in_flight)
        found.append(Interval(before=last.before, after=timeline[-1], in_flight=peak))
    return tuple(found)


def requests_per_minute_now(timeline: Sequence[Sample]) -> float | None:
    """The attempts of the last minute; ``None`` if the samples don't tell."""
    last = timeline[-1] if timeline else None
    earlier = [s for s in timeline if last is not None and s.at_s <= last.at_s - 60]
    if last is None or not earlier:
        return None
    recent = Interval(before=earlier[-1], after=last, in_flight=last.in_flight)
    return recent.per_minute("attempts")
