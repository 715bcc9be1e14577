"""Requests that are joined, and an answer that comes apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.files.formats import parse_line
from parallel_processor.models import Estimate, Outcome, Request, Response
from parallel_processor.planning.packs import (
    Input,
    Pack,
    Part,
    find_input,
    join,
    parts_of,
    share_out,
    take_apart,
)

EMBEDDINGS = "https://api.openai.com/v1/embeddings"
MODERATIONS = "https://api.openai.com/v1/moderations"
COMPLETIONS = "http://localhost:8000/v1/completions"
COHERE = "https://api.cohere.com/v2/embed"
OLLAMA = "http://localhost:11434/api/embed"
TEI = "http://localhost:8080/embed"


def request(body: Any, number: int = 1) -> Request:
    """The request of a line."""
    return parse_line(json.dumps(body).encode(), number, EMBEDDINGS)


def inputs(url: str, *bodies: Any, tokens: tuple[int, ...] = ()) -> list[Input]:
    """The inputs of requests with these bodies, each of so many tokens."""
    found = []
    for number, body in enumerate(bodies, 1):
        each = find_input(request(body, number), url)
        assert each is not None, body
        found.append(each._replace(estimate=Estimate(dict(enumerate(tokens, 1)).get(number, 1))))
    assert len({each.others for each in found}) == 1
    return found


def packed(url: str, *bodies: Any, tokens: tuple[int, ...] = ()) -> Pack:
    """The pack of these."""
    made = join(inputs(url, *bodies, tokens=tokens))
    assert isinstance(made, Pack)
    return made


def response(data: Any, *, text: str | None = None) -> Response:
    """An answer."""
    body = (json.dumps(data) if text is None else text).encode()
    return Response(status=200, headers={"x-request-id": "r"}, body=body, data=data, is_json=True)


def apart(pack: Pack, data: Any) -> list[Part]:
    """What each member gets; its value is that of its text, also where no value is known."""
    answer = response(data)
    parts, unread = take_apart(pack, answer), take_apart(pack, replace(answer, data=None))
    assert parts is not None
    assert unread is not None
    for part, other in zip(parts, unread, strict=True):
        assert json.loads(part.response.body) == part.response.data
        assert (other.response.body, other.response.data) == (part.response.body, None)
        assert other.used_tokens == part.used_tokens
        assert part.response.headers == answer.headers
    return parts


def values(parts: list[Part]) -> list[Any]:
    """The values of the answers."""
    return [part.response.data for part in parts]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (EMBEDDINGS, {"model": "m", "input": ["a", "b"]}),  # two
        (EMBEDDINGS, {"model": "m", "input": ""}),  # refused by servers
        (EMBEDDINGS, {"model": "m", "input": []}),
        (EMBEDDINGS, {"model": "m", "input": [[]]}),
        (EMBEDDINGS, {"model": "m", "input": [1.5]}),
        (EMBEDDINGS, {"model": "m", "input": [True, 2]}),
        (EMBEDDINGS, {"model": "m", "input": [{"text": "a"}]}),  # Jina's
        (EMBEDDINGS, {"model": "m", "prompt": "a"}),
        (EMBEDDINGS, {"model": "m", "input": None}),
        (MODERATIONS, {"input": [{"type": "text", "text": "a"}]}),
        ("https://api.openai.com/v1/chat/completions", {"model": "m", "messages": []}),
        ("https://api.openai.com/v1/responses", {"model": "m", "input": "a"}),
        ("https://host/unknown", {"model": "m", "input": "a"}),
    ],
)
def test_what_has_no_single_input_is_not_packed(url: str, body: Any) -> None:
    """Nor is what another endpoint takes."""
    assert find_input(request(body), url) is None


def test_a_member_that_is_there_twice_keeps_a_request_alone() -> None:
    """Nobody knows which of them a server takes."""
    line = b'{"model": "m", "input": "a", "input": "b"}'
    assert find_input(parse_line(line, 1, EMBEDDINGS), EMBEDDINGS) is None


def test_a_text_alone_and_a_text_in_a_list_go_together() -> None:
    """Texts are sent as they were written, to the last escape; the other members stay."""
    lines = [
        b'{"model": "m", "input": "\\u00e9 \\"q\\"", "dimensions": 256}',
        b'{"input":["two"],"dimensions": 256, "model": "m", "metadata": {"row": 2}}',
    ]
    found = [
        find_input(parse_line(line, n, EMBEDDINGS), EMBEDDINGS) for n, line in enumerate(lines, 1)
    ]
    first, second = (each for each in found if each is not None)
    assert first.others == second.others
    pack = join([first, second])
    assert pack.payload == b'{"model": "m", "input": ["\\u00e9 \\"q\\"", "two"], "dimensions": 256}'
    assert json.loads(pack.payload) == pack.body
    assert (pack.number, pack.model) == (1, "m")
    assert join([second]) is second.request


def test_lists_of_tokens_go_together_but_not_with_texts() -> None:
    """A list of numbers is one input."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": [1, 2]}, {"model": "m", "input": [[3]]})
    assert pack.body["input"] == [[1, 2], [3]]
    text = find_input(request({"model": "m", "input": "a"}), EMBEDDINGS)
    assert text is not None
    assert text.others != pack.inputs[0].others


