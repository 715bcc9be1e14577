"""The worker processes of a run, for servers so fast that one core can't keep up with them.

Everything that decides stays here, in the process of the run: reading, limits, retries, writing. The
child processes (``child.py``) make attempts and tell how they ended. A thread of ours for each child
takes what has ended, and sends as many new requests back in one message, so that no other thread is in
the way of a request. A child that dies takes nothing with it: what it had under way is sent again.
"""

from __future__ import annotations

import io
import itertools
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallel_processor import messages
from parallel_processor.attempts import Ended
from parallel_processor.exceptions import ConfigurationError, WorkerProcessError
from parallel_processor.exits import at_exit
from parallel_processor.limiter import Reservation
from parallel_processor.models import Attempt, Verdict
from parallel_processor.options import Options
from parallel_processor.pending import Admitted, Waiting

_log = logging.getLogger("parallel_processor")
_MOST_FRUITLESS = 3  # children in a row that end without any result
_PATIENCE_S = 15.0  # for the end of what was cut: as long as it takes to connect
_MOST_TOGETHER = 16  # requests of one message, so that the processes share them
_MOST_SILENT_S = 2.0
_READ_BYTES = 1 << 16
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from parallel_processor.child import main; main()"
)


class _Child:
    """One process, and what it has under way."""

    def __init__(self, first_message: Any, listen: Callable[[_Child], None]) -> None:
        root = str(Path(__file__).resolve().parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a terminal's Ctrl-C is for the run alone
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows, too
        )
        self.lock = threading.Lock()  # guards what follows, and writing
        self.under_way: dict[int, Admitted] = {}
        self.is_lost = False
        self.was_of_use = False
        name = "parallel-processor-child"
        self.thread = threading.Thread(target=listen, args=[self], name=name, daemon=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._errands: Any = self.process.stdin
        raw: Any = self.process.stdout
        self.results = io.BufferedReader(raw, _READ_BYTES)
        self.tell(first_message)

    def send(self, numbered: list[tuple[int, Admitted]]) -> bool:
        """Have these sent; false if the process is known to be gone."""
        with self.lock:
            if self.is_lost:
                return False
            self.under_way.update(numbered)
            try:
                self._write([_errand(number, admitted.waiting) for number, admitted in numbered])
            except BaseException:
                for number, _ in numbered:
                    del self.under_way[number]
                raise
        return True

    def tell(self, message: Any) -> None:
        """Write ``message``, if somebody reads it; a process that doesn't is killed."""
        if self._has_lock():
            try:
                self._write(message)
            finally:
                self.lock.release()

    def _has_lock(self) -> bool:
        """Take the lock, which a writer has for long only if the process doesn't read any more."""
        if self.lock.acquire(timeout=_MOST_SILENT_S):
            return True
        self.process.kill()
        return False

    def _write(self, message: Any) -> None:
        try:
            messages.write(self._errands, message)
        except (OSError, ValueError):
            pass  # its thread hears of the end, and sends again what is under way

    def lose(self) -> list[Admitted]:
        """It is gone: what it had under way."""
        with self.lock:
            self.is_lost = True
            left, self.under_way = list(self.under_way.values()), {}
        return left

    def hang_up(self) -> None:
        """Let the process end; a fork of ours may have its pipe, so that closing it isn't enough."""
        if self._has_lock():
            try:
                self._write(messages.BYE)
                self._errands.close()
            except OSError:
                pass  # what was left to write
            finally:
                self.lock.release()

    def kill(self) -> None:
        """End the process at once, if it hasn't ended."""
        if self.thread.is_alive():
            self.process.kill()

    def end(self) -> str:
        """Wait for the process's end, and say how it ended."""
        try:
            code = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.hang_up()
        self.results.close()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _errand(number: int, waiting: Waiting) -> messages.Errand:
    request = waiting.request
    return messages.Errand(number, request.url, request.payload, waiting.bucket.host)


class WorkerProcesses:
    """Sends from the threads of ``options.processes`` processes; used like ``WorkerThreads``.

    :class:`ConfigurationError` if the session factory can't be sent to another process.
    """

    def __init__(
        self,
        options: Options,
        max_workers: int,
        *,
        begin: Callable[[Waiting, Reservation], bool],
        finish: Callable[[Admitted, Ended | BaseException | None], Admitted | None],
    ) -> None:
        self.reads_values = True
        self._begin = begin
        self._finish = finish
        self._first_message = (sys.path, _pickled(options))
        self._numbers = itertools.count()
        self._started: list[Admitted] = []
        self._lock = threading.Lock()  # guards what follows
        self._size = options.processes
        self._children: list[_Child] = []
        self._threads: list[threading.Thread] = []  # of all children, those that are gone included
        self._fruitless = 0
        self._is_closing = False
        at_exit(self.close)

    def start(self, admitted: Admitted) -> None:
        """Have ``admitted`` sent, with others, by :meth:`flush`. Only one thread may call these two."""
        self._started.append(admitted)
        if len(self._started) >= _MOST_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Have those who were started sent by the process with the least to do."""
        started, self._started = self._started, []
        if started:
            self._send(None, started)

    def _send(self, child: _Child | None, batch: list[Admitted]) -> None:
        """Have those sent which may be, by ``child`` if it lives; what can't be sent ends the run."""
        ready: list[tuple[int, Admitted]] = []
        for each in batch:
            admitted: Admitted | None = each
            while admitted is not None and not self._begin(*admitted):
                admitted = self._finish(admitted, None)
            if admitted is not None:
                ready.append((next(self._numbers), admitted))
        try:
            while ready and (child is None or not child.send(ready)):
                child = self._idlest()
        except BaseException as error:
            for _, admitted in ready:
                self._finish(admitted, error)

    def _idlest(self) -> _Child:
        with self._lock:
            while len(self._children) < self._size:
                self._children.append(self._new_child())
            return min(self._children, key=lambda child: len(child.under_way))

    def _new_child(self) -> _Child:
        """Caller holds ``_lock``."""
        if self._is_closing:
            raise WorkerProcessError("the run is over")
        if self._fruitless >= _MOST_FRUITLESS * self._size:
            raise WorkerProcessError(
                "the worker processes end before they have sent anything, one after the other"
            )
        try:
            child = _Child(self._first_message, self._listen)
        except OSError as error:
            raise WorkerProcessError(f"can't start a worker process: {error}") from error
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(child.thread)
        child.thread.start()
        return child

    def _listen(self, child: _Child) -> None:
        """Runs in a thread: each message's requests are finished, and as many others sent."""
        fault: BaseException | None = None
        try:
            while (message := messages.read(child.results)) is not None:
                child.was_of_use = True
                following = [self._receive(child, ended) for ended in message]
                self._send(child, [admitted for admitted in following if admitted is not None])
        except BaseException as error:
            fault = error
        self._replace(child, fault)

    def _receive(self, child: _Child, message: tuple[Any, ...]) -> Admitted | None:
        number, packed, *more = message
        admitted = child.under_way.pop(number)
        if isinstance(packed, BaseException):
            return self._finish(admitted, packed)
        attempt = messages.unpack(packed, parses=self.reads_values)
        return self._finish(admitted, Ended(attempt, *more))

    def _replace(self, child: _Child, fault: BaseException | None) -> None:
        """``child`` is gone: send what it had under way by another."""
        left = child.lose()
        with self._lock:
            is_closing = self._is_closing
            self._children.remove(child)
            if left:
                self._fruitless = 0 if child.was_of_use else self._fruitless + 1
        if fault is not None:
            child.process.kill()
        how = child.end()
        lost = Ended(Attempt(verdict=Verdict.STOPPED))
        if not is_closing:
            _log.warning(
                "a worker process is gone (%s); requests that are sent again: %d", how, len(left)
            )
            text = f"lost: its worker process is gone ({how})"
            lost = Ended(Attempt(verdict=Verdict.LOST, kind="lost", error=text))
        for admitted in left:
            following = self._finish(admitted, lost if fault is None else fault)
            if following is not None:
                self._send(None, [following])

    def cut(self) -> None:
        """End every exchange under way; each fails as a broken connection."""
        with self._lock:
            children = list(self._children)
        for child in children:
            child.tell(messages.CUT)

    def close(self) -> None:
        """End the processes; what they still have under way is cut."""
        with self._lock:
            self._is_closing = True
            children, threads = list(self._children), list(self._threads)
        for child in children:
            child.hang_up()
        until = time.monotonic() + _PATIENCE_S
        for child in children:
            child.thread.join(max(until - time.monotonic(), 0.0))
            child.kill()
        for thread in threads:
            thread.join()


def _pickled(options: Options) -> bytes:
    factory = options.session_factory
    try:
        if getattr(factory, "__module__", "") == "__main__":
            raise pickle.PicklingError("it is in the main module")
        return pickle.dumps(replace(options, validate=None))  # which is called in this process
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"with processes={options.processes} the session_factory must be a function of a module that "
            f"another process can import: {error}"
        ) from None
