"""Asks a port which protocol it speaks, where a server ends connections without a word.

It is asked once a run, and only if nothing was ever answered. No key, login or request is sent.
"""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

from parallel_processor.transport.setup_faults import WANTS_TLS

_TIMEOUT_S = 5.0
_QUESTION = b"GET / HTTP/1.0\r\n\r\n"
_MOST_BYTES = 4096


def speaks_other_scheme(url: str) -> bool:
    """True if what is at an ``http`` URL speaks TLS, or what is at an ``https`` URL plain HTTP."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    address = parts.hostname or "", parts.port or (443 if is_tls else 80)
    try:
        with socket.create_connection(address, _TIMEOUT_S) as sock:
            return _speaks_plain(sock) if is_tls else _speaks_tls(sock, address[0])
    except (OSError, ValueError):
        return False


def _speaks_tls(sock: socket.socket, host: str) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(sock, server_hostname=host):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")


def _speaks_plain(sock: socket.socket) -> bool:
    """True for an answer, unless it is the one that TLS servers have for plain HTTP."""
    sock.sendall(_QUESTION)
    answer = b""
    while b" 400 " in answer[:16] or b"\r\n\r\n" not in answer:  # the text of a 400 matters
        piece = sock.recv(_MOST_BYTES)
        answer += piece
        if not piece or len(answer) > _MOST_BYTES:
            break
    return answer.startswith(b"HTTP/") and not WANTS_TLS.search(answer)
