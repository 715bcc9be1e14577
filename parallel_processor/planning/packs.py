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
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from parallel_processor.models import Endpoint, Estimate, Outcome, Request, Response
from parallel_processor.providers.dialects import endpoint_of
from parallel_processor.providers.jsontext import (
    MemberSpan,
    dump,
    element_spans,
    elements,
    member_spans,
    members,
    parse,
    skip_space,
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


class _Cut(NamedTuple):
    """A piece of an answer's text that each member has another one for."""

    start: int
    end: int
    texts: Sequence[Sequence[str]]  # of each member, to be joined


def take_apart(pack: Pack, response: Response) -> list[Part] | None:
    """The answer to each member of ``pack``; ``None`` if it can't be told which is whose.

    The value of an answer is taken apart like its text, if it is there.
    """
    text, data, count = response.body.decode(), response.data, len(pack.inputs)
    start = skip_space(text, 0)
    if text[start] == "[":  # a list alone: TEI's, llama.cpp's
        found = _split(text, start, data, count)
        if found is None:
            return None
        bodies = _bodies(text, [found[0]], count)
        return [Part(_answer(response, *each), None) for each in zip(bodies, found[1], strict=True)]
    spans = member_spans(text, start)
    if len({span.key for span in spans}) < len(spans):
        return None
    cuts, values = [], dict[str, list[Any]]()
    for span in (span for span in spans if span.key in pack.inputs[0].form.answers):
        value = data.get(span.key) if data is not None else None
        taken = _take_list(text, span, value, pack)
        if taken is None:
            return None
        cuts += taken[0]
        values[span.key] = taken[1]
    if not cuts:
        return None
    lengths = [sum(sum(map(len, cut.texts[i])) for cut in cuts) for i in range(count)]
    used = {}
    for span in (span for span in spans if span.key in _USAGE):
        value = parse(text[span.value_start : span.end], strict=False)
        shares = _shared(value, pack.weights, lengths, is_output=_is_output(span.key))
        texts = [(dump(share).decode(),) for share in shares]
        cuts.append(_Cut(span.value_start, span.end, texts))
        used[span.key] = values[span.key] = shares
    parts = []
    for i, body in enumerate(_bodies(text, sorted(cuts), count)):
        own = None if data is None else {**data, **{key: each[i] for key, each in values.items()}}
        tokens = used_tokens({key: each[i] for key, each in used.items()}) if used else None
        parts.append(Part(_answer(response, body, own), tokens))
    return parts


def has_rows(pack: Pack, response: Response) -> bool:
    """True if ``response`` has some of the answers to ``pack``, though not as they should be."""
    data = response.data
    if isinstance(data, dict):
        return any(data.get(name) for name in pack.inputs[0].form.answers)
    return isinstance(data, list) and len(data) > 0


def _answer(response: Response, body: str, data: Any) -> Response:
    return Response(
        status=response.status,
        headers=response.headers,
        body=body.encode(),
        data=data if response.data is not None else None,
        is_json=True,
    )


def _bodies(text: str, cuts: Sequence[_Cut], count: int) -> Iterator[str]:
    """The text for each member, with its own pieces in place of what is cut out."""
    ends = [0, *(cut.end for cut in cuts)]
    kept = [text[end : cut.start] for end, cut in zip(ends, cuts, strict=False)]
    for i in range(count):
        pieces = [
            piece for same, cut in zip(kept, cuts, strict=True) for piece in (same, *cut.texts[i])
        ]
        yield "".join((*pieces, text[ends[-1] :]))


def _take_list(
    text: str, span: MemberSpan, value: Any, pack: Pack
) -> tuple[list[_Cut], list[Any]] | None:
    """A member of an answer that is a list, or an object of lists by type, and its values by member."""
    count, start = len(pack.inputs), span.value_start
    if text[start] == "[":
        found = _split(text, start, value, count, may_repeat=pack.inputs[0].form.may_repeat)
        return None if found is None else ([found[0]], found[1])
    if text[start] != "{":
        return None
    cuts, values = [], [dict(value or {}) for _ in range(count)]
    for inner in member_spans(text, start):
        if text[inner.value_start] != "[":  # null, for a type that nobody asked for
            continue
        found = _split(text, inner.value_start, value and value[inner.key], count)
        if found is None:
            return None
        cuts.append(found[0])
        for own, each in zip(values, found[1], strict=True):
            own[inner.key] = each
    return (cuts, values) if cuts else None


class _Row(NamedTuple):
    """An element of a list of answers: where it is, its value, and the place of its index."""

    start: int
    end: int
    value: Any
    place: MemberSpan | None = None
    number: int | None = None  # its index; without one that is whole, nobody knows whose it is


def _split(
    text: str, start: int, value: Any, count: int, *, may_repeat: bool = False
) -> tuple[_Cut, list[Any]] | None:
    """The list at ``start``, as many elements for each member, in the order of their indexes.

    ``None`` if some have an index, and these don't give each its place. Without any it is as it came.
    """
    spans = element_spans(text, start)
    each, rest = divmod(len(spans), count)
    if rest or not each or (each > 1 and not may_repeat):
        return None
    known = value if isinstance(value, list) else [None] * len(spans)
    rows = [_row(text, *span, value) for span, value in zip(spans, known, strict=True)]
    if any(row.place is not None for row in rows):
        numbers = {row.number: row for row in rows if row.number is not None}
        if len(numbers) < len(rows) or max(numbers) - min(numbers) >= len(rows):
            return None  # there is none, one twice, or a gap
        rows = [numbers[number] for number in sorted(numbers)]
    texts, values = [], []
    for first in range(0, len(rows), each):
        own = rows[first : first + each]
        pieces = [piece for i, row in enumerate(own) for piece in (", ", *_pieces(text, row, i))]
        texts.append(("[", *pieces[1:], "]"))
        values.append([_renumbered(row, i) for i, row in enumerate(own)])
    end = skip_space(text, spans[-1][1])
    return _Cut(start, end + 1, texts), values


def _row(text: str, start: int, end: int, value: Any) -> _Row:
    if text[start] == "{":
        found = [span for span in member_spans(text, start) if span.key == "index"]
        if found:
            number = _whole(text[found[0].value_start : found[0].end])
            return _Row(start, end, value, found[0], number if len(found) == 1 else None)
    return _Row(start, end, value)


def _whole(text: str) -> int | None:
    """The whole number that ``text`` is, which may be written as ``2.0``."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _pieces(text: str, row: _Row, index: int) -> tuple[str, ...]:
    """The text of ``row`` with another index."""
    if row.place is None:
        return (text[row.start : row.end],)
    return text[row.start : row.place.value_start], str(index), text[row.place.end : row.end]


def _renumbered(row: _Row, index: int) -> Any:
    """The value of ``row`` with another index."""
    return row.value if row.place is None or row.value is None else {**row.value, "index": index}


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
