"""The file of limits by model."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import command, run, write_lines
from raw_server import RawServer, Visit, answer_all

from parallel_processor.cli.limits_file import LimitsWatch, read_limits_file
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Limits
from parallel_processor.processor import Processor


def read(tmp_path: Path, content: object, **common: float) -> dict[str, Limits]:
    """The limits in a file with that content; what isn't text becomes JSON."""
    path = tmp_path / "limits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return read_limits_file(path, **common)


def refused(tmp_path: Path, content: object) -> str:
    """What is said against that content."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, content)
    return str(caught.value)


def test_the_patterns_stay_in_their_order(tmp_path: Path) -> None:
    """The first that matches counts, so that the file's order matters."""
    names = ["gpt-4o-mini*", "gpt-4o*", "modèle-\u6a21", "*"]
    content = json.dumps({name: {} for name in names}, ensure_ascii=False)  # the file is UTF-8
    assert list(read(tmp_path, content)) == names
    assert read(tmp_path, {}) == {}


@pytest.mark.parametrize(
    ("entry", "limits"),
    [
        ({}, ("auto", "auto")),
        ({"requests_per_minute": 500}, (500, "auto")),
        ({"requests_per_minute": "auto", "tokens_per_minute": 30000.5}, ("auto", 30000.5)),
        ({"requests_per_minute": "inf", "tokens_per_minute": None}, (math.inf, math.inf)),
        (
            {"input_tokens_per_minute": 40000, "output_tokens_per_minute": 8000},
            ("auto", "auto", 40000, 8000),
        ),
        ({"input_tokens_per_minute": None, "output_tokens_per_minute": "inf"}, ("auto", "auto")),
    ],
)
def test_an_entry_is_a_limit(tmp_path: Path, entry: object, limits: tuple[Any, ...]) -> None:
    """A number is a maximum; what isn't named is found out; "inf" and null are no limit."""
    names = (
        f"{kind}_per_minute" for kind in ("requests", "tokens", "input_tokens", "output_tokens")
    )
    assert read(tmp_path, {"m": entry}) == {"m": Limits(**dict(zip(names, limits, strict=False)))}


def test_what_is_common_holds_for_each(tmp_path: Path) -> None:
    """Burst and headroom come from the command line, and are the same for all models."""
    found = read(tmp_path, {"a": {}, "b": {}}, burst_seconds=2.0, headroom=0.25)
    assert [(each.burst_seconds, each.headroom) for each in found.values()] == [(2.0, 0.25)] * 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (500, 'must be an object such as {"requests_per_minute": 500}'),
        (None, "must be an object"),
        ([], "must be an object"),
        ({"rpm": 5}, "the unknown name 'rpm'; known are requests_per_minute, tokens_per_minute"),
        ({"burst_seconds": 5}, "have the unknown name 'burst_seconds'; known"),
        ({"requests_per_minute": 0}, "requests_per_minute must be above 0, not 0"),
        ({"requests_per_minute": -5}, "requests_per_minute must be above 0, not -5"),
        ({"tokens_per_minute": "500"}, "tokens_per_minute must be a number, inf or auto, not '5"),
        ({"tokens_per_minute": True}, "tokens_per_minute must be a number, not True"),
        ({"tokens_per_minute": [5]}, "tokens_per_minute must be a number, not [5]"),
        ({"tokens_per_minute": math.nan}, "tokens_per_minute must be a number, not nan"),
        ({"input_tokens_per_minute": "auto"}, "input_tokens_per_minute must be a number"),
    ],
)
def test_an_entry_that_cant_work_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    """The message names the file, the pattern and the value."""
    found = refused(tmp_path, {"good": {}, "gpt-4o*": entry})
    assert found.startswith(f"{tmp_path / 'limits.json'}: the limits of 'gpt-4o*'")
    assert message in found


@pytest.mark.parametrize("pattern", ["", "@", "[", " "])
def test_a_pattern_that_no_model_matches_is_refused(tmp_path: Path, pattern: str) -> None:
    """It would be taken in the place of all limits that there are."""
    assert f"the limits of {pattern!r} are those of no model" in refused(tmp_path, {pattern: {}})


def test_the_mark_of_windows_editors_is_skipped(tmp_path: Path) -> None:
    """A byte order mark stands for nothing."""
    assert list(read(tmp_path, '\ufeff{"m": {}}')) == ["m"]


@pytest.mark.parametrize("content", ["[]", "5", "null", '"a"'])
def test_a_file_without_patterns_is_refused(tmp_path: Path, content: str) -> None:
    """Limits must be for something."""
    assert "limits.json must be an object of limits by model pattern, such as " in refused(
        tmp_path, content
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"m": {}, "n": {}, "m": {"requests_per_minute": 5}}', "m"),
        ('{"m": {"requests_per_minute": 5, "requests_per_minute": 6}}', "requests_per_minute"),
    ],
)
def test_what_is_there_twice_is_refused(tmp_path: Path, content: str, name: str) -> None:
    """Of two limits nobody knows which is meant."""
    assert f"{name!r} is there twice" in refused(tmp_path, content)


_NO_JSON = ("", "{", '{"m": {}} x', '{"m": {"requests_per_minute": 1e}}')


