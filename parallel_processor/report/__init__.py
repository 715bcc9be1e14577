"""What a run tells: counters, progress, summary, report file, advice, Prometheus metrics.

Counters and waiting times flow in; text, JSON, an HTML page (``html/``) and metrics flow out. Nothing here
changes the run.

Names that cross the border (module, names):

    advice       advice
    counters     Counters, Counts
    frames       ColumnType, metadata_columns, row_of, to_records
    histogram    percentile_s
    limit_news   LimitNews, tell_changed, tell_large
    progress     BarStream, Displays, Progress
    prometheus   serve_metrics
    repeats      RepeatedWarnings
    report_file  Highlights, LiveReport, request_note, summary_json, write_whole
    samples      RequestNote, RunReport, Sample
    snapshot     Snapshot, added, scaled
    summary      Stats, Summary, cost_fields, counters_of, summary_text
    wait_times   WaitTimes
    wording      cause_text, clock_text, count, counted, kind_text, share_text
"""
