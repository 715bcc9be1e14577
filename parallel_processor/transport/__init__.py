"""HTTP: requests sessions, bounded connections, HTTP/1 messages, TLS contexts.

A ``Transport`` sends one request. It returns a complete ``Response``, or raises a ``TransportError``. The
whole exchange has one deadline, another thread can cancel it, and nothing is sent twice.

Names that cross the border (module, names):

    http1    Headers
    session  LONG_BYTES, Transport
"""
