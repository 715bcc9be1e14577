"""One job on several workers: processes of this machine, or actors on a Ray cluster.

::

    requests file                                   worker (one Processor)                    folder
    ─────────────       ┌────────┐  Attempt      ┌─────────────────────────────────┐   ┌──────────────────┐
    size ──> plan ────> │ driver │ ────────────> │ earlier journals ─> journal     │──>│ journals/…       │
     ▲      (blocks)    │        │ <──────────── │ lines of block ─> process_file  │   │ part-START-END…  │
     │                  └────────┘  BlockReport  │ lines + journal ─> part         │──>│                  │
     │                      ▲       Standing     └─────────────────────────────────┘   └──────────────────┘
     └──────────────────────┴── what the parts leave uncovered ◄───────────────────────────────┘

A worker sends a block as ``process_file`` sends a file. Several workers only add who gets which block, and
what becomes of it when its worker is lost. ``blocks`` says which lines a block has, ``parts`` what the
names in the folder mean, ``driver`` who gets which block, ``worker`` what is done with it. There are two
engines, ``processes`` and ``ray_engine``. ``run`` puts them together, ``on_ray`` is the way in.

**Who owns what.** The driver's thread is the caller's. It alone has the plan and the queue, in memory: what
must last is in the names of parts. A worker's process belongs to the engine, the threads in it to the
worker: one for each attempt, those of its runs, and on an object store one that uploads. Only the attempt
that began a journal writes it. A part is created by whoever is first.

**What happens at a stop.**

* A worker is killed, or its node is lost: its blocks go to others, which take over its journals. Sent twice
  is what was in flight, and on an object store what was not uploaded yet (``upload_s``).
* The driver is killed: the processes of this machine end with it; actors of an embedded Ray may go on for a
  few seconds, each with its own journal. The same command takes over journals, and keeps parts.
* Ctrl-C or SIGTERM: nothing new is sent, what is in flight may end for ``drain_s``, the journals stay. A
  second signal cancels.
* A wrong key, no money, a full disk: the run ends in the same way, with the exit code of the command.
* The output can't be written at the end of a block: its journal stays, and the run ends.

Names that cross the border (module, names):

    job     KeySource
    on_ray  OnRay
    verify  verify_parts
"""
