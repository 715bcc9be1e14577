"""What programs use beside files: imap, map, submit, stats, validate, on_outcome, dedupe."""

from __future__ import annotations

import json
import math
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clocks import in_threads
from commands import read_lines, write_lines
from raw_server import RawServer, Visit, answer_all
from services import NO_LIMITS, gated, processor, rows, threads

from parallel_processor import (
    ConfigurationError,
    Limits,
    Outcome,
    Processor,
    Request,
    RequestFailedError,
    RunStoppedError,
)
from parallel_processor.simulator import Simulator, SimulatorOptions

# In order.


def test_imap_keeps_the_order_of_the_input() -> None:
    """However the answers come, outcomes have the order of their requests."""
    with Simulator(SimulatorOptions(latency_s=0.01, latency_jitter=1.0)) as simulator:
        with processor(simulator.url) as made:
            numbers = [outcome.request.number for outcome in made.imap(iter(rows(200)))]
    assert numbers == list(range(1, 201))


def test_an_early_outcome_waits_no_longer_than_it_must() -> None:
    """The first is yielded while the second is still under way, and the third behind it waits."""
    with gated(b"text 1") as (server, gate), processor(server.url) as made:
        outcomes = made.imap(rows(3))
        assert next(outcomes).request.number == 1
        gate.opened.set()
        assert [outcome.request.number for outcome in outcomes] == [2, 3]


def test_the_window_bounds_what_is_read_beyond_a_slow_request() -> None:
    """While the first is under way, no more than the window is read, and the rest afterwards."""
    read: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows(100), 1):
            read.append(number)
            yield row

    with gated(b'"text 0"') as (server, gate), processor(server.url) as made:
        most: list[int] = []

        def open_later() -> None:
            gate.came.wait(60)
            for _ in range(9):
                gate.answers.acquire(timeout=60)
            most.append(len(read))
            gate.opened.set()

        opener = threading.Thread(target=open_later)
        opener.start()
        assert len(list(made.imap(source(), window=10))) == 100
        opener.join()
    assert most == [10]


def test_imap_yields_what_there_is_before_it_raises() -> None:
    """A fatal answer comes last: nothing that was paid for is lost, in order as far as it goes."""
    got: list[int] = []
    with Simulator(SimulatorOptions(spend_limit=7)) as simulator:
        with processor(simulator.url, max_workers=3) as made:
            with pytest.raises(RunStoppedError):
                for outcome in made.imap(rows(50)):
                    assert outcome.ok
                    got.append(outcome.request.number)
    assert len(got) == 7 and got == sorted(got)


@pytest.mark.parametrize("window", [0, -1, 1.5, True, math.nan, "9", None])
def test_a_window_of_none_is_an_error(window: Any) -> None:
    """It is told at once, not at the first outcome."""
    with processor("http://127.0.0.1:9") as made, pytest.raises(ConfigurationError, match="window"):
        made.imap(rows(1), window=window)


def test_map_gives_a_list_in_order() -> None:
    """One outcome for each request, failures in their places; ``on_outcome`` has seen them all."""
    seen: list[int] = []
    given = [*rows(2), {"model": "m", "input": "x", "fail": True}, *rows(2, 10)]

    def answer(visit: Visit) -> None:
        while visit.read():
            visit.answer(status="400 Bad Request" if b"fail" in visit.body else "200 OK")

    with RawServer(answer) as server, processor(server.url) as made:
        outcomes = made.map(given, on_outcome=lambda outcome: seen.append(outcome.request.number))
    assert [outcome.ok for outcome in outcomes] == [True, True, False, True, True]
    assert sorted(seen) == [1, 2, 3, 4, 5]
    with pytest.raises(RequestFailedError, match="request 3 failed: HTTP 400") as caught:
        for outcome in outcomes:
            outcome.raise_for_error()
    assert caught.value.outcome is outcomes[2]


def test_map_raises_with_the_outcomes_that_there_are() -> None:
    """A shorter list would stand beside the wrong rows: what ended the run is raised."""
    with Simulator(SimulatorOptions(spend_limit=7)) as simulator:
        with processor(simulator.url, max_workers=3) as made:
            with pytest.raises(RunStoppedError) as caught:
                made.map(rows(50))
    assert len(caught.value.outcomes) == 7
    with RawServer(answer_all) as server, processor(server.url, max_workers=1) as made:
        with pytest.raises(RunStoppedError, match="stopped before") as caught:
            made.map(rows(50), on_outcome=lambda outcome: made.stop())
    assert 1 <= len(caught.value.outcomes) <= 2


