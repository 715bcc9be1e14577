"""The way from reading to sending: who is read, who is admitted, and which thread sends it.

The clock of most buckets here stands still, so that what they don't admit at once they don't admit.
A dispatcher that is driven by hand has no thread: a test takes the turns of that thread.
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

from parallel_processor.engine.credits import LOOK_AHEAD, READ_AHEAD, WriterSlack, ahead_of
from parallel_processor.engine.dispatcher import Dispatcher
from parallel_processor.engine.queues import RequestQueues
from parallel_processor.exceptions import StopRequested
from parallel_processor.models import AttemptStatus, Estimate, Rejection, Request, WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.shared import SharedLimits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.report.counters import Counters
from parallel_processor.report.wait_times import WaitTimes
from parallel_processor.runtime.stop import StopSignal, WakeEvent
from parallel_processor.tokens.estimates import Cost
from parallel_processor.upstreams.replicas import AnyBucket, BucketGroup
from parallel_processor.workers.pending import AdmittedRequest, PendingRequest, RetryState
from parallel_processor.workers.processes import WorkerProcesses

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails
MB = 1024 * 1024
ENDED = StopRequested("enough")


class ByHand(Dispatcher):
    """A dispatcher without a thread: the test takes the turns, and nobody really sleeps.

    ``slept_s`` is how long the last turn would have slept; ``None`` if it didn't.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._thread.start = lambda: None  # type: ignore[method-assign]
        self.slept_s: float | None = 0.0
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
    number: int, group: AnyBucket, *, size_bytes: int = 1, tokens: int = 1
) -> PendingRequest:
    """A request on its way."""
    request = Request(body={}, payload=bytes(size_bytes), number=number)
    estimate = Estimate(input_tokens=tokens, output_cap=0)
    bucket = group.members[0]
    return PendingRequest(request=request, estimate=estimate, group=group, bucket=bucket)


def tried(pending: PendingRequest) -> PendingRequest:
    """The same with one more try, as a worker leaves it."""
    if pending.retry_state is None:
        pending.retry_state = RetryState(request=pending.request)
    pending.retry_state.sent += 1
    return pending


def make(kind: type[Dispatcher] = Dispatcher, **parts: Any) -> Any:
    """A dispatcher, with what most tests here don't care for."""
    cost = parts.pop("cost", lambda estimate: Cost(estimate.input_tokens))
    usual: dict[str, Any] = {
        "queues": RequestQueues(cost, WakeEvent()),
        "flush": lambda: None,
        "activity": activity_of,
        "counters": Counters(),
        "wait_times": WaitTimes(),
        "stop": StopSignal(),
        "max_workers": 10_000,
        "slack": WriterSlack(outcomes=0),
        "count": lambda pending: None,
        "is_wanted": None,
        "clock": FakeClock(),
    }
    return kind(**usual | parts)


class Room:
    """A dispatcher with all that it talks to, and what it did.

    What was sent stays in flight until a test says otherwise.
    """

    def __init__(self, kind: type[Dispatcher] = Dispatcher, **parts: Any) -> None:
        self.clock = parts.setdefault("clock", FakeClock())
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
        self.dispatcher = make(
            kind,
            start=parts.pop("start", self.send),
            drop=parts.pop("drop", self._drop),
            on_room=self._ring,
            activity=self._tell_activity,
            counters=self.counters,
            wait_times=self.wait_times,
            stop=self.stop,
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
        dropped = self.forgotten if pending.retry_state is None else self.dropped
        dropped.append(pending.request.number)
        self.change()

    @property
    def unrecorded(self) -> int:
        """How many outcomes aren't on record."""
        return int(self.dispatcher.credits.unrecorded)

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

    def put(self, number: int, bucket: AnyBucket, size_bytes: int = 1) -> None:
        """Put a request in."""
        self.pending[number] = request_of(number, bucket, size_bytes=size_bytes)
        self.dispatcher.put(self.pending[number])

    def done(self, number: int, *, again: bool = False, **how: Any) -> int | None:
        """An attempt has ended, and its thread sends what it gets instead: that one's number."""
        pending = self.pending[number]
        waker = self.dispatcher.waker
        release = pending.bucket.ended(self.places[number], answered=not again, waker=waker)
        how.setdefault("made_room", release.made_room)
        admitted = self.dispatcher.done(tried(pending) if again else None, **how)
        if admitted is None:
            return None
        self.send(admitted)
        following: int = admitted.pending.request.number
        return following

    def end(self) -> None:
        """Wait for the thread's end."""
        thread = threading.Thread(target=self.dispatcher.join, daemon=True)
        thread.start()
        thread.join(REAL_TIMEOUT_S)
        assert not thread.is_alive(), "it hangs"

    def end_what_is_in_flight(self) -> None:
        """Everything that was sent has its outcome on record; then nothing is under way."""
        for _ in range(self.dispatcher.credits.in_flight):
            self.dispatcher.done()
            self.dispatcher.recorded(1)
        assert not self.dispatcher.is_busy()


@contextmanager
def stopped_at_the_end(room: Room) -> Iterator[Room]:
    """Leave no thread behind, though a test fails."""
    try:
        yield room
    finally:
        room.stop.set(ENDED)
        room.end()


@pytest.fixture
def hand() -> Room:
    """A room of which two may be in flight, driven by hand."""
    return Room(ByHand, max_workers=2)


NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)


