"""Rules, slots and outages: the simulated server as a gateway, a queue, or one that restarts."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator import CannedAnswer, Outage, Rule, Simulator, SimulatorOptions
from parallel_processor.simulator.flags import parse_flags
from parallel_processor.simulator.load import Load
from parallel_processor.simulator.rules import RULE_KINDS, Rules


def caught(rule: Rule, *, bodies: list[bytes], times_s: list[float] | None = None) -> list[int]:
    """The places of the requests that ``rule`` catches; the others stay in flight."""
    draws = iter(range(1000))
    rules = Rules((rule,), draw=lambda: next(draws) % 10 / 10)
    times_s = times_s or [0.0] * len(bodies)
    return [
        n for n, (b, t) in enumerate(zip(bodies, times_s, strict=True)) if rules.catch(b, t) is rule
    ]


@pytest.mark.parametrize(
    ("conditions", "want"),
    [
        ({}, range(20)),
        ({"containing": "text 7"}, [7]),
        ({"from_s": 3, "until_s": 5}, [6, 7, 8, 9]),  # two a second
        ({"in_flight": 5}, range(5, 20)),
        ({"share": 0.2}, [0, 1, 10, 11]),
        ({"after": 18}, [18, 19]),
        ({"first": 2}, [0, 1]),
        ({"containing": "1", "after": 1, "first": 2}, [10, 11]),  # 1, 10, 11, 12, …
        ({"per_s": 1.0}, range(1, 20, 2)),
        ({"per_s": 1.0, "burst": 3}, [7, 9, 11, 13, 15, 17, 19]),
        ({"per_s": 2.0}, []),
    ],
)
def test_a_rule_catches_what_fulfils_all_its_conditions(conditions: Any, want: Any) -> None:
    """Each condition narrows it down; requests come two a second, and none is ever answered."""
    bodies = [b'{"input": "text %d"}' % number for number in range(20)]
    rule = Rule(answer="500", **conditions)
    assert caught(rule, bodies=bodies, times_s=[n / 2 for n in range(20)]) == list(want)


def test_those_in_flight_make_room() -> None:
    """What is answered is no longer in flight, and what a rule has caught never was."""
    rules = Rules((Rule(answer="concurrency", in_flight=1),))
    assert [rules.catch(b"", 0.0) is None for _ in range(3)] == [True, False, False]
    rules.leave()
    assert [rules.catch(b"", 0.0) is None for _ in range(2)] == [True, False]


def test_slots_are_taken_in_the_order_of_arrival() -> None:
    """Of three requests to two slots, the third waits for the first, and an idle slot for nobody."""
    load = Load(best=None, exponent=1.5, most=None, slots=2)
    assert [load.time_s(10.0, 4.0), load.time_s(11.0, 4.0), load.time_s(12.0, 4.0)] == [4, 4, 6]
    assert load.time_s(30.0, 4.0) == 4


def post(url: str, text: str = "a", timeout_s: float = 10) -> tuple[int, bytes, dict[str, str]]:
    """Send a request: status, body and headers; status 0 if there is no connection."""
    body = json.dumps({"model": "m", "input": text}).encode()
    request = urllib.request.Request(f"{url}/v1/embeddings", body)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)
    except OSError:
        return 0, b"", {}


def test_an_answer_is_sent_as_it_was_given() -> None:
    """A canned answer has its status, headers and body; the next rule's is one of a known name."""
    answer = CannedAnswer(
        status=403, headers={"Retry-After": "20", "content-type": "text/plain"}, body="no"
    )
    rules = (Rule(answer=answer, first=1), Rule(answer="nginx", first=1))
    with Simulator(SimulatorOptions(rules=rules)) as simulator:
        status, body, headers = post(simulator.url)
        assert (status, body) == (403, b"no")
        assert (headers["Retry-After"], headers["Content-Type"]) == ("20", "text/plain")
        status, body, headers = post(simulator.url)
        assert status == 503
        assert b"503 Service Temporarily Unavailable" in body
        assert post(simulator.url)[0] == 200
        stats = simulator.stats()
    assert stats["faults"] == {"canned 403": 1, "nginx": 1}
    assert (stats["answered"], stats["requests_received"]) == (1, 3)


