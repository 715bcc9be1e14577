"""A thread that can be waited for, wherever a KeyboardInterrupt hits the one who starts it or waits.

``Thread.start`` that is interrupted may leave a lock taken, on which the new thread then waits for ever.
``Thread.join`` that is interrupted takes the thread for ended, up to Python 3.12, and the next ``join``
doesn't wait any more. So another thread, which nothing interrupts, starts this one; and it says itself that
it ends, in a queue whose wait is a single call of C.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import queue
import sys
import threading
import time
from collections.abc import Callable

_BEGINNING_S = 0.2  # what a thread takes at most to begin, if there is one
_MOST_WAITING = 8
# Python may miss a signal that comes just before a wait in C, until that wait is over: so none is longer.
_LONGEST_S = 0.5


class SureThread:
    """Runs ``target`` once, in a daemon thread."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        self._target = target
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_tried = False
        self._error: BaseException | None = None
        self._begun, self._ended = _Gate(), _Gate()

    def start(self) -> None:
        """Start the thread, unless that was tried before; ``RuntimeError`` if the system has none left.

        For one thread at a time.
        """
        if self._is_tried:
            return
        if sys.is_finalizing():  # it would be made, and never run
            raise RuntimeError("can't start new thread at the interpreter's end")
        self._is_tried = True
        try:
            _thread.start_new_thread(self._start, ())
        except RuntimeError:  # the system has none left
            self._is_tried = False
            raise
        self._begun.wait(None)
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        """Runs in a thread of its own."""
        try:
            self._thread.start()
        except BaseException as error:
            self._error = error
            self._begun.open()

    def _run(self) -> None:
        self._begun.open()
        try:
            self._target()
        finally:
            self._ended.open()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, if it was started; at most so long."""
        if not self._is_tried or not self._begun.wait(_BEGINNING_S) or self._error is not None:
            return
        if self._ended.wait(timeout_s):
            self._thread.join()  # within moments


class _Gate:
    """Is opened once. Unlike an event's, its wait leaves no lock taken, nor a flag unset."""

    def __init__(self) -> None:
        self._is_open = False
        self._passes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def open(self) -> None:
        """Let everybody pass."""
        self._is_open = True
        for _ in range(_MOST_WAITING):
            self._passes.put(None)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it is open; false if it isn't in time."""
        until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self._is_open and (left_s := until_s - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._passes.get(timeout=min(left_s, _LONGEST_S))
        return self._is_open
