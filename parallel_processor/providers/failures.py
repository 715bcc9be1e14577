"""Classifies a response that is no success, whichever provider, gateway or proxy it is from.

The HTTP status decides first, then the codes of the error, then its own words (``money.py``,
``waits.py``, ``rejections.py``). Where a gateway wrapped the error of the server behind it, that error's
status counts: a 424 or a 5xx that holds a 429 is a rate limit.
"""

from __future__ import annotations

import re
from dataclasses import replace

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Response
from parallel_processor.providers.errors import ErrorInfo, read_error, unquoted
from parallel_processor.providers.money import NO_ACCESS, NO_QUOTA_LEFT, Verdict, spent
from parallel_processor.providers.rejections import rejection_of
from parallel_processor.providers.texts import Pattern, phrases, plain_line
from parallel_processor.providers.waits import (
    RATE_LIMIT_STATUSES,
    WAIT_STATUSES,
    asked_wait_s,
    loading_s,
)

_RETRY_STATUSES = (408, 409, 425, 498)
_CARRIED_STATUSES = (402, 429, 503, 529)  # a wrapped error of these means what its status says
_OPAQUE_STATUSES = (401, 402, 407, 429)  # these are the gateway's own, whatever they quote
_REFUSED_STATUSES = (401, 403)
_MAY_LOAD_STATUSES = (425, 500, 502, 503, 504)

_RATE_CODES = {
    *("rate_limit_exceeded", "rate_limit_error", "rate_limit_reached_error", "rate_limited"),
    *("too_many_requests", "toomanyrequests", "throttlingexception", "throttling"),
    *("throttling.ratequota", "throttling.allocationquota", "throttling.user"),
    *("requestlimitexceeded", "err_rate_limited"),
}
_MAY_BE_RATE_STATUSES = (400, 403, 500, 502)
_OF_THIS_MODEL_CODES = {  # LiteLLM: the key is good, but not for this request's model
    *("key_model_access_denied", "team_model_access_denied", "user_model_access_denied"),
    *("org_model_access_denied", "project_model_access_denied"),
}

# What a 424 says of the server itself: TGI's, TEI's and Bedrock's.
_SERVERS_FAULT_CODES = {"generation", "incomplete_generation", "backend", "modelerrorexception"}

_TOO_LARGE = Pattern(r"^request too large", re.IGNORECASE)
_LIMIT_AND_REQUESTED = Pattern(r"\bLimit:? (\d+)\b.*\bRequested:? (\d+)\b", re.IGNORECASE)
_NO_QUOTA = Pattern(r"\blimit: 0\b", re.IGNORECASE)  # Gemini: the model isn't on the plan

_LOADING = phrases(
    "load|initiali|start|ready|warming|waking|spinning|scaling|boot|cold|模型|启动|初始化|预热|加载",
    r"\b(?:loading|initiali[sz]ing|starting|downloading)\b(?: \w+){0,5} (?:models?|engine|weights)\b"
    r"|\bmodels?\b[^.;]{0,80}?\b(?:loading|downloading|to load|cold)\b"
    r"|\bmodels?\b[^.;]{0,80}?\bbeing (?:loaded|downloaded|initiali[sz]ed)\b"
    r"|\bnot (?:yet |fully )?(?:ready|loaded|initiali[sz]ed|started)\b"
    r"|\b(?:starting|warming|waking|spinning|scaling|booting) up\b|\bbooting\b|\bcold.?start"
    r"|\b(?:still|is|are|container|server|engine|service) (?:starting|initiali[sz]ing)\b"
    r"|模型[^。；]{0,8}(?:加载|启动)|加载中|启动中|正在(?:加载|启动|初始化)|预热中",
)
_BROKEN = Pattern(
    r"\b(?:error|fail(?:ed|ure)?|unable|cannot|could not|can't|exception|not found)\b",
    re.IGNORECASE,
)


