"""CSV and TSV: what is read, and what becomes of rows that can't be."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.tables.csv_table import CsvTable


def read(path: Path, content: bytes, delimiter: str = ",") -> list[Any]:
    """The names, and the rows behind them."""
    path.write_bytes(content)
    table = CsvTable(path, delimiter)
    try:
        rows = list(table.rows())
        assert table.fraction() == 1
        return [table.columns, *rows]
    finally:
        table.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the table is."""
    return tmp_path / "prompts.csv"


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2)))
def test_what_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    """Every text comes back as it was, with its quotes, delimiters and line breaks."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    assert read(path, path.read_bytes()) == [["a", "b"], *rows]


def test_marks_line_ends_and_blank_lines(path: Path) -> None:
    """A byte order mark is no part of the first name (orange3 7000), and blank lines are no rows."""
    content = '\ufeffid, text \r\n1,"two\r\nlines"\r\n\r\n2,"say ""hi"""\n3, x'
    assert read(path, content.encode()) == [
        ["id", "text"],
        ["1", "two\r\nlines"],
        ["2", 'say "hi"'],
        ["3", " x"],
    ]


@pytest.mark.parametrize("text", ["007", "NA", "null", "n/a", "1e5", "True", "2024-01-31", " "])
def test_nothing_is_taken_for_something_else(path: Path, text: str) -> None:
    """Leading zeros (csvkit 977) and texts that look like missing values (pandas 24681) stay texts."""
    assert read(path, f"id,a\n{text},1\n".encode())[1][0] == text


def test_a_field_may_be_long(path: Path) -> None:
    """The bound of Python's ``csv``, 131,072 characters (datasette-lite 84), is not that of a prompt."""
    text = "x" * 3_000_000
    assert read(path, f"a,b\n{text},1\n".encode())[1] == [text, "1"]


BAD_ROWS = {
    b"1": "line {}: the number of fields is 1, that of columns 2",
    b"1,2,3": "line {}: the number of fields is 3, that of columns 2",
    b'"a\nb",2,3': "lines {} to {}: the number of fields is 3, that of columns 2",
    b'"a"b,2': "line {}: ',' expected after '\"'",
    b"caf\xe9,2": "not UTF-8: byte 4 of line {} is 0xe9: write it as UTF-8",
    b'"a\nb\xe9",2': "not UTF-8: byte 2 of line {1} is 0xe9: write it as UTF-8",
}


def test_a_row_that_can_not_be_read_is_named(path: Path) -> None:
    """The rows around it are read, and each is in its place."""
    begin = b"a,b\n" + b"1,2\n" * 100_000  # more than what must be UTF-8 for the file to be read
    content, line, expected = begin, 100_002, []
    for row, reason in BAD_ROWS.items():
        content += row + b"\n3,4\n"
        last = line + row.count(b"\n")
        expected.append(reason.replace("{}", "{0}", 1).replace("{}", "{1}").format(line, last))
        line = last + 2
    rows = read(path, content)[100_001:]
    assert rows[1::2] == [["3", "4"]] * len(BAD_ROWS)
    for (row, _), found, reason in zip(BAD_ROWS.items(), rows[::2], expected, strict=True):
        assert isinstance(found, InvalidLine)
        assert found.reason.startswith(reason)
        assert found.text == row.split(b"\n")[0].decode("utf-8", "replace") + "\n"


def test_delimiters_at_the_end_of_a_line_do_no_harm(path: Path) -> None:
    """Spreadsheets write them."""
    assert read(path, b"a,b\n1,2,,\n3,4\n")[1:] == [["1", "2", "", ""], ["3", "4"]]


def test_a_quote_without_an_end_is_told(path: Path) -> None:
    """The rest of the file is in that field: the row fails, with its begin."""
    _, first, bad = read(path, b'a,b\n1,2\n"3,4\n5,6\n')
    assert first == ["1", "2"]
    assert bad.text == '"3,4\n'
    assert bad.reason == (
        "lines 3 to 4: a quote opens a field that never ends; the rest of the file was taken for it"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no line of column names"),
        (b"\n\n", "has no line of column names"),
        (b",,\n1,2,3\n", "has no line of column names"),
        (b'"a"b,c\n1,2\n', "the line of column names: ',' expected"),
        (b"a,b\ncaf\xe9,1\n", r"not UTF-8 \(line 2 has the byte 0xe9\): write it as UTF-8"),
        ("a,b\n".encode("utf-16"), r"UTF-16.*iconv -f UTF-16 .* > prompts_lines.csv"),
        (b"PAR1\x15", "is a Parquet file: name it so that it ends with .parquet"),
        (b"\x1f\x8b\x08", "is compressed"),
        (b"a,b\r1,2\r", "line ends of an old Mac"),
    ],
)
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes, problem: str) -> None:
    """The message names the file, and the remedy where there is one."""
    with pytest.raises(InputFileError, match=problem) as caught:
        read(path, content)
    assert str(path) in str(caught.value)


def test_a_character_may_be_cut_where_the_look_ends(path: Path) -> None:
    """The begin that is looked at may end within a character."""
    for pad in range(4):
        text = "x" * pad + "☃" * 200_000
        assert read(path, f"a,b\n{text},1\n".encode())[1][0] == text


def test_other_delimiters(path: Path) -> None:
    """Any character can separate the fields, but for quotes and line breaks."""
    assert read(path, b"a;b\n1;2,5\n", ";")[1:] == [["1", "2,5"]]
    for delimiter in ("", ";;", '"', "\n"):
        with pytest.raises(ConfigurationError, match="delimiter must be one character"):
            CsvTable(path, delimiter)


def test_how_far_it_is(path: Path) -> None:
    """The fraction grows with the bytes that were read, and is 1 at the end only."""
    path.write_bytes(b"a,b\n" + b"1,2\n" * 3)
    table = CsvTable(path, ",")
    rows = table.rows()
    next(rows)
    assert table.fraction() == 0.5
    assert len(list(rows)) == 2
    assert table.fraction() == 1
    table.close()


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """How far it is, is unknown until its end."""
    path = tmp_path / "fifo.csv"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, b"a,b\n1,2\n")
    table = CsvTable(path, ",")
    os.close(writer)
    assert table.fraction() is None
    assert list(table.rows()) == [["1", "2"]]
    assert table.fraction() == 1
    table.close()


def test_a_file_that_is_not_there(path: Path) -> None:
    """The message is one line with the reason."""
    with pytest.raises(InputFileError, match="can't read .*No such file"):
        CsvTable(path, ",")
