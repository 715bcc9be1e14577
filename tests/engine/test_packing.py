"""Packs on their way through whole runs, against a server that takes lists."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from commands import read_lines, write_lines
from raw_server import RawServer, Visit
from runs import run_with
from services import in_background, processor, rows, threads

from parallel_processor import ConfigurationError, Limits, Processor, RetryPolicy, RunStoppedError
from parallel_processor.files.formats import made_request
from parallel_processor.models import Outcome
from parallel_processor.simulator import Simulator, SimulatorOptions

TWICE = RetryPolicy(backoff_initial_s=0.0, max_attempts=2)
Refuse = Callable[[list[Any]], "str | None"]


def vector(text: Any) -> list[float]:
    """The vector of an input."""
    return [float(each) for each in str(text).encode()] + [0.1]


class Embedder:
    """A script for a server: embeds lists of texts. ``refuse`` returns a status for what it refuses."""

    def __init__(self, refuse: Refuse = lambda inputs: None) -> None:
        self._refuse = refuse
        self.asked: list[list[Any]] = []

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            body = json.loads(visit.body)
            given = body["input"] if isinstance(body["input"], list) else [body["input"]]
            self.asked.append(given)
            status = self._refuse(given)
            if status is not None:
                visit.answer(b'{"error": {"message": "no"}}', status=status)
                continue
            data = [
                {"object": "embedding", "index": i, "embedding": vector(each)}
                for i, each in enumerate(given)
            ]
            used = sum(len(str(each).split()) for each in given)
            usage = {"prompt_tokens": used, "total_tokens": used}
            answer = {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}
            visit.answer(json.dumps(answer).encode())

    @property
    def sizes(self) -> list[int]:
        """How many inputs each request had."""
        return [len(given) for given in self.asked]


def has(text: str, status: str = "400 Bad Request") -> Refuse:
    """Refuses every list with this text in it."""
    return lambda inputs: status if text in inputs else None


def at_most(count: int) -> Refuse:
    """Refuses longer lists."""
    return lambda inputs: "413 Payload Too Large" if len(inputs) > count else None


def vectors_of(path: Path) -> dict[str, Any]:
    """The vectors in a results file, or the errors, by text."""
    found = {}
    for request, response, *_ in read_lines(path):
        is_answer = isinstance(response, dict)
        assert request["input"] not in found
        found[request["input"]] = response["data"] if is_answer else response
    return found


def answers(count: int) -> dict[str, Any]:
    """What a server answers to so many requests, each by itself."""
    return {
        row["input"]: [{"object": "embedding", "index": 0, "embedding": vector(row["input"])}]
        for row in rows(count)
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 60 requests."""
    return write_lines(tmp_path / "in.jsonl", rows(60))


@pytest.mark.parametrize("more", [{}, {"processes": 2}, {"dedupe": True}, {"pack_inputs": 1000}])
def test_each_line_has_the_vector_of_its_own_input(
    source: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    """They equal those of single requests, and so do the counts of lines."""
    save, embedder = tmp_path / "out.jsonl", Embedder()
    settings = {"pack_inputs": 10, **more}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, save, progress=False)
        again = made.process_file(source, save, progress=False)
    assert vectors_of(save) == answers(60)
    assert (summary.answered, summary.failed, summary.left) == (60, 0, 0)
    assert (again.answered, again.already_answered) == (0, 60)
    assert sum(embedder.sizes) == 60
    assert max(embedder.sizes) == min(settings["pack_inputs"], 60)
    assert summary.attempts == len(embedder.sizes)
    assert summary.used_tokens == 120
    assert not threads()


def test_records_are_in_order_if_they_are_to_be(source: Path, tmp_path: Path) -> None:
    """With lines between them that are sent as they are, and some that are none."""
    lines = [*rows(20), {"model": "m", "input": ["a", "b"]}, *rows(20, 20)]
    text = "\n".join([*map(json.dumps, lines), "no JSON", ""])
    source.write_text(text)
    save = tmp_path / "out.jsonl"
    with RawServer(Embedder()) as server, processor(server.url, pack_inputs=7) as made:
        summary = made.process_file(source, save, ordered=True, progress=False)
    assert (summary.answered, summary.failed) == (41, 1)
    assert [record[0] for record in read_lines(save)] == [*lines, "no JSON"]


