"""The way from reading to sending: lines of requests, and the thread that empties them.

The clock of most buckets here stands still, so that what they don't admit at once they don't admit.
"""

from __future__ import annotations

import logging
import math
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
from clocks import FakeClock

from parallel_processor.buckets import Waiting
from parallel_processor.ceiling import Reservation
from parallel_processor.dispatcher import LOOK_AHEAD, Dispatcher
from parallel_processor.exceptions import StopRequested
from parallel_processor.ledger import Ledger
from parallel_processor.limiter import TokenBucket
from parallel_processor.models import Cost, Estimate, Request
from parallel_processor.options import Limits
from parallel_processor.stop import StopSignal

REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails
MB = 1024 * 1024
ESTIMATE = Estimate(input_tokens=1, output_cap=0)
ENDED = StopRequested("enough")


class Serial:
    """An executor that does everything at once, in the thread that asks."""

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do ``work`` now."""
        work(*arguments)


class Scarce:
    """An executor on a system that has only so many threads; what is queued nobody does."""

    def __init__(self, threads: int, message: str = "can't start new thread") -> None:
        self.queued: list[Waiting] = []
        self._threads = threads
        self._message = message

    def submit(self, work: Callable[..., None], waiting: Waiting, place: Reservation) -> None:
        """Queue ``work``, and fail if there is no thread for it."""
        self.queued.append(waiting)
        if len(self.queued) > self._threads:
            raise RuntimeError(self._message)


def activity_of(is_full: bool) -> str:
    """What a run is doing while nobody can be sent."""
    return "max_workers" if is_full else "input"


class Room:
    """A dispatcher with all that it talks to, and what it did.

    ``executor`` is a serial one by default. What was sent stays in flight until a test says
    otherwise.
    """

    def __init__(self, executor: Any = None, *, max_workers: int = 10_000, **parts: Any) -> None:
        self.clock = FakeClock()
        self.stop = StopSignal()
        self.ledger = Ledger()
        self.sent: list[int] = []
        self.places: dict[int, Reservation] = {}
        self.passed: list[int] = []
        self.rings = 0
        self._activity = parts.get("activity", activity_of)
        self._changed = threading.Condition()  # guards what was done
        self.dispatcher = Dispatcher(
            executor or Serial(),
            cost=parts.get("cost", lambda estimate: Cost(estimate.input_tokens)),
            process=parts.get("process", self._process),
            pass_by=parts.get("pass_by", self._pass_by),
            on_room=self._ring,
            activity=self._tell_activity,
            ledger=self.ledger,
            stop=self.stop,
            max_workers=max_workers,
            clock=self.clock,
        )

    def _process(self, waiting: Waiting, place: Reservation) -> None:
        with self._changed:
            self.sent.append(waiting.request.number)
            self.places[waiting.request.number] = place
            self._changed.notify_all()

    def _pass_by(self, waiting: Waiting) -> None:
        with self._changed:
            self.passed.append(waiting.request.number)
            self._changed.notify_all()

    def _tell_activity(self, is_full: bool) -> str:
        told: str = self._activity(is_full)
        with self._changed:
            self._changed.notify_all()
        return told

    def _ring(self) -> None:
        with self._changed:
            self.rings += 1
            self._changed.notify_all()

    def until(self, is_so: Callable[[], bool]) -> None:
        """Return once it is so."""
        with self._changed:
            assert self._changed.wait_for(is_so, REAL_TIMEOUT_S), "this never comes"

    def read(self, number: int, bucket: TokenBucket | None, size_bytes: int = 1) -> None:
        """Put a request in once there is room for it, as a reader does."""
        self.until(self.dispatcher.has_room)
        self.put(number, bucket, size_bytes)

    def put(self, number: int, bucket: TokenBucket | None, size_bytes: int = 1) -> None:
        """Put a request in."""
        flaw = None if bucket is not None else "it has one"
        request = Request(body={}, payload=bytes(size_bytes), number=number, flaw=flaw)
        self.dispatcher.put(Waiting(request=request, estimate=ESTIMATE, bucket=bucket))

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


def bucket_of(requests_per_minute: float = math.inf, clock: Any = None) -> TokenBucket:
    """A bucket whose time stands still; one request, or all of them, goes at once."""
    limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=math.inf)
    return TokenBucket(limits, clock=clock or FakeClock())


# Lines.


def test_a_line_is_first_come_first_served(room: Room) -> None:
    """Whatever lines there are, each is sent in its order, and everything once."""
    buckets = [bucket_of() for _ in range(3)]
    for number in range(300):
        room.read(number, buckets[number % 7 % 3])
    room.dispatcher.close()
    room.end()
    assert sorted(room.sent) == list(range(300))
    for bucket in range(3):
        line = [number for number in room.sent if number % 7 % 3 == bucket]
        assert line == sorted(line)


def test_an_admitted_request_comes_with_its_place(room: Room) -> None:
    """The worker gets the reservation that its bucket admitted."""
    bucket = bucket_of(60)
    room.read(1, bucket)
    room.until(lambda: bool(room.sent))
    assert room.places[1].admitted_at == 1000.0
    assert bucket.usage().admitted["requests"] == 1


def test_a_bucket_that_waits_holds_up_no_other(room: Room) -> None:
    """Behind a request whose model has no capacity the others' go."""
    slow, other, third = bucket_of(60), bucket_of(), bucket_of()
    for number in range(3):
        room.read(number, slow)
    room.read(3, other)
    room.read(4, third)
    room.read(5, other)
    room.until(lambda: len(room.sent) == 4)
    assert sorted(room.sent) == [0, 3, 4, 5]


