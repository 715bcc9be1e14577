"""Ends runs that are still open when the interpreter exits.

At its exit the interpreter first waits for the threads of every executor, and a run would go on
admitting requests. Then it freezes all daemon threads. Only then does it close iterators that were left
open; from 3.13 on this would hang, because it joins a daemon thread. So runs are stopped, and their
requests cancelled, before either.

``atexit`` is too late for this. Only ``threading._register_atexit`` is early enough, which
``concurrent.futures`` uses as well. It is private: CPython has had it since 3.9, and 3.10 to 3.15 are
tested. In a Python without it, nothing is registered, and the exit waits for the requests.
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

    The last one registered is called first. In a thread that isn't a daemon, nothing is registered: the
    interpreter waits for that thread. The main thread is an exception.
    """
    thread = threading.current_thread()
    if thread.daemon or thread is threading.main_thread():
        reference = weakref.WeakMethod(end, _forget)
        _ENDS.pop(reference, None)  # registered before, it would keep its old place
        _ENDS[reference] = os.getpid()


def _forget(reference: Any) -> None:
    _ENDS.pop(reference, None)


def _end_all() -> None:
    for reference, process in reversed(tuple(_ENDS.items())):
        end = reference()
        if end is not None and process == os.getpid():  # not registered before a fork
            end()
    _ENDS.clear()  # otherwise _forget would be called while modules are torn down


_register: Any = getattr(threading, "_register_atexit", lambda _: None)
with contextlib.suppress(RuntimeError):  # the main thread has ended already
    _register(_end_all)