def test_a_stop_at_the_last_outcome_is_none() -> None:
    """Whoever has all outcomes gets them."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        outcomes = made.map(rows(3), on_outcome=lambda outcome: outcome.request.number)
        made.stop()
    assert len(outcomes) == 3


# Requests.


def test_a_request_has_metadata_an_id_and_a_url_of_its_own() -> None:
    """What isn't the body comes back with the outcome and is not sent."""
    given = [
        Request(body={"model": "m", "input": "a", "metadata": {"sent": 1}}, metadata={"row": 7}),
        Request(body={"model": "m", "prompt": "b"}, url="/v1/completions", custom_id="b"),
        {"model": "m", "input": "c", "metadata": "mine"},
    ]
    with RawServer(answer_all) as server, processor(server.url) as made:
        first, second, third = made.map(given)
    assert first.metadata == {"row": 7} and third.metadata == "mine"
    assert second.custom_id == "b" and second.metadata is None
    sent = {json.loads(body).get("input", "b"): json.loads(body) for body in server.bodies}
    assert sent["a"] == {"model": "m", "input": "a", "metadata": {"sent": 1}}
    assert sent["c"] == {"model": "m", "input": "c"}
    paths = Counter(head.split(" ")[1] for head in server.heads)
    assert paths == {"/v1/embeddings": 2, "/v1/completions": 1}


def test_a_requests_body_may_change_once_it_was_read() -> None:
    """What is sent and recorded is what there was."""
    body = {"model": "m", "input": ["a"]}
    with RawServer(answer_all) as server, processor(server.url) as made:
        outcomes = made.imap_unordered([Request(body=body), Request(body=body)])
        first = next(outcomes)
        body["input"] = "changed"
        second = next(outcomes)
    assert first.request.body == second.request.body == {"model": "m", "input": ["a"]}
    assert [first.request.number, second.request.number] in ([1, 2], [2, 1])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Request(body=3), "its body is a int"),
        (Request(body={"n": math.nan}), "NaN is not JSON"),
        (Request(body={}, custom_id=7), "custom_id"),  # type: ignore[arg-type]
        (Request(body={}, url="https://elsewhere.example/v1"), "another host"),
        (Request(body={}, metadata=object()), "not JSON serializable"),
        ({"prompt": math.nan, "metadata": 7}, "NaN is not JSON"),
        ({"prompt": math.inf, "metadata": math.nan}, "Infinity is not JSON"),
    ],
)
def test_what_cant_be_sent_is_a_failure_with_its_reason(given: Any, reason: str) -> None:
    """One bad row of a data frame doesn't end the run: it fails by itself, and the others are answered."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        good, bad, also_good = made.map([{"n": 1}, given, {"n": 2}])
        future = made.submit(given)
        assert not future.result(60).ok
    assert good.ok and also_good.ok and not bad.ok
    assert bad.error is not None and bad.error.startswith("request 2 can't be sent: ")
    assert reason in bad.error and (bad.error_kind, bad.attempts) == ("invalid request", 0)
    assert len(server.bodies) == 2


def test_what_is_no_request_is_a_type_error_with_what_there_is() -> None:
    """A text in a body's place is the program's mistake; answers that were paid for aren't lost."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        with pytest.raises(
            TypeError, match="request 3 is a str, not a dict or a Request"
        ) as caught:
            made.map([{"n": 1}, {"n": 2}, "text"])  # type: ignore[list-item]
        assert sorted(o.request.number for o in caught.value.outcomes) == [1, 2]  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="is a int"):
            made.submit(5)  # type: ignore[arg-type]


# One by one.


def test_a_future_has_its_outcome() -> None:
    """Requests that threads submit share a run, and its thread ends with the block."""
    with Simulator(SimulatorOptions(latency_s=0.02)) as simulator, processor(simulator.url) as made:
        futures = [made.submit(row) for row in rows(50)]
        assert futures[0].result(timeout=30).ok
        assert made.stats().runs == 1
        assert all(future.result(60).ok for future in futures)
        inputs = [future.result().request.body["input"] for future in futures]
    assert inputs == [row["input"] for row in rows(50)]
    assert threads() == []


