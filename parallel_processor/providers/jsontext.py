"""JSON text that is examined, and passed on byte for byte.

Requests and responses are recorded as they came: keys in their order, numbers with all their
digits. So the text is parsed only to be understood. What is written is a part of the text itself.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

# Deeper texts are rejected. Python's own limit depends on the depth of the call, and the same value is
# parsed again inside a record, and written by code that recurses as well.
MAX_NESTING = 100
_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,?[ \t\n\r]*")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _any_int(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more than 4,300 digits, by default
        return float(digits)


_STRICT = json.JSONDecoder(parse_constant=_no_constant)
_STRICT_ANY_INT = json.JSONDecoder(parse_constant=_no_constant, parse_int=_any_int)
_LENIENT = json.JSONDecoder()
_LENIENT_ANY_INT = json.JSONDecoder(parse_int=_any_int)


class Member(NamedTuple):
    """A member of a JSON object."""

    key: str  # parsed
    value: str  # the text of the value
    text: str  # the text of key and value


def parse(text: str, *, strict: bool = True, max_nesting: int = MAX_NESTING) -> Any:
    """The value of ``text``. Raises ``ValueError`` if it is not JSON, or nested too deeply.

    ``strict`` rejects NaN and the infinities. Integers of more than 4,300 digits, Python's limit,
    become floats, which may be infinite: only their text is exact.
    """
    decoder, fallback = (_STRICT, _STRICT_ANY_INT) if strict else (_LENIENT, _LENIENT_ANY_INT)
    try:
        try:
            value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
            if end < len(text):
                value = decoder.decode(text)  # white space, or more than one value
        except StopIteration:
            value = decoder.decode(text)  # white space, or no JSON
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of too many digits, or a constant
            value = fallback.decode(text)
    except RecursionError:
        pass
    else:
        if text.count("[") + text.count("{") <= max_nesting or _nesting(value) <= max_nesting:
            return value
    raise ValueError(f"nested deeper than {MAX_NESTING} levels")


def _nesting(value: Any) -> int:
    """The number of levels of objects and lists in ``value``."""
    nesting, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, (dict, list))]:
        nesting += 1
        level = [v for inner in level for v in (inner.values() if type(inner) is dict else inner)]
    return nesting


def members(text: str) -> list[Member]:
    """The members of the object ``text``, in order, with duplicates. The text must have been parsed."""
    found: list[Member] = []
    i = _skip(text, _skip(text, 0) + 1)
    while text[i] != "}":
        start = i
        key, i = scanstring(text, i + 1)
        value_start = _skip(text, _skip(text, i) + 1)  # after the colon
        end = _end_of_value(text, value_start)
        found.append(Member(key, text[value_start:end], text[start:end]))
        i = _skip(text, end, _COMMA)
    return found


def elements(text: str) -> list[str]:
    """The texts of the elements of the array ``text``. It must have been parsed."""
    found: list[str] = []
    i = _skip(text, _skip(text, 0) + 1)
    while text[i] != "]":
        end = _end_of_value(text, i)
        found.append(text[i:end])
        i = _skip(text, end, _COMMA)
    return found


def split_last(text: str, key: str) -> tuple[str, str] | None:
    """The object ``text`` without its last member, and that member's value, if its key is ``key``.

    ``None`` if only parsing can tell: the key occurs twice, an escape may hide it, or the value is
    not the last thing in the object.
    """
    quoted = f'"{key}"'
    start = text.find(quoted)
    if start < 0 or text.find(quoted, start + 1) >= 0 or "\\u00" in text:
        return None
    colon = _skip(text, start + len(quoted))
    before = text[:start].rstrip(" \t\n\r")
    if text[colon] != ":" or before[-1] != ",":
        return None
    value_start = _skip(text, colon + 1)
    end = _end_of_value(text, value_start)
    if text[end:].strip(" \t\n\r") != "}":
        return None
    return before[:-1].rstrip(" \t\n\r") + "}", text[value_start:end]


def without(parts: list[Member], keys: frozenset[str]) -> str:
    """The text of an object with the members ``parts``, except those named in ``keys``."""
    return "{" + ", ".join(part.text for part in parts if part.key not in keys) + "}"


def with_member(text: str, key: str, value: str) -> str:
    """The object ``text`` with the text ``value`` as its member ``key``; nothing else of it changes.

    A member that is there keeps its place, wherever it occurs; else it becomes the last one. The text must
    have been parsed.
    """
    made, kept, i = "", 0, _skip(text, _skip(text, 0) + 1)
    is_empty = text[i] == "}"
    while text[i] != "}":
        name, i = scanstring(text, i + 1)
        start = _skip(text, _skip(text, i) + 1)  # after the colon
        end = _end_of_value(text, start)
        if name == key:
            made, kept = made + text[kept:start] + value, end
        i = _skip(text, end, _COMMA)
    if kept:
        return made + text[kept:]
    comma = "" if is_empty else ", "
    return f"{text[:i].rstrip()}{comma}{json.dumps(key)}: {value}{text[i:]}"


def _end_of_value(text: str, start: int) -> int:
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except ValueError:  # an integer of too many digits
        return _LENIENT_ANY_INT.raw_decode(text, start)[1]


class MemberSpan(NamedTuple):
    """Where a member of a JSON object is."""

    key: str  # parsed
    value_start: int
    end: int


def member_spans(text: str, start: int) -> list[MemberSpan]:
    """Where the members of the object are that begins at ``start``. The text must have been parsed.

    Unlike :func:`members`, it copies nothing, and passes lists of numbers without a look at them.
    """
    found: list[MemberSpan] = []
    i = _skip(text, start + 1)
    while text[i] != "}":
        key, i = scanstring(text, i + 1)
        value_start = _skip(text, _skip(text, i) + 1)  # after the colon
        i = _end_of_numbers(text, value_start)
        found.append(MemberSpan(key, value_start, i))
        i = _skip(text, i, _COMMA)
    return found


def element_spans(text: str, start: int) -> list[tuple[int, int]]:
    """Where the elements of the array begin and end that begins at ``start``; as :func:`member_spans`."""
    found: list[tuple[int, int]] = []
    i = _skip(text, start + 1)
    while text[i] != "]":
        end = _end_of_numbers(text, i)
        found.append((i, end))
        i = _skip(text, end, _COMMA)
    return found


_MARK = re.compile(r'[\[{}\]]|"[^"\\]*(?:\\.[^"\\]*)*"')
_SCALAR = re.compile(r"[^\s,\]}]+")


def _end_of_numbers(text: str, start: int) -> int:
    """Where the value ends that begins at ``start``: it is looked through for brackets, and not parsed.

    Among many short texts, parsing is faster.
    """
    if text[start] not in '[{"':
        found = _SCALAR.match(text, start)
        assert found is not None  # the text was parsed
        return found.end()
    depth, i = 0, start
    while True:
        mark = _MARK.search(text, i)
        assert mark is not None
        i, what = mark.end(), text[mark.start()]
        if what == "[" and (end := _end_of_flat(text, i)):
            i = end
        elif what in "[{":
            depth += 1
        elif what in "]}":
            depth -= 1
        if not depth:
            return i


def _end_of_flat(text: str, start: int) -> int:
    """Where the list ends whose first element begins at ``start``, if it has only numbers; else 0."""
    end = text.find("]", start)
    holds_other = any(text.find(what, start, end) >= 0 for what in '"[{')
    return 0 if holds_other else end + 1


def skip_space(text: str, i: int) -> int:
    """Where the first character is, from ``i`` on, that is no white space."""
    return _skip(text, i)


def _skip(text: str, i: int, what: re.Pattern[str] = _SPACE) -> int:
    match = what.match(text, i)
    return match.end() if match else i


def read_answer(body: bytes) -> tuple[Any, bytes]:
    """The value of a response's ``body``, and its text as one line of UTF-8.

    Raises ``ValueError`` if it is not JSON. Accepts other encodings of Unicode, a byte-order mark
    and NaN, and replaces invalid bytes: the response has been paid for.
    """
    is_plain = (
        body[:1].isascii() and b"\0" not in body[:4]
    )  # no byte-order mark, and bytes of UTF-8
    encoding = "utf-8" if is_plain else json.detect_encoding(body)
    try:
        text = body.decode(encoding)
        is_exact = encoding == "utf-8"
    except UnicodeDecodeError:
        text, is_exact = body.decode(encoding, "replace"), False
    line = body if is_exact else text.encode("utf-8", "replace")
    return parse(text, strict=False), one_line(line)


def parsed_bytes(body: bytes) -> int:
    """About how much memory the value of the JSON text ``body`` takes, without its strings."""
    values, lists, objects = body.count(b","), body.count(b"["), body.count(b"{")
    return 32 * values + 80 * lists + 230 * objects


def one_line(body: bytes) -> bytes:
    """JSON text without line breaks. It must be valid: then they occur between tokens only."""
    body = body.strip()
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    return body


def dump(value: Any) -> bytes:
    """``value`` as UTF-8 JSON. Lone surrogates, which UTF-8 can't hold, are escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def as_json(value: Any) -> str:
    """``value`` as one line of JSON, in which NaN may stand. Lone surrogates are escaped."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except TypeError:  # a key may be a number of numpy
        text = json.dumps(_with_plain_keys(value), ensure_ascii=False, default=_plain)
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: Any) -> Any:
    """A number or an array of numpy, and of packages like it, as what JSON knows."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _with_plain_keys(value: Any) -> Any:
    """``value`` with the keys of its objects as what JSON knows."""
    if isinstance(value, dict):
        return {
            _plain(key) if hasattr(key, "dtype") else key: _with_plain_keys(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_with_plain_keys(each) for each in value]
    return value


def last_value(parts: list[Member], key: str) -> str:
    """The text of the last member with this key."""
    return next(part.value for part in reversed(parts) if part.key == key)


def with_first(text: str, key: str, value: Any) -> str:
    """The object ``text`` with a member more in front."""
    rest = text.lstrip()[1:].lstrip()
    comma = "" if rest == "}" else ", "
    return f"{{{json.dumps(key)}: {dump(value).decode()}{comma}{rest}"


_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')  # a string, or such a number


def without_nan(text: str) -> str:
    """``text`` with null in place of the numbers that JSON doesn't know."""
    return _NAN.sub(lambda match: "null" if match[1] else match[0], text)
