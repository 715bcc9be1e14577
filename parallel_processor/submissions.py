"""Single requests that come one by one, as a service's do, and share a run.

A thread of ours feeds that run from an inbox, as a caller's thread does from a file. It begins with the
first request, and ends when none has come for a second and all are answered, so that nothing is left
behind and connections are kept while there is traffic. A future is resolved by the thread that has the
answer; its callbacks run there, and what they raise stays with them. A request is the run's from the
moment that it is sent: until then its future can be cancelled.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager
from typing import Any

from parallel_processor.exceptions import RunStoppedError, StopRequested
from parallel_processor.formats import made_request
from parallel_processor.models import Request
from parallel_processor.outcome import Outcome
from parallel_processor.run import Run
from parallel_processor.surethread import SureThread

_log = logging.getLogger("parallel_processor")
_IDLE_S = 1.0


class Submissions:
    """The inbox of one processor, and the thread that empties it. Any thread may call it."""

    def __init__(
        self, open_run: Callable[[], AbstractContextManager[Run]], request_url: str, dedupe: bool
    ) -> None:
        self._open_run = open_run
        self._request_url = request_url
        self._dedupe = dedupe
        self._inbox: queue.SimpleQueue[tuple[Request, Future[Outcome]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._count = 0
        self._under_way: dict[int, Future[Outcome]] = {}  # by the request's number
        self._thread: SureThread | None = None
        self._is_closing = False

    def submit(self, given: Request | Mapping[str, Any]) -> Future[Outcome]:
        """Have a request sent; ``TypeError`` if it can't be."""
        future: Future[Outcome] = Future()
        with self._lock:
            self._count += 1
            number = self._count
        request = made_request(given, number, self._request_url)
        with self._lock:
            self._inbox.put((request, future))
            if self._thread is None:
                self._is_closing = False
                try:
                    self._start()
                except BaseException:  # no thread can be had: whoever asks next tries again
                    future.cancel()
                    raise
        return future

    def _start(self) -> None:
        """Caller holds ``_lock``."""
        thread = SureThread(self._feed, "parallel-processor-submissions")
        thread.start()
        self._thread = thread

    def close(self) -> None:
        """Wait until everything that was submitted has its outcome, and the thread has ended."""
        while True:
            with self._lock:
                self._is_closing, thread = True, self._thread
            if thread is None:
                return
            self._inbox.put(None)
            thread.join()

    def set(self) -> None:
        """Wake the thread: its run is to stop."""
        self._inbox.put(None)

    # The thread.

    def _feed(self) -> None:
        cause: BaseException | None = None
        try:
            with self._open_run() as run:
                run.sink = lambda outcome: self._resolve(run, outcome)
                run.is_wanted = None if self._dedupe else self._is_wanted
                with run.waking(self):
                    for _ in run.outcomes(self._received(run)):
                        raise AssertionError("a run with a sink yields nothing")
                cause = run.stop_cause
        except BaseException as error:  # its futures tell of it
            cause = error
        finally:
            self._leave(cause)

    def _received(self, run: Run) -> Iterator[Request]:
        """What comes in, until nothing has for a while or the run stops."""
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
            # Others may wait for the answer to one that is equal.
            if future.set_running_or_notify_cancel() if self._dedupe else not future.cancelled():
                with self._lock:
                    self._under_way[request.number] = future
                yield request

    def _is_wanted(self, request: Request) -> bool:
        """True unless the request, which is to be sent now, was cancelled."""
        with self._lock:
            future = self._under_way[request.number]
            if future.set_running_or_notify_cancel():
                return True
            del self._under_way[request.number]
            return False

    def _resolve(self, run: Run, outcome: Outcome) -> None:
        with self._lock:
            future = self._under_way.pop(outcome.request.number)
        _settle(future, outcome)
        run.recorded([outcome])

    def _leave(self, cause: BaseException | None) -> None:
        """The run is over: what it left is told why, or, if it came in too late, begins another."""
        with self._lock:
            left, self._under_way = list(self._under_way.values()), {}
            waiting: list[Future[Outcome]] = []
            while cause is not None and not self._inbox.empty():
                received = self._inbox.get()
                if received is not None:
                    waiting.append(received[1])
            self._thread = None
            if not self._inbox.empty():
                self._start()
        error = cause or StopRequested("the run has ended")
        if isinstance(error, StopRequested):
            error = RunStoppedError(str(error))
        for future in (*left, *waiting):
            _settle(future, error)


def _settle(future: Future[Outcome], result: Outcome | BaseException) -> None:
    """Tell ``future`` how it ended, unless somebody has cancelled it."""
    try:
        if isinstance(result, Outcome):
            future.set_result(result)
        else:
            future.set_exception(result)
    except InvalidStateError:
        pass
    except BaseException:  # a callback's own; Future itself passes over most of them
        _log.exception("the callback of a future failed")
