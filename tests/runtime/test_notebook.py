"""What a notebook shows of an outcome."""

from __future__ import annotations

from html_tables import table

from parallel_processor import Outcome, Request, Response
from parallel_processor.runtime.notebook import html_table

EVIL = "<script>alert(\"1\" & '2')</script>"


def test_a_table_escapes_and_clips() -> None:
    """Nothing in it is markup, long values are cut, and what has no value is left out."""
    rows = [(EVIL, EVIL), ("long", "<" * 20_000), ("none", None), ("empty", ""), ("zero", 0)]
    html = html_table(EVIL, [*rows, ("many", 12345), ("half", "\ud83d")])
    found = table(html)
    assert found.title == EVIL
    assert found.rows.pop("long") == "<" * 500 + "… (20,000 characters)"
    assert found.rows == {EVIL: EVIL, "zero": "0", "many": "12,345", "half": "?"}
    assert html.encode()


def outcome(data: object, **more: object) -> Outcome:
    """The outcome of a request with metadata, answered with ``data``."""
    request = Request(body={"n": 1}, number=1234, metadata={"row": EVIL})
    response = Response(status=200, headers={}, body=b"", data=data, is_json=True)
    settings = {"ok": True, "attempts": 1, "raw_response": response} | more
    return Outcome(request=request, **settings)  # type: ignore[arg-type]


def test_an_answer_is_a_table() -> None:
    """Its text stands there, or how many vectors there are, or else the whole answer."""
    chat = outcome({"choices": [{"text": EVIL}]}, used_tokens=7, latency_s=0.25)
    found = table(chat._repr_html_())
    assert found.title == "Request 1234: answered"
    assert found.rows == {
        "metadata": str({"row": EVIL}),
        "request": "{'n': 1}",
        "text": EVIL,
        "attempts": "1",
        "tokens": "7",
        "latency": "0.25 s",
    }
    vectors = outcome({"data": [{"embedding": [0.5] * 3}] * 2})
    assert table(vectors._repr_html_()).rows["embeddings"] == "2 of 3, 3 numbers"
    assert table(outcome({"odd": 1})._repr_html_()).rows["response"] == "{'odd': 1}"


def test_a_failure_is_a_table() -> None:
    """It has the error of each attempt, and what is unanswered isn't called a failure."""
    failure = outcome(None, ok=False, raw_response=None, errors=("first", EVIL), attempts=2)
    found = table(failure._repr_html_())
    assert found.title == "Request 1234: failed"
    assert found.rows["errors"] == f"first\n{EVIL}"
    assert "text" not in found.rows and "response" not in found.rows
    given_up = outcome(None, ok=False, raw_response=None, unanswered=True)
    assert table(given_up._repr_html_()).title == "Request 1234: unanswered"
