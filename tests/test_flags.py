"""The flags, one by one: what they become, and what the key's flags refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines
from raw_server import RawServer, answer_all, header_of

from parallel_processor.flags import FLAGS, build_parser, settings, with_flag_names
from parallel_processor.options import Limits, Options

KEY = "sk-test-0123456789abcdef"
ROWS = [row for rows in FLAGS.values() for row in rows]


def test_no_flags_are_the_defaults_of_the_library() -> None:
    """A command without flags and a Processor without settings do the same."""
    flags = build_parser().parse(["--requests_filepath", "in.jsonl"])
    assert Options(**settings(flags)) == Options()


def values() -> dict[str, Any]:
    """The options by the path that a flag's setting has."""
    options = Options()
    parts = {"limits.": options.limits, "retry.": options.retry, "": options}
    names = {
        prefix + field.name: getattr(part, field.name)
        for prefix, part in parts.items()
        for field in dataclasses.fields(part)
    }
    return {name: value for name, value in names.items() if name not in ("limits", "retry")}


def test_every_setting_has_a_flag() -> None:
    """The command can do what the library can, but for the settings that are functions."""
    python_only = {"session_factory", "validate"}
    assert {row.setting for row in ROWS if row.setting} == set(values()) - python_only


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.setting not in ("", "limits_by_model")],
    ids=lambda row: row.name,
)
def test_a_flag_becomes_its_setting(row: Any) -> None:
    """Each flag changes its own setting, to a value of the same type, and no other."""
    before = values()[row.setting]
    value: Any = "0.25" if isinstance(before, float) else "7"
    if row.setting == "request_url":
        value = "http://h/v1/responses"
    wanted = value if before is None or isinstance(before, str) else type(before)(value)
    words = [f"--{row.name}={value}"]
    if row.choices:
        words, wanted = [f"--{row.name}={row.choices[-1]}"], row.choices[-1]
    if before is False:
        words, wanted = [f"--{row.name}"], True
    options = Options(**settings(build_parser().parse(["--requests_filepath=in.jsonl", *words])))
    part, _, name = row.setting.rpartition(".")
    changed = {name: wanted}
    if part:
        changed = {part: dataclasses.replace(getattr(Options(), part), **changed)}
    assert wanted != before
    assert options == dataclasses.replace(Options(), **changed)


@pytest.mark.parametrize("word", ["auto", "inf"])
def test_the_cookbooks_limits_may_be_words(word: str) -> None:
    """A limit on requests or on tokens is a number, no limit, or to be found."""
    words = ["--requests_filepath=in.jsonl", f"--max_requests_per_minute={word}"]
    limits = settings(build_parser().parse([*words, f"--max_tokens_per_minute={word}"]))["limits"]
    wanted: Any = "auto" if word == "auto" else math.inf
    assert limits == Limits(requests_per_minute=wanted, tokens_per_minute=wanted)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--max_request_per_minute 5",
            "unknown flag --max_request_per_minute; did you mean --max_requests_per_minute?",
        ),
        ("--max-attempt=5", "unknown flag --max_attempt; did you mean --max_attempts?"),
        ("-request_url http://h", "unknown flag -request_url; did you mean --request_url?"),
        ("--xyz", "unknown flag --xyz (see"),
        ("extra", "unexpected 'extra': a value directly follows its flag"),
        ("--max_workers", "--max_workers: a value is missing"),
        ("--api_key -sk-secret", "--api_key: a value is missing"),
    ],
)
def test_a_flag_that_is_unknown_gets_the_nearest(
    capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    """The message is one line; what stands where a value should be isn't repeated."""
    with pytest.raises(SystemExit) as caught:
        build_parser().parse(["--requests_filepath", "in.jsonl", *words.split()])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"parallel-processor: error: {expected}")
    assert "sk-secret" not in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("verfy", "unknown command 'verfy'; did you mean verify?"),
        ("help", "unknown command 'help'; did you mean --help?"),
        ("in.jsonl", "unknown command 'in.jsonl'; did you mean --requests_filepath in.jsonl?"),
    ],
)
def test_a_command_that_is_unknown_gets_the_nearest(
    capsys: pytest.CaptureFixture[str], word: str, expected: str
) -> None:
    """A word without a flag before it is taken for a command."""
    with pytest.raises(SystemExit):
        build_parser().parse([word])
    assert capsys.readouterr().err.startswith(f"parallel-processor: error: {expected}")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("headroom must be at most 0.9, not 2", "--headroom must be at most 0.9, not 2"),
        ("max_workers must be 1, not 0", "--max_workers must be 1, not 0"),
        (
            "h gets the api_key: use allow_plain_http, or",
            "h gets the --api_key: use --allow_plain_http, or",
        ),
        ("can't read headroom: it is a directory", "can't read headroom: it is a directory"),
        ("the requests file api_key.jsonl is", "the requests file api_key.jsonl is"),
        ("the directory of /x/max_workers/a is", "the directory of /x/max_workers/a is"),
        ("worker processes end", "worker processes end"),
    ],
)
def test_a_message_names_flags(message: str, shown: str) -> None:
    """Settings are called as their flags, but not files that are called like a setting."""
    assert with_flag_names(message) == shown


