"""The rates that the server of one model and endpoint allows: told by its headers, or found by trying.

Each is a ``ServerQuota``. Here is decided which of them an answer is about, and which one a refusal cuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parallel_processor.models import LimitReading, Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.quota import MINUTE_S
from parallel_processor.ratelimit.rate_probe import GENTLE_PER_S
from parallel_processor.ratelimit.remaining import LONGEST_PACED_S
from parallel_processor.ratelimit.reports import LimitReport
from parallel_processor.ratelimit.server_quota import PACE, Sent, ServerQuota, Span

_SAME = 0.01  # two rejections name the same limit if they differ by no more than this share


class LimitChange(NamedTuple):
    """A limit that the headers newly named, or that changed.

    Attributes:
        name: what it counts.
        window_s: the length of its window in seconds.
        before: the limit before; infinite if it was unknown.
        limit: the limit now.
    """

    name: str
    window_s: float
    before: float
    limit: float


class _Named(NamedTuple):
    """A limit that the headers of rejections alone named."""

    per_minute: float
    times: int
    named_at: float


class ServerRates:
    """The rates of one model and endpoint. Not thread-safe: the lock of the bucket guards it.

    Attributes:
        quotas: those that are known, or searched for. A request takes from all of them.
        is_told: true once headers have named a limit.
    """

    def __init__(self, limits: Limits, now: float, *, pace: float = PACE) -> None:
        """Search for a rate from the beginning if ``limits`` are to be found.

        ``pace`` is the share of a told limit that is spent evenly.
        """
        self._limits, self._pace = limits, pace
        self.quotas: list[ServerQuota] = []
        self.is_told = False
        self._named: dict[str, _Named] = {}  # by what they count
        if limits.requests_per_minute == "auto":
            self._quota("requests", MINUTE_S, now, is_sought=True)

    def follow_limits(self, limits: Limits, per_s: float, now: float) -> None:
        """Search for a rate if ``limits`` are to be found now, from ``per_s``; end a search if not."""
        was_sought = self._limits.requests_per_minute == "auto"
        is_sought = limits.requests_per_minute == "auto"
        self._limits = limits
        for quota in self.quotas:
            quota.follow_limits(limits)
        if is_sought and not (was_sought or self.is_told or self.rate < math.inf):
            self.search_from(max(per_s, GENTLE_PER_S), "requests", MINUTE_S, now)
        elif was_sought and not is_sought:
            for quota in self.quotas:
                quota.probe.set_free()

    def _quota(
        self, name: str, window_s: float, now: float, *, is_sought: bool = False
    ) -> ServerQuota:
        for quota in self.quotas:
            if quota.name == name and quota.window_s == window_s:
                return quota
        quota = ServerQuota(
            name, window_s, self._limits, now=now, is_sought=is_sought, pace=self._pace
        )
        self.quotas.append(quota)
        return quota

    def advance(self, now: float, latency_s: float) -> None:
        """Refill the quotas. Answers take ``latency_s`` in the mean; infinite if that isn't known."""
        for quota in self.quotas:
            quota.probe.latency_s = latency_s
            quota.advance(now)

    @property
    def limits_tokens(self) -> bool:
        """True if any quota counts tokens."""
        quotas = self.quotas
        return bool(quotas) and any(quota.name != "requests" for quota in quotas)

    @property
    def is_binding(self) -> bool:
        """True if a rate that isn't among ``quotas`` held the head of the queue last."""
        return False

    # What rejections have shown.

    @property
    def rate(self) -> float:
        """How many requests a second are tried; infinite while rejections have shown nothing."""
        return min((q.probe.rate for q in self.quotas if q.name == "requests"), default=math.inf)

    @property
    def is_growing(self) -> bool:
        """True while a rate of requests is searched for that no rejection has cut."""
        return any(quota.probe.is_growing for quota in self.quotas if quota.name == "requests")

    def is_found(self, now: float) -> bool:
        """True if rejections have shown about how many requests a minute are allowed."""
        return self._quota("requests", MINUTE_S, now).probe.is_found

    def restore(self, rate: float) -> None:
        """Take back what rejections have shown since :attr:`rate` was this."""
        for quota in self.quotas:
            if quota.name == "requests" and quota.probe.rate < rate:
                quota.probe.search_from(rate)

    def search_from(self, per_s: float, name: str, window_s: float, now: float) -> None:
        """Begin a search at ``per_s``, whose answer others have found."""
        quota = self._quota(name, window_s, now)
        quota.probe.search_from(per_s)
        quota.level = min(quota.level, quota.capacity(per_s))

    def give_up(self) -> None:
        """Take back all cuts: the rate isn't the reason of the rejections."""
        for quota in self.quotas:
            if quota.name == "requests":
                quota.probe.give_up()

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
        """Cut the rate that explains the rejection of a request of ``costs``, unless headers explain it.

        ``sent`` is what was sent before. All sending pauses for ``pause_s`` now. To be called once for the
        rejections of a burst, whose first was admitted at ``admitted_at``.
        """
        limited = [quota for quota in self.quotas if quota.limit < math.inf]
        requests = self._quota(rejection.kind or "requests", MINUTE_S, now)
        requests.probe.rejections += 1
        if rejection.kind or rejection.ramp_too_fast or not limited:
            cost, named = costs[requests.kind], requests.limit < math.inf
        elif any(quota.remaining.lacks(costs[quota.kind]) for quota in limited):
            return  # the headers explain the rejection: nothing was estimated too high
        else:
            cost, named = 1.0, True
        requests.refused(cost, rejection, sent=sent, pause_s=pause_s, named=named)
        hearsay = self._named.get(requests.name)
        if hearsay is not None and hearsay.times == 1 and requests.limit == math.inf:
            requests.hear_of(hearsay.per_minute)

    # What headers say.

    def observe(
        self, readings: Sequence[LimitReading], span: Span, *, rejected: bool
    ) -> tuple[bool, Sequence[LimitChange]]:
        """Follow the headers of an answer. Returns whether more may be sent now, and what changed.

        ``rejected`` says that the request was turned away.
        """
        if rejected:
            readings = [each for each in readings if not self._is_hearsay(each, span)]
        is_quicker, limit_changes = False, []
        if any(reading.window_s <= LONGEST_PACED_S for reading in readings):
            self.is_told = True
            for quota in self.quotas:
                quota.probe.set_free()
        for reading in _tightest(readings):
            quota = self._quota(reading.name, self._window_s(reading), span.now)
            before, changes = quota.limit, len(quota.changes)
            is_quicker |= quota.observe(reading, span)
            if len(quota.changes) > changes:
                change = LimitChange(quota.name, quota.window_s, before, quota.limit)
                limit_changes.append(change)
        return is_quicker, limit_changes

    def _is_hearsay(self, reading: LimitReading, span: Span) -> bool:
        """Whether a rejection is the first to name this limit, and no answer has named any."""
        if any(q.name == reading.name and q.limit < math.inf for q in self.quotas):
            return False
        per_minute = reading.limit * MINUTE_S / reading.window_s
        sent_at, now = span.sent_at, span.now
        last, times = self._named.get(reading.name), 1
        if last is not None and abs(last.per_minute - per_minute) <= _SAME * per_minute:
            times = last.times + (sent_at > last.named_at)  # a burst counts once
            now = now if sent_at > last.named_at else last.named_at
        self._named[reading.name] = _Named(per_minute, times, now)
        return reading.window_s <= LONGEST_PACED_S and times == 1

    def _window_s(self, reading: LimitReading) -> float:
        """The window of the reading. A limit that was once a day's stays one, whatever its reset says."""
        alike = [q for q in self.quotas if q.name == reading.name and q.limit == reading.limit]
        longest = max([reading.window_s, *(quota.window_s for quota in alike)])
        for quota in alike:
            if quota.window_s < longest:
                self.quotas.remove(quota)
        return longest

    def found_limit(self, name: str) -> float:
        """How many of ``name`` the server says it allows in a minute; infinite if it says nothing."""
        found = (q for q in self.quotas if q.name == name and q.window_s <= LONGEST_PACED_S)
        return min((q.limit * MINUTE_S / q.window_s for q in found), default=math.inf)

    def reports(self, since_s: float) -> tuple[LimitReport, ...]:
        """How each limit turned out; times count from ``since_s``."""
        return tuple(quota.report(since_s) for quota in self.quotas)


def _tightest(readings: Sequence[LimitReading]) -> Sequence[LimitReading]:
    """One reading for each kind and window: of a project's and its organisation's, the scarcer one."""
    if any(reading.name in ("input_tokens", "output_tokens") for reading in readings):
        # Anthropic shows the scarcer of these two once more, as "tokens".
        readings = [r for r in readings if r.name != "tokens"]
    found: dict[tuple[str, float], LimitReading] = {}
    for reading in readings:
        key = (reading.name, reading.window_s)
        if key not in found or _left(reading) < _left(found[key]):
            found[key] = reading
    return tuple(found.values())


def _left(reading: LimitReading) -> float:
    return reading.limit if reading.remaining is None else reading.remaining
