"""Classifies a response: one tolerant reader for the errors and waits of every provider.

The HTTP status decides first, then the error's ``code`` and ``type``. The text of a success is
never searched. ``failed`` is about one request. ``fatal`` is about the whole run: a wrong key, or
no money.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Rejection, Response, mappings
from parallel_processor.providers.durations import duration_s, milliseconds_s, timestamp, wait_s
from parallel_processor.providers.usage import read_usage

_KEY_CODES = {
    *("invalid_api_key", "authentication_error", "permission_error", "api_key_invalid"),
    "unsupported_country_region_territory",
}
_FATAL_CODES = _KEY_CODES | {
    *("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"),
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded"),
    "organization_usage_limit_exceeded",
    *("billing_error", "enforced_spend_limit_reached", "contract_spend_limit_reached"),
}
_RETRY_STATUSES = (408, 409, 425, 498)
_RATE_LIMIT_STATUSES = (429, 529)
_WITH_WAIT_STATUSES = (402, 503)  # rate limited if the server says how long to wait
_RETRY_CODES_IN_200 = {
    *("server_error", "rate_limit_exceeded"),  # Responses API
    *("api_error", "overloaded_error", "rate_limit_error", "timeout_error"),  # Anthropic
    *("server_is_overloaded", "service_unavailable_error", "slow_down"),
}

# The rate of requests rose too fast: OpenAI's word and Anthropic's.
_RAMP_CODES = {"slow_down", "ramp_limit_exceeded"}
_OVERLOADED = re.compile(r"temporarily unable to process|high demand", re.IGNORECASE)  # Azure's 429
_OF_TOKENS = re.compile(r"\btokens per min|\btoken rate limit|\bTPM\b", re.IGNORECASE)
_OF_REQUESTS = re.compile(
    r"\brequests per min|\b(?:request|call) rate limit|\bRPM\b", re.IGNORECASE
)

_MAX_MESSAGE = 500
_TOO_LARGE = re.compile(r"^request too large", re.IGNORECASE)
_LIMIT_AND_REQUESTED = re.compile(r"\bLimit:? (\d+)\b.*\bRequested:? (\d+)\b", re.IGNORECASE)
_SPENT = re.compile(r"reached your specified api usage limits", re.IGNORECASE)
_DAY_USED_UP = re.compile(r"\bfree-models-per-day\b", re.IGNORECASE)  # OpenRouter
_NO_QUOTA = re.compile(r"\blimit: 0\b", re.IGNORECASE)  # Gemini: the model isn't on the plan
_HINT = re.compile(
    r"(?:try again in|retry in|retry after) "
    r"((?:\d+(?:\.\d+)?(?:ms|[smhd]| (?:second|minute|hour|day)s?) ?)+)",
    re.IGNORECASE,
)
_UNIT_WORD = re.compile(r" ([smhd])(?:econd|inute|our|ay)s?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """The contents of an error body of any shape. What it doesn't have is empty."""

    code: str = ""  # in lower case, as the others
    type: str = ""
    detail_codes: frozenset[str] = frozenset()  # further codes that it names
    message: str = ""  # at most 500 characters

    @property
    def codes(self) -> frozenset[str]:
        """Every code and type that the body names."""
        return self.detail_codes | {self.code, self.type}


def classify(
    response: Response,
    readings: Sequence[Any] = (),
    sent_at_s: float = 0.0,
    latency_s: float | None = None,
) -> Attempt:
    """What ``response`` means for its request and for the run.

    The other arguments become fields of the attempt: a good one is not copied to add them.
    """
    if not 200 <= response.status < 300:
        attempt = _of_failure(response)
    elif error := _error_in_200(response):
        attempt = error
    else:
        used, output = read_usage(_unwrapped(response.data))
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


def _of_failure(response: Response) -> Attempt:
    http_status = response.status
    info, wait = read_error(response), retry_after_s(response)
    status = _status(http_status, response, info, wait)
    label = info.code if info.code not in ("", str(http_status)) else info.type
    kind, message = f"HTTP {http_status} {label}".strip(), info.message
    if 300 <= http_status < 400:
        location = response.headers.get("location", "nowhere")[:200]
        message = f"redirects are not followed; the server points to {location!r}"
    attempt = _attempt(status, response, kind, message, wait)
    if status in (AttemptStatus.RATE_LIMITED, AttemptStatus.RETRY):
        attempt = replace(attempt, rejection=_rejection(http_status, status, info, wait))
    return attempt


