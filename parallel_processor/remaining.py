"""What a server has left of a limit: its own word, carried on until the next one.

``remaining`` in an answer's headers is the server's level when it admitted that request. Taking off what
was sent after it, and adding what is refilled meanwhile, gives the level now. Answers that arrive out of
order are older news than what is known, and change nothing. Other clients of the account show as what
disappears without our doing; their rate is estimated from that.

Most servers refill all the time. Others count in fixed windows: what remains jumps back at the end. The
``reset`` tells which, or the jump itself.
"""

from __future__ import annotations

import math

from parallel_processor.ratelimits import LimitReading, looks_refilled

LONGEST_PACED_S = 3600.0  # a day's limit may be used up in an hour
_KNEE_S = 10.0
_TRICKLE = 0.02  # the least share of the rate: one has to ask to hear of better times
_OTHERS_S = 5.0  # time constant of the estimate of what others take
_LEAST_SPAN_S = 0.5  # between two answers that are compared
_SILENCE_S = 2.0
_SHORTEST_WAIT_S = 0.001
_VOTE = 0.3
_UP = 0.1
_EPSILON = 1e-6


class Remaining:
    """The level of one limit. Not thread-safe: the bucket's lock guards it.

    ``left`` is infinite while nothing is known, ``told`` the last header's figure, ``others`` what
    other clients seem to take per second, ``is_fixed`` whether it counts in fixed windows. ``limit``
    is per ``window_s``; ``headroom`` is the share of it that is left to others.
    """

    __slots__ = (
        *("_base", "_ends_at", "_heard_at", "_most", "_newest", "_votes", "_window_s"),
        *("headroom", "is_fixed", "left", "limit", "others", "told"),
    )

    def __init__(self, window_s: float, headroom: float) -> None:
        self.limit = self.left = self.told = math.inf
        self.headroom = headroom
        self.others = 0.0
        self._window_s = window_s
        self.is_fixed = False
        self._ends_at = math.inf  # of a fixed window
        self._most = 0.0  # the largest level seen, lately
        self._votes: float | None = None  # the share of answers that speak for fixed windows
        self._heard_at = -math.inf
        self._newest = -math.inf  # our total charge at the newest request whose answer was read
        self._base: tuple[float, float, float] | None = None  # (when, total, remaining)

    @property
    def _per_s(self) -> float:
        return self.limit / self._window_s

    @property
    def _refill(self) -> float:
        """What comes back for us, per second; a trickle in any case."""
        return max(self._per_s - self.others, _TRICKLE * self._per_s)

    def set_limit(self, limit: float) -> None:
        """The limit is known, or has changed."""
        if limit != self.limit:
            self.limit, self._base = limit, None
            self._most = min(self._most, limit)

    def advance(self, seconds: float, now: float) -> None:
        """Refill for so many seconds."""
        if self.left == math.inf:
            return
        if now - self._heard_at > _SILENCE_S:  # nobody tells that the others go on
            self.others *= 0.5 ** (seconds / _SILENCE_S)
        if not self.is_fixed:
            self.left = min(self.limit, self.left + self._refill * seconds)
        elif now >= self._ends_at:
            self.left = math.inf

    def share(self, now: float) -> float:
        """The share of the limit's even rate at which what is left should be spent, at most 1."""
        if self.left == math.inf:
            return 1.0
        usable = self.left - self.headroom * self.limit
        if self.is_fixed:
            share = usable / (max(self._ends_at - now, 0.1) * self._per_s)
        else:
            # No more than half of the largest level seen, for servers that keep little.
            knee = min(_KNEE_S * self._per_s, self._most / 2)
            share = usable / knee if knee > 0 else 1.0
        return min(1.0, max(share, _TRICKLE))

    def delay_s(self, cost: float, now: float, delay: float) -> float:
        """Seconds until ``cost`` is left, if that is later than in ``delay`` seconds."""
        if self.left == math.inf:
            return delay
        most = self.limit * (1.0 - self.headroom)
        short = min(cost, most) - (self.left - self.headroom * self.limit)
        if short > _EPSILON:
            wait = self._ends_at - now if self.is_fixed else short / self._refill
            delay = max(delay, wait, _SHORTEST_WAIT_S)
        return delay

    def may_change(self, now: float) -> bool:
        """True if others may shorten a wait: it is to be looked at again."""
        return self.left < math.inf and self.share(now) < 1.0

    def lacks(self, cost: float) -> bool:
        """True if, by the newest headers, not enough remains for ``cost``."""
        return self.told - self.headroom * self.limit < cost

    def is_news(self, total: float) -> bool:
        """True for an answer to a request that was sent after all whose answers were read."""
        if total < self._newest:
            return False
        self._newest = total
        return True

    def observe(
        self, reading: LimitReading, *, sent_at: float, total: float, now: float, total_now: float
    ) -> None:
        """Follow what an answer says; see :meth:`ObservedQuota.observe`."""
        if reading.remaining is None:
            return
        self._heard_at = now
        self._note_enforcement(reading, sent_at, total, now)
        self._note_others(reading.remaining, sent_at, total)
        self.told = left = min(reading.remaining, reading.limit)
        self._most = max(self._most * 0.999, left)
        if not self.is_fixed:
            left = min(self.limit, left + self._refill * max(now - sent_at, 0.0))
        left = max(left - (total_now - total), -self.limit)  # at most a window's debt
        if self.left == math.inf or left < self.left:
            self.left = left
        else:  # requests overtake each other on their way: a single answer may show too much
            self.left += _UP * (left - self.left)
        if self.is_fixed and now >= self._ends_at:
            self.left = math.inf  # a window that is over

    def _note_enforcement(
        self, reading: LimitReading, sent_at: float, total: float, now: float
    ) -> None:
        """Tell a bucket that refills all the time from a window that begins anew."""
        assert reading.remaining is not None
        refilled = looks_refilled(reading)
        if refilled is not None:  # one answer may fit by chance
            votes = self._votes
            self._votes = (
                1.0 - refilled if votes is None else votes + _VOTE * (1.0 - refilled - votes)
            )
            self.is_fixed = self._votes > 0.5
        if reading.reset_s is not None:  # as of when the server admitted the request
            self._ends_at = sent_at + reading.reset_s
        elif self._base is not None:
            when, before, left = self._base
            expected = left + self._per_s * (sent_at - when) - (total - before)
            if reading.remaining > expected + 0.3 * self.limit:  # it jumped
                self.is_fixed, self._ends_at = True, now + self._window_s

    def _note_others(self, remaining: float, sent_at: float, total: float) -> None:
        """Estimate what others take from what disappeared between two requests."""
        if self._base is None:
            self._base = (sent_at, total, remaining)
            return
        when, before, left = self._base
        span = sent_at - when
        if span < _LEAST_SPAN_S:
            return
        taken = left + self._per_s * span - (total - before) - remaining
        # At the top a bucket doesn't refill, so that what is missing there was taken by nobody.
        if self.is_fixed or max(left, remaining) > 0.98 * self.limit:
            taken = 0.0
        others = self.others + span / (span + _OTHERS_S) * (taken / span - self.others)
        self.others = min(max(others, 0.0), self._per_s)
        self._base = (sent_at, total, remaining)
