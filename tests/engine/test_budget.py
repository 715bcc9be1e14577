"""Runs within a budget, of which a real server counts what it charges."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from raw_server import RawServer, Visit
from services import in_background, processor

from parallel_processor import ConfigurationError, ResultsFileError, RunStoppedError, StopCause
from parallel_processor.simulator import Simulator, SimulatorOptions

CHAT = "/v1/chat/completions"
PRICES = {"m*": {"input": 1.0, "output": 10.0}, "dear": {"input": 10.0, "output": 100.0}}
CAP = 100


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """So many different requests, each of some 30 tokens."""
    made = {"model": "m", "max_tokens": CAP} | more
    return [made | {"messages": [{"role": "user", "content": f"text {n}"}]} for n in range(count)]


class Bill:
    """What the server has charged."""

    def __init__(self, server: Simulator) -> None:
        self._server = server

    @property
    def tokens(self) -> int:
        stats = self._server.stats()
        return int(stats["input_tokens_answered"] + stats["output_tokens_answered"])

    @property
    def cost(self) -> float:
        stats = self._server.stats()
        return float(stats["input_tokens_answered"] + 10 * stats["output_tokens_answered"]) / 1e6

    @property
    def answers(self) -> int:
        return int(self._server.stats()["answered"])


@pytest.fixture
def server() -> Iterator[Simulator]:
    """A server whose answers are of 25 to 75 tokens."""
    with Simulator(SimulatorOptions(answer_tokens=50, token_charge="usage")) as made:
        yield made


@pytest.fixture
def bill(server: Simulator) -> Bill:
    return Bill(server)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 requests, which cost 0.16 dollars."""
    return write_lines(tmp_path / "in.jsonl", rows(300))


@pytest.fixture
def save(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def spent_file(save: Path) -> Path:
    return save.with_name("out.jsonl.spent")


def stopped(server: Simulator, source: Path, save: Path, **settings: Any) -> RunStoppedError:
    """The error of a run that a budget stops."""
    with processor(server.url, CHAT, prices=PRICES, **settings) as made:
        with pytest.raises(RunStoppedError) as raised:
            made.process_file(source, save)
    assert raised.value.stop_cause is StopCause.BUDGET
    return raised.value


@pytest.mark.parametrize("processes", [1, 2])
def test_the_money_is_used_and_never_exceeded(
    server: Simulator, bill: Bill, source: Path, save: Path, processes: int
) -> None:
    """What is left is less than the next request may cost, and the file beside the results is gone."""
    error = stopped(server, source, save, max_cost=0.1, processes=processes)
    assert 0.097 <= bill.cost <= 0.1
    assert "max_cost is $0.1: $0.09" in str(error)
    assert len(read_lines(save)) == bill.answers == error.summary.answered  # type: ignore[union-attr]
    assert not spent_file(save).exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"max_cost": 0.5}, "it may cost $1"), ({"max_total_tokens": 50_000}, "it may use 100,0")],
)
@pytest.mark.parametrize("pack_inputs", [None, 100])
def test_a_line_above_the_whole_budget_fails_alone(
    server: Simulator,
    tmp_path: Path,
    save: Path,
    settings: dict[str, Any],
    words: str,
    pack_inputs: int | None,
) -> None:
    """The others are sent: nothing that is left could ever be enough for it."""
    lines = rows(20)
    lines[1]["max_tokens"] = 100_000
    source = write_lines(tmp_path / "in.jsonl", lines)
    settings |= {"prices": PRICES, "pack_inputs": pack_inputs}
    with processor(server.url, CHAT, **settings) as made:
        summary = made.process_file(source, save)
    assert (summary.answered, summary.failed, summary.left) == (19, 1, 0)
    (record,) = [each for each in read_lines(save) if isinstance(each[1], list)]
    assert record[0]["max_tokens"] == 100_000
    assert words in record[1][0]
    assert "raise the budget" in record[1][0]


def test_tokens_are_bounded_likewise(
    server: Simulator, bill: Bill, source: Path, save: Path
) -> None:
    """No prices are needed for that."""
    with processor(server.url, CHAT, max_total_tokens=10_000) as made:
        with pytest.raises(RunStoppedError, match="max_total_tokens is 10,000"):
            made.process_file(source, save)
    assert 9_700 <= bill.tokens <= 10_000


