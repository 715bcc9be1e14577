"""What ``scripts/bench parts`` runs: each part of the package beside the least that could do its work."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.jobs import request, write_requests
from benchmarks.tables import Cell, print_table
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.formats import made_request, requests_in
from parallel_processor.files.requests_file import RequestsFile
from parallel_processor.files.writer import ResultWriter
from parallel_processor.models import Outcome, Response
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.tokens.encodings import text_counter
from parallel_processor.tokens.estimates import CostEstimator

URL = "https://127.0.0.1/v1/chat/completions"
PER_S = 10_000
LINE_BYTES = 2000
Row = tuple[str, list[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done."""

    calls: int
    paced_s: float
    lines: int
    rounds: int


SIZES = {
    "tiny": Size(calls=2000, paced_s=0.2, lines=1000, rounds=1),
    "small": Size(calls=30_000, paced_s=1, lines=20_000, rounds=3),
    "full": Size(calls=100_000, paced_s=2, lines=50_000, rounds=5),
}


class PlainBucket:
    """The baseline: a lock, the arithmetic of one quota, and a sleep."""

    def __init__(self, per_s: float, size: float) -> None:
        self._lock, self._per_s, self._size = threading.Lock(), per_s, size
        self._level, self._at = size, time.monotonic()

    def acquire(self, cost: float) -> None:
        """Wait until there is ``cost``."""
        with self._lock:
            now = time.monotonic()
            self._level = min(self._level + (now - self._at) * self._per_s, self._size) - cost
            self._at = now
            wait_s = -self._level / self._per_s
        if wait_s > 0:
            time.sleep(wait_s)


