"""One FIFO queue for each token bucket, so that an exhausted bucket never blocks another.

Only the head of a queue holds a place in its bucket: a reservation that the bucket admits in its turn. Its
tokens must have been counted before, by any thread, outside the lock. A request that is to be sent again
returns to the head of its queue once its backoff has expired. Other runs may share a bucket. If a call of
theirs admits a head of this run, the next :meth:`RequestQueues.admit` returns it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Hashable

from parallel_processor.models import Estimate, WaitCause
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.tokens.estimates import Cost
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.replicas import AnyBucket, BucketGroup, share_wait
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest

_FEW = 8  # in a queue: no reason to stay in another lane
_LOOK_AGAIN_S = 0.25  # while the next lane is crowded


class _BucketQueue:
    """The requests that wait for one bucket.

    Attributes:
        first: the head of the queue; ``None`` unless it has a place in the bucket.
        reservation: that place.
        pending: the requests behind it whose tokens are counted.
        uncounted: the requests behind those, whose tokens are not.
        counting: how many others are being counted by some thread.
    """

    __slots__ = ("counting", "first", "pending", "reservation", "uncounted")

    def __init__(self) -> None:
        self.counting = 0
        self.uncounted: deque[PendingRequest] = deque()
        self.pending: deque[PendingRequest] = deque()
        self.first: PendingRequest | None = None
        self.reservation: Reservation | None = None

    def append(self, pending: PendingRequest) -> None:
        """Put ``pending`` at the end."""
        (self.uncounted if pending.estimate is None else self.pending).append(pending)

    def oldest(self) -> PendingRequest | None:
        """The one that came first; ``None`` if there is none, or if it is admitted. Takes no lock."""
        reservation = self.reservation
        if (first := self.first) is not None:
            return first if reservation is None or reservation.admitted_at is None else None
        with contextlib.suppress(IndexError):  # taken meanwhile
            return self.pending[0] if self.pending else self.uncounted[0]
        return None

    def take_oldest(self, bucket: AnyBucket) -> None:
        """Take that one out; its place in ``bucket`` is given back."""
        self.give_place_back(bucket)
        (self.pending or self.uncounted).popleft()

    def give_place_back(self, bucket: AnyBucket) -> bool:
        """Give up the place in ``bucket``; false if there is none."""
        if self.reservation is None or self.first is None:
            return False
        bucket.cancel(self.reservation)
        self.pending.appendleft(self.first)
        self.reservation = self.first = None
        return True

    @property
    def is_empty(self) -> bool:
        """True if nothing waits, and nothing is counted."""
        return not (self.first or self.pending or self.uncounted or self.counting)


class RequestQueues:
    """The waiting requests of one run. Not thread-safe: the dispatcher's lock guards it.

    Only :meth:`put` takes no lock. What the reader has put is queued by the next :meth:`take_in`.

    Args:
        cost: what an attempt is expected to be charged if it is sent now.
        wake: the event that a bucket sets when the head of its queue should be polled.
        lanes: where a request goes on to that has waited too long; ``None`` if nowhere.

    Attributes:
        inbox: what the reader has put, and is not in its queue yet.
        is_closed: true after :meth:`clear`: nothing is taken in any more.
        is_last: true once nothing more will be put. The reader sets it.
        all_wait: true if, at the last :meth:`take_places`, every queue waited for its bucket, so that
            requests for another bucket may be read. False if all requests so far were for one bucket,
            which waits for the server's load: it is not worth it to look further.
    """

    def __init__(
        self, cost: Callable[[Estimate], Cost], wake: WakeEvent, lanes: Lanes | None = None
    ) -> None:
        self._cost, self.wake = cost, wake
        self._lanes = None if lanes is None or lanes.is_single else lanes
        self._queues: dict[AnyBucket, _BucketQueue] = {}  # in turn; no queue is empty
        self._known: set[AnyBucket] = set()
        self._later: list[tuple[float, int, PendingRequest]] = []  # a heap of requests in a backoff
        self._numbers, self.inbox = itertools.count(), deque[PendingRequest]()
        self.all_wait = self.is_closed = self.is_last = False
        self._queued = self._gone_bytes = self._closings = self._put_bytes = 0

    @property
    def count(self) -> int:
        """How many requests are queued, those in the inbox included."""
        return len(self.inbox) + self._queued  # what moves meanwhile counts twice, not never

    @property
    def size_bytes(self) -> int:
        """The payload of these, and of those in a backoff. The reader alone changes ``_put_bytes``."""
        return self._put_bytes - self._gone_bytes

    @property
    def later(self) -> int:
        """How many requests are in a backoff."""
        return len(self._later)

    @property
    def is_counting(self) -> bool:
        """True while any thread counts a request."""
        return any(queue.counting for queue in self._queues.values())

    def __len__(self) -> int:
        return len(self._queues)

    def put(self, pending: PendingRequest) -> bool:
        """Put ``pending`` into the inbox; true if its queue is empty. For the reader, without the lock."""
        self._put_bytes += len(pending.request.payload)
        self.inbox.append(pending)
        return pending.group not in self._queues

    def take_out(self) -> PendingRequest | None:
        """Take a request out of the inbox again, if there is one. For the reader, without the lock."""
        try:
            pending = self.inbox.popleft()
        except IndexError:
            return None
        self._put_bytes -= len(pending.request.payload)
        return pending

    def take_in(self, count: int) -> None:
        """Put so many requests from the inbox at the end of their queues."""
        self._queued += count  # first: the reader may look at any moment
        for _ in range(count):
            pending = self.inbox.popleft()
            self._queue_of(pending.group).append(pending)

    def take_uncounted(self) -> PendingRequest | None:
        """A request whose queue can't go on before it is counted; give it to :meth:`add_counted`."""
        for queue in self._queues.values():
            if queue.uncounted and queue.reservation is None and not queue.pending:
                queue.counting += 1
                return queue.uncounted.popleft()
        return None

    def add_counted(self, pending: PendingRequest) -> bool:
        """Put back a request that was counted; false if its queue was removed meanwhile."""
        queue = self._queues.get(pending.group)
        if queue is None or not queue.counting:
            self._gone_bytes += len(pending.request.payload)
            return False
        queue.counting -= 1
        queue.pending.append(pending)
        return True

    def add_again(self, pending: PendingRequest, due_at: float) -> None:
        """Queue ``pending`` first, or last if it is new in its lane, at ``due_at``; -inf is at once."""
        self._gone_bytes -= len(pending.request.payload)
        if self._lanes is not None and self._lanes.closings > self._closings:
            self._closings = self._lanes.closings  # no worker takes what is in such a lane
            self._let_go_on(self._lanes, -math.inf)
        if due_at == -math.inf and pending.lane and pending.is_fresh:
            self._put_last(pending)
        elif due_at == -math.inf:
            self._put_first(pending)
        else:
            heapq.heappush(self._later, (due_at, next(self._numbers), pending))

    def release_due(self, now: float) -> float:
        """Queue what is due, and let go on what has waited too long; when there is more to do."""
        later, due = self._later, []
        while later and later[0][0] <= now:
            due.append(heapq.heappop(later)[2])
        for pending in reversed(due):
            self._put_first(pending)
        next_at = math.inf if self._lanes is None else self._let_go_on(self._lanes, now)
        return min(next_at, later[0][0]) if later else next_at

    def _let_go_on(self, lanes: Lanes, now: float) -> float:
        """Put what has waited too long for its bucket, not for a worker, into the next lane's queue."""
        next_at = math.inf
        for bucket, queue in tuple(self._queues.items()):
            waits = queue.reservation is not None and queue.reservation.admitted_at is None
            is_full = lanes.is_full(bucket, now)
            while (pending := queue.oldest()) is not None:
                due_at = self._leaves_at(pending, lanes, now, is_full)
                if due_at > now or (not waits and due_at > -math.inf):
                    next_at = min(next_at, due_at if waits else max(due_at, now + _LOOK_AGAIN_S))
                    break
                queue.take_oldest(bucket)
                self._queued -= 1
                if not lanes.move_on(pending):
                    self._put_first(pending)
                    break
                self._put_last(pending)
            if queue.is_empty:
                del self._queues[bucket]
        return next_at

    def _leaves_at(self, pending: PendingRequest, lanes: Lanes, now: float, is_full: bool) -> float:
        """When ``pending`` goes on. One that had no turn yet stays while it would wait there as well."""
        due_at, there, here = lanes.leaves_at(pending), lanes.next_tier(pending), pending.group
        if due_at == -math.inf or there is None:
            return due_at
        if not is_full and (due_at > now or not pending.is_fresh):
            return due_at
        stays = self.is_crowded(there) or (not is_full and share_wait(there, here))
        return now + _LOOK_AGAIN_S if stays else min(due_at, now)

    def _put_last(self, pending: PendingRequest) -> None:
        self._queue_of(pending.group).append(pending)
        self._queued += 1

    def is_waiting(self, bucket: AnyBucket) -> bool:
        """True if any wait for ``bucket``, as far as can be seen. Any thread may ask."""
        return bucket in self._queues or len(self.inbox) > 0

    def is_crowded(self, bucket: AnyBucket) -> bool:
        """True if many wait for ``bucket``: more than it has in flight. Any thread may ask."""
        queue = self._queues.get(bucket)
        waiting = 0 if queue is None else len(queue.pending) + len(queue.uncounted)
        return waiting >= max(_FEW, bucket.in_flight)

    def _put_first(self, pending: PendingRequest) -> None:
        self._queue_of(pending.group).pending.appendleft(pending)
        self._queued += 1

    def _queue_of(self, bucket: AnyBucket) -> _BucketQueue:
        queue = self._queues.get(bucket)
        if queue is None:
            queue = self._queues[bucket] = _BucketQueue()
            self._known.add(bucket)
            self.all_wait = False
        return queue

    def admit(self) -> AdmittedRequest | None:
        """The next head of a queue that its bucket admits, each queue in its turn; ``None`` if none."""
        asked: set[Hashable] | None = None  # a poll is for all buckets that share limits
        for bucket, queue in self._queues.items():
            reservation = queue.reservation
            if reservation is None:
                if not queue.pending:
                    continue
                reservation = self._take_place(bucket, queue)
            elif reservation.admitted_at is None:
                asked = set() if asked is None else asked
                if bucket.shared_limits not in asked:
                    asked.add(bucket.shared_limits)
                    bucket.poll(reservation)
            if reservation.admitted_at is not None:
                return self._leave(bucket, queue, reservation)
        return None

    def _take_place(self, bucket: AnyBucket, queue: _BucketQueue) -> Reservation:
        estimate = queue.pending[0].estimate
        assert estimate is not None
        tokens, output_tokens = self._cost(estimate)
        queue.reservation = reservation = Reservation(
            tokens, self.wake, output_tokens=output_tokens
        )
        queue.first = pending = queue.pending.popleft()
        if isinstance(bucket, BucketGroup):
            bucket.place(reservation, pending, self.count if self.is_last else math.inf)
        else:
            bucket.enqueue(reservation)
        return reservation

    def _leave(
        self, bucket: AnyBucket, queue: _BucketQueue, reservation: Reservation
    ) -> AdmittedRequest:
        pending, queue.reservation, queue.first = queue.first, None, None
        assert pending is not None
        if isinstance(bucket, BucketGroup):
            pending.bucket, reservation = bucket.admitted(reservation)
        is_empty = not (queue.pending or queue.uncounted or queue.counting)
        if is_empty or len(self._queues) > 1:
            del self._queues[bucket]
            if not is_empty:  # its next turn is behind the others'
                self._queues[bucket] = queue
        self.all_wait = False
        self._queued -= 1
        self._gone_bytes += len(pending.request.payload)
        return AdmittedRequest(pending, reservation)

    def take_places(self, in_flight: int = 0) -> float:
        """Give each queue's head a place; seconds until one may be admitted.

        0 if one is admitted already, or if one has to be counted first. No place is taken where only the
        end of one of this run's ``in_flight`` requests can make room: :meth:`admit` is called then.
        """
        delay, all_wait = math.inf, len(self._queues) > 0
        if in_flight and len(self._known) == 1:
            (bucket,) = self._known
            if bucket.is_full_of(in_flight):
                self.all_wait = False
                return delay
        for bucket, queue in self._queues.items():
            reservation = queue.reservation
            if reservation is None:
                if not queue.pending:
                    all_wait = False
                    if not queue.counting and bucket.has_room:
                        break
                    continue
                reservation = self._take_place(bucket, queue)
            if reservation.admitted_at is not None:
                break
            own = bucket.delay_of(reservation) if isinstance(bucket, BucketGroup) else bucket.delay
            may_go_on = self._lanes is not None and bucket.wait_cause is WaitCause.PAUSE
            delay = min(delay, own, _LOOK_AGAIN_S if may_go_on else own)
        else:
            is_load = all_wait and self.wait_cause is WaitCause.CONCURRENCY
            self.all_wait = all_wait and (len(self._known) > 1 or not is_load)
            return delay
        self.all_wait = False
        return 0.0

    def give_places_back(self) -> None:
        """Give up every place: nothing more can be sent for now, and other runs may go first."""
        for bucket, queue in self._queues.items():
            if queue.give_place_back(bucket):
                self.all_wait = False

    def remove(self, bucket: AnyBucket) -> list[PendingRequest]:
        """Remove every request for ``bucket``, also those in a backoff, and return them."""
        queue, left = self._queues.pop(bucket, None), []
        self._known.discard(bucket)
        if queue is not None:
            queue.give_place_back(bucket)
            left = [*queue.pending, *queue.uncounted]
            self._queued -= len(left) + queue.counting
        left += [pending for _, _, pending in self._later if pending.group is bucket]
        self._later = [each for each in self._later if each[2].group is not bucket]
        heapq.heapify(self._later)
        self._gone_bytes += sum(len(pending.request.payload) for pending in left)
        return left

    def clear(self) -> list[PendingRequest]:
        """Remove every request, also those in a backoff, and return them. Take in no others."""
        self.is_closed = True
        self.give_places_back()
        queues = self._queues.values()
        left = [each for queue in queues for each in (*queue.pending, *queue.uncounted)]
        self._queued = 0
        left += [pending for _, _, pending in self._later]
        self._gone_bytes += sum(len(pending.request.payload) for pending in left)
        self._queues.clear()
        self._later.clear()
        return left

    # What the queues wait for.

    @property
    def wait_cause(self) -> WaitCause:
        """What the head that may be admitted soonest waits for."""
        return _cause(min(self._queues, key=lambda bucket: bucket.delay))

    def causes(self, idle: WaitCause, is_full: bool) -> list[tuple[TokenBucket, WaitCause]]:
        """What each bucket waits for: ``idle`` if it has no queue, or if the run is full.

        Leaves out what is set aside and, while the run is full, buckets without a queue.
        """
        causes = []
        for group, queue in self._queues.items():
            is_placed = queue.reservation is not None
            for bucket in group.alive:
                is_others = is_placed and not bucket.wait_cause  # another member has the place
                causes.append((bucket, idle if is_full or is_others else _cause(bucket)))
        idle_groups = () if is_full and causes else self._known - self._queues.keys()
        return causes + [(bucket, idle) for group in idle_groups for bucket in group.alive]


def _cause(bucket: AnyBucket) -> WaitCause:
    """What the queue of ``bucket`` waits for, even if its head has no place yet."""
    if bucket.wait_cause:
        return WaitCause(bucket.wait_cause)
    return WaitCause.TOKEN_COUNTING if bucket.has_room else WaitCause.CONCURRENCY
