"""JSONL in, JSONL out: requests are read, records are written, and a results file is read back.

``sources`` finds what a user named: files, pipes, objects on a store (``object_stores``).
``requests_file`` streams lines, unpacked by ``compression``, after ``shape`` has seen that they are
JSONL. ``formats`` turns a line into a request, ``custom_ids`` gives it the id of its record, and finds rows
that could be mixed up. ``records`` turns an outcome into a record and back, ``batch_rows`` knows the forms
of Batch files. ``writer`` appends records from its single thread to an ``append_file``, plain or
compressed. ``identity`` says which record is of which request: ``resume`` finds out what a results file
has already (``torn_ends`` what a kill has left of a compressed one), ``input_order`` sorts it where that is
asked for, ``verify`` checks that it has everything. The results file is the only state.

Names that cross the border (module, names):

    append_file    REPLACEMENT_SUFFIX, STDOUT, AppendFile, replace_file, sync_directory
    batch_rows     MISTRAL, OPENAI, RowRequest, dialect_of
    compression    Unpacked, new_member, unpacked, written_compression
    custom_ids     CustomIds, arranged, conflict_text, with_id
    formats        made_request, read_requests, requests_in, tell_notes
    identity       Record, content_key, id_key, identity, read_record
    input_order    RequestOrder
    object_stores  StoredFile, fetched, file_system, is_object, is_url
    records        BOM, RecordParts, read_outcome, read_results, reading, record, take_apart
    requests_file  InvalidLine, Place, RequestLines, RequestsFile, check_paths, line_place,
                   plain_stem
    resume         AnsweredRequests, open_files, prepare
    shape          why_not_jsonl, why_not_plain
    sources        Source, SourceLike, apart_from, find_save_path, find_sources, open_sources
    verify         Verification, records_in, verify_lines, verify_results
    writer         InputOrder, ResultWriter, held_bytes
"""
