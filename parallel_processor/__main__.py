"""``python -m parallel_processor``: the command line."""

import sys

from parallel_processor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
