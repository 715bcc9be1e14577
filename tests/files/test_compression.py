"""Compressed files: what is read, what is written, and what is left of it after a kill."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_processor.exceptions import ConfigurationError, ResultsFileError
from parallel_processor.files.append_file import AppendFile, PackedFile, open_results
from parallel_processor.files.compression import (
    Unpacked,
    compression_of,
    new_member,
    unpacked,
    written_compression,
)
from parallel_processor.files.formats import parse_line
from parallel_processor.files.records import read_results
from parallel_processor.files.resume import open_files, prepare
from parallel_processor.files.torn_ends import intact_part, intact_text

zstandard = pytest.importorskip("zstandard")
KINDS = {".gz": "gzip", ".zst": "zstd"}
URL = "http://localhost/v1/embeddings"


def packed(kind: str, pieces: list[bytes]) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """A member without its end, its end, and how much of file and text there was behind each piece."""
    member, data, text, places = new_member(kind, "x"), b"", 0, []
    for piece in pieces:
        data += member.add(piece)
        text += len(piece)
        places.append((len(data), text))
    return data, member.closing(), places


def some_lines(rng: random.Random, count: int) -> list[bytes]:
    """So many pieces of whole lines, of very different lengths."""
    sizes = [rng.randint(1, 3000) for _ in range(count)]
    return [
        b'{"t": "%s"}\n' % rng.randbytes(size).hex().encode() * rng.randint(1, 20) for size in sizes
    ]


def record(number: int) -> bytes:
    """An answered request."""
    return json.dumps([{"model": "m", "input": str(number)}, {"data": [number]}]).encode() + b"\n"


def failure(number: int) -> bytes:
    """A failed one."""
    return json.dumps([{"model": "m", "input": str(number)}, ["HTTP 500"]]).encode() + b"\n"


def unpacked_by_tool(path: Path) -> bytes:
    """What another program makes of the file; it must find it whole."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    reader = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(path.read_bytes()), read_across_frames=True
    )
    return bytes(reader.read())


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_member_is_what_other_programs_read(kind: str, tmp_path: Path) -> None:
    """Two members after each other are one text, for the tools and for us."""
    pieces = some_lines(random.Random(1), 30)
    data, closing, _ = packed(kind, pieces)
    path = tmp_path / {"gzip": "x.gz", "zstd": "x.zst"}[kind]
    path.write_bytes((data + closing) * 2)
    assert unpacked_by_tool(path) == b"".join(pieces) * 2
    part = intact_part(path, kind)
    assert part == (path.stat().st_size, b"")
    assert intact_text(path, kind, part).read() == b"".join(pieces) * 2


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("tail", [b"", bytes(5000)], ids=["cut", "zeros"])
def test_a_member_that_was_cut_anywhere_is_mended(kind: str, tail: bytes, tmp_path: Path) -> None:
    """All pieces that were written whole stay, lines stay whole, and another member may follow."""
    rng, path = random.Random(2), tmp_path / "x"
    pieces = some_lines(rng, 12)
    data, closing, places = packed(kind, pieces)
    text, whole = b"".join(pieces), data + closing
    for cut in [*range(24), *rng.sample(range(len(data)), 40), len(whole) - 5, len(whole) - 1]:
        path.write_bytes(whole[:cut] + tail)
        part = intact_part(path, kind)
        found = intact_text(path, kind, part).read()
        assert text.startswith(found) and found[-1:] in (b"", b"\n")
        assert len(found) >= max([there for end, there in places if end <= cut], default=0), cut
        path.write_bytes(path.read_bytes()[: part.size] + part.closing + whole)
        part = intact_part(path, kind)
        assert part == (path.stat().st_size, b"")
        assert intact_text(path, kind, part).read() == found + text


@pytest.mark.parametrize("suffix", KINDS)
def test_what_another_program_left_torn_is_not_cut(suffix: str, tmp_path: Path) -> None:
    """A download that broke off holds answers that only its owner can save."""
    text = b"".join(record(number) for number in range(1000))
    path = tmp_path / f"out{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(text)[:-10])
    else:
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(text)[:-2])
    before = path.read_bytes()
    with (
        pytest.raises(ResultsFileError, match="its end is missing"),
        open_files(path, None) as files,
    ):
        prepare(files)
    assert path.read_bytes() == before


