"""Error bodies in the shapes of the providers, and the attempt that ends with one."""

from __future__ import annotations

import json
from typing import Any

from requests.structures import CaseInsensitiveDict

from parallel_processor.models import Attempt, Response
from parallel_processor.providers.jsontext import read_answer
from parallel_processor.providers.responses import classify

GEMINI = "You exceeded your current quota, please check your plan and billing details."


def attempt_of(status: int, body: Any, headers: dict[str, str] | None = None) -> Attempt:
    """The attempt that ends with such a response; text in angle brackets is sent as it stands."""
    is_page = isinstance(body, str) and body.startswith("<")
    raw = body.encode() if is_page else b"" if body is None else json.dumps(body).encode()
    names: CaseInsensitiveDict[str] = CaseInsensitiveDict(headers or {})
    try:
        data, line = read_answer(raw)
    except ValueError:
        return classify(Response(status=status, headers=names, body=raw))
    return classify(Response(status=status, headers=names, body=line, data=data, is_json=True))


def said(message: str, code: Any = None, kind: Any = None, **more: Any) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def google(message: str, *quota_ids: str, delay: str = "") -> dict[str, Any]:
    """Google's error for quotas that are used up."""
    violations = [
        {"quotaId": quota_id, "quotaDimensions": {"model": "a"}} for quota_id in quota_ids
    ]
    details: list[Any] = [{"@type": "google.rpc.QuotaFailure", "violations": violations}]
    details += [{"@type": "google.rpc.RetryInfo", "retryDelay": delay}] if delay else []
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}
    return {"error": error}