def test_one_bad_input_fails_alone(source: Path, tmp_path: Path) -> None:
    """Its pack is halved until it is by itself; its record has the errors of its own attempts."""
    save, errors, embedder = (
        tmp_path / "out.jsonl",
        tmp_path / "errors.jsonl",
        Embedder(has("text 7")),
    )
    with RawServer(embedder) as server, processor(server.url, pack_inputs=16) as made:
        summary = made.process_file(source, save, errors_path=errors, progress=False)
    expected = answers(60)
    del expected["text 7"]
    assert vectors_of(save) == expected
    ((request, failures),) = read_lines(errors)
    assert (request["input"], len(failures)) == ("text 7", 1)
    assert (summary.answered, summary.failed, summary.left) == (59, 1, 0)
    assert [given for given in embedder.asked if "text 7" in given][-1] == ["text 7"]
    assert len(embedder.asked) == 4 + 2 * 4  # four packs, and two for each time one is halved
    assert summary.attempts == len(embedder.asked)


def test_a_pack_that_breaks_the_server_is_tried_before_it_is_halved(
    source: Path, tmp_path: Path
) -> None:
    """The input at fault has all of its attempts alone, too."""
    embedder = Embedder(has("text 7", "500 Internal Server Error"))
    settings: dict[str, Any] = {"pack_inputs": 60, "retry": TWICE}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert (summary.answered, summary.failed) == (59, 1)
    assert embedder.asked.count(["text 7"]) == 2
    assert embedder.sizes.count(60) == 2


def test_an_answer_that_is_too_large_makes_smaller_packs(source: Path, tmp_path: Path) -> None:
    """As a refusal for the size does."""
    embedder = Embedder()
    settings: dict[str, Any] = {"pack_inputs": 20, "max_workers": 1, "max_response_bytes": 1500}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert (summary.answered, summary.failed) == (60, 0)
    assert embedder.sizes.count(20) == 1


def test_a_pack_that_is_not_answered_in_time_is_not_tried_again_as_a_whole() -> None:
    """A server that takes too long for 8 inputs would take as long once more."""
    asked: list[int] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        asked.append(len(given))
        if len(given) > 2:
            raise requests.ReadTimeout("too slow")
        rows = [{"index": i, "embedding": [1.0]} for i, _ in enumerate(given)]
        return 200, {"object": "list", "data": rows, "usage": {}}

    run = run_with(answer, pack_inputs=8, max_workers=1)
    outcomes = list(run.outcomes(made_request(row, n) for n, row in enumerate(rows(8), 1)))
    assert len(outcomes) == 8 and all(outcome.ok for outcome in outcomes)
    assert sorted(asked) == [2, 2, 2, 2, 4, 4, 8]


