"""A group of token buckets: those of several upstreams that serve the same model.

A queue (``engine/queues.py``) uses a group as it uses a bucket. Its head is first offered to each bucket
in turn, beginning with the one that has the fewest in flight. Mostly one admits it at once. Otherwise it
gets a place in the queue of each. The first bucket to admit it wins, and the other places are cancelled. So
the share of each upstream follows from what it can do, without weights: a slow one has its requests in
flight for longer, and one that pauses, or is out of order, admits nothing.

**A failure is not repeated where it happened.** A request is not offered to an upstream that failed it, as
long as that has answered no later request, and another is there. (nginx calls this the next upstream.) Nor
is it offered to that server's other keys, if there is another server: a request may have fewer attempts
than there are keys. Of the rest, those come first that have answered anything.

**The end.** What is left at the end of the input is not offered to an upstream that would take longer for
its answer than the others take for all that is left. So a slow upstream does not hold up the end.

In both cases the others may turn out to hang. So after a while it is offered to all.

**Set aside.** A member that can't serve, whose key is refused for example, is offered nothing any more. The
last one never is.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from parallel_processor.credentials.urls import host_of
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

if TYPE_CHECKING:
    from parallel_processor.workers.pending import PendingRequest

_Place = tuple[TokenBucket, Reservation]
_KeptBack = tuple[float, Sequence[TokenBucket]]  # until when, and from which members
_KEPT_BACK_S = 30.0  # from an upstream that has failed it: others may have a long first answer


class _Copy(Reservation):
    """A reservation in the queue of one member. Its admission is that of the group's reservation, too."""

    __slots__ = ("_admitted_at", "_of")

    def __init__(self, of: Reservation) -> None:
        self._of = of
        _, tokens, _, output_tokens = of.costs
        super().__init__(tokens, of.wake, output_tokens=output_tokens)

    @property
    def admitted_at(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """When it was admitted, in seconds of the bucket's clock; ``None`` before."""
        return self._admitted_at

    @admitted_at.setter
    def admitted_at(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, when: float | None
    ) -> None:
        self._admitted_at = when
        if when is not None:
            self._of.admitted_at = when


class BucketGroup:
    """The buckets of several upstreams for one model. Any thread may call it.

    A reservation is used by one thread at a time. The reservation that a bucket has admitted may be another
    one than the caller's: :meth:`admitted` returns it.

    Attributes:
        members: the buckets.
        alive: those of them that are not set aside.
        model: the model of their requests.
        url: the URL of the first.
    """

    def __init__(
        self, members: Sequence[TokenBucket], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a group of ``members``, whose clock is ``clock``."""
        self.members = self.alive = tuple(members)
        self.model, self.url = members[0].model, members[0].url
        self._clock = clock
        self._turns = itertools.count()  # of members that have equally many in flight
        # By the caller's reservation. Each key is used by one run, whose lock guards it.
        self._places: dict[Reservation, list[_Place]] = {}
        self._kept_back: dict[Reservation, _KeptBack] = {}

    def set_aside(self, member: TokenBucket) -> bool:
        """Offer nothing to ``member`` any more; false if it is the last. For one thread at a time."""
        rest = tuple(each for each in self.alive if each is not member)
        if rest:
            self.alive, member.is_set_aside = rest, True
        return len(rest) > 0

    def others(self, member: TokenBucket) -> list[TokenBucket]:
        """The members that are not set aside, without ``member``."""
        return [each for each in self.alive if each is not member]

    # Before an attempt.

    def place(
        self, reservation: Reservation, pending: PendingRequest, left: float = math.inf
    ) -> None:
        """Have ``reservation`` admitted by the first member that can, now or later.

        ``left`` is how many requests wait, if no others will come.
        """
        ranked = self._ranked()
        members, after_s = _preferred(ranked, pending, left)
        for member in members:
            if member.admit_at_once(reservation):
                self._places[reservation] = [(member, reservation)]
                return
        self._places[reservation] = []
        self._queue(reservation, members)
        if len(members) < len(ranked):
            rest = [each for each in ranked if each not in members]
            self._kept_back[reservation] = (self._clock() + after_s, rest)

    def _queue(self, reservation: Reservation, members: Sequence[TokenBucket]) -> None:
        """Give ``reservation`` a place in the queue of each of ``members``, until one admits it."""
        places = self._places[reservation]
        for member in members:
            copy = _Copy(reservation)
            places.append((member, copy))
            if member.enqueue(copy):
                return

    def _ranked(self) -> list[TokenBucket]:
        """The members that are alive, the one with the fewest in flight first."""
        members, count, turn = self.alive, len(self.alive), next(self._turns)
        ranked = sorted((each.in_flight, (i - turn) % count, i) for i, each in enumerate(members))
        return [members[i] for _, _, i in ranked]

    def poll(self, reservation: Reservation) -> float:
        """Admit all that may be sent; seconds until ``reservation`` should be polled again."""
        due_at, rest = self._kept_back.get(reservation, (math.inf, ()))
        if self._clock() >= due_at and reservation.admitted_at is None:
            del self._kept_back[reservation]
            self._queue(reservation, rest)
        places = dict(self._places.get(reservation, ()))
        delay = math.inf
        for member in self.members:  # one that is set aside may have a place still
            delay = min(delay, member.poll(places.get(member, reservation)))
            if reservation.admitted_at is not None:
                return 0.0
        return delay

    def admitted(self, reservation: Reservation) -> _Place:
        """The member that has admitted ``reservation``, and its own one; other places are cancelled."""
        places = self._places.pop(reservation)
        self._kept_back.pop(reservation, None)
        winner = next(place for place in places if place[1].admitted_at is not None)
        for place in places:
            if place is not winner:
                place[0].cancel(place[1])
        return winner

    def cancel(self, reservation: Reservation) -> None:
        """Give back every place, or the charge of a request that was never sent."""
        self._kept_back.pop(reservation, None)
        for member, copy in self._places.pop(reservation, ()):
            member.cancel(copy)

    def hold(self) -> None:
        """Admit nothing until one of those in flight is answered, or :meth:`free` is called."""
        for member in self.members:
            member.hold()

    def free(self) -> None:
        """End what :meth:`hold` began, and what an outage did."""
        for member in self.members:
            member.free()

    # Where it stands.

    @property
    def shared_limits(self) -> Hashable:
        """What one poll is enough for: this group alone."""
        return self

    @property
    def delay(self) -> float:
        """Seconds that the head of the queue has to wait; infinite if the queue is empty."""
        return min(member.delay for member in self.members)

    def delay_of(self, reservation: Reservation) -> float:
        """Seconds until ``reservation``, which has a place, should be polled."""
        due_at, _ = self._kept_back.get(reservation, (math.inf, ()))
        return min(self.delay, max(0.0, due_at - self._clock()))

    @property
    def wait_cause(self) -> WaitCause:
        """What the head of the queue waits for, where it has to wait the least."""
        return min(self.members, key=lambda member: member.delay).wait_cause

    @property
    def counts_tokens(self) -> bool:
        """False if nothing limits tokens, as far as the servers' answers tell."""
        return any(member.counts_tokens for member in self.alive)

    @property
    def has_room(self) -> bool:
        """False while as many requests are in flight as the servers take."""
        return any(member.has_room for member in self.alive)

    def is_full_of(self, in_flight: int) -> bool:
        """True if ``in_flight`` requests are all that are, and only the end of one makes room."""
        return self.in_flight == in_flight and not any(
            member.has_room or member.server.in_flight.is_confined for member in self.alive
        )

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return sum(member.in_flight for member in self.members)

    @property
    def newest_answered_at(self) -> float:
        """When the newest of the answered attempts was admitted; minus infinity if there is none."""
        return max(member.newest_answered_at for member in self.members)


def _preferred(
    members: list[TokenBucket], pending: PendingRequest, left: float
) -> tuple[list[TokenBucket], float]:
    """To which of ``members`` a request is offered first, and seconds until it is to the others."""
    if pending.retry_state is not None and pending.retry_state.failed_by:
        failed_at = {host_of(each.url) for each in members if has_failed(each, pending)}
        elsewhere = [each for each in members if host_of(each.url) not in failed_at]
        rest = [each for each in members if not has_failed(each, pending)]
        for found in (elsewhere, rest):
            if any(not each.server.in_flight.is_confined for each in found):
                found.sort(key=lambda each: each.newest_answered_at == -math.inf)
                return found, _KEPT_BACK_S
    if left < math.inf:
        rest = _in_time(members, left)
        late = [each.server.in_flight.latency_s for each in members if each not in rest]
        return rest, min(late, default=math.inf)
    return members, math.inf


def _in_time(members: list[TokenBucket], left: float) -> list[TokenBucket]:
    """The members that answer a request before the others could have answered all that is left."""
    known = {each: each.server.in_flight.latency_s for each in members}
    rates = {  # Little's law
        each: 0.0 if each.server.in_flight.is_confined else each.in_flight / max(latency_s, 1e-9)
        for each, latency_s in known.items()
    }
    found = []
    for member in members:
        others = [each for each in members if each is not member and rates[each]]
        rate = sum(rates[each] for each in others)
        others_s = min(known[each] for each in others) + left / rate if others else math.inf
        if not others_s < known[member] < math.inf:
            found.append(member)
    return found or members


AnyBucket = TokenBucket | BucketGroup
"""What a request waits for."""


def share_wait(one: AnyBucket, other: AnyBucket) -> bool:
    """True if the queue of ``other`` seems to wait for limits that ``one`` has in common with it."""
    return all(any(each.shares_wait_of(them) for them in other.members) for each in one.members)


def has_failed(member: TokenBucket, pending: PendingRequest) -> bool:
    """True if ``member`` has failed ``pending``, and has answered no later request since."""
    failed_by: dict[Any, float] = pending.retry_state.failed_by if pending.retry_state else {}
    return member in failed_by and member.newest_answered_at <= failed_by[member]
