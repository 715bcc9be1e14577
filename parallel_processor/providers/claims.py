"""Finds out whether the JSON of a success says that it is an error, under whatever name.

A strong claim holds even if there is an answer beside it. A weak one is made by names that answers
have, too (``detail``, ``code`` with ``message``): it holds only where there is no result.

A claim is the error in OpenAI's form: ``code``, ``message``, and what else the server says. Its code is
an HTTP status where one can be told, so that the error is judged as a response with that status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_CODES = ("error_code", "errorCode", "err_code", "errcode", "errorcode", "errno")
_MESSAGES = ("error_msg", "error_message", "errorMessage", "err_msg", "errmsg", "error_description")
_STRONG = {"error", "base_resp", "success", "ok", "code", "statusCode", *_CODES, *_MESSAGES}
_STATUSES = ("statusCode", "status_code", "http_code", "httpStatus", "status")
_TEXTS = ("message", "msg", "status_msg", *_MESSAGES, "detail", "errors", "title")
_FINE = {"", "0", "200", "ok", "success", "succeeded", "successful", "none", "null"}
_BAD = {"error", "failed", "failure", "fail", "cancelled", "canceled", "timeout"}
# Members that aren't a result, whatever they hold.
_NEUTRAL = {
    *("object", "type", "param", "params", "details", "path", "instance", "model", "version"),
    *("id", "request_id", "requestId", "requestid", "req_id", "trace_id", "traceId", "log_id"),
    *("timestamp", "created", "created_at", "started_at", "documentation_url", "links", "urls"),
    *("input", "webhook", "logs", "metrics", "state", "task_status", "code", "error", "success"),
    *("ok", *_STATUSES, *_TEXTS, *_CODES),
}

# Codes that are no HTTP statuses: MiniMax's base_resp, and Baidu's error_code.
_MINIMAX = {1000: 500, 1001: 504, 1002: 429, 1004: 401, 1008: 402, 1013: 500, 1024: 500, 1033: 500}
_MINIMAX |= {1039: 429, 1041: 429, 2049: 401, 2056: 429}
_BAIDU = {2: 503, 4: 429, 13: 401, 14: 401, 18: 429, 110: 401, 111: 401, 336000: 500, 336100: 503}
_BAIDU |= {336501: 429, 336502: 429, 336503: 429}
_STATUS_OF_WORDS = (
    (429, r"rate.?limit|too.?many.?requests|throttl|resource.?exhausted|slow.?down|\bqps\b"),
    (503, r"overload|unavailable|capacity.?exceeded|\bbusy\b|no healthy upstream"),
    (504, r"(?<!store_)time(?:d )?.?out|deadline"),
    (500, r"server.?error|\bapi_error|internal|upstream|network.?error|connection|try again"),
)
_WORDS = [(status, re.compile(words, re.IGNORECASE)) for status, words in _STATUS_OF_WORDS]


def strong_claim(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error that ``data`` names, whatever else it has; ``None`` if it names none."""
    if data.keys().isdisjoint(_STRONG) and "error" not in (data.get("object"), data.get("type")):
        return None
    return next(_strong(data), None)


