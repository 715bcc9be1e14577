"""HTML and SVG as text that is safe: what isn't markup is escaped wherever it is put in.

There is no other way to put text into a page, so that none can be forgotten. Error texts and model names
come from others.
"""

from __future__ import annotations

import html
import re

# Neither HTML nor UTF-8 can have them: control characters and halves of surrogate pairs.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def safe(text: str) -> Markup:
    """``text`` as markup that shows it; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element. ``class_`` stands for ``class``, ``aria_label`` for ``aria-label``.

    An attribute that is ``None`` is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{safe(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: tuple[str, ...] | list[str], between: str = "") -> Markup:
    """All parts as markup, one after the other."""
    return Markup(safe(between).join(safe(part) for part in parts))


def with_code(text: str) -> Markup:
    """``text`` with what stands between backquotes as code."""
    pieces = text.split("`")
    return joined([tag("code", p) if i % 2 else p for i, p in enumerate(pieces)])
