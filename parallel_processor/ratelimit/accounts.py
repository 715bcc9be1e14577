"""What the processors of one account share in one process: the configured limits, and whose turn it is.

A limit that a user sets is the account's, not the call's. So calls that follow each other share their
minute, and so do processors that are alive at once. An account is known by its name, if ``account`` sets
one, else by the host of the URL and a hash of the key. Within it, a quota is known by the number and the
models that it is for. If a processor changes the number, it is changed for all that share the quota.

Only the configured limits are shared. What a processor learns of the server stays its own: its answers
tell it soon, and another processor may have other models, workers and pauses.

A quota is forgotten once it is as good as new and no processor has it, which takes a minute after the
last use. A forked child has limits of its own, because processes share no memory.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from parallel_processor.credentials.urls import host_of
from parallel_processor.options import Options
from parallel_processor.ratelimit.minute_count import MinuteCount
from parallel_processor.ratelimit.quota import ConfiguredQuota
from parallel_processor.runtime.locks import InterruptSafeLock

if TYPE_CHECKING:
    from parallel_processor.ratelimit.state import BucketState

_SALT = os.urandom(16)  # so that a hash of a key says nothing outside this process


class QuotaUser(Protocol):
    """Whatever keeps quotas and counts of an account from being forgotten."""

    @property
    def quotas(self) -> Sequence[ConfiguredQuota]: ...

    @property
    def minute_count(self) -> MinuteCount | None: ...


class AccountLimits:
    """The quotas of one account, and the queues that wait for them.

    So that a model may come under other limits at any time, those of all patterns have one lock.

    Attributes:
        lock: guards this object, its quotas, the states of the buckets, and their reservations.
        waiting: the states of the buckets whose queue isn't empty, of each pattern whose limits stand under
            no others, and of all other models (``None``).
        tickets: numbers the reservations in the order of arrival.
        opened_at: when it was made, in seconds of its clock.
        users: whatever has quotas of it; they are not kept alive.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = InterruptSafeLock()
        self.waiting: defaultdict[str | None, list[BucketState]] = defaultdict(list)
        self.tickets = itertools.count(1)
        self.opened_at = clock()
        self.users: WeakSet[QuotaUser] = WeakSet()
        self._quotas: dict[tuple[str | None, str, float, float], ConfiguredQuota] = {}
        self._minute_counts: dict[tuple[str | None, Sequence[str], float], MinuteCount] = {}

    def quota(
        self, pattern: str | None, name: str, limit: float, burst_seconds: float, now: float
    ) -> ConfiguredQuota:
        """The quota of ``limit`` for the models of ``pattern``; ``None`` is for all others.

        Caller holds ``lock``.
        """
        key = (pattern, name, limit, burst_seconds)
        if key not in self._quotas:
            self._quotas[key] = ConfiguredQuota(name, limit, burst_seconds, now)
        return self._quotas[key]

    def change(
        self, quota: ConfiguredQuota, limit: float, burst_seconds: float, now: float
    ) -> None:
        """Have ``quota`` permit ``limit`` from now on, to all that share it. Caller holds ``lock``."""
        quota.change(limit, burst_seconds, now)
        for key in [key for key, each in self._quotas.items() if each is quota]:
            del self._quotas[key]
            self._quotas.setdefault((*key[:2], limit, burst_seconds), quota)

    def minute_count(
        self, pattern: str | None, unlimited: Sequence[str], burst_seconds: float
    ) -> MinuteCount:
        """The count for the models of ``pattern`` of what is ``unlimited`` for them.

        Caller holds ``lock``.
        """
        key = (pattern, unlimited, burst_seconds)
        return self._minute_counts.setdefault(key, MinuteCount())

    def forget_unused(self, now: float) -> bool:
        """Drop the quotas and counts that nobody has and that are as good as new; true if none is left."""
        with self.lock:
            in_use = {quota for user in self.users for quota in user.quotas}
            counts = {user.minute_count for user in self.users}
            for key, quota in tuple(self._quotas.items()):
                if quota not in in_use and quota.is_full(now):
                    del self._quotas[key]
            for name, count in tuple(self._minute_counts.items()):
                if count not in counts and count.is_empty(now):
                    del self._minute_counts[name]
            return not self._quotas and not self._minute_counts


class Accounts:
    """The accounts of this process. Any thread may call it.

    ``FORK_LOCK`` guards them, so that a forked child never finds them half changed. It is taken before the
    lock of an account.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[Hashable, ...], AccountLimits] = {}

    def forget_unused(self) -> None:
        """Forget the accounts that nobody has any more. Caller holds ``FORK_LOCK``."""
        process_id, now = os.getpid(), self._clock()
        for key, account in tuple(self._known.items()):
            if key[0] != process_id or account.forget_unused(now):
                del self._known[key]  # in a child, the lock of a parent's account may stay held

    def of(self, options: Options, clock: Callable[[], float]) -> AccountLimits:
        """Where to take quotas from. Caller holds ``FORK_LOCK`` until it has taken them.

        Nothing is shared if nothing is limited, or if ``clock`` is another one: times of two clocks can't
        be compared.
        """
        limits = (options.limits, *options.limits_by_model.values())
        is_open = all(limit == math.inf for each in limits for limit in each.by_kind.values())
        if clock is not self._clock or is_open:
            return AccountLimits(clock)
        key = (os.getpid(), *_identity(options), options.limiter)
        return self._known.setdefault(key, AccountLimits(clock))


ACCOUNTS = Accounts()
"""Those of this process."""


def _identity(options: Options) -> tuple[str, bytes]:
    """What two processors of one account share; the key itself is not kept."""
    if options.account is not None:
        return options.account, b""
    key = options.keyring.identity(options.request_url)
    return host_of(options.request_url), hashlib.blake2b(key, digest_size=16, key=_SALT).digest()
