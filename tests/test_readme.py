"""The README against the program: its commands, examples, tables and links."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from commands import command, environment, read_lines, run, simulator, write_lines
from raw_server import RawServer, Visit
from redis_servers import redis_server

import parallel_processor
from parallel_processor import Limits, Options, Processor, RetryPolicy
from parallel_processor.cli.commands import PARSERS
from parallel_processor.cli.flags import build_parser
from parallel_processor.models import WaitCause
from parallel_processor.providers.dialects import PROVIDERS, MostInputs
from parallel_processor.simulator import Simulator, SimulatorOptions

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    """The README's code blocks in ``language``."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands_with(*words: str) -> list[list[str]]:
    """The README's shell commands that contain all of ``words``, each split into words."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.removesuffix("&")) for line in lines if all(word in line for word in words)
    ]


def section(title: str) -> str:
    """The text below a heading, up to the next one of the same level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", PROSE, re.MULTILINE)
    assert found is not None, title
    rest = PROSE[found.end() :]
    return re.split(rf"^#{{1,{len(found[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in ``text``, without the tables' heads."""
    tables = re.findall(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_providers_are_those_of_the_table() -> None:
    """With their URLs, the variables of their keys, and what was tried."""
    expected = [
        [
            row.name,
            "<br>".join(f"`{url}`" for url in row.urls),
            ", ".join(f"`{name}`" for name in row.keys),
            row.tried or "documented",
        ]
        for row in PROVIDERS
    ]
    assert rows(section("Providers")) == expected


def names(cell: str) -> list[str]:
    """What a cell has in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def flag_tables() -> dict[str, dict[str, str]]:
    """The defaults of the flags, by the heading of their table and by flag."""
    parts = re.split(r"^#### (.+)\n", section("Flags"), flags=re.MULTILINE)[1:]
    return {
        title: {names(flag)[0]: default for flag, default, _ in rows(text)}
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def parser_groups() -> dict[str, dict[str, argparse.Action]]:
    """The flags of the command by the title of their group, without ``--help`` and ``--version``."""
    groups = {}
    for group in build_parser()._action_groups:
        actions = {action.option_strings[0]: action for action in group._group_actions}
        shown = {flag: a for flag, a in actions.items() if a.default is not argparse.SUPPRESS}
        if shown:
            groups[str(group.title)] = shown
    return groups


def test_the_flag_tables_are_those_of_the_command() -> None:
    """Each group of ``--help`` has a table of its flags, and no flag is left out or made up."""
    tables = {title.lower(): set(flags) for title, flags in flag_tables().items()}
    assert tables == {title.lower(): set(flags) for title, flags in parser_groups().items()}


def test_the_flag_tables_have_the_defaults() -> None:
    """The default of each flag is in its row, as it would be typed."""
    shown = {flag: default for table in flag_tables().values() for flag, default in table.items()}
    for flags in parser_groups().values():
        for flag, action in flags.items():
            default = action.default
            if isinstance(default, bool) or default in ({}, ()):
                assert shown[flag] == "", flag
            elif default is not None:
                text = f"{default:g}" if isinstance(default, float) else str(default)
                assert shown[flag].strip("`") == text, flag


def test_the_settings_are_those_of_the_library() -> None:
    """Each setting is in the table, and no other; the flags named beside them exist."""
    table = {names(row[0])[0]: names(row[1]) for row in rows(section("Settings"))}
    parts = {"": Options, "limits.": Limits, "retry.": RetryPolicy}
    fields = {f"{part}{f.name}" for part, kind in parts.items() for f in dataclasses.fields(kind)}
    assert set(table) == fields
    flags = {flag for group in parser_groups().values() for flag in group}
    assert {flag for named in table.values() for flag in named} <= flags


def test_the_exit_codes_are_those_of_the_help() -> None:
    """The table of exit codes names the codes that ``--help`` names."""
    helped = build_parser().format_help().partition("exit codes:")[2].split(". ")[0]
    codes = [row[0] for row in rows(section("Exit codes"))]
    assert codes == re.findall(r"\b\d+\b", helped)


def test_everything_that_a_run_waits_for_is_explained() -> None:
    """The table of what a slow run waits for has each cause once."""
    causes = [name for row in rows(section("Troubleshooting")) for name in names(row[0])]
    assert sorted(causes) == sorted(cause.value for cause in WaitCause if cause.value)


def test_the_tables_of_the_package_name_what_there_is() -> None:
    """The modules and packages of the README are those of the folder."""
    folder = Path(parallel_processor.__file__).parent
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    tables = rows(section("How it works"))
    assert {names(row[0])[0] for row in tables if len(row) == 3} == packages
    assert {names(row[0])[0] for row in tables if len(row) == 2} == modules
    imported = {name for row in tables if len(row) == 3 for name in names(row[2])}
    assert imported <= packages | modules


def test_every_link_leads_somewhere() -> None:
    """A link within the page leads to a heading, one to a file to a file of the repository."""
    headings = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    files = [link for link in links if not link.startswith(("#", "https://"))]
    assert [link for link in files if not (ROOT / link).is_file()] == []


def test_the_contents_name_every_section() -> None:
    """The table of contents has each section once, in its order."""
    headings = re.findall(r"^## (.+)$", PROSE, re.MULTILINE)
    assert re.findall(r"\[([^]]+)\]\(#", section("Contents")) == headings[1:]


def test_nobody_is_told_to_install_the_package_of_others() -> None:
    """``parallel-processor`` on the package index is another project's."""
    name = re.compile(r"pip install[^`\n]*\bparallel[-_.]processor\b", re.IGNORECASE)
    package = Path(parallel_processor.__file__).parent
    texts = [TEXT, *(path.read_text("utf-8") for path in package.rglob("*.py"))]
    assert [found[0] for text in texts for found in name.finditer(text)] == []


def test_the_first_run_is_as_shown(tmp_path: Path) -> None:
    """Three lines start a server, write requests and send them; the output is that of the README."""
    (serve,) = commands_with(
        "parallel_processor.simulator", "--port 8080", "--requests_per_minute 1000"
    )
    (make,) = commands_with("make_example_requests", "--kind chat")
    send, again = commands_with("127.0.0.1:8080", "--max_requests_per_minute auto")
    assert send == again  # at the top of the README, and in its section on the first run
    subprocess.run([sys.executable, str(ROOT / make[1]), *make[2:]], cwd=tmp_path, check=True)
    with simulator(*serve[serve.index("8080") + 1 :]) as server:
        words = [word.replace("http://127.0.0.1:8080", server.url) for word in send[1:]]
        done = subprocess.run(
            command(*words),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=without_prices(tmp_path / "none"),
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    shown, printed = blocks("text")[0], done.stderr.replace(server.url, "http://127.0.0.1:8080")
    assert shape(shown) == shape(printed)


def without_prices(folder: Path) -> dict[str, str]:
    """The environment where genai-prices isn't installed, as after the README's installation."""
    folder.mkdir()
    (folder / "genai_prices.py").write_text("raise ImportError")
    found = environment()
    paths = [str(folder), *filter(None, [found.get("PYTHONPATH")])]
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def shape(output: str) -> list[str]:
    """The lines of ``output`` without what differs from run to run: numbers, and what it waited for."""
    text = re.sub(r"waiting for [^,\n]+|waited for [^;\n]+", "WAITS", output)
    lines = re.sub(r"[\d,.:]*\d", "N", text).splitlines()
    return list(dict.fromkeys(lines))  # a slow machine has more progress lines


def test_the_cookbook_users_command_runs(tmp_path: Path) -> None:
    """The command line of the cookbook answers a file, from a clone and from another folder."""
    (words,) = commands_with("api_request_parallel_processor")
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(5)])
    with Simulator(SimulatorOptions()) as server:
        swap = {
            "python": sys.executable,
            words[1]: str(ROOT / words[1]),
            "examples/embeddings.jsonl": str(source),
            "examples/embeddings_results.jsonl": str(tmp_path / "out.jsonl"),
            "https://api.openai.com/v1/embeddings": f"{server.url}/v1/embeddings",
        }
        assert set(swap) <= set(words)
        done = subprocess.run(
            [swap.get(word, word) for word in words],
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "out.jsonl")) == 5


