"""The worker processes of a run, for servers so fast that one core can't keep up with them.

All decisions are made here, in the run's process: reading, limits, retries, writing. The child processes
(``child.py``) send requests and return the attempts. Each child has a thread here, which settles these
attempts and sends the child as many new requests in one message: a request passes through no other thread.
If a child dies, another one sends its requests again; one that is frozen (SIGSTOP, say) is killed for that.
"""

from __future__ import annotations

import io
import itertools
import logging
import pickle
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import ConfigurationError, WorkerProcessError
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import Options
from parallel_processor.runtime.cores import Cores, SharedCore
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.workers import pipe
from parallel_processor.workers.outgoing import Outgoing
from parallel_processor.workers.pending import AdmittedRequest
from parallel_processor.workers.pipe import WorkItem

_log = logging.getLogger("parallel_processor")
_MAX_FRUITLESS = 3  # children in a row, for each process, that end without any result
_JOIN_TIMEOUT_S = 15.0  # for the end of what was cancelled: connecting may take as long
_MAX_BATCH = 16  # requests of one message: more would not be shared by all processes
_WRITE_TIMEOUT_S = 2.0
_START_TIMEOUT_S = 30.0  # until the first word of a new process
_READ_BYTES = 1 << 16
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from parallel_processor.workers.child import main; main()"
)