def bucket_of(requests_per_minute: float = math.inf, clock: Any = None) -> TokenBucket:
    """A bucket whose time stands still; one request, or all of them, goes at once."""
    limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=math.inf)
    return TokenBucket(limits, clock=clock or FakeClock())


def full_bucket() -> TokenBucket:
    """A bucket of one a second, which has just admitted one."""
    bucket = bucket_of(60)
    bucket.enqueue(Reservation(1.0))
    return bucket


def paused_bucket(seconds: float = 1e6) -> TokenBucket:
    """A bucket that admits nothing for a while."""
    bucket = bucket_of()
    bucket.pause(seconds)
    return bucket


class Play(Room):
    """A room driven by hand, and a script of events and of what must be so after them.

    There are buckets that admit everything (``free``, ``idle``), one in flight (``server``), one a second
    (``minute``; ``slow`` has just admitted one), and nothing for a while (``paused``; ``brief`` for 3 s).
    Requests are numbered from 0 as they are put.
    """

    def __init__(self, max_workers: int = 2, **parts: Any) -> None:
        super().__init__(ByHand, max_workers=max_workers, **parts)
        self.buckets = {
            "free": bucket_of(),
            "idle": bucket_of(),
            "server": TokenBucket(NO_LIMITS, clock=FakeClock(), most_in_flight=1),
            "minute": bucket_of(60),
            "slow": full_bucket(),
            "paused": paused_bucket(),
            "brief": paused_bucket(3.0),
        }
        self.facts: dict[str, Callable[[], object]] = {
            "sent": lambda: " ".join(map(str, self.sent)),
            "last": lambda: self.sent[-1],
            "flying": lambda: self.dispatcher.credits.in_flight,
            "unrecorded": lambda: self.unrecorded,
            "room": self.dispatcher.room,
            "rings": lambda: self.rings,
            "busy": self.dispatcher.is_busy,
            "left": lambda: self.dispatcher._has_left,
        }

    def __call__(self, *scripts: str) -> None:
        """Let this happen, and check it."""
        for event in ", ".join(scripts).split(", "):
            kind, _, words = event.partition(" ")
            if kind in self.facts:
                assert str(self.facts[kind]()) == words, event
            else:
                getattr(self, f"_do_{kind}")(*words.split())

    def _do_put(self, name: str, count: str, size_bytes: str = "1") -> None:
        for _ in range(int(count)):
            self.put(len(self.pending), self.buckets[name], int(size_bytes))

    def _do_done(self, number: str, _: str = "", following: str | None = None) -> None:
        assert following in (None, str(self.done(int(number))))

    def _do_again(self, number: str) -> None:
        self.done(int(number), again=True)

    def _do_later(self, number: str, seconds: str = "7") -> None:
        self.done(int(number), again=True, retry_in_s=float(seconds))

    def _do_skip(self, count: str) -> None:
        for _ in range(int(count)):
            self.dispatcher.credits.skip(0)

    def _do_record(self, count: str) -> None:
        self.dispatcher.recorded(int(count))

    def _do_wait(self, seconds: str) -> None:
        self.clock.now_s += float(seconds)

    def _do_pause(self) -> None:
        self.buckets["free"].pause(1e6)

    def _do_pass(self, name: str, seconds: str) -> None:
        self.buckets[name]._clock.now_s += float(seconds)  # type: ignore[attr-defined]

    def _do_refund(self, number: str) -> None:
        self.pending[int(number)].bucket.cancel(self.places[int(number)])

    def _do_stop(self) -> None:
        self.stop.set(ENDED)

    def _do_close(self) -> None:
        self.dispatcher.close()

    def _do_hurry(self) -> None:
        self.dispatcher.close(hurry=True)

    def _do_turn(self) -> None:
        self.dispatcher.turn()

    # What must be so.

    def _do_asleep(self, seconds: str | None = None) -> None:
        assert self.dispatcher.is_asleep
        slept_s = self.dispatcher.slept_s
        assert seconds is None or slept_s == pytest.approx(float(seconds), rel=0.01)

    def _do_awake(self) -> None:
        assert not self.dispatcher.is_asleep

    def _do_places(self, name: str, count: str) -> None:
        assert len(self.buckets[name].queue) == int(count)


