"""A plan of a job, against the run of the same job, and what people have met without one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines

from parallel_processor import (
    ConfigurationError,
    InputFileError,
    Limits,
    Plan,
    plan_file,
    process_file,
    read_results,
)
from parallel_processor.simulator import Simulator, SimulatorOptions

CHAT = "https://api.openai.com/v1/chat/completions"
EMBEDDINGS = "https://api.openai.com/v1/embeddings"
OPEN = Limits(requests_per_minute=float("inf"), tokens_per_minute=1e9)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def embedding(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "text-embedding-3-small", "input": text, **more}


def plan_of(folder: Path, rows: list[Any], url: str = CHAT, **more: Any) -> Plan:
    path = write_lines(folder / "in.jsonl", rows)
    return plan_file(path, request_url=url, **more)


def write_texts(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_its_tokens_are_those_that_the_run_reserves(tmp_path: Path) -> None:
    """Prompts, tools and answers, of every endpoint and of rows."""
    rows = [
        *(chat(f"text {n}" * n, max_tokens=10 * n) for n in range(1, 9)),
        chat("uncapped"),
        chat(
            "two",
            n=2,
            max_completion_tokens=7,
            tools=[{"type": "function", "function": {"name": "f"}}],
        ),
        {"custom_id": "e", "url": "/v1/embeddings", "body": embedding(["one", "two three"])},
        {"custom_id": "r", "url": "/v1/responses", "body": {"model": "gpt-5", "input": "hello"}},
    ]
    path = write_lines(tmp_path / "in.jsonl", rows)
    with Simulator(SimulatorOptions()) as server:
        settings: Any = {"request_url": f"{server.url}/v1/chat/completions", "limits": OPEN}
        plan = plan_file(path, **settings)
        summary = process_file(path, **settings)
    assert summary.reserved_tokens == plan.reserved_tokens
    assert (plan.requests, plan.input_tokens) == (12, plan.reserved_tokens - 8 * 45 - 16 - 14 - 16)
    assert sum(group.uncapped for group in plan.groups) == 2
    assert {(group.model, group.requests) for group in plan.groups} == {
        ("gpt-4o-mini", 10),
        ("text-embedding-3-small", 1),
        ("gpt-5", 1),
    }


def test_bad_lines_are_all_named(tmp_path: Path) -> None:
    """Not only the first one (sourcemeta/jsonschema 726), and JSON that is no object (headroom 2316)."""
    good = json.dumps(chat("a"))
    path = write_texts(tmp_path / "in.jsonl", good, "{bad", "", "[1, 2]", "null", good, '"text"')
    plan = plan_file(path, request_url=CHAT)
    assert (plan.lines, plan.requests, plan.ok) == (6, 2, False)
    assert [each.place for each in plan.bad.first] == ["line 2", "line 4", "line 5", "line 7"]
    assert plan.bad.first[0].text.startswith("not JSON: Expecting property name")
    assert plan.bad.first[2].text == "not a JSON object"


def test_lines_of_several_files_have_their_names(tmp_path: Path) -> None:
    """And their own numbers."""
    good = json.dumps(chat("a"))
    paths = [write_texts(tmp_path / name, good, good, "{bad") for name in ("a.jsonl", "b.jsonl")]
    plan = plan_file(paths, request_url=CHAT)
    assert [each.place for each in plan.bad.first] == [f"{path}, line 3" for path in paths]
    assert plan.equal == 3


def test_rows_that_share_an_id_are_named(tmp_path: Path) -> None:
    """Before a Batch API or a run refuses the job for them (llm-d-batch-gateway 147)."""
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": chat(text)}
        for name, text in [("a", "1"), ("b", "2"), ("a", "1"), ("b", "3")]
    ]
    plan = plan_of(tmp_path, rows)
    assert (plan.conflicts.count, plan.ok) == (1, False)
    (conflict,) = plan.conflicts.first
    assert conflict.place == "line 4"
    assert conflict.text.startswith("has the custom_id of line 2")


def test_an_input_of_one_token_too_many_is_found(tmp_path: Path) -> None:
    """8,193 tokens, where 8,192 are allowed (hindsight 4165), and too many inputs."""
    rows = [embedding(" a" * 8_192), embedding(" a" * 8_193), embedding(["a"] * 2_049)]
    limits = Limits(tokens_per_minute=1e6)
    plan = plan_of(tmp_path, rows, EMBEDDINGS, limits=limits)
    assert [each.place for each in plan.oversized.first] == ["line 2", "line 3"]
    assert plan.oversized.first[0].text == "8,193 tokens in one input, and 8,192 are allowed"
    assert plan.oversized.first[1].text == "2,049 inputs, and 2,048 are allowed"
    others = [row | {"model": "own"} for row in rows]
    elsewhere = plan_of(tmp_path, others, "http://127.0.0.1/v1/embeddings", limits=limits)
    assert elsewhere.oversized.count == 0


def test_a_request_above_a_minutes_tokens_goes_alone(tmp_path: Path) -> None:
    """The cookbook's script never sends it, nor what is behind it (openai-cookbook pull request 2907)."""
    rows = [chat("a", max_tokens=100), chat("b", max_tokens=2_000), chat("c", max_tokens=100)]
    for sample in (None, 2):
        plan = plan_of(tmp_path, rows, limits=Limits(tokens_per_minute=1_000), sample=sample)
        assert [(each.place, each.text) for each in plan.alone.first] == [
            ("line 2", "2,008 tokens")
        ]
        assert plan.forecast.seconds > 120
        assert plan.ok


