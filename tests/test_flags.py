"""The flags, one by one: what they become, and what the key's flags refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run, write_lines
from raw_server import RawServer, answer_all, header_of

from parallel_processor.flags import build_parser, settings
from parallel_processor.options import Options

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
        ("--burst_seconds 2", "limits.burst_seconds", 2.0),
        ("--max_attempts 9", "retry.max_attempts", 9),
        ("--seconds_to_pause_after_rate_limit_error 3", "retry.pause_s", 3.0),
        ("--max_workers 12", "max_workers", 12),
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
