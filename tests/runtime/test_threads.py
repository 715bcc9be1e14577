"""Threads that are started and waited for, whatever interrupts that."""

from __future__ import annotations

import _thread
import signal
import threading

import pytest

from parallel_processor.runtime.threads import InterruptSafeThread, run_apart


class Interrupted(InterruptSafeThread):
    """Its start is interrupted while it waits for the thread's beginning, its join in mid-wait."""

    def interrupt(self) -> None:
        """Interrupt the next wait for the thread's beginning, and the next one for its end."""
        for gate in (self._begun, self._ended):
            wait = gate.wait

            def fail_once(timeout_s: float | None = None, gate=gate, wait=wait) -> bool:  # type: ignore
                gate.wait = wait
                raise KeyboardInterrupt

            gate.wait = fail_once  # type: ignore[method-assign]


def test_a_thread_runs_once_and_is_waited_for() -> None:
    """Starting it again does nothing, and any number of waits end with it."""
    calls: list[str] = []
    thread = InterruptSafeThread(lambda: calls.append(threading.current_thread().name), "by-name")
    for _ in range(3):
        thread.start()
    for _ in range(20):
        thread.join()
    assert calls == ["by-name"]
    assert "by-name" not in [each.name for each in threading.enumerate()]


def test_a_wait_that_is_interrupted_is_done_again() -> None:
    """Neither an interrupted start nor an interrupted join takes the thread for ended."""
    may_end = threading.Event()
    thread = Interrupted(lambda: may_end.wait(20), "held")
    thread.interrupt()
    with pytest.raises(KeyboardInterrupt):
        thread.start()
    with pytest.raises(KeyboardInterrupt):
        thread.join()
    thread.join(0.001)
    assert "held" in [each.name for each in threading.enumerate()]
    may_end.set()
    thread.join()
    assert "held" not in [each.name for each in threading.enumerate()]


def test_several_may_wait() -> None:
    """Each of them passes when the thread ends."""
    may_end = threading.Event()
    thread = InterruptSafeThread(lambda: may_end.wait(20), "held")
    thread.start()
    waiting = [threading.Thread(target=thread.join) for _ in range(5)]
    for each in waiting:
        each.start()
    may_end.set()
    for each in waiting:
        each.join(20)
    assert not any(each.is_alive() for each in waiting)


def test_one_that_was_never_started_has_no_end() -> None:
    """To wait for it takes no time."""
    InterruptSafeThread(lambda: None, "never").join()


def test_a_fault_of_the_target_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread says that it ends, however it does."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail() -> None:
        raise KeyError("a fault")

    thread = InterruptSafeThread(fail, "faulty")
    thread.start()
    thread.join()
    assert len(told) == 1


def test_a_system_without_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of a thread's start, and there is nothing to wait for."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    thread = InterruptSafeThread(lambda: None, "none")
    with pytest.raises(RuntimeError, match="new thread"):
        thread.start()
    thread.join()


def test_what_runs_apart_gives_its_result_or_its_error() -> None:
    """For the main thread another one does it; any other gets no interrupt, and does it itself."""
    assert run_apart(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        run_apart(lambda: 1 // 0)
    own: list[bool] = []
    other = threading.Thread(
        target=lambda: own.append(run_apart(threading.current_thread) is threading.current_thread())
    )
    other.start()
    other.join()
    assert own == [True]


def test_an_interrupt_comes_out_when_what_runs_apart_has_ended() -> None:
    """It hits nothing that holds a lock."""
    ended: list[str] = []
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        ended.append("yes")

    with pytest.raises(KeyboardInterrupt):
        run_apart(interrupt)
    assert ended == ["yes"]


def test_without_a_thread_the_callers_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is up to what is called whether that matters."""

    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert run_apart(threading.current_thread) is threading.current_thread()
