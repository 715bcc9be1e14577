"""Which lines are equal to an earlier one, and which rows share an id: 14 bytes a line, 24 more a row.

Lines are known by 64 bits of a hash. Among ten million different ones, two have the same hash with a
probability of 1 in 370,000. Hashes are in 64 parts by their lowest bits, so that one part at a time becomes
a set.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_PARTS = 64
_LARGEST = 2**32 - 1


class Repeated(NamedTuple):
    """The requests of one group that are equal to an earlier one."""

    requests: int = 0
    size: int = 0  # the sum of theirs


class EqualLines:
    """The requests of a file by their content. Not thread-safe."""

    def __init__(self) -> None:
        self._parts = [(array("Q"), array("H"), array("I")) for _ in range(_PARTS)]

    def add(self, key: int, group: int, size: int) -> None:
        """Add a request of ``group`` that has the hash ``key``. Its size is in any measure."""
        keys, groups, sizes = self._parts[key % _PARTS]
        keys.append(key)
        groups.append(group)
        sizes.append(size if size < _LARGEST else _LARGEST)

    def extend(self, other: EqualLines, groups: Sequence[int]) -> None:
        """Append ``other``, whose groups have these numbers here."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine[0].extend(theirs[0])
            mine[1].extend(map(groups.__getitem__, theirs[1]))
            mine[2].extend(theirs[2])

    def repeated(self, groups: int) -> list[Repeated]:
        """For each of so many groups, the requests that are equal to an earlier one."""
        found = [[0, 0] for _ in range(groups)]
        for part in self._parts:
            seen: set[int] = set()
            for key, group, size in zip(*part, strict=True):
                if key in seen:
                    found[group][0] += 1
                    found[group][1] += size
                else:
                    seen.add(key)
        return [Repeated(*each) for each in found]


class Conflict(NamedTuple):
    """Two lines that share a ``custom_id`` but are different requests; places as they were added."""

    earlier: int
    later: int


class RowIds:
    """The ids of rows. Not thread-safe."""

    def __init__(self) -> None:
        self._parts = [(array("Q"), array("Q"), array("Q")) for _ in range(_PARTS)]

    def add(self, custom_id: str, key: int, line: int) -> None:
        """Add the id of the row at the place ``line``, whose content has the hash ``key``."""
        data = custom_id.encode("utf-8", "surrogatepass")
        own = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
        for column, value in zip(self._parts[own % _PARTS], (own, key, line), strict=True):
            column.append(value)

    def extend(self, other: RowIds, moved: Callable[[int], int]) -> None:
        """Append ``other``; ``moved`` tells where a line of it is here."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine[0].extend(theirs[0])
            mine[1].extend(theirs[1])
            mine[2].extend(map(moved, theirs[2]))

    def conflicts(self) -> Iterator[Conflict]:
        """The rows that share an id with an earlier one that is another request."""
        for part in self._parts:
            seen: dict[int, tuple[int, int]] = {}
            for own, key, line in zip(*part, strict=True):
                first_key, first_line = seen.setdefault(own, (key, line))
                if first_key != key:
                    yield Conflict(first_line, line)
