"""A worker process: sends what the run's process asks for, and tells how each attempt ended.

It has worker threads and connections, and nothing else: no limits, no files, no retries. It ends with
its pipe, whatever became of the process at the other end; signals are for that one.
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

from parallel_processor import messages
from parallel_processor.attempts import Attempts
from parallel_processor.exceptions import (
    ConfigurationError,
    ParallelProcessorError,
    WorkerProcessError,
)
from parallel_processor.messages import Errand
from parallel_processor.models import Request
from parallel_processor.options import Options
from parallel_processor.transport import Transport

_GATHER_S = 0.001  # so long answers wait for others to travel with


class Child:
    """The threads of one worker process. ``results`` is where the ends of attempts go."""

    def __init__(self, options: Options, results: BinaryIO) -> None:
        self._results = results
        self._transport = Transport(options)
        self._attempts = Attempts(options, self._transport)
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(
            options.max_workers, thread_name_prefix="parallel-processor-worker"
        )
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def run(self, errands: BinaryIO) -> None:
        """Do what comes from ``errands``, until its end."""
        while (message := messages.read(errands)) is not None:
            if message == messages.BYE:
                break
            if message == messages.CUT:
                self._transport.cut()
                continue
            for errand in message:
                self._executor.submit(self._work, errand)
        self._transport.cut()
        self._executor.shutdown()
        self._closing.set()
        self._ended.put(None)
        self._sender.join()

    def _work(self, errand: Errand) -> None:
        number, url, payload, host = errand
        request = Request(body=None, payload=payload, number=number, url=url)
        try:
            attempt, *more = self._attempts.make(request, host)
            self._ended.put((number, messages.pack(attempt), *more))
        except BaseException as error:  # a fault of ours, which ends the run
            self._ended.put((number, _as_text(error)))

    def _send(self) -> None:
        """Runs in a thread: what has ended meanwhile travels together."""
        ended = self._ended.get()
        while ended is not None:
            batch = []
            try:
                while ended is not None:
                    batch.append(ended)
                    ended = self._ended.get_nowait()
            except queue.Empty:
                pass
            try:
                messages.write(self._results, batch)
            except BaseException:  # nobody is there any more, or this can't be sent
                os._exit(1)
            if ended is not None:
                self._closing.wait(_GATHER_S)
                ended = self._ended.get()


def _as_text(error: BaseException) -> ParallelProcessorError:
    """What can travel: not every exception can be pickled, or made again."""
    if isinstance(error, ConfigurationError):
        return ConfigurationError(str(error))
    return WorkerProcessError(f"{type(error).__name__} in a worker process: {error}")


def main() -> None:
    """Runs in the new process, whose standard input and output are the pipes."""
    for name in ("SIGINT", "SIGTERM"):  # a terminal sends these to everybody
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    errands, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.dup2(2, 1)  # what a session of the user's prints must not get between
    except OSError:  # there is no stderr
        os.dup2(0, 1)
    first = messages.read(errands)
    if first is not None:
        sys.path[:] = first[0]  # before what may have to be imported
        Child(pickle.loads(first[1]), results).run(errands)
