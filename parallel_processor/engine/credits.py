"""Credits bound how much of a run is under way: read, queued, in flight, and not yet on record.

* At most ``max_workers`` requests are in flight. Until one is answered, it is at most 16 for a twentieth of
  a second: where that is enough for an answer, few suffice. Then it is at most 50 for a second: a mistake
  that fails them all should not cost thousands. Of packs, so many inputs are in flight, or one pack.
* ``max_workers`` more are read ahead of them; from 16 workers on four times as many, up to ``READ_AHEAD``.
  The reader has its turn behind all workers that are ready to run, and each of them takes a request.
* While every queue waits for its bucket, up to ``LOOK_AHEAD`` requests are read, but at most 16 MB: one of
  them may be for another bucket, which admits it.
* An outcome that is not on record counts like a request in flight, and so does a request in a backoff.
  Some more outcomes may wait for a writer that writes many at once (:class:`WriterSlack`).
* With a budget, an attempt is sent only if the most that it may cost fits. A pack is sent only while its
  servers take as many inputs.
* The requests and responses that wait for the writer are bounded in bytes, too. While they are above the
  bound, nothing is read. Nothing is sent either, unless the writer waits for a request that may have to be
  sent first: one that writes in order does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from parallel_processor.engine.queues import RequestQueues
from parallel_processor.models import WaitCause
from parallel_processor.planning.spending import Spending
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.workers.pending import PendingRequest

LOOK_AHEAD = 4096
READ_AHEAD = 256
READ_AT_ONCE = 64  # before it is asked again whether they are too long
_MANY_WORKERS = 16
_FIRST, _CAREFUL = 16, 50  # in flight before the first answer
_FIRST_S, _CAREFUL_S = 0.05, 0.95  # for so long
_LOOK_AHEAD_BYTES = 16 * 1024 * 1024
Divide = Callable[[PendingRequest, bool], Sequence[PendingRequest]]
"""Makes a pack that is too large its first part, and returns the others. With true, any pack is halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSlack:
    """What may wait for the writer, besides ``max_workers`` outcomes.

    Attributes:
        outcomes: so many more.
        size_bytes: of their requests and responses together. What is in flight comes on top.
        in_order: the writer may wait for a request that was not sent yet, so that sending goes on.
        on_unanswered: called with the number of each request that the sink gets no outcome of. Any thread
            calls it.
    """

    outcomes: int
    size_bytes: float = math.inf
    in_order: bool = False
    on_unanswered: Callable[[int], None] | None = None


NO_SLACK = WriterSlack(outcomes=0)
WRITER_SLACK = WriterSlack(outcomes=256, size_bytes=16 * 1024 * 1024)
"""For a writer that writes many outcomes at once."""
ORDERED_SLACK = WriterSlack(outcomes=65_536, size_bytes=64 * 1024 * 1024, in_order=True)
"""For a writer that writes in the order of the input. While one request takes 10 s, or is sent again,
others go on for so many answers: enough for 4,000 a second."""


def ahead_of(max_workers: int) -> int:
    """How many requests may be read that wait for one of so many workers."""
    return min(4 * max_workers if max_workers >= _MANY_WORKERS else max_workers, READ_AHEAD)


