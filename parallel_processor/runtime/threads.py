"""A thread that can be started and joined safely, wherever a KeyboardInterrupt hits the caller.

An interrupted ``Thread.start`` may leave a lock held, for which the new thread then waits for ever. Up to
Python 3.12, an interrupted ``Thread.join`` takes the thread for ended, and the next ``join`` returns at
once. So another thread, which nothing interrupts, starts this one, and an event says that it has ended.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from parallel_processor.runtime.cores import SharedCore, joined
from parallel_processor.runtime.stop import WakeEvent

_BEGINNING_S = 0.2  # the longest that a thread takes to begin, if there is one
_MAX_WAITERS = 8
_Result = TypeVar("_Result")


def run_apart(function: Callable[[], _Result]) -> _Result:
    """Call ``function``, and return or raise what it does, where no interrupt hits it.

    For the main thread, which gets the interrupts, another one does it. An interrupt comes out once
    ``function`` has ended: it should take moments. Where no thread can be had, the caller's does it.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        """Keep what ``function`` returns or raises, for the caller's thread."""
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = InterruptSafeThread(call, "parallel-processor-apart")
    try:
        try:
            thread.start()
        except RuntimeError:  # the system has none left, or the interpreter ends
            return function()
        thread.join()
    except BaseException:
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]


class InterruptSafeThread:
    """Runs ``target`` once, in a daemon thread, which joins the core that its starter has joined."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        # A thread forgets its arguments at its end, so that ``target`` isn't kept alive.
        self._thread = threading.Thread(target=self._run, args=(target,), name=name, daemon=True)
        self._is_tried = False
        self._error: BaseException | None = None
        self._core: SharedCore | None = None
        self._begun, self._ended = WakeEvent(_MAX_WAITERS), WakeEvent(_MAX_WAITERS)

    def start(self) -> None:
        """Start the thread, unless that was done before. For one thread at a time.

        Raises ``RuntimeError`` if the system has none left.
        """
        if self._is_tried:
            return
        if sys.is_finalizing():  # it would be made, and never run
            raise RuntimeError("can't start new thread at the interpreter's end")
        self._is_tried = True
        self._core = joined()
        try:
            _thread.start_new_thread(self._start, ())
        except RuntimeError:  # the system has none left
            self._is_tried = False
            raise
        self._begun.wait()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        try:
            self._thread.start()
        except BaseException as error:
            self._error = error
            self._begun.set()

    @property
    def is_alive(self) -> bool:
        """True from the start to the end."""
        return self._thread.is_alive()

    def _run(self, target: Callable[[], object]) -> None:
        self._begun.set()
        core = self._core
        try:
            if core is not None:
                core.join()
            target()
        finally:
            if core is not None:
                core.leave()
            self._ended.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, if it was started; at most so long."""
        if not self._is_tried or not self._begun.wait(_BEGINNING_S) or self._error is not None:
            return
        if self._ended.wait(timeout_s):
            self._thread.join()  # within moments