def test_what_is_answered_is_not_planned_again(tmp_path: Path) -> None:
    """An estimate at full price for a run that is half done helps nobody (Repo2Readme 141)."""
    rows = [embedding(f"text {number % 4}") for number in range(10)]
    path, results = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "in_results.jsonl"
    with Simulator(SimulatorOptions()) as server:
        settings: Any = {"request_url": f"{server.url}/v1/embeddings", "limits": OPEN}
        first = write_lines(tmp_path / "first.jsonl", rows[:5])
        process_file(first, results, **settings)
        results.write_bytes(results.read_bytes() + b'["a", ["HTTP 500"]]\n[{"tor')
        before = results.read_bytes(), results.stat().st_mtime_ns
        plan = plan_file(path, **settings)
        assert (results.read_bytes(), results.stat().st_mtime_ns) == before
        summary = process_file(path, **settings)
    assert (plan.lines, plan.answered, plan.requests) == (10, 5, 5)
    assert (summary.already_answered, summary.reserved_tokens) == (5, plan.reserved_tokens)
    assert plan_file(path, results, overwrite=True, request_url=EMBEDDINGS).requests == 10
    assert len(list(read_results(results))) == 10


def test_kept_failures_stay(tmp_path: Path) -> None:
    """With the flag they are not sent again, and without it they are."""
    path = write_lines(tmp_path / "in.jsonl", [embedding("a"), embedding("b")])
    results = write_lines(tmp_path / "in_results.jsonl", [[embedding("a"), ["HTTP 500"]]])
    kept = plan_file(path, results, keep_failures=True, request_url=EMBEDDINGS)
    assert (kept.requests, kept.kept_failures) == (1, 1)
    assert plan_file(path, results, request_url=EMBEDDINGS).requests == 2


def test_a_model_without_a_price_is_unknown_and_not_free(tmp_path: Path) -> None:
    """No sum is told then (llm-council 514)."""
    prices = {"gpt-4o*": {"input": 1.0, "output": 2.0}}
    rows = [chat("hello", max_tokens=1_000_000), chat("hello", max_tokens=5, model="other")]
    plan = plan_of(tmp_path, rows, limits=OPEN, prices=prices)
    priced, other = plan.groups
    assert priced.input_dollars == pytest.approx(8e-6)
    assert priced.reserved_dollars == pytest.approx(2.0 + 8e-6)
    assert (other.input_dollars, other.reserved_dollars) == (None, None)
    assert all(change.dollars is None for change in plan.changes)


