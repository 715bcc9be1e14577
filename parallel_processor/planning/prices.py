"""What a model's tokens cost, in US dollars.

A price comes from the user's file (``price_file.py`` tells its forms), else from the package genai-prices,
the extra ``cost``, whose data is in the package: nothing is fetched. A URL's host names the provider.
On a host that no provider has (a gateway, a server at home) the model's name alone counts.

A service tier has a price of its own where the file or the package names one. Otherwise it costs what the
model costs; only a tier that is known to cost more has no price then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from typing import Any, NamedTuple

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.planning.price_file import PriceTable, TablePrice, read_price_file
from parallel_processor.providers.dialects import provider_of

_MILLION = 1_000_000.0
BATCH = "batch"
"""Stands for a provider's Batch API where a service tier does."""
_DEARER = ("priority", "fast", "performance", "ultrafast")  # tiers
INSTALL = "pip install 'parallel-api-processor[cost]'"


class Rates(NamedTuple):
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float  # of a prompt's tokens that the server had in its cache
    cache_write: float  # of those that it put there
    cache_write_1h: float  # of those that it keeps for an hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What the requests of one model cost.

    Attributes:
        steps: the rates for prompts of more than so many tokens, the longest prompts first; the last
            ones are for all others, from -1 on.
        per_request: US dollars for each request, whatever it holds.
    """

    steps: tuple[tuple[int, Rates], ...]
    per_request: float = 0.0

    def rates(self, input_tokens: int = 0) -> Rates:
        """The rates for a prompt of that many tokens."""
        if len(self.steps) == 1:
            return self.steps[0][1]
        return next(rates for above, rates in self.steps if input_tokens > above)

    def cost(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
    ) -> float:
        """What a request costs in US dollars.

        ``input_tokens`` is the whole prompt: tokens read from a cache and those written to one are in it.
        """
        rates = self.rates(input_tokens)
        if not (cached_tokens or cache_write_tokens or cache_write_1h_tokens):
            tokens = rates.input * input_tokens + rates.output * output_tokens
            return self.per_request + tokens / _MILLION
        plain = input_tokens - cached_tokens - cache_write_tokens - cache_write_1h_tokens
        total = rates.input * max(plain, 0) + rates.output * output_tokens
        total += rates.cached_input * cached_tokens + rates.cache_write * cache_write_tokens
        total += rates.cache_write_1h * cache_write_1h_tokens
        return self.per_request + total / _MILLION

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a request of so many tokens costs, however its prompt is cached."""
        rates = self.rates(input_tokens)
        dearest = max(rates.input, rates.cached_input, rates.cache_write, rates.cache_write_1h)
        return self.per_request + (dearest * input_tokens + rates.output * output_tokens) / _MILLION


class Prices:
    """The prices of all models. Any thread may call it.

    Attributes:
        uses_package: whether models that the table doesn't have are looked up in genai-prices.
    """

    def __init__(self, table: PriceTable | None = None, *, uses_package: bool = False) -> None:
        """Take the prices of ``table``; for other models those of genai-prices, if it is to be used.

        Raises :class:`ConfigurationError` if that package is not installed.
        """
        self._table = table or PriceTable()
        self.uses_package = uses_package
        self._package = _load_package() if uses_package else None
        self._found: dict[tuple[str, str, str], Price | None] = {}

    def of(self, url: str, model: str, tier: str = "") -> Price | None:
        """The price of ``model`` at ``url`` in a service tier; ``None`` if it isn't known."""
        key = (url, model, tier)
        if key not in self._found:
            self._found[key] = self._find(url, model, tier)
        return self._found[key]

    def context(self, url: str, model: str) -> tuple[float, float]:
        """The most tokens that ``model`` takes: with its answer, and of a prompt; infinite if unknown."""
        prompt = self._table.prompt_tokens(model, provider_of(url).name, url)
        whole = None if self._package is None else _context(self._package, url, model)
        return whole or math.inf, prompt or math.inf

    def _find(self, url: str, model: str, tier: str) -> Price | None:
        found = self._table.find(model, tier, provider_of(url).name, url)
        if found is not None:
            is_dearer = tier in _DEARER and not found.is_of_tier
            return None if is_dearer else _of_table(found)
        return None if self._package is None else _of_package(self._package, url, model, tier)