def test_a_bucket_under_the_same_ceiling_holds_up_no_other(room: Room) -> None:
    """A model whose server asks to wait leaves the ceiling to the others."""
    limits, clock = Limits(), FakeClock()
    slow = TokenBucket(limits, clock=clock)
    other = TokenBucket(limits, clock=clock, ceiling=slow.ceiling)
    slow.pause(300.0)
    for number in range(6):
        room.read(number, (slow, other)[number % 2])
    room.until(lambda: len(room.sent) == 3)
    assert room.sent == [1, 3, 5]


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


def test_lines_go_on_by_themselves() -> None:
    """Time lets the first in line go, without anybody else's doing."""
    with stopped_at_the_end(Room()) as room:
        bucket = bucket_of(60_000, time.monotonic)
        for number in range(600):  # at 1,000 a second, of which 500 go at once
            room.read(number, bucket)
        room.dispatcher.close()
        room.end()
    assert room.sent == list(range(600))


def test_flawed_lines_pass_by(room: Room) -> None:
    """What can't be sent waits for no bucket, and is in flight until it is on record."""
    slow = bucket_of(60)
    for number in range(6):
        room.read(number, slow if number < 3 else None)
    room.until(lambda: len(room.passed) == 3)
    assert room.passed == [3, 4, 5]
    assert room.sent == [0]
    assert room.dispatcher.in_flight == 4


# What bounds it.


def test_no_more_are_read_than_may_be_in_flight(narrow: Room) -> None:
    """Where no bucket holds its line up, nothing is read ahead."""
    bucket = bucket_of()
    for number in range(2):
        narrow.read(number, bucket)
    assert not narrow.dispatcher.has_room()
    narrow.until(lambda: len(narrow.sent) == 2)
    assert not narrow.dispatcher.has_room()


def test_what_is_on_record_makes_room(narrow: Room) -> None:
    """The reader that waits is told, and one more goes for each."""
    bucket = bucket_of()
    for number in range(2):
        narrow.read(number, bucket)
    narrow.until(lambda: len(narrow.sent) == 2)
    assert not narrow.dispatcher.has_room()
    rings = narrow.rings
    narrow.dispatcher.recorded(1)
    assert narrow.rings == rings + 1
    assert narrow.dispatcher.has_room()
    narrow.read(2, bucket)
    narrow.until(lambda: len(narrow.sent) == 3)
    assert not narrow.dispatcher.has_room()


def test_nobody_is_told_who_does_not_wait(room: Room) -> None:
    """A bell for each record would cost more than the record."""
    bucket = bucket_of()
    for number in range(20):
        room.read(number, bucket)
    room.until(lambda: len(room.sent) == 20)
    assert room.dispatcher.has_room()
    rings = room.rings
    room.dispatcher.recorded(20)
    assert room.rings == rings


