"""The rates of a server as one process follows them, which a holder keeps for all processes of the account.

:class:`RemoteRates` stands in a bucket where ``ServerRates`` stands otherwise. What answers show is kept
until the next call, and goes to the holder with it. What comes back says what is known of the rates, and a
lease under them. A request takes from the lease as from the configured quotas.

Nothing is leased until an answer has shown that there is a limit, unless the limit is to be searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from parallel_processor.limiter.leases import Ask, Lease, News, Rate, ServerNews, Terms
from parallel_processor.limiter.stock import Stock
from parallel_processor.models import LimitReading, Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.quota import KINDS, MINUTE_S, ConfiguredQuota
from parallel_processor.ratelimit.remaining import LONGEST_PACED_S
from parallel_processor.ratelimit.reports import LimitReport
from parallel_processor.ratelimit.server_quota import Sent, Span
from parallel_processor.ratelimit.server_rates import LimitChange, ServerRates
from parallel_processor.runtime.stop import Settable

_MOST_NEWS = 50
_MOST_CHANGES = 400  # kept for the report
_MOST_REQUESTS = 4096.0  # of one lease


class RateStock(Stock):
    """What is leased under the rates of a server. The lock of the account guards it.

    Attributes:
        rates: what is known of them.
        latency_s: the mean time that answers take; infinite while that isn't known.
        changes: the limits that headers named, and when that was known here.
        asked_at: when the holder was asked last.
    """

    def __init__(self, name: str, limits: Limits, now: float, waker: Settable) -> None:
        """A stock of the bucket that the holder knows by ``name``."""
        terms = [Terms(key=f"{name}:{kind}", limit=math.inf, burst_s=0.5) for kind in KINDS]
        super().__init__(
            terms, [ConfiguredQuota(kind, math.inf, 0.0, now) for kind in KINDS], waker
        )
        self.rates: tuple[Rate, ...] = ()
        self._is_urgent = False
        self.latency_s = math.inf
        self.changes: list[tuple[float, LimitChange]] = []
        self.asked_at = now
        self._told = 0  # of the changes
        self._limits = limits
        self._news: list[tuple[float, News]] = []  # and when its request was admitted
        self._asked = 0  # of the news: they are on their way to the holder
        self._lease_most: Sequence[float] = (math.inf,) * len(KINDS)

    @property
    def has_news(self) -> bool:
        """True if there is something to tell the holder that can't wait for the next lease."""
        return self._is_urgent or bool(self.pauses)

    @property
    def is_delayed(self) -> bool:
        """True if the last lease had to wait."""
        return self._delay_s > 0

    def note(self, news: News, sent_at: float, *, is_urgent: bool) -> None:
        """Keep ``news`` for the next call. Of readings alone, the newest are kept."""
        last = self._news[-1][1] if len(self._news) > self._asked else None
        if last is not None and last.is_mere_reading and news.is_mere_reading:
            self._news.pop()
        if len(self._news) < _MOST_NEWS:
            self._news.append((sent_at, news))
        self._is_urgent |= is_urgent

    def new_changes(self) -> Sequence[LimitChange]:
        """The changes of limits since the last call."""
        new, self._told = self.changes[self._told :], len(self.changes)
        return [change for _, change in new]

    # What differs from configured limits.

    def _make(self, amounts: tuple[float, ...], now: float) -> Ask:
        news = tuple(replace(each, age_s=now - sent_at) for sent_at, each in self._news)
        self._asked = len(news)
        server = ServerNews(
            limits=self._limits, latency_s=self.latency_s, known=self.rates, news=news
        )
        return replace(super()._make(amounts, now), server=server)

    def receive(self, ask: Ask, lease: Lease, asked_at: float, now: float) -> bool:
        """Take what the holder answered."""
        assert ask.server is not None
        self.asked_at = asked_at
        del self._news[: len(ask.server.news)]  # others were kept meanwhile
        self._asked = 0
        self._is_urgent = bool(self._news) and self._is_urgent
        before = {(rate.name, rate.window_s): rate.limit for rate in self.rates}
        for rate in lease.rates:
            old = before.get((rate.name, rate.window_s), math.inf)
            is_new = rate.limit != old and rate.limit < math.inf
            if is_new and len(self.changes) < _MOST_CHANGES:
                change = LimitChange(rate.name, rate.window_s, old, rate.limit)
                self.changes.append((now, change))
        self.rates, self._lease_most = lease.rates, lease.most
        return super().receive(ask, lease, asked_at, now)

    def _most(self) -> Sequence[float]:
        return self._lease_most

    def _step(self) -> float:
        """As many again, while nothing bounds them: a lease for each half a second is enough."""
        is_open = all(most == math.inf for most in self._lease_most)
        return min(self._batch, _MOST_REQUESTS - self._batch) if is_open else 0.0


