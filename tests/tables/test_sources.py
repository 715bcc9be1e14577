"""Tables as requests: the lines of their rows, and whole jobs."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines

from parallel_processor import (
    Limits,
    open_table,
    process_file,
    read_requests,
    read_results,
    verify_results,
)
from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.formats import requests_in
from parallel_processor.simulator import Simulator, SimulatorOptions

ODD = [
    'say "hi"',
    "two\r\nlines",
    "{{n}} {# {% raw %}",
    "comma, tab\t;",
    "ünï ☃ 😀",
    " ",
    "'",
    "=1+2",
    "",
]
NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
NOWHERE = "http://127.0.0.1:9/v1/embeddings"
TEMPLATE = {
    "model": "m",
    "input": "{{id}}: {{text}} ({{n}}, {{ratio}}, {{flag}}, {{tags}})",
    "whole": ["{{text}}", "{{n|json}}", "{{ratio|json}}", "{{flag|json}}", "{{tags|json}}"],
}


@pytest.fixture
def server() -> Iterator[Simulator]:
    """A server without limits."""
    with Simulator(SimulatorOptions()) as simulator:
        yield simulator


def table(count: int) -> list[dict[str, Any]]:
    """Rows with values of every type."""
    return [
        {
            "id": number,
            "text": ODD[number % len(ODD)] + "x" * (number % 7),
            "n": (-7) ** (number % 20),
            "ratio": None if number % 5 == 0 else number / 7,
            "flag": number % 3 == 0,
            "tags": ['"q"', "{{x}}", "z"][: number % 4],
        }
        for number in range(count)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """``rows`` as CSV: text as it is, nothing for ``None``, JSON for the rest."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        for row in rows:
            shown = (v if isinstance(v, str) else json.dumps(v) for v in row.values())
            writer.writerow("" if text == "null" else text for text in shown)
    return path


def lines(path: Path, template: Any = TEMPLATE, **arguments: Any) -> list[tuple[int, Any]]:
    """The lines of a table."""
    with open_table(path, template, **arguments) as source:
        found = list(source.numbered())
        assert source.fraction() == 1
        return found


def test_parquet_csv_and_tsv_give_equal_requests(tmp_path: Path) -> None:
    """One template makes the same bytes of the same table in each form, again and again."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = table(3000)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    for kind in ({}, {"id_column": "id"}, {"metadata_columns": ["id", "n|json", "tags|json"]}):
        of_csv = lines(write_csv(tmp_path / "t.CSV", rows), **kind)
        if "metadata_columns" not in kind:  # the id is a text there
            assert of_csv == lines(path, **kind) == lines(path, **kind)
        assert of_csv == lines(write_csv(tmp_path / "t.tsv", rows, "\t"), **kind)
        assert of_csv == lines(write_csv(tmp_path / "s.csv", rows, ";"), delimiter=";", **kind)
    for (number, line), row in zip(lines(path), rows, strict=True):
        whole = json.loads(line)["whole"]
        assert number == row["id"] + 1
        assert whole == [row["text"], row["n"], row["ratio"], row["flag"], row["tags"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small table."""
    return write_csv(
        tmp_path / "prompts.csv", [{"id": f"0{n}", "text": "x", "n": n} for n in (7, 8)]
    )


BODY = {"model": "m", "input": "{{text}}"}


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        (BODY, {}, {"model": "m", "input": "x"}),
        (
            BODY,
            {"id_column": "id"},
            {"custom_id": "07", "method": "POST", "body": {"model": "m", "input": "x"}},
        ),
        (
            BODY,
            {"metadata_columns": "id, n|json"},
            {"model": "m", "input": "x", "metadata": {"id": "07", "n": 7}},
        ),
        (
            BODY,
            {"id_column": "id", "metadata_columns": ["n"]},
            {"model": "m", "input": "x", "metadata": {"custom_id": "07", "n": "7"}},
        ),
        (
            BODY | {"metadata": {"job": "j-{{n}}"}},
            {"id_column": "id", "metadata_columns": ["n"]},
            {"model": "m", "input": "x", "metadata": {"custom_id": "07", "job": "j-7", "n": "7"}},
        ),
        (
            {"custom_id": "{{n|json}}", "url": "/v1/x", "body": BODY},
            {},
            {"custom_id": "7", "url": "/v1/x", "body": {"model": "m", "input": "x"}},
        ),
        (
            {"custom_id": "row-{{id}}", "body": BODY},
            {},
            {"custom_id": "row-07", "body": {"model": "m", "input": "x"}},
        ),
    ],
)
def test_the_line_of_a_row(path: Path, template: Any, arguments: Any, expected: Any) -> None:
    """Ids make Batch rows, metadata makes cookbook lines, and both make metadata with an id."""
    (number, line), _ = lines(path, template, **arguments)
    assert (number, json.loads(line)) == (1, expected)
    assert list(json.loads(line)) == list(expected)
    template_path = write_lines(path.parent / "request.json", [template])
    assert lines(path, str(template_path), **arguments)[0] == (number, line)


