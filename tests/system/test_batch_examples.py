"""The examples of the Batch APIs' documentation run unchanged; faults that people reported aren't ours.

The rows have the shapes of OpenAI's, Mistral's, Together's and Anthropic's guides, and of vLLM's examples,
with other texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, write_lines

from parallel_processor import (
    Limits,
    process_file,
    read_results,
    response_text,
    to_records,
    verify_results,
)
from parallel_processor.batches.merge import Merged, merge
from parallel_processor.batches.split import split
from parallel_processor.exceptions import InputFileError
from parallel_processor.simulator import Simulator, SimulatorOptions

NO_LIMITS = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    """A server without limits."""
    with Simulator(SimulatorOptions(latency_s=0.0)) as started:
        yield started


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A conversation of two messages."""
    said = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    return {**more, "messages": said}


def row(number: int, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A row with all four members."""
    return {"custom_id": f"request-{number}", "method": "POST", "url": url, "body": body}


CHAT, MODEL = "/v1/chat/completions", "gpt-3.5-turbo-0125"
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
INPUT = [{"role": "user", "content": "Name a river."}]
EXAMPLES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "OpenAI, chat": (
        CHAT,
        [row(n, CHAT, chat(f"Hello {n}", model=MODEL, max_tokens=1000)) for n in (1, 2)],
    ),
    "OpenAI, every endpoint": (
        CHAT,
        [
            row(1, "/v1/responses", {"model": "gpt-4.1", "input": INPUT}),
            row(2, "/v1/embeddings", {"model": "text-embedding-3-small", "input": ["a", "b"]}),
            row(3, "/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "Once"}),
            row(4, "/v1/moderations", {"model": "omni-moderation-latest", "input": "Text"}),
            row(
                5, CHAT, chat("Hello", model="gpt-4o-mini", response_format={"type": "json_object"})
            ),
        ],
    ),
    "Mistral": (
        CHAT,
        [{"custom_id": str(n), "body": {"max_tokens": 128, "messages": INPUT}} for n in range(3)],
    ),
    "Together": (
        CHAT,
        [{"custom_id": f"r{n}", "body": chat("Hi", model=LLAMA, max_tokens=200)} for n in (1, 2)],
    ),
    "Anthropic": (
        "/v1/messages",
        [
            {
                "custom_id": each,
                "params": {"model": "claude-sonnet-4-5", "max_tokens": 1024, "messages": INPUT},
            }
            for each in ("my-first-request", "my-second-request")
        ],
    ),
    "vLLM, chat": (
        CHAT,
        [row(n, CHAT, chat("Hi", model=LLAMA, max_completion_tokens=1000)) for n in (1, 2)],
    ),
    "vLLM, embeddings": (
        CHAT,
        [
            row(n, "/v1/embeddings", {"model": "intfloat/e5-mistral-7b-instruct", "input": "Hi"})
            for n in (1, 2)
        ],
    ),
}


@pytest.mark.parametrize("form", ["auto", "batch", "cookbook"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_documentation_run_unchanged(
    example: str, form: Any, server: Simulator, tmp_path: Path
) -> None:
    """All is answered once, and each answer is of its row's endpoint."""
    path, lines = EXAMPLES[example]
    source, save = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    account: Any = {"request_url": server.url + path, "limits": NO_LIMITS, "output_format": form}
    assert process_file(source, save, **account).answered == len(lines)
    assert process_file(source, save, **account).already_answered == len(lines)
    assert verify_results(source, save).ok
    if form == "auto":
        assert {line["custom_id"] for line in read_lines(save)} == {
            line["custom_id"] for line in lines
        }
    for record in to_records(read_results(save)):
        assert record["ok"]
    if example == "Anthropic" and form == "auto":
        for line in read_lines(save):
            assert line["result"]["type"] == "succeeded"
            assert response_text(line["result"]["message"])


def framed(custom_id: str, status: int, body: Any, error: Any = None) -> dict[str, Any]:
    """A line of a Batch output or error file."""
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "batch_req_0", "custom_id": custom_id, "response": response, "error": error}


ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}]}


