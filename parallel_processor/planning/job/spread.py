"""How many tokens the requests of one model and endpoint have: counted, or estimated from a sample.

**The sample.** Of each model and endpoint, the ``most`` requests with the least priorities are counted, and
priorities are random: a simple random sample of each stratum. Two samples become one by the same rule, so
that byte ranges can be read by several processes.

**The estimate.** The size of every request in bytes is known, and so is the output that it reserves.
Prompts have about as many tokens a byte as those of the sample. This is the ratio estimator. Its error is
``1.96 * N * sqrt((1 - n/N) / n * s2)``, with ``s2`` the variance of the sample around the ratio: that
of 95 % confidence (Cochran, Sampling Techniques, 3rd edition, equations 6.1 and 6.10).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

_CONFIDENCE = 1.96  # standard errors, for 95 %
_BITS = 8  # of a number that its bin keeps: quantiles are exact to 1/128


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How large some numbers are.

    Attributes:
        total: their sum; an estimate unless ``error`` is 0.
        error: the sum is within so much of ``total`` with a probability of 95 %.
        least: the smallest one that was counted, ``most`` the largest.
        median: exact up to 256, above to 0.8 %; so is ``p99``, which 99 % don't exceed.
    """

    total: float = 0.0
    error: float = 0.0
    least: int = 0
    median: int = 0
    p99: int = 0
    most: int = 0


class Histogram:
    """Whole numbers, with bins that are 1/128 of what they count. Not thread-safe."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._bins: Counter[int] = Counter()
        self.total = self.count = self.least = self.most = 0
        for value in values:
            self.add(value)

    def add(self, value: int) -> None:
        """Count ``value``, which is 0 or more."""
        shift = value.bit_length() - _BITS
        self._bins[value if shift <= 0 else value >> shift << shift] += 1
        if value < self.least or not self.count:
            self.least = value
        if value > self.most:
            self.most = value
        self.count += 1
        self.total += value

    def merge(self, other: Histogram) -> None:
        """Add what ``other`` has counted."""
        if other.count:
            self.least = min(self.least, other.least) if self.count else other.least
            self.most = max(self.most, other.most)
            self.count += other.count
            self.total += other.total
            self._bins.update(other._bins)

    def quantile(self, share: float) -> int:
        """What ``share`` of the numbers don't exceed; 0 without any."""
        wanted, seen = share * self.count, 0
        for start in sorted(self._bins):
            seen += self._bins[start]
            if seen >= wanted:
                return max(start, self.least)
        return self.most

    def spread(self, total: float | None = None, error: float = 0.0) -> Spread:
        """These numbers; ``total`` is that of all if these are a sample."""
        return Spread(
            total=self.total if total is None else total,
            error=error,
            least=self.least,
            median=self.quantile(0.5),
            p99=self.quantile(0.99),
            most=self.most,
        )


class _Counted(NamedTuple):
    """A request of the sample; the one with the greatest priority compares as the least."""

    negative_priority: int
    size_bytes: int
    input_tokens: int
    output_tokens: int


class TokenTally:
    """The tokens of the requests of one model and endpoint. Not thread-safe.

    Attributes:
        count: how many requests there are; ``size_bytes`` their payload.
        output_tokens: what they reserve for their answers.
    """

    def __init__(self, most: int | None) -> None:
        """Count ``most`` requests; ``None``: all."""
        self._most = most
        self.count = self.size_bytes = self.output_tokens = 0
        self._inputs, self._reserved = Histogram(), Histogram()  # if all are counted
        self._sample: list[_Counted] = []  # a heap

    def add(
        self, size_bytes: int, output_tokens: int, priority: int, count: Callable[[], int]
    ) -> None:
        """Add a request; ``count`` gives the tokens of its prompt, and is called if they are counted."""
        self.count += 1
        self.size_bytes += size_bytes
        self.output_tokens += output_tokens
        if self._most is None:
            tokens = count()
            self._inputs.add(tokens)
            self._reserved.add(tokens + output_tokens)
        elif len(self._sample) < self._most:
            heapq.heappush(self._sample, _Counted(-priority, size_bytes, count(), output_tokens))
        elif -priority > self._sample[0].negative_priority:
            counted = _Counted(-priority, size_bytes, count(), output_tokens)
            heapq.heappushpop(self._sample, counted)

    def merge(self, other: TokenTally) -> None:
        """Add what ``other`` has, which counts as many."""
        self.count += other.count
        self.size_bytes += other.size_bytes
        self.output_tokens += other.output_tokens
        self._inputs.merge(other._inputs)
        self._reserved.merge(other._reserved)
        if self._most is not None:
            self._sample = heapq.nlargest(self._most, self._sample + other._sample)
            heapq.heapify(self._sample)

    @property
    def is_sampled(self) -> bool:
        """True if not all are counted, however many there are."""
        return self._most is not None

    @property
    def counted(self) -> int:
        """How many were counted."""
        return self.count if self._most is None else len(self._sample)

    @property
    def tokens_per_byte(self) -> float:
        """Tokens of a prompt for each byte of its request, in the sample."""
        size_bytes = sum(each.size_bytes for each in self._sample)
        return sum(each.input_tokens for each in self._sample) / (size_bytes or 1)

    @property
    def input_tokens(self) -> float:
        """The tokens of all prompts; an estimate if there is a sample."""
        return self.tokens_per_byte * self.size_bytes if self.is_sampled else self._inputs.total

    def spreads(self) -> tuple[Spread, Spread]:
        """The tokens of the prompts, and those that are reserved, the answers included."""
        if self._most is None:
            return self._inputs.spread(), self._reserved.spread()
        inputs = Histogram(each.input_tokens for each in self._sample)
        reserved = Histogram(each.input_tokens + each.output_tokens for each in self._sample)
        total, error = self.input_tokens, self._error()
        return inputs.spread(total, error), reserved.spread(total + self.output_tokens, error)

    def _error(self) -> float:
        """Of the sum of the prompts' tokens."""
        n, ratio = len(self._sample), self.tokens_per_byte
        if n >= self.count:
            return 0.0
        if n < 2:
            return math.inf
        squares = ((each.input_tokens - ratio * each.size_bytes) ** 2 for each in self._sample)
        variance = math.fsum(squares) / (n - 1)  # exact: it depends on no order
        return _CONFIDENCE * self.count * math.sqrt((1.0 - n / self.count) / n * variance)
