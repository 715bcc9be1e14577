"""What servers, gateways and networks really do, and what must come of it.

``answers.jsonl`` beside this file holds answers, one a line, each after a public report: its class
(A: answers that are none, B: load, C: money, D: a day's quota, F: servers that load, H: streams,
I: waits, J: reasons), the answer, and what is right.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines

from parallel_processor import (
    Limits,
    Outcome,
    ParallelProcessorError,
    Processor,
    RetryPolicy,
    RunStoppedError,
    StopCause,
    Summary,
)
from parallel_processor.files.verify import verify_results
from parallel_processor.simulator import CannedAnswer, Rule, Simulator, SimulatorOptions

pytestmark = pytest.mark.acceptance

CHAT = "/v1/chat/completions"
NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
MAX_ATTEMPTS = 3
DEADLINE_S = 0.5  # a longer wait ends the run, and is told: so that no test waits
SLOTS = 5
MOST_SENT = 100  # of these lines, where no request can succeed

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()
]


def cases(*ends: str) -> Any:
    """A parameter for each case whose right end is one of ``ends``."""
    found = [case for case in CASES if any(end in case["right"] for end in ends)]
    return pytest.mark.parametrize(
        "case", found, ids=[f"{case['class']}: {case['case']}" for case in found]
    )


def canned(case: dict[str, Any]) -> CannedAnswer:
    """The answer of a case."""
    return CannedAnswer(status=case["status"], headers=case["headers"], body=case["body"])


def request_of(case: dict[str, Any], mark: str) -> dict[str, Any]:
    """A request for the case's endpoint, which ``mark`` tells from others."""
    text = [{"role": "user", "content": "Hi"}]
    return {**case.get("request", {"model": "m", "messages": text}), "user": mark}


@dataclass(kw_only=True)
class Result:
    """What came of a run, with its outcomes by their requests' marks."""

    summary: Summary
    cause: StopCause
    stop: str
    outcomes: dict[str, Outcome]
    sent: int

    def errors(self, mark: str) -> str:
        """The errors on record for the request with this mark."""
        return "\n".join(self.outcomes[mark].errors)


def process(
    rules: tuple[Rule, ...],
    source: Path,
    path: str = CHAT,
    *,
    server: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Result, Path]:
    """Run a file against a server with these rules."""
    save = source.with_suffix(".out")
    retry = RetryPolicy(
        max_attempts=MAX_ATTEMPTS,
        backoff_initial_s=0.0,
        pause_s=0.02,
        rate_limit_deadline_s=DEADLINE_S,
    )
    outcomes: dict[str, Outcome] = {}
    options: dict[str, Any] = {"limits": NO_LIMITS, "retry": retry, "max_workers": 20} | settings
    with Simulator(SimulatorOptions(rules=rules, **server or {})) as simulator:
        processor = Processor(request_url=simulator.url + path, api_key="sk-test", **options)
        cause, stop = StopCause.NOTHING, ""
        try:
            summary = processor.process_file(
                source,
                save,
                progress=False,
                on_outcome=lambda outcome: outcomes.update({outcome.request.body["user"]: outcome}),
            )
        except RunStoppedError as error:
            assert error.summary is not None
            summary, cause, stop = error.summary, error.stop_cause, str(error)
        sent = simulator.stats()["requests_received"]
    return Result(summary=summary, cause=cause, stop=stop, outcomes=outcomes, sent=sent), save


def verified(source: Path, save: Path) -> tuple[int, int]:
    """How many lines have a good record, and how many have none."""
    found = verify_results(source, save)
    assert (found.doubled, found.torn, found.foreign) == (0, 0, 0)
    return found.answered, found.failed + found.missing


