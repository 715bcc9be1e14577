"""The report file, at a run's end and while it goes on."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from commands import write_lines
from raw_server import RawServer, Visit

from parallel_processor import Limits, Outcome, Processor, Request, RetryPolicy
from parallel_processor.exceptions import StopCause
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import BucketReport, LimitReport
from parallel_processor.report.histogram import BINS, bin_of
from parallel_processor.report.report_file import Highlights, LiveReport
from parallel_processor.report.report_file import write_report as write_run_report
from parallel_processor.report.samples import RunReport, Sample, Timeline
from parallel_processor.report.summary import Summary

LIMIT = LimitReport(
    name="tokens",
    configured=30000.0,
    found=math.inf,
    changes=((1.25, 500.0), (2.0, math.inf)),
    used=123.456789123,
    used_share=math.nan,
)
BUCKET = BucketReport(
    url="https://h/v1/embeddings", model="m", waited_s={WaitCause.TOKENS: 2.0}, limits=(LIMIT,)
)
SUMMARY = Summary(
    answered=5,
    elapsed_s=1.23456789,
    errors_by_kind={"timeout": 2},
    stop_reason='the "server" said\nno',
    stop_cause=StopCause.QUOTA,
    waited_s={WaitCause.INPUT: 0.1 + 0.2},
    buckets=(BUCKET,),
)


def write_report(path: Path, summary: Summary, **more: Any) -> None:
    """Write the report of a run of which little more is known than its summary."""
    write_run_report(path, RunReport(summary=summary, started_at=1e9, written_at=1e9 + 1.5, **more))


def no_constant(name: str) -> Any:
    """Refuse what JSON doesn't have."""
    raise AssertionError(f"{name} is no JSON")


def read(path: Path) -> Any:
    """The report, read as strictly as any parser."""
    return json.loads(path.read_text("utf-8"), parse_constant=no_constant)


def test_the_report_is_the_summary(tmp_path: Path) -> None:
    """Every field is there under its name, buckets and their limits as well."""
    path = tmp_path / "report.json"
    write_report(path, SUMMARY)
    report = read(path)
    fields = (*dataclasses.fields(Summary), *dataclasses.fields(RunReport))
    assert set(report) == {field.name for field in fields} - {"summary"}
    assert report["started_at"] == "2001-09-09T01:46:40.000+00:00"
    assert report["written_at"] == "2001-09-09T01:46:41.500+00:00"
    assert (report["answered"], report["stop_reason"]) == (5, 'the "server" said\nno')
    assert report["errors_by_kind"] == {"timeout": 2}
    assert report["stop_cause"] == "quota"
    (bucket,) = report["buckets"]
    assert set(bucket) == set(BucketReport.__dataclass_fields__)
    assert bucket["waited_s"] == {"tokens": 2.0}
    (limit,) = bucket["limits"]
    assert set(limit) == set(LimitReport.__dataclass_fields__)
    assert (limit["name"], limit["configured"]) == ("tokens", 30000.0)

    assert (limit["found"], limit["used_share"]) == (None, None)  # JSON has no infinity and no NaN
    assert limit["changes"] == [[1.25, 500.0], [2.0, None]]
    assert limit["used"] == 123.456789  # six digits behind the point are enough
    assert (report["elapsed_s"], report["waited_s"]) == (1.234568, {"input": 0.3})


def test_any_models_name_is_written(tmp_path: Path) -> None:
    """A name comes from the requests file, which may hold half of a surrogate pair."""
    path = tmp_path / "report.json"
    name = 'm\ud800"\n\u6a21'
    write_report(path, Summary(buckets=(BucketReport(url="", model=name),)))
    assert read(path)["buckets"][0]["model"] == name


