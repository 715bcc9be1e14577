"""``--json_schema``: answers that are no JSON of a schema are failed attempts.

Several cases are what others met:

* answers that are cut off at the same place again and again (graphiti 1053, hindsight 2668);
* NaN that is taken for JSON, references that are fetched, and errors without a place (pflow 600).
"""

from __future__ import annotations

import json
import pickle
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import read_lines, run, write_lines
from raw_server import RawServer, Visit

from parallel_processor.cli.json_schema import AnswerSchema, NotJson, NotOfSchema, read_schema
from parallel_processor.exceptions import ConfigurationError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GOOD = '{"name": "Ada", "age": 36}'


def chat(text: str | None, ending: str = "stop") -> dict[str, Any]:
    """A chat completion with that text."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": ending}]}


def refused(tmp_path: Path, schema: object) -> str:
    """What is said against a file with that schema; what isn't text becomes JSON."""
    path = tmp_path / "schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema), "utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_schema(str(path))
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (chat(GOOD), None, ""),
        (chat(' \n{"age": 36, "name": "Ad\u00e4"}\n'), None, ""),
        ({"content": [{"type": "text", "text": GOOD}], "stop_reason": "end_turn"}, None, ""),
        (chat("Sure! Here it is:"), NotJson, "in 'Sure! Here it is:'"),
        (chat("```json\n" + GOOD + "\n```"), NotJson, "'```json"),
        # The next attempt is cut off at the same place: the record says why.
        (chat(GOOD[:15], "length"), NotJson, "it ended with 'length'"),
        (
            {
                "output": [{"content": [{"type": "output_text", "text": "{"}]}],
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            NotJson,
            "it ended with 'max_output_tokens'",
        ),
        (chat(None), NotJson, "the answer has no text"),
        (chat(""), NotJson, "Expecting value"),
        (chat('{"name": "Ada", "age": NaN}'), NotJson, "NaN is no JSON"),
        (
            chat('{"name": "Ada", "age": "36"}'),
            NotOfSchema,
            "$.age: '36' is not of type 'integer' (rule properties/age/type)",
        ),
        (chat("[]"), NotOfSchema, "$: [] is not of type 'object' (rule type)"),
        (chat('{"name": "Ada"}'), NotOfSchema, "'age' is a required property (rule required)"),
        ({"choices": [*chat(GOOD)["choices"], *chat("{}")["choices"]]}, NotOfSchema, "required"),
        ({"data": [{"embedding": [1.0]}]}, NotJson, "the answer has no text"),
        (["no object"], NotJson, "the answer has no text"),
    ],
)
def test_each_text_of_an_answer_is_checked(answer: Any, error: Any, words: str) -> None:
    """All choices, of all providers; what is wrong is said with its place and the rule."""
    check = AnswerSchema(PERSON)
    if error is None:
        check(answer)
        return
    with pytest.raises(error) as caught:
        check(answer)
    assert words in str(caught.value)


def test_a_long_value_is_not_repeated_in_full() -> None:
    """The place comes first, so that it is on record even if the rest is cut off."""
    with pytest.raises(NotOfSchema) as caught:
        AnswerSchema(PERSON)(chat(json.dumps(["x" * 10_000])))
    assert str(caught.value).startswith("$: [")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "person"}, "FILE is no JSON Schema: $.type: 'person' is not valid"),
        (
            {"properties": {"age": {"pattern": "("}}},
            "$.properties.age.pattern: '(' is not a 'regex'",
        ),
        ([], "FILE is no JSON Schema: $: [] is not an object"),
        ("null", "FILE is no JSON Schema: $: null is not an object"),
        (1.5, "FILE is no JSON Schema: $: 1.5 is not an object"),
        ({"schema": True}, "FILE: its 'schema' is not an object"),
        ({"name": "a", "schema": "b"}, "FILE: its 'schema' is not an object"),
        ({"$schema": []}, "FILE is no JSON Schema: $.$schema: [] is not a string"),
        ("{", "can't read the schema FILE: Expecting property name"),
        ({"$ref": "#"}, "FILE is no JSON Schema: it leads in a circle"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "it leads in a circle"),
        ({"$dynamicRef": "https://x.example/y"}, "FILE: 'https://x.example/y' is not in it"),
        ({"$ref": "http://["}, "FILE: 'http://[' is not in it"),
        (
            {
                "dependencies": {"a": {"$ref": "#/definitions/b"}, "c": ["d"]},
                "definitions": {"b": {"$id": "e", "type": "string"}},
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$ref": "e",
            },
            "jsonschema can't use the schema FILE: 'list' object",
        ),
        ({"$ref": "#/title", "title": "a"}, "FILE: '#/title' is not in it"),
        ({"properties": {"default": {"$ref": "x.json"}}}, "FILE: 'x.json' is not in it"),
        ({"$defs": {"const": {"items": {"$ref": "x.json"}}}}, "FILE: 'x.json' is not in it"),
        (
            {"$ref": "#/parts/a", "parts": {"a": {"not": {"$ref": "x.json"}}}},
            "FILE: 'x.json' is not in it",
        ),
        ({"$ref": "#/$defs/x"}, "FILE: '#/$defs/x' is not in it, and nothing is fetched"),
        (
            {
                "items": [{"$ref": "other.json"}],
                "$schema": "http://json-schema.org/draft-07/schema#",
            },
            "'other.json' is not in it",
        ),
    ],
)
def test_a_wrong_schema_is_refused(tmp_path: Path, schema: object, words: str) -> None:
    """Before anything is sent, with the place of the fault."""
    assert words in refused(tmp_path, schema)