def test_behind_a_bucket_that_waits_so_many_are_read(narrow: Room) -> None:
    """The look-ahead has an end, and goes on when the line does."""
    slow = bucket_of(60)
    narrow.read(0, slow)
    narrow.until(lambda: narrow.sent == [0])
    for number in range(1, LOOK_AHEAD + 1):
        narrow.read(number, slow)
    assert not narrow.dispatcher.has_room()
    slow.cancel(narrow.places[0])
    narrow.until(lambda: narrow.sent == [0, 1])
    assert not narrow.dispatcher.has_room()  # as many are in flight as may be
    narrow.dispatcher.recorded(1)
    narrow.read(LOOK_AHEAD + 1, slow)
    assert not narrow.dispatcher.has_room()
    assert narrow.sent == [0, 1]


def test_among_what_is_read_ahead_another_buckets_requests_go(narrow: Room) -> None:
    """That is what the look-ahead is for."""
    slow, other = bucket_of(60), bucket_of()
    narrow.read(0, slow)
    for number in range(1, 100):
        narrow.read(number, slow)
    narrow.read(100, other)
    narrow.until(lambda: narrow.sent == [0, 100])
    narrow.dispatcher.recorded(1)
    narrow.read(101, other)
    narrow.until(lambda: narrow.sent == [0, 100, 101])


def test_what_is_read_ahead_has_a_size(narrow: Room) -> None:
    """Sixteen megabytes that wait are enough, however few requests they are."""
    slow = bucket_of(60)
    narrow.read(0, slow)
    narrow.until(lambda: narrow.sent == [0])
    narrow.read(1, slow, 16 * MB - 1)
    narrow.read(2, slow, 1)
    assert not narrow.dispatcher.has_room()
    slow.cancel(narrow.places[0])
    narrow.until(lambda: narrow.sent == [0, 1])
    narrow.dispatcher.recorded(1)
    narrow.read(3, slow)


def test_one_request_may_have_any_size(narrow: Room) -> None:
    """What is larger than all that may wait is read and sent like any other."""
    bucket = bucket_of()
    for number in range(3):
        narrow.read(number, bucket, 17 * MB)
        narrow.until(lambda number=number: number in narrow.sent)
        narrow.dispatcher.recorded(1)


def test_what_waits_goes_when_others_are_on_record(narrow: Room) -> None:
    """A line that was held up goes on where as many are in flight as may be, one for each record."""
    bucket = bucket_of()
    bucket.pause(1e6)
    for number in range(6):
        narrow.read(number, bucket)
    bucket._clock.now_s += 2e6  # type: ignore[attr-defined]
    narrow.read(6, bucket)
    narrow.until(lambda: narrow.sent == [0, 1])
    for number in range(2, 7):
        narrow.dispatcher.recorded(1)
        narrow.until(lambda number=number: narrow.sent[-1] == number)
        assert narrow.dispatcher.in_flight == 2


def test_who_waits_for_a_worker_keeps_no_place(narrow: Room) -> None:
    """Where as many are in flight as may be, retries aren't behind what can't be sent anyway."""
    bucket = bucket_of(6000)
    bucket.pause(1e6)
    for number in range(6):
        narrow.read(number, bucket)
    bucket._clock.now_s += 2e6  # type: ignore[attr-defined]
    narrow.read(6, bucket)
    narrow.until(lambda: narrow.sent == [0, 1])
    narrow.until(lambda: not bucket.queue)
    assert bucket.enqueue(Reservation(1.0))


def test_where_workers_are_short_no_line_waits_for_all_of_another() -> None:
    """A free worker takes what came first, or each line's first in turn."""
    with stopped_at_the_end(Room(max_workers=1)) as room:
        clock = FakeClock()
        long, short = bucket_of(clock=clock), bucket_of(clock=clock)
        for bucket in (long, short):
            bucket.pause(1e6)
        room.read(0, long)
        room.read(1, short)
        for number in range(2, 50):
            room.read(number, long)
        clock.now_s += 2e6
        room.read(50, long)
        for count in range(1, 52):
            room.until(lambda count=count: len(room.sent) == count)
            room.dispatcher.recorded(1)
    assert room.sent.index(1) <= 2


# Threads.


