"""Token buckets: limits that are configured, told by response headers, or found by trying.

One ``TokenBucket`` for each model and endpoint admits requests, each with a ``Reservation``. A bucket
combines configured quotas (shared by the buckets of several models), the server's quotas, a limit of
requests in flight, and pauses: a request takes from all of them together or from none. Only arithmetic
happens here; threads wait elsewhere.

Names that cross the border (module, names):

    accounts      ACCOUNTS, AccountLimits
    quota         CAUSES, KINDS, MINUTE_S, WINDOW_S, ConfiguredQuota, Costs, Slot
    registry      PLAIN, MakeLimits, TokenBuckets, upstreams_of
    remaining     LONGEST_PACED_S
    reports       BucketReport, LimitReport, Usage
    server_quota  Sent, ServerQuota, Span
    server_rates  LimitChange, ServerRates
    shared        SharedLimits
    state         BucketState, Reservation
    token_bucket  Release, Tally, TokenBucket
"""
