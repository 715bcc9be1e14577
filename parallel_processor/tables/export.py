"""Writes a results file as a table: CSV by Python's ``csv``, Parquet by pyarrow.

The results are read twice, and never held as a whole: first to find the columns and their types, then to
write the rows. The table is written beside its place, and put there when it is on disk.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from parallel_processor.exceptions import ConfigurationError, ResultsFileError
from parallel_processor.files.append_file import written_whole
from parallel_processor.files.object_stores import is_url, local_path
from parallel_processor.files.records import read_outcome, reading
from parallel_processor.models import Outcome
from parallel_processor.options import shown_url
from parallel_processor.tables.arrow import load_arrow
from parallel_processor.tables.columns import Columns, csv_text, in_batches
from parallel_processor.tables.kinds import DELIMITERS, PARQUET, is_table

_log = logging.getLogger("parallel_processor")
_BATCH_ROWS = 10_000
_BATCH_BYTES = 8 * 1024 * 1024  # of JSON; it takes about ten times that as Python's values


def export_results(
    save_path: str | Path,
    table_path: str | Path,
    *,
    errors_path: str | Path | None = None,
    columns: Sequence[str] | str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the records of a results file, then those of an errors file, as a table. Gives the rows.

    Takes little memory, however many records there are. A run may be writing the results meanwhile.

    Args:
        save_path: the results.
        table_path: ends with ``.csv``, ``.tsv`` or ``.parquet``, which needs pyarrow.
        errors_path: the records of failed requests, if they are in a file of their own.
        columns: names of columns of :func:`to_records`, and paths into the JSON that begin with
            ``metadata``, ``request`` or ``response``, such as ``response.choices.0.finish_reason``; or a
            string with commas between them. By default all columns of :func:`to_records`.
        overwrite: replace the table if it exists.

    The types are those of :func:`to_records`. Parquet keeps lists of numbers or texts, too. Other lists and
    objects become JSON. In CSV ``None`` is an empty field.

    Raises :class:`ConfigurationError` for a table that exists or that can't be written in this way, and
    :class:`ResultsFileError` if a file can't be read or written. No part of a table is left then.

    >>> summary = process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl", request_url=url)
    >>> export_results(f"{folder}/results.jsonl", f"{folder}/table.csv", columns="number,ok,request.input")
    3
    >>> from pathlib import Path
    >>> print(Path(f"{folder}/table.csv").read_text())
    number,ok,request.input
    1,true,text ...
    2,true,text ...
    3,true,text ...
    <BLANKLINE>
    """
    sources = [_on_disk(each) for each in (save_path, errors_path) if each is not None]
    table = _on_disk(table_path)
    _check_table(table, sources, overwrite)
    if table.suffix.lower() == PARQUET:
        load_arrow(f"to write {table}")
    names = next(csv.reader([columns]), []) if isinstance(columns, str) else columns
    chosen = Columns(
        None if names is None else _distinct([name.strip() for name in names]),
        keeps_lists=table.suffix.lower() == PARQUET,
    )
    with _Results(sources) as results, written_whole(table) as file:
        if chosen.must_look:
            for outcome, _ in results.outcomes():
                chosen.look(outcome)
        chosen.settle()
        rows = ((chosen.values(outcome), size) for outcome, size in results.outcomes())
        write = _write_parquet if table.suffix.lower() == PARQUET else _write_csv
        count = write(file, chosen, rows, DELIMITERS.get(table.suffix.lower(), ""))
        results.check()
    for name in chosen.empty:
        _log.warning("no record has a value for %s: the column is empty", name)
    return count


def _on_disk(path: str | Path) -> Path:
    """Where a file is on this machine. Raises :class:`ConfigurationError` for one on an object store."""
    if is_url(str(path)):
        raise ConfigurationError(
            f"{shown_url(str(path))} is on an object store: export reads and writes files of this machine. "
            "Copy the results here, and the table there"
        )
    return local_path(path)


def _distinct(names: list[str]) -> list[str]:
    if not names or "" in names:
        raise ConfigurationError("columns must be names with commas between them")
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"columns has {name!r} twice")
    return names


