"""Workers: threads, or child processes with threads, which send one attempt after the other.

A worker takes an ``AdmittedRequest``, sends it once, classifies the response, and gives the ``Attempt`` to
the engine's ``settle``, which returns the next request to send. A child process loads this package,
``transport`` and ``providers``, and nothing else.

Names that cross the border (module, names):

    pending  AdmittedRequest, PendingRequest, RetryState
    pool     WorkerPool, make_pool
"""
