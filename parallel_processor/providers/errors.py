"""Reads the error in a response body, whichever provider's shape it has.

A gateway often wraps the error of the server behind it: as an object (``metadata.raw``, ``innererror``),
as JSON or as Python's ``repr`` within its own message, or as text that names a status. So an error is read
as a list of levels, the gateway's first. All of their codes count, and all of their messages are the
reason. The status that a wrapped error names is kept apart from the response's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from parallel_processor.contents import mappings
from parallel_processor.models import Response
from parallel_processor.providers.texts import Pattern, is_page, page_text, plain_line

_MAX_MESSAGE = 500
_MAX_TEXT = 2000  # of a message whose words are judged
_MAX_BODY_BYTES = 4 * 20_000  # of a body that is no JSON
_MAX_LEVELS = 6

_MESSAGES = (
    *("message", "msg", "error_msg", "error_message", "errorMessage", "status_msg"),
    *("status_message", "error_description", "detail", "Message"),
)
_CODES = ("code", "error_code", "errorCode", "status_code", "statusCode", "http_status", "Code")
_TYPES = ("type", "status", "error_type", "errorType", "__type", "rate_limit_type")
_ERRORS = ("error", "errors", "base_resp", "baseResp")
_INNER = ("innererror", "inner_error", "raw", "metadata", "upstream_error", "cause")

_SIMPLIFIED = str.maketrans(
    "餘額費資點帳戶號請後鐘時載啟動併發過頻負試購儲達間",
    "余额费资点账户号请后钟时载启动并发过频负试购储达间",
)
_NOTHING = ("none", "null")  # as LiteLLM writes a code that it doesn't have

_HTTP_STATUS = Pattern("[45][0-9][0-9]")
_STATUS_IN_TEXT = Pattern(
    r"\b(?:status|status code|http(?:/[0-9.]+)?|error code|code)\b[ :=(]{1,3}([45][0-9][0-9])\b"
    r"|^\W*([45][0-9][0-9])(?=\W*\Z|\s*[:{-]|\s+(?-i:[A-Z]))",
    re.IGNORECASE,
)
# The last word before an error that is wrapped in a text. Any other JSON in a text is the user's.
_WRAPS = Pattern(
    r"(?:error|exception|failed|failure|response|body|upstream|provider|status|reason"
    r"|forbidden|requests|unavailable|gateway|[A-Z]+_[A-Z_]+|[45][0-9][0-9])['\")\]]?[\s:.,=-]*\Z",
    re.IGNORECASE,
)
_PAIR = Pattern(
    r"['\"](message|msg|code|type|status|reason|quotaId|retryDelay|error_code)['\"]\s*:\s*"
    r"(?:'((?:[^'\\]|\\.)*)'?|\"((?:[^\"\\]|\\.)*)\"?|([0-9]+))"
)


class ErrorLevel(NamedTuple):
    """One error of those that wrap each other."""

    fields: Mapping[str, Any]  # as the server wrote them
    messages: tuple[str, ...]
    is_wrapped: bool  # it is another server's


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """The contents of an error body of any shape. What it doesn't have is empty."""

    code: str = ""  # in lower case, as the others
    type: str = ""
    detail_codes: frozenset[str] = frozenset()  # further codes that it names
    labels: str = ""  # codes and types as the server wrote them
    message: str = ""  # at most 500 characters
    text: str = ""  # the same, to be judged: at most 2,000 characters; empty for an HTML page
    status: int | None = None  # the HTTP status that the innermost error names
    wrapped_status: int | None = None  # the one that a wrapped error names
    levels: Sequence[ErrorLevel] = ()  # the errors in the body, the outermost first

    @property
    def codes(self) -> frozenset[str]:
        """Every code and type that the body names."""
        return self.detail_codes | {self.code, self.type}


