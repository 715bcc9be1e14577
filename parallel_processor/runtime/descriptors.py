"""How many connections the system lets one process open."""

from __future__ import annotations

import logging

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]

_log = logging.getLogger("parallel_processor")
_OTHERS = 64  # descriptors for files, modules and the caller's own connections
_LEAST_OTHERS = 20  # where they are few: what a run of the command needs itself


def raise_soft_limit(max_workers: int) -> None:
    """Let this process open as many files as ``max_workers`` need, as far as the hard limit permits."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_workers + _OTHERS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # macOS has a lower limit that it doesn't report
        _log.debug("the limit of open files stays at %d: %s", soft, error)


def affordable_workers(max_workers: int) -> int:
    """``max_workers``, or fewer with a warning if the system doesn't permit so many connections."""
    if resource is None:
        return max_workers
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= max_workers + _OTHERS:
        return max_workers
    others = max(_LEAST_OTHERS, min(_OTHERS, soft // 4))
    affordable = min(max(1, soft - others), max_workers)
    if affordable < max_workers:
        _log.warning(
            "max_workers is %d instead of %d: only %d files may be open; raise that with ulimit -n",
            *(affordable, max_workers, soft),
        )
    return affordable
