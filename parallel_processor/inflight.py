"""How many requests a server works on best at once, found by trying.

A server without rate limits (vLLM, Ollama, a gateway of one's own) has a limit all the same: beyond
some number in flight, each further request only makes the others slower, or is turned away. By Little's
law the throughput is the number in flight divided by the latency, so both together say whether one more
was worth it, whatever the latency itself is. The number doubles from round to round while that gains
throughput (or, if the first doubling gains nothing, halves while that loses nothing), and then climbs
uphill in steps of a tenth, back and forth around the best. A round is as many answers as there are
requests in flight, and only those count that were sent in it, after the number was reached. A number
that isn't used isn't changed: nothing was learned.

A refusal for overload (503, 529) cuts the number once per burst, in proportion to the share of attempts
that were refused lately (as DCTCP does, RFC 8257), to 0.7 of what was in flight at most. Where that half
as many in flight are refused as often, the load wasn't the reason: the cuts are taken back, and as many
refusals are borne from then on. Where nothing else bounds it, the number grows back by a twentieth a
round.
"""

from __future__ import annotations

import math

_FIRST = 32
_GENTLE = 4  # for a server that may tell of rate limits in its first answers
_STEP = 1.1
_WORTH = 0.1  # of the relative growth in number is the least gain in throughput that is worth it
_LEAP_WORTH = 0.3  # of the same for a doubling: a doubtful one is left to the small steps
_LARGEST_CUT = 0.3
_CUT_PER_SHARE = 1.5
_MUCH = 0.25  # refused of a load that half of it may still be too much of
_SAME = 0.6  # of a share that half the load should have brought to nothing
_BORNE = 1.5
_TELLING_ENDS = 50
_GROWTH = 1.05
_FULL = 0.7  # a share of the limit that must have been in flight for a round to tell anything
_LEAST_ANSWERS = 8


