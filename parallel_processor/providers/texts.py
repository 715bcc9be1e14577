"""Plain text of what a server wrote, without tags and control characters, and patterns for it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple


class Pattern:
    """A regular expression that is compiled when it is first used, since only failures need most of them.

    It has the methods of :class:`re.Pattern`. Any thread may call it.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        self._pattern, self._flags = pattern, flags

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._pattern, self._flags)

    def search(self, text: str, start: int = 0) -> re.Match[str] | None:
        """The first match from ``start`` on."""
        return self._compiled.search(text, start)

    def match(self, text: str) -> re.Match[str] | None:
        """The match at the begin."""
        return self._compiled.match(text)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """The match of the whole text."""
        return self._compiled.fullmatch(text)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """All matches."""
        return self._compiled.finditer(text)

    def sub(self, new: str | Callable[[re.Match[str]], str], text: str, count: int = 0) -> str:
        """The text with ``new`` in the place of each match, or of the first ``count``."""
        return self._compiled.sub(new, text, count)


_MAX_PAGE = 20_000  # characters of an HTML page that are looked at

# Terminal sequences: colours and cursor moves, titles, and the two-character ones.
_ESCAPES = Pattern(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]*[0-~]?"
)
# What else moves the cursor, is invisible, or turns the direction of writing.
_INVISIBLE = Pattern(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_SURROGATES = Pattern("[\ud800-\udfff]")  # no terminal and no file takes them

_PAGE = Pattern(r"\s*(?:<\?xml|<!doctype|<!--|<[a-z][a-z0-9]*[\s>/])", re.IGNORECASE)
_TITLE = Pattern(r"<title\b[^>]*>([^<]*)", re.IGNORECASE)
_UNSEEN = Pattern(
    r"<!--.*?(?:-->|\Z)|<(script|style|head|noscript|svg)\b.*?(?:</\1\s*>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_TAG = Pattern(r"<[^<>]*>?")


def plain_line(text: str, most: int) -> str:
    """At most ``most`` characters of ``text`` in one line, without control characters."""
    if text.isascii() and text.isprintable():
        return " ".join(text[:most].split())
    text = _ESCAPES.sub("", text[: 4 * most])
    text = _SURROGATES.sub("\ufffd", _INVISIBLE.sub("", text))
    return " ".join(text[:most].split())


def is_page(text: str) -> bool:
    """True for HTML or XML."""
    return _PAGE.match(text) is not None


def page_text(page: str) -> str:
    """The title of an HTML page and the text that a reader sees."""
    page = page[:_MAX_PAGE]
    found = _TITLE.search(page)
    title = " ".join(html.unescape(found[1]).split()) if found else ""
    text = " ".join(html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", page))).split())
    if not title or text.startswith(title):
        return text or title
    return f"{title}: {text}" if text else title


class Phrases(NamedTuple):
    """A pattern that is searched only in texts that have one of the ``hints``, which are in lower case.

    A server may reject thousands of requests a second, and few of its texts have any of these words.
    """

    hints: tuple[str, ...]
    pattern: Pattern

    def search(self, text: str) -> re.Match[str] | None:
        """The first match, whose case is ignored."""
        lower = text.lower()
        return self.pattern.search(text) if any(hint in lower for hint in self.hints) else None


def phrases(hints: str, pattern: str) -> Phrases:
    """Phrases whose hints are separated by ``|``."""
    return Phrases(tuple(hints.split("|")), Pattern(pattern, re.IGNORECASE))
