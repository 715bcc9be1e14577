"""The worker threads of a run in this process, each of which sends one request after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from parallel_processor.attempts import Attempts, Ended
from parallel_processor.exits import at_exit
from parallel_processor.limiter import Reservation
from parallel_processor.options import Options
from parallel_processor.pending import Admitted, Waiting
from parallel_processor.surethread import SureThread
from parallel_processor.transport import Transport


class Crew(Protocol):
    """Those who send for a run.

    ``reads_values`` says that somebody will look at the answers' values, not only at their text.
    """

    reads_values: bool

    def start(self, admitted: Admitted) -> None:
        """Let somebody send ``admitted``; ``RuntimeError`` if the system has nobody any more."""

    def flush(self) -> None:
        """Nobody else is started for now."""

    def cut(self) -> None:
        """End every exchange under way. Any thread may call it."""

    def close(self) -> None:
        """Wait for everybody's end, and close every connection."""


class WorkerThreads:
    """Sends from the threads of an executor, which has one for each request in flight.

    ``begin`` is asked before each attempt whether it may go out, ``finish`` is told how it ended
    (``None``: it wasn't sent; or what went wrong with us), and gives what the thread is to do next.
    """

    def __init__(
        self,
        options: Options,
        max_workers: int,
        *,
        begin: Callable[[Waiting, Reservation], bool],
        finish: Callable[[Admitted, Ended | BaseException | None], Admitted | None],
    ) -> None:
        self._transport = Transport(options)
        self._attempts = Attempts(options, self._transport)
        self.reads_values = True
        self._begin = begin
        self._finish = finish
        self._executor = ThreadPoolExecutor(
            max_workers, thread_name_prefix="parallel-processor-worker"
        )
        # Whoever closes may be interrupted, and must not take threads for ended that live.
        self._closing = SureThread(self._executor.shutdown, "parallel-processor-closing")
        at_exit(self.cut)  # the interpreter waits for the threads

    def start(self, admitted: Admitted) -> None:
        """Take an idle thread for ``admitted``, or make one."""
        self._executor.submit(self._work, admitted)

    def flush(self) -> None:
        """Nothing is left to do."""

    def _work(self, admitted: Admitted | None) -> None:
        while admitted is not None:
            admitted = self._finish(admitted, self._attempt(admitted))

    def _attempt(self, admitted: Admitted) -> Ended | BaseException | None:
        waiting = admitted.waiting
        try:
            if not self._begin(*admitted):
                return None
            return self._attempts.make(waiting.request, waiting.bucket.host)
        except BaseException as error:  # a fault of ours: the run ends with it instead of hanging
            return error

    def cut(self) -> None:
        """End every exchange under way; each fails as a broken connection."""
        self._transport.cut()

    def close(self) -> None:
        """Wait for the threads' end, and close the sessions."""
        try:
            self._closing.start()
        except RuntimeError:  # the system has no thread left, or the interpreter ends
            self._executor.shutdown()
        self._closing.join()
        self._transport.close()
