"""pyarrow, imported when it is used, and what its values are in JSON."""

from __future__ import annotations

import importlib.util
from datetime import datetime, timedelta
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.runtime.forks import load

_EPOCH = datetime(1970, 1, 1)
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # of a second's fraction


class Unreadable:
    """Stands for a value that Python or JSON can't hold."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def load_arrow(purpose: str) -> tuple[Any, Any]:
    """pyarrow and its module for Parquet. Raises :class:`ConfigurationError` if it is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError(
            f"pyarrow is missing {purpose}: pip install 'parallel-api-processor[table]'"
        )
    return load("pyarrow"), load("pyarrow.parquet")


def python_values(arrow: Any, column: Any) -> list[Any]:
    """The values of an Arrow array. One that can't be read is :class:`Unreadable`."""
    try:
        return _values(arrow, column)
    except (ValueError, LookupError, ArithmeticError, arrow.ArrowException) as error:
        if len(column) == 1:
            return [Unreadable((str(error).splitlines() or [""])[0][:200])]
        return [python_values(arrow, column.slice(i, 1))[0] for i in range(len(column))]


def _values(arrow: Any, column: Any) -> list[Any]:
    kind = column.type
    if arrow.types.is_timestamp(kind):
        zone = "Z" if kind.tz is not None else ""
        digits = _DIGITS[kind.unit]
        numbers = column.cast(arrow.int64()).to_pylist()
        return [None if n is None else _moment(n, digits) + zone for n in numbers]
    if arrow.types.is_decimal(kind):
        return [None if n is None else format(n, "f") for n in column.to_pylist()]
    wider = _wider(arrow, kind)
    if wider is not None:
        column = column.cast(wider[0]).cast(wider[1])
    return list(column.to_pylist(maps_as_pydicts="strict"))


def _moment(number: int, digits: int) -> str:
    """ISO 8601 of a number of seconds, or parts of it, since 1970. Loses no digit, as ``datetime`` may."""
    seconds, rest = divmod(number, 10**digits)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    fraction = f"{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{text}.{fraction}" if fraction else text


def _wider(arrow: Any, kind: Any) -> tuple[Any, Any] | None:
    """The types to cast to, one after the other, so that a 32-bit 0.1 becomes 0.1, not 0.10000000149."""
    types = arrow.types
    if types.is_float32(kind) or types.is_float16(kind):
        return arrow.string(), arrow.float64()
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _wider(arrow, kind.value_type)
        return inner and (arrow.list_(inner[0]), arrow.list_(inner[1]))
    return None
