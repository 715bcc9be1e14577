"""Threads, stops, forks and interpreter exit: what Python's own primitives leave open.

``StopSignal`` ends a run once, with its cause, and wakes everything that waits. ``WakeEvent``,
``InterruptSafeLock`` and ``InterruptSafeThread`` keep their promises when Ctrl-C interrupts them. The
threads of a ``SharedCore`` run on one core while that is faster. This package knows nothing of requests.

Names that cross the border (module, names):

    cores        Cores, SharedCore
    descriptors  affordable_workers, raise_soft_limit
    exits        at_exit
    forks        FORK_LOCK, load, load_here
    locks        InterruptSafeLock
    notebook     html_table, is_notebook, join_timeout_s
    stop         Settable, StopSignal, WakeEvent, do_all
    threads      InterruptSafeThread, run_apart
"""
