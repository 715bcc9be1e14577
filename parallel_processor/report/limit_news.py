"""What a run says of the limits that its server's headers name."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from parallel_processor.models import Request
from parallel_processor.options import Limits, Options
from parallel_processor.ratelimit.server_rates import LimitChange
from parallel_processor.ratelimit.token_bucket import TokenBucket

_log = logging.getLogger("parallel_processor")
_MINUTE_S = 60.0


class LimitNews:
    """Logs the changes of the limits of one run. Any thread may call it."""

    def __init__(self) -> None:
        self._told_defaults: set[str] = set()  # kinds of limits

    def tell(self, bucket: TokenBucket, changes: Sequence[LimitChange]) -> None:
        """Log ``changes``, and once that a default is below what the server allows."""
        for name, window_s, before, limit in changes:
            was = f", was {before:,.0f}" if before < math.inf else ""
            of = f" of {bucket.model}" if bucket.model else ""
            _log.info("limit%s: %s %s in %g s%s", of, f"{limit:,.0f}", name, window_s, was)
        self._tell_low_defaults(bucket, changes)

    def _tell_low_defaults(self, bucket: TokenBucket, changes: Sequence[LimitChange]) -> None:
        """Log, once a run, that a default which nobody set is below what the server allows."""
        defaults = bucket.shared_limits.limits.defaults
        for name, window_s, _, limit in changes:
            default = defaults.get(name)
            if default is None or window_s > _MINUTE_S or name in self._told_defaults:
                continue
            allowed = limit * _MINUTE_S / window_s
            if allowed <= default:
                continue
            self._told_defaults.add(name)
            _log.warning(
                "the server allows %s %s a minute, but the default of %s holds, because no limit was set: "
                "set --max_%s_per_minute (in a program Limits.%s_per_minute) to that number or to auto",
                *(f"{allowed:,.0f}", name, f"{default:,.0f}", name, name),
            )


def tell_changed(before: Options, after: Options) -> None:
    """Log which limits differ."""
    was = {"all models": before.limits, **before.limits_by_model}
    have = {"all models": after.limits, **after.limits_by_model}
    for models in {**was, **have}:
        if models not in have:
            _log.info("the limits of %s are gone: its models have those of others", models)
        elif have[models] != was.get(models):
            _log.info("the limits of %s are now %s", models, _in_words(have[models]))


def _in_words(limits: Limits) -> str:
    bounds = {kind.replace("_", " "): limit for kind, limit in limits.by_kind.items()}
    numbers = [f"{n:,.10g} {kind} a minute" for kind, n in bounds.items() if n < math.inf]
    return " and ".join(numbers) or ("found by trying" if limits.is_auto else "none")


def tell_large(bucket: TokenBucket, request: Request, tokens: float) -> None:
    """Log that a request of ``tokens`` is larger than the limit of a minute, if it is."""
    limit, number = bucket.shared_limits.tokens_per_minute, request.number
    if tokens > limit:
        text = "request %d needs %d tokens, but the limit is %g a minute: it is sent alone"
        _log.warning(text, number, tokens, limit, extra={"request_number": number})
