"""What tests of transports need before they begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_server import CERTIFICATE


@pytest.fixture
def trusted_certificate(
    clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust the raw server's certificate, in an environment that says nothing else."""
    path = tmp_path / "certificate.pem"
    path.write_text(CERTIFICATE)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
