"""JSONL in, JSONL out: requests are read, records are written, and a results file is read back.

``sources`` finds what a user named: files, pipes, objects on a store (``object_stores``).
``requests_file`` streams lines, unpacked by ``compression``, after ``shape`` has seen that they are
JSONL. ``formats`` turns a line into a request and an outcome into a record, ``custom_ids`` finds rows
that could be mixed up. ``writer`` appends records from its single thread to an ``append_file``, plain or
compressed. ``resume`` finds out what a results file has already (``torn_ends`` what a kill has left of a
compressed one), ``verify`` checks that it has everything. The results file is the only state.

Names that cross the border (module, names):

    append_file    STDOUT, AppendFile, replace_file, sync_directory
    custom_ids     with_checked_ids
    formats        Place, Record, content_key, identity, line_place, made_request, read_record,
                   read_requests, tell_notes
    object_stores  StoredFile, file_system, is_url
    records        read_outcome, read_results
    requests_file  RequestLines, check_paths
    resume         AnsweredRequests, open_files, order_key, prepare, put_in_order
    shape          why_not_in_blocks, why_not_jsonl
    sources        Source, SourceLike, find_save_path, find_sources, open_sources
    verify         Verification, records_in, verify_lines, verify_results
    writer         InputOrder, ResultWriter, held_bytes
"""
