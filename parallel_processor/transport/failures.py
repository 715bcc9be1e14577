"""Turns any exception of an exchange into a :class:`TransportError`.

Exceptions of our own exchange are bare. An adapter's are wrapped by urllib3 and ``requests``.
"""

from __future__ import annotations

import http.client
import re
import ssl

import requests
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    LocationValueError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.ssl_match_hostname import CertificateError

from parallel_processor.exceptions import TransportError
from parallel_processor.providers.texts import plain_line
from parallel_processor.transport.http1 import MalformedLength
from parallel_processor.transport.setup_faults import Way, fault_of, is_refused_tunnel

# What an exchange may raise. Every exception of requests is an OSError.
FAILURES = (HTTPError, http.client.HTTPException, OSError, ValueError, TypeError)
_KINDS = {
    "connect timeout": (requests.exceptions.ConnectTimeout, ConnectTimeoutError),
    "TLS error": (requests.exceptions.SSLError, SSLError, ssl.SSLError, CertificateError),
    "proxy error": (requests.exceptions.ProxyError, ProxyError),
}
_TIMEOUTS = (requests.exceptions.Timeout, ReadTimeoutError)
_BROKEN = (requests.exceptions.ConnectionError, HTTPError, http.client.HTTPException)
_UNREADABLE = (requests.exceptions.InvalidHeader, requests.exceptions.ContentDecodingError)
_SILENT = (
    *(ConnectionError, TimeoutError, ssl.SSLEOFError, ssl.SSLZeroReturnError),
    ReadTimeoutError,
)
_NO_HOST = (LocationValueError, UnicodeError)  # a name that no host can have
_TORN = (http.client.IncompleteRead, MalformedLength)
_MAX_MESSAGE = 300
_MAX_REMEDY = 600  # a message that says what to do
_NOISE = re.compile(
    r"<[\w.]+ object at 0x[0-9a-f]+>:? ?|\w+\(host='[^']*', port=\d+\):? ?"
    r"|\(read timeout=[\d.]+\)|(?<=//)[^/\s]*@"  # the last part is a login in a URL
)


class NotConnected(OSError):
    """No connection was made, so that nothing was sent. Its argument says why."""


_NO_CONNECTION = (
    *(NewConnectionError, ConnectTimeoutError, NotConnected),
    *_KINDS["proxy error"],  # which are raised before a proxy passes anything on
)


def transport_error(
    error: Exception, way: Way, *, is_cancelled: bool, is_ready: bool
) -> TransportError:
    """Say what went wrong, in the words of the innermost cause: the outer exceptions only wrap it.

    Args:
        error: one of :data:`FAILURES`.
        way: where the request was to go.
        is_cancelled: the run cancelled its exchanges.
        is_ready: the request itself was valid, so that a ``ValueError`` is the response's fault.
    """
    causes = _causes_of(error)
    root = causes[-1]
    if fault := fault_of(causes, way):
        kind, text = fault
        message = plain_line(text, _MAX_REMEDY)
        return TransportError(
            f"{kind}: {message}", kind=kind, is_setup=True, is_cancelled=is_cancelled
        )
    kind, retryable = _kind_of(causes[isinstance(error, NotConnected)], root, is_ready)
    message = plain_line(_NOISE.sub("", str(root)), _MAX_MESSAGE) or type(root).__name__
    if kind == "proxy error" and way.proxy:
        hint = " (few proxies speak TLS: is it http://?)" if way.proxy.startswith("https") else ""
        to = f" to {way.host}" if is_refused_tunnel(root) else ""  # then the proxy itself lives
        proxy = f"the proxy {way.proxy} of {way.variable}{hint}"
        message = f"no connection{to} through {proxy}: {message}"
    return TransportError(
        f"{kind}: {message}",
        kind=kind,
        retryable=retryable,
        is_cancelled=is_cancelled,
        unreachable=retryable and any(isinstance(cause, _NO_CONNECTION) for cause in causes),
    )


def is_silent(error: Exception) -> bool:
    """True if the other side took the connection, and ended it or waited without a word."""
    return isinstance(_causes_of(error)[-1], _SILENT)


def _kind_of(error: BaseException, root: BaseException, is_ready: bool) -> tuple[str, bool]:
    """A short label, and whether another attempt may succeed."""
    if isinstance(root, _NO_HOST):
        return "invalid request", False
    for kind, classes in _KINDS.items():
        if isinstance(error, classes) and not isinstance(error, NewConnectionError):
            return kind, True
    if isinstance(error, _TIMEOUTS) or isinstance(root, TimeoutError):
        return "timeout", True
    if isinstance(error, DecodeError) or isinstance(root, _TORN):
        return "torn body", True
    is_bare = isinstance(error, OSError) and not isinstance(error, requests.RequestException)
    if is_bare or isinstance(error, _BROKEN):
        return "connection error", True
    if is_ready or isinstance(error, _UNREADABLE):
        return "unreadable answer", True
    return "invalid request", False


def _causes_of(error: BaseException) -> list[BaseException]:
    """``error`` and the exceptions that it wraps, the innermost last."""
    causes = [error]
    for _ in range(10):
        inner = getattr(causes[-1], "reason", None) or next(
            (arg for arg in causes[-1].args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        causes.append(inner)
    return causes
