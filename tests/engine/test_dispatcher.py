"""The way from reading to sending: who is read, who is admitted, and which thread sends it.

The clock of most buckets here stands still, so that what they don't admit at once they don't admit.
Where a dispatcher is driven by hand, a test takes the turns of its thread.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from clocks import FakeClock, admitted_by

from parallel_processor.engine.credits import LOOK_AHEAD, READ_AHEAD
from parallel_processor.engine.dispatcher import Dispatcher
from parallel_processor.exceptions import StopRequested
from parallel_processor.models import Estimate, Rejection, Request, WaitCause
from parallel_processor.options import Limits
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.report.wait_times import WaitTimes
from parallel_processor.runtime.stop import StopSignal
from parallel_processor.tokens.estimates import Cost
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest, RetryState

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails
MB = 1024 * 1024
ENDED = StopRequested("enough")


class ByHand(Dispatcher):
    """A dispatcher without a thread: whoever has it takes the turns, and nobody really sleeps."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._thread.start = lambda: None  # type: ignore[method-assign]
        self.slept_s: float | None = (
            0.0  # how long the last turn would have slept; None if it didn't
        )
        self.waker.wait = self._note_sleep  # type: ignore[method-assign]
        self._stop.wait = lambda seconds: False  # type: ignore[method-assign]

    def _note_sleep(self, timeout: float | None = None) -> bool:
        self.slept_s = math.inf if timeout is None else timeout
        return True

    @property
    def is_asleep(self) -> bool:
        """True if the thread would be waiting now, with nobody having woken it."""
        return self.slept_s is not None and not self.waker._is_set

    def turn(self) -> None:
        """What the thread does when it wakes, up to its next sleep or end."""
        while not self._has_left:
            self.slept_s = None
            if not self._turn():
                self._leave()
            elif self.slept_s and not self.waker._is_set:
                return


class Scarce:
    """A start of threads on a system that has only so many; what is queued nobody does."""

    def __init__(self, threads: int, message: str = "can't start new thread") -> None:
        self.queued: list[PendingRequest] = []
        self.threads = threads
        self._message = message

    def __call__(self, admitted: AdmittedRequest) -> None:
        """Queue it, and fail if there is no thread for it."""
        self.queued.append(admitted.pending)
        if len(self.queued) > self.threads:
            raise RuntimeError(self._message)


def activity_of(is_full: bool) -> WaitCause:
    """What a run is doing while nobody can be sent."""
    return WaitCause.MAX_WORKERS if is_full else WaitCause.INPUT


def request_of(
    number: int, bucket: TokenBucket, *, size_bytes: int = 1, tokens: int = 1
) -> PendingRequest:
    """A request on its way."""
    request = Request(body={}, payload=bytes(size_bytes), number=number)
    estimate = Estimate(input_tokens=tokens, output_cap=0)
    return PendingRequest(request=request, estimate=estimate, bucket=bucket)


def tried(pending: PendingRequest) -> PendingRequest:
    """The same with one more try, as a worker leaves it."""
    if pending.retry_state is None:
        pending.retry_state = RetryState(request=pending.request)
    pending.retry_state.sent += 1
    return pending


class Room:
    """A dispatcher with all that it talks to, and what it did.

    What was sent stays in flight until a test says otherwise.
    """

    def __init__(
        self, made: Callable[..., Any] = Dispatcher, *, max_workers: int = 10_000, **parts: Any
    ) -> None:
        self.clock = parts.pop("clock", None) or FakeClock()
        self.stop = StopSignal()
        self.counters, self.wait_times = Counters(), WaitTimes()
        self.sent: list[int] = []
        self.pending: dict[int, PendingRequest] = {}
        self.places: dict[int, Reservation] = {}
        self.dropped: list[int] = []  # that had been tried
        self.forgotten: list[int] = []
        self.rings = 0
        self.bell = threading.Event()  # what a reader waits for
        self._activity = parts.pop("activity", activity_of)
        self._changed = threading.Condition()  # guards the count of changes; nothing is asked in it
        self._changes = 0
        self.dispatcher = made(
            cost=parts.pop("cost", lambda estimate: Cost(estimate.input_tokens)),
            start=parts.pop("start", self.send),
            drop=parts.pop("drop", self._drop),
            on_room=self._ring,
            activity=self._tell_activity,
            counters=self.counters,
            wait_times=self.wait_times,
            stop=self.stop,
            max_workers=max_workers,
            clock=self.clock,
            **parts,
        )

    def send(self, admitted: AdmittedRequest) -> None:
        """An attempt begins."""
        number = admitted.pending.request.number
        assert admitted.reservation.admitted_at is not None
        self.places[number] = admitted.reservation
        self.sent.append(number)
        self.change()

    def _drop(self, pending: PendingRequest) -> None:
        (self.forgotten if pending.retry_state is None else self.dropped).append(
            pending.request.number
        )
        self.change()

    @property
    def unrecorded(self) -> int:
        """How many outcomes aren't on record."""
        return int(self.dispatcher._credits.unrecorded)

    def _tell_activity(self, is_full: bool) -> WaitCause:
        told: WaitCause = self._activity(is_full)
        self.change()
        return told

    def _ring(self) -> None:
        self.rings += 1
        self.bell.set()
        self.change()

    def change(self) -> None:
        """Let who waits for something look again."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def until(self, is_so: Callable[[], object]) -> None:
        """Return once it is so."""
        while True:
            seen = self._changes
            if is_so():
                return
            assert self.dispatcher.error is None, repr(self.dispatcher.error)
            with self._changed:
                changed = self._changed.wait_for(lambda: self._changes != seen, REAL_TIMEOUT_S)  # noqa: B023
            assert changed, "this never comes"

    def read(self, number: int, bucket: TokenBucket, size_bytes: int = 1) -> None:
        """Put a request in once there is room for it, as a reader does."""
        self.until(self.dispatcher.room)
        self.put(number, bucket, size_bytes)

    def put(self, number: int, bucket: TokenBucket, size_bytes: int = 1) -> None:
        """Put a request in."""
        self.pending[number] = request_of(number, bucket, size_bytes=size_bytes)
        self.dispatcher.put(self.pending[number])

    def done(self, number: int, *, again: bool = False, **how: Any) -> int | None:
        """An attempt has ended, and its thread sends what it gets instead; gives that one's number."""
        pending = self.pending[number]
        waker = self.dispatcher.waker
        ending = pending.bucket.ended(self.places[number], answered=not again, waker=waker)
        how.setdefault("made_room", ending.made_room)
        admitted = self.dispatcher.done(tried(pending) if again else None, **how)
        if admitted is None:
            return None
        self.send(admitted)
        given: int = admitted.pending.request.number
        return given

    def finish(self, number: int) -> int | None:
        """An attempt has ended, and its outcome is on record."""
        given = self.done(number)
        self.dispatcher.recorded(1)
        return given

    def end(self) -> None:
        """Wait for the thread's end."""
        join_within(self.dispatcher.join)


