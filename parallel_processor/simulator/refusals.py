"""The answers that are no: wrong key, no money, too fast, and what OpenAI says in each case."""

from __future__ import annotations

import json
import math

from parallel_processor.simulator.headers import go_duration
from parallel_processor.simulator.quotas import Refusal
from parallel_processor.simulator.wire import HttpReply

DEFAULT_REFUSAL_CODE = "rate_limit_exceeded"

_UNITS = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "input-tokens": "input tokens per min (ITPM)",
    "output-tokens": "output tokens per min (OTPM)",
    "requests-per-day": "requests per day (RPD)",
}


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


def refused(
    refusal: Refusal, model: str, headers: str, *, code: str = DEFAULT_REFUSAL_CODE, hint: bool
) -> HttpReply:
    """Refuse what the limits refuse; with a `hint`, say in the message when to try again."""
    message = _why(refusal, model, hint=hint)
    kind = "requests" if refusal.name.startswith("requests") else "tokens"
    if refusal.wait_s is None:
        return error_reply(429, message, kind, DEFAULT_REFUSAL_CODE, headers)
    if code != DEFAULT_REFUSAL_CODE:
        kind = "rate_limit_error"
    return error_reply(429, message, kind, code, headers)


def refused_by_anthropic(
    refusal: Refusal, model: str, headers: str, *, request_id: str, hint: bool
) -> HttpReply:
    """Refuse what the limits refuse, the way Anthropic does."""
    error = {"type": "rate_limit_error", "message": _why(refusal, model, hint=hint)}
    content = {"type": "error", "error": error, "request_id": request_id}
    return HttpReply(status=429, body=json.dumps(content).encode(), headers=headers)


def refused_by_litellm(refusal: Refusal, headers: str) -> HttpReply:
    """Refuse what the limits refuse, the way LiteLLM's proxy does."""
    message = (
        f"Rate limit exceeded for api_key: {'0' * 64}. Limit type: {refusal.name}. "
        f"Current limit: {int(refusal.limit)}, Remaining: 0."
    )
    headers += f"rate_limit_type: {refusal.name}\r\n"
    return error_reply(429, message, "throttling_error", "429", headers)


def _why(refusal: Refusal, model: str, *, hint: bool) -> str:
    subject = f"{model} in organization org-sim on {_UNITS[refusal.name]}"
    if refusal.wait_s is None:
        return (
            f"Request too large for {subject}: Limit {int(refusal.limit)}, Requested "
            f"{refusal.requested}. The input or output tokens must be reduced in order to run "
            "successfully."
        )
    message = (
        f"Rate limit reached for {subject}: Limit {int(refusal.limit)}, "
        f"Used {math.ceil(refusal.used)}, Requested {refusal.requested}."
    )
    return f"{message} Please try again in {go_duration(refusal.wait_s)}." if hint else message