def test_the_summary_says_what_was_spent(
    server: Simulator, bill: Bill, source: Path, save: Path
) -> None:
    """It agrees with the server's count, over two runs of the same results."""
    stopped(server, source, save, max_cost=0.05)
    first = bill.cost
    error = stopped(server, source, save, max_cost=0.1)
    summary = error.summary
    assert summary is not None and summary.cost is not None and summary.expected_cost is not None
    assert summary.cost_before == pytest.approx(first)
    assert summary.cost == pytest.approx(bill.cost - first)
    assert summary.expected_cost == pytest.approx(0.16, rel=0.2)
    (cost,) = summary.costs
    assert (cost.model, cost.answers, cost.cost) == ("m", summary.answered, summary.cost)
    assert "cost: $0.0" in str(summary) and " before" in str(summary)


def test_a_budget_that_is_used_up_sends_nothing_but_ends_what_is_done(
    server: Simulator, bill: Bill, source: Path, save: Path, tmp_path: Path
) -> None:
    """Once everything is answered, no budget is in the way (QuintinShaw/pi-dynamic-workflows#218)."""
    stopped(server, source, save, max_cost=0.05)
    answers = bill.answers
    stopped(server, source, save, max_cost=0.05)
    assert bill.answers == answers
    answered = write_lines(tmp_path / "done.jsonl", [record[0] for record in read_lines(save)])
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.01) as made:
        assert made.process_file(answered, save).left == 0


def test_one_processor_counts_its_own_records_once(
    server: Simulator, bill: Bill, source: Path, save: Path, tmp_path: Path
) -> None:
    """A second call with the same results goes on (vstorm-co/agenticos#15); another file counts, too."""
    first = write_lines(tmp_path / "first.jsonl", rows(100))
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.1) as made:
        made.process_file(first, save)
        assert bill.cost > 0.04
        with pytest.raises(RunStoppedError):
            made.process_file(source, save)
        assert 0.097 <= bill.cost <= 0.1
        with pytest.raises(RunStoppedError):
            made.process_file(source, tmp_path / "other.jsonl")
    assert bill.cost <= 0.1


def test_runs_at_the_same_time_share_one_budget(
    server: Simulator, bill: Bill, source: Path, save: Path, tmp_path: Path
) -> None:
    """What one gives back wakes the other, and both end."""
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.1) as made:

        def send(path: Path) -> None:
            with pytest.raises(RunStoppedError, match="max_cost is"):
                made.process_file(source, path)

        other = tmp_path / "other.jsonl"
        ends = [in_background(partial(send, path)) for path in (save, other)]
        for end in ends:
            end()
    assert 0.097 <= bill.cost <= 0.1
    assert len(read_lines(save)) + len(read_lines(other)) == bill.answers


def test_overwrite_forgets_what_was_spent(
    server: Simulator, bill: Bill, source: Path, save: Path
) -> None:
    """The file beside the results goes with them."""
    spent_file(save).write_text('{"cost": 0.2, "tokens": 1}')
    stopped(server, source, save, max_cost=0.1)
    assert bill.answers == 0
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.1) as made:
        with pytest.raises(RunStoppedError):
            made.process_file(source, save, overwrite=True)
    assert bill.cost >= 0.097


def test_outcomes_that_a_program_takes_are_bounded_too(server: Simulator, bill: Bill) -> None:
    """The answers that came are yielded first; ``submit`` tells each future."""
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.02) as made:
        with pytest.raises(RunStoppedError) as raised:
            made.map(rows(300))
        assert len(raised.value.outcomes) == bill.answers
        with pytest.raises(RunStoppedError, match="max_cost is"):
            made.submit(rows(1)[0]).result(20)
        assert made.stats().cost == pytest.approx(bill.cost)
    assert bill.cost <= 0.02


def test_a_model_without_a_price_is_not_sent(
    server: Simulator, bill: Bill, save: Path, tmp_path: Path
) -> None:
    """The message names it; with money that is only counted, the summary does."""
    source = write_lines(tmp_path / "in.jsonl", [*rows(2), *rows(2, model="unknown")])
    with processor(server.url, CHAT, prices=PRICES, max_cost=1.0, max_workers=1) as made:
        with pytest.raises(RunStoppedError, match="there is no price for unknown") as raised:
            made.process_file(source, save)
    error = raised.value
    assert error.stop_cause is StopCause.PRICE
    assert error.models == ("unknown",)
    assert {record[0]["model"] for record in read_lines(save)} <= {"m"}
    with processor(server.url, CHAT, prices=PRICES) as made:
        summary = made.process_file(source, save)
    assert "no price known for: unknown" in str(summary)


