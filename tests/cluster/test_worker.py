"""Blocks that are sent by one worker: parts, journals, and what a lost attempt leaves."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_jobs import made_job, parts, sent_more_than_once, whole, write_requests
from raw_server import RawServer, Room, Visit, answer_all
from services import in_background, rows

from parallel_processor.cluster.blocks import Block, cut
from parallel_processor.cluster.folders import LocalFolder
from parallel_processor.cluster.job import Attempt, End
from parallel_processor.cluster.journals import Journal
from parallel_processor.cluster.parts import journal_name, part_name, read_state
from parallel_processor.cluster.worker import BlockWorker
from parallel_processor.options import Limits


def journal(folder: Path, run: str, attempt: int = 1, data: bytes = b"") -> Path:
    """What a lost attempt at the whole file has left."""
    path = folder / "out" / "journals" / journal_name(whole(folder), run, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def record(body: object, text: str = "earlier") -> bytes:
    """A good record."""
    return json.dumps([body, {"embedding": [1.0], "mark": text}]).encode() + b"\n"


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that answers everything."""
    with RawServer(answer_all) as made:
        yield made


def test_parts_have_the_records_in_the_order_of_the_lines(
    tmp_path: Path, server: RawServer
) -> None:
    """The parts of all blocks, one after the other, have one record for each line; no journal is left."""
    bodies = rows(40)
    write_requests(tmp_path, [*bodies[:20], "", *bodies[20:]])
    worker = BlockWorker(made_job(tmp_path, server))
    for number, block in enumerate(cut(whole(tmp_path), 100)):
        report = worker.run(Attempt(block, number))
        assert report.end is End.DONE
    assert [record[0] for record in parts(tmp_path)] == bodies
    assert read_state(LocalFolder(tmp_path / "out")).journals == ()
    assert sent_more_than_once(server) == 0


def test_a_bad_line_is_a_failed_record_with_its_place(tmp_path: Path, server: RawServer) -> None:
    """One bad row costs no other row its answer (ray#59194), and ``tail -c +PLACE`` finds it."""
    lines = write_requests(tmp_path, [*rows(3), "{nonsense", *rows(3, 3)])
    report = BlockWorker(made_job(tmp_path, server)).run(Attempt(whole(tmp_path), 1))
    assert (report.end, report.lines, report.failed) == (End.DONE, 7, 1)
    data, (note,) = (tmp_path / "in.jsonl").read_bytes(), report.notes
    assert data[note.number - 1 :].startswith(lines[3])
    assert f"byte {note.number}: not JSON" in note.error
    assert [path.name for path in (tmp_path / "out").glob("part*")] == [
        part_name(whole(tmp_path), failed=True)
    ]
    assert len(parts(tmp_path)) == 7


def test_the_next_attempt_takes_over_what_is_on_record(tmp_path: Path, server: RawServer) -> None:
    """Whole good records are used once; a torn line and failures are sent again."""
    bodies = rows(6)
    write_requests(tmp_path, bodies)
    old = record(bodies[0]) + record(bodies[1])
    journal(tmp_path, "0d", 1, old)
    failure = json.dumps([bodies[2], ["HTTP 500"]]).encode() + b"\n"
    journal(tmp_path, "aa", 1, old + record(bodies[3]) + failure + record(bodies[4])[:-9])
    worker = BlockWorker(made_job(tmp_path, server, "aa"))
    report = worker.run(Attempt(whole(tmp_path), 2))
    assert (report.end, report.lines, report.failed, report.already) == (End.DONE, 6, 0, 2)
    assert sorted(json.loads(body)["input"] for body in server.bodies) == [
        *("text 2", "text 4", "text 5")
    ]
    marks = [found[1].get("mark") for found in parts(tmp_path)]
    assert marks == ["earlier", "earlier", None, "earlier", None, None]
    assert worker.standing().snapshot.counts.already_answered == 2


def test_equal_lines_each_need_an_answer(tmp_path: Path, server: RawServer) -> None:
    """A copy of a record in a second journal is no second answer; another answer is."""
    body = rows(1)[0]
    write_requests(tmp_path, [body] * 4)
    journal(tmp_path, "0d", 1, record(body))
    journal(tmp_path, "0e", 1, record(body) + record(body, "other"))
    report = BlockWorker(made_job(tmp_path, server)).run(Attempt(whole(tmp_path), 1))
    assert (report.lines, report.already, len(server.bodies)) == (4, 2, 2)
    marks = [found[1].get("mark") for found in parts(tmp_path)]
    assert marks == ["earlier", "other", None, None]


