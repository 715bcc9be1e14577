"""What a job has done so far, added up from what its workers tell: for progress, report and summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from parallel_processor.cluster.blocks import Block
from parallel_processor.cluster.job import BlockReport, Standing
from parallel_processor.exceptions import StopCause
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import Usage
from parallel_processor.report.counters import Counts
from parallel_processor.report.samples import RequestNote
from parallel_processor.report.snapshot import Snapshot, added
from parallel_processor.report.summary import Summary, counters_of

_MAX_NOTES = 100
_MAX_SHOWN = 5  # blocks that the text of a summary names


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A block that was given up: its lines may be in a journal, but it has no part.

    Attributes:
        start: its first byte, from 0.
        end: the first byte behind it.
        reason: why it was given up.
    """

    start: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSummary(Summary):
    """What a job on several workers did. ``attempts`` lack those that lost workers made last.

    Attributes:
        blocks: blocks that this run has finished.
        blocks_before: blocks that were finished before.
        blocks_set_aside: blocks that were given up. The same call tries them again.
        workers_lost: how often a worker was lost.
    """

    lines_keep_places: ClassVar[bool] = True
    blocks: int = 0
    blocks_before: int = 0
    blocks_set_aside: tuple[SetAside, ...] = ()
    workers_lost: int = 0

    def rows(self, *, with_stop: bool = True) -> Iterator[tuple[str, str]]:
        """The lines of the summary, each as a name and a text."""
        # Not super(): a dataclass with slots is another class than the one that this was written in.
        yield from Summary.rows(self, with_stop=with_stop)
        words = [f"{self.blocks:,} finished"]
        if self.blocks_before:
            words.append(f"{self.blocks_before:,} finished before")
        if self.blocks_set_aside:
            words.append(f"{len(self.blocks_set_aside):,} set aside")
        if self.workers_lost:
            words.append(f"workers lost: {self.workers_lost:,}")
        yield "blocks", ", ".join(words)
        for block in self.blocks_set_aside[:_MAX_SHOWN]:
            yield f"bytes {block.start:,} to {block.end:,}", f"set aside: {block.reason}"


class Tally:
    """Adds up. Only the thread of the driver changes it; any thread may read.

    ``shares_limits`` says that all workers have the same limits together, not each a part of them.
    ``already_failed`` is the number of failures that are kept, ``blocks_before`` that of the parts.
    """

    def __init__(
        self,
        total_bytes: int,
        *,
        shares_limits: bool = False,
        already_failed: int = 0,
        blocks_before: int = 0,
    ) -> None:
        self._shares_limits, self._already_failed = shares_limits, already_failed
        self._total_bytes = total_bytes  # of the blocks that this run is to send
        self._standings: dict[int, Standing] = {}  # by worker
        self._snapshots: dict[str, Snapshot] = {}  # by incarnation, those included that are gone
        self._lines = self._failed = self._already = self._bytes = 0  # of finished blocks
        self._errors_by_kind: Mapping[str, float] = {}
        self.notes: list[RequestNote] = []
        self.blocks = self.workers_lost = 0
        self._blocks_before = blocks_before
        self.set_aside: list[SetAside] = []

    def stands(self, worker: int, standing: Standing) -> None:
        """A worker has told how it is doing."""
        before = self._standings.get(worker)
        if before is not None and before.incarnation != standing.incarnation:
            self._bury(before)
        self._standings[worker] = standing
        self._snapshots[standing.incarnation] = standing.snapshot

    def lost(self, worker: int) -> None:
        """A worker was lost, with what it had in flight."""
        self.workers_lost += 1
        if (before := self._standings.pop(worker, None)) is not None:
            self._bury(before)

    def _bury(self, standing: Standing) -> None:
        idle = Snapshot()
        kept = dataclasses.replace(standing.snapshot, in_flight=0, usage=idle.usage)
        self._snapshots[standing.incarnation] = kept

    def finished(self, block: Block, report: BlockReport) -> None:
        """A block has its part."""
        self.blocks += 1
        self._bytes += block.size
        self._lines += report.lines
        self._failed += report.failed
        self._already += report.already
        self._errors_by_kind = added(self._errors_by_kind, report.errors_by_kind)
        self.notes += report.notes[: _MAX_NOTES - len(self.notes)]

    def give_up(self, block: Block, reason: str) -> None:
        """A block is set aside."""
        self.set_aside.append(SetAside(start=block.start, end=block.end, reason=reason))

    def standing(self, worker: int) -> Standing | None:
        """What a worker told last; ``None`` if nothing since it was lost."""
        return self._standings.get(worker)

    def snapshot(self) -> Snapshot:
        """All workers together, those included that were lost."""
        found = Snapshot()
        for snapshot in tuple(self._snapshots.values()):
            found = found.plus(snapshot, shares_limits=self._shares_limits)
        return found

    def counts(self) -> Counts:
        """The counters of all workers together."""
        return self.snapshot().counts

    def usage(self) -> Usage:
        """How much of the limits all workers use."""
        return self.snapshot().usage

    def waits(self) -> Mapping[WaitCause, float]:
        """How long sending waited, by cause: the mean of the workers."""
        return self._mean(self.snapshot().waited_s)

    def _mean(
        self, waited_s: Mapping[WaitCause, float], most_s: float = math.inf
    ) -> dict[WaitCause, float]:
        """The mean of the workers, at most ``most_s`` together: two runs of a worker may wait at once."""
        count, total_s = max(len(self._standings), 1), sum(waited_s.values())
        share = min(1 / count, most_s / total_s) if total_s else 0.0
        found = {cause: s * share for cause, s in waited_s.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self.snapshot().in_flight

    def fraction(self) -> float:
        """The share of this run's blocks that has been read, from 0 to 1."""
        if self._bytes >= self._total_bytes:
            return 1.0
        reading = sum(sum(each.read_bytes.values()) for each in tuple(self._standings.values()))
        return min((self._bytes + reading) / self._total_bytes, 0.9999)

    def summary(
        self, elapsed_s: float, *, stop_reason: str, stop_cause: StopCause, models: tuple[str, ...]
    ) -> ClusterSummary:
        """What the run did. If every block has its part, the counts of lines are exact."""
        found, is_whole = self.snapshot(), self._bytes >= self._total_bytes
        counts = dataclasses.replace(found.counts, unanswered=found.in_flight)
        if is_whole:
            fresh = self._lines - self._failed - self._already
            counts = dataclasses.replace(
                counts, answered=fresh, failed=self._failed, already_answered=self._already
            )
        by_kind = self._errors_by_kind if is_whole else found.counts.errors_by_kind
        kinds = sorted(by_kind.items(), key=lambda each: -each[1])
        buckets = [
            dataclasses.replace(bucket, waited_s=self._mean(bucket.waited_s, elapsed_s))
            for bucket in found.buckets
        ]
        return ClusterSummary(
            already_answered=counts.already_answered,
            already_failed=self._already_failed,
            left=0 if is_whole else counts.left(self.fraction()),
            left_is_exact=is_whole,
            elapsed_s=elapsed_s,
            errors_by_kind={kind: int(count) for kind, count in kinds},
            stop_reason=stop_reason,
            stop_cause=stop_cause,
            stopped_models=models,
            waited_s=self._mean(found.waited_s, elapsed_s),
            buckets=tuple(buckets),
            blocks=self.blocks,
            blocks_before=self._blocks_before,
            blocks_set_aside=tuple(self.set_aside),
            workers_lost=self.workers_lost,
            **counters_of(counts),
        )
