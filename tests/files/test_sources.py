"""What a user can name as requests, and what is refused before anything is sent."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, read_lines, run, write_lines
from raw_server import RawServer, answer_all
from services import processor, rows

from parallel_processor.api import process_file
from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.sources import GivenLines, find_sources, open_sources
from parallel_processor.files.verify import verify_results


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that answers everything."""
    with RawServer(answer_all) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three parts of 30 requests; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_lines(tmp_path / f"part-{number}.jsonl", rows(10, number * 10))
    return tmp_path


def lines_of(given: Any) -> list[tuple[int, Any]]:
    """All lines with their numbers."""
    with open_sources(find_sources(given)) as lines:
        return [(number, json.loads(line)) for number, line in lines.numbered()]


NUMBERED = list(enumerate(rows(30), 1))


@pytest.mark.parametrize(
    "given",
    [
        "part-*.jsonl",
        Path("part-?.jsonl"),
        ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"],
        ("part-[01].jsonl", Path("part-2.jsonl")),
        "**/part-*.jsonl",
    ],
)
def test_several_files_are_one(folder: Path, given: Any) -> None:
    """In the order in which they are named, a pattern's by name; lines are numbered through."""
    assert lines_of(given) == NUMBERED


def test_a_line_is_named_with_its_file(folder: Path) -> None:
    """A bad line's record, and the progress, are those of the right file."""
    (folder / "part-1.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n\nnonsense\n'))
    with open_sources(find_sources("part-*.jsonl")) as lines:
        assert lines.fraction() is None
        numbers = [number for number, _ in lines.numbered()]
        places = [lines.place(number) for number in (1, 10, 11, 13, 14)]
        assert lines.fraction() == 1
    assert numbers == list(range(1, 24))
    assert places == [
        *("part-0.jsonl, line 1", "part-0.jsonl, line 10", "part-1.jsonl, line 1"),
        *("part-1.jsonl, line 3", "part-2.jsonl, line 1"),
    ]


def test_a_bad_line_of_several_files_is_a_record_that_names_the_file(
    folder: Path, server: RawServer
) -> None:
    """The others are answered, and one id in two files is an error that names both."""
    (folder / "part-1.jsonl").write_text("nonsense\n")
    with processor(server.url) as made:
        summary = made.process_file("part-*.jsonl", "out.jsonl")
        assert (summary.answered, summary.failed) == (20, 1)
        failed = [
            record for record in read_lines(folder / "out.jsonl") if isinstance(record[0], str)
        ]
        assert failed[0][1][0].startswith("part-1.jsonl, line 1: not JSON")
        row = {"custom_id": "x", "body": {"model": "m", "input": "a"}}
        write_lines(folder / "part-1.jsonl", [row])
        write_lines(folder / "part-2.jsonl", [row | {"body": {"model": "m", "input": "b"}}])
        with pytest.raises(InputFileError, match=r"part-1.jsonl, line 1 and part-2.jsonl, line 1 "):
            made.process_file("part-*.jsonl", "other.jsonl")


def test_each_file_is_looked_at_before_anything_is_sent(folder: Path, server: RawServer) -> None:
    """The last one of them may be of another format."""
    (folder / "part-2.jsonl").write_bytes(b"PAR1nonsense")
    with (
        processor(server.url) as made,
        pytest.raises(InputFileError, match=r"part-2\.jsonl is a Par"),
    ):
        made.process_file("part-*.jsonl", "out.jsonl")
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("none-*.jsonl", InputFileError, r"none-\*\.jsonl: no file has such a name"),
        (["part-0.jsonl", "./part-0.jsonl"], ConfigurationError, "is the same file of requests"),
        (["part-*.jsonl", "link.jsonl"], ConfigurationError, "link.jsonl is the same file"),
        ([], ConfigurationError, "at least one file"),
        ([{"model": "m"}], TypeError, r"for lines pass iter\(lines\)"),
        (7, TypeError, "can't be read from a int"),
        ("xyz://bucket/file", ConfigurationError, "xyz://bucket/file"),
    ],
)
def test_what_cant_be_read_is_said_at_once(
    folder: Path, given: Any, error: type[Exception], words: str
) -> None:
    """The message says which name, and what to do."""
    (folder / "link.jsonl").symlink_to("part-1.jsonl")
    with pytest.raises(error, match=words):
        lines_of(given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--save_filepath", "part-1.jsonl"), "the requests and the results file are the same"),
        (("--save_filepath", "link.jsonl"), "the requests and the results file are the same"),
        (
            ("--save_filepath", "o", "--errors_filepath", "part-2.jsonl"),
            "requests and the errors file",
        ),
        (
            ("--save_filepath", "o.gz", "--errors_filepath", "o.gz"),
            "results and the errors file are",
        ),
        (("--save_filepath", "o.xz"), "compressed as .gz or .zst only"),
        (("--save_filepath", "https://host/o"), "https:// can only be read"),
        ((), "the requests come from 3 files: name a results file"),
    ],
)
def test_outputs_that_cant_be_are_refused(folder: Path, words: tuple[str, ...], said: str) -> None:
    """An output that is an input, also through a link, and two outputs at one path."""
    (folder / "link.jsonl").symlink_to("part-1.jsonl")
    before = (folder / "part-1.jsonl").read_bytes()
    done = run("--requests_filepath", "part-*.jsonl", *words, "--api_key", "k")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert (folder / "part-1.jsonl").read_bytes() == before


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_pattern_that_matches_the_results_means_the_requests(
    folder: Path, server: RawServer, ending: str
) -> None:
    """The same command goes on, although its results are there now. So does ``verify``."""
    save, errors = f"results.jsonl{ending}", f"errors.jsonl{ending}"
    files = ("--save_filepath", save, "--errors_filepath", errors)
    words = ("--requests_filepath", "*.jsonl*", *files)
    for answered in (30, 0):
        done = run(*words, "--request_url", server.url, "--api_key", "k")
        assert done.returncode == 0 and f"requests: {answered} answered" in done.stderr
    assert run("verify", *words).stdout.split()[:4] == ["lines", "30", "answered", "30"]
    assert verify_results("*.jsonl*", save, errors).ok
    with pytest.raises(InputFileError, match=r"no file of requests has such a name"):
        process_file("r*.jsonl*", save, request_url=server.url, api_key="k")


