"""The pool that sends a run's requests: threads or processes, each imported only where it is used.

``requests`` takes longer to import than everything else together. Therefore the first run with threads
loads it: ``import parallel_processor`` and a run with worker processes do without.
"""

from __future__ import annotations

# The executor's module registers itself for the interpreter's end. That is refused once the main thread
# has ended, and a run in another thread may begin after that.
import concurrent.futures.thread  # noqa: F401
import sys
from collections.abc import Callable
from typing import Protocol

from parallel_processor.models import Attempt
from parallel_processor.options import Options
from parallel_processor.runtime.cores import SharedCore
from parallel_processor.runtime.forks import load
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.workers.pending import AdmittedRequest


class WorkerPool(Protocol):
    """What sends a run's requests.

    Attributes:
        core: what its threads have joined; the thread that reads for the run may join it, too.
    """

    core: SharedCore

    def prepare(self) -> None:
        """Start what the first request needs; ``RuntimeError`` if no thread can be had."""

    def start(self, admitted: AdmittedRequest) -> None:
        """Send ``admitted``, at the latest in :meth:`flush`; ``RuntimeError`` if no thread can be had.

        For one thread, as is :meth:`flush`.
        """

    def flush(self) -> None:
        """Send everything that was started: nothing more is started for now."""

    def cancel(self) -> None:
        """Cancel every exchange in flight. Any thread may call it."""

    def abort(self) -> None:
        """Cancel what keeps the interpreter from ending."""

    def close(self) -> None:
        """Wait until everything has ended, and close every connection."""


def make_pool(
    options: Options,
    max_workers: int,
    *,
    settle: Callable[[AdmittedRequest, Attempt | BaseException], AdmittedRequest | None],
    stop: StopSignal,
    parses_answers: bool,
    shares_core: bool,
) -> WorkerPool:
    """Threads of this process, or the processes that ``options`` ask for.

    ``parses_answers``: false if only the answers' text will be used. ``shares_core``: the threads may share
    one core, unless they call code of the program, which could start threads there.
    If requests are intercepted in this process (by a mock, say), its threads send them: other processes
    would evade the interception.
    """
    if options.processes == 1 or _is_intercepted():
        make = load("parallel_processor.workers.threads").WorkerThreads
        pool: WorkerPool = make(
            options,
            max_workers,
            settle=settle,
            stop=stop,
            parses_answers=parses_answers,
            shares_core=shares_core and not (options.validate or options.session_factory),
        )
    else:
        make = load("parallel_processor.workers.processes").WorkerProcesses
        pool = make(options, settle=settle, stop=stop, parses_answers=parses_answers)
    return pool


def _is_intercepted() -> bool:
    if "requests" not in sys.modules:
        return False
    return bool(load("parallel_processor.transport.interception").is_any_active())
