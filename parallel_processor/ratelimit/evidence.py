"""Whether load is the reason of refusals: under less load, a smaller share must be refused.

A limit refuses what is beyond it, and nothing else. Faults that have nothing to do with load (a broken
replica, a network that loses one packet in a hundred) strike the same share of attempts, however few are
sent. So attempts are counted by the load under which they were sent, in steps of a geometric scale. If less
load didn't lower the share of refusals, load isn't their reason, and to send less would only cost time.

There are two loads: the number in flight, and the rate. Both are judged by the same rule.
"""

from __future__ import annotations

import math
from itertools import accumulate

_STEPS = 160
_MOST = 256.0  # older attempts of a step fade
_FEW = 3.0  # fewer refusals may be by chance
_FIRST = 8.0  # a share of fewer attempts may be by chance
_LESS = 0.2  # if load is the reason, less of it lowers the share to this part of it at least
_UNLIKELY, _LIKELY = 3.0, -3.0  # logarithms of how many times likelier chance is than load
_MUCH = 0.5  # with a larger share, even the smaller load may be too high
_WEAR = 0.995  # what a use leaves of the evidence, so that it is gathered anew now and then

_STEPS_APART = 4  # a rate is compared with half of it
_LEAST_RATE = 1e-3  # per second
_LEAST_SENT = 8  # a rate is measured over so many requests at least
_LEAST_REFUSED, _ALL = 4, 0.75  # so many in a row, and as good as all, of those sent meanwhile


class RefusalShares:
    """Counts attempts and refusals by load. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        ended: the attempts that have ended, by step of their load.
    """

    def __init__(self, apart: int = 1) -> None:
        """Compare loads that are so many steps apart at least."""
        self._apart = apart
        self.ended = [0.0] * _STEPS
        self._refused = [0.0] * _STEPS

    def refused(self, step: int, count: float = 1.0) -> None:
        """Count refusals of attempts that are counted in :attr:`ended`."""
        self._refused[step] += count
        ended = self.ended[step]
        if ended > _MOST:
            self.ended[step] = _MOST
            self._refused[step] *= _MOST / ended

    def is_measured(self, step: int) -> bool:
        """True if refusals at about this load are counted, and not by chance."""
        return sum(self._refused[max(0, step - 1) : step + 2]) >= _FEW

    def explain(self, step: int) -> bool | None:
        """Whether load may be the reason of a refusal in this step; ``None`` while that isn't known."""
        if self._refused[step] >= _MUCH * (self.ended[step] + _FIRST):
            return True
        ended, refused = _sums(self.ended), _sums(self._refused)  # below each step
        ended_above, refused_above = _sums(self.ended[::-1]), _sums(self._refused[::-1])
        verdict = None
        for split in range(step, _STEPS):
            above = _STEPS - split  # so many steps
            if refused_above[above] < _FEW:
                break
            end = max(0, split - self._apart + 1)
            share = refused_above[above] / (ended_above[above] + _FIRST)
            found = _compare(share, ended[end], refused[end])
            if found is False:
                for below in range(end):
                    self.ended[below] *= _WEAR
                    self._refused[below] *= _WEAR
                return False
            verdict = verdict or found
        return verdict


def _sums(counts: list[float]) -> list[float]:
    """The sums of the first 0, 1, 2 ... counts."""
    return list(accumulate(counts, initial=0.0))


def _compare(share: float, ended: float, refused: float) -> bool | None:
    """Whether clearly fewer than ``share`` were ``refused`` of those that ``ended`` under less load.

    The number of refusals follows Poisson's law, whose likelihoods are compared.
    """
    if refused >= _MUCH * ended:
        return True if ended >= _FIRST else None
    ratio = -refused * math.log(_LESS) - share * ended * (1.0 - _LESS)
    return False if ratio > _UNLIKELY else True if ratio < _LIKELY else None


class RateEvidence:
    """Whether the rate is the reason of refusals. Not thread-safe: the lock of the bucket guards it.

    A used-up window refuses everything until it ends, however little is sent. So what is sent meanwhile
    says nothing of the rate.
    """

    def __init__(self) -> None:
        self._shares = RefusalShares(_STEPS_APART)
        self._began_at = -math.inf  # what is counted next
        self._sent = self._paused_s = 0.0  # by then
        self._refused = 0  # since then
        self._is_exhausted = False  # at any time since then
        # A first refusal: when it came, what was sent before, and how much of the rest was refused.
        self._first = (-math.inf, 0, 0)

    def note_sent(self, sent: float, paused_s: float, now: float) -> None:
        """Count what was sent since the last call, by its rate.

        ``sent`` is how many were sent in all, and ``paused_s`` for how long nothing was to be sent.
        """
        if self._began_at > -math.inf and sent - self._sent < _LEAST_SENT:
            return
        seconds = now - self._began_at - (paused_s - self._paused_s)
        count = sent - self._sent
        if 0 < seconds < math.inf and self._refused < count and not self._is_exhausted:
            step = _step_of(count / seconds)
            self._shares.ended[step] += count
            self._shares.refused(step, self._refused)
        self._began_at, self._sent, self._paused_s = now, sent, paused_s
        self._refused, self._is_exhausted = 0, False

    def note_refusal(self, admitted_at: float, answered_at: float, sent: int, now: float) -> None:
        """Count a refusal of what was admitted at ``admitted_at``.

        The newest attempt that was answered was admitted at ``answered_at``. ``sent`` is how many were
        sent in all.
        """
        self._refused += 1
        at, sent_before, refused = self._first
        if answered_at > at:
            self._first = now, sent, 0
            return
        if admitted_at > at:
            refused += 1
            self._first = at, sent_before, refused
        if refused >= _LEAST_REFUSED and refused >= _ALL * (sent - sent_before):
            self._is_exhausted = True

    def explain(self, per_s: float) -> bool | None:
        """Whether this rate may be the reason of a refusal; ``None`` while that isn't known."""
        return self._is_exhausted or self._shares.explain(_step_of(per_s))

    def is_measured(self, per_s: float) -> bool:
        """True if refusals at about this rate are counted, and not by chance."""
        return self._shares.is_measured(_step_of(per_s))


def _step_of(per_s: float) -> int:
    """The step of a rate; four steps are a doubling."""
    return min(round(4.0 * math.log2(max(per_s, _LEAST_RATE))) + _STEPS // 2, _STEPS - 1)
