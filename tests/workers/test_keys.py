"""Keys that expire, in whole runs: nothing fails, and what is wrong stops the run."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer, Visit
from services import processor, rows

from parallel_processor.credentials.key_command import KeyCommand
from parallel_processor.credentials.rotating_key import RotatingKey
from parallel_processor.exceptions import ConfigurationError, RunStoppedError, StopCause

_KEY = "rotating-0123456789-"


class Rotating:
    """A server whose key expires after so many requests; what it refuses, it has not processed."""

    def __init__(self, lifetime: int, path: Path | None = None) -> None:
        self._lifetime, self._path = lifetime, path
        self._lock = threading.Lock()
        self._uses = itertools.count()
        self._number = 1
        self.refusals = self.fetches = 0
        self._publish()

    def _publish(self) -> None:
        if self._path is not None:
            self._path.write_text(self.key)

    @property
    def key(self) -> str:
        return f"{_KEY}{self._number}"

    def fetch(self) -> str:
        """The key that is valid now."""
        with self._lock:
            self.fetches += 1
            return self.key

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            with self._lock:
                is_valid = visit.header("authorization") == f"Bearer {self.key}"
                if not is_valid:
                    self.refusals += 1
                elif (next(self._uses) + 1) % self._lifetime == 0:
                    self._number += 1
                    self._publish()
            if is_valid:
                visit.answer()
            else:
                visit.answer(REFUSAL, status="401 Unauthorized")


REFUSAL = json.dumps({"error": {"message": f"expired: {_KEY}1", "code": "token_expired"}}).encode()


@pytest.mark.parametrize("max_workers", [1, 16])
def test_a_key_that_expires_fails_no_request(max_workers: int) -> None:
    """A refused request is sent again with the new key, and that costs no attempt."""
    service = Rotating(50)
    key = RotatingKey(service.fetch, interval_s=0.01)
    with RawServer(service) as server:
        with processor(server.url, api_key=key, max_workers=max_workers) as sender:
            outcomes = sender.map(rows(400))
    assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes)
    assert service.refusals and 8 <= service.fetches <= 10
    assert service.refusals <= max_workers * service.fetches


def test_worker_processes_fetch_by_themselves(tmp_path: Path) -> None:
    """Each begins with the key that there is, and runs the command when that has expired."""
    path = tmp_path / "key"
    service = Rotating(60, path)
    command = KeyCommand(f"cat {path}")
    with RawServer(service) as server:
        with processor(server.url, api_key=command, processes=2, max_workers=4) as sender:
            outcomes = sender.map(rows(100))
    assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes)
    assert service.refusals


def test_a_function_that_another_process_cannot_have_is_refused() -> None:
    """As a session factory is."""
    service = Rotating(60)
    with RawServer(service) as server:
        with processor(server.url, api_key=lambda: service.key, processes=2) as sender:
            with pytest.raises(ConfigurationError, match="an api_key that is fetched must be"):
                sender.map(rows(1))


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        # openai/codex issue 2522
        ("401 Unauthorized", {"detail": {"code": "token_expired", "message": "token is expired"}}),
        # BerriAI/litellm issue 4417
        (
            "401 Unauthorized",
            {
                "statusCode": 401,
                "message": "Unauthorized. Access token is missing, invalid, audience is incorrect "
                "(https://cognitiveservices.azure.com), or have expired.",
            },
        ),
        # Azure/apiops issue 671
        (
            "401 Unauthorized",
            {
                "error": {
                    "code": "ExpiredAuthenticationToken",
                    "message": "earlier than current time",
                }
            },
        ),
        # Google's tokens
        (
            "401 Unauthorized",
            {"error": {"code": 401, "message": "No credentials", "status": "UNAUTHENTICATED"}},
        ),
        ("403 Forbidden", {"message": "The security token included in the request is expired"}),
        ("401 Unauthorized", None),  # a gateway that says nothing
    ],
)
def test_however_a_server_says_it(status: str, refusal: Any) -> None:
    """A token that has expired is replaced, be it refused with 401 or with 403 and a reason."""
    keys = iter(["old-0123456789", "new-0123456789"])

    def answer(visit: Visit) -> None:
        while visit.read():
            if visit.header("authorization") == "Bearer new-0123456789":
                visit.answer()
            else:
                visit.answer(
                    b"" if refusal is None else json.dumps(refusal).encode(), status=status
                )

    with RawServer(answer) as server:
        key = RotatingKey(keys.__next__, interval_s=0.01)
        with processor(server.url, api_key=key) as sender:
            (outcome,) = sender.map(rows(1))
    assert outcome.ok and outcome.attempts == 1


def test_each_of_several_keys_is_redacted() -> None:
    """Also one that this request was not sent with (liustack/modsearch issue 18)."""
    keys = ["first-0123456789", "second-0123456789"]

    def tell(visit: Visit) -> None:
        while visit.read():
            body = {"error": {"message": f"{visit.header('authorization')} or {keys[1]}"}}
            visit.answer(json.dumps(body).encode(), status="400 Bad Request")

    with RawServer(tell) as server:
        with processor(server.url, api_key=keys) as sender:
            (outcome,) = sender.map(rows(1))
    assert outcome.error is not None and "[redacted]" in outcome.error
    assert not [key for key in keys if key in outcome.error]


def stopped(server: RawServer, **settings: Any) -> RunStoppedError:
    """Why a run stops."""
    with processor(server.url, **settings) as sender:
        with pytest.raises(RunStoppedError) as caught:
            sender.map(rows(40))
    assert caught.value.stop_cause is StopCause.KEY
    return caught.value


def test_a_wrong_key_stops_the_run() -> None:
    """The one that was fetched for the refusal is tried, too, and none after it."""
    service, calls = Rotating(10**6), []

    def fetch() -> str:
        calls.append(1)
        return "wrong-0123456789"

    with RawServer(service) as server:
        error = stopped(server, api_key=RotatingKey(fetch, interval_s=0.01), max_workers=4)
    assert len(calls) == 2
    assert "expired" in str(error)


def test_a_key_that_is_not_to_be_had_any_more_stops_the_run() -> None:
    """The refusal and the last failure are named; what was answered stays answered."""
    service = Rotating(20)
    fetches = itertools.count()

    def fetch() -> str:
        if next(fetches):
            raise OSError("no network")
        return service.key

    with RawServer(service) as server:
        error = stopped(server, api_key=RotatingKey(fetch, interval_s=0.01), max_workers=4)
    assert "the function api_key failed: OSError: no network" in str(error)
    assert next(fetches) >= 7  # the first one, and six failures
    assert "expired: [redacted]" in str(error)


def test_a_key_that_is_not_to_be_had_keeps_the_run_from_beginning() -> None:
    """That is an error of the program, and nothing is sent."""

    def fail() -> str:
        raise OSError("no network")

    with RawServer(Rotating(1)) as server:
        with pytest.raises(ConfigurationError, match="the function api_key failed: OSError"):
            with processor(server.url, api_key=fail):
                pass
        assert not server.heads


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_run_that_is_stopped_waits_for_no_key(how: str) -> None:
    """Not for ten seconds, and not for a function that hangs: such requests are not in flight."""
    service, hangs, is_called = Rotating(5), threading.Event(), threading.Event()
    fetches = itertools.count()

    def fetch() -> str:
        if next(fetches):
            is_called.set()
            hangs.wait(100)
        return service.key

    with RawServer(service) as server:
        key = RotatingKey(fetch, interval_s=0.01)
        with processor(server.url, api_key=key, drain_s=1000.0) as sender:

            def cancel() -> None:
                is_called.wait(30)
                getattr(sender, how)("enough")

            thread = threading.Thread(target=cancel)
            thread.start()
            with pytest.raises(RunStoppedError, match="enough"):
                sender.map(rows(40))
            thread.join()
        assert not hangs.is_set()
        hangs.set()


def test_no_key_is_in_an_error() -> None:
    """Neither the present one, nor those before it, nor a header with a secret."""
    service = Rotating(10**6)
    keys = ["first-0123456789", service.key]

    def tell(visit: Visit) -> None:
        text = f"{keys} team-0123456789 login-0123456789"
        while visit.read():
            is_good = visit.header("authorization") == f"Bearer {service.key}"
            status = "400 Bad Request" if is_good else "401 Unauthorized"
            visit.answer(json.dumps({"error": {"message": text}}).encode(), status=status)

    key = RotatingKey(iter(keys).__next__, interval_s=0.01)
    headers = {"X-Team": "team-0123456789", "X-Auth": "Token login-0123456789"}
    with RawServer(tell) as server:
        with processor(server.url, api_key=key, headers=headers) as sender:
            (outcome,) = sender.map(rows(1))
    assert not outcome.ok
    text = f"{outcome.errors} {outcome.raw_response.body!r}" if outcome.raw_response else ""
    assert "team-0123456789" in text  # its name says nothing of a secret
    assert text.count("[redacted]") >= 3
    assert not [word for word in (*keys, "login-0123456789") if word in text]