def test_a_budget_that_is_too_small_is_named(tmp_path: Path) -> None:
    """By what the job may take as it is reserved."""
    prices = {"*": {"input": 1.0, "output": 2.0}}
    bounds: Any = {"max_cost": 0.001, "max_total_tokens": 1_000, "max_seconds": 60}
    rows = [chat("hello", max_tokens=1_000)]
    assert plan_of(tmp_path, rows, prices=prices, **bounds).exceeded == (
        "max_cost",
        "max_total_tokens",
    )
    bounds = {"max_cost": 0.01, "max_total_tokens": 2_000}
    assert plan_of(tmp_path, rows, prices=prices, **bounds).exceeded == ()


def test_what_earlier_runs_have_spent_counts(tmp_path: Path) -> None:
    """The records say it, and the file beside them; the run's bounds are for all runs together."""
    path = write_lines(
        tmp_path / "in.jsonl", [chat("a", max_tokens=100), chat("b", max_tokens=100)]
    )
    usage = {"prompt_tokens": 1_000, "completion_tokens": 500}
    answer = {"choices": [{"message": {"content": "c"}}], "usage": usage}
    write_lines(tmp_path / "in_results.jsonl", [[chat("a", max_tokens=100), answer]])
    settings: Any = {"request_url": CHAT, "prices": {"*": {"input": 1.0, "output": 2.0}}}
    plan = plan_file(path, **settings)
    assert (plan.requests, plan.cost_before, plan.tokens_before) == (1, 0, 0)  # nobody asks
    settings |= {"max_total_tokens": 1_600}
    plan = plan_file(path, **settings, max_cost=0.0022)
    assert (plan.cost_before, plan.tokens_before) == (pytest.approx(0.002), 1_500)
    assert plan.exceeded == ("max_cost", "max_total_tokens")
    assert plan_file(path, **settings, max_cost=0.0023).exceeded == ("max_total_tokens",)
    ledger = write_texts(tmp_path / "in_results.jsonl.spent", '{"cost": 0.001, "tokens": 50}')
    before = ledger.read_bytes(), ledger.stat().st_mtime_ns
    plan = plan_file(path, **settings, max_cost=0.0023)
    assert (plan.cost_before, plan.tokens_before) == (pytest.approx(0.003), 1_550)
    assert plan.exceeded == ("max_cost", "max_total_tokens")
    assert (ledger.read_bytes(), ledger.stat().st_mtime_ns) == before
    assert plan_file(path, overwrite=True, **settings, max_cost=0.0023).exceeded == ()


def test_a_model_that_a_budget_can_not_price_is_named(tmp_path: Path) -> None:
    """The run stops before its first request."""
    rows = [chat("a", max_tokens=5), chat("b", max_tokens=5, model="own")]
    settings: Any = {"prices": {"gpt*": {"input": 1.0, "output": 2.0}}}
    assert plan_of(tmp_path, rows, **settings, max_cost=5).unpriced == ("own",)
    assert plan_of(tmp_path, rows, **settings).unpriced == ()
    assert plan_of(tmp_path, rows, **settings, max_cost=1e-5).exceeded == ("max_cost",)


def test_a_budget_is_for_what_is_sent(tmp_path: Path) -> None:
    """With ``dedupe``, equal lines cost once."""
    settings: Any = {"prices": {"*": {"input": 1.0, "output": 2.0}}, "max_cost": 0.003}
    rows = [chat("a", max_tokens=1_000)] * 2
    assert plan_of(tmp_path, rows, **settings).exceeded == ("max_cost",)
    assert plan_of(tmp_path, rows, **settings, dedupe=True).exceeded == ()


