"""The checks of the settings that say what a run proves itself with. No message shows a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from parallel_processor.credentials.keyring import KeyLike, hosts_of
from parallel_processor.credentials.rotating_key import RotatingKey, is_key
from parallel_processor.credentials.urls import is_url, shown_url, without_login
from parallel_processor.exceptions import ConfigurationError

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_OF_THE_MESSAGE = {"content-length", "transfer-encoding", "connection", "content-encoding", "te"}
_LOGIN = re.compile(r"//.*@", re.DOTALL)  # of a URL that can't be read, perhaps for its password
_SECRET = re.compile(
    r"auth|key|token|secret|cookie|passw|credential|signature|\bsig\b|\bcode\b", re.I
)


def is_secret_name(name: str) -> bool:
    """True if the value of a header or parameter ``name`` is probably a secret."""
    return _SECRET.search(name) is not None


def checked_keys(name: str, keys: Any, ttl_s: float) -> KeyLike | None:
    """``keys`` as they are kept: several as a tuple without repetitions, a function as a RotatingKey."""
    if isinstance(keys, RotatingKey):
        return keys if keys.ttl_s == ttl_s else RotatingKey(keys.fetch, ttl_s)
    if callable(keys):
        fetch: Any = keys
        return RotatingKey(fetch, ttl_s)
    if isinstance(keys, Sequence) and not isinstance(keys, (str, bytes)):
        if not keys or not all(is_key(key) and key for key in keys):
            raise ConfigurationError(
                f"each {name} must be printable ASCII without spaces around it, and there must be one"
            )
        return tuple(dict.fromkeys(keys))
    if keys is not None and not is_key(keys):
        raise ConfigurationError(f"{name} must be printable ASCII without spaces around it")
    return keys  # type: ignore[no-any-return]


def keys_by_host(keys: Any, ttl_s: float) -> Mapping[str, KeyLike]:
    """``api_keys`` as they are kept."""
    if not isinstance(keys, Mapping):
        raise ConfigurationError("api_keys must be a key for each host")
    made: dict[str, KeyLike] = {}
    for host, key in keys.items():
        _check_host("api_keys", host)
        if (found := checked_keys("api_keys", key, ttl_s)) is not None:
            made[host] = found
    return made


def checked_hosts(hosts: Any) -> tuple[str, ...]:
    """``allowed_hosts`` as they are kept."""
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, (Sequence, set, frozenset)):
        raise ConfigurationError(f"allowed_hosts must be a list of hosts, not {hosts!r}")
    for host in hosts:
        _check_host("allowed_hosts", host)
    return tuple(hosts)


def _check_url(name: str, url: Any) -> None:
    if not is_url(url):
        shown = _LOGIN.sub("//", shown_url(url)) if isinstance(url, str) else url
        raise ConfigurationError(f"{name} must be an http:// or https:// URL, not {shown!r}")


def checked_url(url: Any, login: Any) -> tuple[str, str | None]:
    """``request_url`` without the login in it, and the login: ``login``, else that one."""
    _check_url("request_url", url)
    bare, own = without_login(url)
    if own and "@" in urlsplit(bare).path:  # the login may have ended at a slash within it
        raise ConfigurationError(
            "request_url has an @ behind its login: write / in a password as %2F, and @ as %40"
        )
    login = login or own
    if login is not None and not (isinstance(login, str) and ":" in login):
        raise ConfigurationError("login must be user:password")
    return bare, login


def check_lanes(tiers: Any, model: Any, url: Any) -> None:
    """Raise unless ``service_tiers``, ``fallback_model`` and ``fallback_url`` are names and a URL."""
    is_list = isinstance(tiers, (tuple, list))
    if not is_list or not all(is_key(tier) and tier for tier in tiers):
        what = "must be a sequence of names, such as flex and default"
        raise ConfigurationError(f"service_tiers {what}, not {tiers!r}")
    if model is not None and not (is_key(model) and model):
        raise ConfigurationError(f"fallback_model must be a name, not {model!r}")
    if url is not None:
        _check_url("fallback_url", url)


def checked_replicas(urls: Any, request_url: str, login: str | None) -> tuple[str, ...]:
    """``replica_urls`` as they are kept: each once, without its login, which must be ``login``."""
    if isinstance(urls, (str, bytes)) or not isinstance(urls, Sequence):
        raise ConfigurationError("replica_urls must be a list of URLs")
    found: dict[str, None] = {}
    for url in urls:
        _check_url("each of replica_urls", url)
        bare, own_login = without_login(url)
        if own_login not in (None, login):
            raise ConfigurationError("replica_urls can't have another login than request_url")
        found[bare] = None
    found.pop(request_url, None)
    return tuple(found)


def _check_host(name: str, host: object) -> None:
    try:
        if isinstance(host, str) and hosts_of(host):
            return
    except ValueError:
        pass
    raise ConfigurationError(f"{name} must name hosts as HOST or HOST:PORT, not {host!r}")


def check_headers(headers: Any) -> None:
    """Raise unless ``headers`` are values that may be sent, by names that may be."""
    ok = isinstance(headers, Mapping) and all(
        isinstance(each, str) for pair in headers.items() for each in pair
    )
    if not ok:
        raise ConfigurationError("headers must be a text for each name")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"headers has a name that no header can have: {name!r}")
        if name.lower() in _OF_THE_MESSAGE:
            raise ConfigurationError(f"headers can't have {name}: it belongs to the message itself")
        if not is_key(value):
            raise ConfigurationError(
                f"headers has a value for {name} that can't be sent: it must be printable ASCII without "
                "spaces around it"
            )
    if len({name.lower() for name in headers}) < len(headers):
        raise ConfigurationError("headers has a name twice: upper and lower case are the same")


def check_query(query: Any) -> None:
    """Raise unless ``query`` has a text for each name."""
    ok = isinstance(query, Mapping) and all(
        isinstance(each, str) for pair in query.items() for each in pair
    )
    if not ok or "" in query:
        raise ConfigurationError("query must be a text for each name")


def check_auth_header(header: Any) -> None:
    """Raise unless ``header`` is ``NAME`` or ``NAME: PREFIX``."""
    if header is None:
        return
    name, _, prefix = header.partition(":") if isinstance(header, str) else ("", "", "")
    if not _TOKEN.fullmatch(name) or not is_key(prefix.strip()):
        raise ConfigurationError(
            f"auth_header must be NAME or NAME: PREFIX, such as api-key, not {header!r}"
        )


def check_limiter(limiter: Any) -> None:
    """Raise unless ``limiter``, which may hold a password, is a URL of Redis or a function."""
    if isinstance(limiter, str):
        if not limiter.startswith(("redis://", "rediss://", "unix://")):
            shown = _LOGIN.sub("//", shown_url(limiter))
            raise ConfigurationError(
                f"limiter must be a redis://, rediss:// or unix:// URL, not {shown!r}"
            )
    elif limiter is not None and not callable(limiter):
        raise ConfigurationError(f"limiter must be a URL, or a function, not {limiter!r}")