def test_rows_that_share_an_id_are_named_with_their_files(folder: Path) -> None:
    """By ``verify`` too, which numbers the lines of all files through."""
    for number in range(2):
        row = {"custom_id": "x", "url": "/v1/embeddings", "body": {"model": "m", "input": number}}
        write_lines(folder / f"row-{number}.jsonl", [{"model": "m", "input": "a"}, row])
    save = write_lines(folder / "out.jsonl", [])
    done = run("verify", "--requests_filepath", "row-*.jsonl", "--save_filepath", save)
    assert done.stderr.startswith("row-0.jsonl, line 2 and row-1.jsonl, line 2 have the same")


def test_where_results_go_is_found_out_before_they_are_there(
    folder: Path, server: RawServer
) -> None:
    """They may match the pattern: then the run would end with an error behind its last answer."""
    words = ("--requests_filepath", "part-0*.jsonl", "--request_url", server.url, "--api_key", "k")
    for answered in (10, 0):
        done = run(*words)
        assert done.returncode == 0 and "results are in part-0_results.jsonl" in done.stderr
        assert f"requests: {answered} answered" in done.stderr
    done = run("verify", "--requests_filepath", "part-0*.jsonl")
    assert done.returncode == 0 and "answered 10\n" in done.stdout, done.stderr


def test_every_file_may_be_named_by_a_file_url(folder: Path, server: RawServer) -> None:
    """Requests, results, failures and the report; and the results and the table of an export."""
    files = [f"file://{folder}/{name}" for name in ("part-0.jsonl", "out.jsonl", "bad.jsonl")]
    names = ("--requests_filepath", "--save_filepath", "--errors_filepath")
    words = [word for pair in zip(names, files, strict=True) for word in pair]
    run_words = (*words, "--report_filepath", f"file://{folder}/report.json")
    done = run(*run_words, "--request_url", server.url, "--api_key", "k")
    assert done.returncode == 0, done.stderr
    assert run("verify", *words).returncode == 0
    assert run("export", files[1], f"file://{folder}/t.csv").returncode == 0
    made = {"out.jsonl", "bad.jsonl", "report.json", "t.csv"}
    assert {each.name for each in folder.iterdir()} == made | {f"part-{n}.jsonl" for n in range(3)}


def test_a_file_named_like_a_pattern_is_a_file(folder: Path) -> None:
    """What is there under the very name is meant."""
    (folder / "in[0].jsonl").write_text('{"a": 1}\n')
    assert lines_of("in[0].jsonl") == [(1, {"a": 1})]


