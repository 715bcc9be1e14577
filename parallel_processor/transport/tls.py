"""TLS contexts that the connections of a run share.

urllib3 makes a context for each connection, and reads the CA bundle into it: 10 ms and 0.5 MB each.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs

from parallel_processor.options import SYSTEM_STORE
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.transport.setup_faults import SetupFault, unusable_file

_STORES = (  # of Debian, Fedora, SUSE, and of Alpine and macOS
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_create: Any = create_urllib3_context


class TLSPolicy(NamedTuple):
    """Which servers to trust, in urllib3's words, and the files with the client's own certificate.

    ``ca_certs`` may be ``SYSTEM_STORE``.
    """

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
        """The context for ``policy``. Raises :class:`SetupFault` if its files can't be used."""
        with self._lock:
            context = self._contexts.get(policy)
            if context is None:
                with FORK_LOCK:  # a fork must not copy OpenSSL's own locks while they are held
                    context = self._contexts[policy] = _make(policy)
        return context


def _make(policy: TLSPolicy) -> ssl.SSLContext:
    """A context with the TLS versions and ciphers that urllib3 chooses."""
    context: ssl.SSLContext = _create(cert_reqs=resolve_cert_reqs(policy.cert_reqs))
    authorities, own, key = policy.ca_certs, policy.cert_file, policy.key_file
    if authorities == SYSTEM_STORE:
        _trust_system(context)
    elif authorities or policy.ca_cert_dir:
        directory = policy.ca_cert_dir
        path = authorities or directory or ""
        _load(path, lambda: context.load_verify_locations(authorities, directory))
    if own:
        _load(own, lambda: context.load_cert_chain(own, key, _no_password))
    context.set_alpn_protocols(["http/1.1"])
    # urllib3 sets the protocols again for each connection. OpenSSL then frees the old value, while
    # another thread may be copying it into a connection of its own.
    context.set_alpn_protocols = lambda _: None  # type: ignore[method-assign,assignment]
    return context


def _load(path: str, load: Callable[[], None]) -> None:
    try:
        load()
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error.args[0])
        text = unusable_file(path, reason.replace("_", " ").lower())
        raise SetupFault("TLS error", text) from error


def system_store() -> str:
    """Where the operating system keeps the authorities that it trusts.

    OpenSSL knows it, and reads ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``. Some Pythons were built for another
    system's paths, so the usual ones follow. Raises :class:`SetupFault` if there are none.
    """
    paths = ssl.get_default_verify_paths()
    found = next(filter(os.path.exists, filter(None, (paths.cafile, paths.capath, *_STORES))), None)
    if found is None:
        text = f"{paths.openssl_cafile} and {paths.openssl_capath}"
        raise SetupFault("TLS error", unusable_file(text, "the system has no such store"))
    return found


def _trust_system(context: ssl.SSLContext) -> None:
    """Trust what OpenSSL finds, which may be a file and directories; else what there is."""
    path = system_store()
    context.load_default_certs()
    if path in _STORES:
        _load(path, lambda: context.load_verify_locations(path))


def _no_password() -> str:
    """Raise. Without this function, OpenSSL would ask the terminal for a password."""
    raise ssl.SSLError("the client's private key is encrypted; there is no password for it")
