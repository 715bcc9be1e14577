"""Blocks of a requests file: every line in exactly one of them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parallel_processor.cluster.blocks import Block, BlockLines, cut, uncovered
from parallel_processor.exceptions import InputFileError

_TEXTS = st.text(st.sampled_from("ab \t\u00e9\u20ac\U0001f600\u2028\x85"), max_size=12)
_ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\r\r\n"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Lines with any ends, some of them blank or long; the last one may lack its end."""
    lines = draw(st.lists(st.tuples(_TEXTS, _ENDS), max_size=12))
    text = "".join(text + end for text, end in lines)
    return (text + draw(_TEXTS)).encode()


def read(data: bytes, block: Block) -> list[tuple[int, bytes]]:
    """The lines of one block, with their places."""
    with BlockLines(io.BytesIO(data), block, "in") as lines:
        return list(lines.numbered())


@given(files(), st.integers(1, 40))
@example(b"", 1)
@example(b"\n", 1)
@example(b"one line that is longer than several blocks\n", 5)
@example(b"a\nb", 2)
@example("\u20ac\u20ac\n\u20ac".encode(), 2)
def test_every_line_is_in_one_block(data: bytes, block_bytes: int) -> None:
    """The blocks of any size have all lines of the file once, in its order, each with its place."""
    found = [line for block in cut(Block(0, len(data)), block_bytes) for line in read(data, block)]
    assert [line for _, line in found] == list(io.BytesIO(data))
    assert all(data[place - 1 :].startswith(line) for place, line in found)
    assert b"".join(line for _, line in found) == data


@given(files(), st.lists(st.integers(0, 150), max_size=6), st.integers(1, 40))
def test_what_parts_leave_is_cut_anew(data: bytes, places: list[int], block_bytes: int) -> None:
    """Blocks of another size fill what earlier ones have left: no line is in two of them or in none."""
    edges = sorted({min(place, len(data)) for place in places})
    covered = [Block(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
    rest = [b for gap in uncovered(covered, len(data)) for b in cut(gap, block_bytes)]
    lines = [line for block in sorted(covered + rest) for line in read(data, block)]
    assert b"".join(line for _, line in lines) == data
    assert sum(block.size for block in covered + rest) == len(data)


@pytest.mark.parametrize(
    ("covered", "match"),
    [([Block(0, 5), Block(3, 9)], "overlaps"), ([Block(4, 11)], "lines were removed")],
)
def test_parts_that_do_not_fit_are_refused(covered: list[Block], match: str) -> None:
    """Parts that overlap, or that the file is too short for, belong to another job."""
    with pytest.raises(InputFileError, match=match):
        list(uncovered(covered, 10))


def zstd(data: bytes) -> bytes:
    """Compress ``data``."""
    packed: bytes = pytest.importorskip("zstandard").compress(data)
    return packed


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_compressed_file_is_one_block(compress: Callable[[bytes], bytes]) -> None:
    """Its lines have the places that they have in the text."""
    text = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    data = compress(text)
    found = read(data, Block(0, len(data)))
    assert b"".join(line for _, line in found) == text
    assert all(text[place - 1 :].startswith(line) for place, line in found)


def test_a_torn_compressed_file_is_an_input_error() -> None:
    """An archive that ends too early is named, not taken for a short file."""
    data = gzip.compress(b'{"n": 1}\n' * 1000)[:-20]
    with pytest.raises(InputFileError, match="can't unpack in"):
        read(data, Block(0, len(data)))


def test_how_much_was_read() -> None:
    """A block tells how much of it was read, and that its last line was taken."""
    data = b"one\ntwo\nthree\n"
    with BlockLines(io.BytesIO(data), Block(4, 10), "in") as lines:
        assert (lines.fraction(), lines.is_read) == (0.0, False)
        reading = lines.numbered()
        assert next(reading) == (5, b"two\n")
        assert lines.fraction() == pytest.approx(4 / 6)
        assert list(reading) == [(9, b"three\n")]
        assert (lines.fraction(), lines.is_read, lines.read_bytes) == (1.0, True, 6)