@pytest.mark.parametrize(
    ("template", "arguments", "problem"),
    [
        ([BODY], {}, "must be a JSON object"),
        ({"input": "all the same"}, {}, "has no placeholder: all requests would be the same"),
        (
            BODY,
            {"id_column": "ID"},
            r"no column 'ID' \(did you mean 'id'\?\). It has 'id', 'text', 'n'",
        ),
        (BODY, {"metadata_columns": "id,m"}, "no column 'm'"),
        ({"custom_id": "{{id}}", "body": BODY}, {"id_column": "id"}, "has a custom_id already"),
        (
            {"custom_id": "{{id}}", "body": BODY},
            {"metadata_columns": "n"},
            "no place for metadata columns",
        ),
        (BODY | {"metadata": {"n": 1}}, {"metadata_columns": "n"}, "two members 'n'"),
        (BODY | {"metadata": 5}, {"metadata_columns": "n"}, "its metadata must be an object"),
        (BODY, {"delimiter": ";;"}, "delimiter must be one character"),
    ],
)
def test_what_does_not_fit_is_refused(
    path: Path, template: Any, arguments: Any, problem: str
) -> None:
    """Nothing is read but the names of the columns, and nothing stays open."""
    with pytest.raises(ConfigurationError, match=problem):
        open_table(path, template, **arguments)


def test_names_with_commas(tmp_path: Path) -> None:
    """A list of columns is a line of CSV."""
    path = tmp_path / "t.csv"
    path.write_text('"a,b",c\n1,2\n')
    (_, line), = lines(path, {"in": "{{a,b}}"}, metadata_columns='"a,b", c')  # fmt: skip
    assert json.loads(line)["metadata"] == {"a,b": "1", "c": "2"}


def test_an_empty_id_fails_its_row(tmp_path: Path, server: Simulator) -> None:
    """Such rows, and others that can't be read, are failed records; the rest is sent."""
    path = tmp_path / "t.csv"
    path.write_text('id,n\na,1\n,2\nb\nc,"x"y\nd,no\ne,5\n')
    summary = process_file(
        path,
        template={"model": "m", "input": "t", "seed": "{{n|json}}"},
        id_column="id",
        request_url=f"{server.url}/v1/embeddings",
    )
    assert (summary.answered, summary.failed) == (2, 4)
    outcomes = list(read_results(tmp_path / "t_results.jsonl"))
    assert {o.custom_id for o in outcomes if o.ok} == {"a", "e"}
    assert {o.custom_id for o in outcomes if not o.ok} == {"d", None}
    assert sorted(o.error or "" for o in outcomes if not o.ok) == [
        "row 2: column 'id' is empty: each row needs an id",
        "row 3: line 4: the number of fields is 1, that of columns 2",
        "row 4: line 5: ',' expected after '\"'",
        "row 5: column 'n' is not JSON: 'no'",
    ]
    assert {o.request.body for o in outcomes if not o.ok} == {", 2", "b\n", 'c,"x"y\n', None}


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        ({}, {"id_column": "id", "metadata_columns": "k"}),
        ({"metadata": {"custom_id": "{{id}}"}}, {}),
    ],
)
def test_a_bad_row_keeps_its_id_in_the_metadata(
    tmp_path: Path, server: Simulator, template: Any, arguments: Any
) -> None:
    """Its record is one of the lines' form, and is replaced once the row can be read."""
    path = tmp_path / "t.csv"
    path.write_text("id,n,k\na,1,x\nd,no,y\n")
    made = {"model": "m", "input": "t", "seed": "{{n|json}}", **template}
    account = {"request_url": f"{server.url}/v1/embeddings", "limits": NO_LIMITS}
    assert process_file(path, template=made, **arguments, **account).failed == 1
    records = read_lines(tmp_path / "t_results.jsonl")
    (bad,) = [record for record in records if isinstance(record[0], str)]
    assert bad[2] == {"custom_id": "d"} and "'n' is not JSON" in bad[1][0]
    path.write_text("id,n,k\na,1,x\nd,2,y\n")
    summary = process_file(path, template=made, **arguments, **account)
    assert (summary.already_answered, summary.answered, summary.failed) == (1, 1, 0)


