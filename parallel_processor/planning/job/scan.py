"""Reads a job as its run would, and sends nothing: what is in it, by model and endpoint.

Every line is read, judged and compared with the others. The tokens of each request are counted by what the
run counts with, or those of a sample (``spread.py``). A :class:`Tally` of a part of a file can be added to
that of the part before it, so that several processes read parts (``parts.py``). In memory are some bytes a
line (``equal_lines.py``), and what does not depend on the number of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from parallel_processor.files.custom_ids import in_form, refusing_wrong_api
from parallel_processor.files.formats import requests_in
from parallel_processor.files.identity import content_key
from parallel_processor.files.requests_file import InvalidLine
from parallel_processor.files.resume import AnsweredRequests
from parallel_processor.models import Request
from parallel_processor.options import Options, OutputFormat
from parallel_processor.planning.job.bounds import WITH_INPUTS, Bounds, KnownBounds
from parallel_processor.planning.job.equal_lines import EqualLines, RowIds
from parallel_processor.planning.job.spread import TokenTally
from parallel_processor.planning.job.trace import Trace
from parallel_processor.planning.prices import find_prices
from parallel_processor.providers.answers import count_inputs
from parallel_processor.providers.dialects import endpoint_of, url_model
from parallel_processor.providers.endpoints import host_rule
from parallel_processor.tokens.counter import TokenCounter

_MOST_GROUPS = 256  # a file may name a new model in each line
_MOST_NOTED = 100  # of each kind
_SOURCE_BITS = 40  # of a place: below them is the number of the line in its file
_MASK = (1 << 61) - 1  # of what is never negative


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanJob:
    """How to read a job.

    Attributes:
        options: the run's.
        output_format: the run's, and ``model``.
        sample: how many requests of each model and endpoint to count; ``None``: all.
        seed: chooses which.
    """

    options: Options
    output_format: OutputFormat = "auto"
    model: str | None = None
    sample: int | None = None
    seed: int = 0


class Place(NamedTuple):
    """Where a line is."""

    source: int  # the number of its file
    line: int


def place_of(number: int) -> Place:
    """The place that stands in ``number``."""
    return Place(number >> _SOURCE_BITS, number & ((1 << _SOURCE_BITS) - 1))


@dataclass(slots=True)
class Notes:
    """Lines that something is to be said of: how many, and the place and the text of the first of them."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, place: int, text: str) -> None:
        """Note what is at ``place``."""
        self.count += 1
        if len(self.first) < _MOST_NOTED:
            self.first.append((place, text))

    def extend(self, other: Notes, moved: Callable[[int], int]) -> None:
        """Append ``other``; ``moved`` tells where a place of it is here."""
        self.count += other.count
        room = _MOST_NOTED - len(self.first)
        self.first += [(moved(place), text) for place, text in other.first[:room]]


class Group:
    """The requests of one model and URL. Not thread-safe.

    Attributes:
        url: where they go; ``model`` is theirs, ``endpoint`` that of the URL.
        number: its place among the groups.
        bounds: what can be sent at all.
        tokens: their tokens.
        uncapped: how many name no maximum of output tokens.
        packable: how many have one input, of an endpoint that takes several.
    """

    def __init__(
        self, url: str, model: str, number: int, bounds: Bounds, sample: int | None
    ) -> None:
        self.url, self.model, self.number, self.bounds = url, model, number, bounds
        self.endpoint = endpoint_of(url)
        self.may_pack = self.endpoint in WITH_INPUTS
        self.tokens = TokenTally(sample)
        self.uncapped = self.packable = 0

    @property
    def tokens_per_size(self) -> float:
        """The tokens of a prompt for each unit of its size in the tally."""
        return self.tokens.tokens_per_byte if self.tokens.is_sampled else 1.0


class Tally:
    """What is in a job, or in a part of it. Not thread-safe.

    Attributes:
        lines: how many lines each source has, blank ones included.
        requests: how many were judged good; ``answered`` have an answer, ``kept`` a failure that stays.
        groups: the requests that are left, by URL and model.
        bad: lines that become failed records without being sent.
        oversized: requests that no server takes, as far as that is known.
        alone: requests of more tokens than a minute allows.
        repeated: equal lines. Sizes there, and in the trace, are tokens of prompts if all are counted, else
            bytes.
        ids: the ids of rows.
        trace: the order.
    """

    def __init__(self, job: ScanJob) -> None:
        self._sample, self._seed = job.sample, job.seed
        self.lines: dict[int, int] = {}
        self.requests = self.answered = self.kept = 0
        self.groups: dict[tuple[str, str], Group] = {}
        self.bad, self.oversized, self.alone = Notes(), Notes(), Notes()
        self.repeated, self.ids, self.trace = EqualLines(), RowIds(), Trace()

    def extend(self, other: Tally) -> None:
        """Append ``other``, which is of what comes next."""
        first = min(other.lines, default=0)
        before = self.lines.get(first, 0)

        def moved(place: int) -> int:
            return place + before if place >> _SOURCE_BITS == first else place

        for source, lines in other.lines.items():
            self.lines[source] = self.lines.get(source, 0) + lines
        self.requests += other.requests
        numbers = [self._adopt(key, group) for key, group in other.groups.items()]
        for mine, theirs in zip(self._notes, other._notes, strict=True):
            mine.extend(theirs, moved)
        self.repeated.extend(other.repeated, numbers)
        self.ids.extend(other.ids, moved)
        self.trace.extend(other.trace, numbers)

    @property
    def _notes(self) -> tuple[Notes, ...]:
        return self.bad, self.oversized, self.alone

    def _adopt(self, key: tuple[str, str], theirs: Group) -> int:
        """Add a group of another tally; its number here."""
        mine = self.groups.get(key)
        if mine is None:
            mine = self.group(key, theirs.bounds)
        mine.tokens.merge(theirs.tokens)
        mine.uncapped += theirs.uncapped
        mine.packable += theirs.packable
        return mine.number

    def group(self, key: tuple[str, str], bounds: Bounds) -> Group:
        """The group ``key``, which is new; beyond 256, one for all further ones."""
        if len(self.groups) >= _MOST_GROUPS:
            key = ("", "")
            if key in self.groups:
                return self.groups[key]
        made = self.groups[key] = Group(*key, len(self.groups), bounds, self._sample)
        return made

    def priority(self, key: int, offset: int) -> int:
        """By which the sample is drawn: the same line of a file has the same one each time."""
        return hash((key, offset, self._seed)) & _MASK


