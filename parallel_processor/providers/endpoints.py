"""What is done with a URL: a key gets its header, a row's URL is resolved, a false one is explained."""

from __future__ import annotations

import base64
import ipaddress
import re
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import Options, shown_url, without_login
from parallel_processor.providers.dialects import (
    auth_of,
    endpoint_of,
    headers_of,
    provider_of,
    stream_refusal,
)

# The path of a base URL, to which a client library would add the endpoint.
_BASE = re.compile(r"|.*/(?:v[0-9]\w*|api|openai|deployments/[^/]+)")

# The endpoints that are mostly behind /v1.
_BEHIND_V1 = {
    *(Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS),
    *(Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.MESSAGES),
}


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def streams_unasked(url: str) -> bool:
    """True for Ollama's own endpoints, which stream unless the request says ``"stream": false``."""
    return endpoint_of(url) in (Endpoint.OLLAMA_CHAT, Endpoint.OLLAMA_GENERATE)


def basic_auth(login: str) -> str:
    """The ``Authorization`` header of ``login``, which is ``user:password`` (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def auth_headers(url: str, api_key: str | None, login: str | None = None) -> dict[str, str]:
    """The headers that carry ``api_key`` and ``login`` to ``url``. Without them, no header holds one.

    A login is the ``Authorization`` header, unless a bearer token is.
    """
    headers = dict(headers_of(url))
    if login:
        headers["Authorization"] = basic_auth(login)
    if api_key:
        auth = auth_of(url, api_key)
        headers[auth.header] = auth.prefix + api_key
    return headers


def is_loopback(url: str) -> bool:
    """True for a server on this machine."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_key(url: str) -> bool:
    """False for a loopback host and for plain ``http``: local servers need no key."""
    return urlsplit(url).scheme != "http" and not is_loopback(url)


def check_key(options: Options) -> None:
    """Raise :class:`ConfigurationError` if a key is missing, or would cross a network without TLS.

    A login counts as a key. Both are refused if they are for the same header.
    """
    url, key, login = options.request_url, options.api_key, options.login
    if not key and not login:
        if options.session_factory is None and needs_key(url):
            raise ConfigurationError(
                f"{shown_url(url)} needs an api_key, or a session_factory that logs in"
            )
    elif urlsplit(url).scheme == "http" and not (is_loopback(url) or options.allow_plain_http):
        what = "api_key" if key else "login"
        raise ConfigurationError(
            f"{shown_url(url)} would get the {what} in plain text: use https, set"
            " allow_plain_http, or give no key"
        )
    if key and login and "Authorization" in auth_headers(url, key):
        raise ConfigurationError(
            f"{shown_url(url)} can't get both the login in the URL and the api_key: each is the"
            " Authorization header; give one of them"
        )


def check_url(options: Options) -> None:
    """Raise :class:`ConfigurationError` for an endpoint that does nothing but stream."""
    if reason := stream_refusal(options.request_url):
        raise ConfigurationError(f"{shown_url(options.request_url)} can't be used: {reason}")


def charges_reservation(url: str) -> bool:
    """True if the provider charges the reserved maximum, whatever the response used.

    An unknown one is taken for such: that never exceeds a limit.
    """
    return not provider_of(url).charges_use


def url_advice(url: str) -> str:
    """How ``url`` should end, for a server that knows no such place; empty if it names an endpoint."""
    shown, path = shown_url(url), urlsplit(url).path.rstrip("/").lower()
    if _BASE.fullmatch(path):
        return (
            f"{shown} names no endpoint: a request URL ends in /chat/completions, /responses, "
            "/embeddings or the like, mostly behind /v1"
        )
    endpoint = endpoint_of(url)
    if endpoint in _BEHIND_V1 and path == endpoint.value:
        return f"{shown} has a path that few servers know: most have /v1{endpoint.value}"
    return f"{shown} has /v1 twice" if "/v1/v1/" in path else ""


@lru_cache(maxsize=1024)
def resolve_url(request_url: str, relative: str | None) -> str:
    """The URL of a Batch row: its endpoint on the host of ``request_url``.

    What precedes the endpoint in ``request_url`` replaces the ``/v1`` of the row. So under
    ``http://host/proxy/v1/chat/completions`` the row's ``/v1/embeddings`` becomes
    ``http://host/proxy/v1/embeddings``, and an Azure deployment stays in the path.

    A provider's own API is not behind ``/v1``: such a path is that of the host, as it stands.

    Raises ``ValueError`` for an absolute URL on another host, since no key may go there, and for an
    endpoint that does nothing but stream.
    """
    if not relative:
        return request_url
    if reason := stream_refusal(relative):
        raise ValueError(f"its url {shown_url(relative)} can't be used: {reason}")
    base, row = urlsplit(without_login(request_url)[0]), urlsplit(relative)
    if row.netloc or row.scheme:
        target = urlsplit(without_login(urljoin(request_url, relative))[0])
        if (target.scheme, target.netloc.lower()) != (base.scheme, base.netloc.lower()):
            shown = without_login(relative)[0]
            raise ValueError(f"its url {shown!r} is on another host than the request URL")
        return target.geturl()
    path, base_path = "/" + row.path.lstrip("/"), base.path.rstrip("/")
    endpoint = Endpoint.of_path(base_path)
    stem = base_path[: len(base_path) - len(endpoint.value)]  # what precedes the endpoint
    asked = Endpoint.of_path(path)
    if base_path.lower().endswith(path.lower()) and asked is endpoint:
        path = base.path
    elif _stands_alone(endpoint) or _stands_alone(asked):
        pass  # there is no /v1 to take the place of
    elif path.startswith("/v1/") and (endpoint.value or stem.endswith("/v1")):
        path = stem + path[len("/v1") :]
    elif not path.startswith(stem + "/"):
        path = stem + path
    return base._replace(path=path, query=row.query or base.query).geturl()


def _stands_alone(endpoint: Endpoint) -> bool:
    return endpoint not in _BEHIND_V1 and endpoint is not Endpoint.UNKNOWN
