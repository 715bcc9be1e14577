"""What has to end before the interpreter does: runs that nobody is left to end.

When the main thread has ended, ``concurrent.futures`` waits for the threads of every executor, however
long their requests take, and whoever still admits requests goes on. Behind that, Python stops all daemons
where they are, and from 3.13 on whoever joins one then hangs: an iterator that was left open is closed
then. So runs are stopped, and cut, before either. That needs ``threading``'s own hook, which
``concurrent.futures`` uses as well; ``atexit`` comes too late.

A run of a thread that isn't a daemon goes on, since the interpreter waits for that thread.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  its hook is to be called behind ours
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

# Methods of what lives, and whose process that is; each operation on it is atomic.
_ENDS: dict[weakref.WeakMethod[Callable[[], object]], int] = {}


def at_exit(end: Callable[[], object]) -> None:
    """Have ``end``, a method, called before the interpreter waits, unless its object is gone by then.

    Not if the calling thread keeps the interpreter anyway. The last one is called first.
    """
    thread = threading.current_thread()
    if thread.daemon or thread is threading.main_thread():
        _ENDS[weakref.WeakMethod(end, _forget)] = os.getpid()


def _forget(reference: Any) -> None:
    _ENDS.pop(reference, None)


def _end_all() -> None:
    """Runs in the main thread, behind its work."""
    for reference, process in reversed(tuple(_ENDS.items())):
        end = reference()
        if end is not None and process == os.getpid():  # and not that which forked this one
            end()
    _ENDS.clear()  # or they would be forgotten one by one, while modules go


_register: Any = getattr(threading, "_register_atexit", lambda _: None)
with contextlib.suppress(RuntimeError):  # the main thread has ended already
    _register(_end_all)
