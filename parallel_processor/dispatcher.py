"""The way from reading to sending: who is read, who is admitted, and which thread sends it.

The thread that reads must not wait for a bucket, since behind a request whose model has no capacity may
stand one whose model has: it only puts what it reads into the line of its bucket (``lines.py``).

**Who admits.** A thread whose request has ended asks for the next one itself (:meth:`Dispatcher.done`),
and sends that at once: while there is work, nothing is handed from thread to thread. Our own thread waits
for what only time brings, and starts a thread for whoever may go when nobody asks. It sleeps while each
line's first has a place that isn't admitted and no backoff is over; whoever changes that wakes it. So
tokens are counted by the thread that will send, right before, or by ours.

**Who owns what.** ``_lock`` guards everything; a bucket's lock is taken within it, never the other way
round. The thread lives from the first request to the last one or a stop (:mod:`exits` has the one that
nobody else brings). It isn't the caller's: no KeyboardInterrupt comes between two steps of an admission.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from parallel_processor.bounds import Bounds
from parallel_processor.exceptions import StopRequested
from parallel_processor.exits import at_exit
from parallel_processor.ledger import Ledger
from parallel_processor.lines import Lines
from parallel_processor.models import Cost, Estimate
from parallel_processor.pending import Admitted, Waiting
from parallel_processor.stop import StopSignal
from parallel_processor.surethread import SureThread

_log = logging.getLogger("parallel_processor")
_PATIENCE_S = 10.0  # for our thread at the interpreter's end
_GATHER_S = 0.001  # how long those who wake the thread at once wait for others


class Dispatcher(Bounds):
    """The waiting requests of one run, and the thread that waits for their buckets.

    ``count`` sets a request's ``estimate`` if it is put without one, in any thread; ``cost`` tells what an
    attempt is expected to be charged if it is sent now. ``start`` has what was admitted sent, before
    ``flush`` returns. ``drop`` gets each request that won't be sent (any more). ``on_room`` is called when
    more may be read. ``activity`` tells what holds the run back where no bucket does, given whether as
    many are in flight as may be. ``wake`` is what buckets wake.
    """

    def __init__(
        self,
        *,
        count: Callable[[Waiting], None] | None = None,
        cost: Callable[[Estimate], Cost],
        start: Callable[[Admitted], object],
        flush: Callable[[], object] = lambda: None,
        drop: Callable[[Waiting], None],
        on_room: Callable[[], None],
        activity: Callable[[bool], str],
        ledger: Ledger,
        stop: StopSignal,
        max_workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.error: BaseException | None = None  # a fault of ours, or the system's
        self.wake = threading.Event()
        self._count = count
        self._start = start
        self._flush = flush
        self._drop = drop
        self._on_room = on_room
        self._activity = activity
        self._ledger = ledger
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows, and everything of Bounds
        super().__init__(Lines(cost, self.wake), max_workers)
        self._due_at = math.inf  # when the thread wakes by itself, if it is asleep
        self._waits_as = (False, False)  # its state when what it waits for was told
        self._closed = self._hurries = self._has_left = self._has_started = False
        self._thread = SureThread(self._run, "parallel-processor-dispatcher")
        at_exit(self._end)

    # The reader's side.

    def room(self) -> int:
        """How many more may be read; if none, ``on_room`` tells when that changes."""
        with self._lock:
            self._reader_waits = not (count := self._room())
            return count

    def put(self, waiting: Waiting) -> None:
        """Take in what was read; after a stop it is dropped."""
        with self._lock:
            if not (is_late := self._has_left) and self._lines.add(waiting) and not self._is_full:
                self._rouse()
        if is_late:
            self._drop(waiting)
        else:
            self._thread.start()

    def pass_by(self) -> None:
        """A request was read that has an outcome already, which counts until it is on record."""
        with self._lock:
            self.unrecorded += 1

    def close(self, *, hurry: bool = False) -> None:
        """Nothing more will be put; in a ``hurry`` what may go now does, and the rest is dropped."""
        with self._lock:
            self._closed, self._hurries = True, hurry
            self._rouse()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, which a stop or :meth:`close` brings about."""
        self._thread.join(timeout_s)

    def is_busy(self) -> bool:
        """True while anything waits or is under way; ``on_room`` tells when that ends."""
        with self._lock:
            self._reader_waits = True
            return not self._is_empty()

    # The side of the threads that send, and of those that record.

    def done(
        self, again: Waiting | None = None, *, retry_in_s: float = 0.0, made_room: bool = False
    ) -> Admitted | None:
        """One that was in flight has ended; gives another to be sent in its stead, if any may go.

        It has an outcome, which counts until it is on record, or is to be tried ``again``.
        ``made_room`` says that its bucket may admit more than it did.
        """
        with self._lock:
            self.in_flight -= 1
            comes_back = again is not None and not self._has_left
            if again is not None and comes_back:
                due_at = self._clock() + retry_in_s if retry_in_s > 0 else -math.inf
                self._lines.add_again(again, due_at)
                if retry_in_s > 0:
                    self._rouse(due_at)
            else:
                self.unrecorded += 1
            admitted, uncounted = self._next(made_room)
            rings = self._reader_waits and self._should_ring()
        if again is not None and not comes_back:
            self._drop(again)
        while uncounted is not None:
            self._do_count(uncounted)
            with self._lock:
                admitted, uncounted = self._next(made_room=False)
                rings = rings or (self._reader_waits and self._should_ring())
        if rings:
            self._on_room()
        return admitted

    def _do_count(self, waiting: Waiting) -> None:
        """Count the tokens of one that was taken for that."""
        try:
            if self._count is not None:
                self._count(waiting)
        finally:
            with self._lock:
                was_added = self._lines.add_counted(waiting)
            if not was_added:
                self._drop(waiting)

    def recorded(self, count: int) -> None:
        """So many outcomes are on record, or never will be."""
        with self._lock:
            self.unrecorded -= count
            rings = self._reader_waits and self._should_ring()
        if rings:
            self._on_room()

    def _next(self, made_room: bool) -> tuple[Admitted | None, Waiting | None]:
        """Admit one for the thread that asks, or have it count one; wake ours if more may go.

        Caller holds ``_lock``.
        """
        if self._has_left or self._stop.is_set():
            return None, None
        admitted, uncounted = self._choose()
        if self._is_asleep:  # else it will see for itself
            self._look_after_others(made_room and admitted is not None)
        return admitted, uncounted

    def _look_after_others(self, made_room: bool) -> None:
        """Wake our thread if somebody may go, and no other thread asks. Caller holds ``_lock``."""
        if self._closed and self._is_over:  # it was the last
            self._rouse()
        elif self._lines and not self._is_full:
            if made_room and len(self._lines) > 1:
                self._rouse()  # the room may be another line's
            else:
                self._rouse(self._clock() + self._lines.take_places())
        if self._is_asleep and self._waits_as != (self._is_full, len(self._lines) > 0):
            self._begin_wait(self._clock())

    def _choose(self) -> tuple[Admitted | None, Waiting | None]:
        """One to be sent, which is in flight now, or else one to be counted. Caller holds ``_lock``."""
        if not self._lines or self._is_full:
            return None, None
        admitted = self._lines.admit()
        if admitted is None:
            return None, self._lines.take_uncounted()
        self.in_flight += 1
        if self._is_full:
            self._lines.give_places_back()
        return admitted, None

    def _rouse(self, due_at: float = -math.inf) -> None:
        """Let the thread look again by ``due_at``. Caller holds ``_lock``."""
        if self._is_asleep and due_at < self._due_at:
            self._is_asleep = False
            self.wake.set()

    # The dispatcher's thread.

    def _run(self) -> None:
        with self._stop.waking(self.wake):
            try:
                while self._turn():
                    pass
            except BaseException as error:  # the run ends with it instead of hanging
                self.error = error
                self._stop.set(error)
            finally:
                self._leave()

    def _turn(self) -> bool:
        """Send off one who may go, or else wait until one may; false at the end."""
        self.wake.clear()
        if self._stop.is_set():
            return False
        with self._lock:
            self._is_asleep = False
            now = self._clock()
            self._ledger.end(now)
            due_at = self._lines.call(now)
            admitted, uncounted = self._choose()
            rings, delay = False, 0.0
            if admitted is None and uncounted is None:
                if self._closed and (self._hurries or self._is_over):
                    return False
                delay = math.inf if self._is_full else self._lines.take_places()
                delay = max(0.0, min(delay, due_at - now))
                self._is_asleep, self._due_at = True, now + delay
                self._begin_wait(now)
                rings = self._reader_waits and self._should_ring()
        if admitted is not None:
            self._submit(admitted)
        elif uncounted is not None:
            self._do_count(uncounted)
        else:
            self._flush()
            if rings:
                self._on_room()
            self.wake.wait(min(delay, threading.TIMEOUT_MAX) if delay < math.inf else None)
            if self._clock() - now < _GATHER_S:
                self._stop.wait(_GATHER_S)
        return True

    def _submit(self, admitted: Admitted) -> None:
        try:
            self._start(admitted)
            self._has_started = True
        except RuntimeError as error:
            # It is queued for one of the threads there are; other reasons are the interpreter's end.
            if not self._has_started or "can't start new thread" not in str(error):
                admitted.waiting.bucket.cancel(admitted.place)
                with self._lock:
                    self.in_flight -= 1  # it is dropped with the rest
                    self._lines.add_again(admitted.waiting, -math.inf)
                raise
            with self._lock:
                self._max_workers = max(1, self.in_flight - 1)
                self._lines.give_places_back()
            _log.warning("only %d requests can be in flight: %s", self._max_workers, error)

    def _end(self) -> None:
        self._stop.set(StopRequested("the interpreter ends"))
        self.join(_PATIENCE_S)

    def _leave(self) -> None:
        """Drop what waits: the next run sends it."""
        with self._lock:
            self._ledger.end(self._clock())
            self._has_left, dropped = True, self._lines.clear()
            self.unrecorded += sum(each.tries is not None for each in dropped)
        for waiting in dropped:
            self._drop(waiting)
        self._on_room()

    def _begin_wait(self, now: float) -> None:
        """The run waits from now on, for something else than before. Caller holds ``_lock``."""
        is_full, has_lines = self._waits_as = self._is_full, len(self._lines) > 0
        idle = self._activity(is_full)
        held_by = self._lines.held_by if has_lines and not is_full else idle
        self._ledger.begin(now, held_by, self._lines.causes(idle, is_full))
