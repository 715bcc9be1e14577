"""Decides which failed attempts are followed by another, and when, with ``tenacity``.

* A retryable failure counts towards ``max_attempts``. Exponential backoff with full jitter follows.
* A rejection by a rate limit does not count, nor does a server that can't be reached or isn't ready
  (``outage.py``): nothing was processed. The bucket's pause delays the next attempt. Only the time since
  the first of them is bounded.
* A request that was lost with a worker process is sent again at once, three times at most.

No thread sleeps between two attempts: tenacity's ``iter`` returns how long to wait, as it does for its own
asyncio flavour, and the dispatcher keeps the request for so long. A ``Retrying`` keeps the state of a call
per thread, so that one ``Retrying`` serves all workers of a run. (Calls of one decorated function would
share their statistics: jd/tenacity issue 701.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallel_processor.engine.rejections import is_timeout
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import RetryPolicy
from parallel_processor.runtime.forks import load
from parallel_processor.upstreams.outage import Judgement, Verdict, longest_backoff_s
from parallel_processor.workers.pending import RetryState

if TYPE_CHECKING:
    import tenacity

RETRIED = (
    AttemptStatus.RETRY,
    AttemptStatus.RATE_LIMITED,
    AttemptStatus.UNREACHABLE,
    AttemptStatus.NOT_READY,
    AttemptStatus.LOST,
)
_MAX_LOST = 3
_TIMEOUT_BACKOFFS = 8  # after a timeout, wait for so many backoffs at most


class RetrySchedule:
    """Decides what follows a failed attempt. Any thread may call it, for a request that it owns.

    ``tell`` is called with each attempt that is to be followed by another, and the seconds until then.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        tell: Callable[[RetryState, Attempt, float], None],
        clock: Callable[[], float],
    ) -> None:
        self._policy, self._tell, self._clock = policy, tell, clock
        self._retrying: tenacity.Retrying | None = None  # made at the first failure

    def retry_in_s(self, retry_state: RetryState, attempt: Attempt) -> float | None:
        """Seconds until the next attempt; ``None`` if there is to be none.

        ``retry_state`` has noted ``attempt`` already.
        """
        library = load("tenacity")  # takes 10 ms the first time, and few runs have a failure
        retrying = self._retrying
        if retrying is None:  # two threads may each make one: both are equally good
            retrying = self._retrying = self._make_retrying(library)
        if retry_state.state is None:
            retry_state.state = library.RetryCallState(retrying, None, (retry_state,), {})
        retrying.begin()
        retry_state.state.set_result(attempt)
        step: Any = retrying.iter(retry_state.state)
        if not isinstance(step, library.DoSleep):
            return None
        retry_state.state.prepare_for_next_attempt()
        return float(step)

    def _make_retrying(self, library: Any) -> tenacity.Retrying:
        retrying: tenacity.Retrying = library.Retrying(
            retry=library.retry_if_result(lambda attempt: attempt.status in RETRIED),
            stop=lambda state: self._is_over(*_call(state)),
            wait=lambda state: backoff_s(self._policy, *_call(state)),
            before_sleep=lambda state: self._tell(*_call(state), state.upcoming_sleep),
            retry_error_callback=lambda state: None,
        )
        return retrying

    def _is_over(self, retry_state: RetryState, attempt: Attempt) -> bool:
        if attempt.status is AttemptStatus.RETRY:
            return retry_state.failures >= self._policy.max_attempts
        if attempt.status is AttemptStatus.LOST:
            return retry_state.lost > _MAX_LOST
        rejected_for_s = self._clock() - (retry_state.rejected_since_s or 0.0)
        return rejected_for_s >= self._policy.rate_limit_deadline_s


def _call(state: tenacity.RetryCallState) -> tuple[RetryState, Attempt]:
    assert state.outcome is not None
    retry_state: RetryState = state.args[0]
    return retry_state, state.outcome.result()


def backoff_s(policy: RetryPolicy, retry_state: RetryState, attempt: Attempt) -> float:
    """Seconds before the next attempt, at least as long as the server asked for.

    After a timeout the server may be busy for long: the wait is about as long as the attempt took, unless
    the policy's backoffs are much shorter. A refusal for load pauses nobody else, so its request backs off.
    """
    asked = min(attempt.retry_after_s or 0.0, policy.rate_limit_deadline_s)
    if attempt.status is AttemptStatus.RETRY:
        if retry_state.has_other:
            return 0.0
        longest = longest_backoff_s(policy, retry_state.failures)
        backoff = random.uniform(0.0, longest)
        if is_timeout(attempt):
            again = min(attempt.latency_s or 0.0, _TIMEOUT_BACKOFFS * longest)
            backoff = max(backoff, random.uniform(again / 2, again))
        return max(asked, backoff)
    if attempt.rejection is not None and attempt.rejection.overload:
        return random.uniform(0.0, longest_backoff_s(policy, max(1, retry_state.own_refusals)))
    return 0.0


def without_charge(
    attempt: Attempt, judged: Judgement, retry_state: RetryState, policy: RetryPolicy
) -> Attempt:
    """The attempt as one that doesn't count, if the server is out of order rather than the request."""
    if attempt.status is not AttemptStatus.RETRY:
        return attempt
    is_last = 1 < policy.max_attempts <= retry_state.failures + 1
    is_doubtful = judged.verdict is Verdict.DOUBTFUL and is_last
    if is_doubtful or judged.verdict in (Verdict.OUT, Verdict.LOST):
        return replace(attempt, status=AttemptStatus.NOT_READY)
    return attempt
