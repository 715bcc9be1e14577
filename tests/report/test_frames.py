"""Outcomes as the rows of a data frame: the same columns in each, and of one type each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import write_lines

from parallel_processor import (
    Outcome,
    Processor,
    Request,
    Response,
    process_file,
    read_results,
    to_records,
)
from parallel_processor.simulator import Simulator, SimulatorOptions

FIXED = [
    *("number", "custom_id", "ok", "text", "error", "attempts", "latency_s"),
    *("input_tokens", "output_tokens", "total_tokens", "model"),
]


def answered(data: Any, metadata: Any = None, **more: Any) -> Outcome:
    """The outcome of a request that was answered with ``data``."""
    request = Request(body={"model": "asked"}, number=3, metadata=metadata, custom_id="c")
    answer = Response(status=200, headers={}, body=b"", data=data, is_json=True)
    return Outcome(request=request, ok=True, raw_response=answer, attempts=1, **more)


def failed(metadata: Any = None) -> Outcome:
    """The outcome of a request that failed."""
    request = Request(body=None, number=4, metadata=metadata)
    return Outcome(request=request, ok=False, errors=("a", "b"), attempts=2)


def column(name: str, *metadata: Any) -> list[Any]:
    """A column of the rows of so many outcomes."""
    return [row[name] for row in to_records(answered({}, each) for each in metadata)]


def test_an_outcome_is_a_row() -> None:
    """An answer's text, usage and model, and a failure's last error, each in its column."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    data = {"model": "m-1", "choices": [{"message": {"content": "Yes."}}], "usage": usage}
    assert to_records([]) == []
    rows = to_records([answered(data, latency_s=0.5), failed()])
    assert [list(row) for row in rows] == [FIXED, FIXED]
    assert list(rows[0].values()) == [3, "c", True, "Yes.", None, 1, 0.5, 5, 2, 7, "m-1"]
    assert list(rows[1].values()) == [4, None, False, None, "b", 2, None, None, None, None, None]


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, [5, 0, 5]),
        ({"usage": {"input_tokens": 5, "output_tokens": 2}}, [5, 2, 7]),
        ({"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}, [5, 2, 7]),
        ({"prompt_eval_count": 5, "eval_count": 2}, [5, 2, 7]),
        ({"usage": {"total_tokens": 7}}, [None, None, 7]),
        ({}, [None, None, None]),
        ([], [None, None, None]),
    ],
)
def test_usage_is_read_whatever_the_provider_calls_it(data: Any, tokens: list[int | None]) -> None:
    """Input, output and both together; without a model in the answer it is the request's."""
    (row,) = to_records([answered(data)])
    assert [row[f"{name}_tokens"] for name in ("input", "output", "total")] == tokens
    assert row["model"] == "asked"


def test_vectors_are_a_column_where_there_are_any() -> None:
    """Their numbers are floats, and what has none has ``None`` there."""
    vector = {"data": [{"embedding": [1, 0.5, -2]}]}
    broken = {"data": [{"embedding": ["x"]}]}
    rows = to_records([failed(), answered(vector), answered(broken)])
    assert [row["embedding"] for row in rows] == [None, [1.0, 0.5, -2.0], None]
    assert [type(number) for number in rows[1]["embedding"]] == [float] * 3
    assert list(rows[0])[4] == "embedding"
    assert "embedding" not in to_records([failed()])[0]


def test_the_members_of_metadata_are_columns() -> None:
    """All rows have all of them in one order, and other metadata has a column of its own."""
    rows = to_records(
        [answered({}, {"id": 7}), failed(), answered({}, {"lang": "de", "id": 8}), failed(5)]
    )
    assert {tuple(row) for row in rows} == {(*FIXED, "metadata.id", "metadata.lang", "metadata")}
    assert [row["metadata.id"] for row in rows] == [7, None, 8, None]
    assert [row["metadata.lang"] for row in rows] == [None, None, "de", None]
    assert [row["metadata"] for row in rows] == [None, None, None, 5]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2], [1, None, 2]),
        ([True, None], [True, None]),
        ([1, 1.5], [1.0, 1.5]),
        ([2**60, 1.5], [str(2**60), "1.5"]),
        ([2**63, 1], [str(2**63), "1"]),
        ([1, "one"], ["1", "one"]),
        ([True, 1], ["true", "1"]),
        ([[1, {"ü": None}], None], ['[1, {"ü": null}]', None]),
        ([{"a": 1}, {"b": 2}], ['{"a": 1}', '{"b": 2}']),
        (["\ud83d", "\ud83d\ude00"], ["\ufffd", "😀"]),
        ([None, None], [None, None]),
    ],
)
def test_a_column_has_values_of_one_type(values: list[Any], expected: list[Any]) -> None:
    """Numbers become floats, and other mixtures, objects and lists become strings."""
    found = column("metadata.x", *({"x": value} for value in values))
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_halves_of_surrogate_pairs_become_a_mark() -> None:
    """An answer that was cut within an emoji doesn't keep a frame from being made."""
    data = {"choices": [{"text": "so \ud83d"}], "model": "ü\ud83d"}
    (row,) = to_records([answered(data, {"\udc00": 1})])
    assert (row["text"], row["model"]) == ("so \ufffd", "ü\ufffd")
    assert row["metadata.\ufffd"] == 1


