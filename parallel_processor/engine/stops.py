"""What ends a run, or the requests of one model in it.

* **Equal failures.** A mistake in the URL, the model's name or a parameter fails every request in the same
  way. If nothing of a model was answered, and ``stop_after_equal_failures`` of its requests have failed for
  one reason, nothing more is sent until those in flight have ended. If none of them is answered either, the
  run stops.
* **Left out.** The requests of a model whose daily quota is used up, or whose server is out of order for
  too long, stay unanswered. The other models' go on. So it is with the requests to one of several hosts, if
  it refuses the key or the account.
* **Silence.** A server that takes connections, and has answered nothing yet, may be slow under load. But if
  single requests that were sent one by one time out again and again, for a minute or more, the run stops.

Failures have the same reason if they have the same kind and the same text, ids left out. Numbers are left
out too, except where the server rejects the contents (400, 413, 422): there they are what differs from
request to request. A request that is refused for what it says (a content filter, a length) shows that the
model works.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from parallel_processor.credentials.keyring import hosts_of
from parallel_processor.credentials.urls import host_of
from parallel_processor.exceptions import (
    ResultsFileError,
    RunStoppedError,
    StopCause,
    stop_cause_of,
)
from parallel_processor.models import Attempt, Request
from parallel_processor.options import Options, RetryPolicy, shown_url
from parallel_processor.providers.endpoints import url_advice
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.upstreams.replicas import AnyBucket

_SILENT_S = 60.0  # after the first timeout
_MOST_REASONS = 50  # with more of them, the reasons are the requests' own
_REQUEST_ID = re.compile(r" \(request id [^)]*\)$")
_ID = re.compile(r"\b(?=[\w-]*\d)[\w-]{8,}\b")  # with a digit in it
_NUMBER = re.compile(r"\d+")
CONTENT_STATUSES = {400, 413, 422}
SET_UP_STATUSES = {*range(300, 400), 401, 404, 405, 407, 410, 421}
_OWN = re.compile(
    r"content.?(?:filter|policy|management)|moderation|flagged|safety|prohibited|inappropriate|sensitive"
    r"|invalid_prompt|policy.violation|敏感|不安全|违规"
    r"|context.?(?:length|window)|too (?:long|large|many tokens)|max\w* (?:context|length|tokens?)\b",
    re.IGNORECASE,
)


def reason_of(attempt: Attempt) -> str:
    """The reason of a failure: equal for failures that only ids and numbers tell apart."""
    text = _ID.sub("#", _REQUEST_ID.sub("", attempt.error))
    if _status(attempt) not in CONTENT_STATUSES:
        text = _NUMBER.sub("#", text)
    return f"{attempt.kind}\n{text}"


def _status(attempt: Attempt) -> int:
    return attempt.response.status if attempt.response is not None else 0


class Silence:
    """Tells a server that takes connections, and has never answered. Any thread may call it."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._lock = InterruptSafeLock()  # guards the fields below
        self._timeouts = self._alone = 0
        self._since_s = math.inf

    def timed_out(self, in_flight: int) -> str:
        """Count a timeout while nothing has been answered; what to say if the run is to stop, or nothing.

        ``in_flight`` is how many requests were in flight when it was sent.
        """
        now = self._clock()
        with self._lock:
            self._timeouts += 1
            self._alone += in_flight <= 1
            self._since_s = min(self._since_s, now)
            timeouts, lasts_s = self._timeouts, now - self._since_s
            is_silent = self._alone >= self._policy.max_attempts and lasts_s >= _SILENT_S
            is_silent |= lasts_s >= max(self._policy.rate_limit_deadline_s, _SILENT_S)
        return f"{timeouts:,} requests timed out, and none was answered" if is_silent else ""


class EqualFailures:
    """Counts the failed requests of each model by reason, as long as none was answered.

    Any thread may call it. ``answered_before`` tells whether an earlier run had answers: then only what no
    request can pass counts.
    """

    def __init__(self, most: int, *, validates: bool, answered_before: Callable[[], bool]) -> None:
        """``most`` is 0 for no bound. With ``validates``, only :meth:`works` says that a model answers."""
        self._most, self._validates, self._answered_before = most, validates, answered_before
        self._lock = InterruptSafeLock()  # guards the fields below
        self._reasons: dict[AnyBucket, Counter[str]] = {}
        self._works: set[AnyBucket] = set()

    def works(self, bucket: AnyBucket) -> None:
        """The model answers: none of its failures counts."""
        if bucket not in self._works:
            with self._lock:
                self._works.add(bucket)
                was_counted = self._reasons.pop(bucket, None) is not None
            if was_counted:
                bucket.free()  # it may be held

    def failed(self, bucket: AnyBucket, attempt: Attempt) -> RunStoppedError | None:
        """Count a request that failed for good; an error if that is to stop the run."""
        if not self._most or bucket in self._works:
            return None
        was_answered = bucket.newest_answered_at > -math.inf and not self._validates
        if was_answered or _OWN.search(f"{attempt.kind} {attempt.error}"):
            self.works(bucket)
            return None
        if _status(attempt) not in SET_UP_STATUSES and self._answered_before():
            return None
        with self._lock:
            counts = self._reasons.setdefault(bucket, Counter())
            reason = reason_of(attempt)
            counts[reason] += 1
            number, is_all = counts[reason], len(counts) <= _MOST_REASONS
        if number < self._most or not is_all:
            return None
        if bucket.in_flight and not self._validates:  # one of these may be answered yet
            bucket.hold()
            return None
        bucket.free()
        message = (
            f"{_requests_of(bucket, number)} failed alike, and none was answered: {attempt.error}"
        )
        hint = _hint(bucket, attempt)
        return RunStoppedError(message + hint, StopCause.EQUAL_FAILURES, models=(bucket.model,))


