"""The flags, one by one: what they become, and what is said of those that can't work."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines
from raw_server import RawServer, answer_all, header_of

from parallel_processor.cli import commands as commands_module
from parallel_processor.cli.commands import build_ray_parser, build_verify_parser
from parallel_processor.cli.flags import FLAGS, build_parser, settings, with_flag_names
from parallel_processor.cli.main import main
from parallel_processor.options import Limits, Options

KEY = "sk-test-0123456789abcdef"
IN = "--requests_filepath in.jsonl"
ROWS = [row for rows in FLAGS.values() for row in rows]
TYPED: dict[str, Any] = {  # words, and what they become
    "headers": ("X-Team: a: b", {"X-Team": "a: b"}),
    "query": ("api-version=2024-10-21", {"api-version": "2024-10-21"}),
    "allowed_hosts": ("h.example:8443", ("h.example:8443",)),
    "service_tiers": ("flex, default", ("flex", "default")),
    "fallback_url": ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
    "auth_header": ("Authorization: Token", "Authorization: Token"),
    "pack_inputs": ("7", 7),
}


@pytest.fixture
def usage_error_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Runs the command line in this process, among few files, up to its usage error; gives what it says.

    It is one line, and nothing is written.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Path("list.json").write_text("[]")
    Path("limits.json").write_text('{"gpt-4o*": {"tokens_per_minute": 0}}')
    Path("unknown.json").write_text('{"gpt-4o*": {"rpm": 5}}')
    Path("empty").write_text("\n")
    write_lines(Path("in.jsonl"), [{"input": "a"}])
    files = {path: path.read_bytes() for path in Path().iterdir()}
    logger = logging.getLogger("parallel_processor")
    before = logger.level, list(logger.handlers), logger.propagate

    def usage_error_of(*words: str) -> str:
        try:
            code: object = main(words)
        except SystemExit as error:  # argparse's own
            code = error.code
        assert code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert {path: path.read_bytes() for path in Path().iterdir()} == files
        (line,) = shown.err.splitlines()
        assert line.startswith("parallel-processor: error: ")
        return line

    yield usage_error_of
    logger.level, logger.handlers, logger.propagate = before


def test_the_cookbooks_flags_have_its_defaults() -> None:
    """The nine flags exist under their names, with the script's defaults and types."""
    flags = vars(build_parser().parse(["--requests_filepath", "in.jsonl"]))
    expected = {
        "requests_filepath": ["in.jsonl"],  # the flag may be given several times
        "save_filepath": None,  # becomes in_results.jsonl
        "request_url": "https://api.openai.com/v1/embeddings",
        "api_key": None,  # becomes OPENAI_API_KEY
        "max_requests_per_minute": 1500.0,
        "max_tokens_per_minute": 125_000.0,
        "token_encoding_name": None,  # becomes that of the model, cl100k_base for the script's own
        "max_attempts": 5,
        "logging_level": 20,
    }
    assert {name: flags[name] for name in expected} == expected


def test_no_flags_are_the_defaults_of_the_library() -> None:
    """A command without flags and a Processor without settings do the same."""
    flags = build_parser().parse(["--requests_filepath", "in.jsonl"])
    assert Options(**settings(flags)) == Options()


