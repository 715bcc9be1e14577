"""Files and iterables through a Processor, against the simulator in this process."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import services
from commands import read_lines, write_lines
from raw_server import OK, RawServer, Room, Visit, answer_all, header_of
from services import in_background, rows, threads

from parallel_processor import (
    ConfigurationError,
    InputFileError,
    Limits,
    Processor,
    Request,
    ResultsFileError,
    RunStoppedError,
)
from parallel_processor.models import Estimate, WaitCause
from parallel_processor.simulator import Simulator, SimulatorOptions

KEY = "sk-test-0123456789abcdef"
FULL = Path("/dev/full")


def processor(url: str, **settings: Any) -> AbstractContextManager[Processor]:
    """A processor with a key for the embeddings of a server."""
    return services.processor(url, **{"api_key": KEY} | settings)


def used_by_us() -> tuple[list[str], int]:
    """The package's threads, and how many files the process has open."""
    return threads(), len(os.listdir("/proc/self/fd"))


def inputs_of(records: list[Any]) -> Counter[str]:
    """How often each input has an answer in a results file."""
    return Counter(record[0]["input"] for record in records if isinstance(record[1], dict))


@contextmanager
def held() -> Iterator[tuple[RawServer, Room]]:
    """A server with its room, which is open at the end."""
    room = Room()
    with RawServer(room) as server:
        try:
            yield server, room
        finally:
            room.opened.set()


# Limits


def test_processors_of_one_account_share_their_limit() -> None:
    """What one has sent another waits for, unless their accounts have different names."""
    limits = Limits(requests_per_minute=1, tokens_per_minute=math.inf)
    with (
        RawServer(answer_all) as server,
        processor(server.url, limits=limits) as first,
        processor(server.url, limits=limits) as second,
        processor(server.url, limits=limits, account="other") as other,
    ):
        (row,) = rows(1)
        assert first.submit(row).result(40).ok
        waiting = second.submit(row)
        assert other.submit(row).result(40).ok
        while second.stats().waiting_for != WaitCause.REQUESTS:
            assert not waiting.done()
            server.closing.wait(0.01)
        second.cancel()
        with pytest.raises(RunStoppedError):
            waiting.result(40)
        assert second.stats().requests_per_minute > 0
    assert len(server.bodies) == 2


# Files


def test_a_file_becomes_its_results(tmp_path: Path) -> None:
    """Every request has a record, the summary counts them, and nothing is left open."""
    source = write_lines(tmp_path / "in.jsonl", rows(50))
    with Simulator() as simulator:
        before = used_by_us()
        with processor(simulator.url) as made:
            summary = made.process_file(source)
        assert used_by_us()[0] == before[0] == []
    records = read_lines(tmp_path / "in_results.jsonl")
    assert inputs_of(records) == Counter(row["input"] for row in rows(50))
    assert (summary.answered, summary.failed, summary.unanswered) == (50, 0, 0)
    assert (summary.attempts, summary.retries, summary.stop_reason) == (50, 0, "")
    assert summary.used_tokens > 0


def test_an_empty_file_is_done_at_once(tmp_path: Path) -> None:
    """Nothing is sent, and the results file is there and empty."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n  \n\xef\xbb\xbf\n"[:3])
    with RawServer(answer_all) as server, processor(server.url) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl")
    assert (summary.answered, summary.attempts, server.visits) == (0, 0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_bad_lines_are_failures_that_name_their_line(tmp_path: Path) -> None:
    """Lines that can't be sent stop nothing and are recorded, and no request is made for them."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"input": "a"}\n[1]\nnot json\n\xff\n\n{"input": "b"}\n')
    with Simulator() as simulator, processor(simulator.url) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl")
        assert simulator.stats()["requests_received"] == 2
    responses = [record[1] for record in read_lines(tmp_path / "out.jsonl")]
    errors = [response[0] for response in responses if isinstance(response, list)]
    assert sorted(error.partition(":")[0] for error in errors) == ["line 2", "line 3", "line 4"]
    assert (summary.answered, summary.failed) == (2, 3)
    assert summary.errors_by_kind == {"invalid request": 3}


