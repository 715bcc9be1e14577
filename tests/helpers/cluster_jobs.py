"""What the tests of the cluster share."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from raw_server import RawServer
from services import HASTE, NO_LIMITS

from parallel_processor.cluster.blocks import Block
from parallel_processor.cluster.job import Job
from parallel_processor.options import Settings


def made_job(home: Path, server: RawServer | str, run: str = "aa", **more: Any) -> Job:
    """A job whose requests are in ``in.jsonl``, and whose output goes to ``out``."""
    url = server if isinstance(server, str) else server.url
    settings: Settings = {
        "request_url": url + "/v1/embeddings",
        "limits": NO_LIMITS,
        "retry": HASTE,
        "max_workers": 8,
        **more.pop("settings", {}),
    }
    made: dict[str, Any] = {"source": str(home / "in.jsonl"), "folder": str(home / "out")}
    return Job(**made | more, run=run, settings=settings)


def write_requests(folder: Path, rows: list[Any]) -> list[bytes]:
    """Write the requests file; its lines. A row that is a string is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines), "utf-8")
    return [line.encode() for line in lines]


def whole(folder: Path) -> Block:
    """All of the requests file."""
    return Block(0, (folder / "in.jsonl").stat().st_size)


def parts(folder: Path) -> list[Any]:
    """The records of all parts, in the order of their names."""
    paths = sorted((folder / "out").glob("part-*"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def sent_more_than_once(server: RawServer) -> int:
    """How many requests came again."""
    return sum(count - 1 for count in Counter(server.bodies).values())
