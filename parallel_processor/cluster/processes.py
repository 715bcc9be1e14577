"""The engine without Ray: each worker is a process of this machine.

The driver and each process share a socket. The process has a thread for each attempt, and its main thread
answers questions. A process that ends is started again. If the driver's process ends, its workers read the
end of the socket, and end at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from parallel_processor.cluster.driver import Answered, Ended, Event, Lost
from parallel_processor.cluster.job import Attempt, Job, share, unfit
from parallel_processor.cluster.worker import BlockWorker
from parallel_processor.runtime.locks import InterruptSafeLock

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from parallel_processor.cluster.processes import main; main(int(sys.argv[2]))"
)
_MAX_FRUITLESS = 3  # processes in a row that end before they have said anything


class _Process:
    """One worker's process, of which there may be several one after the other."""

    def __init__(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, root, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for the driver alone
            )
        self.connection = Connection(ours.detach())
        self.has_spoken = False
        self.tell(("job", list(sys.path), job))

    def tell(self, message: Any) -> None:
        """Send a message; nothing happens if the process is gone, which its end tells."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def end(self) -> int:
        """Kill the process, if it is alive; its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class ProcessEngine:
    """Runs workers as processes. For the driver's thread; :meth:`close` ends them."""

    def __init__(self, job: Job, workers: int) -> None:
        self.workers, self._job = workers, job
        self._fruitless = 0
        self._processes = [_Process(job) for _ in range(workers)]
        self._gone: set[int] = set()  # workers that are not started again

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes."""
        return [each.process.pid for each in self._processes]

    def run(self, worker: int, attempt: Attempt) -> None:
        self._processes[worker].tell(("run", attempt))

    def ask(self, worker: int) -> None:
        self._processes[worker].tell(("ask",))

    def stop(self, worker: int, reason: str, *, cancels: bool = False) -> None:
        self._processes[worker].tell(("stop", reason, cancels))

    def events(self, timeout_s: float) -> list[Event]:
        every = enumerate(self._processes)
        numbers = {each.connection: number for number, each in every if number not in self._gone}
        return [
            self._event(numbers[connection])
            for connection in wait(list(numbers), timeout_s)
            if isinstance(connection, Connection)
        ]

    def _event(self, worker: int) -> Event:
        process = self._processes[worker]
        try:
            kind, value = process.connection.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if kind == "failed":
            process.end()
            if value.may_pass:
                self._processes[worker] = _Process(self._job)
            else:
                self._gone.add(worker)
            is_final = not value.may_pass
            return Lost(worker, value.reason, is_final=is_final, error_class=value.error_class)
        process.has_spoken = True
        self._fruitless = 0
        return Ended(worker, value) if kind == "ended" else Answered(worker, value)

    def _replace(self, worker: int) -> Lost:
        """Start a new process in the place of one that has ended."""
        old = self._processes[worker]
        code = old.end()
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._fruitless += not old.has_spoken
        if self._fruitless >= _MAX_FRUITLESS * self.workers:
            self._gone.add(worker)
            return Lost(worker, reason, is_final=True)
        self._processes[worker] = _Process(self._job)
        return Lost(worker, reason)

    def close(self) -> None:
        """End all processes at once."""
        for each in self._processes:
            each.end()


@contextmanager
def on_processes(job: Job, workers: int) -> Iterator[ProcessEngine]:
    """An engine of processes, each with its equal share of the limits, unless a limiter holds them."""
    settings = share(job.settings, workers)
    engine = ProcessEngine(dataclasses.replace(job, settings=settings), workers)
    try:
        yield engine
    finally:
        engine.close()


class _Server:
    """A worker in its process."""

    def __init__(self, connection: Connection, job: Job) -> None:
        self._connection = connection
        self._lock = InterruptSafeLock()  # for sending: messages of two threads must not mix
        self._worker = BlockWorker(job)

    def serve(self) -> None:
        """Do what the driver says, until it leaves."""
        commands: dict[str, Callable[..., None]] = {
            "run": self._start,
            "ask": lambda: self._send("standing", self._worker.standing()),
            "stop": lambda reason, cancels: self._worker.stop(reason, cancels=cancels),
        }
        while True:
            command, *arguments = self._connection.recv()
            commands[command](*arguments)

    def _start(self, attempt: Attempt) -> None:
        threading.Thread(
            target=lambda: self._send("ended", self._worker.run(attempt)),
            name="parallel-processor-block",
            daemon=True,
        ).start()

    def _send(self, kind: str, value: Any) -> None:
        with self._lock:
            self._connection.send((kind, value))


def main(descriptor: int) -> None:
    """Runs in the new process, which ends with its connection."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the driver alone
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger("parallel_processor").propagate = False
    connection = Connection(descriptor)
    try:
        _, path, job = connection.recv()
        sys.path[:] = path
        try:
            server = _Server(connection, job)
        except (
            Exception
        ) as error:  # a setting that can't work here, such as a key that is not there
            connection.send(("failed", unfit(error)))
            raise
        server.serve()
    except (EOFError, OSError):  # the driver is gone
        os._exit(0)
    finally:
        os._exit(1)