def join_within(join: Callable[[], object]) -> None:
    """Call ``join`` in a thread, which must end."""
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(REAL_TIMEOUT_S)
    assert not thread.is_alive(), "it hangs"


@contextmanager
def stopped_at_the_end(room: Room) -> Iterator[Room]:
    """Leave no thread behind, though a test fails."""
    try:
        yield room
    finally:
        room.stop.set(ENDED)
        room.end()


@pytest.fixture
def room() -> Iterator[Room]:
    """A room for as many as may come."""
    with stopped_at_the_end(Room()) as made:
        yield made


@pytest.fixture
def narrow() -> Iterator[Room]:
    """A room of which two may be in flight."""
    with stopped_at_the_end(Room(max_workers=2)) as made:
        yield made


@pytest.fixture
def hand() -> Room:
    """A room of which two may be in flight, driven by hand."""
    return Room(ByHand, max_workers=2)


def bucket_of(requests_per_minute: float = math.inf, clock: Any = None) -> TokenBucket:
    """A bucket whose time stands still; one request, or all of them, goes at once."""
    limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=math.inf)
    return TokenBucket(limits, clock=clock or FakeClock())


def server_of(most_in_flight: int) -> TokenBucket:
    """The bucket of a server without limits that can do with so many at once."""
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    return TokenBucket(limits, clock=FakeClock(), most_in_flight=most_in_flight)


def paused_bucket(seconds: float = 1e6) -> TokenBucket:
    """A bucket that admits nothing for a while."""
    bucket = bucket_of()
    bucket.pause(seconds)
    return bucket


def pass_time(bucket: TokenBucket, seconds: float) -> None:
    """Move the clock of ``bucket``."""
    bucket._clock.now_s += seconds  # type: ignore[attr-defined]


class Play:
    """A room driven by hand, and a script of events: ``put free 2``, ``turn``, ``done 0``, ``wait 3`` …

    There are buckets that admit everything (``free``, ``idle``), that wait for a minute's limit
    (``slow``), and for a pause (``paused``). Requests are numbered from 0 as they are put.
    """

    def __init__(self, max_workers: int = 2) -> None:
        self.room = Room(ByHand, max_workers=max_workers)
        slow = bucket_of(60)
        slow.enqueue(Reservation(1.0))
        free, idle, paused = bucket_of(), bucket_of(), paused_bucket()
        self.buckets = {"free": free, "idle": idle, "slow": slow, "paused": paused}

    def __call__(self, *events: str) -> None:
        """Let this happen."""
        room, dispatcher = self.room, self.room.dispatcher
        for event in events:
            kind, *words = event.split()
            if kind == "put":
                for _ in range(int(words[1])):
                    room.put(len(room.pending), self.buckets[words[0]])
            elif kind in ("done", "again", "later"):
                seconds = 7.0 if kind == "later" else 0.0
                room.done(int(words[0]), again=kind != "done", retry_in_s=seconds)
            elif kind == "skip":
                for _ in range(int(words[0])):
                    dispatcher.skip()
            elif kind == "record":
                dispatcher.recorded(int(words[0]))
            elif kind == "wait":
                room.clock.now_s += float(words[0])
            elif kind == "pause":
                self.buckets["free"].pause(1e6)
            elif kind == "go":
                pass_time(self.buckets["free"], 1e6)
            elif kind == "stop":
                room.stop.set(ENDED)
            elif kind == "hurry":
                dispatcher.close(hurry=True)
            else:
                assert event == "turn"
                dispatcher.turn()


# The queues.


def test_a_line_goes_on_when_its_bucket_may(room: Room) -> None:
    """What another thread gives back lets the first in line go, and that one only."""
    slow = bucket_of(60)
    for number in range(3):
        room.read(number, slow)
    room.until(lambda: room.sent == [0])
    slow.cancel(room.places[0])
    room.until(lambda: room.sent == [0, 1])
    room.read(3, bucket_of())
    room.until(lambda: len(room.sent) == 3)
    assert room.sent == [0, 1, 3]


@pytest.mark.parametrize("seconds", [1e10, 1e300])
def test_a_wait_may_be_longer_than_the_system_can_count(room: Room, seconds: float) -> None:
    """A bucket that is closed for thousands of years is no fault."""
    bucket, other = paused_bucket(seconds), bucket_of()
    room.read(0, bucket)
    room.read(1, other)
    room.until(lambda: room.sent == [1])
    room.read(2, other)
    room.until(lambda: room.sent == [1, 2])
    assert room.dispatcher.error is None


# What is handed out.


