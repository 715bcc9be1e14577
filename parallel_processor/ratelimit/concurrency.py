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

For a server that answers at once, the search begins with 16 and never goes below: then this process bounds
the throughput, which is nearly the same for any number.

A round is as many answers as there are requests in flight. It begins when the number in flight has
reached the limit, and only requests that were sent in it count. If the number isn't used, nothing is
learned, and it isn't changed.

**Bounds.** Refusals and slowness bound the number besides (``ceiling.py``), and what headers name.

**Doubt.** While a server may be out of order, the number is confined: only so many more may go than were in
flight when the doubt arose. Nothing is learned meanwhile. The first answer frees it again.
"""

from __future__ import annotations

import math

from parallel_processor.ratelimit.ceiling import Ceiling, Slowness

_FIRST = 32  # the number at the begin of the search
_FEW = 16.0  # the first and the least number for a server that answers at once
_QUICK_S = 0.05  # an answer that comes sooner came at once
_GENTLE = 4  # the same for a server that may name rate limits in its first answers
_STEP = 1.1  # of the climbing
_WORTH = 0.1  # a step pays off if throughput grows by this share of the growth in number
_LEAP_WORTH = 0.3  # the same for a doubling: if in doubt, the small steps decide
_FULL = 0.7  # a round counts only if this share of the limit was in flight
_LEAST_ANSWERS = 8  # of a round
_LEAST_ROUND_S = 0.1  # of a shorter round, chance decides: a server that answers at once ends many
_FAR = 1.5  # a number that is higher by this factor explains a timeout
_LATENCY_WEIGHT = 0.2  # of one answer in the mean latency


class ConcurrencyLimit:
    """The bound of the number in flight. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        limit: how many may be in flight; infinite while there is no reason for a limit.
        count: how many are in flight.
        peak: the largest ``count`` so far.
        total: how many were started in all.
        latency_s: the mean time that answers take; infinite while that isn't known.
    """

    def __init__(
        self,
        *,
        now: float,
        climbs: bool = False,
        gentle: bool = False,
        most: float = math.inf,
        longest_s: float = math.inf,
    ) -> None:
        """Search for the best number if ``climbs``, beginning low if ``gentle``, up to ``most``.

        An answer may take ``longest_s``.
        """
        self.count = self.peak = self.total = 0
        self.latency_s = math.inf
        self._sought = min(float(_GENTLE if gentle else _FIRST), most) if climbs else math.inf
        self._told = math.inf  # by headers
        self._ceiling, self._slowness = Ceiling(), Slowness(longest_s)
        self._slow_s = self._slowness.slow_s
        self._worked_off_at = -math.inf  # until then the server may work at what was given up
        self.limit = self._sought
        self._most = most
        self._climbs, self._is_gentle = climbs, gentle
        self._leaps = 0  # taken so far; -1 once they are over
        self._factor = 2.0  # of the next leap or step
        self._ends = self._ceiling.shares.ended
        self._last: tuple[float, float] | None = None  # logarithms of number and throughput
        self._is_new = True  # nothing was answered
        self._settles = True  # the number in flight still has to reach the limit
        self._least = _least_of_round(self.limit)
        self._confined = math.inf  # the limit while the server may be out of order
        self._confined_at = -math.inf
        self._stamp = now
        self._begin_round(now)

    @property
    def has_room(self) -> bool:
        """True if one more may go."""
        return self.count < self.limit

    @property
    def is_certain(self) -> bool:
        """True if only the number in flight explains the refusals."""
        return self._ceiling.is_certain

    @property
    def borne(self) -> float:
        """How many the server bears, as far as refusals have shown; else infinite."""
        return self._ceiling.number

    def restore(self, borne: float) -> None:
        """Take back what refusals have shown since :attr:`borne` was this."""
        self._ceiling.number = borne
        self._bound()

    def _bound(self) -> bool:
        """Compute the limit anew; true if it is higher than before."""
        before = self.limit
        bounds = self._sought, self._told, self._ceiling.number, self._slowness.number
        self.limit = max(1.0, min(*bounds, self._confined))
        if self.limit != before:
            self._settles, self._least = True, _least_of_round(self.limit)
        return self.limit > before

    def set_free(self) -> bool:
        """End the search, since rate limits bound the number in flight; true if it went on so far."""
        if not self._climbs:
            return False
        self._climbs, self._sought = False, math.inf
        self._bound()
        return True

    def search(self) -> None:
        """Begin to search for the best number, from what is in flight; no-op during a search."""
        if not self._climbs:
            self._climbs, self._sought = True, min(max(float(_FIRST), self.count), self._most)
            self._leaps, self._factor, self._last = 0, 2.0, None
            self._bound()

    def told(self, number: float) -> bool:
        """Follow headers that name the number; true if more may be in flight than before."""
        self._told = max(1.0, number)
        return self._bound()

    @property
    def is_confined(self) -> bool:
        """True while a doubt bounds the number, rather than the server's load."""
        return self._confined < math.inf

    def confine(self, more: int, now: float) -> None:
        """Let only ``more`` go than are in flight now, until one is answered."""
        self._confined, self._confined_at = float(self.count + more), now
        self._bound()

    def free(self) -> bool:
        """End the confinement; true if there was one."""
        if self._confined == math.inf:
            return False
        self._confined = math.inf
        self._bound()
        return True

    def _ended_confined(self, admitted_at: float, *, answered: bool) -> bool:
        """Follow the end of an attempt while confined; true if a request may go now."""
        if answered:
            return self.free()
        if admitted_at <= self._confined_at:  # one that was in flight when it began
            self._confined -= 1
            self._bound()
        return self.has_room

    def _begin_round(self, now: float) -> None:
        self._round_at = self._stamp = now
        self._answers = 0
        self._latency = 0.0  # the sum over the answers of the round
        self._area = 0.0  # the number in flight, integrated over the time of the round

    def _settle(self, now: float) -> None:
        """Begin a round once the number in flight has reached the limit, from above or below."""
        if self._least <= self.count <= self.limit:
            self._settles = False
            self._begin_round(now)

    def _pass_time(self, now: float) -> None:
        """Measure the number in flight up to now, before it changes in a round."""
        self._area += self.count * (now - self._stamp)
        self._stamp = now

    def started(self, now: float) -> int:
        """Count one more in flight, and return how many that makes."""
        if not self._settles:
            self._pass_time(now)
        self.count = count = self.count + 1
        self.total += 1
        if count > self.peak:
            self.peak = count
        if self._settles and count >= self._least:
            self._settle(now)
        return count

    def ended(self, now: float, admitted_at: float, *, answered: bool, place: int = 1) -> bool:
        """Count one less in flight; true if a request may go now that waited for this.

        ``place`` is what :meth:`started` returned for it.
        """
        count, limit = self.count, self.limit
        if not self._settles:
            self._pass_time(now)
        self._ends[(count if count > place else place).bit_length()] += 1.0
        self.count = count - 1
        if answered and now - admitted_at > self._slow_s and admitted_at > self._worked_off_at:
            latency_s = now - admitted_at
            self._slowness.answered(latency_s, place, self.count)
            self._bound()
        if self.limit == math.inf:
            return False
        if answered:
            self._ceiling.answered_until = admitted_at
        if self._confined < math.inf:
            return self._ended_confined(admitted_at, answered=answered)
        if self._settles:
            if answered and self._is_new:
                self._is_new = False
                self._begin_low(now - admitted_at)
            if self.count >= self._least:
                self._settle(now)
            if answered and self._is_gentle:
                self._note_latency(now - admitted_at)
        elif answered and admitted_at > self._round_at:
            self._answers += 1
            self._latency += now - admitted_at
            is_long = now - self._round_at >= _LEAST_ROUND_S
            if is_long and self._answers >= max(self.limit, _LEAST_ANSWERS):
                self._end_round(now)
        return count >= limit

    def cancelled(self, now: float, admitted_at: float) -> None:
        """Count one less in flight that was never sent."""
        self.ended(now, admitted_at, answered=False)
        self.total -= 1

    def _begin_low(self, latency_s: float) -> None:
        """Begin the search with few if the first answer took no longer than it takes to connect."""
        if latency_s < _QUICK_S and self._climbs:
            self._sought = min(self._sought, _FEW)
            self._bound()

    def _note_latency(self, latency_s: float) -> None:
        known = self.latency_s < math.inf
        self.latency_s += _LATENCY_WEIGHT * (latency_s - self.latency_s) if known else 0.0
        self.latency_s = self.latency_s if known else latency_s

    def _end_round(self, now: float) -> None:
        answers, latency = self._answers, self._latency / self._answers
        self._note_latency(latency)
        self._settles = True
        number = self._area / max(now - self._round_at, 1e-9)
        self._begin_round(now)
        if number < _FULL * min(self.limit, self._most):
            return
        if self.limit < self._sought:  # refusals or slowness bound it
            if self.limit == self._ceiling.number:
                self._ceiling.end_round(answers)
            elif self.limit == self._slowness.number:
                self._slowness.end_round(latency)
        elif self._climbs and latency > 0:
            least = min(self._sought, _FEW) if latency < _QUICK_S else 1.0
            self._climb((math.log(number), math.log(number / latency)))
            self._sought = max(least, min(self._sought, self._most))
        self._bound()

    def _climb(self, here: tuple[float, float]) -> None:
        """Choose the next number by comparing the throughput ``here`` with the last round's."""
        last, self._last = self._last, here
        grown, gained = (0.0, 0.0) if last is None else (here[0] - last[0], here[1] - last[1])
        if self._leaps >= 0:
            self._leap(last, gained < (_LEAP_WORTH if grown > 0 else _WORTH) * grown)
            return
        if last is not None and gained < _WORTH * grown:
            self._factor = 1 / self._factor
        step = self._sought * self._factor
        if abs(step - self._sought) < 1:
            step = self._sought + math.copysign(1.0, self._factor - 1)
        self._sought = max(1.0, step)

    def _leap(self, last: tuple[float, float] | None, is_worse: bool) -> None:
        """Double or halve. If the last leap made it worse, go back, and turn round or begin to climb."""
        self._leaps += 1
        if last is not None and is_worse:
            self._sought, self._last = math.exp(last[0]), last
            if self._leaps > 2 or self._factor < 1:
                self._leaps, self._factor, self._last = -1, 1 / _STEP, None
                return
            self._factor = 0.5
        self._sought = max(1.0, self._sought * self._factor)

    def refused(
        self,
        now: float,
        admitted_at: float,
        named: float | None = None,
        *,
        place: int = 1,
        is_timeout: bool = False,
    ) -> bool:
        """Follow a refusal; false if the number in flight can't be its reason.

        To be called after :meth:`ended`. ``named`` is how many may be in flight, if the server said that.
        ``place`` is what :meth:`started` returned: if few are in flight only because there is nothing to
        send, or because a run was stopped, they are not what the server bears.
        """
        if self._confined < math.inf:
            return True
        explains = self._ceiling.refused(
            max(self.count, place // 2),
            max(self.count + 1, place),
            now,
            admitted_at,
            named,
            is_timeout=is_timeout,
        )
        self._bound()
        return explains

    def timed_out(self, now: float, admitted_at: float, place: int) -> bool:
        """Follow an attempt without an answer in time, as :meth:`refused`.

        If the number is lower by now than it was then, because answers became slow, that explains it.
        """
        waited_s = now - admitted_at
        if waited_s < self.latency_s < math.inf:
            return True  # sooner than an answer: no sign of load
        self._slowness.may_take(waited_s)
        self._slow_s = self._slowness.slow_s
        self._worked_off_at = now + waited_s
        if place > _FAR * self._slowness.number:
            if self._confined == math.inf:  # the server still works at what was given up
                self.confine(1, now)
            return True
        return self.refused(now, admitted_at, place=place, is_timeout=True)


def _least_of_round(limit: float) -> float:
    """From how many in flight on a number counts as having reached ``limit``."""
    return limit - 1 - limit / 20 if limit < math.inf else math.inf