@pytest.mark.parametrize(
    ("words", "defaults"),
    [
        ([], {"requests": 1500, "tokens": 125_000}),
        (["--max_requests_per_minute", "1500"], {"tokens": 125_000}),
        (["--max_requests_per_minute", "9", "--max_tokens_per_minute", "auto"], {}),
        (["--headroom", "0.1"], {"requests": 1500, "tokens": 125_000}),
    ],
)
def test_a_number_that_was_typed_is_no_default(
    words: list[str], defaults: dict[str, float]
) -> None:
    """Not even if it is the same: it then holds over the limits by model."""
    flags = build_parser().parse(["--requests_filepath", "in.jsonl", *words])
    assert settings(flags)["limits"].defaults == defaults


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
    """The command can do what the library can, but for functions and logins."""
    python_only = {
        "session_factory",
        "validate",
        "login",
        "replica_urls",
    }  # the last: repeat a flag
    assert {row.setting for row in ROWS if row.setting} == set(values()) - python_only


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.setting not in ("", "limits_by_model", "api_keys")],
    ids=lambda row: row.name,
)
def test_a_flag_becomes_its_setting(row: Any) -> None:
    """Each flag changes its own setting, to a value of the same type, and no other."""
    before = values()[row.setting]
    value: Any = "0.25" if isinstance(before, float) else "7"
    if row.setting == "request_url":
        value = "http://h/v1/responses"
    if row.setting == "limiter":
        value = "redis://h/7"
    if row.setting == "fallback_url":
        value = "http://h/v1/chat/completions"
    if row.setting in TYPED:
        value = TYPED[row.setting][0]
    kind = float if row.setting == "retry.pause_s" else str if before is None else type(before)
    wanted = TYPED[row.setting][1] if row.setting in TYPED else kind(value)
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
        (f"{IN} --max_request_per_min 5", "unknown flag --max_request_per_min; did you mean --max"),
        (f"{IN} --max-attempt=5", "unknown flag --max_attempt; did you mean --max_attempts?"),
        (f"{IN} -request_url http://h", "unknown flag -request_url; did you mean --request_url?"),
        (f"{IN} --xyz", "unknown flag --xyz (see"),
        (f"{IN} extra", "unexpected 'extra': a value directly follows its flag"),
        (f"{IN} --max_workers", "--max_workers: a value is missing"),
        (f"{IN} --api_key -sk-secret", "--api_key: a value is missing"),
        ("", "missing flag: --requests_filepath"),
        ("verfy", "unknown command 'verfy'; did you mean verify?"),
        ("help", "unknown command 'help'; did you mean --help?"),
        ("in.jsonl", "unknown command 'in.jsonl'; did you mean --requests_filepath in.jsonl?"),
    ],
)
def test_a_flag_or_command_that_is_unknown_gets_the_nearest(
    usage_error_of: Callable[..., str], words: str, expected: str
) -> None:
    """What stands where a value should be may be a secret, and isn't repeated."""
    line = usage_error_of(*words.split())
    assert line.startswith(f"parallel-processor: error: {expected}")
    assert "sk-secret" not in line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("headroom must be at most 0.9, not 2", "--headroom must be at most 0.9, not 2"),
        ("max_workers must be 1, not 0", "--max_workers must be 1, not 0"),
        ("the api_key: use allow_plain_http, or", "the --api_key: use --allow_plain_http, or"),
        ("can't read headroom: it is a directory", ""),
        ("the requests file api_key.jsonl is", ""),
        ("the directory of /x/max_workers/a is", ""),
        ("worker processes end", ""),
    ],
)
def test_a_message_names_flags(message: str, shown: str) -> None:
    """Settings are called as their flags; a file with the name of a setting is not (``shown`` is empty)."""
    assert with_flag_names(message) == (shown or message)


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
    buckets = {bucket["model"]: bucket for bucket in found["buckets"]}
    assert {model: bucket["admitted"] for model, bucket in buckets.items()} == {"m": 2, "n": 1}
    (limit,) = buckets["m"]["limits"]
    assert (limit["name"], limit["configured"]) == ("requests", 600)
    assert ("requests", 1500) in [(li["name"], li["configured"]) for li in buckets["n"]["limits"]]


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


# What is typed, and what is said. A ~ stands for the flag.
_USAGE_ERRORS = """
--max_requests_per_minute=Auto => ~: 'Auto' is not a number, inf or auto
--max_requests_per_minute=0 => ~ must be above 0, not 0
--max_requests_per_minute=nan => ~ must be a number, not nan
--max_tokens_per_minute= => ~: '' is not a number, inf or auto
--max_tokens_per_minute -5 => ~ must be above 0, not -5
--max_input_tokens_per_minute auto => ~: 'auto' is not a number
--max_attempts 0 => ~ must be a whole number of at least 1, not 0
--max_attempts 2.5 => ~: '2.5' is not a whole number
--max_workers 0 => ~ must be a whole number of at least 1, not 0
--processes 65 => ~ must be at most 64, not 65
--burst_seconds 61 => ~ must be at most 60, not 61
--headroom 0.95 => ~ must be at most 0.9, not 0.95
--headroom -0.1 => ~ must be at least 0, not -0.1
--headroom auto => ~: 'auto' is not a number
--seconds_to_pause_after_rate_limit_error -1 => ~ must be at least 0, not -1
--request_timeout 0 => ~ must be above 0, not 0
--request_timeout inf => ~ must be at most 1,000,000 seconds, not inf
--connect_timeout -1 => ~ must be above 0, not -1
--logging_level loud => ~: 'loud' is not a whole number
--token_accounting used => ~: invalid choice: 'used'
--token_encoding_name cl100k => unknown token encoding 'cl100k': choose one of cl100k_base,
--metrics_port abc => ~: 'abc' is not a port from 0 to 65535, or HOST:PORT
--request_url ftp://h => ~ must be an http:// or https:// URL, not 'ftp://h'
--request_url http://[::1 => ~ must be an http:// or https:// URL, not 'http://[::1'
--request_url https:// => ~ must be an http:// or https:// URL, not 'https://'
--requests_filepath no.jsonl --save_filepath out.jsonl => can't read no.jsonl: No such file or directory
--requests_filepath . --save_filepath out.jsonl => the requests file . is a directory
--save_filepath no/out.jsonl => the directory of the results file no/out.jsonl does not exist
--save_filepath ./in.jsonl => the requests and the results file are the same: in.jsonl
--report_filepath no/report.json => the directory of the report file no/report.json does not
--report_filepath in.jsonl => the requests and the report file are the same: in.jsonl
--report_filepath in_results.jsonl => the results and the report file are the same: in_res
--limits no.json => can't read the limits in no.json: No such file or directory
--limits list.json => list.json must be an object of limits by model pattern, such as {
--limits limits.json => limits.json: the limits of 'gpt-4o*': tokens_per_minute must be above 0
--limits unknown.json => unknown.json: the limits of 'gpt-4o*' have the unknown name 'rpm'; known
--api_key KEY --api_key_file empty => give --api_key or --api_key_file, not both
--api_key_file nowhere => can't read --api_key_file nowhere: No such file or directory
--api_key_file empty => there is no key in --api_key_file empty
--api_key KEY --request_url http://h.example/v1 => http://h.example/v1 would get the --api_key in
--request_url https://h.example/v1 => https://h.example/v1 needs a key: set OPENAI_API_KEY, or give
"""


