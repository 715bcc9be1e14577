"""The flags, one by one: what they become, and what the key's flags refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from commands import read_lines, run, write_lines
from raw_server import RawServer, answer_all, header_of

from parallel_processor.flags import build_parser, settings
from parallel_processor.options import Limits, Options

KEY = "sk-test-0123456789abcdef"


def test_no_flags_are_the_defaults_of_the_library() -> None:
    """A command without flags and a Processor without settings do the same."""
    flags = build_parser().parse_args(["--requests_filepath", "in.jsonl"])
    assert Options(**settings(flags)) == Options()


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--request_url http://h/v1/responses", "request_url", "http://h/v1/responses"),
        ("--max_requests_per_minute 7", "limits.requests_per_minute", 7.0),
        ("--max_tokens_per_minute inf", "limits.tokens_per_minute", float("inf")),
        ("--max_requests_per_minute auto", "limits.requests_per_minute", "auto"),
        ("--max_tokens_per_minute auto", "limits.tokens_per_minute", "auto"),
        ("--burst_seconds 2", "limits.burst_seconds", 2.0),
        ("--headroom 0.2", "limits.headroom", 0.2),
        ("--token_accounting reserve", "token_accounting", "reserve"),
        ("--token_accounting usage", "token_accounting", "usage"),
        ("--max_attempts 9", "retry.max_attempts", 9),
        ("--seconds_to_pause_after_rate_limit_error 3", "retry.pause_s", 3.0),
        ("--max_workers 12", "max_workers", 12),
        ("--processes 2", "processes", 2),
        ("--request_timeout 4", "request_timeout_s", 4.0),
        ("--connect_timeout 5", "connect_timeout_s", 5.0),
        ("--max_response_bytes 100", "max_response_bytes", 100),
        ("--drain_seconds 6", "drain_s", 6.0),
        ("--write_retry_seconds 8", "write_retry_s", 8.0),
        ("--allow_plain_http", "allow_plain_http", True),
        ("--token_encoding_name o200k_base", "token_encoding_name", "o200k_base"),
    ],
)
def test_a_flag_becomes_its_setting(words: str, path: str, value: object) -> None:
    """Each flag changes its own setting and no other."""
    parser = build_parser()
    required = ["--requests_filepath", "in.jsonl"]
    found: object = Options(**settings(parser.parse_args([*required, *words.split()])))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_limits_by_model_come_from_a_file(tmp_path: Path) -> None:
    """Burst and headroom are the command's, for those limits as well."""
    path = tmp_path / "limits.json"
    path.write_text('{"gpt-4o*": {"requests_per_minute": 500}, "*": {"tokens_per_minute": "inf"}}')
    words = ["--requests_filepath", "in.jsonl", "--limits", str(path)]
    words += ["--burst_seconds", "2", "--headroom", "0.5"]
    options = Options(**settings(build_parser().parse_args(words)))
    common = {"burst_seconds": 2.0, "headroom": 0.5}
    assert list(options.limits_by_model.items()) == [
        ("gpt-4o*", Limits(requests_per_minute=500, tokens_per_minute="auto", **common)),
        ("*", Limits(requests_per_minute="auto", tokens_per_minute=math.inf, **common)),
    ]
    assert options.limits == Limits(**common)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max_requests_per_minute", "Auto"), "'Auto' is no number, and neither inf nor auto"),
        (("--max_tokens_per_minute", ""), "'' is no number, and neither inf nor auto"),
        (("--max_tokens_per_minute", "nan"), "--max_tokens_per_minute must be a number, not nan"),
        (("--max_requests_per_minute", "0"), "--max_requests_per_minute must be above 0, not 0"),
        (("--headroom", "0.95"), "--headroom must be at most 0.9, not 0.95"),
        (("--headroom", "-0.1"), "--headroom must be at least 0, not -0.1"),
        (("--headroom", "auto"), "invalid float value: 'auto'"),
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
        ({"rpm": 5}, "'gpt-4o*' have 'rpm'; known are requests_per_minute, tokens_per_minute"),
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