def test_a_cheaper_tier_and_dedupe_change_the_price(tmp_path: Path) -> None:
    """By what the file of prices says."""
    prices = {"gpt*@flex": {"input": 0.5, "output": 1.0}, "gpt*": {"input": 1.0, "output": 2.0}}
    plan = plan_of(tmp_path, [chat("a", max_tokens=1_000)] * 4, limits=OPEN, prices=prices)
    whole = plan.groups[0].reserved_dollars
    assert whole is not None
    by_what = {change.what: change for change in plan.changes}
    once, flex = by_what["equal lines sent once (dedupe)"], by_what["service tier flex"]
    assert (once.requests, once.dollars) == (1, pytest.approx(whole / 4))
    assert (flex.requests, flex.dollars) == (4, pytest.approx(whole / 2))
    sent_so = plan_of(
        tmp_path, [chat("a", max_tokens=1_000)] * 4, prices=prices, service_tiers=["flex"]
    )
    assert sent_so.groups[0].reserved_dollars == pytest.approx(whole / 2)


def test_it_says_what_packing_and_other_limits_would_change(tmp_path: Path) -> None:
    """Where requests bind, packing helps, and so does twice the limit of requests, but not of tokens."""
    rows = [embedding(f"text {number}") for number in range(1_200)]
    limits = Limits(requests_per_minute=600, tokens_per_minute=1_000_000)
    plan = plan_of(tmp_path, rows, EMBEDDINGS, limits=limits, prices=None)
    assert plan.forecast.seconds == pytest.approx(121.5, abs=1)
    packed, more_requests, more_tokens = plan.changes
    assert packed.what == "up to 100 inputs in a request (pack_inputs 100)"
    assert (packed.requests, packed.tokens) == (12, plan.reserved_tokens)
    assert packed.seconds is not None
    assert packed.seconds < 3
    assert more_requests.what == "1,200 requests a minute instead of 600"
    assert more_requests.seconds == pytest.approx(61, abs=1)
    assert more_tokens.seconds == pytest.approx(plan.forecast.seconds)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (1e300, "2,000,000,"),
        (1e-9, "2e-09 requests a minute instead of 1e-09"),
        (4, "8 requests a minute"),
    ],
)
def test_the_oddest_limits_can_be_doubled(tmp_path: Path, limit: float, words: str) -> None:
    """Whatever a run takes is planned."""
    changes = plan_of(tmp_path, [chat("a")], limits=Limits(requests_per_minute=limit)).changes
    assert any(each.what.startswith(words) for each in changes)


