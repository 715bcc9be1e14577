"""Packs: requests with one input each that are sent as one request with all of their inputs.

Many endpoints take a list where one input would do. Where the number of requests is what is limited, a
list of a hundred is a hundred times as fast. A :class:`Pack` is an ordinary request: it is counted,
admitted, sent and tried again like any other. Only its two ends are special. :func:`join` makes it of its
members, and :func:`take_apart` makes the answer of each member out of its answer.

Both work on JSON text. An input is sent, and a vector is recorded, as it came: nothing is parsed and
written again. Of an answer, each member has its own elements of the list, and all else, but for:

* ``index``, which counts within the member: it is 0, or the number of the choice;
* ``usage``, which is shared out by the members' tokens: it adds up to the pack's.

A request can be packed if its endpoint is in ``FORMS`` and it has one input: a text, a list of tokens, or a
list of one of these. Requests go together if they are equal but for the input.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint, Estimate, Outcome, Request, Response
from parallel_processor.providers.dialects import endpoint_of
from parallel_processor.providers.jsontext import (
    Member,
    dump,
    elements,
    end_of_numbers,
    members,
    parse,
)
from parallel_processor.providers.usage import used_tokens


class Form(NamedTuple):
    """Where an endpoint has its inputs, and its answers."""

    input: str  # the member of a request
    answers: tuple[str, ...]  # members of an answer that are lists, or objects of lists by type
    may_repeat: bool = False  # it may give several answers to one input


FORMS: Mapping[Endpoint, Form] = {
    Endpoint.EMBEDDINGS: Form("input", ("data", "embeddings")),
    Endpoint.MODERATIONS: Form("input", ("results",)),
    Endpoint.COMPLETIONS: Form("prompt", ("choices",), may_repeat=True),
    Endpoint.COHERE_EMBED: Form("texts", ("embeddings", "texts")),
    Endpoint.OLLAMA_EMBED: Form("input", ("embeddings",)),
    Endpoint.TEI_EMBED: Form("inputs", ("embeddings", "data")),
}
_USAGE = ("usage", "usageMetadata", "meta", "meta_info", "prompt_eval_count", "eval_count")
_TOTAL = "total_tokens"
_PARTS = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))


class Input(NamedTuple):
    """The one input of a request, with what tells whether it may go together with others."""

    request: Request
    form: Form
    others: Hashable  # requests with equal ones go together
    value: Any
    text: str
    estimate: Estimate = Estimate(0)  # what the request alone may use


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack(Request):
    """Several requests that are sent as one.

    Attributes:
        inputs: those of its members, two at least.
        number: that of its first member.
    """

    inputs: tuple[Input, ...] = field(repr=False)

    @property
    def weights(self) -> list[int]:
        """The tokens of each member."""
        return [each.estimate.input_tokens for each in self.inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOutcome(Outcome):
    """What became of a pack: the outcomes of its members, or of some of them."""

    parts: tuple[Outcome, ...]


def find_input(request: Request, url: str) -> Input | None:
    """The one input of ``request``, which goes to ``url``; ``None`` if it can't be packed.

    An empty one is left alone: servers refuse it, and what it is packed with.
    """
    form, body = FORMS.get(endpoint_of(url)), request.body
    if form is None or not isinstance(body, dict):
        return None
    value = given = body.get(form.input)
    if isinstance(given, list) and len(given) == 1 and not isinstance(given[0], int):
        value = given[0]
    if not value or not (isinstance(value, str) or _are_tokens(value)):
        return None
    parts = members(request.payload.decode())
    if len(parts) != len(body):  # a member is there twice
        return None
    text = next(part.value for part in parts if part.key == form.input)
    if value is not given:
        (text,) = elements(text)
    others = frozenset(part.text for part in parts if part.key != form.input)
    return Input(request, form, (url, type(value), request.is_row, others), value, text)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) == {int}


def join(inputs: Sequence[Input]) -> Request:
    """The pack of ``inputs``, which go together; of a single one, its request as it was read."""
    first = inputs[0].request
    if len(inputs) == 1:
        return first
    name = inputs[0].form.input
    joined = f"{json.dumps(name)}: [{', '.join(each.text for each in inputs)}]"
    parts = members(first.payload.decode())
    text = ", ".join(joined if part.key == name else part.text for part in parts)
    return Pack(
        body={**first.body, name: [each.value for each in inputs]},
        payload=f"{{{text}}}".encode(),
        number=first.number,
        custom_id=first.custom_id,
        url=first.url,
        inputs=tuple(inputs),
    )


def parts_of(outcome: Outcome) -> tuple[Outcome, ...]:
    """The outcomes of the members of a pack that had ``outcome``; of another request, that one."""
    if isinstance(outcome, PackOutcome):
        return outcome.parts
    if not isinstance(outcome.request, Pack):
        return (outcome,)
    requests = (each.request for each in outcome.request.inputs)
    shared = replace(outcome, used_tokens=None)
    return tuple(replace(shared, request=request) for request in requests)


class Part(NamedTuple):
    """One member's part of an answer."""

    response: Response
    used_tokens: int | None


