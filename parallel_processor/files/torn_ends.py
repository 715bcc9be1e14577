"""The end of a compressed results file whose run was killed.

Its last member has no end, and may be torn in the middle of what was being appended. What was on record
ends with a flush behind a line end. :func:`intact_part` finds the last one. The file is cut there, and
the few bytes that end a member are appended: nothing is packed again, and a crash in between leaves a
file that is mended in the same way.
"""

from __future__ import annotations

import errno
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from parallel_processor.files.compression import (
    PADDING,
    ZSTD_CLOSING,
    Unpacked,
    compression_of,
    find_zstd,
    gzip_closing,
)

_PIECE_BYTES = 32 * 1024
_BUFFER_BYTES = 256 * 1024
_FLUSHED = b"\0\0\xff\xff"  # an empty block, which a flush of zlib ends with
_MOST_TORN_BYTES = 64 * 1024 * 1024  # more than a run appends at once
_MAGIC_BYTES = 4


class IntactPart(NamedTuple):
    """The part of a compressed file that can be unpacked, up to a line end.

    Attributes:
        size: in bytes.
        closing: what has to follow these bytes so that the last member is complete.
    """

    size: int
    closing: bytes = b""


class _Torn(Exception):
    """The data goes on in a way that can't be read."""


def intact_part(path: Path, kind: str) -> IntactPart:
    """What is intact of a results file that a killed run may have left.

    Raises ``OSError`` if more would be lost than such a run appends at once, or if the member that is
    torn is not one of ours.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(_BUFFER_BYTES).strip(PADDING)
        file.seek(0)
        if len(head) >= _MAGIC_BYTES and compression_of(head) != kind:
            raise OSError(errno.EINVAL, f"it is not compressed with {kind}, as its name says")
        part = _gzip_part(file) if kind == "gzip" else _zstd_part(file, str(path))
    if size - part.size > _MOST_TORN_BYTES:
        raise OSError(errno.EIO, f"its {kind} data is damaged behind byte {part.size:,}")
    return part


def _gzip_part(file: BinaryIO) -> IntactPart:
    member, part = _GzipWalk(0), IntactPart(0)
    try:
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            rest = piece
            while rest:
                rest = member.feed(rest)
                if member.end is not None:
                    part = IntactPart(member.end)
                    member = _GzipWalk(member.end)
    except (zlib.error, _Torn):
        pass
    return member.best or _unless_foreign(part, member.has_lines)


def _unless_foreign(part: IntactPart, has_lines: bool) -> IntactPart:
    if has_lines:
        raise OSError(
            errno.EIO,
            f"its end is missing: what another program wrote behind byte {part.size:,} is cut off. "
            "Unpack what is there, and name that file",
        )
    return part


class _GzipWalk:
    """Goes through one member, and notes the places where it could end."""

    def __init__(self, start: int) -> None:
        self._place = start
        self._unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._crc = self._size = 0
        self._last = b""  # of the packed data, where a mark may have begun
        self._at_line_end = self._has_begun = False
        self.has_lines = False
        self.best: IntactPart | None = None
        self.end: int | None = None

    def feed(self, packed: bytes) -> bytes:
        """Unpack up to the next mark; what is left of ``packed``."""
        if not self._has_begun:
            rest = packed.lstrip(PADDING)
            self._place += len(packed) - len(rest)
            self._has_begun, packed = bool(rest), rest
        found = (self._last + packed).find(_FLUSHED)
        cut = len(packed) if found < 0 else found + len(_FLUSHED) - len(self._last)
        text = self._unpacker.decompress(packed[:cut])
        self._place += cut
        self._last = (self._last + packed[:cut])[1 - len(_FLUSHED) :]
        if text:
            self._crc, self._size = zlib.crc32(text, self._crc), self._size + len(text)
            self._at_line_end = text.endswith(b"\n")
            self.has_lines = self.has_lines or b"\n" in text
        if self._unpacker.eof:
            rest = self._unpacker.unused_data
            self.end = self._place - len(rest)
            return rest + packed[cut:]
        if found >= 0 and (self._at_line_end or not self._size):
            self._note()
        return packed[cut:]

    def _note(self) -> None:
        """The member could end here, if these bytes are a mark indeed."""
        closing, trial = gzip_closing(self._crc, self._size), self._unpacker.copy()
        try:
            if trial.decompress(closing) == b"" and trial.eof:
                self.best = IntactPart(self._place, closing)
        except zlib.error:
            pass


def _zstd_part(file: BinaryIO, name: str) -> IntactPart:
    part, best, has_lines = IntactPart(0), None, False
    unpacker = find_zstd(name).decompressor
    try:
        while (frame := _frame_header(file)) is not None:
            member, best, has_lines = unpacker(), None, False
            member.decompress(frame.header)
            for block in _blocks(file):
                text = member.decompress(block)
                has_lines = has_lines or b"\n" in text
                if text.endswith(b"\n") and not frame.has_checksum:
                    best = IntactPart(file.tell(), ZSTD_CLOSING)
            if frame.has_checksum:
                member.decompress(_exactly(file, 4))
            part, best, has_lines = IntactPart(file.tell()), None, False
    except Exception:  # the package has a class of its own for what it can't read
        pass
    return best or _unless_foreign(part, has_lines)


class _Frame(NamedTuple):
    header: bytes
    has_checksum: bool


def _frame_header(file: BinaryIO) -> _Frame | None:
    """The header of the next frame that has data; ``None`` at the end. See RFC 8878, section 3.1.1."""
    while magic := file.read(4):
        if len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:
            _exactly(file, struct.unpack("<I", _exactly(file, 4))[0])  # to be skipped
            continue
        if magic != b"\x28\xb5\x2f\xfd":
            raise _Torn
        flags = _exactly(file, 1)
        size_flag, is_single = flags[0] >> 6, flags[0] >> 5 & 1
        rest = (not is_single) + (0, 1, 2, 4)[flags[0] & 3]
        rest += (is_single, 2, 4, 8)[size_flag]
        return _Frame(magic + flags + _exactly(file, rest), bool(flags[0] & 4))
    return None


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The blocks of the frame whose header was read."""
    is_last = False
    while not is_last:
        head = _exactly(file, 3)
        number = int.from_bytes(head, "little")
        is_last, is_repeated = bool(number & 1), number >> 1 & 3 == 1
        yield head + _exactly(file, 1 if is_repeated else number >> 3)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Torn
    return data


def intact_text(path: Path, kind: str, part: IntactPart) -> io.BufferedReader:
    """The text of the intact part of a results file."""
    whole = _Ended(path, part)
    text = Unpacked(io.BufferedReader(whole, _BUFFER_BYTES), kind, str(path))
    return io.BufferedReader(text, _BUFFER_BYTES)


class _Ended(io.RawIOBase):
    """The intact part of a file, with the end that it lacks."""

    def __init__(self, path: Path, part: IntactPart) -> None:
        self._file = path.open("rb", buffering=0)
        self._left, self._closing = part

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(self._left, len(buffer))) or b""
        self._left -= len(data)
        if not data:
            data, self._closing = self._closing[: len(buffer)], self._closing[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
