"""Classifies a response: one tolerant reader for the errors and waits of every provider.

The HTTP status decides first, then the error's ``code`` and ``type``. The text of a success is
never searched. ``failed`` is about one request. ``fatal`` is about the whole run: a wrong key, or
no money.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Rejection, Response
from parallel_processor.providers.answers import POLLED, UNKNOWN, Expected, Fault, fault_of
from parallel_processor.providers.bodies import fault_of_body, whole_answer
from parallel_processor.providers.errors import ErrorInfo, body_text, read_error
from parallel_processor.providers.usage import read_usage
from parallel_processor.providers.waits import RATE_LIMIT_STATUSES, retry_after_s

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
_WITH_WAIT_STATUSES = (402, 503)  # rate limited if the server says how long to wait

# The rate of requests rose too fast: OpenAI's word and Anthropic's.
_RAMP_CODES = {"slow_down", "ramp_limit_exceeded"}
_OVERLOADED = re.compile(r"temporarily unable to process|high demand", re.IGNORECASE)  # Azure's 429
_OF_TOKENS = re.compile(r"\btokens per min|\btoken rate limit|\bTPM\b", re.IGNORECASE)
_OF_REQUESTS = re.compile(
    r"\brequests per min|\b(?:request|call) rate limit|\bRPM\b", re.IGNORECASE
)

_TOO_LARGE = re.compile(r"^request too large", re.IGNORECASE)
_LIMIT_AND_REQUESTED = re.compile(r"\bLimit:? (\d+)\b.*\bRequested:? (\d+)\b", re.IGNORECASE)
_SPENT = re.compile(r"reached your specified api usage limits", re.IGNORECASE)
_DAY_USED_UP = re.compile(r"\bfree-models-per-day\b", re.IGNORECASE)  # OpenRouter
_NO_QUOTA = re.compile(r"\blimit: 0\b", re.IGNORECASE)  # Gemini: the model isn't on the plan


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
        attempt = _of_failure(response)
    elif not response.is_json and (whole := whole_answer(response)) is not None:
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
    return Attempt(
        status=status,
        response=response,
        kind=kind,
        error=error,
        retry_after_s=wait,
        stop_cause=_stop_cause(response) if status is AttemptStatus.FATAL else StopCause.NOTHING,
    )


def _stop_cause(response: Response) -> StopCause:
    """Why a fatal answer stops the run: its key, or its quota."""
    is_key = response.status == 401 or read_error(response).codes & _KEY_CODES
    return StopCause.KEY if is_key else StopCause.QUOTA


def _fault_of_success(response: Response, expected: Expected) -> Fault | None:
    """Why a success is no answer; ``None`` if it is one."""
    is_json = response.is_json
    fault = fault_of(response.data, expected) if is_json else fault_of_body(response, expected)
    if response.status == 202 and (fault is None or fault.error is None):
        return Fault("not answered yet", POLLED, is_final=True)
    return fault


def _of_fault(fault: Fault, response: Response) -> Attempt:
    """A success that is no answer. What says that it is an error means what its own status would."""
    if fault.error is None:
        status = AttemptStatus.FAILED if fault.is_final else AttemptStatus.RETRY
        start = f": {body_text(response)[:200]}" if fault.kind == "no answer" else ""
        attempt = _attempt(status, response, fault.kind, f"{fault.message}{start}")
        cause = StopCause.SETUP if fault.is_setup else StopCause.NOTHING
        used, _ = read_usage(response.data)  # half an answer has been charged, too
        return replace(attempt, stop_cause=cause, used_tokens=used)
    error = {name: value for name, value in fault.error.items() if name != "http_status"}
    inner = fault.error["http_status"] or 400
    meant = replace(response, status=inner, data={"error": error}, is_json=True)
    attempt = _of_failure(meant)
    what = f"error in HTTP {response.status}" + f" {inner}" * (str(inner) == str(error["code"]))
    kind, text = (text.replace(f"HTTP {inner}", what, 1) for text in (attempt.kind, attempt.error))
    return replace(attempt, response=response, kind=kind, error=text)


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
    if http_status in RATE_LIMIT_STATUSES or asks_to_wait:
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


def _never_fits(response: Response, message: str) -> bool:
    """True if waiting can't help: the request alone exceeds the whole limit."""
    if _TOO_LARGE.search(message) or _NO_QUOTA.search(message):
        return True
    if response.headers.get("x-ratelimit-limit-req-minute") == "0":  # Mistral: not on the plan
        return True
    numbers = _LIMIT_AND_REQUESTED.search(message)
    return numbers is not None and int(numbers[2]) > int(numbers[1]) > 0
