"""Jobs on several processes of this machine, which are killed, frozen and stopped."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from cluster_jobs import made_job, parts, sent_more_than_once, write_requests
from commands import write_lines
from raw_server import RawServer, Room, Visit, answer_all
from services import in_background, rows

from parallel_processor.cluster.job import Job, KeySource, share
from parallel_processor.cluster.processes import ProcessEngine, on_processes
from parallel_processor.cluster.run import ClusterJob, ClusterRun
from parallel_processor.cluster.tally import ClusterSummary
from parallel_processor.cluster.verify import verify_parts
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ResultsFileError,
    RunStoppedError,
    StopCause,
)
from parallel_processor.models import WaitCause
from parallel_processor.options import Limits, Settings
from parallel_processor.report.prometheus import serve_metrics
from parallel_processor.report.summary import Stats

IN_FLIGHT = 8  # of one run
SLACK = (
    64  # answers of 5 ms, between two writes of the journal: the engine makes thousands a second
)


class Engines:
    """Makes engines, and has the last one."""

    engine: ProcessEngine

    def __init__(self, *begun: Callable[[ProcessEngine], None]) -> None:
        self._begun = begun

    @contextmanager
    def __call__(self, job: Job, workers: int) -> Iterator[ProcessEngine]:
        with on_processes(job, workers) as self.engine:
            for call in self._begun:
                call(self.engine)
            yield self.engine


def job(folder: Path, server: RawServer, workers: int = 2, **more: Any) -> ClusterJob:
    """A job of several workers."""
    made = made_job(folder, server, settings=more.pop("settings", {}))
    settings = made.settings | {"max_workers": IN_FLIGHT}
    return ClusterJob(
        requests_path=more.pop("requests_path", made.source),
        save_path=made.folder,
        workers=workers,
        settings=settings,
        progress=False,
        block_bytes=more.pop("block_bytes", 2000),
        **more,
    )


def process(given: ClusterJob, *begun: Callable[[ProcessEngine], None]) -> ClusterSummary:
    """Run it to its end."""
    return ClusterRun(given).process(Engines(*begun))


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that answers everything."""
    with RawServer(answer_all) as made:
        yield made


def test_a_job_on_two_processes(tmp_path: Path, server: RawServer) -> None:
    """Each line is sent once, the parts have all records in order, and nothing else is left."""
    write_requests(tmp_path, rows(400))
    summary = process(job(tmp_path, server))
    assert (summary.answered, summary.failed, summary.left, summary.attempts) == (400, 0, 0, 400)
    assert [record[0] for record in parts(tmp_path)] == rows(400)
    assert sent_more_than_once(server) == 0
    assert all(path.name.startswith("part-") for path in (tmp_path / "out").iterdir())
    found = verify_parts(str(tmp_path / "in.jsonl"), str(tmp_path / "out"))
    assert found.ok and found.lines == 400
    assert f"blocks: {summary.blocks} finished" in str(summary)


def test_the_summary_says_what_the_workers_waited_for(tmp_path: Path, server: RawServer) -> None:
    """The waits of each model are the mean of the workers: no more than the time that the run took."""
    write_requests(tmp_path, rows(60))
    settings = {"limits": Limits(requests_per_minute=1200, tokens_per_minute=math.inf)}
    summary = process(job(tmp_path, server, block_bytes=1000, settings=settings))
    (bucket,) = summary.buckets
    for waited_s in (summary.waited_s, bucket.waited_s):
        assert waited_s[WaitCause.REQUESTS] > 0.2 * summary.elapsed_s
        assert sum(waited_s.values()) <= summary.elapsed_s * 1.0001
    assert re.search(r"m: waited for \d+ % the request limit", str(summary))


