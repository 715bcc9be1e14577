"""A configured limit's arithmetic: how long a cost has to wait, and what it leaves behind.

Two rules say whether a quota has room for a cost, and both must hold:

* **Pace.** A classic bucket of ``burst_seconds`` worth of the limit that refills at 99.2 % of it. A
  cost larger than the bucket is admitted when the bucket is full, and leaves it in debt: it neither
  hangs nor starves, and those behind it wait until it is paid.
* **Window.** What was admitted in the last 60 seconds, plus this cost, stays within the limit. The
  pace alone can't promise that: with a bucket of 500 tokens and requests of 1,100 under 60,000 a
  minute, debt alone would let 55 of them, 60,500 tokens, into some minute. A cost larger than a whole
  minute's limit is admitted when the window is empty.

The window is a quarter of a second longer than a minute, and the pace a little below the limit, so
that requests which spend unequal times on their way to the server keep the limit there too. One that
was sent much later than it was admitted, since its connection took long, is counted when it was sent.
"""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0
KINDS = ("requests", "tokens", "input_tokens", "output_tokens")
"""What a limit may count; a request costs 1, input plus output, input, output of these."""
TOKENS = 1  # the place of all tokens among them

_WINDOW_S = MINUTE_S + 0.25
_PACE_MARGIN_S = 0.5  # the refill leaves out this many seconds' worth of each minute
_SLOT_S = _WINDOW_S / 1024  # admissions of one slot leave the window together: bounded memory
_EPSILON = 1e-6  # a shortage below this is rounding


class Quota:
    """The arithmetic of one limit. Not thread-safe: the bucket's lock guards it.

    ``limit`` is per minute, times are seconds of any clock that never goes back.
    """

    __slots__ = (
        *("capacity", "charged", "in_window", "kind", "level", "limit", "name", "refill", "stamp"),
        "window",
    )

    def __init__(self, name: str, limit: float, burst_seconds: float, now: float) -> None:
        self.name = name
        self.kind = KINDS.index(name)
        self.limit = limit
        self.charged = 0.0  # in all, refunds taken off
        self.capacity = limit * burst_seconds / MINUTE_S
        self.refill = limit / MINUTE_S * (1.0 - _PACE_MARGIN_S / MINUTE_S)
        self.level = self.capacity
        self.stamp = now
        # Slots of [last admission, amount, first admission], oldest first.
        self.window: deque[list[float]] = deque()
        self.in_window = 0.0

    def advance(self, now: float) -> None:
        """Refill, and forget what left the window."""
        if now > self.stamp:
            level = self.level + (now - self.stamp) * self.refill
            self.level = level if level < self.capacity else self.capacity
            self.stamp = now
        window, horizon = self.window, now - _WINDOW_S
        while window and window[0][0] <= horizon:
            self.in_window -= window.popleft()[1]
        if not window:
            self.in_window = 0.0

    def delay_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` may be admitted if nothing else is; advanced to ``now``."""
        short = (cost if cost < self.capacity else self.capacity) - self.level
        delay = short / self.refill if short > _EPSILON else 0.0
        over = self.in_window + (cost if cost < self.limit else self.limit) - self.limit
        if over > _EPSILON:
            leaves = now
            for slot in self.window:
                leaves = slot[0] + _WINDOW_S
                over -= slot[1]
                if over <= _EPSILON:
                    break
            delay = max(delay, leaves - now)
        return delay

    def charge(self, cost: float, now: float) -> list[float]:
        """Take ``cost``, which may leave a debt; gives the window's slot that counts it."""
        self.level -= cost
        self.charged += cost
        self.in_window += cost
        if self.window:
            slot = self.window[-1]
            if now - slot[2] < _SLOT_S:
                slot[0] = now
                slot[1] += cost
                return slot
        slot = [now, cost, now]
        self.window.append(slot)
        return slot

    def postpone(self, amount: float, slot: list[float], sent_at: float) -> list[float]:
        """Count ``amount`` of what ``slot`` counts at ``sent_at`` instead; gives the slot that does.

        ``sent_at`` is behind the slot's time, and past.
        """
        if not self.window or slot[0] < self.window[0][0]:
            return slot  # it has left the window already
        later = next(later for later in reversed(self.window) if later[2] <= sent_at)
        slot[1] -= amount
        later[1] += amount
        later[0] = max(later[0], sent_at)
        return later

    def refund(self, amount: float, slot: list[float], now: float) -> None:
        """Give back ``amount`` of what ``slot`` counts."""
        self.level = min(self.capacity, self.level + amount)
        self.charged -= amount
        if slot[0] > now - _WINDOW_S:
            slot[1] -= amount
            self.in_window -= amount
