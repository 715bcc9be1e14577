"""One attempt on the wire: a ``requests.Session`` per worker thread, an answer turned into a Reply.

What a session would do again for every request is done once: the environment's proxies and CA bundle
are merged once per run, and a request per URL is prepared once per thread, as a head that only lacks
the length of its body. Head and body are sent over a connection that the thread keeps (``exchange.py``):
redirects are never followed, so that no key goes to another host, and nothing is sent twice.

A session that comes without an adapter of its own gets ours, which bounds the whole exchange
(``connections.py``). One that comes with another adapter keeps it, and its meaning of a read timeout.
Such an adapter is given prepared requests, as ours is for sessions with an auth class, which sees each
body, and behind proxies that are reached by SOCKS or TLS. Where somebody has put himself into
``requests`` or urllib3 (``interception.py``), the session itself sends them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from requests.hooks import dispatch_hook
from urllib3.util import Timeout

from parallel_processor.connections import (
    BoundedAdapter,
    BoundedPool,
    ConnectionRegistry,
    bounded_pools,
)
from parallel_processor.exceptions import ConfigurationError, TransportError
from parallel_processor.exchange import Answer, Line, read_bounded
from parallel_processor.failures import FAILURES, transport_error
from parallel_processor.heads import request_head
from parallel_processor.interception import is_intercepted, is_recorded
from parallel_processor.jsontext import read_answer
from parallel_processor.models import Reply, Request
from parallel_processor.options import Options
from parallel_processor.providers import auth_headers, is_loopback

_dispatch: Any = dispatch_hook
_MAX_PREPARED_URLS = 64
_MAX_LINES = 8


class _Route(NamedTuple):
    """How requests to one URL go out: with this head, over this line."""

    head: bytes
    line: Line


class _Lane:
    """What one worker thread sends with; ``routes`` has ``None`` for a URL that needs the adapter."""

    __slots__ = ("is_intercepted", "lines", "prepared", "routes", "session", "settings")

    def __init__(self, session: requests.Session, settings: dict[str, dict[str, Any]]) -> None:
        self.session = session
        self.is_intercepted = is_intercepted(session)
        self.settings = settings
        self.prepared: dict[str, requests.PreparedRequest] = {}
        self.routes: dict[str, _Route | None] = {}
        self.lines: dict[BoundedPool, Line] = {}

    def line(self, pool: BoundedPool, make: Callable[[BoundedPool], Line]) -> Line:
        """The line for what ``pool`` connects to."""
        if pool not in self.lines and len(self.lines) >= _MAX_LINES:
            self.close()
        return self.lines.get(pool) or self.lines.setdefault(pool, make(pool))

    def close(self) -> None:
        """Close the connections."""
        for line in self.lines.values():
            line.close()
        self.lines.clear()
        self.routes.clear()


class Transport:
    """Sends requests for a run. Any thread may call :meth:`send`; each gets a session of its own."""

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
        # What records has one exchange at a time: VCR takes from its cassette what two may have found.
        self._turn = threading.Lock() if is_recorded() else None
        self._threads = threading.local()
        self._lock = threading.Lock()  # guards _lanes and the lanes' settings
        self._lanes: list[_Lane] = []
        self._settings: dict[str, dict[str, Any]] = {}

    def send(self, request: Request) -> Reply:
        """Send one attempt and read the whole answer; :class:`TransportError` if none came.

        :class:`ConfigurationError` if the session factory fails.
        """
        url = request.url or self._options.request_url
        route: _Route | None = None
        lane: _Lane | None = getattr(self._threads, "lane", None)
        if lane is None:
            lane = self._make_lane()
        try:
            route = lane.routes[url] if url in lane.routes else self._make_route(lane, url)
            if route is None and self._turn is not None:
                with self._turn:
                    answer = self._send_by_adapter(lane, url, request.payload)
            elif route is None:
                answer = self._send_by_adapter(lane, url, request.payload)
            else:
                answer = route.line.exchange(
                    route.head, request.payload, self._options.max_response_bytes
                )
        except FAILURES as error:
            is_cut, is_ready = self._registry.is_cut, route is not None
            raise transport_error(error, is_cut=is_cut, is_ready=is_ready) from error
        return _reply(answer)

    def _make_lane(self) -> _Lane:
        factory = self._options.session_factory
        if factory is None:
            lane = _Lane(requests.Session(), self._settings)
        else:
            lane = _Lane(_made_by(factory), {})  # whose proxies may be its own
        self._threads.lane = lane
        for scheme in ("http://", "https://"):
            is_stock = type(lane.session.adapters.get(scheme)) is HTTPAdapter
            if is_stock and self._turn is None:
                lane.session.mount(scheme, self._adapter)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def _make_route(self, lane: _Lane, url: str) -> _Route | None:
        if len(lane.routes) >= _MAX_PREPARED_URLS:
            lane.routes.clear()
        route = lane.routes[url] = self._find_route(lane, url)
        return route

    def _find_route(self, lane: _Lane, url: str) -> _Route | None:
        """How requests to ``url`` go out; ``None`` if the session's adapter has to send them."""
        if lane.is_intercepted or lane.session.auth is not None:
            return None
        if lane.session.get_adapter(url) is not self._adapter:
            return None
        prepared = self._prepare_new(lane, url, b"")
        settings = lane.settings.get(url) or self._merge_settings(lane, url)
        pool = self._adapter.pool_for(prepared, settings)
        if pool is None:
            return None
        headers = dict(prepared.headers)
        if pool.proxy is not None and not pool.has_tunnel:
            headers |= pool.proxy_headers
        target = self._adapter.request_url(prepared, settings["proxies"])
        default_port = 443 if pool.scheme == "https" else 80
        head = request_head(pool.host, pool.port or default_port, default_port, target, headers)
        return _Route(head, lane.line(pool, self._make_line))

    def _make_line(self, pool: BoundedPool) -> Line:
        options = self._options
        return Line(pool, self._registry, options.connect_timeout_s, options.request_timeout_s)

    def _send_by_adapter(self, lane: _Lane, url: str, payload: bytes) -> Answer:
        """Send a prepared request as a session would, or by the session."""
        prepared = self._prepare(lane, url, payload)
        settings = lane.settings.get(url) or self._merge_settings(lane, url)
        settings = settings | {"timeout": self._timeout}
        adapter = lane.session.get_adapter(url)
        if lane.is_intercepted:
            response = lane.session.send(prepared, allow_redirects=False, **settings)
        else:
            response = adapter.send(prepared, **settings)
        try:
            if lane.session.auth is not None and not lane.is_intercepted:
                # It may answer a challenge, as Digest does.
                response = _dispatch("response", prepared.hooks, response, **settings)
            if response.status_code < 200:  # an adapter of the session's own; see connections.py
                adapter.close()
                raise TransportError("the server sent an interim answer only", kind="torn body")
            read = functools.partial(response.raw.read, decode_content=True)
            body = read_bounded(read, self._options.max_response_bytes)
        except (ValueError, TypeError) as error:
            raise requests.exceptions.ContentDecodingError(error) from error
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, headers, body)

    def _prepare(self, lane: _Lane, url: str, payload: bytes) -> requests.PreparedRequest:
        """The request to send; an auth class of the session's own sees each body."""
        if lane.session.auth is not None:
            return self._prepare_new(lane, url, payload)
        template = lane.prepared.get(url)
        if template is None:
            if len(lane.prepared) >= _MAX_PREPARED_URLS:
                lane.prepared.clear()
            template = lane.prepared[url] = self._prepare_new(lane, url, b"")
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url, prepared.hooks = "POST", template.url, template.hooks
        prepared.headers = template.headers.copy()
        prepared.headers["Content-Length"] = str(len(payload))
        prepared._cookies = template._cookies  # type: ignore[attr-defined]
        prepared.body = payload
        return prepared

    def _prepare_new(self, lane: _Lane, url: str, payload: bytes) -> requests.PreparedRequest:
        headers = {"Content-Type": "application/json"}
        if lane.session.auth is None:
            headers |= auth_headers(url, self._options.api_key)
        request = requests.Request(
            "POST", url, headers=headers, data=payload, auth=lane.session.auth or _keep_headers
        )
        return lane.session.prepare_request(request)

    def _merge_settings(self, lane: _Lane, url: str) -> dict[str, Any]:
        """Proxies, CA bundle and client certificate for ``url``, from the session and environment."""
        settings = dict(lane.session.merge_environment_settings(url, {}, True, None, None))
        if is_loopback(url) and not lane.session.proxies:
            settings["proxies"] = {}  # a key that may go to this machine must not go to a proxy
        with self._lock:
            if len(lane.settings) >= _MAX_PREPARED_URLS:
                lane.settings.clear()
            return lane.settings.setdefault(url, settings)

    @property
    def sending_since_s(self) -> float:
        """When this thread's last request went out, on the monotonic clock; 0 if nobody knows."""
        return self._registry.sending_since_s

    def cut(self) -> None:
        """End every exchange under way; each fails as a broken connection."""
        self._registry.cut()

    def close(self) -> None:
        """Close every session. No other thread may be sending."""
        with self._lock:
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.close()
            lane.session.close()
        self._adapter.close()
        self._registry.close()


def _made_by(factory: Callable[[], Any]) -> requests.Session:
    try:
        session = factory()
    except Exception as error:
        raise ConfigurationError(
            f"session_factory failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(session, requests.Session):
        raise ConfigurationError(
            f"session_factory must return a requests.Session, not {type(session).__name__}"
        )
    return session


def _keep_headers(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """An auth that changes nothing: without one, requests puts ~/.netrc in the key's place."""
    return prepared


def _reply(answer: Answer) -> Reply:
    status, headers, body = answer
    try:
        data, line = read_answer(body)
    except ValueError:
        return Reply(status=status, headers=headers, body=body)
    return Reply(status=status, headers=headers, body=line, data=data, is_json=True)
