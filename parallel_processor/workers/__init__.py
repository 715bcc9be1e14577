"""One attempt after the other: the threads, or child processes, that send.

A worker takes an ``AdmittedRequest``, sends it once, classifies the response, and hands the ``Attempt``
to the engine's ``settle``, which returns the next request to send. A child process loads this package,
``transport`` and ``providers``, and none of the others.

Names that cross the border (module, names):

    pending  AdmittedRequest, PendingRequest, RetryState
    pool     WorkerPool, make_pool
"""