def _strong(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if is_said(error := data.get("error")):
        yield _error(error, data)
    base = data.get("base_resp")
    if isinstance(base, dict) and _is_bad_code(base.get("status_code")):
        yield _coded(base["status_code"], base.get("status_msg"), _MINIMAX)
    codes = [data[name] for name in _CODES if name in data]
    for code in codes:
        if _is_bad_code(code):
            yield _coded(code, _text(data), _BAIDU)
    for name in _MESSAGES if not codes else ():
        if isinstance(text := data.get(name), str) and text.lower() not in _FINE:
            yield _coded(_code_of(data), text)
    code, text = _code_of(data), _text(data)
    if "error" in (data.get("object"), data.get("type")):
        yield _coded(code, text)
    if text and _http_status(data.get("code", data.get("statusCode"))) is not None:
        yield _coded(code, text)
    if data.get("success") is False or data.get("ok") is False:
        yield _coded(code, text)


def choice_claim(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error within a choice: some gateways put it there."""
    choices = data.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and is_said(choice.get("error")):
            return _error(choice["error"], {})
    return None


def weak_claim(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error that ``data`` means by names which an answer may have, too, and for lack of a result."""
    if not without_result(data):
        return None
    code, text = _code_of(data), _text(data)
    if is_said(errors := data.get("errors")):
        return _error(errors, data)
    states = (data.get("status"), data.get("state"), data.get("task_status"))
    is_bad_state = any(isinstance(state, str) and state.lower() in _BAD for state in states)
    is_bad = is_bad_state or is_said(data.get("detail"))
    has_message = isinstance(data.get("message", data.get("msg")), str)
    is_bad = is_bad or (has_message and _is_bad_code(code))
    return _coded(code, text) if is_bad or (text and _http_status(code)) else None


def without_result(data: Mapping[str, Any]) -> bool:
    """True if all that ``data`` says is said by members that are no result."""
    return not any(value for name, value in data.items() if name not in _NEUTRAL)


def is_said(error: Any) -> bool:
    """True for an error that says something. Some answers have an empty one; a fraction measures one."""
    if isinstance(error, dict):
        return any(is_said(value) for value in error.values())
    if isinstance(error, list):
        return any(is_said(value) for value in error)
    is_number = isinstance(error, float)
    return bool(error) and not is_number and str(error).strip().lower() not in _FINE


def _error(error: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error ``error`` of ``data`` in OpenAI's form."""
    if isinstance(error, list):
        error = next(each for each in error if is_said(each))
    if isinstance(error, dict):
        nested = error.get("error")
        error = nested if isinstance(nested, dict) and is_said(nested) else error
        coded = _coded(_code_of(error, data), _text(error) or _text(data), of=error)
        return {**error, **coded}
    code = _code_of(data)
    if isinstance(error, str):
        return _coded(code, error)
    return _coded(code if code is not None or error is True else error, _text(data))


def _coded(
    code: Any,
    text: Any,
    statuses: Mapping[int, int] | None = None,
    of: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An error in OpenAI's form, with the HTTP status that its code is or stands for."""
    text = text if isinstance(text, str) else ""
    names = [str(code or ""), *(str((of or {}).get(name) or "") for name in ("type", "status"))]
    number = int(code) if re.fullmatch("[0-9]{1,9}", str(code)) else -1
    status = (statuses or {}).get(number) or _http_status(code)
    if status is None:
        status = status_of(" ".join(names)) if any(names) else status_of(text)
    return {"code": code, "message": text, "http_status": status}


def status_of(words: str) -> int | None:
    """The status that a code, a type or, where there is neither, a message stands for."""
    matches = (status for status, pattern in _WORDS if pattern.search(words[:500]))
    return next(matches, None)


def _http_status(code: Any) -> int | None:
    return int(code) if re.fullmatch("[45][0-9][0-9]", str(code)) else None


def _code_of(*holders: Mapping[str, Any]) -> Any:
    """The first code; one that is an HTTP status comes before the others."""
    found = [holder.get(name) for holder in holders for name in ("code", *_CODES)]
    codes = [code for code in found if _is_bad_code(code)]
    statuses = [holder.get(name) for holder in holders for name in _STATUSES]
    return next((code for code in codes + statuses if _http_status(code)), (codes or [None])[0])


def _is_bad_code(code: Any) -> bool:
    if isinstance(code, bool) or not isinstance(code, (str, int)):
        return False
    return str(code).strip().lower() not in _FINE


def _text(data: Mapping[str, Any]) -> str:
    """The first text that says what happened."""
    for name in _TEXTS:
        value = data.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("message") or value.get("msg")
        if isinstance(value, str) and value:
            return value[:500]
    return ""
