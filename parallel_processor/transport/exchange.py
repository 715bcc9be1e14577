"""One exchange on a kept connection: the request in one write, the response in few reads.

Nearly all requests go this way. It leaves out what ``requests`` and urllib3 repeat for every
request. ``session.py`` says which requests still go through them.
"""

from __future__ import annotations

import errno
import functools
import http.client
import io
import select
import socket
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import urllib3
from urllib3.util.wait import wait_for_read

from parallel_processor.exceptions import TransportError
from parallel_processor.transport.connections import BoundedPool, ConnectionRegistry
from parallel_processor.transport.failures import FAILURES, NotConnected
from parallel_processor.transport.http1 import Incoming, ResponseHead, parse_head
from parallel_processor.transport.timeouts import SocketTimer, Timeouts

_JOINED_BYTES = 64 * 1024  # up to this size, copying costs less than a second write
_CHUNK_BYTES = 1024 * 1024
_COMPRESSED_CHUNK_BYTES = 64 * 1024  # urllib3 before 2.6 inflates a whole chunk, to 64 MiB at most
_MAX_STREAMS = 100  # in one body; each costs a copy of what follows it
_GZIP = (16 + zlib.MAX_WBITS,)
_DEFLATE = (zlib.MAX_WBITS, -zlib.MAX_WBITS)  # with zlib's frame, or without
_ZLIB_KINDS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _DEFLATE}
# Linux, <linux/tcp.h> and <linux/sock_diag.h>: the first byte of TCP_INFO is the connection's state, the
# first number of SO_MEMINFO how much waits to be read.
_TCP_INFO, _ESTABLISHED = 11, b"\x01"
_MEMINFO, _EMPTY = (socket.SOL_SOCKET, 55, 4), bytes(4)
# The server has closed its receiving end; its response may still be there to be read.
_STILL_READABLE = (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.EPROTOTYPE)