def test_a_second_run_does_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is answered is skipped, what failed is replaced, what is new is sent."""
    caplog.set_level(logging.INFO)
    save = tmp_path / "out.jsonl"
    write_lines(save, [[rows(2)[0], {"old": True}], [rows(2)[1], ["error"]]])
    source = write_lines(tmp_path / "in.jsonl", rows(3))
    with Simulator() as simulator, processor(simulator.url) as made:
        summary = made.process_file(source, save)
        assert simulator.stats()["requests_received"] == 2
    assert (summary.already_answered, summary.answered) == (1, 2)
    records = read_lines(save)
    assert records[0] == [rows(1)[0], {"old": True}]
    assert inputs_of(records) == Counter(row["input"] for row in rows(3))
    assert f"{save} has 1 answers" in caplog.messages
    assert "1 requests that failed before are tried again" in caplog.messages


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    """Old records of both files are gone, and everything is sent."""
    save, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    write_lines(save, [[rows(1)[0], {"old": True}]])
    write_lines(errors, [[rows(1)[0], ["old"]]])
    source = write_lines(tmp_path / "in.jsonl", rows(2))
    with Simulator() as simulator, processor(simulator.url) as made:
        summary = made.process_file(source, save, errors_path=errors, overwrite=True)
    assert (summary.answered, summary.already_answered) == (2, 0)
    assert len(read_lines(save)) == 2
    assert errors.read_bytes() == b""


def test_failures_go_to_their_file(tmp_path: Path) -> None:
    """With ``errors_path`` the results hold answers only."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"input": "a"}\nnonsense\n')
    save, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    with Simulator() as simulator, processor(simulator.url) as made:
        made.process_file(source, save, errors_path=errors)
    assert [record[0] for record in read_lines(save)] == [{"input": "a"}]
    assert [record[0] for record in read_lines(errors)] == ["nonsense"]


# The ends of a file's run


def test_a_wrong_key_ends_the_run(tmp_path: Path) -> None:
    """The error carries the summary, the key is nowhere, and the requests stay for the next run."""
    source = write_lines(tmp_path / "in.jsonl", rows(20))
    save = tmp_path / "out.jsonl"
    with Simulator(SimulatorOptions(api_key="sk-another-key-000000")) as simulator:
        with processor(simulator.url) as made, pytest.raises(RunStoppedError) as caught:
            made.process_file(source, save)
    error = caught.value
    assert error.summary is not None
    assert (error.summary.answered, error.summary.failed) == (0, 0)
    assert error.summary.unanswered >= 1
    assert error.summary.stop_reason == str(error)
    assert error.summary.stop_cause == error.stop_cause == "key"
    assert "HTTP 401" in str(error)
    assert KEY not in repr(error) + str(error) + repr(made.options) + save.read_text()
    assert KEY[-4:] not in str(error)
    assert save.read_bytes() == b""
    with Simulator() as simulator, processor(simulator.url) as made:
        assert made.process_file(source, save).answered == 20


def test_a_spent_account_keeps_what_it_paid_for(tmp_path: Path) -> None:
    """Answers before the end are on record, each once, and the next run does the others."""
    source = write_lines(tmp_path / "in.jsonl", rows(60))
    save = tmp_path / "out.jsonl"
    with Simulator(SimulatorOptions(spend_limit=25)) as simulator:
        with processor(simulator.url, max_workers=5) as made:
            with pytest.raises(RunStoppedError, match="quota") as caught:
                made.process_file(source, save)
    assert caught.value.summary is not None
    assert caught.value.summary.answered == 25
    assert caught.value.summary.stop_cause == "quota"
    assert len(read_lines(save)) == 25
    with Simulator() as simulator, processor(simulator.url) as made:
        summary = made.process_file(source, save)
    assert (summary.already_answered, summary.answered) == (25, 35)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    """A results file that takes nothing is an error with a summary; no more is sent than may wait."""
    source = write_lines(tmp_path / "in.jsonl", rows(2000))
    with Simulator() as simulator:
        with processor(simulator.url, max_workers=5, write_retry_s=0.0) as made:
            join = in_background(lambda: made.process_file(source, FULL))
            with pytest.raises(ResultsFileError, match="No space left on device") as caught:
                join()
        received = simulator.stats()["requests_received"]
    summary = caught.value.summary
    assert summary is not None
    assert summary.answered == 0
    # In flight, read ahead, and waiting for the writer, who may notice as late as the system likes.
    assert 1 <= received <= summary.unanswered <= 5 + 5 + 256
    assert used_by_us()[0] == []


