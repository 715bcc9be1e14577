"""Blocks: byte ranges of the requests file, each of which one worker sends.

A line belongs to the block that its first byte lies in. So a block can be read without the others, and the
file's size is all that must be known beforehand. The key of a line is its place: the number of its first
byte, from 1, as ``tail -c +PLACE`` counts. A compressed file can't be entered in its middle: it is one
block, and places are those in the text that is compressed.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from parallel_processor.exceptions import InputFileError
from parallel_processor.files.compression import unpacked

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """The lines whose first byte is at ``start`` or later, and before ``end``, counted from 0."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.end - self.start


def uncovered(covered: Iterable[Block], size: int) -> Iterator[Block]:
    """The ranges of a file of ``size`` bytes that ``covered`` leaves, in the file's order.

    Raises :class:`InputFileError` if ``covered`` does not fit: two blocks overlap, or the file is shorter.
    Its text says what is wrong, and not what to do.
    """
    place = 0
    for block in sorted(covered):
        if block.start < place:
            raise InputFileError(f"the part from byte {block.start} overlaps the one before it")
        if block.end > size:
            raise InputFileError(
                f"the requests have {size:,} bytes, but there is a part up to byte {block.end:,}: lines "
                "were removed, or the parts are of another file"
            )
        if block.start > place:
            yield Block(place, block.start)
        place = block.end
    if place < size:
        yield Block(place, size)


def cut(block: Block, block_bytes: int) -> Iterator[Block]:
    """``block`` in pieces of ``block_bytes``, the last of which may be smaller."""
    for start in range(block.start, block.end, block_bytes):
        yield Block(start, min(start + block_bytes, block.end))


def text_of(file: BinaryIO, name: str) -> tuple[io.BufferedReader, bool]:
    """The text in ``file``, which is at its begin, and whether the file is compressed.

    Raises :class:`ConfigurationError` if a package is missing that unpacks it.
    """
    # Python's own reader of lines is several times as fast as those of most other file objects.
    packed = io.BufferedReader(cast(Any, file), _BUFFER_BYTES)
    text = unpacked(packed, name)
    return text, text is not packed


class BlockLines:
    """The lines of one block, as ``Processor.process_file`` takes them. For one thread.

    Args:
        file: the whole file, open for reading at any place. It is closed at the end of the ``with`` block.
        name: what the file is called in messages.
    """

    def __init__(self, file: BinaryIO, block: Block, name: str) -> None:
        self.name, self._block = name, block
        self._raw = file
        self._file, self._is_compressed = text_of(file, name)
        self._place = block.start
        self.is_read = False  # true once the last line was taken

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The lines, each with its place. Raises ``OSError`` if the file can't be read."""
        if self._is_compressed:
            yield from self._all()
        else:
            self._skip_to_line()
            yield from self._own()
        self.is_read = True

    def _all(self) -> Iterator[tuple[int, bytes]]:
        place = 1
        try:
            for line in self._file:
                yield place, line
                place += len(line)
                self._place = self._raw.tell()
        except OSError as error:
            if error.errno != errno.EIO:  # it is damaged, which another worker can't mend
                raise
            raise InputFileError(f"can't unpack {self.name}: {error.strerror}") from None

    def _skip_to_line(self) -> None:
        """Go to the first line that begins in the block: the one before it ends at or behind the start."""
        if self._block.start == 0:
            return
        self._file.seek(self._block.start - 1)
        place = self._block.start - 1
        while place < self._block.end:
            skipped = self._file.readline(min(_BUFFER_BYTES, self._block.end - place))
            place += len(skipped)
            if not skipped or skipped.endswith(b"\n"):
                break
        self._place = place

    def _own(self) -> Iterator[tuple[int, bytes]]:
        end = self._block.end
        while self._place < end and (line := self._file.readline()):
            place, self._place = self._place + 1, self._place + len(line)
            yield place, line

    def place(self, number: int) -> str:
        """``byte 300``."""
        return f"byte {number}"

    def interrupt(self) -> None:
        """A file has no wait that could be ended."""

    @property
    def read_bytes(self) -> int:
        """How much of the block has been read."""
        return (
            self._block.size
            if self.is_read
            else min(self._place, self._block.end) - self._block.start
        )

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1."""
        if self.is_read or not self._block.size:
            return 1.0
        return min(self.read_bytes / self._block.size, 0.9999)

    def __enter__(self) -> BlockLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()
