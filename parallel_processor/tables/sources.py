"""A table as a source of requests: a line for each row, made by a template."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.tables.csv_table import CsvTable
from parallel_processor.tables.kinds import DELIMITERS, PARQUET, check_table
from parallel_processor.tables.parquet_table import ParquetTable
from parallel_processor.tables.templates import Column, Table, Template, read_template


class _Reader(Protocol):
    """An open table. For one thread."""

    name: str
    columns: list[str]
    binary: frozenset[str]

    def select(self, names: Sequence[str]) -> dict[str, int]: ...

    def rows(self) -> Iterator[Sequence[Any] | InvalidLine]: ...

    def fraction(self) -> float | None: ...

    def close(self) -> None: ...


def open_table(
    path: str | Path,
    template: Mapping[str, Any] | str | Path,
    *,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | str = (),
    delimiter: str | None = None,
) -> TableRequests:
    """A CSV, TSV or Parquet file as a source of requests, one for each row.

    It can stand in the place of a requests file, once. A row's number counts from 1; the line of column
    names has none. The same row makes the same request each time, byte for byte.

    Args:
        path: ends with ``.csv``, ``.tsv`` or ``.parquet``. Text must be UTF-8.
        template: a request, or the path of a JSON file with one. In its texts ``{{column}}`` is replaced.
            A text that is one placeholder and nothing else becomes the column's value, with its type.
            ``{{column|json}}`` becomes the value that a text is in JSON: CSV has texts only.
        id_column: makes each line a Batch row with this column as ``custom_id``. If there is metadata, too,
            the lines stay cookbook lines, with ``custom_id`` as the first member of the metadata.
        metadata_columns: names, or a string with commas between them. They are not sent, and come back with
            the result.
        delimiter: what separates the fields of a CSV file; by default a comma, in ``.tsv`` a tab.

    Raises :class:`ConfigurationError` for a template that the table does not fit, or without pyarrow for
    Parquet, and :class:`InputFileError` if the table can't be read.

    >>> from pathlib import Path
    >>> _ = Path(f"{folder}/prompts.csv").write_text("id,prompt\\n7,Hello\\n8,Goodbye\\n")
    >>> template = {"model": "text-embedding-3-small", "input": "{{prompt}}"}
    >>> with open_table(f"{folder}/prompts.csv", template, id_column="id") as table:
    ...     for number, line in table.numbered():
    ...         print(number, line.decode())
    1 {"custom_id": "7", "method": "POST", "body": {"model": "text-embedding-3-small", "input": "Hello"}}
    2 {"custom_id": "8", "method": "POST", "body": {"model": "text-embedding-3-small", "input": "Goodbye"}}
    """
    check_table(str(path), template)
    name = "the template"
    if isinstance(template, (str, Path)):
        name = f"the template {template}"
        template = read_template(Path(template))
    if not isinstance(template, Mapping):
        raise ConfigurationError(f"{name} must be a JSON object, which is a request")
    reader = _open(Path(path), delimiter)
    try:
        table = Table(reader.name, reader.columns, reader.binary)
        line = _line(template, name, id_column, _names(metadata_columns), table)
        given_id = _id_alone(line)
        return TableRequests(
            reader,
            Template(line, table, name),
            None if given_id is None else Template(given_id, table, name),
        )
    except BaseException:
        reader.close()
        raise


class TableRequests:
    """The rows of a table as request lines. For one thread; made by :func:`open_table`.

    ``of_id`` makes the part of a line that has its id; ``None`` if lines have none.
    """

    def __init__(self, reader: _Reader, template: Template, of_id: Template | None) -> None:
        self.name = reader.name
        self._reader, self._template, self._of_id = reader, template, of_id
        places = reader.select(template.columns)
        template.bind(places)
        if of_id is not None:
            of_id.bind(places)

    def numbered(self) -> Iterator[tuple[int, bytes | InvalidLine]]:
        """A line for each row, with its number from 1. Can be read once."""
        render = self._template.render
        for number, row in enumerate(self._reader.rows(), 1):
            if isinstance(row, InvalidLine):
                yield number, row
                continue
            try:
                yield number, render(row)
            except ValueError as error:
                known = self._id_of(row)
                yield (
                    number,
                    InvalidLine(
                        _shown(row), str(error), known.get("custom_id"), known.get("metadata")
                    ),
                )

    def _id_of(self, row: Sequence[Any]) -> dict[str, Any]:
        """The part of the row's line that has its id; empty if there is none."""
        try:
            return {} if self._of_id is None else dict(json.loads(self._of_id.render(row)))
        except ValueError:
            return {}

    def place(self, number: int) -> str:
        """Where a line is, for messages."""
        return f"row {number}"

    def fraction(self) -> float | None:
        """How much has been read, from 0 to 1; ``None`` if unknown."""
        return self._reader.fraction()

    def interrupt(self) -> None:
        """A table on a disk lets nobody wait."""

    def __enter__(self) -> TableRequests:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _open(path: Path, delimiter: str | None) -> _Reader:
    kind = path.suffix.lower()
    if kind == PARQUET:
        if delimiter is not None:
            raise ConfigurationError(f"delimiter is for CSV; {path} is Parquet")
        return ParquetTable(path)
    return CsvTable(path, DELIMITERS[kind] if delimiter is None else delimiter)


