"""Tells what a requests file holds, by its beginning: lines, a JSON array, or something else.

One bad line is a failed record. A file of another format would make a failed record of every line, so it
is refused as a whole, before anything is sent, with the command that makes JSONL of it. Of an array the
elements are taken for lines.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import InputFileError
from parallel_processor.files.batch_rows import ASKED
from parallel_processor.files.records import BOM, take_apart
from parallel_processor.providers.jsontext import parse

# What a request has, and a response that stands behind one in a record has not.
_ASKED = ASKED | {"body", "params", "request"}
_TABLES = ("csv", "tsv", "parquet")  # what else is read, by the ends of its names
_LEAST_LINES = 10  # that must all be bad before a file of no known format is refused
# How a file begins; what it is; the command that makes JSONL of it, for its name.
_COMPRESSED = (  # some are unpacked before they are looked at, but for tables
    (b"\x1f\x8b", "gzip", "gunzip -c {}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc {}"),
    (b"BZh", "bzip2", "bunzip2 -c {}"),
    (b"\xfd7zXZ\0", "xz", "xz -dc {}"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc {}"),
    (b"PK\x03\x04", "zip", "unzip -p {}"),
)
_UNPACK = {  # by the end of a name
    **dict.fromkeys((".zst", ".zstd"), "zstd -dc {}"),
    ".gz": "gunzip -c {}",
    ".bz2": "bunzip2 -c {}",
    ".xz": "xz -dc {}",
}


def why_not_jsonl(head: bytes, is_whole: bool, path: Path) -> str | None:
    """Why the file that begins with ``head`` can't be sent, with the remedy; ``None`` if it may be JSONL.

    ``is_whole`` says that ``head`` is the whole file.
    """
    return why_not_plain(head, path) or _why_no_lines(head.removeprefix(BOM), is_whole, path)


def why_not_plain(head: bytes, path: Path) -> str | None:
    """Why a file that begins with ``head`` is no text in UTF-8, with the remedy; ``None`` if it may be."""
    for magic, name, command in _COMPRESSED:
        if head.startswith(magic):
            return f"{path} is compressed ({name}): unpack it first ({_shell(command, path)})"
    if head.startswith(b"PAR1"):
        if path.suffix.lower() == ".parquet":
            return _table_text(path)
        return (
            f"{path} is a Parquet file: name it so that it ends with .parquet, and give a template"
        )
    encoding = _other_unicode(head)
    if encoding is not None:
        command = _shell(f"iconv -f {encoding} -t UTF-8 {{}}", path)
        return f"{path} is {encoding}, not UTF-8: convert it first ({command})"
    return None


def packed_table_text(path: Path) -> str | None:
    """What to do with a table that is compressed, by its name; ``None`` for any other file."""
    command, inner = _UNPACK.get(path.suffix.lower()), Path(path.stem)
    if command is None or not _is_table(inner):
        return None
    made = f"{command.format(shlex.quote(str(path)))} > {shlex.quote(str(path.with_suffix('')))}"
    return f"{path} is a compressed table: unpack it first ({made}), and give a template"


def _is_table(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in _TABLES


def _table_text(path: Path) -> str:
    return (
        f"{path} is a table, which needs a template: a run and verify take one (--template, in a program "
        "template=); other commands take JSONL alone"
    )


def why_not_in_blocks(head: bytes, path: Path) -> str | None:
    """Why a file that may be sent as a whole can't be read from any place in it; ``None`` if it can."""
    if is_array(head):
        command = _shell("jq -c '.[]' {}", path)
        return f"{path} holds a JSON array, not one JSON object a line: take it apart first ({command})"
    return None


def _shell(command: str, path: Path) -> str:
    """``command`` for the file at ``path``, whose output goes to another file."""
    stem, _, suffix = path.name.partition(".")
    ending = next((name for name in _TABLES if name in suffix.lower().split(".")), "jsonl")
    made = f"{stem}_lines.{ending}"
    return f"{command.format(shlex.quote(str(path)))} > {shlex.quote(made)}"


def _other_unicode(head: bytes) -> str | None:
    """The encoding of a text in UTF-16 or UTF-32."""
    encoding = json.detect_encoding(head)
    if encoding.startswith("utf-8"):
        return None
    has_mark = encoding in ("utf-16", "utf-32")
    start = head[:64].decode(encoding, "ignore").lstrip()
    if not has_mark and start[:1] not in ("{", "["):
        return None
    return encoding[:6].upper() + encoding[7:].upper()  # as iconv spells it: UTF-16LE


