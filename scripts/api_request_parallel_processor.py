#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Run `parallel-processor` from a clone, without installing it (only what it depends on).

    python scripts/api_request_parallel_processor.py \\
        --requests_filepath requests.jsonl \\
        --save_filepath requests_results.jsonl \\
        --request_url https://api.openai.com/v1/embeddings \\
        --max_requests_per_minute 1500 \\
        --max_tokens_per_minute 6250000 \\
        --token_encoding_name cl100k_base \\
        --max_attempts 5 \\
        --logging_level 20

The clone's own package is what runs, even where another copy is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from parallel_processor.cli.main import main  # found by the line above
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install requests tiktoken tenacity tqdm, or use the Python in .venv")

if __name__ == "__main__":
    sys.exit(main())