class RawResponse(NamedTuple):
    """A complete response. The names in ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class KeptConnection:
    """One thread's connection to a host. It is made when it is first needed, and kept while it works."""

    def __init__(
        self, pool: BoundedPool, registry: ConnectionRegistry, connect_s: float, timeouts: Timeouts
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._connect_s = min(connect_s, timeouts.timeout_s)
        self._timeouts = timeouts
        self._connection: Any = None
        self._timer: SocketTimer | None = None  # of the connection's socket
        self._has_input: Callable[[], object] = bool

    def exchange(self, head: bytes, payload: bytes, max_bytes: int) -> RawResponse:
        """Send one request, and read its response.

        Raises :class:`TransportError` for a body of more than ``max_bytes``, compressed or not.
        """
        timer = self._ready()
        sock, keeps = timer.sock, False
        timer.begin(self._registry.note_sending() + self._timeouts.timeout_s)
        try:
            was_sent = _send(sock, head, payload)
            incoming = Incoming(sock)
            response = _final_head(incoming)
            try:
                body = _read_body(incoming, response, max_bytes)
                if response.length is None:  # then it may have been cut here
                    self._check(timer)
                if body and response.headers.mention("content-encoding"):
                    coding = response.headers.get("content-encoding")
                    body = decoded(body, coding, max_bytes) if coding is not None else body
            except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError):
                # The status of a failure says enough. Servers reset connections whose request they
                # don't want to read.
                if response.status < 400 or self._registry.is_cancelled:
                    raise
                return RawResponse(response.status, response.headers, b"")
            keeps = response.keeps_connection and was_sent and not incoming.rest
        except (OSError, http.client.HTTPException) as error:
            self._check(timer, error)
            raise
        finally:
            if not timer.end() or not keeps:
                self.close()
        return RawResponse(response.status, response.headers, body)

    def _check(self, timer: SocketTimer, error: Exception | None = None) -> None:
        """Raise what ended the exchange from outside, if something has: a cancelled run, or its timeout."""
        self._registry.check()
        if timer.is_late:
            raise TimeoutError("timed out") from error

    def _ready(self) -> SocketTimer:
        """The socket to send on: the last one, unless something has come in on it since.

        That is the connection's end, or a response without a request, which must not be taken for
        the response to the next request. The check is cheap.
        """
        self._registry.check()
        if self._timer is not None:
            if not self._has_input():
                return self._timer
            self.close()
        try:
            self._connection = self._pool.open(self._connect_s)
        except FAILURES as error:
            raise NotConnected(error) from error
        sock: socket.socket = self._connection.sock
        self._timer, self._has_input = self._timeouts.timer(sock), _watch(sock)
        return self._timer

    def close(self) -> None:
        """Close the connection, if there is one."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _watch(sock: socket.socket) -> Callable[[], object]:
    """A function that tells whether something has come in on ``sock``."""
    if not hasattr(select, "poll"):
        return functools.partial(wait_for_read, sock, 0.0)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    has_input = functools.partial(poll.poll, 0)
    if sys.platform != "linux":
        return has_input

    # Linux can say that nothing has, and doesn't hand the interpreter's lock to another thread for it.
    def is_silent() -> bool:
        state = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        return state == _ESTABLISHED and sock.getsockopt(*_MEMINFO) == _EMPTY

    try:
        is_silent()
    except OSError:
        return has_input
    return lambda: not is_silent() and has_input()


def _send(sock: socket.socket, head: bytes, payload: bytes) -> bool:
    """Send a request. False if the server stopped reading; it may have responded all the same."""
    head = b"%b%d\r\n\r\n" % (head, len(payload))
    pieces = [head + payload] if len(payload) <= _JOINED_BYTES else [head, payload]
    try:
        for piece in pieces:
            sent = sock.send(piece)
            if sent < len(piece):
                sock.sendall(memoryview(piece)[sent:])
    except OSError as error:
        if error.errno not in _STILL_READABLE:
            raise
        return False
    return True


def _final_head(incoming: Incoming) -> ResponseHead:
    """The head of the final response. An interim one must not be taken for it, as http.client does."""
    while True:
        head = parse_head(incoming.head())
        if head.status >= 200:
            return head
        if head.status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            raise http.client.BadStatusLine("101 Switching Protocols")


def _read_body(incoming: Incoming, head: ResponseHead, max_bytes: int) -> bytes:
    length = head.length
    if length is None:
        if not head.is_chunked:
            return read_bounded(incoming.read, max_bytes)
        chunked: Any = http.client.HTTPResponse(incoming)  # type: ignore[arg-type]
        chunked.chunked, chunked.chunk_left, chunked.length = True, None, None
        return read_bounded(chunked.read, max_bytes)
    if length > max_bytes:
        raise _too_large(max_bytes)
    body = incoming.read(length)
    if len(body) < length:
        raise http.client.IncompleteRead(body, length - len(body))
    return body


def decoded(body: bytes, coding: str, max_bytes: int) -> bytes:
    """``body`` decompressed: gzip and deflate by zlib, all else by urllib3.

    urllib3 takes a gzip stream that was cut short for a whole one. Here it is a torn body.
    """
    kinds = _ZLIB_KINDS.get(coding.strip().lower())
    for kind in kinds or ():
        try:
            return _inflated(body, kind, max_bytes)
        except zlib.error:
            pass  # deflate has two forms; for what is neither, urllib3 has the words
    headers = {"content-encoding": coding}
    decoder = urllib3.HTTPResponse(io.BytesIO(body), headers=headers, preload_content=False)
    return read_bounded(decoder.read, max_bytes, _COMPRESSED_CHUNK_BYTES)


def _inflated(body: bytes, kind: int, max_bytes: int) -> bytes:
    """The streams in ``body``, one behind the other; what follows them and is none is left out."""
    pieces: list[bytes] = []
    size = 0
    for _ in range(_MAX_STREAMS):
        inflater = zlib.decompressobj(kind)
        try:
            piece = inflater.decompress(body, max_bytes + 1 - size)
        except zlib.error:
            if not pieces:
                raise
            break
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not inflater.eof:
            raise http.client.IncompleteRead(piece)
        if not (body := inflater.unused_data):
            break
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_bounded(
    read: Callable[[int], bytes], max_bytes: int, chunk_bytes: int = _CHUNK_BYTES
) -> bytes:
    """All bytes that ``read`` gives. Raises :class:`TransportError` if they are more than ``max_bytes``."""
    chunks: list[bytes] = []
    size = 0
    while chunk := read(chunk_bytes):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> TransportError:
    return TransportError(
        f"the answer is larger than {max_bytes:,} bytes", kind="answer too large", retryable=False
    )