@pytest.mark.parametrize("other", [{"model": "n"}, {"dimensions": 7}, {"user": "u"}])
def test_other_parameters_keep_requests_apart(other: dict[str, Any]) -> None:
    """So do other URLs, and rows go with rows."""
    body = {"model": "m", "input": "a"}
    found = find_input(request(body), EMBEDDINGS)
    another = find_input(request({**body, **other}), EMBEDDINGS)
    there = find_input(request(body), "http://localhost/v1/embeddings")
    row = find_input(replace(request(body), custom_id="a"), EMBEDDINGS)
    assert found is not None and another is not None and there is not None and row is not None
    assert len({found.others, another.others, there.others, row.others}) == 4


def test_vectors_come_apart_by_their_index() -> None:
    """Each becomes the first; all else is kept, and what was used is shared out."""
    pack = packed(EMBEDDINGS, *({"model": "m", "input": text} for text in "abc"), tokens=(1, 2, 3))
    rows = [{"object": "embedding", "index": i, "embedding": [i + 0.5, -1e-9]} for i in (2, 0, 1)]
    usage = {"prompt_tokens": 12, "total_tokens": 12}
    parts = apart(pack, {"object": "list", "data": rows, "model": "m-1", "usage": usage, "x": [1]})
    assert values(parts) == [
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [i + 0.5, -1e-9]}],
            "model": "m-1",
            "usage": {"prompt_tokens": count, "total_tokens": count},
            "x": [1],
        }
        for i, count in enumerate((2, 4, 6))
    ]
    assert [part.used_tokens for part in parts] == [2, 4, 6]


