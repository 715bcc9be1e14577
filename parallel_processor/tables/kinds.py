"""Which files are tables, by the end of their names. Loads none of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.files.shape import packed_table_text
from parallel_processor.files.sources import Source
from parallel_processor.runtime.forks import load_here

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""What separates the fields of a text, by the end of its name."""
PARQUET = ".parquet"


def is_table(path: str | Path) -> bool:
    """True if the name ends as that of a table: ``.csv``, ``.tsv`` or ``.parquet``."""
    return Path(path).suffix.lower() in (*DELIMITERS, PARQUET)


def check_table(name: str, template: object, **others: object) -> bool:
    """True for a table with a template, false for other requests without.

    Raises :class:`ConfigurationError` if only one of the two is there, or one of ``others``, which are
    arguments that need a template, is there without.
    """
    if template is None:
        if is_table(name):
            raise ConfigurationError(
                f"{name} is a table: give a template, a request in JSON with {{{{column}}}} in its texts"
            )
        for other, value in others.items():
            if value:
                raise ConfigurationError(f"{other} is for a table with a template: {name}")
        return False
    if (text := packed_table_text(Path(name))) is not None:
        raise ConfigurationError(text)
    if not is_table(name):
        raise ConfigurationError(
            f"a template is for a table, but {name} is none: a table's name ends with "
            ".csv, .tsv or .parquet"
        )
    return True


def with_template(
    sources: Sequence[Source],
    template: object,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | str = (),
    delimiter: str | None = None,
) -> Sequence[Source]:
    """``sources``; if they are tables, they are opened through ``template``, as by :func:`open_table`.

    Raises :class:`ConfigurationError` for a table that the template doesn't fit, and what
    :func:`check_table` raises.
    """
    columns = {"id_column": id_column, "metadata_columns": metadata_columns, "delimiter": delimiter}
    found: list[Source] = []
    for source in sources:
        is_ready = source.path is None and "://" not in source.name  # a program's own lines
        is_bare = is_ready and template is None and not any(columns.values())
        if is_bare or not check_table(source.name, template, **columns):
            found.append(source)
            continue
        if source.path is None:
            what = (
                "is none: it is opened already" if is_ready else "is not on this machine: copy it"
            )
            raise ConfigurationError(f"a template is for a table's file, but {source.name} {what}")
        tables = load_here("parallel_processor.tables.sources")  # few jobs need it
        opened = partial(tables.open_table, source.path, template, **columns)
        with opened():  # what is wrong with it is said before anything is sent
            pass
        found.append(replace(source, open=opened))
    return found
