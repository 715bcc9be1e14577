"""One client's connection: the socket, and every way to answer on it or to fail to."""

from __future__ import annotations

import socket
import struct
import sys
import threading

from parallel_processor.simulator.wire import HttpReply, HttpRequest, RequestReader

_DRIP_S = 1.0
_LINGER = "HH" if sys.platform == "win32" else "ii"


class ConnectionOver(OSError):
    """Nothing more is to be read from or sent on this connection."""


class Connection:
    """A connected client. Its own thread calls everything but `stop`, which may come from any."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._reader = RequestReader(client.recv, client.sendall)
        self._stopping = threading.Event()

    def next_request(self) -> HttpRequest | None:
        """Wait for a request; None when the client has closed. Raises OSError, MalformedRequest."""
        return self._reader.next()

    def begin(self) -> None:
        """Prepare the socket; raises OSError if the client is gone already."""
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def pause(self, seconds: float) -> None:
        """Let time pass; raises ConnectionOver as soon as the simulator stops."""
        if self._stopping.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise ConnectionOver("the simulator is stopping")

    def is_left(self) -> bool:
        """Return True if the client has left, as far as that can be seen."""
        try:
            return self._client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    def send(self, reply: HttpReply, *, keep_alive: bool) -> None:
        """Send a reply in one piece."""
        head, body = reply.encode(keep_alive=keep_alive)
        self._client.sendall(head + body)

    def send_torn(self, reply: HttpReply) -> None:
        """Promise a whole reply, send half of its body and end the connection."""
        head, body = reply.encode(keep_alive=False)
        self._client.sendall(head + body[: len(body) // 2])
        raise ConnectionOver("torn")

    def send_drip(self, reply: HttpReply) -> None:
        """Send the head at once and the body one byte a second; returns when all is sent."""
        head, body = reply.encode(keep_alive=False)
        self._client.sendall(head)
        for place in range(len(body)):
            self.pause(_DRIP_S)
            self._client.sendall(body[place : place + 1])

    def stall(self, seconds: float) -> None:
        """Send nothing until the client leaves, for so many seconds at most; then end."""
        self._client.settimeout(seconds)
        if self._client.recv(1, socket.MSG_PEEK):  # it sends on, so its leaving can't be seen
            self.pause(seconds)
        raise ConnectionOver("stalled")

    def reset(self) -> None:
        """End the connection with a TCP reset instead of an answer."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        raise ConnectionOver("reset")

    def close(self) -> None:
        """Free the socket."""
        self._client.close()

    def stop(self) -> None:
        """Wake the connection's thread wherever it waits, and make it end."""
        self._stopping.set()
        try:
            self._client.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client was faster
            pass
