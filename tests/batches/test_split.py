"""Files to upload: each within the API's rules, all requests in them, and nothing half-written."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines

from parallel_processor.batches.split import split
from parallel_processor.exceptions import ConfigurationError, InputFileError, ResultsFileError

CHAT = "/v1/chat/completions"


def body(text: Any, model: str = "m") -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": str(text)}]}


def texts(path: Path) -> list[str]:
    """What the rows of a file ask."""
    return [line["body"]["messages"][0]["content"] for line in read_lines(path)]


def names(folder: Path) -> list[str]:
    """The files in a folder."""
    return sorted(each.name for each in folder.iterdir())


def test_each_file_has_at_most_so_many_lines_and_bytes(tmp_path: Path) -> None:
    """In the order of the requests; the sizes that are told are those on the disk."""
    source = write_lines(tmp_path / "in.jsonl", [body(n) for n in range(10)])
    made = split(source, tmp_path / "up.jsonl", request_url=CHAT, max_lines=4)
    assert [(each.path.name, each.lines) for each in made] == [
        ("up-001.jsonl", 4),
        ("up-002.jsonl", 4),
        ("up-003.jsonl", 2),
    ]
    assert [each.size_bytes for each in made] == [each.path.stat().st_size for each in made]
    assert list(itertools.chain.from_iterable(texts(each.path) for each in made)) == [
        str(n) for n in range(10)
    ]
    line = len((tmp_path / "up-001.jsonl").read_bytes().splitlines(keepends=True)[0])
    made = split(
        source, tmp_path / "up.jsonl", request_url=CHAT, max_bytes=3 * line, overwrite=True
    )
    assert [each.lines for each in made] == [3, 3, 3, 1]
    assert all(each.size_bytes <= 3 * line for each in made)
    made = split(source, tmp_path / "up.jsonl", request_url=CHAT, overwrite=True)
    assert names(tmp_path) == ["in.jsonl", "up-001.jsonl"]  # those of before are gone


def test_a_row_has_the_four_members_and_the_body_byte_for_byte(tmp_path: Path) -> None:
    """Ids are those of the rows, those in the metadata, or those of the lines."""
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"model":"m","n":1.10,"metadata":{"custom_id":"own"}}\n'
        '{"custom_id":"row","body":{ "model" : "m", "x": "é" },"url":"/v1/chat/completions"}\n'
        '\n{"model":"m","stream":true,"messages":[]}\n',
        encoding="utf-8",
    )
    (made,) = split(source, tmp_path / "up.jsonl", request_url="http://h/proxy" + CHAT)
    head = f'"method": "POST", "url": "{CHAT}", "body": '
    assert made.path.read_text("utf-8").splitlines() == [
        f'{{"custom_id": "own", {head}{{"model":"m","n":1.10}}}}',
        f'{{"custom_id": "row", {head}{{ "model" : "m", "x": "é" }}}}',
        f'{{"custom_id": "request-4", {head}{{"model":"m", "messages":[]}}}}',
    ]


def test_each_model_and_endpoint_has_files_of_its_own(tmp_path: Path) -> None:
    """An API refuses a file with two."""
    embeddings = {"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "a", "input": "x"}}
    rows = [body(1, "a"), body(2, "b"), embeddings, body(3, "a"), {**body(4), "model": None}]
    source = write_lines(tmp_path / "in.jsonl", rows)
    made = split(source, tmp_path / "up.jsonl", request_url=CHAT, model="filled")
    assert [(each.model, each.endpoint, each.lines) for each in made] == [
        ("a", CHAT, 2),
        ("b", CHAT, 1),
        ("a", "/v1/embeddings", 1),
        ("filled", CHAT, 1),
    ]


def test_embeddings_of_many_inputs_fill_a_file_sooner(tmp_path: Path) -> None:
    """The inputs of a file count, not only its lines."""
    rows = [{"model": "m", "input": ["x"] * 40} for _ in range(5)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    made = split(source, tmp_path / "up.jsonl", request_url="/v1/embeddings", max_lines=100)
    assert [each.lines for each in made] == [2, 2, 1]


def test_more_models_than_open_files_are_no_matter(tmp_path: Path) -> None:
    """Each file is open only while a piece of it is written."""
    source = write_lines(tmp_path / "in.jsonl", [body(n, f"m{n % 700}") for n in range(1400)])
    made = split(source, tmp_path / "up.jsonl", request_url=CHAT)
    assert len(made) == 700 and {each.lines for each in made} == {2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("no JSON", "line 2: not JSON"),
        ({"messages": []}, "line 2 names no model: give one with --model"),
        (
            {"custom_id": "x", "method": "GET", "body": {"model": "m"}},
            "line 2: method is 'GET', not POST",
        ),
        ({"custom_id": "", "body": {"model": "m"}}, "line 2 has an empty custom_id"),
        ({"custom_id": "x", "model": "m"}, "line 2: it is no request, but a row of no known form"),
        ({"key": "x", "request": {}}, "line 2 is a row in the form of Gemini"),
        (body("x" * 5000), "line 2 has 5,1"),
    ],
)
def test_what_cant_be_uploaded_is_named_and_nothing_is_written(
    row: Any, reason: str, tmp_path: Path
) -> None:
    """An API would refuse the whole file, an hour later."""
    source = tmp_path / "in.jsonl"
    lines = [json.dumps(body(1)), row if isinstance(row, str) else json.dumps(row)]
    source.write_text("\n".join([*lines, json.dumps(body(3))]))
    with pytest.raises(InputFileError) as caught:
        split(source, tmp_path / "up.jsonl", request_url=CHAT, max_bytes=3000)
    assert f"\n  {reason}" in str(caught.value)
    assert names(tmp_path) == ["in.jsonl"]


def test_a_line_that_cant_be_uploaded_is_named_with_its_file(tmp_path: Path) -> None:
    """Once, whatever is wrong with it."""
    one = write_lines(tmp_path / "one.jsonl", [body(1)])
    two = write_lines(tmp_path / "two.jsonl", [{"key": "x", "request": {}}, {"messages": []}])
    with pytest.raises(InputFileError) as caught:
        split([one, two], tmp_path / "up.jsonl", request_url=CHAT)
    first, second = str(caught.value).splitlines()[1:]
    assert first.startswith(f"  {two}, line 1 is a row in the form of Gemini")
    assert second.startswith(f"  {two}, line 2 names no model")


def test_a_request_without_an_endpoint_is_refused(tmp_path: Path) -> None:
    """That of the default URL would be a guess."""
    source = write_lines(tmp_path / "in.jsonl", [body(1)])
    with pytest.raises(
        InputFileError, match="line 1 names no endpoint: give it with --request_url"
    ):
        split(source, tmp_path / "up.jsonl")


def test_many_bad_lines_are_told_in_a_few(tmp_path: Path) -> None:
    """The first ten."""
    source = write_lines(tmp_path / "in.jsonl", [{"messages": []}] * 50)
    with pytest.raises(InputFileError) as caught:
        split(source, tmp_path / "up.jsonl", request_url=CHAT)
    assert len(str(caught.value).splitlines()) == 12
    assert "and perhaps more" in str(caught.value)


@pytest.mark.parametrize("second", ["one", "two"])
def test_an_id_that_is_there_twice_is_refused(second: str, tmp_path: Path) -> None:
    """Also of equal requests: the API takes each id once."""
    rows = [
        {"custom_id": "a", "body": body("one")},
        body(1),
        {"custom_id": "a", "body": body(second)},
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputFileError, match="line 1 and line 3 .* same custom_id 'a'"):
        split(source, tmp_path / "up.jsonl", request_url=CHAT)
    assert names(tmp_path) == ["in.jsonl"]


def test_files_that_are_there_stay_without_overwrite(tmp_path: Path) -> None:
    """And with it, if something goes wrong."""
    source = write_lines(tmp_path / "in.jsonl", [body(1)])
    (made,) = split(source, tmp_path / "up.jsonl", request_url=CHAT)
    before = made.path.read_bytes()
    write_lines(source, [body(2)])
    with pytest.raises(ConfigurationError, match="up-001.jsonl is there already"):
        split(source, tmp_path / "up.jsonl", request_url=CHAT)
    write_lines(source, [body(2), {"messages": []}])
    with pytest.raises(InputFileError):
        split(source, tmp_path / "up.jsonl", request_url=CHAT, overwrite=True)
    assert (made.path.read_bytes(), names(tmp_path)) == (before, ["in.jsonl", "up-001.jsonl"])


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before stays as it was."""
    source = write_lines(tmp_path / "in.jsonl", [body(1)])

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(ResultsFileError, match="No space left"):
            split(source, tmp_path / "up.jsonl", request_url=CHAT)
    assert names(tmp_path) == ["in.jsonl"]


