"""Results in the order of the requests, whatever becomes of the run."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, read_lines, simulator, write_lines
from raw_server import RawServer, Visit
from services import gated, in_background, processor, rows

from parallel_processor.engine import file_run
from parallel_processor.engine.credits import WriterSlack
from parallel_processor.exceptions import RunStoppedError
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.formats import made_request
from parallel_processor.files.verify import verify_results
from parallel_processor.files.writer import InputOrder, ResultWriter, held_bytes
from parallel_processor.models import Outcome, Response


def texts(path: Path) -> list[str]:
    """The inputs of the records, in the file's order."""
    if path.suffix == ".gz":
        lines = gzip.decompress(path.read_bytes()).splitlines()
        return [json.loads(line)[0]["input"] for line in lines]
    return [record[0]["input"] for record in read_lines(path)]


def inputs(count: int) -> list[str]:
    """Those of so many requests."""
    return [row["input"] for row in rows(count)]


def shuffled(visit: Visit) -> None:
    """Answers that take very different times."""
    while visit.read():
        threading.Event().wait(random.random() * 0.02)
        visit.answer()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_records_come_in_the_order_of_the_requests(tmp_path: Path, name: str) -> None:
    """With failures in their own file, each file is in order; ``on_outcome`` sees whole outcomes."""
    lines: list[Any] = [*rows(200)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    seen: list[Any] = []
    with RawServer(shuffled) as server, processor(server.url, max_workers=50) as made:
        made.process_file(source, tmp_path / name, ordered=True)
        made.process_file(source, tmp_path / "b.jsonl", ordered=True, on_outcome=seen.append)
    assert texts(tmp_path / name) == inputs(200)
    assert texts(tmp_path / "b.jsonl") == inputs(200)
    assert [outcome.request.body["input"] for outcome in seen] == inputs(200)
    assert all(outcome.response for outcome in seen)


def test_what_waits_is_written_after_a_stop_and_put_in_order_at_the_end(tmp_path: Path) -> None:
    """Answers that were paid for are never sent again; the next run sorts what it must."""
    source, save = write_lines(tmp_path / "in.jsonl", rows(100)), tmp_path / "out.jsonl"
    with gated(b'"text 3"') as (server, gate):
        with processor(server.url, max_workers=10, drain_s=0.1) as made:
            result = in_background(lambda: made.process_file(source, save, ordered=True))
            for _ in range(99):
                assert gate.answers.acquire(timeout=20)
            assert texts(save) in ([], *(inputs(count) for count in (1, 2, 3)))
            made.stop()
            assert result().answered >= 90
        got = texts(save)
        assert got == [text for text in inputs(100) if text in set(got)] and "text 3" not in got
        gate.opened.set()
        with processor(server.url, max_workers=10) as made:
            assert made.process_file(source, save, ordered=True).answered == 100 - len(got)
    assert texts(save) == inputs(100)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_failures_that_are_tried_again_and_new_lines_come_where_they_belong(
    tmp_path: Path, name: str
) -> None:
    """A file of an unordered run is sorted as well; equal requests and foreign lines stay."""
    save, bad = tmp_path / name, [True]

    def serve(visit: Visit) -> None:
        while visit.read():
            if bad[0] and b"7" in visit.body:
                visit.answer(b'{"error": "no"}', status="400 Bad Request")
            else:
                visit.answer()

    old = [*rows(40), {"model": "m", "input": "text 5"}, {"model": "m", "input": "gone"}]
    source = write_lines(tmp_path / "in.jsonl", old)
    with RawServer(serve) as server, processor(server.url) as made:
        made.process_file(source, save)
        bad[0] = False
        write_lines(source, [*rows(60)[::-1], {"model": "m", "input": "text 5"}])
        summary = made.process_file(source, save, ordered=True)
        assert (summary.answered, summary.failed) == (20 + 4, 0)
        assert texts(save) == [*inputs(60)[::-1], "text 5", "gone"]
        before = save.stat()
        assert made.process_file(source, save, ordered=True).answered == 0
        assert save.stat().st_ino == before.st_ino  # nothing was to be sorted


def test_a_request_that_gets_no_record_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of a model that is left out have none. More than the window may be read behind them."""
    monkeypatch.setattr(
        file_run, "ORDERED_SLACK", WriterSlack(outcomes=10, size_bytes=10_000, in_order=True)
    )
    lines = [{"model": "ab"[n % 3 > 0], "input": f"text {n}"} for n in range(900)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    violations = [{"quotaId": "GenerateRequestsPerDayPerModel-FreeTier"}]
    error = {"code": 429, "message": "quota", "details": [{"violations": violations}]}
    spent = json.dumps({"error": error}).encode()

    def serve(visit: Visit) -> None:
        while visit.read():
            if b'"a"' in visit.body:
                visit.answer(spent, status="429 Too Many Requests")
            else:
                visit.answer()

    with RawServer(serve) as server, processor(server.url, max_workers=4) as made:
        with pytest.raises(RunStoppedError, match="requests for a are left unanswered"):
            made.process_file(source, tmp_path / "out.jsonl", ordered=True)
    assert texts(tmp_path / "out.jsonl") == [f"text {n}" for n in range(900) if n % 3]


def test_equal_requests_that_share_an_answer_are_in_order(tmp_path: Path) -> None:
    """Those whose equal is still in flight get theirs with it, and hold nobody up longer."""
    lines = [{"model": "m", "input": f"text {n % 7}"} for n in range(200)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    with RawServer(shuffled) as server, processor(server.url, dedupe=True) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", ordered=True)
    assert (summary.answered, summary.deduplicated) == (200, 193)
    assert texts(tmp_path / "out.jsonl") == [line["input"] for line in lines]


def test_what_waits_is_bounded_by_its_window(tmp_path: Path) -> None:
    """While the first request is not answered, no more is read than the window; then it goes on."""
    text = "x" * 1_000_000

    def requests() -> Any:
        for number in range(400):
            read.append(number)
            yield json.dumps({"model": "m", "input": f"text {number} {text}"})

    read: list[int] = []
    with gated(b'"text 0 ') as (server, gate):
        with processor(server.url, max_workers=4) as made:
            result = in_background(
                lambda: made.process_file(requests(), tmp_path / "out.jsonl", ordered=True)
            )
            assert gate.came.wait(20)
            while gate.answers.acquire(timeout=5.0):
                pass
            assert 64 <= len(read) <= 64 + 16
            gate.opened.set()
            assert result().answered == 400
    assert [each.split()[1] for each in texts(tmp_path / "out.jsonl")] == [
        str(n) for n in range(400)
    ]


@pytest.mark.acceptance
def test_every_kill_resumes_in_order(tmp_path: Path) -> None:
    """The file is a beginning of the ordered one at any time, and whole at the end."""
    rng = random.Random(5)
    source = write_lines(tmp_path / "in.jsonl", rows(1500))
    save = tmp_path / "out.jsonl.gz"
    with simulator("--latency_s", 0.05, "--latency_jitter", 0.9, "--error_rate", 0.05) as server:
        words = command(
            *("--requests_filepath", source, "--save_filepath", save, "--ordered", "--no_progress"),
            *("--request_url", f"{server.url}/v1/embeddings", "--max_workers", 40),
            *("--max_requests_per_minute", 60_000, "--max_tokens_per_minute", "inf"),
        )
        for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as process:
                try:
                    process.wait(rng.uniform(1.0, 1.6))
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
        assert subprocess.run(words, env=environment(), timeout=100).returncode == 0
    assert texts(save) == inputs(1500)
    assert verify_results(source, save).ok


def test_the_order_keeps_records_alone(tmp_path: Path) -> None:
    """What waits has neither request nor response, and tells its size when it is written."""
    path, told = tmp_path / "out.jsonl", []
    file, order = AppendFile(path), InputOrder()
    writer = ResultWriter(
        file,
        on_written=lambda outcomes, ok, size: told.append((outcomes, ok, size)),
        on_failure=lambda error: None,
        order=order,
    )
    for number in (1, 2, 4, 5, 8):
        order.expect(number)
    made = {number: answered(number) for number in (1, 2, 4, 5, 8)}
    for number in (8, 4, 2):
        writer.put(made[number])
    writer.skip(5)
    writer.put(made[1])
    writer.close()
    file.close()
    assert [record[0]["n"] for record in read_lines(path)] == [1, 2, 4, 8]
    outcomes = [outcome for batch, _, _ in told for outcome in batch]
    assert [outcome.request.number for outcome in outcomes] == [1, 2, 4, 8]
    assert {outcome.raw_response for outcome in outcomes} == {None}
    assert sum(size for _, _, size in told) == sum(held_bytes(made[n]) for n in (1, 2, 4, 8))


def answered(number: int) -> Outcome:
    """An answered request."""
    response = Response(status=200, headers={}, body=b'{"a": 1}', data={"a": 1}, is_json=True)
    return Outcome(request=made_request({"n": number}, number), ok=True, raw_response=response)
