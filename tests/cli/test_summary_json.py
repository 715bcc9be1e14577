"""``--summary_json``: how a run ended, as one line of JSON."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, run, write_lines
from raw_server import RawServer, Room, Visit, answer_all

from parallel_processor.report.summary import Summary


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of ten requests."""
    rows = [{"model": "m", "input": f"text {number}"} for number in range(10)]
    return write_lines(tmp_path / "in.jsonl", rows)


def line_of(text: str) -> dict[str, Any]:
    """The only line of ``text``."""
    assert text.count("\n") == 1 and text.endswith("\n"), text
    found: dict[str, Any] = json.loads(text)
    return found


def words(source: Path, server: RawServer, *more: object) -> list[object]:
    """The command's words for ``source``."""
    url = f"{server.url}/v1/embeddings"
    return ["--requests_filepath", source, "--request_url", url, *more]


def test_it_has_what_the_summary_says(source: Path, tmp_path: Path) -> None:
    """Every field of ``Summary``, the exit code and the paths; nothing else is on standard output."""
    report = tmp_path / "report.json"
    with RawServer(answer_all) as server:
        more = ("--report_filepath", report, "--summary_json", "-")
        done = run(*words(source, server, *more))
    found = line_of(done.stdout)
    assert done.returncode == found["exit_code"] == 0
    assert {each.name for each in fields(Summary)} < set(found)
    assert (found["answered"], found["failed"], found["left"], found["error"]) == (10, 0, 0, "")
    assert found["stop_cause"] == ""
    assert found["requests_filepath"] == [str(source)]
    assert found["save_filepath"] == str(tmp_path / "in_results.jsonl")
    assert (found["errors_filepath"], found["report_filepath"]) == (None, str(report))
    told = json.loads(report.read_text())
    times = {"elapsed_s", "waited_s", "buckets"}
    same = {each.name for each in fields(Summary)} - times
    assert {name: found[name] for name in same} == {name: told[name] for name in same}
    assert [bucket["model"] for bucket in found["buckets"]] == ["m"]
    assert "10 answered" in done.stderr


def refuse_the_key(visit: Visit) -> None:
    """Answer as a server that doesn't know the key."""
    while visit.read():
        body = b'{"error": {"code": "invalid_api_key", "message": "Incorrect API key"}}'
        visit.answer(body, status="401 Unauthorized")


def refuse_the_requests(visit: Visit) -> None:
    """Answer as a server for which the requests are wrong."""
    while visit.read():
        visit.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")


@pytest.mark.parametrize(
    ("script", "code", "cause"), [(refuse_the_key, 3, "key"), (refuse_the_requests, 1, "")]
)
def test_it_says_how_the_run_ended(
    script: Any, code: int, cause: str, source: Path, tmp_path: Path
) -> None:
    """A stop has its cause as a word and its reason; failures are counted. A file is replaced."""
    path = tmp_path / "summary.json"
    path.write_text("of an earlier run\n" * 1000)
    with RawServer(script) as server:
        done = run(*words(source, server, "--summary_json", path))
    found = line_of(path.read_text())
    assert done.returncode == found["exit_code"] == code, done.stderr
    assert found["stop_cause"] == cause
    assert bool(found["error"]) == bool(found["stop_reason"]) == bool(cause)
    assert found["answered"] + found["failed"] + found["left"] == 10
    assert done.stdout == ""


def test_an_interrupted_run_says_so(source: Path) -> None:
    """What is left is told, and that it was a person or a program that stopped it."""
    room = Room(answers=3)
    with RawServer(room) as server:
        more = ("--summary_json", "-", "--max_workers", 4, "--drain_seconds", 0)
        line = command(*words(source, server, *more))
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
        ) as process:
            room.wait_for(4)
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        room.opened.set()
    found = line_of(out)
    assert process.returncode == found["exit_code"] == 143
    assert (found["stop_cause"], found["answered"], found["left"]) == ("caller", 3, 7)
    assert found["error"] == found["stop_reason"] == "interrupted by SIGTERM"


def test_a_killed_run_leaves_no_summary_of_an_earlier_one(source: Path, tmp_path: Path) -> None:
    """Else a script would read that all went well."""
    path, room = tmp_path / "summary.json", Room(answers=0)
    path.write_text('{"exit_code": 0}\n')
    with RawServer(room) as server:
        line = command(*words(source, server, "--summary_json", path))
        with subprocess.Popen(line, stderr=subprocess.DEVNULL, env=environment()) as process:
            room.wait_for(1)
            process.kill()
        room.opened.set()
    assert not path.exists()


