"""A server for what no decent one does: each connection is a script that gets the bare socket.

Nothing here waits for time to pass except on ``closing``, an event that ends every script at once.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from certificates import CERTIFICATE

# What embeddings, chat and completions promise, and a mark.
OK = {"ok": True, "embedding": [1.0], "choices": [{"text": ""}]}
ANSWER = json.dumps(OK).encode()


@dataclass
class Visit:
    """One connection, as its script sees it."""

    server: RawServer
    sock: socket.socket
    number: int
    head: str = ""
    body: bytes = b""
    _buffer: bytes = field(default=b"", repr=False)

    def read(self) -> bool:
        """Read the next request into ``head`` and ``body``; false once the client has left."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return False
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        size = int(self.header("content-length") or 0)
        self._buffer = rest
        while len(self._buffer) < size:
            if not self._more():
                return False
        self.body, self._buffer = self._buffer[:size], self._buffer[size:]
        self.server.heads.append(self.head)
        self.server.bodies.append(self.body)
        return True

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def header(self, name: str) -> str | None:
        """The value of a request header; ``None`` without it."""
        return header_of(self.head, name)

    def answer(self, body: bytes = ANSWER, *, status: str = "200 OK", headers: str = "") -> None:
        """Send a whole answer; ``headers`` are lines, each ended by CRLF."""
        self.sock.sendall(head_of(body, status, headers) + body)

    def drip(self, data: bytes, interval_s: float = 0.05) -> None:
        """Send ``data`` a byte at a time, until the client or the server ends."""
        for place in range(len(data)):
            if self.server.closing.wait(interval_s):
                return
            self.sock.sendall(data[place : place + 1])

    def wait_for_the_end(self) -> None:
        """Answer nothing until the client leaves."""
        while self.sock.recv(65536):
            pass

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def head_of(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """The head of an answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()


def header_of(head: str, name: str) -> str | None:
    """The value of a header in a request's head; ``None`` without it."""
    for line in head.split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.lower() == name.lower():
            return value.strip()
    return None


def answer_all(visit: Visit) -> None:
    """A script that answers every request of a connection."""
    while visit.read():
        visit.answer()


class Room:
    """A script that answers so many requests, and holds all others until it is opened."""

    def __init__(self, answers: int = 0) -> None:
        self.opened = threading.Event()
        self._answers = threading.Semaphore(answers)
        self._entered = threading.Semaphore(0)

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            if not self._answers.acquire(blocking=False):
                self._entered.release()
                self.opened.wait(120)  # a failing test must end, too
            visit.answer()

    def wait_for(self, count: int) -> None:
        """Return once so many more requests are held."""
        for _ in range(count):
            assert self._entered.acquire(timeout=90)


class RawServer:
    """Runs ``script`` for each connection, in a thread of its own; for a ``with`` block.

    ``heads`` and ``bodies`` are what the scripts read, ``visits`` counts the connections. A script may
    raise ``OSError``: the client left.
    """

    def __init__(
        self,
        script: Callable[[Visit], None],
        *,
        tls: bool = False,
        certificate: str = CERTIFICATE,
        host: str = "127.0.0.1",
    ) -> None:
        self._host = host
        self._script = script
        self._tls = _server_context(certificate) if tls else None
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.visits = 0
        self.came = threading.Event()  # set by each connection
        self.closing = threading.Event()
        self._lock = threading.Lock()  # guards _open
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """The address without a path."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def __enter__(self) -> RawServer:
        self._listener = socket.create_server((self._host, 0), backlog=256)
        self._port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="raw-server")
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for sock in self._open:
                try:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    pass  # it ended by itself
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.visits += 1
            thread = threading.Thread(
                target=self._attend, args=(sock, self.visits), name="raw-server"
            )
            self._threads.append(thread)
            thread.start()

    def _attend(self, sock: socket.socket, number: int) -> None:
        with self._lock:
            self._open.add(sock)
        self.came.set()
        try:
            if self._tls is not None:
                plain, sock = sock, self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._open.discard(plain)
                    self._open.add(sock)
            self._script(Visit(self, sock, number))
        except OSError:
            pass  # the client left
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()


def _server_context(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with certificate_file(certificate) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def certificate_file(certificate: str = CERTIFICATE) -> Iterator[Path]:
    """A certificate in a file, for clients that are to trust it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "certificate.pem")
        path.write_text(certificate)
        yield path
