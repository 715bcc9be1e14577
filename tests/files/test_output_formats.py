"""Records of either form, whatever the input was; and runs that go on with the records of another form."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines
from commands import run as command
from raw_server import RawServer, Visit, answer_all
from services import HASTE, NO_LIMITS

from parallel_processor import process_file, read_results, verify_results
from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.models import Outcome
from parallel_processor.simulator import Simulator, SimulatorOptions

FORMS = ("auto", "batch", "cookbook")
PATH = "/v1/embeddings"


def body(text: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": "m", "input": str(text)}


def cookbook(count: int) -> list[dict[str, Any]]:
    """Lines whose ids are in their metadata, or that have none, with metadata or without."""
    metadata: list[Any] = [{"custom_id": "own-{}"}, {"row": 1}, None]
    rows: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        given = json.loads(json.dumps(metadata[number % 3]).replace("{}", str(number)))
        rows.append(body(number) | ({} if given is None else {"metadata": given}))
    return rows


def batch(count: int) -> list[dict[str, Any]]:
    """The same requests as rows, with the ids that the lines of ``cookbook`` get."""
    ids = (f"request-{n}" if n % 3 else f"own-{n}" for n in range(1, count + 1))
    return [
        {"custom_id": each, "method": "POST", "url": PATH, "body": body(number)}
        for number, each in enumerate(ids, 1)
    ]


def run(source: Path, save: Path, server: RawServer | Simulator, **more: Any) -> Any:
    """Send a file."""
    url = server.url + PATH
    return process_file(source, save, request_url=url, limits=NO_LIMITS, retry=HASTE, **more)


def answers(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What was answered, by id; ``rows`` are the Batch rows, for records that have only the body."""
    by_text = {row["body"]["input"]: row["custom_id"] for row in rows}
    found = {}
    for outcome in read_results(path):
        own = by_text[outcome.request.body["input"]] if outcome.request.body else None
        if own is not None and isinstance(outcome.metadata, dict):
            assert outcome.metadata.get("custom_id", own) == own
        found[outcome.custom_id or str(own)] = json.dumps(outcome.response["data"])
    return found


def test_a_thousand_requests_have_the_same_answers_in_any_form(tmp_path: Path) -> None:
    """Cookbook lines and Batch rows, recorded in each form: the same ids with the same answers."""
    rows = batch(1000)
    sources = {
        "cookbook": write_lines(tmp_path / "c.jsonl", cookbook(1000)),
        "batch": write_lines(tmp_path / "b.jsonl", rows),
    }
    found = {}
    with Simulator(SimulatorOptions(latency_s=0.0)) as server:
        for (name, source), form in itertools.product(sources.items(), FORMS):
            save = tmp_path / f"{name}-{form}.jsonl"
            assert run(source, save, server, output_format=form).answered == 1000
            found[name, form] = answers(save, rows)
            expected = dict if (name if form == "auto" else form) == "batch" else list
            assert {type(line) for line in read_lines(save)} == {expected}
            assert verify_results(source, save).ok
    first = next(iter(found.values()))
    assert set(first) == {row["custom_id"] for row in rows}
    assert len(set(first.values())) == 1000
    assert all(each == first for each in found.values())


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FORMS, 2)))
@pytest.mark.parametrize("make", [cookbook, batch])
def test_a_run_goes_on_in_another_form(make: Any, first: str, second: str, tmp_path: Path) -> None:
    """What is answered is not sent again, and what is new has the form that is asked for now."""
    save = tmp_path / "out.jsonl"
    source = write_lines(tmp_path / "in.jsonl", make(20)[:12])
    with RawServer(answer_all) as server:
        run(source, save, server, output_format=first)
        write_lines(source, make(20))
        summary = run(source, save, server, output_format=second)
        assert (summary.already_answered, summary.answered) == (12, 8)
        assert len(server.bodies) == 20
        assert run(source, save, server, output_format=first).already_answered == 20
    assert verify_results(source, save).ok


