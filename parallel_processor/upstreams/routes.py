"""What a request waits for: the bucket of its upstream, or the group of those that may serve it."""

from __future__ import annotations

from urllib.parse import urlsplit

from parallel_processor.options import Options
from parallel_processor.providers.endpoints import on_replica
from parallel_processor.ratelimit.registry import TokenBuckets, upstreams_of
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.upstreams.replicas import AnyBucket, BucketGroup

_MOST_KNOWN = 1024  # a file may name a new model in each line
_Owner = tuple[str, int]  # a host, and the number of a key for it


class Routes:
    """The buckets and groups of one processor. Any thread may call it. ``buckets`` are all of them."""

    def __init__(self, options: Options, buckets: TokenBuckets) -> None:
        self._url, self.buckets = options.request_url, buckets
        self._host = urlsplit(options.request_url).netloc
        self._upstreams = upstreams_of(options)
        self._lock = InterruptSafeLock()  # guards the fields below
        self._known: dict[tuple[str, str], AnyBucket] = {}  # by URL and model
        self._groups: dict[tuple[TokenBucket, ...], BucketGroup] = {}
        self._refused: set[_Owner] = set()

    def group(self, url: str, model: str) -> AnyBucket:
        """What requests to ``url`` for ``model`` wait for.

        ``url`` is on the host of ``request_url``. A replica has the same endpoint on its own.
        """
        found = self._known.get((url, model))
        if found is not None:
            return found
        if len(self._upstreams) == 1 or urlsplit(url).netloc != self._host:
            found = self.buckets.bucket(url, model)
        else:
            found = self._find_group(url, model)
        if len(self._known) < _MOST_KNOWN:
            self._known[url, model] = found
        return found

    def _find_group(self, url: str, model: str) -> AnyBucket:
        urls = [on_replica(upstream.url, self._url, url) for upstream in self._upstreams]
        keys = [upstream.key for upstream in self._upstreams]
        buckets = [
            self.buckets.bucket(url, model, key) for url, key in zip(urls, keys, strict=True)
        ]
        members = tuple(dict.fromkeys(buckets))
        if len(members) == 1:
            return members[0]
        with self._lock:
            if members not in self._groups:
                group = self._groups[members] = BucketGroup(members)
                for member in members:
                    if _owner(member) in self._refused:
                        group.set_aside(member)
            return self._groups[members]

    def set_aside(self, group: BucketGroup, member: TokenBucket) -> bool:
        """Offer ``member`` no more requests of ``group``; true if that is new and others are left."""
        with self._lock:
            return member in group.alive and group.set_aside(member)

    def refuse(self, group: BucketGroup, member: TokenBucket) -> bool:
        """Offer the upstream of ``member`` no more requests; true if that is new and others are left."""
        with self._lock:
            if not (member in group.alive and group.set_aside(member)):
                return False
            owner = _owner(member)
            is_new = owner not in self._refused
            self._refused.add(owner)
            for other in self._groups.values():
                for each in other.alive:
                    if _owner(each) == owner:
                        other.set_aside(each)
            return is_new


def _owner(bucket: TokenBucket) -> _Owner:
    return urlsplit(bucket.url).netloc.lower(), bucket.upstream.key