def find_prices(
    source: str | PathLike[str] | Mapping[str, Mapping[str, float]] | None,
) -> Prices | None:
    """The prices that ``source`` names: a file, its content, or ``"auto"``; ``None`` for none.

    Models that a file doesn't have are looked up in genai-prices, where that is installed. ``"auto"`` is
    genai-prices alone, and ``None`` where it is not installed. Raises :class:`ConfigurationError`, which
    names the entry that is wrong.
    """
    if source is None:
        return None
    if source == "auto":
        return Prices(uses_package=True) if has_package() else None
    return Prices(read_price_file(source), uses_package=has_package())


def has_package() -> bool:
    """True if genai-prices can be imported."""
    try:
        _load_package()
    except ConfigurationError:
        return False
    return True


def _load_package() -> Any:
    try:
        import genai_prices  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        text = "prices need the package genai-prices (Python 3.11 and later), or a file of prices"
        raise ConfigurationError(f"{text}: {INSTALL} ({error})") from None
    return genai_prices


def _of_table(found: TablePrice) -> Price:
    steps = []
    for above, given in found.steps:
        base = given["input"]
        write = given.get("cache_write", base)
        steps.append(
            (
                above,
                Rates(
                    input=base,
                    output=given["output"],
                    cached_input=given.get("cached_input", base),
                    cache_write=write,
                    cache_write_1h=given.get("cache_write_1h", write),
                ),
            )
        )
    return Price(steps=tuple(steps), per_request=found.per_request)


def _of_package(package: Any, url: str, model: str, tier: str) -> Price | None:
    plain = _calculated(package, url, model, None)
    if plain is None or not tier:
        return plain
    context = {"processing": tier} if tier == BATCH else {"service_tier": tier}
    of_tier = _calculated(package, url, model, context)
    return None if tier in _DEARER and of_tier == plain else of_tier


def _calculated(
    package: Any, url: str, model: str, context: Mapping[str, str] | None
) -> Price | None:
    """The price that the package has now; ``None`` if it has none, or none by tokens."""
    found = _looked_up(package, url, model, context)
    return None if found is None else _of_model_price(found.model_price)


def _context(package: Any, url: str, model: str) -> int | None:
    """The tokens of a prompt and its answer that the package knows of."""
    found = _looked_up(package, url, model, None)
    return None if found is None else found.model.context_window


def _looked_up(package: Any, url: str, model: str, context: Mapping[str, str] | None) -> Any:
    """What the package knows of the model now; ``None`` if that is nothing."""
    now = datetime.now(timezone.utc)
    asked: dict[str, Any] = {"genai_request_timestamp": now, "price_context": context}
    usage = package.Usage(input_tokens=0)
    try:
        try:
            return package.calc_price(usage, model, provider_api_url=url, **asked)
        except LookupError:
            if provider_of(url).hosts:  # it has no such model
                return None
            return package.calc_price(usage, model, **asked)
    except LookupError:
        return None


def _of_model_price(found: Any) -> Price | None:
    """A price of the package as one of ours."""
    names = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
    given = {name: getattr(found, f"{name}_mtok", None) for name in names}
    if given["input"] is None:
        return None
    starts = {tier.start for each in given.values() for tier in getattr(each, "tiers", ())}
    steps = []
    for above in sorted({-1, *starts}, reverse=True):
        at = {name: _at(each, above) for name, each in given.items() if each is not None}
        base = at["input"]
        write = at.get("cache_write", base)
        rates = Rates(
            base,
            at.get("output", 0.0),
            at.get("cache_read", base),
            write,
            at.get("cache_write_1h", write),
        )
        steps.append((above, rates))
    per_thousand = getattr(found, "requests_kcount", None)
    return Price(steps=tuple(steps), per_request=float(per_thousand or 0) / 1000)


def _at(price: Any, above: int) -> float:
    """A price for prompts of more than ``above`` tokens."""
    reached = [tier for tier in getattr(price, "tiers", ()) if tier.start <= above]
    if reached:
        return float(max(reached, key=lambda tier: tier.start).price)
    return float(getattr(price, "base", price))
