"""Rows of a CSV or TSV file, by Python's ``csv``, from its first line of column names on.

A row that can't be read becomes an :class:`InvalidLine`, and the rows after it are read. What is wrong with
the whole file is said when it is opened.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.records import BOM
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.files.shape import why_not_plain

_BUFFER_BYTES = 256 * 1024
# The module's own bound, 131,072 characters, is less than a prompt with an image. A quote without an end
# would take the rest of the file for one field: this bounds the memory that it takes.
_MOST_FIELD_CHARS = 32 * 1024 * 1024
_SHOWN_CHARS = 2000
_KINDS_OF_UTF8 = (
    "write it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8, or 'CSV UTF-8' in a spreadsheet)"
)


class CsvTable:
    """An open CSV file. For one thread.

    Raises :class:`InputFileError` if the file can't be read, or is no text in UTF-8 with a line of column
    names. Raises the bound on a field's length that all users of ``csv`` in this process share.
    """

    binary: frozenset[str] = frozenset()

    def __init__(self, path: Path, delimiter: str) -> None:
        self.name, self._path = str(path), path
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigurationError(f"delimiter must be one character, not {delimiter!r}")
        csv.field_size_limit(max(csv.field_size_limit(), _MOST_FIELD_CHARS))
        try:
            file = path.open("rb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise InputFileError(f"can't read {path}: {error.strerror or error}") from error
        try:
            status = os.fstat(file.fileno())
            self._size = status.st_size if stat.S_ISREG(status.st_mode) else None
            self._lines = _Lines(file, path)
            _check_text(file, self._size, path)
            self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
            self.columns = self._header()
        except BaseException:
            file.close()
            raise

    def _header(self) -> list[str]:
        try:
            names = [name.strip() for name in next(self._reader, [])]
        except csv.Error as error:
            raise InputFileError(f"{self._path}: the line of column names: {error}") from error
        if not any(names):
            raise InputFileError(f"{self._path} has no line of column names at its begin")
        return names

    def select(self, names: Sequence[str]) -> dict[str, int]:
        """Where each of ``names`` is in the rows."""
        return {name: self.columns.index(name) for name in names}

    def rows(self) -> Iterator[Sequence[Any] | InvalidLine]:
        """The rows, each with a text for every column. Blank lines are left out."""
        width, lines = len(self.columns), self._lines
        while True:
            lines.start_row()
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                yield InvalidLine(lines.first[:_SHOWN_CHARS], self._reason(error))
                continue
            if row is None:
                return
            if lines.is_flawed:
                yield InvalidLine(lines.first[:_SHOWN_CHARS], f"{lines.flaw}: {_KINDS_OF_UTF8}")
            elif len(row) == width or (len(row) > width and not any(row[width:])):
                yield row  # it may have a delimiter too many at the end of the line
            elif row:
                reason = (
                    f"{lines.place}: the number of fields is {len(row)}, that of columns {width}"
                )
                yield InvalidLine(lines.first[:_SHOWN_CHARS], reason)

    def _reason(self, error: csv.Error) -> str:
        text = str(error)
        if text == "unexpected end of data":
            text = "a quote opens a field that never ends; the rest of the file was taken for it"
        elif text.startswith("field larger than"):
            text = f"a field has more than {_MOST_FIELD_CHARS:,} characters: a quote has no end?"
        return f"{self._lines.place}: {text}"

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` for a pipe that hasn't ended."""
        if self._lines.has_ended:
            return 1.0
        return min(self._lines.read_bytes / self._size, 0.9999) if self._size else None

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class _Lines:
    """The lines of the file as text. Bytes that are not UTF-8 are noted: their row is rejected."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.number = self.read_bytes = 0
        self.has_ended = False
        self.start_row()

    def start_row(self) -> None:
        """The next line is the first one of a row."""
        self.first = self.flaw = ""
        self._row_starts_at = self.number + 1

    @property
    def is_flawed(self) -> bool:
        """True if the row has bytes that are not UTF-8."""
        return bool(self.flaw)

    @property
    def place(self) -> str:
        """The lines of the row."""
        first, last = self._row_starts_at, self.number
        return f"line {first}" if first >= last else f"lines {first} to {last}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._file.readline()
        except OSError as error:
            raise InputFileError(f"can't read {self._path}: {error.strerror or error}") from error
        if not line:
            self.has_ended = True
            raise StopIteration
        self.read_bytes += len(line)
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(BOM)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of line {self.number} is 0x{line[error.start]:02x}"
            self.flaw, text = f"not UTF-8: {byte}", line.decode("utf-8", "replace")
        self.first = self.first or text
        return text

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_text(file: BinaryIO, size: int | None, path: Path) -> None:
    """Raise :class:`InputFileError` if the begin of the file is no text in UTF-8."""
    assert isinstance(file, io.BufferedReader)
    try:
        head = file.peek(_BUFFER_BYTES)
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror or error}") from error
    if (reason := why_not_plain(head, path)) is not None:
        raise InputFileError(reason)
    is_whole = size is not None and len(head) >= size
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=is_whole)
    except UnicodeDecodeError as error:
        number = head.count(b"\n", 0, error.start) + 1
        raise InputFileError(
            f"{path} is not UTF-8 (line {number} has the byte 0x{head[error.start]:02x}): {_KINDS_OF_UTF8}"
        ) from None
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise InputFileError(f"{path} has the line ends of an old Mac: convert it (tr '\\r' '\\n')")
