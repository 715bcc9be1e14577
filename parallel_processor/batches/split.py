"""``to-batch``: files to upload to a Batch API, made of any requests.

The requests are read once. Of each model and endpoint, at most 256 kB wait to be written; for the ids it
takes 21 bytes a line. The files get their names when all of them are whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    ResultsFileError,
)
from parallel_processor.files.append_file import REPLACEMENT_SUFFIX, sync_directory
from parallel_processor.files.batch_rows import OPENAI, RowRequest
from parallel_processor.files.compression import written_compression
from parallel_processor.files.custom_ids import arranged
from parallel_processor.files.formats import requests_in, tell_notes
from parallel_processor.files.requests_file import check_paths
from parallel_processor.files.sources import Source, SourceLike, find_sources, open_sources
from parallel_processor.models import Endpoint, Request
from parallel_processor.providers.answers import count_inputs
from parallel_processor.providers.jsontext import dump

MOST_LINES = 50_000
"""Of a file, by OpenAI's rules; also the most inputs of its embeddings requests."""
MOST_BYTES = 200_000_000
"""Of a file, by OpenAI's rules."""
_BUFFER_BYTES = 256 * 1024
_NOWHERE = "https://batch.invalid"  # the base of rows that have a url of their own
_MOST_REASONS = 10


class BatchFile(NamedTuple):
    """A file for a Batch API."""

    path: Path
    model: str
    endpoint: str
    lines: int
    size_bytes: int


class _Part:
    """A file of :func:`split` that grows. It has another name until all are whole."""

    def __init__(self, path: Path, model: str, endpoint: str) -> None:
        self.path, self.model, self.endpoint = path, model, endpoint
        self.lines = self.inputs = self.size_bytes = 0
        self._buffer = bytearray()
        self.temporary = path.with_name(path.name + REPLACEMENT_SUFFIX)
        self.temporary.write_bytes(b"")

    def add(self, line: bytes, inputs: int) -> None:
        """Add a whole line."""
        self.lines, self.inputs = self.lines + 1, self.inputs + inputs
        self.size_bytes += len(line)
        self._buffer += line
        if len(self._buffer) >= _BUFFER_BYTES:
            self.write()

    def write(self, *, lasting: bool = False) -> None:
        """Write what waits. ``lasting``: it is on disk then."""
        # Opened for each piece: there may be more models than a process may have files open.
        with self.temporary.open("ab") as file:
            file.write(self._buffer)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        self._buffer.clear()

    def close(self) -> BatchFile:
        """Write the rest, and give the file its name."""
        self.write(lasting=True)
        return BatchFile(self.path, self.model, self.endpoint, self.lines, self.size_bytes)


def split(
    requests_path: SourceLike,
    save_path: Path,
    *,
    request_url: str | None = None,
    model: str | None = None,
    max_lines: int = MOST_LINES,
    max_bytes: int = MOST_BYTES,
    overwrite: bool = False,
) -> list[BatchFile]:
    """Write the requests as rows to upload. With ``name.jsonl`` as ``save_path``: ``name-001.jsonl`` …

    A file has one model and one endpoint, at most ``max_lines`` lines and as many inputs of embeddings, and
    at most ``max_bytes``. The endpoint of a request that names none is that of ``request_url``, which may
    be a path. ``requests_path`` is what :func:`process_file` takes, but for tables.

    Raises :class:`InputFileError` for lines that can't be uploaded; then nothing is written.
    """
    sources = find_sources(requests_path)
    inputs = [source.path for source in sources if source.path is not None]
    check_paths(inputs, save_path, None)
    endpoint = _endpoint(request_url)
    old = _old_files(inputs, save_path, overwrite=overwrite)
    parts = _Parts(save_path, max_lines, max_bytes)
    try:
        for row in _rows(sources, endpoint, model, max_bytes):
            parts.add(row)
        made = [part.close() for part in parts.all]
        _remove(old)
        for part in parts.all:
            os.replace(part.temporary, part.path)
        sync_directory(save_path.parent)
    except ParallelProcessorError:
        raise
    except OSError as error:
        raise ResultsFileError(f"can't write {save_path}: {error.strerror or error}") from error
    finally:
        _remove(part.temporary for part in parts.all)
    return made


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _old_files(inputs: Sequence[Path], save_path: Path, *, overwrite: bool) -> list[Path]:
    """What will be replaced. Raises :class:`ConfigurationError` if that can't be, or not these names."""
    if written_compression(save_path) is not None:
        raise ConfigurationError(
            f"can't write {save_path}: a Batch API takes files that are not compressed"
        )
    old = _numbered_files(save_path)
    for path in inputs:
        if path.exists() and any(each.samefile(path) for each in old):
            raise ConfigurationError(
                f"the requests file {path} has the name of one of the files to upload: name another with "
                "--save_filepath"
            )
    if old and not overwrite:
        raise ConfigurationError(
            f"{old[0]} is there already: remove such files, name another with --save_filepath, or give "
            "--overwrite"
        )
    return old


