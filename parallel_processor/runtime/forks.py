"""Keeps ``os.fork()`` from happening in the middle of an import.

A child of ``os.fork()`` has only the thread that forked. If another thread was importing a module, its
lock stays held in the child, which hangs when it imports that module. Most of what this package needs is
imported by the first run, perhaps in a thread. So a fork waits until such an import is done, some tenths
of a second at most.

A module that registers fork hooks with locks must not be imported while a fork waits here: the fork would
release a lock that it never took. ``concurrent.futures.thread`` is one, and is therefore imported first.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401
import functools
import importlib
import os
from types import ModuleType

from parallel_processor.runtime.locks import InterruptSafeRLock
from parallel_processor.runtime.threads import run_apart

FORK_LOCK = InterruptSafeRLock()  # guards no field: while a thread holds it, no other thread forks

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=FORK_LOCK.acquire,
        after_in_parent=FORK_LOCK.release,
        after_in_child=FORK_LOCK.release,
    )


@functools.cache
def load(name: str) -> ModuleType:
    """Import the module ``name``, with no fork meanwhile. Any later call costs nothing.

    No interrupt hits the import. It would leave a package such as requests half imported: its submodules
    stay known, and the next import of it fails.
    """
    return run_apart(lambda: load_here(name))


@functools.cache
def load_here(name: str) -> ModuleType:
    """The same in the calling thread, for a module of this package: an import of it starts no thread."""
    with FORK_LOCK:
        return importlib.import_module(name)
