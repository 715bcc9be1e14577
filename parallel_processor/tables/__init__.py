"""Tables in and out: a request for each row of one, and the results as one.

``csv_table`` and ``parquet_table`` read rows, and ``templates`` makes a JSON line of each. ``sources``
joins the two: to the rest of the package a table is a file of such lines. ``export`` writes a results file
as a table, whose ``columns`` it finds first. ``kinds`` tells tables by their names. ``arrow`` imports
pyarrow when it is used.

Names that cross the border (module, names):

    export   export_results
    kinds    is_table, with_template
    sources  open_table
"""