class Load:
    """Requests for many buckets, sent by many threads, with an eye on all bounds."""

    def __init__(self, max_workers: int, buckets: int, seed: int, clock: Any) -> None:
        self.max_workers = max_workers
        self.random = random.Random(seed)
        self.buckets = [bucket_of(60_000, clock) for _ in range(buckets)] + [bucket_of()]
        self.lock = threading.Lock()  # guards what follows
        self.in_flight = self.peak = 0
        self.done: list[int] = []
        self.lines: defaultdict[TokenBucket, list[tuple[int, int]]] = defaultdict(list)
        self.executor = ThreadPoolExecutor(max_workers)
        self.room = Room(self.executor, max_workers=max_workers, process=self.process)

    def process(self, waiting: Waiting, place: Reservation) -> None:
        """One attempt."""
        assert waiting.bucket is not None
        with self.lock:
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self.lines[waiting.bucket].append((place.ticket, waiting.request.number))
        waiting.bucket.ended(place)
        with self.lock:
            self.in_flight -= 1
            self.done.append(waiting.request.number)
        self.room.dispatcher.recorded(1)

    def feed(self, count: int) -> None:
        """Read so many requests; fewer if a stop comes."""
        dispatcher = self.room.dispatcher
        for number in range(count):
            self.room.until(lambda: dispatcher.has_room() or self.room.stop.is_set())
            if self.room.stop.is_set():
                return
            self.room.put(number, self.random.choice(self.buckets))


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("max_workers", [1, 2, 7, 64])
def test_everything_is_sent_once_by_no_more_than_so_many(max_workers: int) -> None:
    """With real threads and real limits: nothing lost, nothing twice, in order, within bounds."""
    load = Load(max_workers, buckets=3, seed=max_workers, clock=time.monotonic)
    with stopped_at_the_end(load.room), load.executor:
        load.feed(2000)
        load.room.dispatcher.close()
        load.room.end()
        load.room.until(lambda: not load.room.dispatcher.is_busy())
        assert sorted(load.done) == list(range(2000))
    assert load.room.dispatcher.error is None
    assert load.peak <= max_workers
    assert load.room.dispatcher.in_flight == 0
    for line in load.lines.values():
        in_order = [number for _, number in sorted(line)]
        assert in_order == sorted(in_order)
    assert not any(bucket.queue for bucket in load.buckets)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("seed", range(10))
def test_a_stop_at_any_time_ends_it(seed: int) -> None:
    """What was sent comes to its end, the rest is dropped, and nobody waits for it."""
    load = Load(8, buckets=3, seed=seed, clock=time.monotonic)
    at = random.Random(seed).randrange(1, 1000)

    def stop() -> None:
        load.room.until(lambda: len(load.done) >= at)
        load.room.stop.set(ENDED)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with stopped_at_the_end(load.room), load.executor:
        load.feed(2000)
        load.room.end()
        load.room.until(lambda: not load.room.dispatcher.is_busy())
    stopper.join(REAL_TIMEOUT_S)
    assert load.room.dispatcher.in_flight == 0
    assert len(set(load.done)) == len(load.done)
    assert not any(bucket.queue for bucket in load.buckets)


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


# How it ends.


def test_a_dispatcher_without_requests_ends_at_once() -> None:
    """There is no thread to wait for."""
    room = Room()
    assert not room.dispatcher.is_busy()
    room.dispatcher.close()
    room.end()
    assert not room.dispatcher.is_busy()


def test_closing_waits_for_everybody(room: Room) -> None:
    """The thread goes on until the last one in line is sent, and then ends."""
    slow = bucket_of(60)
    for number in range(3):
        room.read(number, slow)
    room.dispatcher.close()
    for number in range(2):
        room.until(lambda number=number: number in room.places)
        assert room.dispatcher.is_busy()
        slow.cancel(room.places[number])
    room.end()
    assert room.sent == [0, 1, 2]
    assert room.dispatcher.is_busy()  # until they are on record
    room.dispatcher.recorded(3)
    assert not room.dispatcher.is_busy()


def test_the_last_record_is_told(room: Room) -> None:
    """Who asked whether anything is under way hears when that changes."""
    room.read(0, bucket_of())
    room.dispatcher.close()
    room.end()
    assert room.dispatcher.is_busy()
    rings = room.rings
    room.dispatcher.recorded(1)
    assert room.rings == rings + 1