def test_lines_that_moved_are_refused_instead_of_mixed_up(tmp_path: Path) -> None:
    """A line would be recorded under the id of another: nothing more is sent, nothing is changed."""
    lines = [body(number) for number in range(1, 11)]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        run(source, save, server, output_format="batch")
        before = save.read_bytes()
        for moved in (
            [*lines[:4], body("new"), *lines[4:]],
            [*lines[:3], *lines[4:]],
            [*lines[:3], lines[4], lines[3], *lines[5:]],
            [*lines[:9], body("edited")],
        ):
            write_lines(source, moved)
            with pytest.raises(InputFileError, match="would be recorded with the id 'request-"):
                run(source, save, server, output_format="batch")
            assert not verify_results(source, save).ok
        assert (save.read_bytes(), len(server.bodies)) == (before, 10)
        write_lines(source, [*lines, body("added")])
        assert run(source, save, server, output_format="batch").answered == 1
    assert verify_results(source, save).ok


def test_lines_with_ids_of_their_own_may_move(tmp_path: Path) -> None:
    """As Batch rows may."""
    lines = [body(n) | {"metadata": {"custom_id": f"id-{n}", "more": n}} for n in range(8)]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        run(source, save, server, output_format="batch")
        write_lines(source, [body("new"), *reversed(lines)])
        assert run(source, save, server, output_format="batch").answered == 1
        assert len(server.bodies) == 9
    ids = [line["custom_id"] for line in read_lines(save)]
    assert sorted(ids) == sorted([f"id-{n}" for n in range(8)] + ["request-1"])


def test_equal_lines_with_an_id_each_need_an_answer(tmp_path: Path) -> None:
    """The record of one does not keep the other from being sent, when a run goes on."""
    line = body(1) | {"metadata": {"custom_id": "a"}}
    source, save = write_lines(tmp_path / "in.jsonl", [line, line]), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        assert run(source, save, server, output_format="batch").answered == 2
        save.write_text(save.read_text().splitlines(keepends=True)[0] + '{"torn')
        summary = run(source, save, server, output_format="batch")
        assert (summary.already_answered, summary.answered) == (1, 1)
        changed = body(2) | {"metadata": {"custom_id": "a"}}
        write_lines(source, [changed, changed])
        with pytest.raises(InputFileError, match="line 1 would be recorded with the id 'a'"):
            run(source, save, server, output_format="batch")


def test_numbers_in_metadata_are_ids(tmp_path: Path) -> None:
    """As text, which the Batch API wants; other values are none."""
    given: list[Any] = [7, "x", True, 1.5, None, ["a"]]
    lines = [body(n) | {"metadata": {"custom_id": own}} for n, own in enumerate(given)]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        run(source, save, server, output_format="batch")
    ids = {line["custom_id"] for line in read_lines(save)}
    assert ids == {"7", "x", "request-3", "request-4", "request-5", "request-6"}


@pytest.mark.parametrize(
    "lines",
    [
        [body(1) | {"metadata": {"custom_id": "request-2"}}, body(2)],
        [body(1), body(2) | {"metadata": {"custom_id": "request-1"}}],
        [body(1) | {"metadata": {"custom_id": "a"}}, {"custom_id": "a", "body": body(2)}],
        [{"custom_id": "request-2", "body": body(1)}, body(2)],
    ],
)
def test_ids_that_collide_end_the_run_and_name_both_lines(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    """An id that a line was given counts as one that it has."""
    source = write_lines(tmp_path / "in.jsonl", lines)
    with RawServer(answer_all) as server:
        with pytest.raises(InputFileError, match=r"line 1 and line 2 .* the same custom_id"):
            run(source, tmp_path / "out.jsonl", server, output_format="batch")
        assert run(source, tmp_path / "c.jsonl", server, output_format="cookbook").answered == 2


def test_a_line_whose_number_is_the_id_of_another_is_told_to_have_one(tmp_path: Path) -> None:
    """It has no id that could be replaced by another."""
    lines = [body(1) | {"metadata": {"custom_id": "request-2"}}, body(2)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    with RawServer(answer_all) as server, pytest.raises(InputFileError) as caught:
        run(source, tmp_path / "out.jsonl", server, output_format="batch")
    assert "line 2, which has none, would be given it. Give line 2 an id of its own" in str(
        caught.value
    )


def fail_some(visit: Visit) -> None:
    """Refuses requests for the number 2, has a web page for 3, breaks off at 4, and answers others."""
    while visit.read():
        text = json.loads(visit.body)["input"]
        if text == "2":
            error = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "bad"}}'
            visit.answer(error, status="400 Bad Request", headers="x-request-id: r2\r\n")
        elif text == "3":
            visit.answer(b"<html>no</html>", status="400 Bad Request")
        elif text == "4":
            return
        else:
            visit.answer()


