"""Jupyter: whether a notebook runs this, how soon an interrupted cell ends, and tables to show there."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from html import escape

_JOIN_TIMEOUT_S = 0.5  # after a cell of a notebook was interrupted
_MAX_CHARS = 500
_CELL = "text-align: left; vertical-align: top; white-space: pre-wrap"


def is_notebook() -> bool:
    """True in a Jupyter kernel, whatever shows its notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def join_timeout_s(error: BaseException) -> float:
    """For how long, at most, a run that ``error`` ended waits for what is in flight.

    An interrupted cell of a notebook ends soon: running it again sends the other requests. Otherwise the
    time is infinite, and the run's own settings decide.
    """
    return _JOIN_TIMEOUT_S if isinstance(error, KeyboardInterrupt) and is_notebook() else math.inf


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
