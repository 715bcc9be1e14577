"""One thread that appends records to the results files.

It takes whatever is queued, writes it as whole lines in one call per file, and flushes to the disk at
most once per second and at the end. It passes each batch that was written to ``on_written``, which gives
the credits and the bytes of those outcomes back. So a slow disk slows the reading of requests, and
nothing piles up.

A write that fails stops the run, not the process. The file is truncated to its last whole line, and
``on_failure`` is called once. The records at hand are tried again for ``write_retry_s`` seconds, in case
somebody makes room. Then they are dropped, and so is what still comes: nothing waits for a disk that
stays full. Their requests have no record, and the next run sends them. A pipe whose reader has left takes
nothing ever again: that ends the run at once.

**In order.** With an :class:`InputOrder` the records are written in the order in which the requests were
read. An outcome is kept, as its record alone, until all before it are there or never will be. The credits
bound how many are kept. At the end of a run that was stopped, what is kept is written all the same: it has
been paid for. A ``kill -9`` loses it, as it loses what is in flight, and the next run sends it again.
"""

from __future__ import annotations

import errno
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from parallel_processor.exceptions import ResultsFileError, StopCause
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.records import record
from parallel_processor.models import Outcome, Request
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.runtime.stop import WakeEvent, do_all
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_MAX_BATCH = 1000
_MAX_PIECE_BYTES = 4 * 1024 * 1024
# A pause behind each write. Under load, a thread that queues an outcome then never has to wake the writer.
_BATCH_DELAY_S = 0.005
_RETRY_INTERVAL_S = 0.5


def held_bytes(outcome: Outcome) -> int:
    """What ``outcome`` takes in memory while it waits: the bytes of its request and its response."""
    raw = outcome.raw_response
    return len(outcome.request.payload) + (len(raw.body) if raw is not None else 0)


class _Held(NamedTuple):
    """An outcome without the text of its request and its response, and the record that has both."""

    outcome: Outcome
    record: bytes
    size_bytes: int

    @property
    def ok(self) -> bool:
        return self.outcome.ok


class InputOrder:
    """The order in which requests were read. The reader calls :meth:`expect`, any thread :meth:`skip`.

    Args:
        keeps_text: whoever gets the outcomes wants requests and responses, which takes more memory.
    """

    def __init__(self, *, keeps_text: bool = False) -> None:
        self._keeps_text = keeps_text
        self._expected: deque[int] = deque()  # numbers, in order
        self._skipped: set[int] = set()
        self._early: dict[int, Outcome | _Held] = {}

    def expect(self, number: int) -> None:
        """The request with this number was read. Its outcome comes later."""
        self._expected.append(number)

    def add(self, outcomes: list[Outcome | int]) -> list[Outcome | _Held]:
        """Take outcomes, and numbers of requests that have none; those whose turn it is."""
        for each in outcomes:
            if isinstance(each, int):
                self._skipped.add(each)
            else:
                self._early[each.request.number] = each if self._keeps_text else _held(each)
        return list(self._ready())

    def _ready(self) -> Iterator[Outcome | _Held]:
        while self._expected:
            number = self._expected[0]
            if number in self._skipped:
                self._skipped.discard(number)
            elif (early := self._early.pop(number, None)) is not None:
                yield early
            else:
                return
            self._expected.popleft()

    def rest(self) -> list[Outcome | _Held]:
        """All that is kept, in order; after a stop, some between them are missing."""
        early, self._early = self._early, {}
        return [early[number] for number in sorted(early)]


def _held(outcome: Outcome) -> Outcome | _Held:
    try:
        made = record(outcome)
    except Exception:  # it fails once more when it is to be written, and is told then
        return outcome
    bare = replace(
        outcome, request=Request(body=None, number=outcome.request.number), raw_response=None
    )
    return _Held(bare, made, held_bytes(outcome))