class _Watched(io.RawIOBase):
    """The pipe from a child. A read raises ``TimeoutError`` once ``left_s`` says that no time is left."""

    def __init__(self, results: Any, silence_s: float, left_s: Callable[[float], float]) -> None:
        self._results, self._silence_s, self._left_s = results, silence_s, left_s
        self._poll = select.poll()
        self._poll.register(results, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read as the pipe does, once there is something."""
        since_s, wait_s = time.monotonic(), self._silence_s
        while not self._poll.poll(wait_s * 1000):
            if (wait_s := self._left_s(since_s)) <= 0:
                raise TimeoutError
        return self._results.readinto(buffer)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._results.close()
        super().close()


class _Child:
    """One child process, and the requests that it is sending.

    While it sends, it says so at intervals (``child.py``). If it says nothing for ``silence_s``, it is
    frozen, and its requests are sent again by another.
    """

    def __init__(
        self, first_message: Any, listen: Callable[[_Child], None], silence_s: float
    ) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a terminal's Ctrl-C is for the run alone
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows, too
        )
        self.lock = threading.Lock()  # guards the fields below, and writing to the pipe
        self.in_flight: dict[int, AdmittedRequest] = {}
        self.is_lost = False
        self.has_sent = False  # any attempt, since it was started
        self._is_up = False
        self._busy_since_s = 0.0
        name = "parallel-processor-child"
        self.thread = threading.Thread(target=listen, args=[self], name=name, daemon=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._work: Any = self.process.stdin
        raw: Any = self.process.stdout
        self._silence_s = silence_s
        self.results = io.BufferedReader(_Watched(raw, silence_s, self._left_s), _READ_BYTES)
        self.tell(first_message)

    def _left_s(self, since_s: float) -> float:
        """How long it may still say nothing, if it has said nothing since then."""
        if not self.in_flight:  # without the lock, which a writer to a full pipe may hold
            return self._silence_s
        most_s = self._silence_s if self._is_up else max(self._silence_s, _START_TIMEOUT_S)
        return max(since_s, self._busy_since_s) + most_s - time.monotonic()

    def messages(self) -> Iterator[Any]:
        """What it says, until it ends, or is frozen and ended."""
        try:
            while (message := pipe.read(self.results)) is not None:
                self._is_up = True
                yield message
        except TimeoutError:
            _log.warning("a worker process has said nothing for %g s: it is ended", self._silence_s)
            self.process.kill()

    def send(self, numbered: list[tuple[int, AdmittedRequest]], items: list[WorkItem]) -> bool:
        """Give it these requests to send; false if the process is known to be gone."""
        with self.lock:
            if self.is_lost:
                return False
            if not self.in_flight:
                self._busy_since_s = time.monotonic()
            self.in_flight.update(numbered)
            try:
                self._write(items)
            except BaseException:
                for number, _ in numbered:
                    del self.in_flight[number]
                raise
        return True

    def tell(self, message: Any) -> None:
        """Write ``message``; a process that does not read is killed."""
        if self._acquire():
            try:
                self._write(message)
            finally:
                self.lock.release()

    def _acquire(self) -> bool:
        """Take the lock. A writer holds it for long only if the process has stopped reading."""
        if self.lock.acquire(timeout=_WRITE_TIMEOUT_S):
            return True
        self.process.kill()
        return False

    def _write(self, message: Any) -> None:
        try:
            pipe.write(self._work, message)
        except (OSError, ValueError):
            pass  # the child is gone: its thread will notice, and have its requests sent again

    def lose(self) -> list[AdmittedRequest]:
        """Mark it as gone, and return the requests that it was sending."""
        with self.lock:
            self.is_lost = True
            left, self.in_flight = list(self.in_flight.values()), {}
        return left

    def hang_up(self) -> None:
        """Let the process end. Closing the pipe isn't enough: a fork of ours may hold it open."""
        if self._acquire():
            try:
                self._write(pipe.SHUTDOWN)
                self._work.close()
            except OSError:
                pass  # what was left to write
            finally:
                self.lock.release()

    def end(self) -> str:
        """Wait until the process has ended, and say how it ended."""
        try:
            code = self.process.wait(_JOIN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.hang_up()
        self.results.close()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class WorkerProcesses:
    """A pool of ``options.processes`` processes with threads; the arguments are those of ``make_pool``.

    :class:`ConfigurationError` if the session factory can't be sent to another process.
    """

    def __init__(
        self,
        options: Options,
        *,
        settle: Callable[[AdmittedRequest, Attempt | BaseException], AdmittedRequest | None],
        stop: StopSignal,
        parses_answers: bool,
    ) -> None:
        self.core = SharedCore(cores=Cores())  # the workers are elsewhere
        self._settle, self._stop, self._parses_answers = settle, stop, parses_answers
        self._outgoing = Outgoing(options.request_url)
        self._first_message = (sys.path, _pickled(options))
        self._numbers = itertools.count()
        self._started: list[AdmittedRequest] = []  # that no process has been given yet
        self._lock = threading.Lock()  # guards the fields below
        self._silence_s = pipe.longest_silence_s(options)
        self._size = options.processes
        self._children: list[_Child] = []
        self._threads: list[threading.Thread] = []  # of all children, also of those that are gone
        self._fruitless = 0
        self._is_closing = False

    def prepare(self) -> None:
        """Start the processes."""
        self._idlest()

    def start(self, admitted: AdmittedRequest) -> None:
        """Send ``admitted``, together with others, at the latest in :meth:`flush`."""
        self._started.append(admitted)
        if len(self._started) >= _MAX_BATCH:
            self.flush()

    def flush(self) -> None:
        """Give what was started to the processes: to each a share, to the idlest first."""
        started, self._started = self._started, []
        share = -(-len(started) // self._size)
        for place in range(0, len(started), share or 1):
            self._send(None, started[place : place + share])

    def _send(self, child: _Child | None, batch: list[AdmittedRequest]) -> None:
        """Give ``batch`` to ``child`` if it lives, else to another; a failure ends the run."""
        if self._stop.is_set():  # since the requests were admitted
            for admitted in batch:
                self._settle(admitted, Attempt(status=AttemptStatus.STOPPED))
            return
        ready = [(next(self._numbers), admitted) for admitted in batch]
        try:
            items = [self._work_item(number, admitted) for number, admitted in ready]
            while ready and (child is None or not child.send(ready, items)):
                child = self._idlest()
        except BaseException as error:
            for _, admitted in ready:
                self._settle(admitted, error)

    def _work_item(self, number: int, admitted: AdmittedRequest) -> WorkItem:
        request, bucket = admitted.pending.request, admitted.pending.bucket
        upstream = bucket.upstream
        payload = self._outgoing.payload(request, upstream)
        expected = self._outgoing.expected(request, upstream)
        upstream = upstream._replace(url=expected.url)
        return WorkItem(number, upstream, payload, bucket.host, expected)

    def _idlest(self) -> _Child:
        with self._lock:
            while len(self._children) < self._size:
                try:
                    self._children.append(self._new_child())
                except (OSError, RuntimeError) as error:  # no process or thread left
                    if not self._children:
                        raise WorkerProcessError(
                            f"can't start a worker process: {error}"
                        ) from error
                    self._size = len(self._children)
                    _log.warning("only %d worker processes can be had: %s", self._size, error)
            return min(self._children, key=lambda child: len(child.in_flight))

    def _new_child(self) -> _Child:
        """Start a process. Caller holds ``_lock``. ``OSError`` or ``RuntimeError`` if there is none."""
        if self._is_closing:
            raise WorkerProcessError("the run is over")
        if self._fruitless >= _MAX_FRUITLESS * self._size:
            raise WorkerProcessError(
                "the worker processes end before they have sent anything, one after the other"
            )
        child = _Child(self._first_message, self._listen, self._silence_s)
        try:
            child.thread.start()
        except RuntimeError:
            child.process.kill()
            child.end()
            raise
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(child.thread)
        return child

    def _listen(self, child: _Child) -> None:
        """Runs in a thread for each child: settle what it returns, and give it as much again."""
        bug: BaseException | None = None
        try:
            for message in child.messages():
                if isinstance(message, str):
                    _log.warning("%s", message)
                    continue
                child.has_sent |= bool(message)
                following = [self._receive(child, number, packed) for number, packed in message]
                self._send(child, [admitted for admitted in following if admitted is not None])
        except BaseException as error:
            bug = error
        self._replace(child, bug)

    def _receive(self, child: _Child, number: int, packed: Any) -> AdmittedRequest | None:
        admitted = child.in_flight.pop(number)
        if isinstance(packed, BaseException):
            return self._settle(admitted, packed)
        return self._settle(admitted, pipe.unpack(packed, parses=self._parses_answers))

    def _replace(self, child: _Child, bug: BaseException | None) -> None:
        """Have another child send what ``child``, which is gone, had in flight."""
        left = child.lose()
        with self._lock:
            is_closing = self._is_closing
            self._children.remove(child)
            if left:
                self._fruitless = 0 if child.has_sent else self._fruitless + 1
        if bug is not None:
            child.process.kill()
        how = child.end()
        lost = Attempt(status=AttemptStatus.STOPPED)
        if not is_closing:
            _log.warning(
                "a worker process is gone (%s); requests that are sent again: %d", how, len(left)
            )
            text = f"lost: its worker process is gone ({how})"
            lost = Attempt(status=AttemptStatus.LOST, kind="lost", error=text)
        for admitted in left:
            following = self._settle(admitted, lost if bug is None else bug)
            if following is not None:
                self._send(None, [following])

    def cancel(self) -> None:
        """Cancel every exchange in flight; each fails like a broken connection."""
        with self._lock:
            children = list(self._children)
        for child in children:
            child.tell(pipe.CANCEL)

    def close(self) -> None:
        """End the processes; what they have in flight is cancelled."""
        with self._lock:
            self._is_closing = True
            children, threads = list(self._children), list(self._threads)
        for child in children:
            child.hang_up()
        until = time.monotonic() + _JOIN_TIMEOUT_S
        for child in children:
            child.thread.join(max(until - time.monotonic(), 0.0))
            if child.thread.is_alive():
                child.process.kill()
        for thread in threads:
            thread.join()

    abort = close


def _pickled(options: Options) -> bytes:
    functions = [options.session_factory, *(key.fetch for key in options.keyring.rotating())]
    try:
        if any(getattr(function, "__module__", "") == "__main__" for function in functions):
            raise pickle.PicklingError("it is in the main module")
        return pickle.dumps(replace(options, validate=None))  # which is called in this process
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"with processes={options.processes} a session_factory and an api_key that is fetched must be "
            f"functions of a module that another process can import: {error}"
        ) from None