def read_error(response: Response) -> ErrorInfo:
    """The error in ``response``; if it has no message, the first 500 characters of the body."""
    levels = _error_levels(response)
    codes = [label for level in levels for label in _labels(level.fields, _CODES)]
    types = [label for level in levels for label in _labels(level.fields, _TYPES)]
    if amazons := response.headers.get("x-amzn-errortype"):
        types.append(_label(amazons.partition(":")[0]))
    details = [label for level in levels for label in _detail_codes(level.fields)]
    messages = [message for level in levels for message in level.messages]
    text = _joined(messages)
    body = "" if text else body_text(response)
    wrapped = [status for level in levels if level.is_wrapped for status in _statuses(level)]
    own = [int(code) for code in codes if _HTTP_STATUS.fullmatch(code)]
    in_text = [status for level in levels for status in _statuses_in(level.messages)]
    inner = [*in_text[-1:], *wrapped[-1:]]
    return ErrorInfo(
        code=_telling([code.lower() for code in codes]),
        type=_telling([kind.lower() for kind in types]),
        detail_codes=frozenset(label.lower() for label in (*codes, *types, *details)),
        labels=" ".join(dict.fromkeys([*codes, *types, *details])),
        message=plain_line(text or body, _MAX_MESSAGE),
        text=plain_line(text or ("" if is_page(_start(response)) else body), _MAX_TEXT).translate(
            _SIMPLIFIED
        ),
        status=[*own[:1], *inner][-1] if own or inner else None,
        wrapped_status=inner[-1] if inner else None,
        levels=levels,
    )


def _error_levels(response: Response) -> list[ErrorLevel]:
    """The errors in the body, the outermost first; none of an HTML page."""
    if not response.is_json and response.data is None:
        text = _start(response)
        return [] if is_page(text) else list(_in_text(text, is_wrapped=False, depth=0))
    return list(_levels(unwrapped(response.data), is_wrapped=False, depth=0))


def _levels(value: Any, *, is_wrapped: bool, depth: int) -> Iterator[ErrorLevel]:
    if depth > _MAX_LEVELS:
        return
    if isinstance(value, str):
        yield from _in_text(value, is_wrapped=is_wrapped, depth=depth)
    elif isinstance(value, list):
        yield from _in_list(value, is_wrapped=is_wrapped, depth=depth)
    elif isinstance(value, Mapping):
        yield from _in_object(value, is_wrapped=is_wrapped, depth=depth)


def _in_object(value: Mapping[str, Any], *, is_wrapped: bool, depth: int) -> Iterator[ErrorLevel]:
    """The error that an object has, or is, and those that it wraps."""
    if isinstance(error := value.get("error"), Mapping) and error:
        yield from _levels(error, is_wrapped=is_wrapped, depth=depth + 1)
        return
    yield ErrorLevel(value, (), is_wrapped)
    for key in (*_ERRORS, *_MESSAGES):
        if inner := value.get(key):
            yield from _levels(inner, is_wrapped=is_wrapped, depth=depth + 1)
    if isinstance(details := value.get("details"), str):
        yield from _levels(details, is_wrapped=is_wrapped, depth=depth + 1)
    for key in _INNER:
        if not (inner := value.get(key)):
            continue
        found = list(_levels(inner, is_wrapped=key != "metadata", depth=depth + 1))
        yield from found
        if key.startswith("inner") and not any(level.messages for level in found):
            yield ErrorLevel({}, (_dumped(inner),), True)


def _in_list(value: list[Any], *, is_wrapped: bool, depth: int) -> Iterator[ErrorLevel]:
    """The errors of a list. FastAPI says of each where it is."""
    located = [_located(item) for item in mappings(value) if isinstance(item.get("msg"), str)]
    texts = located or [item for item in value if isinstance(item, str)]
    if texts:
        yield ErrorLevel({}, ("; ".join(texts),), is_wrapped)
    else:
        for item in mappings(value)[:3]:
            yield from _levels(item, is_wrapped=is_wrapped, depth=depth + 1)


def _located(item: Mapping[str, Any]) -> str:
    loc = item.get("loc")
    place = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
    return f"{place}: {item['msg']}" if place else str(item["msg"])


def _in_text(text: str, *, is_wrapped: bool, depth: int) -> Iterator[ErrorLevel]:
    """The text as a message, and the error that it wraps as JSON or as Python's ``repr``."""
    text = text[: 4 * _MAX_TEXT]
    start = min((at for at in (text.find("{"), text.find("[{")) if at >= 0), default=-1)
    head = text[:start].strip(" \t\r\n-:") if start > 0 else ""
    if start < 0 or (head and not _WRAPS.search(head)):
        yield ErrorLevel({}, (text,), is_wrapped)
        return
    inner, tail = _wrapped_in(text, start)
    if not inner:
        yield ErrorLevel({}, (text,), is_wrapped)
        return
    if head:
        yield ErrorLevel({}, (head,), is_wrapped)
    yield from _levels(inner, is_wrapped=True, depth=depth + 1)
    if tail:
        yield ErrorLevel({}, (tail,), is_wrapped)