def test_the_commands_that_share_a_limit_run(tmp_path: Path) -> None:
    """The file is split, and two commands send a half each, by one Redis."""
    pytest.importorskip("redis")
    halves = commands_with("--limiter", "127.0.0.1:8080")
    (make,) = commands_with("make_example_requests", "--kind chat")
    subprocess.run([sys.executable, str(ROOT / make[1]), *make[2:]], cwd=tmp_path, check=True)
    (split,) = commands_with("split -n")
    subprocess.run(split, cwd=tmp_path, check=True)
    with simulator("--latency_s", 0.01) as server, redis_server(tmp_path) as redis:
        swap = {"http://127.0.0.1:8080": server.url, "redis://127.0.0.1:6379/0": redis.url}
        for words in halves:
            line = " ".join(words[1:]).replace("_minute 600", "_minute 6000")
            for shown, real in swap.items():
                line = line.replace(shown, real)
            done = subprocess.run(
                command(*line.split()), cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    counts = [
        len(read_lines(tmp_path / "examples" / f"part_{half}_results.jsonl"))
        for half in ("aa", "ab")
    ]
    assert sum(counts) == 200 and min(counts) > 90


def test_the_command_with_tiers_runs(tmp_path: Path) -> None:
    """Every request is answered, some by each tier, though the first run's server and results are there."""
    (serve,) = commands_with("parallel_processor.simulator", "--tier_grant")
    (send,) = commands_with("--service_tier", "--request_url", "127.0.0.1")
    (make,) = commands_with("make_example_requests", "--kind chat")
    port = serve[serve.index("--port") + 1]
    assert sum(port in words for words in commands_with("parallel_processor.simulator")) == 1
    subprocess.run([sys.executable, str(ROOT / make[1]), *make[2:]], cwd=tmp_path, check=True)
    before = tmp_path / "examples" / "requests_results.jsonl"
    before.write_text("not of this run\n", "utf-8")
    with simulator(*serve[5:]) as server:
        line = " ".join(send[1:]).replace(f"http://127.0.0.1:{port}", server.url)
        words = command(*line.split(), "--max_requests_per_minute", "inf")
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_lines(tmp_path / send[send.index("--save_filepath") + 1])
    assert {each[1]["service_tier"] for each in found} == {"flex", "default"}


def test_the_command_with_a_budget_runs(tmp_path: Path) -> None:
    """It stops within its budget, with the exit code and the figures that are described."""
    (serve,) = commands_with("parallel_processor.simulator", "--port 8083")
    (send,) = commands_with("--max_cost", "--request_url")
    ((_, prices, _, path),) = commands_with("echo", "prices.json")
    (make,) = commands_with("make_example_requests", "--kind chat")
    subprocess.run([sys.executable, str(ROOT / make[1]), *make[2:]], cwd=tmp_path, check=True)
    (tmp_path / path).write_text(prices)
    with simulator(*serve[5:]) as server:
        line = " ".join(send[1:]).replace("http://127.0.0.1:8083", server.url)
        done = subprocess.run(command(*line.split()), cwd=tmp_path, capture_output=True, text=True)
        served = server.stats()
    assert done.returncode == 4, done.stderr
    paid = (2.5 * served["input_tokens_answered"] + 10 * served["output_tokens_answered"]) / 1e6
    assert 0.97 * 0.02 <= paid <= 0.02
    assert f"cost: ${paid:.3g} for the answers, about $" in done.stderr


def test_the_command_that_packs_runs(tmp_path: Path) -> None:
    """Few requests are sent, and each line has its vector."""
    (send,) = commands_with("--pack_inputs")
    lines = [{"model": "m", "input": f"text {number}"} for number in range(250)]
    write_lines(tmp_path / "texts.jsonl", lines)
    with simulator() as server:
        line = " ".join(send[1:]).replace("https://api.openai.com", server.url)
        done = subprocess.run(command(*line.split()), cwd=tmp_path, capture_output=True, text=True)
        received = server.stats()["requests_received"]
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "texts_results.jsonl")) == 250
    assert received < 25


