"""Buckets that always have something to send, in virtual time, and what they were admitted."""

from __future__ import annotations

from typing import Any

from clocks import FakeClock, SlidingCount

from parallel_processor.options import Options
from parallel_processor.ratelimit.accounts import Accounts
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

URL = "https://host.example/v1/chat/completions"
TOKENS, OUTPUT = 100.0, 40.0  # of each request


class Senders:
    """Buckets that always have a request waiting, and a count of what each was admitted."""

    def __init__(self, clock: FakeClock, buckets: list[TokenBucket]) -> None:
        self.clock = clock
        self.counts = [SlidingCount() for _ in buckets]
        self.total = SlidingCount()
        self._buckets = buckets
        self._places: list[Reservation] = []

    def run(self, seconds: float) -> Senders:
        """Send whatever may be sent for so long, then give up what waits."""
        self._places = [self._enqueue(bucket) for bucket in self._buckets]
        until_s = self.clock.now_s + seconds
        while (left_s := until_s - self.clock.now_s) > 0:
            wait_s = min(self._turn(number) for number in range(len(self._buckets)))
            self.clock.now_s += min(max(wait_s, 1e-6), left_s)
        for bucket, place in zip(self._buckets, self._places, strict=True):
            bucket.cancel(place)
        return self

    def busiest(self) -> list[float]:
        """The most requests in any 60 seconds: of all together, then of each."""
        return [each.busiest() for each in (self.total, *self.counts)]

    def _enqueue(self, bucket: TokenBucket) -> Reservation:
        place = Reservation(TOKENS, output_tokens=OUTPUT)
        bucket.enqueue(place)
        return place

    def _turn(self, number: int) -> float:
        """Take what is admitted; seconds until the next one may be."""
        bucket, place = self._buckets[number], self._places[number]
        while (delay := bucket.poll(place)) == 0.0:
            assert place.admitted_at is not None
            for count in (self.counts[number], self.total):
                count.add(place.admitted_at, 1.0)
            bucket.ended(place, answered=True)
            place = self._places[number] = self._enqueue(bucket)
        return delay


def buckets_of(accounts: Accounts, clock: FakeClock, **settings: Any) -> TokenBuckets:
    """The buckets of a processor."""
    options = Options(**{"request_url": URL, "api_key": "k", **settings})
    return TokenBuckets(options, clock, accounts)
