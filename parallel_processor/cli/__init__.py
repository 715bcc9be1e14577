"""The command line: flags become options, a run's end becomes an exit code.

``main`` parses the command, runs a ``Processor`` over the file, prints the summary and returns the exit
code. It is the only package that reads the environment and that touches signal handlers.

Names that cross the border (module, names):

    main  main
"""
