"""What the command takes from its flags and the environment together: URL, keys, headers, certificates.

A variable that holds a provider's key counts for the hosts of this provider alone. OpenAI's also counts for
hosts of no known provider: gateways, and servers that imitate it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.key_text import read_key, read_key_file
from parallel_processor.credentials.keyring import KeyLike, hosts_of
from parallel_processor.credentials.urls import host_of, is_url
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import (
    DEFAULT_REQUEST_URL,
    SYSTEM_STORE,
    DefaultUrl,
    Settings,
    shown_url,
    without_login,
)
from parallel_processor.providers.dialects import KEY_HEADERS, key_variables_of, provider_of
from parallel_processor.providers.endpoints import needs_key

_log = logging.getLogger("parallel_processor")
KEY_VARIABLE = "OPENAI_API_KEY"
"""The variable that has the key for the host of an unknown provider, if no flag names one."""
URL_VARIABLE = "OPENAI_BASE_URL"


def find_url(flags: argparse.Namespace) -> str:
    """Where requests go: what was typed, else the embeddings of the base URL in the environment."""
    typed: str = flags.request_url
    base = os.environ.get(URL_VARIABLE, "").strip()
    if not base or not isinstance(typed, DefaultUrl):
        return typed
    if not is_url(base):
        shown = shown_url(base)
        raise ConfigurationError(
            f"{URL_VARIABLE} must be an http:// or https:// URL, not {shown!r}"
        )
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if Endpoint.of_path(path) is Endpoint.UNKNOWN:
        path += Endpoint.EMBEDDINGS.value
        shown = shown_url(parts._replace(path=path).geturl())
        _log.warning("--request_url is not given: with %s it is %s", URL_VARIABLE, shown)
    return parts._replace(path=path).geturl()


def find_key(flags: argparse.Namespace, made: Settings) -> KeyLike | None:
    """The key from the flags, else from the environment; ``None`` if there is none and none is needed.

    A login in the URL or a header was typed, so a variable, which nobody typed, gives way to it.
    """
    url, typed = made.get("request_url", DEFAULT_REQUEST_URL), _typed(flags)
    if len(typed) > 1:
        raise ConfigurationError(f"give --{typed[0]} or --{typed[1]}, not both")
    if flags.api_key_command:
        # Imported here: few need it.
        from parallel_processor.credentials.key_command import KeyCommand

        return KeyCommand(flags.api_key_command)
    if flags.api_key_file:
        keys = read_key_file(flags.api_key_file, f"--api_key_file {flags.api_key_file}")
        return keys[0] if len(keys) == 1 else keys
    if key := read_key(flags.api_key or "", "--api_key"):
        return key
    given = [*made.get("headers", ()), *made.get("query", ())]
    if without_login(url)[1] is not None or KEY_HEADERS & {name.lower() for name in given}:
        return None
    if key := _in_environment(variables := _own_variables(flags, url)):
        return key
    has_own = any(host_of(url) in hosts_of(host) for host, _ in key_places(flags))
    if needs_key(url) and not has_own and not any(map(is_secret_name, given)):
        names = " or ".join(variables)
        how = f"set {names}, or give --api_key_file" if names else "give --api_key_command"
        raise ConfigurationError(f"{shown_url(url)} needs a key: {how}")
    return None


def _typed(flags: argparse.Namespace) -> list[str]:
    """The flags that give a key."""
    return [n for n in ("api_key", "api_key_file", "api_key_command") if getattr(flags, n)]


def _own_variables(flags: argparse.Namespace, url: str) -> tuple[str, ...]:
    """The variables that may hold the key for the request URL, the likeliest first."""
    known = key_variables_of(url)
    base = os.environ.get(URL_VARIABLE, "").strip()
    is_base = host_of(url) == host_of(base) != ""  # base URL and key are a pair
    # The cookbook's script takes Azure's key from OpenAI's variable.
    is_pair = is_base or "AZURE_OPENAI_API_KEY" in known
    return tuple(dict.fromkeys((*known, KEY_VARIABLE))) if is_pair else known


def key_places(flags: argparse.Namespace) -> list[tuple[str, str]]:
    """The hosts and variables of ``--api_key_for``."""
    pairs = [each.partition("=") for each in flags.api_key_for or ()]
    for host, _, name in pairs:
        try:
            ok = name.isidentifier() and bool(hosts_of(host))
        except ValueError:
            ok = False
        if not ok:
            raise ConfigurationError(
                f"--api_key_for {host} must be HOST=VARIABLE, with the name of a variable that holds a key"
            )
    return [(host, name) for host, _, name in pairs]


def find_keys_by_host(flags: argparse.Namespace, made: Settings) -> Mapping[str, str]:
    """The keys for other hosts: those of ``--api_key_for``, else a provider's own for an allowed host.

    ``made`` are the settings that ``flags`` ask for.
    """
    found = {}
    for host in (*(flags.allow_host or ()), *fallback_hosts(flags)):
        if key := _in_environment(known_here(host)):
            found[host] = key
    for url in _replicas_without_place(flags):
        found |= _replica_key(flags, made, url)
    for host, name in key_places(flags):
        if not (key := _in_environment([name])):
            raise ConfigurationError(f"--api_key_for {host}: the variable {name} is not set")
        found[host] = key
    return found


def fallback_hosts(flags: argparse.Namespace) -> list[str]:
    """The host of ``--fallback_url``, without a login; none without the flag."""
    return [host for host in (_netloc(flags.fallback_url or ""),) if host]


def _netloc(url: str) -> str:
    return urlsplit(without_login(url)[0]).netloc


def _replicas_without_place(flags: argparse.Namespace) -> list[str]:
    """The further URLs of the same models whose key no flag names."""
    places, urls = key_places(flags), getattr(flags, "replica_urls", ())
    return [u for u in urls if not any(host_of(u) in hosts_of(host) for host, _ in places)]


def replica_variables(flags: argparse.Namespace) -> dict[str, str]:
    """The variables that have the keys for them on a cluster, by host; empty for one that gets no key."""
    urls = () if _typed(flags) else _replicas_without_place(flags)
    return {_netloc(url): key_variable(flags, url) for url in urls}


def key_variable(flags: argparse.Namespace, url: str) -> str:
    """The variable that has the key for ``url`` on a cluster; empty if it gets none.

    One that is set here comes first.
    """
    names = _own_variables(flags, url)
    return next(iter(_set_here(names) or (names if needs_key(url) else ())), "")


def _replica_key(flags: argparse.Namespace, made: Settings, url: str) -> Mapping[str, str]:
    """The key for a further URL of the same models, by its host: no variable is for another provider.

    A key that was typed is for all of them. An empty one keeps the key of ``--request_url`` away.
    """
    if _typed(flags):
        return {}
    variables = _own_variables(flags, url)
    if key := _in_environment(variables):
        return {_netloc(url): key}
    own = flags.request_url
    if needs_key(url) and (
        not _has_login(flags, made) or _in_environment(_own_variables(flags, own))
    ):
        names = " or ".join(variables) or "a variable"
        raise ConfigurationError(
            f"{shown_url(url)} needs a key: set {names}, or give --api_key_for HOST=VARIABLE"
        )
    return {_netloc(url): ""}


def _has_login(flags: argparse.Namespace, made: Settings) -> bool:
    """True if what is sent to all servers proves who sends: a login, or a header or parameter."""
    given = [*made.get("headers", ()), *made.get("query", ())]
    return without_login(flags.request_url)[1] is not None or any(map(is_secret_name, given))


def known_here(host: str) -> tuple[str, ...]:
    """The variable of the provider of ``host`` that is set, if it has one."""
    url = f"https://{host}"
    # Nobody has typed that an unknown host gets OpenAI's.
    names = key_variables_of(url) if provider_of(url).name else ()
    return _set_here(names)[:1]


def _set_here(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the variables that hold anything."""
    return tuple(name for name in names if os.environ.get(name, "").strip())


def _in_environment(names: Iterable[str]) -> str:
    """The key in the first of the variables that is set; empty if none is."""
    keys = (read_key(os.environ.get(name, ""), name) for name in names)
    return next(filter(None, keys), "")


def find_ca_bundle(flags: argparse.Namespace) -> str | None:
    """Whose certificates to trust; ``None`` leaves it to requests, which reads two variables itself.

    If those are not set, OpenSSL's variables count, which name parts of the system's store.
    """
    typed: str | None = flags.ca_bundle
    if typed is not None or any(map(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))):
        return typed
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        paths = os.environ.get(name, "")
        if any(map(os.path.exists, filter(None, paths.split(os.pathsep)))):
            return SYSTEM_STORE
        if paths:
            _log.warning("%s is ignored: %s is not there", name, paths)
    return None