def test_packs_shrink_to_what_the_server_takes(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing fails for it, and what waits comes apart before it is sent."""
    embedder = Embedder(at_most(5))
    write_lines(source, rows(400))
    settings: dict[str, Any] = {"pack_inputs": 20, "max_workers": 1}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert vectors_of(tmp_path / "out.jsonl") == answers(400)
    assert (summary.answered, summary.failed) == (400, 0)
    assert embedder.sizes.count(20) == 1
    assert set(embedder.sizes) == {20, 10, 5}
    assert caplog.text.count("the server takes fewer than 10 inputs in a request") == 1


def test_a_server_that_takes_no_lists_gets_none_in_the_end(source: Path, tmp_path: Path) -> None:
    """A pack of two is refused, and each of the two is answered."""
    embedder = Embedder(at_most(1))
    settings: dict[str, Any] = {"pack_inputs": 4, "max_workers": 1}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        assert made.process_file(source, tmp_path / "out.jsonl", progress=False).answered == 60
    assert embedder.sizes.count(1) == 60
    assert len(embedder.sizes) < 60 + 10


def test_what_all_members_share_fails_the_pack_as_a_whole(source: Path, tmp_path: Path) -> None:
    """A URL that the server doesn't know is no reason to halve anything."""
    embedder = Embedder(lambda inputs: "404 Not Found")
    settings: dict[str, Any] = {"pack_inputs": 20, "stop_after_equal_failures": 0}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert (summary.answered, summary.failed) == (0, 60)
    assert embedder.sizes == [20, 20, 20]


def test_a_mistake_in_all_requests_stops_the_run(source: Path, tmp_path: Path) -> None:
    """Single requests count as equal failures, not packs: the first are soon there."""
    embedder = Embedder(lambda inputs: "400 Bad Request")
    write_lines(source, rows(2000))
    settings: dict[str, Any] = {"pack_inputs": 50, "max_workers": 2, "stop_after_equal_failures": 5}
    with (
        RawServer(embedder) as server,
        processor(server.url, **settings) as made,
        pytest.raises(RunStoppedError, match="failed alike"),
    ):
        made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert len(embedder.asked) < 60


Rows = list[dict[str, Any]]


def first_alone(rows: Rows) -> Rows:
    """The first one's, whatever was asked."""
    return rows[:1]


def all_first(rows: Rows) -> Rows:
    """Each says that it is the first one's."""
    return [{**row, "index": 0} for row in rows]


def no_numbers(rows: Rows) -> Rows:
    """Indexes that are texts."""
    return [{**row, "index": str(row["index"])} for row in rows]


class Mixing:
    """A script for a server: its answers to lists are changed by ``mix``, and charged for in full."""

    def __init__(self, mix: Callable[[Rows], Rows]) -> None:
        self._mix = mix
        self.sizes: list[int] = []

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            given = json.loads(visit.body)["input"]
            given = given if isinstance(given, list) else [given]
            self.sizes.append(len(given))
            rows = [{"index": i, "embedding": vector(each)} for i, each in enumerate(given)]
            data = self._mix(rows) if len(rows) > 1 else rows
            usage = {"prompt_tokens": len(given), "total_tokens": len(given)}
            visit.answer(json.dumps({"data": data, "usage": usage}).encode())


@pytest.mark.parametrize("mix", [first_alone, all_first, no_numbers])
def test_a_server_that_mixes_lists_up_gets_few_of_them(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mix: Callable[[Rows], Rows]
) -> None:
    """Each such answer is charged. So none is asked for again, and the packs that wait come apart."""
    mixing, save = Mixing(mix), tmp_path / "out.jsonl"
    write_lines(source, rows(400))
    settings: dict[str, Any] = {"pack_inputs": 20, "max_workers": 1}
    with RawServer(mixing) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, save, progress=False)
    assert (summary.answered, summary.failed) == (400, 0)
    found = {text: answer[0]["embedding"] for text, answer in vectors_of(save).items()}
    assert found == {f"text {n}": vector(f"text {n}") for n in range(400)}
    assert [size for size in mixing.sizes if size > 1] == [20, 10, 5, 3, 2]
    assert summary.attempts == len(mixing.sizes) == 405
    assert caplog.text.count("are sent alone from now on") == 1


def test_one_input_whose_part_is_missing_costs_no_other_pack(source: Path, tmp_path: Path) -> None:
    """Its pack is halved until it is alone; as many came apart before, so packs stay as large."""
    bad = vector("text 50")

    def drop_bad(rows: Rows) -> Rows:
        return [row for row in rows if row["embedding"] != bad]

    mixing, save = Mixing(drop_bad), tmp_path / "out.jsonl"
    write_lines(source, rows(160))
    settings: dict[str, Any] = {"pack_inputs": 16, "max_workers": 1}
    with RawServer(mixing) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, save, progress=False)
    assert (summary.answered, summary.failed) == (160, 0)
    assert mixing.sizes.count(16) == 10
    assert len(mixing.sizes) == 10 + 2 * 4


