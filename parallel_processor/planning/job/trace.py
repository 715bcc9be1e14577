"""The requests of a job in their order, coarse enough to be walked through in a moment.

Where a file is sorted by model, the first model's limit holds up the second's: the time that a job takes
depends on the order. So the order is kept, and requests that follow each other in one group are put
together, as many as it takes to have no more than 16,384 entries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_MOST = 16_384


class Load(NamedTuple):
    """Some requests of one group that follow each other."""

    group: int
    requests: float
    input_tokens: float
    output_tokens: float


class Trace:
    """A job as a sequence of loads. Not thread-safe.

    Input is in any measure, such as bytes: :meth:`loads` makes tokens of it.
    """

    def __init__(self) -> None:
        self._each = 1.0  # requests of an entry
        self._open: dict[int, list[float]] = {}  # the entry of each group that isn't complete
        self._clear()

    def _clear(self) -> None:
        self._groups = array("H")
        self._requests, self._inputs, self._outputs = array("d"), array("d"), array("d")

    def add(self, group: int, requests: float, inputs: float, outputs: float) -> None:
        """Append some requests, or one."""
        entry = self._open.get(group)
        if entry is None:
            entry = self._open[group] = [0.0, 0.0, 0.0]
        entry[0] += requests
        entry[1] += inputs
        entry[2] += outputs
        if entry[0] >= self._each:
            self._append(group, entry)
            self._open[group] = [0.0, 0.0, 0.0]
            if len(self._groups) > _MOST:
                self._halve()

    def _append(self, group: int, entry: Sequence[float]) -> None:
        self._groups.append(group)
        for column, value in zip(self._columns, entry, strict=True):
            column.append(value)

    @property
    def _columns(self) -> tuple[array[float], array[float], array[float]]:
        return self._requests, self._inputs, self._outputs

    def _entries(self) -> Iterator[tuple[int, float, float, float]]:
        return zip(self._groups, *self._columns, strict=True)

    def _halve(self) -> None:
        """Put twice as many requests into an entry."""
        entries, still_open = list(self._entries()), self._open
        self._each *= 2.0
        self._open = {}
        self._clear()
        for entry in entries:
            self.add(*entry)
        for group, (requests, inputs, outputs) in still_open.items():
            self.add(group, requests, inputs, outputs)

    def end(self) -> None:
        """Append what isn't a complete entry yet: nothing follows, or what does is of another range."""
        for group, entry in self._open.items():
            if entry[0]:
                self._append(group, entry)
        self._open = {}

    def extend(self, other: Trace, groups: Sequence[int]) -> None:
        """Append ``other``, whose groups have these numbers here."""
        self.end()
        other.end()
        self._each = max(self._each, other._each)
        for group, requests, inputs, outputs in other._entries():
            self.add(groups[group], requests, inputs, outputs)

    def loads(self, tokens_per_input: Sequence[float]) -> list[Load]:
        """The entries; ``tokens_per_input`` is by group."""
        self.end()
        return [
            Load(group, requests, inputs * tokens_per_input[group], outputs)
            for group, requests, inputs, outputs in self._entries()
        ]
