"""Equal requests of a run: the first is sent, and the others share its answer.

Requests are equal if they have the same URL and the same body, byte for byte except for white space
around it. Each keeps its own metadata and ``custom_id``.

While the first is under way, equal ones wait for its outcome and share it, whatever it is. Later ones get
its answer from a private SQLite database, which is partly in memory and partly in a temporary file, and is
deleted with the run. After a failure, the next equal request is sent. SQLite has locks of the whole
process: ``FORK_LOCK`` keeps a fork from happening while one of them is held.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import replace

from parallel_processor.files.identity import content_key
from parallel_processor.models import Outcome, Request, Response
from parallel_processor.providers.jsontext import parse
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.locks import InterruptSafeLock

_log = logging.getLogger("parallel_processor")
_TABLE = (
    "CREATE TABLE answers (key BLOB PRIMARY KEY, status INT, headers TEXT, body BLOB) WITHOUT ROWID"
)


class Duplicates:
    """The requests and answers of one run. The reader calls :meth:`claim`, any thread the others."""

    def __init__(self) -> None:
        self._lock = InterruptSafeLock()  # guards _waiting
        self._waiting: dict[bytes, list[Request]] = {}  # for the outcome of an equal request
        self._database_lock = InterruptSafeLock()  # guards the database, and _is_full
        with FORK_LOCK:
            self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute(_TABLE)
        self._is_full = False

    def claim(self, request: Request) -> Outcome | bool:
        """True if ``request`` is to be sent; its outcome if an equal one was answered.

        False if an equal one is under way: then :meth:`end` returns its outcome.
        """
        key = content_key(request)
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(request)
                return False
        response = self._find(key)  # an answer is stored before its key is removed from _waiting
        if response is not None:
            return Outcome(request=request, ok=True, raw_response=response, deduplicated=True)
        with self._lock:
            self._waiting[key] = []
        return True

    def end(self, outcome: Outcome) -> list[Outcome]:
        """A request has its ``outcome``: the outcomes of those that waited for it."""
        key = content_key(outcome.request)
        if outcome.ok and outcome.raw_response is not None:
            self._keep(key, outcome.raw_response)
        with self._lock:
            pending = self._waiting.pop(key, [])
        shared = replace(outcome, attempts=0, used_tokens=None, latency_s=None, deduplicated=True)
        return [replace(shared, request=request) for request in pending]

    def close(self) -> None:
        """Delete the database."""
        with self._database_lock, FORK_LOCK:
            self._database.close()

    def _find(self, key: bytes) -> Response | None:
        query = "SELECT status, headers, body FROM answers WHERE key = ?"
        with self._database_lock, FORK_LOCK:
            row = self._database.execute(query, [key]).fetchone()
        if row is None:
            return None
        status, headers, body = row
        data, headers = parse(body.decode(), strict=False), json.loads(headers)
        return Response(status=status, headers=headers, body=body, data=data, is_json=True)

    def _keep(self, key: bytes, response: Response) -> None:
        row = (key, response.status, json.dumps(dict(response.headers)), response.body)
        with self._database_lock, FORK_LOCK:
            if self._is_full:
                return
            try:
                self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)
            except sqlite3.Error as error:
                self._is_full = True
                message = (
                    "can't keep more answers for equal requests: they are sent from now on: %s"
                )
                _log.warning(message, error)
