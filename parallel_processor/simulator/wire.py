"""HTTP/1.1 by hand: requests out of a stream of bytes, and answers as bytes.

`http.server` reads a request through a buffered file and `email.parser`: several times the cost of
everything else this server does. Here a head is one `find`, and only the fields in use are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 512 * 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


class MalformedRequest(Exception):
    """The peer does not speak HTTP, or more of it than is accepted; its connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A request as it came; `path` has no query, `api_key` is None if no header carried one.

    `keys` has the key of each header that carried one, by the header's name in lower case.
    """

    method: str
    path: str
    body: bytes
    api_key: str | None
    keep_alive: bool
    host: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """An answer before it is bytes; `headers` are further lines, each ended by CRLF."""

    status: int
    body: bytes
    headers: str = ""
    content_type: str = "application/json"

    def encode(self, *, keep_alive: bool) -> tuple[bytes, bytes]:
        """Return the head and the body."""
        closing = "" if keep_alive else "Connection: close\r\n"
        head = (
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n{closing}{self.headers}\r\n"
        )
        return head.encode("latin-1"), self.body


class RequestReader:
    """Takes one request after another out of a connection; for that connection's thread only."""

    def __init__(self, receive: Callable[[int], bytes], send: Callable[[bytes], None]) -> None:
        self._receive = receive
        self._send = send
        self._buffer = b""

    def next(self) -> HttpRequest | None:
        """Wait for a whole request; None when the peer has closed between two requests.

        Raises MalformedRequest, and whatever `receive` raises.
        """
        head = self._read_head()
        if head is None:
            return None
        lowered = head.lower()
        method, target, version = _request_line(head)
        if b"100-continue" in (_field(head, lowered, b"expect") or b"").lower():
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection = (_field(head, lowered, b"connection") or b"").lower()
        if version == b"HTTP/1.0":
            keep_alive = b"keep-alive" in connection
        else:
            keep_alive = b"close" not in connection
        host, path = _place(target)
        keys = _keys(head, lowered)
        return HttpRequest(
            method=method.decode("latin-1"),
            path=path.decode("latin-1"),
            body=self._read_body(head, lowered),
            api_key=next(iter(keys.values()), None),
            keep_alive=keep_alive,
            host=(host or _field(head, lowered, b"host") or b"").decode("latin-1"),
            keys=keys,
        )

    def _read_head(self) -> bytes | None:
        while True:
            buffer = self._buffer.lstrip(b"\r\n")
            if buffer and not 0x41 <= buffer[0] <= 0x5A:  # not a method's letter: TLS, most likely
                raise MalformedRequest("the first byte is no letter")
            end = buffer.find(b"\r\n\r\n")
            if end > MAX_HEAD_BYTES or (end < 0 and len(buffer) > MAX_HEAD_BYTES):
                raise MalformedRequest("the head is too large")
            if end >= 0:
                self._buffer = buffer[end + 4 :]
                return buffer[:end]
            data = self._receive(_RECEIVE_BYTES)
            if not data:
                if buffer:
                    raise MalformedRequest("the head is cut short")
                return None
            self._buffer = buffer + data

    def _read_body(self, head: bytes, lowered: bytes) -> bytes:
        if b"chunked" in (_field(head, lowered, b"transfer-encoding") or b"").lower():
            return self._read_chunks()
        length = _field(head, lowered, b"content-length")
        return b"" if length is None else self._take(_size(length, 10))

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := _size(self._take_line().partition(b";")[0].strip(), 16):
            if len(body) + size > MAX_BODY_BYTES:
                raise MalformedRequest("the body is too large")
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise MalformedRequest("a chunk does not end where it says")
        while self._take_line():  # trailers
            pass
        return bytes(body)

    def _take_line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise MalformedRequest("a line is too long")
            self._buffer += self._more(_RECEIVE_BYTES)
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        if len(self._buffer) < size:
            data = bytearray(self._buffer)
            while len(data) < size:
                data += self._more(max(_RECEIVE_BYTES, min(size - len(data), 1 << 20)))
            self._buffer = bytes(data)
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _more(self, size: int) -> bytes:
        data = self._receive(size)
        if not data:
            raise MalformedRequest("the body is cut short")
        return data


def _request_line(head: bytes) -> tuple[bytes, bytes, bytes]:
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise MalformedRequest("no HTTP/1 request line")
    return words[0], words[1], words[2]


def _field(head: bytes, lowered: bytes, name: bytes) -> bytes | None:
    """Return a header's value; `lowered` is the head in lower case, as `name` must be."""
    start = lowered.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    end = head.find(b"\r\n", start)
    return (head[start:] if end < 0 else head[start:end]).strip()


def _place(target: bytes) -> tuple[bytes, bytes]:
    """Split a target into its host, which a client names to a proxy, and its path without the query."""
    target = target.partition(b"?")[0]
    if target[:1] == b"/":
        return b"", target
    _, _, rest = target.partition(b"://")
    host, slash, path = rest.partition(b"/")
    return host, slash + path


_KEY_HEADERS = (b"x-api-key", b"api-key", b"x-goog-api-key")


def _keys(head: bytes, lowered: bytes) -> dict[str, str]:
    """Read the key in each of the headers in which the providers expect it."""
    keys: dict[str, str] = {}
    bearer = _field(head, lowered, b"authorization")
    if bearer is not None:
        scheme, _, key = bearer.partition(b" ")
        keys["authorization"] = (key or scheme).strip().decode("latin-1")
    for name in _KEY_HEADERS if b"-key:" in lowered else ():
        value = _field(head, lowered, name)
        if value is not None:
            keys[name.decode()] = value.decode("latin-1")
    return keys


def _size(digits: bytes, base: int) -> int:
    try:
        size = int(digits, base)
    except ValueError:
        raise MalformedRequest("a length is no number") from None
    if not 0 <= size <= MAX_BODY_BYTES:
        raise MalformedRequest("the body is too large")
    return size
