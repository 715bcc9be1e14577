"""Which files are tables, by the end of their names. Loads none of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.files.requests_file import RequestLines

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""What separates the fields of a text, by the end of its name."""
PARQUET = ".parquet"


def is_table(path: str | Path) -> bool:
    """True if the name ends as that of a table: ``.csv``, ``.tsv`` or ``.parquet``."""
    return Path(path).suffix.lower() in (*DELIMITERS, PARQUET)


def check_table(
    source: str | Path | RequestLines, template: object, **others: object
) -> TypeGuard[str | Path]:
    """True for a table with a template, false for other requests without.

    Raises :class:`ConfigurationError` if only one of the two is there, or one of ``others``, which are
    arguments that need a template, is there without.
    """
    if template is None:
        if isinstance(source, (str, Path)) and is_table(source):
            raise ConfigurationError(
                f"{source} is a table: give a template, a request in JSON with {{{{column}}}} in its texts"
            )
        for name, value in others.items():
            if value:
                raise ConfigurationError(f"{name} is for a table with a template: {source}")
        return False
    if not isinstance(source, (str, Path)) or not is_table(source):
        shown = str(source) if isinstance(source, (str, Path)) else source.name
        raise ConfigurationError(
            f"a template is for a table, but {shown} is none: a table's name ends with "
            ".csv, .tsv or .parquet"
        )
    return True
