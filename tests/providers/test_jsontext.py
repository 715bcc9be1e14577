"""JSON text that is examined and passed on as it came."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.providers.jsontext import (
    MAX_NESTING,
    dump,
    element_spans,
    elements,
    member_spans,
    members,
    one_line,
    parse,
    read_answer,
    split_last,
    with_member,
    without,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)
SPACES = st.text(" \t\r\n", max_size=3)
KEYS = st.sampled_from(["a", "metadata", "stream", "é", 'q"', "\\", "\n", "\ud800", ""])


def same(left: Any, right: Any) -> bool:
    """Equal JSON values, NaN being equal to itself and True not to 1."""
    return json.dumps(left) == json.dumps(right)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", '{"a": [Infinity]}', '{"a": NaN, "b": ' + "9" * 5000 + "}"]
)
def test_strict_text_has_no_nan(text: str) -> None:
    """NaN and the infinities are rejected, unless a response has them."""
    with pytest.raises(ValueError, match="is not JSON"):
        parse(text)
    parse(text, strict=False)


@pytest.mark.parametrize(
    "text", ["", " ", "{", "[1,]", "{'a': 1}", "1 2", "\ufeff1", '"\t"', "nul"]
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_not_json_is_rejected(text: str, strict: bool) -> None:
    """Even a lenient reader wants JSON."""
    with pytest.raises(json.JSONDecodeError):
        parse(text, strict=strict)


def test_long_integers_are_exact_as_long_as_python_allows() -> None:
    """4,300 digits are an integer, 5,000 are a float, and neither depends on what else is there."""
    longest = "1" * 4300
    assert parse(longest) == int(longest)
    assert parse("1" * 300 + "0" * 4700) == math.inf
    assert parse(f"[{longest}, {'2' * 5000}]") == [int(longest), math.inf]
    assert parse("1e400") == math.inf


@pytest.mark.parametrize(
    ("opened", "closed", "depth"),
    [("[", "]", 1), ('{"a": ', "}", 1), ('{"b": "[", "a": [', ", 2]}", 2), ("[1, ", ", 2]", 1)],
)
@pytest.mark.parametrize("strict", [True, False])
def test_deep_nesting_is_rejected(opened: str, closed: str, depth: int, strict: bool) -> None:
    """The limit depends neither on Python's own nor on the depth of the call."""

    def nested(count: int) -> str:
        return opened * count + "1" + closed * count

    parse(nested(MAX_NESTING // depth), strict=strict)
    for count in (MAX_NESTING // depth + 1, 300, 900, 1000, 100_000):
        with pytest.raises(ValueError, match="nested deeper than 100 levels"):
            parse(nested(count), strict=strict)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "[1, " * 100_000])
def test_deep_nesting_without_an_end_is_rejected(text: str) -> None:
    """A torn text is rejected like a whole one."""
    with pytest.raises(ValueError):
        parse(text)


def test_many_brackets_are_no_nesting() -> None:
    """Long lists of lists, and brackets in strings, are wide and not deep."""
    for value in ([[1]] * 500, [{}] * 500, "[" * 500, ["]{" * 500], {"[" * 200: ["{" * 200]}):
        assert parse(json.dumps(value)) == value


def spaced(draw: Callable[[Any], Any], value: Any) -> str:
    """JSON text of ``value`` with white space anywhere, its objects as lists of pairs."""
    if isinstance(value, tuple):
        parts = [f"{spaced(draw, k)}{draw(SPACES)}:{spaced(draw, v)}" for k, v in value]
        inner, ends = ",".join(draw(SPACES) + part for part in parts), "{}"
    elif isinstance(value, list):
        inner, ends = ",".join(spaced(draw, v) for v in value), "[]"
    else:
        return draw(SPACES) + json.dumps(value, ensure_ascii=draw(st.booleans())) + draw(SPACES)
    return draw(SPACES) + ends[0] + inner + draw(SPACES) + ends[1] + draw(SPACES)


PAIRS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=3).map(tuple)
    ),
    max_leaves=8,
)


