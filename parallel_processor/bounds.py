"""How much of a run may be under way: read, waiting, in flight, and not yet on record.

In flight are ``max_workers`` at most. So many (64 at most) are read ahead of them, and up to
``LOOK_AHEAD`` while all buckets hold their lines up, in case they are another bucket's, but no more than
16 MB. Outcomes that are not on record, and requests in a backoff, count as if they were in flight, less
the ``slack`` for a writer that writes many at once.
"""

from __future__ import annotations

from parallel_processor.lines import Lines

LOOK_AHEAD = 4096
READ_AHEAD = 64
_LOOK_AHEAD_BYTES = 16 * 1024 * 1024


class Bounds:
    """The counts of one run, and what they allow. Not thread-safe: the dispatcher's lock guards it.

    Anybody may look at ``in_flight`` and at ``unrecorded``, the number of outcomes not on record.
    """

    def __init__(self, lines: Lines, max_workers: int) -> None:
        self._lines = lines
        self._max_workers = max_workers
        self._ahead = min(max_workers, READ_AHEAD)
        self.slack = 0
        self.in_flight = self.unrecorded = 0
        self._reader_waits = False
        self._is_asleep = False  # the dispatcher's thread

    def _room(self) -> int:
        """How many more may be read."""
        waiting = self._lines.count
        if waiting and self._lines.size_bytes >= _LOOK_AHEAD_BYTES:
            return 0
        left = self._max_workers + self._ahead + self.slack
        left -= self.in_flight + self.unrecorded + self._lines.later
        if self._is_asleep and not self._is_full and self._lines.may_be_passed:
            return max(0, min(LOOK_AHEAD - waiting, left))
        return max(0, min(self._ahead, left) - waiting)

    @property
    def _is_full(self) -> bool:
        return self.in_flight >= self._max_workers

    @property
    def _is_over(self) -> bool:
        """True if nobody is left who could be sent, now or later."""
        return self._lines.count == self._lines.later == self.in_flight == 0

    def _is_empty(self) -> bool:
        return self._is_over and self.unrecorded <= 0

    def _should_ring(self) -> bool:
        """True if the reader should know of room: not for each request."""
        if self._is_empty() or self._room() > self._ahead // 2:
            self._reader_waits = False
            return True
        return False
