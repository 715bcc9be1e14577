"""From the setting ``limiter`` to token buckets that lease their limits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.limiter.leases import Limiter
from parallel_processor.limiter.limits import LeasedLimits
from parallel_processor.limiter.redis_limiter import RedisLimiter
from parallel_processor.options import Options
from parallel_processor.ratelimit.accounts import ACCOUNTS
from parallel_processor.ratelimit.registry import MakeLimits, TokenBuckets


def leased_buckets(options: Options, clock: Callable[[], float]) -> TokenBuckets:
    """The buckets of a processor whose limits several processes share.

    Raises :class:`LimiterError` if the holder can't be reached, and :class:`ConfigurationError` if there is
    nothing to share: a Redis server doesn't follow limits that the server's answers show.
    """
    limits = (options.limits, *options.limits_by_model.values())
    is_open = all(limit == math.inf for each in limits for limit in each.by_kind.values())
    if is_open and isinstance(options.limiter, str):
        raise ConfigurationError(
            "limiter has nothing to share: give a limit as a number, such as max_requests_per_minute"
        )
    limiter = connector(options)

    def make_limits(own: Options) -> MakeLimits:
        return partial(LeasedLimits, limiter=limiter, name=account_name(own))

    buckets = TokenBuckets(options, clock, ACCOUNTS, make_limits=make_limits)
    for shared in buckets.limits():
        if isinstance(shared, LeasedLimits):
            shared.check(limiter)
    return buckets


def connector(options: Options) -> Callable[[], Limiter]:
    """What makes a connection to the holder that ``options`` name."""
    limiter = options.limiter
    assert limiter is not None
    return partial(RedisLimiter, limiter) if isinstance(limiter, str) else limiter


def account_name(options: Options) -> str:
    """The name under which all processes of an account share its limits; it holds no secret.

    That is ``account``, if it is set, else the host and a hash of the key or the login.
    """
    if options.account is not None:
        return quote(options.account, safe="")
    host = urlsplit(options.request_url).netloc.rpartition("@")[2].lower()
    key = options.keyring.identity(options.request_url)
    secret = key + f"\0{options.login or ''}".encode()
    digest = hashlib.blake2b(secret, digest_size=10, person=b"pp-limiter").hexdigest()
    return f"{quote(host, safe='')}-{digest}"
