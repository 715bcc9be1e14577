"""HTTP/1 messages on a socket: a request's head is written once per URL, a response is read as it comes in.

``http.client`` reads a response's head with the parser for e-mail, which costs more than the rest
of an exchange. :func:`parse_head` accepts what ``http.client`` accepts, but for malformed lengths: who
doesn't know a body's length can't tell whether it is torn. A head may have 1 MiB in all.

``requests`` and urllib3 bound each single read of a socket, so a response that drips one byte a
second never times out. Here each read may take what is left of the exchange's time.
"""

from __future__ import annotations

import functools
import http
import http.client
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_STATUS_LINE = re.compile(r"HTTP/1\.([0-9])[ \t]+([1-9][0-9][0-9])(?:[ \t].*)?")
_FOLD = re.compile(r"\r?\n[ \t]+")
MAX_HEAD_BYTES = 1024 * 1024
_RECEIVE_BYTES = 16 * 1024  # a TLS record holds no more; each waiting thread holds such a buffer
_RECEIVE_BYTES_OF_LONG_BODY = 64 * 1024
_SLACK = 1.01  # how much longer than the time that is left a socket's timeout may be
_PROTOCOL = b"HTTP/"
_HEAD_END = re.compile(rb"\n\r?\n")


class MalformedLength(http.client.HTTPException):
    """The length of a body is malformed, so that nobody knows where it ends."""


class Headers(Mapping[str, str]):
    """The headers of a response, by their names in lower case; several values are joined by ``", "``.

    They are parsed when somebody looks at them, which few do. Any thread may.
    """

    __slots__ = ("_parsed", "_text")

    def __init__(self, text: str) -> None:
        """Take the lines of a head but for the first."""
        self._text = text
        self._parsed: dict[str, str] | None = None

    def mention(self, word: str) -> bool:
        """False if ``word``, in lower case, is nowhere in them."""
        return word in self._text.lower()

    def _get(self) -> dict[str, str]:
        parsed = self._parsed
        if parsed is None:
            parsed = self._parsed = _read_headers(self._text) if self._text else {}
        return parsed

    def __getitem__(self, name: str) -> str:
        return self._get()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._get())

    def __len__(self) -> int:
        return len(self._get())

    def __reduce__(self) -> tuple[type[Headers], tuple[str]]:
        return Headers, (self._text,)


class ResponseHead(NamedTuple):
    """The head of a response."""

    status: int
    headers: Headers
    length: int | None  # of the body in bytes; None if it is chunked or ends with the connection
    is_chunked: bool
    keeps_connection: bool  # the connection may be used again


def parse_head(text: str) -> ResponseHead:
    """Parse the lines of a head. Raises an ``http.client.HTTPException`` if they are not HTTP/1."""
    first, _, rest = text.partition("\n")
    is_old, status = _read_status_line(first)
    headers, lower = Headers(rest), text.lower()
    if status == http.HTTPStatus.OK and not is_old and _is_usual(lower):
        digits = lower.partition("\ncontent-length:")[2].partition("\n")[0].strip()
        if digits.isdecimal() and digits.isascii() and len(digits) < 20:
            return ResponseHead(status, headers, int(digits), False, True)
    return _parse_head(is_old, status, headers)


def _is_usual(lower: str) -> bool:
    """True if, as in nearly every answer, a length alone says where the body ends."""
    return (
        lower.count("content-length") == 1
        and "transfer-encoding" not in lower
        and "close" not in lower
        and "\n " not in lower  # a folded line
        and "\n\t" not in lower
    )


def _parse_head(is_old: bool, status: int, headers: Headers) -> ResponseHead:
    is_chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
    length = 0 if status in (204, 304) else None
    if length is None and not is_chunked and "content-length" in headers:
        length = _read_length(headers["content-length"])
    connection = headers.get("connection", "").lower()
    keeps = "keep-alive" in connection if is_old else "close" not in connection
    keeps = keeps and (is_chunked or length is not None)
    return ResponseHead(status, headers, length, is_chunked, keeps)


