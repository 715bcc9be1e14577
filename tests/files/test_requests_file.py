"""The requests file, and the checks of all paths before anything is sent."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.requests_file import RequestsFile, check_paths, default_save_path

zstandard = pytest.importorskip("zstandard")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A requests file of three lines."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"first\nsecond\r\n\xff")
    return path


def test_lines_come_as_they_are(source: Path) -> None:
    """Lines are bytes with their line ends, and the fraction read is known at any time."""
    with RequestsFile(source) as lines:
        assert lines.fraction() == 0
        reading = iter(lines)
        assert next(reading) == b"first\n"
        assert lines.fraction() == pytest.approx(6 / 15)
        assert list(reading) == [b"second\r\n", b"\xff"]
        assert lines.fraction() == 1


def test_a_file_that_grows_is_never_more_than_read(source: Path) -> None:
    """What is appended meanwhile is read as well."""
    with RequestsFile(source) as lines:
        reading = iter(lines)
        next(reading)
        with source.open("ab") as file:
            file.write(b"\n" + b"more\n" * 100_000)
        for _ in range(50_000):
            next(reading)
        assert lines.fraction() == 0.9999
        assert len(list(reading)) == 50_002
        assert lines.fraction() == 1


def test_an_empty_file_is_read_at_once(tmp_path: Path) -> None:
    """Its size of 0 is no divisor."""
    path = tmp_path / "empty.jsonl"
    path.touch()
    with RequestsFile(path) as lines:
        assert lines.fraction() is None
        assert list(lines) == []
        assert lines.fraction() == 1


def test_a_pipe_tells_nothing_until_its_end(tmp_path: Path) -> None:
    """The fraction read is unknown until then."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)  # doesn't wait for a reader
    with RequestsFile(fifo) as lines:
        os.write(writer, b"a\nb\n")
        os.close(writer)
        reading = iter(lines)
        assert next(reading) == b"a\n"
        assert lines.fraction() is None
        assert list(reading) == [b"b\n"]
        assert lines.fraction() == 1


