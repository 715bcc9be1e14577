"""The sockets and threads of the simulator: one thread that accepts, and one per connection.

A thread per connection keeps the path of a request free of hand-overs: the thread that reads it
answers it. Nothing outlives `stop`: threads are woken out of whatever they wait for, and joined.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.simulator.answers import TokenCounting
from parallel_processor.simulator.connection import Connection
from parallel_processor.simulator.options import SimulatorOptions
from parallel_processor.simulator.service import Service
from parallel_processor.simulator.wire import MalformedRequest
from parallel_processor.tokens.counter import TokenCounter

_BACKLOG = 4096
_OUTAGE_CHECK_S = 0.02  # how often it is looked whether an outage begins or ends, if any is to come
_OUT_OF_FILES_S = 0.05  # how long accepting rests when the process has no file descriptor left


class Simulator:
    """An OpenAI-like server in this process, for a `with` block; see `SimulatorOptions`.

    `start` and `stop` are for one thread and once each; `url`, `stats` and `timeline` for any.
    """

    def __init__(
        self,
        options: SimulatorOptions | None = None,
        *,
        counter: TokenCounting | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or SimulatorOptions()
        self._service = Service(self.options, counter or _counter(self.options), clock)
        self._stopping = threading.Event()
        self._lock = InterruptSafeLock()  # guards _connections and the life of their sockets
        self._connections: dict[Connection, threading.Thread] = {}
        self._accepting: threading.Thread | None = None

    def start(self) -> None:
        """Listen; raises OSError when the address can't be had."""
        options = self.options
        self._listener = _listen(options.host, options.port)
        self._port: int = self._listener.getsockname()[1]
        self._alarm, self._alarm_bell = socket.socketpair()
        self._accepting = threading.Thread(target=self._accept, name="simulator-accept")
        self._accepting.start()

    def stop(self) -> None:
        """Close every connection, answered or not, and return when no thread is left."""
        if self._accepting is None:
            return
        self._stopping.set()
        self._alarm_bell.send(b"!")
        self._accepting.join()
        for open_socket in (self._listener, self._alarm, self._alarm_bell):
            open_socket.close()
        self._hang_up()
        self._accepting = None

    def _hang_up(self) -> None:
        """Close every connection, and return when none of their threads is left."""
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                connection.stop()
        for thread in threads:
            thread.join()

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address without a path, such as http://127.0.0.1:8000; known once started."""
        return f"http://{self.options.host}:{self._port}"

    def stats(self) -> dict[str, Any]:
        """Return what GET /stats does."""
        return self._service.summary()

    def timeline(self) -> dict[str, list[list[int]]]:
        """Return what GET /timeline does: for each model, a list of each second since the first request.

        It holds the requests admitted, tokens charged, requests refused and requests answered.
        """
        return self._service.timeline.snapshot()

    def _accept(self) -> None:
        interval_s = _OUTAGE_CHECK_S if self.options.outages else None
        while not self._stopping.is_set():
            self._accept_until_outage(interval_s)
            self._listener.close()
            if self._stopping.is_set():
                return
            self._hang_up()
            while self._is_out() and not self._stopping.wait(_OUTAGE_CHECK_S):
                pass
            if not self._stopping.is_set():
                self._listener = _listen(self.options.host, self._port)

    def _accept_until_outage(self, interval_s: float | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._alarm, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select(interval_s)
                if self._is_out():
                    return
                self._accept_waiting()

    def _is_out(self) -> bool:
        outages = self.options.outages
        if not outages:
            return False
        now_s = self._service.elapsed_s()
        return any(outage.from_s <= now_s < outage.until_s for outage in outages)

    def _accept_waiting(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone before it was accepted
                continue
            except OSError:
                self._stopping.wait(_OUT_OF_FILES_S)
                return
            self._welcome(client)

    def _welcome(self, client: socket.socket) -> None:
        """Give a client its thread, or hang up when there can't be another."""
        connection = Connection(client)
        thread = threading.Thread(
            target=self._attend, args=(connection,), name="simulator-connection"
        )
        with self._lock:
            self._connections[connection] = thread
        self._service.stats.connected()
        try:
            thread.start()
        except RuntimeError:
            self._part(connection)

    def _attend(self, connection: Connection) -> None:
        try:
            connection.begin()
            while (request := connection.next_request()) is not None:
                self._service.serve(request, connection)
                if not request.keep_alive:
                    break
        except (OSError, MalformedRequest):
            pass  # the client left, speaks no HTTP, or was meant to be cut off
        finally:
            self._part(connection)

    def _part(self, connection: Connection) -> None:
        self._service.stats.disconnected()
        with self._lock:
            del self._connections[connection]
            connection.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def _counter(options: SimulatorOptions) -> TokenCounting:
    return TokenCounter(
        encoding_name=options.token_encoding_name,
        default_output_tokens=options.default_output_tokens,
    )
