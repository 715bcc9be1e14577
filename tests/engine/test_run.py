"""One run: feeding, ending and stopping, with sessions that answer by themselves."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer, Visit
from runs import URL, bodies, numbers, ok, run_with
from services import NO_LIMITS, in_background, threads

from parallel_processor.engine.run import Run
from parallel_processor.exceptions import RunStoppedError, StopRequested, WorkerProcessError
from parallel_processor.files.formats import made_request, parse_line
from parallel_processor.files.writer import held_bytes
from parallel_processor.models import Estimate, Outcome, Request
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.tokens.counter import TokenCounter
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.routes import Routes

ONE_A_MINUTE = Limits(requests_per_minute=1.0, tokens_per_minute=math.inf)


class Gate:
    """A server that holds every request until it is opened; ``entered`` counts them."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._entered = threading.Semaphore(0)

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        self._entered.release()
        self.opened.wait(60)  # a failing test must end, too
        return ok(body)

    def wait_for(self, count: int) -> None:
        """Return once so many requests more are held."""
        for _ in range(count):
            assert self._entered.acquire(timeout=20)


class Silent(Gate):
    """A script for a server that answers nobody."""

    def __call__(self, visit: Visit) -> None:
        visit.read()
        self._entered.release()
        visit.wait_for_the_end()


class TickingClock:
    """A clock that moves on by a second whenever it is read, once it ``ticks``."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ticks = False

    def __call__(self) -> float:
        self.now_s += self.ticks
        return self.now_s


def real_run(server: RawServer, **settings: Any) -> tuple[Run, TickingClock]:
    """A run that goes over the network, and its clock."""
    parts = {name: settings.pop(name, None) for name in ("make_sink", "on_cancel")}
    options = Options(request_url=server.url, limits=NO_LIMITS, **settings)
    clock, buckets, estimator = TickingClock(), TokenBuckets(options), CostEstimator(options)
    return Run(
        options, routes=Routes(options, buckets), estimator=estimator, clock=clock, **parts
    ), clock


class Writer:
    """A sink that records only what it is told to; ``unwritten`` has the rest."""

    def __init__(self, *, is_immediate: bool = False) -> None:
        self.unwritten: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.written: list[Outcome] = []
        self._is_immediate = is_immediate

    def make_sink(self, recorded: Callable[[list[Outcome], bool, int], None], stop: object) -> Any:
        """What a run calls."""
        self._recorded = recorded
        return self._put

    def _put(self, outcome: Outcome) -> None:
        if self._is_immediate:
            self.write([outcome])
        else:
            self.unwritten.put(outcome)

    def write(self, outcomes: list[Outcome]) -> None:
        """These are on record."""
        self.written += outcomes
        self._recorded(outcomes, True, sum(map(held_bytes, outcomes)))

    def take(self, count: int) -> list[Outcome]:
        """The next outcomes that come, so many."""
        return [self.unwritten.get(timeout=20) for _ in range(count)]


def call_at_clear(waker: Any, call: Callable[[], None]) -> None:
    """Call something in the moment between a thread's look at the stop and its wait."""
    clear = waker.clear

    def clear_and_call() -> None:
        call()
        clear()

    waker.clear = clear_and_call


# By itself


@pytest.mark.parametrize("max_workers", [1, 3, 50])
def test_every_request_has_one_outcome(max_workers: int) -> None:
    """All are answered once, and threads and credits are back at the end."""
    run = run_with(ok, max_workers=max_workers)
    outcomes = list(run.outcomes(bodies(200)))
    assert numbers(outcomes) == list(range(1, 201))
    assert all(o.response["answer"] == o.request.number for o in outcomes)
    assert run.stop_cause is None
    assert run.counters.counts().in_flight == 0
    assert threads() == []


def test_no_input_is_no_work() -> None:
    """An empty input ends at once, without a thread."""
    run = run_with(ok)
    assert list(run.outcomes([])) == []
    assert run.counters.summary(1.0).attempts == 0


