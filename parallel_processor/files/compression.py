"""Compressed files: read by their first bytes, whatever their name, and written by the name's end.

A results file ``.gz`` or ``.zst`` is a sequence of members, which unpacking tools join. A run appends one
member. Each batch of records is flushed out of the compressor before it counts as on record: after a
``kill -9``, all that was on record can be unpacked, as without compression. The compressor keeps what it
has learned between two flushes, so that a flush of 20 records costs 1 % of the size, where a member for
each batch would double it.

The member of a killed run has no end: see ``torn_ends.py``.
"""

from __future__ import annotations

import errno
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from parallel_processor.exceptions import ConfigurationError

# How much is unpacked at once: so much of packed data, and about so much text, which is in memory.
_LEAST_PIECE_BYTES, _MOST_PIECE_BYTES = 256, 32 * 1024
_LEAST_TEXT_BYTES, _MOST_TEXT_BYTES = 128 * 1024, 512 * 1024
_BUFFER_BYTES = 256 * 1024
_GZIP_LEVEL = 4  # half of the time of 6, for 5 % more bytes
_ZSTD_LEVEL = 3
_MOST_WINDOW_LOG = 31  # what `zstd --long=31` makes
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
PADDING = b"\0"
"""Behind a gzip member it means nothing. A power loss may leave it at the end of any file."""
ZSTD_CLOSING = b"\x01\0\0"
"""An empty last block, which ends a frame that has no checksum."""
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x50\x2a\x4d\x18", "zstd"),  # what pzstd begins with
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
_WRITTEN = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_NOT_WRITTEN = frozenset({".bz2", ".xz", ".lzma", ".lz4", ".zip", ".br", ".7z", ".sz"})


def compression_of(head: bytes) -> str | None:
    """What the file that begins with ``head`` is compressed with, of what can be read; else ``None``."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def written_compression(path: Path) -> str | None:
    """What a results file is to be compressed with, by the end of its name; ``None`` for not at all.

    Raises :class:`ConfigurationError` for a compression that can't be written, or not without an extra.
    """
    suffix = path.suffix.lower()
    if suffix in _NOT_WRITTEN:
        raise ConfigurationError(f"can't write {path}: results are compressed as .gz or .zst only")
    kind = _WRITTEN.get(suffix)
    if kind == "zstd":
        find_zstd(str(path))
    return kind


class Zstd(Protocol):
    """What is used of zstd, whichever package has it."""

    def compressor(self) -> Callable[[bytes], bytes]:
        """Packs what it is given, and flushes."""
        ...

    def decompressor(self) -> Any:
        """Unpacks one frame."""
        ...


class _StandardZstd:
    """The standard library's, since Python 3.14."""

    def __init__(self) -> None:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        self._zstd: Any = zstd

    def compressor(self) -> Callable[[bytes], bytes]:
        made = self._zstd.ZstdCompressor(level=_ZSTD_LEVEL)
        return lambda data: cast(bytes, made.compress(data, made.FLUSH_BLOCK))

    def decompressor(self) -> Any:
        largest = {self._zstd.DecompressionParameter.window_log_max: _MOST_WINDOW_LOG}
        return self._zstd.ZstdDecompressor(options=largest)


class _ExtraZstd:
    """That of the extra ``zstd``."""

    def __init__(self) -> None:
        import zstandard

        self._zstd: Any = zstandard

    def compressor(self) -> Callable[[bytes], bytes]:
        made = self._zstd.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        flush = self._zstd.COMPRESSOBJ_FLUSH_BLOCK
        return lambda data: cast(bytes, made.compress(data) + made.flush(flush))

    def decompressor(self) -> Any:
        return self._zstd.ZstdDecompressor(max_window_size=2**_MOST_WINDOW_LOG).decompressobj()


def find_zstd(name: str) -> Zstd:
    """zstd, for the file ``name``. Raises :class:`ConfigurationError` if it is not installed."""
    for package in (_StandardZstd, _ExtraZstd):
        try:
            return package()
        except ImportError:
            pass
    raise ConfigurationError(
        f"{name} is compressed with zstd, which needs an extra before Python 3.14: "
        "pip install 'parallel-api-processor[zstd]'"
    )


def _unpacker(kind: str, name: str) -> Callable[[], Any]:
    """Makes what unpacks one member of ``kind``."""
    if kind == "zstd":
        return find_zstd(name).decompressor
    if kind == "gzip":
        return lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)
    if kind == "xz":
        import lzma

        return lzma.LZMADecompressor
    import bz2

    return bz2.BZ2Decompressor


