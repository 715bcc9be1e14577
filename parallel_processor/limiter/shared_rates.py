"""The rates of a server as all processes of an account follow them together, on the side of the holder.

One ``ServerRates`` stands for all processes: it gets the news of each one's answers, and leases come from
its quotas. So a limit in the headers of one answer holds for all, a rejection cuts the rate of all, and
what remains on the server is read against what all have sent.

A lease is dated as those of ``buckets.py`` are. But these rates change with each answer, so nothing is
promised for more than a second ahead. A process that would have to wait longer gets a place in a line, and
asks again.

**No memory.** A holder that was started again begins with what the processes know.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from parallel_processor.limiter.leases import Ask, Lease, News, Rate, ServerNews
from parallel_processor.models import LimitReading
from parallel_processor.ratelimit.quota import KINDS, MINUTE_S, Costs
from parallel_processor.ratelimit.server_quota import Sent, ServerQuota, Span
from parallel_processor.ratelimit.server_rates import ServerRates

_PACE = 1.0 - 1.0 / MINUTE_S  # half a second for a burst, and half a second for which a lease lasts
_LONGEST_DATE_S = 1.0  # a lease is promised no longer ahead
_EARLIER_S = 0.5  # a process in the line asks again so long before its turn,
_LATER_S = (0.25, 2.0)  # but after so many seconds at least and at most
_MISSED_S = 5.0  # a process that hasn't asked for so long has left the line
_SENT_S = 2.0  # over which a rate is measured
_KEPT_S = 60.0  # for so long it is known what was sent by a time
_STEP_S = 0.02
_UNUSED_S = 3600.0
_NOTHING: Costs = (0.0, 0.0, 0.0, 0.0)


class SharedRates:
    """The rates of one model and endpoint. Not thread-safe.

    Attributes:
        epoch: which memory this is.
    """

    def __init__(self, server: ServerNews, now: float) -> None:
        """Begin with what the process knows that asks first."""
        self.epoch = max(1, math.floor(now * 1e6 + 0.5))
        self._rates = ServerRates(server.limits, now, pace=_PACE)
        self._serial = 0
        # The processes in the line, by place: when each asked, and for what.
        self._line: dict[int, tuple[float, Sequence[float]]] = {}
        self._next_place = 1
        self._totals = _NOTHING  # leased so far, by kind
        self._dates: deque[float] = deque([-math.inf])  # of leases, and what was leased by then
        self._by_date: deque[Costs] = deque([_NOTHING])
        self._burst_until = -math.inf  # of rejections
        self._asked_at = now
        for rate in server.known:
            self._begin_with(rate, now)

    def _begin_with(self, rate: Rate, now: float) -> None:
        if rate.limit < math.inf:
            told = LimitReading(
                name=rate.name,
                limit=rate.limit,
                remaining=None,
                reset_s=None,
                window_s=rate.window_s,
            )
            self._rates.observe([told], Span(now, _NOTHING, now, _NOTHING), rejected=False)
        if rate.tried_per_s < math.inf:
            self._rates.search_from(rate.tried_per_s, rate.name, rate.window_s, now)

    def is_unused(self, now: float) -> bool:
        """True if nobody has asked for an hour."""
        return now - self._asked_at > _UNUSED_S

    def lease(self, ask: Ask, server: ServerNews, now: float, paused_s: float = 0.0) -> Lease:
        """Follow the news, and grant a lease; none to a process that was forgotten.

        The server wants nothing to be sent for ``paused_s``.
        """
        self._asked_at = now = max(now, self._asked_at)
        is_known = all(epoch in (0, self.epoch) for epoch in ask.epochs)
        self._rates.advance(now, server.latency_s)
        for news in server.news:
            self._follow(news, now)
        if is_known:
            self._settle(ask)
        delay, binding = self._delay_s(ask.amounts, now) if is_known else (0.0, 0)
        delay = max(delay, paused_s)
        place = ask.place or self._next_place
        if delay > 0:  # what there is now is kept for nobody in the line
            delay += self._line_s(place, now)
        is_later = delay > _LONGEST_DATE_S
        if is_later and any(ask.amounts):
            self._line[place] = (now, ask.amounts)
            self._next_place = max(self._next_place, place + 1)
            delay = min(max(delay - _EARLIER_S, _LATER_S[0]), _LATER_S[1])
        else:
            self._line.pop(place, None)
        if is_known and any(ask.amounts) and not is_later:
            self._charge(ask.amounts, now, now + delay)
        return Lease(
            is_granted=is_known,
            delay_s=delay,
            binding=binding,
            slot=0,
            epochs=(self.epoch,) * len(KINDS),
            serials=(self._serial,) * len(KINDS),
            limits=(math.inf,) * len(KINDS),
            place=place if is_later else 0,
            rates=tuple(map(_known, self._rates.quotas)),
            most=tuple(self._most(kind, now) for kind in range(len(KINDS))),
        )

    def _follow(self, news: News, now: float) -> None:
        sent_at = now - news.age_s
        if news.readings:
            span = Span(sent_at, self._leased_by(sent_at), now, self._leased_by(now))
            self._rates.observe(news.readings, span, rejected=news.rejected)
        if news.restored is not None:
            if news.restored == math.inf:
                self._rates.give_up()
            else:
                self._rates.restore(news.restored)
        if news.rejection is not None and sent_at > self._burst_until:
            # A process that hasn't heard of the pause may still send: a rejection of that is no new burst.
            self._burst_until = now + news.pause_s
            sent = self._sent(now)
            self._rates.cut(
                news.rejection, news.costs, sent, news.pause_s, now, admitted_at=sent_at
            )

    def _sent(self, now: float) -> Sent:
        totals, before = self._leased_by(now), self._leased_by(now - _SENT_S)
        per_s = [(after - b) / _SENT_S for after, b in zip(totals, before, strict=True)]
        return Sent(per_s, totals)

    def _settle(self, ask: Ask) -> None:
        """Take back what leases did not use, and charge what was used without one."""
        amounts = list(ask.overused or _NOTHING)
        for kind, _, amount in ask.returned:
            amounts[kind] -= amount
        if any(amounts):
            self._add(amounts)
            for quota in self._rates.quotas:
                quota.refund(-amounts[quota.kind], None, 0.0)

    def _delay_s(self, amounts: Sequence[float], now: float) -> tuple[float, int]:
        """Seconds until a lease of ``amounts`` may begin, and for which kind."""
        delays = [
            (quota.wait_s(amounts[quota.kind], now), quota.kind) for quota in self._rates.quotas
        ]
        return max(delays, default=(0.0, 0))

    def _line_s(self, place: int, now: float) -> float:
        """For how long the processes will send that stand in the line before ``place``."""
        for other, (asked_at, _) in list(self._line.items()):
            if now - asked_at > _MISSED_S:
                del self._line[other]
        before = [amounts for each, (_, amounts) in self._line.items() if each < place]
        return max(
            (
                sum(amounts[quota.kind] for amounts in before) / quota.rate(now)
                for quota in self._rates.quotas
            ),
            default=0.0,
        )

    def _charge(self, amounts: Sequence[float], now: float, date: float) -> None:
        for quota in self._rates.quotas:
            quota.charge(amounts[quota.kind], now)
        self._serial += 1
        self._add(amounts)
        if date <= self._dates[-1] + _STEP_S:
            self._by_date[-1] = self._totals
            return
        self._dates.append(date)
        self._by_date.append(self._totals)
        while len(self._dates) > 1 and self._dates[1] < now - _KEPT_S:
            self._dates.popleft()
            self._by_date.popleft()

    def _add(self, amounts: Sequence[float]) -> None:
        requests, tokens, inputs, outputs = self._totals
        a, b, c, d = amounts
        self._totals = (requests + a, tokens + b, inputs + c, outputs + d)

    def _leased_by(self, time: float) -> Costs:
        """What had been leased by ``time``, as far as that is known, by kind."""
        return self._by_date[max(0, bisect_right(self._dates, time) - 1)]

    def _most(self, kind: int, now: float) -> float:
        """How much one lease should hold."""
        quotas = [quota for quota in self._rates.quotas if quota.kind == kind]
        return min((quota.capacity(quota.rate(now)) for quota in quotas), default=math.inf)


def _known(quota: ServerQuota) -> Rate:
    return Rate(
        name=quota.name,
        window_s=quota.window_s,
        limit=quota.limit,
        tried_per_s=quota.probe.rate,
        is_growing=quota.probe.is_growing,
        others_per_s=quota.remaining.others,
    )
