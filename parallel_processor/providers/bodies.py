"""Reads the body of a success that is no JSON: a stream, a web page, an audio file, a torn text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from parallel_processor.models import Response
from parallel_processor.options import shown_url
from parallel_processor.providers.answers import STREAMED, Expected, Fault, fault_of, is_known
from parallel_processor.providers.claims import status_of, strong_claim
from parallel_processor.providers.endpoints import url_advice
from parallel_processor.providers.errors import body_text, read_error
from parallel_processor.providers.jsontext import parse, read_answer

_STREAM_TYPES = ("event-stream", "ndjson", "jsonl", "json-seq", "eventstream")
_EVENTS = re.compile(rb"\s*(?:data|event|id|retry|): ?")  # how an event stream begins
_DONE = re.compile(rb"\s*data:\s*\[DONE\]\s*$")
_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_TEXT = re.compile(r"|text/plain|.*\b(?:json|xml)\b.*|.*\+(?:json|xml)|application/x-www-form-.*")


def whole_answer(response: Response, expected: Expected) -> Response | None:
    """The one answer that is framed as a stream, as if it had come without; ``None`` if there is none.

    Some gateways send a whole answer as an event, or put the end of a stream behind it.
    """
    if not _is_stream(response):
        return None
    body = _DONE.sub(b"", response.body).strip()
    if body[:1] != b"{":
        events = list(_events(body))
        body = events[0] if len(events) == 1 else b""
    try:
        data, line = read_answer(body)
    except ValueError:
        return None
    if fault_of(data, expected) is not None:
        return None
    return Response(
        status=response.status, headers=response.headers, body=line, data=data, is_json=True
    )


def fault_of_body(response: Response, expected: Expected) -> Fault:
    """Why ``response``, which is no JSON, is no answer."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "html" in content_type or _HTML.match(response.body[:2000]):
        where = shown_url(expected.url) if expected.url else "the URL"
        advice = url_advice(expected.url) or "the API is on another host, port or path"
        return Fault(
            "HTML page",
            f"{where} answers with a web page, as a login, a front end or a proxy does. Give the API's own"
            f" URL: {advice}. The page: {read_error(response).message[:200]}",
            is_setup=True,
        )
    if _is_stream(response):
        for line in _events(response.body) or ():
            if (claim := _claim_in(line)) is not None:
                return Fault("error", str(claim.get("message") or ""), error=claim)
        return Fault("unexpected stream", STREAMED, is_final=True)
    if response.body and not _TEXT.fullmatch(content_type):
        message = f"the answer is {content_type}, which can't be recorded: it has to be JSON"
        return Fault("not JSON", message, is_final=True)
    text = body_text(response)
    # A text that an unknown endpoint calls plain may be what was paid for, unless it tells of a failure.
    is_plain = content_type == "text/plain" and response.body.strip()[:1] not in (
        b"",
        b"{",
        b"[",
        b"<",
    )
    is_final = is_plain and not is_known(expected.url) and status_of(text) is None
    return Fault("not JSON", f"the answer is not JSON: {text[:80]!r}", is_final)


def _is_stream(response: Response) -> bool:
    content_type = response.headers.get("content-type", "").lower()
    if any(name in content_type for name in _STREAM_TYPES):
        return True
    body = response.body
    if _EVENTS.match(body) or _DONE.search(body[-100:]):
        return True
    first, _, rest = body.strip().partition(b"\n")
    return first.startswith(b"{") and rest.lstrip().startswith(b"{") and _is_json(first)


def _is_json(line: bytes) -> bool:
    try:
        parse(line.decode("utf-8", "replace"), strict=False)
    except ValueError:
        return False
    return True


def _events(body: bytes) -> Iterator[bytes]:
    """What the events of a stream hold: the text behind ``data:``, or a line of JSON."""
    for line in body.splitlines():
        line = line.strip()
        if line.startswith(b"data:"):
            line = line[len(b"data:") :].strip()
        if line.startswith(b"{"):
            yield line


def _claim_in(event: bytes) -> Any:
    """The error that an event holds; ``None`` if it holds none."""
    if b"error" not in event:
        return None
    try:
        data = parse(event.decode("utf-8", "replace"), strict=False)
    except ValueError:
        return None
    return strong_claim(data) if isinstance(data, dict) else None
