"""The columns of an exported table: which there are, the type of each, and their values in a row.

The columns of ``to_records`` have known types. Those of the metadata, and of the JSON of requests and
responses, are known when all records have been looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Outcome
from parallel_processor.report.frames import ColumnType, metadata_columns, row_of

FIXED: Mapping[str, type] = {
    "number": int,
    "custom_id": str,
    "ok": bool,
    "text": str,
    "embedding": list,
    "error": str,
    "attempts": int,
    "latency_s": float,
    "input_tokens": int,
    "output_tokens": int,
    "total_tokens": int,
    "model": str,
}
"""The columns that ``to_records`` has for every outcome. ``list`` is one of floats."""
_ROOTS = ("metadata", "request", "response")
_EMBEDDING = "embedding"


@dataclass(slots=True)
class _Found:
    """A column whose type is not known beforehand."""

    scalars: ColumnType = field(default_factory=ColumnType)
    elements: ColumnType = field(default_factory=ColumnType)

    def add(self, value: Any) -> None:
        """Take ``value`` into account."""
        self.scalars.add(value)
        if isinstance(value, list):
            for element in value:
                self.elements.add(element)

    @property
    def list_of(self) -> type | None:
        """The type of the elements, if all values are lists of such; ``None`` otherwise."""
        has_one_type = self.scalars.has_lists_only and not self.elements.is_mixed
        return self.elements.kind if has_one_type else None

    def converter(self, keeps_lists: bool) -> Callable[[Any], Any]:
        """A function that gives a value the column's type."""
        if not keeps_lists or self.list_of is None:
            return self.scalars.converter()
        element = self.elements.converter()
        return lambda value: None if value is None else list(map(element, value))


class Columns:
    """The columns of a table. For one thread.

    Args:
        chosen: their names; ``None`` for those of ``to_records``.
        keeps_lists: lists of one type stay lists. Otherwise they become JSON.

    Raises :class:`ConfigurationError` for a name that can't be a column.
    """

    def __init__(self, chosen: Sequence[str] | None, keeps_lists: bool) -> None:
        self._chosen, self._keeps_lists = chosen, keeps_lists
        self._found: dict[str, _Found] = {}
        self._has_embedding = self._has_fixed = False
        self.names: list[str] = []  # in the table's order
        self._convert: dict[str, Callable[[Any], Any]] = {}
        for name in chosen or ():
            if name not in FIXED:
                _check(name)
                self._found[name] = _Found()

    @property
    def must_look(self) -> bool:
        """True if all outcomes have to be looked at first."""
        return self._chosen is None or bool(self._found)

    def look(self, outcome: Outcome) -> None:
        """Find columns, and their types."""
        if self._chosen is None:
            for name, value in metadata_columns(outcome.metadata):
                self._found.setdefault(name, _Found()).add(value)
            self._has_embedding = self._has_embedding or outcome.embedding is not None
        else:
            for name, found in self._found.items():
                found.add(_value(outcome, name))

    def settle(self) -> None:
        """All outcomes have been looked at: what follows is now known."""
        if self._chosen is not None:
            self.names = list(self._chosen)
        else:
            fixed = (name for name in FIXED if name != _EMBEDDING or self._has_embedding)
            self.names = [*fixed, *self._found]
        self._has_fixed = any(name in FIXED for name in self.names)
        self._convert = {
            name: found.converter(self._keeps_lists) for name, found in self._found.items()
        }

    @property
    def empty(self) -> list[str]:
        """The names of those that were looked at and have no value at all."""
        return [name for name, found in self._found.items() if found.scalars.kind is None]

    def kinds(self) -> list[tuple[type, type | None]]:
        """The type of each column, and of its elements if that is ``list``."""
        return [self._kind(name) for name in self.names]

    def _kind(self, name: str) -> tuple[type, type | None]:
        if name in FIXED:
            return FIXED[name], float if FIXED[name] is list else None
        found = self._found[name]
        element = found.list_of if self._keeps_lists else None
        return (found.scalars.kind or str, None) if element is None else (list, element)

    def values(self, outcome: Outcome) -> list[Any]:
        """The row of an outcome."""
        row = row_of(outcome) if self._has_fixed else {}
        if self._chosen is None:
            row |= dict.fromkeys(self._found)
            for name, value in metadata_columns(outcome.metadata):
                row[name] = self._convert[name](value)
        else:
            for name, convert in self._convert.items():
                row[name] = convert(_value(outcome, name))
        return [row[name] for name in self.names]


def _check(name: str) -> None:
    """Raise :class:`ConfigurationError` if ``name`` is no path into a record."""
    if name.partition(".")[0] in _ROOTS:
        return
    near = get_close_matches(name, FIXED, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigurationError(
        f"there is no column {name!r}{hint}. There are {', '.join(FIXED)}, and paths that begin with "
        "metadata, request or response, such as response.choices.0.finish_reason"
    )


def _value(outcome: Outcome, path: str) -> Any:
    root, _, rest = path.partition(".")
    if root == "metadata":
        value = outcome.metadata
    else:
        value = outcome.response if root == "response" else outcome.request.body
    return _member(value, rest) if rest else value


def _member(value: Any, path: str) -> Any:
    """What ``path`` leads to in ``value``; ``None`` if there is nothing. A key may have dots in it."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    if isinstance(value, Mapping):
        found = value.get(first)
    elif isinstance(value, list) and first.isdecimal() and int(first) < len(value):
        found = value[int(first)]
    else:
        return None
    return _member(found, rest) if dot else found


def csv_text(value: Any) -> Any:
    """``value`` as a field of CSV: nothing for ``None``, JSON for what is no text."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def in_batches(
    rows: Iterable[tuple[list[Any], int]], most_rows: int, most_bytes: int
) -> Iterable[list[list[Any]]]:
    """``rows``, each with a size, in lists of at most so many rows and, but for the last, bytes."""
    batch: list[list[Any]] = []
    size = 0
    for row, row_size in rows:
        batch.append(row)
        size += row_size
        if len(batch) >= most_rows or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
