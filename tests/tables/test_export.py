"""Results as a table: its columns, their types, and what a broken export leaves."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, run, write_lines

from parallel_processor import export_results, read_results, to_records
from parallel_processor.exceptions import ConfigurationError, ResultsFileError
from parallel_processor.files.append_file import open_results
from parallel_processor.tables import export

CHAT = {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "model": "m-1"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat(text: str) -> dict[str, Any]:
    """A response with this text."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"model": "m-1", "choices": [choice], "usage": USAGE}


def cookbook(text: str, metadata: Any = None, **members: Any) -> list[Any]:
    """A record with metadata."""
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}]} | members
    return [body, chat(text)] + ([] if metadata is None else [metadata])


def batch(custom_id: str, text: str) -> dict[str, Any]:
    """A record of a Batch row."""
    response = {"status_code": 200, "request_id": "r", "body": chat(text)}
    return {"id": "b", "custom_id": custom_id, "response": response, "error": None}


ODD = ['say "hi"', "two\r\nlines", "one\rline", "{{n}}", "a,b\tc", "ünï ☃ 😀", "=1+2", " ", ""]
RECORDS = [
    *(cookbook(text, {"id": n, "t": text}) for n, text in enumerate(ODD)),
    batch("0007", "x"),
    [{"model": "m", "messages": []}, ["HTTP 400: bad\nreason"], {"id": 99}],
    ["no json", ["line 5: not JSON"]],
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results file with records of every kind."""
    return write_lines(tmp_path / "results.jsonl", RECORDS)


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.mark.parametrize("name", ["out.csv", "out.TSV"])
def test_csv_has_the_columns_of_to_records(results: Path, tmp_path: Path, name: str) -> None:
    """Texts come as they are, ``None`` as nothing, numbers and booleans as in JSON."""
    path = tmp_path / name
    assert export_results(results, path) == len(RECORDS)
    expected = to_records(read_results(results))
    assert [row["text"] for row in expected[: len(ODD)]] == ODD
    shown = [
        {k: "" if v is None else v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        for row in expected
    ]
    assert read_csv(path, "\t" if name.endswith("TSV") else ",") == shown


def test_parquet_has_the_columns_of_to_records(results: Path, tmp_path: Path) -> None:
    """Values are equal to those of ``to_records``, with their types."""
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    assert export_results(results, path) == len(RECORDS)
    table = pq.read_table(path)
    assert table.to_pylist() == to_records(read_results(results))
    types = {field.name: str(field.type) for field in table.schema}
    assert types["number"] == types["metadata.id"] == "int64"
    assert (types["ok"], types["latency_s"], types["text"]) == ("bool", "double", "string")
    assert types["custom_id"] == types["error"] == "string"  # though most have none


def test_names_that_are_no_text_are_written(results: Path, tmp_path: Path) -> None:
    """A byte of a command line that is not UTF-8 becomes a question mark."""
    pq = pytest.importorskip("pyarrow.parquet")
    for name in ("o.csv", "o.parquet"):
        export_results(results, tmp_path / name, columns=["ok", "metadata.\udcff"])
    assert (tmp_path / "o.csv").read_text().startswith("ok,metadata.?")
    assert pq.read_table(tmp_path / "o.parquet").column_names == ["ok", "metadata.?"]


def test_vectors_stay_lists_in_parquet(tmp_path: Path) -> None:
    """In CSV they are JSON."""
    pq = pytest.importorskip("pyarrow.parquet")
    vectors = [[0.1, 2, -1e-7], [3, 4, 5]]
    records = [
        [{"model": "m", "input": "x"}, {"data": [{"embedding": vector, "index": 0}]}]
        for vector in vectors
    ]
    results = write_lines(tmp_path / "results.jsonl", records)
    export_results(results, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert str(table.schema.field("embedding").type).startswith("list<")
    assert table["embedding"].to_pylist() == vectors
    export_results(results, tmp_path / "out.csv")
    assert [json.loads(row["embedding"]) for row in read_csv(tmp_path / "out.csv")] == vectors


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        ([None] * 3 + [1], [None] * 3 + [1], "int64"),  # no value in the first rows
        ([1, 2.5], [1.0, 2.5], "double"),
        ([1, "a"], ["1", "a"], "string"),
        ([True, None], [True, None], "bool"),
        ([2**70], [str(2**70)], "string"),
        ([None], [None], "string"),
        ([[1, 2], None, []], [[1, 2], None, []], "list<element: int64>"),
        ([["a", '"', None]], [["a", '"', None]], "list<element: string>"),
        ([[1], [2.5]], [[1.0], [2.5]], "list<element: double>"),
        ([[1], ["a"]], ["[1]", '["a"]'], "string"),
        ([[[1]]], ["[[1]]"], "string"),
        ([[1], 2], ["[1]", "2"], "string"),
        ([{"a": "ä"}], ['{"a": "ä"}'], "string"),
        ([[]], ["[]"], "string"),
    ],
)
def test_a_column_has_one_type(
    tmp_path: Path, values: list[Any], expected: list[Any], kind: str
) -> None:
    """It is that of all values, whichever came first (datasets 8591); lists of one type are kept."""
    pq = pytest.importorskip("pyarrow.parquet")
    results = write_lines(tmp_path / "r.jsonl", [cookbook("x", {"v": v}) for v in values])
    for columns, name in ((None, "metadata.v"), ("metadata.v", "metadata.v")):
        path = tmp_path / f"{columns}.parquet"
        export_results(results, path, columns=columns)
        table = pq.read_table(path)
        assert table[name].to_pylist() == expected
        assert str(table.schema.field(name).type) == kind


def test_paths_lead_into_the_json(tmp_path: Path) -> None:
    """Objects by name, lists by place; names may have dots in them, and what is missing is nothing."""
    record = cookbook("x", {"a.b": 1, "c": {"d": [10, {"e": "f"}]}}, seed=7)
    results = write_lines(tmp_path / "r.jsonl", [record, batch("id", "y")])
    columns = [
        *("custom_id", "request.seed", "request.messages.0.content"),
        *("response.choices.0.finish_reason", "response.usage", "metadata.a.b"),
        *("metadata.c.d.1.e", "metadata.c.d.7", "response.none.at.all"),
    ]
    path = tmp_path / "out.csv"
    export_results(results, path, columns=columns)
    with path.open(newline="", encoding="utf-8") as file:
        header, first, second = csv.reader(file)
    usage = json.dumps(USAGE)
    assert header == columns
    assert first == ["", "7", "q", "stop", usage, "1", "f", "", ""]
    assert second == ["id", "", "", "stop", usage, "", "", "", ""]


def test_an_id_in_the_metadata_is_in_the_column_of_ids(tmp_path: Path) -> None:
    """As ``--id_column`` puts it there beside ``--metadata_columns``; others stay empty."""
    records = [cookbook("a", {"custom_id": "07", "n": 1}), cookbook("b", {"custom_id": 8})]
    records += [cookbook("c", {"n": 2}), cookbook("d", ["custom_id"]), batch("9", "e")]
    source = write_lines(tmp_path / "r.jsonl", records)
    export_results(source, tmp_path / "t.csv", columns="custom_id,text")
    assert (tmp_path / "t.csv").read_text().split() == (
        ["custom_id,text", "07,a", "8,b", ",c", ",d", "9,e"]
    )
    rows = to_records(read_results(source))
    assert [row["custom_id"] for row in rows] == ["07", "8", None, None, "9"]


def test_a_column_without_a_value_is_told(
    results: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt path is no error, because a value may be missing everywhere."""
    export_results(results, tmp_path / "out.csv", columns="ok,response.chioces,metadata.id")
    assert "no record has a value for response.chioces: the column is empty" in caplog.text
    assert caplog.text.count("no record") == 1


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ("number,txet", r"no column 'txet' \(did you mean text\?\). There are number, custom_id, "),
        ("id", "no column 'id'"),
        ("", "columns must be names with commas between them"),
        ("ok,,text", "columns must be names"),
        ([], "columns must be names"),
        ("ok, text ,ok", "columns has 'ok' twice"),
    ],
)
def test_unknown_columns_are_refused(
    results: Path, tmp_path: Path, columns: Any, problem: str
) -> None:
    """Nothing is written."""
    with pytest.raises(ConfigurationError, match=problem):
        export_results(results, tmp_path / "out.csv", columns=columns)
    assert os.listdir(tmp_path) == ["results.jsonl"]