def test_a_flawed_request_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """A line that can't be sent becomes a failure that names it, beside the others."""
    caplog.set_level(logging.ERROR)
    sent: list[int] = []

    def note(body: dict[str, Any]) -> tuple[int, Any]:
        sent.append(body["n"])
        return ok(body)

    requests_ = [*bodies(2), parse_line(b"{not json", 3, URL), made_request({"n": 4}, 4)]
    outcomes = {o.request.number: o for o in run_with(note).outcomes(requests_)}
    assert sorted(sent) == [1, 2, 4]
    assert [number for number, outcome in outcomes.items() if not outcome.ok] == [3]
    assert (outcomes[3].attempts, outcomes[3].error_kind) == (0, "invalid request")
    assert caplog.messages == [outcomes[3].error]
    assert "line 3: not JSON" in caplog.text


def test_only_flawed_requests_end_too() -> None:
    """A file without one good line has as many failures, within the same bounds, and no request."""
    invalid = (parse_line(b"nonsense", number, URL) for number in range(1, 101))
    run = run_with(ok, max_workers=3)
    assert numbers(run.outcomes(invalid)) == list(range(1, 101))
    assert run.counters.summary(1.0).attempts == 0


def test_flawed_requests_need_no_place_in_the_bucket() -> None:
    """They aren't held by a limit that nothing else passes."""
    invalid = [parse_line(b"nonsense", number, URL) for number in range(1, 11)]
    run = run_with(ok, ONE_A_MINUTE)
    assert len(list(run.outcomes([*bodies(1), *invalid]))) == 11


def test_a_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """What finally failed is one line at level 40, with the request's number."""
    caplog.set_level(logging.ERROR)
    run = run_with(lambda body: (400, {"error": {"message": "bad"}}))
    list(run.outcomes(bodies(1)))
    assert [(entry.levelno, entry.getMessage()) for entry in caplog.records] == [
        (40, "request 1 failed: HTTP 400: bad")
    ]


def test_an_outcome_is_yielded_while_the_reader_waits_for_capacity() -> None:
    """A limit that admits nothing more doesn't hold back what is answered."""
    run = run_with(ok, ONE_A_MINUTE)
    outcomes = run.outcomes(bodies(1000))
    assert next(outcomes).request.number == 1
    outcomes.close()
    assert threads() == []


def test_an_outcome_is_yielded_while_the_reader_waits_for_credits() -> None:
    """With all workers busy the first to end is yielded at once."""
    gate = Gate()

    def one_is_quick(body: dict[str, Any]) -> tuple[int, Any]:
        return ok(body) if body["n"] == 2 else gate.answer(body)

    outcomes = run_with(one_is_quick, max_workers=2).outcomes(bodies(1000))
    assert next(outcomes).request.number == 2
    gate.opened.set()
    outcomes.close()


def test_the_input_is_read_only_as_far_as_needed() -> None:
    """Of 100,000 requests no more are read than twice the workers ahead of what the consumer took."""
    position = 0

    def source() -> Iterator[Request]:
        nonlocal position
        for request in bodies(100_000):
            position += 1
            yield request

    outcomes = run_with(ok, max_workers=10).outcomes(source())
    for taken in range(1, 301):
        next(outcomes)
        assert position <= taken + 20
    outcomes.close()
    assert position <= 321


def test_what_is_not_on_record_bounds_the_reading() -> None:
    """With a sink, a disk that takes nothing stops the reading, and what it takes lets it go on."""
    writer = Writer()
    run = run_with(ok, max_workers=5, make_sink=writer.make_sink)
    read: list[int] = []

    def source() -> Iterator[Request]:
        for request in bodies(400):
            read.append(request.number)
            yield request

    join = in_background(lambda: list(run.outcomes(source())))
    most = 5 + 5 + 256  # in flight, ahead of them, and for the writer to put together
    kept = writer.take(most - 2)  # two are too few to wake up for
    for reservation in range(0, 100, 5):
        assert len(read) <= most + reservation
        writer.write(kept[reservation : reservation + 5])
        kept += writer.take(5)
    writer.write(kept[100:])
    writer.write(writer.take(400 - len(kept)))
    join()
    assert numbers(writer.written) == list(range(1, 401))