def _rejection(
    http_status: int, status: AttemptStatus, info: ErrorInfo, wait: float | None
) -> Rejection | None:
    """Why the server rejected the request; ``None`` if it was neither for limits nor for load."""
    has_retry_after = wait is not None
    if info.codes & _RAMP_CODES:
        return Rejection(ramp_too_fast=True, has_retry_after=has_retry_after)
    if http_status in (503, 529) or (http_status == 429 and _OVERLOADED.search(info.message)):
        return Rejection(overload=True, has_retry_after=has_retry_after)
    if status is not AttemptStatus.RATE_LIMITED:
        return None
    for kind, words in (("tokens", _OF_TOKENS), ("requests", _OF_REQUESTS)):
        if info.type == kind or words.search(info.message):
            return Rejection(kind=kind, has_retry_after=has_retry_after)
    return Rejection(has_retry_after=has_retry_after)


def _attempt(
    status: AttemptStatus, response: Response, kind: str, message: str, wait: float | None = None
) -> Attempt:
    request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
    error = f"{kind}: {message}" if message else kind
    if request_id:
        error += f" (request id {request_id[:100]})"
    return Attempt(status=status, response=response, kind=kind, error=error, retry_after_s=wait)


def _error_in_200(response: Response) -> Attempt | None:
    """What is wrong with a success; ``None`` if it is an answer.

    OpenRouter's ``{"error": …}`` and the Responses API's ``status: "failed"`` come with HTTP 200.
    """
    if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        message = "the server sent an event stream"
        return _attempt(AttemptStatus.FAILED, response, "unexpected stream", message)
    if not response.is_json:
        message = f"the answer is not JSON: {_text(response)[:80]!r}"
        return _attempt(AttemptStatus.RETRY, response, "not JSON", message)
    data = _unwrapped(response.data)
    if not isinstance(data, Mapping) or not (
        data.get("error") or (data.get("object") == "response" and data.get("status") == "failed")
    ):
        return None
    info, wait = read_error(response), retry_after_s(response)
    kind = f"error in HTTP 200 {info.code or info.type}".strip()
    if re.fullmatch("[45][0-9][0-9]", info.code):
        status = _status(int(info.code), response, info, wait)
    elif info.codes & _FATAL_CODES:
        status = AttemptStatus.FATAL
    else:
        retries = info.codes & _RETRY_CODES_IN_200
        status = AttemptStatus.RETRY if retries else AttemptStatus.FAILED
    return _attempt(status, response, kind, info.message, wait)


def _status(
    http_status: int, response: Response, info: ErrorInfo, wait: float | None
) -> AttemptStatus:
    """What ``http_status`` means; a success may have one in its body.

    ``x-should-retry`` overrides it, but not what stops the run or can never succeed.
    """
    if _stops_the_run(http_status, info, wait):
        return AttemptStatus.FATAL
    should_retry = response.headers.get("x-should-retry", "").lower()
    never_fits = http_status == 429 and _never_fits(response, info.message)
    if never_fits or should_retry == "false":
        return AttemptStatus.FAILED
    asks_to_wait = http_status in _WITH_WAIT_STATUSES and wait is not None
    if http_status in _RATE_LIMIT_STATUSES or asks_to_wait:
        return AttemptStatus.RATE_LIMITED
    if http_status in _RETRY_STATUSES or http_status >= 500 or should_retry == "true":
        return AttemptStatus.RETRY
    return AttemptStatus.FAILED


def _stops_the_run(http_status: int, info: ErrorInfo, wait: float | None) -> bool:
    """True for a wrong key, for no money, and for a daily quota that is used up."""
    if http_status == 401 or (http_status == 402 and wait is None) or info.codes & _FATAL_CODES:
        return True
    if http_status == 400:  # Anthropic: a spending limit that the user has set
        return bool(_SPENT.search(info.message))
    per_day = any("perday" in code for code in info.detail_codes)  # Gemini's quotaId
    return http_status == 429 and (per_day or bool(_DAY_USED_UP.search(info.message)))


