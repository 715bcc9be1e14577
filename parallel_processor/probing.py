"""Finding a rate that nobody names: growth while nothing is refused, a cut when something is.

For limits whose answers carry no useful headers (vLLM behind a gateway, Gemini, proxies). It begins
gently and doubles until the first refusal. From then on each burst of refusals cuts the rate once, and
it comes back along TCP CUBIC's curve (RFC 9438, section 4.2): quickly at first, slowly around the rate
that was refused last, and then faster again, in case the limit has risen. The curve depends on time
and not on the number of answers, so that slow answers don't make it slow; and only on time in which
the rate held somebody back, since a rate that isn't used was not tried.

The first cut is a half, and so are those that follow shortly: a server that keeps a whole minute's
worth for bursts refuses only when that is gone, by which time a doubling rate is far above what it
refills. But nothing is cut below what the server let through between two refusals, pauses included: so
much it refilled. A refusal of the first request after a pause cuts nothing: the server still has none
left, and the rate was not tried. Where refusals stay few and don't become fewer, the rate isn't their
reason, and is not cut below a quarter. A server that says that the *rise* was too steep (``slow_down``)
gets what OpenAI asks for: back below the former rate, and half as much again in a quarter of an hour.
"""

from __future__ import annotations

import math

GENTLE_PER_S = 2.0  # where the search begins
_DOUBLING_S = 4.0
_EARLY_S = 30.0  # a refusal sooner than this after the last says that the rate was far off
_CUTS = (0.85, 0.7, 0.5)  # the first of a row, the second, and all others
_RETURN_S = (200.0, 100.0, 60.0)  # from a cut back to the rate that was refused
_MILD_RETURN_S = 60.0
_LEAST_SPAN_S = 10.0  # between two refusals, if what was let through is to tell the limit
_PEAK = 0.95  # of a rate that was refused sooner than one before it, the limit is below
_RAMP_S = 900.0  # in which a rate may grow by half after a "slow down"
_RAMP_CUT = 0.8
_FLOOR = 1 / 4  # of the first rate that was refused; below it only while much is refused
_MUCH, _FEW, _BORNE = 0.2, 0.05, 0.01  # shares of refusals


class RateProbe:
    """The rate that is being tried, per second. Not thread-safe: the bucket's lock guards it.

    ``rate`` is infinite while nothing is known that bounds it. ``sent`` and ``refusals`` count requests
    since the last cut.
    """

    __slots__ = (
        *("_base", "_charged", "_cut", "_cut_at", "_floor", "_peak", "_ramp", "_return_s", "_row"),
        *("_since_s", "_starting", "rate", "refusals", "sent"),
    )

    def __init__(self, rate: float = math.inf) -> None:
        self.rate = rate
        self.sent = self.refusals = 0
        self._starting = rate < math.inf
        self._peak = self._base = math.inf
        self._cut = 1.0
        self._return_s = _RETURN_S[0]
        self._row = 0  # cuts shortly after each other, less one
        self._since_s = math.inf  # used time since the last cut
        self._cut_at = math.nan
        self._charged = 0.0  # in all, at the last cut
        self._ramp = False
        self._floor = 0.0

    def set_free(self) -> None:
        """A limit was named: there is nothing to find any more, until something is refused."""
        if self._starting:
            self._starting, self.rate = False, math.inf

    def advance(self, seconds: float) -> None:
        """The rate was used to the full, and nothing refused, for that long."""
        if self.rate == math.inf:
            return
        if self._starting:
            self.rate *= 2.0 ** (seconds / _DOUBLING_S)
            return
        self._since_s += seconds
        if self._ramp:
            self.rate = self._base * (1.0 + 0.5 * self._since_s / _RAMP_S)
            return
        x = self._since_s / self._return_s - 1.0
        self.rate = self._peak * (1.0 + (1.0 - self._cut) * x**3)

    def refused(
        self,
        cost: float,
        *,
        sent_per_s: float,
        charged: float,
        now: float,
        gap_s: float,
        hinted: bool = False,
        steep: bool = False,
        mild: bool = False,
    ) -> None:
        """Cut the rate after a burst of refusals.

        ``cost`` is that of the request that was refused, ``sent_per_s`` what was sent lately,
        ``charged`` all that was ever sent. The rate stays above one such request in ``gap_s``, the
        time for which all sending pauses now; ``hinted`` says that the server named it, ``steep``
        that it complained of the rise, ``mild`` that it names a limit which the rate was within.
        """
        if hinted and not steep and self.refusals <= _BORNE * self.sent:
            return  # fewer than whoever has no limit would mind
        accepted, refusals = self.sent - self.refusals, self.refusals
        self.sent = self.refusals = 0
        if self._since_s < math.inf and accepted <= 0:
            return
        tried = self._starting or 0.0 < self._since_s < math.inf
        cost = max(cost, 1.0)
        least = cost / gap_s
        peak = max(least, self.rate if tried else min(self.rate, sent_per_s))
        self._count_row(mild or (hinted and refusals < _FEW * (accepted + refusals)))
        cut = min(_CUTS[self._row], _RAMP_CUT if steep else 1.0)
        self._floor = self._floor or peak * _FLOOR
        if refusals < _MUCH * (accepted + refusals) and not steep:
            least = max(least, self._floor)
        if now - self._cut_at >= _LEAST_SPAN_S:
            let_through = (charged - self._charged - refusals * cost) / (now - self._cut_at)
            least = max(least, min(let_through, peak))
        self._base = self.rate = max(peak * cut, least)
        self._peak = max(peak * _PEAK if peak < self._peak < math.inf else peak, self.rate)
        self._cut = self.rate / self._peak
        self._return_s = _MILD_RETURN_S if mild else _RETURN_S[self._row]
        self._ramp = self._ramp or steep
        self._starting = False
        self._since_s, self._cut_at, self._charged = 0.0, now, charged

    def _count_row(self, mild: bool) -> None:
        if mild or self._since_s >= _EARLY_S and self.rate < math.inf and not self._starting:
            self._row = 0
        elif self._starting or self.rate == math.inf:
            self._row = len(_CUTS) - 1
        else:
            self._row = min(self._row + 1, len(_CUTS) - 1)
