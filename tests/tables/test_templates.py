"""Templates: what a placeholder becomes, and which templates are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.tables.templates import Table, Template, read_template

COLUMNS = ["text", "n", "1 first var", "a.b", "x|json", "image"]
TABLE = Table("prompts.csv", COLUMNS, frozenset({"image"}))
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def render(line: Any, *values: Any, columns: Sequence[str] = COLUMNS) -> Any:
    """What a row with ``values`` becomes, parsed."""
    template = Template({"in": line}, Table("prompts.csv", columns, frozenset({"image"})), "it")
    template.bind({name: index for index, name in enumerate(columns)})
    rendered = template.render([*values, *[None] * (len(columns) - len(values))])
    assert b"\n" not in rendered
    return json.loads(rendered)["in"]


@given(ANYTHING)
def test_a_whole_text_becomes_the_value(value: Any) -> None:
    """A placeholder that is all of a text keeps the type of the value, deep within lists and objects."""
    found = render([{"a": "{{text}}", "b": "{{ text }}"}], value)
    assert found == [{"a": value, "b": value}]
    assert [type(each) for each in found[0].values()] == [type(value)] * 2


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from('{}"\\|\n%#')))
def test_a_text_is_put_in_as_it_is(text: str) -> None:
    """Within a text nothing of a value is read: quotes, line breaks and braces stay what they are."""
    assert render("<{{text}}|{{n}}>", text, text) == f"<{text}|{text}>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (5, "5"),
        (0.1, "0.1"),
        (True, "true"),
        ([1, "ä"], '[1, "ä"]'),
        ({"a": None}, '{"a": null}'),
    ],
)
def test_other_values_stand_in_a_text_as_json(value: Any, text: str) -> None:
    """Nothing stands for null, and JSON for what is no text."""
    assert render("<{{text}}>", value) == f"<{text}>"


@pytest.mark.parametrize(
    "value", ["{# no comment", "^{{Ω}rel }is found", "{% raw %}", "{{n}}", "{{", "}}", "'{{'"]
)
def test_what_a_value_has_in_it_is_data(value: str) -> None:
    """Texts that break the template engines of other programs (promptfoo 1283, 4538) are only texts."""
    assert render(["a {{text}} b", "{{text}}"], value, 7) == [f"a {value} b", value]


def test_columns_may_have_any_name() -> None:
    """Spaces, a digit at the begin, dots (promptfoo 244) and a bar are possible."""
    columns = ["1 first var", "a.b", "x|json", "it's"]
    line = ["{{1 first var}}", "{{ a.b }}", "{{x|json}}", "{{it's}}", "{{x|json|json}}"]
    assert render(line, "p", "q", "[1]", "s", columns=columns) == ["p", "q", "[1]", "s", [1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("0.50", 0.5),
        (" [1,\n null]\t", [1, None]),
        ("true", True),
        ('"quoted"', "quoted"),
        ("", None),
        ("  ", None),
    ],
)
def test_json_is_read_from_a_text(text: str, value: Any) -> None:
    """``|json`` makes a value of a text of CSV, and null of an empty one."""
    assert render("{{text|json}}", text) == value
    assert render("{{ text | json }}", text) == value


def test_numbers_keep_their_digits() -> None:
    """The JSON of a text is passed on as it is written."""
    template = Template({"a": "{{n|json}}"}, TABLE, "it")
    template.bind({"n": 0})
    assert template.render(["12345678901234567890.10"]) == b'{"a": 12345678901234567890.10}'


@given(ANYTHING.filter(lambda value: not isinstance(value, str)))
def test_json_leaves_other_values_as_they_are(value: Any) -> None:
    """One template fits a table with types, too."""
    assert render("{{text|json}}", value) == value


@pytest.mark.parametrize("text", ["nope", "007", "True", "1,5", "{", "NaN", "[1] [2]"])
def test_a_text_that_is_no_json_is_an_error_of_its_row(text: str) -> None:
    """The reason names the column and shows the text."""
    with pytest.raises(ValueError) as caught:
        render("{{text|json}}", text)
    assert str(caught.value) == f"column 'text' is not JSON: {text!r}"


def test_binary_values_are_put_in_as_base64() -> None:
    """An image can stand in a data URL."""
    table = ["data:image/png;base64,{{image|base64}}", "{{image|base64}}"]
    assert render(table, *[None] * 5, b"\x89PNG") == ["data:image/png;base64,iVBORw==", "iVBORw=="]
    assert render(table, *[None] * 6) == ["data:image/png;base64,", None]


def test_quoted_braces_stand_for_themselves() -> None:
    """A prompt can speak of templates."""
    assert render("Write {{'{{'}}name}} for {{text}}{{\"'\"}}", "x") == "Write {{name}} for x'"
    assert render('{"a": {{n}}}, {{{n}}}', "x", 1) == '{"a": 1}, {1}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "{{txet}}",
            r"prompts.csv has no column 'txet' \(did you mean 'text'\?\). It has 'text', 'n', ",
        ),
        ("a {{Text }}", "no column 'Text'"),
        ("{{}}", "no column ''"),
        ("{{text|int}}", r"there is no \|int, only \|json and \|base64"),
        ("{{txet|json}}", "no column 'txet'"),
        ("a {{text|json}}", r"stands in a text: leave \|json out"),
        ("Use {{text} here", "'{{text} here' opens a placeholder without an end"),
        ('{{"a": "b", ' * 500 + "}", "opens a placeholder without an end"),
        ("{{" + "it's 'a' \"b\" " * 500, "opens a placeholder without an end"),
        ("{{text}} {{", "opens a placeholder without an end"),
        ({"{{text}}": 1}, "placeholders stand in texts, not in names"),
        ("{{image}}", r"'image' of prompts.csv is binary: write {{image\|base64}}"),
        ("{{text|base64}}", r"'text' is not binary: leave \|base64 out"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(line: Any, problem: str) -> None:
    """The message names the template, and says what there is (autolabel 56)."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Template({"messages": [line]}, TABLE, "the template t.json")
    assert str(caught.value).startswith("the template t.json: ")


def test_a_column_that_is_there_twice_is_refused() -> None:
    """Nobody knows which of the two is meant."""
    with pytest.raises(ConfigurationError, match="more than one column 'a'"):
        Template({"x": "{{a}}"}, Table("t.csv", ["a", "b", "a"], frozenset()), "it")
    Template({"x": "{{b}}"}, Table("t.csv", ["a", "b", "a"], frozenset()), "it")


def test_many_columns_are_not_all_shown() -> None:
    """The message stays readable."""
    table = Table("t.csv", [f"c{number}" for number in range(1000)], frozenset())
    with pytest.raises(ConfigurationError, match=r"'c49' and 950 more$"):
        Template({"x": "{{nothing}}"}, table, "it")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{'a': 1}", "is not JSON: .* at line 1, column 2$"),
        (b'{\n"a": {{n}}\n}', 'at line 2, column 7; a placeholder stands in quotes, "{{column}}"'),
        (b'{"a": NaN}', "is not JSON: NaN is not JSON"),
        (b"\xff", "is not UTF-8"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    """The message says where."""
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=problem):
        read_template(path)


def test_a_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "request.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_template(path) == {"a": 1}
    with pytest.raises(ConfigurationError, match="can't read the template"):
        read_template(tmp_path / "none.json")
