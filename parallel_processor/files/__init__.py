"""JSONL in, JSONL out: requests are read, records are written, and a results file is read back.

``requests_file`` streams lines, after ``shape`` has seen that they are JSONL. ``formats`` turns a line
into a request, ``custom_ids`` gives it the id of its record, and finds rows that could be mixed up.
``records`` turns an outcome into a record and back, ``batch_rows`` knows the forms of Batch files.
``writer`` appends records from its single thread. ``identity`` says which record is of which request:
``resume`` finds out what a results file has already, ``verify`` checks that it has everything. The results
file is the only state. ``batch_files`` makes files for a Batch API, and results of what comes back.

Names that cross the border (module, names):

    append_file    AppendFile, replace_file, sync_directory
    custom_ids     arranged
    formats        made_request, read_requests, requests_in, tell_notes
    identity       Record, content_key, identity, read_record
    records        read_outcome, read_results
    requests_file  RequestLines, RequestsFile, check_paths, default_save_path
    resume         AnsweredRequests, open_files, prepare
    shape          why_not_jsonl
    verify         Verification, records_in, verify_lines, verify_results
    writer         ResultWriter
"""
