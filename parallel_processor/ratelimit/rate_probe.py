"""Finding the rate of a server whose headers name no limit: grow until a rejection, then cut.

For servers without useful headers: vLLM behind a gateway, Gemini, proxies.

**Growth.** The rate begins low and doubles every four seconds of use (slow start) until the first
rejection; sooner where answers come in a fraction of a second. From then on, each burst of rejections
cuts the rate once. It comes back along the curve of TCP CUBIC (RFC 9438, section 4.2): quickly at first,
slowly around the rate that was rejected last, then faster again, in case the limit has risen. The curve
depends on time, not on the number of answers, so slow answers don't make it slow. Only time counts in
which a request had to wait for the rate, because a rate that isn't used was not tried.

**Cuts.** The first cut halves the rate, and so do cuts that follow shortly. The reason is a server that
keeps a whole minute's worth for bursts: it rejects only when that is used up, and by then a doubling
rate is far above what it refills. Four rules limit a cut:

* The rate isn't cut below what the server accepted between two rejections, pauses included, because
  the server refilled that much.
* A rejection of the first request after a pause cuts nothing. The server still has nothing left, and
  the rate was not tried.
* Few rejections don't bring the rate below a quarter of the rate that was rejected first.
* If lower rates didn't lower the share of rejections, the rate isn't their reason (``evidence.py``). The
  search begins again at the rate before the cuts.

**Ramp.** A server may complain that the traffic rose too fast (``slow_down``). Then the rate follows
what OpenAI asks for: it goes back below the former rate, and grows by half in a quarter of an hour.
"""

from __future__ import annotations

import math

GENTLE_PER_S = 2.0  # the rate at the begin of the search
_DOUBLING_S = (
    0.5,
    4.0,
)  # least and most seconds of use in which the rate doubles, before the first cut
_DOUBLING_ANSWERS = 8.0  # the rate doubles in so many times the latency
_EARLY_S = 30.0  # a rejection sooner than this after the last cut means that the rate was far off
_CUTS = (0.85, 0.7, 0.5)  # the first cut in a row, the second, and all further ones
_RETURN_S = (200.0, 100.0, 60.0)  # seconds from such a cut back to the rate that was rejected
_MILD_RETURN_S = 60.0  # the same if the headers name a limit that the rate was within
_LEAST_SPAN_S = 10.0  # what was accepted between two rejections shows the limit only over this time
_PEAK = 0.95  # if a lower rate than the last peak is rejected, the limit is below this share of it
_RAMP_S = 900.0  # in this time the rate may grow by half after a "slow down"
_RAMP_CUT = 0.8  # the cut after a "slow down"
_FLOOR = 1 / 4  # of the first rejected rate; the rate falls below only while many are rejected
_MUCH = 0.025  # from this share of rejections on, the floor doesn't hold
_FEW = 0.05  # below this share, rejections that name a time to wait count as the first in a row
_TOLERATED = 0.01  # up to this share, rejections that name a time to wait cut nothing


