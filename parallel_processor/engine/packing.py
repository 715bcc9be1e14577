"""Packs on their way through a run: taken apart behind settlement, and in halves if they fail.

A pack (``planning/packs.py``) is queued, sent and settled as the one request that it is. Then its outcome
comes apart into those of its members.

* What ``validate`` refuses is tried again, alone.
* A pack that failed for good, or was not answered in time, is tried again in two halves, with all attempts
  before them, until the member at fault fails alone. So only single requests fail, go on to a fallback, or
  count as equal failures. But what all members have in common, such as a wrong URL, fails the pack as a
  whole.
* If a pack was refused for its contents, or its answer was too large, and both its halves are answered, its
  size was the reason. Later packs are no larger, and those that wait come apart when it is their turn.
* If an answer doesn't tell which part is for which input, it was charged. So it isn't bought again: the
  halves go at once. Later packs are smaller, too, unless others of this size came apart before. So a server
  that can't do lists has but few of them, and one bad input is found.
* A pack that will never fit the budget comes apart, too: a part of it may.

**Credits.** A pack holds one credit, as any request. What it comes apart into, requests or outcomes, holds
one each: those are taken before the first of them can be given back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from parallel_processor.engine.delivery import Delivery
from parallel_processor.engine.outcomes import Settled, validated
from parallel_processor.engine.rejections import is_timeout
from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import CONTENT_STATUSES, SET_UP_STATUSES
from parallel_processor.models import Attempt, AttemptStatus, Estimate, Outcome, Request
from parallel_processor.options import Options
from parallel_processor.planning.pack_sizes import PackSizes
from parallel_processor.planning.packer import Packer
from parallel_processor.planning.packs import (
    Input,
    Pack,
    PackOutcome,
    Part,
    has_rows,
    join,
    parts_of,
    take_apart,
)
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.report.counters import Counters
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.replicas import AnyBucket
from parallel_processor.workers.pending import PendingRequest, RetryState

_log = logging.getLogger("parallel_processor")
_TOO_LARGE, _NO_ANSWER = "answer too large", "no answer"  # kinds of such failures
_MIXED_UP = "an answer doesn't tell which part is for which input"
_DIVIDED = (AttemptStatus.FAILED, AttemptStatus.RETRY, AttemptStatus.LOST)


class PackDelivery(Delivery):
    """Delivers the outcome of a pack as those of its members. Any thread may call it.

    ``take`` is called before, with how many credits they hold more than one. The other arguments are those
    of :class:`Delivery`.
    """

    def __init__(self, take: Callable[[int], None], *, counters: Counters, **rest: Any) -> None:
        super().__init__(counters=counters, **rest)
        self._take, self._started = take, counters.started

    def deliver(self, outcome: Outcome) -> int:
        """Deliver ``outcome``, or those of the members; the bytes that the sink has now."""
        parts = parts_of(outcome)
        if len(parts) != 1:
            self._started(len(parts) - 1)
            self._take(len(parts) - 1)
        return sum(map(super().deliver, parts))

    def drop(self, pending: PendingRequest) -> None:
        """A request, or a pack, will not be sent, or not again."""
        request = pending.request
        if pending.retry_state is None and isinstance(request, Pack):
            for each in request.inputs:
                super().drop(replace(pending, request=each.request))
        else:
            super().drop(pending)


class _Halved:
    """A pack that was refused for its contents. ``answered`` has those of its halves that were answered."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.answered = pack, list[PendingRequest]()