def mixed_outcomes() -> list[Outcome]:
    """150 failures, then answers with everything that may be in a column."""
    texts = {"choices": [{"message": {"content": "so \ud83d"}}], "usage": {"total_tokens": 3}}
    vector = {"data": [{"embedding": [1, 2.5]}]}
    return [failed({"id": n}) for n in range(150)] + [
        answered(texts, {"id": 150.5, "tags": ["a", 1], "big": 2**70, "flag": True}, latency_s=0.5),
        answered(vector, {"id": 2, "tags": "none", "big": 1, "flag": False}),
        answered([], "text"),
        answered(None, 5),
    ]


def test_pandas_takes_the_rows() -> None:
    """Ids can be joined on, and numbers are numbers."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(to_records(mixed_outcomes()))
    assert frame.shape == (154, 17)
    assert str(frame["metadata.id"].dtype) == "float64"
    assert str(frame["number"].dtype) == "int64" and str(frame["ok"].dtype) == "bool"
    assert frame["total_tokens"].sum() == 3
    mine = pandas.DataFrame({"id": [149.0, 150.5], "name": ["x", "y"]})
    joined = mine.merge(frame, left_on="id", right_on="metadata.id")
    assert joined[["name", "ok"]].to_numpy().tolist() == [["x", False], ["y", True]]


def test_polars_takes_the_rows() -> None:
    """Every column has a type of its own, and what comes late is not cut down to that of the first."""
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(to_records(mixed_outcomes()), infer_schema_length=None)
    assert frame.shape == (154, 17)
    kinds = {name: str(kind) for name, kind in frame.schema.items()}
    assert kinds["metadata.id"] == "Float64" and kinds["text"] == "String"
    assert kinds["embedding"] == "List(Float64)" and kinds["metadata.big"] == "String"
    assert frame["metadata.id"].to_list()[149:152] == [149.0, 150.5, 2.0]
    assert polars.DataFrame(to_records(mixed_outcomes()[:100])).height == 100


def test_datasets_takes_the_rows() -> None:
    """Where it is installed: the same rows, columns and values."""
    datasets = pytest.importorskip("datasets")
    rows = to_records(mixed_outcomes())
    made = datasets.Dataset.from_list(rows)
    assert made.column_names == list(rows[0])
    assert made[150]["metadata.id"] == 150.5 and made[151]["embedding"] == [1.0, 2.5]


def test_a_file_becomes_a_frame(tmp_path: Path) -> None:
    """From the requests file to a row for each line, with its metadata, text and tokens."""
    chats = [[{"role": "user", "content": f"Say {n}."}] for n in range(10)]
    bodies = [
        {"model": "gpt-4o", "messages": chat, "metadata": {"id": n}} for n, chat in enumerate(chats)
    ]
    source, save = write_lines(tmp_path / "in.jsonl", bodies), tmp_path / "out.jsonl"
    with Simulator(SimulatorOptions()) as simulator:
        process_file(source, save, request_url=f"{simulator.url}/v1/chat/completions")
    rows = sorted(to_records(read_results(save)), key=lambda row: row["metadata.id"])
    assert [row["metadata.id"] for row in rows] == list(range(10))
    assert all(row["ok"] and row["text"] and row["input_tokens"] > 0 for row in rows)
    assert all(row["input_tokens"] + row["output_tokens"] == row["total_tokens"] for row in rows)


def test_a_column_of_prompts_becomes_a_column_of_answers() -> None:
    """The recipe of the README: answers and errors stand beside the prompts that they belong to."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": [f"Say {n}." for n in range(20)]}, index=range(100, 120))
    with Simulator(SimulatorOptions()) as simulator:
        url = f"{simulator.url}/v1/chat/completions"
        with Processor(request_url=url) as processor:
            chats = [[{"role": "user", "content": prompt}] for prompt in frame["prompt"]]
            outcomes = processor.map({"model": "gpt-4o-mini", "messages": chat} for chat in chats)
        frame["answer"] = [outcome.text for outcome in outcomes]
        frame["error"] = [outcome.error for outcome in outcomes]
        assert simulator.stats()["answered"] == 20
    assert frame["answer"].notna().all() and frame["error"].isna().all()
    prompts = [outcome.request.body["messages"][0]["content"] for outcome in outcomes]
    assert prompts == frame["prompt"].tolist()
