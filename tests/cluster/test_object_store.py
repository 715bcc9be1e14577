"""Jobs whose input and output are on an object store: a server that speaks S3, on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_jobs import made_job
from raw_server import RawServer, Room, answer_all
from services import in_background, rows

from parallel_processor.cluster.blocks import Block, cut
from parallel_processor.cluster.folders import RemoteFolder, input_size, open_folder
from parallel_processor.cluster.job import Attempt, End, Job
from parallel_processor.cluster.parts import JOURNALS, journal_name, part_name, read_state
from parallel_processor.cluster.verify import verify_parts
from parallel_processor.cluster.worker import BlockWorker
from parallel_processor.exceptions import ConfigurationError, InputFileError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that serve and use S3
moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
SOURCE, OUT = "s3://jobs/in.jsonl", "s3://jobs/out"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of a new store with a bucket and 60 requests."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    try:
        files.mkdir("jobs")
        lines = [json.dumps(row).encode() + b"\n" for row in rows(60)]
        files.pipe_file("jobs/in.jsonl", b"".join(lines))
        yield files
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def job(tmp_path: Any, server: RawServer, run: str = "aa", **more: Any) -> Job:
    return made_job(tmp_path, server, run, source=SOURCE, folder=OUT, **more)


def records(store: Any) -> list[Any]:
    """The records of all parts, in the order of their names."""
    store.invalidate_cache()
    names = sorted(name for name in store.ls("jobs/out") if "/part-" in name)
    return [json.loads(line) for name in names for line in store.cat_file(name).splitlines()]


def test_blocks_and_parts(tmp_path: Any, store: Any) -> None:
    """Blocks are read by ranges, and the parts have all records in order; no journal is left."""
    size = input_size(SOURCE)
    with RawServer(answer_all) as server:
        worker = BlockWorker(job(tmp_path, server))
        ends = [worker.run(Attempt(b, n)).end for n, b in enumerate(cut(Block(0, size), 700))]
        assert set(ends) == {End.DONE} and len(ends) > 3
        assert [record[0] for record in records(store)] == rows(60)
        assert len(server.bodies) == 60
    assert read_state(open_folder(OUT)).journals == ()
    assert verify_parts(SOURCE, OUT).ok


def test_one_of_two_creates_a_part(store: Any) -> None:
    """The second one to create a file leaves the first one's as it is, also small ones (s3fs#973)."""
    folders = [RemoteFolder(OUT) for _ in range(2)]
    assert [folder.create("part", [b"%d\n" % n]) for n, folder in enumerate(folders)] == [
        True,
        False,
    ]
    assert store.cat_file("jobs/out/part") == b"0\n"
    assert folders[1].create("part", [b"new\n"], replace=True)
    store.invalidate_cache()
    assert store.cat_file("jobs/out/part") == b"new\n"

    class Blind(RemoteFolder):
        """One that has looked before the other one wrote."""

        def names(self) -> list[str]:
            return []

    racing = Blind(OUT)
    racing._fs.exists = lambda url: False  # type: ignore[method-assign]
    try:
        assert not racing.create("part", [b"late\n"])
    finally:
        del racing._fs.exists
    assert store.cat_file("jobs/out/part") == b"new\n"


def test_a_journal_is_uploaded_in_pieces(tmp_path: Any, store: Any) -> None:
    """What an attempt has on record is on the store while it runs, and another one takes it over."""
    block = Block(0, input_size(SOURCE))
    room = Room(20)
    with RawServer(room) as server:
        lost = BlockWorker(job(tmp_path, server, upload_s=0.05))
        end = in_background(lambda: lost.run(Attempt(block, 1)))
        room.wait_for(8)
        journals = open_folder(OUT).within(JOURNALS)
        pieces = []
        for _ in range(200):
            pieces = [journals.open(name).read() for name in journals.names()]
            if sum(piece.count(b"\n") for piece in pieces) >= 20:
                break
            server.closing.wait(0.05)
        assert sum(piece.count(b"\n") for piece in pieces) == 20
        assert journals.names()[0] == journal_name(block, "aa", 1, 0)
        heir = BlockWorker(job(tmp_path, server))
        room.opened.set()
        report = heir.run(Attempt(block, 2))
        end()
    assert (report.end, report.lines, report.failed) == (End.DONE, 60, 0)
    assert [record[0] for record in records(store)] == rows(60)
    assert part_name(block) in open_folder(OUT).names()


def test_what_is_not_there(store: Any) -> None:
    """A missing file, a folder, and a store whose package is missing are named."""
    for url in ("s3://jobs/none.jsonl", "s3://jobs"):
        with pytest.raises(InputFileError, match="can't read s3://jobs"):
            input_size(url)
    with pytest.raises(ConfigurationError, match="can't use nosuch://x"):
        input_size("nosuch://x/y")
    assert open_folder("s3://jobs/nothing").names() == []
