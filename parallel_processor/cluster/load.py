"""Imports Ray when it is used."""

from __future__ import annotations

import importlib.util
from typing import Any

from parallel_processor.exceptions import ConfigurationError


def check_ray() -> None:
    """Raise :class:`ConfigurationError` if Ray is not installed. Imports nothing of it."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError("Ray is missing: pip install 'parallel-api-processor[ray]'")


def load_ray() -> Any:
    """The package ``ray``. Raises :class:`ConfigurationError` if it is not installed."""
    check_ray()
    import ray
    import ray.exceptions

    return ray