@pytest.mark.parametrize("make", [cookbook, batch])
def test_the_errors_file_is_that_of_the_batch_api(make: Any, tmp_path: Path) -> None:
    """An HTTP error is in the response, any other failure in the error; so is a line that is none."""
    source, save, errors = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "err.jsonl"))
    write_lines(source, make(5))
    with source.open("a") as file:
        file.write("no JSON\n")
    with RawServer(fail_some) as server:
        run(source, save, server, errors_path=errors, output_format="batch")
    assert {line["custom_id"] for line in read_lines(save)} == {"request-1", "request-5"}
    lines = {line["custom_id"]: line for line in read_lines(errors)}
    assert set(lines) == {"request-2", "own-3", "request-4", "request-6"}
    assert all(
        set(line) == {"id", "custom_id", "response", "error"}
        for line in read_lines(save) + [*lines.values()]
    )
    refused = {"message": "no", "type": "invalid_request_error", "code": "bad"}
    assert lines["request-2"]["error"] is None
    assert lines["request-2"]["response"] == {
        "status_code": 400,
        "request_id": "r2",
        "body": {"error": refused},
    }
    assert lines["own-3"]["response"]["body"] == "<html>no</html>"
    assert set(lines["own-3"]["error"]) == {"code", "message"}
    assert lines["request-4"]["response"] is None
    assert set(lines["request-4"]["error"]) == {"code", "message"}
    assert lines["request-6"]["error"]["message"].startswith("line 6: not JSON")
    kinds = {outcome.custom_id: outcome.error_kind for outcome in read_results(errors)}
    assert kinds["request-2"] == "HTTP 400 bad"
    found = verify_results(source, save, errors)
    assert (found.answered, found.failed, found.missing, found.foreign) == (2, 4, 0, 0)


