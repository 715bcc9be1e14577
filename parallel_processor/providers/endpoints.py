"""What is done with a URL: a key gets its header, a row's URL is resolved, a false one is explained."""

from __future__ import annotations

import base64
import ipaddress
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.keyring import hosts_of
from parallel_processor.credentials.urls import host_of
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import MODEL_PLACE, Endpoint
from parallel_processor.options import Options, shown_url, without_login
from parallel_processor.providers.dialects import (
    auth_of,
    endpoint_of,
    headers_of,
    provider_of,
    stream_refusal,
)

_log = logging.getLogger("parallel_processor")

# The path of a base URL, to which a client library would add the endpoint.
_BASE = re.compile(r"|.*/(?:v[0-9]\w*|api|openai|deployments/[^/]+)")
_PLACE = re.compile(r"\{[^{}]*\}")  # to be filled in

# Of these members of a body, a request has one at least; it may have none for /completions.
_NEEDED: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.CHAT: frozenset({"messages"}),
    Endpoint.MESSAGES: frozenset({"messages"}),
    Endpoint.EMBEDDINGS: frozenset({"input"}),
    Endpoint.MODERATIONS: frozenset({"input"}),
    Endpoint.RESPONSES: frozenset({"input", "prompt", "conversation", "previous_response_id"}),
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


def is_exposed(url: str, options: Options) -> bool:
    """True if what is sent to ``url`` would cross a network in plain text, and nobody permitted that."""
    is_plain = urlsplit(url).scheme == "http" and not is_loopback(url)
    return is_plain and not options.allow_plain_http


def sent_headers(options: Options, url: str, key: str | None) -> dict[str, str]:
    """What proves to ``url`` who sends: ``key``, and on the options' own host their login and headers."""
    if not options.keyring.is_own(url):
        return auth_headers(url, key)
    if options.auth_header and key:
        headers = auth_headers(url, None, options.login)
        name, _, prefix = options.auth_header.partition(":")
        added = {name: f"{prefix.strip()} {key}".strip(), **options.headers}
    else:
        headers, added = auth_headers(url, key, options.login), dict(options.headers)
    replaced = {name.lower() for name in added}
    return {n: v for n, v in headers.items() if n.lower() not in replaced} | added


def check_key(options: Options) -> None:
    """Raise :class:`ConfigurationError` if a key is missing, or would cross a network without TLS.

    Each of the URLs has to pass.

    A login counts as a key, and so do headers and parameters whose names say so. Two of them that are for
    the same header are refused.
    """
    for url in (options.request_url, *options.replica_urls):
        _check_key(options, url)


def tell_unused(options: Options) -> None:
    """Warn of keys that are for no host of a run, of hosts without a key, and of a time for no key."""
    keyring, fallback = options.keyring, filter(None, [options.fallback_url])
    used = {*keyring.own_hosts, *keyring.allowed_hosts, *map(host_of, fallback)}
    for host in options.api_keys:
        if used.isdisjoint(hosts_of(host)):
            _log.warning("the key for %s is not used: no URL and no allowed host names it", host)
    for host in options.allowed_hosts if options.session_factory is None else ():
        url = f"https://{host}"
        is_own = not keyring.own_hosts.isdisjoint(hosts_of(host))
        if not is_own and needs_key(url) and not keyring.keys(url):
            how = f"--api_key_for {host}=VARIABLE (api_keys)"
            _log.warning("%s is allowed, but has no key: to give one, %s", host, how)
    if options.api_key_ttl_s < math.inf and not keyring.rotating():
        what = "--api_key_ttl (api_key_ttl_s)"
        _log.warning("%s is not used: no command or function gives a key", what)


def _check_key(options: Options, url: str) -> None:
    login = options.login
    has_key = bool(options.keyring.keys(url))
    secrets = [name for name in (*options.headers, *options.query) if is_secret_name(name)]
    if not has_key and not login and not secrets:
        if options.session_factory is None and needs_key(url):
            raise ConfigurationError(
                f"{shown_url(url)} needs an api_key, or a session_factory that logs in"
            )
    elif is_exposed(url, options):
        what = "api_key" if has_key else "login" if login else secrets[0]
        raise ConfigurationError(
            f"{shown_url(url)} would get the {what} in plain text: use https, set"
            " allow_plain_http, or give no key"
        )
    _check_one_header(options, url, has_key)


def _check_one_header(options: Options, url: str, has_key: bool) -> None:
    """Raise if two of key, login and headers are for one header."""
    login, key = options.login, "key" if has_key else None
    keys_header = options.auth_header or auth_of(url, "key").header
    name = keys_header.partition(":")[0].lower() if key else ""
    if key and login and name == "authorization":
        raise ConfigurationError(
            f"{shown_url(url)} can't get both the login in the URL and the api_key: each is the"
            " Authorization header; give one of them"
        )
    given = {each.lower() for each in options.headers}
    for what, header in (("api_key", name), ("login in the URL", "authorization" if login else "")):
        if header and header in given:
            raise ConfigurationError(
                f"{shown_url(url)} can't get both the {what} and the header {header}: each is the same"
                " header; give one of them"
            )