def test_a_schema_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With the reason of the system."""
    with pytest.raises(ConfigurationError, match="missing.json: No such file"):
        read_schema(str(tmp_path / "missing.json"))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """A reference to a server is refused, and no connection is made to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        assert f"{url!r} is not in it" in refused(tmp_path, {"$ref": url})
        with pytest.raises(BlockingIOError):
            server.accept()


def test_references_within_the_schema_are_followed(tmp_path: Path) -> None:
    """By pointer, by id, and to a draft of JSON Schema; data that looks like a reference is none."""
    schema = {
        "$defs": {
            "age": {"type": "integer"},
            "name": {
                "$id": "https://x.example/name",
                "$defs": {"n": {"type": "string"}},
                "$ref": "#/$defs/n",
            },
        },
        "properties": {"age": {"$ref": "#/$defs/age"}, "name": {"$ref": "https://x.example/name"}},
        "default": {"$ref": "nowhere"},
    }
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    check = read_schema(str(path))
    check(chat(GOOD))
    with pytest.raises(NotOfSchema, match=r"\$\.name: 5"):
        check(chat('{"name": 5}'))
    AnswerSchema({"$ref": "http://json-schema.org/draft-07/schema#"})(chat(json.dumps(PERSON)))
    inner = {"$id": "a/b", "$ref": "#/$defs/c", "$defs": {"c": {"$ref": "b"}}}
    with pytest.raises(ConfigurationError, match="leads in a circle"):
        AnswerSchema({"$id": "https://x.example/", "$ref": "a/b", "$defs": {"a": inner}})
    draft_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
    AnswerSchema(draft_7 | {"dependencies": {"a": {}, "name": ["age"]}})(chat(GOOD))


@pytest.mark.parametrize(
    "wrapped",
    [
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        {"model": "m", "response_format": {"json_schema": {"schema": PERSON}}},
        {"name": "person", "strict": True, "schema": PERSON},
    ],
)
def test_the_schema_may_be_wrapped_as_a_request_has_it(wrapped: Any, tmp_path: Path) -> None:
    """Taken for a schema, the wrapping would let everything pass."""
    path = tmp_path / "schema.json"
    path.write_text("\ufeff" + json.dumps(wrapped))  # as editors on Windows write it
    with pytest.raises(NotOfSchema):
        read_schema(str(path))(chat("{}"))


def test_it_goes_to_other_processes() -> None:
    """A worker elsewhere has the same schema."""
    check = pickle.loads(pickle.dumps(AnswerSchema(PERSON)))
    check(chat(GOOD))
    with pytest.raises(NotOfSchema):
        check(chat("{}"))


def test_a_wrong_answer_is_asked_for_again(tmp_path: Path) -> None:
    """The request is answered by a later attempt; one that stays wrong is a failure with its reasons."""
    schema, source, save = (tmp_path / name for name in ("schema.json", "in.jsonl", "out.jsonl"))
    schema.write_text(json.dumps(PERSON))
    write_lines(
        source, [{"model": "m", "messages": [], "user": user} for user in ("once", "never")]
    )
    tries: Counter[str] = Counter()

    def answer(visit: Visit) -> None:
        while visit.read():
            user = json.loads(visit.body)["user"]
            tries[user] += 1
            is_good = user == "once" and tries[user] > 1
            visit.answer(json.dumps(chat(GOOD if is_good else '{"name": "Ada"}')).encode())

    with RawServer(answer) as server:
        flags = {"requests_filepath": source, "save_filepath": save, "json_schema": schema}
        flags |= {"request_url": f"{server.url}/v1/chat/completions", "max_attempts": 3}
        flags |= {"backoff_initial_seconds": 0, "max_requests_per_minute": "inf"}
        done = run(*(word for name, value in flags.items() for word in (f"--{name}", value)))
    assert done.returncode == 1, done.stderr
    assert tries == {"once": 2, "never": 3}
    records = {request["user"]: response for request, response in read_lines(save)}
    assert records["once"]["choices"][0]["message"]["content"] == GOOD
    reason = "invalid answer: NotOfSchema: $: 'age' is a required property (rule required)"
    assert records["never"] == [reason] * 3
    assert "failed with invalid answer NotOfSchema: 1" in done.stderr


def test_a_wrong_schema_ends_the_command_at_once(tmp_path: Path) -> None:
    """Exit code 2, before a request is sent, and one line that names the file."""
    schema, source = tmp_path / "schema.json", write_lines(tmp_path / "in.jsonl", [{"model": "m"}])
    schema.write_text('{"type": "person"}')
    done = run("--requests_filepath", source, "--json_schema", schema)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"parallel-processor: error: the schema {schema} is no JSON Schema: $.type"
    )
    assert done.stderr.count("\n") == 1
