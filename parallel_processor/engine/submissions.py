"""Requests that are submitted one by one, as by a service, and share one run.

A thread feeds that run from an inbox. It starts with the first request, and ends when none has come for a
second and all have outcomes: connections are kept while there is traffic, and nothing is left behind. The
worker that has the outcome resolves the future, and runs its callbacks; exceptions of these are logged. A
future can be cancelled until its request is sent. If the interpreter ends before all have an outcome, a
warning says so, and the rest get an exception.
"""

from __future__ import annotations

import functools
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from typing import Any, Protocol

from parallel_processor.engine.delivery import MakeSink, Recorded
from parallel_processor.engine.run import Run
from parallel_processor.engine.stops import OnLeftOut
from parallel_processor.exceptions import RunStoppedError, StopRequested
from parallel_processor.files.formats import made_request, tell_notes
from parallel_processor.files.writer import held_bytes
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import host_rule
from parallel_processor.runtime.exits import at_exit
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_IDLE_S = 1.0
_JOIN_TIMEOUT_S = 10.0  # at the interpreter's end


class OpenRun(Protocol):
    """Makes a run, with arguments of :class:`Run`."""

    def __call__(
        self,
        *,
        make_sink: MakeSink,
        on_left_out: OnLeftOut,
        is_wanted: Callable[[Request], bool] | None,
    ) -> AbstractContextManager[Run]:
        """A run that is over at the end of the block."""
        ...


class Submissions:
    """The inbox of one processor, and the thread that empties it. Any thread may call it."""

    def __init__(self, open_run: OpenRun, options: Options) -> None:
        self._open_run, self._dedupe = open_run, options.dedupe
        self._request_url, self._rule = options.request_url, host_rule(options)
        self._inbox: queue.SimpleQueue[tuple[Request, Future[Outcome]] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._noted: set[str] = set()  # what was told of requests that had to be changed
        self._lock = InterruptSafeLock()  # guards the fields below
        self._futures: dict[int, Future[Outcome]] = {}  # of the run's requests, by number
        self._has_feeder = self._is_closing = False
        # The feeder, and those before it that may still run callbacks.
        self._threads: list[InterruptSafeThread] = []
        self._here = threading.local()  # has `resolves` in a thread that runs callbacks

    def submit(self, given: Request | Mapping[str, Any]) -> Future[Outcome]:
        """Send a request; ``TypeError`` if it is none."""
        future: Future[Outcome] = Future()
        request = made_request(given, next(self._numbers), self._request_url, self._rule)
        if request.dropped:
            tell_notes(request, self._noted, "request {}".format)
        with self._lock:
            self._inbox.put((request, future))
            if not self._has_feeder:
                self._is_closing = False
                try:
                    self._start()
                except BaseException:  # no thread can be had: the next call tries again
                    future.cancel()
                    raise
        return future

    def _start(self) -> None:
        """Caller holds ``_lock``."""
        thread = InterruptSafeThread(self._feed, "parallel-processor-submissions")
        thread.start()
        self._threads = [*(each for each in self._threads if each.is_alive), thread]
        self._has_feeder = True

    def close(self) -> None:
        """Wait until every future is resolved, and the thread has ended.

        A callback of a future can't wait for that: the thread waits for the callback.
        """
        while True:
            with self._lock:
                self._is_closing, has_feeder, threads = True, self._has_feeder, self._threads
            if has_feeder:
                self._inbox.put(None)
            if getattr(self._here, "resolves", False):
                return
            for thread in threads:
                thread.join()
            if not has_feeder:
                return

    def _join(self) -> None:
        """The interpreter ends, and the run was stopped: its futures get their exceptions."""
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)

    def _tell(self) -> None:
        """The interpreter ends: say what is lost."""
        with self._lock:
            pending = sum(not future.done() for future in self._futures.values())
        if pending or not self._inbox.empty():
            message = "the interpreter ends before all submitted requests have an outcome (%d are sent or "
            message += "queued): wait for their futures, or leave the processor's with block first"
            _log.warning(message, pending + self._inbox.qsize())

    def set(self) -> None:
        """Wake the thread: the run stops."""
        self._inbox.put(None)

    # The thread.

    def _feed(self) -> None:
        cause: BaseException | None = None
        at_exit(self._join)  # what is registered last is called first: _tell, the run's, _join
        try:
            with self._open_run(
                make_sink=lambda recorded, _: functools.partial(self._resolve, recorded),
                on_left_out=self._give_up,
                is_wanted=None if self._dedupe else self._is_wanted,
            ) as run:
                at_exit(self._tell)
                with run.waking(self):
                    for _ in run.outcomes(self._received(run)):
                        raise AssertionError("a run with a sink yields nothing")
                cause = run.stop_cause
        except BaseException as error:  # the futures raise it
            cause = error
        finally:
            self._leave(cause)

    def _received(self, run: Run) -> Iterator[Request]:
        """The submitted requests, until none has come for a while or the run stops."""
        while run.stop_cause is None:
            with self._lock:
                if self._inbox.empty() and self._is_closing:
                    return
            try:
                received = self._inbox.get(timeout=_IDLE_S)
            except queue.Empty:
                return
            if received is None:
                continue
            request, future = received
            # With dedupe, others may wait for this one's outcome: it can't be cancelled any more.
            if future.set_running_or_notify_cancel() if self._dedupe else not future.cancelled():
                with self._lock:
                    self._futures[request.number] = future
                yield request

    def _is_wanted(self, request: Request) -> bool:
        """True unless the future of the request, which is to be sent now, was cancelled."""
        with self._lock:
            future = self._futures[request.number]
            if future.set_running_or_notify_cancel():
                return True
            del self._futures[request.number]
            return False

    def _resolve(self, recorded: Recorded, outcome: Outcome) -> None:
        with self._lock:
            future = self._futures.pop(outcome.request.number)
        self._settle(future, outcome)
        recorded([outcome], True, held_bytes(outcome))

    def _give_up(self, request: Request, error: BaseException) -> None:
        """The request's model is left out."""
        with self._lock:
            future = self._futures.pop(request.number, None)
        if future is not None:
            self._settle(future, error)

    def _settle(self, future: Future[Outcome], result: Outcome | BaseException) -> None:
        """Resolve ``future``, unless it has been cancelled, and run its callbacks."""
        self._here.resolves = True
        try:
            if isinstance(result, Outcome):
                future.set_result(result)
            else:
                future.set_exception(result)
        except InvalidStateError:
            pass
        except BaseException:  # raised by a callback; Future itself logs most of them
            _log.exception("the callback of a future failed")
        finally:
            self._here.resolves = False

    def _leave(self, cause: BaseException | None) -> None:
        """The run is over: resolve the futures that it left, and run again for what came too late."""
        with self._lock:
            left, self._futures = list(self._futures.values()), {}
            pending: list[Future[Outcome]] = []
            while cause is not None and not self._inbox.empty():
                received = self._inbox.get()
                if received is not None:
                    pending.append(received[1])
            self._has_feeder = False  # what a callback submits, and waits for, needs a new one
            if not self._inbox.empty():
                self._start()
        error = cause or StopRequested("the run has ended")
        if isinstance(error, StopRequested):
            error = RunStoppedError(str(error))
        for future in (*left, *pending):
            self._settle(future, error)
