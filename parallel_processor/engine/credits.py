"""Credits bound how much of a run is under way: read, queued, in flight, and not yet on record.

* At most ``max_workers`` requests are in flight, and at most 50 until one is answered, or for a second: a
  mistake that fails them all should not cost thousands.
* ``max_workers`` more, but at most ``READ_AHEAD``, are read ahead of them.
* While every queue waits for its bucket, up to ``LOOK_AHEAD`` requests are read, but at most 16 MB: one of
  them may be for another bucket, which admits it.
* An outcome that is not on record counts like a request in flight, and so does a request in a backoff.
  ``writer_slack`` more outcomes may wait for a writer that writes many at once.
"""

from __future__ import annotations

from parallel_processor.engine.queues import RequestQueues

LOOK_AHEAD = 4096
READ_AHEAD = 64
_CAREFUL = 50
_LOOK_AHEAD_BYTES = 16 * 1024 * 1024


class Credits:
    """The counts of one run, and how many more requests they permit to read.

    Not thread-safe: the dispatcher's lock guards every change. Any thread may read the attributes.

    Attributes:
        max_workers: how many requests may be in flight now.
        in_flight: how many requests are in flight.
        unrecorded: how many outcomes are not on record.
        reader_waits: true if the reader waits to be woken.
    """

    def __init__(self, queues: RequestQueues, max_workers: int, writer_slack: int) -> None:
        self._queues = queues
        self._read_ahead = min(max_workers, READ_AHEAD)
        self._writer_slack = writer_slack
        self._most_workers = max_workers
        self.max_workers = min(max_workers, _CAREFUL)
        self.in_flight = self.unrecorded = 0
        self.reader_waits = False

    @property
    def is_careful(self) -> bool:
        """True until :meth:`open` is called, if that makes a difference."""
        return self.max_workers < self._most_workers

    def open(self) -> None:
        """The start is over: all workers may be used."""
        self.max_workers = self._most_workers

    def lower(self, max_workers: int) -> None:
        """No more than ``max_workers`` threads can be had."""
        self.max_workers = self._most_workers = max_workers

    def available(self, *, all_wait: bool) -> int:
        """How many more requests may be read.

        ``all_wait``: the dispatcher sleeps, so that every queue waits for its bucket.
        """
        pending = self._queues.count
        if pending and self._queues.size_bytes >= _LOOK_AHEAD_BYTES:
            return 0
        left = self._most_workers + self._read_ahead + self._writer_slack
        left -= self.in_flight + self.unrecorded + self._queues.later
        if all_wait and not self.is_full and self._queues.may_be_passed:
            return max(0, min(LOOK_AHEAD - pending, left))
        return max(0, min(self._read_ahead, left) - pending)

    @property
    def is_full(self) -> bool:
        """True if as many requests are in flight as may be."""
        return self.in_flight >= self.max_workers

    @property
    def is_idle(self) -> bool:
        """True if no request is queued, in a backoff, or in flight."""
        return self._queues.count == self._queues.later == self.in_flight == 0

    @property
    def is_empty(self) -> bool:
        """True if, besides, every outcome is on record."""
        return self.is_idle and self.unrecorded <= 0

    @property
    def waits_for_records(self) -> bool:
        """True if outcomes that are not on record hold the run back, rather than requests in flight."""
        return self.unrecorded > self.in_flight + self._writer_slack / 2

    def take_back(self, *, has_outcome: bool) -> None:
        """A request is not in flight any more; its outcome, if it has one, is not on record yet."""
        self.in_flight -= 1
        self.unrecorded += has_outcome

    def wakes_reader(self, *, all_wait: bool) -> bool:
        """True, once, if the waiting reader is to be woken.

        Not for each request: when half of the read-ahead is available, and when everything has ended.
        """
        if not self.reader_waits:
            return False
        if self.is_empty or self.available(all_wait=all_wait) > self._read_ahead // 2:
            self.reader_waits = False
            return True
        return False
