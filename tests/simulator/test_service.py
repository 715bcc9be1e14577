"""What the simulated server makes of its options: answers, refusals, load, figures and flags."""

from __future__ import annotations

import http.client
import json
import math
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from simulators import WordCounter

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator import LimitChange, ModelLimits, Simulator, SimulatorOptions
from parallel_processor.simulator.dialects import DIALECTS
from parallel_processor.simulator.flags import parse_flags
from parallel_processor.simulator.load import Load
from parallel_processor.simulator.service import Service
from parallel_processor.simulator.timeline import Timeline
from parallel_processor.simulator.wire import HttpReply, HttpRequest

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


class FakeConnection:
    """A connection that keeps what is sent, and does something else while an answer takes time."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.replies: list[HttpReply] = []
        self.pauses_s: list[float] = []
        self._meanwhile = meanwhile

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self._meanwhile()

    def is_left(self) -> bool:
        return False

    def send(self, reply: HttpReply, *, keep_alive: bool) -> None:
        self.replies.append(reply)


class Server:
    """A service on a clock that stands still until it is moved, without sockets."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.service = Service(SimulatorOptions(**options), WordCounter(), self.clock)
        self.pauses_s: list[float] = []

    def ask(
        self,
        body: dict[str, Any] | None = None,
        path: str = EMBEDDINGS,
        *,
        method: str = "POST",
        host: str = "",
        keys: dict[str, str] | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Send a request; return the status, JSON and headers in lower case."""
        payload = json.dumps({"input": "a b"} if body is None else body).encode()
        connection = FakeConnection(meanwhile)
        request = HttpRequest(
            method=method,
            path=path,
            body=payload,
            api_key=next(iter((keys or {}).values()), None),
            keep_alive=True,
            host=host,
            keys=keys or {},
        )
        self.service.serve(request, connection)  # type: ignore[arg-type]
        self.pauses_s.extend(connection.pauses_s)
        (reply,) = connection.replies
        headers = dict(line.split(": ") for line in reply.headers.lower().splitlines())
        return reply.status, json.loads(reply.body), headers


# --- refusals


def test_refusals_may_say_no_time_to_wait() -> None:
    """Without retry_after neither the headers nor the message tell when to come back."""
    server = Server(requests_per_minute=1, retry_after=False)
    server.ask()
    status, answer, headers = server.ask()
    assert status == 429
    assert answer["error"]["message"].endswith("Limit 1, Used 1, Requested 1.")
    assert not [name for name in headers if name.startswith("retry-after")]


def _form(value: Any) -> Any:
    """The names in a JSON value."""
    if isinstance(value, list):
        return [_form(each) for each in value]
    return {key: _form(each) for key, each in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("name", sorted(set(DIALECTS) - {"openai"}))
def test_a_limit_is_told_in_the_servers_dialect(name: str) -> None:
    """With the time to wait, or without any word of it."""
    dialect = DIALECTS[name]
    for retry_after in (True, False):
        server = Server(requests_per_minute=1, dialect=name, retry_after=retry_after)
        server.ask()
        status, answer, headers = server.ask()
        assert status == dialect.limited.status
        assert _form(answer) == _form(dialect.limited.body)
        assert not {"<wait>", "<model>", "<id>"} & set(re.findall("<[a-z]+>", json.dumps(answer)))
        if not retry_after:
            assert "retry-after" not in headers
            assert not re.search("again in [0-9]|after [0-9]", json.dumps(answer))


@pytest.mark.parametrize(
    ("host", "path", "header"),
    [
        ("api.anthropic.com", "/v1/messages", "x-api-key"),
        ("", "/v1/messages", "x-api-key"),
        ("generativelanguage.googleapis.com", "/v1beta/models/g:generateContent", "x-goog-api-key"),
        ("generativelanguage.googleapis.com:80", "/v1beta/openai/embeddings", "authorization"),
        ("us-x-aiplatform.googleapis.com", "/v1/models/g:generateContent", "authorization"),
        ("r.openai.azure.com", "/openai/v1/embeddings", "api-key"),
        ("apim.example", "/openai/deployments/d/embeddings", "api-key"),
        ("api.groq.com", "/openai/v1/chat/completions", "authorization"),
    ],
)
def test_a_key_counts_in_its_providers_header_alone(host: str, path: str, header: str) -> None:
    """As with the provider of that host or path; the right key in another header is none."""
    server = Server(api_key="right", dialect="auto")
    other = "x-api-key" if header != "x-api-key" else "authorization"
    assert server.ask(path=path, host=host, keys={header: "right"})[0] == 200
    assert server.ask(path=path, host=host, keys={header: "wrong"})[0] in (400, 401)
    assert server.ask(path=path, host=host, keys={other: "right"})[0] in (400, 401)


def test_refusals_may_have_another_code() -> None:
    """What isn't the ordinary code has OpenAI's type for it."""
    server = Server(requests_per_minute=1, refusal_code="slow_down")
    server.ask()
    status, answer, headers = server.ask()
    assert (status, headers["retry-after"]) == (429, "60")
    assert answer["error"]["code"] == "slow_down"
    assert answer["error"]["type"] == "rate_limit_error"


def test_a_request_that_is_too_large_stays_that() -> None:
    """The code of what no wait will help is the ordinary one."""
    server = Server(tokens_per_minute=1, reject_oversize=True, refusal_code="slow_down")
    _, answer, _ = server.ask()
    assert answer["error"]["message"].startswith("Request too large")
    assert answer["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("limit", "words", "kind"),
    [
        ("input_tokens_per_minute", "input tokens per min (ITPM): Limit 3,", "tokens"),
        ("output_tokens_per_minute", "output tokens per min (OTPM): Limit 3,", "tokens"),
        ("requests_per_day", "requests per day (RPD): Limit 3,", "requests"),
    ],
)
def test_each_limit_is_named(limit: str, words: str, kind: str) -> None:
    """A refusal says which limit it is."""
    server = Server(**{limit: 3})
    for _ in range(3):
        server.ask({"input": "a", "max_tokens": 1})
    status, answer, _ = server.ask({"input": "a", "max_tokens": 1})
    assert (status, answer["error"]["type"]) == (429, kind)
    assert words in answer["error"]["message"]


def test_anthropics_refusal_has_anthropics_shape() -> None:
    """The body, the id in it, and a wait in whole seconds."""
    server = Server(requests_per_minute=7, header_style="anthropic")
    for _ in range(7):
        assert server.ask()[2]["anthropic-ratelimit-requests-limit"] == "7"
    status, answer, headers = server.ask({"model": "claude"})
    assert status == 429
    assert answer == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "Rate limit reached for claude in organization org-sim on requests per min "
            "(RPM): Limit 7, Used 7, Requested 1. Please try again in 8.572s.",
        },
        "request_id": headers["x-request-id"],
    }
    assert headers["retry-after"] == "9"
    assert "retry-after-ms" not in headers


def test_azures_unknown_limits_come_without_a_wait() -> None:
    """A refusal has nothing to go by in its headers."""
    server = Server(requests_per_minute=1, header_style="azure_unknown")
    server.ask()
    status, _, headers = server.ask()
    assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "-1")
    assert not [name for name in headers if name.startswith("retry-after")]


def test_mistral_tells_what_a_request_costs() -> None:
    """The charge is in the headers."""
    server = Server(tokens_per_minute=100, header_style="mistral")
    _, _, headers = server.ask({"input": "a b", "max_tokens": 5}, CHAT)
    assert headers["x-ratelimit-tokens-query-cost"] == "7"
    assert headers["x-ratelimit-remaining-tokens-minute"] == "93"


def test_litellm_names_the_kind_of_a_limit_and_asks_for_a_minute() -> None:
    """Its headers are the key's; a refusal asks for 60 s whatever is left, and says when it ends."""
    server = Server(requests_per_minute=3, header_style="litellm", enforcement="window")
    _, _, headers = server.ask()
    assert headers["x-ratelimit-api_key-limit-requests"] == "3"
    assert headers["x-ratelimit-api_key-remaining-requests"] == "2"
    assert headers["x-litellm-key-rpm-limit"] == "3"
    server.clock.now_s += 50
    for _ in range(3):
        status, answer, headers = server.ask()
    assert (status, answer["error"]["type"]) == (429, "throttling_error")
    assert "Limit type: requests. Current limit: 3, Remaining: 0." in answer["error"]["message"]
    assert (headers["retry-after"], headers["rate_limit_type"]) == ("60", "requests")
    assert headers["reset_at"].endswith(" utc")


def test_limits_by_model_are_told_by_model() -> None:
    """Headers are those of the request's model; a body without one that can be read has none."""
    server = Server(limits_by_model={"a": ModelLimits(requests_per_minute=5)})
    assert server.ask({"model": "a"})[2]["x-ratelimit-remaining-requests"] == "4"
    assert "x-ratelimit-limit-requests" not in server.ask({"model": "b"})[2]
    assert "x-ratelimit-limit-requests" not in server.ask([])[2]  # type: ignore[arg-type]


# --- answers


def is_cut_short(answer: Any) -> bool:
    """Whether an answer's length is the most that was asked for, in the words of its endpoint."""
    stop = answer.get("stop_reason") or answer["choices"][0]["finish_reason"]
    return stop in ("length", "max_tokens")


@pytest.mark.parametrize(
    ("path", "cap", "finish"),
    [
        (CHAT, "max_tokens", is_cut_short),
        ("/v1/completions", "max_tokens", is_cut_short),
        ("/v1/responses", "max_output_tokens", lambda answer: answer["status"] == "incomplete"),
        ("/v1/messages", "max_tokens", is_cut_short),
    ],
)
def test_answers_have_about_the_tokens_asked_for(
    path: str, cap: str, finish: Callable[[Any], bool]
) -> None:
    """Usage varies by half around answer_tokens, the same for the same request, up to its cap."""
    server = Server(answer_tokens=100)

    def written(number: int, most: int) -> int:
        _, answer, _ = server.ask({"input": "a", "user": number, cap: most}, path)
        usage = answer["usage"]
        tokens = int(usage.get("completion_tokens", usage.get("output_tokens", 0)))
        assert finish(answer) == (tokens == most)
        return tokens

    lengths = [written(number, 1000) for number in range(200)]
    assert lengths == [written(number, 1000) for number in range(200)]
    assert min(lengths) >= 50
    assert max(lengths) <= 150
    assert sum(lengths) / 200 == pytest.approx(100, abs=10)
    assert len(set(lengths)) > 50
    assert {written(number, 40) for number in range(9)} == {40}


def test_usage_is_charged_when_the_answer_is_ready() -> None:
    """The prompt at once, the answer's real tokens at its end; the figures count real tokens."""
    server = Server(
        tokens_per_minute=60, token_charge="usage", answer_tokens=40, latency_s=5, best_in_flight=9
    )
    body = {"input": "a b", "max_tokens": 1000}

    def meanwhile() -> None:
        server.clock.now_s += 3
        assert server.service.timeline.snapshot() == {"sim": [[1, 2, 0, 0]]}

    _, answer, headers = server.ask(body, CHAT, meanwhile=meanwhile)
    written = answer["usage"]["completion_tokens"]
    assert 20 <= written <= 60
    assert headers["x-ratelimit-remaining-tokens"] == str(60 - written)  # 2 have come back
    assert server.service.timeline.snapshot() == {
        "sim": [[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, written, 0, 1]]
    }
    stats = server.service.summary()
    assert stats["tokens_received"] == stats["tokens_in_first_60_s"] == 2 + written
    assert stats["max_tokens_in_60_s"] == 2 + written
    assert stats["max_requests_in_60_s"] == 1


def test_real_tokens_are_counted_in_their_own_minute() -> None:
    """The busiest minute is of charges, whenever their requests were admitted."""
    server = Server(token_charge="usage", answer_tokens=1, latency_s=1)

    def wait() -> None:
        server.clock.now_s += 70

    written = server.ask({"input": "a b c"}, CHAT, meanwhile=wait)[1]["usage"]["completion_tokens"]
    stats = server.service.summary()
    assert stats["tokens_received"] == 3 + written
    assert stats["tokens_in_first_60_s"] == stats["max_tokens_in_60_s"] == 3


# --- load


@pytest.mark.parametrize(
    ("in_flight", "factor"), [(1, 1), (4, 1), (5, 1.25**1.5), (8, 2**1.5), (100, 125)]
)
def test_latency_grows_beyond_the_best(in_flight: int, factor: float) -> None:
    """Up to best_in_flight an answer takes its time, above that a power of the excess more."""
    load = Load(best=4, exponent=1.5, most=None)
    assert load.slowdown(in_flight) == pytest.approx(factor)


def test_a_request_takes_as_long_as_is_in_flight_when_it_begins() -> None:
    """Of four at once, one after another, each is slower; later ones are as fast as the first."""
    server = Server(latency_s=0.5, best_in_flight=2, overload_exponent=2)

    def three_more() -> None:
        server.ask(meanwhile=lambda: server.ask(meanwhile=server.ask))

    _, _, headers = server.ask(meanwhile=three_more)
    assert sorted(server.pauses_s) == pytest.approx([0.5, 0.5, 0.5 * 2.25, 0.5 * 4])
    assert headers["openai-processing-ms"] == "500"
    server.pauses_s.clear()
    server.ask()
    assert server.pauses_s == [0.5]


def test_too_many_in_flight_are_turned_away_at_once() -> None:
    """One above refuse_in_flight gets a 503, costs nothing, and takes no time."""
    server = Server(latency_s=0.5, refuse_in_flight=2, requests_per_minute=10)
    replies: list[tuple[int, Any, dict[str, str]]] = []

    def one_more() -> None:
        server.ask(meanwhile=lambda: replies.append(server.ask()))

    assert server.ask(meanwhile=one_more)[0] == 200
    ((status, answer, headers),) = replies
    assert (status, answer["error"]["code"]) == (503, "server_is_overloaded")
    assert "retry-after" not in headers
    assert server.pauses_s == [0.5, 0.5]
    assert server.ask()[2]["x-ratelimit-remaining-requests"] == "7"
    stats = server.service.summary()
    assert (stats["overloaded"], stats["answered"], stats["refused"]) == (1, 3, 0)


def test_refused_requests_are_not_in_flight() -> None:
    """What the limits refuse leaves no trace in the load."""
    server = Server(latency_s=0.5, best_in_flight=1, requests_per_minute=2)
    statuses = [server.ask()[0] for _ in range(9)]
    server.clock.now_s += 30
    server.ask()
    assert statuses == [200] * 2 + [429] * 7
    assert server.pauses_s == [0.5] * 3


# --- figures


def test_the_timeline_tells_each_second_of_each_model() -> None:
    """Admitted, charged, refused and answered, from the second of the first request."""
    server = Server(requests_per_minute=3)
    for seconds, model in ((0, "a"), (0.9, "b"), (1.1, "a"), (3, "a"), (3.5, "a")):
        server.clock.now_s = 1000.0 + seconds
        server.ask({"input": "x y", "model": model})
    timeline = {"a": [[1, 2, 0, 1], [1, 2, 0, 1], [0] * 4, [0, 0, 2, 0]], "b": [[1, 2, 0, 1]]}
    assert server.service.timeline.snapshot() == timeline
    assert server.ask(path="/timeline", method="GET")[:2] == (200, timeline)


def test_nothing_has_no_timeline() -> None:
    """Before the first request there is no model and no second, nor any rival."""
    server = Server(rival_requests_per_minute=60)
    server.clock.now_s += 100
    assert server.ask(path="/timeline", method="GET")[1] == {}
    assert server.service.summary()["rival_admitted"] == 0


def test_a_snapshot_does_not_change() -> None:
    """What was handed out stays as it was."""
    timeline = Timeline()
    timeline.book("a", 0.5, admitted=1)
    before = timeline.snapshot()
    timeline.book("a", 0.6, admitted=1)
    assert before == {"a": [[1, 0, 0, 0]]}


def test_the_rival_is_in_the_figures() -> None:
    """The account's other client is counted apart, up to now."""
    server = Server(
        requests_per_minute=4, rival_requests_per_minute=60, rival_from_s=1, rival_until_s=9
    )
    assert server.ask()[0] == 200
    server.clock.now_s += 7
    stats = server.service.summary()  # 3 were left, and one more each 15 s
    assert (stats["rival_admitted"], stats["rival_refused"]) == (3, 4)
    assert server.ask()[0] == 429
    assert (stats["requests_received"], stats["tokens_received"]) == (1, 2)


def test_the_timeline_is_served() -> None:
    """Over HTTP it is the JSON of what the method returns."""
    with Simulator(SimulatorOptions()) as simulator:
        host = simulator.url.rpartition("/")[2]
        with closing(http.client.HTTPConnection(host, timeout=10)) as connection:
            for method, path in (("POST", EMBEDDINGS), ("GET", "/timeline")):
                connection.request(method, path, '{"model": "m"}')
                content = json.loads(connection.getresponse().read())
        assert content == simulator.timeline()
        assert sum(counts[3] for counts in content["m"]) == 1


# --- options and flags


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", 65_536),
        ("input_tokens_per_minute", 0),
        ("output_tokens_per_minute", -1),
        ("tokens_per_minute", math.inf),
        ("requests_per_day", math.nan),
        *(("requests_per_minute", odd) for odd in (0, "60", True)),
        ("limits_by_model", {"a": {"requests_per_minute": 5}}),
        ("limits_by_model", {5: ModelLimits()}),
        ("limits_by_model", [ModelLimits()]),
        ("changes", ("30",)),
        ("changes", (LimitChange(at_s=1, requests_per_minute=2, model="gpt*"),)),
        *(("rival_requests_per_minute", odd) for odd in (-1, 1e6)),
        ("rival_tokens_per_request", 1.5),
        ("rival_from_s", math.inf),
        ("rival_until_s", math.nan),
        ("enforcement", "hope"),
        *(("burst_s", odd) for odd in (0, math.inf)),
        ("window_s", -1),
        ("header_style", "OpenAI"),
        ("refusal_code", ""),
        ("token_charge", None),
        ("answer_tokens", 0),
        *(("best_in_flight", odd) for odd in (0, 1.5)),
        ("overload_exponent", 11),
        ("refuse_in_flight", 0),
        *(("slots", odd) for odd in (0, 1.5)),
        *(("latency_s", odd) for odd in (None, -1, math.nan)),
        ("latency_jitter", 1.5),
        ("error_rate", 2),
        ("error_attempts", -1),
        ("errors", ("500", "fire")),
        ("spend_limit", -1),
        ("embedding_dimensions", 0),
    ],
)
def test_options_are_checked(option: str, value: Any) -> None:
    """What can't be simulated is refused by name."""
    with pytest.raises(ConfigurationError, match=f"{option} must be .*, not |{option}: unknown"):
        SimulatorOptions(**{option: value})


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (ModelLimits, "requests_per_minute", 0),
        (ModelLimits, "tokens_per_minute", "9"),
        *((LimitChange, "at_s", odd) for odd in (-1, "1")),
        (LimitChange, "tokens_per_minute", 0),
        (LimitChange, "model", None),
    ],
)
def test_limits_and_changes_are_checked(kind: type, option: str, value: Any) -> None:
    """Their fields are refused by name too."""
    with pytest.raises(ConfigurationError, match=f"{option} must be "):
        kind(**({"at_s": 1} if kind is LimitChange else {}) | {option: value})


