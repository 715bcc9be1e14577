"""Sends one attempt over HTTP and returns the complete response.

Each worker thread has a ``requests.Session`` of its own. Two things that a session repeats for
every request are done once:

* The environment's proxies and CA bundle are merged once per run and URL.
* The head of a request is prepared once per thread and URL. It lacks only the length of the body.

Head and body then go out over a connection that the thread keeps (``exchange.py``). Redirects are
never followed, so no key goes to another host. Nothing is sent twice.

Some requests take another way:

* A session with an adapter of its own keeps that adapter, and its meaning of a read timeout.
* For a session with an auth class, and for a proxy that is reached by SOCKS or TLS, our adapter
  sends. It bounds the whole exchange (``connections.py``). An auth class sees each body.
* Where a mock, a recorder or a tracer has patched ``requests`` or urllib3 (``interception.py``),
  the session itself sends.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import requests
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.hooks import dispatch_hook
from urllib3.util import Timeout

from parallel_processor.exceptions import ConfigurationError, TransportError
from parallel_processor.models import Request, Response
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import auth_headers, is_loopback
from parallel_processor.providers.jsontext import read_answer
from parallel_processor.transport.connections import (
    BoundedAdapter,
    BoundedPool,
    ConnectionRegistry,
    bounded_pools,
)
from parallel_processor.transport.exchange import KeptConnection, RawResponse, read_bounded
from parallel_processor.transport.failures import FAILURES, transport_error
from parallel_processor.transport.http1 import request_head
from parallel_processor.transport.interception import is_intercepted, is_recorded

_dispatch: Any = dispatch_hook
_MAX_PREPARED_URLS = 64
_MAX_CONNECTIONS = 8


class _PreparedRoute(NamedTuple):
    """How requests to one URL are sent: with this head, over this connection."""

    head: bytes
    connection: KeptConnection


class _WorkerSession:
    """What one worker thread sends with.

    ``routes`` has ``None`` for a URL whose requests the session's adapter has to send.
    """

    def __init__(self, session: requests.Session, settings: dict[str, dict[str, Any]]) -> None:
        self.session = session
        self.is_intercepted = is_intercepted(session)
        self.settings = settings
        self.prepared: dict[str, PreparedRequest] = {}
        self.routes: dict[str, _PreparedRoute | None] = {}
        self.connections: dict[BoundedPool, KeptConnection] = {}

    def close(self) -> None:
        """Close the connections of this thread."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        self.routes.clear()


