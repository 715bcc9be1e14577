"""Connections whose whole exchange is bounded in time, and which another thread can cancel.

They are used by the adapter, as ``requests`` and urllib3 do, or opened by a pool and then kept by
one thread (``exchange.py``).
"""

from __future__ import annotations

import http
import http.client
import io
import math
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ProxyError
from urllib3.util.proxy import connection_requires_http_tunnel

from parallel_processor.options import SYSTEM_STORE
from parallel_processor.transport.http1 import bound_by
from parallel_processor.transport.interception import HTTPConnection, HTTPSConnection
from parallel_processor.transport.tls import TLSContexts, TLSPolicy

_MOST_AT_FIRST = 16


class FirstConnections:
    """Until one connection stands, few threads connect at a time, and the others share their failure.

    A run may have a thousand threads. A host that takes no connection, or lets each hang, gets a few.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()  # guards the fields below
        self._connecting = self._failures = 0
        self._last: BaseException = TimeoutError("timed out")
        self._stands = False

    @contextmanager
    def turn(self, timeout_s: float | None) -> Iterator[None]:
        """Connect in the block, after a wait for one's turn, which raises what others failed with."""
        if self._stands:
            yield
            return
        self._enter(timeout_s)
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise
        self.end()

    def end(self) -> None:
        """Let everybody connect: a connection stands, or the run was cancelled."""
        with self._condition:
            self._stands = True
            self._condition.notify_all()

    def _enter(self, timeout_s: float | None) -> None:
        with self._condition:
            seen = self._failures
            self._condition.wait_for(
                lambda: self._stands or self._connecting < _MOST_AT_FIRST or self._failures != seen,
                timeout_s,
            )
            is_free = self._connecting < _MOST_AT_FIRST and self._failures == seen
            if not self._stands and not is_free:
                raise self._last.with_traceback(None)
            self._connecting += 1

    def _leave(self, error: BaseException) -> None:
        with self._condition:
            self._connecting -= 1
            self._failures += 1
            self._last = error
            self._condition.notify_all()


class _Sending(threading.local):
    """When this thread's last request went out, on the monotonic clock; 0 before the first."""

    since_s = 0.0


