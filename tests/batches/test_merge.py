"""One results file of what several batches sent back: each request once, its answer before its failure."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from commands import command, environment, read_lines, run, write_lines
from raw_server import RawServer, Visit, answer_all
from services import HASTE, NO_LIMITS

from parallel_processor import process_file, read_results, verify_results
from parallel_processor.batches.merge import Merged, merge
from parallel_processor.batches.split import split
from parallel_processor.exceptions import ConfigurationError, InputFileError, ResultsFileError
from parallel_processor.files.append_file import open_results
from parallel_processor.files.compression import unpacked

PATH = "/v1/embeddings"


def body(text: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "m", "input": str(text)}


def good(custom_id: str, answer: Any = 1.0, **more: Any) -> dict[str, Any]:
    """A line of an output file."""
    found = {"data": [{"index": 0, "embedding": [answer]}]}
    framed = {"status_code": 200, "request_id": "r", "body": found}
    return {"id": "batch_req_0", "custom_id": custom_id, "response": framed, "error": None, **more}


def bad(custom_id: str, code: str = "batch_expired") -> dict[str, Any]:
    """A line of an error file."""
    error = {"code": code, "message": "too late"}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": None, "error": error}


def answer_some(visit: Visit) -> None:
    """Refuses every third request, and answers the others with what they ask."""
    while visit.read():
        number = int(json.loads(visit.body)["input"])
        if number % 3 == 0:
            visit.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")
        else:
            found = {"data": [{"index": 0, "embedding": [float(number)]}]}
            visit.answer(json.dumps(found).encode())


@pytest.mark.parametrize("form", ["auto", "batch", "cookbook"])
@pytest.mark.parametrize("are_rows", [True, False])
def test_there_and_back_is_the_identity(are_rows: bool, form: Any, tmp_path: Path) -> None:
    """``to-batch``, a server that answers rows, ``from-batch``: every id with its own answer, in order."""
    bodies = [
        body(n) | ({"metadata": {"row": n}} if n % 2 and not are_rows else {}) for n in range(1000)
    ]
    lines = [{"custom_id": f"id-{n}", "url": PATH, "body": each} for n, each in enumerate(bodies)]
    source = write_lines(tmp_path / "in.jsonl", lines if are_rows else bodies)
    files = split(source, tmp_path / "up.jsonl", request_url=PATH, max_lines=170)
    assert sum(each.lines for each in files) == 1000
    back: list[Path] = []
    with RawServer(answer_some) as server:
        for number, file in enumerate(files):
            back += [tmp_path / f"out-{number}.jsonl", tmp_path / f"err-{number}.jsonl"]
            summary = process_file(
                *(file.path, back[-2]),
                errors_path=back[-1],
                request_url=server.url + PATH,
                limits=NO_LIMITS,
                retry=HASTE,
                stop_after_equal_failures=0,
            )
            assert summary.attempts == file.lines
    random.Random(15).shuffle(back)
    save = tmp_path / "results.jsonl"
    found = merge(back, save, requests_path=source, output_format=form)
    assert found == Merged(answered=666, failed=334)
    for number, outcome in enumerate(read_results(save)):
        assert outcome.ok == (number % 3 != 0)
        if outcome.ok:
            assert outcome.embedding == [float(number)]
        expected = f"id-{number}" if are_rows else f"request-{number + 1}"
        if form == "batch" or (form == "auto" and are_rows):
            assert outcome.custom_id == expected
        if outcome.custom_id is None:
            assert outcome.request.body["input"] == str(number)
            metadata = {"custom_id": expected} if are_rows else bodies[number].get("metadata")
            assert outcome.metadata == metadata
    assert verify_results(source, save).failed == 334
    with RawServer(answer_all) as server:
        summary = process_file(
            source, save, request_url=server.url + PATH, limits=NO_LIMITS, output_format=form
        )
    assert (summary.already_answered, summary.answered) == (666, 334)
    assert verify_results(source, save).ok


@pytest.mark.parametrize("form", ["auto", "batch", "cookbook"])
def test_results_of_a_run_are_merged_in_any_form(
    form: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They say of which lines they are; nothing is said to be sent."""
    caplog.set_level(logging.INFO)
    lines = [body(1), {"custom_id": "a", "body": body(2)}]
    source = write_lines(tmp_path / "in.jsonl", lines)
    with RawServer(answer_all) as server:
        account: dict[str, Any] = {"request_url": server.url + PATH, "limits": NO_LIMITS}
        process_file(source, tmp_path / "up", output_format="batch", **account)
    caplog.clear()
    found = merge(
        [tmp_path / "up"], tmp_path / "out.jsonl", requests_path=source, output_format=form
    )
    assert found == Merged(answered=2)
    assert "sent" not in caplog.text
    assert verify_results(source, tmp_path / "out.jsonl").ok
    other = write_lines(tmp_path / "other.jsonl", [body(3)])
    with pytest.raises(
        InputFileError, match=r"other\.jsonl, line 1 is not the request whose result"
    ):
        merge([tmp_path / "up"], tmp_path / "o.jsonl", requests_path=[other, source])