def each(numbers: range, *events: str) -> str:
    """These events for each number, which is ``{n}`` in them; ``{m}`` is two more."""
    return ", ".join(", ".join(events).format(n=n, m=n + 2) for n in numbers)


PLAYS = {
    # The queues.
    "what is given back lets the first of a queue go, and that one only": (
        "9: put minute 3, turn, sent 0, refund 0, awake, turn, sent 0 1, put free 1, turn, sent 0 1 3"
    ),
    # A worker that is done gets the next request.
    "nobody is left for the thread": "put free 1, turn, done 0 -> None, asleep inf",
    "a worker is given each next request in order, and nobody is woken for that": (
        "put free 4, turn, sent 0 1, "
        + each(range(20), "done {n} -> {m}", "flying 2", "asleep", "put free 1", "asleep")
    ),
    "a worker whose own model waits goes on with another's request": (
        "put free 1, put slow 1, turn, put idle 1, turn, put idle 1, done 0 -> 3, sent 0 2 3, asleep"
    ),
    "before the thread has had its turn, a worker gets what was put already": (
        "put free 1, turn, put free 2, done 0 -> 1, turn, sent 0 1 2, asleep inf"
    ),
    "nothing is sent that no bucket admits": (
        "put minute 2, turn, sent 0, asleep 1, done 0 -> None, asleep 1, pass minute 1.1, turn, "
        "sent 0 1"
    ),
    "what comes back at once is the next, and its worker goes on with it": (
        "put free 4, turn, again 1, done 0, done 1, sent 0 1 1 2 3"
    ),
    "what was rejected is the first of those behind the pause": (
        "put free 4, turn, pause, again 0, done 1 -> None, turn, sent 0 1, asleep 1e6, "
        "pass free 1e6, turn, sent 0 1 0 2"
    ),
    "room that was made for the same queue wakes nobody": (
        "put server 4, turn, sent 0, done 0 -> 1, asleep, done 1 -> 2, asleep, done 2 -> 3, asleep"
    ),
    "when there are workers again, each head takes a place, and the thread has a new time": (
        "put free 2, turn, put brief 1, put slow 1, turn, asleep inf, done 0 -> None, awake, turn, "
        "asleep 1, places slow 1, places brief 1"
    ),
    "a request that waits for a worker keeps no place, and other runs aren't behind it": (
        "pause, put free 6, turn, places free 1, pass free 2e6, turn, sent 0 1, places free 0, "
        "done 0 -> 2, places free 0"
    ),
    # Backoffs.
    "what comes back later isn't sent before": "put free 1, turn, later 0, turn, asleep 7",
    "others go meanwhile": (
        "put free 1, turn, later 0, turn, put free 1, turn, wait 6.9, turn, sent 0 1, asleep 0.1, "
        "wait 0.2, turn, sent 0 1 0, asleep inf"
    ),
    "what is due while all workers are busy is sent next": (
        "put free 5, turn, later 0, turn, wait 7, turn, sent 0 1 2, done 1 -> 0, done 2 -> 3"
    ),
    "only a nearer time wakes the thread": (
        "put free 2, turn, later 0, turn, later 1 8, asleep, wait 7, turn, asleep 1, later 0 0.5, awake"
    ),
    "the thread of a closed input lives until nothing waits, is in flight or will be tried again": (
        "put free 1, close, turn, left False, later 0, turn, left False, wait 7, turn, sent 0 0, "
        "left False, done 0 -> None, turn, left True, unrecorded 1"
    ),
    "as many as are read ahead may be in a backoff, and others are read and sent": (
        f"10_000: put free {READ_AHEAD}, turn, "
        + each(range(READ_AHEAD), "later {n} 1e6")
        + f", flying 0, room {READ_AHEAD}, put free 1, turn, last {READ_AHEAD}"
    ),
    # What bounds the reading.
    "outcomes that are not on record count as if they were in flight": (
        "put free 4, turn, done 0 -> 2, done 1 -> 3, room 0, record 1, room 1, record 1, room 2, done 2, "
        "done 3, room 2"
    ),
    "no waiting reader is no ring: one for each record would cost more than the record": (
        f"100: put free 16, turn, room {READ_AHEAD}, rings 0, "
        + each(range(16), "done {n}", "record 1")
        + ", rings 0"
    ),
    "the reader is woken when half of the read-ahead is free, and not again": (
        "8: put free 16, turn, room 0, "
        + each(range(4), "done {n}", "record 1")
        + ", rings 0, done 4, record 1, rings 1, "
        + each(range(5, 8), "done {n}", "record 1")
        + ", rings 1, room 8"
    ),
    "outcomes of what was never sent wake it as well": (
        "8: skip 16, room 0, record 1, record 1, record 1, record 1, rings 0, record 1, rings 1, record 3, "
        "rings 1, room 8"
    ),
    "the thread wakes it when what was read is in flight": (
        "8: put free 8, room 0, turn, rings 1, room 8"
    ),
    "the thread wakes it when all queues wait: the look-ahead begins": (
        "8: put paused 8, room 0, turn, rings 1, room 16"
    ),
    "the last record is told to the one who asked whether anything is under way": (
        "put free 1, close, turn, done 0, turn, busy True, rings 1, record 1, rings 2, busy False"
    ),
    "behind a bucket that waits the look-ahead has an end, and goes on when its queue does": (
        f"put minute 1, turn, sent 0, put minute {LOOK_AHEAD - 1}, turn, room 1, put minute 1, turn, "
        "room 0, refund 0, turn, sent 0 1, room 0, "  # as many are in flight as may be
        "done 0 -> None, record 1, turn, room 1, put minute 1, turn, room 0, sent 0 1"
    ),
    "a single server's load is no reason to look ahead": (
        "put server 2, turn, sent 0, room 1, put server 1, turn, room 0, done 0 -> 1"
    ),
    "sixteen megabytes that wait are enough, however few requests they are": (
        f"put minute 1, turn, put minute 1 {16 * MB - 1}, room 1, put minute 1, room 0, refund 0, turn, "
        "sent 0 1, done 0 -> None, record 1, room 1"
    ),
    "one request may have any size": (
        each(
            range(3), "room 2", f"put free 1 {17 * MB}", "turn", "last {n}", "done {n}", "record 1"
        )
    ),
}


