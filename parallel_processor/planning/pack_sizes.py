"""How many inputs a pack may hold, and how many tokens.

The smallest counts of

* what was asked for;
* what the provider takes in one request (``providers/dialects.py``);
* what a server was found to take: where a pack was refused and both its halves were answered, no later one
  is larger than these;
* a second's worth of the token limit, or, below 60 requests a minute, one request's worth. Larger packs
  would leave a part of that limit unused.

**auto**: a pack holds one input at first. It holds twice as many whenever a new one is begun while its bucket
waits for the limit of requests, up to the tokens that there are for each request. It holds half as many where
nothing waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from parallel_processor.models import Request, WaitCause
from parallel_processor.options import PackInputs
from parallel_processor.providers.dialects import provider_of

if TYPE_CHECKING:
    from parallel_processor.upstreams.replicas import AnyBucket

MOST_AUTO = 2048
"""Inputs of the largest pack that ``auto`` makes."""
_MINUTE_S = 60.0


class Size(NamedTuple):
    """What a pack may hold."""

    inputs: int
    tokens: float


class PackSizes:
    """The sizes of the packs of one run. Not thread-safe: the packer's lock guards it.

    Args:
        asked: how many inputs a pack may have, or ``auto``.
        url: where requests go that name no URL.
        group_of: what a request waits for.
        is_waiting: true if requests wait for that.
    """

    def __init__(
        self,
        asked: PackInputs,
        url: str,
        group_of: Callable[[Request], AnyBucket],
        is_waiting: Callable[[AnyBucket], bool],
    ) -> None:
        self._asked, self._url = asked, url
        self._group_of, self._is_waiting = group_of, is_waiting
        self._found: dict[AnyBucket, int] = {}  # with auto: the size of the newest pack
        self._taken: dict[AnyBucket, int] = {}  # where servers take fewer than were asked for

    def next_size(self, request: Request) -> Size:
        """What a pack may hold that is begun now with ``request``."""
        url, group = request.url or self._url, self._group_of(request)
        most, most_tokens = provider_of(url).most_inputs
        requests, tokens = _limits_of(group)
        most = min(most, self.taken(group))
        if self._asked == "auto":
            useful = tokens / requests if requests < math.inf else math.inf
            most = min(most, self._auto(group), MOST_AUTO)
        else:
            useful = tokens / min(requests, _MINUTE_S)
            most = min(most, self._asked)
        return Size(int(most), min(useful, most_tokens))

    def _auto(self, group: AnyBucket) -> int:
        size = self._found.get(group, 1)
        if group.wait_cause is WaitCause.REQUESTS:
            size = min(2 * size, MOST_AUTO)
        elif not self._is_waiting(group):
            size = max(1, size // 2)
        self._found[group] = size
        return size

    def taken(self, group: AnyBucket) -> float:
        """How many inputs its servers were found to take; infinite if nothing is known."""
        return self._taken.get(group, math.inf)

    def lower(self, group: AnyBucket, inputs: int) -> None:
        """Its servers have taken so many inputs, and not twice as many."""
        self._taken[group] = min(inputs, self._taken.get(group, inputs))


def _limits_of(group: Any) -> tuple[float, float]:
    """How many requests and tokens a minute each of the servers of ``group`` takes at least."""
    requests = min(bucket.limit_of("requests") for bucket in group.alive)
    return requests, min(bucket.limit_of("tokens") for bucket in group.alive)
