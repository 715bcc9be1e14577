"""From reading to sending: which requests are read, which are admitted, and which thread sends them.

The reader must never wait for a bucket: behind a request for an exhausted model there may be one for
another model. So it only puts what it reads into the queue of its bucket (``queues.py``).

**Who admits.** A worker whose attempt has ended takes the next admitted request itself
(:meth:`Dispatcher.done`) and sends it at once. While there is work, nothing passes from thread to thread.
The dispatcher thread starts a worker for an admitted request that no worker asks for. It sleeps while
every queue's head waits for its bucket and no backoff has expired. A call that changes either wakes it.
Tokens are counted by the worker that will send the request, right before, or by the dispatcher thread.

**Locks.** ``_lock`` guards every field; a bucket's lock is taken within it. The reader takes none: an
interrupt in the caller's thread must not leave one taken. Each side changes its own state, then looks at
the other's, so that neither sleeps while the other waits for it. The thread begins with the first request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from parallel_processor.engine.credits import Credits, Divide, WriterSlack
from parallel_processor.engine.queues import RequestQueues
from parallel_processor.exceptions import InterpreterEnds, RunStoppedError
from parallel_processor.models import Request, WaitCause
from parallel_processor.planning.spending import Spending
from parallel_processor.report.counters import Counters
from parallel_processor.report.wait_times import WaitTimes
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.runtime.threads import InterruptSafeThread
from parallel_processor.upstreams.replicas import AnyBucket
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest

_log = logging.getLogger("parallel_processor")
_JOIN_TIMEOUT_S = 10.0  # for the thread at the interpreter's end
_BATCH_DELAY_S = 0.001  # how long the thread waits for others to wake it as well


class Dispatcher:
    """The waiting requests of one run, and the thread that waits for their buckets.

    Args:
        queues: where requests wait; new ones.
        start, flush: have an admitted request sent by another thread, at the latest before it sleeps.
        drop: called with each request that will not be sent, or not again.
        on_room: called when more may be read, and when everything has ended.
        activity: what holds the run back if no bucket does; told whether ``max_workers`` are in flight.
        counters: count each request and attempt that is handed out; ``wait_times`` what the run waits for.
        stop: after it, nothing is handed out.
        max_workers: how many requests may be in flight; ``slack`` is what may wait for the writer, besides.
        count: sets the ``estimate`` of a request that was put without one; called by any thread.
        is_wanted: asked before a request's first attempt; if it says no, the request is not sent.
        spending: says which attempts fit the budget.
        divide: takes packs apart, which have up to so many ``inputs`` at first.
        clock: seconds that never go back.

    Attributes:
        error: a bug, or a failure of the system, that ended the thread.
        waker: the event that the buckets set.
        credits: how many requests are under way.
    """

    def __init__(
        self,
        *,
        queues: RequestQueues,
        start: Callable[[AdmittedRequest], object],
        flush: Callable[[], object],
        drop: Callable[[PendingRequest], None],
        on_room: Callable[[], None],
        activity: Callable[[bool], WaitCause],
        counters: Counters,
        wait_times: WaitTimes,
        stop: StopSignal,
        max_workers: int,
        slack: WriterSlack,
        count: Callable[[PendingRequest], None],
        is_wanted: Callable[[Request], bool] | None,
        clock: Callable[[], float],
        spending: Spending | None = None,
        divide: Divide | None = None,
        inputs: int = 1,
    ) -> None:
        self.error: BaseException | None = None
        self.waker = queues.wake
        self._start, self._flush, self._drop, self._on_room = start, flush, drop, on_room
        self._activity, self._counters, self._wait_times = activity, counters, wait_times
        self._count, self._is_wanted, self._stop, self._clock = count, is_wanted, stop, clock
        self._lock, self._queues = InterruptSafeLock(), queues  # guards all that follows, and these
        self.credits = Credits(queues, max_workers, slack, spending, divide, inputs)
        self._is_asleep = False  # the thread
        self._due_at = math.inf  # when it wakes by itself, if it is asleep
        self._widen_at = math.inf  # when more may be in flight though none was answered
        self._waits_as = (False, False)  # the state that _wait_times was told last
        self._closed = self._hurries = self._has_left = self._has_started = False
        self._thread = InterruptSafeThread(self._run, "parallel-processor-dispatcher")

    # For the reader. None of these methods takes the lock.

    def room(self) -> int:
        """How many more requests may be read; if 0, ``on_room`` is called when that changes."""
        self.credits.reader_waits = True  # first: what comes back from now on is told
        if count := self.credits.available(all_wait=self._all_wait):
            self.credits.reader_waits = False
        return count

    def put(self, pending: PendingRequest) -> None:
        """Queue a request that was read. After a stop it is dropped."""
        is_new = self._queues.put(pending)
        if self._has_left:
            self._drop_inbox()
            return
        if is_new and self._is_asleep and not self.credits.is_full:
            self.waker.set()
        self.start()

    def _drop_inbox(self) -> None:
        while (late := self._queues.take_out()) is not None:
            self._drop(late)

    def close(self, *, hurry: bool = False) -> None:
        """Nothing more will be put. In a ``hurry``, what is admitted or being counted is sent, no more."""
        self._queues.is_last = self._closed = self.credits.is_last = True
        self._hurries = hurry
        self.waker.set()

    def is_busy(self) -> bool:
        """True while anything is queued, in flight or not on record; ``on_room`` is called at its end."""
        self.credits.reader_waits = True
        return not self.credits.is_empty

    # For any thread.

    def start(self) -> None:
        """Start the thread, unless it was; ``RuntimeError`` if the system has none left."""
        self._thread.start()

    def open(self) -> None:
        """A request was answered: the careful start is over."""
        with self._lock:
            self.credits.open()
            self._wake()

    def remove(self, bucket: AnyBucket) -> list[PendingRequest]:
        """Take every request for ``bucket`` out of the queues."""
        with self._lock:
            self.credits.take_in()
            removed = self._queues.remove(bucket)
            self.credits.held -= sum(each.retry_state is None for each in removed)
            self._wake()
        return removed

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, after a stop or :meth:`close`."""
        self._thread.join(timeout_s)

    def abort(self) -> None:
        """End the thread: the interpreter ends, and no worker can be started any more."""
        self._stop.set(InterpreterEnds("the interpreter ends"))
        self.join(_JOIN_TIMEOUT_S)

    # For workers, and for the one that records outcomes.

    def done(
        self,
        again: PendingRequest | None = None,
        *,
        retry_in_s: float = 0.0,
        made_room: bool = False,
        size_bytes: int = 0,
    ) -> AdmittedRequest | None:
        """An attempt has ended. Returns the next request for the worker to send, if one may go.

        Args:
            again: the request, if it is to be sent again in ``retry_in_s``; otherwise it has an outcome.
            made_room: its bucket may admit more than it did.
            size_bytes: of what was given to the writer.
        """
        credits, comes_back = self.credits, False
        with self._lock:
            credits.take_in()
            credits.in_flight -= 1
            credits.held_bytes += size_bytes
            if credits.held_bytes >= credits.heavy_at:
                credits.is_heavy = True
            if again is not None and not self._has_left:
                comes_back = True
                due_at = self._clock() + retry_in_s if retry_in_s > 0 else -math.inf
                self._queues.add_again(again, due_at)
                if retry_in_s > 0:
                    self._wake(due_at)
            admitted, uncounted = self._next(made_room)
            wakes_reader = credits.reader_waits and credits.wakes_reader(all_wait=self._all_wait)
        if again is not None and not comes_back:
            self._drop(again)
        while uncounted is not None or (admitted is not None and not self._hand_out(admitted)):
            if uncounted is not None:
                self._do_count(uncounted)
            with self._lock:
                admitted, uncounted = self._next(made_room=False)
                wakes_reader |= credits.wakes_reader(all_wait=self._all_wait)
        if wakes_reader:
            self._on_room()
        return admitted

    def add(self, pending: PendingRequest, retry_in_s: float = -math.inf) -> None:
        """Queue a part of a request that comes apart. Call :meth:`done` for the request afterwards."""
        with self._lock:
            is_added = self.credits.add(pending, self._clock() + retry_in_s)
            self._wake()
        if not is_added:
            self._drop(pending)

    def recorded(self, count: int, size_bytes: int = 0) -> None:
        """So many outcomes, of so many bytes, are on record, or never will be. Below 0, more will come."""
        with self._lock:
            if self.credits.record(count, size_bytes):
                self._wake()
            wakes_reader = self.credits.wakes_reader(all_wait=self._all_wait)
        if wakes_reader:
            self._on_room()

    def _hand_out(self, admitted: AdmittedRequest) -> bool:
        """Count the attempt that begins now; false if it must not begin: then the request is dropped."""
        pending, reservation = admitted
        is_first = pending.retry_state is None
        try:
            is_wanted = not is_first or self._is_wanted is None or self._is_wanted(pending.request)
            if is_wanted and self._stop.cause is None:
                if _log.isEnabledFor(logging.DEBUG):
                    pending.tell_attempt(_log)
                self._counters.sent(int(reservation.costs[1]), first=is_first)
                return True
        except BaseException as error:  # a bug: the run ends with it instead of hanging
            self._stop.set(error)
        with self._lock:
            self.credits.cancel(*admitted)
            self.credits.held -= is_first
        self._drop(pending)
        return False

    def _do_count(self, pending: PendingRequest) -> None:
        """Count the tokens of a request that was taken for that."""
        try:
            self._count(pending)
        finally:
            with self._lock:
                was_added = self._queues.add_counted(pending)
                self.credits.held -= not was_added
                if self._hurries:
                    self._wake()  # it has waited for this one
            if not was_added:
                self._drop(pending)

    # Caller holds ``_lock``.

    def _next(self, made_room: bool) -> tuple[AdmittedRequest | None, PendingRequest | None]:
        """A request for the calling worker to send, or else one to count. Wakes the thread for others."""
        if self._has_left or self._stop.cause is not None:
            return None, None
        admitted, uncounted = self._choose()
        if self._is_asleep:  # otherwise it looks at the queues anyway
            self._look_after_others(made_room and admitted is not None)
        return admitted, uncounted

    def _look_after_others(self, made_room: bool) -> None:
        """Wake the thread if a request may go that no worker asks for."""
        queues, is_full = self._queues, self.credits.is_full
        # The reader may have put one just now and seen no reason to wake the thread. Or it was the last.
        if queues.inbox or (self._closed and self.credits.is_idle):
            self._wake()
        elif made_room and len(queues) > 1 and not is_full:
            self._wake()  # the room may be for another queue
        elif queues and not is_full:
            self._wake(self._clock() + self.credits.take_places())
        if self._is_asleep and self._waits_as != (is_full, len(queues) > 0):
            self._begin_wait(self._clock())

    def _choose(self) -> tuple[AdmittedRequest | None, PendingRequest | None]:
        """A request to send, which is in flight from now on, or else one to count."""
        queues, credits = self._queues, self.credits
        if credits.is_heavy:
            queues.give_places_back()
        if credits.is_full or not queues:
            return None, None
        admitted = queues.admit()
        if admitted is None:
            return None, queues.take_uncounted()
        if credits.has_checks and not credits.fits(*admitted):
            return None, None
        credits.in_flight += 1
        if credits.in_flight >= credits.max_workers:
            queues.give_places_back()
        return admitted, None

    @property
    def _all_wait(self) -> bool:
        """True if the thread sleeps because every queue waits for its bucket."""
        return self._is_asleep and self._queues.all_wait and not self.waker.is_set

    def _wake(self, due_at: float = -math.inf) -> None:
        """Have the thread look at the queues by ``due_at``."""
        if self._is_asleep and due_at < self._due_at:
            self._is_asleep = False
            self.waker.set()

    def _begin_wait(self, now: float) -> None:
        """Note what the run waits for from now on."""
        is_full, has_queues = self._waits_as = self.credits.is_full, len(self._queues) > 0
        idle = self._activity(is_full)
        cause = self._queues.wait_cause if has_queues and not is_full else idle
        self._wait_times.begin(now, cause, self._queues.causes(idle, is_full))

    # The thread.

    def _run(self) -> None:
        with self._stop.waking(self.waker):
            try:
                while self._turn():
                    pass
            except RunStoppedError as error:  # by what holds the limits
                self._stop.set(error)
            except BaseException as error:  # the run ends with it instead of hanging
                self.error = error
                self._stop.set(error)
            finally:
                self._leave()

    def _turn(self) -> bool:
        """Start one admitted request, or wait until there may be one; false at the end."""
        self.waker.clear()
        if self._stop.cause is not None:
            return False
        with self._lock:
            self._is_asleep = False
            self.credits.take_in()
            now = self._clock()
            self._wait_times.end(now)
            due_at = self._queues.release_due(now)
            self._widen_at = self.credits.widen(self._widen_at, now)
            admitted, uncounted = self._choose()
            wakes_reader, delay = False, 0.0
            if admitted is None and uncounted is None:
                hurries = self._hurries and not (self._queues.is_counting or self._queues.inbox)
                if self._closed and (hurries or self.credits.is_idle):
                    return False
                delay = self.credits.take_places()
                delay = max(0.0, min(delay, due_at - now, self._widen_at - now))
                self._is_asleep, self._due_at = True, now + delay
                if self._queues.inbox:  # the reader has put it since, while this thread was awake
                    self._is_asleep = False
                    return True
                self._begin_wait(now)
                wakes_reader = self.credits.wakes_reader(all_wait=self._all_wait)
        if admitted is not None:
            self._widen_at = min(self._widen_at, now + self.credits.careful_s)
            if self._hand_out(admitted):
                self._submit(admitted)
        elif uncounted is not None:
            self._do_count(uncounted)
        else:
            self._flush()
            if wakes_reader:
                self._on_room()
            self.waker.wait(delay if delay < math.inf else None)
            if self._clock() - now < _BATCH_DELAY_S:  # workers that end together wake it once
                self._stop.wait(_BATCH_DELAY_S)
        return True

    def _submit(self, admitted: AdmittedRequest) -> None:
        try:
            self._start(admitted)
            self._has_started = True
        except RuntimeError as error:
            # The pool has queued it for another of its threads. Without one, or at the end, it isn't sent.
            if not self._has_started or "can't start new thread" not in str(error):
                with self._lock:
                    self.credits.cancel(*admitted)
                    self._queues.add_again(admitted.pending, -math.inf)  # dropped with the rest
                raise
            with self._lock:
                self.credits.lower(max(1, self.credits.in_flight - 1))
            _log.warning("only %d requests can be in flight: %s", self.credits.max_workers, error)

    def _leave(self) -> None:
        """Drop what is queued: the next run sends it."""
        with self._lock:
            self._wait_times.end(self._clock())
            self.credits.take_in()
            self._has_left, dropped = True, self._queues.clear()
            self.credits.held -= sum(each.retry_state is None for each in dropped)
        for pending in dropped:
            self._drop(pending)
        self._drop_inbox()
        self._flush()  # what was started counts as in flight: it is sent, or settled as stopped
        self._on_room()
