"""What a process and the holder of a shared bucket say to each other.

A process asks for a lease: so many requests and tokens at once. The holder grants it with a date: it may be
used from ``delay_s`` on, for ``ttl_s``. Nobody has to ask again, so whoever asks first is served first.

One call carries everything: the ask, what earlier leases turn out not to have used, what was used beyond
them, and pauses that a server asked for. Both are plain data, so that they can cross any wire. The same
arithmetic stands in ``buckets.py`` (for tests, and for an actor) and in ``lease.lua`` (for Redis).

Limits that nobody has configured, because the server's answers show them, can be leased as well, from a
holder that can follow them (:attr:`Limiter.follows_servers`). An ask then carries :class:`News` of these
answers, and a lease what they have shown to all processes (``shared_rates.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from parallel_processor.models import LimitReading, Rejection
from parallel_processor.options import Limits
from parallel_processor.ratelimit.quota import KINDS, MINUTE_S, Costs

SLOT_S = 0.0625  # what is used in one slot leaves the window together
WINDOW_S = MINUTE_S + 0.25  # requests spend unequal times on their way
NAMED_S = 120.0  # how long a limit counts after a process named it
CONFIRM_S = 1.0  # a lease that begins later than this is confirmed before it is used
_PACED_BURST_S = 0.5
HOLD_S = CONFIRM_S + 0.5  # for which a bucket without a memory admits nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One limit, as a process names it.

    Attributes:
        key: which limit of the account it is.
        limit: how many are allowed in a minute.
        burst_s: how many seconds' worth may go out at once.
    """

    key: str
    limit: float
    burst_s: float

    def rate(self, ttl_s: float) -> float:
        """How many a second are leased, so that the limit holds although leases are used late.

        A burst of more than half a second's worth costs no rate: the window of a minute bounds it.
        """
        return self.limit / (MINUTE_S + min(self.burst_s, _PACED_BURST_S) + ttl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What one answer shows of a server's rates.

    Attributes:
        age_s: how long ago its request was admitted.
        readings: what its headers say.
        rejection: why the request was rejected, if the rate is the reason.
        rejected: whether it was rejected.
        costs: what the request costs.
        pause_s: for how long all sending pauses for the rejection.
        restored: the rate a second up to which cuts are taken back; infinite for all of them.
    """

    age_s: float
    readings: tuple[LimitReading, ...] = ()
    rejection: Rejection | None = None
    rejected: bool = False
    costs: Costs = (1.0, 0.0, 0.0, 0.0)
    pause_s: float = 0.0
    restored: float | None = None

    @property
    def is_mere_reading(self) -> bool:
        """True if there is nothing in it but the headers of an answer."""
        return not self.rejected and self.rejection is None and self.restored is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What is known of one rate of a server.

    Attributes:
        name: what it counts, one of ``KINDS``.
        window_s: the length of its window in seconds.
        limit: what headers allow in a window; infinite if they say nothing.
        tried_per_s: the rate that is tried; infinite if rejections have shown nothing.
        is_growing: true while no rejection has cut that rate.
        others_per_s: what clients that are no process of the account seem to use.
    """

    name: str
    window_s: float
    limit: float = math.inf
    tried_per_s: float = math.inf
    is_growing: bool = False
    others_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNews:
    """What an :class:`Ask` adds for the rates of a server.

    Attributes:
        limits: the process' settings, of which the headroom and the burst count, and whether to search.
        latency_s: the mean time that answers take; infinite if that isn't known.
        known: what the process knew when it asked last, for a holder that has lost its memory.
        news: what answers have shown since then, in their order.
    """

    limits: Limits
    latency_s: float = math.inf
    known: tuple[Rate, ...] = ()
    news: tuple[News, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a process asks for and tells. Sequences without a quota's index have one entry a quota.

    Attributes:
        terms: the limits that the lease is under. It takes from all of them together or from none.
        amounts: how much of each it is to hold; all 0 if the process only tells something.
        ttl_s: for how long it may be used.
        epochs: which memory of each bucket the process knows; 0 for none.
        serials: the number of the newest lease of each bucket that the process has seen.
        returned: what leases did not use: the quota's index, the lease's slot, the amount.
        overused: what was used of each without a lease.
        history: what the process used in the last minute: the quota's index, seconds ago, the amount.
        pauses: for how many seconds from now a server wants nothing to be sent, by a name.
        server: set if the lease is under the rates of a server. ``terms`` then name one for each kind.
        place: what the last answer said, if that was to ask again.
    """

    terms: tuple[Terms, ...]
    amounts: tuple[float, ...]
    ttl_s: float
    epochs: tuple[int, ...]
    serials: tuple[int, ...]
    returned: tuple[tuple[int, int, float], ...] = ()
    overused: tuple[float, ...] = ()
    history: tuple[tuple[int, float, float], ...] = ()
    pauses: tuple[tuple[str, float], ...] = ()
    server: ServerNews | None = None
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The answer to an :class:`Ask`.

    Attributes:
        is_granted: false if a bucket has no memory of the process, which must ask again with its history.
        delay_s: seconds until the lease may be used.
        binding: the index of the quota that the delay is for.
        slot: where the buckets count it; to be given back with what it did not use.
        epochs: which memory each bucket has.
        serials: the number of the newest lease of each bucket.
        limits: the lowest limit that any process names, which holds for all of them.
        pauses: the pauses that any process told, with the seconds that are left of each.
        place: set if it holds nothing yet, since the rates may change: ask again after ``delay_s``.
        rates: what is known of the rates of a server.
        most: how much of each quota one lease should hold; infinite where nothing is limited.
    """

    is_granted: bool
    delay_s: float
    binding: int
    slot: int
    epochs: tuple[int, ...]
    serials: tuple[int, ...]
    limits: tuple[float, ...]
    pauses: tuple[tuple[str, float], ...] = ()
    place: int = 0
    rates: tuple[Rate, ...] = ()
    most: tuple[float, ...] = (math.inf,) * len(KINDS)


class Limiter(Protocol):
    """A connection to whatever holds the buckets of all processes. One thread uses it.

    Attributes:
        follows_servers: whether it holds the rates of servers, too. One that lacks the attribute doesn't.
    """

    follows_servers: bool

    def lease(self, account: str, ask: Ask) -> Lease:
        """Ask for a lease under the limits of ``account``.

        It never waits for a limit. Raises :class:`LimiterError` if the holder can't be reached; what was
        asked for may have been granted then, and is lost.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the next :meth:`lease` makes another."""
