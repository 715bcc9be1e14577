"""A budget: money and tokens that no request may exceed.

What counts as spent, at each moment of an attempt:

* *Before it is sent*, the most that it may cost is reserved (``tariff.py``). It is sent only if that
  stays within the bound, together with all that is spent and reserved. Otherwise it waits, first in its
  queue, for what the attempts in flight give back: they mostly cost less than was reserved for them. If
  nothing is in flight, and it still doesn't fit, a pack comes apart. For a single request, the run stops.
  One that is above the whole bound is not even queued: it fails by itself.
* *When it has ended*, what it used takes the place of what was reserved. If it may have been charged and
  doesn't say, that is all of it.
* *Once its answer is on record*, the record says it, and the file beside the results doesn't
  (``ledger.py``).

And at each stop:

* *In order* (the end, the budget, a signal, a refused key): what is in flight ends or is cancelled, and
  counts as above. Records and file together say exactly what was spent, as far as answers said it.
* *kill -9, a crash*: what was in flight or on its way to the disk counts in full; the file was written
  ahead. So that this wastes little, what is in flight may cost only so much more than answers mostly do:
  what the whole job will probably leave of the bound, and at least two hundredths of it. So a job that
  stays well within the bound is not slowed.
* The next run with these results counts both before it sends anything. ``overwrite`` forgets both.

So a server never counts more than the bound, over any number of runs, as long as its answers say what
they used and no answer is longer than was reserved. A request that names no maximum is the one that can
break this; for it, the file beside the results has an answer twice as long as the longest so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Options
from parallel_processor.planning.costs import Spent
from parallel_processor.planning.prices import Prices, find_prices
from parallel_processor.planning.tariff import Asked, Tariff
from parallel_processor.runtime.locks import InterruptSafeLock

_ROUNDING = 1e-9  # of a bound: sums of fractions


class Budget:
    """What the runs of one processor spend together. Any thread may call it where nothing else is said.

    Attributes:
        bound: the most that may be spent; infinite for no bound.
        is_bounded: true if there is a bound.
        tariff: what attempts cost.
        pays_once: whether equal requests share an answer.
        lock: guards all that follows, the tariff, and what each run's ``Spending`` has.
        spent: by all runs, earlier ones with the same results included.
        reserved: for the attempts in flight.
        in_flight: how many these are.
        ended: how many attempts gave back what was reserved for them. Any thread may look at it.
    """

    def __init__(self, options: Options) -> None:
        self.bound = Spent(options.max_cost, options.max_total_tokens)
        self.is_bounded = options.max_cost < math.inf or options.max_total_tokens < math.inf
        self.tariff = Tariff(_prices(options), options.request_url)
        self.pays_once = options.dedupe
        self.lock = InterruptSafeLock()
        self.spent = self.reserved = Spent()
        self.in_flight = self.ended = 0
        self._waiting: set[Callable[[], None]] = set()
        self._by_path: dict[Path, Spent] = {}

    # Caller holds ``lock``.

    def has_room(self, amount: Spent) -> bool:
        """True if an attempt that may use ``amount`` can be sent now."""
        return not self._lacking(amount)

    def _lacking(self, amount: Spent) -> list[int]:
        """Which of the bounds it would exceed."""
        whole = self.spent.plus(self.reserved).plus(amount)
        pairs = enumerate(zip(whole, self.bound, strict=True))
        return [number for number, (used, most) in pairs if used > most * (1 + _ROUNDING)]

    def why_never(self, amount: Spent) -> str:
        """Why a request that may use ``amount`` has no room even in the whole of it; empty if it has."""
        if amount.cost > self.bound.cost:
            what = (
                f"it may cost ${amount.cost:,.6g}, and the whole budget is ${self.bound.cost:,.10g}"
            )
        elif amount.tokens > self.bound.tokens:
            tokens, most = amount.tokens, self.bound.tokens
            what = f"it may use {tokens:,.0f} tokens, and the whole budget is {most:,.10g}"
        else:
            return ""
        return f"{what}: lower the most that its answer may have, or raise the budget"

    def why_not(self, amount: Spent, number: int) -> str:
        """Why an attempt can't be sent that may use ``amount``, of the request with this number."""
        if 0 in self._lacking(amount):
            most, spent, more = (each.cost for each in (self.bound, self.spent, amount))
            what = f"${spent:,.6g} are spent, and request {number:,} may cost ${more:,.6g}"
            return f"max_cost is ${most:,.10g}: {what}"
        most, spent, more = (each.tokens for each in (self.bound, self.spent, amount))
        what = f"{spent:,.0f} are used, and request {number:,} may use {more:,.0f}"
        return f"max_total_tokens is {most:,.10g}: {what}"

    def reserve(self, amount: Spent) -> None:
        """An attempt is about to be sent."""
        self.reserved = self.reserved.plus(amount)
        self.in_flight += 1

    def release(self, amount: Spent) -> None:
        """It has ended, or was not sent."""
        self.in_flight -= 1
        self.ended += 1
        self.reserved = self.reserved.minus(amount) if self.in_flight else Spent()

    def wait(self, on_room: Callable[[], None]) -> None:
        """Have ``on_room`` called when an attempt gives something back."""
        self._waiting.add(on_room)

    def take_waiting(self) -> set[Callable[[], None]]:
        """Those to call, once the lock is free."""
        waiting, self._waiting = self._waiting, set()
        return waiting

    def found(self, path: Path, amount: Spent) -> None:
        """The results at ``path`` say that ``amount`` was spent for them."""
        known = self._by_path.get(path, Spent())
        self.spent = self.spent.plus(amount.minus(known))
        self._by_path[path] = amount

    def left(self, path: Path, amount: Spent) -> None:
        """A run over the results at ``path`` is over, for which ``amount`` was spent by now."""
        self._by_path[path] = amount

    def forget(self, path: Path) -> None:
        """The results at ``path`` are begun afresh; what was spent stays spent."""
        self._by_path.pop(path, None)


def _prices(options: Options) -> Prices | None:
    if options.prices is None and options.max_cost < math.inf:
        return Prices(uses_package=True)  # or an error that says what to install
    if options.prices == "auto" and options.max_cost < math.inf:
        return Prices(uses_package=True)
    return find_prices(options.prices)


def make_budget(options: Options) -> Budget | None:
    """The budget of a processor; ``None`` if nobody asks what its requests cost.

    Raises :class:`ConfigurationError` if a bound of money can't be kept with the fallback.
    """
    budget = Budget(options)
    if options.max_cost < math.inf and options.fallback_model:
        url, tiers = options.fallback_url or options.request_url, options.service_tiers
        tier = tiers[-1] if tiers and not options.fallback_url else ""
        asked = Asked(url, options.fallback_model, tier)
        if budget.tariff.price(asked) is None:
            raise ConfigurationError(budget.tariff.no_price(asked))
    return budget if budget.is_bounded or budget.tariff.prices is not None else None