def test_leaving_the_block_waits_for_what_was_submitted() -> None:
    """As with an executor, nothing that was submitted is lost."""
    with Simulator(SimulatorOptions(latency_s=0.05)) as simulator, processor(simulator.url) as made:
        futures = [made.submit(row) for row in rows(20)]
    assert all(future.done() and future.result().ok for future in futures)


def test_an_exception_in_the_block_gives_up_what_was_submitted() -> None:
    """Nobody waits then; the futures say so."""
    with gated(b"text") as (server, gate):
        with pytest.raises(KeyboardInterrupt), processor(server.url, max_workers=2) as made:
            futures = [made.submit(row) for row in rows(20)]
            assert gate.came.wait(60)
            raise KeyboardInterrupt
        for future in futures:
            assert isinstance(future.exception(60), RunStoppedError)
    assert threads() == []


def test_a_future_can_be_cancelled_before_it_is_sent() -> None:
    """What hasn't been sent never is, though it was read ahead."""
    with gated(b"text 0") as (server, gate), processor(server.url, max_workers=1) as made:
        futures = [made.submit(row) for row in rows(20)]
        assert gate.came.wait(60)
        assert not futures[0].cancel() and all(future.cancel() for future in futures[1:-1])
        gate.opened.set()
        assert futures[0].result(60).ok and futures[-1].result(60).ok
        with pytest.raises(CancelledError):
            futures[1].result(60)
    assert len(server.bodies) == 2


def test_a_fatal_answer_is_every_futures_exception() -> None:
    """Those that were not sent get it as well; a later request begins a new run."""
    with Simulator(SimulatorOptions(spend_limit=3)) as simulator:
        with processor(simulator.url, max_workers=1) as made:
            futures = [made.submit(row) for row in rows(10)]
            wait(futures, 60)
            good = [future for future in futures if future.exception(60) is None]
            assert 3 <= len(good) <= 3
            assert {type(f.exception()) for f in futures if f not in good} == {RunStoppedError}
            assert isinstance(made.submit(rows(1)[0]).exception(60), RunStoppedError)


def test_a_callback_may_submit_more() -> None:
    """A chain of requests, each submitted by the last one's callback, comes to its end."""
    done: list[Outcome] = []
    over = threading.Event()
    with RawServer(answer_all) as server, processor(server.url, max_workers=1) as made:

        def go_on(future: Any) -> None:
            done.append(future.result())
            if len(done) < 30:
                made.submit({"n": len(done)}).add_done_callback(go_on)
            else:
                over.set()

        made.submit({"n": 0}).add_done_callback(go_on)
        assert over.wait(60)
    assert len(done) == 30


def test_submitting_again_after_the_run_has_ended_works() -> None:
    """The thread that feeds ends by itself when nothing comes, and another one begins."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        assert made.submit({"n": 1}).result(60).ok
        for thread in threading.enumerate():
            if thread.name == "parallel-processor-submissions":
                thread.join(60)
        assert threads() == []
        assert made.submit({"n": 2}).result(60).ok


def test_many_threads_submit_under_one_limit() -> None:
    """The limit holds for all of them together."""
    limits = Limits(requests_per_minute=6000.0, tokens_per_minute=math.inf, burst_seconds=0.1)
    with Simulator() as simulator, processor(simulator.url, limits=limits) as made:

        def work(first: int) -> list[Any]:
            return [made.submit(row) for row in rows(10, first)]

        submitted = in_threads([partial(work, n * 10) for n in range(8)])
        assert all(future.result(60).ok for futures in submitted for future in futures)
        assert made._account.buckets.usage().admitted["requests"] == 80.0


def test_a_callback_that_fails_harms_nobody_else() -> None:
    """Whatever it raises, even to end the program: every future is resolved, and the block is left."""

    def leave(future: Any) -> None:
        raise SystemExit

    with RawServer(answer_all) as server, processor(server.url) as made:
        futures = [made.submit({"n": n}) for n in range(10)]
        for future in futures:
            future.add_done_callback(leave) if future is futures[0] else None
        assert all(future.result(60).ok for future in futures)
    assert threads() == []


def test_an_interrupt_at_the_end_of_the_block_stops_what_was_submitted() -> None:
    """Whoever leaves a block that waits wants no more sent."""
    with gated(b"text") as (server, gate):
        made = Processor(request_url=f"{server.url}/v1/embeddings", limits=NO_LIMITS, max_workers=2)
        close = made._account.submissions.close

        def interrupted() -> None:
            made._account.submissions.close = close  # type: ignore[method-assign]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), made:
            futures = [made.submit(row) for row in rows(20)]
            assert gate.came.wait(60)
            made._account.submissions.close = interrupted  # type: ignore[method-assign]
        assert all(isinstance(future.exception(60), RunStoppedError) for future in futures)
    assert threads() == []


def test_a_thread_that_cant_be_had_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one tries again."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        with monkeypatch.context() as patch:

            def start(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="new thread"):
                made.submit({"n": 1})
        assert made.submit({"n": 2}).result(60).ok
    assert server.bodies == [b'{"n": 2}']


def test_a_failure_can_travel_between_processes() -> None:
    """As what a pool's work raises does."""
    outcome = Outcome(request=Request(body={}, number=3), ok=False, errors=("no",))
    raised = RequestFailedError(outcome)
    raised.outcomes = (outcome,)
    error = pickle.loads(pickle.dumps(raised))
    assert str(error) == "request 3 failed: no" and error.outcome == outcome
    assert error.outcomes == (outcome,)