def test_two_models_cost_what_each_of_them_does(
    server: Simulator, save: Path, tmp_path: Path
) -> None:
    """The dearest is first, and service tiers are told apart."""
    mixed = [*rows(3), *rows(3, model="dear"), *rows(2, model="m2")]
    source = write_lines(tmp_path / "in.jsonl", mixed)
    with processor(server.url, CHAT, prices=PRICES) as made:
        summary = made.process_file(source, save)
    assert [(each.model, each.answers) for each in summary.costs] == [
        ("dear", 3),
        ("m", 3),
        ("m2", 2),
    ]
    assert "cost of dear: $0.0" in str(summary)


@pytest.mark.parametrize("processes", [1, 2])
def test_tiers_have_their_own_prices(save: Path, tmp_path: Path, processes: int) -> None:
    """An answer costs what the tier or the model does that gave it, in this run and in the next."""
    source = write_lines(tmp_path / "in.jsonl", rows(40))
    prices = {"m@flex": {"input": 0.5, "output": 5.0}} | PRICES
    settings: dict[str, Any] = {"prices": prices, "service_tiers": ("flex", "default")}
    settings["processes"] = processes
    options = SimulatorOptions(tier_grants={"flex": 0.5}, answer_tokens=50)
    with Simulator(options) as server, processor(server.url, CHAT, **settings) as made:
        summary = made.process_file(source, save)
        costs = {each.tier: each for each in summary.costs}
        assert sum(each.answers for each in costs.values()) == 40
        for tier, rate in (("flex", 0.5), ("default", 1.0)):
            tokens = costs[tier].input_tokens + 10 * costs[tier].output_tokens
            assert costs[tier].cost == pytest.approx(rate * tokens / 1e6)
    with Simulator(options) as server, processor(server.url, CHAT, max_cost=1, **settings) as made:
        again = made.process_file(source, save)
    assert again.cost == 0.0 and again.cost_before == pytest.approx(summary.cost)


def test_a_fallback_costs_what_its_model_does(save: Path, tmp_path: Path) -> None:
    """The model that was asked first has refused, which costs nothing."""
    source = write_lines(tmp_path / "in.jsonl", rows(10))
    usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}

    def script(visit: Visit) -> None:
        while visit.read():
            if b'"dear"' in visit.body:
                body = {"choices": [{"text": "a"}], "model": "dear", "usage": usage}
                visit.answer(json.dumps(body).encode())
            else:
                visit.answer(b'{"error": {"message": "too long"}}', status="400 Bad Request")

    settings: dict[str, Any] = {"prices": PRICES, "max_cost": 1, "fallback_model": "none"}
    with pytest.raises(ConfigurationError, match="no price for none: give one in a file of prices"):
        with processor("http://127.0.0.1:1", CHAT, **settings):
            pass
    settings["fallback_model"] = "dear"
    with RawServer(script) as server, processor(server.url, CHAT, **settings) as made:
        summary = made.process_file(source, save)
    assert [(each.model, each.answers) for each in summary.costs] == [("dear", 10)]
    assert summary.cost == pytest.approx(10 * (10 * 10 + 10 * 100) / 1e6)
    assert not spent_file(save).exists()


def test_packs_stay_within_the_budget(save: Path, tmp_path: Path) -> None:
    """The records of a pack's members say together what the pack has cost."""
    bodies = [{"model": "m", "input": f"some text {n}"} for n in range(400)]
    source = write_lines(tmp_path / "in.jsonl", bodies)
    with Simulator() as server:
        for most in (0.0005, 0.001):
            settings: dict[str, Any] = {"prices": PRICES, "max_cost": most, "pack_inputs": 10}
            with processor(server.url, **settings) as made, pytest.raises(RunStoppedError):
                made.process_file(source, save)
            paid = server.stats()["input_tokens_answered"] / 1e6
            assert 0.9 * most <= paid <= most
            assert not spent_file(save).exists()


def test_what_a_broken_connection_may_have_cost_counts_in_full(tmp_path: Path, save: Path) -> None:
    """It stays in the file beside the results, and the next run counts it."""
    usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
    answer = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()
    lock, broken = threading.Lock(), [0]

    def script(visit: Visit) -> None:
        while visit.read():
            with lock:
                broken[0] += 1
                breaks = 2 <= broken[0] <= 4
            if breaks:
                return
            visit.answer(answer)

    source = write_lines(tmp_path / "in.jsonl", rows(5))
    settings: dict[str, Any] = {"prices": PRICES, "max_cost": 1.0, "max_workers": 1}
    with RawServer(script) as server, processor(server.url, CHAT, **settings) as made:
        summary = made.process_file(source, save)
    assert summary.cost == pytest.approx(5 * 0.00011)
    kept = json.loads(spent_file(save).read_text())
    assert 3 * 0.001 <= kept["cost"] <= 3 * 0.00115  # 100 tokens of output each, and the prompt
    assert summary.uncertain_cost == pytest.approx(kept["cost"])
    assert "up to $0.003" in str(summary)