class Packing:
    """The packs of one run, from reading to delivery. Any thread may call it.

    Args:
        options: the settings.
        estimator: estimates what a request will cost.
        lanes: says what a request waits for.
        is_waiting: true if any wait for that.
        put: queues what is read, for one thread at a time.
        fail: called with an exception that must end the run.
        add: queues a request besides one that ends, to be sent in so many seconds; -inf is before all.
        take: takes so many credits more for a request that comes apart.
        settlement: the settlement of the run, of what is sent. It must not ask the user's ``validate``.
        counters: count what a pack came apart into.

    Attributes:
        packer: collects what is read.
        inputs: how many inputs the first packs may have.
        delivery: makes the delivery of the run, as :class:`Delivery` does.
    """

    def __init__(
        self,
        options: Options,
        *,
        estimator: CostEstimator,
        lanes: Lanes,
        is_waiting: Callable[[AnyBucket], bool],
        put: Callable[[Request, Estimate | None], None],
        fail: Callable[[BaseException], None],
        add: Callable[[PendingRequest, float], None],
        take: Callable[[int], None],
        settlement: Callable[[], Settlement],
        counters: Counters,
    ) -> None:
        self._estimator, self._lanes, self._validate = estimator, lanes, options.validate
        self._queue = add
        self.delivery = partial(PackDelivery, take)
        self._settlement, self._counters = settlement, counters
        assert options.pack_inputs is not None
        self.inputs = 1 if options.pack_inputs == "auto" else options.pack_inputs
        sizes = PackSizes(options.pack_inputs, options.request_url)
        self.packer = Packer(
            options.request_url,
            sizes,
            estimator=estimator,
            group_of=self._group_of,
            is_waiting=is_waiting,
            put=put,
            fail=fail,
        )
        self._halves: dict[PendingRequest, _Halved] = {}  # the owner of a key changes it

    def _group_of(self, request: Request) -> AnyBucket:
        """What ``request`` waits for in its first lane."""
        return self._lanes.enter(request, *self._estimator.url_and_model(request)).group

    # Before an attempt.

    def smaller(self, pending: PendingRequest, in_halves: bool) -> list[PendingRequest]:
        """Make a pack that is too large by now its first part, and return the others; none if it fits.

        With ``in_halves``, each pack is too large. One that was sent before is sent anew.
        """
        pack = pending.request
        if not isinstance(pack, Pack) or (self.packer.fits(pack) and not in_halves):
            return []
        parts = _halves(pack) if in_halves else self.packer.smaller(pack)
        is_again = pending.retry_state is not None
        others = self._part(pending, parts, is_again=is_again)
        if is_again:
            self._counters.started(len(others))
        return others

    def _like(self, pending: PendingRequest, inputs: Sequence[Input]) -> PendingRequest:
        """What waits as ``pending`` does, for some of its inputs."""
        estimate = self._estimator.together([each.estimate for each in inputs])
        return replace(pending, request=join(inputs), estimate=estimate, retry_state=None)

    # After it.

    def settle(
        self, pending: PendingRequest, reservation: Reservation, attempt: Attempt | BaseException
    ) -> Settled:
        """What follows the attempt; the outcome of a pack has those of its members."""
        request = pending.request
        if isinstance(attempt, Attempt) and _is_mixed_up(request, attempt):
            attempt = replace(attempt, status=AttemptStatus.FAILED)
        settled = self._settlement().settle(pending, reservation, attempt)
        outcome = settled.outcome
        if outcome is None:
            return settled
        halved = self._halves.pop(pending, None)
        if not outcome.ok:
            return settled
        assert isinstance(attempt, Attempt)
        if isinstance(request, Pack):
            settled = self._taken_apart(pending, reservation, attempt, settled, request, outcome)
        if halved is not None and settled.outcome is not None:
            self._note_answer(halved, pending)
        if isinstance(request, Pack):
            return settled
        answer = replace(attempt, response=outcome.raw_response)
        refused = self._refused(pending, reservation, answer, made_room=settled.made_room)
        return refused or settled

    def _taken_apart(
        self,
        pending: PendingRequest,
        reservation: Reservation,
        attempt: Attempt,
        settled: Settled,
        pack: Pack,
        outcome: Outcome,
    ) -> Settled:
        """The outcomes of the members of an answered pack, but for those that are tried again."""
        assert outcome.raw_response is not None
        parts = take_apart(pack, outcome.raw_response)
        if parts is None:
            self._counters.erred(_NO_ANSWER, used_tokens=attempt.used_tokens or 0)
            self._doubt(pack)
            self._come_apart(pending, pack, _MIXED_UP)
            return settled._replace(outcome=None)
        self.packer.proves(pack)
        outcomes = []
        for each, part in zip(pack.inputs, parts, strict=True):
            alone, refused = pending, None
            if self._validate is not None:
                answer = replace(attempt, response=part.response, used_tokens=part.used_tokens)
                alone = self._like(pending, [each])
                refused = self._refused(alone, reservation, answer, made_room=False)
            if refused is None:
                outcomes.append(_answered(each.request, part, outcome))
            elif refused.outcome is not None:
                outcomes.append(refused.outcome)
            else:
                self._add(alone, refused.retry_in_s)
        made = PackOutcome(request=pack, ok=True, parts=tuple(outcomes))
        return settled._replace(outcome=made)

    def _refused(
        self, pending: PendingRequest, reservation: Reservation, answer: Attempt, *, made_room: bool
    ) -> Settled | None:
        """What follows if ``validate`` refuses an answer; ``None`` if it doesn't."""
        if self._validate is None:
            return None
        judged = validated(answer, self._validate)
        if judged.status is AttemptStatus.ANSWERED:
            self._settlement().equal_failures.works(pending.group)
            return None
        return self._settlement().failed(pending, reservation, judged, made_room=made_room)

    def _add(self, pending: PendingRequest, retry_in_s: float = -math.inf) -> None:
        """Queue a part of what was sent, besides another one."""
        self._counters.started()
        self._queue(pending, retry_in_s)

    def divide(self, pending: PendingRequest, attempt: Attempt) -> bool:
        """Queue the second half of a pack that failed for good. ``pending`` becomes the first half.

        False for a single request, and for what all members would share.
        """
        pack, tried = pending.request, pending.retry_state
        status = attempt.response.status if attempt.response is not None else 0
        if not isinstance(pack, Pack) or attempt.status not in _DIVIDED:
            return False
        if status in SET_UP_STATUSES or (is_timeout(attempt) and tried and not tried.failures):
            return False  # nobody is answered in time: it isn't about the pack
        is_about_size = status in CONTENT_STATUSES or attempt.kind == _TOO_LARGE
        halved = _Halved(pack) if is_about_size else None
        if attempt.kind == _NO_ANSWER:
            self._doubt(pack)
        self._come_apart(pending, pack, attempt.error, halved)
        return True

    def _come_apart(
        self, pending: PendingRequest, pack: Pack, reason: str, halved: _Halved | None = None
    ) -> None:
        """Make ``pending``, which is ``pack``, its first half, and queue the other one behind it."""
        (other,) = self._part(pending, _halves(pack), is_again=True)
        if halved is not None:
            self._halves.update(dict.fromkeys((pending, other), halved))
        self._add(other)
        text = "a pack of %d inputs, with request %d first, is tried again in halves: %s"
        extra = {"request_number": pack.number}
        _log.info(text, len(pack.inputs), pack.number, reason, extra=extra)

    def _doubt(self, pack: Pack) -> None:
        """The answer to ``pack`` was of no use: that may be for its size."""
        if self.packer.doubts(pack) == 1:
            _log.warning("%s: requests like it are sent alone from now on", _MIXED_UP)

    def _part(
        self, pending: PendingRequest, parts: Sequence[Sequence[Input]], *, is_again: bool
    ) -> list[PendingRequest]:
        """Make ``pending`` the first of ``parts``, and return the others.

        If they were sent (``is_again``), they have all attempts before them.
        """
        self._halves.pop(pending, None)  # of which it is only a part now
        first, *others = (self._like(pending, inputs) for inputs in parts)
        for each in (first, *others) if is_again else ():
            each.retry_state = RetryState(request=each.request)
        pending.request, pending.estimate = first.request, first.estimate
        pending.retry_state = first.retry_state
        return others

    def _note_answer(self, halved: _Halved, half: PendingRequest) -> None:
        """One of two halves is answered. With the other one, it was the size that was refused."""
        halved.answered.append(half)
        if len(halved.answered) == 2:
            most = (len(halved.pack.inputs) + 1) // 2
            if self.packer.lower(halved.pack, most):
                text = (
                    "the server takes fewer than %d inputs in a request: packs have %d from now on"
                )
                _log.warning(text, len(halved.pack.inputs), most)


def _halves(pack: Pack) -> list[Sequence[Input]]:
    half = (len(pack.inputs) + 1) // 2
    return [pack.inputs[:half], pack.inputs[half:]]


def _is_mixed_up(request: Request, attempt: Attempt) -> bool:
    """True for a success that was charged, and has not what each member of a pack needs."""
    if attempt.kind != _NO_ANSWER or attempt.response is None or not isinstance(request, Pack):
        return False
    return bool(attempt.used_tokens) or has_rows(request, attempt.response)


def _answered(request: Request, part: Part, outcome: Outcome) -> Outcome:
    return Outcome(
        request=request,
        ok=True,
        raw_response=part.response,
        attempts=outcome.attempts,
        used_tokens=part.used_tokens,
        latency_s=outcome.latency_s,
    )