@functools.lru_cache(maxsize=64)
def _read_status_line(line: str) -> tuple[bool, int]:
    """Whether the version is 1.0, and the status code."""
    match = _STATUS_LINE.fullmatch(line.rstrip("\r"))
    if match is None:
        raise http.client.BadStatusLine(line[:100])
    return match[1] == "0", int(match[2])


def _read_headers(text: str) -> dict[str, str]:
    if "\n " in text or "\n\t" in text:  # obsolete folding: a value goes on in the next line
        text = _FOLD.sub(" ", text)
    headers: dict[str, str] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _read_length(text: str) -> int:
    """The number in ``text``, which may stand there several times. Raises :class:`MalformedLength`."""
    first, *others = [value.strip() for value in text.split(",")]
    is_number = first.isdecimal() and first.isascii() and len(first) < 20
    if not is_number or any(value != first for value in others):
        raise MalformedLength(f"the answer's Content-Length is no number of bytes: {text[:100]!r}")
    return int(first)


def request_head(
    host: str, port: int, default_port: int, target: str, headers: Mapping[str, str | bytes]
) -> bytes:
    """The head of a POST to ``target``, up to the place where the length of the body follows."""
    sent: list[bytes] = []
    # Not a subclass: VCR may have replaced the class while this module was imported.
    recorder: Any = http.client.HTTPConnection(host, port)
    recorder.send = sent.append
    recorder.default_port = default_port
    names = {name.lower() for name in headers}
    recorder.putrequest(
        "POST", target, skip_host="host" in names, skip_accept_encoding="accept-encoding" in names
    )
    for name, value in headers.items():
        if name.lower() != "content-length":
            recorder.putheader(name, value)
    recorder.putheader("Content-Length", "")
    recorder.endheaders()
    return b"".join(sent).removesuffix(b"\r\n\r\n")


def bound_by(sock: socket.socket, deadline: float) -> None:
    """Let the next call on ``sock`` take the time that is left until ``deadline``, or 1 % more.

    To set a socket's timeout is a system call, so a timeout that is about right stays. Raises
    ``TimeoutError`` after the deadline.
    """
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    timeout_s = sock.gettimeout()
    if timeout_s is None or not left_s <= timeout_s <= left_s * _SLACK:
        sock.settimeout(left_s)


class Incoming:
    """The bytes that come in on ``sock``, as a file that ``http.client`` can read from.

    Closing it leaves the socket open.
    """

    __slots__ = ("_sock", "rest")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.rest = b""  # received, but not read yet

    def head(self) -> str:
        """The lines before the body, which end with CRLF or LF. The CR of the last line is left in."""
        if not self.rest:
            self._receive()
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
        start, after = end.span()
        if after > MAX_HEAD_BYTES:
            raise http.client.LineTooLong("header line")
        head, self.rest = self.rest[:start], self.rest[after:]
        return head.decode("latin-1")

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end of the connection."""
        if len(self.rest) == size:  # the usual end of an answer
            body, self.rest = self.rest, b""
            return body
        body, self.rest = self.rest[:size], self.rest[size:]
        if len(body) == size:
            return body
        pieces, missing = [body], size - len(body)
        while missing:
            piece = self._sock.recv(min(missing, _RECEIVE_BYTES_OF_LONG_BODY))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def readline(self, limit: int) -> bytes:
        """The bytes up to and with the next line end, at most ``limit``."""
        while (place := self.rest.find(b"\n", 0, limit)) < 0 and len(self.rest) < limit:
            if not self._receive():
                break
        size = place + 1 if place >= 0 else limit
        line, self.rest = self.rest[:size], self.rest[size:]
        return line

    def makefile(self, mode: str) -> Incoming:
        """Return itself: ``http.client`` asks a socket for a file."""
        return self

    def flush(self) -> None:
        """Do nothing; ``http.client`` calls it."""

    def close(self) -> None:
        """Do nothing: the socket belongs to its connection."""

    def _receive(self) -> bool:
        """Receive more bytes into ``rest``. False at the end of the connection."""
        piece = self._sock.recv(_RECEIVE_BYTES)
        self.rest = self.rest + piece if self.rest else piece
        return bool(piece)
