"""Which requests get another answer than a good one, and which answer.

`errors` are faults of single requests, however they come; a rule is about when and how many come: a
server that loads, a gateway that takes so many at once, a request that is refused for ever.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.simulator.faults import FAULT_REPLIES
from parallel_processor.simulator.wire import HttpReply

IN_DIALECT = frozenset({"limited", "bad_request", "broken"})
"""The answers that each dialect words its own way; the names are the fields of a `Dialect`."""

RULE_KINDS = frozenset({"reset", "stall", *IN_DIALECT, *FAULT_REPLIES})
"""The answers of a rule that have a name; the first two are no answers."""

_HIGHEST = {
    **dict.fromkeys(("from_s", "until_s", "per_s", "burst"), math.inf),
    **dict.fromkeys(("in_flight", "after", "first"), math.inf),
    "share": 1,
}
"""The most that a condition can be; none is below 0."""

_PART_IN_A_BILLION = 1e-9  # what sums of float times may fall short by


@dataclass(frozen=True, slots=True, kw_only=True)
class CannedAnswer:
    """An answer as it stands. A `body` that is no text is sent as JSON."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    def __post_init__(self) -> None:
        status: object = self.status
        if type(status) is not int or not 200 <= status <= 999:
            raise ConfigurationError(f"status must be 200 to 999, not {status!r}")
        if not isinstance(self.headers, Mapping):
            raise ConfigurationError(f"headers must be an object, not {self.headers!r}")

    def reply(self) -> HttpReply:
        """Return it as it is sent."""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        headers, content_type = "", "application/json"
        for name, value in self.headers.items():
            if name.lower() == "content-type":
                content_type = value
            else:
                headers += f"{name}: {value}\r\n"
        return HttpReply(
            status=self.status, body=text.encode(), headers=headers, content_type=content_type
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The requests that fulfil every condition get `answer`, a name of `RULE_KINDS` or a canned one.

    Attributes:
        answer: what they get.
        containing: they have this text in their body.
        from_s: they come so many seconds after the first request, or later.
        until_s: they come before so many seconds after the first request.
        in_flight: so many others, which no rule has caught, are being answered when they come.
        per_s: they come faster than so many a second, where `burst` more are let through (the
            leaky bucket of nginx's limit_req with `nodelay`).
        share: the share of them, drawn anew for each.
        after: so many of them are let through first.
        first: no more of them than so many.
    """

    answer: str | CannedAnswer
    containing: str = ""
    from_s: float = 0.0
    until_s: float = math.inf
    in_flight: int | None = None
    per_s: float | None = None
    burst: int = 0
    share: float = 1.0
    after: int = 0
    first: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.answer, CannedAnswer) and self.answer not in RULE_KINDS:
            known = ", ".join(sorted(RULE_KINDS))
            raise ConfigurationError(
                f"answer must be canned or one of {known}, not {self.answer!r}"
            )
        for name, highest in _HIGHEST.items():
            value = getattr(self, name)
            ok = value is None or (isinstance(value, (int, float)) and 0 <= value <= highest)
            if not ok:
                raise ConfigurationError(f"{name} must be 0 to {highest}, not {value!r}")
        if self.per_s == 0:
            raise ConfigurationError("per_s must be above 0")

    @property
    def name(self) -> str:
        """What its answers are counted as."""
        return self.answer if isinstance(self.answer, str) else f"canned {self.answer.status}"


class Rules:
    """Applies rules to one request after the other. Safe to call from any thread."""

    def __init__(self, rules: tuple[Rule, ...], *, draw: Callable[[], float] | None = None) -> None:
        self._draw = draw or random.random
        self._lock = InterruptSafeLock()  # guards _in_flight, and the states
        self._in_flight = 0
        self._states = [_State(rule) for rule in rules]

    def catch(self, body: bytes, now_s: float) -> Rule | None:
        """Return the first rule that a request fulfils; without one it is counted in flight."""
        with self._lock:
            for state in self._states:
                if state.is_fulfilled(body, now_s, self._in_flight, self._draw):
                    return state.rule
            self._in_flight += 1
            return None

    def leave(self) -> None:
        """Count a request out that no rule had caught."""
        with self._lock:
            self._in_flight -= 1


class _State:
    """A rule, and what it remembers."""

    __slots__ = ("_excess", "_last_s", "_pattern", "_seen", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._pattern = rule.containing.encode()
        self._seen = 0
        self._excess, self._last_s = 0.0, -math.inf

    def is_fulfilled(
        self, body: bytes, now_s: float, in_flight: int, draw: Callable[[], float]
    ) -> bool:
        """Count a request with this ``body``; true if it gets the rule's answer.

        ``draw`` returns a random number below 1.
        """
        rule = self.rule
        if self._pattern not in body or not rule.from_s <= now_s < rule.until_s:
            return False
        if rule.in_flight is not None and in_flight < rule.in_flight:
            return False
        if rule.per_s is not None and not self._is_too_fast(now_s, rule.per_s):
            return False
        if rule.share < 1 and draw() >= rule.share:
            return False
        self._seen += 1
        number = self._seen - rule.after
        return number > 0 and (rule.first is None or number <= rule.first)

    def _is_too_fast(self, now_s: float, per_s: float) -> bool:
        """Add a request to the bucket, or return True if it would run over."""
        excess = max(0.0, self._excess - (now_s - self._last_s) * per_s)
        if excess > self.rule.burst + _PART_IN_A_BILLION:
            return True
        self._excess, self._last_s = excess + 1, now_s
        return False
