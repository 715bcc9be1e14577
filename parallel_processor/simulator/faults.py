"""Which requests go wrong, how often, and what is sent in an answer's place.

Whether a request fails is read from a hash of its body and the seed, so a run's faults are the same
however its requests are ordered and whatever their number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.simulator.refusals import error_reply
from parallel_processor.simulator.wire import HttpReply

_HASHES = 2**64


def digest_of(body: bytes, seed: int) -> int:
    """Return 64 bits that name a body; another seed gives others."""
    return int.from_bytes(blake2b(body, digest_size=8, key=str(seed).encode()[:64]).digest(), "big")


class FaultPlan:
    """Chooses the fault of each attempt. Safe to call from any thread."""

    def __init__(self, *, rate: float, attempts: int, kinds: Sequence[str]) -> None:
        self._threshold = int(rate * _HASHES)
        self._attempts = attempts
        self._kinds = kinds
        self._lock = InterruptSafeLock()  # guards _failed
        self._failed: dict[int, int] = {}

    def next_fault(self, digest: int) -> str | None:
        """Return the kind of fault for this attempt at a request, or None: answer it."""
        if digest >= self._threshold:
            return None
        if self._attempts:
            with self._lock:
                failed = self._failed.get(digest, 0)
                if failed >= self._attempts:
                    return None
                self._failed[digest] = failed + 1
        return self._kinds[digest % len(self._kinds)]


def _json(status: int, content: Any, headers: str = "") -> HttpReply:
    return HttpReply(status=status, body=json.dumps(content).encode(), headers=headers)


def _text(status: int, text: str, content_type: str = "text/html") -> HttpReply:
    return HttpReply(status=status, body=text.encode(), content_type=content_type)


def _page(title: str, server: str) -> str:
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>{server}</center>\r\n</body>\r\n</html>\r\n"
    )


SSE_BODY = 'data: {"object": "chat.completion.chunk", "choices": []}\n\ndata: [DONE]\n\n'

FAULT_REPLIES: dict[str, HttpReply] = {
    "500": error_reply(
        500, "The server had an error while processing your request.", "server_error", None
    ),
    "502": _text(502, "<html><head><title>502 Bad Gateway</title></head></html>\r\n"),
    "503": error_reply(
        503,
        "The server is currently overloaded. Please try again later.",
        "service_unavailable_error",
        "server_is_overloaded",
    ),
    "504": _text(504, "<html><head><title>504 Gateway Time-out</title></head></html>\r\n"),
    "429": error_reply(
        429,
        "Rate limit reached for sim in organization org-sim on requests per min (RPM). "
        "Please try again in 1s.",
        "requests",
        "rate_limit_exceeded",
        "Retry-After: 1\r\n",
    ),
    "529": _json(
        529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    ),
    "html": _text(503, "<!DOCTYPE html><html><body><h1>We'll be right back</h1></body></html>"),
    "detail": _json(500, {"detail": "Internal Server Error"}),
    "list": _json(
        503,
        [{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}],
    ),
    "flat": _json(
        500,
        {
            "object": "error",
            "message": "Engine process died.",
            "type": "internal_server_error",
            "param": None,
            "code": 500,
        },
    ),
    "error_in_200": _json(200, {"error": {"code": 502, "message": "Provider returned error"}}),
    "bad_json": HttpReply(status=200, body=b'{"id": "sim-1", "object": "list", "data": [{"ind'),
    "empty": HttpReply(status=200, body=b""),
    "sse": _text(200, SSE_BODY, "text/event-stream"),
    "text401": _text(401, "Authentication Fails (governor)", "text/plain"),
    "loading": error_reply(503, "Loading model", "unavailable_error", None),
    "loading_time": _json(503, {"error": "Model sim is currently loading", "estimated_time": 20.0}),
    "concurrency": error_reply(
        429, "Too many concurrent requests for this key.", "rate_limit_error", "concurrency"
    ),
    "nginx": _text(503, _page("503 Service Temporarily Unavailable", "nginx")),
    "haproxy": _text(
        429,
        "<html><body><h1>429 Too Many Requests</h1>\n"
        "You have sent too many requests in a given amount of time.\n</body></html>\n",
    ),
    "long_context": error_reply(
        429,
        "Extra usage is required for requests of this length.",
        "rate_limit_error",
        "long_context",
    ),
    "redirect": HttpReply(
        status=302, body=b"", headers="Location: http://elsewhere.invalid/v1/chat/completions\r\n"
    ),
}
"""The faults that are whole answers, as a server or a proxy before it would send them."""

CONNECTION_FAULTS = frozenset({"reset", "torn", "stall", "drip"})
"""The faults in how an answer is sent, or isn't; `Connection` plays them."""

FAULT_KINDS = CONNECTION_FAULTS | frozenset(FAULT_REPLIES)