@pytest.mark.parametrize("content", [*_NO_JSON, '{"m": ' * 100_000, "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    """The message names the file, and deep nesting doesn't end in a traceback."""
    found = refused(tmp_path, content)
    assert found.startswith(f"can't read the limits in {tmp_path / 'limits.json'}: ")


def test_a_file_that_cant_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file, a directory, and bytes that are no UTF-8."""
    binary = tmp_path / "binary"
    binary.write_bytes(b'{"m\xff": {}}')
    for path in (tmp_path / "nowhere", tmp_path, binary):
        with pytest.raises(ConfigurationError, match="can't read the limits in"):
            read_limits_file(path)


# A file that changes while a run goes on.


@pytest.fixture
def processor(tmp_path: Path) -> Processor:
    """A processor with the limits of the file ``limits.json``."""
    path = tmp_path / "limits.json"
    put(path, {"*": {"requests_per_minute": 600}})
    by_model = read_limits_file(path, burst_seconds=2.0, headroom=0.1)
    limits = Limits(burst_seconds=2.0, headroom=0.1)
    url = "http://127.0.0.1:9/v1/embeddings"
    return Processor(request_url=url, limits=limits, limits_by_model=by_model)


def put(path: Path, content: object) -> None:
    """Have the file hold ``content`` in one step, as JSON unless it is text."""
    other = path.with_name("new")
    other.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    os.replace(other, path)


def in_force(processor: Processor) -> list[tuple[str, float]]:
    """The limits on requests, by pattern, in their order."""
    limits = processor.options.limits_by_model
    return [(pattern, each.by_kind["requests"]) for pattern, each in limits.items()]


def test_a_changed_file_is_followed(processor: Processor, tmp_path: Path) -> None:
    """Numbers, patterns and their order; burst and headroom stay those of the command line."""
    path = tmp_path / "limits.json"
    watch = LimitsWatch(path, processor)
    watch.look()
    assert in_force(processor) == [("*", 540.0)]
    for content in ({"a": 1, "*": 600}, {"*": 600, "a": 1}, {"*": "inf"}, {}):
        put(path, {name: {"requests_per_minute": rpm} for name, rpm in content.items()})
        watch.look()
        found = {name: float(rpm) * 0.9 for name, rpm in content.items()}
        assert in_force(processor) == list(found.items())
    assert processor.stats().limits["requests"] == 1350


def test_a_file_behind_a_link_is_followed(processor: Processor, tmp_path: Path) -> None:
    """The link to its folder is replaced, as in Kubernetes (envoyproxy/ratelimit 379)."""
    for name, rpm in (("old", 60), ("new", 120)):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "limits.json", {"*": {"requests_per_minute": rpm}})
        os.utime(tmp_path / name / "limits.json", (0, 0))
    link = tmp_path / "data"
    link.symlink_to("old")
    watch = LimitsWatch(link / "limits.json", processor)
    watch.look()
    assert in_force(processor) == [("*", 54.0)]
    (tmp_path / "next").symlink_to("new")
    os.replace(tmp_path / "next", link)
    watch.look()
    assert in_force(processor) == [("*", 108.0)]


def test_a_pipe_in_the_files_place_holds_nothing_up(
    processor: Processor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody writes to it, so a read would never end; the limits of before hold."""
    path = tmp_path / "limits.json"
    watch = LimitsWatch(path, processor)
    path.unlink()
    os.mkfifo(path)
    for _ in range(3):
        watch.look()
    (record,) = caplog.records
    assert f"can't read the limits in {path}: it is no file any more" in record.message
    assert in_force(processor) == [("*", 540.0)]


@pytest.mark.parametrize("wrong", ["{", '{"*": {"rpm": 5}}', None])
def test_a_wrong_file_changes_nothing(
    processor: Processor, tmp_path: Path, wrong: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the entry, however often the file is read; a good file after it is followed."""
    path = tmp_path / "limits.json"
    watch = LimitsWatch(path, processor)
    for rpm in (60, 120):
        path.unlink() if wrong is None else put(path, wrong)
        caplog.clear()
        watch.look()
        assert not caplog.records  # it may have been half written
        for _ in range(5):
            watch.look()
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert str(path) in record.message and "the limits of before hold" in record.message
        assert {"{": "Expecting", None: "No such file"}.get(wrong, "'rpm'") in record.message
        assert in_force(processor)[0][1] != rpm * 0.9
        put(path, {"*": {"requests_per_minute": rpm}})
        watch.look()
        assert in_force(processor) == [("*", rpm * 0.9)]


def test_a_run_follows_its_file(tmp_path: Path) -> None:
    """The limit would hold the last requests back for an hour; a higher one sends them at once."""
    path = tmp_path / "limits.json"
    put(path, {"*": {"requests_per_minute": 0.01, "tokens_per_minute": "inf"}})
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(5)])
    changes = [{"*": {"requests_per_minute": "inf", "tokens_per_minute": "inf"}}]

    def answer(visit: Visit) -> None:
        while visit.read():
            if changes:  # the first request is alone
                put(path, changes.pop())
            visit.answer()

    with RawServer(answer) as server:
        url = ("--request_url", f"{server.url}/v1/embeddings")
        done = run("--requests_filepath", source, *url, "--limits", path)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 5
    assert "the limits of * are now none" in done.stderr


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """``--limits <(command)`` works, and is not taken for a file that has become wrong."""
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "text"}])
    with RawServer(answer_all) as server:
        url = f"--request_url {server.url}/v1/embeddings"
        limits = """<(echo '{"*": {"requests_per_minute": 600}}')"""
        words = " ".join(command("--requests_filepath", source))
        line = f"{words} {url} --limits {limits}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "600 requests/min" in done.stderr
    assert "WARNING" not in done.stderr