def test_what_providers_take_in_a_request_is_as_listed() -> None:
    """Counts of inputs, and of tokens."""
    text = " ".join(section("Packing").split())
    for row in PROVIDERS:
        for most in row.most_inputs if row.most_inputs != MostInputs() else ():
            what = f"{row.name.removesuffix(' OpenAI')} {row.most_inputs.inputs:,}"
            assert most == math.inf or (what in text and f"{most:,}" in text), row.name


def test_the_verify_command_runs(tmp_path: Path) -> None:
    """The check of the README says that a finished job is complete, and that a torn one isn't."""
    ((_, *words),) = commands_with(" verify ")
    (tmp_path / "examples").mkdir()
    write_lines(tmp_path / "examples/requests.jsonl", [{"input": "a"}])
    path = tmp_path / "examples/requests_results.jsonl"
    results = write_lines(path, [[{"input": "a"}, {"data": []}]])
    done = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines())["answered"] == "1"
    results.write_text("[{")
    assert subprocess.run(command(*words), cwd=tmp_path, capture_output=True).returncode == 1


def test_the_plan_is_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints the text below it, but for the prices, and the library says the same."""
    (make,) = commands_with("make_example_requests", "--kind chat")
    ((_, *words),) = commands_with("parallel-processor plan --")
    (shown,), (block,) = blocks("text plan"), blocks("python plan")
    subprocess.run([sys.executable, str(ROOT / make[1]), *make[2:]], cwd=tmp_path, check=True)
    done = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, expected = (
        [line.split("$")[0].split("money")[0].rstrip() for line in text.splitlines()]
        for text in (done.stdout, shown)
    )
    assert [line for line in expected if "Batch API" not in line] == [
        line for line in printed if "Batch API" not in line
    ]
    monkeypatch.chdir(tmp_path / "examples")
    exec(compile(block, "README.md", "exec"), {"account": {}})


def test_there_and_back_is_as_shown(tmp_path: Path) -> None:
    """The commands about Batch files run as they stand, with a server in the place of the Batch API."""
    (send,) = commands_with("--output_format batch")
    (there,) = commands_with("to-batch")
    (back,) = commands_with("from-batch")
    (tmp_path / "examples").mkdir()
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    source = write_lines(tmp_path / "examples/requests.jsonl", [body | {"n": n} for n in range(9)])
    with Simulator(SimulatorOptions()) as server:
        url = f"{server.url}/v1/chat/completions"
        upload = ["--requests_filepath", "examples/requests_batch-001.jsonl", "--request_url", url]
        upload += ["--save_filepath", "output-1.jsonl", "--errors_filepath", "error-1.jsonl"]
        for words in (
            [*send[1:], "--request_url", url],
            there[1:],
            upload,
            [word.replace("-*", "-1") for word in back[1:]],
        ):
            done = subprocess.run(
                command(*words), cwd=tmp_path, capture_output=True, text=True, env=environment()
            )
            assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "output.jsonl")) == 9
    results = tmp_path / "examples/requests_results.jsonl"
    assert [line[0] for line in read_lines(results)] == read_lines(source)


def test_the_commands_use_flags_that_exist() -> None:
    """Every command of the README is one that the parser takes."""
    lines = [
        words for words in commands_with("parallel-processor") if words[0] == "parallel-processor"
    ]
    assert len(lines) >= 4
    for _, *words in lines:
        if words[0] in PARSERS:
            paths = 2 if words[0] == "export" else 0  # which come before its flags
            PARSERS[words[0]]().parse(words[1 + paths :])
        else:
            build_parser().parse_args(words)


def test_the_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python block runs as it stands, but for the host that it asks."""
    (block,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    lines = [
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {n}."}]}
        for n in "ab"
    ]
    write_lines(tmp_path / "requests.jsonl", lines)
    with Simulator(SimulatorOptions()) as server:
        source = block.replace("https://api.openai.com", server.url)
        exec(compile(source, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 answered"
    assert len(printed) == 3 and all(printed)


def test_the_recipe_for_a_data_frame_runs() -> None:
    """Five lines make a column of answers out of a column of prompts."""
    pandas = pytest.importorskip("pandas")
    (block,) = blocks("python notebook")
    frame = pandas.DataFrame({"prompt": ["Say a.", "Say b.", "Say c."]})
    with Simulator(SimulatorOptions()) as server:
        account = {"request_url": f"{server.url}/v1/chat/completions"}
        exec(
            compile(block, "README.md", "exec"),
            {"frame": frame, "account": account, "Processor": Processor},
        )
    assert len(block.splitlines()) == 5
    assert all(frame["answer"].str.len() > 0) and all(frame["error"].isna())


def test_the_example_of_a_test_runs() -> None:
    """A mock of ``responses`` answers, without any server."""
    responses = pytest.importorskip("responses")
    (block,) = blocks("python responses")
    url = "https://api.openai.com/v1/chat/completions"
    exec(
        compile(block, "README.md", "exec"),
        {"responses": responses, "url": url, "Processor": Processor},
    )


def test_the_example_of_a_table_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template and the two commands make answers of a CSV file, and the library does, too."""
    monkeypatch.chdir(tmp_path)
    (template,), (block,) = blocks("json template"), blocks("python tables")
    Path("template.json").write_text(template, "utf-8")
    Path("prompts.csv").write_text("id,language,text,length\na,French,one,5\nb,German,two,6\n")
    (_, *send), (_, _, *export) = commands_with("prompts.csv")[0], commands_with(" export ")[0]
    with Simulator(SimulatorOptions()) as server:
        url = f"{server.url}/v1/chat/completions"
        done = run(*(word if "://" not in word else url for word in send))
        assert done.returncode == 0, done.stderr
        exec(compile(block, "README.md", "exec"), {"account": {"request_url": url}})
    assert sorted(row["id"] for row in table_rows("answers.csv", "metadata.id")) == ["a", "b"]
    Path("answers.csv").unlink()
    assert run("export", *export).returncode == 0
    assert sorted(row["id"] for row in table_rows("answers.csv", "custom_id")) == ["a", "b"]


def table_rows(path: str, id_column: str) -> list[dict[str, str]]:
    """The rows of a CSV file, in which each answer has a text."""
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert all(row["text"] for row in found)
    return [row | {"id": row[id_column]} for row in found]


def session_with_key() -> requests.Session:
    """A session that brings a key in its headers."""
    session = requests.Session()
    session.headers["Authorization"] = "Bearer sk-session"
    return session


def test_keys_in_session_headers_are_used() -> None:
    """A session's own key is sent where there is no ``api_key``, which else takes precedence."""
    Processor(request_url="https://api.openai.com/v1/embeddings", session_factory=session_with_key)
    body = {"model": "m", "input": "text"}
    for api_key, accepted in ((None, "sk-session"), ("sk-own", "sk-own")):
        with Simulator(SimulatorOptions(api_key=accepted)) as server:
            url = f"{server.url}/v1/embeddings"
            with Processor(
                request_url=url, session_factory=session_with_key, api_key=api_key
            ) as processor:
                assert processor.map([body])[0].ok


def test_the_simulator_example_runs(tmp_path: Path) -> None:
    """The simulator takes the flags of the README, and a job against it comes to its end."""
    (words,) = commands_with("parallel_processor.simulator", "--error_rate")
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(5)])
    with simulator(*words[words.index("8080") + 1 :]) as server:
        done = run("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings")
    assert done.returncode == 0, done.stderr


def test_the_simulators_flags_exist() -> None:
    """Each flag in the table of what can be simulated is one of the simulator."""
    words = [sys.executable, "-m", "parallel_processor.simulator", "--help"]
    helped = subprocess.run(
        words, capture_output=True, text=True, check=True, env=environment()
    ).stdout
    flags = {flag for row in rows(section("Simulator")) for flag in re.findall(r"--\w+", row[1])}
    assert len(flags) > 10
    assert flags <= set(re.findall(r"--\w+", helped))


@pytest.mark.parametrize(
    ("place", "model", "more", "told"),
    [
        (0, "gpt-4o-mini", (), "500 requests/min"),
        (1, "gpt-5-mini", ("--service_tier", "flex,default"), "600 requests/min"),
    ],
)
def test_the_limits_files_are_read(
    tmp_path: Path, place: int, model: str, more: tuple[str, ...], told: str
) -> None:
    """The limits by model, and by tier, are those of files that the command takes."""
    path = tmp_path / "limits.json"
    path.write_text(blocks("json")[place], "utf-8")
    source = write_lines(tmp_path / "in.jsonl", [{"model": model, "input": "text"}])
    with Simulator(SimulatorOptions()) as server:
        url = ("--request_url", f"{server.url}/v1/embeddings")
        done = run("--requests_filepath", source, *url, "--limits", path, *more)
    assert done.returncode == 0, done.stderr
    assert told in done.stderr


def test_the_commands_with_json_in_and_out_run(tmp_path: Path) -> None:
    """Answers hold the schema, and the line at the end has the fields of the table."""
    write_lines(tmp_path / "requests.jsonl", [{"model": "m", "messages": []}])
    (tmp_path / "schema.json").write_text('{"type": "object", "required": ["age"]}')
    message = {"message": {"role": "assistant", "content": '{"age": 36}'}, "finish_reason": "stop"}

    def answer(visit: Visit) -> None:
        while visit.read():
            visit.answer(json.dumps({"choices": [message]}).encode())

    (checked,), (told,) = commands_with("--json_schema"), commands_with("--summary_json")
    with RawServer(answer) as server:
        for words in (checked, told):
            line = " ".join(words[1:]).replace("https://api.openai.com", server.url)
            done = subprocess.run(
                command(*line.split(), "--overwrite", "--api_key", "key"),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                env=environment(),
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())
    fields = [name for row in rows(section("Reports and metrics")) for name in names(row[0])]
    assert set(fields) <= set(found)
    assert found["answered"] == 1


def test_the_file_formats_are_read_as_described(tmp_path: Path) -> None:
    """The two example lines give the records that the README describes."""
    lines = [line.replace("…", "x") for line in re.findall(r"`(\{\".*\})`", TEXT)]
    assert len(lines) == 2
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    with Simulator(SimulatorOptions()) as server:
        done = run("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings")
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "in_results.jsonl")
    (cookbook,) = [row for row in records if isinstance(row, list)]
    (batch,) = [row for row in records if isinstance(row, dict)]
    assert cookbook[0] == {"model": "text-embedding-3-small", "input": "embed me"}
    assert cookbook[2] == {"row_id": 1}
    assert batch["custom_id"] == "a" and batch["response"]["status_code"] == 200