def test_in_a_hurry_what_may_go_goes(room: Room) -> None:
    """What was read is sent if its bucket admits it now; the rest is dropped."""
    slow, paused, free = bucket_of(60), bucket_of(), bucket_of()
    paused.pause(300.0)
    for number in range(40):
        room.put(number, (slow, paused, free, None)[number % 4])
    room.dispatcher.close(hurry=True)
    room.end()
    assert sorted(room.sent) == [0, *range(2, 40, 4)]
    assert room.passed == list(range(3, 40, 4))
    assert not slow.queue
    assert not paused.queue
    room.dispatcher.recorded(21)
    assert not room.dispatcher.is_busy()


def test_in_a_hurry_no_more_go_than_workers_there_are(narrow: Room) -> None:
    """What would have to wait for a worker is dropped as well."""
    bucket = bucket_of()
    for number in range(6):
        narrow.put(number, bucket)
    narrow.dispatcher.close(hurry=True)
    narrow.end()
    assert narrow.sent == [0, 1]


def test_who_waits_already_is_dropped_in_a_hurry(room: Room) -> None:
    """A thread that waits for a bucket hears of the hurry."""
    slow = bucket_of(60)
    for number in range(3):
        room.read(number, slow)
    room.until(lambda: room.sent == [0])
    room.dispatcher.close(hurry=True)
    room.end()
    room.dispatcher.recorded(1)
    assert room.sent == [0]
    assert not room.dispatcher.is_busy()
    assert not slow.queue


def test_a_stop_drops_what_waits_and_wakes_the_reader(narrow: Room) -> None:
    """Only what is in flight is left; the buckets keep no place for the others."""
    slow = bucket_of(60)
    for number in range(LOOK_AHEAD):
        narrow.read(number, slow)
    narrow.until(lambda: narrow.sent == [0])
    narrow.read(LOOK_AHEAD, slow)
    assert not narrow.dispatcher.has_room()
    rings = narrow.rings
    narrow.stop.set(ENDED)
    narrow.until(lambda: narrow.rings > rings)
    narrow.end()
    assert narrow.sent == [0]
    assert not slow.queue
    assert slow.usage().admitted["requests"] == 1
    assert narrow.dispatcher.in_flight == 1
    assert narrow.dispatcher.is_busy()
    narrow.dispatcher.recorded(1)
    assert not narrow.dispatcher.is_busy()


def test_after_a_stop_nothing_is_sent(room: Room) -> None:
    """A request that comes when the run is over already starts nothing."""
    room.stop.set(ENDED)
    room.put(0, bucket_of())
    room.end()
    assert room.sent == []
    assert not room.dispatcher.is_busy()


@pytest.mark.parametrize("number", [0, 1])
def test_what_comes_after_the_end_is_dropped(room: Room, number: int) -> None:
    """A reader that was amid a slow line when the stop came doesn't wait for it for ever."""
    room.put(number, bucket_of())
    room.until(lambda: len(room.sent) == 1)
    room.dispatcher.recorded(1)
    room.stop.set(ENDED)
    room.end()
    room.put(number + 1, (bucket_of(), None)[number])
    assert not room.dispatcher.is_busy()


# Faults.


def fault(*arguments: object) -> Any:
    """Do what must not happen."""
    raise ZeroDivisionError(f"a fault, with {len(arguments)} arguments")


@pytest.mark.parametrize(
    ("part", "bucket"),
    [
        *(("cost", bucket_of()), ("process", bucket_of())),
        *(("pass_by", None), ("activity", bucket_of())),
    ],
)
def test_a_fault_ends_the_run(part: str, bucket: TokenBucket | None) -> None:
    """A fault of ours in the dispatcher's thread is told, and nobody waits for what was read."""
    room = Room(**{part: fault})
    with stopped_at_the_end(room):
        slow = bucket_of(60)
        slow.enqueue(Reservation(1.0))
        room.put(0, slow)
        room.put(1, bucket)
        room.end()
        assert isinstance(room.dispatcher.error, ZeroDivisionError)
        assert room.stop.cause is room.dispatcher.error
        assert not slow.queue
        assert room.rings > 0
        room.dispatcher.recorded(room.dispatcher.in_flight)
        assert not room.dispatcher.is_busy()