class Unpacked(io.RawIOBase):
    """The text in a compressed file, all its members joined. For one thread.

    Args:
        file: the file, at the begin of a member. It is closed with this one.
        kind: what :func:`compression_of` said.
        name: what the file is called in messages.
        is_growing: the end may be missing, because somebody is writing the file.

    Reading raises ``OSError`` if the data is damaged, or its end is missing. :meth:`seek` goes to the begin
    alone, to read once more, if ``file`` can do that.

    Attributes:
        read_bytes: how much of ``file`` has been read. Any thread may look.
    """

    def __init__(
        self, file: io.BufferedReader, kind: str, name: str, *, is_growing: bool = False
    ) -> None:
        self._file, self._kind, self._is_growing = file, kind, is_growing
        self._start = file.tell() if file.seekable() else None
        self._make = _unpacker(kind, name)
        self._begin()

    def _begin(self) -> None:
        self._member: Any = None  # the one that has begun
        self._packed = b""  # what is to be unpacked next
        self._piece_bytes = _LEAST_PIECE_BYTES
        self._text = memoryview(b"")
        self.read_bytes = self._place = 0

    def seekable(self) -> bool:
        return self._start is not None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._start is None or offset or whence == io.SEEK_END:
            raise io.UnsupportedOperation("only the begin of compressed data can be gone to")
        if whence == io.SEEK_SET:
            self._file.seek(self._start)
            self._begin()
        return self._place

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            if not self._unpack():
                return 0
        count = min(len(buffer), len(self._text))
        buffer[:count] = self._text[:count]
        self._text = self._text[count:]
        self._place += count
        return count

    def _unpack(self) -> bool:
        """Unpack some more, which may be nothing; false at the end."""
        packed, self._packed = self._packed, b""
        if not packed:
            packed = self._file.read1(_MOST_PIECE_BYTES)
            self.read_bytes += len(packed)
        if not packed:
            if self._member is not None and not self._is_growing:
                raise OSError(errno.EIO, f"the end of its {self._kind} data is missing")
            return False
        if self._member is None:
            packed = packed.lstrip(PADDING)
            if not packed:
                return True
            self._member = self._make()
        try:
            text = self._member.decompress(packed[: self._piece_bytes])
        except Exception as error:  # each package has a class of its own
            raise OSError(errno.EIO, f"its {self._kind} data is damaged ({error})") from error
        self._text, self._packed = memoryview(text), packed[self._piece_bytes :]
        if len(text) > _MOST_TEXT_BYTES:
            self._piece_bytes = max(self._piece_bytes // 2, _LEAST_PIECE_BYTES)
        elif len(text) < _LEAST_TEXT_BYTES:
            self._piece_bytes = min(self._piece_bytes * 2, _MOST_PIECE_BYTES)
        if self._member.eof:
            self._packed, self._member = self._member.unused_data + self._packed, None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def unpacked(file: io.BufferedReader, name: str, *, is_growing: bool = False) -> io.BufferedReader:
    """``file``, or the text in it if it is compressed, for one thread. See :class:`Unpacked`."""
    kind = compression_of(file.peek(_BUFFER_BYTES))
    if kind is None:
        return file
    return io.BufferedReader(Unpacked(file, kind, name, is_growing=is_growing), _BUFFER_BYTES)


class Member(Protocol):
    """One member that grows."""

    def add(self, data: bytes) -> bytes:
        """What to append to the file for ``data``; with it, all data so far can be unpacked."""
        ...

    def closing(self) -> bytes:
        """What to append so that the member is complete."""
        ...


class _GzipMember:
    """A member that begins with a flush: so it can be told from one that another program wrote."""

    def __init__(self) -> None:
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._begin = _GZIP_HEADER + self._packer.flush(zlib.Z_SYNC_FLUSH)
        self._crc = self._size = 0

    def add(self, data: bytes) -> bytes:
        begin, self._begin = self._begin, b""
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        packed = self._packer.compress(data)
        return begin + packed + self._packer.flush(zlib.Z_SYNC_FLUSH)

    def closing(self) -> bytes:
        return gzip_closing(self._crc, self._size)


def gzip_closing(crc: int, size: int) -> bytes:
    """An empty last block, and the checksum of the whole member."""
    return b"\x03\0" + struct.pack("<II", crc, size & 0xFFFF_FFFF)


class _ZstdMember:
    def __init__(self, name: str) -> None:
        self.add = find_zstd(name).compressor()

    def closing(self) -> bytes:
        return ZSTD_CLOSING


def new_member(kind: str, name: str) -> Member:
    """A member for the file ``name``."""
    return _GzipMember() if kind == "gzip" else cast(Member, _ZstdMember(name))
