"""Which ends of an attempt are followed by another, and when: the policy, decided by ``tenacity``.

A retryable failure counts towards ``max_attempts`` and is followed by exponential backoff with full
jitter. A refusal by a rate limit doesn't count, nor does a server that can't be reached: nothing was
sent. The bucket's pause holds such a request until its turn comes again, and only the time since it was
first turned away bounds that. What was lost with a worker process is sent again at once, three times.

No thread sleeps between two attempts: tenacity's ``iter`` tells how long to wait, as it tells its own
asyncio flavour, and the request goes back to the dispatcher for so long. What a ``Retrying`` keeps per
call is thread-local, so that one serves all workers of a run. (Calls of one decorated function would
share their statistics: jd/tenacity issue 701.)
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from parallel_processor.forks import FORKS_WAIT
from parallel_processor.models import Attempt, Verdict
from parallel_processor.options import RetryPolicy
from parallel_processor.pending import Tries

if TYPE_CHECKING:
    import tenacity

RETRIED = (Verdict.RETRY, Verdict.RATE_LIMITED, Verdict.UNREACHABLE, Verdict.LOST)

_MOST_LOST = 3


class RetrySchedule:
    """Tells what follows a failed attempt. Any thread may call it, for a request that it has.

    ``tell`` hears of each attempt that will be followed by another, and in how many seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        tell: Callable[[Tries, Attempt, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._tell = tell
        self._clock = clock

    @functools.cached_property
    def _retrying(self) -> tenacity.Retrying:
        """Made at the first failure: few runs have one, and tenacity takes 10 ms to import.

        Threads whose first failures coincide may each make one. Either will do, but not half of each.
        """
        import tenacity

        return tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda attempt: attempt.verdict in RETRIED),
            stop=lambda state: self._is_over(*_call(state)),
            wait=lambda state: backoff_s(self._policy, *_call(state)),
            before_sleep=lambda state: self._tell(*_call(state), state.upcoming_sleep),
            retry_error_callback=lambda state: None,
        )

    def _is_over(self, tries: Tries, attempt: Attempt) -> bool:
        if attempt.verdict is Verdict.RETRY:
            return tries.failures >= self._policy.max_attempts
        if attempt.verdict is Verdict.LOST:
            return tries.lost > _MOST_LOST
        return self._clock() - (tries.refused_since or 0.0) >= self._policy.rate_limit_deadline_s

    def retry_in_s(self, tries: Tries, attempt: Attempt) -> float | None:
        """Seconds until the next attempt behind ``attempt``, which ``tries`` has noted; else ``None``."""
        with FORKS_WAIT:
            retrying = self._retrying  # once
            import tenacity

        if tries.state is None:
            tries.state = tenacity.RetryCallState(retrying, None, (tries,), {})
        retrying.begin()
        tries.state.set_result(attempt)
        step = retrying.iter(tries.state)
        if not isinstance(step, tenacity.DoSleep):
            return None
        tries.state.prepare_for_next_attempt()
        return float(step)


def _call(state: tenacity.RetryCallState) -> tuple[Tries, Attempt]:
    assert state.outcome is not None
    tries: Tries = state.args[0]
    return tries, state.outcome.result()


def backoff_s(policy: RetryPolicy, tries: Tries, attempt: Attempt) -> float:
    """Seconds before the next attempt; what the server asked for is the least."""
    if attempt.verdict is not Verdict.RETRY:
        return 0.0
    asked = min(attempt.retry_after_s or 0.0, policy.rate_limit_deadline_s)
    return max(asked, random.uniform(0.0, longest_backoff_s(policy, tries.failures)))


def longest_backoff_s(policy: RetryPolicy, failures: int) -> float:
    """The most seconds to wait after that many failures, at least one."""
    return min(policy.backoff_max_s, policy.backoff_initial_s * 2.0 ** min(failures - 1, 60))