def test_validate_judges_each_member(source: Path, tmp_path: Path) -> None:
    """What it refuses is tried again alone; the others of the pack are answered."""
    seen, embedder = threading.Semaphore(0), Embedder()

    def validate(answer: Any) -> None:
        if answer["data"][0]["embedding"] == vector("text 7"):
            seen.release()
            raise ValueError("not that one")

    settings: dict[str, Any] = {"pack_inputs": 30, "validate": validate, "retry": TWICE}
    with RawServer(embedder) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert (summary.answered, summary.failed) == (59, 1)
    assert sorted(embedder.sizes) == [1, 30, 30]
    assert [seen.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    (errors,) = (v for v in vectors_of(tmp_path / "out.jsonl").values() if isinstance(v[0], str))
    assert errors == ["invalid answer: ValueError: not that one"] * 2


def test_what_failed_alone_goes_on_to_the_fallback(source: Path, tmp_path: Path) -> None:
    """Packs don't: they are halved first."""
    models: list[tuple[str, int]] = []

    class Fallback(Embedder):
        """Notes the models."""

        def __call__(self, visit: Visit) -> None:
            super().__call__(_Noting(visit, models))  # type: ignore[arg-type]

    def refuse(inputs: list[Any]) -> str | None:
        return "400 Bad Request" if "text 7" in inputs and models[-1][0] == "m" else None

    settings: dict[str, Any] = {"pack_inputs": 20, "fallback_model": "other", "max_workers": 1}
    with RawServer(Fallback(refuse)) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert (summary.answered, summary.failed) == (60, 0)
    assert [size for model, size in models if model == "other"] == [1]


def test_a_tier_without_room_passes_packs_on_whole(source: Path, tmp_path: Path) -> None:
    """They are halved for no such reason."""
    options = SimulatorOptions(tier_grants={"flex": 0.4}, requests_per_minute=10**6)
    settings: dict[str, Any] = {"pack_inputs": 5, "service_tiers": ("flex", "default")}
    with Simulator(options) as server, processor(server.url, **settings) as made:
        summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
        stats = server.stats()
    assert (summary.answered, summary.failed) == (60, 0)
    assert stats["requests_received"] - stats["tier_full"] == 12


class _Noting:
    """A visit that notes each request's model and number of inputs."""

    def __init__(self, visit: Visit, noted: list[tuple[str, int]]) -> None:
        self._visit, self._noted = visit, noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._visit, name)

    def read(self) -> bool:
        """Read a request."""
        if not self._visit.read():
            return False
        body = json.loads(self._visit.body)
        given = body["input"]
        self._noted.append((body["model"], len(given) if isinstance(given, list) else 1))
        return True


@pytest.mark.parametrize("fails", [False, True])
def test_a_pack_that_exceeds_the_budget_comes_apart(
    source: Path, tmp_path: Path, fails: bool
) -> None:
    """Its parts use what is left, down to single inputs; so it is for one that is sent again."""
    failed = threading.Event()

    def refuse(inputs: list[Any]) -> str | None:
        is_first = fails and not failed.is_set()
        failed.set()
        return "500 Internal Server Error" if is_first else None

    embedder = Embedder(refuse)
    backoff = RetryPolicy(backoff_initial_s=0.05)
    settings: dict[str, Any] = {"pack_inputs": 30, "max_total_tokens": 90, "retry": backoff}
    with RawServer(embedder) as server, processor(server.url, max_workers=1, **settings) as made:
        with pytest.raises(RunStoppedError, match="max_total_tokens is 90: 8[6-9] are") as raised:
            made.process_file(source, tmp_path / "out.jsonl", progress=False)
    summary = raised.value.summary
    assert summary is not None
    assert 86 <= 2 * summary.answered == summary.used_tokens <= 90
    assert summary.answered + summary.left == 60
    assert summary.attempts == len(embedder.sizes)
    assert not threads()