def test_a_4xx_with_a_body_is_no_answer(tmp_path: Path) -> None:
    """artefactory/artefactual 332: ``error`` is null, and the body holds the error of a refused request."""
    refused = {"error": {"message": "too long", "type": "invalid_request_error", "code": None}}
    save = write_lines(
        tmp_path / "out.jsonl", [framed("a", 400, refused), framed("b", 200, ANSWER)]
    )
    first, second = read_results(save)
    assert (first.ok, first.error) == (
        False,
        "HTTP 400 invalid_request_error: too long (request id r)",
    )
    assert second.ok and second.text == "Hi"


def test_files_are_split_by_size_and_not_only_by_lines(tmp_path: Path) -> None:
    """bespokelabsai/curator 610: 13,483 lines made a file of 564 MB, which the API refused with 413."""
    lines = [{"model": "m", "messages": [{"role": "user", "content": "x" * 40_000}]}] * 60
    source = write_lines(tmp_path / "in.jsonl", lines)
    made = split(source, tmp_path / "up.jsonl", request_url=CHAT, max_bytes=1_000_000)
    assert len(made) == 3
    assert all(each.path.stat().st_size <= 1_000_000 for each in made)


def test_an_id_that_is_there_twice_is_found_before_the_upload(tmp_path: Path) -> None:
    """llm-d/llm-d-batch-gateway 147: a gateway wrote both answers, and nobody could tell them apart."""
    lines = [row(1, CHAT, chat("a", model="m")), row(1, CHAT, chat("b", model="m"))]
    source = write_lines(tmp_path / "in.jsonl", lines)
    with pytest.raises(InputFileError, match="line 1 and line 2 .* same custom_id 'request-1'"):
        split(source, tmp_path / "up.jsonl")


def test_rows_for_several_endpoints_go_into_several_files(tmp_path: Path) -> None:
    """openai/openai-python 2497: a row's url must be the batch's endpoint, or the batch is refused."""
    lines = [
        row(1, "/v1/responses", {"model": "m", "input": "a"}),
        row(2, CHAT, chat("b", model="m")),
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    made = split(source, tmp_path / "up.jsonl")
    assert [each.endpoint for each in made] == ["/v1/responses", CHAT]


def test_a_batch_that_has_an_error_file_alone_tells_why(tmp_path: Path) -> None:
    """ProjectTech4DevAI/kaapi-backend 723: all requests failed, and there was no output file."""
    refused = {"error": {"message": "no such model", "code": "model_not_found"}}
    errors = write_lines(tmp_path / "err.jsonl", [framed(f"r{n}", 404, refused) for n in range(9)])
    assert merge([errors], tmp_path / "out.jsonl") == Merged(failed=9)
    kinds = {each.error_kind for each in read_results(tmp_path / "out.jsonl")}
    assert kinds == {"HTTP 404 model_not_found"}


def test_one_bad_line_doesnt_lose_the_others_and_isnt_silent(tmp_path: Path) -> None:
    """BerriAI/litellm 37457 and ENTERPILOT/GoModel 108: one lost all answers, the other hid the line."""
    good = json.dumps(framed("a", 200, ANSWER))
    output = tmp_path / "1.jsonl"
    output.write_text(
        f'{good}\n{{"custom_id": "b", "respo\n{good.replace(chr(34) + "a", chr(34) + "c")}\n'
    )
    found = merge([output], tmp_path / "out.jsonl")
    assert (found.answered, found.torn, found.first_torn) == (2, 1, f"line 2 of {output}")


def test_what_run_batch_of_vllm_refuses_is_a_failure(tmp_path: Path) -> None:
    """vllm-project/vllm 8347: for a URL it doesn't know, the body is null and the error a text."""
    lines = [
        {**framed("a", 400, None), "error": "URL /v1/x was used. Supported endpoints: …"},
        {"id": "vllm-1", "custom_id": "b", "response": None, "error": {"error": {"message": "no"}}},
    ]
    outcomes = list(read_results(write_lines(tmp_path / "out.jsonl", lines)))
    assert [each.ok for each in outcomes] == [False, False]
    assert "Supported endpoints" in (outcomes[0].error or "")
