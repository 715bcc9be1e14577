"""Which keys are for which host. A key is for its own host alone, whatever a request's URL says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from parallel_processor.credentials.key_text import PlacedKey
from parallel_processor.credentials.rotating_key import RotatingKey
from parallel_processor.credentials.urls import host_of

Key = str | RotatingKey
KeyLike = str | Sequence[str] | Callable[[], str]
"""A key, several, or a function that returns one."""


class Keyring:
    """The keys of some settings by host. It is made of settings that were checked, and never changes.

    Attributes:
        own_hosts: the hosts that ``api_key`` is for, as :func:`host_of` names them.
        allowed_hosts: the other hosts that requests may name.
    """

    def __init__(
        self,
        own_urls: Collection[str],
        api_key: KeyLike | None,
        api_keys: Mapping[str, KeyLike],
        allowed_hosts: Collection[str],
    ) -> None:
        self.own_hosts = frozenset(map(host_of, own_urls))
        self.allowed_hosts = frozenset(name for host in allowed_hosts for name in hosts_of(host))
        self._keys = dict.fromkeys(self.own_hosts, _several(api_key))
        for host, keys in api_keys.items():
            self._keys |= dict.fromkeys(hosts_of(host), _several(keys))

    def is_own(self, url: str) -> bool:
        """True if ``api_key``, the login and the settings' headers are for the host of ``url``."""
        return host_of(url) in self.own_hosts

    def keys(self, url: str) -> tuple[Key, ...]:
        """The keys for the host of ``url``; empty if there is none."""
        return self._keys.get(host_of(url), ())

    def place(self, url: str, index: int) -> str:
        """Where the key of that ``index`` for the host of ``url`` is set; empty if there is none."""
        key = next(iter(self.keys(url)[index : index + 1]), "")
        if isinstance(key, RotatingKey):
            return "--api_key_command" if hasattr(key.fetch, "command") else "the function api_key"
        if isinstance(key, PlacedKey):
            return key.place
        name = "api_key" if self.is_own(url) else f"api_keys, {host_of(url)}"
        number = f", key {index + 1}" if len(self.keys(url)) > 1 else ""
        return f"{name}{number}" if key else ""

    def rotating(self) -> list[RotatingKey]:
        """The keys that are fetched."""
        found = {id(key): key for key in self._all() if isinstance(key, RotatingKey)}
        return list(found.values())

    def texts(self) -> list[str]:
        """The keys that are texts."""
        return [key for key in self._all() if isinstance(key, str)]

    def _all(self) -> Iterator[Key]:
        return (key for keys in self._keys.values() for key in keys)

    def identity(self, url: str, index: int | None = None) -> bytes:
        """What tells the keys for the host of ``url`` from others: of all of them, or of one.

        It may hold the keys, and is to be hashed. A function is known by its name, a command by its text.
        """
        keys = self.keys(url)
        return b"\0".join(map(_identity, keys if index is None else keys[index : index + 1]))


def hosts_of(host: str) -> tuple[str, ...]:
    """The names, as by :func:`host_of`, of ``host`` or ``host:port``. Without a port: both usual ones.

    Raises ``ValueError`` for what is no host.
    """
    named = host_of(f"//{host}")
    bare, _, port = named.rpartition(":")
    if "/" in host or "@" in host or not bare:
        raise ValueError(host)
    return (named,) if port != "0" else (f"{bare}:443", f"{bare}:80")


def _several(keys: KeyLike | None) -> tuple[Key, ...]:
    if isinstance(keys, str):
        return (keys,) if keys else ()
    if isinstance(keys, RotatingKey):
        return (keys,)
    return tuple(keys) if isinstance(keys, tuple) else ()


def _identity(key: Key) -> bytes:
    if isinstance(key, str):
        return key.encode()
    fetch = key.fetch
    command = getattr(fetch, "command", "")
    kind = fetch if hasattr(fetch, "__qualname__") else type(fetch)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '')}\0{command}".encode()