def of_failure(response: Response) -> Attempt:
    """What ``response``, which is no success, means for its request and for the run."""
    info = read_error(response)
    http_status = _meant_status(response.status, info)
    wait_s = asked_wait_s(response, http_status, info)
    verdict = _judged(http_status, response, info, wait_s)
    labels = (info.code, info.type)
    label = next((text for text in labels if text not in ("", str(response.status))), "")
    message = info.message
    if 300 <= response.status < 400:
        location = plain_line(response.headers.get("location", "nowhere"), 200)
        message = f"redirects are not followed; the server points to {location!r}"
    elif verdict.stop_cause is StopCause.SETUP:
        message = f"the proxy wants a login: {message}" if message else "the proxy wants a login"
    if verdict.status is AttemptStatus.NOT_READY and wait_s is None:
        wait_s = loading_s(info)
    attempt = failed(verdict.status, response, f"HTTP {response.status} {label}", message, wait_s)
    attempt = replace(attempt, stop_cause=verdict.stop_cause)
    if verdict.status not in (AttemptStatus.RATE_LIMITED, AttemptStatus.RETRY):
        return attempt
    rejection = rejection_of(
        http_status,
        info,
        response.headers,
        is_rate_limit=verdict.status is AttemptStatus.RATE_LIMITED,
        has_retry_after=wait_s is not None,
    )
    return replace(attempt, rejection=rejection)


def failed(
    status: AttemptStatus, response: Response, kind: str, message: str, wait_s: float | None = None
) -> Attempt:
    """The attempt that ended with ``response``, with the id by which the provider's support finds it."""
    request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
    kind = kind.strip()
    error = f"{kind}: {message}" if message else kind
    if request_id:
        error += f" (request id {plain_line(request_id, 100)})"
    return Attempt(status=status, response=response, kind=kind, error=error, retry_after_s=wait_s)


def _meant_status(http_status: int, info: ErrorInfo) -> int:
    """The status to judge by: that of the wrapped error, where it tells more than the response's."""
    wrapped = info.wrapped_status
    if wrapped is None or http_status < 400 or http_status in _OPAQUE_STATUSES:
        return http_status
    if wrapped in _CARRIED_STATUSES or (http_status == 424 and wrapped not in _REFUSED_STATUSES):
        return wrapped
    return http_status


def _judged(http_status: int, response: Response, info: ErrorInfo, wait_s: float | None) -> Verdict:
    """What ``http_status`` means for the request, and why it stops the run if it does.

    ``x-should-retry`` overrides it, but not what stops the run or can never succeed.
    """
    if http_status in _REFUSED_STATUSES and info.codes & _OF_THIS_MODEL_CODES:
        return Verdict(AttemptStatus.FAILED)
    if verdict := spent(http_status, info, wait_s):
        return verdict
    if http_status == 401:
        return NO_ACCESS
    if http_status == 402 and wait_s is None:
        return NO_QUOTA_LEFT
    if http_status == 407:
        return Verdict(AttemptStatus.FATAL, StopCause.SETUP)
    return Verdict(_status(http_status, response, info, wait_s))


def _status(
    http_status: int, response: Response, info: ErrorInfo, wait_s: float | None
) -> AttemptStatus:
    should_retry = response.headers.get("x-should-retry", "").lower()
    never_fits = http_status == 429 and _never_fits(response, info.text)
    if never_fits or should_retry == "false":
        return AttemptStatus.FAILED
    if http_status in _MAY_LOAD_STATUSES and _is_loading(http_status, info):
        return AttemptStatus.NOT_READY
    asks_to_wait = http_status in WAIT_STATUSES and wait_s is not None
    by_code = http_status in _MAY_BE_RATE_STATUSES and info.codes & _RATE_CODES
    if http_status in RATE_LIMIT_STATUSES or asks_to_wait or by_code:
        return AttemptStatus.RATE_LIMITED
    is_servers = http_status == 424 and not info.codes.isdisjoint(_SERVERS_FAULT_CODES)
    if http_status in _RETRY_STATUSES or http_status >= 500 or should_retry == "true" or is_servers:
        return AttemptStatus.RETRY
    return AttemptStatus.FAILED


def _is_loading(http_status: int, info: ErrorInfo) -> bool:
    """True if the server will answer once its model is loaded."""
    if loading_s(info) is not None:
        return True
    text = unquoted(info.text)
    if _LOADING.search(text) is None:
        return False
    return http_status != 500 or _BROKEN.search(text) is None


def _never_fits(response: Response, message: str) -> bool:
    """True if waiting can't help: the request alone exceeds the whole limit."""
    if _TOO_LARGE.search(message) or _NO_QUOTA.search(message):
        return True
    if response.headers.get("x-ratelimit-limit-req-minute") == "0":  # Mistral: not on the plan
        return True
    numbers = _LIMIT_AND_REQUESTED.search(message)
    return numbers is not None and int(numbers[2]) > int(numbers[1]) > 0
