"""Medians, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

Cell = float | str | None


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what there is, ``None`` of nothing."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def ratios(values: Sequence[float], baseline: Sequence[float] | None) -> float | None:
    """The median of the ratios of each round."""
    if not baseline:
        return None
    return middle([a / b if b else None for a, b in zip(values, baseline, strict=True)])


def shown(value: Cell) -> str:
    """A number with three digits or more, ``-`` for none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def print_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    """Names on the left, numbers on the right."""
    cells = [[shown(value) for value in values] for _, values in rows]
    names = max([len(columns[0]), *(len(name) for name, _ in rows)])
    widths = [
        max([len(column), *(len(row[place]) for row in cells)])
        for place, column in enumerate(columns[1:])
    ]
    for name, row in [(columns[0], columns[1:]), *zip([n for n, _ in rows], cells, strict=True)]:
        line = "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        print(f"{name:{names}}  {line}", flush=True)
