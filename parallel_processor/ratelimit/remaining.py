"""What a server has left of a limit: the last header, extrapolated to now.

``remaining`` in the headers of an answer is the level of the server when it admitted that request. The
level now is that level, less what was sent since, plus what was refilled since. An answer that arrives
after the answer to a later request is out of date and changes nothing. What disappears though we didn't
send it was taken by other clients of the account. Their rate is estimated from that.

Most servers refill all the time. Others count in fixed windows: what remains jumps back at the end of
the window. The ``reset`` header shows which of both it is, or the jump itself does.
"""

from __future__ import annotations

import math

from parallel_processor.models import LimitReading, refill_s

LONGEST_PACED_S = 3600.0  # a day's limit may be used up in an hour
_KNEE_S = 10.0  # below so many seconds' worth of the limit the rate falls with what is left
_TRICKLE = 0.02  # the least share of the rate: without requests no header would show a recovery
_OTHERS_S = 5.0  # time constant of the estimate of what other clients take
_LEAST_SPAN_S = 0.5  # between two answers that are compared
_SILENCE_S = 2.0  # without an answer for so long, the estimate decays with this half-life
_SHORTEST_WAIT_S = 0.001
_VOTE = 0.3  # the weight of one answer in the decision between refill and fixed windows
_UP = 0.1  # the weight of one answer that shows more than is known
_ROUNDING_S = 1.1  # of a reset in whole seconds, compared with a clock in whole seconds
_EPSILON = 1e-6  # a shortage below this is rounding


class Remaining:
    """The level of one limit. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        limit: what the server allows in one window; infinite while it is unknown.
        headroom: the share of the limit that is left to other clients.
        left: the level now; infinite while it is unknown.
        told: the level in the last headers; infinite before any.
        others: what other clients seem to take, per second.
        is_fixed: whether the server counts in fixed windows.
    """

    def __init__(self, window_s: float, headroom: float) -> None:
        self.limit = self.left = self.told = math.inf
        self.headroom = headroom
        self.others = 0.0
        self._window_s = window_s
        self.is_fixed = False
        self._ends_at = math.inf  # when the fixed window ends
        self._most = 0.0  # the largest level that was seen lately
        self._votes: float | None = None  # the share of answers that indicate fixed windows
        self._heard_at = -math.inf
        self._newest = -math.inf  # the total charge as of the newest request whose answer was read
        self._base: tuple[float, float, float] | None = None  # (when, total, remaining)

    @property
    def _per_s(self) -> float:
        return self.limit / self._window_s

    @property
    def _refill(self) -> float:
        """What the server refills for us, per second; never less than a trickle."""
        return max(self._per_s - self.others, _TRICKLE * self._per_s)

    def set_limit(self, limit: float) -> None:
        """Note that the limit is known, or has changed."""
        if limit != self.limit:
            self.limit, self._base = limit, None
            self._most = min(self._most, limit)

    def advance(self, seconds: float, now: float) -> None:
        """Refill for ``seconds``, up to ``now``."""
        if self.left == math.inf:
            return
        if now - self._heard_at > _SILENCE_S:  # nothing shows that the others go on
            self.others *= 0.5 ** (seconds / _SILENCE_S)
        if not self.is_fixed:
            self.left = min(self.limit, self.left + self._refill * seconds)
        elif now >= self._ends_at:
            self.left = math.inf

    def take(self, cost: float) -> None:
        """Take ``cost`` off what is left; a negative cost gives it back."""
        self.left -= cost

    def share(self, now: float) -> float:
        """At which share of the even rate of the limit to spend what is left; at most 1."""
        if self.left == math.inf:
            return 1.0
        usable = self.left - self.headroom * self.limit
        if self.is_fixed:
            share = usable / (max(self._ends_at - now, 0.1) * self._per_s)
        else:
            # At most half of the largest level seen: some servers keep little for bursts.
            knee = min(_KNEE_S * self._per_s, self._most / 2)
            share = usable / knee if knee > 0 else 1.0
        return min(1.0, max(share, _TRICKLE))

    def delay_s(self, cost: float, now: float, delay: float) -> float:
        """Seconds until ``cost`` is left, or ``delay`` if that is longer."""
        if self.left == math.inf:
            return delay
        most = self.limit * (1.0 - self.headroom)
        short = min(cost, most) - (self.left - self.headroom * self.limit)
        if short > _EPSILON:
            wait = self._ends_at - now if self.is_fixed else short / self._refill
            delay = max(delay, wait, _SHORTEST_WAIT_S)
        return delay

    def may_change(self, now: float) -> bool:
        """True if other clients may shorten a wait, so that it must be computed again."""
        return self.left < math.inf and self.share(now) < 1.0

    def lacks(self, cost: float) -> bool:
        """True if, by the last headers, too little remains for ``cost``."""
        return self.told - self.headroom * self.limit < cost

    def is_newest(self, total: float) -> bool:
        """True if the request was sent after all requests whose answers were read before.

        ``total`` is what had been charged when it was admitted, that request included.
        """
        if total < self._newest:
            return False
        self._newest = total
        return True

    def observe(
        self, reading: LimitReading, *, sent_at: float, total: float, now: float, total_now: float
    ) -> None:
        """Follow ``reading``; the other arguments are what a ``Span`` has of this kind."""
        if reading.remaining is None:
            return
        self._heard_at = now
        self._note_enforcement(reading, sent_at, total, now)
        self._note_others(reading.remaining, sent_at, total)
        self.told = left = min(reading.remaining, reading.limit)
        self._most = max(self._most * 0.999, left)
        if not self.is_fixed:
            left = min(self.limit, left + self._refill * max(now - sent_at, 0.0))
        left = max(left - (total_now - total), -self.limit)  # at most the debt of one window
        if self.left == math.inf or left < self.left:
            self.left = left
        else:  # requests overtake each other, so a single answer may show too much
            self.left += _UP * (left - self.left)
        if self.is_fixed and now >= self._ends_at:
            self.left = math.inf  # that window is over

    def _note_enforcement(
        self, reading: LimitReading, sent_at: float, total: float, now: float
    ) -> None:
        """Decide whether the server refills all the time or counts in fixed windows."""
        assert reading.remaining is not None
        is_refilled = looks_refilled(reading)
        if is_refilled is not None:  # one answer alone may fit by chance
            vote = 0.0 if is_refilled else 1.0
            before = vote if self._votes is None else self._votes
            self._votes = before + _VOTE * (vote - before)
            self.is_fixed = self._votes > 0.5
        if reading.reset_s is not None:  # as of when the server admitted the request
            self._ends_at = sent_at + reading.reset_s
        elif self._base is not None:
            when, before, left = self._base
            expected = left + self._per_s * (sent_at - when) - (total - before)
            if reading.remaining > expected + 0.3 * self.limit:  # it jumped
                self.is_fixed, self._ends_at = True, now + self._window_s

    def _note_others(self, remaining: float, sent_at: float, total: float) -> None:
        """Estimate what other clients take from what disappeared between two requests."""
        if self._base is None:
            self._base = (sent_at, total, remaining)
            return
        when, before, left = self._base
        span = sent_at - when
        if span < _LEAST_SPAN_S:
            return
        taken = left + self._per_s * span - (total - before) - remaining
        # A full bucket doesn't refill, so what seems to be missing at the top was taken by nobody.
        if self.is_fixed or max(left, remaining) > 0.98 * self.limit:
            taken = 0.0
        others = self.others + span / (span + _OTHERS_S) * (taken / span - self.others)
        self.others = min(max(others, 0.0), self._per_s)
        self._base = (sent_at, total, remaining)


