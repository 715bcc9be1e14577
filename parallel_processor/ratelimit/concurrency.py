"""Finding the number of requests in flight that suits a server best.

A server without rate limits (vLLM, Ollama, a private gateway) has a limit all the same: beyond some
number in flight, each further request only makes the others slower, or is rejected.

**Search.** By Little's law the throughput is the number in flight divided by the latency. So both
together show whether a higher number paid off, whatever the latency itself is. The search has two
phases:

* Leaps: the number doubles each round while that gains throughput. If the first doubling gains nothing,
  the number halves instead while that loses nothing.
* Climbing: the number changes by a tenth a round, and turns round when the last step made it worse. So
  it goes back and forth around the best number.

A round is as many answers as there are requests in flight. It begins when the number in flight has
reached the limit, and only requests that were sent in it count. If the number isn't used, nothing is
learned, and it isn't changed.

**Overload.** A rejection for overload (503, 529) cuts the number once per burst. The cut is proportional
to the share of attempts that were rejected lately, as in DCTCP (RFC 8257), and at most 30 %. If halving
the number doesn't lower the share of rejections, load isn't their cause: the cuts are taken back, and
that share is tolerated from then on. If nothing else bounds the number, it grows back by a twentieth a
round.

**Doubt.** While a server may be out of order, the number is confined: only so many more may go than were in
flight when the doubt arose. Nothing is learned meanwhile. The first answer frees it again.
"""

from __future__ import annotations

import math

_FIRST = 32  # the number at the begin of the search
_GENTLE = 4  # the same for a server that may name rate limits in its first answers
_STEP = 1.1  # of the climbing
_WORTH = 0.1  # a step pays off if throughput grows by this share of the growth in number
_LEAP_WORTH = 0.3  # the same for a doubling: if in doubt, the small steps decide
_LARGEST_CUT = 0.3
_CUT_PER_SHARE = 1.5  # the cut, as a multiple of the share of rejections
_MUCH = 0.25  # with more rejections than this share, even half the number may be too high
_SAME = 0.6  # halving should bring the share to nothing; it didn't help if this much of it is left
_TOLERATED = 1.5  # this multiple of the share that halving didn't lower is tolerated
_LEAST_ENDS = 50  # a share counts only if it is taken over so many attempts
_GROWTH = 1.05  # a round, after a cut
_FULL = 0.7  # a round counts only if this share of the limit was in flight
_LEAST_ANSWERS = 8  # of a round


