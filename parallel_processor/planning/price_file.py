"""A file of prices, in one of two forms.

By pattern, in US dollars per million tokens; the first pattern that a model matches counts, and one with
a service tier, ``gpt-5*@flex``, comes before those without::

    {"gpt-4o*": {"input": 2.5, "output": 10, "cached_input": 1.25}}

``cached_input``, ``cache_write`` and ``cache_write_1h`` are what ``input`` is if they are left out;
``per_request`` is in US dollars.

LiteLLM's ``model_prices_and_context_window.json`` as it is: by name, with ``input_cost_per_token`` and its
kin. Where a name begins with a provider, as ``groq/…`` does, it is for that provider's host.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from os import PathLike, fspath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from parallel_processor.exceptions import ConfigurationError

_NEEDED = ("input", "output")
_NAMES = (*_NEEDED, "cached_input", "cache_write", "cache_write_1h", "per_request")
_LITELLM_NAMES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
_TIERS = {"batch": "batches"}  # its words for ours
_LITELLM_MARKS = ("litellm_provider", "input_cost_per_token")
_ABOVE = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
_EXAMPLE = '{"gpt-4o*": {"input": 2.5, "output": 10}}'
_MILLION = 1_000_000.0
_LEAST, _MOST = 1e-4, 1e5  # dollars per million tokens: others are in another unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePrice:
    """One entry: its rates by name for prompts of more than so many tokens, the longest first."""

    steps: tuple[tuple[int, Mapping[str, float]], ...]
    per_request: float = 0.0
    is_of_tier: bool = False  # the entry is for the service tier that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """The entries of a file: by pattern in its order, and LiteLLM's by name, not yet looked at."""

    patterns: tuple[tuple[str, TablePrice], ...] = ()
    by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def find(self, model: str, tier: str, provider: str, url: str) -> TablePrice | None:
        """The entry for ``model`` in a service tier, at ``url``, which is of ``provider``."""
        with_tier = f"{model}@{tier}"
        for pattern, price in self.patterns if tier else ():
            if fnmatchcase(with_tier, pattern) and not fnmatchcase(model, pattern):
                return TablePrice(steps=price.steps, per_request=price.per_request, is_of_tier=True)
        for pattern, price in self.patterns:
            if fnmatchcase(model, pattern):
                return price
        entry = self._named(model, provider, url) if self.by_name else None
        if entry is not None and "alias_of" in entry:
            entry = self.by_name.get(entry["alias_of"])
        return None if entry is None else _of_litellm(entry, _TIERS.get(tier, tier))

    def prompt_tokens(self, model: str, provider: str, url: str) -> int | None:
        """The most tokens of a prompt, which LiteLLM's file has for most models."""
        entry = (self._named(model, provider, url) if self.by_name else None) or {}
        most = entry.get("max_input_tokens")
        return most if isinstance(most, int) else None

    def _named(self, model: str, provider: str, url: str) -> Mapping[str, Any] | None:
        """LiteLLM's entry: that of the provider, if there is one, else that of the bare name."""
        where = _letters(provider + (urlsplit(url).hostname or ""))
        for name, entry in self.by_name.items():
            prefix, _, rest = name.partition("/")
            if rest == model and _letters(prefix.removesuffix("_ai")) in where:
                return entry
        return self.by_name.get(model)


def read_price_file(source: str | PathLike[str] | Mapping[str, Mapping[str, float]]) -> PriceTable:
    """The prices in the file ``source``, or in its content.

    Raises :class:`ConfigurationError`, which names the entry that is wrong and what it may hold.
    """
    if isinstance(source, Mapping):
        return _table("prices", source)
    path = Path(fspath(source))
    try:
        entries = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"can't read the prices in {path}: {reason}") from None
    return _table(str(path), entries)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _table(where: str, entries: Any) -> PriceTable:
    if not isinstance(entries, Mapping):
        raise ConfigurationError(
            f"{where} must be an object of prices by model pattern, such as {_EXAMPLE}"
        )
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            what = 'an object such as {"input": 2.5, "output": 10}'
            raise ConfigurationError(f"{where}: the price of {name!r} must be {what}")
    is_litellms = any(mark in entry for entry in entries.values() for mark in _LITELLM_MARKS)
    check = _check_litellm if is_litellms else _check
    for name, entry in entries.items():
        check(f"{where}: the price of {name!r}", entry)
    if is_litellms:
        return PriceTable(by_name={k: v for k, v in entries.items() if k != "sample_spec"})
    return PriceTable(patterns=tuple((name, _of_ours(each)) for name, each in entries.items()))


