"""The way from reading to sending: requests wait here for their bucket, and leave in its order.

The thread that reads must not wait for a bucket: behind a request whose model has no capacity may stand
one whose model has. So it only puts what it reads into the *waiting room*. The dispatcher's thread
keeps a line for each bucket there, holds a place in the bucket for the first of each line, takes who is
admitted into flight, and hands it to the executor. Lines are first come, first served; no line waits
for another.

**What bounds it.** As many requests as may be in flight, ``max_workers``, can be here, waiting or in flight
until their record is written. While a bucket holds its line up, up to ``LOOK_AHEAD`` may be read, in case
they are another bucket's, but no more than 16 MB. Beyond that the reader waits, until the slow line moves.

**Who owns what.** The lines belong to the dispatcher's thread alone, the inbox and the counts are guarded
by ``_lock``. The thread is started by the first request and ends with the input or a stop; it is a daemon
only so that an iterator which nobody closes doesn't keep the interpreter. It isn't the caller's, so that
no KeyboardInterrupt comes between two steps of an admission.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from parallel_processor.buckets import Waiting
from parallel_processor.ceiling import Ceiling
from parallel_processor.ledger import Ledger
from parallel_processor.limiter import Reservation, TokenBucket
from parallel_processor.models import Cost, Estimate
from parallel_processor.stop import StopSignal

_log = logging.getLogger("parallel_processor")

LOOK_AHEAD = 4096
_LOOK_AHEAD_BYTES = 16 * 1024 * 1024


class _Line:
    """The requests that wait for one bucket; the first may have a place in it."""

    __slots__ = ("place", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self.place: Reservation | None = None


class Dispatcher:
    """The waiting room of one run, and the thread that empties it.

    ``cost`` tells what an attempt is expected to be charged if it is sent now. ``process`` runs in a
    thread of the executor for each admitted request, with its reservation; ``pass_by`` takes those
    that need no admission. ``on_room`` is called when more may be read. ``activity`` tells what holds
    the run back where no bucket does, given whether as many are in flight as may be.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        *,
        cost: Callable[[Estimate], Cost],
        process: Callable[[Waiting, Reservation], None],
        pass_by: Callable[[Waiting], None],
        on_room: Callable[[], None],
        activity: Callable[[bool], str],
        ledger: Ledger,
        stop: StopSignal,
        max_workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.error: BaseException | None = None  # a fault of ours, or the system's
        self._executor = executor
        self._cost = cost
        self._process = process
        self._pass_by = pass_by
        self._on_room = on_room
        self._activity = activity
        self._ledger = ledger
        self._stop = stop
        self._clock = clock
        self._wake = threading.Event()
        self._lines: dict[TokenBucket, _Line] = {}  # the thread's own, and in turn
        self._known: set[TokenBucket] = set()  # as are these
        self._lock = threading.Lock()  # guards what follows
        self._max_workers = max_workers
        self._inbox: deque[Waiting] = deque()
        self._waiting = self._waiting_bytes = 0  # inbox and lines
        self.in_flight = 0  # admitted, and not on record; anybody may look
        self._blocked = False  # every line waits for its bucket
        self._reader_waits = False
        self._is_idle = False  # the thread is about to wait
        self._closed = self._hurries = self._has_left = False
        self._has_threads = False
        name = "parallel-processor-dispatcher"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # The reader's side.

    def has_room(self) -> bool:
        """True if another request may be read; if not, ``on_room`` tells when that changes."""
        with self._lock:
            ok = self._may_read()
            self._reader_waits = not ok
            return ok

    def _may_read(self) -> bool:
        if self._waiting and self._waiting_bytes >= _LOOK_AHEAD_BYTES:
            return False
        if self._waiting + self.in_flight < self._max_workers:
            return True
        return self._blocked and self._waiting < LOOK_AHEAD and self.in_flight < self._max_workers

    def put(self, waiting: Waiting) -> None:
        """Take in what was read; after a stop it is dropped."""
        with self._lock:
            if self._has_left:
                return
            self._inbox.append(waiting)
            self._waiting += 1
            self._waiting_bytes += len(waiting.request.payload)
            wakes, self._is_idle = self._is_idle, False
        if wakes:
            self._wake.set()
        if self._thread.ident is None:
            self._thread.start()

    def close(self, *, hurry: bool = False) -> None:
        """Nothing more will be put, so that the thread ends when nothing waits.

        In a ``hurry`` what may go now does, and the rest is dropped.
        """
        with self._lock:
            self._closed, self._hurries = True, hurry
        self._wake.set()

    def join(self) -> None:
        """Wait until the thread has ended, which a stop or :meth:`close` brings about."""
        if self._thread.ident is not None:
            self._thread.join()

    def is_busy(self) -> bool:
        """True while anything waits or is in flight; ``on_room`` tells when that ends."""
        with self._lock:
            self._reader_waits = True
            return self._waiting > 0 or self.in_flight > 0

    def recorded(self, count: int) -> None:
        """So many that were in flight are on record, or never will be. Any thread may call it."""
        with self._lock:
            was_full = self.in_flight >= self._max_workers
            self.in_flight -= count
            reader_waits = self._reader_waits
        if was_full:
            self._wake.set()
        if reader_waits:
            self._on_room()

    # The dispatcher's thread.

    def _run(self) -> None:
        with self._stop.waking(self._wake):
            try:
                while self._turn():
                    pass
            except BaseException as error:  # the run ends with it instead of hanging
                self.error = error
                self._stop.set(error)
            finally:
                self._leave()

    def _turn(self) -> bool:
        """Admit whoever may be, and wait until that may change; false at the end."""
        self._wake.clear()
        if self._stop.is_set():
            return False
        taken = self._sort_in()
        delay = self._admit()
        with self._lock:
            if self._inbox:
                return True
            if self._closed and (self._hurries or not self._waiting):
                return False
            self._blocked = bool(self._lines)
            self._is_idle = True
            reader_waits = self._reader_waits
        if taken and reader_waits:
            self._on_room()
        self._wait(delay)
        return True

    def _sort_in(self) -> int:
        """Put what was read into its bucket's line; how many there were."""
        with self._lock:
            inbox, self._inbox = self._inbox, deque()
        for waiting in inbox:
            if waiting.bucket is None:
                self._take_into_flight(waiting)
                self._pass_by(waiting)
                continue
            line = self._lines.get(waiting.bucket)
            if line is None:
                line = self._lines[waiting.bucket] = _Line()
                self._known.add(waiting.bucket)
            line.waiting.append(waiting)
        return len(inbox)

    def _take_into_flight(self, waiting: Waiting) -> None:
        with self._lock:
            self._waiting -= 1
            self._waiting_bytes -= len(waiting.request.payload)
            self.in_flight += 1
            reader_waits = self._reader_waits
        if reader_waits:
            self._on_room()

    def _admit(self) -> float:
        """Send off the first of each line in turn, while any may go; seconds until another may."""
        delay, turns = math.inf, deque(self._lines)
        asked: set[Ceiling] = set()  # one poll is for all the buckets under a ceiling
        while turns:
            if self.in_flight >= self._max_workers:
                self._give_places_back()
                return math.inf
            bucket = turns.popleft()
            line_delay = self._admit_first(bucket, self._lines[bucket], asked)
            if line_delay > 0:
                delay = min(delay, line_delay)
                continue
            line = self._lines.pop(bucket)
            if line.waiting:  # it is behind the others now
                self._lines[bucket] = line
                turns.append(bucket)
        return delay

    def _admit_first(self, bucket: TokenBucket, line: _Line, asked: set[Ceiling]) -> float:
        """Send off the first in line if its bucket admits it; seconds until it may, else 0."""
        waiting = line.waiting[0]
        if line.place is None:
            tokens, output_tokens = self._cost(waiting.estimate)
            line.place = Reservation(tokens, self._wake, output_tokens=output_tokens)
            bucket.enqueue(line.place)
        if line.place.admitted_at is None:
            known = bucket.ceiling in asked
            asked.add(bucket.ceiling)
            if (delay := bucket.delay if known else bucket.poll(line.place)) > 0:
                return delay
        place, line.place = line.place, None
        line.waiting.popleft()
        self._take_into_flight(waiting)
        self._submit(waiting, bucket, place)
        return 0.0

    def _submit(self, waiting: Waiting, bucket: TokenBucket, place: Reservation) -> None:
        try:
            self._executor.submit(self._process, waiting, place)
            self._has_threads = True
        except RuntimeError as error:
            # It is queued for one of the threads there are; other reasons are the interpreter's end.
            if not self._has_threads or "can't start new thread" not in str(error):
                bucket.cancel(place)
                self.recorded(1)
                raise
            with self._lock:
                self._max_workers = max(1, self.in_flight - 1)
            _log.warning("only %d requests can be in flight: %s", self._max_workers, error)

    def _give_places_back(self) -> None:
        """No more may be in flight, so that nobody here may be admitted; the retries may."""
        for bucket, line in self._lines.items():
            if line.place is not None:
                bucket.cancel(line.place)
                line.place = None

    def _wait(self, delay: float) -> None:
        began = self._clock()
        full = self.in_flight >= self._max_workers
        idle = self._activity(full)
        causes = [(bucket, idle if full else bucket.held_by) for bucket in self._lines]
        causes += [(bucket, idle) for bucket in self._known - self._lines.keys()]
        soonest = min(self._lines, key=lambda bucket: bucket.delay, default=None)
        held_by = idle if soonest is None or full else soonest.held_by
        self._ledger.begin(began, held_by)
        self._wake.wait(delay if delay < math.inf else None)
        with self._lock:
            self._is_idle = False
        self._ledger.note(self._clock() - began, held_by, causes)

    def _leave(self) -> None:
        """Drop what waits: the next run sends it."""
        self._give_places_back()
        self._lines.clear()
        with self._lock:
            self._has_left = True
            self._inbox.clear()
            self._waiting = self._waiting_bytes = 0
        self._on_room()