def test_failures_of_an_errors_file_come_behind(results: Path, tmp_path: Path) -> None:
    """Both files together are one table."""
    errors = write_lines(tmp_path / "errors.jsonl", [[{"model": "m"}, ["e1", "e2"]]])
    assert export_results(results, tmp_path / "o.csv", errors_path=errors) == len(RECORDS) + 1
    last = read_csv(tmp_path / "o.csv")[-1]
    assert (last["number"], last["ok"], last["error"], last["attempts"]) == (
        "1",
        "false",
        "e2",
        "2",
    )


def test_lines_that_are_no_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are left out, and counted; a torn last line is not spoken of. None but such is an error."""
    path = write_lines(tmp_path / "r.jsonl", [batch("a", "x"), {"other": 1}, batch("b", "x")])
    with path.open("a") as file:
        file.write('{"custom_id": "c", "resp')
    assert export_results(path, tmp_path / "o.csv", columns="custom_id") == 2
    assert caplog.messages == ["lines that are no records are left out: 1"]
    other = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "x"}])
    with pytest.raises(ResultsFileError, match="in.jsonl holds no records"):
        export_results(other, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_no_results_make_a_table_without_rows(tmp_path: Path) -> None:
    """It has its columns."""
    pq = pytest.importorskip("pyarrow.parquet")
    results = tmp_path / "results.jsonl"
    results.touch()
    assert export_results(results, tmp_path / "o.csv") == 0
    assert (tmp_path / "o.csv").read_text().startswith("number,custom_id,ok,")
    assert export_results(results, tmp_path / "o.parquet") == 0
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.zst"])
def test_compressed_results_make_the_same_table(results: Path, tmp_path: Path, name: str) -> None:
    """They are read twice as well. A run that was killed may have left no end of the compressed data."""
    pytest.importorskip("zstandard")
    results.write_bytes(results.read_bytes() * 200)  # more than is in memory at once
    packed = open_results(tmp_path / name)
    packed.append(results.read_bytes())
    packed.close()
    assert export_results(tmp_path / name, tmp_path / "packed.csv") == 200 * len(RECORDS)
    export_results(results, tmp_path / "plain.csv")
    assert (tmp_path / "packed.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_what_is_written_meanwhile_is_left_out(results: Path, tmp_path: Path) -> None:
    """Both readings see the same records: a column that comes later has no place."""
    torn, rest = json.dumps(cookbook("late", {"later": 1})).encode().split(b"late", 1)
    with results.open("ab", buffering=0) as file:
        file.write(torn)
        settle = export.Columns.settle

        def write_and_settle(self: Any) -> None:
            file.write(b"late" + rest + b"\n" + json.dumps(batch("later", "x")).encode() + b"\n")
            settle(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export.Columns, "settle", write_and_settle)
            assert export_results(results, tmp_path / "o.csv") == len(RECORDS)
    assert export_results(results, tmp_path / "p.csv") == len(RECORDS) + 2


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_a_table_is_replaced_only_where_that_is_wanted(
    results: Path, tmp_path: Path, name: str
) -> None:
    """It may be the table that the requests came from. A link to it stays one."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    target = tmp_path / name
    target.write_bytes(b"mine")
    link = tmp_path / f"link-{name}"
    link.symlink_to(target)
    for path in (target, link):
        with pytest.raises(ConfigurationError, match="exists: name another table, or replace it"):
            export_results(results, path)
        assert target.read_bytes() == b"mine"
    assert export_results(results, link, overwrite=True) == len(RECORDS)
    assert link.is_symlink() and target.stat().st_size > 500
    assert sorted(os.listdir(tmp_path)) == sorted([name, link.name, "results.jsonl"])


