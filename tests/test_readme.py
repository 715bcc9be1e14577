"""The README against the program: its flags, its examples, its modules."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, environment, read_lines, run, simulator, write_lines

import parallel_processor
from parallel_processor.simulator import Simulator, SimulatorOptions

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in ``language``."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def help_flags(*words: str) -> dict[str, str]:
    """The flags of a command's ``--help`` with their defaults, where it names one."""
    done = subprocess.run(
        [*words, "--help"], capture_output=True, text=True, check=True, env=environment(COLUMNS="999")
    )
    _, *entries = re.split(r"^  (?=-)", done.stdout.partition("exit codes:")[0], flags=re.MULTILINE)
    flags = {re.findall(r"--\w+", entry)[0]: entry for entry in entries}
    defaults = {flag: re.search(r"default:\s+([\w.:/]+)", entry) for flag, entry in flags.items()}
    return {flag: found[1] if found else "" for flag, found in defaults.items()}


def test_the_flag_table_is_that_of_the_command() -> None:
    """Every flag is in the table with its default, and no other."""
    table = dict(re.findall(r"^\| `(--\w+)` \| (.*?) \|", TEXT, re.MULTILINE))
    flags = help_flags(*command())
    assert set(table) == set(flags) - {"--help", "--version"}
    numbers = {flag: default for flag, default in flags.items() if re.fullmatch(r"[\d.]+", default)}
    assert len(numbers) == 18
    assert {flag: table[flag] for flag in numbers} == numbers
    assert table["--request_url"] == f"`{flags['--request_url']}`"


def test_the_cookbook_users_command_runs(tmp_path: Path) -> None:
    """The command line of the README answers a file, from a clone and from another folder."""
    (block,) = [text for text in blocks("bash") if "api_request_parallel_processor" in text]
    words = shlex.split(block.replace("\\\n", " "))
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(5)])
    with Simulator(SimulatorOptions()) as server:
        swap = {
            "python": sys.executable,
            words[1]: str(ROOT / words[1]),
            "examples/requests.jsonl": str(source),
            "examples/requests_results.jsonl": str(tmp_path / "out.jsonl"),
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


def test_the_verify_command_runs(tmp_path: Path) -> None:
    """The check of the README says that a finished job is complete, and that a torn one isn't."""
    (block,) = [text for text in blocks("bash") if " verify " in text]
    words = shlex.split(block)[1:]
    write_lines(tmp_path / "requests.jsonl", [{"input": "a"}])
    results = write_lines(tmp_path / "requests_results.jsonl", [[{"input": "a"}, {"data": []}]])
    done = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "every line has its answer\n")
    assert dict(line.split() for line in done.stdout.splitlines())["answered"] == "1"
    results.write_text("[{")
    assert subprocess.run(command(*words), cwd=tmp_path, capture_output=True).returncode == 1


def test_the_library_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python block runs as it stands, but for the host that it asks."""
    (block,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    rows = [{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {n}."}]} for n in "ab"]
    write_lines(tmp_path / "requests.jsonl", rows)
    with Simulator(SimulatorOptions()) as server:
        source = block.replace("https://api.openai.com", server.url)
        exec(compile(source, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 answered, 0 failed"
    assert len(lines) == 3 and all("total_tokens" in line for line in lines[1:])


def test_the_recipe_for_a_data_frame_runs() -> None:
    """Five lines make a column of answers out of a column of prompts."""
    pandas = pytest.importorskip("pandas")
    (block,) = blocks("python notebook")
    frame = pandas.DataFrame({"prompt": ["Say a.", "Say b.", "Say c."]})
    with Simulator(SimulatorOptions()) as server:
        account = {"request_url": f"{server.url}/v1/chat/completions"}
        names = {"frame": frame, "account": account, "Processor": parallel_processor.Processor}
        exec(compile(block, "README.md", "exec"), names)
    assert len(block.splitlines()) == 5
    assert all(frame["answer"].str.len() > 0) and all(frame["error"].isna())


def test_the_example_of_a_test_runs() -> None:
    """A mock of ``responses`` answers, without any server."""
    responses = pytest.importorskip("responses")
    (block,) = blocks("python responses")
    url = "https://api.openai.com/v1/chat/completions"
    names = {"responses": responses, "url": url, "Processor": parallel_processor.Processor}
    exec(compile(block, "README.md", "exec"), names)


def test_the_simulator_example_runs(tmp_path: Path) -> None:
    """The simulator takes the flags of the README, and a job against it comes to its end."""
    (block,) = [text for text in blocks("bash") if "parallel_processor.simulator" in text]
    words = shlex.split(block.replace("\\\n", " "))
    flags = words[words.index("8080") + 1 :]
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(5)])
    with simulator(*flags) as server:
        done = run("--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings")
    assert done.returncode == 0, done.stderr


def test_the_file_formats_are_read_as_described(tmp_path: Path) -> None:
    """The two example lines give the records that the README describes."""
    lines = [line.replace("…", "x") for line in re.findall(r"`(\{.*\})`", TEXT)]
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


def test_the_layer_table_names_every_module() -> None:
    """The table of modules is that of the package."""
    folder = Path(parallel_processor.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
    section = TEXT[TEXT.index("| layer | modules |") :]
    rows = section[: section.index("\n\n")]
    assert set(re.findall(r"`(\w+)`", rows)) == modules


def test_the_settings_are_those_of_the_library() -> None:
    """Every setting of the library is named, and nothing else is in that list."""
    start = TEXT.index("take the settings of `Options`")
    section = TEXT[start : TEXT.index("Every public name has", start)]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", section))))
    fields = {
        field.name
        for made in (parallel_processor.Options, parallel_processor.Limits, parallel_processor.RetryPolicy)
        for field in dataclasses.fields(made)
    }
    assert named == fields | {"Options", "Limits", "RetryPolicy"}