@cases("again")
def test_a_non_answer_is_tried_again(case: dict[str, Any], tmp_path: Path) -> None:
    """Once, it costs an attempt; time and again, it is a failure that says why."""
    source = write_lines(
        tmp_path / "in.jsonl", [request_of(case, mark) for mark in ("once", "always", "never")]
    )
    rules = (
        Rule(answer=canned(case), containing='"once"', first=1),
        Rule(answer=canned(case), containing='"always"'),
    )
    result, save = process(rules, source, case.get("path", CHAT))
    assert result.stop == ""
    assert {mark: end.ok for mark, end in result.outcomes.items()} == {
        "once": True, "always": False, "never": True,
    }  # fmt: skip
    attempts = [result.outcomes[mark].attempts for mark in ("once", "always", "never")]
    if "refused" in case["right"]:  # which costs no attempt: time decides
        assert attempts[1] >= 2
        attempts[1] = MAX_ATTEMPTS
    assert attempts == [2, MAX_ATTEMPTS, 1]
    assert result.sent == sum(end.attempts for end in result.outcomes.values())
    assert case["right"]["again"] in result.errors("always")
    assert verified(source, save) == (2, 1)


@cases("again", "not")
def test_a_non_answer_on_record_is_no_answer(case: dict[str, Any], tmp_path: Path) -> None:
    """``verify`` judges the body as the run does, so that a resume sends the request again."""
    body = case["body"]
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            pytest.skip("no record can hold it")
    if "needs_url" in case["right"]:
        pytest.skip("no record says which endpoint it was")
    request = request_of(case, "a")
    source = write_lines(tmp_path / "in.jsonl", [request])
    row = {"custom_id": "a", "method": "POST", "url": case.get("path", CHAT), "body": request}
    batch = write_lines(tmp_path / "rows.jsonl", [row])
    response = {"status_code": 200, "request_id": None, "body": body}
    saved = write_lines(
        tmp_path / "rows.out",
        [{"id": "batch_req_1", "custom_id": "a", "response": response, "error": None}],
    )
    if "needs_request" not in case["right"]:  # which a Batch record doesn't hold
        assert verify_results(batch, saved).answered == 0
    if isinstance(body, dict):
        save = write_lines(tmp_path / "in.out", [[request, body]])
        assert verify_results(source, save).answered == 0


@cases("fails")
def test_what_no_attempt_would_mend_fails_after_one(case: dict[str, Any], tmp_path: Path) -> None:
    """It fails with the server's own reason, and the requests beside it are answered."""
    source = write_lines(
        tmp_path / "in.jsonl", [request_of(case, mark) for mark in ("bad", "good", "better")]
    )
    rules = (Rule(answer=canned(case), containing='"bad"'),)
    result, save = process(rules, source, case.get("path", CHAT))
    assert result.stop == ""
    assert result.sent == 3
    assert (result.outcomes["bad"].ok, result.outcomes["bad"].attempts) == (False, 1)
    assert case["right"]["fails"] in result.errors("bad")
    assert "not_in" not in case["right"] or case["right"]["not_in"] not in result.errors("bad")
    assert verified(source, save) == (2, 1)


@cases("not")
def test_what_would_have_to_be_fetched_is_no_answer(case: dict[str, Any], tmp_path: Path) -> None:
    """An answer that is only promised fails, and the run goes on."""
    source = write_lines(tmp_path / "in.jsonl", [request_of(case, mark) for mark in ("bad", "ok")])
    rules = (Rule(answer=canned(case), containing='"bad"'),)
    result, save = process(rules, source, case.get("path", CHAT))
    assert (result.outcomes["bad"].ok, result.outcomes["ok"].ok) == (False, True)
    assert verified(source, save) == (1, 1)


@cases("answer")
def test_what_looks_odd_is_an_answer(case: dict[str, Any], tmp_path: Path) -> None:
    """It is paid once, and recorded as it came."""
    source = write_lines(tmp_path / "in.jsonl", [request_of(case, "odd")])
    result, save = process((Rule(answer=canned(case)),), source, case.get("path", CHAT))
    assert (result.summary.answered, result.sent) == (1, 1)
    body = case["body"]
    if isinstance(body, str):
        body = json.JSONDecoder().raw_decode(body)[0]
    assert read_lines(save) == [[request_of(case, "odd"), body]]
    assert verified(source, save) == (1, 0)


