"""The report of a run while it goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from clocks import FakeClock
from commands import write_lines
from raw_server import RawServer, Visit

from parallel_processor import Limits, Outcome, Processor, Request, RetryPolicy
from parallel_processor.figures import RunReport, Sample, Summary
from parallel_processor.livereport import LiveReport, Timeline
from parallel_processor.notes import Notes


def read(path: Path) -> Any:
    """The report."""
    return json.loads(path.read_text("utf-8"))


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


class Told:
    """A live report over a clock of the test's."""

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.sent = 0
        self.report = LiveReport(path, sample=self._sample, tell=self._tell, clock=self.clock)

    def _sample(self) -> Sample:
        return Sample(at_s=self.clock(), attempts=self.sent)

    def _tell(self, timeline: tuple[Sample, ...], is_running: bool) -> RunReport:
        summary = Summary(attempts=self.sent)
        return RunReport(
            summary=summary, started_at=0.0, told_at=1.0, timeline=timeline, is_running=is_running
        )


def test_the_file_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    """Every ten seconds, with all samples until then; and at the end it says so."""
    path = tmp_path / "report.json"
    told = Told(path)
    for _ in range(30):
        told.sent += 10
        if told.clock() >= told.report.due_at:
            told.report.refresh()
        assert path.exists() == (told.clock() >= 1010.0)
        told.clock.now_s += 0.5
    report = read(path)
    assert report["is_running"] is True
    assert [sample["attempts"] for sample in report["timeline"]] == [0, *range(20, 220, 10)]
    told.report.close()
    assert told.report.due_at == math.inf
    told.report.finish()
    report = read(path)
    assert report["is_running"] is False
    assert len(report["timeline"]) == 31 and report["timeline"][-1]["attempts"] == 300


def test_the_slowest_and_the_last_failures_are_noted() -> None:
    """Twenty of the one and a hundred of the other, the worst and the latest first."""
    notes = Notes()
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
    counts = {"once": 0}

    def answer(visit: Visit) -> None:
        while visit.read():
            if b"once" in visit.body and not counts["once"]:
                counts["once"] += 1
                visit.answer(b"{}", status="500 Server Error")
            elif b"never" in visit.body:
                visit.answer(b'{"error": {"message": "no"}}', status="400 Bad Request")
            else:
                visit.answer(b'{"usage": {"prompt_tokens": 4, "total_tokens": 9}}')

    rows = [{"model": "a", "input": "once"}, {"model": "b", "input": "never"}, {"model": "b", "input": "x"}]
    source, path = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "report.json"
    no_limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    retry = RetryPolicy(backoff_initial_s=0.0)
    with RawServer(answer) as server:
        with Processor(
            request_url=f"{server.url}/v1/embeddings", limits=no_limits, retry=retry
        ) as made:
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
    assert (report["is_running"], report["fraction"], report["max_workers"]) == (False, 1.0, 1000)


def test_the_page_of_a_run_is_there(tmp_path: Path) -> None:
    """A name that ends with .html gives a page with the run's own figures."""
    source = write_lines(tmp_path / "in.jsonl", [{"model": "m-7", "input": "x"}])
    with RawServer(lambda visit: [visit.answer() for _ in iter(visit.read, False)]) as server:
        with Processor(request_url=f"{server.url}/v1/embeddings") as made:
            made.process_file(source, report_path=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "m-7" in page and "in.jsonl" in page and "http-equiv" not in page
