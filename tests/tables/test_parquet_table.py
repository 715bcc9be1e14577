"""Parquet: what its values are in JSON, and how it is read."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pytest

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.tables import arrow
from parallel_processor.tables.arrow import Unreadable, load_arrow
from parallel_processor.tables.parquet_table import ParquetTable
from parallel_processor.tables.sources import open_table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    """A table of ``columns`` at ``path``."""
    pq.write_table(pa.table(columns), path, **settings)
    return path


def written(tmp_path: Path, values: Any) -> list[Any]:
    """What the values of one column become in a line."""
    path = write(tmp_path / "t.parquet", {"a": values})
    with open_table(path, {"in": "{{a}}"}) as table:
        return [
            json.loads(line)["in"] if isinstance(line, bytes) else line.reason
            for _, line in table.numbered()
        ]


UTC = datetime.timezone.utc
BERLIN = datetime.timezone(datetime.timedelta(hours=1))
NOON = datetime.datetime(2024, 1, 31, 12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**63 - 1, None]), [2**63 - 1, None]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([0.1, 1e300, 3.0]), [0.1, 1e300, 3.0]),
        (pa.array([0.1, 3.0, None], pa.float32()), [0.1, 3.0, None]),
        (pa.array([[0.1, None], None, []], pa.list_(pa.float32())), [[0.1, None], None, []]),
        (pa.array([True, False, None]), [True, False, None]),
        (pa.array(['He said "hi"\n{{a}} ☃', "", None]), ['He said "hi"\n{{a}} ☃', "", None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array(["x"], pa.large_string()), ["x"]),
        (pa.array([None, None]), [None, None]),
        (pa.array([[1, None], [], None]), [[1, None], [], None]),
        (pa.array([{"a": 1, "b": ["x"]}, None]), [{"a": 1, "b": ["x"]}, None]),
        (
            pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            [{"k": 1}, None],
        ),
        (pa.array([decimal.Decimal("12.50"), None]), ["12.50", None]),
        (pa.array([decimal.Decimal("0E-8")]), ["0.00000000"]),
        (pa.array([datetime.date(2024, 1, 31), None]), ["2024-01-31", None]),
        (pa.array([datetime.time(12, 30), None]), ["12:30:00", None]),
        (pa.array([NOON, None]), ["2024-01-31T12:00:00", None]),
        (pa.array([NOON.replace(tzinfo=BERLIN)]), ["2024-01-31T11:00:00Z"]),
        (pa.array([1, None, -1], pa.timestamp("ns")), [
            "1970-01-01T00:00:00.000000001", None, "1969-12-31T23:59:59.999999999",
        ]),
        (pa.array([1500], pa.timestamp("ms", tz="America/New_York")), ["1970-01-01T00:00:01.5Z"]),
        (pa.array([90], pa.duration("s")), [90.0]),
        (pa.array([[datetime.date(2024, 1, 31)], None]), [["2024-01-31"], None]),
        (pa.array([{"p": decimal.Decimal("1.10"), "b": b"\x01"}]), [{"p": "1.10", "b": "AQ=="}]),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else "",
)  # fmt: skip
def test_types_are_kept(tmp_path: Path, values: Any, expected: list[Any]) -> None:
    """Numbers, texts, booleans, lists, objects and null are that in JSON, and other values are texts."""
    found = written(tmp_path, values)
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_a_decimal_can_be_a_number(tmp_path: Path) -> None:
    """``|json`` reads its text, with all digits."""
    path = write(tmp_path / "t.parquet", {"a": [decimal.Decimal("12345678901234567890.10")]})
    with open_table(path, {"in": "{{a|json}}"}) as table:
        assert list(table.numbered()) == [(1, b'{"in": 12345678901234567890.10}')]


def test_values_that_can_not_be_read_fail_alone(tmp_path: Path) -> None:
    """Texts that are not UTF-8, and dates that no calendar has, are told by row."""
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    assert written(tmp_path, texts) == [
        "a",
        "column 'a' can't be read: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte",
        "c",
    ]
    first, far, last = written(tmp_path, pa.array([0, 2**62, 0], pa.timestamp("ms")))
    assert first == last == "1970-01-01T00:00:00" and "can't be read" in far
    twice = pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
    assert "can't be read" in written(tmp_path, twice)[0]


def test_nan_is_left_to_who_reads_the_line(tmp_path: Path) -> None:
    """It is no JSON: a request with it fails, and in metadata it becomes null."""
    path = write(tmp_path / "t.parquet", {"a": [float("nan")], "b": ["x"]})
    with open_table(path, {"in": "{{b}}"}, metadata_columns="a") as table:
        assert list(table.numbered()) == [(1, b'{"in": "x", "metadata": {"a": NaN}}')]


def test_binary_columns_need_base64(tmp_path: Path) -> None:
    """A text that was stored as bytes is not sent as base64 without a word."""
    path = write(tmp_path / "t.parquet", {"image": [b"\x89PNG", None], "a.b": ["x", "y"]})
    with pytest.raises(ConfigurationError, match="binary: write {{image|base64}}, or make it text"):
        open_table(path, {"in": "{{image}}"})
    with open_table(path, {"in": "{{image|base64}} {{a.b}}"}) as table:
        assert [line for _, line in table.numbered()] == [b'{"in": "iVBORw== x"}', b'{"in": " y"}']


def test_rows_of_all_groups_come_in_their_order(tmp_path: Path) -> None:
    """It is read by batches, of as many rows as suit their size."""
    path = write(tmp_path / "t.parquet", {"n": range(1000), "t": ["x" * 50_000] * 1000},
                 row_group_size=300, use_dictionary=False)  # fmt: skip
    table = ParquetTable(path)
    assert table.select(["n"]) == {"n": 0}
    assert table._batch_rows() < 100
    rows = table.rows()
    assert next(rows) == (0,) and table.fraction() == 1 / 1000
    assert list(rows) == [(n,) for n in range(1, 1000)] and table.fraction() == 1
    table.close()


@pytest.mark.parametrize("columns", [{"a": pa.array([], pa.string())}, {"a": []}])
def test_an_empty_table_has_no_requests(tmp_path: Path, columns: dict[str, Any]) -> None:
    """It is read at once."""
    assert written(tmp_path, columns["a"]) == []
    table = ParquetTable(tmp_path / "t.parquet")
    assert table.fraction() == 1
    table.close()


@pytest.mark.parametrize("content", [b"", b"id,a\n1,2\n", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message is one line that names it."""
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="can't read .*t.parquet: [^\n]+$"):
        ParquetTable(path)
    with pytest.raises(InputFileError, match="can't read .*No such file"):
        ParquetTable(tmp_path / "none.parquet")


def test_a_file_that_is_torn_inside_names_the_row(tmp_path: Path) -> None:
    """The rows of the batches before it have been read."""
    path = write(tmp_path / "t.parquet", {"a": [f"{n:099}" for n in range(10_000)]},
                 row_group_size=1000, use_dictionary=False, compression="gzip")  # fmt: skip
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(5).column(0).data_page_offset
    data[start + 40 : start + 2000] = bytes(1960)
    path.write_bytes(data)
    with open_table(path, {"in": "{{a}}"}) as table:
        lines = []
        with pytest.raises(
            InputFileError, match=r"can't read .*t.parquet behind row 4,864: [^\n]+$"
        ):
            lines.extend(table.numbered())


def test_without_pyarrow_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra has its own name."""
    monkeypatch.setattr(arrow.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pyarrow is missing to read .*\[table\]'$"):
        ParquetTable(tmp_path / "t.parquet")


def test_pyarrow_is_loaded_once() -> None:
    """The two modules are those that ``import`` gives."""
    assert load_arrow("") == (pa, pq)
    assert Unreadable("x").reason == "x"