def test_every_option_has_its_flag(tmp_path: Path) -> None:
    """Flags give the options of the same name, in both spellings."""
    limits = tmp_path / "limits.json"
    limits.write_text(
        '{"gpt-4o*": {"requests_per_minute": 600, "tokens_per_minute": 3e4}, "*": {}}'
    )
    given = {
        "input_tokens_per_minute": 1000.0,
        "output_tokens_per_minute": 500.0,
        "requests_per_day": 9000.0,
        "enforcement": "window",
        "burst_s": 1.5,
        "window_s": 1.0,
        "rival_requests_per_minute": 30.0,
        "rival_tokens_per_request": 50,
        "rival_from_s": 10.0,
        "rival_until_s": 20.0,
        "token_charge": "usage",
        "answer_tokens": 300,
        "header_style": "anthropic",
        "refusal_code": "slow_down",
        "best_in_flight": 40,
        "overload_exponent": 2.0,
        "refuse_in_flight": 400,
    }
    changes = (
        "--change=30:requests_per_minute=300",
        "--change=1.5:tokens_per_minute=9000,model=gpt-*,requests_per_minute=2.5",
    )
    options = SimulatorOptions(
        limits_by_model={
            "gpt-4o*": ModelLimits(requests_per_minute=600, tokens_per_minute=30_000),
            "*": ModelLimits(),
        },
        changes=(
            LimitChange(at_s=30, requests_per_minute=300),
            LimitChange(at_s=1.5, tokens_per_minute=9000, model="gpt-*", requests_per_minute=2.5),
        ),
        retry_after=False,
        **given,
    )
    for spell in (str, lambda name: name.replace("_", "-")):
        flags = [f"--{spell(name)}={value}" for name, value in given.items()]
        flags += [f"--{spell('no_retry_after')}", f"--limits={limits}", *changes]
        assert parse_flags(flags) == options
    assert parse_flags([]) == SimulatorOptions()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--change=30", "AT_S:LIMIT=NUMBER"),
        ("--change=30:requests_per_minute", "AT_S:LIMIT=NUMBER"),
        ("--change=x:requests_per_minute=3", "AT_S:LIMIT=NUMBER"),
        ("--change=1:latency_s=3", "AT_S:LIMIT=NUMBER"),
        ("--change=1:requests_per_minute=0", "requests_per_minute must be above 0"),
        ("--change=1:requests_per_minute=1,model=a", "changes must be"),
        ("--limits=missing.json", "missing.json"),
        ("--enforcement=hope", "invalid choice: 'hope'"),
        ("--window_s=0", "window_s must be above 0"),
    ],
)
def test_bad_flags_are_bad_usage(flag: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 2 and a message that says what is wrong."""
    with pytest.raises(SystemExit, match="2"):
        parse_flags([flag])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "limits.json: Expecting"),
        ("[]", "must hold an object"),
        ('{"a": 5}', "must hold an object"),
        ('{"a": {"rpm": 5}}', "must hold an object"),
        ('{"a": {"requests_per_minute": "5"}}', "requests_per_minute must be"),
    ],
)
def test_a_bad_limits_file_is_bad_usage(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be read as limits is named, with its file."""
    path = tmp_path / "limits.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        parse_flags(["--limits", str(path)])
    message = capsys.readouterr().err
    assert words in message
    assert "limits.json" in message