# Checks of answers.


def test_an_invalid_answer_is_tried_again() -> None:
    """What ``validate`` raises is a failed attempt, and its message the record's."""
    lock, counts = threading.Lock(), Counter[str]()

    def answer(visit: Visit) -> None:
        while visit.read():
            with lock:
                counts[visit.body.decode()] += 1
                good = counts[visit.body.decode()] >= 3 and b"never" not in visit.body
            visit.answer(
                body=b'{"embedding": ["%s"], "usage": {"total_tokens": 5}}'
                % (b"42" if good else b"x")
            )

    def validate(response: Any) -> None:
        int(response["embedding"][0])

    with RawServer(answer) as server, processor(server.url, validate=validate) as made:
        good, bad = made.map([{"n": 1}, {"n": "never"}])
        stats = made.stats()
    assert good.ok and good.attempts == 3 and good.response["embedding"] == ["42"]
    assert not bad.ok and bad.attempts == 5
    assert bad.errors[0].startswith("invalid answer: ValueError: invalid literal")
    assert bad.error_kind == "invalid answer ValueError"
    assert stats.errors == {"invalid answer ValueError": 7}
    assert stats.used_tokens == 8 * 5  # what didn't pass was paid for, too


@pytest.mark.parametrize("processes", [1, 2])
def test_a_files_answers_are_validated(tmp_path: Path, processes: int) -> None:
    """A function that can't go to another process is called in this one."""
    source = write_lines(tmp_path / "in.jsonl", rows(20))
    pid = os.getpid()
    seen: list[int] = []

    def validate(response: Any) -> None:
        seen.append(os.getpid())
        assert len(response["data"]) == 1

    with Simulator() as simulator:
        with processor(simulator.url, validate=validate, processes=processes) as made:
            summary = made.process_file(source, tmp_path / "out.jsonl")
    assert summary.answered == 20 and seen == [pid] * 20


def test_on_outcome_sees_each_outcome_from_one_thread(tmp_path: Path) -> None:
    """Answers with their values, failures and bad lines, each once it is on record."""
    source = write_lines(tmp_path / "in.jsonl", rows(50))
    source.write_bytes(source.read_bytes() + b"no JSON\n")
    seen: dict[int, Outcome] = {}
    names: set[str] = set()

    def on_outcome(outcome: Outcome) -> None:
        names.add(threading.current_thread().name)
        assert outcome.request.payload in (tmp_path / "out.jsonl").read_bytes()
        seen[outcome.request.number] = outcome

    with Simulator() as simulator, processor(simulator.url) as made:
        made.process_file(source, tmp_path / "out.jsonl", on_outcome=on_outcome)
    assert names == {"parallel-processor-writer"}
    assert sorted(seen) == list(range(1, 52)) and not seen[51].ok
    assert all(seen[number].embedding for number in range(1, 51))


def test_what_on_outcome_raises_ends_the_run_in_order(tmp_path: Path) -> None:
    """The error comes out, what was answered is on record, and the next run goes on."""
    source, save = write_lines(tmp_path / "in.jsonl", rows(500)), tmp_path / "out.jsonl"

    def on_outcome(outcome: Outcome) -> None:
        raise ZeroDivisionError("mine")

    with Simulator() as simulator:
        with processor(simulator.url, max_workers=4) as made:
            with pytest.raises(ZeroDivisionError, match="mine"):
                made.process_file(source, save, on_outcome=on_outcome)
            first = simulator.stats()["requests_received"]
            assert len(read_lines(save)) == first < 500
            summary = made.process_file(source, save)
    assert summary.already_answered == first
    assert summary.answered == 500 - first


