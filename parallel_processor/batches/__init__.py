"""Files for a Batch API, and results of what it sends back. Nothing is sent from here.

``split`` makes files to upload of any requests, and checks what such an API would refuse. ``merge`` makes
one results file of the output and error files of several batches, which ``process_file`` resumes from.

Names that cross the border (module, names):

    merge  Merged, merge
    split  MOST_BYTES, MOST_LINES, split
"""