def _names(columns: Sequence[str] | str) -> list[str]:
    """The names in a list, or in a line of CSV: a name with a comma is in quotes."""
    if not isinstance(columns, str):
        return list(columns)
    found = next(csv.reader([columns], skipinitialspace=True), [])
    return [name.strip() for name in found if name.strip()]


def _line(
    template: Mapping[str, Any], name: str, id_column: str | None, metadata: list[str], table: Table
) -> Mapping[str, Any]:
    """What a whole line is: the request, with its id and its metadata."""
    bare = Template(template, table, name)
    if not bare.columns:
        raise ConfigurationError(
            f"{name} has no placeholder: all requests would be the same. Write {{{{column}}}} in a text"
        )
    id_value = None if id_column is None else bare.column(id_column)._replace(is_id=True)
    if "custom_id" in template and "body" in template:
        if id_value is not None or metadata:
            what = (
                "a custom_id already" if id_value is not None else "no place for metadata columns"
            )
            raise ConfigurationError(f"{name} is a Batch row, which has {what}")
        return _with_text_id(template, bare)
    if metadata or template.get("metadata") is not None:
        columns = [bare.column(each) for each in metadata]
        made = _metadata(template.get("metadata") or {}, id_value, columns, name)
        rest = {key: value for key, value in template.items() if key != "metadata"}
        return rest | {"metadata": made}
    if id_value is None:
        return template
    # With a method, as OpenAI's rows have one: then no other form is guessed.
    return {"custom_id": id_value, "method": "POST", "body": template}


def _id_alone(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part of ``line`` that has its id, or the one in its metadata; ``None`` if it has neither."""
    if "body" in line:
        return {"custom_id": line["custom_id"]} if "custom_id" in line else None
    metadata = line.get("metadata")
    if not isinstance(metadata, Mapping) or "custom_id" not in metadata:
        return None
    return {"metadata": {"custom_id": metadata["custom_id"]}}


def _with_text_id(row: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """A Batch row whose ``custom_id`` becomes a text also where the column has numbers."""
    custom_id = row["custom_id"]
    whole = template.whole(custom_id) if isinstance(custom_id, str) else None
    return dict(row) if whole is None else {**row, "custom_id": whole._replace(is_id=True)}


def _metadata(
    own: Any, id_value: Column | None, columns: list[Column], name: str
) -> dict[str, Any]:
    """The id, what the template has itself, and a member for each of ``columns``."""
    if not isinstance(own, Mapping):
        raise ConfigurationError(f"{name}: its metadata must be an object to have columns added")
    members: list[tuple[str, Any]] = [] if id_value is None else [("custom_id", id_value)]
    members += own.items()
    for column in dict.fromkeys(columns):
        if (column.name, id_value and id_value.name) != ("custom_id", "custom_id"):
            members.append((column.name, column))
    made = dict(members)
    if len(made) < len(members):
        names = [key for key, _ in members]
        twice = next(key for key in names if names.count(key) > 1)
        raise ConfigurationError(f"{name}: the metadata would have two members {twice!r}")
    return made


def _shown(row: Sequence[Any]) -> str:
    """The begin of a row, for a record of its failure."""
    return ", ".join(str(value)[:200] for value in row)[:2000]