# Equal requests.


def test_equal_requests_are_sent_once() -> None:
    """All of them get the answer, with their own metadata; each counts as answered."""
    given = [
        Request(body={"model": "m", "input": f"text {number % 7}"}, metadata=number)
        for number in range(100)
    ]
    with Simulator() as simulator, processor(simulator.url, dedupe=True) as made:
        outcomes = made.map(given)
        stats = made.stats()
        received = simulator.stats()["requests_received"]
    assert received == 7
    assert [outcome.metadata for outcome in outcomes] == list(range(100))
    for number, outcome in enumerate(outcomes):
        assert outcome.ok and outcome.response == outcomes[number % 7].response
    assert sum(outcome.deduplicated for outcome in outcomes) == 93
    assert (stats.answered, stats.deduplicated, stats.attempts) == (100, 93, 7)


def test_what_differs_is_no_duplicate() -> None:
    """Another model, another URL, another order of keys, or another way to write a number."""
    given = [
        Request(body={"model": "m", "input": "a"}),
        Request(body={"input": "a", "model": "m"}),
        Request(body={"model": "n", "input": "a"}),
        Request(body={"model": "m", "input": "a"}, url="/v1/completions"),
        Request(body={"model": "m", "n": 1}),
        Request(body={"model": "m", "n": 1.0}),
        Request(body={"model": "m", "input": "a"}, metadata=7),
    ]
    with RawServer(answer_all) as server, processor(server.url, dedupe=True) as made:
        assert [outcome.deduplicated for outcome in made.map(given)] == [False] * 6 + [True]
    assert len(server.bodies) == 6


def test_without_dedupe_equal_requests_are_all_sent() -> None:
    """A temperature above 0 gives each its own answer: it has to be asked for."""
    with RawServer(answer_all) as server, processor(server.url) as made:
        made.map([{"n": 1}] * 5)
    assert len(server.bodies) == 5


def test_a_failure_is_shared_by_those_that_wait_for_it() -> None:
    """Those that come later are sent again: it may have been the server's bad moment."""
    with RawServer(lambda visit: _answer_badly(visit)) as server:
        with processor(server.url, dedupe=True, max_workers=2) as made:
            outcomes = made.map([{"n": 1}] * 5)
            again = made.map([{"n": 1}])
    assert not any(outcome.ok for outcome in outcomes)
    assert all(outcome.error and outcome.error.startswith("HTTP 400") for outcome in outcomes)
    assert not again[0].deduplicated
    assert 2 <= len(server.bodies) <= 6


def _answer_badly(visit: Visit) -> None:
    while visit.read():
        visit.answer(status="400 Bad Request")


def test_a_file_with_duplicates_has_a_record_for_each_line(tmp_path: Path) -> None:
    """The records are the same as if all had been sent, Batch rows and metadata included."""
    lines = [{"model": "m", "input": f"text {n % 3}", "metadata": {"n": n}} for n in range(30)]
    batch = [
        {
            "custom_id": f"c{n}",
            "url": "/v1/embeddings",
            "body": {"model": "m", "input": f"b {n % 2}"},
        }
        for n in range(10)
    ]
    source = write_lines(tmp_path / "in.jsonl", [*lines, *batch])
    save = tmp_path / "out.jsonl"
    with Simulator() as simulator:
        with processor(simulator.url, dedupe=True, max_workers=2) as made:
            summary = made.process_file(source, save)
            received = simulator.stats()["requests_received"]
            again = made.process_file(source, save)
    assert received == 5
    assert (summary.answered, summary.deduplicated, summary.attempts) == (40, 35, 5)
    assert again.already_answered == 40 and again.answered == 0
    records = read_lines(save)
    assert sorted(record[2]["n"] for record in records if isinstance(record, list)) == list(
        range(30)
    )
    ids = {record["custom_id"] for record in records if isinstance(record, dict)}
    assert ids == {f"c{n}" for n in range(10)}


