"""Classifies a response: one tolerant reader for the answers and errors of every provider.

The HTTP status decides first, then the error's ``code`` and ``type``. The text of a success is
never searched. ``failed`` is about one request. ``fatal`` is about the whole run: a wrong key, or
no money. A success that is no JSON may be a stream, a web page, an audio file or a torn text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Response
from parallel_processor.options import shown_url
from parallel_processor.providers.answers import UNKNOWN, Expected, Fault, fault_of
from parallel_processor.providers.claims import status_of, strong_claim
from parallel_processor.providers.endpoints import url_advice
from parallel_processor.providers.errors import body_text, read_error
from parallel_processor.providers.failures import failed, of_failure
from parallel_processor.providers.jsontext import parse, read_answer
from parallel_processor.providers.promises import POLLED, STREAMED, is_known
from parallel_processor.providers.texts import plain_line
from parallel_processor.providers.usage import read_usage

_STREAM_TYPES = ("event-stream", "ndjson", "jsonl", "json-seq", "eventstream")
_EVENTS = re.compile(rb"\s*(?:data|event|id|retry|): ?")  # how an event stream begins
_DONE = re.compile(rb"\s*data:\s*\[DONE\]\s*$")
_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_TEXT = re.compile(r"|text/plain|.*\b(?:json|xml)\b.*|.*\+(?:json|xml)|application/x-www-form-.*")


def classify(
    response: Response,
    readings: Sequence[Any] = (),
    sent_at_s: float = 0.0,
    latency_s: float | None = None,
    expected: Expected = UNKNOWN,
) -> Attempt:
    """What ``response`` means for its request, of which ``expected`` tells, and for the run.

    The other arguments become fields of the attempt: a good one is not copied to add them.
    """
    if not 200 <= response.status < 300:
        attempt = of_failure(response)
    elif not response.is_json and (whole := _whole_answer(response, expected)) is not None:
        return classify(whole, readings, sent_at_s, latency_s, expected)
    elif (fault := _fault_of_success(response, expected)) is not None:
        attempt = _of_fault(fault, response)
    else:
        used, output = read_usage(response.data)
        return Attempt(
            status=AttemptStatus.ANSWERED,
            response=response,
            used_tokens=used,
            output_tokens=output,
            readings=readings,
            sent_at_s=sent_at_s,
            latency_s=latency_s,
        )
    return replace(attempt, readings=readings, sent_at_s=sent_at_s, latency_s=latency_s)


def _fault_of_success(response: Response, expected: Expected) -> Fault | None:
    """Why a success is no answer; ``None`` if it is one."""
    is_json = response.is_json
    fault = fault_of(response.data, expected) if is_json else _fault_of_body(response, expected)
    if response.status == 202 and (fault is None or fault.error is None):
        return Fault("not answered yet", POLLED, is_final=True)
    return fault


def _of_fault(fault: Fault, response: Response) -> Attempt:
    """A success that is no answer. What says that it is an error means what its own status would."""
    if fault.error is None:
        status = AttemptStatus.FAILED if fault.is_final else AttemptStatus.RETRY
        start = f": {body_text(response)[:200]}" if fault.kind == "no answer" else ""
        attempt = failed(status, response, fault.kind, plain_line(fault.message + start, 700))
        cause = StopCause.SETUP if fault.is_setup else StopCause.NOTHING
        used, _ = read_usage(response.data)  # half an answer has been charged, too
        return replace(attempt, stop_cause=cause, used_tokens=used)
    error = {name: value for name, value in fault.error.items() if name != "http_status"}
    inner = fault.error["http_status"] or 400
    meant = replace(response, status=inner, data={"error": error}, is_json=True)
    attempt = of_failure(meant)
    what = f"error in HTTP {response.status}" + f" {inner}" * (str(inner) == str(error["code"]))
    kind, text = (text.replace(f"HTTP {inner}", what, 1) for text in (attempt.kind, attempt.error))
    return replace(attempt, response=response, kind=kind, error=text)


def _whole_answer(response: Response, expected: Expected) -> Response | None:
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


def _fault_of_body(response: Response, expected: Expected) -> Fault:
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