def test_a_vector_keeps_each_of_its_digits() -> None:
    """It is copied: no number is read and written again."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    first = '{"embedding": [1.10, 2e-3,0.30000000000000004], "index":0}'
    text = f'{{"data": [{first}, {{"index":1,"embedding":[1.0E5 ]}}]}}'
    parts = take_apart(pack, response(json.loads(text), text=text))
    assert parts is not None
    bodies = [part.response.body.decode() for part in parts]
    assert '"embedding": [1.10, 2e-3,0.30000000000000004]' in bodies[0]
    assert '"embedding":[1.0E5 ]' in bodies[1]


def test_vectors_in_base64_come_apart() -> None:
    """They are texts."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    rows = [{"index": i, "embedding": text} for i, text in enumerate(("AAA=", ']\\"}['))]
    assert [value["data"][0]["embedding"] for value in values(apart(pack, {"data": rows}))] == [
        "AAA=",
        ']\\"}[',
    ]


def test_verdicts_come_apart() -> None:
    """They have no index, and nothing is said of tokens."""
    pack = packed(MODERATIONS, {"input": "a"}, {"input": "b"})
    results = [{"flagged": flag, "category_scores": {"hate": 0.1}} for flag in (True, False)]
    parts = apart(pack, {"id": "modr-1", "model": "o", "results": results})
    assert [value["results"] for value in values(parts)] == [[results[0]], [results[1]]]
    assert [part.used_tokens for part in parts] == [None, None]


def test_several_choices_of_each_prompt_stay_together() -> None:
    """Their index counts within the prompt. Input is shared by tokens, output by what was given."""
    bodies = ({"model": "m", "prompt": text, "n": 2} for text in "ab")
    pack = packed(COMPLETIONS, *bodies, tokens=(1, 3))
    texts = ["x", "y" * 100, "z" * 500, "w" * 500]
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 4, "completion_tokens": 100, "total_tokens": 104, "cost": 0.5}
    first, second = values(apart(pack, {"choices": choices, "usage": usage}))
    assert [(each["index"], each["text"][:1]) for each in first["choices"]] == [(0, "x"), (1, "y")]
    assert [(each["index"], each["text"][:1]) for each in second["choices"]] == [(0, "z"), (1, "w")]
    assert [value["usage"]["prompt_tokens"] for value in (first, second)] == [1, 3]
    assert first["usage"]["completion_tokens"] < second["usage"]["completion_tokens"]
    for name in ("completion_tokens", "total_tokens", "cost"):
        assert first["usage"][name] + second["usage"][name] == usage[name]
    for value in (first, second):
        parts = value["usage"]["prompt_tokens"] + value["usage"]["completion_tokens"]
        assert parts == value["usage"]["total_tokens"]


def test_coheres_vectors_come_apart_by_type() -> None:
    """Its texts are in the answer, too, and its tokens are in the meta."""
    pack = packed(COHERE, *({"model": "m", "texts": [text]} for text in "ab"), tokens=(1, 1))
    answer = {
        "id": "1",
        "embeddings": {"float": [[1.0], [2.0]], "int8": [[1], [2]], "binary": None},
        "texts": ["a", "b"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 5}},
    }
    first, second = values(apart(pack, answer))
    assert first["embeddings"] == {"float": [[1.0]], "int8": [[1]], "binary": None}
    assert (first["texts"], second["texts"]) == (["a"], ["b"])
    assert second["embeddings"]["float"] == [[2.0]]
    billed = [value["meta"]["billed_units"]["input_tokens"] for value in (first, second)]
    assert billed == [3, 2]
    assert first["meta"]["api_version"] == {"version": "2"}


