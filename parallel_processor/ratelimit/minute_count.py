"""What was admitted in the last minute where nothing limits it: for progress and reports alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from parallel_processor.ratelimit.quota import SLOT_S, TOKENS, WINDOW_S, Costs

CountedSlot = list[float]
"""What was admitted at about the same time: last admission, requests, tokens, first admission."""
_LAST, _REQUESTS, _TOKENS, _FIRST = range(4)


class MinuteCount:
    """Requests and tokens by the time of admission. Not thread-safe: the lock of the account guards it.

    It counts as the window of a ``ConfiguredQuota`` does, but adds up only when it is asked.
    """

    def __init__(self) -> None:
        self._slots: deque[CountedSlot] = deque()  # oldest first
        self._newest: CountedSlot = [-math.inf, 0.0, 0.0, -math.inf]

    def add(self, requests: float, tokens: float, now: float) -> CountedSlot:
        """Count them as of ``now``. Returns the slot that counts them."""
        slot = self._newest
        if now - slot[_FIRST] >= SLOT_S:
            slot = self._begin_slot(now)
        slot[_LAST] = now
        slot[_REQUESTS] += requests
        slot[_TOKENS] += tokens
        return slot

    def _begin_slot(self, now: float) -> CountedSlot:
        self._forget(now)
        self._newest = slot = [now, 0.0, 0.0, now]
        self._slots.append(slot)
        return slot

    def _forget(self, now: float) -> None:
        slots, horizon = self._slots, now - WINDOW_S
        while slots and slots[0][_LAST] <= horizon:
            slots.popleft()

    def correct(self, before: Costs, costs: Costs, slot: CountedSlot, now: float) -> None:
        """Count ``costs`` instead of ``before``, which ``slot`` counts; more of it as of ``now``."""
        more = costs[TOKENS] - before[TOKENS]
        if more > 0:
            self.add(0.0, more, now)
        else:
            slot[_TOKENS] += more
            slot[_REQUESTS] += costs[0] - before[0]

    def postpone(self, costs: Costs, slot: CountedSlot, sent_at: float, now: float) -> CountedSlot:
        """Move a request of ``costs`` from ``slot`` to the slot of ``sent_at``, and return that slot.

        ``sent_at`` is later than the time of ``slot``, and not in the future.
        """
        self._forget(now)
        if not self._slots or slot[_LAST] < self._slots[0][_LAST]:
            return slot  # it has left the window already
        later = next(later for later in reversed(self._slots) if later[_FIRST] <= sent_at)
        for kind, index in ((0, _REQUESTS), (TOKENS, _TOKENS)):
            slot[index] -= costs[kind]
            later[index] += costs[kind]
        later[_LAST] = max(later[_LAST], sent_at)
        return later

    def is_empty(self, now: float) -> bool:
        """True if it differs in nothing from a new one."""
        self._forget(now)
        return not self._slots

    def in_window(self, now: float) -> Mapping[str, float]:
        """What was admitted in the last 60 seconds."""
        self._forget(now)
        return {
            "requests": sum(slot[_REQUESTS] for slot in self._slots),
            "tokens": sum(slot[_TOKENS] for slot in self._slots),
        }
