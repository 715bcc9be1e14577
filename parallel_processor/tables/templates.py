"""Templates: a request with ``{{column}}`` in its texts, and the line that a row of a table makes of it.

A text that is one placeholder and nothing else becomes the value of the column, with its type. In a longer
text the value is put in as text. What a value has in it is data: ``{{`` in it means nothing.

::

    {{column}}          the value of the column
    {{column|json}}     the value that its text is in JSON; other values as they are
    {{column|base64}}   the base64 text of a binary column
    {{'{{'}}            the text between the quotes
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.providers.jsontext import dump, parse
from parallel_processor.tables.arrow import Unreadable

# A text in quotes, which may have braces in it, or the name of a column. Each is matched in one way only:
# otherwise a text that opens a placeholder and never closes it would take forever.
_PLACEHOLDER = re.compile(r"\{\{(\s*(?:'[^']*'|\"[^\"]*\")\s*|[^{}]*)\}\}")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_FILTERS = ("json", "base64")
_SHOWN_CHARS = 100
_SHOWN_COLUMNS = 50
_SEPARATORS = ";\t|,"  # that a table of one column may have instead


class Table(NamedTuple):
    """What a template has to know of a table."""

    name: str
    columns: Sequence[str]
    binary: frozenset[str]  # the columns that are bytes


class Column(NamedTuple):
    """A placeholder: a value of the line that comes from a column."""

    name: str
    filter: str = ""  # one of _FILTERS; empty for none
    is_id: bool = False  # it must be there, and becomes a text


class _Hole(NamedTuple):
    column: str
    write: Callable[[Any], str]


class Template:
    """Makes a JSON line of each row. For any thread.

    Args:
        line: what a line is, with texts that have placeholders, and with :class:`Column` values.
        table: the table whose rows they are.
        name: what the template is called in messages.

    Raises :class:`ConfigurationError` for a placeholder that the table has no column for.
    """

    def __init__(self, line: Mapping[str, Any], table: Table, name: str) -> None:
        self._table, self._name = table, name
        self._parts: list[str | _Hole] = []
        self._add(line)
        self.columns = list(dict.fromkeys(p.column for p in self._parts if isinstance(p, _Hole)))
        self._first = ""
        self._plan: list[tuple[int, Callable[[Any], str], str, str]] = []

    def bind(self, places: Mapping[str, int]) -> None:
        """Say where in a row each of :attr:`columns` is. Called once, before the first row."""
        texts: list[str] = []  # in front of the first hole, and behind each one
        holes: list[_Hole] = []
        text = ""
        for part in self._parts:
            if isinstance(part, _Hole):
                holes.append(part)
                texts.append(text)
                text = ""
            else:
                text += part
        self._first, *after = [*texts, text]
        self._plan = [
            (places[hole.column], hole.write, text, hole.column)
            for hole, text in zip(holes, after, strict=True)
        ]

    def render(self, row: Sequence[Any]) -> bytes:
        """The line of ``row``. Raises ``ValueError`` with the reason if there is none."""
        parts, column = [self._first], ""
        try:
            for index, write, text, column in self._plan:  # noqa: B007
                parts += (write(row[index]), text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"column {column!r} {error}") from None
        return "".join(parts).encode("utf-8", "backslashreplace")

    def _add(self, value: Any) -> None:
        """Add the text of ``value`` to the parts."""
        if isinstance(value, Column):
            self._add_value(value)
        elif isinstance(value, str):
            self._add_text(value)
        elif isinstance(value, Mapping):
            for i, (key, member) in enumerate(value.items()):
                if "{{" in str(key):
                    raise self._error(
                        f"{key!r} is a name: placeholders stand in texts, not in names"
                    )
                self._parts.append(f"{', ' if i else '{'}{_encode(str(key))}: ")
                self._add(member)
            self._parts.append("}" if value else "{}")
        elif isinstance(value, (list, tuple)):
            for i, element in enumerate(value):
                self._parts.append(", " if i else "[")
                self._add(element)
            self._parts.append("]" if value else "[]")
        else:
            self._parts.append(dump(value).decode())

    def _add_value(self, column: Column) -> None:
        self._check(column)
        write = {"json": _write_json, "base64": _write_base64}.get(column.filter, _write_value)
        self._parts.append(_Hole(column.name, _write_id if column.is_id else write))

    def _add_text(self, text: str) -> None:
        """Add a text, which may be one placeholder, or have some in it."""
        whole = self.whole(text)
        if whole is not None:
            self._add_value(whole)
            return
        self._parts.append('"')
        end = 0
        for found in _PLACEHOLDER.finditer(text):
            self._add_literal(text[end : found.start()])
            end = found.end()
            quoted = _QUOTED.fullmatch(found[1].strip())
            if quoted is not None:
                self._parts.append(_encode(quoted[1] or quoted[2] or "")[1:-1])
            else:
                self._add_inside(self.column(found[1]))
        self._add_literal(text[end:])
        self._parts.append('"')

    def _add_inside(self, column: Column) -> None:
        self._check(column)
        if column.filter == "json":
            raise self._error(f"{{{{{column.name}|json}}}} stands in a text: leave |json out there")
        write = _write_base64_inside if column.filter else _write_inside
        self._parts.append(_Hole(column.name, write))

    def _add_literal(self, text: str) -> None:
        if "{{" in text:
            start = text.index("{{")
            raise self._error(
                f"{text[start : start + 40]!r} opens a placeholder without an end; "
                "write {{'{{'}} for two braces that are none"
            )
        self._parts.append(_encode(text)[1:-1])

    def whole(self, text: str) -> Column | None:
        """The column whose placeholder is all of ``text``; ``None`` if it isn't one."""
        found = _PLACEHOLDER.fullmatch(text)
        if found is None or _QUOTED.fullmatch(found[1].strip()):
            return None
        return self.column(found[1])

    def column(self, text: str) -> Column:
        """The column that ``text`` names, with a filter behind ``|`` perhaps."""
        name, columns = text.strip(), self._table.columns
        if name in columns:
            return Column(name)
        before, bar, after = name.rpartition("|")
        if bar and before.strip() in columns:
            if after.strip() not in _FILTERS:
                known = " and ".join(f"|{each}" for each in _FILTERS)
                raise self._error(f"{{{{{name}}}}}: there is no |{after.strip()}, only {known}")
            return Column(before.strip(), after.strip())
        raise self._error(missing_text(before.strip() if bar else name, self._table))

    def _check(self, column: Column) -> None:
        columns = self._table.columns
        if columns.count(column.name) > 1:
            raise self._error(f"{self._table.name} has more than one column {column.name!r}")
        is_binary = column.name in self._table.binary
        if is_binary and column.filter != "base64":
            raise self._error(
                f"column {column.name!r} of {self._table.name} is binary: "
                f"write {{{{{column.name}|base64}}}}, or make it text in the table"
            )
        if column.filter == "base64" and not is_binary:
            raise self._error(f"column {column.name!r} is not binary: leave |base64 out")

    def _error(self, text: str) -> ConfigurationError:
        return ConfigurationError(f"{self._name}: {text}")