def per_second(work: Callable[[], None], count: int) -> float:
    """How many of ``count`` things ``work`` does in a second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def compared(
    name: str, ours: Callable[[], None], plain: Callable[[], None], count: int, rounds: int
) -> Row:
    """Things a second of both in turn, microseconds for one of ours, and the median ratio."""
    pairs = [(per_second(ours, count), per_second(plain, count)) for _ in range(rounds)]
    rate, baseline = (median(each) for each in zip(*pairs, strict=True))
    return name, [rate, baseline, 1e6 / rate, 1e6 / baseline, median(a / b for a, b in pairs)]


def uncontended(size: Size) -> list[Row]:
    """What the bucket does for one request under limits that never bind."""

    def whole(ends: bool) -> Callable[[], None]:
        def work() -> None:
            bucket = TokenBucket(Limits(requests_per_minute=1e9, tokens_per_minute=1e12))
            wake = threading.Event()
            for _ in range(size.calls):
                reservation = Reservation(100.0, wake)
                bucket.enqueue(reservation)
                if ends:
                    bucket.ended(reservation, answered=True, waker=wake)

        return work

    def plain() -> None:
        bucket = PlainBucket(1e9, 1e9)
        for _ in range(size.calls):
            bucket.acquire(1.0)

    return [
        compared("bucket: enqueue, nobody waits", whole(False), plain, size.calls, size.rounds),
        compared("bucket: enqueue and ended", whole(True), plain, size.calls, size.rounds),
    ]


def admissions(bucket: TokenBucket) -> Callable[[], None]:
    """What one run does to have a request admitted: a reservation, and polls until it is."""
    wake = threading.Event()

    def admit() -> None:
        reservation = Reservation(100.0, wake)
        wake.clear()
        if bucket.enqueue(reservation):
            return
        while delay_s := bucket.poll(reservation):
            wake.wait(delay_s if delay_s < math.inf else None)
            wake.clear()

    return admit


def pace(admits: Sequence[Callable[[], object]], seconds: float) -> tuple[float, float]:
    """Admissions a second once the first burst is over, and CPU seconds used in one; a thread each."""
    counts, over = [0] * len(admits), threading.Event()

    def work(place: int, admit: Callable[[], object]) -> None:
        while not over.is_set():
            admit()
            counts[place] += 1

    running = [threading.Thread(target=work, args=each) for each in enumerate(admits)]
    for each in running:
        each.start()
    time.sleep(0.3)
    before, cpu_s, started = sum(counts), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    rate = (sum(counts) - before) / (time.perf_counter() - started)
    cpu_s = (time.process_time() - cpu_s) / (time.perf_counter() - started)
    over.set()
    for each in running:
        each.join()
    return rate, cpu_s


def paced(size: Size) -> list[Row]:
    """One bucket of 10,000 a second, for the dispatchers of 1 and of 16 runs."""
    rows: list[Row] = []
    limits = Limits(requests_per_minute=PER_S * 60, tokens_per_minute=1e12, burst_seconds=0.05)
    for runs in (1, 16):
        found = []
        for _ in range(size.rounds):
            bucket, plain = TokenBucket(limits), PlainBucket(PER_S, PER_S * 0.05)
            ours = pace([admissions(bucket) for _ in range(runs)], size.paced_s)
            baseline = pace([partial(plain.acquire, 1.0)] * runs, size.paced_s)
            found.append((*ours, *baseline))
        rate, cpu, plain_rate, plain_cpu = (median(each) for each in zip(*found, strict=True))
        cells: list[Cell] = [rate / PER_S, plain_rate / PER_S, cpu, plain_cpu]
        rows.append((f"{PER_S:,}/s through one bucket, {runs} runs", cells))
    return rows


def writing(size: Size, folder: Path) -> Row:
    """Lines of 2 kB through the writer, and by plain writes and one sync."""
    text = "x" * (LINE_BYTES - len(json.dumps(request(0))))
    body = json.dumps({"answer": text}).encode()
    response = Response(status=200, headers={}, body=body, data={"answer": text}, is_json=True)
    outcomes = [
        Outcome(request=made_request(request(number), number + 1), ok=True, raw_response=response)
        for number in range(size.lines)
    ]
    path = folder / "lines.jsonl"

    def fail(error: Exception) -> None:
        raise error

    def ours() -> None:
        path.unlink(missing_ok=True)
        file = AppendFile(path)
        writer = ResultWriter(file, on_written=lambda *_: None, on_failure=fail)
        for outcome in outcomes:
            writer.put(outcome)
        writer.close()
        file.close()

    def plain() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            for outcome in outcomes:
                file.write(b"[" + outcome.request.payload + b", " + body + b"]\n")

    row = compared("writer: lines of 2 kB; plain writes", ours, plain, size.lines, size.rounds)
    ours()
    with path.open("rb") as file:
        if sum(1 for _ in file) != size.lines:
            raise RuntimeError(f"{path} hasn't {size.lines} lines")
    return row


def reading(size: Size, folder: Path) -> Row:
    """Lines through the reader, and by a loop that parses them."""
    path = write_requests(folder / "requests.jsonl", size.lines)

    def ours() -> None:
        with RequestsFile(path) as lines:
            if sum(1 for _ in requests_in(lines.numbered(), URL)) != size.lines:
                raise RuntimeError("lines were lost")

    def plain() -> None:
        with path.open("rb") as file:
            for line in file:
                json.loads(line)

    return compared("reader: lines; json.loads", ours, plain, size.lines, size.rounds)


def counting(size: Size) -> list[Row]:
    """Requests estimated, and tokens counted, by one thread; tiktoken's bare encoding beside them."""
    options = Options(request_url=URL, token_encoding_name="cl100k_base", api_key="sk-bench")
    estimator = CostEstimator(options)
    requests = [made_request(request(n), n + 1) for n in range(min(size.lines, 5000))]
    counter = text_counter("cl100k_base")
    texts = [each.body["messages"][0]["content"] for each in requests]
    tokens = sum(map(counter.count, texts))

    def ours() -> None:
        for each in requests:
            estimator.estimate(each)

    def plain() -> None:
        for text in texts:
            counter.count(text)

    name = "estimates; the prompt's tokens only"
    by_request = compared(name, ours, plain, len(texts), size.rounds)
    rate = median(per_second(ours, tokens) for _ in range(size.rounds))
    baseline = median(per_second(plain, tokens) for _ in range(size.rounds))
    by_token = [rate * 60, baseline * 60, 1e6 / rate, 1e6 / baseline, rate / baseline]
    return [by_request, ("tokens of these a minute", [*by_token])]


def main() -> None:
    """``parts_process SIZE FOLDER``."""
    size, folder = SIZES[sys.argv[1]], Path(sys.argv[2])
    rows = [*uncontended(size), writing(size, folder), reading(size, folder), *counting(size)]
    print_table(("part; baseline", "a second", "baseline", "us each", "baseline", "ratio"), rows)
    columns = ("limiter; baseline", "share", "baseline", "CPU s in 1 s", "baseline")
    print_table(columns, paced(size))


if __name__ == "__main__":
    main()