def test_the_same_job_again_sends_nothing(tmp_path: Path, server: RawServer) -> None:
    """No worker is even started; lines that were added are sent, whatever the size of the blocks."""
    write_requests(tmp_path, rows(50))
    process(job(tmp_path, server))

    def fails(engine: ProcessEngine) -> None:
        raise AssertionError("an engine was made")

    again = process(job(tmp_path, server), fails)
    assert (again.answered, again.blocks, again.left) == (0, 0, 0)
    assert f"blocks: 0 finished, {len(names(tmp_path / 'out'))} finished before" in str(again)
    write_requests(tmp_path, rows(80))
    more = process(job(tmp_path, server, block_bytes=333))
    assert (more.answered, len(server.bodies)) == (30, 80)
    assert [record[0] for record in parts(tmp_path)] == rows(80)


@pytest.mark.parametrize("block_bytes", [40, 333])
def test_lines_that_moved_are_not_taken_for_others(
    tmp_path: Path, server: RawServer, block_bytes: int
) -> None:
    """Parts are named by bytes. If a line before them is longer than it was, nothing is sent."""
    lines = write_requests(tmp_path, rows(30))
    process(job(tmp_path, server, block_bytes=block_bytes))
    changed = tmp_path / "in.jsonl"
    text = changed.read_bytes()
    changed.write_bytes(text.replace(b"{", b"{" + 20 * b" ", 1))
    with pytest.raises(InputFileError, match="was changed"):
        process(job(tmp_path, server, block_bytes=block_bytes))
    assert len(server.bodies) == 30
    changed.write_bytes(text.rstrip() + b"\n" + lines[0])
    assert process(job(tmp_path, server, block_bytes=block_bytes)).answered == 1


def kill_while(room: Room, sent: int, kill: Callable[[], None]) -> threading.Thread:
    """Call ``kill`` once so many requests are held, then let everything go on."""

    def act() -> None:
        room.wait_for(sent)
        kill()
        room.opened.set()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_killed_worker_costs_what_was_in_flight(tmp_path: Path) -> None:
    """After ``kill -9`` no line is lost or doubled, and only what was in flight is sent twice."""
    write_requests(tmp_path, rows(600))
    room = Room(300)
    engines = Engines()
    with RawServer(room) as server:
        kill = kill_while(room, IN_FLIGHT, lambda: os.kill(engines.engine.pids[0], signal.SIGKILL))
        summary = ClusterRun(job(tmp_path, server)).process(engines)
        kill.join()
        assert sent_more_than_once(server) <= 2 * IN_FLIGHT + SLACK
    assert (summary.answered, summary.left, summary.workers_lost) == (600, 0, 1)
    assert [record[0] for record in parts(tmp_path)] == rows(600)


def test_a_block_that_kills_its_workers_is_set_aside(tmp_path: Path) -> None:
    """The other blocks are done, the summary names the bytes, and the next run tries them again."""
    bodies = rows(60)
    write_requests(tmp_path, bodies)
    engines, is_deadly = Engines(), True

    def script(visit: Visit) -> None:
        while visit.read():
            if is_deadly and b"text 33" in visit.body:
                for pid in engines.engine.pids:
                    os.kill(pid, signal.SIGKILL)
                return
            visit.answer()

    with RawServer(script) as server:
        given = job(tmp_path, server, workers=1, block_bytes=500)
        summary = ClusterRun(given).process(engines)
        (block,) = summary.blocks_set_aside
        text = (tmp_path / "in.jsonl").read_bytes()[block.start : block.end]
        assert b"text 33" in text and "lost 3 times: ended by SIGKILL" in block.reason
        assert summary.left and not verify_parts(given.requests_path, given.folder).ok
        is_deadly = False
        again = process(given)
    assert again.left == 0 and [record[0] for record in parts(tmp_path)] == bodies


def test_a_stop_keeps_what_was_answered(tmp_path: Path) -> None:
    """A stopped job says so; the next one takes its journals over and sends the rest."""
    write_requests(tmp_path, rows(300))
    room = Room(100)
    with RawServer(room) as server:
        run = ClusterRun(job(tmp_path, server, workers=1))
        end = in_background(lambda: run.process(Engines()))
        room.wait_for(IN_FLIGHT)
        run.stop("enough")
        room.opened.set()
        summary = end()
        assert (summary.stop_reason, summary.stop_cause) == ("enough", StopCause.CALLER)
        assert summary.left
        again = process(job(tmp_path, server, workers=2, block_bytes=700))
        assert again.left == 0 and sent_more_than_once(server) == 0
    assert [record[0] for record in parts(tmp_path)] == rows(300)


