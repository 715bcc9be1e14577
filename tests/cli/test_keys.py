"""Keys, headers and URLs from flags and the environment."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from commands import read_lines, run, write_lines
from raw_server import RawServer, Visit, answer_all, header_of

from parallel_processor.cli.commands import build_ray_parser
from parallel_processor.cli.environment import find_key, find_keys_by_host, find_url
from parallel_processor.cli.flags import build_parser, settings
from parallel_processor.cli.headers import read_headers, read_query
from parallel_processor.cli.main import main
from parallel_processor.cli.on_ray import _key_source
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Options
from parallel_processor.providers.dialects import PROVIDERS, Provider, auth_of

VARIABLES = {name for row in PROVIDERS for name in row.keys} | {"OPENAI_API_KEY"}
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without keys."""
    for name in (*VARIABLES, "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def parsed(*words: str) -> argparse.Namespace:
    return build_parser().parse(["--requests_filepath", "in.jsonl", *words])


def key_of(*words: str) -> object:
    """The key that the command takes."""
    flags = parsed(*words)
    made = settings(flags)
    made["request_url"] = find_url(flags)
    return find_key(flags, made)


def keys_of(*words: str) -> Mapping[str, str]:
    """The keys for other hosts that the command takes."""
    flags = parsed(*words)
    return find_keys_by_host(flags, settings(flags))


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("https://api.openai.com/v1/responses", "OPENAI GROQ", "OPENAI"),
        ("https://eu.api.openai.com/v1/responses", "OPENAI", "OPENAI"),
        ("https://api.groq.com/openai/v1/chat/completions", "OPENAI GROQ", "GROQ"),
        ("https://api.groq.com/openai/v1/chat/completions", "OPENAI", "set GROQ_API_KEY"),
        ("https://api.anthropic.com/v1/messages", "OPENAI", "set ANTHROPIC_API_KEY"),
        ("https://api.anthropic.com/v1/messages", "ANTHROPIC OPENAI", "ANTHROPIC"),
        ("https://gateway.example/v1/chat/completions", "GROQ OPENAI", "OPENAI"),
        ("https://gateway.example/v1/chat/completions", "GROQ", "set OPENAI_API_KEY"),
        # NousResearch/hermes-agent issue 28660
        (
            "https://api.deepseek.com/v1/chat/completions",
            "OPENAI OPENROUTER",
            "set DEEPSEEK_API_KEY",
        ),
        ("https://api.deepseek.com.evil.example/v1/x", "DEEPSEEK", "set OPENAI_API_KEY"),
        ("https://api.deepseek.com./v1/x", "OPENAI", "set DEEPSEEK_API_KEY"),
        ("https://codestral.mistral.ai/v1/x", "OPENAI", "set MISTRAL_API_KEY"),
        ("https://aiplatform.us.rep.googleapis.com/v1/x", "OPENAI", "give --api_key_command"),
        ("https://r.openai.azure.us/openai/v1/responses", "OPENAI AZURE_OPENAI", "AZURE_OPENAI"),
        ("https://r.openai.azure.com/openai/v1/chat/completions", "OPENAI", "OPENAI"),
        ("https://r.openai.azure.com/openai/v1/responses", "OPENAI AZURE_OPENAI", "AZURE_OPENAI"),
        ("https://aiplatform.googleapis.com/v1/x", "OPENAI GOOGLE", "give --api_key_command"),
        ("https://generativelanguage.googleapis.com/v1beta/x", "GOOGLE", "GOOGLE"),
        ("https://generativelanguage.googleapis.com/v1beta/x", "GOOGLE GEMINI", "GEMINI"),
        ("http://localhost:8000/v1/chat/completions", "", None),
        ("http://localhost:8000/v1/chat/completions", "OPENAI", "OPENAI"),
    ],
)
def test_the_variable_is_that_of_the_host(
    monkeypatch: pytest.MonkeyPatch, url: str, variables: str, expected: str | None
) -> None:
    """OpenAI's is for unknown hosts, too, and never for those of another provider."""
    for name in variables.split():
        monkeypatch.setenv(f"{name}_API_KEY", f"{name}'s")
    if expected is None or expected.isupper():
        assert key_of("--request_url", url) == (expected and f"{expected}'s")
        return
    with pytest.raises(ConfigurationError, match=expected):
        key_of("--request_url", url)