def test_ollamas_and_teis_bare_vectors_come_apart() -> None:
    """TEI's answer is a list alone, as is llama.cpp's."""
    pack = packed(OLLAMA, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    answer = {
        "model": "m",
        "embeddings": [[1.0], [2.0]],
        "prompt_eval_count": 9,
        "load_duration": 7,
    }
    first, second = apart(pack, answer)
    assert first.response.data == {**answer, "embeddings": [[1.0]], "prompt_eval_count": 5}
    assert (first.used_tokens, second.used_tokens) == (5, 4)
    pack = packed(TEI, {"inputs": "a"}, {"inputs": ["b"]})
    assert values(apart(pack, [[1.0], [2.0]])) == [[[1.0]], [[2.0]]]
    rows = [{"index": 1, "embedding": [[2.0]]}, {"index": 0, "embedding": [[1.0]]}]
    assert values(apart(pack, rows)) == [
        [{"index": 0, "embedding": [[1.0]]}],
        [{"index": 0, "embedding": [[2.0]]}],
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": i, "embedding": [1.0]} for i in range(4)]},  # no choices: which two?
        {"data": {}},
        {"data": "x"},
        {"embedding": [1.0]},
        [[1.0]],
    ],
)
def test_an_answer_that_does_not_tell_is_not_taken_apart(answer: Any) -> None:
    """Too few, too many, or elsewhere."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    assert take_apart(pack, response(answer)) is None


@pytest.mark.parametrize(
    "indexes",
    [
        ["0", "1", "2", "3"],
        [0, 1, 2, None],  # it has none
        [0, 1, 2, "x"],
        [0, 1, 2, True],
        [0, 1, 1, 2],
        [0, 0, 1, 1],  # of the choice within its prompt: prompts may be mixed
        [0, 1, 2, 4],
        [0, 1, 2, 2.5],
    ],
)
def test_indexes_that_do_not_give_each_row_its_place_tell_nothing(indexes: list[Any]) -> None:
    """The order of the list is no help: whoever writes indexes may have mixed it."""
    vectors = packed(EMBEDDINGS, *({"model": "m", "input": text} for text in "abcd"))
    two_each = packed(COMPLETIONS, *({"model": "m", "prompt": text, "n": 2} for text in "ab"))
    rows = [{} if index is None else {"index": index} for index in indexes]
    assert take_apart(vectors, response({"data": rows})) is None
    assert take_apart(two_each, response({"choices": rows})) is None


def test_a_row_with_two_indexes_tells_nothing() -> None:
    """Its text is all that shows it."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    text = '{"data": [{"index": 1, "index": 0}, {"index": 1}]}'
    assert take_apart(pack, response(json.loads(text), text=text)) is None


@pytest.mark.parametrize("indexes", [[2.0, 0.0, 1.0], [3, 1, 2], [1, -1, 0]])
def test_whole_numbers_without_a_gap_are_an_order(indexes: list[Any]) -> None:
    """Wherever they begin, and however they are written."""
    pack = packed(EMBEDDINGS, *({"model": "m", "input": text} for text in "abc"))
    rows = [{"index": index, "of": text} for index, text in zip(indexes, "cab", strict=True)]
    found = [value["data"] for value in values(apart(pack, {"data": rows}))]
    assert found == [[{"index": 0, "of": text}] for text in "abc"]


def test_all_members_have_the_failure_of_a_pack() -> None:
    """Each in its own name."""
    pack = packed(EMBEDDINGS, {"model": "m", "input": "a"}, {"model": "m", "input": "b"})
    failed = Outcome(request=pack, ok=False, errors=("HTTP 404",), attempts=1)
    assert [(each.request.number, each.error) for each in parts_of(failed)] == [
        (1, "HTTP 404"),
        (2, "HTTP 404"),
    ]


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**5), min_size=1, max_size=50))
def test_shares_add_up_and_are_near(total: int, weights: list[int]) -> None:
    """Each is less than one away from its exact part."""
    shares = share_out(total, weights)
    assert sum(shares) == total
    whole = sum(weights) or len(weights)
    exact = [total * (weight if sum(weights) else 1) / whole for weight in weights]
    assert all(abs(share - part) < 1 + 1e-6 for share, part in zip(shares, exact, strict=True))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON, st.lists(JSON, min_size=2, max_size=4), st.sampled_from([None, 1]))
def test_any_value_goes_through_as_it_was(rest: Any, found: list[Any], indent: int | None) -> None:
    """Whatever the rows and the other members hold, and however the text is laid out."""
    bodies = ({"input": str(number)} for number in range(len(found)))
    pack = packed(MODERATIONS, *bodies)
    data = {"rest": rest, "results": found}
    parts = take_apart(pack, response(data, text=json.dumps(data, indent=indent)))
    assert parts is not None
    for part, row in zip(parts, found, strict=True):
        value = json.loads(part.response.body)
        got = value["results"][0]
        has_index = isinstance(row, dict) and type(row.get("index")) is int
        assert value["rest"] == rest
        assert has_index or got == row