def test_what_ends_the_job(tmp_path: Path) -> None:
    """A wrong key ends it with the exception and the summary that ``process_file`` would raise."""

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(b'{"error": {"message": "bad key"}}', status="401 Unauthorized")

    write_requests(tmp_path, rows(100))
    with RawServer(script) as server:
        with pytest.raises(RunStoppedError, match="401") as caught:
            process(job(tmp_path, server))
    assert caught.value.stop_cause is StopCause.KEY
    assert caught.value.summary is not None and caught.value.summary.answered == 0


def test_a_key_that_no_worker_finds(tmp_path: Path, server: RawServer) -> None:
    """It is an error of the settings, as it is in a single process, and says what is missing."""
    write_requests(tmp_path, rows(3))
    given = job(tmp_path, server, key=KeySource(variable="NO_SUCH_KEY"))
    with pytest.raises(
        ConfigurationError, match="^the variable NO_SUCH_KEY is not set where a worker"
    ):
        process(given)


def test_limits_are_shared_equally(tmp_path: Path, server: RawServer) -> None:
    """Together, the workers have the limits of the job."""
    write_requests(tmp_path, rows(40))
    limits = Limits(
        requests_per_minute=60_000, tokens_per_minute="auto", output_tokens_per_minute=8e9
    )
    settings: Settings = {"limits": limits, "limits_by_model": {"m*": limits}}
    for part in (share(settings, 2)["limits"], share(settings, 2)["limits_by_model"]["m*"]):
        assert (part.requests_per_minute, part.tokens_per_minute) == (30_000, "auto")
        assert part.output_tokens_per_minute == 4e9
    assert share(settings, 1) is settings
    assert share({**settings, "limiter": "redis://host"}, 2)["limits"] is limits
    given = job(tmp_path, server, settings={"limits": limits}, block_bytes=300)
    found = process(given).buckets[0].limits
    assert [limit.configured for limit in found if limit.name == "requests"] == [60_000]


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    """Two jobs for one folder would send everything twice."""
    write_requests(tmp_path, rows(20))
    room = Room()
    with RawServer(room) as server:
        run = ClusterRun(job(tmp_path, server))
        end = in_background(lambda: run.process(Engines()))
        room.wait_for(1)
        with pytest.raises(ResultsFileError, match="another process is writing"):
            process(job(tmp_path, server))
        room.opened.set()
        assert end().answered == 20


def test_a_compressed_file_is_sent_by_one_worker(tmp_path: Path, server: RawServer) -> None:
    """Its lines have all their records, in order."""
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows(50))))
    summary = process(job(tmp_path, server, requests_path=str(path)))
    assert (summary.answered, summary.blocks) == (50, 1)
    assert [record[0] for record in parts(tmp_path)] == rows(50)
    assert process(job(tmp_path, server, requests_path=str(path))).blocks == 0


def test_what_cannot_be_sent(tmp_path: Path, server: RawServer) -> None:
    """A missing file, one that is no JSONL, and a results file in the folder's place are refused."""
    with pytest.raises(InputFileError, match="No such file"):
        process(job(tmp_path, server))
    (tmp_path / "in.jsonl").write_text('[{"a": 1},\n{"a": 2}]\n')
    with pytest.raises(InputFileError, match="JSON array"):
        process(job(tmp_path, server))
    (tmp_path / "in.jsonl").write_bytes(b"\x28\xb5\x2f\xfd\x04\x58")
    with pytest.raises(InputFileError, match="end of its zstd data is missing"):
        process(job(tmp_path, server))
    write_requests(tmp_path, rows(1))
    write_lines(tmp_path / "out", [])
    with pytest.raises(ConfigurationError, match="need a folder"):
        process(job(tmp_path, server))