class ConcurrencyLimit:
    """The bound of the number in flight. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        limit: how many may be in flight; infinite while there is no reason for a limit.
        count: how many are in flight.
        peak: the largest ``count`` so far.
        total: how many were started in all.
    """

    def __init__(
        self, *, now: float, climbs: bool = False, gentle: bool = False, most: float = math.inf
    ) -> None:
        """Search for the best number if ``climbs``, beginning low if ``gentle``, up to ``most``."""
        self.count = self.peak = self.total = 0
        self.limit = min(float(_GENTLE if gentle else _FIRST), most) if climbs else math.inf
        self._most = most
        self._climbs = climbs
        self._leaps = 0  # taken so far; -1 once they are over
        self._factor = 2.0  # of the next leap or step
        self._ended = self._rejected = 0  # attempts since the cuts were last assessed
        # The limit and the share of rejections before the cuts.
        self._before: tuple[float, float] | None = None
        self._tolerated = 0.0  # the share of rejections that is tolerated
        self._last: tuple[float, float] | None = None  # logarithms of number and throughput
        self._cut_at = -math.inf
        self._settles = True  # the number in flight still has to reach the limit
        self._free_limit: float | None = None  # the limit before it was confined
        self._confined_at = -math.inf
        self._stamp = now
        self._begin_round(now)

    @property
    def has_room(self) -> bool:
        """True if one more may go."""
        return self.count < self.limit

    def set_free(self) -> bool:
        """End the search, since rate limits bound the number in flight; true if it went on so far."""
        if not self._climbs:
            return False
        self._climbs = False
        if self._free_limit is not None:
            self._free_limit = math.inf
        else:
            self.limit = math.inf
        return True

    @property
    def is_confined(self) -> bool:
        """True while a doubt bounds the number, rather than the server's load."""
        return self._free_limit is not None

    def confine(self, more: int, now: float) -> None:
        """Let only ``more`` go than are in flight now, until one is answered."""
        if self._free_limit is None:
            self._free_limit = self.limit
        self.limit, self._confined_at = max(1.0, float(self.count + more)), now

    def free(self) -> bool:
        """End the confinement; true if there was one."""
        if self._free_limit is None:
            return False
        self.limit, self._free_limit = self._free_limit, None
        self._settles = True
        return True

    def _ended_confined(self, admitted_at: float, *, answered: bool) -> bool:
        """Follow the end of an attempt while confined; true if a request may go now."""
        if answered:
            return self.free()
        if admitted_at <= self._confined_at:  # one that was in flight when it began
            self.limit = max(1.0, self.limit - 1)
        return self.has_room

    def _begin_round(self, now: float) -> None:
        self._round_at = now
        self._answers = 0
        self._latency = 0.0  # the sum over the answers of the round
        self._area = 0.0  # the number in flight, integrated over the time of the round

    def _settle(self, now: float) -> None:
        """Begin a round once the number in flight has reached the limit, from above or below."""
        if self.limit - 1 - self.limit / 20 <= self.count <= self.limit:
            self._settles = False
            self._begin_round(now)

    def _pass_time(self, now: float) -> None:
        if now > self._stamp:
            self._area += self.count * (now - self._stamp)
            self._stamp = now

    def started(self, now: float) -> None:
        """Count one more in flight."""
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
        """Count one less in flight; true if a request may go now that waited for this."""
        was_full = not self.has_room
        self._pass_time(now)
        self.count -= 1
        self._ended += 1
        if self.limit == math.inf:
            return False
        if self._free_limit is not None:
            return self._ended_confined(admitted_at, answered=answered)
        if self._settles:
            self._settle(now)
        elif answered and admitted_at > self._round_at:
            self._answers += 1
            self._latency += now - admitted_at
            if self._answers >= max(self.limit, _LEAST_ANSWERS):
                self._end_round(now)
        return was_full

    def cancelled(self, now: float, admitted_at: float) -> None:
        """Count one less in flight that was never sent."""
        self.ended(now, admitted_at, answered=False)
        self.total -= 1

    def _end_round(self, now: float) -> None:
        latency = self._latency / self._answers
        self._settles = True
        number = self._area / max(now - self._round_at, 1e-9)
        self._begin_round(now)
        is_full = number >= _FULL * min(self.limit, self._most)
        if not self._climbs:
            # Grow back after a cut. A limit that isn't reached isn't needed.
            self.limit = self.limit * _GROWTH + 1.0 if is_full else math.inf
            return
        if not is_full or latency <= 0:
            return
        self._climb((math.log(number), math.log(number / latency)))
        self.limit = max(1.0, min(self.limit, self._most))

    def _climb(self, here: tuple[float, float]) -> None:
        """Choose the next number by comparing the throughput ``here`` with the last round's."""
        last, self._last = self._last, here
        grown, gained = (0.0, 0.0) if last is None else (here[0] - last[0], here[1] - last[1])
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
        """Double or halve. If the last leap made it worse, go back, and turn round or begin to climb."""
        self._leaps += 1
        if last is not None and is_worse:
            self.limit, self._last = math.exp(last[0]), last
            if self._leaps > 2 or self._factor < 1:
                self._leaps, self._factor, self._last = -1, 1 / _STEP, None
                return
            self._factor = 0.5
        self.limit = max(1.0, self.limit * self._factor)

    def overloaded(self, now: float, admitted_at: float) -> bool:
        """Follow a rejection for overload; true if it cut the number.

        A request that was in flight at the last cut belongs to the same burst.
        """
        self._rejected += 1
        if admitted_at <= self._cut_at or self._free_limit is not None:
            return False
        share = self._rejected / max(self._ended, 1)
        number = self.limit if self.limit < math.inf else max(self.peak, 1)
        is_known = self._ended >= _LEAST_ENDS
        if is_known and (share <= self._tolerated or self._is_futile(number, share)):
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
        """Take the cuts back, and return true, if halving the number didn't lower the share."""
        if self._before is None or number > self._before[0] / 2:
            return False
        (before, share_before), self._before = self._before, None
        self._ended = self._rejected = 0
        if share >= _MUCH or share < _SAME * share_before:
            return False  # it helped, or the number is still far too high
        self.limit, self._tolerated = before, _TOLERATED * max(share, share_before)
        self._settles = True
        return True
