"""JSON text that is looked into and passed on byte for byte.

A request and an answer are recorded as they came: keys in their order, numbers with all their digits.
So what is parsed here only informs, and what is written is cut from the text itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

_MAX_INT_DIGITS = 4000  # Python converts up to 4,300 by default
_SPACE = re.compile(r"[ \t\n\r]*")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _any_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else float(digits)


_STRICT = json.JSONDecoder(parse_constant=_no_constant)
_STRICT_ANY_INT = json.JSONDecoder(parse_constant=_no_constant, parse_int=_any_int)
_LENIENT = json.JSONDecoder()
_LENIENT_ANY_INT = json.JSONDecoder(parse_int=_any_int)


class Member(NamedTuple):
    """A member of a JSON object: its key, its value's text, and the text of both."""

    key: str
    value: str
    text: str


def parse(text: str, *, strict: bool = True) -> Any:
    """The value of ``text``; ``ValueError`` if it is not JSON or nested too deeply.

    ``strict`` refuses NaN and the infinities. Integers of more than 4,000 digits become floats, maybe
    infinite: only their text is exact.
    """
    decoder, fallback = (_STRICT, _STRICT_ANY_INT) if strict else (_LENIENT, _LENIENT_ANY_INT)
    try:
        return decoder.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # an integer of too many digits, or a constant
        return _guarded(fallback.decode, text)


def _guarded(decode: Callable[[str], Any], text: str) -> Any:
    try:
        return decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def members(text: str) -> list[Member]:
    """The members of the object ``text``, which must be valid JSON, in order, doubles included."""
    found: list[Member] = []
    i = _skip(text, _skip(text, 0) + 1)
    while text[i] != "}":
        start = i
        key, i = scanstring(text, i + 1)
        value_start = _skip(text, _skip(text, i) + 1)  # behind the colon
        _, end = _LENIENT_ANY_INT.raw_decode(text, value_start)
        found.append(Member(key, text[value_start:end], text[start:end]))
        i = _skip(text, end)
        if text[i] == ",":
            i = _skip(text, i + 1)
    return found


def without(parts: list[Member], keys: frozenset[str]) -> str:
    """An object's text from ``parts``, less the members named ``keys``."""
    return "{" + ", ".join(part.text for part in parts if part.key not in keys) + "}"


def _skip(text: str, i: int) -> int:
    match = _SPACE.match(text, i)
    return match.end() if match else i


def read_answer(body: bytes) -> tuple[Any, bytes]:
    """The value of an answer's ``body`` and its text as one line of UTF-8; ``ValueError`` if not JSON.

    Other encodings of Unicode, a byte-order mark and NaN are accepted, and bytes that are not valid
    are replaced: the answer has been paid for.
    """
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding)
        exact = encoding == "utf-8"
    except UnicodeDecodeError:
        text, exact = body.decode(encoding, "replace"), False
    data = parse(text, strict=False)
    if not exact:
        body = text.encode("utf-8", "replace")
    return data, one_line(body)


def one_line(body: bytes) -> bytes:
    """JSON text without its line breaks, which stand between tokens only."""
    body = body.strip()
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    return body


def dump(value: Any) -> bytes:
    """``value`` as UTF-8 JSON; lone surrogates, which UTF-8 can't hold, as escapes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
