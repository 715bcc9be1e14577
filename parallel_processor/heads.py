"""The heads of HTTP/1 messages: a request's is written once per URL, an answer's is read by a few lines.

``http.client`` reads an answer's with the parser for e-mail, which costs more than all the rest of an
exchange. What is accepted here is what it accepts, but for the bound: all lines of a head together may
have 64 KiB.
"""

from __future__ import annotations

import functools
import http.client
import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_MAX_HEADERS = 100
_STATUS_LINE = re.compile(r"HTTP/1\.([0-9])[ \t]+([1-9][0-9][0-9])(?:[ \t].*)?")
_FOLD = re.compile(r"\r?\n[ \t]+")
_NO_BODY_STATUSES = frozenset({204, 304})
MAX_HEAD_BYTES = 64 * 1024
_RECEIVE_BYTES = 16 * 1024  # a TLS record holds no more; each waiting thread has such a buffer
_RECEIVE_BYTES_OF_LONG_BODY = 64 * 1024
_SLACK = 1.01
_PROTOCOL = b"HTTP/"
_HEAD_END = re.compile(rb"\n\r?\n")


class AnswerHead(NamedTuple):
    """An answer's head.

    ``headers`` have their names in lower case; the values of one name are joined by ``", "``.
    ``length`` is the body's size, ``None`` if it is chunked or ends with the connection.
    """

    status: int
    headers: dict[str, str]
    length: int | None
    is_chunked: bool
    keeps_connection: bool


def parse_head(text: str) -> AnswerHead:
    """Read a head's lines; an ``http.client.HTTPException`` if they are not HTTP/1."""
    first, _, rest = text.partition("\n")
    is_old, status = _read_status_line(first)
    headers = _read_headers(rest) if rest else {}
    is_chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
    length = None
    if status in _NO_BODY_STATUSES:
        length = 0
    elif not is_chunked and "content-length" in headers:
        length = _read_length(headers["content-length"])
    connection = headers.get("connection", "").lower()
    keeps = "keep-alive" in connection if is_old else "close" not in connection
    return AnswerHead(
        status, headers, length, is_chunked, keeps and (is_chunked or length is not None)
    )


@functools.lru_cache(maxsize=64)
def _read_status_line(line: str) -> tuple[bool, int]:
    """Whether the version is 1.0, and the status."""
    match = _STATUS_LINE.fullmatch(line.rstrip("\r"))
    if match is None:
        raise http.client.BadStatusLine(line[:100])
    return match[1] == "0", int(match[2])


def _read_headers(text: str) -> dict[str, str]:
    if "\n " in text or "\n\t" in text:  # values that go on in the next line, as was usual once
        text = _FOLD.sub(" ", text)
    lines = text.split("\n")
    if len(lines) > _MAX_HEADERS:
        raise http.client.HTTPException(f"got more than {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _read_length(text: str) -> int | None:
    """The number; ``None`` if it is none. An ``HTTPException`` for several that differ."""
    first, *others = [value.strip() for value in text.split(",")]
    if any(value != first for value in others):
        raise http.client.HTTPException(f"the answer has several lengths: {text[:100]}")
    return int(first) if first.isdecimal() and first.isascii() and len(first) < 20 else None


def request_head(
    host: str, port: int, default_port: int, target: str, headers: Mapping[str, str | bytes]
) -> bytes:
    """The head of a POST to ``target``, up to where the number of its body's bytes has to follow."""
    sent: list[bytes] = []
    # No subclass: while this module is imported, another class may stand in that one's place (VCR).
    recorder: Any = http.client.HTTPConnection(host, port)
    recorder.send = sent.append
    recorder.default_port = default_port
    names = {name.lower() for name in headers}
    recorder.putrequest(
        "POST",
        target,
        skip_host="host" in names,
        skip_accept_encoding="accept-encoding" in names,
    )
    for name, value in headers.items():
        if name.lower() != "content-length":
            recorder.putheader(name, value)
    recorder.putheader("Content-Length", "")
    recorder.endheaders()
    return b"".join(sent).removesuffix(b"\r\n\r\n")


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