def test_each_attempt_is_counted_when_it_is_handed_out(
    hand: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """By our thread or to one that is done; a request once, a retry as one, with what it reserves."""
    bucket = bucket_of()
    with caplog.at_level(logging.DEBUG, logger="parallel_processor"):
        for number in range(3):
            hand.put(number, bucket)
        hand.dispatcher.turn()
        assert hand.done(0) == 2
        assert hand.done(2, again=True) == 2
    counts = hand.counters.counts()
    assert (counts.started, counts.attempts, counts.retries) == (3, 4, 1)
    assert counts.reserved_tokens == 4
    attempts = [
        f"request {number}: attempt {sent}" for number, sent in ((0, 1), (1, 1), (2, 1), (2, 2))
    ]
    assert caplog.messages == attempts


@pytest.mark.parametrize("is_bug", [False, True])
def test_who_is_not_wanted_is_not_sent(is_bug: bool) -> None:
    """However many are cancelled in a row: they cost nothing, and the next that is wanted goes."""
    asked: list[int] = []

    def is_wanted(request: Request) -> bool:
        asked.append(request.number)
        if is_bug and request.number == 3000:
            raise ZeroDivisionError
        return request.number in (1, 3000)

    hand = Room(ByHand, max_workers=2, is_wanted=is_wanted)
    bucket = bucket_of(6e9)
    for number in range(3001):
        hand.put(number, bucket)
    hand.dispatcher.turn()
    assert asked == list(range(3001))
    assert hand.sent == ([1] if is_bug else [1, 3000])
    assert isinstance(hand.stop.cause, ZeroDivisionError) == is_bug
    assert admitted_by(bucket)["requests"] == len(hand.sent)
    assert (hand.dispatcher.in_flight, hand.unrecorded) == (len(hand.sent), 0)
    assert hand.counters.counts().started == len(hand.sent)
    assert len(hand.forgotten) == 3001 - len(hand.sent)


def test_a_thread_that_is_done_gets_nobody_who_is_not_wanted() -> None:
    """It passes over thousands to the next one, and a request that comes back isn't asked about."""
    hand = Room(ByHand, max_workers=1, is_wanted=lambda request: request.number in (0, 3000))
    bucket = bucket_of()
    hand.put(0, bucket)
    hand.dispatcher.turn()
    for number in range(1, 3002):
        hand.put(number, bucket)
    hand.dispatcher._is_wanted = lambda request: request.number == 3000
    assert hand.done(0, again=True) == 0
    assert hand.done(0) == 3000
    assert hand.done(3000) is None
    assert bucket.server.in_flight.count == 0
    hand.dispatcher.recorded(2)
    assert not hand.dispatcher.is_busy()


def test_a_stop_while_a_request_is_admitted_keeps_it_from_being_sent(hand: Room) -> None:
    """What its bucket charged is given back, and whoever was tried before is dropped as such."""
    bucket = bucket_of(6000)
    hand.put(0, bucket)
    hand.dispatcher.turn()
    admit = hand.dispatcher._queues.admit

    def stop_and_admit() -> AdmittedRequest | None:
        hand.stop.set(ENDED)
        return admit()

    hand.dispatcher._queues.admit = stop_and_admit
    assert hand.done(0, again=True) is None
    assert (hand.sent, hand.dropped) == ([0], [0])
    assert admitted_by(bucket)["requests"] == 1
    assert (hand.dispatcher.in_flight, hand.unrecorded) == (0, 1)


# A thread that is done gets the next one.


@pytest.mark.parametrize(
    ("events", "sent", "slept_s"),
    [
        ("put free 1, turn, done 0", [0], math.inf),  # nobody is left for the thread
        # where its own model waits, a thread goes on with another's request
        ("put free 1, put slow 1, turn, put idle 1, turn, put idle 1, done 0", [0, 2, 3], math.inf),
        # before our thread has had its turn, a thread that is done gets what was put already
        ("put free 1, turn, put free 2, done 0, turn", [0, 1, 2], math.inf),
        # who comes back at once is the next, and its thread goes on with it
        ("put free 4, turn, again 1, done 0, done 1", [0, 1, 1, 2, 3], math.inf),
        # who was refused is the first of those that wait behind the pause
        ("put free 4, turn, pause, again 0, done 1, turn", [0, 1], 1e6),
        ("put free 4, turn, pause, again 0, done 1, turn, go on, turn", [0, 1, 0, 2], math.inf),
        # who comes back later isn't sent before, and others go meanwhile
        ("put free 1, turn, later 0, turn", [0], 7.0),
        ("put free 1, turn, later 0, turn, put free 1, turn, wait 6.9, turn", [0, 1], 0.1),
        ("put free 1, turn, later 0, turn, put free 1, turn, wait 7.1, turn", [0, 1, 0], math.inf),
        # where its time comes while all workers are busy, it is the next that is sent
        ("put free 5, turn, later 0, turn, wait 7, turn", [0, 1, 2], math.inf),
        (
            "put free 5, turn, later 0, turn, wait 7, turn, done 1, done 2",
            [0, 1, 2, 0, 3],
            math.inf,
        ),
    ],
)
def test_who_is_sent_in_which_order(events: str, sent: list[int], slept_s: float) -> None:
    """By threads that are done and by ours, which sleeps until something changes."""
    play = Play()
    play(*events.split(", "))
    assert play.room.sent == sent
    if play.room.dispatcher.is_asleep:
        assert play.room.dispatcher.slept_s == pytest.approx(slept_s)
    else:
        assert slept_s == math.inf  # it is to look again


def test_a_thread_that_is_done_sends_the_next_one(hand: Room) -> None:
    """It gets each at once, in order, and nobody else is woken for that."""
    bucket = bucket_of()
    for number in range(4):
        hand.put(number, bucket)
    hand.dispatcher.turn()
    assert hand.sent == [0, 1]
    for number in range(50):
        assert hand.done(number) == number + 2
        assert hand.dispatcher.in_flight == 2
        assert hand.dispatcher.is_asleep
        hand.put(number + 4, bucket)
        assert hand.dispatcher.is_asleep
    assert hand.sent == list(range(52))


def test_a_thread_that_is_done_gets_nothing_where_nothing_may_go(hand: Room) -> None:
    """Where its bucket doesn't admit the next one, there is nothing for it, and ours sleeps on."""
    slow = bucket_of(60)
    hand.put(0, slow)
    hand.put(1, slow)
    hand.dispatcher.turn()
    assert hand.sent == [0]
    assert hand.done(0) is None
    assert hand.dispatcher.is_asleep
    assert 0.0 < hand.dispatcher.slept_s < 2.0
    pass_time(slow, 1.1)
    hand.dispatcher.turn()
    assert hand.sent == [0, 1]


def test_room_that_was_made_wakes_the_thread_for_the_other_lines(hand: Room) -> None:
    """A thread sends one only, and there may be more that may go now."""
    limits, clock = Limits(requests_per_minute=6e5, tokens_per_minute=6000.0), FakeClock()
    one = TokenBucket(limits, clock=clock)
    other = TokenBucket(limits, clock=clock, shared_limits=one.shared_limits)
    dear = request_of(0, one, tokens=50)  # of 50 that go at once
    hand.pending[0] = dear
    hand.dispatcher.put(dear)
    hand.dispatcher.turn()
    for number in range(1, 5):
        hand.put(number, (one, other)[number % 2])
    hand.dispatcher.turn()
    assert hand.sent == [0]
    assert hand.dispatcher.is_asleep
    ending = one.ended(hand.places[0], answered=True, used_tokens=1.0, waker=hand.dispatcher.waker)
    assert ending.made_room
    assert hand.dispatcher.is_asleep
    admitted = hand.dispatcher.done(made_room=True)
    assert admitted is not None
    assert not hand.dispatcher.is_asleep
    hand.dispatcher.turn()
    assert len(hand.sent) == 2
    assert hand.dispatcher.in_flight == 2


def test_room_that_was_made_for_the_same_line_wakes_nobody(hand: Room) -> None:
    """With one model only, whoever is done takes the place of its own request."""
    server = server_of(1)
    for number in range(4):
        hand.put(number, server)
    hand.dispatcher.turn()
    for number in range(3):
        assert hand.sent == list(range(number + 1))
        assert hand.done(number) == number + 1
        assert hand.dispatcher.is_asleep


def test_when_there_are_workers_again_the_thread_looks_after_all_lines(hand: Room) -> None:
    """Where as many were in flight as may be, each first takes a place, and the thread a new time."""
    slow, slower, free = bucket_of(60), paused_bucket(3.0), bucket_of()
    slow.enqueue(Reservation(1.0))
    for number in range(2):
        hand.put(number, free)
    hand.dispatcher.turn()
    hand.put(2, slower)
    hand.put(3, slow)
    hand.dispatcher.turn()
    assert hand.dispatcher.slept_s == math.inf
    assert hand.done(0) is None
    assert not hand.dispatcher.is_asleep
    hand.dispatcher.turn()
    assert 0.5 < hand.dispatcher.slept_s < 1.5
    assert all(bucket.queue for bucket in (slow, slower))


# Those that are tried again.


def test_only_a_nearer_time_wakes_the_thread(hand: Room) -> None:
    """One that is to be tried again after the time at which the thread wakes anyway doesn't."""
    bucket = bucket_of()
    for number in range(2):
        hand.put(number, bucket)
    hand.dispatcher.turn()
    hand.done(0, again=True, retry_in_s=7.0)
    hand.dispatcher.turn()
    hand.done(1, again=True, retry_in_s=8.0)
    assert hand.dispatcher.is_asleep
    hand.clock.now_s += 7.0
    hand.dispatcher.turn()
    assert hand.dispatcher.slept_s == 1.0
    hand.done(0, again=True, retry_in_s=0.5)
    assert not hand.dispatcher.is_asleep


def test_a_closed_input_waits_for_those_that_are_tried_again(hand: Room) -> None:
    """The thread lives until nobody waits, is in flight, or will be tried again."""
    bucket = bucket_of()
    hand.put(0, bucket)
    hand.dispatcher.close()
    hand.dispatcher.turn()
    assert not hand.dispatcher._has_left
    hand.done(0, again=True, retry_in_s=7.0)
    hand.dispatcher.turn()
    assert not hand.dispatcher._has_left
    hand.clock.now_s += 7.0
    hand.dispatcher.turn()
    assert hand.sent == [0, 0]
    assert not hand.dispatcher._has_left
    assert hand.done(0) is None
    hand.dispatcher.turn()
    assert hand.dispatcher._has_left
    assert hand.unrecorded == 1
    assert hand.dropped == []


def test_a_backoff_holds_up_nobody_else(room: Room) -> None:
    """As many requests as are read ahead may wait for their backoffs, and others are read and sent."""
    bucket = bucket_of()
    for number in range(READ_AHEAD):
        room.read(number, bucket)
    room.until(lambda: len(room.sent) == READ_AHEAD)
    for number in range(READ_AHEAD):
        room.done(number, again=True, retry_in_s=1e6)
    assert room.dispatcher.in_flight == 0
    assert room.dispatcher.room()
    room.put(READ_AHEAD, bucket)
    room.until(lambda: room.sent[-1] == READ_AHEAD)


# What bounds it.


@pytest.mark.parametrize("max_workers", [1, 2, 63, 64, 65, 1000])
def test_so_many_may_be_read(max_workers: int) -> None:
    """At first the read-ahead is all that may be, and behind those in flight it is there again."""
    room = Room(ByHand, max_workers=max_workers)
    ahead = min(max_workers, READ_AHEAD)
    bucket, number = bucket_of(), 0
    while count := room.dispatcher.room():
        assert count <= ahead
        for _ in range(count):
            room.put(number, bucket)
            number += 1
        room.dispatcher.turn()
    assert number == max_workers + ahead
    assert len(room.sent) == max_workers


def test_what_is_not_on_record_bounds_the_reading(hand: Room) -> None:
    """Outcomes that nobody takes count as if they were in flight."""
    bucket = bucket_of()
    for number in range(4):
        hand.put(number, bucket)
    hand.dispatcher.turn()
    assert hand.done(0) == 2
    assert hand.done(1) == 3
    assert hand.dispatcher.room() == 0
    hand.dispatcher.recorded(1)
    assert hand.dispatcher.room() == 1
    hand.dispatcher.recorded(1)
    assert hand.dispatcher.room() == 2
    hand.done(2)
    hand.done(3)
    assert hand.dispatcher.room() == 2


@pytest.mark.parametrize("slack", [0, 10])
def test_what_was_skipped_counts_until_it_is_on_record(slack: int) -> None:
    """What can't be sent bounds the reading as the others do, but for the slack of a writer."""
    hand = Room(ByHand, max_workers=2, writer_slack=slack)
    for left in (*[2] * slack, 2, 2, 1, 0):
        hand.dispatcher.skip()
        assert hand.dispatcher.room() == left
    assert hand.dispatcher.is_busy()
    assert hand.dispatcher.in_flight == 0
    hand.dispatcher.recorded(slack + 4)
    assert hand.dispatcher.room() == 2
    assert not hand.dispatcher.is_busy()


def test_nobody_is_told_who_does_not_wait(room: Room) -> None:
    """A bell for each record would cost more than the record."""
    bucket = bucket_of()
    for number in range(20):
        room.read(number, bucket)
    room.until(lambda: len(room.sent) == 20)
    assert room.dispatcher.room()
    rings = room.rings
    for number in range(20):
        room.finish(number)
    assert room.rings == rings


@pytest.mark.parametrize(
    ("before", "one_by_one", "left"),
    [
        # outcomes on record, and a thread that goes on with the next request
        ("put free 16, turn", [f"done {n}, record 1" for n in range(8)], 8),
        # outcomes of what was never sent
        ("skip 16", ["record 1"] * 8, 8),
    ],
)
def test_the_reader_is_told_when_half_of_the_read_ahead_is_free(
    before: str, one_by_one: list[str], left: int
) -> None:
    """A reader that waits isn't woken for each request, and when it is, not again."""
    play = Play(max_workers=8)
    play(*before.split(", "))
    assert play.room.dispatcher.room() == 0
    for reservation, events in enumerate(one_by_one):
        assert play.room.rings == (reservation > 4)
        play(*events.split(", "))
    assert play.room.rings == 1
    assert play.room.dispatcher.room() == left


@pytest.mark.parametrize("name", ["free", "paused"])
def test_the_reader_is_told_by_our_thread(name: str) -> None:
    """What was read goes into flight, or all lines wait: then the look-ahead begins."""
    play = Play(max_workers=8)
    play(f"put {name} 8")
    assert play.room.dispatcher.room() == 0
    play("turn")
    assert play.room.rings == 1
    room = play.room.dispatcher.room()
    assert room == 8 if name == "free" else room > 0


def test_the_last_record_is_told(hand: Room) -> None:
    """Who asked whether anything is under way hears when that changes."""
    hand.put(0, bucket_of())
    hand.dispatcher.close()
    hand.dispatcher.turn()
    hand.done(0)
    hand.dispatcher.turn()
    assert hand.dispatcher.is_busy()
    rings = hand.rings
    hand.dispatcher.recorded(1)
    assert hand.rings == rings + 1
    assert not hand.dispatcher.is_busy()


def test_behind_a_bucket_that_waits_so_many_are_read(narrow: Room) -> None:
    """The look-ahead has an end, and goes on when the line does."""
    slow = bucket_of(60)
    narrow.read(0, slow)
    narrow.until(lambda: narrow.sent == [0])
    for number in range(1, LOOK_AHEAD + 1):
        narrow.read(number, slow)
    narrow.until(lambda: narrow.dispatcher._is_asleep)
    assert not narrow.dispatcher.room()
    slow.cancel(narrow.places[0])
    narrow.until(lambda: narrow.sent == [0, 1])
    assert not narrow.dispatcher.room()  # as many are in flight as may be
    assert narrow.finish(0) is None
    narrow.read(LOOK_AHEAD + 1, slow)
    narrow.until(lambda: narrow.dispatcher._is_asleep)
    assert not narrow.dispatcher.room()
    assert narrow.sent == [0, 1]


def test_a_single_servers_load_is_no_reason_to_look_ahead(hand: Room) -> None:
    """Behind requests for one model without limits there is nobody who may go."""
    server = server_of(1)
    for number in range(2):
        hand.put(number, server)
    hand.dispatcher.turn()
    assert hand.sent == [0]
    assert hand.dispatcher.room() == 1
    hand.put(2, server)
    hand.dispatcher.turn()
    assert hand.dispatcher.room() == 0
    assert hand.done(0) == 1


def test_what_is_read_ahead_has_a_size(narrow: Room) -> None:
    """Sixteen megabytes that wait are enough, however few requests they are."""
    slow = bucket_of(60)
    narrow.read(0, slow)
    narrow.until(lambda: narrow.sent == [0])
    narrow.read(1, slow, 16 * MB - 1)
    narrow.read(2, slow, 1)
    assert not narrow.dispatcher.room()
    slow.cancel(narrow.places[0])
    narrow.until(lambda: narrow.sent == [0, 1])
    narrow.finish(0)
    narrow.read(3, slow)


def test_one_request_may_have_any_size(narrow: Room) -> None:
    """What is larger than all that may wait is read and sent like any other."""
    bucket = bucket_of()
    for number in range(3):
        narrow.read(number, bucket, 17 * MB)
        narrow.until(lambda number=number: number in narrow.sent)
        narrow.finish(number)


def test_who_waits_for_a_worker_keeps_no_place(hand: Room) -> None:
    """Where as many are in flight as may be, other runs aren't behind what can't be sent anyway."""
    bucket = bucket_of(6000)
    bucket.pause(1e6)
    for number in range(6):
        hand.put(number, bucket)
    hand.dispatcher.turn()
    assert len(bucket.queue) == 1
    pass_time(bucket, 2e6)
    hand.dispatcher.turn()
    assert hand.sent == [0, 1]
    assert not bucket.queue
    assert bucket.enqueue(Reservation(1.0))
    assert hand.done(0) == 2
    assert not bucket.queue


# Threads.


class Load:
    """Requests for many buckets, sent by many threads, with an eye on all bounds.

    ``again`` is the share of attempts that are followed by another. A writer records outcomes as it
    gets them, many at once.
    """

    def __init__(
        self, max_workers: int, seed: int, *, again: float = 0.0, slack: int = 0, rate: float = 6e4
    ) -> None:
        self.random = random.Random(seed)
        clock = time.monotonic
        limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
        free = TokenBucket(limits, clock=clock, most_in_flight=max(1, max_workers // 2))
        self.buckets = [bucket_of(rate, clock) for _ in range(2)] + [bucket_of(clock=clock), free]
        self.buckets.append(
            TokenBucket(
                self.buckets[0].shared_limits.limits,
                clock=clock,
                shared_limits=self.buckets[0].shared_limits,
            )
        )
        self.again = again
        self.lock = threading.Lock()  # guards what follows
        self.in_flight = self.peak = self.ahead = 0
        self.attempts = 0
        self.done: list[int] = []
        self.lines: defaultdict[TokenBucket, list[tuple[int, int]]] = defaultdict(list)
        self.executor = ThreadPoolExecutor(max_workers)
        self.unwritten: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.writer = threading.Thread(target=self.write, daemon=True)
        self.writer.start()
        self.room = Room(
            start=lambda admitted: self.executor.submit(self.work, admitted),
            drop=lambda pending: pending.retry_state is not None and self.unwritten.put(1),
            max_workers=max_workers,
            writer_slack=slack,
            clock=clock,
        )

    def work(self, admitted: AdmittedRequest | None) -> None:
        """What a thread does."""
        try:
            while admitted is not None:
                admitted = self.attempt(*admitted)
        except BaseException as error:
            self.room.stop.set(error)
            raise

    def attempt(self, pending: PendingRequest, reservation: Reservation) -> AdmittedRequest | None:
        """One attempt, and what comes next."""
        with self.lock:
            self.in_flight += 1
            self.attempts += 1
            self.peak = max(self.peak, self.in_flight)
            if pending.retry_state is None:
                self.lines[pending.bucket].append((reservation.ticket, pending.request.number))
            luck = self.random.random()
        waker = self.room.dispatcher.waker
        ending = pending.bucket.ended(reservation, answered=True, waker=waker)
        if luck < self.again / 10:
            pending.bucket.pause(0.002)
        with self.lock:
            self.in_flight -= 1
        if luck < self.again:
            seconds = self.random.choice((0.0, 1e-6, 0.001, 0.01))
            return self.room.dispatcher.done(
                tried(pending), retry_in_s=seconds, made_room=ending.made_room
            )
        with self.lock:
            self.done.append(pending.request.number)
            self.room.change()
        self.unwritten.put(1)
        return self.room.dispatcher.done(made_room=ending.made_room)

    def write(self) -> None:
        """Record what there is, again and again."""
        while count := self.unwritten.get():
            try:
                while more := self.unwritten.get_nowait():
                    count += more
            except queue.Empty:
                self.room.dispatcher.recorded(count)
            else:
                self.room.dispatcher.recorded(count)
                return

    def feed(self, count: int) -> None:
        """Read so many requests, waiting for the bell only; fewer if a stop comes."""
        room, dispatcher, number = self.room, self.room.dispatcher, 0
        while number < count:
            room.bell.clear()
            if room.stop.is_set():
                return
            if not (places := dispatcher.room()):
                assert room.bell.wait(REAL_TIMEOUT_S), "the reader sleeps for ever"
            for _ in range(min(places, count - number)):
                if self.random.random() < 0.05:
                    dispatcher.skip()
                    with self.lock:
                        self.done.append(number)
                    self.unwritten.put(1)
                else:
                    room.put(number, self.random.choice(self.buckets))
                number += 1

    def drain(self) -> None:
        """Wait for the bell until nothing is under way."""
        while True:
            self.room.bell.clear()
            if not self.room.dispatcher.is_busy():
                return
            assert self.room.bell.wait(REAL_TIMEOUT_S), "nobody tells the end"

    def run(self, count: int) -> None:
        """Read so many, and wait until all is on record."""
        with stopped_at_the_end(self.room), self.executor, self.room.stop.waking(self.room.bell):
            try:
                self.feed(count)
                self.room.dispatcher.close()
                self.drain()
                self.room.end()
            finally:
                self.room.stop.set(ENDED)
                self.unwritten.put(0)
                self.writer.join(REAL_TIMEOUT_S)
        assert self.room.dispatcher.error is None
        assert self.room.dispatcher.in_flight == self.room.unrecorded == 0
        assert not any(bucket.queue for bucket in self.buckets)
        assert not any(bucket.server.in_flight.count for bucket in self.buckets)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("max_workers", [1, 2, 7, 64])
@pytest.mark.parametrize(
    ("seed", "again", "slack", "rate"),
    [(9, 0.0, 0, 6e4), (0, 0.2, 0, 6e4), (1, 0.2, 256, 6e4), (2, 0.2, 0, 1e9), (3, 0.2, 256, 1e9)],
)
def test_everything_is_sent_once_and_nobody_sleeps_for_ever(
    max_workers: int, seed: int, again: float, slack: int, rate: float
) -> None:
    """With real threads and limits: nothing lost, nothing twice, in order, within bounds, to the end."""
    load = Load(max_workers, seed, again=again, slack=slack, rate=rate)
    load.run(1000)
    assert load.room.stop.cause is ENDED
    assert sorted(load.done) == list(range(1000))
    assert load.peak <= max_workers
    for line in load.lines.values():
        in_order = [number for _, number in sorted(line)]
        assert in_order == sorted(in_order)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("seed", range(10))
def test_a_stop_at_any_time_ends_it(seed: int) -> None:
    """What was sent comes to its end, the rest is dropped, and nobody waits for it."""
    load = Load(8, seed, again=0.2 * (seed % 2))
    at = random.Random(seed).randrange(1, 1000)

    def stop() -> None:
        load.room.until(lambda: len(load.done) >= at)
        load.room.stop.set(ENDED)

    stopper = threading.Thread(target=stop)
    stopper.start()
    load.run(2000)
    stopper.join(REAL_TIMEOUT_S)
    assert len(set(load.done)) == len(load.done)


def test_the_thread_has_a_name_and_an_end() -> None:
    """It is there from the first request on, and keeps nobody's interpreter."""

    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "parallel-processor-dispatcher"]

    before = len(threads())
    room = Room()
    assert len(threads()) == before
    with stopped_at_the_end(room):
        room.read(0, bucket_of(1))
        room.read(1, bucket_of(1))
        assert len(threads()) == before + 1
        assert all(thread.daemon for thread in threads())
    assert len(threads()) == before


# A model of it: nobody who may be admitted is left waiting.


def soonest(shared_limits: SharedLimits, now: float) -> dict[Reservation, float]:
    """Seconds until the head of each queue may go, computed anew; nothing changes.

    Heads that came after another that waits for ``shared_limits`` are left out: that one may go first.
    """
    with shared_limits.lock:
        before = [(state, state.delay, state.wait_cause) for state in shared_limits.waiting]
        for quota in shared_limits.quotas:
            quota.advance(now)
        found: dict[Reservation, float] = {}
        for state in sorted(shared_limits.waiting, key=lambda state: state.queue[0].ticket):
            state.advance(now)
            is_ready = state.wait_for_server(now)
            if is_ready:
                state.wait_for_configured(now)
            found[state.queue[0]] = state.delay
            if is_ready:
                break
        for state, delay, wait_cause in before:
            state.delay, state.wait_cause = delay, wait_cause
    return found


class ModelRun:
    """One run: its dispatcher, its input, and what is under way."""

    def __init__(self, world: World, max_workers: int, count: int) -> None:
        self.world = world
        self.max_workers = max_workers
        self.input = [self._make(number) for number in reversed(range(count))]
        self.in_flight: list[AdmittedRequest] = []
        self.ended: list[
            tuple[PendingRequest, bool, float, bool]
        ] = []  # and whether, when, made room
        self.unrecorded = self.passed = 0
        self.outcomes: list[int] = []
        self.order: defaultdict[TokenBucket, list[int]] = defaultdict(list)
        self.is_rung = True
        self.is_closed = False
        self.dispatcher = ByHand(
            cost=lambda estimate: Cost(estimate.input_tokens),
            start=self.send,
            drop=lambda pending: pytest.fail("nothing is dropped"),
            on_room=self.ring,
            activity=activity_of,
            counters=Counters(),
            wait_times=WaitTimes(),
            stop=StopSignal(),
            max_workers=max_workers,
            writer_slack=world.random.choice((0, 0, 20)),
            clock=world.clock,
        )
        self.dispatcher.turn()

    def _make(self, number: int) -> PendingRequest:
        luck = self.world.random
        tokens = luck.choice((1, 10, 100, 400))
        return request_of(number, luck.choice(self.world.buckets), tokens=tokens)

    def ring(self) -> None:
        self.is_rung = True

    def send(self, admitted: AdmittedRequest) -> None:
        self.in_flight.append(admitted)
        if admitted.pending.retry_state is None:
            self.order[admitted.pending.bucket].append(admitted.pending.request.number)

    # What may happen.

    @property
    def due_at(self) -> float:
        """When the thread wakes by itself or is awake already; infinite once it has left."""
        if self.dispatcher._has_left:
            return math.inf
        return self.dispatcher._due_at if self.dispatcher.is_asleep else -math.inf

    def events(self) -> list[Callable[[], None]]:
        """All that may happen now."""
        may: list[tuple[object, Callable[[], None]]] = [
            (self.is_rung and not self.is_closed, self.read),
            (self.in_flight, self.end),
            (self.in_flight, self.end),
            (self.ended, self.done),
            (self.ended, self.done),
            (self.unrecorded, self.record),
            (self.due_at <= self.world.clock(), self.dispatcher.turn),
        ]
        return [event for is_possible, event in may if is_possible]

    def read(self) -> None:
        if not self.input:
            self.is_closed = True
            self.dispatcher.close()
            return
        count = self.dispatcher.room()
        self.is_rung = count > 0
        for _ in range(min(count, self.world.random.randint(1, 80))):
            if not self.input:
                return
            pending = self.input.pop()
            if self.world.random.random() < 0.03:
                self.outcomes.append(pending.request.number)
                self.unrecorded += 1
                self.dispatcher.skip()
            else:
                self.dispatcher.put(pending)

    def end(self) -> None:
        """An answer comes, or a rejection."""
        luck = self.world.random
        pending, reservation = self.in_flight.pop(luck.randrange(len(self.in_flight)))
        bucket, kind = pending.bucket, luck.random()
        used = luck.choice((None, reservation.costs[1] / 4, reservation.costs[1] * 2))
        again = kind < 0.3
        ending = bucket.ended(
            reservation, answered=not again, used_tokens=used, waker=self.dispatcher.waker
        )
        retry_in_s = 0.0
        if kind < 0.05:
            bucket.refuse(reservation, Rejection(overload=True), None)
            retry_in_s = luck.uniform(0.0, 10.0)
        elif kind < 0.1:
            bucket.pause(luck.uniform(0.1, 20.0), reservation)
        elif again:
            retry_in_s = luck.choice((0.0, luck.uniform(0.0, 2.0), luck.uniform(0.0, 60.0)))
        self.ended.append((pending, again, retry_in_s, ending.made_room))

    def done(self) -> None:
        """The thread of an attempt tells of its end."""
        reservation = self.world.random.randrange(len(self.ended))
        pending, again, retry_in_s, made_room = self.ended.pop(reservation)
        if not again:
            self.outcomes.append(pending.request.number)
            self.unrecorded += 1
        admitted = self.dispatcher.done(
            tried(pending) if again else None, retry_in_s=retry_in_s, made_room=made_room
        )
        if admitted is not None:
            self.send(admitted)

    def record(self) -> None:
        count = self.world.random.randint(1, self.unrecorded)
        self.unrecorded -= count
        self.dispatcher.recorded(count)

    # What must be so.

    def check(self) -> None:
        """Whoever may be admitted has somebody who will admit it, in time."""
        dispatcher, now = self.dispatcher, self.world.clock()
        assert dispatcher.in_flight == len(self.in_flight) + len(self.ended) <= self.max_workers
        assert dispatcher._credits.unrecorded == self.unrecorded
        if self.due_at <= now or dispatcher._has_left:
            return
        if dispatcher.in_flight == self.max_workers:
            assert not any(line.reservation for line in dispatcher._queues._queues.values())
            return
        assert all(due_at >= self.due_at for due_at, _, _ in dispatcher._queues._later)
        made_room = any(ending[3] for ending in self.ended)
        for bucket, line in dispatcher._queues._queues.items():
            assert line.reservation is not None
            assert line.reservation.admitted_at is None
            if bucket.queue[0] is line.reservation and not made_room:  # else who made it will ask
                delay = soonest(bucket.shared_limits, now).get(line.reservation, math.inf)
                assert self.due_at <= now + delay + 1e-6, (
                    self.due_at - now,
                    delay,
                    bucket.wait_cause,
                )


class World:
    """Buckets of all kinds, and the runs that use them, in a time that passes when nothing else does."""

    def __init__(self, seed: int, runs: int) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.buckets: list[TokenBucket] = []
        for limits in ((60, math.inf), (600, 6000), (math.inf, 20_000), (math.inf, math.inf)):
            requests, tokens = limits
            made = Limits(requests_per_minute=requests, tokens_per_minute=tokens)
            shared_limits = SharedLimits(made, self.clock)
            for most in (None, self.random.choice((1, 2, 5))):
                self.buckets.append(
                    TokenBucket(
                        made, clock=self.clock, shared_limits=shared_limits, most_in_flight=most
                    )
                )
        self.buckets = self.random.sample(self.buckets, self.random.randint(1, len(self.buckets)))
        self.runs = [
            ModelRun(self, self.random.choice((1, 2, 3, 8, 100)), 120) for _ in range(runs)
        ]

    def step(self) -> bool:
        """Let one thing happen; false if nothing can any more."""
        events = [event for run in self.runs for event in run.events()]
        if events and self.random.random() < 0.9:
            self.random.choice(events)()
            return True
        due_at = min(run.due_at for run in self.runs)
        if not events and due_at == math.inf:
            return False
        seconds = self.random.expovariate(1.0)
        if not events or self.clock.now_s + seconds > due_at > self.clock.now_s:
            self.clock.now_s = max(self.clock.now_s, due_at)
        else:
            self.clock.now_s += seconds
        return True

    def run(self) -> None:
        """Let everything happen, and look at each step."""
        while self.step():
            for run in self.runs:
                run.check()
        for run in self.runs:
            assert not run.input, "the reader sleeps for ever"
            assert run.dispatcher._has_left, "the dispatcher sleeps for ever"
            assert sorted(run.outcomes) == list(range(120))
            assert not run.dispatcher.is_busy()
            for line in run.order.values():
                assert line == sorted(line)
        assert not any(bucket.queue for bucket in self.buckets)
        assert not any(bucket.server.in_flight.count for bucket in self.buckets)


@pytest.mark.parametrize("seed", range(60))
def test_nobody_who_may_be_admitted_is_left_waiting(seed: int) -> None:
    """Whatever happens in whatever order, the thread wakes when the first of any line may go."""
    World(seed, runs=1).run()


@pytest.mark.parametrize("seed", range(60))
def test_runs_that_share_buckets_leave_nobody_waiting(seed: int) -> None:
    """The same with two runs that are in each other's way."""
    World(seed, runs=2).run()


# How it ends.


def test_a_dispatcher_without_requests_ends_at_once() -> None:
    """There is no thread to wait for."""
    room = Room()
    assert not room.dispatcher.is_busy()
    room.dispatcher.close()
    room.end()
    assert not room.dispatcher.is_busy()


@pytest.mark.parametrize(
    ("events", "sent", "dropped", "forgotten"),
    [
        # a stop drops those that were tried, in line and in their backoff, and forgets the others
        ("put free 4, turn, pause, again 0, later 1, turn, stop, turn", [0, 1], [0, 1], [2, 3]),
        ("put free 4, turn, stop, turn, done 0, done 1", [0, 1], [], [2, 3]),
        # before our thread has heard of the stop, a thread that is done gets nothing
        ("put free 4, turn, stop, done 0, turn, done 1", [0, 1], [], [2, 3]),
        ("put free 3, turn, stop, turn, again 0, later 1", [0, 1], [0, 1], [2]),
        ("put free 2, turn, stop, again 0, later 1, turn", [0, 1], [0, 1], []),
        ("put slow 1, put paused 1, turn, stop, turn", [], [], [0, 1]),
        ("stop, put free 1, turn", [], [], [0]),
        ("put free 1, turn, done 0, stop, turn, put free 1", [0], [], [1]),
        # in a hurry only those go whose bucket admits them now, as many as may be in flight
        ("put free 6, hurry, turn, done 0, done 1", [0, 1], [], [2, 3, 4, 5]),
        ("put slow 1, put paused 1, put free 2, hurry, turn, done 2, done 3", [2, 3], [], [0, 1]),
        ("put free 1, turn, pause, put free 2, turn, hurry, turn, done 0", [0], [], [1, 2]),
        ("put free 3, turn, later 0, hurry, turn, again 1, done 2", [0, 1, 2], [0, 1], []),
    ],
)
def test_the_end_drops_what_is_not_sent(
    events: str, sent: list[int], dropped: list[int], forgotten: list[int]
) -> None:
    """Each request is dropped once, and has an outcome if it was sent; no bucket keeps a place."""
    play = Play()
    play(*events.split(", "))
    hand = play.room
    assert hand.sent == sent
    assert (sorted(hand.dropped), sorted(hand.forgotten)) == (dropped, forgotten)
    assert hand.rings > 0  # the reader hears of it
    assert (hand.dispatcher.in_flight, hand.unrecorded) == (0, len(sent))
    assert [len(bucket.queue) for bucket in play.buckets.values()] == [0, 0, 0, 0]
    assert hand.dispatcher.is_busy() == bool(sent)
    hand.dispatcher.recorded(len(sent))
    assert not hand.dispatcher.is_busy()


# Faults.


def fault(*arguments: object) -> Any:
    """Do what must not happen."""
    raise ZeroDivisionError(f"a fault, with {len(arguments)} arguments")


@pytest.mark.parametrize("part", ["cost", "start", "activity"])
def test_a_fault_ends_the_run(part: str) -> None:
    """A fault of ours in the dispatcher's thread is told, and nobody waits for what was read."""
    room = Room(**{part: fault})
    with stopped_at_the_end(room):
        slow = bucket_of(60)
        slow.enqueue(Reservation(1.0))
        room.put(0, slow)
        room.put(1, bucket_of())
        room.end()
        assert isinstance(room.dispatcher.error, ZeroDivisionError)
        assert room.stop.cause is room.dispatcher.error
        assert not slow.queue
        assert room.rings > 0
        for _ in range(room.dispatcher.in_flight):
            room.dispatcher.done()
            room.dispatcher.recorded(1)
        assert not room.dispatcher.is_busy()


def test_a_fault_in_a_thread_that_sends_is_its_own() -> None:
    """It is raised there, and whoever comes next finds everything as it should be."""
    faults = iter((False, False, True))

    def cost(estimate: Estimate) -> Cost:
        return fault() if next(faults, False) else Cost(estimate.input_tokens)

    room = Room(ByHand, max_workers=2, cost=cost)
    bucket = bucket_of()
    for number in range(4):
        room.put(number, bucket)
    room.dispatcher.turn()
    with pytest.raises(ZeroDivisionError):
        room.done(0)
    assert (room.dispatcher.in_flight, room.unrecorded) == (1, 1)
    assert room.done(1) == 2
    room.stop.set(ENDED)
    room.dispatcher.turn()
    assert room.done(2) is None
    room.dispatcher.recorded(3)
    assert not room.dispatcher.is_busy()


NEVER = "cannot schedule new futures after shutdown"  # at the interpreter's end


@pytest.mark.parametrize(
    ("threads", "message"), [(1, NEVER), (0, NEVER), (0, "can't start new thread")]
)
def test_without_threads_the_run_ends(threads: int, message: str) -> None:
    """What nobody sends is in flight neither for the run nor for its bucket, which outlives the run."""
    room = Room(start=Scarce(threads, message))
    with stopped_at_the_end(room):
        bucket = bucket_of(6000)
        for number in range(5):
            room.put(number, bucket)
        room.end()
        assert message in str(room.dispatcher.error)
        assert room.stop.cause is room.dispatcher.error
        assert room.dispatcher.in_flight == bucket.server.in_flight.count == threads
        assert admitted_by(bucket)["requests"] == threads
        for _ in range(threads):
            room.dispatcher.done()
            room.dispatcher.recorded(1)
        assert not room.dispatcher.is_busy()


def test_what_was_tried_and_nobody_sends_again_is_dropped() -> None:
    """At the interpreter's end a request that was tried before counts like the others that were."""
    start = Scarce(1, NEVER)
    room = Room(start=start)
    with stopped_at_the_end(room):
        bucket = bucket_of()
        room.put(0, bucket)
        room.until(lambda: room.dispatcher.in_flight == 1 and room.dispatcher._is_asleep)
        assert room.dispatcher.done(tried(room.pending[0]), retry_in_s=1.0) is None
        room.clock.now_s += 2.0
        room.dispatcher.waker.set()
        room.end()
        assert isinstance(room.dispatcher.error, RuntimeError)
        assert room.dropped == [0]
        assert room.unrecorded == 1


def test_where_threads_run_out_fewer_are_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    """What couldn't get a thread is queued for those that there are, and no more are taken."""
    start = Scarce(3)
    room = Room(ByHand, start=start)
    bucket = bucket_of()
    with caplog.at_level(logging.WARNING, logger="parallel_processor"):
        for number in range(8):
            room.put(number, bucket)
        room.dispatcher.turn()
    assert caplog.messages == ["only 3 requests can be in flight: can't start new thread"]
    assert [pending.request.number for pending in start.queued] == [0, 1, 2, 3]
    assert room.dispatcher.in_flight == 4
    assert room.dispatcher.done() is None
    admitted = room.dispatcher.done()
    assert admitted is not None
    assert admitted.pending.request.number == 4
    assert room.dispatcher.in_flight == 3
    room.dispatcher.turn()
    assert len(start.queued) == 4
    assert room.dispatcher.error is None


def test_where_threads_run_out_nobody_keeps_a_place() -> None:
    """Other runs aren't behind what waits for one of the threads that there are."""
    room = Room(ByHand, start=Scarce(1))
    other, bucket = paused_bucket(), bucket_of()
    room.put(0, other)
    room.dispatcher.turn()
    assert other.queue
    for number in range(1, 4):
        room.put(number, bucket)
    room.dispatcher.turn()
    assert room.dispatcher.in_flight == 2
    assert room.dispatcher.is_asleep
    assert not bucket.queue
    assert not other.queue


# What it waits for.


@pytest.mark.parametrize(
    ("events", "overall", "of_buckets"),
    [
        (  # a bucket that waits says for what, one without requests has what the run waits for
            "put free 1, turn, wait 1, put paused 1, turn, wait 2, put slow 1, turn, wait 4, turn",
            {"requests": 4.0, "pause": 2.0, "input": 1.0},
            {"free": {"input": 7.0}, "paused": {"pause": 6.0}, "slow": {"requests": 4.0}},
        ),
        (  # where as many are in flight as may be, no bucket is to blame
            "put free 1, put idle 1, turn, put free 1, wait 3, done 0, wait 5, stop, turn",
            {"max_workers": 8.0},
            {"free": {"max_workers": 8.0}, "idle": {"max_workers": 8.0}},
        ),
        (  # threads that are done begin another wait while ours sleeps
            "put free 3, turn, wait 1, done 0, wait 2, done 1, wait 4, done 2, wait 8, stop, turn",
            {"input": 12.0, "max_workers": 3.0},
            {"free": {"input": 12.0, "max_workers": 3.0}},
        ),
        (  # what was held up by workers is held up by its limit next
            "put free 2, turn, put slow 1, wait 1, done 0, turn, wait 2, done 1, turn",
            {"requests": 2.0, "max_workers": 1.0},
            {"slow": {"requests": 2.0}, "free": {"input": 2.0, "max_workers": 1.0}},
        ),
        (  # a backoff is held up by no bucket
            "put free 1, turn, later 0, turn, wait 7, turn",
            {"input": 7.0},
            {"free": {"input": 7.0}},
        ),
    ],
)
def test_each_wait_has_its_cause(
    events: str, overall: dict[str, float], of_buckets: dict[str, dict[str, float]]
) -> None:
    """The run's waits and those of each bucket, by what was waited for."""
    play = Play()
    play(*events.split(", "))
    assert play.room.wait_times.overall() == overall
    for name, waits in of_buckets.items():
        assert play.room.wait_times.of_bucket(play.buckets[name]) == waits


def test_a_wait_that_goes_on_is_seen(hand: Room) -> None:
    """What is waited for now counts up to the moment at which somebody asks."""
    hand.put(0, paused_bucket())
    hand.dispatcher.turn()
    hand.clock.now_s += 3.0
    assert hand.wait_times.overall() == {}
    assert hand.wait_times.overall(hand.clock()) == {"pause": 3.0}
