"""When a pack is let go, and how large it is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from parallel_processor.files.formats import parse_line
from parallel_processor.models import Estimate, Request, WaitCause
from parallel_processor.options import Options, PackInputs
from parallel_processor.planning.pack_sizes import PackSizes
from parallel_processor.planning.packer import Packer
from parallel_processor.planning.packs import Pack
from parallel_processor.tokens.estimates import CostEstimator

URL = "http://127.0.0.1:1/v1/embeddings"


@dataclass(eq=False)
class Bucket:
    """What requests wait for: limits, and whether they bind."""

    requests: float = math.inf
    tokens: float = math.inf
    wait_cause: WaitCause = WaitCause.NOTHING
    is_waiting: bool = False
    alive: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.alive = (self,)

    def limit_of(self, kind: str) -> float:
        """The limit of requests or tokens."""
        return {"requests": self.requests, "tokens": self.tokens}[kind]


class Bench:
    """A packer whose bucket is a stand-in, and what it has let go."""

    def __init__(self, asked: PackInputs, bucket: Bucket, url: str = URL) -> None:
        self.sent: list[Request] = []
        self.bucket = bucket
        self.estimates: list[Estimate | None] = []
        self.packer = Packer(
            url,
            PackSizes(asked, url),
            estimator=CostEstimator(Options(request_url=url, api_key="k")),
            group_of=lambda request: bucket,  # type: ignore[arg-type, return-value]
            is_waiting=lambda group: bucket.is_waiting,
            put=self._put,
            fail=lambda error: None,
        )

    def _put(self, request: Request, estimate: Estimate | None) -> None:
        self.sent.append(request)
        self.estimates.append(estimate)

    def add(self, count: int, **more: Any) -> None:
        """Read so many requests."""
        for number in range(1, count + 1):
            body = {"model": "m", "input": f"text {number}", **more}
            self.packer.add(parse_line(json.dumps(body).encode(), number, URL))

    @property
    def sizes(self) -> list[int]:
        """The numbers of inputs of what was let go."""
        return [len(each.inputs) if isinstance(each, Pack) else 1 for each in self.sent]


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Any:
    """Makes benches, and ends their threads."""
    made: list[Bench] = []

    def make(asked: PackInputs, bucket: Bucket | None = None, url: str = URL) -> Bench:
        """A new one."""
        made.append(Bench(asked, bucket or Bucket(), url))
        return made[-1]

    request.addfinalizer(lambda: [each.packer.close() for each in made])
    return make


def test_full_packs_go_at_once_and_the_rest_at_the_end(bench: Any) -> None:
    """A single one that is left goes as it was read."""
    made = bench(10, Bucket(is_waiting=True))
    made.add(21)
    assert made.sizes == [10, 10]
    made.packer.flush()
    assert made.sizes == [10, 10, 1]
    assert made.sent[2].body == {"model": "m", "input": "text 21"}
    assert sum(estimate.input_tokens for estimate in made.estimates) == 21 * 3  # text, 1, and " "


def test_what_cannot_be_packed_goes_at_once(bench: Any) -> None:
    """It overtakes others, which wait for more."""
    made = bench(10)
    made.add(2)
    made.packer.add(parse_line(b'{"model": "m", "input": ["a", "b"]}', 3, URL))
    assert [each.number for each in made.sent] == [3]
    assert made.estimates == [None]


def test_each_kind_has_a_pack_of_its_own(bench: Any) -> None:
    """Of very many kinds, the oldest goes."""
    made = bench(10, Bucket(is_waiting=True))
    made.add(9, dimensions=1)
    made.add(10, dimensions=2)
    assert made.sizes == [10]
    for number in range(70):
        made.add(1, user=f"{number}")
    assert made.sizes[1] == 9
    assert len(made.sent) == 2 + 70 - 64


def test_a_pack_goes_in_a_pause_if_it_need_not_wait(bench: Any) -> None:
    """At the second look: it was there at the first. While others wait, it gets fuller."""
    made = bench(10, Bucket(is_waiting=True))
    made.add(3)
    for _ in range(3):
        made.packer.look()
    assert made.sizes == []
    made.bucket.is_waiting = False
    made.packer.look()
    assert made.sizes == [3]


def test_a_pack_of_its_own_accord_goes_while_the_input_pauses(bench: Any) -> None:
    """Nobody calls for it."""
    made = bench(10)
    made.add(3)
    for _ in range(200):
        if made.sent:
            break
        made.packer._closing.wait(0.05)
    assert made.sizes == [3]


@pytest.mark.parametrize(
    ("url", "most"),
    [
        ("https://api.openai.com/v1/embeddings", 2048),
        ("https://api.mistral.ai/v1/embeddings", 512),
        ("https://dashscope.aliyuncs.com/compatible-mode/v1/embeddings", 10),
        ("https://generativelanguage.googleapis.com/v1beta/openai/embeddings", 100),
        (URL, 3000),
    ],
)
def test_no_pack_is_larger_than_the_provider_takes(url: str, most: int, bench: Any) -> None:
    """Nobody knows what another server takes."""
    made = bench(3000, Bucket(is_waiting=True), url)
    made.add(most + 1)
    assert made.sizes == [most]


def test_a_pack_has_no_more_tokens_than_a_second_or_a_request(bench: Any) -> None:
    """Larger ones would leave a part of the limit unused."""
    made = bench(1000, Bucket(requests=600, tokens=6000))  # 100 a second
    made.add(100)
    assert made.sizes == [33, 33, 33]
    made = bench(1000, Bucket(requests=10, tokens=6000))  # 600 a request
    made.add(400)
    assert made.sizes == [200, 200]
    made = bench(1000, Bucket(requests=600, tokens=60))  # each has more than that
    made.add(2)
    assert made.sizes == [1, 1]


def test_packs_grow_with_the_limits_while_requests_wait(bench: Any) -> None:
    """A pack that leaves a rest each time is begun anew each time."""
    made = bench(1000, Bucket(requests=600, tokens=6000, is_waiting=True))
    made.add(50)
    made.bucket.tokens = 60_000  # 1,000 a second
    made.add(700)
    assert made.sizes == [33, 33, 333, 333]


def test_packs_get_no_larger_than_a_server_was_found_to_take(bench: Any) -> None:
    """What was made before comes apart."""
    made = bench(10)
    made.add(10)
    (pack,) = made.sent
    assert made.packer.fits(pack)
    made.packer.lower(pack, 4)
    assert not made.packer.fits(pack)
    assert [len(part) for part in made.packer.smaller(pack)] == [4, 4, 2]
    made.add(9)
    assert made.sizes == [10, 4, 4]


def test_an_answer_of_no_use_makes_later_packs_smaller(bench: Any) -> None:
    """Unless as many came apart before; but not if it happens much more often than that."""
    made = bench(8)
    made.add(8)
    (pack,) = made.sent
    assert made.packer.doubts(pack) == 4
    assert made.packer.doubts(pack) == 0  # another one of these, which was under way
    made.add(4)
    made.packer.proves(made.sent[1])
    assert [made.packer.doubts(made.sent[1]) for _ in range(3)] == [0, 0, 2]
    made.add(3)
    assert made.sizes == [8, 4, 2]


def test_auto_packs_nothing_where_no_limit_of_requests_binds(bench: Any) -> None:
    """Neither where nothing waits, nor where all wait for something else."""
    made = bench("auto")
    made.add(50)
    made.packer.flush()
    assert made.sizes == [1] * 50
    made = bench("auto", Bucket(is_waiting=True, wait_cause=WaitCause.TOKENS))
    made.add(50)
    assert made.sizes == [1] * 50


def test_auto_packs_as_soon_as_requests_wait_for_their_limit(bench: Any) -> None:
    """Up to what the token limit has for each request; also what was kept back meanwhile."""
    made = bench("auto", Bucket(requests=60, tokens=6000, is_waiting=True))
    made.add(99)
    assert made.sizes == []  # nobody knows yet what they wait for
    made.bucket.wait_cause = WaitCause.REQUESTS
    made.add(1)
    assert made.sizes == [33, 33, 33]  # 100 tokens a request
    made.bucket.wait_cause = WaitCause.TOKENS
    made.add(33)
    assert made.sizes[3:] == [33]
    made.bucket.is_waiting = False
    made.add(1)
    assert sum(made.sizes) == 134


def test_what_is_left_at_the_end_is_handed_back(bench: Any) -> None:
    """After a stop it is not sent."""
    made = bench(10)
    made.add(3)
    assert [each.number for each in made.packer.close()] == [1, 2, 3]
