"""What a request waits for: the bucket of its upstream, or the group of those that may serve it."""

from __future__ import annotations

from urllib.parse import urlsplit

from parallel_processor.credentials.urls import host_of
from parallel_processor.models import Upstream
from parallel_processor.options import Options
from parallel_processor.providers.endpoints import on_replica
from parallel_processor.ratelimit.registry import PLAIN, TokenBuckets, upstreams_of
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.upstreams.replicas import AnyBucket, BucketGroup

_MOST_KNOWN = 1024  # a file may name a new model in each line
Known = dict[tuple[str, str], AnyBucket]
"""What requests wait for, by URL and model."""
_Owner = tuple[str, int]  # a host, and the number of a key for it


class Routes:
    """The buckets and groups of one processor. Any thread may call it. ``buckets`` are all of them."""

    def __init__(self, options: Options, buckets: TokenBuckets) -> None:
        self._url, self.buckets = options.request_url, buckets
        self._host = host_of(options.request_url)
        self._upstreams, self._keyring = upstreams_of(options), options.keyring
        self._has_login = bool(
            options.login or options.headers or options.query or options.session_factory
        )
        self._lock = InterruptSafeLock()  # guards the fields below
        self._known: dict[Upstream, Known] = {}  # by lane
        self._groups: dict[tuple[TokenBucket, ...], BucketGroup] = {}
        self._refused: set[_Owner] = set()

    def group(self, url: str, model: str, lane: Upstream = PLAIN) -> AnyBucket:
        """What requests to ``url`` for ``model`` wait for, with the tier and the model of ``lane``.

        On the host of ``request_url`` it stands for the same endpoint of each replica, too.
        """
        known = self.known(lane)
        if (found := known.get((url, model))) is not None:
            return found
        upstreams = self._upstreams_for(url)
        if len(upstreams) == 1:
            found = self.buckets.bucket(url, model, lane)
        else:
            found = self._find_group(upstreams, model, lane)
        if len(known) < _MOST_KNOWN:
            known[url, model] = found
        return found

    def known(self, lane: Upstream) -> Known:
        """What :meth:`group` has found for ``lane`` so far, and will find. Only it may change that."""
        return self._known.setdefault(lane, {})

    def _upstreams_for(self, url: str) -> list[tuple[str, int]]:
        """The URLs that stand for ``url``, each with the number of a key."""
        if host_of(url) == self._host:
            return [(on_replica(each.url, self._url, url), each.key) for each in self._upstreams]
        return [(url, key) for key in range(len(self._keyring.keys(url)) or 1)]

    def _find_group(
        self, upstreams: list[tuple[str, int]], model: str, lane: Upstream
    ) -> AnyBucket:
        bucket = self.buckets.bucket
        buckets = [bucket(url, model, lane._replace(key=key)) for url, key in upstreams]
        members = tuple(dict.fromkeys(buckets))
        if len(members) == 1:
            return members[0]
        with self._lock:
            if members not in self._groups:
                group = self._groups[members] = BucketGroup(members, self.buckets.clock)
                for member in members:
                    if _owner(member) in self._refused:
                        group.set_aside(member)
            return self._groups[members]

    def key_count(self, bucket: TokenBucket) -> int:
        """How many keys there are for the host of ``bucket``."""
        return len(self._keyring.keys(bucket.url))

    def key_note(self, bucket: TokenBucket) -> str:
        """Where the key of ``bucket`` is set, to be added to a message."""
        place = self._keyring.place(bucket.url, bucket.upstream.key)
        if place or (self._has_login and self._keyring.is_own(bucket.url)):
            return f" (key: {place})" if place else ""
        host = urlsplit(bucket.url).netloc
        return f" (no key was given for {host})" if host else ""

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
    return host_of(bucket.url), bucket.upstream.key
