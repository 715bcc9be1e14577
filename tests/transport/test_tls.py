"""TLS contexts: one for each policy, as strict as urllib3's own."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from raw_server import CERTIFICATE
from transports import in_threads
from urllib3.util.ssl_ import create_urllib3_context

from parallel_processor.transport.setup_faults import SetupFault
from parallel_processor.transport.tls import TLSContexts, TLSPolicy

# The same key as the certificate's, with a password.
ENCRYPTED_KEY = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhnSm8m/GaKgAICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEENxPzBooCnvpSKmlJUlrmhoEgZDe
AG2gEtzRivelWB+cjGKLVWzTNuimaC+DUSEEyK7uLX62Z8RzUURo1dyb9LSdABIe
DON+479LxXaN1TjGX+2f0etpRWUhR1Z46Dl00WU5uE4PI3u5t6FFMKyeicARPOmU
IfwvuLubvnXP5CDNq9tMMZeqSi70E8+JJapxgrnx6At5Lv8qcfyb8taUbpyCdsc=
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A file with a certificate and its key."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    return str(path)


def test_threads_share_a_context(bundle: str) -> None:
    """However many threads ask for a policy at once, its files are read into one context."""
    contexts, found = TLSContexts(), []
    policy = TLSPolicy("CERT_REQUIRED", bundle)
    in_threads(20, lambda: found.append(contexts.get(policy)))
    assert len(found) == 20
    assert len({id(context) for context in found}) == 1
    (certificate,) = found[0].get_ca_certs()
    assert dict(certificate["subject"][0])["commonName"] == "localhost"


def test_each_policy_has_its_context(bundle: str) -> None:
    """Another bundle, certificate or strictness is another context."""
    contexts = TLSContexts()
    policies = [
        TLSPolicy("CERT_REQUIRED", bundle),
        TLSPolicy("CERT_REQUIRED", bundle, cert_file=bundle),
        TLSPolicy("CERT_REQUIRED", bundle, cert_file=bundle, key_file=bundle),
        TLSPolicy("CERT_NONE"),
    ]
    assert len({id(contexts.get(policy)) for policy in policies}) == 4


@pytest.mark.parametrize(("reqs", "is_strict"), [("CERT_REQUIRED", True), ("CERT_NONE", False)])
def test_a_context_is_as_strict_as_urllib3s(reqs: str, is_strict: bool, bundle: str) -> None:
    """Versions, ciphers, options and checks are urllib3's, so that a certificate counts for the same."""
    ours = TLSContexts().get(TLSPolicy(reqs, bundle if is_strict else None))
    theirs = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if is_strict else ssl.CERT_NONE)
    versions = ("minimum_version", "maximum_version", "options")
    for name in (*versions, "verify_mode", "verify_flags", "check_hostname"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.get_ciphers() == theirs.get_ciphers()
    assert ours.verify_mode is (ssl.CERT_REQUIRED if is_strict else ssl.CERT_NONE)


def test_an_encrypted_key_asks_nobody(tmp_path: Path) -> None:
    """A key with a password is an error, and not a question on the terminal."""
    path = tmp_path / "certificate.pem"
    path.write_text(ENCRYPTED_KEY + CERTIFICATE[CERTIFICATE.index("-----BEGIN CERTIFICATE") :])
    with pytest.raises(SetupFault, match="encrypted"):
        TLSContexts().get(TLSPolicy("CERT_REQUIRED", cert_file=str(path)))
