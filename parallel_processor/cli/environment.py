"""What the command takes from the environment: the key, and whose certificates to trust."""

from __future__ import annotations

import argparse
import logging
import os

from parallel_processor.credentials.key_text import read_key, read_key_file
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import SYSTEM_STORE, shown_url, without_login
from parallel_processor.providers.endpoints import needs_key

_log = logging.getLogger("parallel_processor")
KEY_VARIABLE = "OPENAI_API_KEY"
"""The variable that has the key, if no flag names one."""


def find_key(flags: argparse.Namespace) -> str | None:
    """The key from the flags, else from the environment; ``None`` if there is none and none is needed.

    A login in the URL was typed, so the variable, which nobody typed, gives way to it.
    """
    if flags.api_key and flags.api_key_file:
        raise ConfigurationError("give --api_key or --api_key_file, not both")
    has_login = without_login(flags.request_url)[1] is not None
    if flags.api_key_file:
        return read_key_file(flags.api_key_file)
    key = read_key(flags.api_key or "", "--api_key") or None
    if key is None and not has_login:
        key = read_key(os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE) or None
    if key is None and not has_login and needs_key(flags.request_url):
        what = f"needs a key: set {KEY_VARIABLE}, or give --api_key_file"
        raise ConfigurationError(f"{shown_url(flags.request_url)} {what}")
    return key


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