def test_a_stop_leaves_duplicates_unanswered() -> None:
    """Those that wait for a request that is given up are given up with it, and nothing hangs."""
    with gated(b"n") as (server, gate):
        with processor(server.url, dedupe=True, max_workers=4, drain_s=0.0) as made:
            stopper = threading.Thread(target=lambda: (gate.came.wait(60), made.cancel()))
            stopper.start()
            with pytest.raises(RunStoppedError, match="stopped before every request"):
                assert next(made.imap_unordered([{"n": 1}] * 6), None)
            stopper.join()
            stats = made.stats()
    assert stats.unanswered == 6 and stats.in_flight == 0
    assert threads() == []


@pytest.mark.parametrize("way", ["map", "file", "submit"])
def test_a_fatal_answer_ends_a_run_with_duplicates(way: str, tmp_path: Path) -> None:
    """Those that wait for a request that is never sent don't keep the run, nor its futures."""
    limits = Limits(requests_per_minute=60.0, tokens_per_minute=math.inf)
    given = [row for row in rows(20) for _ in range(2)]
    with Simulator(SimulatorOptions(spend_limit=1)) as simulator:
        with processor(simulator.url, dedupe=True, limits=limits, max_workers=50) as made:
            if way == "submit":
                futures = [made.submit(row) for row in given]
                wait(futures, 60)
                ends = [future.exception(0) for future in futures]
                assert sum(isinstance(end, RunStoppedError) for end in ends) >= 38
                return
            with pytest.raises(RunStoppedError):
                if way == "map":
                    made.map(given)
                made.process_file(write_lines(tmp_path / "in.jsonl", given))
    assert threads() == []


# Figures.


def test_stats_are_those_of_all_runs() -> None:
    """Those that have ended included; at any time, and from any thread."""
    with gated(b"text 3") as (server, gate), processor(server.url) as made:
        assert made.stats().answered == 0 and made.stats().latency_s == {}
        made.map(rows(3))
        outcomes = made.imap_unordered(rows(4))
        for _ in range(3):
            next(outcomes)
        assert gate.came.wait(60)
        while (
            stats := made.stats()
        ).in_flight > 1:  # a worker has yet to come back from its outcome
            server.closing.wait(0.001)
        assert stats.runs == 1 and stats.attempts == 7
        assert 5 <= stats.answered <= 6  # one is with the consumer
        assert stats.in_flight == 1
        gate.opened.set()
        assert len(list(outcomes)) == 1
        stats = made.stats()
    assert (stats.runs, stats.answered, stats.in_flight, stats.failed) == (0, 7, 0, 0)
    assert set(stats.latency_s) == {50, 95, 99}
    assert 0 < stats.latency_s[50] <= stats.latency_s[99]
    assert stats.limits == {"requests": math.inf, "tokens": math.inf}


def test_an_outcome_knows_its_latency() -> None:
    """From sending to the end of the answer, for a failure as well; not the waiting before."""
    with Simulator(SimulatorOptions(latency_s=0.2)) as simulator, processor(simulator.url) as made:
        (outcome,) = made.map(rows(1))
    assert outcome.latency_s is not None and 0.2 <= outcome.latency_s < 60.0


# Many at once.


def test_runs_of_many_threads_share_one_limit() -> None:
    """Fifty threads, each with a map of its own, as the views of a web service."""
    limits = Limits(requests_per_minute=30_000.0, tokens_per_minute=math.inf, burst_seconds=0.1)
    with Simulator() as simulator, processor(simulator.url, limits=limits, max_workers=8) as made:
        results = in_threads([partial(made.map, rows(4, n * 4)) for n in range(50)])
        admitted = made._account.buckets.usage().admitted["requests"]
    assert [len(result) for result in results] == [4] * 50
    assert admitted == 200.0
    assert threads() == []


# Forks.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_locks_and_connections_of_its_own(tmp_path: Path) -> None:
    """A processor that was busy in its parent, all locks taken, works in the child."""
    report = tmp_path / "child"
    with gated(b"held") as (server, gate), processor(server.url) as made:
        future = made.submit({"held": True})
        assert gate.came.wait(60)
        account = made._account
        with account._lock, account.buckets._lock:  # as another thread may have them
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    outcomes = made.map(rows(3))
                    report.write_text(f"{[o.ok for o in outcomes]} {made.stats().answered}")
                    code = 0
                finally:
                    os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert report.read_text() == "[True, True, True] 3"
        gate.opened.set()
        assert future.result(60).ok
        assert made.stats().answered == 1
