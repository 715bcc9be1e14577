"""Rows of a Parquet file, by pyarrow, some at a time, and of the columns that are needed alone.

Values are those of JSON: numbers, texts, booleans, lists, objects and null. Dates, times and decimals
become texts, which lose nothing. pyarrow is an extra (``table``), and imported when used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import InputFileError
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.tables.arrow import load_arrow, python_values

_BATCH_ROWS = 256
_BATCH_BYTES = 4 * 1024 * 1024  # about, and as they are in the file
_BUFFER_BYTES = 1024 * 1024
_RELEASED_BATCHES = 20  # after so many of them, the memory that the pool keeps is given back


class ParquetTable:
    """An open Parquet file. For one thread.

    Raises :class:`InputFileError` if it can't be read, and :class:`ConfigurationError` without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        self._arrow, parquet = load_arrow(f"to read {path}")
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise InputFileError(f"can't read {path}: {error.strerror or error}") from error
        try:
            # Without read-ahead and with small buffers, a row group may be larger than the memory.
            self._file = parquet.ParquetFile(self._raw, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            schema = self._file.schema_arrow
        except BaseException as error:
            self._raw.close()
            if isinstance(error, (OSError, ValueError, self._arrow.ArrowException)):
                raise InputFileError(f"can't read {path}: {_first_line(error)}") from error
            raise
        self.columns = list(schema.names)
        types = self._arrow.types
        self.binary = frozenset(
            field.name
            for field in schema
            if types.is_binary(field.type)
            or types.is_large_binary(field.type)
            or types.is_fixed_size_binary(field.type)
        )
        self._names: list[str] = []
        self._total: int = self._file.metadata.num_rows
        self._read = 0

    def select(self, names: Sequence[str]) -> dict[str, int]:
        """Read the columns ``names`` alone. Where each is in the rows."""
        self._names = list(names)
        return {name: index for index, name in enumerate(names)}

    def rows(self) -> Iterator[Sequence[Any] | InvalidLine]:
        """The rows, each with the values of the columns that were selected."""
        try:
            batches = self._file.iter_batches(
                self._batch_rows(), columns=self._names, use_threads=False
            )
            for number, batch in enumerate(batches, 1):
                if number % _RELEASED_BATCHES == 0:
                    self._arrow.default_memory_pool().release_unused()
                columns = [python_values(self._arrow, batch.column(name)) for name in self._names]
                for row in zip(*columns, strict=True):
                    self._read += 1
                    yield row
        except (OSError, ValueError, self._arrow.ArrowException) as error:
            raise InputFileError(
                f"can't read {self._path} behind row {self._read:,}: {_first_line(error)}"
            ) from error

    def _batch_rows(self) -> int:
        """As many rows as have about the size of a batch, if all are alike."""
        groups = self._file.metadata
        size = sum(int(groups.row_group(i).total_byte_size) for i in range(groups.num_row_groups))
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES * self._total // max(size, 1)))

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1."""
        return self._read / self._total if self._total else 1.0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