@pytest.mark.parametrize("row", [row for row in PROVIDERS if row.hosts], ids=lambda row: row.name)
def test_no_variable_is_for_another_provider(monkeypatch: pytest.MonkeyPatch, row: object) -> None:
    """Each provider of the table finds its own key, if there is one, and no other."""
    for name in VARIABLES:
        monkeypatch.setenv(name, f"key-of-{name}")
    names, hosts = row.keys, [host.replace("*", "x") for host in row.hosts]  # type: ignore[attr-defined]
    for host in hosts:
        found = dict(keys_of("--allow_host", host))
        assert found == ({host: f"key-of-{names[0]}"} if names else {})
        url = f"https://{host}/v1/x"
        if names:
            assert key_of("--request_url", url) == f"key-of-{names[0]}"


def test_base_url_and_key_are_a_pair(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the URL was typed, as long as it is on that host; the endpoint that was added is told."""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com/openai/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    typed = ("--request_url", "https://api.groq.com/openai/v1/chat/completions")
    assert key_of(*typed) == "openai"
    assert caplog.messages == []
    assert key_of() == "openai"
    assert "is https://api.groq.com/openai/v1/embeddings" in caplog.text
    with pytest.raises(ConfigurationError, match="set XAI_API_KEY"):
        key_of("--request_url", "https://api.x.ai/v1/chat/completions")


def test_a_replica_without_a_key_is_told_its_variable() -> None:
    """Also where the first server needs none; a header that is a key goes to all of them."""
    urls = (
        "--request_url",
        "http://127.0.0.1:1/v1/x",
        "--request_url",
        "https://api.openai.com/v1/x",
    )
    with pytest.raises(ConfigurationError, match="openai.com/v1/x needs a key: set OPENAI_API_KEY"):
        keys_of(*urls)
    with_header = keys_of(*urls, "--header", "X-Gateway-Key: x")
    assert with_header == {"api.openai.com": ""}


def test_headers_from_a_pipe_count_for_a_replica() -> None:
    """A pipe, such as a shell's <(...), can be read once."""
    reader, writer = os.pipe()
    try:
        os.write(writer, b"X-Gateway-Key: x\n")
        os.close(writer)
        urls = [word for url in "ab" for word in ("--request_url", f"https://{url}.example/v1/x")]
        found = keys_of(*urls, "--header", f"@/dev/fd/{reader}")
    finally:
        os.close(reader)
    assert found == {"b.example": ""}


def test_a_host_that_was_allowed_gets_no_key_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's is for an unknown host only if that is the request URL's."""
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("TEAM_KEY", "team")
    words = ("--allow_host", "gateway.example", "--allow_host", "r.openai.azure.com")
    assert keys_of(*words) == {}
    found = keys_of(*words, "--api_key_for", "gateway.example=TEAM_KEY")
    assert found == {"gateway.example": "team"}


def test_each_replica_gets_the_key_of_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is for no other provider, though the servers have the same models."""
    urls = (
        "--request_url",
        "https://api.openai.com/v1/x",
        "--request_url",
        "https://api.groq.com/v1/x",
    )
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    with pytest.raises(ConfigurationError, match="groq.com/v1/x needs a key: set GROQ_API_KEY"):
        keys_of(*urls)
    assert keys_of(*urls, "--api_key", "typed") == {}
    monkeypatch.setenv("TEAM_KEY", "team")
    named = ("--api_key_for", "api.groq.com=TEAM_KEY")
    assert keys_of(*urls, *named) == {"api.groq.com": "team"}
    monkeypatch.setenv("GROQ_API_KEY", "groq")
    assert keys_of(*urls) == {"api.groq.com": "groq"}
    assert key_of(*urls) == "openai"
    monkeypatch.delenv("OPENAI_API_KEY")
    local = ("--request_url", "https://api.groq.com/v1/x", "--request_url", "http://127.0.0.1:1/v1")
    assert keys_of(*local) == {"127.0.0.1:1": ""}
    made = {"request_url": local[1], "replica_urls": [local[3]], "api_key": key_of(*local)}
    keyring = Options(**made, api_keys=keys_of(*local)).keyring
    assert (keyring.keys(local[1]), keyring.keys(local[3])) == (("groq",), ())
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    local = ("--request_url", "http://127.0.0.1:1/v1/x", "--request_url", "http://127.0.0.2:1/v1/x")
    assert keys_of(*local) == dict.fromkeys(["127.0.0.2:1"], "openai")


def test_on_a_cluster_no_variable_is_for_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further URL, and that of a fallback, get the key of their own host, or none."""
    replicas = ("https://api.groq.com/v1/x", "http://127.0.0.1:1/v1/x", "https://h.example/v1/x")
    words = [
        "--requests_filepath",
        "in.jsonl",
        "--address",
        "auto",
        "--api_key_for",
        "h.example=TEAM",
    ]
    for url in ("https://api.mistral.ai/v1/x", *replicas):
        words += ["--request_url", url]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("MISTRAL_API_KEY", "XAI_API_KEY", "TEAM"):
        monkeypatch.setenv(name, name)
    flags = build_ray_parser().parse([*words, "--fallback_url", "https://api.x.ai/v1"])
    source = _key_source(flags, flags.request_url)
    assert source.variable == "MISTRAL_API_KEY"
    wanted = {"api.groq.com": "GROQ_API_KEY", "127.0.0.1:1": "", "h.example": "TEAM"}
    assert source.host_variables == {**wanted, "api.x.ai": "XAI_API_KEY"}
    with pytest.raises(ConfigurationError, match="the variable GROQ_API_KEY is not set"):
        source.complete({})
    monkeypatch.setenv("GROQ_API_KEY", "groq")
    keyring = Options(
        **source.complete({"request_url": "https://api.mistral.ai/v1/x", "replica_urls": replicas})
    ).keyring
    assert [keyring.keys(url) for url in replicas] == [("groq",), (), ("TEAM",)]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:1/v1/x", ""),  # which needs none
        ("https://r.openai.azure.com/v1/x", "AZURE_API_KEY"),
        ("https://h.example/v1/x", "OPENAI_API_KEY"),  # which the nodes may have
    ],
)
def test_on_a_cluster_an_empty_variable_has_no_key(
    monkeypatch: pytest.MonkeyPatch, url: str, found: str
) -> None:
    """Nor one of spaces: it is as if it were not set."""
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", " ")
    monkeypatch.setenv("AZURE_API_KEY", "key")
    words = ["--requests_filepath", "in.jsonl", "--address", "auto"]
    replica = "http://127.0.0.2:1/v1/x"
    flags = build_ray_parser().parse([*words, "--request_url", url, "--request_url", replica])
    source = _key_source(flags, flags.request_url)
    assert (source.variable, source.host_variables) == (found, {"127.0.0.2:1": ""})


def test_the_base_url_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by run-on-ray, which has to know who the server is to find its key."""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://gateway.example/v1")
    given = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "a"}])
    words = ["--requests_filepath", str(given), "--address", "auto", "--header", "X-Key: secret"]
    assert main(["run-on-ray", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("--request_url is not given") == 1
    assert "would be visible to everybody who can see the cluster" in said


def test_a_login_in_a_fallback_url_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused, also if a variable has the key for its host."""
    monkeypatch.setenv("GROQ_API_KEY", "groq")
    given = write_lines(tmp_path / "in.jsonl", [{"model": "m", "messages": []}])
    words = (
        "--request_url",
        "http://127.0.0.1:1/v1",
        "--fallback_url",
        "https://me:secret@api.groq.com/v1",
    )
    assert keys_of(*words) == {"api.groq.com": "groq"}
    assert main(["--requests_filepath", str(given), *words]) == 2
    said = capsys.readouterr().err
    assert "must have no login in it" in said and "secret" not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--api_key_for", "h"], "--api_key_for h must be HOST=VARIABLE"),
        (["--api_key_for", "h=sk-secret-0123456789"], "--api_key_for h must be HOST=VARIABLE"),
        (["--api_key_for", "=NAME"], "must be HOST=VARIABLE"),
        (["--api_key_for", "h=NOT_SET"], "--api_key_for h: the variable NOT_SET is not set"),
    ],
)
def test_a_key_for_a_host_is_in_a_variable(words: list[str], expected: str) -> None:
    """A key that was typed there is not shown."""
    with pytest.raises(ConfigurationError, match=expected) as caught:
        keys_of(*words)
    assert "sk-secret" not in str(caught.value)


def test_what_was_typed_outranks_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that carries a key, or a login; a gateway's own header does not."""
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    assert key_of("--header", "authorization: Bearer x") is None
    assert key_of("--request_url", "https://me:pass@h/v1") is None
    assert key_of("--header", "Helicone-Auth: Bearer x") == "openai"
    assert key_of("--api_key", "typed") == "typed"


def test_a_header_with_a_key_is_a_key() -> None:
    """So is a parameter; a header without one is none."""
    url = ("--request_url", "https://h.example/v1")
    assert key_of(*url, "--header", "X-Gateway-Key: x") is None
    assert key_of(*url, "--query", "code=x") is None
    with pytest.raises(ConfigurationError, match="needs a key"):
        key_of(*url, "--header", "X-Team: x")


@pytest.mark.parametrize("row", [row for row in PROVIDERS if row.keys], ids=lambda row: row.name)
def test_a_typed_header_takes_the_place_of_the_variable(
    monkeypatch: pytest.MonkeyPatch, row: Provider
) -> None:
    """The one in which the provider's key goes; beside another one the key is sent."""
    monkeypatch.setenv(row.keys[0], "key")
    url = next((url for url in row.urls if "://localhost" not in url), f"https://{row.hosts[0]}/x")
    words = ("--request_url", url, "--header")
    assert key_of(*words, f"{auth_of(url).header}: typed") is None
    assert key_of(*words, "X-Team: blue") == "key"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        # rohitg00/agentmemory issue 628, FerroxLabs/wayland issue 1178, BerriAI/litellm issue 8350
        ("http://h:8000/v1", "http://h:8000/v1/embeddings"),
        ("http://h:8000/v1/", "http://h:8000/v1/embeddings"),
        (" http://h:8000 ", "http://h:8000/embeddings"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("https://h/v1?api-version=1", "https://h/v1/embeddings?api-version=1"),
        ("", "https://api.openai.com/v1/embeddings"),
    ],
)
def test_the_base_url_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, base: str, expected: str
) -> None:
    """It counts if no URL was typed, be it the default one."""
    monkeypatch.setenv("OPENAI_BASE_URL", base)
    default = str(Options().request_url)
    assert find_url(parsed()) == expected
    assert find_url(parsed("--request_url", default)) == default


