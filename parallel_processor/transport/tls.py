"""TLS contexts that the connections of a run share.

urllib3 makes a context for each connection, and reads the CA bundle into it: 10 ms and 0.5 MB each.
"""

from __future__ import annotations

import ssl
import threading
from typing import Any, NamedTuple

from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs

from parallel_processor.runtime.forks import FORK_LOCK

_create: Any = create_urllib3_context


class TLSPolicy(NamedTuple):
    """Which servers to trust, in urllib3's words, and the files with the client's own certificate."""

    cert_reqs: str
    ca_certs: str | None = None
    ca_cert_dir: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class TLSContexts:
    """One context per policy. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _contexts; held while files are read, once a policy
        self._contexts: dict[TLSPolicy, ssl.SSLContext] = {}

    def get(self, policy: TLSPolicy) -> ssl.SSLContext:
        """The context for ``policy``. Raises ``OSError`` if its files can't be used."""
        with self._lock:
            context = self._contexts.get(policy)
            if context is None:
                with FORK_LOCK:  # a fork must not copy OpenSSL's own locks while they are held
                    context = self._contexts[policy] = _make(policy)
        return context


def _make(policy: TLSPolicy) -> ssl.SSLContext:
    """A context with the TLS versions and ciphers that urllib3 chooses."""
    context: ssl.SSLContext = _create(cert_reqs=resolve_cert_reqs(policy.cert_reqs))
    if policy.ca_certs or policy.ca_cert_dir:
        context.load_verify_locations(policy.ca_certs, policy.ca_cert_dir)
    if policy.cert_file:
        context.load_cert_chain(policy.cert_file, policy.key_file, _no_password)
    context.set_alpn_protocols(["http/1.1"])
    # urllib3 sets the protocols again for each connection. OpenSSL then frees the old value, while
    # another thread may be copying it into a connection of its own.
    context.set_alpn_protocols = lambda _: None  # type: ignore[method-assign,assignment]
    return context


def _no_password() -> str:
    """Raise. Without this function, OpenSSL would ask the terminal for a password."""
    raise ssl.SSLError("the client's private key is encrypted; there is no password for it")