def test_open_files_are_read_and_stay_open(folder: Path) -> None:
    """Compressed or not, of any kind that gives bytes; one that gives text gives lines."""
    data = b"".join((folder / f"part-{number}.jsonl").read_bytes() for number in range(3))
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        archive.writestr("in.jsonl", data)
    with (
        io.BytesIO(data) as plain,
        io.BytesIO(gzip.compress(data)) as packed,
        zipfile.ZipFile(folder / "in.zip").open("in.jsonl") as member,
        io.StringIO(data.decode()) as text,
    ):
        for file in (plain, packed, member, text):
            assert lines_of(file) == NUMBERED
            assert not file.closed


def test_lines_of_a_program_are_read_as_they_are_needed(tmp_path: Path, server: RawServer) -> None:
    """Bytes or text; its errors end the run, and what is no line is named."""

    def some() -> Iterator[bytes | str]:
        for number, row in enumerate(rows(50)):
            yield json.dumps(row) if number % 2 else json.dumps(row).encode() + b"\n"

    with processor(server.url) as made:
        assert made.process_file(some(), tmp_path / "out.jsonl").answered == 50
        assert made.process_file(some(), tmp_path / "out.jsonl").already_answered == 50
        with pytest.raises(ConfigurationError, match="the lines: name a results file"):
            made.process_file(some())
        with pytest.raises(TypeError, match="line 1 is a dict, not bytes or str"):
            made.process_file(iter(rows(1)), tmp_path / "out.jsonl")  # type: ignore[arg-type]
    assert GivenLines([]).fraction() is None
    assert verify_results(some(), tmp_path / "out.jsonl").ok


FAST = ("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf", "--logging_level", 40)


def through_a_pipe(data: bytes, *words: object) -> subprocess.CompletedProcess[bytes]:
    """The command with ``data`` at its standard input."""
    return subprocess.run(
        command(*words), input=data, capture_output=True, env=environment(), timeout=60
    )


def test_pipes_on_both_sides(folder: Path, server: RawServer) -> None:
    """``-`` is standard input and output; nothing but records is written there."""
    data = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows(20)))
    url = ("--request_url", f"{server.url}/v1/embeddings", "--logging_level", 20)
    for words in (
        ("--requests_filepath", "-"),
        ("--requests_filepath", "-", "--save_filepath", "-"),
    ):
        done = through_a_pipe(data, *words, *url)
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert sorted(record[0]["input"] for record in records) == sorted(
            row["input"] for row in rows(20)
        )
    assert b"20 answered" in done.stderr


def test_a_pipe_resumes_from_a_results_file(folder: Path, server: RawServer) -> None:
    """The same pipe again sends what has no answer, in one more member of a compressed results file."""
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows(20))
    url = ("--request_url", f"{server.url}/v1/embeddings", *FAST)
    for part in (data[: data.rindex(b"\n", 0, data.index(b"text 9")) + 1], data, data):
        done = through_a_pipe(
            part, "--requests_filepath", "-", "--save_filepath", "out.jsonl.gz", *url
        )
        assert done.returncode == 0, done.stderr
    (folder / "in.jsonl").write_bytes(data)
    assert verify_results(folder / "in.jsonl", folder / "out.jsonl.gz").ok
    assert (folder / "out.jsonl.gz").read_bytes().count(b"\x1f\x8b\x08\0\0\0\0\0\0\xff") == 2


def test_standard_input_that_is_closed_is_said(folder: Path) -> None:
    """Instead of reading whatever has its descriptor by now."""
    words = command("--requests_filepath", "-", "--save_filepath", "o", "--api_key", "k")
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *words], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 2 and "standard input: it is closed" in done.stderr, done.stderr


def test_appending_to_standard_output_resumes(folder: Path, server: RawServer) -> None:
    """Where the shell has it go on with a file, its records count."""
    words = command(
        *("--requests_filepath", "part-0.jsonl", "--save_filepath", "-"),
        *("--request_url", f"{server.url}/v1/embeddings", *FAST),
    )
    for _ in range(2):
        with open("out.jsonl", "ab") as out:
            subprocess.run(words, stdout=out, env=environment(), timeout=60, check=True)
    assert len(read_lines(folder / "out.jsonl")) == 10


def test_the_directory_of_requests_is_not_searched(folder: Path) -> None:
    """A folder is no pattern: it is refused as such."""
    os.mkdir("sub")
    with pytest.raises(ConfigurationError, match="is a directory"):
        process_file("sub", "out.jsonl", api_key="k")