def looks_refilled(reading: LimitReading) -> bool | None:
    """True for a limit that is refilled all the time, false for a fixed window, ``None`` if unclear.

    One reading proves little. The reset of a fixed window fits by chance at some moment of its minute,
    and a bucket that holds less than ``limit`` looks like a fixed window.
    """
    if reading.reset_s is None or reading.remaining is None:
        return None
    predicted_s = refill_s(reading.limit, reading.remaining, reading.window_s)
    tolerance_s = max(_ROUNDING_S, 0.03 * predicted_s)
    off_s = reading.reset_s - predicted_s
    if predicted_s <= tolerance_s and reading.reset_s <= tolerance_s:
        return None
    if abs(off_s) <= tolerance_s or (reading.remaining == 0 and off_s > 0):  # in debt
        return True
    if reading.reset_s > reading.window_s + _ROUNDING_S:
        return None  # no server of either kind shows that
    # ``remaining`` is rounded down to whole units, of tokens also to thousands. A reset in whole seconds
    # is off by up to a second more: a timestamp rounded up against a clock rounded down.
    unit_s = reading.window_s / reading.limit
    is_thousands = reading.name != "requests" and reading.remaining % 1000 == 0
    thousand_s = 1000 * unit_s if is_thousands else 0
    earliest_s = -max(unit_s, thousand_s) - tolerance_s
    latest_s = thousand_s + tolerance_s + (1 if reading.reset_s % 1 == 0 else 0)
    return None if earliest_s <= off_s <= latest_s else False