def test_a_file_that_cannot_be_opened_is_an_input_file_error(tmp_path: Path) -> None:
    """The message says which file it is, and why."""
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputFileError, match=why) as caught:
            RequestsFile(path)
        assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_on_is_an_input_file_error(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails in the middle ends the run in order."""

    class Failing:
        def __iter__(self) -> Iterator[bytes]:
            yield b"first\n"
            raise OSError(errno.EIO, "Input/output error")

        def close(self) -> None:
            pass

    with RequestsFile(source) as lines:
        lines._file.close()
        monkeypatch.setattr(lines, "_file", Failing())
        reading = iter(lines)
        next(reading)
        with pytest.raises(InputFileError, match=r"in\.jsonl: Input/output error"):
            next(reading)


def test_the_file_is_closed(source: Path) -> None:
    """Leaving the block gives the descriptor back, after an error too."""
    with pytest.raises(RuntimeError), RequestsFile(source) as lines:
        raise RuntimeError
    assert lines._file.closed


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress]
)
def test_compressed_requests_are_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Whatever the name says, the first bytes count; the progress is that in the file."""
    path = tmp_path / "in.jsonl"
    lines = [b'{"n": "%s"}\n' % os.urandom(400).hex().encode() for _ in range(2000)]
    path.write_bytes(pack(b"".join(lines[:1000])) + pack(b"".join(lines[1000:])))
    with RequestsFile(path) as source:
        reading = iter(source)
        assert [next(reading) for _ in range(1000)] == lines[:1000]
        assert 0.4 < (source.fraction() or 0) < 0.7
        assert list(reading) == lines[1000:]
        assert source.fraction() == 1


def test_a_torn_download_ends_in_an_error(tmp_path: Path) -> None:
    """Lines that are missing are never taken for the end."""
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n' * 100_000)[:-9])
    with RequestsFile(path) as source, pytest.raises(InputFileError, match="end of its gzip data"):
        list(source)


def test_a_wait_for_the_writer_of_a_pipe_can_be_ended(tmp_path: Path) -> None:
    """A named pipe that nobody writes opens at once. Its writer may come later, or never."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with RequestsFile(fifo) as lines:
        timer = threading.Timer(0.05, lines.interrupt)
        timer.start()
        assert list(lines) == []
        timer.join()
        assert lines.fraction() is None
    with RequestsFile(fifo) as lines:
        timer = threading.Timer(0.05, fifo.write_bytes, [b"a\nb\n"])
        timer.start()
        assert list(lines) == [b"a\n", b"b\n"]
        timer.join()


def test_a_wait_for_a_pipe_can_be_ended(tmp_path: Path) -> None:
    """There are no more lines then, and what has come of the next one is none."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    with RequestsFile(fifo) as lines:
        os.write(writer, b'{"n": 1}\n{"n": 2')
        reading = iter(lines)
        assert next(reading) == b'{"n": 1}\n'
        timer = threading.Timer(0.05, lines.interrupt)
        timer.start()
        assert list(reading) == []
        timer.join()
        assert lines.fraction() is None
        lines.interrupt()
    lines.interrupt()
    os.close(writer)


@pytest.mark.parametrize(
    ("requests", "results"),
    [
        ("in.jsonl.gz", "in_results.jsonl"),
        ("a/in.zst", "a/in_results.jsonl"),
        ("in.jsonl", "in_results.jsonl"),
        ("/a/b.c/in.x.jsonl", "/a/b.c/in.x_results.jsonl"),
        ("dir/in.txt", "dir/in_results.jsonl"),
        ("in", "in_results.jsonl"),
    ],
)
def test_results_are_beside_the_requests(requests: str, results: str) -> None:
    """The cookbook's name."""
    assert default_save_path(Path(requests)) == Path(results)


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "fifo"])
def test_nothing_can_stand_beside_a_pipe(path: str, tmp_path: Path) -> None:
    """A results file must be named then, also if the descriptor is that of a file."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match=r"name a results file \(--save_filepath"):
        default_save_path(tmp_path / path)


@pytest.mark.parametrize("path", ["", ".", "/", ".."])
def test_a_directory_has_a_default_too(path: str) -> None:
    """It is rejected later, by the check of the paths, with the reason."""
    source = Path(path)
    with pytest.raises(ConfigurationError, match=r"the requests file .* is a directory"):
        check_paths(source, default_save_path(source), None)


def test_the_requests_are_missed_before_the_results_beside_them(tmp_path: Path) -> None:
    """A misspelt directory is that of the requests, though the results would go there, too."""
    source = tmp_path / "none" / "in.jsonl"
    check_paths(source, default_save_path(source), None)
    with pytest.raises(InputFileError, match=r"can't read .*none/in\.jsonl: No such file"):
        RequestsFile(source)


def test_paths_that_work_pass(source: Path, tmp_path: Path) -> None:
    """Accepted are new files, existing files, and links to them."""
    there = tmp_path / "out.jsonl"
    check_paths(source, there, None)
    check_paths(source, there, tmp_path / "errors.jsonl")
    there.touch()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "elsewhere.jsonl")
    check_paths(source, there, link)
    check_paths(tmp_path / "none" / "in.jsonl", there, None)  # reading it will say what is wrong


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("in.jsonl", "in.jsonl"), "the requests and the results file are the same"),
        (("in.jsonl", "d/../in.jsonl"), "the requests and the results file are the same"),
        (("in.jsonl", "soft"), "the requests and the results file are the same"),
        (("in.jsonl", "hard"), "the requests and the results file are the same"),
        (("in.jsonl", "new", "new"), "the results and the errors file are the same"),
        (("in.jsonl", "new", "d/../new"), "the results and the errors file are the same"),
        (("in.jsonl", "new", "soft"), "the requests and the errors file are the same"),
        (("d", "new"), "the requests file .*/d is a directory"),
        (("in.jsonl", "d"), "the results file .*/d is a directory"),
        (("in.jsonl", "new.bz2"), r"results are compressed as \.gz or \.zst only"),
        (("in.jsonl", "new", "d"), "the errors file .*/d is a directory"),
        (
            ("in.jsonl", "no/new"),
            "the directory of the results file .*/no/new does not exist: create",
        ),
        (("in.jsonl", "in.jsonl/new"), "the directory of the results file .* does not exist"),
        (("in.jsonl", "new", "no/e"), "the directory of the errors file .*/no/e does not exist"),
        (("in.jsonl", "x" * 300), "can't use the results file .*x: .*name too long"),
    ],
)
def test_paths_that_cannot_work_are_refused(
    source: Path, tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    """The message says which file, and what is wrong with it."""
    (tmp_path / "d").mkdir()
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    all_paths: list[Any] = [tmp_path / path for path in paths]
    with pytest.raises(ConfigurationError, match=message):
        check_paths(*all_paths, *[None] * (3 - len(paths)))


def test_links_in_a_circle_are_refused_or_left_to_the_system(source: Path, tmp_path: Path) -> None:
    """A loop of symbolic links never ends in a foreign exception."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    try:
        check_paths(source, tmp_path / "a", None)
    except ConfigurationError as error:
        assert "the results file" in str(error)


def test_the_ending_of_a_replacement_is_kept(tmp_path: Path) -> None:
    """No file may have the name of the temporary copy of a results file."""
    with pytest.raises(ConfigurationError, match=r"out\.jsonl\.new~ has an ending that is kept"):
        check_paths(tmp_path / "out.jsonl.new~", tmp_path / "out.jsonl", None)