def test_a_disk_that_fills_up_keeps_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before the disk was full stays, and the next run does the rest."""
    source = write_lines(tmp_path / "in.jsonl", rows(50))
    save = tmp_path / "out.jsonl"
    write, space = os.write, 3000

    def limited(descriptor: int, data: Any) -> int:
        nonlocal space
        if not space:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, data[:space])
        space -= written
        return written

    with Simulator() as simulator:
        with monkeypatch.context() as patch, processor(simulator.url, write_retry_s=0.0) as made:
            patch.setattr(os, "write", limited)
            with pytest.raises(ResultsFileError, match="No space left") as caught:
                made.process_file(source, save)
        assert caught.value.summary is not None
        kept = len(read_lines(save))
        assert caught.value.summary.answered == kept < 50
        with processor(simulator.url) as made:
            assert made.process_file(source, save).already_answered == kept
    assert inputs_of(read_lines(save)) == Counter(row["input"] for row in rows(50))


def test_an_interrupt_leaves_after_the_answers_are_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``KeyboardInterrupt`` in the feeding thread passes through, and no paid answer is lost."""
    source = write_lines(tmp_path / "in.jsonl", rows(10))
    save = tmp_path / "out.jsonl"
    with held() as (server, room), processor(server.url) as made:

        def interrupted(request: Request) -> Estimate:
            if request.number == 6:
                room.wait_for(5)
                room.opened.set()
                raise KeyboardInterrupt
            return Estimate(1)

        monkeypatch.setattr(made._account.estimator, "estimate", interrupted)
        join = in_background(lambda: made.process_file(source, save))
        with pytest.raises(KeyboardInterrupt):
            join()
    assert inputs_of(read_lines(save)) == Counter(row["input"] for row in rows(5))
    assert used_by_us()[0] == []


@pytest.mark.parametrize(("way", "answered"), [("stop", 4), ("cancel", 0)])
def test_a_stop_returns_a_summary(way: str, answered: int, tmp_path: Path) -> None:
    """Nothing more is sent. A stop keeps what is in flight, a cancel leaves it to the next run."""
    source = write_lines(tmp_path / "in.jsonl", rows(50))
    save = tmp_path / "out.jsonl"
    with held() as (server, room), processor(server.url, max_workers=4, drain_s=1e6) as made:
        join = in_background(lambda: made.process_file(source, save))
        room.wait_for(4)
        getattr(made, way)("lunch")
        if way == "stop":
            room.opened.set()
        summary = join()
    assert (summary.answered, summary.unanswered) == (answered, 4 - answered)
    assert summary.stop_reason == "lunch"
    assert len(read_lines(save)) == answered


def test_after_a_stop_a_processor_runs_again(tmp_path: Path) -> None:
    """A stop ends the runs there are, not those to come."""
    source = write_lines(tmp_path / "in.jsonl", rows(5))
    with Simulator() as simulator, processor(simulator.url) as made:
        made.stop()
        made.cancel()
        assert made.process_file(source, tmp_path / "out.jsonl").answered == 5


def test_whatever_its_end_a_run_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads and files are as before after a good end, a fatal one, a failing disk, a closed iterator."""
    source = write_lines(tmp_path / "in.jsonl", rows(30))
    before = used_by_us()

    def one(name: str, options: SimulatorOptions, **settings: Any) -> None:
        save = FULL if name == "full" else tmp_path / f"{name}.jsonl"
        with Simulator(options) as simulator, processor(simulator.url, **settings) as made:
            if name == "closed":
                outcomes = made.imap_unordered(rows(30))
                next(outcomes)
                outcomes.close()  # type: ignore[attr-defined]
                return
            made.process_file(source, save)

    one("good", SimulatorOptions())
    assert used_by_us() == before
    with pytest.raises(RunStoppedError):
        one("fatal", SimulatorOptions(spend_limit=10))
    assert used_by_us() == before
    if FULL.exists():
        with pytest.raises(ResultsFileError):
            one("full", SimulatorOptions(), write_retry_s=0.0)
        assert used_by_us() == before
    one("closed", SimulatorOptions())
    assert used_by_us() == before
    open_file = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if Path(path).name == "refused.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResultsFileError, match="Permission denied"):
        one("refused", SimulatorOptions())
    assert used_by_us() == before


@pytest.mark.parametrize(
    ("source", "save", "error", "message"),
    [
        ("missing.jsonl", "out.jsonl", InputFileError, "missing.jsonl: No such file"),
        (".", "out.jsonl", ConfigurationError, "is a directory"),
        ("in.jsonl", "none/out.jsonl", ConfigurationError, "directory of the results file"),
        ("in.jsonl", "in.jsonl", ConfigurationError, "the same"),
    ],
)
def test_wrong_paths_are_said_before_anything_is_sent(
    source: str, save: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    """The message names the file and what is wrong with it, and nothing is written."""
    write_lines(tmp_path / "in.jsonl", rows(1))
    with processor("http://127.0.0.1:1") as made, pytest.raises(error, match=message):
        made.process_file(tmp_path / source, tmp_path / save)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# Iterables


def test_outcomes_come_as_they_are_answered() -> None:
    """Each body has one outcome, numbered by its place, with metadata kept and not sent."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        bodies = [{"n": 1, "metadata": {"row": 7}}, {"n": 2}]
        outcomes = {o.request.number: o for o in made.imap_unordered(bodies)}
    assert sorted(outcomes) == [1, 2]
    assert all(o.ok and o.response == OK for o in outcomes.values())
    assert outcomes[1].request.metadata_json == b'{"row": 7}'
    assert sorted(server.bodies) == [b'{"n": 1}', b'{"n": 2}']
    assert {header_of(head, "authorization") for head in server.heads} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(("way", "settings"), [("imap", {"window": 6}), ("imap_unordered", {})])
