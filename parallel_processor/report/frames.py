"""Outcomes as rows for a data frame."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parallel_processor.files.identity import id_in
from parallel_processor.models import Outcome, model_name
from parallel_processor.providers.usage import read_usage

_MAX_INT = 2**63 - 1
_METADATA = "metadata"
_EMBEDDING = "embedding"


def to_records(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A row for each outcome, for ``pandas.DataFrame``, ``polars.DataFrame`` or ``Dataset.from_list``.

    number: that of the request.
    custom_id: that of the request, or the one in its metadata.
    ok: true if it was answered.
    text: the text of the answer.
    embedding: the vector of the first input. The column is left out where no answer has a vector.
    error: the error of the last attempt.
    attempts, latency_s: as in :class:`Outcome`.
    input_tokens, output_tokens, total_tokens: what the answer says was used.
    model: the model that the answer names, or else the request.
    metadata.name: a column for each member, if the metadata is an object.
    metadata: the metadata, if it is anything else.

    ``None`` stands for an unknown value. A metadata column has values of one type. If integers and floats
    are mixed, all become floats; any other mixture becomes strings. Objects and lists become JSON.
    polars finds a column's type from the first 100 rows, unless it is told ``infer_schema_length=None``.

    >>> body = {"model": "m", "input": "text", "metadata": {"id": 7}}
    >>> with Processor(request_url=url) as processor:
    ...     (row,) = to_records(processor.map([body]))
    >>> row["number"], row["ok"], row["metadata.id"], row["total_tokens"] > 0
    (1, True, 7, True)
    """
    rows: list[dict[str, Any]] = []
    extra: dict[str, list[tuple[int, Any]]] = {}  # by column: the rows that have a value, and it
    for index, outcome in enumerate(outcomes):
        rows.append(row_of(outcome))
        for name, value in metadata_columns(outcome.metadata):
            column = extra.setdefault(name, [])
            if value is not None:
                column.append((index, value))
    if not any(row[_EMBEDDING] is not None for row in rows):
        for row in rows:
            del row[_EMBEDDING]
    for name, column in extra.items():
        for row in rows:
            row[name] = None
        values = _of_one_type([value for _, value in column])
        for (index, _), value in zip(column, values, strict=True):
            rows[index][name] = value
    return rows


def row_of(outcome: Outcome) -> dict[str, Any]:
    """The columns that every outcome has."""
    response, own_id = outcome.response, outcome.custom_id
    total, output = read_usage(response) if outcome.ok else (None, None)
    return {
        "number": outcome.request.number,
        "custom_id": _clean(id_in(outcome.metadata) if own_id is None else own_id),
        "ok": outcome.ok,
        "text": _clean(outcome.text),
        _EMBEDDING: _floats(outcome.embedding),
        "error": _clean(outcome.error),
        "attempts": outcome.attempts,
        "latency_s": outcome.latency_s,
        "input_tokens": total - output if total is not None and output is not None else None,
        "output_tokens": output,
        "total_tokens": outcome.used_tokens if total is None else total,
        "model": _clean(model_name(response) or outcome.request.model) or None,
    }


def metadata_columns(metadata: Any) -> Iterable[tuple[str, Any]]:
    """The columns that come from the metadata, with their values."""
    if isinstance(metadata, Mapping):
        return [(_clean(f"{_METADATA}.{key}") or "", value) for key, value in metadata.items()]
    return [] if metadata is None else [(_METADATA, metadata)]


def _of_one_type(values: list[Any]) -> list[Any]:
    column = ColumnType()
    for value in values:
        column.add(value)
    return list(map(column.converter(), values))


class ColumnType:
    """Finds the one type that all values of a column can have. For one thread."""

    def __init__(self) -> None:
        self._types: set[type] = set()
        self._largest = 0

    def add(self, value: Any) -> None:
        """Take ``value`` into account. ``None`` has any type."""
        if value is None:
            return
        self._types.add(type(value))
        if type(value) is int:
            self._largest = max(self._largest, abs(value))

    @property
    def is_mixed(self) -> bool:
        """True if only their text is common to all values."""
        return self.kind is str and self._types != {str}

    @property
    def has_lists_only(self) -> bool:
        """True if there are values, and all of them are lists."""
        return self._types == {list}

    @property
    def kind(self) -> type | None:
        """``str``, ``bool``, ``float`` or ``int``; ``None`` if there are no values."""
        types = self._types
        if not types:
            return None
        if types in ({bool}, {float}) or (types == {int} and self._largest <= _MAX_INT):
            return next(iter(types))
        if types == {int, float} and self._largest <= 2**53:  # integers lose no digit
            return float
        return str

    def converter(self) -> Callable[[Any], Any]:
        """A function that gives a value that type: lists and objects become JSON."""
        kind = self.kind
        if kind is None:
            return lambda value: None
        make = _text if kind is str else kind
        return lambda value: None if value is None else make(value)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _clean(text) or ""


def _clean(text: str | None) -> str | None:
    """``text`` as UTF-8 can hold it: half a surrogate pair becomes U+FFFD.

    An answer that was cut off may end with one.
    """
    if text is None or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _floats(vector: list[float] | None) -> list[float] | None:
    """The vector with floats only: JSON may have integers in it."""
    if vector is None:
        return None
    try:
        return array("d", vector).tolist()
    except (TypeError, OverflowError):
        return None
