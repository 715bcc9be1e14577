"""A lock that stays usable when a KeyboardInterrupt hits the thread that takes it.

In CPython 3.14, an interrupt that comes while ``with lock:`` takes the lock may be raised before the block
has begun (gh-148874). Then nothing releases the lock, and all threads that need it wait for ever. Other
versions raise it before the lock is taken, or within the block.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info[:2] != (3, 14):
    InterruptSafeLock, InterruptSafeRLock = threading.Lock, threading.RLock
else:
    # A lock that knows its thread: its ``release`` fails where it was not taken. Under gevent, the class is
    # gevent's.
    class InterruptSafeLock(type(threading.RLock())):
        """A lock for ``with``. The thread that has it may take it again."""

        __slots__ = ()

        def __enter__(self) -> bool:
            # CPython looks for an interrupt after each call of C, so it is raised here. It doesn't look
            # where a function in Python returns. ``__exit__``, which is inherited, is C.
            try:
                return self.acquire()
            except BaseException:
                try:
                    self.release()
                except RuntimeError:  # it was not acquired yet
                    pass
                raise

    InterruptSafeRLock = InterruptSafeLock
