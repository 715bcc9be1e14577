"""Upstreams: which of several servers a request goes to, and which of them are out of order.

An upstream is a URL and a key. Each has a token bucket for each model. A request that several upstreams may
serve waits for a group of their buckets, and goes where one admits it. With one upstream there is no group:
the request waits for the bucket itself. A lane is where a request goes first, or where it goes on to: a
tier, another model, another URL.

Names that cross the border (module, names):

    failover   Failover
    lanes      Lanes, check_lanes
    outage     Judgement, OUT_OF_ORDER, Outages, Verdict, longest_backoff_s
    replicas   AnyBucket, BucketGroup, share_wait
    routes     Routes
"""
