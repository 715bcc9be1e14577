"""Real signals while a thread takes and releases a lock, as fast as it can."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from parallel_processor.runtime.locks import InterruptSafeLock, InterruptSafeRLock

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
INTERRUPTS = 50


@contextmanager
def interrupts() -> Iterator[None]:
    """The block's thread gets a KeyboardInterrupt after each millisecond that the process has computed."""
    before = signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def take_until_interrupted(lock: AbstractContextManager[Any]) -> None:
    """Take ``lock`` and release it, until an interrupt comes."""
    with pytest.raises(KeyboardInterrupt), interrupts():
        while True:
            with lock:
                pass
            with lock:
                pass


def can_be_taken(lock: Any) -> bool:
    """True unless another thread than the calling one has ``lock``."""
    if is_free := lock.acquire(timeout=10):
        lock.release()
    return bool(is_free)


@pytest.mark.parametrize("make", [InterruptSafeLock, InterruptSafeRLock])
def test_an_interrupt_leaves_no_lock_taken(make: Callable[[], Any]) -> None:
    """Wherever it hits the thread that takes the lock, another one can take it afterwards."""
    lock = make()
    with ThreadPoolExecutor(1) as other:
        for _ in range(INTERRUPTS):
            take_until_interrupted(lock)
            assert other.submit(can_be_taken, lock).result()


@pytest.mark.parametrize("make", [InterruptSafeLock, InterruptSafeRLock])
def test_nor_where_others_wait_for_it(make: Callable[[], Any]) -> None:
    """An interrupt that comes while the thread waits for the lock doesn't leave it taken either."""
    lock, is_over = make(), threading.Event()

    def compete() -> int:
        count = 0
        while not is_over.is_set() and can_be_taken(lock):
            count += 1
        return count if is_over.is_set() else -1

    with ThreadPoolExecutor(1) as other:
        competing = other.submit(compete)
        try:
            for _ in range(INTERRUPTS):
                take_until_interrupted(lock)
        finally:
            is_over.set()
        assert competing.result() > 0


def test_it_excludes_other_threads() -> None:
    """While one thread is in the block, another can't take the lock."""
    lock = InterruptSafeLock()
    with ThreadPoolExecutor(1) as other, lock:
        assert not other.submit(lock.acquire, False).result()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(can_be_taken, lock).result()


def test_the_lock_of_forks_may_be_taken_twice() -> None:
    """An interrupt aside, the outer block has it until its end."""
    lock = InterruptSafeRLock()
    with ThreadPoolExecutor(1) as other:
        with lock:
            with lock:
                pass
            assert not other.submit(lock.acquire, False).result()
        assert other.submit(can_be_taken, lock).result()
