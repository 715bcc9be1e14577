"""What a URL tells about its provider: the kind of endpoint, the key's header, the way of charging."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import urljoin, urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import Options, shown_url

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

_AZURE = ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com")

# Providers whose limiters count what was used, not what was reserved. OpenAI and Azure charge the
# reserved maximum; of an unknown provider the same is assumed, since it never exceeds a limit.
_CHARGES_USE = (
    "anthropic.com",
    "api.groq.com",
    "api.mistral.ai",
    "generativelanguage.googleapis.com",
)

# The fields that an answer's usage may have: the first set with a number in it is added up. Anthropic's
# input excludes the cache; what was written to it counts against the limit, what was read doesn't.
_OLLAMA_COUNTS = ("prompt_eval_count", "eval_count")  # at the top of its own API's answers
_USAGE_FIELDS = (
    ("total_tokens",),
    ("totalTokenCount",),
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "cache_creation_input_tokens", "output_tokens"),
    (
        *("promptTokenCount", "toolUsePromptTokenCount"),
        *("candidatesTokenCount", "thoughtsTokenCount"),
    ),
    _OLLAMA_COUNTS,
)
_INPUT_FIELDS = (
    ("prompt_tokens",),
    ("input_tokens", "cache_creation_input_tokens"),
    ("promptTokenCount", "toolUsePromptTokenCount"),
    ("prompt_eval_count",),
)
_OUTPUT_FIELDS = ("completion_tokens", "output_tokens", "candidatesTokenCount", "eval_count")


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_host(host: str, *names: str) -> bool:
    return any(host == name or host.endswith("." + name) for name in names)


def endpoint_of(url: str) -> Endpoint:
    """The endpoint's kind, from the end of the path of any host; ``UNKNOWN`` for any other end."""
    path = urlsplit(url).path
    for end, endpoint in _ENDPOINT_BY_PATH_END:
        if _ends_with(path, end):
            return endpoint
    return Endpoint.UNKNOWN


def auth_headers(url: str, api_key: str | None) -> dict[str, str]:
    """The headers that carry ``api_key`` to ``url``; without a key none that hold one.

    ``api-key`` for Azure's hosts and deployments, ``x-api-key`` with ``anthropic-version`` for
    Anthropic's host and the Messages API on any other, ``x-goog-api-key`` for Gemini's native API, a
    bearer token otherwise.
    """
    parts, host = urlsplit(url), _host(url)
    headers: dict[str, str] = {}
    anthropic = _is_host(host, "anthropic.com") or endpoint_of(url) is Endpoint.MESSAGES
    if anthropic:
        headers["anthropic-version"] = ANTHROPIC_VERSION
    if not api_key:
        return headers
    if "/deployments/" in parts.path or _is_host(host, *_AZURE):
        headers["api-key"] = api_key
    elif anthropic:
        headers["x-api-key"] = api_key
    elif _is_host(host, "generativelanguage.googleapis.com") and "/openai/" not in parts.path:
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
    """False for a loopback host and for plain ``http``: local servers want no key."""
    return urlsplit(url).scheme != "http" and not is_loopback(url)


def exposes_key(url: str) -> bool:
    """True if a key would cross a network without TLS."""
    return urlsplit(url).scheme == "http" and not is_loopback(url)


def check_key(options: Options) -> None:
    """:class:`ConfigurationError` unless a key is where one is needed, and nobody can read it."""
    url = shown_url(options.request_url)
    if options.api_key:
        if exposes_key(options.request_url) and not options.allow_plain_http:
            raise ConfigurationError(
                f"{url} would get the api_key in plain text: use https, or allow_plain_http, or no key"
            )
    elif options.session_factory is None and needs_key(url):
        raise ConfigurationError(f"{url} needs an api_key")


def charges_reservation(url: str) -> bool:
    """True if the provider's limiter charges the reserved maximum, whatever the answer used."""
    return not _is_host(_host(url), *_CHARGES_USE)


def resolve_url(request_url: str, relative: str | None) -> str:
    """The URL of a Batch row: its endpoint on the host of ``request_url``.

    Whatever stands before the endpoint in ``request_url`` takes the place of the row's ``/v1``: under
    ``http://host/proxy/v1/chat/completions`` the row's ``/v1/embeddings`` is
    ``http://host/proxy/v1/embeddings``, and an Azure deployment stays in the path. An absolute URL of
    another host is not followed, so that no key goes there: it is a ``ValueError``.
    """
    if not relative:
        return request_url
    base, row = urlsplit(request_url), urlsplit(relative)
    if row.netloc or row.scheme:
        target = urlsplit(urljoin(request_url, relative))
        if (target.scheme, target.netloc.lower()) != (base.scheme, base.netloc.lower()):
            raise ValueError(f"its url {relative!r} is on another host than the request URL")
        return target.geturl()
    path = "/" + row.path.lstrip("/")
    end = next((end for end, _ in _ENDPOINT_BY_PATH_END if _ends_with(base.path, end)), "")
    stem = base.path.rstrip("/")
    stem = stem[: len(stem) - len(end)]  # what stands before the endpoint
    if _ends_with(base.path, path.lower()) and endpoint_of(path) is endpoint_of(base.path):
        path = base.path
    elif path.startswith("/v1/") and (end or stem.endswith("/v1")):
        path = stem + path[len("/v1") :]
    elif not path.startswith(stem + "/"):
        path = stem + path
    return base._replace(path=path, query=row.query or base.query).geturl()


def _ends_with(path: str, end: str) -> bool:
    return path.rstrip("/").lower().endswith(end)


def used_tokens(data: Any) -> int | None:
    """The tokens that an answer's usage names, input and output together; ``None`` without any.

    Reads the fields of OpenAI, Anthropic, Gemini, Cohere and Ollama.
    """
    return read_usage(data)[0]


def read_usage(data: Any) -> tuple[int | None, int | None]:
    """Like :func:`used_tokens`, and the output's part of it; ``None`` for what isn't named."""
    if not isinstance(data, Mapping):
        return None, None
    usage = data.get("usage") or data.get("usageMetadata")
    if not isinstance(usage, Mapping):
        usage = {name: data.get(name) for name in _OLLAMA_COUNTS}
    elif isinstance(usage.get("tokens"), Mapping):
        usage = usage["tokens"]  # Cohere's own API
    for names in _USAGE_FIELDS:
        found = (usage.get(name) for name in names)
        counts = [int(count) for count in found if _is_count(count)]
        if counts:
            total = sum(counts)
            return total, _output(usage, total)
    return None, None


def _output(usage: Mapping[str, Any], total: int) -> int | None:
    """What of ``total`` is output: the rest after the input, which holds what a model thought too."""
    for names in _INPUT_FIELDS:
        if _is_count(usage.get(names[0])):
            counts = (usage.get(name) for name in names)
            return max(0, total - sum(int(count) for count in counts if _is_count(count)))
    outputs = [int(usage[name]) for name in _OUTPUT_FIELDS if _is_count(usage.get(name))]
    return min(sum(outputs), total) if outputs else None


def _is_count(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15