def test_two_rows_with_one_id_are_refused(tmp_path: Path, server: Simulator) -> None:
    """The message names both rows."""
    path = tmp_path / "t.csv"
    path.write_text("id,text\na,1\nb,2\na,3\n")
    with pytest.raises(InputFileError, match="row 1 and row 3 of the requests have the same"):
        process_file(
            path,
            template={"model": "m", "input": "{{text}}"},
            id_column="id",
            request_url=f"{server.url}/v1/embeddings",
        )


def test_a_job_resumes(tmp_path: Path, server: Simulator) -> None:
    """What has an answer is not sent again, in either form of record, and a check finds all of it."""
    path = write_csv(tmp_path / "t.csv", table(60))
    account = {"request_url": f"{server.url}/v1/embeddings", "limits": NO_LIMITS}
    for number, kind in enumerate(({"id_column": "id"}, {"metadata_columns": ["id"]})):
        save = tmp_path / f"results{number}.jsonl"
        assert process_file(path, save, template=TEMPLATE, **kind, **account).answered == 60
        kept = save.read_text().splitlines(keepends=True)[:25]
        save.write_text("".join(kept) + '{"torn')
        again = process_file(path, save, template=TEMPLATE, **kind, **account)
        assert (again.already_answered, again.answered) == (25, 35)
        found = verify_results(open_table(path, TEMPLATE, **kind), save)
        assert found.ok and found.answered == 60
        ids = [o.custom_id or o.metadata["id"] for o in read_results(save)]
        assert sorted(ids, key=int) == [str(number) for number in range(60)]


def test_values_come_back_with_their_types(tmp_path: Path, server: Simulator) -> None:
    """Metadata of a Parquet file are what they were, with quotes, line breaks and braces."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = table(40)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    process_file(
        tmp_path / "t.parquet",
        template={"model": "m", "input": "{{text}}."},
        metadata_columns=list(rows[0]),
        limits=NO_LIMITS,
        request_url=f"{server.url}/v1/embeddings",
    )
    outcomes = list(read_results(tmp_path / "t_results.jsonl"))
    assert sorted((o.metadata for o in outcomes), key=lambda row: row["id"]) == rows
    assert all(o.request.body["input"] == o.metadata["text"] + "." for o in outcomes)


def test_a_table_needs_a_template_and_a_template_a_table(tmp_path: Path, path: Path) -> None:
    """Neither is taken for something else."""
    with pytest.raises(ConfigurationError, match="prompts.csv is a table: give a template"):
        process_file(path, request_url=NOWHERE)
    requests = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "x"}])
    with pytest.raises(
        ConfigurationError, match="a template is for a table, but .*in.jsonl is none"
    ):
        process_file(requests, template=BODY, request_url=NOWHERE)
    for argument in ({"id_column": "id"}, {"metadata_columns": "id"}, {"delimiter": ";"}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(argument))} is for a table"):
            process_file(requests, request_url=NOWHERE, **argument)
    with open_table(path, BODY) as source:
        with pytest.raises(ConfigurationError, match="prompts.csv is none"):
            process_file(source, tmp_path / "out.jsonl", template=BODY, request_url=NOWHERE)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_compressed_table_is_to_be_unpacked(tmp_path: Path) -> None:
    """With a template and without one; the command that is named does it."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"id,text\n7,x\n"))
    for arguments in ({"template": BODY}, {}):
        with pytest.raises((ConfigurationError, InputFileError)) as caught:
            process_file(path, request_url=NOWHERE, **arguments)
        said = re.search(r"is a compressed table: unpack it first \((.*)\), and", str(caught.value))
        assert said is not None
    subprocess.run(said[1], shell=True, check=True, timeout=30)
    assert [json.loads(line)["input"] for _, line in lines(tmp_path / "t.csv", BODY)] == ["x"]


