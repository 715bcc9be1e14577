"""How many requests in flight a server bears, as its refusals and its slowness show it.

**Refusals.** A server with N slots admits N and refuses the rest. So when a refusal comes, what is left in
flight is what the server bears. Each further refusal of the same burst takes its own place away, so that
after the burst exactly the admitted ones are left. Whether the number was the reason shows soon:

* It doubles each round of answers. If it is refused again at about the same number, it was the reason.
  Then it is raised by one or two in a hundred, after so many answers that hardly one in 100 is refused.
* If nothing is refused, it rises until it binds no more.
* If fewer in flight didn't lower the share of refusals, the number isn't their reason (``evidence.py``),
  and binds no more.

A request that times out counts as refused: the server had more to do than it could.

**Slowness.** A server that queues refuses nothing. Each request waits for those before it, until all time
out. Such a server is known by this: requests that were sent as one of twice as many took twice as long, by
more than chance explains. Then the number is bounded so that an answer takes two fifths of the time that
there is. Where the number was never lower, it is bounded once answers take four fifths of that time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from parallel_processor.ratelimit.evidence import RefusalShares

_SAME_NUMBER = (0.7, 1.5)  # a number within these shares of the last one was refused again
_CERTAIN = 2  # after so many more bursts that left the same number it is certain
_LEAST_EQUAL = 3  # smaller numbers are the same by chance
_STEP = 0.02  # by this share, or by one, a number is raised that was refused twice
_ANSWERS_A_STEP = 100  # and one in so many may be refused for it
_SUCCESSES = 3  # after so many steps without a refusal the number doubles again

_SLOW = 1 / 16  # of the longest time: answers that are quicker say nothing of a queue
_BEARABLE = 0.4  # of the longest time: what an answer of a server that queues may take
_EXPONENT = 0.6  # a queue's latency grows with this power of the number at least
_LEAST_MORE = 1.4  # numbers are compared that differ by this factor
_LEAST_ANSWERS = 6  # a mean latency counts only if it is taken over so many answers
_MOST_ANSWERS = 32.0  # older answers fade
_SPREAD = 0.1  # the variance of the logarithm of a latency, as long as it isn't known
_SPREAD_ANSWERS = 4.0  # this assumption counts as so many answers
_SURE_OF_QUEUE, _SURE_OF_NONE = 2.5, 2.0  # standard errors
_DANGER = 0.8  # of the longest time: with answers that take longer, it is high time
_GROWTH = 1.05  # a round
_FAR = 0.25  # of the longest time: with quicker answers the number doubles instead


class Ceiling:
    """The number in flight that refusals show. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        number: how many the server bears; infinite while nothing was refused for it.
        shares: the attempts by how many were in flight.
        answered_until: when one was admitted that was answered while the number was bounded.
    """

    def __init__(self) -> None:
        self.number = math.inf
        self._borne = self._last_borne = math.inf  # what the last two bursts left in flight
        self._equal = 0  # so many bursts in a row left the same number
        self._is_named = False  # the server named the number
        self._takes_places = False  # further refusals of the burst lower the number
        self._cut_at = -math.inf
        self._answers = self._successes = 0  # since the number was last changed
        self.shares = RefusalShares()
        self.answered_until = -math.inf

    @property
    def is_certain(self) -> bool:
        """True if only the number explains the refusals."""
        return self._is_named or self._equal >= _CERTAIN

    def refused(
        self,
        count: int,
        load: int,
        now: float,
        admitted_at: float,
        named: float | None = None,
        *,
        is_timeout: bool = False,
    ) -> bool:
        """Follow a refusal that left ``count`` in flight; false if the number can't be its reason.

        ``load`` were in flight while it was. ``named`` is the number that the server named. After a timeout
        the server may still work at what was given up.
        """
        step = load.bit_length()
        self.shares.refused(step)
        if admitted_at <= self._cut_at:  # it was in flight at the last cut
            if self._takes_places:
                self.number = self._borne = max(1.0, self._borne - 1.0)
            return True
        is_backlog = is_timeout and -math.inf < self._cut_at >= self.answered_until
        if count <= 0:  # others have all the places, or there is another reason
            self._equal = 0
            if named is not None:
                self.number = max(1.0, named)
            elif not is_backlog:
                self.number *= 2.0
            return False
        if named is None and not is_backlog and self.shares.explain(step) is False:
            self.number = self._borne = self._last_borne = math.inf
            self._equal, self._takes_places = 0, False
            return False
        explains = count >= _SAME_NUMBER[0] * self._borne or self._borne == math.inf
        self._cut(max(1.0, float(count)), now, named)
        return explains or named is not None

    def _cut(self, borne: float, now: float, named: float | None) -> None:
        last, before = self._borne, self._last_borne
        self._equal = self._equal + 1 if last == before >= _LEAST_EQUAL else 0
        self._last_borne = last
        self._is_named = named is not None
        self._takes_places = named is None or borne <= named
        self.number = self._borne = borne if named is None else max(1.0, min(borne, named))
        self._answers = self._successes = 0
        self._cut_at = now

    def end_round(self, answers: int) -> None:
        """Raise the number: so many answers came while as many as it were in flight."""
        least, most = (share * self._last_borne for share in _SAME_NUMBER)
        is_known = self._is_named or least <= self._borne <= most
        if not is_known or self._successes >= _SUCCESSES:
            self.number *= 2.0
            return
        self._answers += answers
        step = max(1.0, _STEP * self.number)
        if self._answers >= _ANSWERS_A_STEP * step:
            self.number += step
            self._answers, self._successes = 0, self._successes + 1


class _Latencies(NamedTuple):
    """The answers to requests that were sent as one of about as many."""

    answers: float = 0.0
    place: float = 0.0  # means
    seconds: float = 0.0
    log: float = 0.0  # of the seconds' logarithms
    variance: float = 0.0  # of the logarithms

    def with_one(self, place: int, seconds: float) -> _Latencies:
        """These answers, and one that took ``seconds``."""
        answers = min(self.answers + 1.0, _MOST_ANSWERS)
        log, off = self.log, math.log(seconds) - self.log
        log += off / answers
        return _Latencies(
            answers,
            self.place + (place - self.place) / answers,
            self.seconds + (seconds - self.seconds) / answers,
            log,
            self.variance + (off * (math.log(seconds) - log) - self.variance) / answers,
        )

    @property
    def variance_of_mean(self) -> float:
        """The square of the standard error of ``log``."""
        known = self.answers / (self.answers + _SPREAD_ANSWERS)
        return (self.variance * known + _SPREAD * (1.0 - known)) / self.answers


class Slowness:
    """The number in flight of a server that queues. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        number: how many it answers in the time that there is; infinite if it doesn't queue.
        slow_s: quicker answers need not be told.
    """

    def __init__(self, longest_s: float) -> None:
        """An answer may take ``longest_s``."""
        self.number = math.inf
        self.slow_s = math.inf
        self._longest_s = math.inf
        self._latencies: dict[int, _Latencies] = {}  # by octave of the number
        self.may_take(longest_s)

    def may_take(self, longest_s: float) -> None:
        """An answer may take at most ``longest_s``."""
        if longest_s < self._longest_s:
            self._longest_s, self.slow_s = longest_s, _SLOW * longest_s

    def answered(self, latency_s: float, place: int, count: int) -> None:
        """Follow a slow answer to a request that was sent as number ``place`` of those in flight.

        ``count`` are in flight now.
        """
        octave = place.bit_length()
        here = self._latencies.get(octave, _Latencies()).with_one(place, latency_s)
        self._latencies[octave] = here
        queues = self._queues(octave)
        if queues:
            self.number = max(1.0, here.place * _BEARABLE * self._longest_s / here.seconds)
        elif queues is False:
            self.number = math.inf
        elif here.answers >= _LEAST_ANSWERS and here.seconds > _DANGER * self._longest_s:
            bearable = max(here.place, count) * _BEARABLE * self._longest_s / here.seconds
            self.number = min(self.number, max(1.0, bearable))

    def _queues(self, octave: int) -> bool | None:
        """Whether requests that were sent as one of fewer took less long by about as much.

        ``None`` while that isn't known.
        """
        here = self._latencies[octave]
        for below in sorted(self._latencies, reverse=True):
            there = self._latencies[below]
            if below >= octave or here.place < _LEAST_MORE * there.place:
                continue
            error = math.sqrt(here.variance_of_mean + there.variance_of_mean)
            longer, more = here.log - there.log, math.log(here.place / there.place)
            if longer >= _EXPONENT * more and longer >= _SURE_OF_QUEUE * error:
                return True
            few = min(here.answers, there.answers) < _LEAST_ANSWERS
            if not few and longer + _SURE_OF_NONE * error < _EXPONENT * more:
                return False
        return None

    def end_round(self, latency_s: float) -> None:
        """Raise the number: as many as it were in flight, and took ``latency_s``."""
        is_far = latency_s < _FAR * self._longest_s
        self.number = 2.0 * self.number if is_far else self.number * _GROWTH + 1.0
