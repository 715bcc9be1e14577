"""Lanes: where a request goes first, and where it goes on to if that place doesn't answer it.

A lane is a service tier, another model or another URL. It is an :class:`Upstream` whose empty members are
those of the request. Each lane of a model has a token bucket and a queue of its own.

* **Tiers** (``service_tiers``), the cheap one first. A request goes on to the next tier when its own has no
  capacity for it, or when it has waited for ``tier_patience_s``: for its turn, for retries and for answers.
* **The fallback** (``fallback_model``, ``fallback_url``) comes last. It is for what failed for good.
* What fails for good in a lane goes on as well. Only the last lane's failure is the request's.
* What would stop the run (a refused key, a spent model, a server that is lost) closes a lane that has a
  next one: its queue goes on, and later requests start in the next lane. It stays closed for the run.

**Both tiers are busy.** A request that had no turn yet goes on only if it would have one soon in the next
tier. Where many wait there already, what the cheap tier refused is tried there again after a backoff.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import (
    MODEL_PLACE,
    Attempt,
    AttemptStatus,
    Endpoint,
    Request,
    Upstream,
    WaitCause,
)
from parallel_processor.options import Options, shown_url
from parallel_processor.providers.dialects import (
    answered_tier,
    endpoint_of,
    tier_spelling,
    url_model,
)
from parallel_processor.providers.endpoints import is_exposed, needs_key
from parallel_processor.providers.jsontext import dump, with_member
from parallel_processor.ratelimit.registry import PLAIN
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.upstreams.replicas import AnyBucket
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import PendingRequest, RetryState

_log = logging.getLogger("parallel_processor")
_REFUSALS = (AttemptStatus.RATE_LIMITED, AttemptStatus.RETRY)


def lanes_of(options: Options) -> tuple[Upstream, ...]:
    """The lanes in their order; the first one changes nothing unless a tier is asked for."""
    tiers = tuple(options.service_tiers) or ("",)
    lanes = [Upstream(tier=tier) if tier else PLAIN for tier in tiers]
    url, model = options.fallback_url or "", options.fallback_model or ""
    if url or model:  # the tiers are those of the first server
        lanes.append(Upstream(url=url, tier="" if url else tiers[-1], model=model))
    return tuple(lanes)


def check_lanes(options: Options) -> None:
    """Raise :class:`ConfigurationError` for a tier or a fallback that the URL has no place for."""
    url, other = options.request_url, options.fallback_url
    for tier in options.service_tiers:
        if not tier_spelling(url, tier) or urlsplit(url).path.endswith("/invoke"):
            what = "takes no service_tiers in a request's body, and headers for them are not sent"
            raise ConfigurationError(f"{shown_url(url)} {what}")
    if len(set(options.service_tiers)) < len(options.service_tiers):
        raise ConfigurationError("service_tiers names a tier twice")
    asked = other or url
    has_model = endpoint_of(asked).has_model_in_path or url_model(asked)
    if options.fallback_model and has_model and MODEL_PLACE not in asked:
        what = "names the model itself: give a fallback_url in place of fallback_model"
        raise ConfigurationError(f"{shown_url(asked)} {what}")
    if other is None:
        return
    if "@" in urlsplit(other).netloc:
        raise ConfigurationError(f"fallback_url {shown_url(other)} must have no login in it")
    if not options.keyring.is_own(other):
        _check_other_host(options, other)


def _check_other_host(options: Options, url: str) -> None:
    """Raise if the host of a fallback has no key of its own, or would get one in plain text."""
    host = urlsplit(url).netloc
    if options.session_factory is not None:  # which may log in wherever it goes
        raise ConfigurationError(
            f"fallback_url {shown_url(url)} must be on the host of request_url"
        )
    if options.keyring.keys(url):
        if is_exposed(url, options):
            raise ConfigurationError(f"{shown_url(url)} would get a key in plain text: use https")
    elif needs_key(url):
        how = f"--api_key_for {host}=VARIABLE (api_keys)"
        raise ConfigurationError(f"fallback_url {shown_url(url)} needs a key of its own: {how}")


def lane_name(lane: Upstream) -> str:
    """What a lane is called in errors and logs; empty for one that changes nothing."""
    tier = f"{lane.tier} tier" if lane.tier and not lane.model else ""
    model, url = lane.model and f"model {lane.model}", lane.url and shown_url(lane.url)
    return " at ".join(filter(None, (model or tier or (url and "fallback"), url)))


class LeftOut(Protocol):
    """The buckets whose requests are not sent any more."""

    def __contains__(self, bucket: AnyBucket, /) -> bool:
        """True for one of them."""
        ...


class Lanes:
    """The lanes of one run. Any thread may call it.

    Args:
        options: the settings.
        routes: what each lane of a model waits for.
        left_out: no request goes on to a bucket that is left out.
        clock: seconds that never go back.
    """

    def __init__(
        self, options: Options, routes: Routes, left_out: LeftOut, clock: Callable[[], float]
    ) -> None:
        self._lanes: Sequence[Upstream] = lanes_of(options)
        self._url, self._patience_s = options.request_url, options.tier_patience_s
        self.routes, self._left_out, self._clock = routes, left_out, clock
        self._first = routes.known(self._lanes[0])  # most requests find their group there
        self.is_single = len(self._lanes) == 1
        self.is_plain = self._lanes == (PLAIN,)
        self._full_until_s: dict[AnyBucket, float] = {}  # by any thread: the newest counts
        self._lock = InterruptSafeLock()  # guards the two fields below
        self._closed: set[AnyBucket] = set()
        self._downgraded: set[TokenBucket] = set()

    def enter(self, request: Request, url: str, model: str) -> PendingRequest:
        """``request``, which is to ``url`` for ``model``, in the first lane that is open."""
        group = self._first.get((url, model)) or self.routes.group(url, model, self._lanes[0])
        pending = PendingRequest(request=request, group=group, bucket=group.members[0])
        if not self.is_single:
            pending.entered_s = self._clock()
            if group in self._closed and (found := self._next(pending)) is not None:
                pending.lane, pending.group = found
                pending.bucket = pending.group.members[0]
        return pending

    def _next(
        self, pending: PendingRequest, *, or_left_out: bool = False
    ) -> tuple[int, AnyBucket] | None:
        """The next lane that ``pending`` may go on to, and what it waits for there."""
        request = pending.request
        for number in range(pending.lane + 1, len(self._lanes)):
            lane = self._lanes[number]
            own = request.url or self._url
            url = lane.url or own
            if len({endpoint_of(url), endpoint_of(own)} - {Endpoint.UNKNOWN}) > 1:
                continue  # a row for another endpoint: the fallback doesn't take its body
            group = self.routes.group(url, request.model or url_model(url), lane)
            if group not in self._closed and (or_left_out or group not in self._left_out):
                return number, group
        return None

    def next_tier(self, pending: PendingRequest) -> AnyBucket | None:
        """What the next tier's requests wait for; ``None`` if there is none, or only a fallback."""
        found = None if self.is_single else self._next(pending)
        return None if found is None or self._is_fallback(found[0]) else found[1]

    def _is_fallback(self, number: int) -> bool:
        return bool(self._lanes[number].url or self._lanes[number].model)

    def is_fallback(self, pending: PendingRequest) -> bool:
        """True if another model or another server is asked for ``pending``."""
        return self._is_fallback(pending.lane)

    def is_elsewhere(self, pending: PendingRequest) -> bool:
        """True if ``pending`` is in a lane with a URL of its own."""
        return bool(self._lanes[pending.lane].url)

    def leaves_at(self, pending: PendingRequest) -> float:
        """When ``pending`` goes on; infinite if it doesn't, minus infinity if its lane is closed."""
        if pending.group in self._closed:
            return -math.inf
        if self.next_tier(pending) is None:
            return math.inf
        return pending.entered_s + self._patience_s

    def lacks_capacity(self, pending: PendingRequest, attempt: Attempt) -> bool:
        """True if the tier had no room for the request, and there is another tier."""
        rejection = attempt.rejection
        is_refusal = rejection is not None and rejection.overload and attempt.status in _REFUSALS
        return is_refusal and self.next_tier(pending) is not None

    def note_full(self, pending: PendingRequest, seconds: float) -> None:
        """The tier of ``pending`` has no room for so long: what waits for it may go on."""
        self._full_until_s[pending.group] = self._clock() + seconds

    def is_full(self, group: AnyBucket, now: float) -> bool:
        """True while ``group`` pauses because its tier has no room, not for an ordinary rate limit."""
        is_paused = group.wait_cause is WaitCause.PAUSE
        return is_paused and now < self._full_until_s.get(group, -math.inf)

    def name_of(self, pending: PendingRequest) -> str:
        """What the lane of ``pending`` is called; empty if there is only one."""
        return "" if self.is_single else lane_name(self._lanes[pending.lane])

    def asked_tier(self, pending: PendingRequest) -> str:
        """The tier that ``pending`` asks for; empty if the run doesn't choose."""
        return self._lanes[pending.lane].tier

    def move_on(self, pending: PendingRequest, *, or_left_out: bool = False) -> bool:
        """Put ``pending`` into its next lane, with no attempts there; false if there is none.

        Its errors are kept for the record. With ``or_left_out`` that may be one to which nothing is sent
        any more: a failure of the lane before it is not the last word.
        """
        if self.is_single or (found := self._next(pending, or_left_out=or_left_out)) is None:
            return False
        before, (number, group) = pending.group, found
        pending.bucket.count(moved_on=1)
        if group.counts_tokens and not before.counts_tokens:
            pending.estimate = None  # a guess is not enough there
        pending.lane, pending.group, pending.bucket = number, group, group.members[0]
        pending.entered_s = self._clock()
        if (tried := pending.retry_state) is not None:
            pending.retry_state = RetryState(
                request=pending.request, sent=tried.sent, errors=tried.errors
            )
        return True

    def close(self, pending: PendingRequest, error: BaseException) -> bool:
        """Use the lane of ``pending`` no more, because of ``error``; false if it has no next one.

        Its queue goes on as soon as ``pending`` does.
        """
        if self.is_single or (found := self._next(pending)) is None:
            return False
        group = pending.group
        with self._lock:
            is_new = group not in self._closed
            self._closed.add(group)
        if is_new:
            group.free()
            here = self.name_of(pending) or f"model {group.model or 'of the requests'}"
            there = lane_name(self._lanes[found[0]])
            _log.warning(
                "the %s is not used any more, requests go to the %s: %s", here, there, error
            )
        return True

    @property
    def closings(self) -> int:
        """How many lanes of models are not used any more."""
        return len(self._closed)

    def with_lane(self, pending: PendingRequest, attempt: Attempt) -> Attempt:
        """An answer that says which tier and which model it is from, where the provider's doesn't."""
        lane, response = self._lanes[pending.lane], attempt.response
        if response is None or not (lane.tier or lane.model):
            return attempt
        asked = answered_tier({}, {"service_tier": lane.tier})
        tier = answered_tier(response.headers, response.data) or lane.tier
        if asked and asked != "auto" and answered_tier({}, {"service_tier": tier}) != asked:
            self._tell_downgrade(pending, tier)
        said = response.data if isinstance(response.data, Mapping) else None
        if said is None:  # a list, or a long answer that nobody parses: left as it is
            return attempt
        added = {}
        if lane.tier and not answered_tier({}, said):
            added["service_tier"] = tier
        if lane.model and not ("model" in said or "modelVersion" in said):
            added["model"] = lane.model
        body = response.body
        for name, value in added.items():
            body = with_member(body.decode(), name, dump(value).decode()).encode()
        if added:
            attempt.response = replace(response, body=body, data={**said, **added})
        return attempt

    def _tell_downgrade(self, pending: PendingRequest, tier: str) -> None:
        """Another ``tier`` answered than was asked for: count that, and say it once a model."""
        bucket = pending.bucket
        bucket.count(downgraded=1)
        with self._lock:
            is_new = bucket not in self._downgraded
            self._downgraded.add(bucket)
        if is_new:
            asked, of = self.asked_tier(pending), f" of {bucket.model}" if bucket.model else ""
            text = "the %s tier was asked for, but the %s tier answers some requests%s"
            _log.warning(text, asked, tier, of)
