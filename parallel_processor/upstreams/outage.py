"""Tells an outage of a server from failures of single requests and from load.

Only failures are looked at, so that an answer costs nothing. Failures of a model that look like an outage
(a gateway's 502, 503 and 504, connections that are refused or reset, a server that says that it loads) form
a streak. An answer to a request that was sent after the streak began ends it: the server serves.

* While the server serves, such a failure is the request's own, or load (``ratelimit/concurrency.py``).
  The same is supposed while fewer than 3 requests are in the streak: each attempt may have to be paid for.
* A streak of 2 seconds and 5 failures is an outage. So is the first failure, if the server can't be reached
  or says itself that it isn't ready.
* In between it is too early to say. The failure counts, but no request fails for good by it.

Where other upstreams serve the same requests, all that a server may be to blame for counts: any 5xx, any
timeout, a torn response. Once another has answered meanwhile, 3 such requests in a row are an outage. A
wrong verdict costs little there. Then a server that can't be reached pauses for 1 second at most: its
request goes to another at once.

In an outage no attempt counts, and the model's requests pause. After each pause a single request is sent,
each time another one: a request that is itself to blame can't keep the outage alive. The pauses grow to
5 seconds, whatever the server asks for: a single request is cheap, and too long a wait is not. The first
failures may have been taken for load. In the third round, what they have slowed down is taken back.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from parallel_processor.credentials.urls import host_of
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import RetryPolicy
from parallel_processor.ratelimit.token_bucket import Tally, TokenBucket
from parallel_processor.runtime.locks import InterruptSafeLock

_STATUSES = {502, 503, 504, *range(520, 525), 530}  # gateways, Cloudflare's included
_BROKEN = "connection error"
OUT_OF_ORDER = (AttemptStatus.UNREACHABLE, AttemptStatus.NOT_READY)
"""How an attempt ends that shows by itself that the server is out of order."""
_LEAST_S = 2.0
_LEAST_REQUESTS = 3
_LEAST_FAILURES = 5
_LONGEST_PAUSE_S, _SHORTEST_PAUSE_S = 5.0, 0.1
_SPARED_PAUSE_S = (
    1.0  # while others serve, for a server whose refusal of a connection costs nothing
)
_BURST_S = 10.0  # in which the failures of a server that ends may be between its last answers
_ROUNDS = 3  # from so many on, load was not the reason
_SELDOM_S = 300.0  # outages that follow each other sooner may be a limit


class Verdict(enum.Enum):
    """What a failure says about the server."""

    SERVES = "serves"  # nothing: others are answered
    DOUBTFUL = "doubtful"  # none was answered since it began; it is too early to say
    OUT = "out"  # an outage
    LOST = "lost"  # an outage for longer than the policy permits


class Judgement(NamedTuple):
    """A verdict, and what follows from it.

    Attributes:
        verdict: what the failure says about the server.
        pause_s: seconds until the request may be sent again.
        round: which pause of the outage begins; 0 if the failure is older than the last pause.
        since_s: when the streak began.
    """

    verdict: Verdict
    pause_s: float = 0.0
    round: int = 0
    since_s: float = 0.0


@dataclass(slots=True)
class _Streak:
    """The failures of one model since its last answer."""

    sent_at: float  # when the first of them was admitted
    began_s: float  # when it came back
    before: Tally  # of the bucket, then
    failures: int = 0
    requests: set[int] = field(default_factory=set)  # some of their numbers
    rounds: int = 0  # pauses so far
    paused_at: float = -math.inf  # when the last pause began


class Outages:
    """The streaks of one run, by token bucket. Any thread may call it.

    ``paused`` are the buckets that have paused in an outage, until :meth:`is_back` tells its end.
    """

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._lock = InterruptSafeLock()  # guards the fields below
        self._outage_at_s: dict[TokenBucket, float] = {}  # when the last one was in its third round
        self._streaks: dict[TokenBucket, _Streak] = {}
        self.paused: set[TokenBucket] = set()  # since the last answer of each one's server

    def judge(
        self,
        bucket: TokenBucket,
        number: int,
        admitted_at: float,
        attempt: Attempt,
        others_answered_at: float | None = None,
    ) -> Judgement:
        """Judge a failure of ``bucket``, of the request ``number``, admitted at ``admitted_at``.

        A complete response below 500 ends the streak, and the confinement of the bucket. If other
        upstreams serve such requests, ``others_answered_at`` is when the newest was admitted that one of
        them answered.
        """
        with self._lock:
            streak = self._streaks.get(bucket)
            is_outage_like = _is_outage_like(attempt, streak, others_answered_at is not None)
            if is_outage_like:
                answered_at = -math.inf if others_answered_at is None else others_answered_at
                judgement = self._judge(bucket, streak, number, admitted_at, attempt, answered_at)
                streak = self._streaks[bucket]
            elif attempt.response is None or attempt.response.status >= 500:
                return Judgement(Verdict.SERVES)
            else:
                judgement = Judgement(Verdict.SERVES)
                self._streaks.pop(bucket, None)
            takes_back = judgement.round == _ROUNDS and self._may_take_back(bucket)
        if takes_back and streak is not None:
            bucket.take_back(streak.before)
        elif not is_outage_like and streak is not None and streak.rounds:
            bucket.free()
        return judgement

    def _outage(self, bucket: TokenBucket) -> _Streak | None:
        """The outage that ``bucket`` is in."""
        with self._lock:
            streak = self._streaks.get(bucket)
        if streak is None or bucket.newest_answered_at > streak.sent_at:
            return None
        return streak if streak.rounds else None

    def is_out(self, bucket: TokenBucket) -> bool:
        """True while an outage of ``bucket`` lasts."""
        return self._outage(bucket) is not None

    def note_pause(self, bucket: TokenBucket) -> None:
        """``bucket`` pauses for an outage: :meth:`is_back` tells its end."""
        with self._lock:
            self.paused.add(bucket)

    def is_back(self, bucket: TokenBucket) -> bool:
        """True, once, if ``bucket`` was answered after an outage: its server is back, for all models."""
        if bucket not in self.paused or self.is_out(bucket):
            return False
        with self._lock:
            if bucket not in self.paused:
                return False
            host = host_of(bucket.url)
            self.paused = {each for each in self.paused if host_of(each.url) != host}
            return True

    def rounds(self, bucket: TokenBucket) -> int:
        """How often ``bucket`` has paused in the outage that it is in; 0 if it is in none."""
        outage = self._outage(bucket)
        return 0 if outage is None else outage.rounds

    def out_for_s(self, bucket: TokenBucket) -> float:
        """For how long ``bucket`` has been in an outage, in seconds; 0 if it is in none."""
        outage = self._outage(bucket)
        return 0.0 if outage is None else self._clock() - outage.began_s

    def _may_take_back(self, bucket: TokenBucket) -> bool:
        """Note an outage; false if the one before it is too recent. Caller holds ``_lock``."""
        now = self._clock()
        before, self._outage_at_s[bucket] = self._outage_at_s.get(bucket, -math.inf), now
        return now - before >= _SELDOM_S

    def _judge(
        self,
        bucket: TokenBucket,
        streak: _Streak | None,
        number: int,
        admitted_at: float,
        attempt: Attempt,
        others_answered_at: float,
    ) -> Judgement:
        """Caller holds ``_lock``."""
        now, answered_at = self._clock(), bucket.newest_answered_at
        serves = answered_at > (admitted_at if streak is None else streak.sent_at)
        if streak is None or serves:
            before = bucket.tally()
            if streak is not None and now - streak.began_s < _BURST_S:
                before = streak.before  # its failures may be the first ones of this outage
            streak = self._streaks[bucket] = _Streak(admitted_at, now, before)
        streak.failures += 1
        if len(streak.requests) < _LEAST_REQUESTS:
            streak.requests.add(number)
        lasts_s, is_alone = now - streak.began_s, len(streak.requests) < _LEAST_REQUESTS
        is_out = streak.failures >= _LEAST_FAILURES and lasts_s >= _LEAST_S and not is_alone
        is_spared = others_answered_at > streak.sent_at
        is_out = is_out or (is_spared and not is_alone)
        is_out = is_out or streak.rounds > 0 or attempt.status in OUT_OF_ORDER
        if serves or not is_out:
            verdict = Verdict.SERVES if serves or is_alone else Verdict.DOUBTFUL
            return Judgement(verdict, self._pause_s(1), 0, streak.began_s)
        round_ = 0
        if admitted_at > streak.paused_at:
            streak.rounds += 1
            streak.paused_at, round_ = now, streak.rounds
        is_lost = lasts_s >= self._policy.rate_limit_deadline_s
        verdict = Verdict.LOST if is_lost else Verdict.OUT
        pause_s = self._pause_s(streak.rounds)
        if is_spared and attempt.status is AttemptStatus.UNREACHABLE:
            pause_s = min(pause_s, _SPARED_PAUSE_S)
        return Judgement(verdict, pause_s, round_, streak.began_s)

    def _pause_s(self, rounds: int) -> float:
        backoff_s = longest_backoff_s(self._policy, max(rounds, 1))  # the user may have set 0
        return min(max(backoff_s, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)


def longest_backoff_s(policy: RetryPolicy, failures: int) -> float:
    """The longest backoff after that many ``failures``, which are at least one."""
    return min(policy.backoff_max_s, policy.backoff_initial_s * 2.0 ** min(failures - 1, 60))


def _is_outage_like(attempt: Attempt, streak: _Streak | None, has_others: bool) -> bool:
    if attempt.status in OUT_OF_ORDER:
        return True
    if attempt.status is not AttemptStatus.RETRY:
        return False
    if attempt.response is not None:
        status = attempt.response.status
        return status in _STATUSES or (has_others and status >= 500)
    if has_others:
        return True
    is_out = streak is not None and streak.rounds > 0
    return attempt.kind == _BROKEN or (is_out and attempt.kind in ("timeout", "connect timeout"))
