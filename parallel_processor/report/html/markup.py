"""HTML and SVG as safe text: whatever is not markup is escaped.

Error texts and model names come from servers and files. :func:`tag` is the only way to put text into a
page, so that escaping can't be forgotten.
"""

from __future__ import annotations

import html
import re

# What HTML or UTF-8 can't hold: control characters and halves of surrogate pairs.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup and needs no escaping."""

    __slots__ = ()


def safe(text: str) -> Markup:
    """``text`` with its special characters escaped; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element. ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``.

    An attribute that is ``None`` is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{safe(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"{joined(children)}</{name}>"
    return Markup(f"<{name}{written}>{end}")


def joined(parts: tuple[str, ...] | list[str], between: str = "") -> Markup:
    """All parts as markup, one after the other."""
    return Markup(safe(between).join(safe(part) for part in parts))


def with_code(text: str) -> Markup:
    """``text`` with what stands between backquotes as code."""
    pieces = text.split("`")
    return joined([tag("code", p) if i % 2 else p for i, p in enumerate(pieces)])