def test_what_was_answered_and_refused_counts(server: Simulator, bill: Bill, save: Path) -> None:
    """An answer that ``validate`` refuses has been paid for, and no record says so."""

    def refuse(answer: Any) -> None:
        raise ValueError("never good enough")

    source = write_lines(save.with_name("in.jsonl"), rows(2))
    settings: dict[str, Any] = {"max_cost": 1.0, "validate": refuse, "max_failures": 5}
    with processor(server.url, CHAT, prices=PRICES, **settings) as made:
        summary = made.process_file(source, save)
    assert (summary.failed, summary.attempts) == (2, 10)
    assert summary.cost == pytest.approx(bill.cost)
    assert json.loads(spent_file(save).read_text())["cost"] == pytest.approx(bill.cost)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": CAP, "total_tokens": CAP},
        {"total_tokens": CAP},
    ],
)
def test_answers_whose_usage_says_too_little_count_in_full(
    tmp_path: Path, save: Path, usage: dict[str, int] | None
) -> None:
    """A budget is not without effect where a server says nothing (fullsend-ai/fullsend#6588)."""
    source = write_lines(tmp_path / "in.jsonl", rows(100))
    answer = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()

    def script(visit: Visit) -> None:
        while visit.read():
            visit.answer(answer)

    with (
        RawServer(script) as server,
        processor(server.url, CHAT, prices=PRICES, max_cost=0.01, max_workers=2) as made,
    ):
        with pytest.raises(RunStoppedError):
            made.process_file(source, save)
    assert 8 <= len(server.bodies) <= 10


def test_equal_requests_are_paid_once(server: Simulator, bill: Bill, save: Path) -> None:
    """Also by later runs, of which the records have each answer several times."""
    source = write_lines(save.with_name("in.jsonl"), rows(20) * 5)
    with processor(server.url, CHAT, prices=PRICES, max_cost=1.0, dedupe=True) as made:
        summary = made.process_file(source, save)
    assert (summary.answered, bill.answers) == (100, 20)
    assert summary.cost == pytest.approx(bill.cost)
    assert not spent_file(save).exists()
    most = bill.cost * 1.5
    error = stopped(server, write_lines(source, rows(60)), save, max_cost=most, dedupe=True)
    assert error.summary is not None
    assert error.summary.cost_before == pytest.approx(summary.cost)


