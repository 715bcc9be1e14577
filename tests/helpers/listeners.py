"""What the processes below one listen on, read from /proc."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTEN = "0A"


def descendants(pid: int) -> list[int]:
    """``pid`` and all processes below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def listening_addresses(pids: list[int]) -> set[str]:
    """The addresses on which these processes listen for TCP connections."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                found.add(_address(fields[1].partition(":")[0], family))
    return found


def _sockets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(path)
                if target.startswith("socket:["):
                    yield target[8:-1]


def _address(text: str, family: int) -> str:
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(socket.inet_ntop(family, b"".join(words)))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
