"""Set-up faults: what keeps every request of a run from being answered, and how to mend it.

A certificate that isn't trusted, a proxy that wants a login, a scheme that the port doesn't speak: no
attempt can succeed until the user changes something. The engine ends the run with the remedy, unless the
server has answered before: then the fault may go away, and is waited for as an outage is.

requests reads the proxies' variables itself, and those that name a CA bundle (README, "Certificates and
proxies"), so the remedies name them.
"""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections.abc import Mapping, Sequence
from http.client import BadStatusLine
from typing import NamedTuple
from urllib.parse import urlsplit

from urllib3.exceptions import ProxyError
from urllib3.util.ssl_match_hostname import CertificateError

_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
# OpenSSL's numbers and reasons.
_EXPIRED, _NOT_YET_VALID, _WRONG_HOST = 10, 9, (62, 64)
_NO_TLS = re.compile(
    "WRONG_VERSION|HTTP_REQUEST|UNKNOWN_PROTOCOL|RECORD_LAYER_FAILURE|LENGTH_TOO_LONG"
)
_NO_HANDSHAKE = re.compile(
    "HANDSHAKE_FAILURE|PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS|CERTIFICATE|UNKNOWN_CA"
    "|ACCESS_DENIED|UNRECOGNIZED_NAME|LEGACY_RENEGOTIATION|TOO_SMALL|TOO_WEAK|CIPHER"
    "|INSUFFICIENT_SECURITY"
)
_TLS_BYTES = re.compile(r"(?:b['\"])?(?:\\x15\\x03|\x15\x03)")  # an alert in place of a status line
_REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})")
_MAY_GO_AWAY = re.compile("408|429|5[0-9][0-9]")
_NO_FILE = re.compile("Could not find (?:a suitable|the) TLS .*invalid path: (.*)", re.DOTALL)
# How servers say in plain text that they want TLS: nginx, Go, Apache, Tomcat, OpenAI.
WANTS_TLS = re.compile(
    rb"plain http|http request to an https|requires tls|only be accessed over https", re.IGNORECASE
)
_BY_PROXY = re.compile(r"squid|tinyproxy|haproxy|privoxy", re.IGNORECASE)
_SHOWN_BYTES = 4096  # of a body


class SetupFault(OSError):
    """A fault that was found before anything was sent. ``kind`` is a label, the text has the remedy."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Way(NamedTuple):
    """Where requests go, and through which proxy: both without a login. No proxy is an empty text."""

    url: str
    proxy: str = ""
    trusts_system: bool = False  # its authorities

    @property
    def host(self) -> str:
        """The host that is meant, with its port if the URL has one."""
        return urlsplit(self.url).netloc

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def variable(self) -> str:
        """What names the proxy, unless the session does."""
        return f"{self.scheme.upper()}_PROXY"


def fault_of(causes: Sequence[BaseException], way: Way) -> tuple[str, str] | None:
    """Label and text of the set-up fault in ``causes``, the innermost last; ``None`` if there is none."""
    root = causes[-1]
    for cause in causes:
        if isinstance(cause, SetupFault):
            return cause.kind, str(cause)
    if isinstance(root, (CertificateError, ssl.SSLError)):
        of_proxy = any(isinstance(cause, ProxyError) for cause in causes)
        text = _of_tls(root, way, f"the proxy {way.proxy}" if of_proxy else way.host, of_proxy)
        return ("TLS error", text) if text else None
    if match := _REFUSED_TUNNEL.search(str(root)):
        if _MAY_GO_AWAY.fullmatch(match[1]):
            return None
        return "proxy error", _of_proxy(int(match[1]), way)
    if match := _NO_FILE.fullmatch(str(root)):
        return "TLS error", unusable_file(match[1], "it is not there")
    if isinstance(root, BadStatusLine) and _TLS_BYTES.match(str(root)):
        return "wrong scheme", speaks_tls(way)
    return None


def is_refused_tunnel(root: BaseException) -> bool:
    """True if a proxy answered that it can't or won't connect to the host."""
    return _REFUSED_TUNNEL.search(str(root)) is not None


def _of_tls(root: BaseException, way: Way, who: str, of_proxy: bool) -> str | None:
    """What is wrong with the TLS of ``who``; ``None`` if it may go away."""
    if isinstance(root, CertificateError):
        return _wrong_host(who, str(root))
    if isinstance(root, ssl.SSLCertVerificationError):
        return _untrusted(root, who, way)
    reason = (getattr(root, "reason", "") or "").upper().replace(" ", "_")
    if _NO_TLS.search(reason):
        return _no_tls(way, of_proxy)
    if _NO_HANDSHAKE.search(reason):
        return (
            f"the TLS handshake with {who} fails ({reason.replace('_', ' ').lower()}): it wants another "
            "TLS version, cipher or name, or a client certificate (a session_factory may have one)"
        )
    return None


def _untrusted(error: ssl.SSLCertVerificationError, who: str, way: Way) -> str:
    said = error.verify_message.rstrip(".")
    if error.verify_code in _WRONG_HOST:
        return _wrong_host(who, said)
    if error.verify_code == _NOT_YET_VALID:
        return f"the certificate of {who} is not valid yet: set the clock of this machine"
    if error.verify_code == _EXPIRED:
        return (
            f"the certificate of {who} has expired: have it renewed, check the clock of this machine, "
            "or, if it is its authority's that has expired, name a newer one by --ca_bundle FILE or "
            "REQUESTS_CA_BUNDLE"
        )
    other = "" if way.trusts_system else ", or trust the system's store by --ca_bundle system"
    return (
        f"the certificate of {who} is not trusted ({said}): name its authority's certificate by "
        f"--ca_bundle FILE or REQUESTS_CA_BUNDLE{other}"
    )


def _wrong_host(who: str, said: str) -> str:
    return (
        f"the certificate of {who} is for another host ({said}): use the host's name that stands in the "
        "certificate. A CA bundle (--ca_bundle, REQUESTS_CA_BUNDLE) can't change that"
    )


def _no_tls(way: Way, of_proxy: bool) -> str:
    if of_proxy:
        return f"the proxy {way.proxy} speaks no TLS: write http:// in {way.variable}, not https://"
    return f"{way.host} speaks no TLS there: use http:// in the request URL instead of https://"


def other_scheme(way: Way) -> str:
    """The text for a server, or a proxy, that speaks the other scheme than its URL says."""
    is_tls = (way.proxy or way.url).startswith("https")
    return _no_tls(way, bool(way.proxy)) if is_tls else speaks_tls(way)


def speaks_tls(way: Way) -> str:
    """The text for TLS where plain HTTP was spoken: by the server, or by its proxy."""
    if way.proxy:
        return f"the proxy {way.proxy} speaks TLS: write https:// in {way.variable}, not http://"
    return f"{way.host} speaks TLS there: use https:// in the request URL instead of http://"


def unusable_file(path: str, reason: str) -> str:
    """The text for a file of certificates that can't be used."""
    return (
        f"can't use the certificates in {path}: {reason}. Correct what names them: --ca_bundle, "
        "REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, or the session"
    )