def test_failures_are_tried_again_by_the_next_run(tmp_path: Path) -> None:
    """The part with failures is replaced by one without, and its good records are kept."""
    write_requests(tmp_path, rows(4))
    is_mended = False

    def script(visit: Visit) -> None:
        while visit.read():
            bad = b"text 2" in visit.body and not is_mended
            visit.answer(
                *([b'{"error": "no"}'] if bad else []), status="400 No" if bad else "200 OK"
            )

    with RawServer(script) as server:
        first = BlockWorker(made_job(tmp_path, server, "aa")).run(Attempt(whole(tmp_path), 1))
        assert (first.end, first.lines, first.failed) == (End.DONE, 4, 1)
        is_mended = True
        second = BlockWorker(made_job(tmp_path, server, "ab")).run(Attempt(whole(tmp_path), 1))
        assert (second.end, second.lines, second.failed, second.already) == (End.DONE, 4, 0, 3)
        assert len(server.bodies) == 5
    assert [path.name for path in (tmp_path / "out").glob("part*")] == [part_name(whole(tmp_path))]


def test_two_attempts_at_one_block_leave_one_part(tmp_path: Path) -> None:
    """The slower one of two that race finds the part, or creates an equal one; every line is there once."""
    write_requests(tmp_path, rows(6))
    room = Room(3)
    with RawServer(room) as server:
        workers = [BlockWorker(made_job(tmp_path, server)) for _ in range(2)]
        ends = [
            in_background(lambda w=worker, n=number: w.run(Attempt(whole(tmp_path), n)))
            for number, worker in enumerate(workers)
        ]
        room.wait_for(6)
        room.opened.set()
        reports = [end() for end in ends]
    assert End.DONE in {report.end for report in reports}
    assert [found[0] for found in parts(tmp_path)] == rows(6)
    assert len(list((tmp_path / "out").glob("part*"))) == 1


def test_blocks_that_overlap_share_the_places_in_flight(tmp_path: Path) -> None:
    """The next block is sent beside the last requests of the one before, at most max_workers in all."""
    lines = write_requests(tmp_path, rows(60))
    size = sum(len(line) + 1 for line in lines[:20])
    first, second = Block(0, size), Block(size, whole(tmp_path).end)
    lock, overlaps = threading.Lock(), threading.Event()
    in_flight: set[bytes] = set()
    most = 0

    def script(visit: Visit) -> None:
        nonlocal most
        while visit.read():
            body = visit.body
            with lock:
                in_flight.add(body)
                most = max(most, len(in_flight))
            if b'"text 3"' in body:  # the slowest of the first block
                overlaps.wait(30)
            elif b'"text 40"' in body:
                overlaps.set()
            visit.server.closing.wait(0.01)
            with lock:
                in_flight.discard(body)
            visit.answer()

    with RawServer(script) as server:
        limits = Limits(requests_per_minute=6e5, tokens_per_minute=6e7)
        settings = {"max_workers": 4, "limits": limits}
        worker = BlockWorker(made_job(tmp_path, server, settings=settings))
        one = in_background(lambda: worker.run(Attempt(first, 1)))
        while worker.standing().reading or not worker.standing().read_bytes:
            server.closing.wait(0.01)
        two = in_background(lambda: worker.run(Attempt(second, 2)))
        assert (one().end, two().end, overlaps.is_set()) == (End.DONE, End.DONE, True)
    assert most == 4
    assert [record[0] for record in parts(tmp_path)] == rows(60)


def test_an_attempt_that_was_given_up_leaves_the_later_ones_journal(tmp_path: Path) -> None:
    """A worker that only seemed lost finishes its block: the journal of the next attempt is in use."""
    write_requests(tmp_path, rows(2))
    home = tmp_path / "out"
    attempts = {
        number: Journal(LocalFolder(home), made_job(tmp_path, ""), Attempt(whole(tmp_path), number))
        for number in (1, 2, 3)
    }
    old = journal(tmp_path, "0d", 7)
    for each in attempts.values():
        each.begin([])
    attempts[2].remove_all()
    assert not old.exists() and [n for n, each in attempts.items() if each.path.exists()] == [3]