def test_limits_by_model_come_from_a_file(tmp_path: Path) -> None:
    """Burst and headroom are the command's, for those limits as well."""
    path = tmp_path / "limits.json"
    path.write_text('{"gpt-4o*": {"requests_per_minute": 500}, "*": {"tokens_per_minute": "inf"}}')
    words = ["--requests_filepath", "in.jsonl", "--limits", str(path)]
    words += ["--burst_seconds", "2", "--headroom", "0.5"]
    options = Options(**settings(build_parser().parse(words)))
    common = {"burst_seconds": 2.0, "headroom": 0.5}
    assert list(options.limits_by_model.items()) == [
        ("gpt-4o*", Limits(requests_per_minute=500, tokens_per_minute="auto", **common)),
        ("*", Limits(requests_per_minute="auto", tokens_per_minute=math.inf, **common)),
    ]
    assert options.limits == Limits(**common)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("--max_requests_per_minute", "Auto"),
            "--max_requests_per_minute: 'Auto' is not a number, inf or auto",
        ),
        (
            ("--max_tokens_per_minute", ""),
            "--max_tokens_per_minute: '' is not a number, inf or auto",
        ),
        (("--max_tokens_per_minute", "nan"), "--max_tokens_per_minute must be a number, not nan"),
        (("--max_requests_per_minute", "0"), "--max_requests_per_minute must be above 0, not 0"),
        (("--headroom", "0.95"), "--headroom must be at most 0.9, not 0.95"),
        (("--headroom", "-0.1"), "--headroom must be at least 0, not -0.1"),
        (("--headroom", "auto"), "--headroom: 'auto' is not a number"),
        (("--token_accounting", "used"), "invalid choice: 'used'"),
        (("--limits", "nowhere.json"), "can't read the limits in nowhere.json"),
        (("--limits", "list.json"), "list.json must be an object of limits by model pattern"),
        (("--report_filepath", "nowhere/report.json"), "directory of the report file"),
        (("--report_filepath", "in.jsonl"), "the requests and the report file are the same"),
        (("--report_filepath", "in_results.jsonl"), "the results and the report file are the same"),
    ],
)
def test_a_flag_that_cant_work_is_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    """The message names the flag and the value, and nothing is sent or written."""
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    write_lines(tmp_path / "in.jsonl", [{"input": "a"}])
    before = sorted(tmp_path.iterdir())
    url = "http://127.0.0.1:1/v1/embeddings"
    done = run("--requests_filepath", "in.jsonl", "--request_url", url, *words)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"tokens_per_minute": 0}, "'gpt-4o*': tokens_per_minute must be above 0, not 0"),
        ({"rpm": 5}, "'gpt-4o*' have the unknown name 'rpm'; known are requests_per"),
    ],
)
def test_what_is_wrong_in_the_file_is_called_as_it_is_there(
    tmp_path: Path, entry: object, expected: str
) -> None:
    """The names in a limits file are no flags."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": "a"}])
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"gpt-4o*": entry}))
    url = "http://127.0.0.1:1/v1/embeddings"
    done = run("--requests_filepath", source, "--request_url", url, "--limits", path)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]


def test_the_report_says_what_became_of_the_limits(tmp_path: Path) -> None:
    """It is there once the run is over, with a bucket for each model."""
    source = write_lines(
        tmp_path / "in.jsonl", [{"model": model, "input": "a"} for model in ("m", "m", "n")]
    )
    limits, report = tmp_path / "limits.json", tmp_path / "report.json"
    limits.write_text('{"m": {"requests_per_minute": 600, "tokens_per_minute": null}}')
    with RawServer(answer_all) as server:
        done = run(
            *("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings"),
            *("--save_filepath", tmp_path / "out.jsonl", "--report_filepath", report),
            *("--limits", limits, "--max_tokens_per_minute", "auto"),
        )
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "out.jsonl")) == 3
    found = json.loads(report.read_text("utf-8"))
    assert (found["answered"], found["attempts"], found["stop_reason"]) == (3, 3, "")
    admitted = {bucket["model"]: bucket["admitted"] for bucket in found["buckets"]}
    assert admitted == {"m": 2, "n": 1}
    configured = {
        bucket["model"]: {limit["name"]: limit["configured"] for limit in bucket["limits"]}
        for bucket in found["buckets"]
    }
    assert configured["m"] == {"requests": 600}
    assert configured["n"]["requests"] == 1500


def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    """The file's key goes out, before that of the environment."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": "a"}])
    keys = tmp_path / "key"
    keys.write_text(f"{KEY}\n")
    with RawServer(answer_all) as server:
        done = run(
            *("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings"),
            *("--api_key_file", keys),
            OPENAI_API_KEY="sk-another-key-0123456789",
        )
        keys_sent = [header_of(head, "authorization") for head in server.heads]
    assert done.returncode == 0, done.stderr
    assert keys_sent == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--api_key", KEY, "--api_key_file", "key"), "--api_key or --api_key_file, not both"),
        (("--api_key_file", "nowhere"), "can't read the key in nowhere"),
        (("--api_key_file", "empty"), "there is no key in empty"),
        (("--api_key", KEY, "--request_url", "http://host.example/v1/embeddings"), "plain text"),
        (("--request_url", "https://host.example/v1/embeddings"), "needs a key"),
    ],
)
def test_a_key_that_cant_be_used_is_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: str
) -> None:
    """Nothing is sent, and the message says what to do without showing the key."""
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    write_lines(tmp_path / "in.jsonl", [{"input": "a"}])
    done = run("--requests_filepath", "in.jsonl", *words)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
    assert KEY not in done.stderr
