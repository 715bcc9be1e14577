"""What a process and the holder of a shared bucket say to each other.

A process asks for a lease: so many requests and tokens at once. The holder grants it with a date: it may be
used from ``delay_s`` on, for ``ttl_s``. Nobody has to ask again, so whoever asks first is served first.

One call carries everything: the ask, what earlier leases turn out not to have used, what was used beyond
them, and pauses that a server asked for. Both are plain data, so that they can cross any wire. The same
arithmetic stands in ``buckets.py`` (for tests, and for an actor) and in ``lease.lua`` (for Redis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from parallel_processor.ratelimit.quota import MINUTE_S

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
    """

    is_granted: bool
    delay_s: float
    binding: int
    slot: int
    epochs: tuple[int, ...]
    serials: tuple[int, ...]
    limits: tuple[float, ...]
    pauses: tuple[tuple[str, float], ...] = ()


class Limiter(Protocol):
    """A connection to whatever holds the buckets of all processes. One thread uses it."""

    def lease(self, account: str, ask: Ask) -> Lease:
        """Ask for a lease under the limits of ``account``.

        It never waits for a limit. Raises :class:`LimiterError` if the holder can't be reached; what was
        asked for may have been granted then, and is lost.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the next :meth:`lease` makes another."""