def test_the_table_is_not_the_results(tmp_path: Path) -> None:
    """Also not through a link, and not if it may be replaced."""
    results = write_lines(tmp_path / "results.csv", RECORDS)
    (tmp_path / "link.csv").symlink_to(results)
    os.link(results, tmp_path / "hard.csv")
    for name in ("results.csv", "link.csv", "hard.csv"):
        with pytest.raises(ConfigurationError, match="the results and the table are the same file"):
            export_results(results, tmp_path / name, overwrite=True)
    assert len(list(read_results(results))) == len(RECORDS)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("out.xlsx", "must end with .csv, .tsv or .parquet"),
        ("out", "must end with .csv, .tsv or .parquet"),
        ("folder.csv", "is a directory"),
        ("none/out.csv", "the directory of .* does not exist"),
    ],
)
def test_a_place_that_can_not_be_written_is_told(
    results: Path, tmp_path: Path, name: str, problem: str
) -> None:
    """Before anything is read."""
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigurationError, match=problem):
        export_results(results, tmp_path / name, overwrite=True)


def test_results_that_can_not_be_read_twice(tmp_path: Path) -> None:
    """A missing file and a pipe are told."""
    with pytest.raises(ResultsFileError, match="can't read .*No such file"):
        export_results(tmp_path / "none.jsonl", tmp_path / "o.csv")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    with pytest.raises(ResultsFileError, match="is a pipe"):
        export_results(fifo, tmp_path / "o.csv")
    os.close(keep)
    assert os.listdir(tmp_path) == ["fifo"]


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_a_full_disk_leaves_what_was_there(
    results: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old table stays, and no part of the new one."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"old")

    class Full(io.FileIO):
        """A file on a disk that is full."""

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def open_full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode == "wb":
            return Full(self, "w")
        return opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(ResultsFileError, match=f"can't write .*{name}: No space left on device"):
        export_results(results, tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == [name, "results.jsonl"]


def test_an_export_that_is_killed_leaves_no_table(tmp_path: Path) -> None:
    """The next one takes its place."""
    results = write_lines(tmp_path / "results.jsonl", [batch(str(n), "x") for n in range(30_000)])
    words = command("export", results, tmp_path / "o.csv")
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as process:
        beside = tmp_path / "o.csv.new~"
        while process.poll() is None and not (beside.exists() and beside.stat().st_size):
            pass
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "o.csv").exists()
    done = run("export", results, tmp_path / "o.csv", "--columns", "custom_id,text")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"rows in {tmp_path / 'o.csv'}: 30,000\n"
    assert [row["custom_id"] for row in read_csv(tmp_path / "o.csv")] == [
        str(n) for n in range(30_000)
    ]
    assert sorted(os.listdir(tmp_path)) == ["o.csv", "results.jsonl"]


def test_the_command_says_what_is_wrong(results: Path, tmp_path: Path) -> None:
    """Wrong usage gives 2, a file that can't be read 1; each is one line."""
    path = tmp_path / "o.csv"
    for words, code, problem in [
        ([], 2, "two files come first"),
        ([results], 2, "two files come first"),
        ([results, path, path], 2, "two files come first"),
        (["--columns", "ok", results, path], 2, "a value directly follows its flag"),
        ([results, path, "--colums", "ok"], 2, "did you mean --columns?"),
        ([results, path, "--columns", "nothing"], 2, "there is no column 'nothing'"),
        ([results, results], 2, "must end with .csv, .tsv or .parquet"),
        ([tmp_path / "none.jsonl", path], 1, "can't read"),
        (["s3://bucket/r.jsonl", path], 2, "s3://bucket/r.jsonl is on an object store: export"),
        ([results, "s3://bucket/t.csv"], 2, "s3://bucket/t.csv is on an object store: export"),
    ]:
        done = run("export", *words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert problem in done.stderr
        assert not path.exists()
    assert "parallel-processor export RESULTS TABLE" in run("export", "--help").stdout
