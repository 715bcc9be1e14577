"""One limit for several processes and hosts: buckets that a server holds, and leases from them.

::

    options.limiter ─> accounts.leased_buckets ─> limits.LeasedLimits ─> leasing.Leasing ─> a Limiter
                                                       │                    (a thread)      │
                            stock.Stock: what was configured                      redis_limiter, an actor,
                   remote_rates.RateStock: what answers show                      or buckets in a test
                              (arithmetic, no I/O)                      (buckets, shared_rates: arithmetic)

``leases.py`` says what is asked and answered. ``buckets.py`` reckons configured limits, ``shared_rates.py``
those that servers' answers show, which an actor holds and Redis doesn't. The engine does not know: a
leased quota stands beside the configured ones. It is a package of its own between ratelimit and engine,
because the library and the command need it on a single machine as well as a cluster does.

Names that cross the border (module, names):

    accounts  leased_buckets
    buckets   SharedBuckets
    leases    Ask, Lease
"""