def test_the_command_says_what_is_in_each_file(tmp_path: Path) -> None:
    """On its output, with exit code 0; errors are one line, or name the lines."""
    source = write_lines(tmp_path / "in.jsonl", [body(n) for n in range(3)])
    words = ("to-batch", "--requests_filepath", source)
    done = run(*words, "--request_url", CHAT, "--max_lines", 2)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/in_batch-001.jsonl: 2 lines, 0.0 MB, m, {CHAT}")
    assert "in_batch-002.jsonl: 1 lines" in second
    for more, code, text in (
        (("--request_url", CHAT), 2, "is there already"),
        (("--save_filepath", tmp_path / "x.jsonl"), 2, "line 1 names no endpoint"),
        (
            ("--request_url", "chat"),
            2,
            "--request_url must be a URL or path that ends in an endpoint",
        ),
        (("--request_url", "https://api.openai.com"), 2, "--request_url must be"),
        (("--max_lines", 0), 2, "--max_lines must be at least 1"),
        (("--save_filepath", tmp_path / "no" / "x.jsonl"), 2, "the directory of the results file"),
        (("--save_filepath", source), 2, "are the same"),
        (("--save_filepath", tmp_path / "x.jsonl.gz"), 2, "files that are not compressed"),
    ):
        done = run(*words, *more)
        assert (done.returncode, done.stdout) == (code, "")
        assert text in done.stderr and "Traceback" not in done.stderr


def test_names_of_the_files_to_upload(tmp_path: Path) -> None:
    """Those of compressed requests lack the compression; the requests are never replaced."""
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(body(1)).encode() + b"\n"))
    done = run("to-batch", "--requests_filepath", packed, "--request_url", CHAT)
    assert done.returncode == 0 and texts(tmp_path / "in_batch-001.jsonl") == ["1"]
    source = write_lines(tmp_path / "up-007.jsonl", [body(n) for n in range(3)])
    before = source.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ConfigurationError, match="the name of one of the files to upload"):
            split(source, tmp_path / "up.jsonl", request_url=CHAT, overwrite=overwrite)
    assert source.read_bytes() == before
    table = tmp_path / "prompts.csv"
    table.write_text("id,text\n1,x\n")
    done = run("to-batch", "--requests_filepath", table, "--request_url", CHAT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "prompts.csv is a table, which needs a template" in done.stderr
    done = run("to-batch", "--requests_filepath", "")
    assert done.returncode == 2 and "the requests file . is a directory" in done.stderr
