"""URLs: without what may be secret in them, and the server that each leads to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote_plus, unquote, urlsplit

from parallel_processor.runtime.forks import FORK_LOCK

_SECRET_IN_URL = re.compile(r"(?<=//)[^/\s]*@|\?.*", re.DOTALL)  # a login, a query
_DEFAULT_PORTS = {"http": 80, "https": 443}


def shown_url(url: str) -> str:
    """``url`` without its login and its query: both may hold a secret."""
    return _SECRET_IN_URL.sub("", url)


def without_login(url: str) -> tuple[str, str | None]:
    """``url`` without its login, and that login as ``user:password``; ``None`` if it has none."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    bare = parts._replace(netloc=host).geturl()
    if login in ("", ":"):
        return bare, None
    user, _, password = login.partition(":")
    return bare, f"{unquote(user)}:{unquote(password)}"


def is_url(url: object) -> bool:
    """True for an ``http`` or ``https`` URL with a host."""
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" not in host:  # no IPv6 address
            with FORK_LOCK:  # the first time, this imports a module
                host.encode("idna")
        return parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:  # the port, the IPv6 address or a label is malformed
        return False


def host_of(url: str) -> str:
    """The server that ``url`` leads to, as ``host:port`` in lower case; empty if it can't be read.

    So the plain and the encrypted port of a host are two servers. A backslash in a host can't be read: for
    urllib3 the host ends there, and for ``urlsplit`` it doesn't, so that each sees another one.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return ""
    is_clear = parts.hostname and "\\" not in parts.netloc
    return f"{parts.hostname}:{port}" if is_clear else ""


def with_query(url: str, query: Mapping[str, str]) -> str:
    """``url`` with what it lacks of ``query``; a parameter that it has stays as it is."""
    parts = urlsplit(url)
    had = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    added = [f"{quote_plus(n)}={quote_plus(v)}" for n, v in query.items() if n not in had]
    return parts._replace(query="&".join(filter(None, [parts.query, *added]))).geturl()