class RemoteRates(ServerRates):
    """The rates of one model and endpoint. The lock of the account guards it."""

    def __init__(
        self,
        limits: Limits,
        now: float,
        begin: Callable[[float], RateStock],
        *,
        is_known: bool = False,
    ) -> None:
        """``begin`` makes the stock, once there is something to tell.

        That is now if there is a rate to find, or one that ``is_known``.
        """
        super().__init__(Limits(requests_per_minute=math.inf), now)
        self._begin = begin
        self._stock: RateStock | None = None
        self._began_at = math.inf
        if is_known or limits.requests_per_minute == "auto":
            self._begun(now)

    def _begun(self, now: float) -> RateStock:
        if self._stock is None:
            self._stock, self._began_at = self._begin(now), now
        return self._stock

    @property
    def _known(self) -> Sequence[Rate]:
        return self._stock.rates if self._stock is not None else ()

    def advance(self, now: float, latency_s: float) -> None:
        """The holder refills."""
        if self._stock is not None:
            self._stock.latency_s = latency_s

    @property
    def limits_tokens(self) -> bool:
        """True if any rate counts tokens."""
        return any(rate.name != "requests" for rate in self._known)

    @property
    def is_binding(self) -> bool:
        """True if the last lease had to wait."""
        return self._stock is not None and self._stock.is_delayed

    @property
    def rate(self) -> float:
        """How many requests a second are tried by all processes."""
        tried = (rate.tried_per_s for rate in self._known if rate.name == "requests")
        return min(tried, default=math.inf)

    @property
    def is_growing(self) -> bool:
        """True while no rejection has cut the rate of requests."""
        return any(rate.is_growing for rate in self._known if rate.name == "requests")

    def is_found(self, now: float) -> bool:
        """True if rejections have shown about how many requests are allowed."""
        return self.rate < math.inf and not self.is_growing

    def restore(self, rate: float) -> None:
        """Have the holder take back what rejections have shown since the rate was this."""
        if self._stock is not None and rate > self.rate:
            self._stock.note(News(age_s=0.0, restored=rate), -math.inf, is_urgent=False)

    def give_up(self) -> None:
        """Have the holder take back all cuts."""
        if self._stock is not None:
            self._stock.note(News(age_s=0.0, restored=math.inf), -math.inf, is_urgent=False)

    def cut(
        self,
        rejection: Rejection,
        costs: Sequence[float],
        sent: Sent,
        pause_s: float,
        now: float,
        *,
        admitted_at: float,
    ) -> None:
        """Tell the holder of a rejection, which cuts the rate of all."""
        requests, tokens, inputs, outputs = costs
        news = News(
            age_s=0.0,
            rejection=rejection,
            rejected=True,
            costs=(requests, tokens, inputs, outputs),
            pause_s=pause_s,
        )
        self._begun(now).note(news, admitted_at, is_urgent=True)

    def observe(
        self, readings: Sequence[LimitReading], span: Span, *, rejected: bool
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Keep what the headers say for the holder. Returns what it has found to have changed."""
        if readings:
            news = News(age_s=0.0, readings=tuple(readings), rejected=rejected)
            self._begun(span.now).note(news, span.sent_at, is_urgent=False)
            self.is_told |= any(reading.window_s <= LONGEST_PACED_S for reading in readings)
        return False, self._stock.new_changes() if self._stock is not None else ()

    def found_limit(self, name: str) -> float:
        """How many of ``name`` the server says it allows in a minute; infinite if it says nothing."""
        found = (r for r in self._known if r.name == name and r.window_s <= LONGEST_PACED_S)
        return min((r.limit * MINUTE_S / r.window_s for r in found), default=math.inf)

    def reports(self, since_s: float) -> tuple[LimitReport, ...]:
        """How each limit turned out, and what this process has used of it."""
        return tuple(self._report(rate, since_s) for rate in self._known)

    def _report(self, rate: Rate, since_s: float) -> LimitReport:
        assert self._stock is not None
        changes = [
            (when, change.limit)
            for when, change in self._stock.changes
            if (change.name, change.window_s) == (rate.name, rate.window_s)
        ]
        used, is_told = self._stock.quotas[KINDS.index(rate.name)].used, rate.limit < math.inf
        allowed = 0.0
        if is_told and changes:
            allowed = rate.limit / rate.window_s * (self._stock.asked_at - changes[0][0])
        return LimitReport(
            name=rate.name,
            window_s=rate.window_s,
            found=rate.limit if is_told else None,
            tried_per_minute=rate.tried_per_s * 60 if rate.tried_per_s < math.inf else None,
            changes=tuple((when - since_s, limit) for when, limit in changes),
            used=used,
            used_share=used / allowed if allowed > 0 else None,
            others_per_minute=rate.others_per_s * 60 if is_told else None,
        )
