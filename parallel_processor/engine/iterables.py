"""The requests in a program's iterable, and their outcomes in the order of the iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from parallel_processor.files.formats import made_request, tell_notes
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import host_rule


class NumberedRequests:
    """Makes a request of each element of an iterable as it is read, and numbers them from 1.

    For one thread; any may call :meth:`fraction`.

    Attributes:
        read: how many elements have been read.
        is_over: true once there are no more.
    """

    def __init__(self, given: Iterable[Request | Mapping[str, Any]], options: Options) -> None:
        self._given = given
        self._request_url, self._rule = options.request_url, host_rule(options)
        self._total = len(given) if isinstance(given, Sized) else None
        self.read = 0
        self.is_over = False

    def __iter__(self) -> Iterator[Request]:
        noted: set[str] = set()
        for each in self._given:
            request = made_request(each, self.read + 1, self._request_url, self._rule)
            self.read += 1
            if request.dropped:
                tell_notes(request, noted, "request {}".format)
            yield request
        self.is_over = True

    def fraction(self) -> float | None:
        """The share that has been read, 0 to 1; ``None`` if the length is unknown."""
        if self.is_over or not self._total:
            return 1.0 if self.is_over else None
        return min(self.read / self._total, 1.0)


class ReorderBuffer:
    """Puts outcomes into the order of their requests. For one thread.

    At most ``window`` requests may be read, counted from the one whose outcome comes next. That bounds how
    many outcomes are kept, however long that request takes.
    """

    def __init__(self, given: NumberedRequests, window: int) -> None:
        self._given, self._window = given, window
        self._next = 1
        self._early: dict[int, Outcome] = {}

    def room(self) -> int:
        """How many more requests may be read."""
        return self._window - (self._given.read - self._next + 1)

    def add(self, outcome: Outcome) -> Iterator[Outcome]:
        """Take ``outcome``, and yield those whose turn it is."""
        self._early[outcome.request.number] = outcome
        while (ready := self._early.pop(self._next, None)) is not None:
            self._next += 1
            yield ready

    def rest(self) -> Iterator[Outcome]:
        """The outcomes that are left, in order. After a stop, some between them are missing."""
        for number in sorted(self._early):
            yield self._early.pop(number)
