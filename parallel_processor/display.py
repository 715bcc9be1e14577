"""Small HTML tables, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_MAX_CHARS = 500
_CELL = "text-align: left; vertical-align: top; white-space: pre-wrap"


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values, escaped and clipped. Rows without a value are left out."""
    texts = [(name, _text(value)) for name, value in rows if value is not None]
    lines = [
        f'<tr><th style="{_CELL}">{escape(_text(name))}</th><td style="{_CELL}">{escape(text)}</td></tr>'
        for name, text in texts
        if text
    ]
    caption = f'<caption style="text-align: left"><b>{escape(_text(title))}</b></caption>'
    return f"<table>{caption}<tbody>{''.join(lines)}</tbody></table>"


def _text(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if len(text) > _MAX_CHARS:
        text = f"{text[:_MAX_CHARS]}… ({len(text):,} characters)"
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can't be sent
