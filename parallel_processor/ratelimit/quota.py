"""The arithmetic of one configured limit: how long a cost has to wait, and how it is charged.

A quota has room for a cost if both of these rules hold:

* **Pace.** A classic token bucket. It holds ``burst_seconds`` worth of the limit and refills at 99.2 %
  of the limit. A cost larger than the bucket is admitted when the bucket is full, and leaves a debt.
  So it neither hangs nor starves, and what comes later waits until the debt is paid.
* **Window.** What was admitted in the last 60 seconds, plus this cost, is within the limit. The pace
  alone can't promise that. Example: a bucket of 500 tokens, a limit of 60,000 a minute, requests of
  1,100. With debt alone, some minute would hold 55 of them, which is 60,500 tokens. A cost larger than
  the limit of a whole minute is admitted when the window is empty.

The limit may change at any time. Then the pace is that of the new limit at once. What was admitted under a
higher limit counts in the window as the same share of the new one. So any 60 seconds hold at most the
highest limit that was in force in them, and a lower limit is used to the full from the beginning.

Requests spend unequal times on their way to the server. So that the limit holds there too, the window is
a quarter of a second longer than a minute, and the pace is a little below the limit. A request that was
sent much later than it was admitted, because connecting took long, is counted when it was sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from parallel_processor.models import WaitCause

MINUTE_S = 60.0
KINDS = ("requests", "tokens", "input_tokens", "output_tokens")
"""What a limit may count. A request costs 1, input plus output tokens, input tokens, output tokens."""
Costs = tuple[float, float, float, float]
"""Amounts in the order of ``KINDS``."""
IN_FLIGHT = "in_flight"
"""The name of a reading that bounds the number of requests in flight."""
TOKENS = KINDS.index("tokens")
CAUSES = tuple(WaitCause(kind) for kind in KINDS)  # what a request waits for, by kind

WINDOW_S = MINUTE_S + 0.25
_PACE_MARGIN_S = 0.5  # the refill leaves out this many seconds' worth of each minute
SLOT_S = WINDOW_S / 1024  # admissions of one slot leave the window together, to bound the memory
Slot = list[float]
"""What was admitted at about the same time: last admission, amount, first admission, the limit then."""
_MAX_CHANGES = 100  # kept for the report
_EPSILON = 1e-6  # a shortage below this is rounding
_NONE: Slot = [-math.inf, 0.0, -math.inf, 0.0]  # in place of a slot that isn't begun


class ConfiguredQuota:
    """The arithmetic of one limit. Not thread-safe: the lock of the ``SharedLimits`` guards it.

    Times are seconds of any clock that never goes back.

    Attributes:
        name: what it counts, one of ``KINDS``.
        kind: the index of ``name`` in ``KINDS``.
        limit: how many are allowed in a minute.
        capacity: how many the bucket holds.
        refill: how many come back per second.
        level: how many the bucket holds now; negative for a debt.
        stamp: the time of the last refill.
        window: the slots of the last minute, oldest first.
        changes: when the limit was set, and its value then; empty while it is the first one.
        in_window: the sum of the amounts in ``window``, those of a higher limit as a share of it.
    """

    def __init__(self, name: str, limit: float, burst_seconds: float, now: float) -> None:
        self.name = name
        self.kind = KINDS.index(name)
        self._have(limit, burst_seconds)
        self.level = self.capacity
        self.stamp = now
        self.window: deque[Slot] = deque()
        self.in_window = 0.0
        self._newest: Slot = _NONE
        self._left = 0.0  # what has left the window so far
        self._allowed, self._changed_at = 0.0, now  # by limits of before, until then
        self.changes: list[tuple[float, float]] = []

    def _have(self, limit: float, burst_seconds: float) -> None:
        self.limit = limit
        self.capacity = limit * burst_seconds / MINUTE_S
        self.refill = limit / MINUTE_S * (1.0 - _PACE_MARGIN_S / MINUTE_S)

    def change(self, limit: float, burst_seconds: float, now: float) -> None:
        """Have another ``limit``, which may be infinite, from now on."""
        self.advance(now)
        if not self.changes:
            self.changes.append((self._changed_at, self.limit))
        if len(self.changes) < _MAX_CHANGES:
            self.changes.append((now, limit))
        self._allowed, self._changed_at = self.allowed(now), now
        share = limit / self.limit if limit < self.limit else 1.0
        self._have(limit, burst_seconds)
        # Without a limit, the level is infinite: it becomes 0.
        self.level = min(self.level * share, self.capacity) if share else 0.0
        self._newest = _NONE
        self.in_window = sum(self._counted(slot[1], slot) for slot in self.window)

    def inherit(self, others: Sequence[ConfiguredQuota], now: float) -> None:
        """Begin with what was admitted under ``others``, whose requests are admitted here from now on.

        The limit before is taken to be their sum. To be called for a new quota.
        """
        before = sum(other.limit for other in others)
        share = self.limit / before if self.limit < before else 1.0
        self.level = min(self.level, share * sum(other.refilled(now) for other in others))
        for other in others:
            other.advance(now)
            alike = before / other.limit
            self.window += [
                [last, n, first, limit * alike] for last, n, first, limit in other.window
            ]
            self._left -= other.admitted  # it was charged there
        self.window = deque(sorted(self.window))
        self.in_window = sum(self._counted(slot[1], slot) for slot in self.window)

    def _counted(self, amount: float, slot: Slot) -> float:
        """How much of the window an ``amount`` in ``slot`` takes."""
        return amount * self.limit / slot[3] if slot[3] > self.limit else amount

    @property
    def cause(self) -> WaitCause:
        """What a request waits for that this quota delays."""
        return CAUSES[self.kind]

    @property
    def admitted(self) -> float:
        """How many were admitted in the last minute, as of the last :meth:`advance`."""
        return sum(slot[1] for slot in self.window)

    @property
    def charged(self) -> float:
        """How many were charged in all, less refunds."""
        return self._left + self.admitted

    def allowed(self, now: float) -> float:
        """How many the limit has allowed in all; infinite if there was none for a while."""
        minutes = (now - self._changed_at) / MINUTE_S
        return self._allowed + minutes * self.limit if minutes else self._allowed

    def refilled(self, now: float) -> float:
        """Refill, and return how many the bucket holds now."""
        if now > self.stamp:
            level = self.level + (now - self.stamp) * self.refill
            self.level = level if level < self.capacity else self.capacity
            self.stamp = now
        return self.level

    def advance(self, now: float) -> None:
        """Refill, and drop what left the window."""
        self.refilled(now)
        window, horizon = self.window, now - WINDOW_S
        while window and window[0][0] <= horizon:
            slot = window.popleft()
            self.in_window -= self._counted(slot[1], slot)
            self._left += slot[1]
        if not window:
            self.in_window = 0.0  # forget the rounding

    def is_full(self, now: float) -> bool:
        """True if it differs in nothing from a new one."""
        self.advance(now)
        return not self.window and self.level >= self.capacity

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted if nothing else is. Call :meth:`advance` before."""
        short = (cost if cost < self.capacity else self.capacity) - self.level
        delay = short / self.refill if short > _EPSILON else 0.0
        over = self.in_window + (cost if cost < self.limit else self.limit) - self.limit
        if over > _EPSILON:
            leaves = now
            for slot in self.window:
                leaves = slot[0] + WINDOW_S
                over -= self._counted(slot[1], slot)
                if over <= _EPSILON:
                    break
            delay = max(delay, leaves - now)
        return delay

    def charge(self, cost: float, now: float) -> Slot:
        """Take ``cost``, which may leave a debt. Returns the slot of the window that counts it.

        Call :meth:`advance` or :meth:`refilled` before.
        """
        slot = self._newest
        if now - slot[2] >= SLOT_S:
            slot = self._begin_slot(now)
        slot[0] = now
        slot[1] += cost
        self.level -= cost
        self.in_window += cost
        return slot

    def _begin_slot(self, now: float) -> Slot:
        self.advance(now)
        self._newest = slot = [now, 0.0, now, self.limit]
        self.window.append(slot)
        return slot

    def postpone(self, amount: float, slot: Slot, sent_at: float) -> Slot:
        """Move ``amount`` from ``slot`` to the slot of ``sent_at``, and return that slot.

        ``sent_at`` is later than the time of ``slot``, and not in the future.
        """
        if not self.window or slot[0] < self.window[0][0]:
            return slot  # it has left the window already
        later = next(later for later in reversed(self.window) if later[2] <= sent_at)
        slot[1] -= amount
        later[1] += amount
        later[0] = max(later[0], sent_at)
        self.in_window += self._counted(amount, later) - self._counted(amount, slot)
        return later

    def refund(self, amount: float, slot: Slot, now: float) -> None:
        """Give back ``amount``, which ``slot`` counts. It needs no :meth:`advance` before."""
        counted = self._counted(amount, slot)
        level = self.level + counted
        self.level = level if level < self.capacity else self.capacity
        if slot[0] > now - WINDOW_S:
            slot[1] -= amount
            self.in_window -= counted
        else:
            self._left -= amount
