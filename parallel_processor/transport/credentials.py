"""What each URL of a run is sent with: its key, the login, the headers and the query of the settings.

A key goes to its own host alone, and never in plain text to another machine, whatever URL a request has.
"""

from __future__ import annotations

from typing import NamedTuple

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.redact import Redactor
from parallel_processor.credentials.rotating_key import RotatingKey
from parallel_processor.credentials.urls import with_query
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import basic_auth, is_exposed, sent_headers


class Credential(NamedTuple):
    """What proves to one URL who sends.

    Attributes:
        headers: these; empty if there is nothing to show.
        source: where the key comes from, if it expires.
        generation: which of its keys is in the headers.
    """

    headers: dict[str, str]
    source: RotatingKey | None = None
    generation: int = 0


class Credentials:
    """The keys of one run. Any thread may call it."""

    def __init__(self, options: Options) -> None:
        self._options, self._keyring = options, options.keyring
        self._is_cancelled = False

    def count(self, url: str) -> int:
        """How many keys there are for ``url``."""
        return len(self._keyring.keys(url))

    def is_own(self, url: str) -> bool:
        """True if the headers and the login of the settings, and of a session, are for ``url``."""
        return self._keyring.is_own(url)

    def target(self, url: str) -> str:
        """``url`` as it is requested: with the query of the settings, if it is on their own host."""
        query = self._options.query
        return with_query(url, query) if query and self._keyring.is_own(url) else url

    def credential(self, url: str, index: int = 0) -> Credential:
        """What ``url`` is sent with, with the key of that ``index``."""
        keys = () if is_exposed(url, self._options) else self._keyring.keys(url)
        key = keys[min(index, len(keys) - 1)] if keys else None
        if isinstance(key, RotatingKey):
            version = key.usable(self._cancelled)
            headers = sent_headers(self._options, url, version.text)
            return Credential(headers, key, version.generation)
        return Credential(sent_headers(self._options, url, key))

    def is_present(self, credential: Credential) -> bool:
        """True if its key is the newest. Waits for a new one if that was refused."""
        source = credential.source
        return source is None or source.usable(self._cancelled).generation == credential.generation

    def accepted(self, credential: Credential) -> None:
        """A server has taken its key."""
        source = credential.source
        if source is not None and source.accepted < credential.generation:
            source.accepted = credential.generation

    def renewal_fault(self, credential: Credential) -> str | None:
        """A server has refused its key; waits for the next one. ``None`` if there is one.

        Else the reason, which is empty for a key that can't be replaced.
        """
        source = credential.source
        return "" if source is None else source.refused(credential.generation, self._cancelled)

    def redactor(self) -> Redactor:
        """What removes all of it from texts, and the keys before it."""
        options, rotating = self._options, self._keyring.rotating()
        login = options.login or ""
        header = basic_auth(login).partition(" ")[2] if login else None
        given = [*options.headers.items(), *options.query.items()]
        named = [value for name, value in given if is_secret_name(name)]
        parts = [word for value in named for word in value.split()[1:]]  # what follows Bearer
        secrets = (*self._keyring.texts(), login.partition(":")[2], header, *named, *parts)
        if not rotating:
            return Redactor(*secrets)
        return Redactor(*secrets, more=lambda: [text for key in rotating for text in key.texts])

    def set(self) -> None:
        """What a stop calls: a request that waits for a key is not in flight, and nothing more is sent."""
        self.cancel()

    def cancel(self) -> None:
        """Let nobody wait for a key any more."""
        self._is_cancelled = True
        for key in self._keyring.rotating():
            key.wake()

    def _cancelled(self) -> bool:
        return self._is_cancelled