class InFlightLimit:
    """The bound of the number in flight. Not thread-safe: the bucket's lock guards it.

    ``limit`` is infinite while there is no reason for one. ``climbs`` says to look for the best one;
    ``gentle`` to begin with a few, and ``most`` how far.
    """

    __slots__ = (
        *(
            "_before",
            "_borne",
            "count",
            "limit",
            "peak",
            "total",
            "_answers",
            "_area",
            "_climbs",
            "_cut_at",
            "_factor",
        ),
        *(
            "_ended",
            "_leaps",
            "_refused",
            "_settles",
            "_last",
            "_latency",
            "_most",
            "_round_at",
            "_stamp",
        ),
    )

    def __init__(
        self, *, now: float, climbs: bool = False, gentle: bool = False, most: float = math.inf
    ) -> None:
        self.count = self.peak = self.total = 0
        self.limit = min(float(_GENTLE if gentle else _FIRST), most) if climbs else math.inf
        self._most = most
        self._climbs = climbs
        self._leaps = 0  # taken so far; negative once they are over
        self._factor = 2.0
        self._ended = self._refused = 0  # since the first cut, or the last that helped
        self._before: tuple[float, float] | None = None  # the limit and the share refused then
        self._borne = 0.0  # the share of refusals that is nothing new
        self._last: tuple[float, float] | None = None  # logarithms of number and throughput
        self._cut_at = -math.inf
        self._settles = True
        self._stamp = now
        self._begin_round(now)

    @property
    def has_room(self) -> bool:
        """True if one more may go."""
        return self.count < self.limit

    def set_free(self) -> bool:
        """The server has rate limits, which bound what is in flight; true if this did before."""
        if not self._climbs:
            return False
        self._climbs, self.limit = False, math.inf
        return True

    def _begin_round(self, now: float) -> None:
        self._round_at = now
        self._answers = 0
        self._latency = self._area = 0.0

    def _settle(self, now: float) -> None:
        """A round begins when the number in flight has followed the limit, up or down."""
        if self.limit - 1 - self.limit / 20 <= self.count <= self.limit:
            self._settles = False
            self._begin_round(now)

    def _pass_time(self, now: float) -> None:
        if now > self._stamp:
            self._area += self.count * (now - self._stamp)
            self._stamp = now

    def started(self, now: float) -> None:
        """One more is in flight."""
        if now > self._stamp:
            self._area += self.count * (now - self._stamp)
            self._stamp = now
        self.count = count = self.count + 1
        self.total += 1
        if count > self.peak:
            self.peak = count
        if self._settles:
            self._settle(now)

    def ended(self, now: float, admitted_at: float, *, answered: bool) -> bool:
        """One less is in flight; true if there may be room now for somebody who waited for it."""
        was_full = not self.has_room
        self._pass_time(now)
        self.count -= 1
        self._ended += 1
        if self.limit == math.inf:
            return False
        if self._settles:
            self._settle(now)
        elif answered and admitted_at > self._round_at:
            self._answers += 1
            self._latency += now - admitted_at
            if self._answers >= max(self.limit, _LEAST_ANSWERS):
                self._end_round(now)
        return was_full

    def _end_round(self, now: float) -> None:
        latency = self._latency / self._answers
        self._settles = True
        number = self._area / max(now - self._round_at, 1e-9)
        self._begin_round(now)
        is_full = number >= _FULL * min(self.limit, self._most)
        if not self._climbs:
            self.limit = self.limit * _GROWTH + 1.0 if is_full else math.inf  # it isn't needed
            return
        if not is_full or latency <= 0:
            return
        here = (math.log(number), math.log(number / latency))
        self._climb(here)
        self.limit = max(1.0, min(self.limit, self._most))

    def _climb(self, here: tuple[float, float]) -> None:
        last, self._last = self._last, here
        grown = gained = 0.0
        if last is not None:
            grown, gained = here[0] - last[0], here[1] - last[1]
        if self._leaps >= 0:
            self._leap(last, gained < (_LEAP_WORTH if grown > 0 else _WORTH) * grown)
            return
        if last is not None and gained < _WORTH * grown:
            self._factor = 1 / self._factor
        step = self.limit * self._factor
        if abs(step - self.limit) < 1:
            step = self.limit + math.copysign(1.0, self._factor - 1)
        self.limit = max(1.0, step)

    def _leap(self, last: tuple[float, float] | None, is_worse: bool) -> None:
        """Double or halve; if the last time made it worse, go back, and turn or take small steps."""
        self._leaps += 1
        if last is not None and is_worse:
            self.limit, self._last = math.exp(last[0]), last
            if self._leaps > 2 or self._factor < 1:
                self._leaps, self._factor, self._last = -1, 1 / _STEP, None
                return
            self._factor = 0.5
        self.limit = max(1.0, self.limit * self._factor)

    def overloaded(self, now: float, admitted_at: float) -> bool:
        """The server turned a request away for its load; true if this cut the number.

        What was in flight at the last cut belongs to the same burst.
        """
        self._refused += 1
        if admitted_at <= self._cut_at:
            return False
        share = self._refused / max(self._ended, 1)
        number = self.limit if self.limit < math.inf else max(self.peak, 1)
        if self._ended >= _TELLING_ENDS and (
            share <= self._borne or self._is_futile(number, share)
        ):
            return False
        if self._before is None:
            self._before = (number, share)
        self._cut_at = now
        cut = min(_LARGEST_CUT, _CUT_PER_SHARE * share)
        self._leaps, self._factor, self._last = -1, _STEP, None
        self.limit = max(1.0, (1.0 - cut) * number)
        self._settles = True
        return True

    def _is_futile(self, number: float, share: float) -> bool:
        """Half as many in flight were refused as often: take the cuts back."""
        if self._before is None or number > self._before[0] / 2:
            return False
        (before, share_before), self._before = self._before, None
        self._ended = self._refused = 0
        if share >= _MUCH or share < _SAME * share_before:
            return False  # it helped, or there is still far to go
        self.limit, self._borne = before, _BORNE * max(share, share_before)
        self._settles = True
        return True