def test_a_summary_that_cannot_be_written_is_an_error(source: Path) -> None:
    """In the log, also where that has errors alone; the exit code is that of the run."""
    with RawServer(answer_all) as server:
        more = ("--summary_json", "/dev/full", "--logging_level", 40)
        done = run(*words(source, server, *more))
    assert done.returncode == 0
    assert "ERROR can't write the summary /dev/full: No space left on device" in done.stderr
    line = " ".join(command("--requests_filepath", "missing.jsonl", "--summary_json", "-"))
    done = subprocess.run(["bash", "-c", f"{line} >/dev/full"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "can't write to standard output: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "more",
    [("--max_workers", 0), ("--limits", "missing.json"), ("--requests_filepath", "missing.jsonl")],
)
def test_a_run_that_could_not_begin_says_why(more: tuple[object, ...], source: Path) -> None:
    """The error is that of the log, and the counts are those of a run that did nothing."""
    given = () if "--requests_filepath" in more else ("--requests_filepath", source)
    done = run(*given, *more, "--summary_json", "-")
    found = line_of(done.stdout)
    assert done.returncode == found["exit_code"] == 2
    assert found["error"] and found["error"] in done.stderr
    assert {each.name for each in fields(Summary)} < set(found)
    assert (found["answered"], found["left"], found["stop_cause"]) == (0, None, "")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--save_filepath", "-", "--summary_json", "-"), "can't both be standard output"),
        (("--errors_filepath", "-", "--summary_json", "-"), "can't both be standard output"),
        (("--summary_json", "{source}"), "another file of this command"),
        (("--summary_json", "{folder}/in_results.jsonl"), "another file of this command"),
        (("--summary_json", "{folder}/../{name}/in_results.jsonl"), "another file of this command"),
        (
            ("--report_filepath", "{folder}/r", "--summary_json", "{folder}/r"),
            "another file of this command",
        ),
        (
            ("--limits", "{folder}/l", "--summary_json", "{folder}/l"),
            "another file of this command",
        ),
        (
            ("--header", "@{folder}/h", "--summary_json", "{folder}/h"),
            "another file of this command",
        ),
        (
            ("--ca_bundle", "{folder}/c", "--summary_json", "{folder}/c"),
            "another file of this command",
        ),
        (("--summary_json", "{folder}/missing/summary.json"), "does not exist"),
        (("--summary_json", "{folder}"), "is a directory"),
    ],
)
def test_it_never_takes_the_place_of_another_file(
    more: tuple[str, ...], words: str, source: Path, tmp_path: Path
) -> None:
    """Refused before anything is read, so that no file is lost."""
    before = source.read_bytes()
    places = {"source": source, "folder": tmp_path, "name": tmp_path.name}
    done = run("--requests_filepath", source, *(word.format(**places) for word in more))
    assert done.returncode == 2
    assert words in done.stderr and "--summary_json" in done.stderr
    assert done.stdout == ""
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("pattern", "name", "words"),
    [
        ("*.jsonl", "in.jsonl", "another file of this command"),
        ("*.jsonl", "linked.json", "another file of this command"),
        ("../*/*.jsonl", "new.jsonl", "has a name that --requests_filepath"),
        ("**/*.jsonl", "new.jsonl", "has a name that --requests_filepath"),
        ("**", "new.json", "has a name that --requests_filepath"),
    ],
)
def test_a_pattern_stands_for_its_files(
    pattern: str, name: str, words: str, source: Path, tmp_path: Path
) -> None:
    """Neither is one of them replaced, nor is the summary the next run's file of requests."""
    before = source.read_bytes()
    (tmp_path / "linked.json").symlink_to(source)
    requests, path = tmp_path / pattern, tmp_path / name
    save = tmp_path.parent / f"{tmp_path.name}.results"
    done = run("--requests_filepath", requests, "--save_filepath", save, "--summary_json", path)
    assert done.returncode == 2
    assert words in done.stderr
    assert source.read_bytes() == before
    assert not (tmp_path / "new.jsonl").exists()


def test_results_on_standard_output_by_default_are_refused_too(source: Path) -> None:
    """Requests from standard input have their results on standard output."""
    done = run("--requests_filepath", "-", "--summary_json", "-")
    assert done.returncode == 2
    assert "can't both be standard output" in done.stderr
