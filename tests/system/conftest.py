"""What the tests of whole runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

LINES = 100_000


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 100,000 requests."""
    path: Path = tmp_path_factory.mktemp("many") / "in.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(LINES):
            file.write(f'{{"model": "m", "input": "text {number}", "user": "{number}"}}\n')
    return path