@pytest.mark.parametrize("window", [3, 4096])
def test_outcomes_come_in_order_also_through_a_narrow_window(window: int) -> None:
    """A pack that can't be filled does not wait for those behind it."""
    embedder = Embedder()
    with RawServer(embedder) as server, processor(server.url, pack_inputs=10) as made:
        outcomes = list(made.imap(rows(25), window=window))
    assert [outcome.embedding for outcome in outcomes] == [vector(f"text {n}") for n in range(25)]
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert max(embedder.sizes) == min(window, 10)


def test_an_input_that_waits_for_an_outcome_gets_it(tmp_path: Path) -> None:
    """Nothing that was read is kept back for ever, though nothing more comes."""
    came = threading.Event()

    def lines() -> Iterator[bytes]:
        yield json.dumps(rows(1)[0]).encode()
        assert came.wait(30)
        yield json.dumps(rows(1, 1)[0]).encode()

    def note(outcome: Outcome) -> None:
        came.set()

    with RawServer(Embedder()) as server, processor(server.url, pack_inputs=10) as made:
        summary = made.process_file(
            lines(), tmp_path / "out.jsonl", on_outcome=note, progress=False
        )
    assert summary.answered == 2


def test_a_stop_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    """What is in a pack has no record, and the next run sends it."""
    opened, came = threading.Event(), threading.Event()

    def refuse(inputs: list[Any]) -> str | None:
        if "text 7" in inputs and not opened.is_set():
            came.set()
            opened.wait(60)
        return None

    save = tmp_path / "out.jsonl"
    with RawServer(Embedder(refuse)) as server:
        with processor(server.url, pack_inputs=10, drain_s=0.0) as made:
            result = in_background(lambda: made.process_file(source, save, ordered=True))
            assert came.wait(30)
            made.cancel()
            first = result()
        opened.set()
        with processor(server.url, pack_inputs=10) as made:
            second = made.process_file(source, save, ordered=True, progress=False)
    assert first.answered + first.unanswered <= 60
    assert first.answered + second.answered == 60
    assert vectors_of(save) == answers(60)
    assert not threads()


def test_submitted_requests_are_not_packed() -> None:
    """Each is to be answered soon."""
    embedder = Embedder()
    with RawServer(embedder) as server, processor(server.url, pack_inputs=10) as made:
        futures = [made.submit(row) for row in rows(5)]
        assert [future.result(30).ok for future in futures] == [True] * 5
    assert embedder.sizes == [1] * 5


def test_auto_packs_where_requests_bind(source: Path, tmp_path: Path) -> None:
    """60 lines under 600 requests a minute take a moment instead of six seconds."""
    embedder = Embedder()
    limits = Limits(requests_per_minute=600, tokens_per_minute=1e9)
    with RawServer(embedder) as server:
        settings: dict[str, Any] = {"pack_inputs": "auto", "limits": limits}
        with processor(server.url, **settings) as made:
            summary = made.process_file(source, tmp_path / "out.jsonl", progress=False)
    assert vectors_of(tmp_path / "out.jsonl") == answers(60)
    assert summary.attempts == len(embedder.sizes) < 50


def test_halves_are_told_once_each(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A user sees why there are more attempts than packs."""
    caplog.set_level(logging.INFO, "parallel_processor")
    with RawServer(Embedder(has("text 7"))) as server, processor(server.url, pack_inputs=8) as made:
        made.process_file(source, tmp_path / "out.jsonl", progress=False)
    told = [record.message for record in caplog.records if "in halves" in record.message]
    assert len(told) == 3
    assert "a pack of 8 inputs, with request 1 first" in told[0]


def test_a_wrong_number_is_refused() -> None:
    """It is a number above 0, or auto."""
    for wrong in (0, -1, 1.5, True, "many"):
        with pytest.raises(ConfigurationError, match="pack_inputs"):
            Processor(request_url="http://127.0.0.1:1/v1/embeddings", pack_inputs=wrong)  # type: ignore[arg-type]