def take_apart(pack: Pack, response: Response) -> list[Part] | None:
    """The answer to each member of ``pack``; ``None`` if it can't be told which is whose.

    The value of an answer is taken apart like its text, if it is there.
    """
    text, data = response.body.decode(), response.data
    count, form = len(pack.inputs), pack.inputs[0].form
    if text.lstrip()[:1] == "[":  # a list alone: TEI's, llama.cpp's
        rows = _rows(text, data, count)
        return None if rows is None else [Part(_answer(response, *row), None) for row in rows]
    parts = members(text, end_of_numbers)
    names = {part.key for part in parts}
    if len(names) < len(parts):
        return None
    split: dict[str, list[_Row]] = {}
    for part in parts:
        value = data.get(part.key) if data is not None else None
        if part.key in form.answers:
            found = _split(part.value, value, count, form.may_repeat)
            if found is None:
                return None
            split[part.key] = found
    if not split:
        return None
    lengths = [sum(len(rows[i].text) for rows in split.values()) for i in range(count)]
    used = _shared_usage(parts, pack.weights, lengths)
    return [_part(response, parts, split, used, i) for i in range(count)]


class _Row(NamedTuple):
    """What one member gets of a member of the answer: its text, and its value."""

    text: str
    value: Any


def _answer(response: Response, text: str, value: Any) -> Response:
    data = value if response.data is not None else None
    return replace(response, body=text.encode(), data=data)


def _part(
    response: Response,
    parts: list[Member],
    split: Mapping[str, list[_Row]],
    used: Mapping[str, list[Any]],
    i: int,
) -> Part:
    """The answer to the member ``i``."""
    texts, data = [], dict(response.data or ())
    for part in parts:
        if (rows := split.get(part.key)) is not None:
            text, data[part.key] = rows[i]
        elif (shares := used.get(part.key)) is not None:
            data[part.key], text = shares[i], dump(shares[i]).decode()
        else:
            texts.append(part.text)
            continue
        texts.append(f"{json.dumps(part.key)}: {text}")
    tokens = used_tokens({name: shares[i] for name, shares in used.items()}) if used else None
    return Part(_answer(response, f"{{{', '.join(texts)}}}", data), tokens)


def _split(text: str, value: Any, count: int, may_repeat: bool) -> list[_Row] | None:
    """A list, or an object of lists by type, as what each of ``count`` members gets."""
    if text[0] == "[":
        return _rows(text, value, count, may_repeat)
    if text[0] != "{":
        return None
    parts = members(text, end_of_numbers)
    columns = [
        _rows(part.value, value and value[part.key], count) if part.value[0] == "[" else None
        for part in parts
    ]
    made = []
    for i in range(count):
        texts, values = [], {}
        for part, rows in zip(parts, columns, strict=True):
            if rows is None:  # null, for a type that nobody asked for
                if part.value[0] == "[" and part.value != "[]":
                    return None
                texts.append(part.text)
                continue
            texts.append(f"{json.dumps(part.key)}: {rows[i].text}")
            values[part.key] = rows[i].value
        made.append(_Row(f"{{{', '.join(texts)}}}", {**(value or {}), **values}))
    return made if any(columns) else None