class Transport:
    """Sends the requests of a run. Any thread may call :meth:`send`; each has a session of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._registry = ConnectionRegistry()
        pools = bounded_pools(options.request_timeout_s, self._registry)
        self._adapter = BoundedAdapter(pools, options.max_workers)
        self._timeout: Any = Timeout(
            connect=options.connect_timeout_s,
            read=options.request_timeout_s,
            total=options.request_timeout_s,
        )
        # A recorder gets one exchange at a time: two threads of VCR may find the same recorded response,
        # and take it from the cassette twice.
        self._is_recorded = is_recorded()
        self._turn = threading.Lock() if self._is_recorded else contextlib.nullcontext()
        self._threads = threading.local()
        self._lock = threading.Lock()  # guards _workers and the workers' settings
        self._workers: list[_WorkerSession] = []
        self._settings: dict[str, dict[str, Any]] = {}

    def send(self, request: Request) -> Response:
        """Send one attempt, and read the whole response.

        Raises :class:`TransportError` if no complete response came, and :class:`ConfigurationError`
        if the session factory fails.
        """
        url = request.url or self._options.request_url
        route: _PreparedRoute | None = None
        worker: _WorkerSession | None = getattr(self._threads, "worker", None)
        if worker is None:
            worker = self._make_worker()
        try:
            route = worker.routes[url] if url in worker.routes else self._make_route(worker, url)
            if route is None:
                with self._turn:
                    raw = self._send_by_adapter(worker, url, request.payload)
            else:
                max_bytes = self._options.max_response_bytes
                raw = route.connection.exchange(route.head, request.payload, max_bytes)
        except FAILURES as error:
            is_cancelled, is_ready = self._registry.is_cancelled, route is not None
            raise transport_error(error, is_cancelled=is_cancelled, is_ready=is_ready) from error
        try:
            data, line = read_answer(raw.body)
        except ValueError:
            return Response(status=raw.status, headers=raw.headers, body=raw.body)
        return Response(status=raw.status, headers=raw.headers, body=line, data=data, is_json=True)

    def _make_worker(self) -> _WorkerSession:
        factory = self._options.session_factory
        if factory is None:
            worker = _WorkerSession(requests.Session(), self._settings)
        else:
            worker = _WorkerSession(_made_by(factory), {})  # not shared: its proxies may be its own
        self._threads.worker = worker
        for scheme in ("http://", "https://"):
            is_stock = type(worker.session.adapters.get(scheme)) is HTTPAdapter
            if is_stock and not self._is_recorded:
                worker.session.mount(scheme, self._adapter)
        with self._lock:
            self._workers.append(worker)
        return worker

    def _make_route(self, worker: _WorkerSession, url: str) -> _PreparedRoute | None:
        if len(worker.routes) >= _MAX_PREPARED_URLS:
            worker.routes.clear()
        route = worker.routes[url] = self._find_route(worker, url)
        return route

    def _find_route(self, worker: _WorkerSession, url: str) -> _PreparedRoute | None:
        """How requests to ``url`` are sent; ``None`` if the session's adapter has to send them."""
        if worker.is_intercepted or worker.session.auth is not None:
            return None
        if worker.session.get_adapter(url) is not self._adapter:
            return None
        prepared = self._prepare_new(worker, url, b"")
        settings = worker.settings.get(url) or self._merge_settings(worker, url)
        pool = self._adapter.pool_for(prepared, settings)
        if pool is None:
            return None
        headers = dict(prepared.headers)
        if pool.proxy is not None and not pool.has_tunnel:
            headers |= pool.proxy_headers
        target = self._adapter.request_url(prepared, settings["proxies"])
        default_port = 443 if pool.scheme == "https" else 80
        head = request_head(pool.host, pool.port or default_port, default_port, target, headers)
        if pool not in worker.connections:
            if len(worker.connections) >= _MAX_CONNECTIONS:
                worker.close()
            times = self._options.connect_timeout_s, self._options.request_timeout_s
            worker.connections[pool] = KeptConnection(pool, self._registry, *times)
        return _PreparedRoute(head, worker.connections[pool])

    def _send_by_adapter(self, worker: _WorkerSession, url: str, payload: bytes) -> RawResponse:
        """Send the request by the session's adapter, or by the session if it is intercepted."""
        prepared = self._prepare(worker, url, payload)
        settings = worker.settings.get(url) or self._merge_settings(worker, url)
        settings = settings | {"timeout": self._timeout}
        adapter = worker.session.get_adapter(url)
        if worker.is_intercepted:
            response = worker.session.send(prepared, allow_redirects=False, **settings)
        else:
            response = adapter.send(prepared, **settings)
        try:
            if worker.session.auth is not None and not worker.is_intercepted:
                # An auth class may answer a challenge, as Digest does.
                response = _dispatch("response", prepared.hooks, response, **settings)
            if response.status_code < 200:  # from a foreign adapter; ours skips interim responses
                adapter.close()
                raise TransportError("the server sent only an interim response", kind="torn body")
            read = functools.partial(response.raw.read, decode_content=True)
            body = read_bounded(read, self._options.max_response_bytes)
        except (ValueError, TypeError) as error:
            raise requests.exceptions.ContentDecodingError(error) from error
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return RawResponse(response.status_code, headers, body)

    def _prepare(self, worker: _WorkerSession, url: str, payload: bytes) -> PreparedRequest:
        """The request to send. A session's auth class sees each body; else a prepared request is copied."""
        if worker.session.auth is not None:
            return self._prepare_new(worker, url, payload)
        template = worker.prepared.get(url)
        if template is None:
            if len(worker.prepared) >= _MAX_PREPARED_URLS:
                worker.prepared.clear()
            template = worker.prepared[url] = self._prepare_new(worker, url, b"")
        prepared = PreparedRequest()
        prepared.method, prepared.url, prepared.hooks = "POST", template.url, template.hooks
        prepared.headers = template.headers.copy()
        prepared.headers["Content-Length"] = str(len(payload))
        prepared._cookies = template._cookies  # type: ignore[attr-defined]
        prepared.body = payload
        return prepared

    def _prepare_new(self, worker: _WorkerSession, url: str, payload: bytes) -> PreparedRequest:
        headers = {"Content-Type": "application/json"}
        if worker.session.auth is None:
            headers |= auth_headers(url, self._options.api_key)
        auth = worker.session.auth or _keep_headers
        request = requests.Request("POST", url, headers=headers, data=payload, auth=auth)
        return worker.session.prepare_request(request)

    def _merge_settings(self, worker: _WorkerSession, url: str) -> dict[str, Any]:
        """Proxies, CA bundle and client certificate for ``url``, from the session and the environment."""
        settings = dict(worker.session.merge_environment_settings(url, {}, True, None, None))
        if is_loopback(url) and not worker.session.proxies:
            settings["proxies"] = {}  # a key for a server on this machine must not go to a proxy
        with self._lock:
            if len(worker.settings) >= _MAX_PREPARED_URLS:
                worker.settings.clear()
            return worker.settings.setdefault(url, settings)

    @property
    def sending_since_s(self) -> float:
        """When this thread's last request went out, on the monotonic clock; 0 before the first."""
        return self._registry.sending_since_s

    def cancel(self) -> None:
        """Cancel every exchange under way. Each fails as if its connection had broken."""
        self._registry.cancel()

    def close(self) -> None:
        """Close all sessions and connections. No other thread may be sending."""
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()
            worker.session.close()
        self._adapter.close()
        self._registry.close()


def _made_by(factory: Callable[[], Any]) -> requests.Session:
    try:
        session = factory()
    except Exception as error:
        message = f"session_factory failed: {type(error).__name__}: {error}"
        raise ConfigurationError(message) from error
    if not isinstance(session, requests.Session):
        kind = type(session).__name__
        raise ConfigurationError(f"session_factory must return a requests.Session, not {kind}")
    return session


def _keep_headers(prepared: PreparedRequest) -> PreparedRequest:
    """An auth that changes nothing. Without one, requests replaces the key by a login from ~/.netrc."""
    return prepared