@given(st.data(), st.lists(st.tuples(KEYS, PAIRS), max_size=6), st.frozensets(KEYS, max_size=3))
def test_removing_keys_leaves_the_other_members_as_they_are(
    data: st.DataObject, pairs: list[tuple[str, Any]], removed: frozenset[str]
) -> None:
    """Every member is found with its text, with duplicates; the others stay byte for byte."""
    text = spaced(data.draw, tuple(pairs))
    found = members(text)
    assert [part.key for part in found] == [key for key, _ in pairs]
    for part in found:
        assert same(json.loads("{" + part.text + "}"), {part.key: json.loads(part.value)})
        assert part.text in text
        assert part.text.endswith(part.value)
    left = json.loads(without(found, removed), object_pairs_hook=list)
    every = json.loads(text, object_pairs_hook=list)
    assert same(left, [[key, value] for key, value in every if key not in removed])
    assert same(json.loads(without(found, frozenset()), object_pairs_hook=list), every)


def test_members_are_exact() -> None:
    """Digits, escapes, doubles and the order of keys are as they were written."""
    digits = "1234567890" * 500
    numbers = [f'"n": {digits}', '"f": 1.10', '"e":1e400']
    parts = [*numbers, '"s":  "\\u00e9\\/"', '"n": -0', '"a":{"z":1,"a":2}']
    found = members("{" + " ,\t".join(parts) + "}")
    assert [part.text for part in found] == parts
    assert [part.value for part in found][:2] == [digits, "1.10"]
    kept = ", ".join([*parts[:2], *parts[3:5]])
    assert without(found, frozenset({"e", "a"})) == "{" + kept + "}"
    assert without(found, frozenset("nfesa")) == "{}"
    assert members(" { } ") == []


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b'{"a": 1.10}', {"a": 1.1}),
        (b'\xef\xbb\xbf{"a": "\xc3\xa9"}', {"a": "é"}),
        ('{"a": "é"}'.encode("utf-16"), {"a": "é"}),
        ('{"a": "é"}'.encode("utf-16-le"), {"a": "é"}),
        ('{"a": "é"}'.encode("utf-32"), {"a": "é"}),
        (b'{"a": "\xff\xfe"}', {"a": "\ufffd\ufffd"}),
        (b'{"a": "\xed\xa0\x80"}', {"a": "\ufffd\ufffd\ufffd"}),
        (b'\n\n{"a":\r\n  [1,\r 2]\n}\r\n', {"a": [1, 2]}),
        (b'{"a": "\\n\\r"}', {"a": "\n\r"}),
        ('{"a": "\u2028\x85"}'.encode(), {"a": "\u2028\x85"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b"[]", []),
        (b"null", None),
    ],
)
def test_an_answer_becomes_one_line_of_utf_8(body: bytes, data: Any) -> None:
    """Whatever its encoding and layout, the line has the same value."""
    value, line = read_answer(body)
    assert value == data
    assert parse(line.decode()) == data
    assert b"\n" not in line
    assert b"\r" not in line


def test_an_answer_on_one_line_stays_byte_for_byte() -> None:
    """Digits, escapes, doubles and spaces of an answer are kept."""
    body = b'{"n":' + b"1" * 5000 + b', "f" :1.10,"e":1e400, "n":NaN, "s":"\\u00e9\xc3\xa9\\/"}'
    assert read_answer(body)[1] == body


@pytest.mark.parametrize(
    "body", [b"", b" ", b"\0", b"<html>", b'{"a": ', b"\xff\xfe{", b"[" * 101 + b"]" * 101]
)
def test_an_answer_that_is_not_json_is_rejected(body: bytes) -> None:
    """There is nothing to record."""
    with pytest.raises(ValueError):
        read_answer(body)


