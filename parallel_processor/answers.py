"""What an answer means: one tolerant reader for the errors and waits of every provider.

The HTTP status decides first, then the error's ``code`` and ``type``; the text of a success is never
searched. Five meanings come out of it, as :class:`~parallel_processor.models.Verdict`: answered, retry,
rate limited, failed (this request only), fatal (the whole run: a bad key, no money).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parallel_processor.models import Attempt, Reply, Verdict
from parallel_processor.providers import used_tokens
from parallel_processor.waits import duration_s, timestamp, wait_s

_FATAL_CODES = frozenset(
    {
        "invalid_api_key",
        "authentication_error",
        "api_key_invalid",
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_error",
        "enforced_spend_limit_reached",
        "contract_spend_limit_reached",
    }
)
_FATAL_STATUSES = frozenset({401, 402})
_RETRY_STATUSES = frozenset({408, 409, 425, 498})
_RATE_LIMIT_STATUSES = frozenset({429, 529})
_RETRY_CODES_IN_200 = frozenset({"server_error", "rate_limit_exceeded"})  # Responses API

_MAX_MESSAGE = 500
_TOO_LARGE = re.compile(r"^request too large", re.IGNORECASE)
_LIMIT_AND_REQUESTED = re.compile(r"\bLimit:? (\d+)\b.*\bRequested:? (\d+)\b", re.IGNORECASE)
_SPENT = re.compile(r"reached your specified api usage limits", re.IGNORECASE)
_HINT = re.compile(
    r"(?:try again in|retry in|retry after) ((?:\d+(?:\.\d+)?(?:ms|s|m|h|d)\s?)+|\d+(?= seconds?))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error body's contents, whatever its shape. Codes are lower case; missing ones are empty."""

    code: str = ""
    type: str = ""
    detail_codes: frozenset[str] = frozenset()
    message: str = ""

    @property
    def codes(self) -> frozenset[str]:
        """Every code and type that it names."""
        return self.detail_codes | {self.code, self.type}


def judge(reply: Reply) -> Attempt:
    """What ``reply`` means for its request and for the run."""
    if 200 <= reply.status < 300:
        return _judge_success(reply)
    info = read_error(reply)
    wait = retry_after_s(reply)
    verdict = _verdict(reply, info, wait)
    label = info.code if info.code not in ("", str(reply.status)) else info.type
    kind = f"HTTP {reply.status} {label}".strip()
    message = info.message
    if 300 <= reply.status < 400:
        message = f"redirects are not followed; the server points to {_location(reply)}"
    return _attempt(verdict, reply, kind, message, wait)


def _attempt(
    verdict: Verdict, reply: Reply, kind: str, message: str, wait: float | None = None
) -> Attempt:
    request_id = reply.headers.get("x-request-id") or reply.headers.get("request-id")
    error = f"{kind}: {message}" if message else kind
    if request_id:
        error += f" (request id {request_id[:100]})"
    return Attempt(verdict=verdict, reply=reply, kind=kind, error=error, retry_after_s=wait)


def _judge_success(reply: Reply) -> Attempt:
    if reply.headers.get("content-type", "").lower().startswith("text/event-stream"):
        return _attempt(
            Verdict.FAILED, reply, "unexpected stream", "the server sent an event stream"
        )
    if not reply.is_json:
        start = _text(reply)[:80]
        return _attempt(Verdict.RETRY, reply, "not JSON", f"the answer is not JSON: {start!r}")
    data = reply.data
    if not isinstance(data, Mapping):
        return Attempt(verdict=Verdict.ANSWERED, reply=reply)
    if data.get("error") or (data.get("object") == "response" and data.get("status") == "failed"):
        return _judge_error_in_200(reply)
    return Attempt(verdict=Verdict.ANSWERED, reply=reply, used_tokens=used_tokens(data))


def _judge_error_in_200(reply: Reply) -> Attempt:
    """OpenRouter's ``{"error": …}`` and the Responses API's ``status: "failed"``, both with HTTP 200."""
    info, wait = read_error(reply), retry_after_s(reply)
    kind = f"error in HTTP 200 {info.code or info.type}".strip()
    if info.codes & _RETRY_CODES_IN_200:
        verdict = Verdict.RETRY
    elif info.code.isdigit() and 400 <= int(info.code) < 600:
        verdict = _verdict_of_status(int(info.code), info, wait)
    elif info.codes & _FATAL_CODES:
        verdict = Verdict.FATAL
    else:
        verdict = Verdict.FAILED
    return _attempt(verdict, reply, kind, info.message, wait)


