"""Ends runs that are still open when the interpreter exits.

When the main thread has ended, ``concurrent.futures`` waits for the threads of every executor,
however long their requests take. A run would go on admitting requests all that time. After that,
Python freezes all daemon threads where they are. Only then are iterators closed that were left
open; from 3.13 on this would hang, because it joins a daemon thread. So runs are stopped, and their
requests cancelled, before either.

``atexit`` is too late for this. Only ``threading._register_atexit`` is early enough, which
``concurrent.futures`` uses as well. It is private: CPython has it since 3.9, and this module is
known to work with 3.10 to 3.13. In a Python without it, nothing is registered, and the exit waits
for the requests.

A run that was started in a thread which isn't a daemon goes on: the interpreter waits for that
thread.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  registered before ours, so its hook is called after ours
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

# Methods of living objects, and the process that registered each. Every operation on it is atomic.
_ENDS: dict[weakref.WeakMethod[Callable[[], object]], int] = {}


def at_exit(end: Callable[[], object]) -> None:
    """Have the method ``end`` called before the interpreter exits, unless its object is gone by then.

    The last one registered is called first. Does nothing in a thread, other than the main
    one, that isn't a daemon: the interpreter waits for it anyway.
    """
    thread = threading.current_thread()
    if thread.daemon or thread is threading.main_thread():
        _ENDS[weakref.WeakMethod(end, _forget)] = os.getpid()


def _forget(reference: Any) -> None:
    _ENDS.pop(reference, None)


def _end_all() -> None:
    """Call what is registered. Runs in the main thread, when its work is done."""
    for reference, process in reversed(tuple(_ENDS.items())):
        end = reference()
        if end is not None and process == os.getpid():  # not registered before a fork
            end()
    _ENDS.clear()  # otherwise _forget would be called while modules are torn down


_register: Any = getattr(threading, "_register_atexit", lambda _: None)
with contextlib.suppress(RuntimeError):  # the main thread has ended already
    _register(_end_all)