def test_damage_in_the_middle_is_not_cut(tmp_path: Path) -> None:
    """What follows is more than a run ever appends at once: somebody else must look at it."""
    data, closing, _ = packed("gzip", [b"{}\n"])
    path = tmp_path / "out.gz"
    path.write_bytes(data + closing + b"\xff" * 70_000_000)
    with pytest.raises(OSError, match="damaged behind byte"):
        intact_part(path, "gzip")


@pytest.mark.parametrize("suffix", KINDS)
def test_a_plain_file_with_such_a_name_is_refused(suffix: str, tmp_path: Path) -> None:
    """Nothing is cut off or appended."""
    path = tmp_path / f"out{suffix}"
    path.write_bytes(record(1) * 100)
    with (
        pytest.raises(ResultsFileError, match="not compressed with"),
        open_files(path, None) as files,
    ):
        prepare(files)
    assert path.read_bytes() == record(1) * 100


def test_a_compressed_file_with_a_plain_name_is_refused(tmp_path: Path) -> None:
    """Its answers are not taken for nothing, and no plain line is appended behind them."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(gzip.compress(record(1)))
    before = path.read_bytes()
    with (
        open_files(path, None) as files,
        pytest.raises(ResultsFileError, match="compressed with gzip, which its name doesn't say"),
    ):
        prepare(files)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", KINDS)
def test_a_compressed_results_file_resumes(suffix: str, tmp_path: Path) -> None:
    """Failed records go, answers stay, what is appended comes behind them, and a torn line is cut off."""
    path = tmp_path / f"out.jsonl{suffix}"
    with open_files(path, None) as (file,):
        assert isinstance(file, PackedFile)
        file.append(record(1) + failure(2) + record(3))
        file.append(failure(4))
        file.sync()  # and no end: the process was killed
    with open_files(path, None) as (file,):
        answered = prepare([file])
        assert (answered.answered, answered.failed) == (2, 2)
        file.append(record(2))
        file.end()
    assert unpacked_by_tool(path) == record(1) + record(3) + record(2)
    assert [outcome.ok for outcome in read_results(path)] == [True] * 3
    data, closing, _ = packed(KINDS[suffix], [record(5) + record(6)[:-9]])
    with path.open("ab") as end:
        end.write(data + closing)  # a torn line in a complete member
    with open_files(path, None) as (file,):
        answered = prepare([file])
        assert answered.take(parse_line(b'{"model": "m", "input": "5"}', 1, URL))
        assert not answered.take(parse_line(b'{"model": "m", "input": "6"}', 1, URL))
    assert unpacked_by_tool(path) == record(1) + record(3) + record(2) + record(5)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", KINDS)
def test_results_are_read_while_they_are_written(suffix: str, tmp_path: Path) -> None:
    """All that is on record can be read before the file has an end."""
    path = tmp_path / f"out.jsonl{suffix}"
    file = open_results(path)
    for number in range(20):
        file.append(record(number))
        found = list(read_results(path))
        assert [outcome.response["data"] for outcome in found] == [[n] for n in range(number + 1)]
    file.close()


def test_a_write_that_fails_leaves_a_member_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is in another member once it can, and the file is whole at any time."""
    path = tmp_path / "out.jsonl.gz"
    file = open_results(path)
    really, fails = os.write, [0]

    def write(descriptor: int, data: bytes) -> int:
        if fails[0] > 1:
            raise OSError(28, "No space left on device")
        if fails[0]:
            fails[0] = len(data)
            return really(descriptor, bytes(data)[:7])
        return really(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    file.append(record(1))
    for number in (2, 3):
        for _ in range(3):
            fails[0] = 1
            with pytest.raises(OSError, match="No space"):
                file.append(record(number))
            assert [outcome.ok for outcome in read_results(path)] == [True] * (number - 1)
        fails[0] = 0
        file.append(record(number))
        file.append(record(number) * 0)
    file.end()
    file.close()
    assert unpacked_by_tool(path) == record(1) + record(2) + record(3)


def test_an_end_is_written_once(tmp_path: Path) -> None:
    """A file that nothing was appended to holds an empty text; a complete one stays as it is."""
    path = tmp_path / "out.jsonl.gz"
    file = open_results(path)
    file.end()
    assert unpacked_by_tool(path) == b""
    file.append(record(1))
    file.end()
    file.end()
    assert unpacked_by_tool(path) == record(1)
    file.close()


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (zstandard.ZstdCompressor().compress, "zstd"),
    ],
)
def test_what_is_read(pack: object, kind: str) -> None:
    """All members are read, however little comes at a time, and an end that is missing is an error."""
    one, two = (pack(text) for text in (b"a\nb\n" * 5000, b"c\nd"))  # type: ignore[operator]
    assert compression_of(one) == kind
    data = one + two + (bytes(99) if kind == "gzip" else b"")
    file = unpacked(io.BufferedReader(Trickle(data)), "x")
    assert file.read() == b"a\nb\n" * 5000 + b"c\nd"
    for cut in (len(one) - 3, len(one) + len(two) - 1):
        with pytest.raises(OSError, match="the end of its"):
            unpacked(io.BufferedReader(Trickle(data[:cut])), "x").read()
    text = unpacked(io.BufferedReader(Trickle(data[: len(one) + 3])), "x", is_growing=True).read()
    assert text == b"a\nb\n" * 5000
    with pytest.raises(OSError, match="is damaged"):
        unpacked(io.BufferedReader(Trickle(one + b"nonsense")), "x").read()


