"""``plan`` on the command line: text, JSON, exit codes, and the flags of the run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import command, run, write_lines

from parallel_processor.cli.flags import ROWS
from parallel_processor.cli.main import main
from parallel_processor.cli.plan import build_plan_parser, dollars

URL = "https://api.openai.com/v1/chat/completions"
TO = ("--request_url", URL)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three requests, of which two are equal."""
    return write_lines(tmp_path / "in.jsonl", [chat("a", max_tokens=5), chat("b"), chat("b")])


def planned(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code of ``plan``, and what it prints."""
    code = main(["plan", *map(str, words)])
    return code, capsys.readouterr().out


def test_it_prints_what_a_job_will_take(source: Path, tmp_path: Path) -> None:
    """As a process of its own, without a key; and it sends and writes nothing."""
    ended = run("plan", "--requests_filepath", source, *TO, "--max_requests_per_minute", 60)
    assert (ended.returncode, ended.stderr) == (0, "")
    for line in (
        f"{source}: 3 lines",
        "  bad lines: 0",
        "  equal to an earlier line: 1",
        "  left to send: 3",
        "2 requests name no maximum of output tokens: --default_output_tokens of each is reserved.",
        "  requests: 60 a minute, ",
    ):
        assert line in ended.stdout
    assert "gpt-4o-mini  /v1/chat/completions         3  prompts" in ended.stdout
    assert "equal lines sent once (dedupe)" in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_bad_lines_are_exit_code_1(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """With their numbers, ten of them in the text."""
    source.write_text(source.read_text() + "{bad\n" * 12)
    code, text = planned(capsys, "--requests_filepath", source, *TO)
    assert code == 1
    assert "  bad lines: 12\n    line 4: not JSON: " in text
    assert "    line 13: " in text
    assert "    and 2 more (--json has the first 100)" in text


def test_json_is_all_of_it(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """One object on standard output."""
    words = ("--requests_filepath", source, *TO, "--json", "--latency", 2.5, "--max_workers", 7)
    code, text = planned(capsys, *words)
    found = json.loads(text)
    assert code == 0
    assert (found["ok"], found["requests"], found["latency_s"]) == (True, 3, 2.5)
    assert found["forecast"]["in_flight"] <= 7


def test_a_sample_says_how_sure_it_is(capsys: pytest.CaptureFixture[str], source: Path) -> None:
    """And names the way that it was found."""
    code, text = planned(capsys, "--requests_filepath", source, *TO, "--sample", 2, "--seed", 3)
    assert code == 0
    assert "Tokens are estimated from 2 requests: " in text
    assert "(95 %, ratio estimator by size)" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--requests_filepath", "nowhere.jsonl"], "can't read nowhere.jsonl"),
        (["--sample", "1"], "error: --sample must be a whole number of at least 2, not 1"),
        (["--latency", "-1"], "error: --latency must be at least 0, not -1.0"),
        (["--latency", "inf"], "error: --latency must be at most 1,000,000 seconds, not inf"),
        (["--latency", "nan"], "error: --latency must be a number"),
        (["--processes", "0"], "error: --processes must be a whole number of at least 1, not 0"),
        (["--processes", "65"], "error: --processes must be at most 64, not 65"),
        (["--max_workers", "0"], "--max_workers must be"),
        (["--no_such_flag"], "unknown flag --no_such_flag"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    words: list[str], expected: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is wrong."""
    given = (
        words if "--requests_filepath" in words else ["--requests_filepath", str(source), *words]
    )
    try:
        code: Any = main(["plan", *given, *TO])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert expected in capsys.readouterr().err


def test_results_that_a_run_would_refuse_are_exit_code_2(
    capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    """A file without any record."""
    results = source.with_name("notes.txt")
    results.write_text("buy milk\n")
    words = ["--requests_filepath", str(source), "--save_filepath", str(results), *TO]
    assert main(["plan", *words]) == 2
    assert "notes.txt holds no records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("save", "words"), [("missing/out.jsonl", "No such file or directory"), (".", "Is a directory")]
)
def test_results_that_can_not_be_written_are_exit_code_2(
    save: str, words: str, capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    """The run would end there, too."""
    path = tmp_path / save
    for more in ([], ["--overwrite"]):
        given = ["--requests_filepath", str(source), "--save_filepath", str(path), *TO, *more]
        assert main(["plan", *given]) == 2
        assert f"can't write {path}: {words}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan", "verify"])
def test_what_can_not_be_printed_is_exit_code_1(name: str, source: Path) -> None:
    """A script would take what is there for the whole."""
    answer = {"choices": [{"message": {"content": "c"}}]}
    requests = [json.loads(line) for line in source.read_text().splitlines()]
    write_lines(source.with_name("in_results.jsonl"), [[each, answer] for each in requests])
    words = command(name, "--requests_filepath", source, *TO)
    assert main([*words[3:]]) == 0
    for where, why in (("/dev/full", "No space left on device"), ("&-", "it is closed")):
        line = f"{' '.join(words)} >{where}"
        done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1
        assert f"error: can't write to standard output: {why}\n" in done.stderr


def test_it_takes_all_flags_of_the_run() -> None:
    """So that the word in front is all that differs."""
    known = {action.dest for action in build_plan_parser()._actions}
    assert {row.name for row in ROWS} <= known


def test_several_keys_are_several_accounts(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    """Each has the limits for itself."""
    keys = tmp_path / "keys"
    keys.write_text("sk-one-0123456789\nsk-two-0123456789\n")
    write_lines(source, [chat(str(number), max_tokens=1) for number in range(120)])
    words = ("--requests_filepath", source, *TO, "--max_requests_per_minute", 60, "--json")
    times = [
        json.loads(planned(capsys, *words, *more)[1])["forecast"]["seconds"]
        for more in ([], ["--api_key_file", keys])
    ]
    assert times[0] == pytest.approx(2 * times[1], rel=0.02)


def test_it_uses_the_prices_that_are_installed(
    capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    """As the run does, for the budget, too."""
    pytest.importorskip("genai_prices")
    words = ("--requests_filepath", source, *TO, "--max_cost", 1e-9)
    _, text = planned(capsys, *words)
    assert "money: $0.0" in text
    assert "sent to a Batch API (to-batch)" in text
    assert "--max_cost is less than that" in text


def test_what_a_budget_has_against_a_job_is_said(
    capsys: pytest.CaptureFixture[str], source: Path, tmp_path: Path
) -> None:
    """A model without a price, and what was spent before."""
    prices = tmp_path / "prices.json"
    prices.write_text('{"other": {"input": 1, "output": 1}}')
    source.with_name("in_results.jsonl.spent").write_text('{"cost": 2.5, "tokens": 1000}')
    write_lines(source, [chat("a", model="own")])
    words = ("--requests_filepath", source, *TO, "--prices", prices, "--max_cost", 2)
    _, text = planned(capsys, *words)
    assert "The run sends nothing for own, and stops there: --max_cost needs a price." in text
    assert "spent by earlier runs: $2.50 and 1,000 tokens" in text
    assert "The run may end before it is through: --max_cost is less than that." in text


def test_small_amounts_keep_their_digits() -> None:
    """And large ones have cents."""
    assert [dollars(amount) for amount in (0, 1234.5, 0.5, 0.012, 0.00034)] == [
        *("$0.00", "$1,234.50", "$0.50", "$0.012", "$0.00034")
    ]
