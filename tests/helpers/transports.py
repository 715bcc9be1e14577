"""Transports to raw servers, and what tests of transports share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from raw_server import RawServer, Visit

from parallel_processor.exceptions import TransportError
from parallel_processor.files.formats import made_request
from parallel_processor.models import Request, Response
from parallel_processor.options import Options
from parallel_processor.transport.session import Transport

KEY = "sk-test-0123456789abcdef"
REQUEST = made_request({"model": "m", "input": "hello"}, 1)


@contextmanager
def transport(url: str, **settings: Any) -> Iterator[Transport]:
    """A transport to ``url`` that is closed afterwards."""
    options: dict[str, Any] = {"api_key": KEY, "request_timeout_s": 10.0} | settings
    made = Transport(Options(request_url=url, **options))
    try:
        yield made
    finally:
        made.close()


def request_to(url: str) -> Request:
    """A request with a URL of its own, as a Batch row has."""
    return Request(body={}, payload=b"{}", number=1, url=url)


def response_to(script: Callable[[Visit], None], **settings: Any) -> Response:
    """The response that a script's bytes become."""
    with RawServer(script) as server, transport(server.url, **settings) as sender:
        return sender.send(REQUEST)


def error_of(url: str, request: Request = REQUEST, **settings: Any) -> TransportError:
    """The error in which one attempt ends."""
    with transport(url, **settings) as sender, pytest.raises(TransportError) as caught:
        sender.send(request)
    return caught.value


def error_from(script: Callable[[Visit], None], **settings: Any) -> TransportError:
    """The error in which one attempt at a script ends."""
    with RawServer(script) as server:
        return error_of(server.url, **settings)


def answering(
    body: bytes = b'{"ok": true}', status: str = "200 OK", headers: str = ""
) -> Callable[[Visit], None]:
    """A script with the same answer to all requests."""

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(body, status=status, headers=headers)

    return script


def sending(data: bytes) -> Callable[[Visit], None]:
    """A script that sends these bytes in place of an answer to the first request."""

    def script(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(data)

    return script


def session_with(
    headers: dict[str, str] | None = None, proxies: dict[str, str] | None = None, **attributes: Any
) -> Callable[[], requests.Session]:
    """A factory of sessions that have these headers, proxies and attributes."""

    def factory() -> requests.Session:
        session = requests.Session()
        session.headers.update(headers or {})
        session.proxies.update(proxies or {})
        vars(session).update(attributes)
        return session

    return factory


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Call ``work`` in so many threads at the same time."""
    barrier = threading.Barrier(count)

    def run() -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
