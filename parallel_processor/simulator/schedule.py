"""What befalls an account by the clock: limits that change, and a rival who sends on it too."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from operator import itemgetter

from parallel_processor.simulator.options import LimitChange, SimulatorOptions

Event = tuple[float, LimitChange | None]
"""A time in seconds since the first request arrived, and a change, or None: the rival sends."""

NEVER: Event = (math.inf, None)


def schedule(options: SimulatorOptions, model: str) -> Iterator[Event]:
    """Yield a model's events in the order of their times, a change before a rival's request."""
    changes: list[Event] = [
        (change.at_s, change) for change in options.changes if fnmatchcase(model, change.model)
    ]
    changes.sort(key=itemgetter(0))
    return heapq.merge(changes, _rival(options), key=itemgetter(0))


def _rival(options: SimulatorOptions) -> Iterator[Event]:
    """Yield the rival's requests: evenly, each time worked out from the first."""
    if not options.rival_requests_per_minute:
        return
    for number in itertools.count():
        at_s = options.rival_from_s + number * 60 / options.rival_requests_per_minute
        if at_s >= options.rival_until_s:
            return
        yield at_s, None
