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
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import requests
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.hooks import dispatch_hook
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.util import Timeout

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.exceptions import TransportError
from parallel_processor.models import Request, Response, Upstream, destination
from parallel_processor.options import SYSTEM_STORE, Options, shown_url
from parallel_processor.providers.endpoints import is_loopback
from parallel_processor.providers.jsontext import parsed_bytes, read_answer
from parallel_processor.transport.connections import (
    BoundedAdapter,
    ConnectionRegistry,
    bounded_pools,
)
from parallel_processor.transport.credentials import Credential, Credentials
from parallel_processor.transport.exchange import KeptConnection, RawResponse, decoded, read_bounded
from parallel_processor.transport.failures import FAILURES, is_silent, transport_error
from parallel_processor.transport.http1 import request_head
from parallel_processor.transport.interception import is_recorded
from parallel_processor.transport.probe import speaks_other_scheme
from parallel_processor.transport.setup_faults import (
    Way,
    check_proxy,
    fault_in_response,
    other_scheme,
)
from parallel_processor.transport.timeouts import Timeouts
from parallel_processor.transport.tls import system_store
from parallel_processor.transport.worker_session import Place, PreparedRoute, WorkerSession, made_by

_dispatch: Any = dispatch_hook
_ITS_OWN = Upstream()
_MAX_PREPARED_URLS = 64
_MAX_CONNECTIONS = 8
_SILENT_BEFORE_PROBE = 3
LONG_BYTES = 1024 * 1024  # of an answer whose parsed value is worth a thought
_MOST_TIMES = 10  # the bytes of a parsed value, in those that an answer may have
_WORST_TIMES = 80  # the bytes of a parsed value, in those of its text
_LOGIN = re.compile("(?<=//).*@", re.DOTALL)


class _Thread(threading.local):
    """What the calling thread sends with; ``None`` before its first request."""

    worker: WorkerSession | None = None