def test_failures_are_tried_again_or_kept_in_any_form(tmp_path: Path) -> None:
    """Kept ones are known by the id that their line was given."""
    source, save = write_lines(tmp_path / "in.jsonl", cookbook(5)), tmp_path / "out.jsonl"
    with RawServer(fail_some) as server:
        run(source, save, server, output_format="batch")
        sent = len(server.bodies)
        kept = run(source, save, server, output_format="batch", keep_failures=True)
        assert (kept.already_answered, len(server.bodies)) == (2, sent)
        write_lines(source, [body("new"), *cookbook(5)])
        with pytest.raises(InputFileError, match="would be recorded"):
            run(source, save, server, output_format="batch", keep_failures=True)
    write_lines(source, cookbook(5))
    with RawServer(answer_all) as server:
        assert run(source, save, server, output_format="batch").answered == 3
    assert Counter(line["custom_id"] for line in read_lines(save)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_that_is_kept_is_recorded_once(form: Any, tmp_path: Path) -> None:
    """Also of a line that can't be sent, with an id or without."""
    source, save = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('no JSON\n{"custom_id": "a", "method": "GET", "body": {}}\n')
    for _ in range(3):
        with RawServer(answer_all) as server:
            run(source, save, server, output_format=form, keep_failures=True)
        assert len(read_lines(save)) == 2
        found = verify_results(source, save)
        assert (found.failed, found.missing, found.doubled, found.foreign) == (2, 0, 0, 0)


def test_results_from_elsewhere_are_taken_by_their_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of lines without an id of their own with one warning: only the place tells whose they are."""
    caplog.set_level(logging.WARNING)
    source, save = write_lines(tmp_path / "in.jsonl", cookbook(6)), tmp_path / "out.jsonl"
    framed = {"status_code": 200, "request_id": "r", "body": {"data": [{"embedding": [1.0]}]}}
    write_lines(
        save,
        [
            {"id": "batch_req_0a", "custom_id": "own-3", "response": framed, "error": None},
            {"id": "batch_req_0b", "custom_id": "request-1", "response": framed, "error": None},
            {"id": "batch_req_0c", "custom_id": "request-2", "response": framed, "error": None},
        ],
    )
    before = save.read_bytes()
    with RawServer(answer_all) as server:
        with pytest.raises(
            InputFileError, match="line 1 may have its answer .* --output_format batch"
        ):
            run(source, save, server)
        assert (server.bodies, save.read_bytes()) == ([], before)
        summary = run(source, save, server, output_format="batch")
        assert (summary.already_answered, summary.answered) == (3, 3)
    warnings = [each.getMessage() for each in caplog.records if "elsewhere" in each.getMessage()]
    assert len(warnings) == 1 and "request-1" in warnings[0]
    assert verify_results(source, save).ok


def test_results_from_elsewhere_are_put_in_order_too(tmp_path: Path) -> None:
    """Although nothing but an id says of which line each is."""
    framed = {"status_code": 200, "request_id": "r", "body": {"data": [{"embedding": [1.0]}]}}
    source = write_lines(tmp_path / "in.jsonl", [body(n) for n in range(1, 6)])
    ids = [f"request-{n}" for n in (5, 3, 1)]
    records = [{"id": "b", "custom_id": each, "response": framed, "error": None} for each in ids]
    save = write_lines(tmp_path / "out.jsonl", records)
    with RawServer(answer_all) as server:
        summary = run(source, save, server, output_format="batch", ordered=True)
    assert (summary.already_answered, summary.answered) == (3, 2)
    assert [each["custom_id"] for each in read_lines(save)] == [f"request-{n}" for n in range(1, 6)]


@pytest.mark.parametrize("ids", ["request-{}", "own-{}"])
@pytest.mark.parametrize("form", ["auto", "cookbook"])
def test_records_of_a_batch_api_are_refused_before_anything_is_sent(
    form: Any, ids: str, tmp_path: Path
) -> None:
    """Also if the first of them is of a late line; ``verify`` says what a run has to be given."""
    framed = {"status_code": 200, "request_id": "r", "body": {"data": [{"embedding": [1.0]}]}}
    lines = [body(n) | {"metadata": {"custom_id": f"own-{n}"}} for n in range(1, 2500)]
    if ids == "request-{}":
        lines = [body(n) for n in range(1, 2500)]
    records = [{"id": "b", "custom_id": ids.format(n), "response": framed} for n in range(1, 2500)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    save = write_lines(tmp_path / "out.jsonl", records[-1:])
    with RawServer(answer_all) as server:
        with pytest.raises(InputFileError, match="line 2499 may .* give --output_format batch"):
            run(source, save, server, output_format=form)
        write_lines(source, [batch(1)[0], *lines[1:-1]])  # a row's records may have such ids
        assert run(source, save, server, output_format=form).answered == 2498
        assert len(server.bodies) == 2498
    write_lines(source, lines), write_lines(save, records)
    found = verify_results(source, save)
    assert found.ok and found.by_id == found.answered == 2499
    done = command("verify", "--requests_filepath", source, "--save_filepath", save)
    assert done.returncode == 0 and "2,499 are taken by the ids" in done.stderr


def test_a_program_sees_the_ids(tmp_path: Path) -> None:
    """What is written is what ``on_outcome`` gets, with the metadata of the line."""
    source, seen = write_lines(tmp_path / "in.jsonl", cookbook(3)), list[Outcome]()
    with RawServer(answer_all) as server:
        run(source, tmp_path / "out.jsonl", server, output_format="batch", on_outcome=seen.append)
    by_id = {outcome.custom_id: outcome.metadata for outcome in seen}
    assert by_id == {"request-1": {"row": 1}, "request-2": None, "own-3": {"custom_id": "own-3"}}


def test_a_model_that_is_filled_in_is_part_of_the_request(tmp_path: Path) -> None:
    """The record has it; with the same model a run goes on, and the check finds every line."""
    lines: list[Any] = [
        {"input": "a"},
        {"input": "b", "model": "own"},
        {"custom_id": "c", "body": {"input": "c"}},
    ]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        run(source, save, server, model="filled")
        assert {json.loads(each)["model"] for each in server.bodies} == {"filled", "own"}
        assert run(source, save, server, model="filled").already_answered == 3
    assert verify_results(source, save, model="filled").ok
    assert verify_results(source, save).missing == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output_format": "jsonl"}, "output_format must be auto, batch or cookbook, not 'jsonl'"),
        ({"model": ""}, "model must be a name, not ''"),
        ({"model": 5}, "model must be a name, not 5"),
    ],
)
def test_a_form_that_there_is_not_is_refused(options: Any, text: str, tmp_path: Path) -> None:
    """Before anything is opened."""
    source = write_lines(tmp_path / "in.jsonl", [body(1)])
    with RawServer(answer_all) as server, pytest.raises(ConfigurationError, match=text):
        run(source, tmp_path / "out.jsonl", server, **options)
    assert not (tmp_path / "out.jsonl").exists()


def answer_texts(visit: Visit) -> None:
    """Answers with a list of texts."""
    while visit.read():
        visit.answer(b'["one", "two"]')


def test_a_list_of_texts_is_no_answer_where_no_form_can_tell_it(tmp_path: Path) -> None:
    """In a Batch record it is one; in the cookbook's form it would be read as a failure."""
    source = write_lines(tmp_path / "in.jsonl", [{"custom_id": "a", "body": body(1)}])
    with RawServer(answer_texts) as server:
        for form, answered in (("auto", 1), ("cookbook", 0), ("batch", 1)):
            save = tmp_path / f"{form}.jsonl"
            url = server.url + "/v1/texts"
            summary = process_file(
                source,
                save,
                request_url=url,
                limits=NO_LIMITS,
                output_format=form,  # type: ignore[arg-type]
            )
            assert summary.answered == answered
            assert [each.ok for each in read_results(save)] == [bool(answered)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [cookbook, batch])
def test_ordered_results_stay_in_order_in_any_form(make: Any, form: Any, tmp_path: Path) -> None:
    """Also where failures in the middle are tried again, and where an earlier run had another form."""
    source, save = write_lines(tmp_path / "in.jsonl", make(9)), tmp_path / "out.jsonl"
    for script, earlier in ((fail_some, "batch"), (answer_all, form)):
        with RawServer(script) as server:
            run(source, save, server, output_format=earlier, ordered=True)
    rows = batch(9)
    ids = {row["body"]["input"]: row["custom_id"] for row in rows}
    found = [
        line["custom_id"] if isinstance(line, dict) else ids[line[0]["input"]]
        for line in read_lines(save)
    ]
    assert found == [row["custom_id"] for row in rows]


@pytest.mark.parametrize("form", ["auto", "cookbook"])
def test_a_line_that_moved_is_not_paid_for_twice_in_another_form(form: Any, tmp_path: Path) -> None:
    """Its Batch record is under another number: the run is refused there. Equal lines more are new ones."""
    lines = [body(number) for number in range(1, 6)]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    with RawServer(answer_all) as server:
        run(source, save, server, output_format="batch")
        write_lines(source, [lines[0], body("new"), *lines[1:]])
        with pytest.raises(InputFileError, match="line 3 has its answer in the results file"):
            run(source, save, server, output_format=form)
        assert len(server.bodies) <= 6  # the new line at most
        write_lines(source, [*lines, lines[0], body("new")])
        run(source, save, server, output_format=form)
    assert len(server.bodies) <= 8
    assert verify_results(source, save).ok
