"""The lines in which requests wait for their buckets: first come, first served, and none for another.

The first of each line has a place in its bucket, for which its tokens have to be counted before: by
whichever thread has the time, and not under a lock. A request that is to be tried again comes back to the
head of its line, once its backoff is over. What a bucket admits while it is asked for something else
(other runs may share it) is sent by whoever asks here next.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable

from parallel_processor.ceiling import Ceiling
from parallel_processor.limiter import Reservation, TokenBucket
from parallel_processor.models import Cost, Estimate
from parallel_processor.pending import Admitted, Waiting


class _Line:
    """The requests that wait for one bucket. ``first`` has the place in it; else both are ``None``.

    Behind ``waiting`` come those ``uncounted``; ``counting`` more are with the threads that count them.
    """

    __slots__ = ("counting", "first", "place", "uncounted", "waiting")

    def __init__(self) -> None:
        self.counting = 0
        self.uncounted: deque[Waiting] = deque()
        self.waiting: deque[Waiting] = deque()
        self.first: Waiting | None = None
        self.place: Reservation | None = None


class Lines:
    """The waiting requests of one run. Not thread-safe: the dispatcher's lock guards it.

    ``cost`` tells what an attempt is expected to be charged if it is sent now; ``wake`` is set by a
    bucket when its first in line should be polled.
    """

    def __init__(self, cost: Callable[[Estimate], Cost], wake: threading.Event) -> None:
        self._cost = cost
        self._wake = wake
        self._lines: dict[TokenBucket, _Line] = {}  # in turn; none is empty
        self._known: set[TokenBucket] = set()
        self._later: list[tuple[float, int, Waiting]] = []  # a heap of what is to be tried again
        self._numbers = itertools.count()
        self.count = self.size_bytes = 0  # those in the lines; the bytes of the later ones, too

    @property
    def later(self) -> int:
        """How many wait for the end of their backoff."""
        return len(self._later)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, waiting: Waiting) -> bool:
        """Put ``waiting`` at the end of its line; true if nobody else is in it."""
        is_new = waiting.bucket not in self._lines
        line = self._line(waiting.bucket)
        (line.uncounted if waiting.estimate is None else line.waiting).append(waiting)
        self.count += 1
        self.size_bytes += len(waiting.request.payload)
        return is_new

    def take_uncounted(self) -> Waiting | None:
        """One that has to be counted before anybody of its line can go; see :meth:`add_counted`."""
        for line in self._lines.values():
            if line.uncounted and line.place is None and not line.waiting:
                line.counting += 1
                return line.uncounted.popleft()
        return None

    def add_counted(self, waiting: Waiting) -> bool:
        """What was taken to be counted has been, or will never be; false if all were dropped since."""
        line = self._lines.get(waiting.bucket)
        if line is None or not line.counting:
            return False
        line.counting -= 1
        line.waiting.append(waiting)
        return True

    def add_again(self, waiting: Waiting, due_at: float) -> None:
        """Put ``waiting`` to the head of its line at ``due_at``, at once if that is minus infinity."""
        self.size_bytes += len(waiting.request.payload)
        if due_at == -math.inf:
            self._put_first(waiting)
        else:
            heapq.heappush(self._later, (due_at, next(self._numbers), waiting))

    def call(self, now: float) -> float:
        """Let those come whose backoff is over; the time of the next one."""
        later, due = self._later, []
        while later and later[0][0] <= now:
            due.append(heapq.heappop(later)[2])
        for waiting in reversed(due):
            self._put_first(waiting)
        return later[0][0] if later else math.inf

    def _put_first(self, waiting: Waiting) -> None:
        self._line(waiting.bucket).waiting.appendleft(waiting)
        self.count += 1

    def _line(self, bucket: TokenBucket) -> _Line:
        line = self._lines.get(bucket)
        if line is None:
            line = self._lines[bucket] = _Line()
            self._known.add(bucket)
        return line

    def admit(self) -> Admitted | None:
        """The first that its bucket admits, each line in its turn; ``None`` if none does."""
        asked: set[Ceiling] = set()  # one poll is for all the buckets under a ceiling
        for bucket in tuple(self._lines):
            line = self._lines[bucket]
            if line.place is None:
                if not line.waiting:
                    continue
                self._take_place(bucket, line)
            elif line.place.admitted_at is None and bucket.ceiling not in asked:
                asked.add(bucket.ceiling)
                bucket.poll(line.place)
            if line.place is not None and line.place.admitted_at is not None:
                return self._leave(bucket, line, line.place)
        return None

    def _take_place(self, bucket: TokenBucket, line: _Line) -> None:
        estimate = line.waiting[0].estimate
        assert estimate is not None
        tokens, output_tokens = self._cost(estimate)
        line.place = Reservation(tokens, self._wake, output_tokens=output_tokens)
        line.first = line.waiting.popleft()
        bucket.enqueue(line.place)

    def _leave(self, bucket: TokenBucket, line: _Line, place: Reservation) -> Admitted:
        waiting, line.place, line.first = line.first, None, None
        assert waiting is not None
        del self._lines[bucket]
        if line.waiting or line.uncounted or line.counting:  # it is behind the others now
            self._lines[bucket] = line
        self.count -= 1
        self.size_bytes -= len(waiting.request.payload)
        return Admitted(waiting, place)

    def take_places(self) -> float:
        """Give each line's first a place; seconds until one may go, 0 if one may or can be counted now."""
        delay = math.inf
        for bucket, line in self._lines.items():
            if line.place is None:
                if not line.waiting:
                    if not line.counting and bucket.has_room:
                        return 0.0
                    continue
                self._take_place(bucket, line)
            if line.place is not None and line.place.admitted_at is not None:
                return 0.0
            delay = min(delay, bucket.delay)
        return delay

    def give_places_back(self) -> None:
        """Nobody here may be admitted for now."""
        for bucket, line in self._lines.items():
            if line.place is not None and line.first is not None:
                bucket.cancel(line.place)
                line.waiting.appendleft(line.first)
                line.place = line.first = None

    def clear(self) -> list[Waiting]:
        """Forget everybody who waits, and give them back."""
        self.give_places_back()
        lines = self._lines.values()
        left = [w for line in lines for each in (line.waiting, line.uncounted) for w in each]
        left += [waiting for _, _, waiting in self._later]
        self._lines.clear()
        self._later.clear()
        self.count = self.size_bytes = 0
        return left

    # What they wait for.

    @property
    def may_be_passed(self) -> bool:
        """True if all wait for their buckets, and one of another's may come behind them.

        Where only the server's load holds a single model back, it isn't worth to look for one.
        """
        places = [line.place for line in self._lines.values()]
        if not places or not all(place and place.admitted_at is None for place in places):
            return False
        return len(self._known) > 1 or self.held_by != "in flight"

    @property
    def held_by(self) -> str:
        """What the one who may go soonest waits for."""
        return _cause(min(self._lines, key=lambda bucket: bucket.delay))

    def causes(self, idle: str, is_full: bool) -> list[tuple[TokenBucket, str]]:
        """What each bucket waits for; ``idle`` is for those that nobody waits for, or all if full."""
        causes = [(bucket, idle if is_full else _cause(bucket)) for bucket in self._lines]
        return causes + [(bucket, idle) for bucket in self._known - self._lines.keys()]


def _cause(bucket: TokenBucket) -> str:
    """What those in line wait for, though nobody may have a place yet."""
    return bucket.held_by or ("token counting" if bucket.has_room else "in flight")
