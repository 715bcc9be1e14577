"""One run: requests are read, queued, dispatched, settled, retried and delivered.

::

    read ─> skip what is answered ─> queue of the bucket ─> worker ─> settle ─> deliver ─> credit back
                                             ▲                          │
                                             └────── retry later ───────┘

The constructor of ``run.Run`` makes these parts in this order. ``account.Account`` holds what all runs of a
``Processor`` share. ``file_run.FileRun`` runs a file, ``submissions.Submissions`` single requests.

Names that cross the border (module, names):

    account    Account
    file_run   FileJob, FileRun
    iterables  NumberedRequests, ReorderBuffer
"""