@given(
    JSON, st.sampled_from([None, 0, 2, "\t"]), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_any_layout_of_an_answer_has_its_value(
    value: Any, indent: Any, ascii_only: bool, line_end: str
) -> None:
    """Pretty printing with any line ends changes nothing but white space."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("\n", line_end)
    body = text.encode("utf-8", "replace")
    data, line = read_answer(body)
    assert same(json.loads(line), json.loads(body.decode()))
    assert same(data, json.loads(body.decode()))
    assert line.splitlines() == [line]
    assert one_line(line) == line


@given(st.binary())
def test_bytes_that_are_no_answer_raise_value_error_only(body: bytes) -> None:
    """No bytes raise anything but ``ValueError``."""
    try:
        data, line = read_answer(body)
    except ValueError:
        return
    assert same(json.loads(line), data)


@given(JSON)
def test_what_is_dumped_is_one_line_of_utf_8(value: Any) -> None:
    """Lone surrogates are kept as escapes."""
    line = dump(value)
    assert b"\n" not in line
    assert same(json.loads(line.decode("utf-8")), value)


def test_pythons_limit_for_integers_may_be_lower() -> None:
    """A user who lowers it still gets a value for every text."""
    if not hasattr(sys, "set_int_max_str_digits"):
        pytest.skip("this Python has no limit")
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        assert parse("1" * 1000) == math.inf
        assert [part.value for part in members('{"a": ' + "1" * 1000 + "}")] == ["1" * 1000]
    finally:
        sys.set_int_max_str_digits(limit)


KEYS = st.sampled_from(["a", "metadata", "x", "é", 'meta"data', "data,"]) | st.text(max_size=4)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(
    body=st.dictionaries(KEYS, JSON_VALUES, max_size=4),
    last=JSON_VALUES,
    ascii_only=st.booleans(),
    separators=st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " : ")]),
)
def test_the_last_member_is_split_off_as_it_would_be_found(
    body: dict[str, Any], last: Any, ascii_only: bool, separators: tuple[str, str]
) -> None:
    """Where the quick way gives a result, it is the same as that of the slow way."""
    body.pop("metadata", None)
    text = json.dumps(body | {"metadata": last}, ensure_ascii=ascii_only, separators=separators)
    found = split_last(text, "metadata")
    if found is not None:
        assert parse(found[0]) == body
        assert found[1] == members(text)[-1].value


@pytest.mark.parametrize(
    "text",
    [
        '{"metadata": 1}',
        '{"metadata": 1, "a": 2}',
        '{"a": {"b": 1, "metadata": 2}}',
        '{"a": "metadata"}',
        '{"b": 1, "x \\"metadata": 2}',
        '{"metadata": 1, "a": 0, "metadata": 2}',
        '{"m\\u0065tadata": 1, "a": 0, "metadata": 2}',
        '{"a": [1, "metadata"]}',
        '{"a": 1}',
    ],
)
def test_what_is_not_plainly_the_last_member_is_left_to_the_slow_way(text: str) -> None:
    """With duplicates, escapes, nesting and other places, the quick way gives no result."""
    assert split_last(text, "metadata") is None


def test_the_last_member_is_split_off() -> None:
    """The usual line is split, byte for byte."""
    text = '{"model": "m", "input": "é\\n" , "metadata" : {"n": 1, "x": [ ]} }'
    assert split_last(text, "metadata") == ('{"model": "m", "input": "é\\n"}', '{"n": 1, "x": [ ]}')


@given(st.dictionaries(KEYS, JSON, max_size=5), KEYS, JSON, SPACES)
def test_a_member_is_set_and_nothing_else_changes(
    value: dict[str, Any], key: str, new: Any, space: str
) -> None:
    """It keeps its place, or becomes the last one."""
    separators = ("," + space, ":" + space)
    text = space + json.dumps(value, separators=separators) + space
    made = with_member(text, key, json.dumps(new))
    assert same(json.loads(made), {**value, key: new})
    assert list(json.loads(made)) == list({**value, key: new})
    assert same(json.loads(with_member(made, key, json.dumps(new))), json.loads(made))
    if key in value:
        old = json.dumps(value[key], separators=separators)
        assert with_member(made, key, old) == text


@given(st.dictionaries(KEYS, JSON, max_size=5), SPACES, st.sampled_from([None, 1]))
def test_spans_are_where_the_members_and_elements_are(
    value: dict[str, Any], space: str, indent: int | None
) -> None:
    """Whatever they hold, in whatever layout, with NaN too."""
    text = space + json.dumps(value, indent=indent) + space
    found = {span.key: text[span.value_start : span.end] for span in member_spans(text, len(space))}
    assert found == {member.key: member.value for member in members(text)}
    text = space + json.dumps(list(value.values()), indent=indent) + space
    spans = element_spans(text, len(space))
    assert [text[start:end] for start, end in spans] == elements(text)
