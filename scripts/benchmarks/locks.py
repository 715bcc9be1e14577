"""How often the command takes a lock of the package's for each request, counted in runs of their own."""

from __future__ import annotations

import json

from benchmarks import jobs
from benchmarks.jobs import Place

LENGTHS = (200, 600)  # requests of two runs: what start and end take is the same in both
SHOWN_FROM = 0.01  # acquisitions a request


def acquisitions(where: Place, command: list[str], count: int) -> dict[str, int]:
    """Those of one run of our ``command``, by the place that made the lock."""
    report = where.folder / "locks.json"
    counting = [command[0], "-m", "benchmarks.locks_process", str(report), *command[3:]]
    jobs.run(where, counting, count)
    found: dict[str, int] = json.loads(report.read_text("utf-8"))
    return found


def per_request(shorter: dict[str, int], longer: dict[str, int], more: int) -> dict[str, float]:
    """What each of the ``more`` requests of the longer run added, most first."""
    rates = {place: (count - shorter.get(place, 0)) / more for place, count in longer.items()}
    kept = {place: rate for place, rate in rates.items() if rate >= SHOWN_FROM}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def line(name: str, rates: dict[str, float]) -> str:
    """What is printed of them."""
    places = ", ".join(f"{place} {rate:.2f}" for place, rate in rates.items())
    total = sum(rates.values())
    return f"lock acquisitions a request, {name}: {total:.2f} ({places or 'none'})"
