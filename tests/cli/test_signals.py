"""Ctrl-C and SIGTERM, sent for real; each case in a process of its own where it may end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from parallel_processor.cli.signals import SignalWatcher


class Heard:
    """The calls of a watcher, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self._called = threading.Semaphore(0)

    def watcher(self) -> SignalWatcher:
        """A watcher that calls this object."""
        return SignalWatcher(
            on_first=lambda name: self._note("first", name),
            on_second=lambda name: self._note("second", name),
        )

    def _note(self, which: str, name: str) -> None:
        self.calls.append((which, name, threading.current_thread().name))
        self._called.release()

    def send(self, number: int) -> None:
        """Send this process a signal, and wait for the call."""
        os.kill(os.getpid(), number)
        assert self._called.acquire(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_told_apart_from_the_second(number: signal.Signals) -> None:
    """Each makes one call, with its name, in a thread that may take locks."""
    heard = Heard()
    with heard.watcher() as watcher:
        assert watcher.number == 0
        heard.send(number)
        assert watcher.number == number
        heard.send(signal.SIGTERM)
        assert watcher.number == number
    assert heard.calls == [
        ("first", number.name, "parallel-processor-signals"),
        ("second", "SIGTERM", "parallel-processor-signals"),
    ]


def test_afterwards_all_is_as_before() -> None:
    """Handlers, the wake-up descriptor, threads and sockets are what they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    threads, files = threading.active_count(), os.listdir("/proc/self/fd")
    with Heard().watcher():
        assert [signal.getsignal(number) for number in numbers] != handlers
    assert [signal.getsignal(number) for number in numbers] == handlers
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == len(files)


def test_the_third_signal_interrupts_whatever_the_main_thread_does() -> None:
    """A main thread that is stuck, say in reading a pipe, is freed by it."""
    heard = Heard()
    with pytest.raises(KeyboardInterrupt), heard.watcher():
        for _ in range(3):
            heard.send(signal.SIGINT)
        threading.Event().wait()


def test_other_signals_are_not_touched() -> None:
    """A signal with a handler of its own reaches that, and doesn't stop the run."""
    script = """
import os, signal, threading
from parallel_processor.cli.signals import SignalWatcher
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append("usr1"))
calls = []
with SignalWatcher(calls.append, calls.append) as watcher:
    os.kill(os.getpid(), signal.SIGUSR1)
    while not handled:
        pass
print(handled, calls, watcher.number)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "['usr1'] [] 0\n", done.stderr


def test_a_signal_that_is_ignored_stays_so() -> None:
    """A command under nohup isn't ended by the signal that it ignores."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalWatcher(lambda name: None, lambda name: None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