def test_the_results_may_be_behind_a_link(tmp_path: Path) -> None:
    """Which stays one, as where a run appends to it."""
    answers = write_lines(tmp_path / "out", [good("a")])
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    assert merge([answers], tmp_path / "link.jsonl") == Merged(answered=1)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(read_lines(tmp_path / "real.jsonl")) == 1
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["link.jsonl", "out", "real.jsonl"]


def test_an_answer_comes_before_a_failure_and_the_first_before_the_second(tmp_path: Path) -> None:
    """In whichever file each is."""
    one = write_lines(
        tmp_path / "1.jsonl", [bad("a"), good("b", 1.0), bad("c", "first"), good("d")]
    )
    two = write_lines(
        tmp_path / "2.jsonl", [good("a", 2.0), bad("b"), bad("c", "second"), good("d", 9.0)]
    )
    found = merge([one, two], tmp_path / "out.jsonl")
    assert found == Merged(answered=3, failed=1, doubled=4)
    outcomes = {each.custom_id: each for each in read_results(tmp_path / "out.jsonl")}
    assert {key: each.embedding for key, each in outcomes.items()} == {
        "a": [2.0],
        "b": [1.0],
        "c": None,
        "d": [1.0],
    }
    assert outcomes["c"].error_kind == "first"


def test_lines_of_a_batch_stay_as_they_came(tmp_path: Path) -> None:
    """With what else the API has put into them."""
    text = b'{"id":"batch_req_Q","custom_id":"a","response":{"status_code":200,"body":{"n":1.10}},"x":1}'
    (tmp_path / "1.jsonl").write_bytes(b"\xef\xbb\xbf" + text + b"\r\n\n")
    assert merge([tmp_path / "1.jsonl"], tmp_path / "out.jsonl").ok
    assert (tmp_path / "out.jsonl").read_bytes() == text + b"\n"


def test_results_of_other_apis_become_lines_of_openais(tmp_path: Path) -> None:
    """And of an answer with the requests, whatever form is asked for."""
    message = {"type": "message", "content": [{"type": "text", "text": "Hi"}]}
    rows = [
        {"custom_id": "a", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "b", "result": {"type": "expired"}},
        {"key": "c", "response": {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}},
        {"recordId": "d", "modelInput": {"inputText": "x"}, "modelOutput": {"results": [{"n": 1}]}},
    ]
    one = write_lines(tmp_path / "1.jsonl", rows)
    assert merge([one], tmp_path / "out.jsonl") == Merged(answered=3, failed=1)
    lines = {line["custom_id"]: line for line in read_lines(tmp_path / "out.jsonl")}
    assert lines["a"]["response"] == {"status_code": 200, "request_id": None, "body": message}
    assert lines["b"]["error"]["code"] == "expired"
    assert lines["d"]["response"]["body"] == {"results": [{"n": 1}]}
    requests = [
        {"custom_id": "a", "params": {"n": 1}},
        {"key": "c", "request": {"n": 2}},
        {"recordId": "d", "modelInput": {"inputText": "x"}},
    ]
    source = write_lines(tmp_path / "in.jsonl", requests)
    found = merge([one], tmp_path / "own.jsonl", requests_path=source)
    assert found == Merged(answered=3, foreign=1)
    assert read_lines(tmp_path / "own.jsonl") == [rows[0], rows[2], rows[3]]


def test_what_is_no_result_is_left_out_and_told(tmp_path: Path) -> None:
    """A torn download, a page of an error: the other lines are there."""
    one = tmp_path / "1.jsonl"
    one.write_text(json.dumps(good("a")) + '\n<html>\n[1, {"b": 2}]\n{"custom_id": "b", "resp')
    found = merge([one], tmp_path / "out.jsonl")
    assert (found.answered, found.torn, found.ok) == (1, 3, False)
    assert found.first_torn == f"line 2 of {one}"