@cases("waits_s")
def test_a_wait_is_read_wherever_it_is_said(case: dict[str, Any], tmp_path: Path) -> None:
    """It is waited for: a run that may not wait as long ends, and says how long it would have been."""
    source = write_lines(tmp_path / "in.jsonl", [request_of(case, "a")])
    result, _ = process((Rule(answer=canned(case)),), source, case.get("path", CHAT))
    assert (result.cause, result.sent, result.summary.failed) == (StopCause.SERVER_WAIT, 1, 0)
    seconds = re.search(r"to wait ([\d,.]+) s", result.stop)
    assert seconds is not None, result.stop
    assert float(seconds[1].replace(",", "")) == pytest.approx(case["right"]["waits_s"], abs=0.51)


@cases("stops")
def test_what_is_said_of_the_whole_account_stops_the_run(
    case: dict[str, Any], many: Path, tmp_path: Path
) -> None:
    """Of 100,000 requests 100 are sent at most, none of them fails for it, and one line says why."""
    source = tmp_path / "in.jsonl"
    source.symlink_to(many)
    result, _ = process(
        (Rule(answer=canned(case)),),
        source,
        case.get("path", "/v1/embeddings"),
        retry=RetryPolicy(),
        max_workers=1000,
    )
    assert result.cause == case["right"]["stops"], result.stop
    assert result.sent <= MOST_SENT
    assert case["right"]["says"] in result.stop
    assert "\n" not in result.stop
    if result.cause not in (StopCause.EQUAL_FAILURES, StopCause.SETUP):
        assert result.summary.failed == 0


@cases("day")
def test_a_day_of_one_model_is_not_the_day_of_another(case: dict[str, Any], tmp_path: Path) -> None:
    """Its requests stay unanswered, the other model's are answered, and the end names the model."""
    models = "abbabbab"
    source = write_lines(
        tmp_path / "in.jsonl",
        [{**request_of(case, str(n)), "model": model} for n, model in enumerate(models)],
    )
    rules = (Rule(answer=canned(case), containing='"model": "a"'),)
    result, save = process(rules, source, retry=RetryPolicy())
    assert (result.summary.answered, result.summary.failed) == (models.count("b"), 0)
    assert 1 <= result.summary.unanswered <= models.count("a")  # of those that were begun
    assert result.cause is StopCause.QUOTA
    assert re.search(r"\ba\b", result.stop.partition(":")[0]), result.stop
    assert verified(source, save) == (models.count("b"), models.count("a"))


@cases("streams")
def test_what_streams_by_default_is_asked_not_to(case: dict[str, Any], tmp_path: Path) -> None:
    """Ollama's own endpoints stream unless ``stream`` is false: the request is sent so, once."""
    source = write_lines(tmp_path / "in.jsonl", [request_of(case, "a")])
    last = {"model": "m", "message": {"role": "assistant", "content": "Hi"}, "done": True}
    whole = CannedAnswer(body={**last, "response": "Hi"})
    rules = (
        Rule(answer=whole, containing='"stream": false'),
        Rule(answer=whole, containing='"stream":false'),
        Rule(answer=canned(case)),
    )
    result, save = process(rules, source, case["path"])
    assert (result.summary.answered, result.sent) == (1, 1)
    assert read_lines(save)[0][1]["done"] is True
    assert verified(source, save) == (1, 0)