def _wrapped_in(text: str, start: int) -> tuple[Any, str]:
    """The error that begins at ``start``, and the text behind it; a false value if there is none."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        value = unwrapped(value)
        tail = text[end:].strip(" \t\r\n.")
    except (ValueError, RecursionError):
        # Python's repr, or cut off: the members that matter can be told all the same.
        pairs: dict[str, str] = {}
        for match in _PAIR.finditer(text):  # the first of each, which is the outermost
            pairs.setdefault(match[1], match[2] or match[3] or match[4] or "")
        value, tail = _unflattened(pairs), ""
    is_error = isinstance(value, Mapping) and any(key in value for key in (*_ERRORS, *_MESSAGES))
    return (value, tail) if is_error else (None, "")


def _unflattened(pairs: dict[str, str]) -> dict[str, Any]:
    """An error object of the members of Google's nested one."""
    detail: dict[str, Any] = {
        key: pairs.pop(key) for key in ("reason", "retryDelay") if key in pairs
    }
    if "quotaId" in pairs:
        detail["violations"] = [{"quotaId": pairs.pop("quotaId")}]
    details = [detail] if detail else []
    return {**pairs, "details": details}


def unwrapped(data: Any) -> Any:
    """The only element of a list: Gemini's OpenAI-compatible endpoint puts an error into one."""
    return data[0] if isinstance(data, list) and len(data) == 1 else data


def _detail_codes(fields: Mapping[str, Any]) -> Iterator[str]:
    """Anthropic's sub-code; Google's reasons and the names of the quotas that are exceeded."""
    details = fields.get("details")
    if isinstance(details, Mapping):
        yield from _labels(details, ("error_code",))
    for detail in mappings(details):
        yield from _labels(detail, ("reason",))
        for violation in mappings(detail.get("violations")):
            yield from _labels(violation, ("quotaId",))


def _labels(fields: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [label for key in keys if key in fields and (label := _label(fields[key]))]


def _label(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    label = plain_line(str(value)[:400], 100)
    return "" if label.lower() in _NOTHING else label


def _telling(labels: list[str]) -> str:
    """The first label that says more than an HTTP status does."""
    telling = (label for label in labels if not _HTTP_STATUS.fullmatch(label))
    return next(telling, labels[0] if labels else "")


def _statuses(level: ErrorLevel) -> list[int]:
    codes = _labels(level.fields, (*_CODES, *_TYPES))
    return [int(code) for code in codes if _HTTP_STATUS.fullmatch(code)]


def _statuses_in(messages: tuple[str, ...]) -> list[int]:
    found = (_STATUS_IN_TEXT.search(unquoted(message[:300])) for message in messages)
    return [int(match[1] or match[2]) for match in found if match]


_QUOTED = Pattern(
    r"\"[^\"]*(?:\"|\Z)|`[^`]*`|\u201c[^\u201d]*(?:\u201d|\Z)|\u300c[^\u300d]*\u300d"
    r"|(?<!\w)'[^']*'(?!\w)"
)


def unquoted(text: str) -> str:
    """``text`` without what it quotes: that may be the request's own words."""
    return _QUOTED.sub(" ", text)


def _joined(messages: list[str]) -> str:
    """The messages in one, without those that another one holds."""
    kept: list[str] = []
    for message in (plain_line(text, _MAX_TEXT) for text in messages):
        if message and not any(message in other for other in kept):
            kept = [*[other for other in kept if other not in message], message]
    return ": ".join(kept)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))[:_MAX_TEXT]


def _start(response: Response) -> str:
    return response.body[:_MAX_BODY_BYTES].decode("utf-8", "replace")


def body_text(response: Response) -> str:
    """The start of the body as text, of an HTML page what a reader sees of it."""
    text = _start(response)
    return plain_line((page_text(text) if is_page(text) else "") or text, _MAX_TEXT)
