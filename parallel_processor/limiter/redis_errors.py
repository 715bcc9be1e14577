"""What an error of the package ``redis`` means, and what helps, in one line.

Some errors pass: a server loads its data, or a replica takes over. Others refuse this process until
somebody changes the server or the URL. Errors are told apart by their class, which follows from the
server's code, and by the text where the package has no class for it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_RIGHTS = (
    "~parallel-processor:* +eval +evalsha +select +time +del +exists +hdel +hget +hgetall +hmget +hset "
    "+pexpire +zadd +zcard +zrange +zrangebyscore +zremrangebyscore"
)
_MAY_NOT = f"it may not run the script (give its user the rights {_RIGHTS})"

# A class or a pattern of the text, the reason, and whether it lasts.
_BY_CLASS = {
    "NoPermissionError": (f"its user has too few permissions: {_MAY_NOT}", True),
    "ReadOnlyError": (
        "it is a read-only replica: name its primary, or an address that leads to the primary",
        False,
    ),
    "OutOfMemoryError": ("its memory is full (OOM): raise its maxmemory, or free some", False),
    "BusyLoadingError": ("it is still loading its data: wait until it has", False),
    "MasterDownError": (
        "it is a replica that has lost its primary: name the primary, or repair it",
        False,
    ),
    "ClusterDownError": ("its cluster is down, or has no node for the limiter's slot", False),
    "TryAgainError": ("its cluster is moving the limiter's slot", False),
    "AskError": ("its cluster is moving the limiter's slot", False),
    "MovedError": ("the nodes of its cluster send the call to each other", False),
}
_BY_TEXT = (
    (r"DENIED .*protected mode", "it is in protected mode, which refuses other machines: give it a "
     "password (requirepass) and name that in the URL, or set protected-mode no", True),
    (r"can't run this command", f"its user has too few permissions: {_MAY_NOT}", True),
    (r"unknown command", "it knows no scripts (EVALSHA): is it a Sentinel, a proxy, or a server where "
     "they are switched off?", True),
    (r"SELECT is not allowed in cluster mode", "a cluster has database 0 alone: end the URL with /0",
     True),
    (r"DB index is out of range|invalid DB index", "it has no database of the number in the URL", True),
    (r"NOREPLICAS", "it has too few replicas to accept writes (min-replicas-to-write)", False),
    (r"MISCONF", "it can't save its data, so it accepts no writes: its log says why", False),
    (r"^BUSY", "it is busy with another script", False),
    (r"max number of clients", "it has as many clients as it takes: raise its maxclients", False),
    (r"(?i)certificate|wrong version number", "", False),
)  # fmt: skip


def diagnose(error: Exception, url: str) -> tuple[str, bool]:
    """Why the server at ``url`` can't be used, with the remedy; and whether waiting can't help."""
    names = [each.__name__ for each in type(error).__mro__]
    text = str(error).rstrip(".")
    if "AuthenticationError" in names or "NOAUTH" in text:
        return _login(url), True
    for name in names:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    for pattern, reason, is_lasting in _BY_TEXT:
        if re.search(pattern, text):
            return reason or text, is_lasting
    return f"{text}{_about_tls(text, url)}", False


def _login(url: str) -> str:
    if urlsplit(url).password is None:
        return (
            "it wants a password: name it in the URL, as in redis://:PASSWORD@HOST:PORT/0, or "
            "redis://USER:PASSWORD@HOST:PORT/0"
        )
    return "it refuses the password in the URL, or its user"


def _about_tls(text: str, url: str) -> str:
    """What helps if one side speaks TLS and the other does not."""
    if url.startswith("rediss:") and "imeout" in text:
        return " (if it has no TLS, the URL begins with redis://)"
    if url.startswith("redis:") and "closed by server" in text:
        return " (if it wants TLS, the URL begins with rediss://)"
    return ""
