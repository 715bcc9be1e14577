"""Signals for the command line: the first stops a run in order, the second at once.

Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which comes when the terminal is closed, do the same.

Python runs signal handlers in the main thread, which may hold the very lock that stopping a run needs.
So the handler does nothing. Python also writes the signal's number to a socket
(``signal.set_wakeup_fd``), and a thread that reads it stops the run. From the third signal on, the
handler raises ``KeyboardInterrupt``: the main thread may be stuck while it reads a pipe.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalWatcher:
    """While open, calls ``on_first`` with the name of the first signal, ``on_second`` for each later one.

    Both are called in a thread of its own. Only the main thread may open it.

    Attributes:
        number: the first signal's number, 0 until it comes.
    """

    def __init__(self, on_first: Callable[[str], None], on_second: Callable[[str], None]) -> None:
        self._on_first = on_first
        self._on_second = on_second
        self.number = 0
        self._handled = 0  # signals; only the main thread counts
        self._receiver, self._sender = socket.socketpair()
        self._thread = threading.Thread(
            target=self._watch, name="parallel-processor-signals", daemon=True
        )

    def __enter__(self) -> SignalWatcher:
        self._sender.setblocking(False)
        # A signal that is ignored stays ignored, as nohup wants it.
        watched = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._handle) for number in watched}
        self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._sender.close()
        self._thread.join()
        self._receiver.close()

    def _watch(self) -> None:
        while data := self._receiver.recv(64):
            for number in filter(_SIGNALS.__contains__, data):
                name = signal.Signals(number).name
                if self.number == 0:
                    self.number = number
                    self._on_first(name)
                else:
                    self._on_second(name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        if self._handled > 2:
            raise KeyboardInterrupt
