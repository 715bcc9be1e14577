"""Stops of the hardest kind: SIGKILL at random moments of the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from crashes import crash

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("kills", "error_rate", "processes", "has_tiers", "pack_inputs"),
    [
        (5, 0.0, 1, False, 1),
        (5, 0.2, 1, False, 1),
        (3, 0.1, 2, False, 1),
        (3, 0.1, 1, True, 1),
        (3, 0.1, 1, False, 7),
    ],
)
def test_a_job_survives_being_killed(
    tmp_path: Path, kills: int, error_rate: float, processes: int, has_tiers: bool, pack_inputs: int
) -> None:
    """Every line has one good record, and what was sent twice was in flight at a kill."""
    report = crash(
        tmp_path,
        lines=250 * kills,
        kills=kills,
        seed=kills,
        error_rate=error_rate,
        processes=processes,
        has_tiers=has_tiers,
        pack_inputs=pack_inputs,
    )
    assert report.ok, report
