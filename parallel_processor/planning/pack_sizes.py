"""What a pack may hold: the smallest of

* how many inputs were asked for, or 256 with ``auto``;
* what the provider takes in one request (``providers/dialects.py``);
* what a server was found to take. If a pack was refused, and both its halves were answered, no later one
  is larger than these. The same holds if an answer didn't come apart, and none of this size had before;
* a second's worth of the token limit, or one request's worth if that is more: larger packs would leave a
  part of that limit unused.

With ``auto`` it is one request's worth of the token limit, and nothing is packed before the limit of
requests was what a request waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from parallel_processor.models import Request, WaitCause
from parallel_processor.options import PackInputs
from parallel_processor.providers.dialects import provider_of

if TYPE_CHECKING:
    from parallel_processor.upstreams.replicas import AnyBucket

MOST_AUTO = 256
"""Inputs of the largest pack that ``auto`` makes."""
_SECONDS = 60.0  # in a minute
_MUCH = 2  # bad inputs for each good one


class Size(NamedTuple):
    """What a pack may hold."""

    inputs: int
    tokens: float


@dataclass(slots=True)
class _Proof:
    """What answers to packs have shown of their size, in inputs.

    Attributes:
        most: of the largest pack whose answer came apart.
        good: of all packs whose answers came apart.
        bad: of those whose answers didn't, and that were no larger than ``most``.
    """

    most: int = 1
    good: int = 0
    bad: int = 0


class PackSizes:
    """The sizes of the packs of one run. For one thread at a time.

    ``asked`` is how many inputs a pack may have, or ``auto``. Requests that name no URL go to ``url``.
    """

    def __init__(self, asked: PackInputs, url: str) -> None:
        self._most: int = MOST_AUTO if asked == "auto" else asked
        self._url, self.is_auto = url, asked == "auto"
        self._limited: set[AnyBucket] = set()  # with auto: those that have waited for requests
        self._trials: dict[AnyBucket, int] = {}  # with auto: how many went at once, one by one
        self._taken: dict[AnyBucket, int] = {}  # where servers take fewer than were asked for
        self._proofs: dict[AnyBucket, _Proof] = {}

    def packs(self, group: AnyBucket) -> bool:
        """True if requests that wait for ``group`` are to be packed."""
        if self.is_auto and group.wait_cause is WaitCause.REQUESTS:
            self._limited.add(group)
        return not self.is_auto or group in self._limited

    def trial(self, group: AnyBucket) -> int:
        """With ``auto``: how many may go one by one, as none has to wait; twice as many each time."""
        self._trials[group] = min(2 * self._trials.get(group, 0) or 1, MOST_AUTO)
        return self._trials[group]

    def size(self, request: Request, group: AnyBucket) -> Size:
        """What a pack may hold that is begun now with ``request``, which waits for ``group``."""
        most, tokens = provider_of(request.url or self._url).most_inputs
        requests_limit, tokens_limit = _limit(group, "requests"), _limit(group, "tokens")
        most = min(most, self.taken(group), self._most)
        if tokens_limit < math.inf:
            parts = requests_limit if self.is_auto else min(requests_limit, _SECONDS)
            tokens = min(tokens, tokens_limit / parts)
        return Size(int(most), tokens)

    def taken(self, group: AnyBucket) -> float:
        """How many inputs its servers were found to take; infinite if nothing is known. For any thread."""
        return self._taken.get(group, math.inf)

    @property
    def is_lowered(self) -> bool:
        """True if that is so anywhere. For any thread."""
        return bool(self._taken)

    def prove(self, group: AnyBucket, inputs: int) -> None:
        """An answer to so many inputs came apart."""
        proof = self._proofs.setdefault(group, _Proof())
        proof.most = max(proof.most, inputs)
        proof.good += inputs

    def doubt(self, group: AnyBucket, inputs: int) -> int:
        """An answer to so many inputs didn't come apart. Returns the new size of packs; 0 if it stays.

        It stays where answers to as many came apart: then one of the inputs is the reason, not their
        number. But a server that mixes up most of what it is sent gets smaller packs in any case.
        """
        proof = self._proofs.setdefault(group, _Proof())
        if inputs <= proof.most:
            proof.bad += inputs
            if proof.bad <= _MUCH * proof.good:
                return 0
        half = (inputs + 1) // 2
        return half if self.lower(group, half) else 0

    def lower(self, group: AnyBucket, inputs: int) -> bool:
        """Make packs for ``group`` no larger than ``inputs``; true if they could be larger before."""
        is_new = inputs < self.taken(group)
        if is_new:
            self._taken[group] = inputs
        return is_new


def _limit(group: Any, kind: str) -> float:
    """How many of ``kind`` a minute each of the servers of ``group`` takes at least."""
    limits: list[float] = [bucket.limit_of(kind) for bucket in group.alive]
    return min(limits)
