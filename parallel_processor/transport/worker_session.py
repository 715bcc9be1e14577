"""What one worker thread sends with: its session, its connections, and the heads that it has prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import requests
from requests import PreparedRequest

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.transport.connections import BoundedPool
from parallel_processor.transport.credentials import Credential
from parallel_processor.transport.exchange import KeptConnection
from parallel_processor.transport.interception import is_intercepted

Place = tuple[str, int]  # a URL, and which of the keys for its host is sent


class PreparedRoute(NamedTuple):
    """How requests to one place are sent: this head, which holds the credential, over this connection."""

    head: bytes
    credential: Credential
    connection: KeptConnection


class WorkerSession:
    """What one worker thread sends with.

    ``routes`` has ``None`` for a place to which the session's adapter has to send. ``sent_with`` is what
    the last request was sent with.
    """

    def __init__(self, session: requests.Session, settings: dict[str, dict[str, Any]]) -> None:
        self.session = session
        self.is_intercepted = is_intercepted(session)
        self.settings = settings
        self.prepared: dict[Place, tuple[PreparedRequest, Credential]] = {}
        self.routes: dict[Place, PreparedRoute | None] = {}
        self.sent_with = Credential({})
        self.connections: dict[BoundedPool, KeptConnection] = {}

    def close(self) -> None:
        """Close the connections of this thread."""
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        self.routes.clear()


def made_by(factory: Callable[[], Any]) -> requests.Session:
    """The session that ``factory`` makes. Raises :class:`ConfigurationError` if it makes none."""
    try:
        session = factory()
    except Exception as error:
        message = f"session_factory failed: {type(error).__name__}: {error}"
        raise ConfigurationError(message) from error
    if not isinstance(session, requests.Session):
        kind = type(session).__name__
        raise ConfigurationError(f"session_factory must return a requests.Session, not {kind}")
    return session
