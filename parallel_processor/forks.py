"""What a fork must not come amid of: modules and files that are loaded for the process as a whole.

In a child of ``os.fork`` only the thread lives that forked it. What another one was importing stays locked
there for ever, and the child hangs as soon as it wants the same. Most of what this package needs is loaded
by the first run, perhaps in a thread. So a fork waits for that, some tenths of a second at most: Python's
locks of imports can't be made anew.
"""

from __future__ import annotations

import os
import threading

FORKS_WAIT = threading.RLock()  # guards no field: while a thread has it, no other forks

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=FORKS_WAIT.acquire,
        after_in_parent=FORKS_WAIT.release,
        after_in_child=FORKS_WAIT.release,
    )