def test_results_of_other_requests_and_none_are_counted(tmp_path: Path) -> None:
    """What has no result is left to the next run."""
    source = write_lines(tmp_path / "in.jsonl", [body(1), body(2)])
    one = write_lines(tmp_path / "1.jsonl", [good("request-2"), good("other")])
    found = merge([one], tmp_path / "out.jsonl", requests_path=source)
    assert found == Merged(answered=1, missing=1, foreign=1)
    assert [each.request.body for each in read_results(tmp_path / "out.jsonl")] == [body(2)]


def test_requests_that_share_an_id_are_refused(tmp_path: Path) -> None:
    """One result can't be of both, whatever form the records get."""
    source = write_lines(
        tmp_path / "in.jsonl", [body(n) | {"metadata": {"custom_id": "x"}} for n in (1, 2)]
    )
    one = write_lines(tmp_path / "1.jsonl", [good("x")])
    for form in ("auto", "batch", "cookbook"):
        with pytest.raises(InputFileError, match="line 1 and line 2 .* same custom_id 'x'"):
            merge([one], tmp_path / "out.jsonl", requests_path=source, output_format=form)  # type: ignore[arg-type]
    assert not (tmp_path / "out.jsonl").exists()


def test_a_result_that_says_whose_it_is_is_not_given_to_another(tmp_path: Path) -> None:
    """Records of this program have the hash of the line that they are of."""
    source = write_lines(tmp_path / "in.jsonl", [body(1), body(2)])
    with RawServer(answer_all) as server:
        process_file(
            *(source, tmp_path / "1.jsonl"),
            request_url=server.url + PATH,
            limits=NO_LIMITS,
            output_format="batch",
        )
    write_lines(source, [body(0), body(1), body(2)])
    with pytest.raises(InputFileError, match="line 1 is not the request whose result has the id"):
        merge([tmp_path / "1.jsonl"], tmp_path / "out.jsonl", requests_path=source)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("are_there", [True, False])
def test_what_cant_be_done_is_told_before_anything_is_written(
    are_there: bool, tmp_path: Path
) -> None:
    """A form without the requests, a file that is there, an output that is an input, a missing input."""
    one = write_lines(tmp_path / "1.jsonl", [good("a")])
    save = tmp_path / "out.jsonl"
    if are_there:
        save.write_text("mine\n")
    link = tmp_path / "link.jsonl"
    link.symlink_to(one)
    with pytest.raises(ConfigurationError, match="name their file with --requests_filepath"):
        merge([one], save, output_format="cookbook")
    with pytest.raises(ConfigurationError, match="is an input"):
        merge([one], link)
    for bad in (tmp_path, tmp_path / "no" / "out.jsonl"):
        with pytest.raises(ConfigurationError, match="directory"):
            merge([one], bad)
    with pytest.raises((ResultsFileError, ConfigurationError)):
        merge([one, tmp_path / "none.jsonl"], save)
    if are_there:
        with pytest.raises(ConfigurationError, match="is there already"):
            merge([one], save)
        assert save.read_text() == "mine\n"
        assert merge([one], save, overwrite=True).answered == 1
    else:
        assert not save.exists()


def test_many_ids_are_told_apart(tmp_path: Path) -> None:
    """Whatever the order; the best result of each is found."""
    rng = random.Random(1)
    ids = [f"id-{rng.random()}" for _ in range(30_000)]
    lines = [good(each, float(n)) for n, each in enumerate(ids)]
    lines += [bad(each) for each in ids]
    rng.shuffle(lines)
    one = write_lines(tmp_path / "1.jsonl", lines)
    assert merge([one], tmp_path / "out.jsonl") == Merged(answered=30_000, doubled=30_000)
    found = {each.custom_id: each.embedding for each in read_results(tmp_path / "out.jsonl")}
    assert found == {each: [float(n)] for n, each in enumerate(ids)}