def _verdict(reply: Reply, info: ErrorInfo, wait: float | None) -> Verdict:
    verdict = _verdict_of_status(reply.status, info, wait)
    should_retry = reply.headers.get("x-should-retry", "").lower()
    if verdict is Verdict.FAILED and should_retry == "true":
        return Verdict.RETRY
    if verdict is Verdict.RETRY and should_retry == "false":
        return Verdict.FAILED
    return verdict


def _verdict_of_status(status: int, info: ErrorInfo, wait: float | None) -> Verdict:
    if status in _FATAL_STATUSES or info.codes & _FATAL_CODES:
        return Verdict.FATAL
    if status == 400 and _SPENT.search(info.message):  # Anthropic: a spend limit that the user set
        return Verdict.FATAL
    if status in _RATE_LIMIT_STATUSES or (status == 503 and wait is not None):
        return Verdict.FAILED if _is_too_large(info.message) else Verdict.RATE_LIMITED
    if status in _RETRY_STATUSES or status >= 500:
        return Verdict.RETRY
    return Verdict.FAILED


def _is_too_large(message: str) -> bool:
    """True for a refusal that no waiting helps: the request alone exceeds the whole limit."""
    if _TOO_LARGE.search(message):
        return True
    numbers = _LIMIT_AND_REQUESTED.search(message)
    return bool(numbers) and int(numbers[2]) > int(numbers[1]) > 0  # type: ignore[index]


def read_error(reply: Reply) -> ErrorInfo:
    """The error in ``reply``; for a body of no known shape the first 500 characters of its text."""
    body = reply.data
    if isinstance(body, list) and len(body) == 1:  # Gemini's OpenAI-compatible endpoint
        body = body[0]
    if not isinstance(body, Mapping):
        return ErrorInfo(message=_clip(_text(reply)))
    error = body.get("error")
    if isinstance(error, str):
        return ErrorInfo(message=_clip(error), code=_label(body.get("code")))
    if isinstance(error, Mapping):
        return _read_error_object(error)
    if body.get("object") == "error" or "message" in body:
        return _read_error_object(body)
    if "detail" in body:
        return ErrorInfo(message=_clip(_detail(body["detail"])))
    return ErrorInfo(message=_clip(_text(reply)))


def _read_error_object(error: Mapping[str, Any]) -> ErrorInfo:
    details = error.get("details")
    found: set[str] = set()
    if isinstance(details, Mapping):
        found.add(_label(details.get("error_code")))
    elif isinstance(details, list):
        found = {_label(d.get("reason")) for d in details if isinstance(d, Mapping)}
    message = error.get("message")
    return ErrorInfo(
        code=_label(error.get("code")),
        type=_label(error.get("type") or error.get("status")),
        detail_codes=frozenset(found - {""}),
        message=_clip(message if isinstance(message, str) else ""),
    )


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return str(value).lower()[:100]


def _detail(detail: Any) -> str:
    if isinstance(detail, list):
        return "; ".join(str(d.get("msg", d)) if isinstance(d, Mapping) else str(d) for d in detail)
    return str(detail)


def _text(reply: Reply) -> str:
    return reply.body[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").strip()


def _clip(text: str) -> str:
    return " ".join(text[:_MAX_MESSAGE].split())


def _location(reply: Reply) -> str:
    return repr(reply.headers.get("location", "nowhere")[:200])


def retry_after_s(reply: Reply, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds that the server asks to wait: ``retry-after-ms``, ``Retry-After``, then the body's hints."""
    headers = reply.headers
    if "retry-after-ms" in headers:
        milliseconds = wait_s(headers["retry-after-ms"], 0.0)
        if milliseconds is not None:
            return milliseconds / 1000
    if "retry-after" in headers:
        sent = timestamp(headers.get("date", ""))  # the server's own clock, where it tells it
        seconds = wait_s(headers["retry-after"], sent if sent is not None else clock())
        if seconds is not None:
            return seconds
    if reply.status in _RATE_LIMIT_STATUSES:
        return _hint_s(reply)
    return None


def _hint_s(reply: Reply) -> float | None:
    """Gemini's ``RetryInfo`` or the words "try again in 1.2s" in the message."""
    body = reply.data[0] if isinstance(reply.data, list) and reply.data else reply.data
    error = body.get("error") if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, Mapping) else None
        if isinstance(delay, str) and duration_s(delay) is not None:
            return duration_s(delay)
    match = _HINT.search(read_error(reply).message)
    if match is None:
        return None
    return duration_s(match[1]) if not match[1].isdigit() else float(match[1])