class Transport:
    """Sends the requests of a run. Any thread may call :meth:`send`; each has a session of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.credentials = Credentials(options)
        self._registry = ConnectionRegistry()
        self._timeouts = Timeouts(options.request_timeout_s)
        pools = bounded_pools(options.request_timeout_s, self._registry)
        self._ca_bundle = None if options.ca_bundle is None else os.fspath(options.ca_bundle)
        trusts_system = self._ca_bundle == SYSTEM_STORE
        self._adapter = BoundedAdapter(pools, options.max_workers, trusts_system=trusts_system)
        self._was_answered = False  # by a server, whatever it said
        self._silent = 0  # exchanges that ended without a word before that
        self._timeout: Any = Timeout(
            connect=options.connect_timeout_s,
            read=options.request_timeout_s,
            total=options.request_timeout_s,
        )
        # A recorder gets one exchange at a time: two threads of VCR may find the same recorded response,
        # and take it from the cassette twice.
        self._is_recorded = is_recorded()
        self._turn = threading.Lock() if self._is_recorded else contextlib.nullcontext()
        self._threads = _Thread()
        self._max_bytes = options.max_response_bytes
        self._parsing = threading.Lock()  # held while a long answer is parsed; guards nothing
        self._lock = threading.Lock()  # guards _workers, the workers' settings, and _silent
        self._workers: list[WorkerSession] = []
        self._settings: dict[str, dict[str, Any]] = {}

    def send(self, request: Request, upstream: Upstream = _ITS_OWN, url: str = "") -> Response:
        """Send one attempt to ``upstream``, and read the whole response. ``url`` is its destination.

        Raises :class:`TransportError` if no complete response came, and :class:`ConfigurationError`
        if the session factory fails.
        """
        url = url or destination(request, upstream, self._options.request_url)
        place, route = (url, upstream.key), None
        worker = self._threads.worker or self._make_worker()
        try:
            route = worker.routes.get(place) or self._make_route(worker, place)
            if route is None:
                with self._turn:
                    raw = self._send_by_adapter(worker, place, request.payload)
            else:
                if route.credential.source is not None:
                    route = self._with_present_key(worker, place, route)
                worker.sent_with = route.credential
                raw = route.connection.exchange(route.head, request.payload, self._max_bytes)
        except FAILURES as error:
            raise self._failure(error, worker, url, is_ready=route is not None) from error
        status, headers, body = raw
        if status >= 300:
            self._check_failure(raw, worker, url)
        elif worker.sent_with.source is not None:
            self.credentials.accepted(worker.sent_with)
        self._was_answered = True
        try:
            data, line = read_answer(body) if len(body) < LONG_BYTES else self._parsed_alone(body)
        except ValueError:
            return Response(status=status, headers=headers, body=body)
        return Response(status=status, headers=headers, body=line, data=data, is_json=True)

    def _parsed_alone(self, body: bytes) -> tuple[Any, bytes]:
        """What ``read_answer`` makes of a long ``body``, if that fits into memory, and of one at a time.

        Lists and objects may take many times as much memory as their text.
        """
        most = self._max_bytes * _MOST_TIMES
        if len(body) * _WORST_TIMES > most and parsed_bytes(body) > most:
            raise TransportError(
                f"the answer's JSON would take more than {most:,} bytes of memory: its lists and objects "
                "are too many",
                kind="answer too large",
                retryable=False,
            )
        with self._parsing:
            return read_answer(body)

    def _failure(
        self, error: Exception, worker: WorkerSession, url: str, *, is_ready: bool
    ) -> TransportError:
        """What ``error`` means: the server's fault, the network's, or one of the set-up."""
        way = self._way(worker, url)
        found = transport_error(
            error, way, is_cancelled=self._registry.is_cancelled, is_ready=is_ready
        )
        if found.is_setup or found.is_cancelled or self._was_answered:
            return found
        if found.kind == "invalid request" and url == self._options.request_url:
            return _setup_error(found.kind, f"the request URL can't be used: {found}")
        is_asked = is_silent(error) and self._is_reason_to_ask()
        if is_asked and speaks_other_scheme(way.proxy or way.url):
            return _setup_error("wrong scheme", other_scheme(way))
        return found

    def _is_reason_to_ask(self) -> bool:
        """Count an exchange that ended without a word. True once, when they are no accident any more."""
        with self._lock:
            self._silent += 1
            return self._silent == _SILENT_BEFORE_PROBE

    def _check_failure(self, raw: RawResponse, worker: WorkerSession, url: str) -> None:
        """Raise :class:`TransportError` if the response is that of a proxy, or wants another scheme."""
        if fault := fault_in_response(raw.status, raw.headers, raw.body, self._way(worker, url)):
            raise _setup_error(*fault)

    def _way(self, worker: WorkerSession, url: str) -> Way:
        way = _way_of(url, worker.settings.get(url, {}))
        return way._replace(trusts_system=self._ca_bundle == SYSTEM_STORE)

    def _make_worker(self) -> WorkerSession:
        factory = self._options.session_factory
        if factory is None:
            worker = WorkerSession(requests.Session(), self._settings)
        else:
            worker = WorkerSession(made_by(factory), {})  # not shared: its proxies may be its own
        self._threads.worker = worker
        for scheme in ("http://", "https://"):
            is_stock = type(worker.session.adapters.get(scheme)) is HTTPAdapter
            if is_stock and not self._is_recorded:
                worker.session.mount(scheme, self._adapter)
        with self._lock:
            self._workers.append(worker)
        return worker

    def renewal_fault(self) -> str | None:
        """A server refused the key of this thread's last request; waits for a new one, if it expires.

        ``None``: send the request again. Else the reason, which is empty if there is none but the refusal.
        """
        worker = self._threads.worker
        return "" if worker is None else self.credentials.renewal_fault(worker.sent_with)

    def _with_present_key(
        self, worker: WorkerSession, place: Place, route: PreparedRoute
    ) -> PreparedRoute:
        if self.credentials.is_present(route.credential):
            return route
        del worker.routes[place]
        return self._make_route(worker, place) or route

    def _make_route(self, worker: WorkerSession, place: Place) -> PreparedRoute | None:
        if place in worker.routes:  # the session's adapter sends
            return None
        if len(worker.routes) >= _MAX_PREPARED_URLS:
            worker.routes.clear()
        route = worker.routes[place] = self._find_route(worker, place)
        return route

    def _find_route(self, worker: WorkerSession, place: Place) -> PreparedRoute | None:
        """How requests to ``place`` are sent; ``None`` if the session's adapter has to send them."""
        url, key = place
        if worker.is_intercepted or worker.session.auth is not None:
            return None
        if worker.session.get_adapter(url) is not self._adapter:
            return None
        credential = self.credentials.credential(url, key)
        prepared = self._prepare_new(worker, url, b"", credential)
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
            worker.connections[pool] = KeptConnection(
                pool, self._registry, self._options.connect_timeout_s, self._timeouts
            )
        return PreparedRoute(head, credential, worker.connections[pool])

    def _send_by_adapter(self, worker: WorkerSession, place: Place, payload: bytes) -> RawResponse:
        """Send the request by the session's adapter, or by the session if it is intercepted."""
        url = place[0]
        prepared = self._prepare(worker, place, payload)
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
            max_bytes = self._max_bytes
            read = functools.partial(response.raw.read, decode_content=False)
            body = read_bounded(read, max_bytes)
            if body and (coding := response.headers.get("content-encoding")):
                body = decoded(body, coding, max_bytes)
        except (ValueError, TypeError) as error:
            raise requests.exceptions.ContentDecodingError(error) from error
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return RawResponse(response.status_code, headers, body)

    def _prepare(self, worker: WorkerSession, place: Place, payload: bytes) -> PreparedRequest:
        """The request to send. A session's auth class sees each body; else a prepared request is copied."""
        if worker.session.auth is not None and self.credentials.is_own(place[0]):
            return self._prepare_new(worker, place[0], payload, Credential({}))
        template, credential = worker.prepared.get(place) or (None, worker.sent_with)
        if template is None or not self.credentials.is_present(credential):
            if len(worker.prepared) >= _MAX_PREPARED_URLS:
                worker.prepared.clear()
            credential = self.credentials.credential(*place)
            template = self._prepare_new(worker, place[0], b"", credential)
            worker.prepared[place] = template, credential
        worker.sent_with = credential
        prepared = PreparedRequest()
        prepared.method, prepared.url, prepared.hooks = "POST", template.url, template.hooks
        prepared.headers = template.headers.copy()
        prepared.headers["Content-Length"] = str(len(payload))
        prepared._cookies = template._cookies  # type: ignore[attr-defined]
        prepared.body = payload
        return prepared

    def _prepare_new(
        self, worker: WorkerSession, url: str, payload: bytes, credential: Credential
    ) -> PreparedRequest:
        session, is_own = worker.session, self.credentials.is_own(url)
        # None leaves out what the session has, which is for the settings' own host.
        secret = () if is_own else filter(is_secret_name, session.headers)
        headers: Any = CaseInsensitiveDict(dict.fromkeys(secret))
        headers.update({"Content-Type": "application/json", **credential.headers})
        params: Any = session.params
        params = {} if is_own else dict.fromkeys(dict(params))
        auth = (session.auth if is_own else None) or _keep_headers
        target = self.credentials.target(url)
        request = requests.Request("POST", target, headers, data=payload, params=params, auth=auth)
        return worker.session.prepare_request(request)

    def _merge_settings(self, worker: WorkerSession, url: str) -> dict[str, Any]:
        """Proxies, CA bundle and client certificate for ``url``, from the session and the environment."""
        settings = dict(worker.session.merge_environment_settings(url, {}, True, None, None))
        if is_loopback(url) and not worker.session.proxies:
            settings["proxies"] = {}  # a key for a server on this machine must not go to a proxy
        if self._ca_bundle is not None:
            is_system = self._ca_bundle == SYSTEM_STORE
            settings["verify"] = system_store() if is_system else self._ca_bundle
        if not worker.is_intercepted and worker.session.get_adapter(url) is self._adapter:
            check_proxy(_way_of(url, settings))
        with self._lock:
            if len(worker.settings) >= _MAX_PREPARED_URLS:
                worker.settings.clear()
            return worker.settings.setdefault(url, settings)

    @property
    def sending_since_s(self) -> float:
        """When this thread's last request went out, on the monotonic clock; 0 before the first."""
        return self._registry.sending.since_s

    def cancel(self) -> None:
        """Cancel every exchange under way. Each fails as if its connection had broken."""
        self._registry.cancel()
        self.credentials.cancel()
        self._timeouts.close()  # no exchange is left, and at the interpreter's end the thread would be lost

    def close(self) -> None:
        """Close all sessions and connections. No other thread may be sending."""
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()
            worker.session.close()
        self._adapter.close()
        self._registry.close()
        self._timeouts.close()


def _way_of(url: str, settings: Mapping[str, Any]) -> Way:
    """Where requests to ``url`` go with these merged ``settings``, and through which proxy."""
    proxies = settings.get("proxies")
    proxy = select_proxy(url, proxies) or "" if proxies else ""
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"  # as requests does
    return Way(shown_url(url), _LOGIN.sub("", proxy))


def _setup_error(kind: str, text: str) -> TransportError:
    return TransportError(f"{kind}: {text}", kind=kind, is_setup=True)


def _keep_headers(prepared: PreparedRequest) -> PreparedRequest:
    """An auth that changes nothing. Without one, requests replaces the key by a login from ~/.netrc."""
    return prepared
