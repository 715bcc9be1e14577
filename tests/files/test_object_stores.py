"""Requests and results on an object store: a server that speaks S3, on loopback, and one in memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer, answer_all
from services import gated, in_background, processor, rows

from parallel_processor.cli.main import main
from parallel_processor.exceptions import ConfigurationError, InputFileError, ResultsFileError
from parallel_processor.files.object_stores import StoredFile

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that serve and use S3
fsspec = pytest.importorskip("fsspec")
moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


def lines(count: int, first: int = 0) -> bytes:
    """So many requests."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(count, first))


class Store:
    """A bucket of its own."""

    def __init__(self, files: Any) -> None:
        self.files, self.url = files, f"s3://bucket-{uuid.uuid4().hex}"

    def read(self, name: str) -> list[Any]:
        """The records in an object."""
        self.files.invalidate_cache()
        data = self.files.cat_file(f"{self.url}/{name}")
        return [
            json.loads(line)
            for line in (gzip.decompress(data) if name.endswith(".gz") else data).splitlines()
        ]

    def names(self) -> list[str]:
        """What is in the bucket."""
        self.files.invalidate_cache()
        return sorted(name.rpartition("/")[2] for name in self.files.ls(self.url))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """A bucket of a new store with two files of requests; an empty folder is the working directory."""
    monkeypatch.chdir(tmp_path)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        made = Store(s3fs.S3FileSystem())
        made.files.mkdir(made.url)
        made.files.pipe_file(f"{made.url}/in-1.jsonl", lines(20))
        made.files.pipe_file(f"{made.url}/in-2.jsonl.gz", gzip.compress(lines(20, 20)))
        yield made
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_job_from_a_store_to_a_store(store: Store, tmp_path: Path) -> None:
    """Inputs are read from there, the results are there at the end, and nothing is left here."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        url = f"{store.url}/out.jsonl.gz"
        summary = made.process_file(f"{store.url}/in-*", url)
        assert (summary.answered, summary.failed) == (40, 0)
        assert len(store.read("out.jsonl.gz")) == 40
        assert list(tmp_path.iterdir()) == []
        again = made.process_file([f"{store.url}/in-1.jsonl", f"{store.url}/in-2.jsonl.gz"], url)
        assert (again.answered, again.already_answered) == (0, 40)
    assert store.names() == ["in-1.jsonl", "in-2.jsonl.gz", "out.jsonl.gz"]


def test_a_job_that_was_stopped_goes_on_from_here(store: Store, tmp_path: Path) -> None:
    """Until its end the records are here; then, and only then, they are there."""
    url = f"{store.url}/out.jsonl"
    with gated(b"text 30") as (server, gate):
        with processor(server.url, max_workers=2, drain_s=0.1) as made:
            result = in_background(lambda: made.process_file(f"{store.url}/in-*", url))
            assert gate.came.wait(20)
            assert store.names() == ["in-1.jsonl", "in-2.jsonl.gz"]
            made.stop()
            assert result().answered < 40
        (local,) = tmp_path.iterdir()
        assert local.name.startswith("out-") and local.suffix == ".jsonl"
        assert store.names() == ["in-1.jsonl", "in-2.jsonl.gz"]
        gate.opened.set()
        with processor(server.url) as made:
            summary = made.process_file(f"{store.url}/in-*", url)
            assert summary.already_answered > 0 and summary.failed == 0
    assert len(store.read("out.jsonl")) == 40
    assert list(tmp_path.iterdir()) == []


def test_what_was_stopped_here_replaces_nothing_newer(store: Store, tmp_path: Path) -> None:
    """Another run has finished the job meanwhile, from another folder."""
    url, source = f"{store.url}/out.jsonl", f"{store.url}/in-1.jsonl"
    with RawServer(answer_all) as server, processor(server.url) as made:
        made.process_file(source, url)
        local = StoredFile(url).path
        local.write_bytes(store.files.cat_file(url).splitlines(keepends=True)[0])
        os.utime(local, (1e9, 1e9))
        with pytest.raises(ResultsFileError, match="another run has finished since. Remove out-"):
            made.process_file(source, url)
        assert len(store.read("out.jsonl")) == 20
        local.unlink()
        assert made.process_file(source, url).already_answered == 20


def test_an_object_that_was_written_meanwhile_stays(store: Store, tmp_path: Path) -> None:
    """The results stay here, and the error says so."""
    url = f"{store.url}/out.jsonl"
    with gated(b"text 10") as (server, gate), processor(server.url) as made:
        result = in_background(lambda: made.process_file(f"{store.url}/in-1.jsonl", url))
        assert gate.came.wait(20)
        store.files.pipe_file(url, b"[]")
        gate.opened.set()
        with pytest.raises(ResultsFileError, match="another run has written it meanwhile"):
            result()
    assert store.files.cat_file(url) == b"[]"
    assert len(StoredFile(url).path.read_bytes().splitlines()) == 20


def test_failures_have_their_file_there_too(store: Store) -> None:
    """Both files are put on the store."""
    store.files.pipe_file(f"{store.url}/in-1.jsonl", lines(3) + b"nonsense\n")
    with RawServer(answer_all) as server, processor(server.url) as made:
        made.process_file(
            f"{store.url}/in-1.jsonl", f"{store.url}/o.jsonl", errors_path=f"{store.url}/e.jsonl"
        )
    assert (len(store.read("o.jsonl")), len(store.read("e.jsonl"))) == (3, 1)


def test_results_there_are_verified(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file there is a results file, not a folder of parts; a store that can't tell is one line."""
    store.files.pipe_file(f"{store.url}/in-1.jsonl", lines(3) + b"nonsense\n")
    source, save, errors = (f"{store.url}/{name}" for name in ("in-*", "o.jsonl.gz", "e.jsonl"))
    with RawServer(answer_all) as server, processor(server.url) as made:
        made.process_file(source, save, errors_path=errors)
    words = ["verify", "--requests_filepath", source, "--save_filepath", save]
    assert main([*words, "--errors_filepath", errors]) == 1
    assert capsys.readouterr().out.split()[:6] == ["lines", "24", "answered", "23", "failed", "1"]
    with pytest.raises(SystemExit):
        main([*words[:-1], "s3://Not A Bucket/o.jsonl"])
    assert "error: can't read s3://Not A Bucket/o.jsonl" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_that_cant_be_put_there_stay_here(store: Store, tmp_path: Path) -> None:
    """The error says where they are; the same command puts them there once it can."""
    url = f"{store.url}-none/out.jsonl"
    with RawServer(answer_all) as server, processor(server.url) as made:
        with pytest.raises(
            ResultsFileError, match=r"can't write s3://.*is in out-\w+\.jsonl"
        ) as raised:
            made.process_file(f"{store.url}/in-1.jsonl", url)
        assert raised.value.summary is not None and raised.value.summary.answered == 20
        assert len(list(tmp_path.iterdir())) == 1
        store.files.mkdir(f"{store.url}-none")
        assert made.process_file(f"{store.url}/in-1.jsonl", url).already_answered == 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [("/none.jsonl", "can't read s3://.*/none.jsonl"), ("/none*", "no file has")],
)
def test_an_object_that_is_not_there_is_said(store: Store, source: str, words: str) -> None:
    """Before anything is sent or written."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        with pytest.raises(InputFileError, match=words):
            made.process_file(store.url + source, f"{store.url}/out.jsonl")
    assert store.names() == ["in-1.jsonl", "in-2.jsonl.gz"]


def test_a_store_in_memory_works_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fsspec knows."""
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/in.jsonl", lines(5))
    with RawServer(answer_all) as server, processor(server.url) as made:
        assert made.process_file("memory://in.jsonl", "memory://out.jsonl").answered == 5
        with pytest.raises(ConfigurationError, match="is a folder"):
            made.process_file("memory://in.jsonl", "memory://folder/")
        for source in ("memory://in.jsonl", "memory://*.jsonl"):  # they would be replaced
            with pytest.raises(ConfigurationError, match="are the same: memory://"):
                made.process_file(source, "memory:///in.jsonl", overwrite=True)
    assert memory.cat_file("/in.jsonl") == lines(5)
    assert len(memory.cat_file("/out.jsonl").splitlines()) == 5


def test_without_fsspec_the_extra_is_named() -> None:
    """The URL, without what may be secret in it, and what to install."""
    program = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from parallel_processor import process_file\n"
        "try: process_file('s3://b/in.jsonl?X-Amz-Signature=secret', 'out.jsonl', api_key='k')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert "ConfigurationError s3://b/in.jsonl" in said and "secret" not in said
    assert "pip install 'parallel-api-processor[cloud]'" in said
