"""Connections that another thread can cancel, and reads that end with the exchange's time."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from raw_server import RawServer, Visit, answer_all
from transports import in_threads

from parallel_processor.transport.connections import (
    _MOST_AT_FIRST,
    BoundedAdapter,
    ConnectionRegistry,
    FirstConnections,
    _DeadlineReader,
    bounded_pools,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def connect(server: RawServer, registry: ConnectionRegistry) -> Any:
    """An open connection of the kind that our pools make."""
    pool_class = bounded_pools(10.0, registry)["http"]
    port = int(server.url.rpartition(":")[2])
    connection = pool_class.ConnectionCls("127.0.0.1", port, timeout=10.0)
    connection.connect()
    return connection


def test_no_read_begins_after_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    """After the deadline, not even bytes that have arrived are read."""
    pair[1].sendall(b"late")
    reader = _DeadlineReader(pair[0], time.monotonic() - 1.0)
    with pytest.raises(TimeoutError):
        reader.read(4)
    reader.close()


def test_a_read_gets_what_is_left(pair: tuple[socket.socket, socket.socket]) -> None:
    """The socket's timeout is what the exchange still has."""
    pair[1].sendall(b"soon")
    reader = _DeadlineReader(pair[0], time.monotonic() + 50.0)
    assert reader.read(4) == b"soon"
    assert 40.0 < (pair[0].gettimeout() or 0.0) <= 50.0
    reader.close()


def test_cancel_reaches_every_open_connection() -> None:
    """Reads on all of them end, and later connections are rejected."""
    registry = ConnectionRegistry()
    with RawServer(answer_all) as server:
        connections = [connect(server, registry) for _ in range(3)]
        registry.cancel()
        assert [connection.sock.recv(1) for connection in connections] == [b""] * 3
        with pytest.raises(ConnectionAbortedError, match="cancelled"):
            connect(server, registry)
        for connection in connections:
            connection.close()


def test_a_connection_that_was_being_made_during_a_cancel_is_rejected() -> None:
    """A connection that is being made when the run is cancelled can't be used afterwards."""
    registry = ConnectionRegistry()

    class CancelsMeanwhile(bounded_pools(10.0, registry)["http"].ConnectionCls):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()
            registry.cancel()
            return made

    with RawServer(answer_all) as server:
        connection = CancelsMeanwhile("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=10.0)
        with pytest.raises(ConnectionAbortedError):
            connection.connect()
        connection.close()


def test_cancel_ignores_what_is_closed_already() -> None:
    """Connections without a socket, or whose peer has left, are no trouble."""

    def leaves(visit: Visit) -> None:
        visit.sock.recv(1)
        visit.reset()

    registry = ConnectionRegistry()
    with RawServer(leaves) as server:
        closed, left = connect(server, registry), connect(server, registry)
        closed.close()
        left.sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            left.sock.recv(1)
        registry.cancel()
        left.close()


def test_cancel_reaches_tls_within_a_proxys_tls(pair: tuple[socket.socket, socket.socket]) -> None:
    """There, urllib3 wraps the socket in an object that isn't a socket."""

    class Connection:
        sock = SimpleNamespace(socket=pair[0])

    registry = ConnectionRegistry()
    connection: Any = Connection()
    registry.add(connection)
    registry.cancel()
    assert pair[1].recv(1) == b""


def test_a_connection_that_nobody_has_is_forgotten() -> None:
    """The registry keeps no connection alive."""
    registry = ConnectionRegistry()
    with RawServer(answer_all) as server:
        connection = connect(server, registry)
        connection.close()
        del connection
        gc.collect()
        assert len(registry._connections) == 0


def test_close_closes_every_socket() -> None:
    """Afterwards no connection has one."""
    registry = ConnectionRegistry()
    with RawServer(answer_all) as server:
        connections = [connect(server, registry) for _ in range(3)]
        registry.close()
        assert [connection.sock for connection in connections] == [None] * 3


def test_an_adapters_pools_are_bounded_through_a_proxy_too() -> None:
    """Direct and proxied exchanges have the bound, and as many connections are kept as there may be."""
    pools = bounded_pools(10.0, ConnectionRegistry())
    adapter = BoundedAdapter(pools, 7)
    direct = adapter.poolmanager.connection_from_url("https://api.example.com/")
    proxied = adapter.proxy_manager_for("http://127.0.0.1:1").connection_from_url("http://x/")
    assert type(direct) is pools["https"]
    assert type(proxied) is pools["http"]
    assert direct.pool is not None
    assert direct.pool.maxsize == 7
    assert adapter.max_retries.total == 0
    adapter.close()


def test_until_a_connection_stands_few_connect() -> None:
    """The others fail with what one of those failed with, and nobody waits once one stands."""
    first, failed = FirstConnections(), ConnectionRefusedError("no")
    entered, release = threading.Semaphore(0), threading.Event()
    ends: list[object] = []

    def connect(error: BaseException | None) -> None:
        try:
            with first.turn(60):
                entered.release()
                release.wait(60)
                if error is not None:
                    raise error
            ends.append("stands")
        except ConnectionRefusedError as caught:
            ends.append(caught)

    threads = [threading.Thread(target=connect, args=[failed]) for _ in range(40)]
    for thread in threads:
        thread.start()
    for _ in range(_MOST_AT_FIRST):
        assert entered.acquire(timeout=30)
    assert first._connecting == _MOST_AT_FIRST
    release.set()
    for thread in threads:
        thread.join()
    assert ends == [failed] * 40
    in_threads(3, lambda: connect(None))
    assert ends[40:] == ["stands"] * 3
    assert first._stands


def test_a_cancel_lets_nobody_wait_for_a_turn() -> None:
    """A thread that waits while others connect goes on at once, and its connection is refused."""
    registry = ConnectionRegistry()
    registry.first._connecting = _MOST_AT_FIRST
    waiting = threading.Thread(target=lambda: registry.first._enter(60))
    waiting.start()
    registry.cancel()
    waiting.join(30)
    assert not waiting.is_alive()