def _of_proxy(status: int, way: Way) -> str:
    """Why the proxy does not let a request through, by its ``status``."""
    if status in (401, 407):
        return (
            f"the proxy {way.proxy} wants a login, or another one (HTTP {status}): set "
            f"{way.variable}=http://user:password@host:port"
        )
    if status == 403:
        return (
            f"the proxy {way.proxy} does not permit {way.host} (HTTP 403): have it permitted, or name the "
            "host in NO_PROXY if it can be reached without the proxy"
        )
    return (
        f"{way.proxy} is no proxy for https (it answers CONNECT with HTTP {status}): correct "
        f"{way.variable}"
    )


def fault_in_response(
    status: int, headers: Mapping[str, str], body: bytes, way: Way
) -> tuple[str, str] | None:
    """Label and text of the set-up fault that a failure shows; ``None`` if it shows none."""
    if status == 407:
        known = way if way.proxy else way._replace(proxy="in between")
        return "proxy error", _of_proxy(status, known)
    if way.scheme != "http":
        return None
    if way.proxy:
        is_proxys = _BY_PROXY.search(headers.get("server", "")) or "x-squid-error" in headers
        is_refusal = is_proxys and status in (401, 403)
        return ("proxy error", _of_proxy(status, way)) if is_refusal else None
    location = urlsplit(headers.get("location", ""))
    is_redirect = status in (301, 302, 307, 308) and location.scheme == "https"
    if is_redirect and location.hostname == urlsplit(way.url).hostname:
        return "wrong scheme", speaks_tls(way)
    if status in (400, 403) and WANTS_TLS.search(body[:_SHOWN_BYTES]):
        return "wrong scheme", speaks_tls(way)
    return None


def check_proxy(way: Way) -> None:
    """Raise :class:`SetupFault` if requests can't use the proxy of ``way``."""
    if not way.proxy:
        return
    scheme = urlsplit(way.proxy).scheme.lower()
    if scheme.startswith("socks") and scheme not in _PROXY_SCHEMES:
        raise SetupFault(
            "proxy error",
            f"{scheme}:// of the proxy {way.proxy} does not say which version: write socks5h:// in "
            f"{way.variable} or ALL_PROXY",
        )
    if scheme not in _PROXY_SCHEMES or not _is_address(way.proxy):
        raise SetupFault(
            "proxy error",
            f"{way.proxy} is no address of a proxy: write http://host:port in {way.variable} or "
            "ALL_PROXY",
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socks") is None:
        raise SetupFault(
            "proxy error",
            f"the proxy {way.proxy} needs the package PySocks: pip install 'requests[socks]', or "
            f"unset {way.variable} and ALL_PROXY",
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
