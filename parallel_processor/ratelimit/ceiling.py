"""How many requests in flight a server bears, as its refusals and its slowness show it.

**Refusals.** A server with N slots admits N and refuses the rest. So when a refusal comes, what is left in
flight is what the server bears. Each further refusal of the same burst takes its own place away, so that
after the burst exactly the admitted ones are left. Whether the number was the reason shows soon:

* It doubles each round of answers. If it is refused again at about the same number, it was the reason.
  Then it is raised by one or two in a hundred, after so many answers that hardly one in 100 is refused.
* If nothing is refused, it rises until it binds no more.
* If half the number didn't lower the share of refusals, load isn't their reason. The number is restored,
  and that share is tolerated from then on.

A request that times out counts as refused: the server had more to do than it could.

**Slowness.** A server that queues refuses nothing. Each request waits for those before it, until all time
out. Such a server is known by this: requests that were sent as one of twice as many took twice as long.
Then the number is bounded so that an answer takes two fifths of the time that there is. So it is if those
in flight will not all be answered in time at the pace of the last answers.
"""

from __future__ import annotations

import math

_SAME_NUMBER = (0.7, 1.5)  # a number within these shares of the last one was refused again
_CERTAIN = 2  # after so many more bursts that left the same number it is certain
_LEAST_EQUAL = 3  # smaller numbers are the same by chance
_STEP = 0.02  # by this share, or by one, a number is raised that was refused twice
_ANSWERS_A_STEP = 100  # and one in so many may be refused for it
_SUCCESSES = 3  # after so many steps without a refusal the number doubles again
_MUCH = 0.25  # with more refusals than this share, even half the number may be too high
_SAME_SHARE = 0.6  # halving should bring the share to nothing; it didn't help if this much is left
_TOLERATED = 1.5  # this multiple of the share that halving didn't lower is tolerated
_LEAST_ENDS = 50  # a share counts only if it is taken over so many attempts

_SLOW = 1 / 16  # of the longest time: answers that are quicker say nothing of a queue
_BEARABLE = 0.4  # of the longest time: what an answer of a server that queues may take
_EXPONENT = 0.6  # a queue's latency grows with this power of the number at least
_LEAST_MORE = 1.4  # numbers are compared that differ by this factor
_LEAST_ANSWERS = 2  # a mean latency counts only if it is taken over so many answers
_MOST_ANSWERS = 16  # older answers fade
_DANGER = 0.8  # of the longest time: with answers that take longer, it is high time
_GROWTH = 1.05  # a round
_FAR = 0.25  # of the longest time: with quicker answers the number doubles instead


class Ceiling:
    """The number in flight that refusals show. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        number: how many the server bears; infinite while nothing was refused for it.
    """

    def __init__(self) -> None:
        self.number = math.inf
        self._borne = self._last_borne = math.inf  # what the last two bursts left in flight
        self._equal = 0  # so many bursts in a row left the same number
        self._is_named = False  # the server named the number
        self._takes_places = False  # further refusals of the burst lower the number
        self._cut_at = -math.inf
        self._answers = self._successes = 0  # since the number was last changed
        self._refused = self._ended = 0  # since the share of refusals was last assessed
        # The number and the share of refusals before the cuts.
        self._before: tuple[float, float] | None = None
        self._tolerated = 0.0  # the share of refusals that is tolerated

    @property
    def is_certain(self) -> bool:
        """True if only the number explains the refusals."""
        return self._is_named or self._equal >= _CERTAIN

    def refused(
        self, count: int, ended: int, now: float, admitted_at: float, named: float | None
    ) -> bool:
        """Follow a refusal that left ``count`` in flight; false if the number can't be its reason.

        ``ended`` is how many attempts have ended so far. ``named`` is the number that the server named.
        """
        self._refused += 1
        if admitted_at <= self._cut_at:  # it was in flight at the last cut
            if self._takes_places:
                self.number = self._borne = max(1.0, self._borne - 1.0)
            return True
        if count <= 0:  # others have all the places, or there is another reason
            self._equal = 0
            self.number = min(self.number, math.inf if named is None else max(1.0, named))
            return False
        ends = ended - self._ended
        share = self._refused / max(ends, 1)
        if ends >= _LEAST_ENDS and (share <= self._tolerated or self._is_futile(share, ended)):
            self._takes_places = False
            return True
        if self._before is None:
            self._before = (min(self.number, count + 1.0), share)
            self._refused, self._ended = 0, ended
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

    def _is_futile(self, share: float, ended: int) -> bool:
        """Restore the number, and return true, if halving it didn't lower the share of refusals."""
        if self._before is None or self.number > self._before[0] / 2:
            return False
        (before, share_before), self._before = self._before, None
        self._refused, self._ended = 0, ended
        if share >= _MUCH or share < _SAME_SHARE * share_before:
            return False  # it helped, or the number is still far too high
        self.number, self._tolerated = before, _TOLERATED * max(share, share_before)
        return True

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
        # By octave of the number: how many answers, and the means of their latencies and numbers.
        self._means: dict[int, tuple[int, float, float]] = {}
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
        answers, mean_s, mean_place = self._means.get(octave, (0, 0.0, 0.0))
        answers = min(answers + 1, _MOST_ANSWERS)
        mean_s += (latency_s - mean_s) / answers
        mean_place += (place - mean_place) / answers
        self._means[octave] = answers, mean_s, mean_place
        if answers >= _LEAST_ANSWERS and self._queues(octave, mean_s, mean_place):
            self.number = max(1.0, place * _BEARABLE * self._longest_s / latency_s)
        self._predict(max(place, count), latency_s)

    def _predict(self, number: int, latency_s: float) -> None:
        """Bound the number if those in flight will time out at the pace of the last answers.

        By Little's law the pace is the number in flight divided by the latency.
        """
        if latency_s > _DANGER * self._longest_s:
            self.number = min(
                self.number, max(1.0, number * _BEARABLE * self._longest_s / latency_s)
            )

    def _queues(self, octave: int, mean_s: float, mean_place: float) -> bool:
        """Whether requests that were sent as one of fewer took less long by about as much."""
        for lower in sorted(self._means, reverse=True):
            answers, lower_s, lower_place = self._means[lower]
            more = mean_place / lower_place
            if lower < octave and answers >= _LEAST_ANSWERS and more >= _LEAST_MORE:
                return bool(mean_s >= lower_s * more**_EXPONENT)
        return False

    def end_round(self, latency_s: float) -> None:
        """Raise the number: as many as it were in flight, and took ``latency_s``."""
        is_far = latency_s < _FAR * self._longest_s
        self.number = 2.0 * self.number if is_far else self.number * _GROWTH + 1.0
