"""What a URL tells about its provider: the kind of endpoint, the key's header, the way of charging."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import urljoin, urlsplit

from parallel_processor.models import Endpoint

ANTHROPIC_VERSION = "2023-06-01"

# Longest first: "/completions" also ends the path of chat completions.
_ENDPOINT_BY_PATH_END = (
    ("/chat/completions", Endpoint.CHAT),
    ("/responses", Endpoint.RESPONSES),
    ("/completions", Endpoint.COMPLETIONS),
    ("/embeddings", Endpoint.EMBEDDINGS),
    ("/moderations", Endpoint.MODERATIONS),
    ("/messages", Endpoint.MESSAGES),
)

# Providers whose limiters count what was used, not what was reserved. OpenAI and Azure charge the
# reserved maximum; of an unknown provider the same is assumed, since it never exceeds a limit.
_CHARGES_USE = (
    "anthropic.com",
    "api.groq.com",
    "api.mistral.ai",
    "generativelanguage.googleapis.com",
)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _is_host(host: str, name: str) -> bool:
    return host == name or host.endswith("." + name)


def endpoint_of(url: str) -> Endpoint:
    """The endpoint's kind, from the end of the path of any host; ``UNKNOWN`` for any other end."""
    path = urlsplit(url).path.rstrip("/").lower()
    for end, endpoint in _ENDPOINT_BY_PATH_END:
        if path.endswith(end):
            return endpoint
    return Endpoint.UNKNOWN


def auth_headers(url: str, api_key: str | None) -> dict[str, str]:
    """The headers that carry ``api_key`` to ``url``; without a key none that hold one.

    ``api-key`` for Azure deployments, ``x-api-key`` with ``anthropic-version`` for Anthropic's Messages
    API (on any host), ``x-goog-api-key`` for Gemini's native API, a bearer token otherwise.
    """
    parts, host = urlsplit(url), _host(url)
    headers: dict[str, str] = {}
    anthropic = _is_host(host, "anthropic.com") or endpoint_of(url) is Endpoint.MESSAGES
    if anthropic:
        headers["anthropic-version"] = ANTHROPIC_VERSION
    if not api_key:
        return headers
    if "/deployments/" in parts.path or _is_host(host, "openai.azure.com"):
        headers["api-key"] = api_key
    elif anthropic:
        headers["x-api-key"] = api_key
    elif _is_host(host, "generativelanguage.googleapis.com") and "/openai/" not in parts.path:
        headers["x-goog-api-key"] = api_key
    else:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def needs_key(url: str) -> bool:
    """False for a loopback host and for plain ``http``: local servers want no key."""
    host = _host(url)
    if urlsplit(url).scheme == "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def charges_reservation(url: str) -> bool:
    """True if the provider's limiter charges the reserved maximum, whatever the answer used."""
    return not any(_is_host(_host(url), name) for name in _CHARGES_USE)


def resolve_url(request_url: str, relative: str | None) -> str:
    """The URL of a Batch row: its path on the host of ``request_url``.

    A gateway's prefix is kept: ``/v1/embeddings`` under ``http://host/proxy/v1/chat/completions`` is
    ``http://host/proxy/v1/embeddings``. A path ending that ``request_url`` has already changes nothing.
    An absolute URL of another host is not followed, so that no key goes there: it is a ``ValueError``.
    """
    if not relative:
        return request_url
    base = urlsplit(request_url)
    if urlsplit(relative).netloc or urlsplit(relative).scheme:
        target = urlsplit(urljoin(request_url, relative))
        if (target.scheme, target.netloc) != (base.scheme, base.netloc):
            raise ValueError(f"its url {relative!r} is on another host than the request URL")
        return relative
    path = "/" + relative.lstrip("/")
    if base.path.rstrip("/").endswith(path):
        return request_url
    prefix, version, _ = base.path.partition("/v1/")
    if path.startswith("/v1/") and not version:
        prefix = ""
    return base._replace(path=prefix + path).geturl()


def used_tokens(data: Any) -> int | None:
    """The tokens that an answer's ``usage`` names, input and output together; ``None`` without any.

    Reads OpenAI's, Anthropic's and Gemini's fields. Anthropic's input excludes the cache; what was
    written to the cache counts against its limit, what was read from it doesn't.
    """
    if not isinstance(data, Mapping):
        return None
    usage = data.get("usage") or data.get("usageMetadata")
    if not isinstance(usage, Mapping):
        return None
    for name in ("total_tokens", "totalTokenCount"):
        total = usage.get(name)
        if _is_count(total):
            return int(total)
    parts = [
        usage.get(name)
        for name in (
            "input_tokens",
            "cache_creation_input_tokens",
            "output_tokens",
            "prompt_tokens",
            "completion_tokens",
        )
    ]
    counts = [int(part) for part in parts if _is_count(part)]
    return sum(counts) if counts else None


def _is_count(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
