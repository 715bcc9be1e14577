"""The OpenAI cookbook's way of doing it, written anew from what its script does for each request.

One event loop whose main loop takes at most one request a turn and sleeps 1 ms between two turns; a
``ClientSession`` with its defaults (100 connections); a task for each request; tokens counted by tiktoken
for each; answers parsed, and results appended by opening the file for each; a log line for each, and the
texts of debug messages put together whether they are wanted or not. It takes those of the script's flags
that the benchmarks use, and doesn't retry: a request that fails ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import tiktoken

TURN_S = 0.001
PAUSE_S = 15
DEFAULT_ANSWER_TOKENS = 15


@dataclass
class Call:
    """A request on its way."""

    number: int
    body: dict[str, Any]
    tokens: int
    attempts_left: int
    metadata: Any
    errors: list[str] = field(default_factory=list)


@dataclass
class State:
    """What the main loop and the tasks share."""

    session: aiohttp.ClientSession
    url: str
    headers: dict[str, str]
    save_path: str
    pending: int = 0
    refused_at: float = 0.0


class Allowance:
    """What may be sent now, of requests or tokens; it grows up to a minute's worth."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = self.left = per_minute

    def grow(self, seconds: float) -> None:
        """``seconds`` have passed."""
        self.left = min(self.left + self.per_minute * seconds / 60.0, self.per_minute)


def count_tokens(body: dict[str, Any], encoding_name: str) -> int:
    """What a chat request may use: each message's values and 4, 2, and the answer's most."""
    encoding = tiktoken.get_encoding(encoding_name)
    answer = body.get("n", 1) * body.get("max_tokens", DEFAULT_ANSWER_TOKENS)
    prompt = 2
    for message in body["messages"]:
        prompt += 4 + sum(len(encoding.encode(value)) for value in message.values())
    return int(prompt + answer)


def save(record: list[Any], path: str) -> None:
    """Append a line, as an open and a close of the file."""
    line = json.dumps(record)
    with open(path, "a") as file:
        file.write(line + "\n")


async def send(call: Call, state: State) -> None:
    """One request from its start to its line in the results."""
    logging.info(f"Starting request #{call.number}")
    async with state.session.post(url=state.url, headers=state.headers, json=call.body) as reply:
        answer = await reply.json()
    if "error" in answer:
        raise RuntimeError(f"request {call.number} failed: {answer['error']}")
    record = [call.body, answer]
    if call.metadata:
        record.append(call.metadata)
    save(record, state.save_path)
    state.pending -= 1
    logging.debug(f"Request {call.number} saved to {state.save_path}")


def read(lines: Iterator[str], number: int, flags: argparse.Namespace) -> Call | None:
    """The next request, or ``None`` at the end."""
    line = next(lines, None)
    if line is None:
        return None
    body = json.loads(line)
    tokens = count_tokens(body, flags.token_encoding_name)
    metadata = body.pop("metadata", None)
    call = Call(number, body, tokens, flags.max_attempts, metadata)
    logging.debug(f"Reading request {call.number}: {call}")
    return call


async def main_loop(flags: argparse.Namespace, state: State) -> None:
    """Start requests as the limits allow, and wait for all of them."""
    requests = Allowance(flags.max_requests_per_minute)
    tokens = Allowance(flags.max_tokens_per_minute)
    updated_at, number, call, at_end = time.time(), 0, None, False
    with open(flags.requests_filepath) as lines:
        while True:
            if call is None and not at_end:
                call = read(lines, number, flags)
                at_end = call is None
                if call is not None:
                    number += 1
                    state.pending += 1
            now = time.time()
            requests.grow(now - updated_at)
            tokens.grow(now - updated_at)
            updated_at = now
            if call is not None and requests.left >= 1 and tokens.left >= call.tokens:
                requests.left -= 1
                tokens.left -= call.tokens
                call.attempts_left -= 1
                task = asyncio.create_task(send(call, state))
                task.add_done_callback(asyncio.Task.result)  # a failure reaches the loop's handler
                call = None
            if state.pending == 0:
                return
            await asyncio.sleep(TURN_S)
            since_refusal_s = time.time() - state.refused_at
            if since_refusal_s < PAUSE_S:
                await asyncio.sleep(PAUSE_S - since_refusal_s)


def fail(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """End the process: this is a benchmark without faults."""
    logging.error("%s: %r", context["message"], context.get("exception"))
    os._exit(1)


async def process_file(flags: argparse.Namespace) -> None:
    """Send every request of the file."""
    asyncio.get_running_loop().set_exception_handler(fail)
    if re.search(r"^https://[^/]+/v\d+/(.+)$", flags.request_url) is None:
        raise ValueError(f"unknown kind of URL: {flags.request_url}")
    headers = {"Authorization": f"Bearer {flags.api_key}"}
    async with aiohttp.ClientSession() as session:
        await main_loop(flags, State(session, flags.request_url, headers, flags.save_filepath))
    logging.info(f"Done: the results are in {flags.save_filepath}")


def main() -> None:
    """Read the flags, and run."""
    parser = argparse.ArgumentParser()
    for name in ("requests_filepath", "save_filepath", "request_url", "api_key"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--max_requests_per_minute", type=float, default=1500)
    parser.add_argument("--max_tokens_per_minute", type=float, default=125_000)
    parser.add_argument("--token_encoding_name", default="cl100k_base")
    parser.add_argument("--max_attempts", type=int, default=5)
    parser.add_argument("--logging_level", type=int, default=logging.INFO)
    flags = parser.parse_args()
    logging.basicConfig(level=flags.logging_level)
    asyncio.run(process_file(flags))


if __name__ == "__main__":
    main()
