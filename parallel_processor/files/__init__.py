"""JSONL in, JSONL out: requests are read, records are written, and a results file is read back.

**The way of a line**, and whose thread goes it::

    what the user named ─ sources ─> RequestsFile ─ compression ─> lines ─ formats ─> Request
      file, pattern, -,              shape: lines, a JSON          SeveralFiles: one     │ resume: is it
      URL (object_stores)            array, or refused             after the other       │ answered?
                                                                                         v
    AppendFile <─ compression <─ writer [queue] <─ InputOrder, if asked <── Outcome <── engine
      flush, fsync               records in batches

* The caller's thread reads, a program's iterable or file, too. It opens inputs and outputs before the
  first request is sent, and closes them at the end.
* The writer's thread alone appends, compresses, puts in order, and syncs.
* Any thread may ask for ``fraction()``, and call ``interrupt()``, which ends a wait for a pipe.

**What a stop leaves.**

* At its end, and after a signal, a fatal answer or an exception: all that was answered is on record, what
  waited for its turn included. A compressed file has its end. After a signal a pipe is read no further.
* ``kill -9``: all that was on record can be read. A torn line is cut off by the next run, and the torn end
  of a compressed file (``torn_ends``). What was in flight, or waited for its turn, is sent again.
* A full disk: the file ends with its last whole batch, which may be read at any time.
* Results for an object store are on local disk until the run has come to its end: only then they are
  put there, whole, and removed here.

``custom_ids`` gives a request the id of its record, and finds rows that could be mixed up; ``batch_rows``
knows the forms of Batch files. ``identity`` says which record is of which request. ``input_order`` sorts
what an earlier run left out of order. ``verify`` checks that a results file has everything. The results
file is the only state.

Names that cross the border (module, names):

    append_file    REPLACEMENT_SUFFIX, STDOUT, AppendFile, replace_file, sync_directory,
                   written_whole
    batch_rows     MISTRAL, OPENAI, RowRequest, dialect_of
    compression    Unpacked, compression_of, new_member, unpacked, written_compression
    custom_ids     CustomIds, arranged, conflict_text, in_form, refusing_wrong_api, with_id
    formats        made_request, read_requests, requests_in, requests_of, tell_notes
    identity       Record, content_key, id_in, id_key, identity, read_record
    input_order    RequestOrder
    object_stores  StoredFile, fetched, file_system, found_results, is_object, is_url, local_path
    records        BOM, RecordParts, read_outcome, read_results, reading, record, take_apart
    requests_file  InvalidLine, Place, RequestLines, check_paths, line_place,
                   plain_stem
    resume         AnsweredRequests, open_files, prepare
    shape          is_array, packed_table_text, why_not_in_blocks, why_not_jsonl, why_not_plain
    sources        STDIN, Source, SourceLike, apart_from, find_save_path, find_sources, open_sources
    verify         Verification, find_answered, records_in, verify_lines, verify_results
    writer         InputOrder, ResultWriter, held_bytes
"""