def test_verify_names_the_flags_that_a_run_may_have_had(
    tmp_path: Path, path: Path, server: Simulator
) -> None:
    """With others than those, each row makes another request."""
    template = write_lines(tmp_path / "t.json", [BODY])
    process_file(path, template=BODY, id_column="id", request_url=f"{server.url}/v1/embeddings")
    words = ("verify", "--requests_filepath", path, "--template", template)
    assert run(*words, "--id_column", "id").returncode == 0
    done = run(*words)
    assert done.returncode == 1
    assert "2 records are of requests that the file does not have: give the run's" in done.stderr
    assert "--template, --id_column, --metadata_columns" in done.stderr


@pytest.mark.parametrize("name", ["t.csv", "T.TSV", "t.parquet"])
def test_what_takes_no_template_says_that_a_table_needs_one(tmp_path: Path, name: str) -> None:
    """In one line, instead of one for each row."""
    path = tmp_path / name
    path.write_bytes(b"PAR1\x15" if name == "t.parquet" else b"id,text\n7,x\n")
    with pytest.raises(InputFileError, match="is a table, which needs a template"):
        read_requests(path)


def test_an_output_is_no_input(tmp_path: Path, path: Path) -> None:
    """The table and the template are not written over, through a link neither."""
    template = write_lines(tmp_path / "request.json", [BODY])
    link = tmp_path / "link.jsonl"
    link.symlink_to(template)
    for save, name in ((path, "requests"), (template, "template"), (link, "template")):
        with pytest.raises(
            ConfigurationError, match=f"the {name} and the results file are the same"
        ):
            process_file(path, save, template=template, request_url=NOWHERE)
    assert read_lines(template) == [BODY]


def test_the_command_refuses_what_can_not_work(tmp_path: Path, path: Path) -> None:
    """One line, exit code 2, and no results file."""
    good, bad = write_lines(tmp_path / "t.json", [BODY]), tmp_path / "bad.json"
    bad.write_text('{"input": {{text}}}')
    requests = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "x"}])
    before = sorted(os.listdir(tmp_path))
    for words, problem in (
        ([path], "prompts.csv is a table: give a template"),
        ([path, "--template", bad], "bad.json is not JSON: "),
        ([path, "--template", tmp_path / "none.json"], "can't read the template"),
        ([path, "--template", good, "--id_column", "Text "], "did you mean 'text'"),
        (
            [path, "--template", good, "--delimiter", ";"],
            "no column 'text'. It has 'id,text,n': is ',' its delimiter?",
        ),
        ([requests, "--template", good], "a template is for a table"),
        ([requests, "--id-column", "id"], "id_column is for a table"),
    ):
        for command in ([], ["verify"]):
            done = run(*command, "--requests_filepath", *words, "--request_url", NOWHERE)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert problem in done.stderr
    done = run("run-on-ray", "--requests_filepath", path, "--request_url", NOWHERE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "prompts.csv is a table, which run-on-ray doesn't take" in done.stderr
    words = ("--requests_filepath", requests, "--request_url", NOWHERE)
    for flag in ("--save_filepath", "--errors_filepath"):
        done = run("run-on-ray", *words, flag, "s3://b/out.jsonl.gz")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "not compressed: name a folder, such as s3://b/out\n" in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    """As a missing file of requests is."""
    with pytest.raises(InputFileError, match="can't read .*none.csv: No such file"):
        process_file(tmp_path / "none.csv", template=BODY, request_url=NOWHERE)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ConfigurationError, match="the requests file .* is a directory"):
        process_file(tmp_path / "folder.parquet", template=BODY, request_url=NOWHERE)


def test_lines_are_requests_of_rows(path: Path) -> None:
    """The numbers of requests are those of rows, and messages say so."""
    with open_table(path, {"input": "{{text}}", "stream": True}) as source:
        first, second = requests_in(source.numbered(), "https://example.com/v1/x", source.place)
    assert (first.number, second.number, source.place(2)) == (1, 2, "row 2")


def test_rows_with_an_id_are_not_taken_for_anothers_form(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The form that ``id_column`` makes is the package's own: there is nothing to tell."""
    caplog.set_level(logging.INFO)
    with open_table(path, BODY, id_column="id") as source:
        assert [each.custom_id for each in read_requests(source)] == ["07", "08"]
    assert "in the form of" not in caplog.text


def test_no_descriptor_stays_open(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither after an error nor at the end."""
    caplog.set_level(logging.INFO)
    before = len(os.listdir("/dev/fd"))
    lines(path, BODY)
    with pytest.raises(ConfigurationError):
        open_table(path, {"input": "{{nothing}}"})
    assert len(os.listdir("/dev/fd")) == before
