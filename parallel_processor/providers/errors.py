"""Reads the error in a response body, whichever provider's shape it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parallel_processor.models import Response, mappings

_MAX_MESSAGE = 500


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


def read_error(response: Response) -> ErrorInfo:
    """The error in ``response``; if it has no message, the first 500 characters of the body."""
    info = _read_error(unwrapped(response.data))
    return info if info.message else replace(info, message=_clip(body_text(response)))


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


def unwrapped(data: Any) -> Any:
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


def body_text(response: Response) -> str:
    """The start of the body as text: enough for a message of 500 characters."""
    return response.body[: 4 * _MAX_MESSAGE].decode("utf-8", "replace").strip()


def _clip(text: str) -> str:
    return " ".join(text[:_MAX_MESSAGE].split())