def stop_cause(response: Response) -> StopCause:
    """Why a fatal answer stops the run: its key, or its quota."""
    is_key = response.status == 401 or read_error(response).codes & _KEY_CODES
    return StopCause.KEY if is_key else StopCause.QUOTA


def _never_fits(response: Response, message: str) -> bool:
    """True if waiting can't help: the request alone exceeds the whole limit."""
    if _TOO_LARGE.search(message) or _NO_QUOTA.search(message):
        return True
    if response.headers.get("x-ratelimit-limit-req-minute") == "0":  # Mistral: not on the plan
        return True
    numbers = _LIMIT_AND_REQUESTED.search(message)
    return numbers is not None and int(numbers[2]) > int(numbers[1]) > 0


def read_error(response: Response) -> ErrorInfo:
    """The error in ``response``; if it has no message, the first 500 characters of the body."""
    info = _read_error(_unwrapped(response.data))
    return info if info.message else replace(info, message=_clip(_text(response)))


def _read_error(body: Any) -> ErrorInfo:
    if not isinstance(body, Mapping):
        return ErrorInfo()
    error = body.get("error")
    if isinstance(error, str):
        return ErrorInfo(message=_clip(error), code=_label(body.get("code")))
    if not isinstance(error, Mapping):
        if body.get("object") != "error" and "message" not in body:
            return ErrorInfo(message=_clip(_detail(body.get("detail"))))
        error = body
    message = error.get("message")
    return ErrorInfo(
        code=_label(error.get("code")),
        type=_label(error.get("type") or error.get("status")),
        detail_codes=frozenset(_detail_codes(error.get("details"))) - {""},
        message=_clip(message if isinstance(message, str) else ""),
    )


def _unwrapped(data: Any) -> Any:
    """The only element of a list: Gemini's OpenAI-compatible endpoint puts an error into one."""
    return data[0] if isinstance(data, list) and len(data) == 1 else data


def _detail_codes(details: Any) -> Iterator[str]:
    """Anthropic's sub-code; Google's reasons and the names of the quotas that are exceeded."""
    if isinstance(details, Mapping):
        yield _label(details.get("error_code"))
    for detail in mappings(details):
        yield _label(detail.get("reason"))
        for violation in mappings(detail.get("violations")):
            yield _label(violation.get("quotaId"))


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    return " ".join(str(value)[:100].lower().split())


def _detail(detail: Any) -> str:
    """The text of FastAPI's ``detail``: a string, or a list of objects with a ``msg`` each."""
    if isinstance(detail, str):
        return detail
    texts = (d.get("msg") for d in mappings(detail))
    return "; ".join(text for text in texts if isinstance(text, str))


def _text(response: Response) -> str:
    return response.body[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").strip()


def _clip(text: str) -> str:
    return " ".join(text[:_MAX_MESSAGE].split())


def retry_after_s(response: Response, clock: Callable[[], float] = time.time) -> float | None:
    """Seconds that the server asks to wait; ``None`` if it doesn't ask.

    Reads ``retry-after-ms``, then ``Retry-After``, then the hints in the body.
    """
    headers = response.headers
    seconds = milliseconds_s(headers.get("retry-after-ms", ""))
    if seconds is None and "retry-after" in headers:
        sent = timestamp(headers.get("date", ""))  # by the server's own clock, if it sends it
        seconds = wait_s(headers["retry-after"], sent if sent is not None else clock())
    if seconds is None and response.status in _RATE_LIMIT_STATUSES:
        seconds = _hint_s(response)
    return seconds


def _hint_s(response: Response) -> float | None:
    """Gemini's ``RetryInfo`` or the words "try again in 1.2s" in the message."""
    body = _unwrapped(response.data)
    error = body.get("error") if isinstance(body, Mapping) else None
    details = error.get("details") if isinstance(error, Mapping) else None
    for detail in mappings(details):
        delay = detail.get("retryDelay")
        seconds = duration_s(delay) if isinstance(delay, str) else None
        if seconds is not None:
            return seconds
    match = _HINT.search(read_error(response).message)
    return duration_s(_UNIT_WORD.sub(r"\1", match[1].lower())) if match else None