def test_a_stop_from_the_consumers_loop_ends_it(way: str, settings: dict[str, int]) -> None:
    """What was under way comes, and then an exception says that it isn't all, and how many are left."""
    got = []
    with RawServer(answer_all) as server, processor(server.url, max_workers=3) as made:
        with pytest.raises(
            RunStoppedError, match="before every request had its outcome: "
        ) as caught:
            for outcome in getattr(made, way)(list(rows(1000)), **settings):
                got.append(outcome)
                made.stop()
    assert 1 <= len(got) <= 6  # in flight, and read ahead of them: 3 each; imap keeps no more
    assert len(got) == len(server.bodies)  # whatever was sent
    summary = caught.value.summary
    assert summary is not None and summary.left == 1000 - len(got)
    assert caught.value.stop_cause == "caller"


def test_a_stop_after_the_last_outcome_is_none() -> None:
    """An iterator that has yielded everything ends as usual."""
    with Simulator() as simulator, processor(simulator.url, max_workers=3) as made:
        outcomes = made.imap_unordered(list(rows(3)))
        got = [next(outcomes) for _ in range(3)]
        made.stop()
        assert [*got, *outcomes] == got


def test_a_slow_consumer_holds_nobody_up() -> None:
    """While one thread doesn't take its outcomes, another that shares the limits goes on."""
    limits = Limits(requests_per_minute=6000.0, tokens_per_minute=math.inf, burst_seconds=0.1)
    with Simulator() as simulator, processor(simulator.url, limits=limits, max_workers=3) as made:
        slow = made.imap_unordered(rows(30))
        got = [next(slow)]
        other = in_background(lambda: list(made.imap_unordered(rows(30, 100))))
        assert len(other()) == 30
        got += slow
    assert len(got) == 30


def test_a_request_larger_than_a_minute_warns_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    """More tokens than the limit of a minute is a warning, not a hang."""
    caplog.set_level(logging.WARNING)
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=10.0)
    with RawServer(answer_all) as server, processor(server.url, limits=limits) as made:
        (outcome,) = made.imap_unordered([{"input": "many words " * 50}])
    assert outcome.ok
    assert caplog.messages[0].startswith("request 1 needs ")


@pytest.mark.parametrize("url", ["https://api.openai.com/v1/embeddings", "https://10.0.0.1/x"])
def test_a_server_elsewhere_needs_a_key(url: str) -> None:
    """Without a key, https to another machine is a mistake that is said at once."""
    with pytest.raises(ConfigurationError, match="needs an api_key"):
        Processor(request_url=url)


# What only a process of its own can show

MANY = """
import logging, math, resource, sys
logging.basicConfig()
from parallel_processor import Limits, Processor
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
with Processor(request_url=sys.argv[1], limits=limits, max_workers=100_000) as processor:
    outcomes = list(processor.imap_unordered({"n": n} for n in range(300)))
print(sum(outcome.ok for outcome in outcomes), sum(outcome.attempts for outcome in outcomes))
"""