@cases("load")
def test_load_is_found_whatever_says_it(case: dict[str, Any], tmp_path: Path) -> None:
    """Five at once are answered: all requests are, and few are refused on the way to that number."""
    rows = [request_of(case, str(number)) for number in range(100)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    rules = (Rule(answer=canned(case), in_flight=SLOTS),)
    result, save = process(
        rules, source, retry=RetryPolicy(), max_workers=1000, server={"latency_s": 0.02}
    )
    assert result.stop == ""
    assert verified(source, save) == (len(rows), 0)
    assert result.sent <= 2 * len(rows)
    assert max(outcome.attempts for outcome in result.outcomes.values()) <= 5


@cases("ready_after")
def test_a_server_that_is_not_ready_is_waited_for(case: dict[str, Any], tmp_path: Path) -> None:
    """What came while it was not ready costs no attempt, or not the last where a gateway says so."""
    source = write_lines(tmp_path / "in.jsonl", [request_of(case, str(n)) for n in range(8)])
    rules = (Rule(answer=canned(case), first=case["right"]["ready_after"]),)
    retry = RetryPolicy(max_attempts=case["right"]["max_attempts"])
    result, save = process(rules, source, retry=retry, max_workers=1)
    assert result.stop == ""
    assert verified(source, save) == (8, 0)


# Results files of others

REQUESTS = [{"model": "m", "input": f"text {number}", "user": str(number)} for number in range(3)]
VECTOR = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "model": "m"}
BAD = {"message": "overloaded", "type": "server_error", "param": None, "code": None}


def batch_row(number: int) -> dict[str, Any]:
    """A row of the Batch API."""
    request = REQUESTS[number]
    return {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": request}


FILES: dict[
    str, tuple[list[Any], list[Any]]
] = {  # requests, records: the first request is answered
    "error objects in the response's place": (
        REQUESTS,
        [[REQUESTS[0], VECTOR], [REQUESTS[1], [{"error": BAD}, {"error": BAD}]]],
    ),
    "one error object in the response's place": (
        REQUESTS,
        [[REQUESTS[0], VECTOR], [REQUESTS[1], {"error": BAD}]],
    ),
    "the body directly in the response": (
        [batch_row(number) for number in range(3)],
        [
            {"id": "vllm-0", "custom_id": "0", "response": VECTOR, "error": None},
            {"id": "vllm-1", "custom_id": "1", "response": None, "error": "no such model"},
        ],
    ),
    "no status beside the body": (
        [batch_row(number) for number in range(3)],
        [{"custom_id": "0", "response": {"body": VECTOR}}],
    ),
    "metadata first": (REQUESTS, [[{"row": 1}, REQUESTS[0], VECTOR]]),
    "names instead of places": (REQUESTS, [{"request": REQUESTS[0], "response": VECTOR}]),
    "an answer's text in its place": (REQUESTS, [[REQUESTS[0], "the answer as a text"]]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_results_file_of_others_is_understood_or_left_alone(name: str, tmp_path: Path) -> None:
    """Either the answered request is not sent again and keeps its record, or nothing is sent or touched."""
    requests, records = FILES[name]
    source = write_lines(tmp_path / "in.jsonl", requests)
    save = write_lines(tmp_path / "out.jsonl", records)
    before = save.read_bytes()
    with Simulator() as simulator:
        processor = Processor(request_url=f"{simulator.url}/v1/embeddings", limits=NO_LIMITS)
        try:
            processor.process_file(source, save, progress=False)
        except ParallelProcessorError:
            assert save.read_bytes() == before
            assert simulator.stats()["requests_received"] == 0
            return
        sent = simulator.stats()["requests_received"]
    assert records[0] in read_lines(save)
    assert sent == 2
    assert verified(source, save) == (3, 0)


def test_the_command_ends_with_3(tmp_path: Path) -> None:
    """What stops the run is exit code 3, and one line on standard error says why."""
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": str(n)} for n in range(9)])
    answer = next(canned(case) for case in CASES if case["case"] == "arrears as 400")
    with Simulator(SimulatorOptions(rules=(Rule(answer=answer),))) as simulator:
        url = f"{simulator.url}/v1/embeddings"
        done = run("--requests_filepath", source, "--request_url", url)
    assert done.returncode == 3
    assert (
        len([line for line in done.stderr.splitlines() if "the account is in arrears" in line]) == 1
    )
