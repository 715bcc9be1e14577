"""One run: requests are read, queued, dispatched, settled, retried and delivered.

::

    read ─> skip what is answered ─> queue of the bucket ─> worker ─> settle ─> deliver ─> credit back
                                             ▲                          │
                                             └────── retry later ───────┘

``run.Run`` is the plan: its constructor makes the stages in the order of the flow. ``account.Account``
holds what all runs of a ``Processor`` share. ``file_run.FileRun`` runs a file, ``submissions`` single
requests.

Names that cross the border (module, names):

    account    Account
    file_run   FileJob, FileRun
    iterables  NumberedRequests, ReorderBuffer
"""