def test_a_low_limit_of_open_files_costs_no_attempt() -> None:
    """100,000 workers in a process of 100 files are lowered to what works, with a warning."""
    with Simulator(SimulatorOptions(latency_s=0.01)) as simulator:
        command = [sys.executable, "-c", MANY, f"{simulator.url}/v1/embeddings"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert simulator.stats()["peak_in_flight"] <= 75
    assert done.stdout == "300 300\n", done.stderr
    assert "max_workers is 75 instead of 100000" in done.stderr


def test_the_results_are_json_that_came_as_it_was_sent(tmp_path: Path) -> None:
    """Key order, large integers and text survive in both halves of a record."""
    line = '{"z": 123456789012345678901234567890, "a": "Grüße", "input": "x"}'
    answer = b'{"z": 98765432109876543210987654321, "embedding": [1.10], "a": "\xc3\xbc"}'

    def precise(visit: Visit) -> None:
        while visit.read():
            visit.answer(answer)

    source = tmp_path / "in.jsonl"
    source.write_text(line + "\n")
    with RawServer(precise) as server, processor(server.url) as made:
        made.process_file(source, tmp_path / "out.jsonl")
    assert server.bodies == [line.encode()]
    expected = b"[" + line.encode() + b", " + answer + b"]\n"
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert json.loads(expected)


def test_a_stop_during_the_scan_changes_nothing(tmp_path: Path) -> None:
    """A run that is told to stop while it reads the results ends there, and mends nothing."""
    save = write_lines(tmp_path / "out.jsonl", [[row, ["failed"]] for row in rows(3000)])
    source = write_lines(tmp_path / "in.jsonl", rows(3000))
    before = save.read_bytes()

    with processor("http://127.0.0.1:9") as made:
        account = made._account
        started = account.run

        @contextmanager
        def stopped_run(**how: Any) -> Iterator[Any]:
            with started(**how) as run:
                made.stop("by the test")
                yield run

        account.run = stopped_run  # type: ignore[method-assign]
        summary = made.process_file(source, save)
    assert summary.stop_reason == "by the test"
    assert save.read_bytes() == before


# Limits that change


def test_limits_change_in_mid_run() -> None:
    """What a tiny limit holds back goes at once when it is raised; nothing is sent twice."""
    with RawServer(answer_all) as server:
        tiny = Limits(requests_per_minute=0.01, tokens_per_minute=math.inf)
        with processor(server.url, limits=tiny) as made:
            outcomes = made.imap_unordered(rows(5))
            assert next(outcomes).ok
            made.set_limits(Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf))
            assert sum(outcome.ok for outcome in outcomes) == 4
            assert made.options.limits.requests_per_minute == math.inf
            assert made.options.limits_by_model == {}
    assert len(server.bodies) == 5


def test_limits_that_change_all_the_time_stop_nothing() -> None:
    """Numbers, patterns, none and found ones, in the middle of two runs and of submissions."""
    none = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    some = Limits(requests_per_minute=60_000, tokens_per_minute=600_000)
    found = Limits(requests_per_minute="auto", tokens_per_minute="auto")
    tiny = Limits(requests_per_minute=1, input_tokens_per_minute=1)
    changes: list[tuple[Limits, dict[str, Limits]]] = [
        (some, {"m": tiny}),
        (found, {}),
        (none, {"*": some, "m": tiny}),
        (tiny, {"m": none}),
        (some, {"[m]": found, "*": some}),
        (none, {"m": some}),
    ]
    with RawServer(answer_all) as server, processor(server.url, limits=tiny) as made:

        def change() -> None:
            for limits, by_model in changes * 25:
                made.set_limits(limits, by_model)

        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(made.map, rows(150)) for _ in range(2)]
            futures = [made.submit(row) for row in rows(50)]
            for changer in [pool.submit(change) for _ in range(2)]:
                changer.result(60)
            made.set_limits(none, {})
            assert all(outcome.ok for each in runs for outcome in each.result(60))
            assert all(future.result(60).ok for future in futures)
    assert len(server.bodies) == 350


@pytest.mark.parametrize("limits", [600, {"requests_per_minute": 600}, "auto"])
def test_wrong_limits_are_refused(limits: Any) -> None:
    """And change nothing."""
    with processor("http://127.0.0.1:9") as made:
        with pytest.raises(ConfigurationError, match="limits must be a Limits, not"):
            made.set_limits(limits)
        with pytest.raises(ConfigurationError, match="limits_by_model must be a Limits for each"):
            made.set_limits(limits_by_model={"m": limits})
        assert made.options.limits.requests_per_minute == math.inf