@pytest.mark.parametrize("script", PLAYS.values(), ids=PLAYS)
def test_what_happens(script: str) -> None:
    """Which request is sent when, by a worker or by the thread, and how many may be read."""
    max_workers, _, events = script.rpartition(": ")
    play = Play(int(max_workers or 2))
    play(events)
    assert play.dropped == play.forgotten == []


@pytest.mark.parametrize("seconds", [1e10, 1e300])
def test_a_wait_may_be_longer_than_the_system_can_count(seconds: float) -> None:
    """A bucket that is closed for thousands of years is no fault."""
    other = bucket_of()
    with stopped_at_the_end(Room()) as room:
        room.put(0, paused_bucket(seconds))
        for number in (1, 2):
            room.put(number, other)
            room.until(lambda number=number: room.sent == list(range(1, number + 1)))
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
    assert (hand.dispatcher.credits.in_flight, hand.unrecorded) == (len(hand.sent), 0)
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
    assert (hand.dispatcher.credits.in_flight, hand.unrecorded) == (0, 1)


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
    assert hand.dispatcher.credits.in_flight == 2


@pytest.mark.parametrize("max_workers", [1, 2, 15, 16, 63, 64, 65, 1000])
def test_so_many_may_be_read(max_workers: int) -> None:
    """At first the read-ahead is all that may be, and behind those in flight it is there again."""
    room = Room(ByHand, max_workers=max_workers)
    ahead = ahead_of(max_workers)
    assert min(max_workers, READ_AHEAD) <= ahead <= READ_AHEAD
    bucket, number = bucket_of(), 0
    room.dispatcher.open()
    while count := room.dispatcher.room():
        assert count <= ahead
        for _ in range(count):
            room.put(number, bucket)
            number += 1
        room.dispatcher.turn()
    assert number == max_workers + ahead
    assert len(room.sent) == max_workers