def test_packs_are_planned_as_they_are_sent(tmp_path: Path) -> None:
    """A hundred together, or with ``auto`` as many as there are tokens for, if requests bind."""
    rows = [embedding(f"text {number}") for number in range(1_200)]
    limits = Limits(requests_per_minute=600, tokens_per_minute=12_000)
    plan = plan_of(tmp_path, rows, EMBEDDINGS, limits=limits, pack_inputs=100)
    size = 200 // (plan.reserved_tokens / 1_200)  # a second's worth of tokens
    assert plan.hourly["requests"] == -(-1_200 // size) / 60
    assert not any("pack_inputs" in change.what for change in plan.changes)
    few = Limits(requests_per_minute=120, tokens_per_minute=12_000)
    auto = plan_of(tmp_path, rows, EMBEDDINGS, limits=few, pack_inputs="auto")
    assert auto.hourly["requests"] == pytest.approx(1_200 / 33 / 60, rel=0.1)
    of_tokens = next(each for each in auto.changes if "24,000 tokens" in each.what)
    more = Limits(requests_per_minute=120, tokens_per_minute=24_000)  # larger packs
    planned = plan_of(tmp_path, rows, EMBEDDINGS, limits=more, pack_inputs="auto")
    assert of_tokens.requests == pytest.approx(planned.hourly["requests"] * 60)
    assert of_tokens.seconds == pytest.approx(planned.forecast.seconds)
    assert not any("pack_inputs" in change.what for change in auto.changes)
    few_requests = Limits(requests_per_minute=60, tokens_per_minute=1e6)
    one = plan_of(tmp_path, rows[:100], EMBEDDINGS, limits=few_requests, pack_inputs="auto")
    assert one.hourly["requests"] == 1 / 60
    assert not any("pack_inputs" in change.what for change in one.changes)
    slow = Limits(requests_per_minute=60_000, tokens_per_minute=1_000)
    alone = plan_of(tmp_path, rows, EMBEDDINGS, limits=slow, pack_inputs="auto")
    assert alone.hourly["requests"] == 1_200 / 60


def test_auto_takes_at_least_so_long(tmp_path: Path) -> None:
    """What the server allows isn't known, but what it takes to be through in an hour."""
    auto = Limits(requests_per_minute="auto", tokens_per_minute="auto")
    plan = plan_of(tmp_path, [chat("a", max_tokens=5)] * 60, limits=auto, max_workers=10)
    assert plan.is_lower_bound
    assert plan.forecast.seconds == pytest.approx(6.0)
    assert plan.hourly == {"requests": 1.0, "tokens": plan.reserved_tokens / 60}
    assert not plan_of(tmp_path, [chat("a")]).is_lower_bound


@pytest.mark.parametrize("kind", ["gzip", "array", "pipe", "table"])
def test_whatever_a_run_reads_is_planned(kind: str, tmp_path: Path) -> None:
    """Compressed files, arrays, iterables and tables."""
    rows = [chat(f"text {number}", max_tokens=5) for number in range(3)]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path = tmp_path / ("in.csv" if kind == "table" else "in.jsonl")
    more: dict[str, Any] = {}
    if kind == "gzip":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "array":
        path.write_text(json.dumps(rows))
    elif kind == "table":
        path.write_text("n\n0\n1\n2\n")
        more = {"template": chat("text {{n}}", max_tokens=5)}
    given = iter(text.splitlines()) if kind == "pipe" else path
    plan = plan_file(given, request_url=CHAT, **more)
    assert (plan.requests, plan.reserved_tokens) == (3, 3 * (10 + 5))


def test_a_sample_estimates_the_rest(tmp_path: Path) -> None:
    """With its error, and the same one for the same seed; all lines are judged and compared."""
    rows = [chat("word " * (1 + number % 50), max_tokens=5) for number in range(400)]
    plan = plan_of(tmp_path, [*rows, "bad"], sample=40)
    whole = plan_of(tmp_path, [*rows, "bad"])
    assert (plan.is_sampled, whole.is_sampled, plan.groups[0].counted) == (True, False, 40)
    assert abs(plan.reserved_tokens - whole.reserved_tokens) <= 2 * plan.tokens_error
    assert 0 < plan.tokens_error < 0.05 * plan.reserved_tokens
    assert (plan.equal, plan.bad.count) == (whole.equal, whole.bad.count) == (350, 1)
    assert plan_of(tmp_path, [*rows, "bad"], sample=40).to_dict() == plan.to_dict()
    other = plan_of(tmp_path, [*rows, "bad"], sample=40, seed=1)
    assert other.reserved_tokens != plan.reserved_tokens
    assert plan_of(tmp_path, rows, sample=400).tokens_error == 0


def test_a_job_that_its_run_would_refuse_is_refused(tmp_path: Path) -> None:
    """Rows of another API, and settings that make no sense."""
    with pytest.raises(InputFileError, match="line 1"):
        plan_of(tmp_path, [{"custom_id": "a", "params": {"messages": []}}], EMBEDDINGS)
    for name, value in (("sample", 1), ("latency_s", -1.0)):
        with pytest.raises(ConfigurationError, match=name):
            plan_of(tmp_path, [chat("a")], **{name: value})


def test_it_is_json_without_what_json_does_not_know(tmp_path: Path) -> None:
    """An infinite limit, say."""
    plan = plan_of(tmp_path, [chat("a")], limits=Limits(requests_per_minute=float("inf")))
    found = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert found["requests"] == 1
    assert found["forecast"]["binding"] == ""
    assert found["groups"][0]["url"] == CHAT


def test_nothing_is_written(tmp_path: Path) -> None:
    """Neither results nor anything else."""
    plan_of(tmp_path, [chat("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert read_lines(tmp_path / "in.jsonl") == [chat("a")]
