"""Ends the exchanges that take too long. One thread does it for all connections of a run.

A read from a socket with a timeout takes several system calls, each of which hands the interpreter's lock
to another thread and back. From a socket that blocks, it takes one. So the sockets of kept connections
block. When the time of an exchange is up, its socket is shut down, and the call that blocks returns.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Callable

from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.runtime.threads import InterruptSafeThread

_SHUTDOWN_WAKES = sys.platform != "win32"  # a thread that blocks in a call on the socket


class SocketTimer:
    """The time of the exchanges on one socket, one after the other. For the thread that exchanges.

    Attributes:
        begin: to be called with the deadline of an exchange, on the clock of the :class:`Timeouts`.
    """

    __slots__ = ("_deadlines", "_timeouts", "begin", "sock")

    def __init__(self, timeouts: Timeouts, sock: socket.socket) -> None:
        self.sock = sock
        self._timeouts = timeouts
        # Holds the deadline of the exchange under way. Whoever takes it out has ended the exchange: the
        # thread that exchanges, or that of the timeouts.
        self._deadlines: list[float] = []
        self.begin: Callable[[float], None] = self._deadlines.append

    @property
    def is_late(self) -> bool:
        """True if the exchange under way was ended because its time was up."""
        return not self._deadlines

    def end(self) -> bool:
        """The exchange has ended; false if its time was up, and the socket is of no use any more."""
        try:
            self._deadlines.pop()
        except IndexError:
            return False
        return True

    def close(self) -> None:
        """Forget the socket, which may be closed after that."""
        self._timeouts.discard(self)

    def expire(self, now: float) -> float:
        """End the exchange if its time is up at ``now``; else return its deadline, if there is one."""
        for deadline in self._deadlines[:1]:
            if deadline > now:
                return deadline
            try:
                self._deadlines.remove(deadline)
            except ValueError:  # it has just ended by itself
                break
            try:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
            except OSError:
                pass  # the server has closed it
        return math.inf


class Timeouts:
    """The timers of all sockets that exchange. Any thread may call any method.

    Args:
        timeout_s: the time of each exchange; an attribute as well.
        clock: seconds that never go back.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s, self._clock = timeout_s, clock
        self._lock = (
            threading.Lock()
        )  # guards _timers, and the start; held while sockets are shut down
        self._timers: set[SocketTimer] = set()
        self._closing = WakeEvent()
        self._thread = InterruptSafeThread(self._watch, "parallel-processor-timeouts")

    def timer(self, sock: socket.socket) -> SocketTimer:
        """A timer for the exchanges on ``sock``, which blocks from now on."""
        timer = SocketTimer(self, sock)
        with self._lock:
            self._timers.add(timer)
            try:
                self._thread.start()
            except RuntimeError:  # the system has no thread left: each call has its own timeout
                blocks = False
            else:
                blocks = _SHUTDOWN_WAKES
        sock.settimeout(None if blocks else self.timeout_s)
        return timer

    def discard(self, timer: SocketTimer) -> None:
        """Forget ``timer``."""
        with self._lock:
            self._timers.discard(timer)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(self.look()):
            pass

    def look(self) -> float:
        """End what is late. Returns the seconds until an exchange may be late next."""
        now = self._clock()
        next_at = now + self.timeout_s  # the earliest deadline of those that begin from now on
        with self._lock:
            for timer in self._timers:
                next_at = min(next_at, timer.expire(now))
        return next_at - now