def test_the_last_report_is_replaced(tmp_path: Path) -> None:
    """A reader of the old file reads on in it; of a longer one nothing is left, beside or behind."""
    path = tmp_path / "report.json"
    path.write_text("x" * 100_000)
    with path.open() as old:
        write_report(path, Summary())
        assert old.read() == "x" * 100_000
    assert (read(path)["answered"], read(path)["buckets"]) == (0, [])
    assert path.read_text("utf-8").endswith("}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cant_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run doesn't fail. A full disk costs the new report, not the old one, and leaves no part."""
    nowhere, path = tmp_path / "nowhere" / "report.json", tmp_path / "report.json"
    write_report(path, Summary(answered=1))
    write_report(nowhere, SUMMARY)
    assert caplog.messages == [f"can't write the report {nowhere}: No such file or directory"]

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    write_report(path, SUMMARY)
    assert caplog.messages[1:] == [f"can't write the report {path}: No space left on device"]
    assert read(path)["answered"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """A report behind a symbolic link goes where that points, as results do."""
    target, path = tmp_path / "target.json", tmp_path / "report.json"
    target.write_text("{}")
    path.symlink_to(target)
    write_report(path, SUMMARY)
    assert path.is_symlink()
    assert read(target)["answered"] == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_stays_one(tmp_path: Path) -> None:
    """What isn't a regular file, such as /dev/null or /dev/stdout, isn't replaced by one."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_report(path, Summary())
        assert path.is_fifo()
    finally:
        os.close(reader)


def test_a_sample_has_percentiles_in_the_place_of_bins(tmp_path: Path) -> None:
    """What a program reads of the latencies are seconds, and infinite limits are null."""
    path = tmp_path / "report.json"
    counts = [0] * BINS
    counts[bin_of(0.5)], counts[bin_of(4.0)] = 98, 2
    sample = Sample(at_s=2.0, answered=100, latencies=tuple(counts), limits={"tokens": math.inf})
    write_report(path, SUMMARY, timeline=(Sample(at_s=0.0), sample))
    first, second = read(path)["timeline"]
    assert first["latencies"] == {"50": None, "95": None, "99": None}
    assert second["latencies"] == pytest.approx({"50": 0.5, "95": 0.5, "99": 4.0}, rel=0.09)
    assert second["limits"] == {"tokens": None}


@pytest.mark.parametrize("name", ["report.html", "REPORT.HTM"])
def test_a_page_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    """``.html`` gives the page, whatever else the report goes to."""
    write_report(tmp_path / name, SUMMARY)
    assert (tmp_path / name).read_text("utf-8").startswith("<!DOCTYPE html>")


# While the run goes on


def test_a_timeline_stays_short_and_keeps_both_ends() -> None:
    """However many samples come: some hundreds stay, evenly spread, and the intervals grow."""
    timeline = Timeline()
    for number in range(100_000):
        timeline.add(Sample(at_s=float(number), attempts=number))
        assert len(timeline.samples) <= 360
        assert timeline.samples[0].at_s == 0.0 and timeline.samples[-1].at_s == number
    times = [sample.at_s for sample in timeline.samples]
    assert times == sorted(set(times))
    assert timeline.interval_s > 100


class Live:
    """A live report over a clock of the test's."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.sent = 0
        self.report = LiveReport(path, sample=self._sample, tell=self._tell, clock=self.clock)

    def _sample(self) -> Sample:
        return Sample(at_s=self.clock(), attempts=self.sent)

    def _tell(self, timeline: tuple[Sample, ...], is_running: bool) -> RunReport:
        moments = {"started_at": 0.0, "written_at": 1.0}
        summary = Summary(attempts=self.sent)
        return RunReport(summary=summary, timeline=timeline, is_running=is_running, **moments)


def test_the_file_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    """Every ten seconds, with all samples until then; and at the end it says so."""
    path = tmp_path / "report.json"
    live = Live(path)
    for _ in range(30):
        live.sent += 10
        if live.clock() >= live.report.due_at:
            live.report.refresh()
        assert path.exists() == (live.clock() >= 1010.0)
        live.clock.now_s += 0.5
    report = read(path)
    assert report["is_running"] is True
    assert [sample["attempts"] for sample in report["timeline"]] == [0, *range(20, 220, 10)]
    live.report.close()
    assert live.report.due_at == math.inf
    live.report.finish()
    report = read(path)
    assert report["is_running"] is False
    assert len(report["timeline"]) == 31 and report["timeline"][-1]["attempts"] == 300


def test_the_slowest_and_the_last_failures_are_noted() -> None:
    """Twenty of the one and a hundred of the other, the worst and the latest first."""
    notes = Highlights()
    for number in range(1, 501):
        request = Request(body={"model": "m"}, number=number)
        slow = Outcome(request=request, ok=True, attempts=1, latency_s=float(number * 7919 % 500))
        failed = Outcome(request=request, ok=False, errors=("x" * 1000,), error_kind="k")
        notes.add([slow, failed])
    slowest = notes.slowest()
    assert [note.latency_s for note in slowest] == [float(s) for s in range(499, 479, -1)]
    failures = notes.failures()
    assert [note.number for note in failures] == list(range(500, 400, -1))
    assert len(failures[0].error) == 300


def test_a_runs_report_tells_what_happened(tmp_path: Path) -> None:
    """Errors by kind over time, tokens by model, latencies, the slowest and the failed requests."""
    errors = ["once"]

    def answer(visit: Visit) -> None:
        while visit.read():
            if b"once" in visit.body and errors:
                errors.clear()
                visit.answer(b"{}", status="500 Server Error")
            elif b"never" in visit.body:
                visit.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")
            else:
                visit.answer(
                    b'{"embedding": [1], "usage": {"prompt_tokens": 4, "total_tokens": 9}}'
                )

    rows = [
        {"model": "a", "input": "once"},
        {"model": "b", "input": "never"},
        {"model": "b", "input": "x"},
    ]
    source, path = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "report.json"
    no_limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    retry = RetryPolicy(backoff_initial_s=0.0)
    with RawServer(answer) as server:
        url = f"{server.url}/v1/embeddings"
        with Processor(request_url=url, limits=no_limits, retry=retry) as made:
            made.process_file(source, tmp_path / "out.jsonl", report_path=path)
    report = read(path)
    first, last = report["timeline"][0], report["timeline"][-1]
    assert first["attempts"] == 0 and last["attempts"] == 4 and last["answered"] == 2
    assert last["errors"] == {"HTTP 500": 1, "HTTP 400": 1}
    assert last["at_s"] <= report["elapsed_s"]
    assert last["latencies"]["50"] > 0
    assert last["limits"] == {"requests": None, "tokens": None}
    buckets = {bucket["model"]: bucket for bucket in report["buckets"]}
    assert buckets["a"]["used_tokens"] == buckets["b"]["used_tokens"] == 9
    assert (buckets["a"]["answered"], buckets["b"]["answered"]) == (1, 1)
    assert buckets["a"]["reserved_tokens"] > 0
    assert sorted(note["number"] for note in report["slowest"]) == [1, 3]
    (failed,) = report["failures"]
    assert (failed["number"], failed["model"], failed["kind"]) == (2, "b", "HTTP 400")
    assert failed["error"] == "HTTP 400: no"
    assert (report["is_running"], report["fraction"], report["max_workers"]) == (False, 1.0, 1000)


def test_the_page_of_a_run_is_there(tmp_path: Path) -> None:
    """A name that ends with .html gives a page with the run's own figures."""
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m-7", "input": "x"}])
    with RawServer(lambda visit: [visit.answer() for _ in iter(visit.read, False)]) as server:
        with Processor(request_url=f"{server.url}/v1/embeddings") as made:
            made.process_file(source, report_path=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "m-7" in page and "in.jsonl" in page and "http-equiv" not in page