def _check(what: str, entry: Mapping[str, Any]) -> None:
    unknown = [name for name in entry if name not in _NAMES]
    if unknown:
        known = ", ".join(_NAMES)
        raise ConfigurationError(f"{what} has the unknown name {unknown[0]!r}; known are {known}")
    for name in _NEEDED:
        if name not in entry:
            hint = " (0 if there is none, as for embeddings)" if name == "output" else ""
            raise ConfigurationError(f"{what} lacks {name!r}{hint}")
    for name, value in entry.items():
        _check_number(what, name, value)
        if name != "per_request" and value and not _LEAST <= value <= _MOST:
            unit = "must be US dollars per million tokens"
            raise ConfigurationError(f"{what}: {name!r} {unit}, not {value!r}")


def _of_ours(entry: Mapping[str, Any]) -> TablePrice:
    per_request = float(entry.get("per_request", 0.0))
    rates = {name: float(value) for name, value in entry.items() if name != "per_request"}
    return TablePrice(steps=((-1, rates),), per_request=per_request)


def _check_number(what: str, name: str, value: Any) -> None:
    if not _is_number(value):
        raise ConfigurationError(f"{what}: {name!r} must be a number from 0, not {value!r}")


def _check_litellm(what: str, entry: Mapping[str, Any]) -> None:
    if entry.get("input_cost_per_request") is not None:
        _check_number(what, "input_cost_per_request", entry["input_cost_per_request"])
    if not isinstance(entry.get("alias_of", ""), str):
        raise ConfigurationError(f"{what}: 'alias_of' must be a name, not {entry['alias_of']!r}")
    _check_rates(what, entry)
    stages = entry.get("tiered_pricing")
    for stage in stages if isinstance(stages, list) else ():
        begin = stage.get("range") if isinstance(stage, Mapping) else None
        if not isinstance(stage, Mapping) or not (begin is None or _is_range(begin)):
            form = 'must be objects with a "range" of two numbers'
            raise ConfigurationError(f"{what}: those of 'tiered_pricing' {form}, not {stage!r}")
        _check_rates(what, stage)


def _check_rates(what: str, entry: Mapping[str, Any]) -> None:
    for name, value in entry.items():
        if value is None or not name.startswith(tuple(_LITELLM_NAMES.values())):
            continue
        _check_number(what, name, value)
        if value * _MILLION > _MOST:
            unit = "must be US dollars per token"
            raise ConfigurationError(f"{what}: {name!r} {unit}, not {value!r}")


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def _of_litellm(entry: Mapping[str, Any], tier: str) -> TablePrice | None:
    """An entry of LiteLLM's; ``None`` if it has no price by tokens."""
    stages = entry.get("tiered_pricing")
    if isinstance(stages, list):
        given = [(_start(each), _rates(each, "", "")) for each in stages]
    else:
        found = (_ABOVE.fullmatch(name) for name in entry)
        ends = {f"_above_{each[1]}k_tokens": int(each[1]) * 1000 for each in found if each}
        given = [(above, _rates(entry, end, tier)) for end, above in {"": -1, **ends}.items()]
    steps = [(above, rates) for above, rates in given if rates is not None]
    if not steps or min(steps, key=lambda step: step[0])[0] >= 0:
        return None
    steps.sort(key=lambda step: -step[0])
    of_tier = bool(tier) and f"{_LITELLM_NAMES['input']}_{tier}" in entry
    per_request = entry.get("input_cost_per_request") or 0.0
    return TablePrice(steps=tuple(steps), per_request=per_request, is_of_tier=of_tier)


def _start(stage: Mapping[str, Any]) -> int:
    """The tokens above which one of LiteLLM's stages counts."""
    begin = int((stage.get("range") or [0])[0])
    return begin or -1


def _rates(entry: Mapping[str, Any], end: str, tier: str) -> dict[str, float] | None:
    """The rates of one step, in US dollars per million tokens; what it leaves out is that of all steps."""
    rates: dict[str, float] = {}
    for ours, theirs in _LITELLM_NAMES.items():
        places = [f"{theirs}{end}_{tier}"] if tier else []
        places += [f"{theirs}{end}", theirs]
        value = next((entry[name] for name in places if entry.get(name) is not None), None)
        if value is not None:
            rates[ours] = float(value) * _MILLION
    if "input" not in rates and "output" not in rates:
        return None
    return {"input": 0.0, "output": 0.0, **rates}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