def test_a_block_that_another_attempt_has_finished_is_done(tmp_path: Path) -> None:
    """If its journal is gone because the part is there, that is no error."""
    bodies = rows(6)
    write_requests(tmp_path, bodies)
    room = Room(1)
    with RawServer(room) as server:
        worker = BlockWorker(made_job(tmp_path, server, settings={"write_retry_s": 0.0}))
        end = in_background(lambda: worker.run(Attempt(whole(tmp_path), 1)))
        room.wait_for(5)
        (found,) = (tmp_path / "out" / "journals").iterdir()
        part = tmp_path / "out" / part_name(whole(tmp_path))
        part.write_bytes(b"".join(map(record, bodies)))
        found.unlink()
        room.opened.set()
        report = end()
    assert (report.end, report.lines, report.error) == (End.DONE, 6, "")


def test_a_part_that_exists_is_done(tmp_path: Path, server: RawServer) -> None:
    """Nothing is sent for it, and it stays as it is."""
    write_requests(tmp_path, rows(2))
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / part_name(whole(tmp_path))
    path.write_bytes(record(rows(2)[0]) + record(rows(2)[1]))
    report = BlockWorker(made_job(tmp_path, server)).run(Attempt(whole(tmp_path), 1))
    assert (report.end, report.lines, server.bodies) == (End.DONE, 2, [])


def test_a_stopped_attempt_keeps_its_journal(tmp_path: Path) -> None:
    """What was answered is on record, and the next attempt sends only the rest."""
    write_requests(tmp_path, rows(20))
    room = Room(5)
    with RawServer(room) as server:
        job = made_job(tmp_path, server, settings={"max_workers": 2})
        worker = BlockWorker(job)
        end = in_background(lambda: worker.run(Attempt(whole(tmp_path), 1)))
        room.wait_for(2)
        assert worker.standing().reading in (frozenset(), frozenset({1}))
        worker.stop("enough")
        room.opened.set()
        report = end()
        assert (report.end, report.error) == (End.STOPPED, "enough")
        (left,) = read_state(LocalFolder(tmp_path / "out")).journals
        assert (left.run, left.attempt) == ("aa", 1)
        assert worker.run(Attempt(whole(tmp_path), 2)).end is End.DONE
        assert sent_more_than_once(server) == 0
    assert [found[0] for found in parts(tmp_path)] == rows(20)


def test_a_wrong_key_is_fatal(tmp_path: Path) -> None:
    """No attempt at any block can succeed: the report says so, and why."""

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(b'{"error": {"message": "bad key"}}', status="401 Unauthorized")

    write_requests(tmp_path, rows(3))
    with RawServer(script) as server:
        report = BlockWorker(made_job(tmp_path, server)).run(Attempt(whole(tmp_path), 1))
    assert (report.end, report.error_class) == (End.FATAL, "RunStoppedError")
    assert report.stop_cause == "key"


def test_a_full_disk_is_fatal_and_leaves_no_part(tmp_path: Path, server: RawServer) -> None:
    """If the part can't be written, the journal has the answers, and no half part is there."""
    write_requests(tmp_path, rows(3))
    worker = BlockWorker(made_job(tmp_path, server))
    name = part_name(whole(tmp_path))
    (tmp_path / "out").mkdir()
    block = whole(tmp_path)
    folder = LocalFolder(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        report = worker.run(Attempt(block, 1))
    assert (report.end, report.error_class) == (End.FATAL, "ResultsFileError")
    assert "No space left" in report.error
    assert name not in folder.names() and len(read_state(folder).journals) == 1
    assert worker.run(Attempt(block, 2)).end is End.DONE


def test_an_unreadable_file_may_be_tried_again(tmp_path: Path, server: RawServer) -> None:
    """An error of the file system under the input ends one attempt, not the job."""
    write_requests(tmp_path, rows(1))
    job = made_job(tmp_path, server, source=str(tmp_path / "gone.jsonl"))
    report = BlockWorker(job).run(Attempt(Block(0, 10), 1))
    assert report.end is End.FAILED and "gone.jsonl" in report.error


def test_warnings_come_with_the_standing(tmp_path: Path, server: RawServer) -> None:
    """What a worker logs reaches the driver, once."""
    worker = BlockWorker(made_job(tmp_path, server))
    logging.getLogger("parallel_processor").warning("something of %s", "note")
    assert worker.standing().log == ((logging.WARNING, "something of note"),)
    assert worker.standing().log == ()
    worker.close()