class Scanner:
    """Reads lines into a tally. For one thread."""

    def __init__(self, job: ScanJob, answered: AnsweredRequests | None = None) -> None:
        """``answered`` tells what needs not be sent."""
        self.tally = Tally(job)
        self._job, self._answered = job, answered
        self._bounds = KnownBounds(job.options, find_prices(job.options.prices)).of
        self._url, self._rule = job.options.request_url, host_rule(job.options)
        self._counter = TokenCounter(
            encoding_name=job.options.token_encoding_name,
            default_output_tokens=job.options.default_output_tokens,
        )
        self._offset = self._line = 0

    def scan(
        self,
        lines: Iterable[tuple[int, bytes | InvalidLine]],
        source: int,
        *,
        before: int = 0,
        offset: int = 0,
    ) -> int:
        """Read the lines of a source, or of a part of it; the number of the last one.

        ``before`` is how many lines there are in the sources before it. ``offset`` is where the part
        begins, in bytes.
        """
        self._offset, self._line = offset, 0
        requests = requests_in(
            self._passed(lines, before),
            self._url,
            _no_place,
            self._job.model,
            self._rule,
            is_sent=True,
        )
        if not (source or offset):
            requests = refusing_wrong_api(requests, self._url, "line {}".format)
        base = source << _SOURCE_BITS
        for request in requests:
            self._add(request, base + request.number - before, before)
        self.tally.lines[source] = self.tally.lines.get(source, 0) + self._line
        return self._line

    def _passed(
        self, lines: Iterable[tuple[int, bytes | InvalidLine]], before: int
    ) -> Iterator[tuple[int, bytes | InvalidLine]]:
        """``lines``, counted, and numbered through all sources."""
        for number, line in lines:
            self._line = number
            yield number + before, line
            self._offset += len(line) if isinstance(line, bytes) else 0

    def _add(self, request: Request, place: int, before: int) -> None:
        tally, answered = self.tally, self._answered
        if self._job.output_format != "auto":
            request = in_form(request, self._job.output_format)
        if request.custom_id is not None:
            tally.ids.add(request.custom_id, _hash_of(request), place)
        if answered is not None:
            if answered.take(request):
                tally.answered += 1
                return
            if answered.kept_failures.take(request):
                tally.kept += 1
                return
            answered.check_id(request, f"line {request.number - before}")
        if request.invalid_reason is not None:
            tally.bad.add(place, request.invalid_reason.removeprefix(":").strip())
            return
        tally.requests += 1
        self._count(request, place)

    def _count(self, request: Request, place: int) -> None:
        url = request.url or self._url
        model = request.model or url_model(url)
        tally = self.tally
        group = tally.groups.get((url, model)) or tally.group(
            (url, model), self._bounds(url, model)
        )
        body, endpoint = request.body, group.endpoint
        cap = self._counter.output_cap(body, endpoint)
        if cap is None:
            group.uncapped += 1
        output = self._counter.usual_output(body, endpoint) if cap is None else cap
        key, size_bytes = _hash_of(request), len(request.payload)
        counted = [0, 0]  # whether its tokens are, and how many

        def count() -> int:
            if not counted[0]:
                counted[:] = True, self._counter.input_tokens(body, endpoint, model)
            return counted[1]

        group.tokens.add(size_bytes, output, tally.priority(key, self._offset), count)
        inputs = count_inputs(body) if group.may_pack else 1
        if size_bytes + output > group.bounds.least:  # no text has more tokens than bytes
            self._judge(group, inputs or 1, count(), output, place)
        if group.may_pack and inputs == 1:
            group.packable += 1
        size = size_bytes if group.tokens.is_sampled else count()
        tally.repeated.add(key, group.number, size)
        tally.trace.add(group.number, 1.0, size, output)

    def _judge(self, group: Group, inputs: int, tokens: int, output: int, place: int) -> None:
        """Note what can't be sent, or not with others."""
        bounds = group.bounds
        if (fault := bounds.fault(inputs, tokens, output)) is not None:
            self.tally.oversized.add(place, fault)
        if tokens + output > bounds.tokens_per_minute:
            self.tally.alone.add(place, f"{tokens + output:,} tokens")


def _hash_of(request: Request) -> int:
    return int.from_bytes(content_key(request)[:8], "big")


def _no_place(number: int) -> str:
    return ""


def without_secrets(options: Options) -> Options:
    """``options`` as another process needs them to read: no key, and nothing that can't be sent to it."""
    return replace(
        options,
        api_key=None,
        api_keys={},
        headers={},
        query={},
        login=None,
        session_factory=None,
        validate=None,
        limiter=None,
        auth_header=None,
    )
