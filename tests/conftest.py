"""What holds for the whole suite: no network beyond loopback, no deadlines, long tests last."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import parallel_processor

PACKAGE = Path(parallel_processor.__file__).resolve().parent
# The timeouts of tests with these markers, instead of setup.cfg's.
TIMEOUTS_S = {"alone": 480, "acceptance": 480}
ALONE = "test_acceptance.py"  # the file whose tests scripts/test runs when nothing else runs

hypothesis.settings.register_profile("local", deadline=None)
# CI tries the same examples each time, and so fewer of them; other machines try new ones.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--installed``, which scripts/test gives."""
    parser.addoption(
        "--installed", action="store_true", help="refuse to test a package that isn't installed"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make sure that the right package is tested, and that Ctrl-C works in the tests' processes."""
    if config.getoption("--installed") and "site-packages" not in PACKAGE.parts:
        raise pytest.UsageError(f"--installed, but the package under test is {PACKAGE}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job inherits this
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say which copy of the package is tested."""
    return f"parallel_processor: {PACKAGE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the acceptance tests last, give long tests time, and leave out slow ones that nobody named."""
    if "slow" not in config.getoption("-m"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        if slow:
            config.hook.pytest_deselected(items=slow)
            items[:] = [item for item in items if item not in slow]
    for item in items:
        for name, seconds in TIMEOUTS_S.items():
            if item.get_closest_marker(name) and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(seconds))
        if item.get_closest_marker("alone") and item.path.name != ALONE:
            raise pytest.UsageError(
                f"{item.nodeid}: scripts/test looks for `alone` in {ALONE} only"
            )
    items.sort(key=lambda item: item.get_closest_marker("acceptance") is not None)


def _guarded(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
    """Wrap a method of ``socket`` so that it reaches this machine only."""

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            self.close()  # callers expect an OSError, and would leave it open
            raise RuntimeError(f"a test tried to connect to {address!r}; only loopback is allowed")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


@pytest.fixture(autouse=True, scope="session")
def _loopback_only() -> Any:
    """Keep every socket of the test process on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no proxy, CA bundle or netrc of the machine's own in the environment."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