def test_the_key_belongs_to_the_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two variables of OpenAI's clients are a pair; the provider's own still comes first."""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com/openai/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    assert key_of() == "openai"
    monkeypatch.setenv("GROQ_API_KEY", "groq")
    assert key_of() == "groq"


def test_a_base_url_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    monkeypatch.setenv("OPENAI_BASE_URL", "h:8000/v1?key=secret")
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL must be an http") as caught:
        find_url(parsed())
    assert "secret" not in str(caught.value)


def test_headers_may_be_in_a_file(tmp_path: Path) -> None:
    """One a line; blank lines and remarks are left out, and a colon may be in a value."""
    path = tmp_path / "headers"
    path.write_text("# the gateway's\nX-Key:  a:b \n\nX-Team: blue\n")
    assert read_headers([f"@{path}", "X-Team: red"]) == {"X-Key": "a:b", "X-Team": "red"}
    assert read_query(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("secret", "a --header without a colon is no header"),
        ("X-Key:", "--header 'X-Key' is no header: write it as"),
        (": secret", "--header '' is no header"),
        ("@nowhere", "can't read --header @nowhere: No such file"),
    ],
)
def test_what_is_no_header_is_explained(header: str, words: str) -> None:
    """Its value is not shown."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_headers([header])
    assert "secret" not in str(caught.value)


