"""Finds out whether a mock, a recorder or a tracer wants to see the requests.

``responses`` replaces ``HTTPAdapter.send``, requests-mock ``Session.send``, VCR urllib3's
connection classes; tracers wrap one of these. None of them would see what goes over connections of
our own. So requests take the ordinary way if one of these functions isn't the one that its module
defines. The function itself is examined: it may have been replaced before this module was imported.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import requests
import urllib3.connection
from requests import adapters
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


def is_intercepted(session: requests.Session) -> bool:
    """True if requests must be sent by ``session.send``."""
    send = getattr(session.send, "__func__", session.send)
    ours = ((send, requests.sessions), (HTTPAdapter.send, adapters))
    return not all(_is_defined_in(function, module) for function, module in ours)


def is_recorded() -> bool:
    """True if a recorder such as VCR sees only urllib3's own pools and connections.

    Call it before any thread sends: VCR takes its classes away for moments.
    """
    pools: tuple[Any, ...] = (HTTPConnectionPool, HTTPSConnectionPool)
    return any(pool.ConnectionCls is not _genuine(pool.ConnectionCls) for pool in pools)


def is_any_active() -> bool:
    """True if a mock, a recorder or a tracer would see the requests of a new session."""
    with requests.Session() as session:
        return is_intercepted(session) or is_recorded()


def _is_defined_in(function: Any, module: types.ModuleType) -> bool:
    """True for a function of ``module``. A wrapper may have the function's name, but not its globals."""
    return type(function) is types.FunctionType and function.__globals__ is vars(module)


def _genuine(connection_class: Any) -> Any:
    """urllib3's own class, which ``connection_class`` may have replaced."""
    own = (each for each in connection_class.__mro__ if each.__module__ == "urllib3.connection")
    return next(own, None)


if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection as HTTPConnection
    from urllib3.connection import HTTPSConnection as HTTPSConnection
else:  # they may be replaced while this module is imported
    HTTPConnection = _genuine(urllib3.connection.HTTPConnection)
    HTTPSConnection = _genuine(urllib3.connection.HTTPSConnection)