def _requests_of(bucket: AnyBucket, number: int) -> str:
    model = f" for {bucket.model}" if bucket.model else ""
    return f"the first {number} requests{model}"


def _hint(bucket: AnyBucket, attempt: Attempt) -> str:
    """What a URL should look like, where the server doesn't know it."""
    url = shown_url(bucket.url)
    if _status(attempt) not in (404, 405, 410):
        return ""
    return f". {url_advice(url) or f'Check the URL {url} and the model'}"


OnLeftOut = Callable[[Request, BaseException], None]
"""Is called with each request of a model that is left out, and the reason."""


class LeftOut:
    """The models whose requests are not sent any more, and why. Any thread may call it."""

    def __init__(self, on_left_out: OnLeftOut | None) -> None:
        self._on_left_out = on_left_out
        self._lock = InterruptSafeLock()  # guards the field below
        self._errors: dict[AnyBucket | str, RunStoppedError] = {}
        self._has_hosts = False

    def __contains__(self, bucket: AnyBucket) -> bool:
        return bucket in self._errors or (self._has_hosts and host_of(bucket.url) in self._errors)

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(
        self,
        bucket: AnyBucket,
        reason: str,
        cause: StopCause,
        where: str = "",
        *,
        is_hosts: bool = False,
    ) -> str:
        """Leave ``bucket`` out, whose lane is called ``where``, or all of its host.

        Returns the message, which is empty if it was left out already.
        """
        left = host_of(bucket.url) if is_hosts else bucket
        with self._lock:
            if left in self._errors:
                return ""
            model = "" if is_hosts else bucket.model
            of = f" for {model}" if model else ""
            of += f" that are to go to the {where}" if where else ""
            if is_hosts:
                self._has_hosts, of = True, f" to {urlsplit(bucket.url).netloc}"
            message = f"requests{of} are left unanswered: {reason}"
            self._errors[left] = RunStoppedError(message, cause, models=(model,))
            return message

    def tell(self, request: Request, bucket: AnyBucket) -> None:
        """Tell of a request of ``bucket`` that is unanswered, if that is the reason."""
        error = self._errors.get(bucket) or self._errors.get(host_of(bucket.url))
        if self._on_left_out is not None and error is not None:
            self._on_left_out(request, error)

    @property
    def is_told(self) -> bool:
        """True if each request's owner is told: then the run has ended well."""
        return self._on_left_out is not None

    def error(self) -> RunStoppedError | None:
        """Why models are left out; ``None`` if none is."""
        with self._lock:
            errors = list(self._errors.values())
        if len(errors) < 2:
            return errors[0] if errors else None
        models = tuple(model for error in errors for model in error.models)
        return RunStoppedError("; ".join(map(str, errors)), errors[0].stop_cause, models=models)


def has_others(options: Options) -> bool:
    """True if requests may go to other hosts than those of ``request_url`` and ``replica_urls``."""
    fallback = [urlsplit(url).netloc] if (url := options.fallback_url) else []
    own = options.keyring.own_hosts
    return any(own.isdisjoint(hosts_of(host)) for host in (*options.allowed_hosts, *fallback))


def drain_s(cause: BaseException | None, options: Options) -> float:
    """How many seconds requests in flight may take after a stop.

    The README has the table. After a :class:`RunStoppedError` they may end: ``request_timeout_s`` bounds
    each. A failing disk has ``write_retry_s``, because failed writes are tried again for so long. A pipe
    without a reader takes no record any more.
    """
    if isinstance(cause, RunStoppedError):
        return math.inf
    if stop_cause_of(cause) is StopCause.READER_LEFT:
        return 0.0
    if isinstance(cause, ResultsFileError):
        return max(options.drain_s, options.write_retry_s)
    return options.drain_s
