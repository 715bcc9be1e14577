"""Going on where the cookbook's asyncio script stopped, with the results file that it left."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import run, write_lines
from raw_server import RawServer, Visit

from parallel_processor.files.verify import verify_results

FAST = ("--max_requests_per_minute", 60_000, "--max_tokens_per_minute", "inf", "--no_progress")
TEXTS = ["plain", "Grüße, 世界 🎉", 'quo"te \\ and\ttab\n', "\u2028 line \x7f", "<|endoftext|>"]
METADATA: list[Any] = [
    *({"row_id": 1}, {"b": [1, {"a": None}], "a": 1e-7}, "a string", ["list", 2], 17, True, "ÄÖ"),
    *({}, [], "", 0, False, None),  # which the script takes for none
]
ERRORS: list[Any] = [
    {"error": {"message": "The server had an error", "type": "server_error", "code": None}},
    TimeoutError("Response payload is not completed"),
    ConnectionError("Cannot connect to host api.openai.com:443 ssl:default"),
]
NO_METADATA = object()
ANSWERED, FAILED = 300, 40


def line_of(rng: random.Random, number: int) -> dict[str, Any]:
    """A line of the input; some are equal, others differ in their metadata only."""
    body = {
        "model": "text-embedding-3-small",
        "input": f"{rng.choice(TEXTS)} {number // 3}",
        "nested": {"z": 0.1, "a": [1e3, 1.0, -0.0, 12345678901234567890], "t": None},
    }
    metadata = rng.choice([NO_METADATA, *METADATA])
    return body if metadata is NO_METADATA else body | {"metadata": metadata}


def recorded(line: dict[str, Any], result: Any) -> str:
    """What the script appends for ``line``: three columns if the metadata is truthy, else two."""
    body = {key: value for key, value in line.items() if key != "metadata"}
    columns = [body, result]
    if line.get("metadata"):
        columns.append(line["metadata"])
    return json.dumps(columns) + "\n"


def answer_to(number: int) -> dict[str, Any]:
    """An answer as the script got and dumped it."""
    return {"object": "list", "data": [{"embedding": [0.25, -1e-05], "n": number}], "é": "ü"}


def records_in(path: Path) -> list[Any]:
    """The records of a file; texts may hold what Python takes for line ends."""
    return [json.loads(line) for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]


def sent(line: dict[str, Any]) -> str:
    """What tells the bodies of requests apart."""
    return json.dumps({k: v for k, v in line.items() if k != "metadata"}, sort_keys=True)


def bodies(server: RawServer) -> Counter[str]:
    """What a server got, and how often."""
    return Counter(sent(json.loads(body)) for body in server.bodies)


@dataclass
class Left:
    """What the script left, and the input as it is now: shuffled and extended."""

    source: Path
    save: Path
    failed: list[dict[str, Any]]
    missing: list[dict[str, Any]]  # torn off, never recorded, or new
    lines: int
    records: list[str]  # whole ones

    def words(self, server: RawServer, *flags: object) -> list[object]:
        """The command that goes on."""
        paths = ("--requests_filepath", self.source, "--save_filepath", self.save)
        url = ("--request_url", f"{server.url}/v1/embeddings")
        return [*paths, *url, *FAST, *flags]


@pytest.fixture(params=["torn", "whole"])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Left:
    """300 answers and 40 failures in the order of completion, then a half line or nothing."""
    rng = random.Random(11)
    lines = [line_of(rng, number) for number in range(ANSWERED + FAILED + 5)]
    rng.shuffle(lines)
    answered, failed = lines[:ANSWERED], lines[ANSWERED : ANSWERED + FAILED]
    missing = lines[ANSWERED + FAILED :]
    records = [recorded(line, answer_to(n)) for n, line in enumerate(answered)]
    records += [
        recorded(line, [str(error) for error in rng.choices(ERRORS, k=rng.randint(1, 5))])
        for line in failed
    ]
    rng.shuffle(records)
    text = "".join(records)
    if request.param == "torn":
        tail = recorded(missing[0], answer_to(0))
        text += tail[: rng.randrange(2, len(tail) - 2)]
    save = tmp_path / "out.jsonl"
    save.write_text(text, "ascii")
    new = [line_of(rng, number) for number in range(1000, 1025)]
    now = [*lines, *new]
    rng.shuffle(now)
    source = tmp_path / "in.jsonl"
    half = len(now) // 2
    write_lines(source, now[:half])
    with source.open("a", encoding="utf-8") as file:  # as other programs write them
        for line in now[half:]:
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\r\n")
    return Left(source, save, failed, [*missing, *new], len(now), records)


def answer(visit: Visit) -> None:
    """Answer every request."""
    while visit.read():
        visit.answer()


def test_exactly_the_missing_requests_are_sent(left: Left) -> None:
    """Those that failed, were torn off or are new; then the file has a good record for each line."""
    with RawServer(answer) as server:
        done = run(*left.words(server))
        assert done.returncode == 0, done.stderr
        assert bodies(server) == Counter(map(sent, left.failed + left.missing))
        assert f"{ANSWERED} answers" in done.stderr
        assert verify_results(left.source, left.save).ok
        assert run(*left.words(server)).returncode == 0
        assert len(server.bodies) == FAILED + len(left.missing)
    answers = [text for text in left.records if isinstance(json.loads(text)[1], dict)]
    assert left.save.read_text("utf-8").startswith("".join(answers))


def test_failures_may_be_kept(left: Left) -> None:
    """With ``--keep_failures`` failed records stay as they are, and their requests aren't sent."""
    with RawServer(answer) as server:
        assert run(*left.words(server, "--keep_failures")).returncode == 1
        assert bodies(server) == Counter(map(sent, left.missing))
    assert left.save.read_text("utf-8").startswith("".join(left.records))
    found = verify_results(left.source, left.save)
    assert (found.failed, found.answered) == (FAILED, left.lines - FAILED)
    assert (found.missing, found.doubled, found.torn, found.foreign) == (0, 0, 0, 0)


def test_failures_may_go_to_their_own_file(left: Left, tmp_path: Path) -> None:
    """With ``--errors_filepath`` they move there, and are replaced by the next run's records."""
    errors = tmp_path / "errors.jsonl"
    hopeless = set(map(sent, [*left.failed[:10], *left.missing[-10:]]))

    def refuse_some(visit: Visit) -> None:
        while visit.read():
            if sent(json.loads(visit.body)) in hopeless:
                visit.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")
            else:
                visit.answer()

    with RawServer(refuse_some) as server:
        flags = ("--errors_filepath", errors)
        assert run(*left.words(server, *flags)).returncode == 1
        assert bodies(server) == Counter(map(sent, left.failed + left.missing))
        refused = Counter({body: n for body, n in bodies(server).items() if body in hopeless})
    assert Counter(sent(row[0]) for row in records_in(errors)) == refused
    assert all(isinstance(row[1], dict) for row in records_in(left.save))
    found = verify_results(left.source, left.save, errors)
    assert (found.failed, found.answered) == (refused.total(), left.lines - refused.total())
    assert (found.missing, found.doubled, found.torn, found.foreign) == (0, 0, 0, 0)

    with RawServer(answer) as server:
        assert run(*left.words(server, *flags)).returncode == 0
        assert bodies(server) == refused
    assert errors.read_bytes() == b""
    assert verify_results(left.source, left.save, errors).ok
