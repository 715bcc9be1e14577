"""How workers come to have the limits of one account together."""

from __future__ import annotations

import dataclasses
import math

from parallel_processor.options import DefaultLimit, Limits, Settings


def has_numbers(settings: Settings) -> bool:
    """True if a limit is a number, which all workers together must keep."""
    given = (settings.get("limits") or Limits(), *settings.get("limits_by_model", {}).values())
    return any(limit < math.inf for limits in given for limit in limits.by_kind.values())


def share(settings: Settings, workers: int) -> Settings:
    """The settings of one of ``workers``: its equal share of each limit, unless a limiter holds them."""
    if workers == 1 or settings.get("limiter") is not None:
        return settings
    limits = _part(settings.get("limits") or Limits(), workers)
    by_model = settings.get("limits_by_model", {})
    by_model = {pattern: _part(each, workers) for pattern, each in by_model.items()}
    return {**settings, "limits": limits, "limits_by_model": by_model}


def _part(limits: Limits, workers: int) -> Limits:
    names = [each.name for each in dataclasses.fields(limits) if each.name.endswith("_per_minute")]
    found = {name: getattr(limits, name) for name in names}
    parts = {
        name: (DefaultLimit if isinstance(limit, DefaultLimit) else float)(limit / workers)
        for name, limit in found.items()
        if not isinstance(limit, str)
    }
    return dataclasses.replace(limits, **parts)