def test_an_executor_that_takes_nothing_ends_the_run() -> None:
    """At the interpreter's end nothing can be sent; what was taken isn't in flight."""
    executor = Scarce(1, "cannot schedule new futures after shutdown")
    room = Room(executor)
    with stopped_at_the_end(room):
        bucket = bucket_of()
        for number in range(5):
            room.put(number, bucket)
        room.end()
        assert isinstance(room.dispatcher.error, RuntimeError)
        assert room.stop.cause is room.dispatcher.error
        assert room.dispatcher.in_flight == 1
        room.dispatcher.recorded(1)
        assert not room.dispatcher.is_busy()


def test_what_the_executor_does_not_take_is_not_in_flight_for_its_bucket() -> None:
    """The bucket outlives the run, and must not count what was never sent."""
    room = Room(Scarce(0, "cannot schedule new futures after shutdown"))
    with stopped_at_the_end(room):
        bucket = bucket_of(60)
        room.put(0, bucket)
        room.end()
        assert bucket.usage().admitted["requests"] == 0


def test_without_any_thread_the_run_ends() -> None:
    """Where the system has none, nobody would ever do what is queued."""
    room = Room(Scarce(0))
    with stopped_at_the_end(room):
        room.put(0, bucket_of())
        room.end()
        assert "can't start new thread" in str(room.dispatcher.error)
        assert not room.dispatcher.is_busy()


def test_where_threads_run_out_fewer_are_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    """What couldn't get a thread is queued for those that there are, and no more are taken."""
    executor = Scarce(3)
    room = Room(executor)
    with stopped_at_the_end(room), caplog.at_level(logging.WARNING, logger="parallel_processor"):
        bucket = bucket_of()
        for number in range(8):
            room.put(number, bucket)
        room.until(lambda: bool(caplog.messages))
        executor._threads = 100  # those that there are take it
        room.dispatcher.recorded(1)
        room.dispatcher.recorded(1)
        room.dispatcher.close(hurry=True)
        room.end()
    assert caplog.messages == ["only 3 requests can be in flight: can't start new thread"]
    assert [waiting.request.number for waiting in executor.queued] == [0, 1, 2, 3, 4]
    assert room.dispatcher.error is None
    assert room.dispatcher.in_flight == 3


# What it waits for.


def test_each_wait_has_its_cause() -> None:
    """A bucket that waits says for what; those without requests have what the run waits for."""
    told: list[bool] = []

    def activity(is_full: bool) -> str:
        told.append(is_full)
        room.clock.now_s += 1.0  # that is how long the wait takes
        return activity_of(is_full)

    room = Room(activity=activity)
    with stopped_at_the_end(room):
        idle, paused, slow = bucket_of(), bucket_of(), bucket_of(60)
        paused.pause(300.0)
        slow.enqueue(Reservation(1.0))
        room.read(0, idle)
        room.until(lambda: room.sent == [0])
        room.read(1, paused)
        room.read(2, slow)
        room.read(3, idle)
        room.until(lambda: room.sent == [0, 3])
    assert told
    assert not any(told)
    assert set(room.ledger.of_bucket(paused)) == {"pause"}
    assert set(room.ledger.of_bucket(slow)) == {"requests"}
    assert set(room.ledger.of_bucket(idle)) == {"input"}
    assert set(room.ledger.overall()) <= {"input", "pause", "requests"}
    assert sum(room.ledger.overall().values()) == len(told)


def test_a_wait_for_workers_is_told_as_that() -> None:
    """Where as many are in flight as may be, no bucket is to blame."""

    def activity(is_full: bool) -> str:
        room.clock.now_s += 1.0
        return activity_of(is_full)

    room = Room(max_workers=2, activity=activity)
    with stopped_at_the_end(room):
        bucket, idle = bucket_of(), bucket_of()
        room.read(0, bucket)
        room.read(1, idle)
        room.until(lambda: len(room.sent) == 2)
        before = room.ledger.of_bucket(idle).get("max_workers", 0.0)
        room.put(2, bucket)
        room.until(lambda: room.clock.now_s >= 1003.0)
    assert room.ledger.of_bucket(idle)["max_workers"] > before
    assert set(room.ledger.of_bucket(bucket)) <= {"max_workers", "input"}