def test_the_report_has_all_workers(tmp_path: Path, server: RawServer) -> None:
    """It counts the requests of the whole job, and names failures by the place of their line."""
    write_requests(tmp_path, [*rows(30), "nonsense", *rows(30, 30)])
    path = tmp_path / "report.json"
    summary = process(job(tmp_path, server, report_path=path))
    report = json.loads(path.read_text())
    assert (report["answered"], report["failed"], summary.failed) == (60, 1, 1)
    (failure,) = report["failures"]
    data = (tmp_path / "in.jsonl").read_bytes()
    assert data[failure["number"] - 1 :].startswith(b"nonsense")


def test_a_fresh_start(tmp_path: Path, server: RawServer) -> None:
    """``overwrite`` removes parts and journals, and nothing else of the folder."""
    write_requests(tmp_path, rows(10))
    process(job(tmp_path, server))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    summary = process(job(tmp_path, server, overwrite=True, block_bytes=100))
    assert (summary.answered, len(server.bodies)) == (10, 20)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert [record[0] for record in parts(tmp_path)] == rows(10)


def test_failures_that_are_kept(tmp_path: Path, server: RawServer) -> None:
    """With ``keep_failures`` a part with failures is done; without, its failures are sent again."""
    write_requests(tmp_path, [*rows(3), "nonsense"])
    assert process(job(tmp_path, server)).failed == 1
    kept = process(job(tmp_path, server, keep_failures=True))
    assert (kept.blocks, kept.already_failed) == (0, 1)
    again = process(job(tmp_path, server))
    assert (again.blocks, again.already_answered, again.failed) == (1, 3, 1)
    assert len(server.bodies) == 3


def names(folder: Path) -> list[str]:
    """The files of a folder, without what is beneath it."""
    return sorted(path.name for path in folder.glob("part-*"))


def test_failures_have_a_folder_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts have no failures then; ``verify`` knows both folders; the next run tries them again."""
    is_mended = threading.Event()

    def script(visit: Visit) -> None:
        while visit.read():
            is_bad = b"text 2" in visit.body and not is_mended.is_set()
            visit.answer(
                *([b'{"error": "no"}'] if is_bad else []), status="400 No" if is_bad else "200 OK"
            )

    lines = write_requests(tmp_path, [*rows(30), "nonsense", *rows(10, 30)])
    requests, out, errors = (str(tmp_path / name) for name in ("in.jsonl", "out", "errors"))
    with RawServer(script) as server:
        given = job(tmp_path, server, errors_path=errors, block_bytes=1000)
        with caplog.at_level(logging.WARNING, "parallel_processor"):
            first = process(given)
        place = (tmp_path / "in.jsonl").read_bytes().index(lines[2]) + 1
        assert any(f"the request at byte {place} failed: HTTP 400" in m for m in caplog.messages)
        assert (first.answered, first.failed) == (29, 12)
        assert all(isinstance(record[1], dict) for record in parts(tmp_path))
        failures = [
            json.loads(line)
            for path in sorted((tmp_path / "errors").iterdir())
            for line in path.read_bytes().splitlines()
        ]
        assert len(failures) == 12 and all(isinstance(each[1], list) for each in failures)
        assert [name.replace(".failed", "") for name in names(tmp_path / "out")] == [
            *names(tmp_path / "errors"),
            *(n for n in names(tmp_path / "out") if ".failed" not in n),
        ]
        found = verify_parts(requests, out, errors)
        assert (found.answered, found.failed, found.missing, found.doubled) == (29, 12, 0, 0)
        assert verify_parts(requests, out).missing == 12
        kept = process(job(tmp_path, server, errors_path=errors, keep_failures=True))
        assert (kept.blocks, kept.already_failed) == (0, 12)
        is_mended.set()
        # A line may be corrected by one of as many bytes.
        text = (tmp_path / "in.jsonl").read_bytes()
        assert len(lines[30]) == 8
        (tmp_path / "in.jsonl").write_bytes(text.replace(lines[30], b'{"a":1} '))
        again = process(given)
        assert (again.answered, again.failed) == (12, 0)
    assert names(tmp_path / "errors") == []
    found = verify_parts(requests, out, errors)
    assert found.ok and found.answered == 41


def test_relative_paths_are_those_of_the_driver(
    tmp_path: Path, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers elsewhere have another working directory: they are told absolute paths."""
    write_requests(tmp_path, rows(5))
    monkeypatch.chdir(tmp_path)
    given = dataclasses.replace(job(tmp_path, server), requests_path="in.jsonl", save_path=None)

    def moves(engine: ProcessEngine) -> None:
        assert engine._job.source == str(tmp_path / "in.jsonl")
        assert engine._job.folder == str(tmp_path / "in_results")

    assert process(given, moves).answered == 5
    assert names(tmp_path / "in_results")