class RateProbe:
    """The rate that is being tried. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        rate: how much may be sent per second; infinite while nothing is known that bounds it.
        sent: how many requests were sent since the last cut.
        rejections: how many of them were rejected.
        latency_s: the mean time that answers take; infinite while that isn't known.
    """

    def __init__(self, rate: float = math.inf) -> None:
        self.rate = rate
        self.latency_s = math.inf
        self.sent = self.rejections = 0
        self._slow_start = rate < math.inf
        self._peak = math.inf  # the rate that the curve leads back to
        self._base = math.inf  # the rate after the last cut
        self._cut = 1.0  # the rate after the last cut, as a share of the peak
        self._return_s = _RETURN_S[0]
        self._cuts_in_a_row = 0  # cuts shortly after each other, less one
        self._since_s = math.inf  # seconds of use since the last cut
        self._cut_at = math.nan
        self._charged = 0.0  # what had been sent in all at the last cut
        self._ramp_limited = False
        self._floor = 0.0
        self._highest = 0.0  # the rate before the cuts

    @property
    def is_found(self) -> bool:
        """True if rejections have shown about which rate the server allows."""
        return self.rate < math.inf and not self._slow_start

    @property
    def is_growing(self) -> bool:
        """True until the first cut."""
        return self._slow_start

    def search_from(self, rate: float) -> None:
        """Begin the search again at ``rate``."""
        self.rate, self._slow_start = rate, rate < math.inf

    def set_free(self) -> None:
        """End the search, since the server named a limit. A rejection begins it again."""
        if self._slow_start:
            self._slow_start, self.rate = False, math.inf

    def advance(self, seconds: float) -> None:
        """Raise the rate: it was used to the full for ``seconds``, and nothing was rejected."""
        if self.rate == math.inf:
            return
        if self._slow_start:
            least, most = _DOUBLING_S
            doubling_s = max(least, min(_DOUBLING_ANSWERS * self.latency_s, most))
            self.rate *= 2.0 ** (seconds / doubling_s)
            return
        self._since_s += seconds
        if self._ramp_limited:
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
        has_retry_after: bool = False,
        ramp_too_fast: bool = False,
        mild: bool = False,
    ) -> None:
        """Cut the rate after a burst of rejections.

        Args:
            cost: what the rejected request costs.
            sent_per_s: what was sent per second lately.
            charged: what was sent in all.
            now: the time.
            gap_s: for how long all sending pauses now. The rate stays above one such request in it.
            has_retry_after: whether the server named a time to wait.
            ramp_too_fast: whether the server complained that the traffic rose too fast.
            mild: whether the headers name a limit that the rate was within.
        """
        if has_retry_after and not ramp_too_fast and self.rejections <= _TOLERATED * self.sent:
            return  # so few cost less than a lower rate would
        accepted, rejections = self.sent - self.rejections, self.rejections
        self.sent = self.rejections = 0
        if self._since_s < math.inf and accepted <= 0:
            return  # the first after a pause: the rate was not tried
        is_new = now - self._cut_at < _LEAST_SPAN_S  # little was sent, because of the cut's pause
        tried = is_new or self._slow_start or 0.0 < self._since_s < math.inf
        cost = max(cost, 1.0)
        least = cost / gap_s
        peak = max(least, self.rate if tried else min(self.rate, sent_per_s))
        self._count_cut(mild or (has_retry_after and rejections < _FEW * (accepted + rejections)))
        cut = min(_CUTS[self._cuts_in_a_row], _RAMP_CUT if ramp_too_fast else 1.0)
        if not 0 < self._floor <= peak:  # none yet, or a lower rate is rejected
            self._floor = peak * _FLOOR
        if rejections < _MUCH * (accepted + rejections) and not ramp_too_fast:
            least = max(least, self._floor)
        if now - self._cut_at >= _LEAST_SPAN_S:
            let_through = (charged - self._charged - rejections * cost) / (now - self._cut_at)
            least = max(least, min(let_through, peak))
        if self._slow_start or self.rate == math.inf:
            self._highest = self.rate
        self._base = self.rate = max(peak * cut, least)
        self._peak = max(peak * _PEAK if peak < self._peak < math.inf else peak, self.rate)
        self._cut = self.rate / self._peak
        self._return_s = _MILD_RETURN_S if mild else _RETURN_S[self._cuts_in_a_row]
        self._ramp_limited, self._slow_start = self._ramp_limited or ramp_too_fast, False
        self._since_s, self._cut_at, self._charged = 0.0, now, charged

    def give_up(self) -> None:
        """Take back all cuts: the rate isn't the reason of the rejections."""
        if self.is_found:
            self.search_from(self._highest)
            self._peak = self._since_s = math.inf
            self._floor, self._cuts_in_a_row = 0.0, 0

    def _count_cut(self, mild: bool) -> None:
        """Count how many cuts followed each other shortly; more in a row cut deeper."""
        if mild or self._since_s >= _EARLY_S and self.rate < math.inf and not self._slow_start:
            self._cuts_in_a_row = 0
        elif self._slow_start or self.rate == math.inf:
            self._cuts_in_a_row = len(_CUTS) - 1
        else:
            self._cuts_in_a_row = min(self._cuts_in_a_row + 1, len(_CUTS) - 1)