def missing_text(name: str, table: Table) -> str:
    """Says that ``table`` has no column ``name``, and which it has."""
    from difflib import get_close_matches  # imported here: nothing else needs it

    shown = ", ".join(repr(each) for each in table.columns[:_SHOWN_COLUMNS])
    more = len(table.columns) - _SHOWN_COLUMNS
    separators = [c for c in _SEPARATORS if len(table.columns) == 1 and c in table.columns[0]]
    lower = {each.lower(): each for each in table.columns}
    near = get_close_matches(name.lower(), lower, n=1)
    hint = f" (did you mean {lower[near[0]]!r}?)" if near and not separators else ""
    return (
        f"{table.name} has no column {name!r}{hint}. It has {shown}"
        f"{f' and {more} more' if more > 0 else ''}"
        f"{f': is {separators[0]!r} its delimiter?' if separators else ''}"
    )


def read_template(path: Path) -> Any:
    """The JSON value of the file at ``path``. Raises :class:`ConfigurationError` if there is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"can't read the template {path}: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the template {path} is not UTF-8") from None
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        hint = '; a placeholder stands in quotes, "{{column}}"' if "{{" in text else ""
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}{hint}"
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(f"the template {path} is not JSON: {reason}")


def _plain(value: Any) -> Any:
    """What JSON has for a value of Arrow inside of a list or an object."""
    if isinstance(value, (date, time)):  # datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Unreadable):
        raise ValueError(f"can't be read: {value.reason}")
    return format(value, "f") if isinstance(value, Decimal) else str(value)


_encode = json.JSONEncoder(ensure_ascii=False, default=_plain).encode


def _write_value(value: Any) -> str:
    return _encode(value)


def _text_of(value: Any) -> str:
    """``value`` as it stands in a text: a text as it is, nothing for null, others as in JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    text = _encode(value)
    return text if text[:1] != '"' else str(json.loads(text))  # a date is a text


def _write_inside(value: Any) -> str:
    return _encode(_text_of(value))[1:-1]


def _write_id(value: Any) -> str:
    text = _text_of(value)
    if not text:
        raise ValueError("is empty: each row needs an id")
    return _encode(text)


def _write_json(value: Any) -> str:
    if not isinstance(value, str):
        return _encode(value)
    text = value.strip()
    if not text:
        return "null"
    try:
        parse(text)
    except ValueError:
        raise ValueError(f"is not JSON: {text[:_SHOWN_CHARS]!r}") from None
    return text.replace("\r", " ").replace("\n", " ")


def _write_base64(value: Any) -> str:
    return "null" if value is None else f'"{_write_base64_inside(value)}"'


def _write_base64_inside(value: Any) -> str:
    if isinstance(value, Unreadable):
        raise ValueError(f"can't be read: {value.reason}")
    return "" if value is None else base64.b64encode(value).decode()