def row(number: int, url: str) -> dict[str, object]:
    """A line of a Batch file."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": body}


def refuse_all(visit: Visit) -> None:
    """A server that knows no key."""
    while visit.read():
        visit.answer(b'{"error": {"message": "Incorrect API key"}}', status="401 Unauthorized")


@pytest.mark.parametrize("is_fallback", [False, True])
def test_a_host_that_refuses_its_key_leaves_the_others_alone(
    tmp_path: Path, is_fallback: bool
) -> None:
    """Its requests have no record; the end names host and variable. It holds for a fallback, too."""

    def fail_some(visit: Visit) -> None:
        while visit.read():
            visit.answer(status="400 Bad Request" if b"fail" in visit.body else "200 OK")

    with RawServer(fail_some) as own, RawServer(refuse_all, host="127.0.0.2") as other:
        host = other.url.partition("//")[2]
        rows = [
            row(n, own.url + CHAT if is_fallback or n % 2 else other.url + CHAT) for n in range(40)
        ]
        for each in rows[::2] if is_fallback else ():
            each["body"] = {**each["body"], "user": "fail"}  # type: ignore[dict-item]
        source = write_lines(tmp_path / "in.jsonl", rows)
        words = ["--requests_filepath", source, "--request_url", own.url + CHAT]
        words += ["--fallback_url", other.url + CHAT] if is_fallback else ["--allow_host", host]
        words += ["--api_key_for", f"{host}=OTHER_KEY", "--max_workers", 4]
        done = run(*words, OPENAI_API_KEY="own-0123456789", OTHER_KEY="other-0123456789")
    assert done.returncode == 3, done.stderr
    found = {r["custom_id"] for r in read_lines(tmp_path / "in_results.jsonl") if not r["error"]}
    assert found == {f"row-{n}" for n in range(1, 40, 2)}
    assert len(other.heads) <= 4
    (told,) = [line for line in done.stderr.splitlines() if "ERROR stopped: " in line]
    assert f"stopped: requests to {host} are left unanswered: " in told
    assert "(key: OTHER_KEY)" in told


def test_one_file_may_hold_several_providers(tmp_path: Path) -> None:
    """Each row goes to its host with that host's key; one for a third host fails by itself."""
    with RawServer(answer_all) as own, RawServer(answer_all, host="127.0.0.2") as other:
        host = other.url.partition("//")[2]
        urls = [CHAT, other.url + CHAT, "https://third.example/v1/chat/completions", own.url + CHAT]
        source = write_lines(tmp_path / "in.jsonl", [row(n, url) for n, url in enumerate(urls)])
        words = ["--requests_filepath", source, "--request_url", own.url + CHAT]
        words += ["--allow_host", host]
        done = run(
            *words,
            *("--api_key_for", f"{host}=OTHER_KEY", "--header", "X-Team: blue"),
            OPENAI_API_KEY="own-0123456789",
            OTHER_KEY="other-0123456789",
        )
        found = {r["custom_id"]: r for r in read_lines(tmp_path / "in_results.jsonl")[:]}
        checked = run("verify", *words)
    assert done.returncode == 1, done.stderr
    assert (
        "line 3: its url 'https://third.example/v1/chat/completions' is on another" in done.stderr
    )
    assert "--allow_host third.example permits it" in done.stderr
    assert "in the form of" not in done.stderr  # of OpenAI's, as all of them
    assert [name for name, r in found.items() if r["error"]] == ["row-2"]
    assert {header_of(h, "authorization") for h in own.heads} == {"Bearer own-0123456789"}
    assert {header_of(h, "authorization") for h in other.heads} == {"Bearer other-0123456789"}
    assert [header_of(h, "x-team") for h in other.heads] == [None]
    assert "answered 3" in checked.stdout and "failed 1" in checked.stdout