def _why_no_lines(head: bytes, is_whole: bool, path: Path) -> str | None:
    """Why a text in UTF-8 is no JSONL."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    if head and not is_whole and len(lines) > 1 and not head.endswith(b"\n"):
        lines.pop()  # its end is not there
    if not lines or isinstance(value := _value(lines[0]), dict):
        return None
    first = lines[0].lstrip()[:1]
    if first not in (b"[", b"{") and (packed := packed_table_text(path)) is not None:
        return packed
    if first not in (b"[", b"{") and _is_table(path):
        return _table_text(path)
    if isinstance(value, list) and len(lines) > 1 and all(x.lstrip()[:1] == b"[" for x in lines):
        what = "a JSON array in each line, as a results file does"
        return f"{path} holds {what}: name the file of the requests, one JSON object a line"
    if first == b"[" and is_array(head):
        if not isinstance(value, list):  # it goes on
            return None
        what = "" if any(isinstance(each, dict) for each in value) else "an array without objects"
        has_requests = len(value) > 1 and isinstance(value[1], dict) and _ASKED & value[1].keys()
        if not has_requests and take_apart(lines[0].strip()) is not None:
            what = "a record of a results file"
        return f"{path} holds {what}: name the file of the requests" if what else None
    if first == b"{" and _goes_on(head, lines):
        command = _shell("jq -c . {}", path)
        return f"{path} holds JSON over several lines, not one object a line: join them first ({command})"
    if len(lines) < _LEAST_LINES or any(isinstance(_value(line), dict) for line in lines):
        return None
    return (
        f"{path} is no JSONL file: none of its first {len(lines):,} lines is a JSON object. "
        "Write one object a line"
    )


def is_array(head: bytes) -> bool:
    """True if the text that begins with ``head`` is one JSON array, rather than lines."""
    text = head.removeprefix(BOM).lstrip()
    if text[:1] != b"[":
        return False
    first, _, rest = text.partition(b"\n")
    return not rest.strip() or not isinstance(_value(first), list)


# A string up to its end or an escape in it, or what nests and separates.
_TOKEN = re.compile(rb'"[^"\\]*("?)|[\[\]{},]')
# Some more of a string. The bound keeps the memory small that a match takes.
_REST = re.compile(rb'(?:[^"\\]+|\\.){0,1000}("?)', re.DOTALL)
_PIECE_BYTES = 256 * 1024


def elements(file: io.BufferedReader, name: str) -> Iterator[bytes]:
    """The elements of the JSON array in ``file``, as they are written. One of them is in memory at a time.

    Raises :class:`InputFileError` if the array has no end, or something follows it.
    """
    data = file.read1(_PIECE_BYTES).removeprefix(BOM)
    start, place, depth = data.find(b"[") + 1, data.find(b"[") + 1, 1
    pattern = _TOKEN
    while depth:
        token = pattern.match(data, place) if pattern is _REST else pattern.search(data, place)
        if token is None or not token[0]:  # goes on in what is not read yet
            place = len(data) if token is None else place
            more = file.read1(max(_PIECE_BYTES, len(data) - start))
            if not more:
                raise InputFileError(
                    f"{name}: the JSON array has no end: something is missing there"
                )
            data, place, start = data[start:] + more, place - start, 0
            continue
        place, mark = token.end(), token[0]
        if pattern is _REST or mark[:1] == b'"':
            pattern = _TOKEN if token[1] else _REST
            continue
        depth += (mark in b"[{") - (mark in b"]}")
        if depth == 0 or (depth == 1 and mark == b","):
            element = data[start : token.start()]
            if element.strip() or mark == b",":
                yield element.strip() or b"nothing"  # which is no JSON
            start = place
    if (data[place:] + file.read1(_PIECE_BYTES)).strip():
        raise InputFileError(f"{name}: something follows the JSON array")


def _goes_on(head: bytes, lines: list[bytes]) -> bool:
    """True if the object that begins in the first line ends in a later one."""
    if len(lines) > 1 and lines[0].strip() == b"{" and not isinstance(_value(lines[1]), dict):
        return True
    text = head.decode("utf-8", "replace").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def _value(line: bytes) -> Any:
    """The JSON value of ``line``; ``None`` if there is none."""
    try:
        return parse(line.decode("utf-8").strip(), strict=False)
    except ValueError:
        return None
