"""The worker threads of a run. Each has a session with its own connection, and sends one request at a time.

A worker is started with an admitted request. It passes each attempt to ``settle``
(:meth:`Run._settle <parallel_processor.engine.run.Run._settle>`), which returns the next admitted request.
If there is none, the thread is idle until it is started again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import Options
from parallel_processor.runtime.cores import Cores, SharedCore
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.runtime.threads import InterruptSafeThread
from parallel_processor.transport.session import LONG_BYTES, Transport
from parallel_processor.workers.attempt import AttemptRunner
from parallel_processor.workers.outgoing import Outgoing
from parallel_processor.workers.pending import AdmittedRequest


class WorkerThreads:
    """A pool with a thread for each request in flight.

    Args:
        options: the settings.
        max_workers: how many requests may be in flight.
        settle: called with each attempt, or with the exception if a bug prevented it. It returns the next
            request to send; ``None`` if there is none.
        stop: once it is set, nothing more is sent.
        parses_answers: false if only the answers' text will be used. Then the value of a long one, which
            may take many times as much memory, is forgotten.
        shares_core: the threads may share one core (``runtime/cores.py``).
    """

    def __init__(
        self,
        options: Options,
        max_workers: int,
        *,
        settle: Callable[[AdmittedRequest, Attempt | BaseException], AdmittedRequest | None],
        stop: StopSignal,
        parses_answers: bool = True,
        shares_core: bool = False,
    ) -> None:
        self._transport = Transport(options)
        self._attempts = AttemptRunner(self._transport)
        self._outgoing = Outgoing(options.request_url)
        self._settle = settle
        self._stop = stop
        self._at_stop = ExitStack()
        self._at_stop.enter_context(stop.waking(self._transport.credentials))
        self.core = SharedCore(cores=None if shares_core else Cores())
        self._kept_bytes = math.inf if parses_answers else LONG_BYTES
        self._executor = ThreadPoolExecutor(
            max_workers, "parallel-processor-worker", initializer=self.core.join
        )
        # Ctrl-C must not interrupt executor.shutdown(): it would forget threads that still run. So that is
        # called in a thread of its own, which gets no Ctrl-C.
        self._closing = InterruptSafeThread(self._executor.shutdown, "parallel-processor-closing")

    def prepare(self) -> None:
        """Start the first thread."""
        self._executor.submit(self._work, None)

    def start(self, admitted: AdmittedRequest) -> None:
        """Send ``admitted`` from an idle thread, or from a new one."""
        self._executor.submit(self._work, admitted)

    def flush(self) -> None:
        """Do nothing: :meth:`start` keeps nothing back."""

    def _work(self, admitted: AdmittedRequest | None) -> None:
        """Runs in a worker thread: send a request, settle the attempt, go on with the next request."""
        while admitted is not None:
            admitted = self._settle(admitted, self._send(admitted))
            self.core.ended()

    def _send(self, admitted: AdmittedRequest) -> Attempt | BaseException:
        if self._stop.cause is not None:
            return Attempt(status=AttemptStatus.STOPPED)
        pending = admitted.pending
        request, bucket = pending.request, pending.bucket
        try:
            payload = self._outgoing.payload(request, bucket.upstream)
            expected = self._outgoing.expected(request, bucket.upstream)
            if payload is not request.payload:  # else no copy is needed
                request = replace(request, payload=payload)
            attempt = self._attempts.send_once(request, bucket.upstream, bucket.host, expected)
            response = attempt.response
            if response is not None and len(response.body) > self._kept_bytes:
                attempt = replace(attempt, response=replace(response, data=None))
            return attempt
        except BaseException as error:  # a bug: the run ends with it instead of hanging
            return error

    def cancel(self) -> None:
        """Cancel every exchange in flight; each fails like a broken connection."""
        self._transport.cancel()

    abort = cancel  # at interpreter exit: Python waits until the threads have ended

    def close(self) -> None:
        """Wait until the threads have ended, and close the sessions."""
        try:
            self._closing.start()
        except RuntimeError:  # the system has no thread left, or the interpreter ends
            self._executor.shutdown()
        self._closing.join()
        self._at_stop.close()
        self._transport.close()
