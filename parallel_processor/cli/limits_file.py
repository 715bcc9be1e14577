"""A file of limits by model: ``{"gpt-4o*": {"requests_per_minute": 500, "tokens_per_minute": 30000}}``.

The first pattern that a model matches counts. All models of one pattern share its limits. The value
of a limit is a number (a ceiling), ``"auto"`` (find it), or ``"inf"`` or ``null`` (no limit). A limit on
requests or tokens that is left out is found.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import ConfigurationError, LimitsFileError
from parallel_processor.options import Limits

_NAMES = ("requests_per_minute", "tokens_per_minute")
_PART_NAMES = ("input_tokens_per_minute", "output_tokens_per_minute")


def read_limits_file(path: Path, **common: float) -> dict[str, Limits]:
    """The limits in ``path`` by pattern, in the file's order; ``common`` is set for all of them.

    Raises :class:`LimitsFileError`, which names the entry that is wrong and what it may hold.
    """
    try:
        entries = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LimitsFileError(f"can't read the limits in {path}: {reason}") from None
    if not isinstance(entries, dict):
        example = f'{{"gpt-4o*": {{"{_NAMES[0]}": 500}}}}'
        what = f"an object of limits by model pattern, such as {example}"
        raise LimitsFileError(f"{path} must be {what}")
    return {pattern: _limits(path, pattern, entry, common) for pattern, entry in entries.items()}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(f"{duplicate!r} is there twice")
    return dict(pairs)


def _limits(path: Path, pattern: str, entry: Any, common: dict[str, float]) -> Limits:
    where = f"{path}: the limits of {pattern!r}"
    if not isinstance(entry, dict):
        raise LimitsFileError(f'{where} must be an object such as {{"{_NAMES[0]}": 500}}')
    known = _NAMES + _PART_NAMES
    unknown = [name for name in entry if name not in known]
    if unknown:
        known_names = f"known are {', '.join(known)}"
        raise LimitsFileError(f"{where} have the unknown name {unknown[0]!r}; {known_names}")
    values: dict[str, Any] = dict.fromkeys(_NAMES, "auto")
    for name, value in entry.items():
        values[name] = math.inf if value in (None, "inf") else value
    try:
        return Limits(**values, **common)
    except ConfigurationError as error:
        raise LimitsFileError(f"{where}: {error}") from None
