"""Files that are read in parts, against the same files read as a whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.exceptions import InputFileError
from parallel_processor.files.sources import find_sources
from parallel_processor.options import Options
from parallel_processor.planning.job.parts import cut, scan, scan_apart, scan_parts
from parallel_processor.planning.job.scan import ScanJob, Tally

URL = "http://127.0.0.1/v1/embeddings"
JOB = ScanJob(options=Options(request_url=URL), sample=5)


def found(tally: Tally) -> dict[str, Any]:
    """All that a tally says."""
    groups = tally.groups.values()
    rates = [group.tokens.tokens_per_byte for group in groups]
    loads = tally.trace.loads(rates)
    return {
        "lines": tally.lines,
        "requests": tally.requests,
        "bad": (tally.bad.count, tally.bad.first),
        "groups": {
            (group.url, group.model): (group.tokens.count, group.packable, group.tokens.spreads())
            for group in groups
        },
        "repeated": tally.repeated.repeated(len(tally.groups)),
        "conflicts": sorted(tally.ids.conflicts()),
        "loads": [(load.group, load.requests) for load in loads],
    }


LINE = st.one_of(
    st.integers(0, 9).map(lambda n: json.dumps({"model": f"m{n % 3}", "input": "text " * n})),
    st.integers(0, 3).map(
        lambda n: json.dumps(
            {"custom_id": str(n % 2), "url": "/v1/embeddings", "body": {"model": "m", "input": n}}
        )
    ),
    st.sampled_from(["", "{not JSON", "[1]", '"text"', "null", " "]),
)


@given(
    files=st.lists(st.lists(LINE, min_size=1, max_size=20), min_size=1, max_size=3),
    ends=st.lists(st.sampled_from(["\n", "\r\n", ""]), min_size=3, max_size=3),
    processes=st.integers(2, 5),
)
@settings(max_examples=15)
def test_parts_are_the_whole(
    files: list[list[str]],
    ends: list[str],
    processes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Wherever a file is cut: each line belongs to one part, and has its own number."""
    folder = tmp_path_factory.mktemp("parts")
    paths = [folder / f"{number}.jsonl" for number in range(len(files))]
    for path, lines, end in zip(paths, files, ends, strict=False):
        # A last line without a valid one before it may make the file another format.
        first = json.dumps({"model": "m0", "input": "first"})
        path.write_text("\n".join([first, *lines]) + end, newline="")
    sources = find_sources([str(path) for path in paths])
    whole, units = scan(sources, JOB, None, 1)
    assert units == ["line"] * len(paths)
    tallies = [scan_parts(parts, JOB) for parts in cut(sources, processes, least_bytes=1)]
    assert len(tallies) == processes
    for tally in tallies[1:]:
        tallies[0].extend(tally)
    assert found(tallies[0]) == found(whole)


def test_processes_read_what_one_reads(tmp_path: Path) -> None:
    """Their tallies come back, with the files that a script of the caller's doesn't guard."""
    rows = [{"model": "m", "input": f"text {number % 40}"} for number in range(200)]
    sources = find_sources(str(write_lines(tmp_path / "in.jsonl", rows)))
    parts = cut(sources, 2, least_bytes=1)
    assert len(parts) == 2
    assert found(scan_apart(parts, JOB)) == found(scan(sources, JOB, None, 1)[0])


def test_what_a_process_raises_is_raised_here(tmp_path: Path) -> None:
    """Here, a file that has gone."""
    sources = find_sources(str(write_lines(tmp_path / "in.jsonl", [{"model": "m", "input": "a"}])))
    parts = cut(sources, 2, least_bytes=1)
    (tmp_path / "in.jsonl").unlink()
    with pytest.raises(InputFileError, match="in.jsonl"):
        scan_apart(parts, JOB)


@pytest.mark.parametrize("kind", ["small", "gzip", "array", "lines"])
def test_what_can_not_be_entered_is_read_as_a_whole(kind: str, tmp_path: Path) -> None:
    """A small file is not worth a process."""
    row = json.dumps({"model": "m", "input": "text"})
    path = tmp_path / "in.jsonl"
    text = f"[{row}, {row}]" if kind == "array" else f"{row}\n{row}\n"
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    given_lines = find_sources(iter([row, row])) if kind == "lines" else find_sources(str(path))
    assert cut(given_lines, 4, least_bytes=1 << 20 if kind == "small" else 1) == []
    tally, units = scan(given_lines, JOB, None, 4)
    assert (tally.requests, units) == (2, ["element" if kind == "array" else "line"])
