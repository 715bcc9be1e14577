"""A worker process: sends the requests that the run's process asks for, and returns the attempts.

It has worker threads and connections, but no limits, files or retries. It ends when its pipe ends,
however the run's process ended. It ignores signals, which are meant for the run's process.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from parallel_processor.exceptions import (
    ConfigurationError,
    ParallelProcessorError,
    WorkerProcessError,
)
from parallel_processor.models import Request
from parallel_processor.options import Options
from parallel_processor.transport.session import Transport
from parallel_processor.workers import pipe
from parallel_processor.workers.attempt import AttemptRunner
from parallel_processor.workers.pipe import WorkItem

_BATCH_DELAY_S = 0.001  # how long attempts wait for others, to travel in one message


class Child:
    """The threads of one worker process. Attempts are written to ``results``."""

    def __init__(self, options: Options, results: BinaryIO) -> None:
        self._results = results
        self._transport = Transport(options)
        self._attempts = AttemptRunner(self._transport)
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(
            options.max_workers, thread_name_prefix="parallel-processor-worker"
        )
        self._executor.submit(int)  # so that one thread is there, whatever becomes of the others
        self._pulse_s = pipe.pulse_s(options)
        self._taken = self._returned = 0  # requests; each is changed by one thread
        self._lacks_threads = False
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def run(self, work: BinaryIO) -> None:
        """Do what the messages from ``work`` ask for, until they end."""
        while (message := pipe.read(work)) is not None:
            if message == pipe.SHUTDOWN:
                break
            if message == pipe.CANCEL:
                self._transport.cancel()
                continue
            for item in message:
                self._taken += 1
                self._start(item)
        self._transport.cancel()
        self._executor.shutdown()
        self._closing.set()
        self._ended.put(None)
        self._sender.join()

    def _start(self, item: WorkItem) -> None:
        """Have a thread send ``item``: a new one, or one of those that there are, which take turns."""
        try:
            self._executor.submit(self._work, item)
        except RuntimeError as error:  # the executor has queued it before
            if not self._lacks_threads:
                self._lacks_threads = True
                self._ended.put((None, f"a worker process goes on with fewer threads: {error}"))

    def _work(self, item: WorkItem) -> None:
        """Runs in a worker thread: make one attempt."""
        number, upstream, payload, host, expected = item
        request = Request(body=None, payload=payload, number=number)
        try:
            attempt = self._attempts.send_once(request, upstream, host, expected)
            self._ended.put((number, pipe.pack(attempt)))
        except BaseException as error:  # a bug: the run ends with it
            self._ended.put((number, _picklable(error)))

    def _send(self) -> None:
        """Runs in a thread: return attempts, all that have ended meanwhile in one message."""
        self._write([])  # it is up
        ended = self._next()
        while ended is not None:
            batch = []
            try:
                while ended is not None:
                    if ended[0] is None:
                        self._write(ended[1])
                    else:
                        batch.append(ended)
                    ended = self._ended.get_nowait()
            except queue.Empty:
                pass
            self._write(batch)
            self._returned += len(batch)
            if ended is not None:
                self._closing.wait(_BATCH_DELAY_S)
                ended = self._next()

    def _next(self) -> Any:
        """What ends next; ``None`` at the end. Says meanwhile that the process works."""
        while True:
            try:
                return self._ended.get(timeout=self._pulse_s)
            except queue.Empty:
                if self._taken != self._returned:
                    self._write([])

    def _write(self, message: Any) -> None:
        try:
            pipe.write(self._results, message)
        except BaseException:  # the run's process is gone, or the message can't be pickled
            os._exit(1)


def _picklable(error: BaseException) -> ParallelProcessorError:
    """An exception that can be sent: not every exception can be pickled and made again."""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(str(error))
    return WorkerProcessError(f"{type(error).__name__} in a worker process: {error}")


def main() -> None:
    """Runs in the new process, whose standard input and output are the pipes."""
    for name in ("SIGINT", "SIGTERM"):  # a terminal sends these to every process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    work, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.dup2(2, 1)  # so that a print in the user's session doesn't get into the pipe
    except OSError:  # there is no stderr
        os.dup2(0, 1)
    first = pipe.read(work)
    if first is not None:
        sys.path[:] = first[0]  # needed to import what the options refer to
        Child(pickle.loads(first[1]), results).run(work)
