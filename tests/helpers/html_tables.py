"""Reads the HTML tables that a notebook shows."""

from __future__ import annotations

from html.parser import HTMLParser


class _Table(HTMLParser):
    """Collects the tags and the rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: dict[str, str] = {}
        self.title = ""
        self._tag = self._name = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "th":
            self._name = data
        elif self._tag == "td":
            self.rows[self._name] = data
        elif self._tag == "b":
            self.title = data


def table(html: str) -> _Table:
    """What a browser finds in ``html``, which must be a table and nothing else."""
    found = _Table()
    found.feed(html)
    found.close()
    assert found.tags <= {"table", "caption", "b", "tbody", "tr", "th", "td"}
    return found