def test_the_command_counts_and_says_where(tmp_path: Path) -> None:
    """Exit code 1 if a request has no answer, 2 for wrong usage."""
    one = write_lines(tmp_path / "1.jsonl", [good("a"), good("b")])
    two = write_lines(tmp_path / "2.jsonl", [bad("c")])
    words = ("from-batch", "--batch_filepath", one, two, "--save_filepath", tmp_path / "out.jsonl")
    done = run(*words)
    assert (done.returncode, done.stdout.split()) == (
        1,
        [
            "answered",
            "2",
            "failed",
            "1",
            "missing",
            "0",
            "doubled",
            "0",
            "foreign",
            "0",
            "torn",
            "0",
        ],
    )
    assert done.stderr == f"results are in {tmp_path / 'out.jsonl'}\n"
    done = run(*words)
    assert done.returncode == 2 and "is there already" in done.stderr
    assert run(*words[:3], "--save_filepath", tmp_path / "3.jsonl").returncode == 0


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_may_be_compressed_or_a_pipe(suffix: str, tmp_path: Path) -> None:
    """What comes out is the same, and so is a results file whose name asks for compression."""
    pytest.importorskip("zstandard")
    lines = [good(f"request-{n}", float(n)) for n in range(300, 0, -1)]
    plain = write_lines(tmp_path / "1.jsonl", lines)
    packed = tmp_path / f"1.jsonl{suffix}"
    file = open_results(packed)
    file.append(plain.read_bytes())
    file.end()
    file.close()
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": n} for n in range(300)])
    for number, requests_path in enumerate((None, source)):
        saves = [tmp_path / f"out-{number}.jsonl{end}" for end in ("", suffix)]
        expected = merge([plain], saves[0], requests_path=requests_path)
        assert expected.answered == 300
        assert merge([packed], saves[1], requests_path=requests_path) == expected
        with saves[1].open("rb") as raw, unpacked(cast(Any, raw), "x") as text:
            assert text.read() == saves[0].read_bytes()
    words = ("--batch_filepath", "/dev/stdin", "--save_filepath", tmp_path / "piped.jsonl")
    done = subprocess.run(
        command("from-batch", *words), input=packed.read_bytes(), env=environment(), check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "piped.jsonl").read_bytes() == plain.read_bytes()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ResultsFileError, match=f"can't read .*1.jsonl{suffix}: the end of its"):
        merge([packed], tmp_path / "torn.jsonl")
    assert not list(tmp_path.glob("torn*"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files_are_merged(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """What a store keeps packed needs no unpacking beforehand."""
    source = write_lines(tmp_path / "in.jsonl", [{"custom_id": n, "body": body(n)} for n in "ab"])
    made = b"".join(json.dumps(each).encode() + b"\n" for each in (good("b", 2.0), good("a")))
    (tmp_path / "output.jsonl.packed").write_bytes(pack(made))
    found = merge([tmp_path / "output.jsonl.packed"], tmp_path / "out.jsonl", requests_path=source)
    assert (found.answered, found.missing) == (2, 0)
    assert [line["custom_id"] for line in read_lines(tmp_path / "out.jsonl")] == ["a", "b"]


def test_several_files_are_one_job(tmp_path: Path) -> None:
    """Lines are numbered through all files, which go there and come back as a pattern and one by one."""
    for name, numbers in (("part-1", range(3)), ("part-2", range(3, 5))):
        write_lines(tmp_path / f"{name}.jsonl", [body(n) for n in numbers])
    pattern = str(tmp_path / "part-?.jsonl")
    (upload,) = split(pattern, tmp_path / "up.jsonl", request_url=PATH)
    ids = [row["custom_id"] for row in read_lines(upload.path)]
    assert ids == [f"request-{n}" for n in range(1, 6)]
    answers = write_lines(tmp_path / "output", [good(each, n) for n, each in enumerate(ids)][::-1])
    parts = [tmp_path / "part-1.jsonl", tmp_path / "part-2.jsonl"]
    found = merge([answers], tmp_path / "out.jsonl", requests_path=parts, output_format="cookbook")
    assert (found.answered, found.missing) == (5, 0)
    records = read_lines(tmp_path / "out.jsonl")
    assert [float(request["input"]) for request, _ in records] == [
        response["data"][0]["embedding"][0] for _, response in records
    ]


def test_what_no_file_stands_beside_needs_a_name(tmp_path: Path) -> None:
    """A pattern says where nothing goes: the command asks for a name instead of making one up."""
    done = run("to-batch", "--requests_filepath", str(tmp_path / "part-*.jsonl"))
    assert done.returncode == 2
    assert "name the files with --save_filepath" in done.stderr