def _numbered_files(path: Path) -> list[Path]:
    """The files that an earlier :func:`split` may have written."""
    name = re.compile(rf"{re.escape(path.stem)}-\d{{3,}}{re.escape(path.suffix)}")
    return sorted(each for each in path.parent.glob("*") if name.fullmatch(each.name))


class _Row(NamedTuple):
    line: bytes
    model: str
    endpoint: str
    inputs: int  # of an embeddings request


class _Parts:
    """The files of :func:`split`, of which each model and endpoint has one that isn't full."""

    def __init__(self, save_path: Path, max_lines: int, max_bytes: int) -> None:
        self.all: list[_Part] = []
        self._last: dict[tuple[str, str], _Part] = {}
        self._save_path, self._max_lines, self._max_bytes = save_path, max_lines, max_bytes

    def add(self, row: _Row) -> None:
        """Put ``row`` into the file that it belongs into, which may be a new one."""
        kind = (row.model, row.endpoint)
        part = self._last.get(kind)
        if part is None or not self._fits(row, part):
            if part is not None:
                part.write()  # it gets no more lines
            path = self._save_path
            name = f"{path.stem}-{len(self.all) + 1:03d}{path.suffix}"
            part = self._last[kind] = _Part(path.with_name(name), *kind)
            self.all.append(part)
        part.add(row.line, row.inputs)

    def _fits(self, row: _Row, part: _Part) -> bool:
        has_lines = part.lines < self._max_lines and part.inputs + row.inputs <= self._max_lines
        return has_lines and part.size_bytes + len(row.line) <= self._max_bytes


def _rows(
    sources: Sequence[Source], endpoint: str, model: str | None, max_bytes: int
) -> Iterator[_Row]:
    """The rows of all requests. Raises :class:`InputFileError` if some can't be uploaded."""
    reasons, noted = [], set[str]()
    with open_sources(sources) as lines:
        requests = map(_for_openai, requests_in(lines.numbered(), _NOWHERE, lines.place, model))
        for request in arranged(requests, "batch", lines.place, is_strict=True):
            if request.dropped:
                tell_notes(request, noted, lines.place)
            made = _row_of(request, endpoint, max_bytes)
            if isinstance(made, str):
                place = lines.place(request.number)
                reasons.append(made if made.startswith(place) else f"{place} {made}")
                if len(reasons) == _MOST_REASONS:
                    reasons.append("and perhaps more")
                    break
            elif not reasons:
                yield made
    if reasons:
        texts = "".join(f"\n  {reason}" for reason in reasons)
        raise InputFileError(f"{lines.name} can't be uploaded, and nothing was written:{texts}")


def _endpoint(request_url: str | None) -> str:
    """The endpoint of requests that name none, as a row has it; empty if there is none."""
    path = urlsplit(request_url or "").path
    if request_url and not (path.startswith("/") and path.strip("/")):
        wanted = "a URL or path that ends in an endpoint, as /v1/chat/completions"
        raise ConfigurationError(f"request_url must be {wanted}, not {request_url!r}")
    endpoint = Endpoint.of_path(path)
    return f"/v1{endpoint.value}" if endpoint.is_behind_v1 else path


def _for_openai(request: Request) -> Request:
    """``request``, as an invalid one if its body is of an API that has no endpoint among OpenAI's."""
    dialect = request.dialect if isinstance(request, RowRequest) else OPENAI
    if dialect.has_model or request.invalid_reason is not None:
        return request
    reason = f"is a row in the form of {dialect.name}, which OpenAI's files can't have"
    return replace(request, invalid_reason=reason)


def _row_of(request: Request, endpoint: str, max_bytes: int) -> _Row | str:
    """The row of ``request``, or why it can't be uploaded."""
    if request.invalid_reason is not None:
        return request.invalid_reason
    endpoint = urlsplit(request.url or "").path or endpoint
    if not request.custom_id:
        return "has an empty custom_id"
    if not endpoint:
        return "names no endpoint: give it with --request_url, as /v1/chat/completions"
    if not request.model:
        return "names no model: give one with --model"
    head = dump({"custom_id": request.custom_id, "method": "POST", "url": endpoint})
    line = head[:-1] + b', "body": ' + request.payload + b"}\n"
    if len(line) > max_bytes:
        return f"has {len(line):,} bytes, more than a file may have"
    is_embeddings = Endpoint.of_path(endpoint) is Endpoint.EMBEDDINGS
    inputs = (count_inputs(request.body) or 1) if is_embeddings else 0
    return _Row(line, request.model, endpoint, inputs)