HostRule = Callable[[str], str]
"""Tells why no request may go to a URL on another host; empty if one may."""


def own_host_only(url: str) -> str:
    """The rule where no other host is allowed."""
    host = urlsplit(url).netloc.removesuffix(":443")
    return f"on another host than the request URL: --allow_host {host} permits it (allowed_hosts)"


def host_rule(options: Options) -> HostRule:
    """The rule of ``options``: their own host, and those that they allow."""
    keyring = options.keyring
    if not keyring.allowed_hosts:
        return own_host_only

    def rule(url: str) -> str:
        """Why no request may go to ``url``."""
        if host_of(url) not in keyring.allowed_hosts:
            return own_host_only(url)
        if keyring.keys(url) and is_exposed(url, options):
            return "without TLS, and its host would get a key in plain text: use https"
        return ""

    return rule


def check_url(options: Options) -> None:
    """Raise :class:`ConfigurationError` for an endpoint that only streams, and for a model as a host.

    A key is for one host. Further URLs must be of the endpoint that ``request_url`` is of, as far as both
    are known.
    """
    own, fallback = options.request_url, options.fallback_url
    names = dict.fromkeys(options.replica_urls, "replica_urls") | {own: "request_url"}
    for url in (*names, *filter(None, [fallback])):
        if MODEL_PLACE in urlsplit(url).netloc:
            raise ConfigurationError(f"{shown_url(url)} can't have {MODEL_PLACE} in its host")
        if wrong := [place for place in _PLACE.findall(url) if place != MODEL_PLACE]:
            what = (
                f"has {wrong[0]}, which nothing takes the place of: only {MODEL_PLACE} is filled in"
            )
            raise ConfigurationError(f"{shown_url(url)} {what}")
        kinds = {endpoint_of(own), endpoint_of(url)} - {Endpoint.UNKNOWN}
        if len(kinds) > 1:
            name = names.get(url, "fallback_url")
            raise ConfigurationError(
                f"{name} {shown_url(url)} takes other requests than request_url {shown_url(own)}"
            )
        if reason := stream_refusal(url):
            raise ConfigurationError(f"{shown_url(url)} can't be used: {reason}")


def lacking_members(body: Mapping[str, Any], url: str) -> str:
    """The members of which ``body`` must have one for ``url``, but has none; empty if it may be a request.

    Only on hosts that are known to refuse it: elsewhere a server may take anything.
    """
    needed = _NEEDED.get(endpoint_of(url), frozenset())
    if not needed.isdisjoint(body) or not provider_of(url).is_strict:
        return ""
    return " or ".join(sorted(needed))


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
    if endpoint.is_behind_v1 and path == endpoint.value:
        return f"{shown} has a path that few servers know: most have /v1{endpoint.value}"
    return f"{shown} has /v1 twice" if "/v1/v1/" in path else ""


def resolve_url(request_url: str, relative: str | None, rule: HostRule = own_host_only) -> str:
    """The URL of a Batch row: its endpoint on the host of ``request_url``.

    What precedes the endpoint in ``request_url`` replaces the ``/v1`` of the row. So under
    ``http://host/proxy/v1/chat/completions`` the row's ``/v1/embeddings`` becomes
    ``http://host/proxy/v1/embeddings``, and an Azure deployment stays in the path.

    A provider's own API is not behind ``/v1``: such a path is that of the host, as it stands.

    An absolute URL on the same host gets the host's spelling in ``request_url``, so that there is one.

    Raises ``ValueError`` for an absolute URL on another host, unless ``rule`` permits it, and for an
    endpoint that does nothing but stream.
    """
    if not relative:
        return request_url
    if reason := stream_refusal(relative):
        raise ValueError(f"its url {shown_url(relative)} can't be used: {reason}")
    base, row = urlsplit(without_login(request_url)[0]), urlsplit(relative)
    if row.netloc or row.scheme:
        target = urlsplit(without_login(urljoin(request_url, relative))[0])
        url = target.geturl()
        if target.scheme == base.scheme and host_of(url) == host_of(request_url) != "":
            return target._replace(netloc=base.netloc).geturl()
        is_http = target.scheme in ("http", "https") and target.hostname
        if why := rule(url) if is_http else "no http or https URL":
            raise ValueError(f"its url {shown_url(relative)!r} is {why}")
        return url
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
    return not endpoint.is_behind_v1 and endpoint is not Endpoint.UNKNOWN


def on_replica(replica_url: str, request_url: str, url: str) -> str:
    """The endpoint of ``url``, which is on the host of ``request_url``, under ``replica_url``.

    So what a row's URL became by :func:`resolve_url` is resolved anew.
    """
    if url == request_url:
        return replica_url
    base, own = urlsplit(request_url), urlsplit(url)
    base_path, path = base.path.rstrip("/"), own.path
    stem = base_path[: len(base_path) - len(Endpoint.of_path(base_path).value)]
    if stem and path.startswith(stem + "/"):
        path = "/v1" + path[len(stem) :]
    query = f"?{own.query}" if own.query and own.query != base.query else ""
    return resolve_url(replica_url, path + query)