def test_time_begins_with_the_first_request() -> None:
    """A server that loads does so from the first request on, even if it has answered none."""
    clock = [5000.0]
    rules = (Rule(answer="loading", until_s=60),)
    with Simulator(SimulatorOptions(rules=rules), clock=lambda: clock[0]) as simulator:
        assert post(simulator.url)[0] == 503
        clock[0] += 59
        assert post(simulator.url)[0] == 503
        clock[0] += 1
        assert post(simulator.url)[0] == 200


def test_an_answer_that_nobody_waits_for_is_counted() -> None:
    """A server with slots works on for a client that has left."""
    with Simulator(SimulatorOptions(slots=1, latency_s=0.2)) as simulator:
        assert post(simulator.url, timeout_s=0.05)[0] == 0
        assert post(simulator.url)[0] == 200
        assert simulator.stats()["abandoned"] == 1


def test_an_outage_closes_the_port_and_every_connection() -> None:
    """Nothing can be reached between its two times, and all can afterwards."""
    clock = [100.0]
    options = SimulatorOptions(outages=(Outage(from_s=10, until_s=20),), latency_s=0)
    with Simulator(options, clock=lambda: clock[0]) as simulator:
        assert post(simulator.url)[0] == 200
        clock[0] += 15
        wait_until(lambda: post(simulator.url)[0] == 0)
        clock[0] += 5
        wait_until(lambda: post(simulator.url)[0] == 200)
    assert not [thread for thread in threading.enumerate() if "simulator" in thread.name]


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as ``condition`` holds."""
    ends_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_at


def test_rules_are_flags_too(tmp_path: Path) -> None:
    """--rule, --outage and --slots give the options of the library."""
    path = tmp_path / "answer.json"
    path.write_text('{"case": "no money", "status": 402, "headers": {"a": "b"}, "body": [1]}')
    flags = [
        "--slots=3",
        "--rule=nginx:per_s=50,burst=20",
        f"--rule={path}:containing=text 7,share=0.5,after=1,first=2,from_s=3,until_s=4,in_flight=5",
        "--rule=loading",
        "--outage=10-40.5",
    ]
    assert parse_flags(flags) == SimulatorOptions(
        slots=3,
        rules=(
            Rule(answer="nginx", per_s=50, burst=20),
            Rule(
                answer=CannedAnswer(status=402, headers={"a": "b"}, body=[1]),
                containing="text 7",
                share=0.5,
                after=1,
                first=2,
                from_s=3,
                until_s=4,
                in_flight=5,
            ),
            Rule(answer="loading"),
        ),
        outages=(Outage(from_s=10, until_s=40.5),),
    )


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--rule=fire", "answer must be canned or one of"),
        ("--rule=missing.json", "missing.json"),
        ("--rule=nginx:speed=3", "ANSWER:CONDITION=VALUE"),
        ("--rule=nginx:per_s=fast", "ANSWER:CONDITION=VALUE"),
        ("--rule=nginx:per_s=0", "per_s must be above 0"),
        ("--rule=nginx:share=2", "share must be 0 to 1"),
        ("--outage=10", "FROM_S-UNTIL_S"),
        ("--outage=10-5", "until_s must be no less than from_s"),
        ("--slots=0", "slots must be"),
    ],
)
def test_bad_rules_are_bad_usage(flag: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 2 and a message that says what is wrong."""
    with pytest.raises(SystemExit, match="2"):
        parse_flags([flag])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"status": 99}, {"status": "200"}, {"headers": ["a"]}])
def test_canned_answers_are_checked(given: Any) -> None:
    """A status is a number from 200 to 999, and headers are an object."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(given))} must be"):
        CannedAnswer(**given)


@pytest.mark.parametrize("option", ["rules", "outages"])
def test_options_take_rules_and_outages_alone(option: str) -> None:
    """What is neither is refused by name."""
    with pytest.raises(ConfigurationError, match=f"{option} must be"):
        SimulatorOptions(**{option: ("nginx",)})


def test_every_named_answer_is_one() -> None:
    """Each name of a rule's answer can be sent; without one it is a fault of the connection."""
    kinds = sorted(RULE_KINDS - {"redirect"})  # which urllib would follow
    rules = tuple(Rule(answer=kind, first=1) for kind in kinds)
    with Simulator(SimulatorOptions(rules=rules, stall_s=0.01)) as simulator:
        statuses = {kind: post(simulator.url)[0] for kind in kinds}
        assert simulator.stats()["faults"] == dict.fromkeys(kinds, 1)
    assert [kind for kind in kinds if statuses[kind] == 0] == ["reset", "stall"]