class ResultWriter:
    """Appends outcomes to ``results``, failed ones to ``errors`` if given.

    Any thread may call :meth:`put`. The thread that :meth:`start` or the first call starts alone uses the
    files until :meth:`close` has ended it. ``on_written`` gets each batch, whether it is on record, and its
    size as :func:`held_bytes` counts.
    """

    def __init__(
        self,
        results: AppendFile,
        errors: AppendFile | None = None,
        *,
        on_written: Callable[[list[Outcome], bool, int], None],
        on_failure: Callable[[ResultsFileError], None],
        fsync_s: float = 1.0,
        write_retry_s: float = 60.0,
        order: InputOrder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._results = results
        self._errors = results if errors is None else errors
        self._on_written = on_written
        self._on_failure = on_failure
        self._fsync_s = fsync_s
        self._write_retry_s = write_retry_s
        self._clock = clock
        self._order = order
        self._queue: queue.SimpleQueue[Outcome | int | None] = queue.SimpleQueue()
        self._wake = WakeEvent()  # ends the thread's pauses
        self._is_closing = False
        self._gave_up = False
        self._retry_until: float | None = None  # set by the first failure
        self._is_started = False
        self._lock = InterruptSafeLock()  # for the thread's start
        self._thread = InterruptSafeThread(self._run, "parallel-processor-writer")

    def start(self) -> None:
        """Start the thread; ``RuntimeError`` if the system has none left."""
        self._is_started = True  # first: an interrupt in between must leave a thread that is joined
        try:
            with self._lock:
                self._thread.start()
        except RuntimeError:
            self._is_started = False
            raise

    def put(self, outcome: Outcome) -> None:
        """Queue ``outcome`` for writing."""
        self._queue.put(outcome)
        if not self._is_started:  # a writer that is never used needs no thread
            self.start()

    def skip(self, number: int) -> None:
        """The request with this number will have no outcome: those behind it need not wait for it."""
        if self._order is not None:
            self._queue.put(number)

    def give_up(self) -> None:
        """Try no failed write again."""
        self._gave_up = True
        self._wake.set()

    def close(self) -> None:
        """Write what is queued, make it last, and end the thread. Only this may be called again."""
        if not self._is_started and self._queue.empty():
            return
        steps = (self._put_end, self._thread.start, self._thread.join)
        try:
            for step in steps:
                step()
        except BaseException:  # one more Ctrl-C: the thread is waited for, but the disk isn't
            self.give_up()
            do_all(steps)
            raise

    def _put_end(self) -> None:
        self._is_closing = True
        self._queue.put(None)
        self._wake.set()

    def _run(self) -> None:
        synced_at, is_open = self._clock(), True
        while is_open:
            dirty = self._results.dirty or self._errors.dirty
            due_s = max(synced_at + self._fsync_s - self._clock(), 0.0)
            batch, is_open = self._next_batch(due_s if dirty else None)
            self._write_batch(batch, is_last=not is_open)
            if not is_open or self._clock() >= synced_at + self._fsync_s:
                self._sync(ends=not is_open)
                synced_at = self._clock()
            if batch and not self._is_closing:
                self._wake.wait(_BATCH_DELAY_S)

    def _next_batch(self, wait_s: float | None) -> tuple[list[Outcome | int], bool]:
        """What is queued, after a wait for the first; and false once the end is reached."""
        batch: list[Outcome | int] = []
        try:
            outcome = self._queue.get(timeout=wait_s)
            while outcome is not None:
                batch.append(outcome)
                if len(batch) >= _MAX_BATCH:
                    return batch, True
                outcome = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _write_batch(self, batch: list[Outcome | int], *, is_last: bool) -> None:
        """Write what was queued, or those whose turn it is."""
        if self._order is None:
            self._write(cast(list[Outcome], batch))
            return
        self._write(self._order.add(batch))
        if is_last:
            self._write(self._order.rest())

    def _write(self, batch: Sequence[Outcome | _Held]) -> None:
        if self._errors is self._results:
            self._write_to(self._results, batch)
        else:
            self._write_to(self._results, [outcome for outcome in batch if outcome.ok])
            self._write_to(self._errors, [outcome for outcome in batch if not outcome.ok])

    def _write_to(self, file: AppendFile, outcomes: Sequence[Outcome | _Held]) -> None:
        """Write in pieces of a few megabytes, so that long answers aren't all copied at once."""
        piece: list[Outcome] = []
        records: list[bytes] = []
        size_bytes = held = 0
        for each in outcomes:
            if isinstance(each, _Held):
                outcome, made, own = each
            else:
                outcome, own = each, 0
                try:
                    own = held_bytes(outcome)
                    made = record(outcome)
                except Exception as error:  # a fault of ours: it ends the run instead of hanging it
                    self._fail(file, repr(error))
                    self._on_written([outcome], False, own)
                    continue
            piece.append(outcome)
            records.append(made)
            size_bytes += len(made)
            held += own
            if size_bytes >= _MAX_PIECE_BYTES:
                self._on_written(piece, self._append(file, b"".join(records)), held)
                piece, records, size_bytes, held = [], [], 0, 0
        if piece:
            self._on_written(piece, self._append(file, b"".join(records)), held)

    def _append(self, file: AppendFile, data: bytes) -> bool:
        """Write whole lines; false if that failed for good."""
        while True:
            try:
                file.append(data)
                return True
            except OSError as error:
                if error.errno == errno.EPIPE:
                    self.give_up()
                self._fail(file, error.strerror or str(error), has_left=error.errno == errno.EPIPE)
                if self._gave_up or self._clock() >= (self._retry_until or 0.0):
                    return False
                self._wake.wait(_RETRY_INTERVAL_S)

    def _sync(self, *, ends: bool) -> None:
        for file in (self._results, self._errors):
            try:
                if ends:
                    file.end()
                file.sync()
            except OSError as error:
                self._fail(file, error.strerror or str(error))

    def _fail(self, file: AppendFile, reason: str, *, has_left: bool = False) -> None:
        """Tell the first failure; ``has_left`` if the reader of a pipe has, so that no retry can help."""
        if self._retry_until is not None:
            return
        self._retry_until = self._clock() + self._write_retry_s
        if has_left:
            error = ResultsFileError(f"can't write {file.path}: its reader has left ({reason})")
            error.stop_cause = StopCause.READER_LEFT
            self._on_failure(error)
            return
        self._on_failure(ResultsFileError(f"can't write {file.path}: {reason}"))
        _log.warning("can't write %s: %s; trying again for a while", file.path, reason)
