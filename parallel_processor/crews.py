"""Which crew sends for a run, and who remembers what. Each is imported only where it is wanted.

``requests``, which takes longer to import than everything else together, is therefore loaded by the
first run with threads: ``import parallel_processor`` does without, as does a run with worker processes.
"""

from __future__ import annotations

# The executor's module registers itself for the interpreter's end, which refuses that once the main
# thread has ended; a run in another thread may begin then.
import concurrent.futures.thread  # noqa: F401
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from parallel_processor.attempts import Ended
from parallel_processor.forks import FORKS_WAIT
from parallel_processor.limiter import Reservation
from parallel_processor.options import Options
from parallel_processor.pending import Admitted, Waiting

if TYPE_CHECKING:
    from parallel_processor.duplicates import Duplicates
    from parallel_processor.threads import Crew


def make_crew(
    options: Options,
    max_workers: int,
    *,
    begin: Callable[[Waiting, Reservation], bool],
    finish: Callable[[Admitted, Ended | BaseException | None], Admitted | None],
) -> Crew:
    """Threads of this process, or the processes that ``options`` ask for.

    Another process would send past whoever intercepts requests in this one, so that threads do it then.
    """
    if options.processes == 1 or _is_intercepted():
        with FORKS_WAIT:
            from parallel_processor.threads import WorkerThreads

        return WorkerThreads(options, max_workers, begin=begin, finish=finish)
    with FORKS_WAIT:
        from parallel_processor.processes import WorkerProcesses

    return WorkerProcesses(options, max_workers, begin=begin, finish=finish)


def _is_intercepted() -> bool:
    if "requests" not in sys.modules:
        return False
    with FORKS_WAIT:
        from parallel_processor.interception import is_any_active

    return is_any_active()


def make_duplicates(options: Options) -> Duplicates | None:
    """What remembers equal requests, if ``options`` ask for that."""
    if not options.dedupe:
        return None
    from parallel_processor.duplicates import Duplicates

    return Duplicates()