def _rows(text: str, value: Any, count: int, may_repeat: bool = False) -> list[_Row] | None:
    """The elements of a list, as many for each of ``count`` members, in the order of their indexes."""
    texts = elements(text, end_of_numbers)
    each, rest = divmod(len(texts), count)
    if rest or not each or (each > 1 and not may_repeat):
        return None
    values = value if isinstance(value, list) else [None] * len(texts)
    rows = [_numbered(*row) for row in zip(texts, values, strict=True)]
    if all(row.number is not None for row in rows):
        rows.sort(key=lambda row: row.number or 0)
    made = []
    for start in range(0, len(rows), each):
        own = [row.with_index(i) for i, row in enumerate(rows[start : start + each])]
        made.append(_Row(f"[{', '.join(row.text for row in own)}]", [row.value for row in own]))
    return made


class _Numbered(NamedTuple):
    """An element of a list of answers, with its index if it has one."""

    text: str
    value: Any
    parts: list[Member] | None = None
    number: int | None = None

    def with_index(self, index: int) -> _Row:
        """The same with another index."""
        if self.parts is None or self.number is None:
            return _Row(self.text, self.value)
        texts = (f'"index": {index}' if each.key == "index" else each.text for each in self.parts)
        value = {**self.value, "index": index} if self.value is not None else None
        return _Row(f"{{{', '.join(texts)}}}", value)


def _numbered(text: str, value: Any) -> _Numbered:
    if text[0] != "{":
        return _Numbered(text, value)
    parts = members(text, end_of_numbers)
    found = [part.value for part in parts if part.key == "index"]
    index = int(found[0]) if len(found) == 1 and found[0].isdecimal() else None
    return _Numbered(text, value, parts, index)


def _shared_usage(
    parts: list[Member], inputs: list[int], outputs: list[int]
) -> dict[str, list[Any]]:
    """What each member has of the members of an answer that say what was used."""
    found = ((part.key, part.value) for part in parts if part.key in _USAGE)
    return {
        key: _shared(parse(value, strict=False), inputs, outputs, is_output=_is_output(key))
        for key, value in found
    }


def _is_output(key: str) -> bool:
    return "completion" in key or "output" in key or key == "eval_count"


def _shared(value: Any, inputs: list[int], outputs: list[int], *, is_output: bool) -> list[Any]:
    """``value``, with each number in it shared out by the members' tokens, or by what they were given."""
    weights = outputs if is_output else inputs
    if type(value) is int and value >= 0:
        return share_out(value, weights)
    if type(value) is float:
        total = sum(weights)
        return [value * (weight / total if total else 1 / len(weights)) for weight in weights]
    if not isinstance(value, dict):
        return [value] * len(weights)
    columns = {
        key: _shared(each, inputs, outputs, is_output=is_output or _is_output(key))
        for key, each in value.items()
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for names in _PARTS:  # the parts of each member add up, too
        counts = [value.get(name, 0) for name in names]
        if set(map(type, counts)) == {int} and sum(counts) == value.get(_TOTAL) != 0:
            for row in rows:
                row[_TOTAL] = sum(row.get(name, 0) for name in names)
    return rows if columns else [value] * len(weights)


def share_out(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` as whole numbers in proportion to ``weights``, which add up to it (largest remainder).

    >>> share_out(10, [1, 1, 1])
    [4, 3, 3]
    """
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    remainders = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in remainders[:left]:
        shares[i] += 1
    return shares