class Trickle(io.RawIOBase):
    """A pipe that gives 1,000 bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), 1000))
        buffer[: len(data)] = data
        return len(data)


def test_the_place_in_a_compressed_file_is_known() -> None:
    """What has been read of it, for the progress."""
    data = gzip.compress(b"x\n" * 1000)
    file = Unpacked(io.BufferedReader(io.BytesIO(data)), "gzip", "x")  # type: ignore[arg-type]
    assert file.read_bytes == 0
    file.read()
    assert file.read_bytes == len(data)


@pytest.mark.parametrize("name", ["out.bz2", "out.jsonl.XZ", "out.zip", "out.lz4"])
def test_an_unknown_compression_is_refused(name: str) -> None:
    """A plain file with such a name would surprise whoever opens it."""
    with pytest.raises(ConfigurationError, match=r"as \.gz or \.zst only"):
        written_compression(Path(name))


def test_without_zstd_the_extra_is_named() -> None:
    """The file, and what to install."""
    program = (
        "import sys; sys.modules['zstandard'] = sys.modules['compression'] = None\n"
        "from pathlib import Path\n"
        "from parallel_processor.files.append_file import open_results\n"
        "try: open_results(Path('out.zst'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert "ConfigurationError out.zst is compressed with zstd" in said
    assert "pip install 'parallel-api-processor[zstd]'" in said


def test_a_plain_name_is_a_plain_file(tmp_path: Path) -> None:
    """Only the end of the name decides."""
    file = open_results(tmp_path / "out.gz.jsonl")
    assert type(file) is AppendFile
    file.close()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_text_of_a_few_bytes_is_unpacked_in_pieces(pack: object) -> None:
    """However well it was packed, little of it is in memory."""
    data = pack(b"x" * 99 + b"\n") + pack((b"x" * 99 + b"\n") * 1_000_000)  # type: ignore[operator]
    file = Unpacked(io.BufferedReader(io.BytesIO(data)), "gzip" if data[0] == 31 else "zstd", "x")  # type: ignore[arg-type]
    sizes = []
    buffer = bytearray(8 << 20)
    while count := file.readinto(buffer):
        sizes.append(count)
    assert sum(sizes) == 100_000_100
    assert max(sizes) < 10_000_000


def test_a_long_window_is_read() -> None:
    """What ``zstd --long=28`` made, as archives do, is no error (the package's own bound is 27)."""
    long = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()
    data = packer.compress(b"x\n" * 1000) + packer.flush()
    assert unpacked(io.BufferedReader(io.BytesIO(data)), "x").read() == b"x\n" * 1000  # type: ignore[arg-type]
