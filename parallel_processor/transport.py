"""One attempt on the wire: a ``requests.Session`` per worker thread, an answer turned into a Reply.

What a session would do again for every request is done once: the environment's proxies and CA bundle
are merged once per run, and a request per URL is prepared once per thread, whose body is exchanged.
The prepared request goes straight to the session's adapter: redirects are never followed, so that no
key goes to another host, and urllib3 never retries by itself.

A session that comes without an adapter of its own gets ours, which bounds the whole exchange
(``connections.py``). One that comes with another adapter keeps it, and its meaning of a read timeout.
"""

from __future__ import annotations

import http.client
import re
import threading
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.hooks import dispatch_hook
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.util import Timeout

from parallel_processor.connections import BoundedAdapter, ConnectionRegistry, bounded_pools
from parallel_processor.exceptions import TransportError
from parallel_processor.jsontext import read_answer
from parallel_processor.models import Reply, Request
from parallel_processor.options import Options
from parallel_processor.providers import auth_headers, is_loopback

_dispatch: Any = dispatch_hook
_CHUNK_BYTES = 1024 * 1024
_MAX_PREPARED_URLS = 64
_MAX_MESSAGE = 300
_NO_CONNECTION = (NewConnectionError, ConnectTimeoutError)
_NOISE = re.compile(
    r"<[\w.]+ object at 0x[0-9a-f]+>:? ?|\w+\(host='[^']*', port=\d+\):? ?"
    r"|\(read timeout=[\d.]+\)|(?<=//)[^/\s]*@"  # the last is a login
)


class _Lane:
    """What one worker thread sends with."""

    __slots__ = ("prepared", "session", "settings")

    def __init__(self, session: requests.Session, settings: dict[str, dict[str, Any]]) -> None:
        self.session = session
        self.settings = settings
        self.prepared: dict[str, requests.PreparedRequest] = {}


class Transport:
    """Sends requests for a run. Any thread may call :meth:`send`; each gets a session of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._registry = ConnectionRegistry()
        self._pools = bounded_pools(options.request_timeout_s, self._registry)
        self._timeout: Any = Timeout(
            connect=options.connect_timeout_s,
            read=options.request_timeout_s,
            total=options.request_timeout_s,
        )
        self._lanes = threading.local()
        self._lock = threading.Lock()  # guards _sessions and the lanes' settings
        self._sessions: list[requests.Session] = []
        self._settings: dict[str, dict[str, Any]] = {}

    def send(self, request: Request) -> Reply:
        """Send one attempt and read the whole answer; :class:`TransportError` if none came."""
        url = request.url or self._options.request_url
        response: requests.Response | None = None
        try:
            lane = self._lane()
            prepared = self._prepare(lane, url, request.payload)
            settings = lane.settings.get(url) or self._merge_settings(lane, url)
            adapter = lane.session.get_adapter(url)
            response = adapter.send(prepared, timeout=self._timeout, **settings)
            if lane.session.auth is not None:  # it may answer a challenge, as Digest does
                settings = settings | {"timeout": self._timeout}
                response = _dispatch("response", prepared.hooks, response, **settings)
            if response.status_code < 200:  # an adapter of the session's own; see connections.py
                adapter.close()
                raise TransportError("the server sent an interim answer only", kind="torn body")
            body = self._read(response)
        except (requests.RequestException, HTTPError, OSError, ValueError, TypeError) as error:
            raise _transport_error(error, self._registry.is_cut, response is not None) from error
        finally:
            if response is not None:
                response.close()
        return _reply(response, body)

    def _lane(self) -> _Lane:
        lane: _Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            factory = self._options.session_factory
            if factory is None:
                lane = _Lane(requests.Session(), self._settings)
            else:
                lane = _Lane(factory(), {})  # whose proxies may be its own
            self._lanes.lane = lane
            for scheme in ("http://", "https://"):
                if type(lane.session.adapters.get(scheme)) is HTTPAdapter:
                    lane.session.mount(scheme, BoundedAdapter(self._pools))
            with self._lock:
                self._sessions.append(lane.session)
        return lane

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

    def _read(self, response: requests.Response) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := response.raw.read(_CHUNK_BYTES, decode_content=True):
            chunks.append(chunk)
            size += len(chunk)
            if size > self._options.max_response_bytes:
                raise TransportError(
                    f"the answer is larger than {self._options.max_response_bytes:,} bytes",
                    kind="answer too large",
                    retryable=False,
                )
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

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
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()
        self._registry.close()


def _keep_headers(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """An auth that changes nothing: without one, requests puts ~/.netrc in the key's place."""
    return prepared


def _reply(response: requests.Response, body: bytes) -> Reply:
    status, headers = response.status_code, response.headers
    try:
        data, line = read_answer(body)
    except ValueError:
        return Reply(status=status, headers=headers, body=body)
    return Reply(status=status, headers=headers, body=line, data=data, is_json=True)


def _transport_error(error: Exception, is_cut: bool, has_answer: bool) -> TransportError:
    """What went wrong, by its innermost cause: the outer ones only wrap it."""
    causes = _causes_of(error)
    root = causes[-1]
    kind, retryable = _kind_of(error, root, has_answer)
    message = " ".join(_NOISE.sub("", str(root)).split())[:_MAX_MESSAGE] or type(root).__name__
    return TransportError(
        f"{kind}: {message}",
        kind=kind,
        retryable=retryable,
        is_cut=is_cut,
        unreachable=any(isinstance(cause, _NO_CONNECTION) for cause in causes),
    )


def _kind_of(error: Exception, root: BaseException, has_answer: bool) -> tuple[str, bool]:
    """A short label, and whether another attempt may end otherwise."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "connect timeout", True
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS error", True
    if isinstance(error, requests.exceptions.ProxyError):
        return "proxy error", True
    if isinstance(error, (requests.exceptions.Timeout, ReadTimeoutError)):
        return "timeout", True
    if isinstance(root, TimeoutError):
        return "timeout", True
    if isinstance(error, DecodeError) or isinstance(root, http.client.IncompleteRead):
        return "torn body", True
    if isinstance(error, (requests.exceptions.ConnectionError, HTTPError)):
        return "connection error", True
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return "connection error", True
    if has_answer or isinstance(error, requests.exceptions.InvalidHeader):
        return "unreadable answer", True
    return "invalid request", False


def _causes_of(error: BaseException) -> list[BaseException]:
    """``error`` and what it wraps, the innermost last."""
    causes = [error]
    for _ in range(10):
        inner = getattr(causes[-1], "reason", None) or next(
            (arg for arg in causes[-1].args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        causes.append(inner)
    return causes