def test_a_key_goes_to_no_other_machine_in_plain_text(tmp_path: Path) -> None:
    """A row that would have it sent so is a failure by itself."""
    source = write_lines(tmp_path / "in.jsonl", [row(1, "http://plain.example/v1/x"), row(2, CHAT)])
    with RawServer(answer_all) as server:
        done = run(
            *("--requests_filepath", source, "--request_url", server.url + CHAT),
            *("--allow_host", "plain.example", "--api_key_for", "plain.example=PLAIN_KEY"),
            PLAIN_KEY="plain-0123456789",
        )
    assert done.returncode == 1
    assert "line 1: its url 'http://plain.example/v1/x' is without TLS" in done.stderr


def test_base_url_headers_query_and_a_command_in_one_run(tmp_path: Path) -> None:
    """No /v1 is doubled by a row's own, and no secret is in the log, the results or the report."""

    def refuse_once(visit: Visit) -> None:
        while visit.read():
            is_good = visit.header("api-key") == "token-0123456789"
            answer = {
                "error": {"message": f"not {visit.header('x-gateway-key')}, but {visit.head}"}
            }
            if is_good:
                visit.answer()
            else:
                visit.answer(json.dumps(answer).encode(), status="400 Bad Request")

    source = write_lines(tmp_path / "in.jsonl", [row(1, "/v1/embeddings")])
    (tmp_path / "headers").write_text("X-Gateway-Key: gateway-0123456789\n")
    words = ["--requests_filepath", source, "--header", f"@{tmp_path / 'headers'}"]
    words += ["--query", "api-version=2024-10-21", "--report_filepath", tmp_path / "report.json"]
    with RawServer(refuse_once) as server:
        base = {"OPENAI_BASE_URL": f"{server.url}/v1"}
        good = ["--api_key_command", "echo token-0123456789", "--auth_header", "api-key"]
        bad = ["--api_key_command", "echo wrong-0123456789", "--auth_header", "X-Auth: Token"]
        failed = run(*words, *bad, "--logging_level", "10", **base)
        texts = [path.read_text() for path in tmp_path.glob("*_results.jsonl")]
        done = run(*words, *good, **base)
    assert failed.returncode == 1 and done.returncode == 0, failed.stderr + done.stderr
    assert [h.partition("\r\n")[0] for h in server.heads] == [
        "POST /v1/embeddings?api-version=2024-10-21 HTTP/1.1"
    ] * 2
    assert header_of(server.heads[0], "x-auth") == "Token wrong-0123456789"
    shown = failed.stderr + failed.stdout + "".join(texts) + (tmp_path / "report.json").read_text()
    assert "[redacted]" in shown
    assert "wrong-0123456789" not in shown and "gateway-0123456789" not in shown


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false", "--api_key_command (false) ended with exit code 1"),
        ("echo", "--api_key_command (echo) printed no key"),
        ("no-such-tool", "--api_key_command (no-such-tool) can't be run: No such file"),
        ("'", "--api_key_command can't be split into words"),
    ],
)
def test_a_command_that_gives_no_key_is_bad_usage(tmp_path: Path, command: str, words: str) -> None:
    """Before anything is sent or written."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": "a"}])
    url = "http://127.0.0.1:1/v1/embeddings"
    done = run(*("--requests_filepath", source, "--request_url", url, "--api_key_command", command))
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "in_results.jsonl").exists()