def test_folders_that_cannot_be_used(tmp_path: Path, server: RawServer) -> None:
    """A file is no folder, and failures need another folder than results."""
    write_requests(tmp_path, rows(3))
    (tmp_path / "file").write_text("x")
    for errors, text in (
        (tmp_path / "file", "is a file: the failures"),
        (tmp_path / "out", "another"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            process(job(tmp_path, server, errors_path=str(errors)))
    with pytest.raises(ConfigurationError, match="is a file"):
        verify_parts(str(tmp_path / "in.jsonl"), str(tmp_path / "out"), str(tmp_path / "file"))
    assert server.bodies == []


def test_what_verify_says_names_no_flag_of_another_command(
    tmp_path: Path, server: RawServer
) -> None:
    """A file that became shorter does not fit its parts; only a run has ``--overwrite``."""
    write_requests(tmp_path, rows(9))
    process(job(tmp_path, server))
    write_requests(tmp_path, rows(3))
    with pytest.raises(InputFileError, match="start afresh with --overwrite"):
        process(job(tmp_path, server))
    with pytest.raises(InputFileError, match="lines were removed") as error:
        verify_parts(str(tmp_path / "in.jsonl"), str(tmp_path / "out"))
    assert "--" not in str(error.value)


def test_a_second_driver_is_told_to_use_another_folder(tmp_path: Path) -> None:
    """Its message is about the folder, not about a file."""
    write_requests(tmp_path, rows(20))
    room = Room()
    with RawServer(room) as server:
        first = in_background(lambda: process(job(tmp_path, server)))
        room.wait_for(8)
        with pytest.raises(ResultsFileError, match="or name another folder"):
            process(job(tmp_path, server))
        room.opened.set()
        assert first().answered == 20


def test_metrics_of_all_workers_are_added_up(tmp_path: Path) -> None:
    """A scrape during the run and one after it: counters of both workers, which never fall."""
    pytest.importorskip("prometheus_client")
    write_requests(tmp_path, rows(60))
    room = Room()
    with RawServer(room) as server:
        run = ClusterRun(job(tmp_path, server, block_bytes=1000))
        assert run.stats() == Stats()
        with serve_metrics(run, 0) as port:
            ended = in_background(lambda: run.process(Engines()))
            room.wait_for(2 * IN_FLIGHT)
            wait_until(lambda: scraped(port, "in_flight") == 2 * IN_FLIGHT)
            assert scraped(port, "answered_total") == 0
            room.opened.set()
            ended()
            assert scraped(port, "answered_total") == scraped(port, "attempts_total") == 60
            assert scraped(port, "in_flight") == 0


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails after 30 s."""
    event = threading.Event()
    for _ in range(600):
        if is_so():
            return
        event.wait(0.05)
    raise AssertionError("it never was so")


def scraped(port: int, name: str) -> float:
    """The value of a metric without labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        page = answer.read().decode()
    (value,) = re.findall(rf"^parallel_processor_{name} (\S+)$", page, re.MULTILINE)
    return float(value)