class ConnectionRegistry:
    """The open connections of a run, so that it can cancel them. Any thread may call it.

    ``sending.since_s`` is when the calling thread's last request went out.
    """

    def __init__(self) -> None:
        self.first = FirstConnections()
        self._lock = threading.Lock()  # guards _connections and is_cancelled
        self._connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self.is_cancelled = False
        self._process = os.getpid()
        self.sending = _Sending()

    def add(self, connection: HTTPConnection) -> None:
        """Remember ``connection``. Raises as :meth:`check` does."""
        with self._lock:
            self.check()
            self._connections.add(connection)

    def check(self) -> None:
        """Raise ``ConnectionAbortedError`` after :meth:`cancel`."""
        if self.is_cancelled:
            raise ConnectionAbortedError("the run was cancelled")

    def note_sending(self) -> float:
        """Note that this thread's request goes out now, on an open connection. Return the time."""
        self.sending.since_s = now = time.monotonic()
        return now

    def cancel(self) -> None:
        """Cancel every exchange under way: its reads and writes fail at once.

        A forked child shares the sockets of its parent, and cancels nothing.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self.is_cancelled = True
            self.first.end()
            sockets = [connection.sock for connection in self._connections]
        for sock in sockets:
            sock = getattr(
                sock, "socket", sock
            )  # TLS within a proxy's TLS: urllib3 wraps the socket
            if sock is not None:
                try:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    pass  # its own thread has closed it meanwhile

    def close(self) -> None:
        """Close every connection. No other thread may be using one.

        Closing a session would leave that to the garbage collector.
        """
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()


class _DeadlineReader(io.RawIOBase):
    """The receiving end of a socket. Each read may take what is left of the exchange's time."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """``http.client`` asks a socket for a file, and gets this one."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read as the socket does. Raises ``TimeoutError`` after the deadline."""
        bound_by(self._sock, self._deadline)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _FinalResponse(http.client.HTTPResponse):
    """Skips interim responses (102, 103 …), which ``http.client`` takes for the final one.

    The final response would then be read as the response to the next request on the connection.
    A proxy that refuses a tunnel may reset the connection behind its status, so the headers that
    follow are not read. Only the response to ``CONNECT`` has no method.
    """

    _method: str | None

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if self._method is None and status >= http.HTTPStatus.MULTIPLE_CHOICES:
                raise OSError(f"Tunnel connection failed: {status} {reason.strip()}")
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise http.client.BadStatusLine(f"{version} {status} {reason}")
            if not http.HTTPStatus.CONTINUE < status < http.HTTPStatus.OK:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _BoundedConnection(HTTPConnection):
    exchange_timeout_s: float
    registry: ConnectionRegistry
    _deadline = 0.0

    def connect(self) -> None:
        """Connect, unless the run was cancelled. The tunnel of a proxy is bounded in time as well."""
        connect_s = self.timeout if isinstance(self.timeout, (int, float)) else math.inf
        connect_s = min(connect_s, self.exchange_timeout_s)
        with self.registry.first.turn(connect_s):
            self.registry.check()
            began_at = time.monotonic()
            self._deadline = began_at + connect_s  # for a proxy's tunnel
            super().connect()
        self._deadline = began_at + self.exchange_timeout_s
        # Only now: a connection that is being made can't be cancelled. It takes connect_s at most.
        self.registry.add(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Begin an exchange. Its time starts once the connection is open."""
        if self.sock is None:  # http: urllib3 would connect in request(); https is connected by now
            self.connect()
        self._deadline = self.registry.note_sending() + self.exchange_timeout_s
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        if self.sock is not None:
            bound_by(self.sock, self._deadline)
        super().send(data)

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, *args: Any, **kwargs: Any
    ) -> http.client.HTTPResponse:
        bounded: Any = _DeadlineReader(sock, self._deadline)
        return _FinalResponse(bounded, *args, **kwargs)


class _BoundedTLSConnection(  # pyright: ignore[reportIncompatibleVariableOverride]
    _BoundedConnection, HTTPSConnection
):
    pass


class BoundedPool(HTTPConnectionPool):
    """A pool that can also open a connection which its caller keeps."""

    @property
    def can_open(self) -> bool:
        """False where urllib3 has changed, and for TLS within a proxy's TLS."""
        names = ("_new_conn", "_prepare_proxy", "_validate_conn", "proxy", "proxy_config")
        return all(hasattr(self, name) for name in names) and not self.has_tls_proxy

    @property
    def has_tls_proxy(self) -> bool:
        """True if the proxy itself is reached by TLS."""
        return self.proxy is not None and self.proxy.scheme == "https"

    @property
    def has_tunnel(self) -> bool:
        """True if a proxy passes on bytes, not requests."""
        return bool(connection_requires_http_tunnel(self.proxy, self.proxy_config, self.scheme))

    def open(self, timeout_s: float) -> HTTPConnection:
        """Open a connection, through the proxy if there is one. Raises urllib3's errors."""
        made: Any = self._new_conn()
        made.timeout = timeout_s
        try:
            if self.has_tunnel:
                self._prepare_proxy(made)
            self._validate_conn(made)
            if made.sock is None:
                made.connect()
        except BaseException as error:
            made.close()
            is_bare = self.proxy is None or isinstance(error, ssl.SSLError)
            if is_bare or not isinstance(error, (OSError, HTTPError, http.client.HTTPException)):
                raise
            raise ProxyError("can't connect to the proxy", error) from error
        return made  # type: ignore[no-any-return]


class _BoundedTLSPool(BoundedPool, HTTPSConnectionPool):
    pass


def bounded_pools(exchange_timeout_s: float, registry: ConnectionRegistry) -> dict[str, Any]:
    """Pool classes by URL scheme. An exchange on their connections takes at most ``exchange_timeout_s``."""
    fields = {"exchange_timeout_s": exchange_timeout_s, "registry": registry}
    plain = type("BoundedConnection", (_BoundedConnection,), fields)
    tls = type("BoundedTLSConnection", (_BoundedTLSConnection,), fields)
    return {
        "http": type("BoundedPool", (BoundedPool,), {"ConnectionCls": plain}),
        "https": type("BoundedTLSPool", (_BoundedTLSPool,), {"ConnectionCls": tls}),
    }


class BoundedAdapter(HTTPAdapter):
    """The adapter for sessions without one of their own. Any number of threads may share it.

    ``trusts_system``: the operating system's authorities count, whatever a session says.
    """

    def __init__(
        self, pools: dict[str, Any], max_connections: int, *, trusts_system: bool = False
    ) -> None:
        self._pools, self._trusts_system = pools, trusts_system
        self._contexts = TLSContexts()
        super().__init__(pool_connections=8, pool_maxsize=max_connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """The pools for a proxy, bounded as well, except for a SOCKS proxy: it needs classes of its own."""
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Give ``conn``, which is a pool, the TLS context that all pools with these settings share."""
        read_settings: Any = super().cert_verify
        pool: object = conn  # or type checkers would hold conn to the fields of a BoundedPool
        shares_contexts = isinstance(pool, BoundedPool) and not pool.has_tls_proxy
        if not shares_contexts or not url.lower().startswith("https"):
            read_settings(conn, url, verify, cert)
            return
        settings = SimpleNamespace()
        read_settings(settings, url, verify, cert)
        policy = TLSPolicy(**vars(settings))
        if self._trusts_system:
            policy = policy._replace(ca_certs=SYSTEM_STORE, ca_cert_dir=None)
        context = self._contexts.get(policy)
        conn.cert_reqs = settings.cert_reqs
        # Each connection would read the files that are named here into the shared context again.
        conn.ca_certs = conn.ca_cert_dir = conn.cert_file = conn.key_file = None
        conn.conn_kw["ssl_context"] = context

    def pool_for(self, prepared: Any, settings: dict[str, Any]) -> BoundedPool | None:
        """The pool that can open connections for ``prepared``; ``None`` if only :meth:`send` can."""
        verify, cert = settings["verify"], settings["cert"]
        try:
            pool: Any = self.get_connection_with_tls_context(
                prepared, verify, proxies=settings["proxies"], cert=cert
            )
        except (ValueError, HTTPError):
            return None  # send() will say what is wrong
        if not isinstance(pool, BoundedPool) or not pool.can_open:
            return None
        self.cert_verify(pool, prepared.url, verify, cert)
        return pool
