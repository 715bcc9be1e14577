"""The bytes of one answer as they come in, each of whose reads ends with the exchange's time.

``requests`` and urllib3 bound each read of a socket, so that an answer which drips a byte a second
never times out. Here every read gets what is left of the exchange's time instead.
"""

from __future__ import annotations

import http.client
import re
import socket
import time

MAX_HEAD_BYTES = 64 * 1024
_RECEIVE_BYTES = 16 * 1024  # a TLS record holds no more; each waiting thread has such a buffer
_RECEIVE_BYTES_OF_LONG_BODY = 64 * 1024
_SLACK = 1.01
_PROTOCOL = b"HTTP/"
_HEAD_END = re.compile(rb"\n\r?\n")


def bound_by(sock: socket.socket, deadline: float) -> None:
    """Let the next call on ``sock`` take what is left until ``deadline``, and 1 % more at most.

    To change a socket's timeout is a system call, so one that is about right stays. ``TimeoutError``
    behind the deadline.
    """
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    timeout_s = sock.gettimeout()
    if timeout_s is None or not left_s <= timeout_s <= left_s * _SLACK:
        sock.settimeout(left_s)


class Incoming:
    """What comes in on ``sock`` until ``deadline``, as a file that ``http.client`` can read from.

    Each method may raise ``TimeoutError``. Closing it leaves the socket open.
    """

    __slots__ = ("_deadline", "_sock", "rest")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self.rest = b""  # has come in and wasn't read yet

    def head(self) -> str:
        """The lines before an answer's body, without the empty one that ends them.

        Lines end with CRLF or, from some servers, with LF; the last one's CR is left.
        """
        while (end := _HEAD_END.search(self.rest)) is None:
            if not self.rest.startswith(_PROTOCOL[: len(self.rest)]):
                raise http.client.BadStatusLine(repr(self.rest[:100]))
            if len(self.rest) > MAX_HEAD_BYTES:
                raise http.client.LineTooLong("header line")
            if not self._receive():
                if self.rest:
                    raise http.client.IncompleteRead(self.rest)
                raise http.client.RemoteDisconnected(
                    "Remote end closed connection without response"
                )
        if end.end() > MAX_HEAD_BYTES:
            raise http.client.LineTooLong("header line")
        head, self.rest = self.rest[: end.start()], self.rest[end.end() :]
        return head.decode("latin-1")

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end of the connection."""
        body, self.rest = self.rest[:size], self.rest[size:]
        if len(body) == size:
            return body
        pieces, missing = [body], size - len(body)
        while missing:
            bound_by(self._sock, self._deadline)
            piece = self._sock.recv(min(missing, _RECEIVE_BYTES_OF_LONG_BODY))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def readline(self, limit: int) -> bytes:
        """The bytes up to the next line's end, ``limit`` at most."""
        while (place := self.rest.find(b"\n", 0, limit)) < 0 and len(self.rest) < limit:
            if not self._receive():
                break
        size = place + 1 if place >= 0 else limit
        line, self.rest = self.rest[:size], self.rest[size:]
        return line

    def makefile(self, mode: str) -> Incoming:
        """Itself: ``http.client`` asks a socket for this."""
        return self

    def flush(self) -> None:
        """Nothing; ``http.client`` calls it."""

    def close(self) -> None:
        """Nothing: the socket belongs to its connection."""

    def _receive(self) -> bool:
        """Add what comes next to ``rest``; false at the connection's end."""
        bound_by(self._sock, self._deadline)
        piece = self._sock.recv(_RECEIVE_BYTES)
        self.rest += piece
        return bool(piece)