@pytest.mark.parametrize(
    ("waits_s", "is_answered", "sent"),
    [
        ([], False, 16),
        ([], True, 100),
        ([0.04], False, 16),
        ([0.05], False, 50),
        ([0.05], True, 100),
        ([0.05, 0.94], False, 50),
        ([0.05, 0.95], False, 100),
    ],
)
def test_the_start_is_careful(waits_s: list[float], is_answered: bool, sent: int) -> None:
    """Until one is answered, at most 16 are in flight for a moment, and at most 50 for a second."""
    room, bucket = Room(ByHand, max_workers=100), bucket_of()
    number = 0

    def fill() -> None:
        nonlocal number
        for _ in range(120):
            if room.dispatcher.room():
                room.put(number, bucket)
                number += 1
            room.dispatcher.turn()

    fill()
    assert len(room.sent) == 16
    assert room.dispatcher.credits.full_cause is WaitCause.CONCURRENCY
    for wait_s in waits_s:
        room.clock.now_s += wait_s
        fill()
    if is_answered:
        room.dispatcher.open()
        fill()
    assert len(room.sent) == sent
    is_open = sent == 100
    assert (room.dispatcher.credits.full_cause is WaitCause.MAX_WORKERS) == is_open


@pytest.mark.parametrize(
    ("inputs", "waits_s", "sent"),
    [(10, [], 1), (10, [0.05], 5), (10, [0.05, 0.95], 100), (60, [0.94], 1), (60, [0.95], 100)],
)
def test_the_start_of_packs_is_careful_too(inputs: int, waits_s: list[float], sent: int) -> None:
    """As many inputs are in flight as others have requests, but at least one pack."""
    room, bucket = Room(ByHand, max_workers=100, inputs=inputs), bucket_of()
    for number in range(120):
        room.put(number, bucket)
    for wait_s in (0.0, *waits_s):
        room.clock.now_s += wait_s
        for _ in range(120):
            room.dispatcher.turn()
    assert len(room.sent) == sent


