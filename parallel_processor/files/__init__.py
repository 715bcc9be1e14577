"""JSONL in, JSONL out: requests are read, records are written, and a results file is read back.

``requests_file`` streams lines, after ``shape`` has seen that they are JSONL. ``formats`` turns a line into
a request and an outcome into a record, ``custom_ids`` finds rows that could be mixed up. ``writer`` appends
records from its single thread. ``resume`` finds out what a results file has already, ``verify`` checks
that it has everything. The results file is the only state.

Names that cross the border (module, names):

    append_file    AppendFile, REPLACEMENT_SUFFIX, replace_file, sync_directory
    custom_ids     with_checked_ids
    formats        Record, content_key, identity, made_request, read_record, read_requests,
                   tell_notes
    records        read_outcome, read_results, reading
    requests_file  InvalidLine, RequestLines, RequestsFile, check_paths, default_save_path
    resume         AnsweredRequests, open_files, prepare
    shape          why_not_jsonl, why_not_plain
    verify         Verification, records_in, verify_lines, verify_results
    writer         ResultWriter
"""
