"""Budgets on the command line: exit codes, files of prices, and what is left after a kill."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from commands import command, environment, run, write_lines
from raw_server import RawServer, Room, Visit

from parallel_processor.simulator import Simulator

CHAT = "/v1/chat/completions"
FAST = ("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf", "--no_progress")
USAGE = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}
COST = (10 + 100 * 10) / 1e6  # of each request
ANSWER = json.dumps({"choices": [{"text": "a"}], "usage": USAGE}).encode()


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """The flags of a job of 300 requests, which cost 0.303 dollars, without its URL and its bounds."""
    rows = [
        {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": f"text {n}"}]}
        for n in range(300)
    ]
    prices = tmp_path / "prices.json"
    prices.write_text('{"m": {"input": 1, "output": 10}}')
    source, save = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    files = ("--requests_filepath", source, "--save_filepath", save, "--prices", prices)
    return tuple(map(str, (*files, *FAST)))


class Paid(Room):
    """Answers so many requests at once, and holds all others. Each one that arrives is paid for."""

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            if not self._answers.acquire(blocking=False):
                self._entered.release()
                self.opened.wait(120)
            visit.answer(ANSWER)


def test_a_kill_neither_exceeds_the_budget_nor_wastes_it(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """What was in flight counts; the next run uses the rest, and ends with exit code 4."""
    room = Paid(answers=40)
    with RawServer(room) as server:
        job = (
            *words,
            "--request_url",
            server.url + CHAT,
            "--max_cost",
            "0.1",
            "--max_workers",
            "4",
        )
        with subprocess.Popen(
            command(*job), env=environment(), stderr=subprocess.DEVNULL
        ) as process:
            room.wait_for(4)
            process.kill()
        kept = json.loads((tmp_path / "out.jsonl.spent").read_text())
        on_record = (tmp_path / "out.jsonl").read_bytes().count(b"\n")
        assert kept["cost"] + COST * on_record >= COST * len(server.bodies)
        room.opened.set()
        done = run(*job)
    assert done.returncode == 4
    assert 0.097 <= COST * len(server.bodies) <= 0.1
    assert "stopped: --max_cost is $0.1: $0.09" in done.stderr
    assert "Raise the bound that the message names, then run the same command again" in done.stderr


def test_a_model_without_a_price_is_no_matter_of_the_bound(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """The advice is to name its price."""
    (tmp_path / "prices.json").write_text('{"other": {"input": 1, "output": 10}}')
    done = run(*words, "--request_url", f"http://127.0.0.1:1{CHAT}", "--max_cost", "1")
    assert done.returncode == 4
    assert "there is no price for m: give one in a file of prices" in done.stderr
    assert "Name a file with the model's price (--prices), then run the same command" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"m": {"input": 1}}', "the price of 'm' lacks 'output'"),
        ('{"m": {"input": 2e-6, "output": 0}}', "must be US dollars per million tokens, not 2e-06"),
        ("[]", "must be an object of prices by model pattern"),
        (None, "No such file or directory"),
    ],
)
def test_a_wrong_file_of_prices_is_a_usage_error(
    text: str | None, message: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Exit code 2, before anything is sent."""
    path = tmp_path / "prices.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    done = run(*words, "--request_url", f"http://127.0.0.1:1{CHAT}")
    assert done.returncode == 2
    assert message in done.stderr and str(path) in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_wrong_bound_is_named_by_its_flag(words: tuple[str, ...]) -> None:
    """So is one that can't work on several workers."""
    done = run(*words, "--request_url", f"http://127.0.0.1:1{CHAT}", "--max_failures", "many")
    assert done.returncode == 2
    assert (
        "--max_failures must be a whole number of at least 0, or a share such as 5%" in done.stderr
    )


def test_failures_end_with_exit_code_4(words: tuple[str, ...], tmp_path: Path) -> None:
    """What is left is for the next run."""
    source = tmp_path / "in.jsonl"
    source.write_text(source.read_text() + "no json\n" * 3)
    with Simulator() as server:
        done = run(*words, "--request_url", server.url + CHAT, "--max_failures", "2")
    assert done.returncode == 4
    assert "stopped: 3 requests have failed, and --max_failures is 2" in done.stderr