@pytest.mark.parametrize("case", _USAGE_ERRORS.strip().split("\n"))
def test_a_flag_that_cant_work_is_bad_usage(usage_error_of: Callable[..., str], case: str) -> None:
    """The message names the flag and the value, in the command's words, and never shows a key."""
    words, _, expected = case.partition(" => ")
    expected = re.sub("^~", re.split("[ =]", words)[0], expected)
    base = [] if "requests_filepath" in words else ["--requests_filepath=in.jsonl"]
    if "request_url" not in words:
        base.append("--request_url=http://127.0.0.1:1/v1/embeddings")
    line = usage_error_of(*base, *words.replace("KEY", KEY).split())
    assert line.startswith(f"parallel-processor: error: {expected}")
    assert KEY not in line


@pytest.mark.parametrize("key", ["", "  "])
def test_a_key_that_is_blank_is_none(
    usage_error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A variable without a key in it is the same as no variable."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert "needs a key" in usage_error_of("--requests_filepath", "in.jsonl")


def test_the_help_of_several_workers_is_about_them() -> None:
    """What a flag does otherwise there is said; every text for it is of a flag that there is."""
    texts = " ".join(build_ray_parser().format_help().split())
    known = {row.name for rows in FLAGS.values() for row in rows}
    assert set(commands_module._ON_RAY) <= known and set(commands_module._FOR_VERIFY) <= known
    assert "results file" not in texts and "they hold for this process" not in texts
    for text in ("delete the parts", "an actor on the Ray cluster", "--errors_filepath FOLDER"):
        assert text in texts
    assert "the folder of their parts" in " ".join(build_verify_parser().format_help().split())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--limiter", "redis://:secret@127.0.0.1/0"], "without --limiter"),
        (["--request_url", "https://user:secret@127.0.0.1/v1/embeddings"], "leave it out"),
        (["--api_key", "secret"], "--api_key_file"),
    ],
)
def test_a_cluster_is_told_no_secret(more: list[str], text: str) -> None:
    """The remedy names flags that the command has, and no secret."""
    done = run("run-on-ray", "--requests_filepath", "x", "--address", "127.0.0.1:1", *more)
    assert done.returncode == 2 and text in done.stderr, done.stderr
    assert "secret" not in done.stderr and "key_variable" not in done.stderr


def test_a_second_file_of_requests_is_not_taken_for_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``run-on-ray`` takes one. The requests of the first file would be missing otherwise."""
    flags = ["--requests_filepath", "a.jsonl", "--requests-filepath", "b.jsonl"]
    with pytest.raises(SystemExit):
        commands_module.build_ray_parser().parse(flags)
    assert "--requests_filepath is given twice: it takes one file" in capsys.readouterr().err


def test_files_of_batches_may_be_named_one_by_one() -> None:
    """The flag given twice is the same as with both files behind it."""
    parse = commands_module.build_from_batch_parser().parse
    words = ["--batch_filepath", "a", "--batch_filepath", "b", "c", "--save_filepath", "out"]
    assert parse(words).batch_filepath == ["a", "b", "c"]


def test_parts_are_of_one_file(tmp_path: Path) -> None:
    """``verify`` of a folder of parts takes one file of requests, and says so."""
    done = run("verify", *["--requests_filepath", "in.jsonl"] * 2, "--save_filepath", tmp_path)
    assert done.returncode == 2
    assert "parts in a folder are of one file of requests" in done.stderr