def test_equal_rows_are_paid_once(server: Simulator, bill: Bill, save: Path) -> None:
    """Their records have no request, but equal answers. Without a budget they were paid once, too."""
    made_rows = [
        {"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body}
        for n, body in enumerate(rows(20) * 5)
    ]
    source = write_lines(save.with_name("in.jsonl"), made_rows)
    with processor(server.url, CHAT, dedupe=True) as made:
        made.process_file(source, save)
    settings: dict[str, Any] = {"prices": PRICES, "max_cost": 2 * bill.cost}
    with processor(server.url, CHAT, dedupe=True, **settings) as made:
        assert made.process_file(source, save).cost_before == pytest.approx(bill.cost)


def test_a_price_of_each_request_never_gives_anything_back(save: Path, tmp_path: Path) -> None:
    """The records of a pack's members have it each; without them, what was spent is not below 0."""
    bodies = [{"model": "m", "input": f"some text {n}"} for n in range(40)]
    source = write_lines(tmp_path / "in.jsonl", bodies)
    prices = {"m": {"input": 1.0, "output": 0.0, "per_request": 0.01}}
    settings: dict[str, Any] = {"prices": prices, "max_cost": 1.0, "pack_inputs": 10}
    with Simulator() as server, processor(server.url, **settings) as made:
        made.process_file(source, save)
    assert not spent_file(save).exists()


def test_answers_that_wait_for_their_order_are_counted_once(
    server: Simulator, bill: Bill, source: Path, save: Path
) -> None:
    """The writer forgets their responses meanwhile."""
    stopped_at = [0.05, 0.1]
    for most in stopped_at:
        with processor(server.url, CHAT, prices=PRICES, max_cost=most) as made:
            with pytest.raises(RunStoppedError):
                made.process_file(source, save, ordered=True)
        assert 0.97 * most <= bill.cost <= most
        assert not spent_file(save).exists()


def test_batch_rows_are_counted_over_runs(server: Simulator, bill: Bill, save: Path) -> None:
    """Their records have no request: the model that answered has the price."""
    made_rows = [
        {"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body}
        for n, body in enumerate(rows(300))
    ]
    source = write_lines(save.with_name("in.jsonl"), made_rows)
    stopped(server, source, save, max_cost=0.05)
    stopped(server, source, save, max_cost=0.1)
    assert 0.097 <= bill.cost <= 0.1


def test_a_ledger_that_cannot_be_written_ends_the_run(
    server: Simulator, bill: Bill, source: Path, save: Path
) -> None:
    """Nothing is sent that it doesn't cover."""
    spent_file(save).mkdir()
    with processor(server.url, CHAT, prices=PRICES, max_cost=0.1) as made:
        with pytest.raises(ResultsFileError, match=r"out\.jsonl\.spent"):
            made.process_file(source, save)
    assert bill.answers == 0


def test_the_report_has_the_money(
    server: Simulator, bill: Bill, source: Path, save: Path, tmp_path: Path
) -> None:
    """The page has it by model, the JSON has all fields."""
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    with processor(server.url, CHAT, prices=PRICES) as made:
        made.process_file(source, save, report_path=figures)
        found = json.loads(figures.read_text())
        assert found["cost"] == found["expected_cost"] == pytest.approx(bill.cost, abs=1e-6)
        (cost,) = found["costs"]
        assert (cost["model"], cost["answers"]) == ("m", 300)
        made.process_file(source, save, report_path=page, overwrite=True)
    html = page.read_text()
    assert ">Cost<" in html and ">$0.1" in html


# Failures and time


def test_failures_stop_a_run(server: Simulator, tmp_path: Path, save: Path) -> None:
    """One more than the bound; invalid lines are failures, and kept ones count with the next run."""
    source = write_lines(tmp_path / "in.jsonl", rows(1))
    source.write_text(source.read_text() + "no json\n" * 50)
    with processor(server.url, CHAT, max_failures=5, max_workers=1) as made:
        with pytest.raises(RunStoppedError, match="6 requests have failed, and max_failures is 5"):
            made.process_file(source, save)
        first = sum(isinstance(record[1], list) for record in read_lines(save))
        assert 6 <= first < 50
        with pytest.raises(RunStoppedError, match=f"{first} requests have failed"):
            made.process_file(source, save, keep_failures=True)
    assert sum(isinstance(record[1], list) for record in read_lines(save)) == first


def test_a_share_of_failures_stops_a_run(server: Simulator, tmp_path: Path, save: Path) -> None:
    """It counts from the hundredth request on."""
    lines = [json.dumps(row) for row in rows(400)]
    lines[:90:9] = ["no json"] * 10
    lines[200:] = ["no json"] * 200
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    with processor(server.url, CHAT, max_failures="20%", max_workers=4) as made:
        with pytest.raises(RunStoppedError, match="and max_failures is 20%") as raised:
            made.process_file(source, save)
    failed, ended = map(int, re.findall(r"\d+", str(raised.value))[:2])
    assert ended >= 100 and 0.2 * ended < failed < 200


def test_a_run_ends_in_time(tmp_path: Path, save: Path) -> None:
    """What is in flight when the time is over has ``drain_s``, and the rest is for the next run."""
    source = write_lines(tmp_path / "in.jsonl", rows(1000))
    with Simulator(SimulatorOptions(latency_s=0.02)) as server:
        with processor(server.url, CHAT, max_seconds=0.5, max_workers=1) as made:
            with pytest.raises(RunStoppedError, match=r"max_seconds is 0\.5") as raised:
                made.process_file(source, save)
    summary = raised.value.summary
    assert summary is not None and summary.stop_cause is StopCause.BUDGET
    assert summary.answered == len(read_lines(save)) < 1000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cost": 0}, "max_cost must be above 0"),
        ({"max_total_tokens": math.nan}, "max_total_tokens must be a number"),
        ({"max_seconds": "3"}, "max_seconds must be a number"),
        ({"max_failures": -1}, "max_failures must be a whole number of at least 0, or a share"),
        ({"max_failures": "101%"}, "max_failures must be"),
        ({"max_failures": "many"}, "max_failures must be"),
        ({"max_failures": True}, "max_failures must be"),
        ({"prices": {"m": {}}}, "prices: the price of 'm' lacks 'input'"),
    ],
)
def test_a_wrong_budget_is_refused(settings: dict[str, Any], words: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match=words):
        with processor("http://127.0.0.1:1", CHAT, **settings):
            pass
