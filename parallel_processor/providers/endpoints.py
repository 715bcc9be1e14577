"""What a URL says about its provider: the kind of endpoint, the header for the key, the way of charging."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import Options, shown_url, without_login

_AZURE = ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com")
_GEMINI = "generativelanguage.googleapis.com"

# The path of a base URL, to which a client library would add the endpoint.
_BASE = re.compile(r"|.*/(?:v[0-9]\w*|api|openai|deployments/[^/]+)")

# Of these members of a body, a request has one at least; it may have none for /completions.
_NEEDED: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: frozenset({"messages"}),
    Endpoint.MESSAGES: frozenset({"messages"}),
    Endpoint.EMBEDDINGS: frozenset({"input"}),
    Endpoint.MODERATIONS: frozenset({"input"}),
    Endpoint.RESPONSES: frozenset({"input", "prompt", "conversation", "previous_response_id"}),
}

# Providers whose limits count the tokens that a response used. OpenAI and Azure count the most that it
# may use. An unknown provider is taken for one of the latter: that never exceeds a limit.
_CHARGES_USE = ("anthropic.com", "api.groq.com", "api.mistral.ai", _GEMINI)


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def is_host(host: str, *names: str) -> bool:
    """True if ``host`` is one of ``names``, or a subdomain of one."""
    return any(host == name or host.endswith("." + name) for name in names)


@lru_cache(maxsize=256)
def endpoint_of(url: str) -> Endpoint:
    """The kind of endpoint, by the end of the URL's path on any host; ``UNKNOWN`` for any other end."""
    return Endpoint.of_path(urlsplit(url).path)


@lru_cache(maxsize=256)
def streams_unasked(url: str) -> bool:
    """True for Ollama's own endpoints, which stream unless the request says ``"stream": false``."""
    return urlsplit(url).path.rstrip("/").lower().endswith(("/api/chat", "/api/generate"))


def basic_auth(login: str) -> str:
    """The ``Authorization`` header of ``login``, which is ``user:password`` (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def auth_headers(url: str, api_key: str | None, login: str | None = None) -> dict[str, str]:
    """The headers that carry ``api_key`` and ``login`` to ``url``. Without them, no header holds one.

    * Azure's hosts and deployments: ``api-key``.
    * Anthropic's host, and the Messages API on any host: ``x-api-key`` and ``anthropic-version``.
    * Gemini's native API: ``x-goog-api-key``.
    * All others: a bearer token.

    A login is the ``Authorization`` header, unless a bearer token is.
    """
    parts, host = urlsplit(url), _host(url)
    anthropic = is_host(host, "anthropic.com") or endpoint_of(url) is Endpoint.MESSAGES
    headers = {"anthropic-version": "2023-06-01"} if anthropic else {}
    if login:
        headers["Authorization"] = basic_auth(login)
    if not api_key:
        return headers
    if "/deployments/" in parts.path or is_host(host, *_AZURE):
        headers["api-key"] = api_key
    elif anthropic:
        headers["x-api-key"] = api_key
    elif is_host(host, _GEMINI) and "/openai/" not in parts.path:
        headers["x-goog-api-key"] = api_key
    else:
        headers["Authorization"] = f"Bearer {api_key}"
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


def lacking_members(body: Mapping[str, Any], url: str) -> str:
    """The members of which ``body`` must have one for ``url``, but has none; empty if it may be a request.

    Only on hosts whose API is known: elsewhere a server may take anything.
    """
    needed = _NEEDED.get(endpoint_of(url), frozenset())
    if not needed.isdisjoint(body) or not is_host(_host(url), "openai.com", "anthropic.com"):
        return ""
    return " or ".join(sorted(needed))


def charges_reservation(url: str) -> bool:
    """True if the provider charges the reserved maximum, whatever the response used."""
    return not is_host(_host(url), *_CHARGES_USE)


def url_advice(url: str) -> str:
    """How ``url`` should end, for a server that knows no such place; empty if it names an endpoint."""
    shown, path = shown_url(url), urlsplit(url).path.rstrip("/").lower()
    if _BASE.fullmatch(path):
        return (
            f"{shown} names no endpoint: a request URL ends in /chat/completions, /responses, "
            "/embeddings or the like, mostly behind /v1"
        )
    endpoint = endpoint_of(url).value
    if endpoint and path == endpoint:
        return f"{shown} has a path that few servers know: most have /v1{endpoint}"
    return f"{shown} has /v1 twice" if "/v1/v1/" in path else ""


def resolve_url(request_url: str, relative: str | None) -> str:
    """The URL of a Batch row: its endpoint on the host of ``request_url``.

    What precedes the endpoint in ``request_url`` replaces the ``/v1`` of the row. So under
    ``http://host/proxy/v1/chat/completions`` the row's ``/v1/embeddings`` becomes
    ``http://host/proxy/v1/embeddings``, and an Azure deployment stays in the path.

    Raises ``ValueError`` for an absolute URL on another host: no key may go there.
    """
    if not relative:
        return request_url
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
    if base_path.lower().endswith(path.lower()) and Endpoint.of_path(path) is endpoint:
        path = base.path
    elif path.startswith("/v1/") and (endpoint.value or stem.endswith("/v1")):
        path = stem + path[len("/v1") :]
    elif not path.startswith(stem + "/"):
        path = stem + path
    return base._replace(path=path, query=row.query or base.query).geturl()
