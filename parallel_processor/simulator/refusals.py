"""The answers that are no: wrong key, no money, too fast, and what OpenAI says in each case."""

from __future__ import annotations

import json
import math

from parallel_processor.simulator.limits import Refusal
from parallel_processor.simulator.wire import HttpReply

_UNITS = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}


def go_duration(seconds: float) -> str:
    """Write a time the way Go does, to the millisecond above: 120ms, 7.66s, 2m59.56s, 1h0m0s."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{text}"
    return f"{minutes}m{text}" if minutes else text


def error_reply(
    status: int, message: str, kind: str, code: str | None, headers: str = ""
) -> HttpReply:
    """Write an error the way OpenAI does."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return HttpReply(status=status, body=json.dumps({"error": error}).encode(), headers=headers)


def wrong_key(key: str | None, headers: str) -> HttpReply:
    """Refuse a key, or its absence; like the real API, repeat the key's two ends."""
    if not key:
        message = "You didn't provide an API key in an Authorization header using Bearer auth."
        return error_reply(401, message, "invalid_request_error", None, headers)
    shown = f"{key[:8]}{'*' * max(0, len(key) - 12)}{key[-4:]}"
    message = (
        f"Incorrect API key provided: {shown}. You can find your API key at "
        "https://platform.openai.com/account/api-keys."
    )
    return error_reply(401, message, "invalid_request_error", "invalid_api_key", headers)


def out_of_quota(headers: str) -> HttpReply:
    """Refuse for want of money; no time to wait is given, for none would help."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors."
    )
    return error_reply(429, message, "insufficient_quota", "insufficient_quota", headers)


def refused(refusal: Refusal, model: str, headers: str) -> HttpReply:
    """Refuse what the limits refuse, and say when to try again, if ever."""
    subject = f"{model} in organization org-sim on {_UNITS[refusal.name]}"
    if refusal.wait_s is None:
        message = (
            f"Request too large for {subject}: Limit {int(refusal.limit)}, Requested "
            f"{refusal.requested}. The input or output tokens must be reduced in order to run "
            "successfully."
        )
        return error_reply(429, message, refusal.name, "rate_limit_exceeded", headers)
    message = (
        f"Rate limit reached for {subject}: Limit {int(refusal.limit)}, "
        f"Used {math.ceil(refusal.used)}, Requested {refusal.requested}. "
        f"Please try again in {go_duration(refusal.wait_s)}."
    )
    headers += (
        f"Retry-After: {math.ceil(refusal.wait_s)}\r\n"
        f"retry-after-ms: {math.ceil(refusal.wait_s * 1000)}\r\n"
    )
    return error_reply(429, message, refusal.name, "rate_limit_exceeded", headers)