def _check_table(table: Path, sources: list[Path], overwrite: bool) -> None:
    """Raise :class:`ConfigurationError` unless ``table`` can be made, and is none of ``sources``."""
    if not is_table(table):
        raise ConfigurationError(
            f"the name of a table must end with .csv, .tsv or .parquet: {table} doesn't"
        )
    if table.is_dir():
        raise ConfigurationError(f"{table} is a directory: name a file in it")
    if not table.parent.is_dir():
        raise ConfigurationError(f"the directory of {table} does not exist")
    if not os.path.lexists(table):
        return
    if any(source.exists() and table.exists() and table.samefile(source) for source in sources):
        raise ConfigurationError(f"the results and the table are the same file: {table}")
    if not overwrite:
        raise ConfigurationError(
            f"{table} exists: name another table, or replace it (--overwrite, in a program overwrite=True)"
        )
    if table.exists() and not table.is_file():
        raise ConfigurationError(f"{table} is no file")


class _Results:
    """Results files that are read twice, up to what was in them at first. For one thread."""

    def __init__(self, paths: list[Path]) -> None:
        self._stack = ExitStack()
        self._files: list[tuple[Path, BinaryIO]] = []
        self._lines: dict[Path, int] = {}  # that each file had when it was read first
        try:
            for path in paths:
                if path.is_fifo():  # to open it would wait for a writer
                    raise ResultsFileError(f"{path} is a pipe, and can't be read twice")
                file = self._stack.enter_context(reading(path))
                if not file.seekable():
                    raise ResultsFileError(f"{path} is a pipe, and can't be read twice")
                self._files.append((path, file))
        except BaseException:
            self._stack.close()
            raise
        self._records = self._others = 0

    def outcomes(self) -> Iterator[tuple[Outcome, int]]:
        """The outcomes, each with the size of its record."""
        self._records = self._others = 0
        for path, file in self._files:
            try:
                file.seek(0)
                yield from self._outcomes(path, islice(file, self._lines.get(path)))
            except OSError as error:
                if isinstance(error, ResultsFileError):
                    raise
                raise ResultsFileError(f"can't read {path}: {error.strerror or error}") from error

    def _outcomes(self, path: Path, lines: Iterator[bytes]) -> Iterator[tuple[Outcome, int]]:
        last = 0
        for number, line in enumerate(lines, 1):
            outcome = read_outcome(line, number)
            if outcome is not None:
                self._records += 1
                yield outcome, len(line)
            elif not line.endswith(b"\n"):  # torn, or being written
                break
            elif line.strip():
                self._others += 1
            last = number
        self._lines.setdefault(path, last)

    def check(self) -> None:
        """Raise :class:`ResultsFileError` if there are lines, but no record. Log how many are none."""
        if self._others and not self._records:
            raise ResultsFileError(f"{self._files[0][0]} holds no records")
        if self._others:
            _log.warning("lines that are no records are left out: %s", f"{self._others:,}")

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Utf8:
    """Text goes into a file as UTF-8. Nothing is kept here that could fail to be written later."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write ``text``."""
        return self._file.write(text.encode("utf-8", "replace"))


def _write_csv(
    file: BinaryIO, columns: Columns, rows: Iterator[tuple[list[Any], int]], delimiter: str
) -> int:
    writer = csv.writer(_Utf8(file), delimiter=delimiter)
    writer.writerow(columns.names)
    count = 0
    for row, _ in rows:
        writer.writerow([csv_text(value) for value in row])
        count += 1
    return count


def _write_parquet(
    file: BinaryIO, columns: Columns, rows: Iterator[tuple[list[Any], int]], _: str
) -> int:
    arrow, parquet = load_arrow("to write Parquet")
    types = {int: arrow.int64(), str: arrow.string(), bool: arrow.bool_(), float: arrow.float64()}
    fields = []
    for name, (kind, element) in zip(columns.names, columns.kinds(), strict=True):
        made = types[kind] if element is None else arrow.list_(types[element])
        fields.append((name.encode("utf-8", "replace").decode(), made))
    schema = arrow.schema(fields)
    count = 0
    writer = parquet.ParquetWriter(file, schema)
    try:
        for batch in in_batches(rows, _BATCH_ROWS, _BATCH_BYTES):
            arrays = [
                arrow.array(values, type=kind)
                for values, kind in zip(zip(*batch, strict=True), schema.types, strict=True)
            ]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))
            count += len(batch)
        writer.close()
    except BaseException:
        with contextlib.suppress(OSError, arrow.ArrowException):  # it would write its end
            writer.close()
        raise
    return count
