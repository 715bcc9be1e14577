"""Which ends of an attempt are tried again, and when: the policy, as one ``tenacity.Retrying``.

A retryable failure counts towards ``max_attempts`` and is followed by exponential backoff with full
jitter. A refusal by a rate limit doesn't count, nor does a server that can't be reached: nothing was
sent. The bucket's pause holds such a request until its turn comes again, and only the time since it was
first turned away bounds that.

The ``Retrying`` object is called, never used as a decorator: what it keeps per call is thread-local, so
that one serves all workers of a run. (Calls of one decorated function would share their statistics:
jd/tenacity issue 701.)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import tenacity

from parallel_processor.models import Attempt, Request, Verdict
from parallel_processor.options import RetryPolicy

_RETRIED = (Verdict.RETRY, Verdict.RATE_LIMITED, Verdict.UNREACHABLE)

_MAX_ERRORS = 1000  # a rate limit may refuse a request much more often


@dataclass(slots=True, kw_only=True)
class Tries:
    """The tries of one request so far; for the worker that has it.

    ``failures`` counts those towards ``max_attempts``, ``unreachable`` those without a connection,
    ``sent`` all of them. ``refused_since`` is when a rate limit or a server that couldn't be reached
    first turned it away, in seconds of the worker's clock.
    """

    request: Request
    sent: int = 0
    failures: int = 0
    unreachable: int = 0
    refused_since: float | None = None
    errors: list[str] = field(default_factory=list)

    def note(self, attempt: Attempt, now: float) -> None:
        """Keep what ``attempt`` says for the record."""
        if attempt.error:
            del self.errors[_MAX_ERRORS - 1 :]  # of more than that, the first ones and the last
            self.errors.append(attempt.error)
        if attempt.verdict is Verdict.RETRY:
            self.failures += 1
        elif attempt.verdict in (Verdict.RATE_LIMITED, Verdict.UNREACHABLE):
            self.unreachable += attempt.verdict is Verdict.UNREACHABLE
            if self.refused_since is None:
                self.refused_since = now


def make_retrying(
    policy: RetryPolicy,
    *,
    sleep: Callable[[float], object],
    before_sleep: Callable[[Tries, Attempt, float], None],
    clock: Callable[[], float] = time.monotonic,
) -> tenacity.Retrying:
    """A ``Retrying`` for calls ``retrying(attempt, tries)`` that give an :class:`Attempt`.

    It gives the last attempt, whatever its verdict. ``sleep`` may return early; the next attempt then
    has to look at the stop signal first.
    """

    def is_over(state: tenacity.RetryCallState) -> bool:
        tries, attempt = _call(state)
        if attempt.verdict is Verdict.RETRY:
            return tries.failures >= policy.max_attempts
        return clock() - (tries.refused_since or 0.0) >= policy.rate_limit_deadline_s

    def wait(state: tenacity.RetryCallState) -> float:
        return backoff_s(policy, *_call(state))

    def tell(state: tenacity.RetryCallState) -> None:
        before_sleep(*_call(state), state.upcoming_sleep)

    return tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda attempt: attempt.verdict in _RETRIED),
        stop=is_over,
        wait=wait,
        before_sleep=tell,
        sleep=lambda seconds: _ignore(sleep(seconds)),
        retry_error_callback=lambda state: _call(state)[1],
    )


def _ignore(result: object) -> None:
    """Waiting on an event tells whether it was set, which tenacity doesn't ask for."""


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