def test_threads_are_made_for_requests_in_flight_only() -> None:
    """With many workers allowed, requests that follow each other share a thread or two."""
    most = 0

    def count(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal most
        most = max(most, len(threads()))
        return ok(body)

    outcomes = run_with(count, max_workers=1000).outcomes(bodies(1_000_000))
    for _ in range(300):
        next(outcomes)
    outcomes.close()
    assert most < 100


# Ends


def test_a_consumer_that_leaves_ends_the_run() -> None:
    """Closing the iterator gives up what is under way: no thread is left, and nothing waited for."""
    silent = Silent()
    with RawServer(silent) as server:
        run, _ = real_run(server, max_workers=4, drain_s=1e6)
        invalid = parse_line(b"nonsense", 1, URL)
        outcomes = run.outcomes(itertools.chain(bodies(3), [invalid], bodies(100)))
        assert next(outcomes).request is invalid
        silent.wait_for(3)
        assert run.counters.counts().in_flight == 4
        in_background(outcomes.close)()
    assert threads() == []


def test_a_closed_iterator_waits_for_no_outcome_that_was_taken() -> None:
    """The outcome in the consumer's hands isn't waited for."""
    run = run_with(ok, max_workers=4, drain_s=1e6)
    outcomes = run.outcomes(bodies(100))
    next(outcomes)
    in_background(outcomes.close)()
    assert threads() == []


class Broken(Exception):
    """What the input raises in these tests."""


def failing_after(
    count: int, error: BaseException, before: Callable[[], None] = lambda: None
) -> Iterator[Request]:
    """An input that breaks after so many requests, and after ``before``."""
    yield from bodies(count)
    before()
    raise error


def test_an_exception_of_the_input_comes_after_what_is_under_way() -> None:
    """What was sent before is yielded, then the exception is raised as it was."""
    gate = Gate()
    run = run_with(gate.answer, max_workers=10)
    taken: list[Outcome] = []
    source = failing_after(5, Broken("line 6"))
    join = in_background(lambda: taken.extend(run.outcomes(source)))
    gate.wait_for(5)
    gate.opened.set()
    with pytest.raises(Broken, match="line 6"):
        join()
    assert numbers(taken) == [1, 2, 3, 4, 5]
    assert threads() == []


def test_what_could_go_before_an_exception_is_sent_though_its_thread_begins_late() -> None:
    """Whether a request's thread began before the exception is chance; that it is sent isn't."""
    run = run_with(ok, max_workers=10)
    held: list[Any] = []
    start, wait = run._pool.start, run.waker.wait

    def wait_and_start(seconds: float | None = None) -> bool:
        while held:
            start(held.pop())
        return wait(seconds)

    run._pool.start, run.waker.wait = held.append, wait_and_start  # type: ignore[method-assign]
    taken: list[Outcome] = []
    source = failing_after(5, Broken("line 6"))
    with pytest.raises(Broken, match="line 6"):
        in_background(lambda: taken.extend(run.outcomes(source)))()
    assert numbers(taken) == [1, 2, 3, 4, 5]
    assert isinstance(run.stop_cause, Broken)
    assert threads() == []


@pytest.mark.parametrize("error", [Broken("x"), KeyboardInterrupt()])
def test_what_is_under_way_is_recorded_before_an_exception_leaves(error: BaseException) -> None:
    """With a sink, answers to what was sent are kept though the reader was interrupted."""
    gate = Gate()
    writer = Writer(is_immediate=True)
    run = run_with(gate.answer, max_workers=10, make_sink=writer.make_sink)

    def let_go() -> None:
        gate.wait_for(5)
        gate.opened.set()

    join = in_background(lambda: list(run.outcomes(failing_after(5, error, let_go))))
    with pytest.raises(type(error)):
        join()
    assert numbers(writer.written) == [1, 2, 3, 4, 5]
    assert threads() == []


def test_a_fault_of_ours_ends_the_run_with_it() -> None:
    """An unexpected exception in a worker doesn't hang the run: it is its end."""

    def faulty(body: dict[str, Any]) -> tuple[int, Any]:
        if body["n"] == 3:
            raise ZeroDivisionError("a bug")
        return ok(body)

    run = run_with(faulty, max_workers=2)
    outcomes: list[Outcome] = []
    in_background(lambda: outcomes.extend(run.outcomes(bodies(1000))))()
    assert isinstance(run.stop_cause, ZeroDivisionError)
    assert all(outcome.ok for outcome in outcomes)
    assert threads() == []


def test_a_fault_in_the_cost_ends_the_run_with_it() -> None:
    """An exception while a request's tokens are counted, by whatever thread, is the run's end."""
    run = run_with(ok)
    run._estimator.estimate = lambda request: Estimate(1 // (request.number - 3))
    with contextlib.suppress(ZeroDivisionError):  # raised here unless a worker counted
        list(run.outcomes(bodies(10)))
    assert isinstance(run.stop_cause, ZeroDivisionError)
    assert threads() == []


def test_a_fatal_answer_lets_the_rest_end() -> None:
    """What was under way is yielded, nothing more is sent, and the cause is the server's."""
    gate = Gate()
    sent: list[int] = []

    def first_is_fatal(body: dict[str, Any]) -> tuple[int, Any]:
        sent.append(body["n"])
        if body["n"] > 1:
            return gate.answer(body)
        gate.wait_for(3)
        return 401, {"error": {"message": "wrong key", "code": "invalid_api_key"}}

    run = run_with(first_is_fatal, max_workers=4, drain_s=0.0)
    join = in_background(lambda: list(run.outcomes(bodies(1000))))
    assert run._stop.wait(20)
    gate.opened.set()
    taken = join()
    assert isinstance(run.stop_cause, RunStoppedError)
    assert numbers(taken) == [2, 3, 4]
    assert sorted(sent) == [1, 2, 3, 4]


# Stops from another thread


def test_a_stop_ends_the_wait_for_capacity() -> None:
    """A reader that waits a minute for the bucket is freed, and its place given back."""
    run = run_with(ok, ONE_A_MINUTE)
    got: list[Outcome] = []
    first = threading.Event()

    def consume() -> None:
        for outcome in run.outcomes(bodies(10)):
            got.append(outcome)
            first.set()

    join = in_background(consume)
    assert first.wait(20)
    run.stop(StopRequested("enough"))
    join()
    assert numbers(got) == [1]
    assert run._lanes.routes.buckets.usage().waiting_for == ""
    assert str(run.stop_cause) == "enough"


def test_a_stop_ends_the_wait_for_credits() -> None:
    """A reader whose workers are all busy reads nothing more, and takes what they bring."""
    gate = Gate()
    run = run_with(gate.answer, max_workers=3)
    join = in_background(lambda: list(run.outcomes(bodies(10))))
    gate.wait_for(3)
    run.stop(StopRequested("enough"))
    gate.opened.set()
    got = join()
    assert numbers(got) == [1, 2, 3]


@pytest.mark.parametrize("has_sink", [False, True])
def test_a_stop_gives_the_server_drain_s_once(has_sink: bool) -> None:
    """Answers under way are waited for as long as ``drain_s`` says, and are cancelled then."""
    silent = Silent()
    with RawServer(silent) as server:
        cancelled_at_s: list[float] = []
        run, clock = real_run(
            server,
            drain_s=100.0,
            make_sink=Writer(is_immediate=True).make_sink if has_sink else None,
            on_cancel=lambda: cancelled_at_s.append(clock.now_s),
        )
        join = in_background(lambda: list(run.outcomes(bodies(2))))
        silent.wait_for(2)
        clock.ticks = True
        run.stop(StopRequested("enough"))
        while not cancelled_at_s:
            run.waker.set()
            server.closing.wait(0.001)
        join()
    assert 100.0 <= cancelled_at_s[0] < 150.0
    assert threads() == []


def test_a_cancel_ends_everything_at_once() -> None:
    """Exchanges under way are given up, whoever waits is freed, and no outcome is made up."""
    silent = Silent()
    with RawServer(silent) as server:
        cancels: list[int] = []
        run, _ = real_run(server, drain_s=1e6, max_workers=3, on_cancel=lambda: cancels.append(1))
        join = in_background(lambda: list(run.outcomes(bodies(10))))
        silent.wait_for(3)
        run.cancel(StopRequested("now"))
        got = join()
    assert got == []
    assert cancels == [1]
    assert run.counters.summary(1.0).unanswered == 3
    assert threads() == []


def test_no_stop_is_missed_on_the_way_to_the_bucket() -> None:
    """A stop between the reader's look at it and its wait for capacity isn't forgotten."""
    run = run_with(ok, ONE_A_MINUTE)

    def stop() -> None:
        if run.counters.counts().read == 3 and run.stop_cause is None:
            while not run._lanes.routes.buckets.usage().waiting_for:
                threading.Event().wait(0.001)
            run.stop(StopRequested("just now"))

    call_at_clear(run.waker, stop)
    in_background(lambda: list(run.outcomes(bodies(3))))()
    assert str(run.stop_cause) == "just now"


def test_no_stop_is_missed_by_the_dispatcher() -> None:
    """A stop between the dispatcher's look at it and its wait for a bucket isn't forgotten."""
    run = run_with(ok, ONE_A_MINUTE)

    def source() -> Iterator[Request]:
        yield from bodies(2)
        while not run._lanes.routes.buckets.usage().waiting_for and run.stop_cause is None:
            run.waker.wait(0.001)
        yield made_request({"n": 3, "model": "another"}, 3)  # which the thread has to look at

    def stop() -> None:
        if run._lanes.routes.buckets.usage().waiting_for:
            run.stop(StopRequested("just now"))

    call_at_clear(run._dispatcher.waker, stop)
    in_background(lambda: list(run.outcomes(source())))()
    assert str(run.stop_cause) == "just now"


def test_no_stop_is_missed_on_the_way_to_a_credit() -> None:
    """A stop between the reader's look at it and its wait for a worker isn't forgotten."""
    silent = Silent()
    with RawServer(silent) as server:
        run, _ = real_run(server, drain_s=0.0, max_workers=1)

        def stop() -> None:
            if run.counters.counts().read and run.stop_cause is None:
                silent.wait_for(1)
                run.stop(StopRequested("just now"))

        call_at_clear(run.waker, stop)
        in_background(lambda: list(run.outcomes(bodies(3))))()
    assert str(run.stop_cause) == "just now"


def test_a_stop_before_the_start_sends_nothing() -> None:
    """A run that was stopped while its files were still being read ends at once."""
    run = run_with(ok)
    run.stop(StopRequested("early"))
    assert list(run.outcomes(bodies(10))) == []
    assert run.counters.summary(1.0).attempts == 0


# When the system has no more to give


def test_without_more_threads_it_goes_on_with_those_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A system that refuses a thread lowers what is in flight, and every request is answered."""
    caplog.set_level(logging.WARNING)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        working = [name for name in threads() if "worker" in name]
        if thread.name.startswith("parallel-processor-worker") and len(working) >= 3:
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    refused = threading.Event()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    gate = Gate()
    run = run_with(gate.answer, max_workers=50)
    join = in_background(lambda: list(run.outcomes(bodies(100))))
    gate.wait_for(3)
    assert refused.wait(20)
    while not caplog.text:
        refused.wait(0.001)
    gate.opened.set()
    got = join()
    assert numbers(got) == list(range(1, 101))
    assert "only 3 requests can be in flight: can't start new thread" in caplog.text


def test_without_any_thread_the_run_ends_with_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If not one worker can be started, the error is raised, nothing waits for it, and nothing was sent."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel-processor-worker"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run = run_with(ok, drain_s=1e6)
    join = in_background(lambda: list(run.outcomes(bodies(10))))
    with pytest.raises(WorkerProcessError, match="new thread, so nothing was sent"):
        join()
    assert run.counters.counts().attempts == 0


MAIN_ENDS = """
import sys, threading
sys.path[:0] = {paths!r}
from test_run import bodies, ok, run_with
ended = threading.Event()

def slow_input():
    yield from bodies(3)
    threading.main_thread().join()
    yield from bodies(3)

def consume():
    try:
        print(len(list(run_with(ok).outcomes(slow_input()))))
    except RuntimeError as error:
        print("RuntimeError:", error)

threading.Thread(target=consume).start()
"""


def test_a_run_that_outlives_the_main_thread_ends_with_an_error() -> None:
    """The interpreter takes no more work when it ends; a run in a thread doesn't hang it."""
    script = MAIN_ENDS.format(
        paths=[str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("RuntimeError: can", "6"))  # not schedule, or register


# What a request costs.


@pytest.mark.parametrize(
    ("limits", "counted"),
    [(NO_LIMITS, 100), (Limits(requests_per_minute=6e6, tokens_per_minute=math.inf), 100)],
)
def test_prompts_are_not_counted_while_nothing_limits_tokens(
    limits: Limits, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a hundred were, and the server has answered without a word of such a limit."""
    calls = spied_counts(monkeypatch)
    run = run_with(ok, limits, max_workers=4)
    assert len(list(run.outcomes(bodies(500)))) == 500
    assert counted <= len(calls) <= counted + 20
    reserved = run.counters.counts().reserved_tokens
    assert reserved == pytest.approx(5 * sum(calls) * 100 / len(calls), rel=0.2)


def test_every_prompt_is_counted_under_a_limit_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """However high it is."""
    calls = spied_counts(monkeypatch)
    run = run_with(ok, Limits(requests_per_minute=math.inf, tokens_per_minute=1e12), max_workers=4)
    assert len(list(run.outcomes(bodies(300)))) == 300
    assert len(calls) == 300


def spied_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each prompt that is counted from now on."""
    found: list[int] = []
    count = TokenCounter.input_tokens

    def spy(self: TokenCounter, *args: Any) -> int:
        found.append(count(self, *args))
        return found[-1]

    monkeypatch.setattr(TokenCounter, "input_tokens", spy)
    return found


class ForeignLock:
    """A lock that a certain thread must not take."""

    def __init__(self, thread: threading.Thread, taken: list[str]) -> None:
        self._thread, self._taken, self._lock = thread, taken, threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        if threading.current_thread() is self._thread:
            self._taken.append("".join(traceback.format_stack(limit=3)))

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_the_callers_thread_takes_no_lock_while_requests_go_through() -> None:
    """An interrupt just after a lock was taken would leave it taken for ever (CPython's gh-148874)."""
    taken: list[str] = []
    run = run_with(ok, max_workers=8)
    outcomes = run.outcomes(bodies(400))
    first = next(outcomes)  # what is made once, is made
    run._dispatcher._lock = ForeignLock(threading.current_thread(), taken)  # type: ignore[assignment]
    run.counters._lock = ForeignLock(threading.current_thread(), taken)  # type: ignore[assignment]
    rest = list(itertools.islice(outcomes, 398))
    assert taken == []
    assert numbers([first, *rest, *outcomes]) == list(range(1, 401))
    assert run.counters.counts().answered == 400