class Credits:
    """The counts of one run, and how many more requests they permit to read.

    A request that was read holds a credit until its outcome is on record, or it will have none. Not
    thread-safe: the dispatcher's lock guards every change, but for the fields of the reader's thread.
    Any thread may read the attributes.

    Attributes:
        max_workers: how many requests may be in flight now.
        spending: says which attempts fit the budget; ``None`` without one.
        has_checks: true if :meth:`fits` has to be asked.
        is_careful: true until :meth:`open` is called, if that makes a difference.
        in_flight: how many requests are in flight.
        read_ahead: how many requests may be read that wait for a worker.
        held: the credits of the requests that were taken out of the inbox.
        held_bytes: of the outcomes that workers gave to the writer, until they are on record.
        heavy_at: the most bytes that may wait for the writer.
        is_heavy: true from there on. The lock guards these three.
        reader_waits: true if the reader waits to be woken. The reader sets it.
        is_last: true once nothing more is read. The reader sets it.
    """

    def __init__(
        self,
        queues: RequestQueues,
        max_workers: int,
        slack: WriterSlack,
        spending: Spending | None = None,
        divide: Divide | None = None,
        inputs: int = 1,
    ) -> None:
        self._queues, self.spending, self._divide = queues, spending, divide
        self.has_checks = spending is not None or divide is not None
        self.read_ahead = ahead_of(max_workers)
        self._slack = slack
        self._most_workers = max_workers
        self._careful = min(max_workers, max(1, _CAREFUL // inputs))
        self.max_workers = min(max_workers, max(1, _FIRST // inputs))
        self.is_careful = self.max_workers < max_workers
        self.in_flight = self.held = self.held_bytes = 0
        self.heavy_at, self.is_heavy = slack.size_bytes, False
        # Credits for outcomes that were never queued, less those that the program took. For the reader.
        self._skipped = self._skipped_bytes = 0
        self.reader_waits = self.is_last = False

    def take_in(self) -> None:
        """Queue what the reader has put into the inbox. When the run is over, the reader drops it."""
        if (count := len(self._queues.inbox)) and not self._queues.is_closed:
            self.held += count  # first: the reader may look at any moment
            self._queues.take_in(count)

    def skip(self, size_bytes: int) -> None:
        """The reader read a request that has an outcome already, which is not on record yet."""
        self._skipped += 1
        self._skipped_bytes += size_bytes

    def yielded(self, count: int, _size_bytes: int) -> None:
        """The program has taken so many outcomes, in the reader's thread."""
        self._skipped -= count

    def record(self, count: int, size_bytes: int) -> bool:
        """So many outcomes are on record; true if requests may be sent again that had to wait for that."""
        was_heavy = self.is_heavy
        self.held -= count
        self.held_bytes -= size_bytes
        self.is_heavy = self._weighs_too_much()
        return was_heavy and not self.is_heavy

    def add(self, pending: PendingRequest, due_at: float) -> bool:
        """Queue a request that another one came apart into; false if it must be dropped."""
        if self._queues.is_closed:
            self.held += pending.retry_state is not None  # else it will have no outcome
            return False
        self.held += 1
        self._queues.add_again(pending, due_at)
        return True

    @property
    def careful_s(self) -> float:
        """For how long so few may be in flight while none is answered."""
        if not self.is_careful:
            return math.inf
        return _FIRST_S if self.max_workers < self._careful else _CAREFUL_S

    def widen(self, widen_at: float, now: float) -> float:
        """From ``widen_at`` on, let more be in flight, though none was answered; when to do so again."""
        if now >= widen_at and self.is_careful:
            if self.max_workers < self._careful:
                self.max_workers = self._careful
            else:
                self.open()
            return now + self.careful_s
        return widen_at if self.is_careful else math.inf

    def open(self) -> None:
        """The start is over: all workers may be used."""
        self.max_workers, self.is_careful = self._most_workers, False

    def lower(self, max_workers: int) -> None:
        """No more than ``max_workers`` threads can be had."""
        self._queues.give_places_back()
        self._most_workers = max_workers
        self.open()

    def available(self, *, all_wait: bool) -> int:
        """How many more requests may be read.

        ``all_wait``: every queue waits for its bucket, and the next request may be for another one.
        """
        waiting = self._queues.count
        if waiting and self._queues.size_bytes >= _LOOK_AHEAD_BYTES or self.is_heavy:
            return 0
        if self._skipped_bytes and self._weighs_too_much():
            return 0
        left = self._most_workers + self.read_ahead + self._slack.outcomes
        left -= self.under_way
        if all_wait and self.in_flight < self.max_workers:
            return max(0, min(LOOK_AHEAD - waiting, left + waiting))
        return max(0, min(self.read_ahead - waiting, left))

    @property
    def under_way(self) -> int:
        """How many credits are taken: one for each request that is read and not on record."""
        return len(self._queues.inbox) + self.held + self._skipped

    @property
    def rest(self) -> int:
        """The same once nothing more is read; 0 before. It never grows."""
        return self.under_way if self.is_last else 0

    def beside(self, rest: int) -> int:
        """How many may be read, so that with ``rest`` others no more are in flight than may be."""
        return self._most_workers - self.under_way - rest

    def _weighs_too_much(self) -> bool:
        return self.held_bytes + self._skipped_bytes >= self.heavy_at

    @property
    def is_full(self) -> bool:
        """True if as many requests are in flight as may be."""
        if self.in_flight >= self.max_workers or (self.is_heavy and not self._slack.in_order):
            return True
        return self.spending is not None and self.spending.is_short

    def fits(self, pending: PendingRequest, reservation: Reservation) -> bool:
        """True if the attempt may be sent. Else the request is first in its queue again.

        A pack that will never fit comes apart: a part of it may.
        """
        if not self._comes_apart(pending, in_halves=False) and self._has_room(pending):
            return True
        pending.bucket.cancel(reservation)
        self._queues.add_again(pending, -math.inf)
        self._queues.give_places_back()
        return False

    def _has_room(self, pending: PendingRequest) -> bool:
        if self.spending is None:
            return True
        divide = partial(self._comes_apart, pending, in_halves=True)
        return self.spending.reserve(pending, self._queues.wake.set, divide)

    def _comes_apart(self, pending: PendingRequest, *, in_halves: bool) -> bool:
        others = () if self._divide is None else self._divide(pending, in_halves)
        for each in reversed(others):  # each is put first
            self.add(each, -math.inf)
        return len(others) > 0

    def cancel(self, pending: PendingRequest, reservation: Reservation) -> None:
        """An admitted request is not sent."""
        self.in_flight -= 1
        pending.bucket.cancel(reservation)
        if self.spending is not None:
            self.spending.release(pending)

    @property
    def full_cause(self) -> WaitCause:
        """What the run waits for then: a worker, the first answer, or the budget."""
        if self.spending is not None and self.spending.is_short:
            return WaitCause.BUDGET
        return WaitCause.CONCURRENCY if self.is_careful else WaitCause.MAX_WORKERS

    def take_places(self) -> float:
        """Give the heads of the queues a place; seconds until one may be admitted and sent."""
        return math.inf if self.is_full else self._queues.take_places(self.in_flight)

    @property
    def is_idle(self) -> bool:
        """True if no request is queued, in a backoff, or in flight."""
        return self._queues.count == self._queues.later == self.in_flight == 0

    @property
    def is_empty(self) -> bool:
        """True if, besides, every outcome is on record."""
        return self.under_way <= 0

    @property
    def unrecorded(self) -> int:
        """How many outcomes are not on record."""
        return self.under_way - self._queues.count - self._queues.later - self.in_flight

    @property
    def waits_for_records(self) -> bool:
        """True if outcomes that are not on record hold the run back, rather than requests in flight."""
        return self.is_heavy or self.unrecorded > self.in_flight + self._slack.outcomes / 2

    @property
    def writer_cause(self) -> WaitCause:
        """What the writer waits for then."""
        return WaitCause.ANSWERS if self._slack.in_order else WaitCause.DISK

    def wakes_reader(self, *, all_wait: bool) -> bool:
        """True, once, if the waiting reader is to be woken.

        Not for each request: when half of the read-ahead is available, and when everything has ended.
        """
        if not self.reader_waits:
            return False
        if self.is_empty or self.available(all_wait=all_wait) > self.read_ahead // 2:
            self.reader_waits = False
            return True
        return False
