"""Jobs whose input and output are on an object store: a server that speaks S3, on loopback."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
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


class Store:
    """A bucket of its own."""

    def __init__(self, files: Any) -> None:
        self.files, self.bucket = files, f"jobs-{uuid.uuid4().hex}"
        self.source, self.out = f"s3://{self.bucket}/in.jsonl", f"s3://{self.bucket}/out"

    def job(self, home: Path, server: RawServer, **more: Any) -> Job:
        return made_job(home, server, source=self.source, folder=self.out, **more)

    def read(self, name: str) -> bytes:
        self.files.invalidate_cache()
        found: bytes = self.files.cat_file(f"{self.out}/{name}")
        return found

    def records(self) -> list[Any]:
        """The records of all parts, in the order of their names."""
        names = [name for name in open_folder(self.out).names() if name.startswith("part-")]
        return [json.loads(line) for name in names for line in self.read(name).splitlines()]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket of a new store, with 60 requests."""
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
        made = Store(files)
        files.mkdir(made.bucket)
        lines = [json.dumps(row).encode() + b"\n" for row in rows(60)]
        files.pipe_file(made.source, b"".join(lines))
        yield made
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_blocks_and_parts(tmp_path: Path, store: Store) -> None:
    """Blocks are read by ranges, and the parts have all records in order; no journal is left."""
    size = input_size(store.source)
    with RawServer(answer_all) as server:
        worker = BlockWorker(store.job(tmp_path, server))
        ends = [worker.run(Attempt(b, n)).end for n, b in enumerate(cut(Block(0, size), 700))]
        assert set(ends) == {End.DONE} and len(ends) > 2
        assert [record[0] for record in store.records()] == rows(60)
        assert len(server.bodies) == 60
    assert read_state(open_folder(store.out)).journals == ()
    assert verify_parts(store.source, store.out).ok


def test_one_of_two_creates_a_part(store: Store) -> None:
    """The second one to create a file leaves the first one's as it is, also small ones (s3fs#973)."""
    folders = [RemoteFolder(store.out) for _ in range(2)]
    assert [folder.create("part", [b"%d\n" % n]) for n, folder in enumerate(folders)] == [
        True,
        False,
    ]
    assert store.read("part") == b"0\n"
    assert folders[1].create("part", [b"new\n"], replace=True)
    assert store.read("part") == b"new\n"

    class Blind(RemoteFolder):
        """One that has looked before the other one wrote."""

        def names(self) -> list[str]:
            return []

    racing = Blind(store.out)
    racing._fs.exists = lambda url: False  # type: ignore[method-assign]
    try:
        assert not racing.create("part", [b"late\n"])
    finally:
        del racing._fs.exists
    assert store.read("part") == b"new\n"


def test_a_journal_is_uploaded_in_pieces(tmp_path: Path, store: Store) -> None:
    """What an attempt has on record is on the store while it runs, and another one takes it over."""
    block = Block(0, input_size(store.source))
    room = Room(20)
    with RawServer(room) as server:
        lost = BlockWorker(store.job(tmp_path, server, upload_s=0.05))
        end = in_background(lambda: lost.run(Attempt(block, 1)))
        room.wait_for(8)
        journals = open_folder(store.out).within(JOURNALS)
        pieces = []
        for _ in range(200):
            pieces = [journals.open(name).read() for name in journals.names()]
            if sum(piece.count(b"\n") for piece in pieces) >= 20:
                break
            server.closing.wait(0.05)
        assert sum(piece.count(b"\n") for piece in pieces) == 20
        assert journals.names()[0] == journal_name(block, "aa", 1, 0)
        heir = BlockWorker(store.job(tmp_path, server))
        room.opened.set()
        report = heir.run(Attempt(block, 2))
        end()
    assert (report.end, report.lines, report.failed) == (End.DONE, 60, 0)
    assert [record[0] for record in store.records()] == rows(60)
    assert part_name(block) in open_folder(store.out).names()


def test_what_is_not_there(store: Store) -> None:
    """A missing file, a folder, and a store whose package is missing are named."""
    for url in (f"s3://{store.bucket}/none.jsonl", f"s3://{store.bucket}"):
        with pytest.raises(InputFileError, match=f"can't read {url}"):
            input_size(url)
    with pytest.raises(ConfigurationError, match="can't use nosuch://x"):
        input_size("nosuch://x/y")
    assert open_folder(f"{store.out}/nothing").names() == []