@pytest.mark.parametrize("slack", [0, 10])
def test_what_was_skipped_counts_until_it_is_on_record(slack: int) -> None:
    """What can't be sent bounds the reading as the others do, but for the slack of a writer."""
    play = Play(slack=WriterSlack(outcomes=slack))
    for left in (*[2] * slack, 2, 2, 1, 0):
        play(f"skip 1, room {left}")
    play("busy True", "flying 0", f"record {slack + 4}", "room 2", "busy False")


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
        free = TokenBucket(NO_LIMITS, clock=clock, most_in_flight=max(1, max_workers // 2))
        one, shared = bucket_of(rate, clock), bucket_of(rate, clock).shared_limits
        both = [TokenBucket(shared.limits, clock=clock, shared_limits=shared) for _ in range(2)]
        found = [TokenBucket(NO_LIMITS, clock=clock, most_in_flight=2) for _ in range(2)]
        replicas = [*found, bucket_of(rate, clock), both[0]]
        self.members = [one, bucket_of(clock=clock), free, *both, *replicas[:3]]
        self.buckets: list[AnyBucket] = [*self.members[:5], BucketGroup(replicas)]
        self.again = again
        self.lock = threading.Lock()  # guards what follows
        self.in_flight = self.peak = self.ahead = 0
        self.attempts = 0
        self.done: list[int] = []
        self.lines: defaultdict[AnyBucket, list[tuple[int, int]]] = defaultdict(list)
        self.executor = ThreadPoolExecutor(max_workers)
        self.unwritten: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.writer = threading.Thread(target=self.write, daemon=True)
        self.writer.start()
        self.room = Room(
            start=lambda admitted: self.executor.submit(self.work, admitted),
            drop=lambda pending: pending.retry_state is not None and self.unwritten.put(1),
            max_workers=max_workers,
            slack=WriterSlack(outcomes=slack),
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
            if pending.retry_state is None and pending.group is pending.bucket:
                self.lines[pending.bucket].append((reservation.ticket, pending.request.number))
            luck = self.random.random()
        waker = self.room.dispatcher.waker
        ending = pending.bucket.ended(reservation, answered=True, waker=waker)
        if luck < self.again / 20:
            pending.bucket.pause(0.002)
        elif luck < self.again / 10:
            pending.bucket.probe(0.002, reservation)
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
                    dispatcher.credits.skip(0)
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
        assert self.room.dispatcher.credits.in_flight == self.room.unrecorded == 0
        assert not any(bucket.queue for bucket in self.members)
        assert not any(bucket.server.in_flight.count for bucket in self.members)


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
        room.put(0, bucket_of(1))
        room.put(1, bucket_of(1))
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
        self.ended: list[tuple[PendingRequest, bool, float, bool]] = []  # whether, when, made room
        self.unrecorded = self.passed = 0
        self.outcomes: list[int] = []
        self.order: defaultdict[AnyBucket, list[int]] = defaultdict(list)
        self.is_rung = True
        self.is_closed = False
        self.dispatcher = make(
            ByHand,
            start=self.send,
            drop=lambda pending: pytest.fail("nothing is dropped"),
            on_room=self.ring,
            max_workers=max_workers,
            slack=WriterSlack(outcomes=world.random.choice((0, 0, 20))),
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
            self.order[admitted.pending.group].append(admitted.pending.request.number)
        assert admitted.pending.bucket in admitted.pending.group.members

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
                self.dispatcher.credits.skip(0)
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
            bucket.refuse(
                reservation, Rejection(concurrency=True)
            )  # cuts no rate, which would grow
            retry_in_s = luck.uniform(0.0, 10.0)
        elif kind < 0.1:
            bucket.pause(luck.uniform(0.1, 20.0), reservation)
        elif kind < 0.15:
            bucket.probe(luck.uniform(0.1, 20.0), reservation)
            if isinstance(pending.group, BucketGroup) and luck.random() < 0.1:
                pending.group.set_aside(bucket)
        elif again:
            retry_in_s = luck.choice((0.0, luck.uniform(0.0, 2.0), luck.uniform(0.0, 60.0)))
        if again and luck.random() < 0.5:
            tried(pending).retry_state.failed_by[bucket] = reservation.admitted_at or 0.0
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
        assert (
            dispatcher.credits.in_flight
            == len(self.in_flight) + len(self.ended)
            <= self.max_workers
        )
        assert dispatcher.credits.unrecorded == self.unrecorded
        if self.due_at <= now or dispatcher._has_left:
            return
        if dispatcher.credits.is_full:
            assert not any(line.reservation for line in dispatcher._queues._queues.values())
            return
        assert all(due_at >= self.due_at for due_at, _, _ in dispatcher._queues._later)
        made_room = any(ending[3] for ending in self.ended)
        for group, line in dispatcher._queues._queues.items():
            if (
                line.reservation is None
            ):  # the end of a request of this run will be the first to help it
                ended = any(pending.group is group for pending, *_ in self.ended)
                assert ended or not group.has_room
                assert ended or any(pending.group is group for pending, _ in self.in_flight)
                continue
            assert line.reservation.admitted_at is None
            if isinstance(group, BucketGroup) and line.reservation in group._kept_back:
                assert made_room or self.due_at <= group._kept_back[line.reservation][0] + 1e-6
            for bucket, reservation in places_of(group, line.reservation):
                if bucket.queue[0] is reservation and not made_room:  # else who made it will ask
                    delay = soonest(bucket.shared_limits, now).get(reservation, math.inf)
                    assert self.due_at <= now + delay + 1e-6, (delay, bucket.wait_cause)


def places_of(group: AnyBucket, reservation: Reservation) -> list[tuple[TokenBucket, Reservation]]:
    """Where the head of a queue has a place."""
    if isinstance(group, BucketGroup):
        return list(group._places[reservation])
    return [(group, reservation)]


class World:
    """Buckets of all kinds, and the runs that use them, in a time that passes when nothing else does."""

    def __init__(self, seed: int, runs: int, *, has_groups: bool = False) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        members: list[TokenBucket] = []
        for limits in ((60, math.inf), (600, 6000), (math.inf, 20_000), (math.inf, math.inf)):
            requests, tokens = limits
            made = Limits(requests_per_minute=requests, tokens_per_minute=tokens)
            shared_limits = SharedLimits(made, self.clock)
            for most in (None, self.random.choice((1, 2, 5))):
                how: Any = {"clock": self.clock, "shared_limits": shared_limits}
                members.append(TokenBucket(made, most_in_flight=most, **how))
        self.members = members
        groups = [self._group() for _ in range(self.random.randint(0, 2))] if has_groups else []
        kept = self.random.sample(self.members, self.random.randint(not groups, len(self.members)))
        self.buckets: list[AnyBucket] = [*kept, *groups]
        most_workers = (1, 2, 3, 8, 100)
        self.runs = [ModelRun(self, self.random.choice(most_workers), 120) for _ in range(runs)]

    def _group(self) -> BucketGroup:
        members = self.random.sample(self.members, self.random.randint(2, 5))
        for member in members:  # as if it had been found out
            member.server.in_flight.latency_s = self.random.choice((0.1, 1.0, 60.0, math.inf))
        return BucketGroup(members, self.clock)

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
        assert not any(bucket.queue for bucket in self.members)
        assert not any(bucket.server.in_flight.count for bucket in self.members)
        for group in (each for each in self.buckets if isinstance(each, BucketGroup)):
            assert not group._places and not group._kept_back


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("seed", range(60))
def test_nobody_who_may_be_admitted_is_left_waiting(seed: int, runs: int) -> None:
    """Whatever happens, by one run or two, the thread wakes when the first of any queue may go."""
    World(seed, runs, has_groups=seed % 3 > 0).run()


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
        # a stop drops those that were tried, in a queue and in their backoff, and forgets the others
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
    play(events)
    assert play.sent == sent
    assert (sorted(play.dropped), sorted(play.forgotten)) == (dropped, forgotten)
    assert play.rings > 0  # the reader hears of it
    assert (play.dispatcher.credits.in_flight, play.unrecorded) == (0, len(sent))
    assert not any(bucket.queue for bucket in play.buckets.values())
    assert play.dispatcher.is_busy() == bool(sent)
    play(f"record {len(sent)}", "busy False")


@pytest.mark.parametrize(("name", "sent"), [("free", [0, 1]), ("paused", [0])])
def test_a_hurry_waits_for_a_worker_that_counts(name: str, sent: list[int]) -> None:
    """The request isn't dropped only because its tokens were just being counted."""

    def count(pending: PendingRequest) -> None:
        pending.estimate = Estimate(input_tokens=1, output_cap=0)
        play("hurry, turn, left False")

    play = Play(count=count)
    play("put free 1, turn")
    play.pending[1] = request_of(1, play.buckets[name])
    play.pending[1].estimate = None
    play.dispatcher.put(play.pending[1])
    play.done(0)
    play("turn, left True")
    assert (play.sent, play.forgotten) == (sent, [n for n in (1,) if n not in sent])


def test_what_was_collected_for_a_worker_process_is_settled_after_a_stop() -> None:
    """Requests that wait for a message when a stop comes count as in flight: they end unsent."""
    ends: list[object] = []

    def settle(admitted: AdmittedRequest, attempt: Any) -> None:
        ends.append(attempt.status)
        assert room.dispatcher.done() is None

    def start(admitted: AdmittedRequest) -> None:
        pool.start(admitted)
        if admitted.pending.request.number == 1:
            room.stop.set(ENDED)

    room = Room(ByHand, start=start, flush=lambda: pool.flush())
    options = Options(request_url="http://127.0.0.1:1/v1/embeddings", processes=2)
    pool = WorkerProcesses(options, settle=settle, stop=room.stop, parses_answers=False)
    bucket = bucket_of()
    for number in range(3):
        room.put(number, bucket)
    room.dispatcher.turn()
    assert ends == [AttemptStatus.STOPPED] * 2
    assert room.forgotten == [2]
    room.dispatcher.recorded(2)
    assert not room.dispatcher.is_busy()
    pool.close()


# Faults.


def fault(*arguments: object) -> Any:
    """Do what must not happen."""
    raise ZeroDivisionError(f"a fault, with {len(arguments)} arguments")


@pytest.mark.parametrize("part", ["cost", "start", "activity"])
def test_a_fault_ends_the_run(part: str) -> None:
    """A fault of ours in the dispatcher's thread is told, and nobody waits for what was read."""
    room = Room(**{part: fault})
    with stopped_at_the_end(room):
        slow = full_bucket()
        room.put(0, slow)
        room.put(1, bucket_of())
        room.end()
        assert isinstance(room.dispatcher.error, ZeroDivisionError)
        assert room.stop.cause is room.dispatcher.error
        assert not slow.queue
        assert room.rings > 0
        room.end_what_is_in_flight()


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
    assert (room.dispatcher.credits.in_flight, room.unrecorded) == (1, 1)
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
        assert room.dispatcher.credits.in_flight == bucket.server.in_flight.count == threads
        assert admitted_by(bucket)["requests"] == threads
        room.end_what_is_in_flight()


def test_what_was_tried_and_nobody_sends_again_is_dropped() -> None:
    """At the interpreter's end a request that was tried before counts like the others that were."""
    start = Scarce(1, NEVER)
    room = Room(start=start)
    with stopped_at_the_end(room):
        bucket = bucket_of()
        room.put(0, bucket)
        room.until(lambda: room.dispatcher.credits.in_flight == 1 and room.dispatcher._is_asleep)
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
    assert room.dispatcher.credits.in_flight == 4
    assert room.dispatcher.done() is None
    admitted = room.dispatcher.done()
    assert admitted is not None
    assert admitted.pending.request.number == 4
    assert room.dispatcher.credits.in_flight == 3
    room.dispatcher.turn()
    assert len(start.queued) == 4
    assert room.dispatcher.error is None


def test_where_threads_run_out_nobody_keeps_a_place() -> None:
    """Other runs aren't behind what waits for one of the threads that there are."""
    play = Play(10_000, start=Scarce(1))
    play("put paused 1, turn, places paused 1, put free 3, turn, flying 2, asleep")
    play("places paused 0, places free 0")


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
    play(events)
    assert play.wait_times.overall() == overall
    for name, waits in of_buckets.items():
        assert play.wait_times.of_bucket(play.buckets[name]) == waits


def test_a_wait_that_goes_on_is_seen() -> None:
    """What is waited for now counts up to the moment at which somebody asks."""
    play = Play()
    play("put paused 1, turn, wait 3")
    assert play.wait_times.overall() == {}
    assert play.wait_times.overall(play.clock()) == {"pause": 3.0}


def test_heavy_outcomes_hold_back_what_is_read_and_sent() -> None:
    """While they wait for the writer no more is read or sent; once they are on record, both goes on."""
    play = Play(1, slack=WriterSlack(outcomes=1000, size_bytes=100))
    credits = play.dispatcher.credits
    assert credits.available(all_wait=False) > 0 and not credits.is_full
    credits.skip(40)
    credits.held_bytes, credits.is_heavy = 60, True  # as when a worker is done
    assert credits.available(all_wait=False) == 0 and credits.is_full and credits.waits_for_records
    play.dispatcher.recorded(0, 1)
    assert credits.available(all_wait=False) > 0 and not credits.is_full


def test_heavy_outcomes_in_order_hold_back_what_is_read_alone() -> None:
    """The request that all others wait for may be one that was not sent yet."""
    play = Play(1, slack=WriterSlack(outcomes=1000, size_bytes=100, in_order=True))
    credits = play.dispatcher.credits
    credits.skip(100)
    assert credits.available(all_wait=False) == 0 and not credits.is_full
