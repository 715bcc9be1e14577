"""Which record is of which request: both have keys, and a record answers a request that shares one.

* A Batch row is known by its ``custom_id``. Its cookbook record has the id as the one member of its
  metadata, besides the body.
* A cookbook line is known by its content: body and metadata. Its Batch record has an id, and in its own
  ``id`` the hash of that content. So the record is of that line as it was. A Batch record from elsewhere
  has the id alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from parallel_processor.files.batch_rows import RowRequest
from parallel_processor.files.records import UNCLEAR, take_apart
from parallel_processor.models import Request
from parallel_processor.providers.jsontext import parse

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Record(NamedTuple):
    """What a line of a results file says: the key of its request, and if it was answered."""

    identity: bytes
    ok: bool | None  # None for another program's form, which may be an answer or a failure
    given_id: bytes | None = None  # the key of the id that a cookbook line was given, if it was one
    origin: bytes | None = None  # the identity of that line
    has_id_alone: bool = False  # a Batch record that tells nothing else of its request

    @property
    def content(self) -> bytes:
        """The key of its request: of a cookbook line the same in either form."""
        return self.origin or self.identity


def read_record(line: bytes) -> Record | None:
    """The record in ``line``; ``None`` if there is none (see ``records.py``)."""
    parts = take_apart(line)
    if parts is None:
        return None
    ok = None if parts.fault is UNCLEAR else parts.ok
    if parts.custom_id is None:
        return Record(_identity(parts.request, parts.metadata), ok)
    key = id_key(parts.custom_id)
    if parts.origin is None:
        return Record(key, ok, has_id_alone=True)
    return Record(_both(key, parts.origin), ok, key, parts.origin)


def identity(request: Request) -> bytes:
    """16 bytes that equal requests share: of the id of a row, otherwise of body and metadata."""
    return next(keys(request))


def keys(request: Request) -> Iterator[bytes]:
    """The keys of the records that may be those of ``request``, the usual one first, each of 16 bytes."""
    custom_id = request.custom_id
    if custom_id is None:
        metadata = request.metadata_json
        content = _identity(request.body, None if metadata is None else parse(metadata.decode()))
        yield content
        yield _both(id_key(given_id(request)), content)
    elif isinstance(request, RowRequest) and request.origin:
        yield request.origin
        yield _both(id_key(custom_id), request.origin)
        yield id_key(custom_id)
    else:
        yield id_key(custom_id)
        yield _identity(request.body, {"custom_id": custom_id})


def given_id(request: Request) -> str:
    """The id of the Batch record of a cookbook line: that in its metadata, else one of its line."""
    own = id_in(request.metadata)
    return line_id(request.number) if own is None else own


def id_in(metadata: Any) -> str | None:
    """The ``custom_id`` in the metadata of a cookbook line, as a text; ``None`` if there is none."""
    own = metadata.get("custom_id") if isinstance(metadata, Mapping) else None
    if isinstance(own, int) and not isinstance(own, bool):
        return str(own)
    return own if isinstance(own, str) else None


def line_id(number: int) -> str:
    """The id of a line that has none of its own."""
    return f"request-{number}"


def content_key(request: Request) -> bytes:
    """16 bytes that requests share whose URL and payload are equal byte for byte."""
    url = (request.url or "").encode("utf-8", "surrogatepass")
    return hashlib.blake2b(url + b"\0" + request.payload, digest_size=16).digest()


def id_key(custom_id: str) -> bytes:
    """The key of a row with this id."""
    data = custom_id.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, person=b"custom_id").digest()


def _identity(body: Any, metadata: Any) -> bytes:
    """The hash of a body and its metadata. The order of keys doesn't matter."""
    content = _encode([body, metadata or None])  # the cookbook's script drops empty metadata
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _both(key: bytes, origin: bytes) -> bytes:
    return hashlib.blake2b(key + origin, digest_size=16, person=b"given_id").digest()
